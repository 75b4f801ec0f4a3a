//! A place: somewhere a command or a socket can be, made of a network namespace and, for a site, a mount namespace.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use rustix::mount::{MountPropagationFlags, UnmountFlags};
use serde::{Deserialize, Serialize};

use crate::{command, sys};

/// Where network namespaces have their names, so that `ip -n NAME` works.
pub const NETNS_DIR: &str = "/run/netns";

/// How long a command may take that configures something.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A named place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// Its name, unique in the world.
    pub name: String,
    /// The file of its network namespace.
    pub net: PathBuf,
    /// The file of its mount namespace, if it has one of its own: that of the process which keeps it.
    pub mounts: Option<PathBuf>,
}

impl Place {
    /// Makes a new, empty network namespace under `name`.
    ///
    /// # Errors
    /// When the kernel refuses, or the name is taken.
    pub fn create(name: &str) -> Result<Self> {
        prepare_directory()?;
        let net = Path::new(NETNS_DIR).join(name);
        File::create_new(&net).with_context(|| format!("naming the network namespace {}", net.display()))?;
        let made = in_thread(|| -> Result<()> {
            sys::new_network().context("making a network namespace")?;
            rustix::mount::mount_bind("/proc/thread-self/ns/net", &net)
                .with_context(|| format!("keeping a network namespace as {}", net.display()))
        })?;
        if let Err(error) = made {
            fs::remove_file(&net).with_context(|| format!("removing {}", net.display()))?;
            return Err(error);
        }
        Ok(Self {
            name: name.to_owned(),
            net,
            mounts: None,
        })
    }

    /// Runs `body` in a thread that is in this place. A socket that it makes stays here, whoever uses it later.
    ///
    /// # Errors
    /// When the place cannot be entered.
    pub fn run<T: Send>(&self, body: impl FnOnce() -> T + Send) -> Result<T> {
        in_thread(|| {
            self.enter()?;
            Ok(body())
        })?
    }

    /// Moves the calling thread here.
    fn enter(&self) -> Result<()> {
        let open = |path: &Path| File::open(path).with_context(|| format!("opening {}", path.display()));
        // Both before entering either: the files may not be there any more afterwards.
        let net = open(&self.net)?;
        let mounts = self.mounts.as_deref().map(open).transpose()?;
        sys::enter_network(&net).with_context(|| format!("entering the network of {}", self.name))?;
        if let Some(mounts) = &mounts {
            sys::enter_mounts(mounts).with_context(|| format!("entering the mounts of {}", self.name))?;
        }
        Ok(())
    }

    /// Runs a command here to its end; its exit code is for the caller to judge.
    ///
    /// # Errors
    /// When it cannot be started or takes longer than `limit`.
    pub fn output(&self, words: &[&str], limit: Duration) -> Result<command::Output> {
        self.run(|| command::run(&mut build(words)?, "", limit))?
            .with_context(|| format!("in {}", self.name))
    }

    /// Runs a command here that has to succeed, and gives its standard output.
    ///
    /// # Errors
    /// When it fails, or takes longer than [`PATIENCE`].
    pub fn must(&self, words: &[&str]) -> Result<String> {
        self.must_with(words, "")
    }

    /// Like [`Place::must`], with `input` on the command's standard input.
    ///
    /// # Errors
    /// When it fails, or takes longer than [`PATIENCE`].
    pub fn must_with(&self, words: &[&str], input: &str) -> Result<String> {
        self.run(|| command::must_with(&mut build(words)?, input, PATIENCE))?
            .with_context(|| format!("in {}", self.name))
    }

    /// Like [`Place::must`], for a line of the shell.
    ///
    /// # Errors
    /// When it fails, or takes longer than [`PATIENCE`].
    pub fn shell(&self, script: &str) -> Result<String> {
        self.must(&["sh", "-ec", script])
    }

    /// Applies lines of `ip` commands, all by one process.
    ///
    /// # Errors
    /// When one of them fails; the error names its line.
    pub fn ip(&self, lines: &str) -> Result<()> {
        self.must_with(&["ip", "-b", "-"], lines)
            .with_context(|| format!("of the lines\n{lines}"))?;
        Ok(())
    }

    /// Loads an nftables script.
    ///
    /// # Errors
    /// When `nft` refuses it.
    pub fn nft(&self, script: &str) -> Result<()> {
        self.must_with(&["nft", "-f", "-"], script)?;
        Ok(())
    }

    /// Sets sysctls, each `net/ipv4/ip_forward=1`.
    ///
    /// # Errors
    /// When one cannot be written.
    pub fn sysctl(&self, settings: &[&str]) -> Result<()> {
        self.run(|| {
            for setting in settings {
                let (path, value) = setting
                    .split_once('=')
                    .with_context(|| format!("`{setting}` has no ="))?;
                fs::write(Path::new("/proc/sys").join(path), value)
                    .with_context(|| format!("setting {setting}"))?;
            }
            Ok(())
        })?
    }

    /// Removes the name under which the network namespace is held; it goes once no process is in it any more.
    ///
    /// # Errors
    /// When the file cannot be removed.
    pub fn release(&self) -> Result<()> {
        if !self.net.exists() {
            return Ok(());
        }
        // Not mounted is as good: then only the empty file is left.
        rustix::mount::unmount(&self.net, UnmountFlags::DETACH).ok();
        fs::remove_file(&self.net).with_context(|| format!("removing {}", self.net.display()))
    }
}

/// Makes [`NETNS_DIR`] a shared mount, so that sites with mounts of their own see namespaces that come later.
fn prepare_directory() -> Result<()> {
    fs::create_dir_all(NETNS_DIR).with_context(|| format!("making {NETNS_DIR}"))?;
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("reading the mount table")?;
    let mounted = mounts
        .lines()
        .any(|line| line.split(' ').nth(4) == Some(NETNS_DIR));
    if !mounted {
        rustix::mount::mount_bind(NETNS_DIR, NETNS_DIR).with_context(|| format!("mounting {NETNS_DIR}"))?;
    }
    rustix::mount::mount_change(NETNS_DIR, MountPropagationFlags::SHARED)
        .with_context(|| format!("sharing {NETNS_DIR}"))
}

/// Runs `body` in a thread of its own, whose namespaces die with it.
fn in_thread<T: Send>(body: impl FnOnce() -> T + Send) -> Result<T> {
    thread::scope(|scope| scope.spawn(body).join()).map_err(|_| anyhow!("a thread of the lab panicked"))
}

/// A command from its words.
fn build(words: &[&str]) -> Result<Command> {
    let (program, arguments) = words.split_first().context("an empty command line")?;
    let mut command = Command::new(program);
    command.args(arguments);
    Ok(command)
}
