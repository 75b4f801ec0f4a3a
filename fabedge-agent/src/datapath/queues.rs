//! The maps of `uplink_xdp`: which SA has which CPU, and the CPUs' queues.

use std::collections::{BTreeMap, BTreeSet};

use aya::maps::{CpuMap, HashMap, MapData, MapError};
use aya::programs::ProgramFd;
use fabedge_common::abi::{SaCpu, SaId, map};

use super::maps::{Error, failed};
use super::values::Value;

/// Packets that wait in front of a CPU at most. Who waits behind so many is late by some ten milliseconds; what comes then is
/// lost, as where a NIC's ring is full. The thread that takes them out has to share its CPU with others.
const LONGEST: u32 = 2048;

/// Both maps.
pub struct Queues {
    sas: HashMap<MapData, Value<SaId>, Value<SaCpu>>,
    cpus: CpuMap<MapData>,
}

impl Queues {
    /// Of these maps.
    pub fn new(sas: HashMap<MapData, Value<SaId>, Value<SaCpu>>, cpus: CpuMap<MapData>) -> Self {
        Self { sas, cpus }
    }

    /// The CPUs of SAs.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn sas(&self) -> Result<BTreeMap<SaId, SaCpu>, Error> {
        let entries = self
            .sas
            .iter()
            .map(|entry| entry.map(|(Value(id), Value(cpu))| (id, cpu)));
        entries
            .collect::<Result<_, _>>()
            .map_err(failed("reading", map::SAS))
    }

    /// Gives an SA a CPU.
    ///
    /// # Errors
    /// When the map is full or cannot be written.
    pub fn set_sa(&mut self, id: SaId, cpu: SaCpu) -> Result<(), Error> {
        self.sas
            .insert(Value(id), Value(cpu), 0)
            .map_err(failed("writing", map::SAS))
    }

    /// Forgets an SA.
    ///
    /// # Errors
    /// When the map cannot be written.
    pub fn remove_sa(&mut self, id: SaId) -> Result<(), Error> {
        self.sas
            .remove(&Value(id))
            .map_err(failed("removing from", map::SAS))
    }

    /// CPUs that have a queue.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn cpus(&self) -> Result<BTreeSet<u32>, Error> {
        let mut cpus = BTreeSet::new();
        for cpu in 0..self.cpus.len() {
            match self.cpus.get(cpu, 0) {
                Ok(_) => {
                    cpus.insert(cpu);
                }
                Err(MapError::KeyNotFound) => {}
                Err(error) => return Err(failed("reading", map::CPUS)(error)),
            }
        }
        Ok(cpus)
    }

    /// Makes a queue; the program is what takes packets out.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn set_cpu(&mut self, cpu: u32, program: &ProgramFd) -> Result<(), Error> {
        self.cpus
            .set(cpu, LONGEST, Some(program), 0)
            .map_err(|source| Error::Queue { cpu, source })
    }

    /// Removes a queue. The kernel empties it first.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn remove_cpu(&mut self, cpu: u32) -> Result<(), Error> {
        // A queue of no packets is none.
        self.cpus
            .set(cpu, 0, None, 0)
            .map_err(|source| Error::Queue { cpu, source })
    }
}
