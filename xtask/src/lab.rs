//! `demo` and `lab`: the small world, in a machine that fits what was asked for.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand, ValueEnum};

use crate::interrupt::Interrupt;
use crate::machine::{Kernel, Machine, Options};
use crate::places::Places;
use crate::{build, k8s, setup};

/// Who does ESP.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum Tunnel {
    /// The kernel, behind an xfrm interface.
    Xfrm,
    /// charon itself, behind a TUN device.
    Libipsec,
}

impl Tunnel {
    /// As users write it.
    pub fn name(self) -> &'static str {
        match self {
            Tunnel::Xfrm => "xfrm",
            Tunnel::Libipsec => "libipsec",
        }
    }
}

/// Where the world runs.
#[derive(Args, Debug)]
pub struct Place {
    /// The kernel; by default this machine's own when it can do what the tunnels need, else 6.12 in QEMU
    #[arg(long, value_enum)]
    kernel: Option<Kernel>,
    /// Who does ESP; by default the kernel where it can
    #[arg(long, value_enum)]
    tunnel: Option<Tunnel>,
}

impl Place {
    /// Settles what the user left open.
    fn choose(&self) -> Result<(Kernel, Tunnel)> {
        let needs_probe = self.kernel.is_none_or(|kernel| kernel == Kernel::Host);
        choose(self.kernel, self.tunnel, needs_probe && host_has_esp())
    }
}

fn choose(kernel: Option<Kernel>, tunnel: Option<Tunnel>, host_esp: bool) -> Result<(Kernel, Tunnel)> {
    Ok(match (kernel, tunnel) {
        (None, Some(Tunnel::Libipsec)) => (Kernel::Host, Tunnel::Libipsec),
        (None, _) => (if host_esp { Kernel::Host } else { Kernel::V6_12 }, Tunnel::Xfrm),
        (Some(Kernel::Host), None) => (
            Kernel::Host,
            if host_esp { Tunnel::Xfrm } else { Tunnel::Libipsec },
        ),
        (Some(Kernel::Host), Some(Tunnel::Xfrm)) if !host_esp => bail!(
            "this machine's kernel has no ESP or no xfrm interfaces: use `--kernel 6.12` (QEMU), or `--tunnel \
             libipsec` on this kernel"
        ),
        (Some(kernel), tunnel) => (kernel, tunnel.unwrap_or(Tunnel::Xfrm)),
    })
}

/// Whether this kernel does ESP for xfrm interfaces, tried out in a network namespace that is gone at once.
fn host_has_esp() -> bool {
    const TRY: &str = "ip link add probe type xfrm dev lo if_id 1 && ip xfrm state add src 192.0.2.1 dst 192.0.2.2 \
                       proto esp spi 0x1001 reqid 1 mode tunnel if_id 1 aead 'rfc4106(gcm(aes))' \
                       0x000102030405060708090a0b0c0d0e0f00010203 128";
    Command::new("unshare")
        .args(["--net", "sh", "-c", TRY])
        .output()
        .is_ok_and(|tried| tried.status.success())
}

/// The arguments of `demo`.
#[derive(Args, Debug)]
pub struct Demo {
    #[command(flatten)]
    place: Place,
    /// With 2: another story, of two Kubernetes clusters that join, with real kubelets on this kernel and userspace ESP
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=2))]
    clusters: u8,
    /// Leave the world up for `cargo xtask lab exec|run|down`
    #[arg(long)]
    keep: bool,
    /// Write every figure into this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Passed on to `fabedge-lab demo`
    #[arg(last = true)]
    more: Vec<String>,
}

/// Brings the world up, shows the main job, breaks things; returns the exit code.
pub fn demo(places: &Places, arguments: &Demo, interrupt: &Interrupt) -> Result<i32> {
    if arguments.clusters > 1 {
        return of_clusters(places, arguments, interrupt);
    }
    setup::ensure(places)?;
    let (kernel, tunnel) = arguments.place.choose()?;
    if arguments.keep {
        refuse_second(places, interrupt)?;
    }
    build::all(places)?;
    let machine = boot(places, kernel, tunnel, arguments.keep, interrupt)?;
    let mut command = words(&[
        "/host/fabedge-lab",
        "demo",
        "--tunnel",
        tunnel.name(),
        "--json",
        "/out/demo.json",
    ]);
    if arguments.keep {
        command.push("--keep".to_owned());
    }
    command.extend(arguments.more.iter().cloned());
    let code = machine.run(&command, &environment(kernel))?;
    let results = save(
        places,
        &machine,
        &format!("demo-{}-{}", kernel.name(), tunnel.name()),
    )?;
    if let Some(file) = &arguments.json {
        let figures = results.join("demo.json");
        std::fs::copy(&figures, file)
            .with_context(|| format!("copying the figures {} to {}", figures.display(), file.display()))?;
    }
    if arguments.keep {
        eprintln!("the world is up: `cargo xtask lab exec edge1 -- ip route`, `cargo xtask lab down`");
    }
    Ok(code)
}

fn of_clusters(places: &Places, arguments: &Demo, interrupt: &Interrupt) -> Result<i32> {
    let Place { kernel, tunnel } = arguments.place;
    if kernel.is_some_and(|kernel| kernel != Kernel::Host)
        || tunnel.is_some_and(|tunnel| tunnel != Tunnel::Libipsec)
    {
        bail!(
            "--clusters 2 is on this machine's kernel with ESP in userspace: leave --kernel and --tunnel out"
        );
    }
    if !arguments.more.is_empty() {
        bail!("--clusters 2 takes nothing after --");
    }
    setup::ensure(places)?;
    build::all(places)?;
    k8s::demo(places, arguments.json.as_deref(), arguments.keep, interrupt)
}

/// The subcommands of `lab`.
#[derive(Debug, Subcommand)]
pub enum Lab {
    /// Bring the world up and leave it up
    Up {
        #[command(flatten)]
        place: Place,
        /// Passed on to `fabedge-lab up`
        #[arg(last = true)]
        more: Vec<String>,
    },
    /// Run a command in a site or a pod of the world that is up
    Exec {
        /// The site or pod
        name: String,
        /// The command
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// Run a script beside the sites; it finds their names in its environment
    Run {
        /// The script
        script: PathBuf,
        /// Its arguments
        arguments: Vec<String>,
    },
    /// Take the world and its machine down
    Down,
}

/// Does one of the subcommands; returns the exit code.
pub fn lab(places: &Places, task: &Lab, interrupt: &Interrupt) -> Result<i32> {
    match task {
        Lab::Up { place, more } => up(places, place, more, interrupt),
        Lab::Exec { name, command } => {
            let mut words = words(&["/host/fabedge-lab", "exec", name, "--"]);
            words.extend(command.iter().cloned());
            in_kept(places, interrupt)?.run(&words, &[])
        }
        Lab::Run { script, arguments } => {
            let machine = in_kept(places, interrupt)?;
            let inside = machine.bring(script)?;
            let mut words = words(&["/host/fabedge-lab", "run", &inside]);
            words.extend(arguments.iter().cloned());
            machine.run(&words, &[])
        }
        Lab::Down => {
            let machine = in_kept(places, interrupt)?;
            let code = machine.run(&words(&["/host/fabedge-lab", "down"]), &[])?;
            machine.shutdown();
            Ok(code)
        }
    }
}

fn up(places: &Places, place: &Place, more: &[String], interrupt: &Interrupt) -> Result<i32> {
    setup::ensure(places)?;
    let (kernel, tunnel) = place.choose()?;
    refuse_second(places, interrupt)?;
    build::all(places)?;
    let machine = boot(places, kernel, tunnel, true, interrupt)?;
    let mut command = words(&["/host/fabedge-lab", "up", "--tunnel", tunnel.name()]);
    command.extend(more.iter().cloned());
    let outcome = machine.run(&command, &environment(kernel));
    if !matches!(outcome, Ok(0)) {
        let results = save(places, &machine, "up")?;
        machine.shutdown();
        eprintln!("the world did not come up; its logs: {}", results.display());
    }
    outcome
}

fn boot(
    places: &Places,
    kernel: Kernel,
    tunnel: Tunnel,
    keep: bool,
    interrupt: &Interrupt,
) -> Result<Machine> {
    let options = Options {
        keep,
        ..Options::on(kernel)
    };
    let machine = Machine::boot(places, &options, &build::host_files(places), interrupt)?;
    let place = match kernel {
        Kernel::Host => "this machine's kernel".to_owned(),
        kernel => format!("Debian's kernel {} in QEMU", kernel.name()),
    };
    eprintln!("world: {place}, tunnels by {}", tunnel.name());
    Ok(machine)
}

fn in_kept(places: &Places, interrupt: &Interrupt) -> Result<Machine> {
    Machine::kept(places, interrupt)?
        .context("no world is up: start one with `cargo xtask lab up` or `cargo xtask demo --keep`")
}

fn refuse_second(places: &Places, interrupt: &Interrupt) -> Result<()> {
    match Machine::kept(places, interrupt)? {
        None => Ok(()),
        Some(machine) => bail!(
            "a world is up already (kernel {}): use it with `cargo xtask lab exec`, or end it with `cargo xtask lab \
             down`",
            machine.kernel()
        ),
    }
}

/// What programs in the machine should know of this side.
pub fn environment(kernel: Kernel) -> Vec<(String, String)> {
    let mut environment = vec![("FABEDGE_KERNEL".to_owned(), kernel.name().to_owned())];
    if std::io::IsTerminal::is_terminal(&std::io::stdout()) {
        // Output reaches the terminal through a file, where a program cannot see it.
        environment.push(("FABEDGE_TERMINAL".to_owned(), "1".to_owned()));
    }
    environment
}

/// Copies what a machine left in `/out` to where it stays until the next run of the same kind.
pub fn save(places: &Places, machine: &Machine, name: &str) -> Result<PathBuf> {
    let folder = places.cache.join("results").join(name);
    if folder.exists() {
        std::fs::remove_dir_all(&folder).with_context(|| format!("removing {}", folder.display()))?;
    }
    copy_files(&machine.out(), &folder)?;
    Ok(folder)
}

/// Copies a folder: its files and folders, and nothing else.
pub fn copy_files(from: &Path, to: &Path) -> Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from).with_context(|| format!("reading {}", from.display()))? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        // Sockets and pipes of a running world are no results.
        if entry.file_type()?.is_dir() {
            copy_files(&entry.path(), &target)?;
        } else if entry.file_type()?.is_file() {
            std::fs::copy(entry.path(), &target)
                .with_context(|| format!("copying {}", entry.path().display()))?;
        }
    }
    Ok(())
}

/// Words of a command line.
pub fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_is_chosen_when_it_can_do_what_is_asked() {
        let (host, qemu) = (Kernel::Host, Kernel::V6_12);
        for (kernel, tunnel, esp, chosen) in [
            (None, None, true, (host, Tunnel::Xfrm)),
            (None, None, false, (qemu, Tunnel::Xfrm)),
            (None, Some(Tunnel::Libipsec), false, (host, Tunnel::Libipsec)),
            (Some(host), None, false, (host, Tunnel::Libipsec)),
            (Some(host), None, true, (host, Tunnel::Xfrm)),
            (Some(Kernel::V6_1), None, false, (Kernel::V6_1, Tunnel::Xfrm)),
            (Some(qemu), Some(Tunnel::Libipsec), true, (qemu, Tunnel::Libipsec)),
        ] {
            assert_eq!(
                choose(kernel, tunnel, esp).unwrap(),
                chosen,
                "{kernel:?} {tunnel:?} {esp}"
            );
        }
        let refused = choose(Some(host), Some(Tunnel::Xfrm), false)
            .unwrap_err()
            .to_string();
        assert!(refused.contains("--kernel 6.12"), "{refused}");
    }
}
