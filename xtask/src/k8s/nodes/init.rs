//! PID 1 of a node: mounts what a Linux system has, starts containerd, brings its images, starts the kubelet, and then
//! takes the ended away. This is the same program as the one outside.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::mount::{MountPropagationFlags, mount_change};
use rustix::process::{Signal, WaitOptions, wait};
use serde::{Deserialize, Serialize};

use super::files::{CONTAINERD_CONFIG, CONTAINERD_SOCKET, KUBELET_CONFIG, KUBELET_KUBECONFIG};
use super::ground;
use crate::machine::guest::{bind, devices, enter_root, new_root, plain_mount, read_only};

/// What a node is made of. Its folder holds this as [`ORDER`], and its files below [`FILES`].
#[derive(Debug, Deserialize, Serialize)]
pub struct Order {
    /// The node's name.
    pub name: String,
    /// Its address.
    pub address: String,
    /// The root folder that it starts from.
    pub root: PathBuf,
    /// The folder with Kubernetes' programs.
    pub kubernetes: PathBuf,
    /// The folder with containerd's and runc's packages.
    pub runtime: PathBuf,
    /// Archives of the images that it has from the start.
    pub images: Vec<PathBuf>,
    /// Where its programs write.
    pub logs: PathBuf,
}

/// The name of the order in a node's folder.
pub const ORDER: &str = "order.json";
/// The name of the folder of files.
pub const FILES: &str = "files";
/// The name of the file that is there when the kubelet has been started.
pub const READY: &str = "ready";

/// Where a node sees programs of its own.
const KUBERNETES: &str = "/opt/kubernetes";
const RUNTIME: &str = "/opt/runtime";
const IMAGES: &str = "/opt/images";
/// Where it sees its folder.
const BOX: &str = "/box";

/// What a node's programs find by their names.
pub const PATH: &str =
    "/opt/runtime/usr/bin:/opt/runtime/usr/sbin:/opt/kubernetes:/usr/sbin:/usr/bin:/sbin:/bin";

const SOCKET_PATIENCE: Duration = Duration::from_secs(60);
/// How often PID 1 takes the ended away.
const TICK: Duration = Duration::from_millis(50);

/// Becomes the node of a folder.
pub fn run(folder: &Path) -> Result<()> {
    let path = folder.join(ORDER);
    let order = std::fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
    let order: Order =
        serde_json::from_slice(&order).with_context(|| format!("reading {}", path.display()))?;
    // By their paths outside, which are out of sight soon.
    let log = |name: &str| {
        let path = order.logs.join(format!("{}-{name}.log", order.name));
        File::create(&path).with_context(|| format!("creating {}", path.display()))
    };
    let logs = [log("containerd")?, log("kubelet")?];
    // Of the machine's table: in the node's own, there is none.
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").context("reading the mount table")?;
    let hierarchies = ground::hierarchies(&mounts);

    let root = root(folder, &order)?;
    enter_root(&root)?;
    system(&order, &hierarchies)?;
    let [containerd_log, kubelet_log] = logs;
    let containerd = start(
        Command::new("containerd").args(["--config", CONTAINERD_CONFIG]),
        &containerd_log,
    )?;
    wait_for(Path::new(CONTAINERD_SOCKET))?;
    import(&order)?;
    let start_kubelet = || start(&mut kubelet(&order), &kubelet_log);
    let kubelet = start_kubelet()?;
    std::fs::write(Path::new(BOX).join(READY), "").context("telling that the node is up")?;
    serve(&containerd, kubelet, start_kubelet)
}

/// The root, with everything from outside in it that the node needs.
fn root(folder: &Path, order: &Order) -> Result<PathBuf> {
    let root = new_root(&order.root, &folder.join("mount"))?;
    let inside = |path: &str| root.join(path.trim_start_matches('/'));
    for (from, to) in [(&order.kubernetes, KUBERNETES), (&order.runtime, RUNTIME)] {
        let to = inside(to);
        std::fs::create_dir_all(&to)?;
        bind(from, &to)?;
        read_only(&to)?;
    }
    bind(folder, &inside(BOX))?;
    std::fs::create_dir_all(inside(IMAGES))?;
    for (number, image) in order.images.iter().enumerate() {
        let to = inside(IMAGES).join(number.to_string());
        File::create(&to)?;
        bind(image, &to)?;
    }
    copy(&folder.join(FILES), &root)?;
    // Where the kubelet looks for plugins, those of Debian's package.
    let plugins = inside("/opt/cni/bin");
    std::fs::create_dir_all(&plugins)?;
    for name in ["bridge", "host-local", "loopback", "portmap"] {
        std::fs::copy(order.root.join("usr/lib/cni").join(name), plugins.join(name))
            .with_context(|| format!("copying the CNI plugin {name}"))?;
    }
    std::fs::create_dir_all(inside("/etc/cni/net.d"))?;
    Ok(root)
}

/// Everything that a started Linux system has.
fn system(order: &Order, hierarchies: &[ground::Hierarchy]) -> Result<()> {
    devices()?;
    plain_mount("tmpfs", "/run", "mode=755")?;
    plain_mount("tmpfs", "/tmp", "mode=1777")?;
    for folder in ["/run/lock", "/run/netns", "/var/log/pods", "/var/log/containers"] {
        std::fs::create_dir_all(folder).with_context(|| format!("making {folder}"))?;
    }
    // Layers of images cannot lie on the overlay that the root is.
    std::fs::create_dir_all("/var/lib/containerd").context("making containerd's folder")?;
    plain_mount("tmpfs", "/var/lib/containerd", "mode=711")?;
    plain_mount("bpf", "/sys/fs/bpf", "mode=700")?;
    plain_mount("tmpfs", "/sys/fs/cgroup", "mode=755")?;
    for hierarchy in hierarchies {
        let place = hierarchy.place.to_string_lossy();
        std::fs::create_dir(&*place).with_context(|| format!("making {place}"))?;
        let options = match hierarchy.options.strip_prefix("name=") {
            Some(_) => format!("none,{}", hierarchy.options),
            None => hierarchy.options.clone(),
        };
        // What is below it is the node's alone: a cgroup namespace shows no more.
        plain_mount("cgroup", &place, &options)?;
    }
    // What pods mount in a folder of the node's must show in other pods.
    mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::SHARED)
        .context("letting mounts of pods propagate")?;
    rustix::system::sethostname(order.name.as_bytes()).context("setting the host name")
}

fn kubelet(order: &Order) -> Command {
    let mut command = Command::new("kubelet");
    command.args([
        "--config".to_owned(),
        KUBELET_CONFIG.to_owned(),
        "--kubeconfig".to_owned(),
        KUBELET_KUBECONFIG.to_owned(),
        "--container-runtime=remote".to_owned(),
        format!("--container-runtime-endpoint=unix://{CONTAINERD_SOCKET}"),
        format!("--hostname-override={}", order.name),
        format!("--node-ip={}", order.address),
    ]);
    command
}

/// Gives containerd the images, before a pod asks for one: nobody could pull it.
fn import(order: &Order) -> Result<()> {
    for (number, image) in order.images.iter().enumerate() {
        let archive = Path::new(IMAGES).join(number.to_string());
        let done = Command::new("ctr")
            .env("PATH", PATH)
            .args(["--namespace", "k8s.io", "images", "import"])
            .arg(&archive)
            .output()
            .context("starting ctr")?;
        if !done.status.success() {
            bail!(
                "importing {}: {}",
                image.display(),
                String::from_utf8_lossy(&done.stderr).trim()
            );
        }
    }
    Ok(())
}

fn start(command: &mut Command, log: &File) -> Result<Child> {
    command
        .env_clear()
        .envs([("PATH", PATH), ("HOME", "/root"), ("LANG", "C.UTF-8")])
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log.try_clone()?)
        .spawn()
        .with_context(|| format!("starting {}", command.get_program().display()))
}

fn wait_for(socket: &Path) -> Result<()> {
    let started = Instant::now();
    while std::os::unix::net::UnixStream::connect(socket).is_err() {
        if started.elapsed() > SOCKET_PATIENCE {
            bail!(
                "nothing listens on {} within {SOCKET_PATIENCE:?}",
                socket.display()
            );
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Takes every ended process away. A kubelet that somebody ended by SIGTERM is started anew, as systemd would. A node whose
/// kubelet or runtime has ended otherwise is none: this ends with an error then.
fn serve(containerd: &Child, mut kubelet: Child, start: impl Fn() -> Result<Child>) -> Result<()> {
    loop {
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
            let ended = |child: &Child| i32::try_from(child.id()) == Ok(pid.as_raw_nonzero().get());
            let asked =
                status.exit_status() == Some(0) || status.terminating_signal() == Some(Signal::TERM.as_raw());
            if ended(&kubelet) && asked {
                kubelet = start()?;
            } else if let Some((name, _)) = [("containerd", containerd), ("kubelet", &kubelet)]
                .into_iter()
                .find(|(_, child)| ended(child))
            {
                bail!("{name} ended ({status:?}), and the node with it: see its log");
            }
        }
        std::thread::sleep(TICK);
    }
}

/// Copies a tree of files into another.
fn copy(from: &Path, to: &Path) -> Result<()> {
    for entry in std::fs::read_dir(from).with_context(|| format!("reading {}", from.display()))? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            std::fs::create_dir_all(&target)?;
            copy(&entry.path(), &target)?;
        } else {
            // The root may have a link there, and what it leads to is not ours.
            std::fs::remove_file(&target).or_else(|problem| match problem.kind() {
                std::io::ErrorKind::NotFound => Ok(()),
                _ => Err(problem),
            })?;
            std::fs::copy(entry.path(), &target).with_context(|| format!("writing {}", target.display()))?;
        }
    }
    Ok(())
}
