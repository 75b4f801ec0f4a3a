//! A site: a network namespace with a charon, and a thread in it that makes passes as the agent does.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use fabedge_agent::desired::tunnels as desired;
use fabedge_agent::facts::{Facts, TunnelKind};
use fabedge_agent::subsystem::{Phase, Subsystem};
use fabedge_agent::tunnels::credentials::Paths;
use fabedge_agent::tunnels::messages::{ListCert, ListCerts};
use fabedge_agent::tunnels::report::{PeerReport, Report};
use fabedge_agent::tunnels::vici::Connection;
use fabedge_agent::tunnels::{Options, Tunnels};
use fabedge_common::config::NodeConfig;
use tempfile::TempDir;

/// Runs a command; what it says is part of the panic when it fails.
pub fn run(command: &str) -> String {
    let output = Command::new("sh").args(["-ec", command]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{command}: {}\n{text}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    text
}

/// Who performs ESP on this machine: the kernel where it can.
pub fn kind() -> TunnelKind {
    static KIND: OnceLock<TunnelKind> = OnceLock::new();
    *KIND.get_or_init(probe)
}

fn probe() -> TunnelKind {
    let probe = "ip netns add probe; ip -n probe link add x type xfrm dev lo if_id 1; r=$?; ip netns del probe; exit $r";
    // In a machine of ours the modules are at hand; elsewhere the probe tells.
    Command::new("sh")
        .args([
            "-c",
            &format!(
                "modprobe -aq xfrm_user xfrm_interface esp4 esp6 gcm seqiv 2>/dev/null; ({probe}) 2>/dev/null"
            ),
        ])
        .status()
        .map_or(TunnelKind::Libipsec, |status| {
            if status.success() {
                TunnelKind::Xfrm
            } else {
                TunnelKind::Libipsec
            }
        })
}

/// What the image has, for the kernel's ESP and for charon's own.
const CONFIGURATIONS: [(&str, &str); 2] = [
    (
        "strongswan.conf",
        include_str!("../../../images/strongswan/strongswan.conf"),
    ),
    (
        "strongswan-libipsec.conf",
        include_str!("../../../images/strongswan/strongswan-libipsec.conf"),
    ),
];

#[derive(Default)]
struct Shared {
    desired: Option<desired::Tunnels>,
    report: Report,
    error: Option<String>,
    failures: BTreeMap<String, String>,
    passes: u64,
    empty_passes: u64,
}

pub struct Site {
    pub name: &'static str,
    pub folder: TempDir,
    charon: Option<Child>,
    agent: Option<JoinHandle<()>>,
    shared: Arc<Mutex<Shared>>,
    stop: Arc<AtomicBool>,
    kind: TunnelKind,
}

impl Site {
    /// A namespace without links, and a folder for files.
    pub fn new(name: &'static str, kind: TunnelKind) -> Self {
        run(&format!("ip netns add {name}; ip -n {name} link set lo up"));
        Self {
            name,
            folder: TempDir::with_prefix(name).unwrap(),
            charon: None,
            agent: None,
            shared: Arc::default(),
            stop: Arc::default(),
            kind,
        }
    }

    pub fn path(&self, file: &str) -> PathBuf {
        self.folder.path().join(file)
    }

    /// Runs a command in the namespace.
    pub fn run(&self, command: &str) -> String {
        run(&format!(
            "exec nsenter --net=/run/netns/{} sh -ec '{command}'",
            self.name
        ))
    }

    /// Starts a command in the namespace, whose output is kept.
    pub fn start(&self, command: &str) -> Child {
        Command::new("nsenter")
            .arg(format!("--net=/run/netns/{}", self.name))
            .args(["sh", "-c", &format!("exec {command}")])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap()
    }

    pub fn succeeds(&self, command: &str) -> bool {
        Command::new("nsenter")
            .arg(format!("--net=/run/netns/{}", self.name))
            .args(["sh", "-c", command])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .unwrap()
            .success()
    }

    /// Starts charon with the configuration that the image has, but for the places of socket and log.
    pub fn start_charon(&mut self) {
        for (name, text) in CONFIGURATIONS {
            fs::write(self.path(name), text).unwrap();
        }
        let conf = match self.kind {
            TunnelKind::Xfrm => CONFIGURATIONS[0].0,
            TunnelKind::Libipsec => CONFIGURATIONS[1].0,
        };
        let folder = self.folder.path().display();
        fs::write(
            self.path("site.conf"),
            format!(
                "include {conf}\ncharon {{\n plugins {{ vici {{ socket = unix://{folder}/charon.vici }} }}\n}}\n",
            ),
        )
        .unwrap();
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.path("charon.log"))
            .unwrap();
        let charon = Command::new("nsenter")
            .arg(format!("--net=/run/netns/{}", self.name))
            .arg("/usr/sbin/charon-systemd")
            .env("STRONGSWAN_CONF", self.path("site.conf"))
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        self.charon = Some(charon);
    }

    /// Asks charon for something, over VICI; whether it was done.
    pub fn ask(&self, command: &'static str, request: &[(&str, &str)]) -> bool {
        let request: BTreeMap<_, _> = request.iter().copied().collect();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let asked = runtime.block_on(async {
            Connection::open(&self.path("charon.vici"))
                .await?
                .command(command, &request)
                .await
        });
        asked.is_ok()
    }

    /// How many certificates of authorities charon has.
    pub fn authorities(&self) -> usize {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let mut count = 0;
        let request = ListCerts {
            kind: "X509",
            flag: "CA",
        };
        runtime.block_on(async {
            let mut vici = Connection::open(&self.path("charon.vici")).await.unwrap();
            let limit = Duration::from_secs(5);
            vici.stream("list-certs", "list-cert", &request, limit, |_: ListCert| {
                count += 1
            })
            .await
            .unwrap();
        });
        count
    }

    pub fn kill_charon(&mut self) {
        if let Some(mut charon) = self.charon.take() {
            charon.kill().unwrap();
            charon.wait().unwrap();
        }
    }

    /// Starts the passes. Without a document they only connect.
    pub fn start_agent(&mut self) {
        let options = Options {
            socket: self.path("charon.vici"),
            paths: Paths {
                authorities: self.path("ca.crt"),
                certificate: self.path("tls.crt"),
                key: self.path("tls.key"),
                revocations: self.path("ca.crl"),
            },
            copies: None,
            peers: Some(self.path("peers.der")),
            kind: Some(self.kind),
        };
        self.stop.store(false, Ordering::Relaxed);
        let (name, shared, stop) = (self.name, Arc::clone(&self.shared), Arc::clone(&self.stop));
        self.agent = Some(std::thread::spawn(move || {
            let namespace = fs::File::open(format!("/run/netns/{name}")).unwrap();
            rustix::thread::move_into_link_name_space(
                std::os::fd::AsFd::as_fd(&namespace),
                Some(rustix::thread::LinkNameSpaceType::Network),
            )
            .unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(passes(options, &shared, &stop));
        }));
    }

    pub fn stop_agent(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(agent) = self.agent.take() {
            agent.join().unwrap();
        }
    }

    /// Gives the agent its document.
    pub fn document(&self, document: &str) {
        let config = NodeConfig::parse(document).unwrap();
        let facts = Facts {
            links: BTreeMap::new(),
            uplinks: Vec::new(),
            tunnel: self.kind,
            hops: BTreeSet::new(),
            reception: Default::default(),
            paths: BTreeMap::new(),
        };
        self.shared.lock().unwrap().desired = Some(desired::Tunnels::new(&config, &facts));
    }

    pub fn clear_document(&self) {
        self.shared.lock().unwrap().desired = Some(desired::Tunnels::default());
    }

    pub fn peer(&self, peer: &str) -> PeerReport {
        self.shared
            .lock()
            .unwrap()
            .report
            .peers
            .get(peer)
            .cloned()
            .unwrap_or_default()
    }

    /// What failed in the last pass, by object.
    pub fn failures(&self) -> BTreeMap<String, String> {
        self.shared.lock().unwrap().failures.clone()
    }

    pub fn error(&self) -> Option<String> {
        self.shared.lock().unwrap().error.clone()
    }

    /// Waits until as many passes in a row had nothing to do.
    pub fn wait_idle(&self) {
        self.wait("several passes with nothing to do", 20, |site| {
            site.shared.lock().unwrap().empty_passes >= 3
        });
    }

    /// Waits for something to hold; panics with charon's log after `seconds`. Returns how long it took.
    pub fn wait(&self, what: &str, seconds: u64, holds: impl Fn(&Self) -> bool) -> Duration {
        let start = Instant::now();
        while !holds(self) {
            if start.elapsed() > Duration::from_secs(seconds) {
                let log = fs::read_to_string(self.path("charon.log")).unwrap_or_default();
                let tail: Vec<&str> = log.lines().rev().take(60).collect();
                let tail: Vec<&str> = tail.into_iter().rev().collect();
                let shared = self.shared.lock().unwrap();
                panic!(
                    "{}: no {what} within {seconds} s\nreport {:#?}\nerror {:?}\nfailures {:#?}\n{}",
                    self.name,
                    shared.report,
                    shared.error,
                    shared.failures,
                    tail.join("\n")
                );
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        start.elapsed()
    }

    pub fn wait_ready(&self, peer: &str) -> Duration {
        self.wait(&format!("tunnel to {peer}"), 20, |site| site.peer(peer).ready)
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(mut charon) = self.charon.take() {
            // It may be gone already.
            let _ = charon.kill();
            let _ = charon.wait();
        }
        if let Some(agent) = self.agent.take() {
            // Its panic has been reported by its own thread.
            let _ = agent.join();
        }
        // Best effort: a leftover namespace is named by the next run.
        let _ = Command::new("ip").args(["netns", "del", self.name]).status();
    }
}

async fn passes(options: Options, shared: &Mutex<Shared>, stop: &AtomicBool) {
    let mut tunnels = Tunnels::new(options);
    let mut events = tunnels.events();
    while !stop.load(Ordering::Relaxed) {
        let desired = shared.lock().unwrap().desired.clone();
        let mut error = tunnels.tunnel_kind().await.err().map(|e| e.to_string());
        if desired
            .as_ref()
            .is_some_and(|desired| desired.connections.is_empty())
        {
            // As in `cleanup`, which must do without charon.
            error = None;
        }
        let mut failures = BTreeMap::new();
        let mut empty = false;
        if let (Some(desired), None) = (desired, &error) {
            match tunnels.plan(&desired).await {
                Ok(plan) => {
                    empty = plan == fabedge_agent::tunnels::Plan::default();
                    for phase in [Phase::Grow, Phase::Shrink] {
                        for outcome in tunnels.apply(&plan, phase).await {
                            if let Err(error) = outcome.result {
                                failures.insert(outcome.object, error.to_string());
                            }
                        }
                    }
                }
                Err(e) => error = Some(e.to_string()),
            }
        }
        {
            let mut shared = shared.lock().unwrap();
            shared.report = tunnels.report();
            shared.error = error;
            shared.failures = failures;
            shared.passes += 1;
            shared.empty_passes = if empty { shared.empty_passes + 1 } else { 0 };
        }
        // As in the engine: on an event at once, else after a while.
        let _ = tokio::time::timeout(Duration::from_millis(200), events.next()).await;
    }
}
