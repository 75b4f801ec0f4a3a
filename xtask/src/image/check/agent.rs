//! An agent that applies an edge's document in its container, with the capabilities that the chart gives to one that is
//! not privileged. There is no charon beside it: what is seen is that the kernel lets it do its part.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::chart::Chart;
use super::container::{Bundle, Container, Rights};
use crate::places::Places;
use crate::progress::output;

/// How long the operator may take for its documents, and the agent for its first passes.
const PATIENCE: Duration = Duration::from_secs(60);

/// The edge of the example.
const EDGE: &str = "edge1";

/// What of the agent's work needs nobody else.
const ALONE: [&str; 4] = ["sysctl", "datapath", "firewall", "cni"];

/// A BPF file system, as a node has it; it is unmounted when this is dropped.
struct BpfFs(PathBuf);

impl BpfFs {
    fn mount(at: PathBuf) -> Result<Self> {
        std::fs::create_dir(&at).with_context(|| format!("creating {}", at.display()))?;
        output(Command::new("mount").args(["-t", "bpf", "bpf"]).arg(&at))?;
        Ok(Self(at))
    }
}

impl Drop for BpfFs {
    fn drop(&mut self) {
        if let Err(problem) = output(Command::new("umount").arg(&self.0)) {
            eprintln!("{problem:#}");
        }
    }
}

pub(super) fn applies(bundle: &Bundle, places: &Places, chart: &Chart, folder: &Path) -> Result<()> {
    let documents = folder.join("documents");
    write_documents(places, &documents)?;
    let bpf = BpfFs::mount(folder.join("bpf"))?;
    let edge = documents.join(EDGE);
    // What the chart mounts for it to write to; its own file system is read-only.
    let volumes = ["/run", "/var/lib/fabedge", "/etc/cni/net.d"]
        .map(|path| (folder.join(path.replace('/', "_")), path));
    for (volume, _) in &volumes {
        std::fs::create_dir(volume).with_context(|| format!("creating {}", volume.display()))?;
    }
    let mut mounts = vec![(edge.as_path(), "/etc/fabedge"), (bpf.0.as_path(), "/sys/fs/bpf")];
    mounts.extend(volumes.iter().map(|(volume, path)| (volume.as_path(), *path)));
    let running = bundle.start(&Container {
        command: vec!["fabedge-agent", "edge"],
        environment: Vec::new(),
        rights: Rights::Only(chart.agent_capabilities()?),
        read_only: true,
        mounts,
    })?;
    let started = Instant::now();
    loop {
        let Err(problem) = look(&running.execute(&["fabedge-agent", "status", "--json"])) else {
            break;
        };
        if started.elapsed() > PATIENCE {
            return Err(problem.context(format!("its log ends:\n{}", running.says())));
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    // In a new network namespace it is off, and a container that is not privileged may not turn it on by itself.
    let forwards = running.execute(&["cat", "/proc/sys/net/ipv6/conf/all/forwarding"])?;
    ensure!(forwards.trim() == "1", "forwarding of IPv6 is {forwards}");
    running.execute(&["nft", "list", "table", "inet", "fabedge"])?;
    let status = running.terminate()?;
    ensure!(status.success(), "it ends with {status}");
    Ok(())
}

/// What the agent says of itself.
fn look(said: &Result<String>) -> Result<()> {
    let said = said.as_ref().map_err(|problem| anyhow::anyhow!("{problem:#}"))?;
    let status: Value = serde_json::from_str(said).with_context(|| format!("its status is {said}"))?;
    ensure!(
        status["fastPath"] == "on",
        "its fast path is {}",
        status["fastPath"]
    );
    for part in ALONE {
        ensure!(
            status["problems"][part].is_null(),
            "{part}: {}",
            status["problems"][part]
        );
    }
    Ok(())
}

/// Has the operator write what it writes for the example.
fn write_documents(places: &Places, out: &Path) -> Result<()> {
    let mut operator = Command::new(places.target.join("release/fabedge-operator"))
        .arg("standalone")
        .arg(places.repo.join("examples/standalone"))
        .arg("--out")
        .arg(out)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("starting the operator")?;
    let document = out.join(EDGE).join("tunnels.yaml");
    let started = Instant::now();
    while !document.exists() && started.elapsed() < PATIENCE {
        std::thread::sleep(Duration::from_millis(50));
    }
    operator.kill().context("ending the operator")?;
    operator.wait().context("waiting for the operator")?;
    if !document.exists() {
        bail!("the operator has not written {}", document.display());
    }
    Ok(())
}
