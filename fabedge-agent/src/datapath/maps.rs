//! The pinned maps: opened by their pins, read into values, changed entry by entry.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use aya::maps::lpm_trie::Key;
use aya::maps::xdp::XdpMapError;
use aya::maps::{Array, HashMap, LpmTrie, Map, MapData, MapError, PerCpuArray, PerCpuHashMap, PerCpuValues};
use aya::util::nr_cpus;
use fabedge_common::abi::{self, Counter, Flow, Peer, Pod, Program, Reason, Route, StackFlow, State, map};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::bpffs::Pinboard;
use super::plan::Pins;
use super::queues::Queues;
use super::tables::{self, Grace, Tables};
use super::values::Value;

/// `BPF_NOEXIST` of linux/bpf.h: an entry that exists is left alone.
const NOEXIST: u64 = 1;

/// A map that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// One of those with an entry for each thing.
    #[error("{attempted} the map {map}")]
    Entry {
        /// What was tried.
        attempted: &'static str,
        /// Which map.
        map: &'static str,
        /// Why it failed.
        source: MapError,
    },
    /// The forwarding tables.
    #[error(transparent)]
    Table(#[from] tables::Error),
    /// A CPU's queue.
    #[error("making the queue of CPU {cpu}")]
    Queue {
        /// Which CPU.
        cpu: u32,
        /// Why it failed.
        source: XdpMapError,
    },
}

pub(super) fn failed(attempted: &'static str, map: &'static str) -> impl FnOnce(MapError) -> Error {
    move |source| Error::Entry {
        attempted,
        map,
        source,
    }
}

/// All maps of our ABI version.
pub struct Maps {
    routes4: LpmTrie<MapData, [u8; 4], Value<Route>>,
    routes6: LpmTrie<MapData, [u8; 16], Value<Route>>,
    tables: Tables,
    pods4: HashMap<MapData, [u8; 4], Value<Pod>>,
    pods6: HashMap<MapData, [u8; 16], Value<Pod>>,
    peers: PerCpuHashMap<MapData, u32, Value<Peer>>,
    stats: PerCpuArray<MapData, Value<Counter>>,
    stack_flows: HashMap<MapData, Value<Flow>, Value<StackFlow>>,
    state: Array<MapData, Value<State>>,
    /// Which SA has which CPU.
    pub queues: Queues,
}

/// What is pinned.
pub enum Found {
    /// Nothing.
    Nothing,
    /// Maps that can be used.
    Ours(Box<Maps>),
    /// Maps that cannot.
    Other(String),
}

impl Found {
    /// The same for the plan.
    pub fn pins(&self) -> Pins {
        match self {
            Self::Nothing => Pins::Absent,
            Self::Ours(_) => Pins::Ours,
            Self::Other(what) => Pins::Other(what.clone()),
        }
    }
}

/// Looks what is pinned.
///
/// # Errors
/// When a pin is there but cannot be opened.
pub fn find(board: &Pinboard) -> Result<Found, Error> {
    let missing: Vec<&str> = map::ALL
        .into_iter()
        .filter(|name| !board.map(name).exists())
        .collect();
    if missing.len() == map::ALL.len() {
        return Ok(Found::Nothing);
    }
    if !missing.contains(&map::STATE) {
        // Other versions have other maps.
        match version(board)? {
            Some(abi::VERSION) => {}
            Some(version) => return Ok(Found::Other(format!("ABI version {version}"))),
            None => return Ok(Found::Other("no ABI version".to_owned())),
        }
    }
    if let [first, ..] = missing[..] {
        return Ok(Found::Other(format!("incomplete: no {first}")));
    }
    match open(board) {
        Ok(maps) => Ok(Found::Ours(Box::new(maps))),
        Err(
            Error::Entry {
                map,
                source: MapError::InvalidKeySize { .. } | MapError::InvalidValueSize { .. },
                ..
            }
            | Error::Table(tables::Error::Map {
                map,
                source: MapError::InvalidKeySize { .. } | MapError::InvalidValueSize { .. },
            }),
        ) => Ok(Found::Other(format!("{map} has another layout"))),
        Err(error) => Err(error),
    }
}

/// The version that the pinned maps say they have.
fn version(board: &Pinboard) -> Result<Option<u32>, Error> {
    let state: Array<MapData, Value<State>> = match typed(board, map::STATE) {
        Ok(state) => state,
        Err(Error::Entry {
            source: MapError::InvalidValueSize { .. } | MapError::InvalidMapType { .. },
            ..
        }) => {
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    match state.get(&0, 0) {
        Ok(Value(State { version: 0, .. })) => Ok(None),
        Ok(Value(state)) => Ok(Some(state.version)),
        Err(error) => Err(failed("reading", map::STATE)(error)),
    }
}

/// Opens the maps by their pins.
///
/// # Errors
/// When one cannot be opened, or has keys or values of another size.
pub fn open(board: &Pinboard) -> Result<Maps, Error> {
    Ok(Maps {
        routes4: typed(board, map::ROUTES4)?,
        routes6: typed(board, map::ROUTES6)?,
        tables: Tables::new(|name| MapData::from_pin(board.map(name)))?,
        pods4: typed(board, map::PODS4)?,
        pods6: typed(board, map::PODS6)?,
        peers: typed(board, map::PEERS)?,
        stats: typed(board, map::STATS)?,
        stack_flows: typed(board, map::STACK_FLOWS)?,
        state: typed(board, map::STATE)?,
        queues: Queues::new(typed(board, map::SAS)?, typed(board, map::CPUS)?),
    })
}

fn typed<M: TryFrom<Map, Error = MapError>>(board: &Pinboard, name: &'static str) -> Result<M, Error> {
    MapData::from_pin(board.map(name))
        .and_then(Map::from_map_data)
        .and_then(M::try_from)
        .map_err(failed("opening", name))
}

impl Maps {
    /// Marks new maps as being of our version.
    ///
    /// # Errors
    /// When the map cannot be written.
    pub fn set_version(&mut self) -> Result<(), Error> {
        let state = State {
            version: abi::VERSION,
            flows_recorded: 0,
        };
        self.state
            .set(0, Value(state), 0)
            .map_err(failed("writing", map::STATE))
    }

    /// The routes of both families.
    ///
    /// # Errors
    /// When a map cannot be read.
    pub fn routes(&self) -> Result<BTreeMap<IpNet, Route>, Error> {
        let mut routes = BTreeMap::new();
        for entry in self.routes4.iter() {
            let (key, Value(route)) = entry.map_err(failed("reading", map::ROUTES4))?;
            let net = Ipv4Net::new(key.data().into(), prefix_len(key.prefix_len()));
            routes.extend(net.map(|net| (IpNet::V4(net), route)));
        }
        for entry in self.routes6.iter() {
            let (key, Value(route)) = entry.map_err(failed("reading", map::ROUTES6))?;
            let net = Ipv6Net::new(key.data().into(), prefix_len(key.prefix_len()));
            routes.extend(net.map(|net| (IpNet::V6(net), route)));
        }
        Ok(routes)
    }

    /// Adds or overwrites a route.
    ///
    /// # Errors
    /// When the map is full or cannot be written.
    pub fn set_route(&mut self, net: &IpNet, route: Route) -> Result<(), Error> {
        match net {
            IpNet::V4(net) => {
                let key = Key::new(net.prefix_len().into(), net.network().octets());
                self.routes4
                    .insert(&key, Value(route), 0)
                    .map_err(failed("writing", map::ROUTES4))
            }
            IpNet::V6(net) => {
                let key = Key::new(net.prefix_len().into(), net.network().octets());
                self.routes6
                    .insert(&key, Value(route), 0)
                    .map_err(failed("writing", map::ROUTES6))
            }
        }
    }

    /// Removes a route.
    ///
    /// # Errors
    /// When the map cannot be written.
    pub fn remove_route(&mut self, net: &IpNet) -> Result<(), Error> {
        match net {
            IpNet::V4(net) => {
                let key = Key::new(net.prefix_len().into(), net.network().octets());
                self.routes4
                    .remove(&key)
                    .map_err(failed("removing from", map::ROUTES4))
            }
            IpNet::V6(net) => {
                let key = Key::new(net.prefix_len().into(), net.network().octets());
                self.routes6
                    .remove(&key)
                    .map_err(failed("removing from", map::ROUTES6))
            }
        }
    }

    /// Compiles the routes of a family into the table that the programs read. It takes the place of its predecessor in
    /// one step: a packet sees the one or the other. What is left of the kernel's wait for the latter must be over before
    /// the next.
    ///
    /// # Errors
    /// When the table is too large, or the kernel has no memory for it; the one in force stays then.
    pub fn compile(&mut self, family: u32, routes: &BTreeMap<IpNet, Route>) -> Result<Option<Grace>, Error> {
        Ok(self.tables.replace(family, routes)?)
    }

    /// The pods of both families.
    ///
    /// # Errors
    /// When a map cannot be read.
    pub fn pods(&self) -> Result<BTreeMap<IpAddr, Pod>, Error> {
        let mut pods = BTreeMap::new();
        for entry in self.pods4.iter() {
            let (addr, Value(pod)) = entry.map_err(failed("reading", map::PODS4))?;
            pods.insert(IpAddr::from(addr), pod);
        }
        for entry in self.pods6.iter() {
            let (addr, Value(pod)) = entry.map_err(failed("reading", map::PODS6))?;
            pods.insert(IpAddr::from(addr), pod);
        }
        Ok(pods)
    }

    /// Adds or overwrites a pod.
    ///
    /// # Errors
    /// When the map is full or cannot be written.
    pub fn set_pod(&mut self, addr: &IpAddr, pod: Pod) -> Result<(), Error> {
        match addr {
            IpAddr::V4(addr) => self
                .pods4
                .insert(addr.octets(), Value(pod), 0)
                .map_err(failed("writing", map::PODS4)),
            IpAddr::V6(addr) => self
                .pods6
                .insert(addr.octets(), Value(pod), 0)
                .map_err(failed("writing", map::PODS6)),
        }
    }

    /// Removes a pod.
    ///
    /// # Errors
    /// When the map cannot be written.
    pub fn remove_pod(&mut self, addr: &IpAddr) -> Result<(), Error> {
        match addr {
            IpAddr::V4(addr) => self
                .pods4
                .remove(&addr.octets())
                .map_err(failed("removing from", map::PODS4)),
            IpAddr::V6(addr) => self
                .pods6
                .remove(&addr.octets())
                .map_err(failed("removing from", map::PODS6)),
        }
    }

    /// The peers that are counted.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn peer_ids(&self) -> Result<BTreeSet<u32>, Error> {
        self.peers
            .keys()
            .collect::<Result<_, _>>()
            .map_err(failed("reading", map::PEERS))
    }

    /// The peers' counters, summed over the CPUs.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn peers(&self) -> Result<BTreeMap<u32, Peer>, Error> {
        let mut peers = BTreeMap::new();
        for entry in self.peers.iter() {
            let (reqid, values) = entry.map_err(failed("reading", map::PEERS))?;
            let sum = values.iter().fold(Peer::default(), |sum, Value(cpu)| Peer {
                tx_packets: sum.tx_packets + cpu.tx_packets,
                tx_bytes: sum.tx_bytes + cpu.tx_bytes,
                rx_packets: sum.rx_packets + cpu.rx_packets,
                rx_bytes: sum.rx_bytes + cpu.rx_bytes,
            });
            peers.insert(reqid, sum);
        }
        Ok(peers)
    }

    /// Starts to count for a peer; counters that exist go on.
    ///
    /// # Errors
    /// When the map is full or cannot be written.
    pub fn add_peer(&mut self, reqid: u32) -> Result<(), Error> {
        let cpus = nr_cpus().map_err(|(_, error)| failed("writing", map::PEERS)(MapError::IoError(error)))?;
        let zeros = PerCpuValues::try_from(vec![Value(Peer::default()); cpus])
            .map_err(|error| failed("writing", map::PEERS)(MapError::IoError(error)))?;
        self.peers
            .insert(reqid, zeros, NOEXIST)
            .map_err(failed("writing", map::PEERS))
    }

    /// Forgets a peer's counters.
    ///
    /// # Errors
    /// When the map cannot be written.
    pub fn remove_peer(&mut self, reqid: u32) -> Result<(), Error> {
        self.peers
            .remove(&reqid)
            .map_err(failed("removing from", map::PEERS))
    }

    /// The counters per program and reason, summed over the CPUs; those that never counted are left out.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn stats(&self) -> Result<Vec<(Program, Reason, Counter)>, Error> {
        let mut stats = Vec::new();
        for program in Program::ALL {
            for reason in Reason::ALL.iter().copied() {
                let values = self
                    .stats
                    .get(&reason.index(program), 0)
                    .map_err(failed("reading", map::STATS))?;
                let sum = values.iter().fold(Counter::default(), |sum, Value(cpu)| Counter {
                    packets: sum.packets + cpu.packets,
                    bytes: sum.bytes + cpu.bytes,
                });
                if sum.packets != 0 {
                    stats.push((program, reason, sum));
                }
            }
        }
        Ok(stats)
    }

    /// The directions of flows that are known to be the stack's, and the program that saw the other direction.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn stack_flows(&self) -> Result<Vec<(Flow, StackFlow)>, Error> {
        let entries = self
            .stack_flows
            .iter()
            .map(|entry| entry.map(|(Value(flow), Value(seen))| (flow, seen)));
        entries
            .collect::<Result<_, _>>()
            .map_err(failed("reading", map::STACK_FLOWS))
    }
}

fn prefix_len(bits: u32) -> u8 {
    u8::try_from(bits).unwrap_or(u8::MAX)
}
