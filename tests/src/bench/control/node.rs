//! A node with its charon and its agent, and what it takes the agent to apply a document.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::documents::{self, Documents};
use crate::bench::path::ground::{Ground, NODES, Settings};
use crate::daemon::Daemon;
use crate::lab::{self, Spread, Switch, Tunnel, charon, wait_until};
use crate::place::Place;
use crate::site::Site;
use crate::world;
use crate::world::addresses::Role;

/// Where the programs are.
const PROGRAMS: &str = "/host";

/// How long anything may take, on a machine that is emulated.
pub const PATIENCE: Duration = Duration::from_secs(300);

/// The node.
pub struct Node {
    /// Its world.
    pub ground: Ground,
    /// Its documents.
    pub documents: Documents,
    /// Its agent.
    pub agent: Daemon,
    /// Its charon.
    pub charon: Daemon,
    folder: PathBuf,
}

/// What it took to apply a document.
#[derive(Clone, Copy, Debug)]
pub struct Applied {
    /// Seconds from when the agent came upon the document until it was applied.
    pub seconds: f64,
    /// Seconds of a processor that the agent took until then, and the commands that it ran.
    pub agent: f64,
    /// The same of charon.
    pub charon: f64,
}

/// Who performs ESP on this kernel.
///
/// # Errors
/// When it cannot be tried.
pub fn tunnel() -> Result<Tunnel> {
    let place = Place::create("probe")?;
    let tried = place.ip("link add probe type xfrm dev lo if_id 1");
    place.release()?;
    Ok(if tried.is_ok() {
        Tunnel::Xfrm
    } else {
        Tunnel::Libipsec
    })
}

impl Node {
    /// Brings it up, with a document that has no peers.
    ///
    /// # Errors
    /// When something does not come up.
    pub fn start(tunnel: Tunnel, written: &Path) -> Result<Self> {
        Self::start_as(Role::Edge, tunnel, Spread::default(), written)
    }

    /// Brings it up in a role.
    ///
    /// # Errors
    /// When something does not come up.
    pub fn start_as(role: Role, tunnel: Tunnel, spread_esp: Spread, written: &Path) -> Result<Self> {
        let settings = Settings {
            documents: written.to_owned(),
            rules: false,
            direct: false,
        };
        let ground = Ground::of_nodes(&settings)?;
        let folder = world::documents().join(NODES[0].name);
        if role == Role::Connector {
            let own = written.join("connector");
            for file in ["tunnels.yaml", "tls.crt", "tls.key"] {
                fs::copy(own.join(file), folder.join(file))
                    .with_context(|| format!("copying {file} from {}", own.display()))?;
            }
        }
        let documents = Documents::of(&folder.join("tunnels.yaml"))?;
        let lab = lab::Settings {
            tunnel,
            fast_path: Switch::On,
            programs: PROGRAMS.into(),
            manifests: PathBuf::new(),
            bulk_mib: 0,
            ebpf: Switch::On,
            spread_esp,
            out: world::DIR.into(),
        };
        let site = ground.world.site(NODES[0].name)?;
        let log = |name: &str| lab.out.join(format!("{name}.log"));
        let charon = charon::start(site, tunnel, &log("charon"))?;
        let agent = lab::agent(site, role, &lab, &log("agent"))?;
        let mut node = Self {
            agent,
            charon,
            folder,
            documents,
            ground,
        };
        node.apply(0, 0)?;
        Ok(node)
    }

    /// Has the agent apply its next document, and says what that took.
    ///
    /// # Errors
    /// When it does not.
    pub fn apply(&mut self, count: usize, moved: usize) -> Result<Applied> {
        self.apply_of(|documents| documents.next(count, moved))
    }

    /// The same of any document.
    ///
    /// # Errors
    /// When it is not applied.
    pub fn apply_of(
        &mut self,
        next: impl FnOnce(&mut Documents) -> Result<(u64, String)>,
    ) -> Result<Applied> {
        let (generation, text) = next(&mut self.documents)?;
        let before = (self.busy(&self.agent)?, self.busy(&self.charon)?);
        documents::put(&self.folder, text)?;
        let mark = format!("document applied generation={generation} seconds=");
        let mut seconds = None;
        wait_until("the agent has applied a document", PATIENCE, || {
            ensure!(self.agent.runs()?, "the agent ended");
            seconds = self.agent.output().lines().rev().find_map(|line| {
                let (_, seconds) = line.split_once(&mark)?;
                seconds.trim().parse().ok()
            });
            Ok(seconds.is_some())
        })?;
        Ok(Applied {
            seconds: seconds.unwrap_or(f64::NAN),
            agent: self.busy(&self.agent)? - before.0,
            charon: self.busy(&self.charon)? - before.1,
        })
    }

    /// Waits until the agent has nothing to do any more; gives the seconds of a processor that it took until then.
    ///
    /// # Errors
    /// When it does not come to rest.
    pub fn rest(&self) -> Result<f64> {
        const QUIET: Duration = Duration::from_millis(400);
        let before = self.busy(&self.agent)?;
        let mut last = before;
        wait_until("the agent rests", PATIENCE, || {
            thread::sleep(QUIET);
            let now = self.busy(&self.agent)?;
            let rests = now - last < 0.004;
            last = now;
            Ok(rests)
        })?;
        Ok(last - before)
    }

    /// MiB of memory that the agent has now, and the most that it had.
    ///
    /// # Errors
    /// When it does not run.
    pub fn memory(&self) -> Result<[f64; 2]> {
        let path = format!("/proc/{}/status", self.agent.pid());
        let status = fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
        let mib = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let kib = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<f64>().ok());
            kib.map(|kib| kib / 1024.0)
                .with_context(|| format!("{path} has no {name}"))
        };
        Ok([mib("VmRSS:")?, mib("VmHWM:")?])
    }

    /// The node's site.
    ///
    /// # Errors
    /// Never in a world that was made here.
    pub fn site(&self) -> Result<&Site> {
        self.ground.world.site(NODES[0].name)
    }

    /// Seconds of a processor that a program and the commands it ran have taken.
    fn busy(&self, program: &Daemon) -> Result<f64> {
        let folder = format!("/proc/{}", program.pid());
        let tasks =
            fs::read_dir(format!("{folder}/task")).with_context(|| format!("reading {folder}/task"))?;
        let mut nanoseconds = 0;
        for task in tasks.flatten() {
            // A thread may end in between.
            let text = fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
            nanoseconds += text
                .split(' ')
                .next()
                .and_then(|field| field.parse().ok())
                .unwrap_or(0_u64);
        }
        let stat =
            fs::read_to_string(format!("{folder}/stat")).with_context(|| format!("reading {folder}/stat"))?;
        let fields: Vec<&str> = stat
            .rsplit(')')
            .next()
            .unwrap_or_default()
            .split_whitespace()
            .collect();
        // cutime and cstime, behind the name.
        let ticks = |place: usize| {
            fields
                .get(place)
                .and_then(|field| field.parse::<f64>().ok())
                .unwrap_or(0.0)
        };
        let children = (ticks(13) + ticks(14)) / rustix::param::clock_ticks_per_second() as f64;
        Ok(nanoseconds as f64 / 1e9 + children)
    }
}
