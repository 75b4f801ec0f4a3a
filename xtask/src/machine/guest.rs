//! PID 1 inside a machine: mounts what a Linux system has, then serves the mailbox. This is the same program as
//! the one outside, started from `/host`.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::fs::{CWD, FileType, Mode, makedev, mknodat, symlink};
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};
use rustix::mount::{mount, mount_bind_recursive, mount_change, mount_remount, unmount};
use rustix::process::{Pid, Signal, WaitOptions, kill_process_group, pivot_root, wait};

use super::mailbox::Order;

const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/host";
const MAILBOX: &str = "/box";
/// How often PID 1 looks for ended programs, and, when none runs, for new jobs.
const TICK: Duration = Duration::from_millis(20);
/// With programs running, new jobs are looked for only every so many ticks: each look costs the guest.
const TICKS_PER_LOOK: u32 = 5;

/// PID 1 of a QEMU guest, after the initramfs.
pub fn vm() -> Result<()> {
    if let Err(problem) = vm_system().and_then(|()| serve()) {
        // The console is all that is left; without PID 1 the kernel would bury it under a panic.
        eprintln!("{problem:#}");
        rustix::system::reboot(rustix::system::RebootCommand::PowerOff)?;
    }
    Ok(())
}

fn vm_system() -> Result<()> {
    std::fs::create_dir_all("/dev/shm")?;
    plain_mount("tmpfs", "/dev/shm", "mode=1777")?;
    devpts()?;
    for (link, target) in DEV_LINKS {
        if !Path::new(link).exists() {
            symlink(*target, *link).with_context(|| format!("making {link}"))?;
        }
    }
    common()
}

/// PID 1 of a container: in fresh namespaces, with everything of the host still in sight.
pub fn container(folder: &Path, lower: &Path) -> Result<()> {
    let root = new_root(lower, &folder.join("mount"))?;
    bind(&folder.join("host"), &root.join("host"))?;
    read_only(&root.join("host"))?;
    bind(&folder.join("box"), &root.join("box"))?;
    bind(&folder.join("box/out"), &root.join("out"))?;
    // A modular kernel's modules, so that modprobe works as it does outside.
    let modules = Path::new("/usr/lib/modules");
    if modules.is_dir() {
        std::fs::create_dir_all(root.join("usr/lib/modules"))?;
        bind(modules, &root.join("usr/lib/modules"))?;
        read_only(&root.join("usr/lib/modules"))?;
    }
    enter_root(&root)?;
    devices()?;
    common()?;
    serve()
}

/// Lays a tmpfs over the folder `lower`, below the folder `base`; returns what is to become the root.
pub fn new_root(lower: &Path, base: &Path) -> Result<PathBuf> {
    mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::PRIVATE)
        .context("making mounts private")?;
    plain_mount("tmpfs", &path_text(base), "mode=755")?;
    for name in ["upper", "work", "root"] {
        std::fs::create_dir(base.join(name))?;
    }
    let root = base.join("root");
    let layers = format!(
        "lowerdir={},upperdir={},workdir={}",
        lower.display(),
        base.join("upper").display(),
        base.join("work").display()
    );
    mount_one("overlay", &path_text(&root), "overlay", &layers)?;
    Ok(root)
}

/// Makes a folder the root, with processes and devices of the kernel in it.
pub fn enter_root(root: &Path) -> Result<()> {
    std::env::set_current_dir(root)?;
    pivot_root(".", ".").context("making the overlay the root")?;
    unmount(".", UnmountFlags::DETACH).context("leaving the old root")?;
    std::env::set_current_dir("/")?;
    plain_mount("proc", "/proc", "")?;
    plain_mount("sysfs", "/sys", "")
}

const DEV_LINKS: &[(&str, &str)] = &[
    ("/dev/fd", "/proc/self/fd"),
    ("/dev/stdin", "/proc/self/fd/0"),
    ("/dev/stdout", "/proc/self/fd/1"),
    ("/dev/stderr", "/proc/self/fd/2"),
    ("/dev/ptmx", "pts/ptmx"),
];

/// A `/dev` of our own, with what network programs open.
pub fn devices() -> Result<()> {
    plain_mount("tmpfs", "/dev", "mode=755")?;
    let nodes = [
        ("/dev/null", 1, 3),
        ("/dev/zero", 1, 5),
        ("/dev/full", 1, 7),
        ("/dev/random", 1, 8),
        ("/dev/urandom", 1, 9),
        ("/dev/tty", 5, 0),
        ("/dev/net/tun", 10, 200),
        // A kubelet watches it for memory that runs out.
        ("/dev/kmsg", 1, 11),
    ];
    std::fs::create_dir("/dev/net")?;
    for (path, major, minor) in nodes {
        mknodat(
            CWD,
            path,
            FileType::CharacterDevice,
            Mode::from_raw_mode(0o666),
            makedev(major, minor),
        )
        .with_context(|| format!("making {path}"))?;
    }
    std::fs::create_dir("/dev/shm")?;
    plain_mount("tmpfs", "/dev/shm", "mode=1777")?;
    for (link, target) in DEV_LINKS {
        symlink(*target, *link).with_context(|| format!("making {link}"))?;
    }
    devpts()
}

fn devpts() -> Result<()> {
    std::fs::create_dir_all("/dev/pts")?;
    plain_mount("devpts", "/dev/pts", "newinstance,ptmxmode=0666,mode=620")
}

/// What both kinds of machine mount, and their loopback.
fn common() -> Result<()> {
    plain_mount("tmpfs", "/run", "mode=755")?;
    plain_mount("tmpfs", "/tmp", "mode=1777")?;
    std::fs::create_dir("/run/lock")?;
    std::fs::create_dir("/run/netns")?;
    plain_mount("cgroup2", "/sys/fs/cgroup", "")?;
    plain_mount("bpf", "/sys/fs/bpf", "mode=700")?;
    for (kind, place) in [
        ("debugfs", "/sys/kernel/debug"),
        ("tracefs", "/sys/kernel/tracing"),
    ] {
        // Only for whoever looks around by hand; not every kernel has them.
        if Path::new(place).is_dir()
            && let Err(problem) = plain_mount(kind, place, "")
        {
            eprintln!("{problem:#}");
        }
    }
    rustix::system::sethostname(b"machine").context("setting the host name")?;
    let status = Command::new("/usr/sbin/ip")
        .args(["link", "set", "lo", "up"])
        .status();
    anyhow::ensure!(
        status.context("starting ip")?.success(),
        "the loopback interface did not come up"
    );
    Ok(())
}

/// Mounts a file system that has no source.
pub fn plain_mount(kind: &str, place: &str, data: &str) -> Result<()> {
    mount_one(kind, place, kind, data)
}

fn mount_one(source: &str, place: &str, kind: &str, data: &str) -> Result<()> {
    let data = std::ffi::CString::new(data)?;
    mount(source, place, kind, MountFlags::empty(), Some(data.as_c_str()))
        .with_context(|| format!("mounting {kind} at {place}"))
}

/// Shows a folder at another place too.
pub fn bind(from: &Path, to: &Path) -> Result<()> {
    mount_bind_recursive(from, to).with_context(|| format!("mounting {} at {}", from.display(), to.display()))
}

/// Makes such a place read-only.
pub fn read_only(place: &Path) -> Result<()> {
    mount_remount(place, MountFlags::BIND | MountFlags::RDONLY, c"")
        .with_context(|| format!("making {} read-only", place.display()))
}

fn path_text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// Runs jobs until the machine is ended from outside.
fn serve() -> Result<()> {
    let mailbox = Path::new(MAILBOX);
    let jobs = mailbox.join("jobs");
    let mut running: HashMap<Pid, PathBuf> = HashMap::new();
    std::fs::write(mailbox.join("ready"), "")?;
    let mut tick: u32 = 0;
    loop {
        // Every child of ours and every orphan of theirs.
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
            if let Some(folder) = running.remove(&pid) {
                let signal = status.terminating_signal().map(|signal| 128 + signal);
                finish(&folder, status.exit_status().or(signal).unwrap_or(255));
            }
        }
        if running.is_empty() || tick.is_multiple_of(TICKS_PER_LOOK) {
            look(&jobs, &mut running);
        }
        tick = tick.wrapping_add(1);
        std::thread::sleep(TICK);
    }
}

/// Starts new jobs and ends those that nobody waits for any more.
fn look(jobs: &Path, running: &mut HashMap<Pid, PathBuf>) {
    for (pid, folder) in &*running {
        if folder.join("kill").exists() {
            // It may be gone already; then the next tick reaps it.
            kill_process_group(*pid, Signal::KILL).unwrap_or_default();
        }
    }
    let entries = std::fs::read_dir(jobs).into_iter().flatten();
    let mut folders: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    folders.sort();
    for folder in folders {
        let known = running.values().any(|other| *other == folder);
        if known || folder.extension().is_some() || folder.join("exit").exists() {
            continue;
        }
        match start(&folder) {
            Ok(pid) => {
                running.insert(pid, folder);
            }
            Err(problem) => {
                // The job's own stderr is where its owner looks.
                drop(std::fs::write(folder.join("stderr"), format!("{problem:#}\n")));
                finish(&folder, 127);
            }
        }
    }
}

fn start(folder: &Path) -> Result<Pid> {
    let order: Order = serde_json::from_slice(&std::fs::read(folder.join("job.json"))?)?;
    let (program, arguments) = order.command.split_first().context("an empty command")?;
    let file = |name: &str| File::options().append(true).open(folder.join(name));
    let child = Command::new(program)
        .args(arguments)
        .env_clear()
        .envs([
            ("PATH", PATH),
            ("HOME", "/root"),
            ("LANG", "C.UTF-8"),
            ("TERM", "dumb"),
        ])
        .envs(order.env)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(file("stdout")?)
        .stderr(file("stderr")?)
        .process_group(0)
        .spawn()
        .with_context(|| format!("starting {program}"))?;
    i32::try_from(child.id())
        .ok()
        .and_then(Pid::from_raw)
        .context("a process without a number")
}

/// Tells the other side how the job ended; a job whose folder is gone has nobody to tell.
fn finish(folder: &Path, code: i32) {
    let part = folder.join("exit.part");
    let told =
        std::fs::write(&part, code.to_string()).and_then(|()| std::fs::rename(&part, folder.join("exit")));
    if let Err(problem) = told {
        eprintln!("{}: {problem}", folder.display());
    }
}
