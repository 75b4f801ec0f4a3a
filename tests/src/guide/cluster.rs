//! The cluster that `cargo xtask k8s up --nodes` made, as its sheet describes it, and how to ask it things.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use serde_json::Value;

use crate::command::{self, Output};
use crate::place::Place;

/// How long one question may take.
const PATIENCE: Duration = ENDING;

/// How long a pod may take to be gone, another in its place included: a kubelet may miss that one has ended until it looks
/// after all of them, once a minute.
pub const ENDING: Duration = Duration::from_secs(150);

/// Between two looks at something that takes its time: each costs a process.
const PAUSE: Duration = Duration::from_millis(400);

/// What the lab says of itself.
#[derive(Clone, Debug, Deserialize)]
pub struct Sheet {
    /// The cluster's name.
    pub name: String,
    /// The repository.
    pub repo: PathBuf,
    /// The folder with `kubectl` and `helm`.
    pub tools: PathBuf,
    /// How they reach the API server.
    pub kubeconfig: PathBuf,
    /// The words of `cargo xtask k8s`, to which a subcommand is added.
    pub xtask: Vec<String>,
    /// An image for pods of tests.
    pub image: String,
    /// The pod prefix of the cluster.
    pub cluster_cidr: String,
    /// The service prefix.
    pub service_cidr: String,
    /// The cluster's DNS.
    pub dns: String,
    /// Where the API server's Service is.
    pub api_service: Ipv4Addr,
    /// The files of network namespaces that are no node's, by name.
    pub networks: BTreeMap<String, PathBuf>,
    /// The nodes by name.
    pub nodes: BTreeMap<String, Node>,
    /// Where logs go.
    pub logs: PathBuf,
}

/// A node.
#[derive(Clone, Debug, Deserialize)]
pub struct Node {
    /// Its address.
    pub address: Ipv4Addr,
    /// Whether it is in the cloud.
    pub cloud: bool,
    /// Its root folder, as seen from outside.
    pub root: PathBuf,
    /// One of its cgroups, as seen from outside.
    pub cgroup: PathBuf,
}

/// The cluster, with a folder in which commands of users run.
#[derive(Clone, Debug)]
pub struct Cluster {
    /// Its description.
    pub sheet: Sheet,
    folder: PathBuf,
    variables: BTreeMap<&'static str, String>,
}

impl Cluster {
    /// The cluster of a sheet. Commands run in `folder`, which looks like the top of the repository to them.
    ///
    /// # Errors
    /// When the sheet cannot be read or the folder cannot be filled.
    pub fn open(sheet: &Path, folder: &Path) -> Result<Self> {
        let text = fs::read(sheet).with_context(|| format!("reading {}", sheet.display()))?;
        let sheet: Sheet =
            serde_json::from_slice(&text).with_context(|| format!("reading {}", sheet.display()))?;
        for name in ["charts", "docs"] {
            std::os::unix::fs::symlink(sheet.repo.join(name), folder.join(name))
                .with_context(|| format!("showing {name} in {}", folder.display()))?;
        }
        Ok(Self {
            sheet,
            folder: folder.to_owned(),
            variables: BTreeMap::new(),
        })
    }

    /// Sets what users carry to their shell by hand.
    pub fn set(&mut self, variable: &'static str, value: &str) {
        self.variables.insert(variable, value.to_owned());
    }

    /// Runs commands of the shell as a user types them: the first that fails ends them.
    ///
    /// # Errors
    /// When they cannot be started or do not end within `limit`.
    pub fn shell(&self, text: &str, limit: Duration) -> Result<Output> {
        command::run(
            self.prepared("bash").args(["-e", "-o", "pipefail", "-c", text]),
            "",
            limit,
        )
    }

    /// Appends to a file in the folder.
    ///
    /// # Errors
    /// When it is not there.
    pub fn append(&self, file: &str, text: &str) -> Result<()> {
        let path = self.folder.join(file);
        fs::OpenOptions::new()
            .append(true)
            .open(&path)
            .and_then(|mut file| file.write_all(text.as_bytes()))
            .with_context(|| format!("appending to {}", path.display()))
    }

    /// A program as a user starts it.
    pub fn prepared(&self, program: &str) -> Command {
        let path = format!(
            "{}:{}",
            self.sheet.tools.display(),
            std::env::var("PATH").unwrap_or_default()
        );
        let mut command = Command::new(program);
        command
            .current_dir(&self.folder)
            .env("PATH", path)
            .env("KUBECONFIG", &self.sheet.kubeconfig)
            // Caches and settings of whoever runs the tests are none of ours.
            .env("HOME", &self.folder)
            .env("NO_PROXY", "*")
            .env("TRY_IMAGE", &self.sheet.image)
            .envs(&self.variables);
        command
    }

    /// What kubectl prints to a line of words without blanks in them.
    ///
    /// # Errors
    /// When it fails.
    pub fn kubectl(&self, line: &str) -> Result<String> {
        let program = self.sheet.tools.join("kubectl");
        command::must(
            self.prepared(&program.to_string_lossy())
                .args(line.split_whitespace()),
            PATIENCE,
        )
    }

    /// An object, or a list of them.
    ///
    /// # Errors
    /// When there is none.
    pub fn get(&self, line: &str) -> Result<Value> {
        let text = self.kubectl(&format!("get {line} -o json"))?;
        serde_json::from_str(&text).with_context(|| format!("reading `kubectl get {line}`"))
    }

    /// Applies manifests.
    ///
    /// # Errors
    /// When they are refused.
    pub fn apply(&self, manifests: &str) -> Result<String> {
        let program = self.sheet.tools.join("kubectl");
        command::must_with(
            self.prepared(&program.to_string_lossy())
                .args(["apply", "-f", "-"]),
            manifests,
            PATIENCE,
        )
    }

    /// A node.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn node(&self, name: &str) -> Result<&Node> {
        self.sheet
            .nodes
            .get(name)
            .with_context(|| format!("there is no node {name}"))
    }

    /// What a command prints that runs on a node.
    ///
    /// # Errors
    /// When it fails.
    pub fn on(&self, node: &str, words: &[&str]) -> Result<String> {
        let place = format!("{}.{node}", self.sheet.name);
        let words = [&["exec", &place, "--"], words].concat();
        self.xtask(&words).with_context(|| format!("on {node}"))
    }

    /// What `cargo xtask k8s` with these words prints.
    ///
    /// # Errors
    /// When it fails.
    pub fn xtask(&self, words: &[&str]) -> Result<String> {
        let (program, before) = self.sheet.xtask.split_first().context("the sheet has no xtask")?;
        let mut command = Command::new(program);
        command.args(before).args(words);
        command::must(&mut command, PATIENCE)
    }

    /// A file in the folder in which commands run.
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// What the agent of a node last reported.
    ///
    /// # Errors
    /// When there is no report.
    pub fn status(&self, node: &str) -> Result<Value> {
        let path = self.node(node)?.root.join("run/fabedge/status.json");
        let text = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
        serde_json::from_slice(&text).with_context(|| format!("reading {}", path.display()))
    }

    /// A network that is no node's.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn network(&self, name: &str) -> Result<Place> {
        let net = self.sheet.networks.get(name).cloned();
        Ok(Place {
            name: name.to_owned(),
            net: net.with_context(|| format!("there is no network {name}"))?,
            mounts: None,
        })
    }

    /// The network of a pod that runs, and its address.
    ///
    /// # Errors
    /// When it does not run.
    pub fn pod(&self, name: &str) -> Result<(Place, Ipv4Addr)> {
        let pod = self.get(&format!("pod {name}"))?;
        let text = |pointer: &str| {
            pod.pointer(pointer)
                .and_then(Value::as_str)
                .with_context(|| format!("the pod {name} has no {pointer}"))
        };
        let node = self.node(text("/spec/nodeName")?)?;
        let folder = format!("pod{}", text("/metadata/uid")?);
        let process = process_in(&node.cgroup.join("kubepods"), &folder)
            .with_context(|| format!("no process of the pod {name} runs"))?;
        let place = Place {
            name: name.to_owned(),
            net: format!("/proc/{process}/ns/net").into(),
            mounts: None,
        };
        Ok((place, text("/status/podIP")?.parse()?))
    }

    /// Looks again and again until `holds`, at most `limit`; gives the time that took.
    ///
    /// # Errors
    /// When it does not hold in time, with the last reason why.
    pub fn wait(
        &self,
        what: &str,
        limit: Duration,
        holds: impl Fn(&Self) -> Result<bool>,
    ) -> Result<Duration> {
        let started = Instant::now();
        loop {
            let why = match holds(self) {
                Ok(true) => return Ok(started.elapsed()),
                Ok(false) => String::new(),
                Err(error) => format!(": {error:#}"),
            };
            if started.elapsed() > limit {
                bail!("{what}: not within {:.0} s{why}", limit.as_secs_f64());
            }
            thread::sleep(PAUSE);
        }
    }
}

/// A process of the cgroups below a folder of this name.
fn process_in(cgroup: &Path, name: &str) -> Option<u32> {
    let folders = |path: &Path| {
        fs::read_dir(path)
            .into_iter()
            .flatten()
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| path.is_dir())
            .collect::<Vec<_>>()
    };
    // kubepods/podUID, or below besteffort or burstable.
    let mut candidates = folders(cgroup);
    candidates.extend(candidates.clone().iter().flat_map(|class| folders(class)));
    let pod = candidates.into_iter().find(|path| path.ends_with(name))?;
    folders(&pod).iter().find_map(|container| {
        let processes = fs::read_to_string(container.join("cgroup.procs")).ok()?;
        processes.lines().next()?.parse().ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_process_of_a_pod_is_found_in_any_class() {
        let folder = tempfile::tempdir().unwrap();
        for (pod, process) in [("pod1/a", "11\n12\n"), ("besteffort/pod2/b", "21\n")] {
            let container = folder.path().join(pod);
            fs::create_dir_all(&container).unwrap();
            fs::write(container.join("cgroup.procs"), process).unwrap();
        }
        assert_eq!(process_in(folder.path(), "pod1"), Some(11));
        assert_eq!(process_in(folder.path(), "pod2"), Some(21));
        assert_eq!(process_in(folder.path(), "pod3"), None);
    }
}
