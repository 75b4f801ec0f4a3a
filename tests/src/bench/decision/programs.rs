//! The programs that are compared, on maps filled with the same routes.

use std::fs;
use std::os::fd::{AsFd, AsRawFd};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use aya::maps::lpm_trie::Key;
use aya::maps::{Array, ArrayOfMaps, HashMap, LpmTrie, Map, MapData, MapError, PerCpuHashMap, PerCpuValues};
use aya::programs::{SchedClassifier, TestRun, TestRunOptions};
use aya::{Ebpf, EbpfLoader};
use fabedge_agent::datapath::tables::Tables;
use fabedge_common::abi::{Route, fib, map};
use ipnet::IpNet;
use rustix::thread::{CpuSet, sched_setaffinity};

use super::prefixes::{Draw, Family, Prefixes};

/// Built by `cargo xtask bench`.
const OBJECT: &str = "/host/fabedge-bench.o";

/// `TC_ACT_REDIRECT` of linux/pkt_cls.h.
const REDIRECT: u32 = 7;

/// Ways to look a destination up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lookup {
    /// The kernel's map of prefixes.
    Trie,
    /// The kernel's hash, with the right prefix for a key.
    Hash,
    /// The forwarding table, which the fast path asks.
    Ours,
}

impl Lookup {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Trie, Self::Hash, Self::Ours];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Trie => "LPM trie",
            Self::Hash => "hash",
            Self::Ours => "forwarding table",
        }
    }

    /// Its program, without the family.
    pub fn program(self) -> &'static str {
        match self {
            Self::Trie => "trie",
            Self::Hash => "hash",
            Self::Ours => "ours",
        }
    }
}

/// Keeps this thread on one CPU: another has other caches.
///
/// # Errors
/// When the kernel refuses.
pub fn stay_on_one_cpu() -> Result<()> {
    let mut cpus = CpuSet::new();
    cpus.set(0);
    sched_setaffinity(None, &cpus).context("staying on one CPU")
}

/// The programs in the kernel.
pub struct Tested {
    ebpf: Ebpf,
    family: Family,
    packet: Vec<u8>,
}

impl Tested {
    /// Loads the programs, and fills their maps.
    ///
    /// # Errors
    /// When the kernel refuses something.
    pub fn load(prefixes: &Prefixes) -> Result<Self> {
        let object = fs::read(OBJECT).with_context(|| format!("reading {OBJECT}"))?;
        let mut ebpf = EbpfLoader::new()
            .load(&object)
            .context("loading the programs to compare")?;
        let family = prefixes.family;
        match family {
            Family::Ipv4 => fill4(&mut ebpf, prefixes)?,
            Family::Ipv6 => fill6(&mut ebpf, prefixes)?,
        }
        peers(&mut ebpf, prefixes)?;
        let mut tested = Self {
            ebpf,
            family,
            packet: packet(family),
        };
        tested.replace(prefixes)?;
        Ok(tested)
    }

    /// Time of one run of a program, which takes its destinations from the first `draws`.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn nanoseconds(&mut self, program: &str, draws: usize) -> Result<f64> {
        let mut last: Array<_, u32> = get(&mut self.ebpf, "last_draw")?;
        last.set(0, draws as u32 - 1, 0)?;
        let name = match self.family {
            Family::Ipv4 => format!("{program}_ipv4"),
            Family::Ipv6 => format!("{program}_ipv6"),
        };
        let program = self
            .ebpf
            .program_mut(&name)
            .with_context(|| format!("no program {name}"))?;
        let program: &mut SchedClassifier = program.try_into()?;
        if program.fd().is_err() {
            program.load().with_context(|| format!("loading {name}"))?;
        }
        let run = |times: usize| {
            program
                .test_run(TestRunOptions {
                    data_in: Some(&self.packet),
                    repeat: times as u32,
                    ..TestRunOptions::default()
                })
                .with_context(|| format!("running {name}"))
        };
        // The caches are another program's now.
        let times = super::DRAWS;
        run(times.min(draws.max(1000)))?;
        // The kernel tells whole nanoseconds.
        let result = run(times)?;
        let good = match &*name {
            "egress_ipv4" | "egress_ipv6" | "ingress_ipv4" | "ingress_ipv6" => {
                result.return_value == REDIRECT
            }
            _ => result.return_value != u32::MAX,
        };
        if !good {
            bail!(
                "{name} returned {}: it did not find the last route",
                result.return_value
            );
        }
        Ok(result.duration.as_nanos() as f64)
    }

    /// Compiles the routes into the table that programs read, as the agent does; how many milliseconds that takes.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn replace(&mut self, prefixes: &Prefixes) -> Result<f64> {
        let began = Instant::now();
        let grace = Tables::new(|name| match self.ebpf.map(name) {
            Some(Map::ArrayOfMaps(data)) => MapData::from_id(data.info()?.id()),
            _ => Err(MapError::KeyNotFound),
        })?
        .replace(self.slot(), &prefixes.routes)?;
        if let Some(grace) = grace {
            grace.end();
        }
        Ok(began.elapsed().as_secs_f64() * 1e3)
    }

    fn slot(&self) -> u32 {
        match self.family {
            Family::Ipv4 => fib::IPV4,
            Family::Ipv6 => fib::IPV6,
        }
    }

    /// Memory of a table as the kernel states it.
    ///
    /// # Errors
    /// When it does not.
    pub fn kibibytes(&mut self, lookup: Lookup) -> Result<f64> {
        let name = match (lookup, self.family) {
            (Lookup::Trie, Family::Ipv4) => map::ROUTES4,
            (Lookup::Trie, Family::Ipv6) => map::ROUTES6,
            (Lookup::Hash, Family::Ipv4) => "hash4",
            (Lookup::Hash, Family::Ipv6) => "hash6",
            (Lookup::Ours, _) => return self.kibibytes_of_table(),
        };
        match self.ebpf.map(name).context("a map is missing")? {
            Map::LpmTrie(data) | Map::HashMap(data) => memory(data),
            _ => bail!("{name} is another kind of map"),
        }
    }

    fn kibibytes_of_table(&mut self) -> Result<f64> {
        let slot = self.slot();
        let pages: ArrayOfMaps<_, MapData> = get(&mut self.ebpf, map::FIB)?;
        let mut sum = memory(&pages.get(&slot, 0)?)?;
        let blocks: ArrayOfMaps<_, MapData> = get(&mut self.ebpf, map::FIB_BLOCKS)?;
        for block in 0..blocks.len() {
            if let Ok(block) = blocks.get(&block, 0) {
                sum += memory(&block)?;
            }
        }
        Ok(sum)
    }
}

fn get<'a, M: TryFrom<&'a mut Map, Error = MapError>>(ebpf: &'a mut Ebpf, name: &str) -> Result<M> {
    let map = ebpf.map_mut(name).with_context(|| format!("no map {name}"))?;
    M::try_from(map).with_context(|| format!("the map {name}"))
}

/// The line `memlock` of what the kernel tells of a map's file descriptor.
fn memory(map: &MapData) -> Result<f64> {
    let path = format!("/proc/self/fdinfo/{}", map.fd().as_fd().as_raw_fd());
    let text = fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
    let bytes = text.lines().find_map(|line| line.strip_prefix("memlock:"));
    let bytes: f64 = bytes.context("the kernel states no memory")?.trim().parse()?;
    Ok(bytes / 1024.0)
}

/// A word of the programs: its bytes in the order of the network.
fn word(bits: u128, from: u32) -> u32 {
    ((bits >> from) as u32).to_be()
}

fn words(bits: u128) -> [u32; 4] {
    [96, 64, 32, 0].map(|from| word(bits, from))
}

fn fill4(ebpf: &mut Ebpf, prefixes: &Prefixes) -> Result<()> {
    let mut trie: LpmTrie<_, [u8; 4], [u32; 5]> = get(ebpf, map::ROUTES4)?;
    for (net, route) in &prefixes.routes {
        if let IpNet::V4(net) = net {
            let key = Key::new(net.prefix_len().into(), net.network().octets());
            patiently(|| trie.insert(&key, value(route), 0))?;
        }
    }
    let mut hash: HashMap<_, [u32; 2], [u32; 5]> = get(ebpf, "hash4")?;
    for (net, route) in &prefixes.routes {
        if let IpNet::V4(net) = net {
            let network = word(net.network().to_bits().into(), 0);
            let key = [network, net.prefix_len().into()];
            patiently(|| hash.insert(key, value(route), 0))?;
        }
    }
    let mut draws: Array<_, [u32; 3]> = get(ebpf, "draws4")?;
    for (
        index,
        Draw {
            address,
            network,
            length,
        },
    ) in (0..).zip(&prefixes.draws)
    {
        draws.set(index, [word(*address, 0), word(*network, 0), *length], 0)?;
    }
    let mut pods: HashMap<_, [u8; 4], [u8; 20]> = get(ebpf, map::PODS4)?;
    Ok(pods.insert([10, 255, 0, 2], pod(), 0)?)
}

fn fill6(ebpf: &mut Ebpf, prefixes: &Prefixes) -> Result<()> {
    let mut trie: LpmTrie<_, [u8; 16], [u32; 5]> = get(ebpf, map::ROUTES6)?;
    for (net, route) in &prefixes.routes {
        if let IpNet::V6(net) = net {
            let key = Key::new(net.prefix_len().into(), net.network().octets());
            patiently(|| trie.insert(&key, value(route), 0))?;
        }
    }
    let mut hash: HashMap<_, [u32; 5], [u32; 5]> = get(ebpf, "hash6")?;
    for (net, route) in &prefixes.routes {
        if let IpNet::V6(net) = net {
            let [a, b, c, d] = words(net.network().to_bits());
            let key = [a, b, c, d, net.prefix_len().into()];
            patiently(|| hash.insert(key, value(route), 0))?;
        }
    }
    let mut draws: Array<_, [u32; 9]> = get(ebpf, "draws6")?;
    for (
        index,
        Draw {
            address,
            network,
            length,
        },
    ) in (0..).zip(&prefixes.draws)
    {
        let ([a, b, c, d], [e, f, g, h]) = (words(*address), words(*network));
        draws.set(index, [a, b, c, d, e, f, g, h, *length], 0)?;
    }
    let mut pods: HashMap<_, [u8; 16], [u8; 20]> = get(ebpf, map::PODS6)?;
    let mut address = [0; 16];
    (address[0], address[1], address[15]) = (0xfd, 0xff, 2);
    Ok(pods.insert(address, pod(), 0)?)
}

/// A route as it lies in a map.
fn value(route: &Route) -> [u32; 5] {
    [route.kind, route.ifindex, route.reqid, route.flags, route.mtu]
}

/// The pod that packets are from or for, as it lies in a map: on the device of a test's packets, the loopback.
fn pod() -> [u8; 20] {
    let mut pod = [6; 20];
    pod[..8].copy_from_slice(&[1, 0, 0, 0, 0, 0, 0, 0]);
    pod
}

/// Counters of every peer, as the agent keeps them.
fn peers(ebpf: &mut Ebpf, prefixes: &Prefixes) -> Result<()> {
    let cpus = aya::util::nr_cpus().map_err(|(what, error)| anyhow::anyhow!("{what}: {error}"))?;
    let mut peers: PerCpuHashMap<_, u32, [u64; 4]> = get(ebpf, map::PEERS)?;
    for route in prefixes.routes.values() {
        let insert = || {
            let zeros = PerCpuValues::try_from(vec![[0_u64; 4]; cpus])?;
            peers.insert(route.reqid, zeros, 0)
        };
        patiently(insert)?;
    }
    Ok(())
}

/// Has the kernel insert something once it has memory at hand: maps that grow by the entry do not wait for it, and tens of
/// thousands at once are more than it keeps ready.
fn patiently(mut insert: impl FnMut() -> Result<(), MapError>) -> Result<(), MapError> {
    let missing = |error: &MapError| match error {
        MapError::SyscallError(error) => error.io_error.raw_os_error() == Some(libc::ENOMEM),
        _ => false,
    };
    for _ in 0..200 {
        match insert() {
            Err(error) if missing(&error) => thread::sleep(Duration::from_millis(5)),
            done => return done,
        }
    }
    insert()
}

/// A UDP datagram in a frame; the programs write the addresses.
fn packet(family: Family) -> Vec<u8> {
    let mut packet = vec![0; 12];
    match family {
        Family::Ipv4 => packet.extend([8, 0, 0x45, 0, 0, 46, 0, 1, 0x40, 0, 64, 17, 0, 0]),
        Family::Ipv6 => packet.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 8, 17, 64]),
    }
    packet.resize(100, 0);
    packet
}
