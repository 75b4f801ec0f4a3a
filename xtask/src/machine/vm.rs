//! A QEMU guest without a disk: Debian's kernel, our initramfs, and two folders over virtiofs. `base` (the root
//! folder, the kernel's modules, the programs) never changes while it runs, so the guest may cache all of it;
//! `box` (mailbox, results) is shared with us at any moment, so the guest caches nothing of it.

use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::Options;
use crate::places::Places;
use crate::progress::tail;
use crate::setup::kernels::{self, Version};
use crate::setup::root;

const VIRTIOFSD: &str = "/usr/lib/qemu/virtiofsd";
/// What the guest mounts: see above.
const BASE: &str = "base";
const BOX: &str = "box";
const TAGS: [&str; 2] = [BASE, BOX];
/// A busy machine may take its time to start a program.
const SHARE_PATIENCE: Duration = Duration::from_secs(30);
/// Security features that cost instructions and protect nothing here. Of security modules yama alone: with
/// `apparmor=0` the kernel would take SELinux in its place, which looks at every packet. With its libraries at the same
/// addresses each time, a program runs from code that QEMU has translated before: a third of the time for each exec.
const COMMAND_LINE: &str = "console=ttyS0 quiet panic=-1 init_on_alloc=0 lsm=yama pti=off mitigations=off nokaslr \
                            norandmaps random.trust_cpu=on";
/// With the newest string instructions on, emulated fork and exec take three times as long.
const CPU: &str = "max,la57=off,erms=off,fsrm=off";

pub fn start(places: &Places, options: &Options, folder: &Path, version: Version) -> Result<Vec<Child>> {
    let kernel = kernels::find(places, version);
    let log = File::create(folder.join("processes.log"))?;
    let mut children = vec![
        share(options, BASE, &places.cache, "always", folder, &log)?,
        share(options, BOX, &folder.join("box"), "none", folder, &log)?,
    ];
    let inside = |path: &Path| -> Result<String> {
        let relative = path
            .strip_prefix(&places.cache)
            .context("a machine's folder is outside the cache")?;
        Ok(relative.to_string_lossy().into_owned())
    };
    let append = format!(
        "{COMMAND_LINE} fabedge.layers={}:{} fabedge.host={}",
        inside(&kernel.layer())?,
        inside(&root::folder(places))?,
        inside(&folder.join("host"))?
    );
    let memory = format!("{}M", options.memory);
    let mut qemu = dying_with_us("qemu-system-x86_64", options);
    if options.icount {
        qemu.args([
            "-accel",
            "tcg,thread=single",
            "-icount",
            "shift=0,sleep=off",
            "-smp",
            "1",
        ]);
    } else {
        // Emulation everywhere: where /dev/kvm is nested or broken, QEMU aborts instead of falling back.
        qemu.args(["-accel", "tcg", "-smp", &options.cpus.to_string()]);
    }
    qemu.args([
        "-cpu",
        CPU,
        "-machine",
        "q35,memory-backend=memory",
        "-m",
        &memory,
    ])
    .args([
        "-object",
        &format!("memory-backend-memfd,id=memory,size={memory},share=on"),
    ])
    .args(["-nodefaults", "-no-user-config", "-nographic", "-no-reboot"])
    .arg("-kernel")
    .arg(kernel.image())
    .arg("-initrd")
    .arg(kernel.initramfs())
    .args(["-append", &append, "-device", "virtio-rng-pci"])
    .args(["-serial", &format!("file:{}", folder.join("console").display())]);
    for tag in TAGS {
        qemu.args([
            "-chardev",
            &format!("socket,id={tag},path={}", socket(folder, tag)),
        ]);
        qemu.args([
            "-device",
            &format!("vhost-user-fs-pci,chardev={tag},tag={tag},queue-size=1024"),
        ]);
    }
    let spawned = qemu
        .current_dir(folder)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .process_group(0)
        .spawn()
        .context("starting qemu-system-x86_64");
    match spawned {
        Ok(child) => children.push(child),
        Err(problem) => {
            for child in &mut children {
                child.kill()?;
                child.wait()?;
            }
            return Err(problem);
        }
    }
    Ok(children)
}

/// Relative to the machine's folder, since a socket's whole path may not exceed 107 bytes; with the folder's name in
/// it, since virtiofsd locks a file named after the path it is given.
fn socket(folder: &Path, tag: &str) -> String {
    let machine = folder.file_name().unwrap_or_default().to_string_lossy();
    format!("{machine}-{tag}.socket")
}

/// Removes what virtiofsd leaves outside the machine's folder.
pub fn tidy(folder: &Path) {
    for tag in TAGS {
        let left = Path::new("/run/virtiofsd").join(socket(folder, tag) + ".pid");
        if let Err(problem) = std::fs::remove_file(&left)
            && problem.kind() != std::io::ErrorKind::NotFound
        {
            eprintln!("warning: removing {}: {problem}", left.display());
        }
    }
}

/// Serves a folder to the guest.
fn share(
    options: &Options,
    tag: &str,
    source: &Path,
    cache: &str,
    folder: &Path,
    log: &File,
) -> Result<Child> {
    let path = socket(folder, tag);
    let mut child = dying_with_us(VIRTIOFSD, options)
        .arg(format!("--socket-path={path}"))
        .args(["-o", &format!("source={}", source.display())])
        .args(["-o", &format!("cache={cache}"), "-o", "sandbox=chroot"])
        .current_dir(folder)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log.try_clone()?)
        .process_group(0)
        .spawn()
        .with_context(|| format!("starting {VIRTIOFSD}"))?;
    let started = Instant::now();
    while !folder.join(&path).exists() {
        let ended = child.try_wait()?;
        if ended.is_some() || started.elapsed() > SHARE_PATIENCE {
            child.kill()?;
            child.wait()?;
            bail!(
                "virtiofsd did not serve {} ({}):\n{}",
                source.display(),
                ended.map_or("no socket in time".to_owned(), |status| status.to_string()),
                tail(&folder.join("processes.log"), 0)
            );
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(child)
}

/// A command whose process the kernel kills when this one ends for whatever reason, unless the machine is kept.
/// (The kernel watches the thread that starts it: machines are booted by threads that live as long as they do.)
pub fn dying_with_us(program: &str, options: &Options) -> Command {
    if options.keep {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", program]);
    command
}
