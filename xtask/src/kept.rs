//! The commands for a world that stays up, tried as a user types them.

use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use crate::places::Places;
use crate::tally::Counts;

/// A script of a user's, who finds the way by the names in its environment.
const SCRIPT: &str = "#!/bin/sh -e
for site in $FABEDGE_SITES; do $FABEDGE_LAB exec $site -- ip -brief link show lo; done
$FABEDGE_LAB exec cloud-a -- ping -c 1 -W 5 $FABEDGE_ADDRESS_edge1_a
";

/// What is typed after `cargo xtask lab`, whether it works, and what is said.
const STEPS: [(&str, bool, &str); 9] = [
    ("up --tunnel libipsec", true, "the world is up"),
    ("up --tunnel libipsec", false, "cargo xtask lab down"),
    ("exec edge1 -- fabedge-agent status", true, "fabedge.connector"),
    (
        "exec edge1 -- bpftool map dump pinned /sys/fs/bpf/fabedge/routes4",
        true,
        "prefix_len",
    ),
    ("exec edge1 -- false", false, ""),
    ("exec shop -- true", false, "shop"),
    ("run SCRIPT", true, "1 received"),
    ("down", true, ""),
    ("exec edge1 -- true", false, "no world is up"),
];

/// Brings a world up on this kernel, pokes at it, and takes it down.
///
/// # Errors
/// When a step cannot be tried at all.
pub fn check(places: &Places) -> Result<Counts> {
    let program = std::env::current_exe().context("finding this program")?;
    let folder = places.cache.join("kept");
    std::fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
    let script = folder.join("poke.sh");
    std::fs::write(&script, SCRIPT).with_context(|| format!("writing {}", script.display()))?;
    let mut counts = Counts::default();
    for (line, works, says) in STEPS {
        let line = line.replace("SCRIPT", &script.to_string_lossy());
        let done = Command::new(&program)
            .arg("--cache")
            .arg(&places.cache)
            .arg("lab")
            .args(line.split(' '))
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("running {}", program.display()))?;
        let said = String::from_utf8_lossy(&[done.stdout, done.stderr].concat()).into_owned();
        let good = done.status.success() == works && said.contains(says);
        println!(
            "  cargo xtask lab {line} ... {}",
            if good { "ok" } else { "FAILED" }
        );
        if good {
            counts.passed += 1;
        } else {
            counts.failed += 1;
            println!("    {}: {}", done.status, said.trim().replace('\n', "\n    "));
        }
    }
    Ok(counts)
}
