//! An image unpacked from its archive, and containers of it, started by runc.

use std::cell::Cell;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::progress::{Log, output, tail};

/// Everything that a privileged container may do on a kernel as old as 5.8.
const ALL_CAPABILITIES: &[&str] = &[
    "CAP_AUDIT_CONTROL",
    "CAP_AUDIT_WRITE",
    "CAP_BPF",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_IPC_LOCK",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_ADMIN",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_PERFMON",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_ADMIN",
    "CAP_SYS_CHROOT",
    "CAP_SYS_MODULE",
    "CAP_SYS_NICE",
    "CAP_SYS_PTRACE",
    "CAP_SYS_TIME",
];

/// How long a program may take to end once it was asked to: a kubelet gives it 30 s.
const PATIENCE: Duration = Duration::from_secs(25);

/// What a container may do.
pub enum Rights {
    /// The named capabilities, and no way to others.
    Only(Vec<String>),
    /// Everything, like `privileged: true`.
    All,
}

/// A container to be run, in a network namespace of its own.
pub struct Container<'a> {
    /// Instead of the image's own program, unless empty.
    pub command: Vec<&'a str>,
    /// Added to the image's environment.
    pub environment: Vec<String>,
    /// What it may do.
    pub rights: Rights,
    /// Whether it cannot write to its root folder.
    pub read_only: bool,
    /// Folders that it shares with us, each with its place in the container.
    pub mounts: Vec<(&'a Path, &'a str)>,
}

/// An unpacked image.
pub struct Bundle {
    folder: PathBuf,
    config: Value,
    containers: Cell<usize>,
}

impl Bundle {
    /// Unpacks an archive into `folder`; skopeo compares every part of it with its digest.
    pub fn unpack(archive: &Path, folder: PathBuf, log: &Log) -> Result<Bundle> {
        let layout = folder.with_extension("layout");
        log.run(
            Command::new("skopeo")
                .args(["copy", "--insecure-policy", "--quiet"])
                .arg(format!("oci-archive:{}", archive.display()))
                .arg(format!("oci:{}:image", layout.display())),
        )?;
        log.run(
            Command::new("umoci")
                .args(["unpack", "--image"])
                .arg(format!("{}:image", layout.display()))
                .arg(&folder),
        )?;
        let path = folder.join("config.json");
        let text = std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        let config = serde_json::from_str(&text).with_context(|| format!("reading {}", path.display()))?;
        Ok(Bundle {
            folder,
            config,
            containers: Cell::new(0),
        })
    }

    /// The root folder.
    pub fn root(&self) -> PathBuf {
        self.folder.join("rootfs")
    }

    /// Runs a container to its end and returns what it wrote.
    pub fn run(&self, container: &Container) -> Result<String> {
        let (id, bundle) = self.prepare(container)?;
        output(self.runc().args(["run", "--bundle"]).arg(bundle).arg(id))
    }

    /// Starts a container.
    pub fn start(&self, container: &Container) -> Result<Running<'_>> {
        let (id, bundle) = self.prepare(container)?;
        let log = bundle.join("log");
        let file = File::create(&log).with_context(|| format!("creating {}", log.display()))?;
        let child = self
            .runc()
            .args(["run", "--bundle"])
            .arg(bundle)
            .arg(&id)
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .context("starting runc")?;
        Ok(Running {
            image: self,
            id,
            child,
            log,
        })
    }

    fn runc(&self) -> Command {
        let mut runc = Command::new("runc");
        runc.arg("--root").arg(self.folder.join("runc"));
        runc
    }

    /// Writes down what is to be run.
    fn prepare(&self, container: &Container) -> Result<(String, PathBuf)> {
        let number = self.containers.get();
        self.containers.set(number + 1);
        let name = self.folder.file_name().unwrap_or_default().display();
        let id = format!("fabedge-image-{}-{name}-{number}", std::process::id());
        let folder = self.folder.join(format!("container-{number}"));
        std::fs::create_dir(&folder).with_context(|| format!("creating {}", folder.display()))?;
        let config = configured(self.config.clone(), &self.root(), container)
            .with_context(|| format!("the configuration of {}", self.folder.display()))?;
        let path = folder.join("config.json");
        std::fs::write(&path, config.to_string()).with_context(|| format!("writing {}", path.display()))?;
        Ok((id, folder))
    }
}

/// A container that runs; it ends when it is dropped.
pub struct Running<'a> {
    image: &'a Bundle,
    id: String,
    child: Child,
    log: PathBuf,
}

impl Running<'_> {
    /// Runs another program in it and returns what that wrote.
    pub fn execute(&self, command: &[&str]) -> Result<String> {
        output(self.image.runc().args(["exec", &self.id]).args(command))
            .with_context(|| format!("its log ends:\n{}", self.says()))
    }

    /// The end of its log.
    pub fn says(&self) -> String {
        tail(&self.log, 0)
    }

    /// Asks its first process to end, and returns how it did.
    pub fn terminate(mut self) -> Result<ExitStatus> {
        output(self.image.runc().args(["kill", &self.id, "TERM"]))?;
        let asked = Instant::now();
        while asked.elapsed() < PATIENCE {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        bail!(
            "it still runs {} s after SIGTERM; its log ends:\n{}",
            PATIENCE.as_secs(),
            self.says()
        )
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        // It may have ended by itself, or never begun.
        output(self.image.runc().args(["delete", "--force", &self.id])).unwrap_or_default();
        self.child.wait().map(drop).unwrap_or_default();
    }
}

/// The image's own configuration with what is different about this container.
fn configured(mut config: Value, root: &Path, container: &Container) -> Result<Value> {
    let privileged = matches!(container.rights, Rights::All);
    let capabilities: Vec<&str> = match &container.rights {
        Rights::Only(some) => some.iter().map(String::as_str).collect(),
        Rights::All => ALL_CAPABILITIES.to_vec(),
    };
    config["root"] = json!({ "path": root, "readonly": container.read_only });
    let process = &mut config["process"];
    process["terminal"] = false.into();
    process["noNewPrivileges"] = (!privileged).into();
    process["capabilities"] = json!({
        "bounding": capabilities,
        "permitted": capabilities,
        "effective": capabilities,
    });
    if !container.command.is_empty() {
        process["args"] = json!(container.command);
    }
    let environment = process["env"].as_array_mut().context("it has no environment")?;
    environment.extend(container.environment.iter().map(|variable| json!(variable)));
    let mounts = config["mounts"].as_array_mut().context("it has no mounts")?;
    for (from, to) in &container.mounts {
        mounts.push(json!({ "type": "bind", "source": from, "destination": to, "options": ["rbind", "rw"] }));
    }
    if privileged {
        for mount in mounts
            .iter_mut()
            .filter_map(|mount| mount["options"].as_array_mut())
        {
            mount.retain(|option| option != "ro");
        }
        let linux = config["linux"].as_object_mut().context("it has no namespaces")?;
        linux.remove("maskedPaths");
        linux.remove("readonlyPaths");
        linux.insert(
            "resources".to_owned(),
            json!({ "devices": [{ "allow": true, "access": "rwm" }] }),
        );
        linux.insert(
            "devices".to_owned(),
            json!([{ "path": "/dev/net/tun", "type": "c", "major": 10, "minor": 200, "fileMode": 0o666 }]),
        );
    }
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_differs_from_its_image_in_what_is_said() {
        let image = json!({
            "process": { "args": ["charon"], "env": ["A=1"], "noNewPrivileges": true },
            "mounts": [{ "destination": "/sys", "options": ["nosuid", "ro"] }],
            "linux": { "readonlyPaths": ["/proc/sys"], "namespaces": [{ "type": "network" }] },
        });
        let mut container = Container {
            command: Vec::new(),
            environment: vec!["B=2".to_owned()],
            rights: Rights::Only(vec!["CAP_NET_ADMIN".to_owned()]),
            read_only: true,
            mounts: vec![(Path::new("/tmp/run"), "/run")],
        };
        let limited = configured(image.clone(), Path::new("/r"), &container).unwrap();
        assert_eq!(limited["process"]["args"], json!(["charon"]));
        assert_eq!(limited["process"]["env"], json!(["A=1", "B=2"]));
        assert_eq!(
            limited["process"]["capabilities"]["bounding"],
            json!(["CAP_NET_ADMIN"])
        );
        assert_eq!(limited["linux"], image["linux"]);
        assert_eq!(limited["mounts"][1]["destination"], "/run");

        container.rights = Rights::All;
        container.command = vec!["sh"];
        let privileged = configured(image, Path::new("/r"), &container).unwrap();
        assert_eq!(privileged["process"]["args"], json!(["sh"]));
        assert_eq!(privileged["process"]["noNewPrivileges"], false);
        assert_eq!(privileged["linux"]["readonlyPaths"], Value::Null);
        assert_eq!(privileged["linux"]["namespaces"], json!([{ "type": "network" }]));
        assert_eq!(privileged["mounts"][0]["options"], json!(["nosuid"]));
    }
}
