//! The eBPF fast path: programs and maps. It only makes faster what the kernel's slow path does anyway, so whatever
//! fails here is reported, and the node goes on.
//!
//! Maps and links are pinned, so they outlive the agent. A new agent loads its programs onto the maps it finds, and
//! puts them in the place of the old ones, hook by hook, without a gap.

mod bpffs;
pub mod fib;
mod hooks;
mod maps;
mod plan;
pub mod pods;
mod programs;
mod queues;
pub mod read;
pub mod reception;
pub mod tables;
pub mod values;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use fabedge_common::abi::fib::{FAMILIES, IPV4, IPV6};
use fabedge_common::abi::{POD_LEARNING, Route};
use ipnet::IpNet;
use tracing::{info, warn};

use crate::desired::datapath::{Datapath as Desired, Hook, LocalPods};
use crate::marks;
use crate::subsystem::{Error, Outcome, Phase, Subsystem};
use bpffs::Pinboard;
use maps::{Found, Maps};
use plan::{Actual, Load, Pins, Plan};
use programs::{Mode, Programs};
use tables::Grace;

/// The programs and maps, as built by `cargo xtask build`.
static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("FABEDGE_EBPF_OBJECT"));

/// Where the fast path keeps its things.
#[derive(Clone, Debug)]
pub struct Options {
    /// Folder of pins, on a BPF file system.
    pub dir: PathBuf,
    /// CNI state directory, where runtimes remember their pods.
    pub cni_state_dir: PathBuf,
    /// How long a new pod's packets stay with the stack: longer than a round trip, so that a flow which the stack
    /// translated before our programs were there shows itself to them.
    pub learning: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            dir: marks::BPF_DIR.into(),
            cni_state_dir: "/var/lib/cni".into(),
            learning: Duration::from_secs(2),
        }
    }
}

/// The subsystem.
#[derive(Debug)]
pub struct Datapath {
    options: Options,
    board: Pinboard,
    /// Found out with the first look at the hooks.
    mode: Option<Mode>,
    netlink: Option<rtnetlink::Handle>,
    programs: Option<Programs>,
    /// What the route maps say.
    routes: BTreeMap<IpNet, Route>,
    /// The families whose forwarding tables say the same.
    compiled: BTreeSet<u32>,
    /// What is left of the kernel's waits for programs that read tables before those.
    graces: Vec<Grace>,
    enabled: bool,
    /// Why the slow path carries everything.
    unavailable: Option<String>,
    /// Since when pods have been learning.
    learning: BTreeMap<IpAddr, Instant>,
    foreign: BTreeSet<String>,
    /// Uplinks on which XDP was refused, and why: asking again would reset the NIC again.
    refused: BTreeMap<Hook, String>,
    /// How ESP is spread over CPUs, by uplink.
    spread: BTreeMap<String, String>,
}

impl Datapath {
    /// Makes the subsystem; touches nothing.
    pub fn new(options: Options) -> Self {
        Self {
            board: Pinboard::new(options.dir.clone()),
            options,
            mode: None,
            netlink: None,
            programs: None,
            routes: BTreeMap::new(),
            compiled: BTreeSet::new(),
            graces: Vec::new(),
            enabled: false,
            unavailable: None,
            learning: BTreeMap::new(),
            foreign: BTreeSet::new(),
            refused: BTreeMap::new(),
            spread: BTreeMap::new(),
        }
    }

    /// CNI state directory, where runtimes remember their pods.
    pub fn cni_state_dir(&self) -> &std::path::Path {
        &self.options.cni_state_dir
    }

    /// The pods of this node, for [`crate::desired::datapath::datapath`].
    ///
    /// # Errors
    /// When the runtime's files or the qdiscs cannot be read.
    pub async fn local_pods(&mut self) -> Result<LocalPods, Error> {
        let pods = pods::read(&self.options.cni_state_dir)?;
        let qdiscs = hooks::qdiscs(self.netlink()?).await?;
        Ok(LocalPods { pods, qdiscs })
    }

    /// `on`, `off`, or why the slow path carries everything.
    pub fn state(&self) -> String {
        match &self.unavailable {
            _ if !self.enabled => "off".to_owned(),
            Some(why) => format!("slow path only: {why}"),
            None => "on".to_owned(),
        }
    }

    /// Programs of others on our hooks, in words.
    pub fn foreign(&self) -> &BTreeSet<String> {
        &self.foreign
    }

    /// Whether ESP that arrives on an uplink is spread over CPUs, or why not, by the uplink's name; on connectors only.
    pub fn spread(&self) -> &BTreeMap<String, String> {
        &self.spread
    }

    /// When a pod will have learned enough, if one is learning.
    pub fn next_attempt(&self) -> Option<Duration> {
        let due = self.learning.values().min()?.checked_add(self.options.learning)?;
        Some(due.saturating_duration_since(Instant::now()))
    }

    /// Plans what leads from `before`, which is in the maps, to `after`.
    pub fn change(&self, before: &Desired, after: &Desired) -> Plan {
        if self.programs.is_none() {
            return Plan::default();
        }
        plan::change(before, after)
    }

    fn netlink(&mut self) -> Result<&rtnetlink::Handle, hooks::Error> {
        match &mut self.netlink {
            Some(handle) => Ok(handle),
            none => Ok(none.insert(hooks::connect()?)),
        }
    }

    fn mode(&mut self) -> Mode {
        *self.mode.get_or_insert_with(Mode::detect)
    }

    async fn observe(&mut self, desired: &Desired) -> Result<Actual, Error> {
        let found = maps::find(&self.board)?;
        let pins = found.pins();
        let (routes, pods, peers) = match &found {
            Found::Ours(maps) => (maps.routes()?, maps.pods()?, maps.peer_ids()?),
            Found::Nothing | Found::Other(_) => Default::default(),
        };
        self.routes.clone_from(&routes);
        let (sas, cpus) = match &found {
            Found::Ours(maps) => (maps.queues.sas()?, maps.queues.cpus()?),
            Found::Nothing | Found::Other(_) => Default::default(),
        };
        let mode = self.mode();
        let board = self.board.clone();
        let hooks = hooks::find(mode, &board, self.netlink()?, &desired.hooks).await?;
        for foreign in hooks.foreign.difference(&self.foreign) {
            warn!(
                foreign,
                "on a hook of the fast path: it does not see what goes past the stack, and what it takes we do not see"
            );
        }
        self.foreign = hooks.foreign;
        let mut barred = self.refused.clone();
        barred.extend(hooks.taken);
        self.tell_spread(desired, &hooks.ours, &barred);
        Ok(Actual {
            bare: pins == Pins::Absent && self.board.is_bare(),
            pins,
            loaded: self.programs.is_some(),
            learned: self.learned(&pods),
            compiled: self.compiled.len() == FAMILIES,
            routes,
            pods,
            peers,
            hooks: hooks.ours,
            dead: hooks.dead,
            barred: barred.into_keys().collect(),
            sas,
            cpus,
        })
    }

    fn tell_spread(&mut self, desired: &Desired, ours: &BTreeSet<Hook>, barred: &BTreeMap<Hook, String>) {
        let cpus: Vec<String> = desired.spread.cpus.iter().map(ToString::to_string).collect();
        let mut spread = desired.spread.not.clone();
        for hook in desired.hooks.iter().filter(|hook| hook.entry.is_xdp()) {
            if ours.contains(hook) {
                spread.insert(hook.device.clone(), format!("over CPUs {}", cpus.join(", ")));
            } else if let Some(why_not) = barred.get(hook) {
                spread.insert(hook.device.clone(), format!("not spread: {why_not}"));
            }
        }
        for (device, how) in &spread {
            if self.spread.get(device) != Some(how) {
                info!(device, how, "ESP, whether spread");
            }
        }
        self.spread = spread;
    }

    /// Keeps the account of who learns, and tells who has done so for long enough.
    fn learned(&mut self, pods: &BTreeMap<IpAddr, fabedge_common::abi::Pod>) -> BTreeSet<IpAddr> {
        let learns = |addr: &IpAddr| pods.get(addr).is_some_and(|pod| pod.flags & POD_LEARNING != 0);
        self.learning.retain(|addr, _| learns(addr));
        let now = Instant::now();
        for addr in pods.keys().filter(|addr| learns(addr)) {
            self.learning.entry(*addr).or_insert(now);
        }
        let done = self
            .learning
            .iter()
            .filter(|(_, since)| now.duration_since(**since) >= self.options.learning);
        done.map(|(addr, _)| *addr).collect()
    }

    fn load(&mut self, load: &Load) -> Result<(), Error> {
        let mode = self.mode();
        self.board.prepare()?;
        let target = match load {
            Load::Migrate { .. } => self.board.prepare_next()?,
            Load::Fresh | Load::Reuse => self.board.clone(),
        };
        let programs = Programs::load(OBJECT, &target, mode);
        if programs.is_err() && *load != Load::Reuse {
            // Maps without programs would be taken for an agent's before us.
            target.remove_maps()?;
        }
        self.programs = Some(programs?);
        if *load != Load::Reuse {
            maps::open(&target)?.set_version()?;
        }
        info!(?load, ?mode, "eBPF programs loaded");
        Ok(())
    }

    /// The maps that the loaded programs use: before the switch to new ones, those that wait.
    fn open(&self, plan: &Plan) -> Result<Maps, Error> {
        let board = match plan.load {
            Some(Load::Migrate { .. }) => self.board.next(),
            Some(Load::Fresh | Load::Reuse) | None => self.board.clone(),
        };
        Ok(maps::open(&board)?)
    }

    fn grow(&mut self, plan: &Plan) -> Vec<Outcome> {
        let mut outcomes = Vec::new();
        if let Some(load) = &plan.load {
            let result = self.load(load);
            self.unavailable = result.as_ref().err().map(|error: &Error| chain(error.as_ref()));
            let failed = result.is_err();
            outcomes.push(Outcome::new(
                "load",
                "the eBPF programs (without them: slow path only)",
                result,
            ));
            if failed {
                return outcomes;
            }
        }
        let mut maps = match self.open(plan) {
            Ok(maps) => maps,
            Err(error) => {
                outcomes.push(Outcome::new("open", "the maps", Err(error)));
                return outcomes;
            }
        };
        for (reqid, name) in &plan.peers.set {
            outcomes.push(Outcome::new(
                "add",
                format!("peer {name} (reqid {reqid})"),
                maps.add_peer(*reqid),
            ));
        }
        if plan.load.is_some() {
            self.compiled.clear();
        }
        for (net, route) in &plan.routes.set {
            let result = maps.set_route(net, *route);
            if result.is_ok() {
                self.routes.insert(*net, *route);
                self.compiled.remove(&fib::family(net));
            }
            outcomes.push(Outcome::new("set", format!("route {net}"), result));
        }
        // Where others are to go, that is done once when they have gone: what is new takes the slow path until then.
        if plan.load.is_some() || plan.routes.remove.is_empty() {
            outcomes.extend(self.compile(&mut maps));
        }
        // The queues before what fills them.
        outcomes.extend(self.set_queues(plan, &mut maps));
        let failed = self.attach(plan, &mut outcomes);
        if let Some(Load::Migrate { .. }) = plan.load {
            outcomes.push(Outcome::new(
                "adopt",
                "the maps of this version",
                self.board.adopt_next(),
            ));
        }
        for (addr, pod) in &plan.pods.set {
            // A pod whose flows are not all seen must not be fast: what the stack translates would go past it.
            if failed
                .iter()
                .any(|hook| hook.entry.on_tunnel() || hook.ifindex == pod.ifindex)
            {
                continue;
            }
            let result = maps.set_pod(addr, *pod);
            if pod.flags & POD_LEARNING != 0 {
                self.learning.insert(*addr, Instant::now());
            } else {
                self.learning.remove(addr);
            }
            outcomes.push(Outcome::new("set", format!("pod {addr}"), result));
        }
        outcomes
    }

    fn set_queues(&mut self, plan: &Plan, maps: &mut Maps) -> Vec<Outcome> {
        let mut outcomes = Vec::new();
        for cpu in plan.queues.set.keys() {
            let result = match self.programs.as_mut().map(Programs::uplink_cpu) {
                Some(Ok(program)) => maps.queues.set_cpu(*cpu, program).map_err(Error::from),
                Some(Err(error)) => Err(error.into()),
                None => continue,
            };
            outcomes.push(Outcome::new("make", format!("the queue of CPU {cpu}"), result));
        }
        for (id, sa) in &plan.sas.set {
            let object = format!("CPU {} for SA {:#x}", sa.cpu, u32::from_be_bytes(id.spi));
            outcomes.push(Outcome::new("set", object, maps.queues.set_sa(*id, *sa)));
        }
        outcomes
    }

    /// Compiles the tables that do not say what the maps say.
    fn compile(&mut self, maps: &mut Maps) -> Vec<Outcome> {
        let mut outcomes = Vec::new();
        if self.compiled.len() < FAMILIES {
            self.graces.drain(..).for_each(Grace::end);
        }
        for (family, name) in [(IPV4, "IPv4"), (IPV6, "IPv6")] {
            if self.compiled.contains(&family) {
                continue;
            }
            let result = maps.compile(family, &self.routes).map(|grace| {
                self.compiled.insert(family);
                self.graces.extend(grace);
            });
            outcomes.push(Outcome::new("compile", format!("the {name} routes"), result));
        }
        outcomes
    }

    /// Attaches what the plan says. Returns the hooks without a program of ours.
    fn attach(&mut self, plan: &Plan, outcomes: &mut Vec<Outcome>) -> Vec<Hook> {
        let mut failed: Vec<Hook> = Vec::new();
        let Some(programs) = &mut self.programs else {
            return failed;
        };
        if plan.load.is_some() {
            for hook in &plan.keep {
                outcomes.push(Outcome::new("replace", hook, programs.replace(hook, &self.board)));
            }
        }
        for hook in &plan.attach {
            // One reason per device is enough.
            if failed.iter().any(|other| other.ifindex == hook.ifindex) {
                continue;
            }
            let result = programs.attach(hook, &self.board);
            if let (Err(error), true) = (&result, hook.entry.is_xdp()) {
                // No driver has to have it; then ESP stays where it arrives.
                self.refused
                    .insert(hook.clone(), format!("no XDP in its driver: {}", chain(error)));
                continue;
            }
            if result.is_err() {
                failed.push(hook.clone());
            }
            outcomes.push(Outcome::new("attach", hook, result));
        }
        failed
    }

    fn shrink(&mut self, plan: &Plan) -> Vec<Outcome> {
        let mut outcomes = Vec::new();
        let removes =
            !(plan.pods.remove.is_empty() && plan.routes.remove.is_empty() && plan.peers.remove.is_empty());
        if removes {
            match maps::open(&self.board) {
                Ok(mut maps) => {
                    for addr in &plan.pods.remove {
                        outcomes.push(Outcome::new(
                            "remove",
                            format!("pod {addr}"),
                            maps.remove_pod(addr),
                        ));
                    }
                    for net in &plan.routes.remove {
                        let result = maps.remove_route(net);
                        if result.is_ok() {
                            self.routes.remove(net);
                            self.compiled.remove(&fib::family(net));
                        }
                        outcomes.push(Outcome::new("remove", format!("route {net}"), result));
                    }
                    outcomes.extend(self.compile(&mut maps));
                    for reqid in &plan.peers.remove {
                        let result = maps.remove_peer(*reqid);
                        outcomes.push(Outcome::new("remove", format!("peer with reqid {reqid}"), result));
                    }
                }
                Err(error) => outcomes.push(Outcome::new("open", "the maps", Err(error))),
            }
        }
        let mode = self.mode();
        for hook in &plan.detach {
            outcomes.push(Outcome::new(
                "detach",
                hook,
                programs::detach(hook, &self.board, mode),
            ));
        }
        if !(plan.queues.remove.is_empty() && plan.sas.remove.is_empty()) {
            match maps::open(&self.board) {
                Ok(mut maps) => outcomes.extend(remove_queues(plan, &mut maps)),
                Err(error) => outcomes.push(Outcome::new("open", "the maps", Err(error))),
            }
        }
        if plan.unpin {
            self.programs = None;
            outcomes.push(Outcome::new(
                "remove",
                "the pinned maps",
                self.board.remove_maps(),
            ));
        }
        outcomes
    }
}

fn remove_queues(plan: &Plan, maps: &mut Maps) -> Vec<Outcome> {
    let mut outcomes = Vec::new();
    for id in &plan.sas.remove {
        let object = format!("SA {:#x}", u32::from_be_bytes(id.spi));
        outcomes.push(Outcome::new("forget", object, maps.queues.remove_sa(*id)));
    }
    for cpu in &plan.queues.remove {
        let object = format!("the queue of CPU {cpu}");
        outcomes.push(Outcome::new("remove", object, maps.queues.remove_cpu(*cpu)));
    }
    outcomes
}

/// An error with its causes on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

impl Subsystem for Datapath {
    type Desired = Desired;
    type Plan = Plan;

    const NAME: &'static str = "datapath";

    async fn plan(&mut self, desired: &Desired) -> Result<Plan, Error> {
        self.enabled = desired.enabled;
        // What the kernel refused once it refuses until another agent comes with other programs.
        if desired.enabled && self.unavailable.is_some() && self.programs.is_none() {
            return Ok(Plan::default());
        }
        let actual = self.observe(desired).await?;
        Ok(plan::plan(desired, &actual))
    }

    async fn apply(&mut self, plan: &Plan, phase: Phase) -> Vec<Outcome> {
        match phase {
            Phase::Grow if plan.grows() => self.grow(plan),
            Phase::Shrink if plan.shrinks() => self.shrink(plan),
            Phase::Grow | Phase::Shrink => Vec::new(),
        }
    }
}
