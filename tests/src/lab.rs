//! A world with its programs: what demo and suites stand on. It is gone when dropped, unless it is to be kept.

pub mod charon;

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use serde_json::Value;

use crate::capture::Capture;
use crate::daemon::Daemon;
use crate::figures::Figures;
use crate::pod::Pod;
use crate::probe::responder::{PORT, Responder};
use crate::site::{CONFIG_DIR, Site};
use crate::world::addresses::{API_SERVER, Role, SITES};
use crate::world::{self, World};

/// How long a program may take to come up, under emulation.
const START: Duration = Duration::from_secs(120);

/// The capabilities with which the chart runs agents that are not privileged, and with which all agents run here.
pub const AGENT_CAPABILITIES: [&str; 4] = ["DAC_OVERRIDE", "NET_ADMIN", "NET_RAW", "SYS_ADMIN"];

/// The one of them that eBPF takes.
const EBPF_CAPABILITY: &str = "SYS_ADMIN";

/// What the agent's image has in its environment (`images/agent/Dockerfile`).
const AGENT_ENVIRONMENT: [(&str, &str); 3] = [
    ("MALLOC_ARENA_MAX", "1"),
    ("MALLOC_MMAP_THRESHOLD_", "131072"),
    ("MALLOC_TRIM_THRESHOLD_", "131072"),
];

/// Who performs ESP.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Tunnel {
    /// The kernel, behind xfrm interfaces.
    #[default]
    Xfrm,
    /// charon, behind TUN devices.
    Libipsec,
}

/// On or off.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Switch {
    /// On.
    #[default]
    On,
    /// Off.
    Off,
}

/// What an agent is told about spreading.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Spread {
    /// That it shall choose.
    #[default]
    Auto,
    /// To do without.
    Off,
}

/// What a lab is made with.
#[derive(Clone, Debug, Args)]
pub struct Settings {
    /// Who performs ESP.
    #[arg(long, value_enum, default_value_t)]
    pub tunnel: Tunnel,
    /// The eBPF fast path.
    #[arg(long, value_enum, default_value_t)]
    pub fast_path: Switch,
    /// Whether agents have the capability that eBPF takes; without, they are told to use the fast path all the same.
    #[arg(skip)]
    pub ebpf: Switch,
    /// Whether the connector spreads ESP over its CPUs.
    #[arg(long, value_enum, default_value_t)]
    pub spread_esp: Spread,
    /// Folder with fabedge-agent and fabedge-operator.
    #[arg(long, default_value = "/host", value_name = "DIR")]
    pub programs: PathBuf,
    /// Folder with the manifests that the operator starts with.
    #[arg(long, default_value = "/host/examples/standalone", value_name = "DIR")]
    pub manifests: PathBuf,
    /// How much TCP carries in the checks of bulk transfer, each way, in MiB.
    #[arg(long, default_value_t = 100, value_name = "MIB")]
    pub bulk_mib: u64,
    /// Folder for logs.
    #[arg(long, default_value = "/out", value_name = "DIR")]
    pub out: PathBuf,
}

/// A world with its programs.
#[derive(Debug)]
pub struct Lab {
    /// The networks, sites and pods.
    pub world: World,
    /// What it was made with.
    pub settings: Settings,
    /// What the WAN router sees.
    pub capture: Capture,
    /// What was measured.
    pub figures: Figures,
    quotes: Vec<String>,
    daemons: BTreeMap<String, Daemon>,
    responders: BTreeMap<String, Responder>,
    keep: bool,
}

impl Lab {
    /// Makes networks and sites and starts the capture; no programs and no pods yet.
    ///
    /// # Errors
    /// When something cannot be made; nothing is left then.
    pub fn build(settings: &Settings) -> Result<Self> {
        fs::create_dir_all(&settings.out).with_context(|| format!("making {}", settings.out.display()))?;
        let world = World::build()?;
        let capture = world.router("wan").and_then(Capture::start);
        match capture {
            Ok(capture) => Ok(Self {
                world,
                settings: settings.clone(),
                capture,
                figures: Figures::default(),
                quotes: Vec::new(),
                daemons: BTreeMap::new(),
                responders: BTreeMap::new(),
                keep: false,
            }),
            Err(error) => {
                world.tear_down()?;
                Err(error)
            }
        }
    }

    /// Leaves the world up when this is dropped, with somebody in it who answers probes.
    ///
    /// # Errors
    /// When the record cannot be written or the responders' process cannot be started.
    pub fn keep(&mut self) -> Result<()> {
        self.responders.clear();
        self.world.save()?;
        let program = std::env::current_exe().context("finding the lab's own program")?;
        // In one of the world's namespaces, so that it ends with the world.
        Daemon::start(
            "the responders",
            self.world.router("internet")?,
            &[&*program.to_string_lossy(), "serve"],
            &[],
            &self.log("responders"),
        )?;
        self.keep = true;
        Ok(())
    }

    /// Has a command's output shown as it is under the check that runs now.
    pub fn quote(&mut self, text: impl Into<String>) {
        self.quotes.push(text.into());
    }

    /// What is to be shown, once.
    pub fn take_quotes(&mut self) -> Vec<String> {
        std::mem::take(&mut self.quotes)
    }

    /// The folder of manifests that the operator watches.
    pub fn manifests(&self) -> PathBuf {
        Path::new(world::DIR).join("manifests")
    }

    /// Starts the operator on a copy of the manifests, and waits for its first documents.
    ///
    /// # Errors
    /// When it ends or writes no documents.
    pub fn start_operator(&mut self) -> Result<()> {
        let folder = self.manifests();
        if !folder.exists() {
            copy_files(&self.settings.manifests, &folder)?;
        }
        let program = self.settings.programs.join("fabedge-operator");
        let documents = world::documents();
        let words = [
            &*program.to_string_lossy(),
            "standalone",
            &*folder.to_string_lossy(),
            "--out",
            &*documents.to_string_lossy(),
        ];
        // Beside the sites: it needs no network, and the site's `/run` would hide the folders.
        let place = self.world.router("cloud")?.clone();
        let mut daemon = Daemon::start("the operator", &place, &words, &[], &self.log("operator"))?;
        daemon.wait_until("it wrote the documents", START, || {
            SITES
                .iter()
                .all(|numbers| documents.join(numbers.documents).join("tunnels.yaml").exists())
        })?;
        self.daemons.insert("operator".to_owned(), daemon);
        Ok(())
    }

    /// Starts a site's agent; does not wait.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_agent(&mut self, site: &str) -> Result<()> {
        let role = world::numbers(site)?.role;
        let daemon = agent(
            self.world.site(site)?,
            role,
            &self.settings,
            &self.log(&format!("{site}-agent")),
        )?;
        self.daemons.insert(format!("{site}/agent"), daemon);
        Ok(())
    }

    /// Waits until an edge's agent has written its CNI conflist, which it does once the site is closed both ways.
    ///
    /// # Errors
    /// When the agent ends, or takes too long.
    pub fn wait_for_cni(&mut self, site: &str) -> Result<()> {
        let link = self
            .world
            .site(site)?
            .path(crate::cni::CONF_DIR)
            .join("fabedge.conflist");
        self.daemon(&format!("{site}/agent"))?
            .wait_until("its conflist was there", START, || {
                link.symlink_metadata().is_ok()
            })
    }

    /// A running program: `operator`, `edge1/agent`, `edge1/charon`.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn daemon(&mut self, name: &str) -> Result<&mut Daemon> {
        self.daemons
            .get_mut(name)
            .with_context(|| format!("{name} was not started"))
    }

    /// All running programs, by name.
    pub fn daemons(&self) -> impl Iterator<Item = (&String, &Daemon)> {
        self.daemons.iter()
    }

    /// Takes a running program out, to end it.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn take_daemon(&mut self, name: &str) -> Result<Daemon> {
        self.daemons
            .remove(name)
            .with_context(|| format!("{name} was not started"))
    }

    /// Adds a pod with a responder by its site's own conflist.
    ///
    /// # Errors
    /// When the pod cannot be attached.
    pub fn add_pod(&mut self, name: &str, site: &str) -> Result<Pod> {
        self.add_pod_with(name, site, &Value::Object(serde_json::Map::new()))
    }

    /// Adds a pod with a responder and capabilities (`portMappings`, `bandwidth`).
    ///
    /// # Errors
    /// When the pod cannot be attached.
    pub fn add_pod_with(&mut self, name: &str, site: &str, capabilities: &Value) -> Result<Pod> {
        let pod = self.world.add_pod(name, site, capabilities)?;
        self.respond(name)?;
        Ok(pod)
    }

    /// Removes a pod with its responder.
    ///
    /// # Errors
    /// When the pod cannot be detached.
    pub fn remove_pod(&mut self, name: &str) -> Result<()> {
        self.responders.remove(name);
        self.world.remove_pod(name)
    }

    /// Starts a responder in any place, on the port that the probes use; on the API server's site on its port too.
    ///
    /// # Errors
    /// When the port cannot be had.
    pub fn respond(&mut self, place: &str) -> Result<()> {
        let responder = Responder::start(self.world.place(place)?, PORT)?;
        self.responders.insert(place.to_owned(), responder);
        Ok(())
    }

    /// Starts what stands for the API server.
    ///
    /// # Errors
    /// When its port cannot be had.
    pub fn start_api_server(&mut self) -> Result<SocketAddr> {
        let site = SITES
            .iter()
            .find(|numbers| numbers.node == API_SERVER.0)
            .context("no site has the API server's address")?;
        let responder = Responder::start(&self.world.site(site.name)?.place, API_SERVER.1)?;
        self.responders.insert("api-server".to_owned(), responder);
        Ok(SocketAddr::from(API_SERVER))
    }

    /// Where a program logs.
    pub fn log(&self, name: &str) -> PathBuf {
        self.settings.out.join(format!("{name}.log"))
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if self.keep {
            return;
        }
        if let Err(error) = self.world.tear_down() {
            eprintln!("fabedge-lab: taking the world down: {error:#}");
        }
    }
}

/// Starts an agent in a site; does not wait.
///
/// # Errors
/// When it cannot be started.
pub fn agent(site: &Site, role: Role, settings: &Settings, log: &Path) -> Result<Daemon> {
    let program = settings.programs.join("fabedge-agent");
    let program = program.to_string_lossy();
    let pki = |name: &str| format!("{CONFIG_DIR}/{name}");
    let (ca, cert, key) = (pki("ca.crt"), pki("tls.crt"), pki("tls.key"));
    let mut capabilities = AGENT_CAPABILITIES.to_vec();
    if settings.ebpf == Switch::Off {
        capabilities.retain(|name| *name != EBPF_CAPABILITY);
    }
    let bounds = format!("--bounding-set=-all,+{}", capabilities.join(",+").to_lowercase());
    let mut words = vec!["setpriv", "--no-new-privs", &bounds, &*program, role.subcommand()];
    words.extend(match (settings.fast_path, settings.ebpf) {
        (Switch::Off, Switch::On) => ["--fast-path", "off"],
        _ => ["--fast-path", "on"],
    });
    words.extend(match settings.spread_esp {
        Spread::Auto => ["--spread-esp", "auto"],
        Spread::Off => ["--spread-esp", "off"],
    });
    if role != Role::Cloud {
        words.extend(match settings.tunnel {
            Tunnel::Xfrm => ["--tunnel", "xfrm"],
            Tunnel::Libipsec => ["--tunnel", "libipsec"],
        });
        words.extend(["--ca-cert", &ca, "--cert", &cert, "--key", &key]);
    }
    Daemon::start(
        &format!("the agent of {}", site.place.name),
        &site.place,
        &words,
        &AGENT_ENVIRONMENT,
        log,
    )
}

/// Waits until `holds`, at most `limit`; gives the time that took.
///
/// # Errors
/// When it does not hold in time, or cannot be asked.
pub fn wait_until(what: &str, limit: Duration, mut holds: impl FnMut() -> Result<bool>) -> Result<Duration> {
    let started = Instant::now();
    loop {
        if holds()? {
            return Ok(started.elapsed());
        }
        if started.elapsed() > limit {
            bail!("{what}: not within {:.0} s", limit.as_secs_f64());
        }
        thread::sleep(Duration::from_millis(20));
    }
}

/// Copies the files of a folder.
fn copy_files(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to).with_context(|| format!("making {}", to.display()))?;
    let entries = fs::read_dir(from).with_context(|| format!("reading {}", from.display()))?;
    for entry in entries {
        let path = entry
            .with_context(|| format!("reading {}", from.display()))?
            .path();
        if let (true, Some(name)) = (path.is_file(), path.file_name()) {
            fs::copy(&path, to.join(name)).with_context(|| format!("copying {}", path.display()))?;
        }
    }
    Ok(())
}
