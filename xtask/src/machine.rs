//! A machine to run things in: a QEMU guest with one of Debian's kernels, or namespaces on this kernel. Both
//! start from the same Debian root folder under a tmpfs, show the project's programs at `/host` (read-only) and
//! a results folder at `/out`, and take jobs through a mailbox that their PID 1 serves.

mod container;
pub mod guest;
pub mod mailbox;
mod state;
mod vm;

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;

use crate::interrupt::Interrupt;
use crate::places::Places;
use crate::process::Process;
use crate::progress::tail;
use crate::setup::kernels::Version;
use state::State;

/// Which kernel a machine runs on.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum Kernel {
    /// QEMU with Debian's kernel 6.12.
    #[value(name = "6.12")]
    V6_12,
    /// QEMU with Debian's kernel 6.1.
    #[value(name = "6.1")]
    V6_1,
    /// Namespaces on this machine's own kernel.
    #[value(name = "host")]
    Host,
}

impl Kernel {
    /// As users write it.
    pub fn name(self) -> &'static str {
        match self {
            Kernel::V6_12 => "6.12",
            Kernel::V6_1 => "6.1",
            Kernel::Host => "host",
        }
    }
}

/// What a machine is made with.
#[derive(Clone, Debug)]
pub struct Options {
    /// The kernel, hence the kind of machine.
    pub kernel: Kernel,
    /// Processors of a QEMU guest.
    pub cpus: usize,
    /// Memory of a QEMU guest, in MiB.
    pub memory: usize,
    /// Guest time counts instructions (QEMU, one processor): repeatable within a percent.
    pub icount: bool,
    /// Outlives the process that booted it, until `shutdown`.
    pub keep: bool,
}

impl Options {
    /// The usual machine on a kernel.
    pub fn on(kernel: Kernel) -> Options {
        let cpus = std::thread::available_parallelism().map_or(1, |count| count.get().min(4));
        Options {
            kernel,
            cpus,
            memory: 4096,
            icount: false,
            keep: false,
        }
    }
}

/// A running machine. Unless it is kept, dropping it (or the end of this process, whatever ends it) ends it.
#[derive(Debug)]
pub struct Machine {
    folder: PathBuf,
    state: State,
    children: Vec<Child>,
    interrupt: Interrupt,
    /// Held while the machine is ours, so that no other process takes its folder for a leftover.
    _lock: Option<File>,
}

const BOOT_PATIENCE: Duration = Duration::from_secs(120);

impl Machine {
    /// Boots a machine that shows the files of `host` (name at `/host` -> file or folder here).
    pub fn boot(
        places: &Places,
        options: &Options,
        host: &[(String, PathBuf)],
        interrupt: &Interrupt,
    ) -> Result<Machine> {
        if !rustix::process::geteuid().is_root() {
            bail!(
                "a machine needs root for its namespaces and its shared folders: `sudo -E cargo xtask ...`"
            );
        }
        state::sweep(&places.machines());
        let (folder, lock) = state::new_folder(&places.machines())?;
        fill(&folder, host)?;
        let started = match options.kernel {
            Kernel::Host => container::start(places, options, &folder),
            Kernel::V6_1 => vm::start(places, options, &folder, Version::V6_1),
            Kernel::V6_12 => vm::start(places, options, &folder, Version::V6_12),
        };
        let children = match started {
            Ok(children) => children,
            Err(problem) => {
                state::remove(&folder);
                return Err(problem);
            }
        };
        let processes = children
            .iter()
            .map(|child| Process::of(child.id()))
            .collect::<Result<_>>();
        let state = State {
            repo: places.repo.clone(),
            kernel: options.kernel.name().to_owned(),
            keep: options.keep,
            processes: processes?,
        };
        state.write(&folder)?;
        // Until it is up, even a machine to be kept ends with us.
        let state = State { keep: false, ..state };
        let mut machine = Machine {
            folder,
            state,
            children,
            interrupt: interrupt.clone(),
            _lock: Some(lock),
        };
        machine.wait_until_ready()?;
        machine.state.keep = options.keep;
        Ok(machine)
    }

    /// The machine that an earlier command kept for this repository.
    pub fn kept(places: &Places, interrupt: &Interrupt) -> Result<Option<Machine>> {
        let found = state::kept(&places.machines(), &places.repo)?;
        Ok(found.map(|(folder, state)| Machine {
            folder,
            state,
            children: Vec::new(),
            interrupt: interrupt.clone(),
            _lock: None,
        }))
    }

    /// The kernel as users write it.
    pub fn kernel(&self) -> &str {
        &self.state.kernel
    }

    /// The folder that the machine sees as `/out`.
    pub fn out(&self) -> PathBuf {
        self.folder.join("box/out")
    }

    /// Runs a program with its output on ours and returns its exit code.
    pub fn run(&self, command: &[String], env: &[(String, String)]) -> Result<i32> {
        self.run_into(command, env, &mut std::io::stdout())
    }

    /// Like `run`, with the standard output of the program into `out`.
    pub fn run_into(&self, command: &[String], env: &[(String, String)], out: &mut dyn Write) -> Result<i32> {
        let job = mailbox::Job::post(&self.folder.join("box"), command, env)?;
        job.follow(out, &mut std::io::stderr(), &self.interrupt, || {
            self.check_alive()
        })
    }

    /// Puts a file where the machine sees it; returns the path inside.
    pub fn bring(&self, file: &Path) -> Result<String> {
        let name = file
            .file_name()
            .with_context(|| format!("{} is not a file", file.display()))?;
        let folder = self.folder.join("box/brought");
        std::fs::create_dir_all(&folder)?;
        let copied = folder.join(name);
        std::fs::copy(file, &copied).with_context(|| format!("copying {}", file.display()))?;
        Ok(format!("/box/brought/{}", name.to_string_lossy()))
    }

    /// Ends the machine and removes its folder.
    pub fn shutdown(mut self) {
        // Dropping does it.
        self.state.keep = false;
    }

    fn end(&mut self) {
        for process in &self.state.processes {
            process.kill();
        }
        for child in &mut self.children {
            // Killed above; an error here means that it was reaped already.
            drop(child.wait());
        }
        state::remove(&self.folder);
    }

    fn wait_until_ready(&mut self) -> Result<()> {
        let started = Instant::now();
        let ready = self.folder.join("box/ready");
        while !ready.exists() {
            self.check_alive()?;
            self.interrupt.check()?;
            if started.elapsed() > BOOT_PATIENCE {
                bail!(
                    "the machine did not start within {BOOT_PATIENCE:?}:\n{}",
                    self.console()
                );
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// An error with the end of the console when one of the machine's processes has ended.
    fn check_alive(&self) -> Result<()> {
        match self.state.processes.iter().find(|process| !process.lives()) {
            None => Ok(()),
            Some(process) => bail!(
                "the machine (process {}) has ended:\n{}",
                process.id,
                self.console()
            ),
        }
    }

    fn console(&self) -> String {
        ["console", "processes.log"]
            .map(|name| tail(&self.folder.join(name), 0))
            .join("\n")
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if !self.state.keep {
            self.end();
        }
    }
}

/// Ends every kept machine, whoever booted it; refuses while another process runs one of its own.
pub fn end_all(places: &Places) -> Result<()> {
    state::end_kept(&places.machines());
    state::sweep(&places.machines());
    match state::folders(&places.machines()).first() {
        None => Ok(()),
        Some(folder) => bail!(
            "another xtask runs the machine {}: wait for it, or end it",
            folder.display()
        ),
    }
}

/// Makes the folders of a machine and copies what it shows at `/host`: a build in the meantime must not change
/// the programs of a running world.
fn fill(folder: &Path, host: &[(String, PathBuf)]) -> Result<()> {
    for name in ["host", "box/jobs", "box/out", "mount"] {
        std::fs::create_dir_all(folder.join(name))?;
    }
    // This very program, even when cargo has replaced its file meanwhile.
    std::fs::copy("/proc/self/exe", folder.join("host/xtask")).context("copying xtask for the machine")?;
    for (name, source) in host {
        copy(source, &folder.join("host").join(name))?;
    }
    Ok(())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    if from.is_dir() {
        std::fs::create_dir_all(to)?;
        for entry in std::fs::read_dir(from).with_context(|| format!("reading {}", from.display()))? {
            let entry = entry?;
            copy(&entry.path(), &to.join(entry.file_name()))?;
        }
        return Ok(());
    }
    if let Some(parent) = to.parent() {
        std::fs::create_dir_all(parent)?;
    }
    std::fs::copy(from, to).with_context(|| format!("copying {} for the machine", from.display()))?;
    Ok(())
}
