//! The binary as users run it: on a folder that changes.
#![allow(clippy::unwrap_used, reason = "a panic is the report of a test")]

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use fabedge_common::config::{NodeConfig, Via};
use tempfile::TempDir;

/// Generous, for a machine with much else to do; what is measured on an idle one is far below.
const PATIENCE: Duration = Duration::from_secs(60);

struct Operator {
    child: Child,
    log: Receiver<String>,
}

impl Operator {
    /// A poll of an hour, so that only notifications can be the reason of what happens.
    fn start(world: &World) -> Self {
        let mut child = world
            .command()
            .args(["--poll", "3600"])
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (sender, log) = channel();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        std::thread::spawn(move || {
            stderr
                .lines()
                .map_while(Result::ok)
                .try_for_each(|line| sender.send(line))
        });
        let operator = Self { child, log };
        operator.says("watching");
        operator
    }

    /// Waits for a line of the log.
    #[track_caller]
    fn says(&self, expected: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        let mut seen = Vec::new();
        while let Ok(line) = self
            .log
            .recv_timeout(deadline.saturating_duration_since(Instant::now()))
        {
            if line.contains(expected) {
                return line;
            }
            seen.push(line);
        }
        panic!("{expected:?} was not logged: {seen:#?}");
    }

    /// SIGTERM, and the exit code.
    fn stop(mut self) -> Option<i32> {
        Command::new("kill")
            .arg(self.child.id().to_string())
            .status()
            .unwrap();
        self.child.wait().unwrap().code()
    }
}

impl Drop for Operator {
    fn drop(&mut self) {
        // Already gone after `stop`.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

struct World {
    dir: TempDir,
}

impl World {
    fn new() -> Self {
        let world = Self {
            dir: tempfile::tempdir().unwrap(),
        };
        fs::create_dir(world.manifests()).unwrap();
        for file in ["settings.yaml", "nodes.yaml"] {
            world.put(file, &example(file));
        }
        world
    }

    fn manifests(&self) -> PathBuf {
        self.dir.path().join("manifests")
    }

    fn out(&self) -> PathBuf {
        self.dir.path().join("out")
    }

    fn put(&self, file: &str, text: &str) {
        fs::write(self.manifests().join(file), text).unwrap();
    }

    fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_fabedge-operator"));
        command
            .arg("standalone")
            .arg(self.manifests())
            .arg("--out")
            .arg(self.out());
        command
    }

    fn document(&self, node: &str) -> NodeConfig {
        NodeConfig::parse(&fs::read_to_string(self.out().join(node).join("tunnels.yaml")).unwrap()).unwrap()
    }

    /// Waits until a node's document is as wanted. At every moment there is a whole one.
    #[track_caller]
    fn until(&self, node: &str, wanted: impl Fn(&NodeConfig) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !wanted(&self.document(node)) {
            assert!(
                Instant::now() < deadline,
                "{node} still has {:#?}",
                self.document(node)
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

fn example(file: &str) -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/standalone");
    fs::read_to_string(folder.join(file)).unwrap()
}

#[test]
fn follows_the_folder_and_keeps_what_was_good() {
    let world = World::new();
    let operator = Operator::start(&world);
    assert_eq!(world.document("edge1").peers.len(), 1);
    let untouched = world.document("edge3");

    world.put("node-community.yaml", &example("communities/node-community.yaml"));
    world.until("edge1", |document| {
        document
            .peer("fabedge.edge2")
            .is_some_and(|p| p.via == Via::Direct && p.initiate)
    });
    world.until("edge2", |document| {
        document
            .peer("fabedge.edge1")
            .is_some_and(|p| p.via == Via::Direct && !p.initiate)
    });
    assert!(world.document("edge1").generation > 0);
    assert_eq!(world.document("edge3"), untouched, "not concerned");

    let second = world.command().arg("--once").output().unwrap();
    assert_eq!(second.status.code(), Some(2));
    assert!(
        String::from_utf8(second.stderr)
            .unwrap()
            .contains("held by another operator")
    );

    // A slip of the pen: named with file and line, and nothing stops working.
    world.put(
        "node-community.yaml",
        "apiVersion: fabedge.io/v1alpha1\nkind: Community\nmetadata: {name: connectors\n",
    );
    let line = operator.says("YAML");
    assert!(
        line.contains("ERROR") && line.contains("node-community.yaml:3"),
        "{line}"
    );
    operator.says("its last good form stays in effect");

    // While it is broken, the rest goes on, and a restart forgets nothing.
    world.put("relay.yaml", &example("communities/relay-community.yaml"));
    world.until("edge3", |document| {
        document
            .peer("fabedge.edge1")
            .is_some_and(|p| p.via == Via::Relay)
    });
    assert_eq!(operator.stop(), Some(0));
    let before = world.document("edge1");
    let operator = Operator::start(&world);
    assert_eq!(world.document("edge1"), before);
    assert!(before.peer("fabedge.edge2").is_some());

    // Mended by removing it.
    fs::remove_file(world.manifests().join("node-community.yaml")).unwrap();
    operator.says("no longer: ");
    world.until("edge1", |document| document.peer("fabedge.edge2").is_none());
    assert!(world.document("edge1").generation > before.generation);

    // A node that goes takes its key along, and nobody else's.
    let without_edge2 = example("nodes.yaml")
        .split("\n---\n")
        .filter(|d| !d.contains("name: edge2"))
        .collect::<Vec<_>>()
        .join("\n---\n");
    world.put("nodes.yaml", &without_edge2);
    world.until("connector", |document| document.peer("fabedge.edge2").is_none());
    operator.says("removed what was published");
    assert!(!world.out().join("edge2").exists() && world.out().join("edge1/tls.key").exists());
    assert_eq!(operator.stop(), Some(0));
}

#[test]
fn a_bad_ca_is_refused_by_name_and_documents_go_on() {
    let world = World::new();
    assert!(world.command().arg("--once").status().unwrap().success());
    let ca = world.out().join("_ca/ca.crt");
    let good = fs::read(&ca).unwrap();
    fs::write(&ca, "nonsense").unwrap();
    world.put("node-community.yaml", &example("communities/node-community.yaml"));
    let out = world.command().arg("--once").output().unwrap();
    let log = String::from_utf8(out.stderr).unwrap();
    assert_eq!(out.status.code(), Some(1));
    assert!(
        log.contains("_ca is refused and left as it is") && log.contains("does not parse"),
        "{log}"
    );
    assert_eq!(fs::read_to_string(&ca).unwrap(), "nonsense");
    assert!(world.document("edge1").peer("fabedge.edge2").is_some());

    let key = fs::read(world.out().join("edge1/tls.key")).unwrap();
    fs::write(&ca, good).unwrap();
    assert!(world.command().arg("--once").status().unwrap().success());
    assert_eq!(
        fs::read(world.out().join("edge1/tls.key")).unwrap(),
        key,
        "nothing was issued anew"
    );
}

#[test]
fn the_end_of_a_ca_is_announced() {
    let world = World::new();
    let ca = world.dir.path().join("ca");
    fs::create_dir(&ca).unwrap();
    let made = Command::new("openssl")
        .args([
            "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "ca.key", "-out", "ca.crt", "-days",
            "170",
        ])
        .args(["-subj", "/O=fabedge.io/CN=fabedge"])
        .current_dir(&ca)
        .output()
        .unwrap();
    assert!(made.status.success());
    let out = world
        .command()
        .arg("--once")
        .arg("--ca-dir")
        .arg(&ca)
        .output()
        .unwrap();
    let log = String::from_utf8(out.stderr).unwrap();
    assert!(
        out.status.success() && log.contains("WARN") && log.contains("CA: notAfter: it ends on 20"),
        "{log}"
    );
    assert!(!world.out().join("_ca").exists());
}

#[test]
fn render_is_for_somebodys_ci() {
    let world = World::new();
    let render = |args: &[&str]| {
        let out = Command::new(env!("CARGO_BIN_EXE_fabedge-operator"))
            .arg("render")
            .arg(world.manifests())
            .args(args)
            .output()
            .unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (out.status.code(), text(out.stdout), text(out.stderr))
    };
    let (code, documents, problems) = render(&[]);
    assert_eq!((code, problems.as_str()), (Some(0), ""));
    assert_eq!(documents.matches("\nversion: 1\n").count(), 5);
    let (code, one, _) = render(&["--only", "edge1"]);
    assert_eq!((code, one.matches("version: 1\n").count()), (Some(0), 1));

    // Pending is a warning, a misspelt kind is an error.
    world.put(
        "pending.yaml",
        &example("communities/node-community.yaml").replace("edge2", "edge9"),
    );
    let (code, _, problems) = render(&[]);
    assert_eq!(code, Some(0));
    assert!(
        problems.starts_with("warning: pending.yaml:1: Community connectors: "),
        "{problems}"
    );
    world.put(
        "pending.yaml",
        &example("communities/node-community.yaml").replace("Community", "Comunity"),
    );
    let (code, documents, problems) = render(&[]);
    assert_eq!(code, Some(1));
    assert!(
        problems.starts_with("error: pending.yaml:1: Comunity connectors: "),
        "{problems}"
    );
    assert!(
        documents.contains("name: fabedge.edge1"),
        "the others are printed all the same"
    );
    assert!(!world.out().exists(), "and nothing was written");

    assert_eq!(render(&["--only", "nobody"]).0, Some(2));
    assert_eq!(render(&["--nonsense"]).0, Some(2));
}
