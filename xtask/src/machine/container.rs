//! A machine on this kernel: util-linux's `unshare` starts our PID 1 in namespaces of its own. When it is
//! killed, the kernel ends everything in its PID namespace and with it every namespace and mount.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Stdio};

use anyhow::{Context, Result};

use super::{Options, vm};
use crate::places::Places;
use crate::setup::root;

pub fn start(places: &Places, options: &Options, folder: &Path) -> Result<Vec<Child>> {
    let console = std::fs::File::create(folder.join("console"))?;
    let child = vm::dying_with_us("unshare", options)
        .args([
            "--mount",
            "--net",
            "--pid",
            "--uts",
            "--ipc",
            "--cgroup",
            "--fork",
            "--kill-child",
        ])
        .arg(folder.join("host/xtask"))
        .args(["guest", "container"])
        .arg(folder)
        .arg(root::folder(places))
        .stdin(Stdio::null())
        .stdout(console.try_clone()?)
        .stderr(console)
        .process_group(0)
        .spawn()
        .context("starting unshare")?;
    Ok(vec![child])
}
