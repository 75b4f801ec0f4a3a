//! The suite `image`: each archive is looked into, unpacked, and run by runc as the chart runs it.

mod agent;
mod chart;
mod container;

use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use super::{Built, Image};
use crate::interrupt::Interrupt;
use crate::places::Places;
use crate::progress::{Log, output};
use crate::setup::{apt, sources};
use crate::tally::Counts;
use chart::Chart;
use container::{Bundle, Container, Rights};

const PACKAGES: &[&str] = &["runc", "skopeo", "umoci"];

/// Programs of the agent's image, each in the way in which it touches the kernel.
const TOOLS: &str = "ip -brief link show lo
nft add table inet probe
nft list tables
iptables-nft --list-rules FORWARD
ip6tables-nft --list-rules FORWARD
iptables-legacy --list-rules FORWARD
ip6tables-legacy --list-rules FORWARD
bpftool prog list >/dev/null
bpftool version";

/// How long charon may take until it answers.
const PATIENCE: Duration = Duration::from_secs(30);

/// Builds the images and tries each.
///
/// # Errors
/// When something cannot be tried at all.
pub fn check(places: &Places, interrupt: &Interrupt) -> Result<Counts> {
    let archives = super::build(places, &Image::ALL.into(), &super::folder(places))?;
    let log = Log::at(places.log("image"))?;
    {
        let _lock = places.lock()?;
        apt::install(PACKAGES, &log)?;
    }
    let folder = places.cache.join("image-check");
    if folder.exists() {
        std::fs::remove_dir_all(&folder).with_context(|| format!("removing {}", folder.display()))?;
    }
    std::fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
    let chart = Chart::read(&places.repo)?;
    let mut counts = Counts::default();
    let mut bundles = Vec::new();
    for built in &archives {
        interrupt.check()?;
        println!("  {}: {}", built.summary.name, built.summary);
        let name = built.image.name();
        count(
            &mut counts,
            &format!("{name}: the archive says what it is"),
            said(places, built),
        );
        count(
            &mut counts,
            &format!("{name}: shares its base"),
            shared(&archives, built),
        );
        let bundle = Bundle::unpack(&built.file, folder.join(name), &log)?;
        count(
            &mut counts,
            &format!("{name}: nothing is in it that should not be"),
            bare(&bundle),
        );
        bundles.push(bundle);
    }
    let [operator, of_agent, strongswan] = bundles.as_slice() else {
        bail!("not every image was built");
    };
    for (name, outcome) in [
        (
            "operator: runs as nobody, on a root that it cannot write to",
            run_operator(operator),
        ),
        (
            "operator: is the one that was built",
            same_program(operator, places, "fabedge-operator"),
        ),
        (
            "operator: the same files give the same image, whatever their times",
            reproduced(places, &archives, &folder),
        ),
        (
            "agent: is the one that was built",
            same_program(of_agent, places, "fabedge-agent").and_then(|()| run_agent(of_agent)),
        ),
        ("agent: its tools work", tools(of_agent)),
        (
            "agent: puts CNI plugins onto an edge",
            prepare(of_agent, &chart, &folder),
        ),
        (
            "agent: does its part with the capabilities of the chart",
            agent::applies(of_agent, places, &chart, &folder),
        ),
        (
            "strongswan: charon is process 1, with the capabilities of the chart",
            charon(strongswan, &chart, &folder),
        ),
        (
            "strongswan: charon with ESP of its own",
            libipsec(strongswan, &chart, &folder),
        ),
    ] {
        count(&mut counts, name, outcome);
    }
    if counts.failed == 0 {
        std::fs::remove_dir_all(&folder).with_context(|| format!("removing {}", folder.display()))?;
    }
    Ok(counts)
}

fn count(counts: &mut Counts, name: &str, outcome: Result<()>) {
    match outcome {
        Ok(()) => {
            counts.passed += 1;
            println!("  {name} ... ok");
        }
        Err(problem) => {
            counts.failed += 1;
            println!("  {name} ... FAILED");
            println!("    {}", format!("{problem:#}").replace('\n', "\n    "));
        }
    }
}

/// Its name, its labels, its user and its program, as another program reads them.
fn said(places: &Places, built: &Built) -> Result<()> {
    let archive = format!("oci-archive:{}", built.file.display());
    let manifest: Value = serde_json::from_str(&output(
        Command::new("skopeo").args(["inspect", "--raw", &archive]),
    )?)?;
    ensure!(
        manifest["mediaType"] == "application/vnd.oci.image.manifest.v1+json",
        "its manifest is {}",
        manifest["mediaType"]
    );
    let config: Value = serde_json::from_str(&output(
        Command::new("skopeo").args(["inspect", "--config", &archive]),
    )?)?;
    let version = super::version(places)?;
    let (title, licence, user, program) = match built.image {
        Image::Operator => (
            "FabEdge operator",
            "Apache-2.0",
            json!("65532:65532"),
            "fabedge-operator",
        ),
        Image::Agent => ("FabEdge agent", "Apache-2.0", Value::Null, "fabedge-agent"),
        Image::Strongswan => (
            "FabEdge strongSwan",
            "GPL-2.0-or-later",
            Value::Null,
            "/usr/sbin/charon-systemd",
        ),
    };
    let labels = &config["config"]["Labels"];
    for (what, is, wanted) in [
        ("title", &labels["org.opencontainers.image.title"], json!(title)),
        (
            "version",
            &labels["org.opencontainers.image.version"],
            json!(version),
        ),
        (
            "licence",
            &labels["org.opencontainers.image.licenses"],
            json!(licence),
        ),
        ("user", &config["config"]["User"], user),
        ("program", &config["config"]["Entrypoint"], json!([program])),
        ("system", &config["os"], json!("linux")),
    ] {
        ensure!(*is == wanted, "its {what} is {is} instead of {wanted}");
    }
    let wanted = format!("docker.io/fabedge/{}:{version}", built.image.name());
    ensure!(
        built.summary.name == wanted,
        "its name is {} instead of {wanted}",
        built.summary.name
    );
    Ok(())
}

fn shared(archives: &[Built], built: &Built) -> Result<()> {
    let base = |built: &Built| built.summary.layers.first().map(|layer| layer.digest.clone());
    ensure!(
        base(built).is_some() && archives.iter().all(|other| base(other) == base(built)),
        "its first layer is not that of the others"
    );
    Ok(())
}

/// No program that makes its caller another user, nothing that a container never needs, nothing about this machine.
fn bare(bundle: &Bundle) -> Result<()> {
    let root = bundle.root();
    let find = |places: &[&str], conditions: &[&str]| {
        let there: Vec<PathBuf> = places
            .iter()
            .map(|place| root.join(place))
            .filter(|place| place.exists())
            .collect();
        // Of no folder, find would search ours.
        if there.is_empty() {
            return Ok(String::new());
        }
        output(Command::new("find").args(there).args(conditions))
    };
    for (what, found) in [
        (
            "changes the user",
            find(&["."], &["-xdev", "-type", "f", "-perm", "/6000"])?,
        ),
        (
            "is for people who read",
            find(
                &[
                    "usr/share/doc",
                    "usr/share/man",
                    "usr/share/info",
                    "usr/share/locale",
                ],
                &["-type", "f", "!", "-name", "copyright"],
            )?,
        ),
        (
            "is left of an installation",
            find(
                &[
                    "etc/apt/sources.list",
                    "etc/apt/sources.list.d",
                    "var/lib/apt/lists",
                    "var/cache/apt",
                    "var/log",
                ],
                // But for empty files, which are locks.
                &["-type", "f", "-size", "+0"],
            )?,
        ),
        (
            "was made on this machine",
            find(
                &["etc/hostname", "etc/resolv.conf", "etc/machine-id", "etc/hosts"],
                &["-type", "f", "-size", "+0"],
            )?,
        ),
    ] {
        ensure!(found.trim().is_empty(), "this {what}:\n{}", found.trim());
    }
    for source in sources::read(Path::new("/etc/apt"))? {
        let mirror = source.uri.rsplit("://").next().unwrap_or_default();
        let host = mirror.split('/').next().unwrap_or_default();
        // The ending code of a search that finds nothing is a failure's.
        let found = Command::new("grep")
            .args(["--recursive", "--files-with-matches", "--fixed-strings", host])
            .args(["etc", "var", "root", "run", "tmp"].map(|place| root.join(place)))
            .output()
            .context("starting grep")?;
        ensure!(
            found.stdout.is_empty() && found.status.code() == Some(1),
            "this names a mirror of this machine:\n{}{}",
            String::from_utf8_lossy(&found.stdout),
            String::from_utf8_lossy(&found.stderr)
        );
    }
    Ok(())
}

/// Without any capability.
fn powerless<'a>(command: &[&'a str]) -> Container<'a> {
    Container {
        command: command.to_vec(),
        environment: Vec::new(),
        rights: Rights::Only(Vec::new()),
        read_only: true,
        mounts: Vec::new(),
    }
}

fn run_operator(bundle: &Bundle) -> Result<()> {
    let help = bundle.run(&powerless(&["fabedge-operator", "--help"]))?;
    ensure!(help.contains("Usage: fabedge-operator"), "--help says:\n{help}");
    let crds = bundle.run(&powerless(&["fabedge-operator", "crds"]))?;
    let found = crds.matches("kind: CustomResourceDefinition").count();
    ensure!(found == 2, "crds prints {found} definitions");
    let probe =
        "id -u; id -g; if touch /probe 2>/dev/null; then echo written; fi; grep CapBnd /proc/self/status";
    let user = bundle.run(&powerless(&["sh", "-ec", probe]))?;
    ensure!(
        user == "65532\n65532\nCapBnd:\t0000000000000000\n",
        "its user is:\n{user}"
    );
    Ok(())
}

/// A layer that was built of an earlier program would be of no use to anybody.
fn same_program(bundle: &Bundle, places: &Places, name: &str) -> Result<()> {
    let built = places.target.join("release").join(name);
    let shipped = bundle.root().join("usr/bin").join(name);
    let read = |path: &Path| std::fs::read(path).with_context(|| format!("reading {}", path.display()));
    ensure!(
        read(&built)? == read(&shipped)?,
        "{} is not {}",
        shipped.display(),
        built.display()
    );
    Ok(())
}

/// Builds the operator's image again, of a copy of its program that is younger.
fn reproduced(places: &Places, archives: &[Built], folder: &Path) -> Result<()> {
    let programs = folder.join("programs");
    std::fs::create_dir(&programs)?;
    let name = "fabedge-operator";
    std::fs::copy(places.target.join("release").join(name), programs.join(name))?;
    let first = archives.iter().find(|built| built.image == Image::Operator);
    let first = first.context("the operator's image was not built")?;
    let again = super::again(places, Image::Operator, &programs, &folder.join("again.tar"))?;
    ensure!(
        again.summary.layers == first.summary.layers,
        "its layers are {:?} instead of {:?}",
        again.summary.layers,
        first.summary.layers
    );
    Ok(())
}

fn run_agent(bundle: &Bundle) -> Result<()> {
    let version = bundle.run(&powerless(&["fabedge-agent", "--version"]))?;
    let wanted = concat!("fabedge-agent ", env!("CARGO_PKG_VERSION"));
    ensure!(version.trim() == wanted, "--version says {version}");
    Ok(())
}

fn tools(bundle: &Bundle) -> Result<()> {
    let said = bundle.run(&Container {
        rights: Rights::All,
        read_only: false,
        ..powerless(&["sh", "-ec", TOOLS])
    })?;
    for wanted in ["lo ", "table inet probe", "-P FORWARD ACCEPT", "bpftool v"] {
        ensure!(said.contains(wanted), "no `{wanted}` in:\n{said}");
    }
    ensure!(
        said.matches("-P FORWARD").count() == 4,
        "not every iptables answers:\n{said}"
    );
    Ok(())
}

/// The chart's init container, on a node that has one plugin already.
fn prepare(bundle: &Bundle, chart: &Chart, folder: &Path) -> Result<()> {
    let edge = folder.join("cni-bin");
    std::fs::create_dir(&edge)?;
    std::fs::write(edge.join("loopback"), "the node's own")?;
    let mount = vec![(edge.as_path(), "/opt/cni/bin")];
    bundle.run(&Container {
        rights: Rights::Only(chart.prepare_capabilities()?),
        read_only: true,
        mounts: mount.clone(),
        ..powerless(&["sh", "-ec", chart.prepare_script()?])
    })?;
    let mut found = Vec::new();
    for entry in std::fs::read_dir(&edge)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().display().to_string();
        if name == "loopback" {
            ensure!(
                std::fs::read_to_string(&path)? == "the node's own",
                "the node's own plugin is gone"
            );
        } else {
            ensure!(
                path.metadata()?.permissions().mode() & 0o111 == 0o111,
                "{name} cannot be run"
            );
            // On the edge, not in the container, is where it is to run.
            let version = output(Command::new(&path).env("CNI_COMMAND", "VERSION"))?;
            ensure!(version.contains("0.3.1"), "{name} says {version}");
        }
        found.push(name);
    }
    found.sort();
    ensure!(
        found == ["bandwidth", "bridge", "host-local", "loopback", "portmap"],
        "the edge has {found:?}"
    );
    Ok(())
}

fn charon(bundle: &Bundle, chart: &Chart, folder: &Path) -> Result<()> {
    let capabilities = chart.strongswan_capabilities()?;
    let status = run_charon(
        bundle,
        folder.join("run-xfrm"),
        Rights::Only(capabilities),
        Vec::new(),
        |_| Ok(()),
    )?;
    // It gives NET_BIND_SERVICE up once it has bound its ports.
    for line in ["CapBnd:\t0000000000001400", "CapEff:\t0000000000001000"] {
        ensure!(
            status.lines().any(|found| found == line),
            "no `{line}` in:\n{status}"
        );
    }
    Ok(())
}

fn libipsec(bundle: &Bundle, chart: &Chart, folder: &Path) -> Result<()> {
    let environment = vec![chart.libipsec()?];
    run_charon(
        bundle,
        folder.join("run-libipsec"),
        Rights::All,
        environment,
        |running| {
            let devices = running.execute(&["cat", "/proc/net/dev"])?;
            ensure!(
                devices.contains("ipsec0:"),
                "charon has made no device:\n{devices}"
            );
            Ok(())
        },
    )
    .map(drop)
}

/// From its start to its end, with the folder of its socket on a volume; returns the status of process 1.
fn run_charon(
    bundle: &Bundle,
    volume: PathBuf,
    rights: Rights,
    environment: Vec<String>,
    more: impl FnOnce(&container::Running) -> Result<()>,
) -> Result<String> {
    std::fs::create_dir(&volume)?;
    let running = bundle.start(&Container {
        command: Vec::new(),
        environment,
        rights,
        read_only: true,
        mounts: vec![(volume.as_path(), "/run")],
    })?;
    let started = Instant::now();
    let stats = loop {
        match running.execute(&["swanctl", "--stats"]) {
            Ok(stats) => break stats,
            Err(problem) if started.elapsed() > PATIENCE => {
                return Err(problem.context("charon does not answer"));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(100)),
        }
    };
    ensure!(stats.contains("uptime:"), "swanctl --stats says:\n{stats}");
    let socket = volume.join("charon.vici");
    ensure!(
        socket.metadata()?.file_type().is_socket(),
        "{} is no socket",
        socket.display()
    );
    let status = running.execute(&["cat", "/proc/1/status"])?;
    ensure!(
        status.starts_with("Name:\tcharon-systemd\n"),
        "process 1 is:\n{status}"
    );
    let sockets = running.execute(&["cat", "/proc/net/udp"])?;
    // IKE's ports 500 and 4500.
    ensure!(
        sockets.contains(":01F4 ") && sockets.contains(":1194 "),
        "its sockets:\n{sockets}"
    );
    more(&running)?;
    let ended = running.terminate()?;
    ensure!(ended.success(), "after SIGTERM charon ended with {ended}");
    Ok(status)
}
