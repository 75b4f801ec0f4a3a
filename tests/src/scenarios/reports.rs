//! What the product and the WAN show about it: the capture, the route map, SAs, metrics, memory.

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::command;
use crate::lab::{Lab, Switch, Tunnel, wait_until};
use crate::observe;
use crate::scenarios::product::CONVERGENCE;
use crate::suite::{Check, judge};
use crate::table::Outcome;
use crate::world::addresses::{Role, SITES};

/// After traffic.
pub const CHECKS: &[Check] = &[
    Check {
        name: "the WAN saw ciphertext only",
        run: wan,
    },
    Check {
        name: "bpftool prints the route map of edge1 with names",
        run: route_map,
    },
    Check {
        name: "security associations of edge1",
        run: associations,
    },
    Check {
        name: "metrics are clean",
        run: metrics,
    },
    Check {
        name: "size of the agents: memory, program, maps",
        run: size,
    },
    Check {
        name: "what README.md says to ask is answered",
        run: questions,
    },
];

/// The capture alone.
pub const WAN: &[Check] = &[Check {
    name: "the WAN saw ciphertext only",
    run: wan,
}];

/// How much memory an agent on an edge may take, in KiB.
const MEMORY_KIB: u64 = 16 * 1024;

/// How large its program may be, in bytes.
const PROGRAM_BYTES: u64 = 15 << 20;

/// How much kernel memory its maps may take with some ten routes, in bytes.
const MAPS_BYTES: u64 = 4 << 20;

fn wan(lab: &mut Lab) -> Result<Outcome> {
    let seen = lab.capture.counts();
    lab.figures.set("plaintext_packets", seen.plaintext);
    lab.figures.set("esp_packets", seen.encrypted());
    lab.figures.set("capture", json!(seen));
    let note = if seen.plaintext > 0 {
        format!("{seen}: {:?}", seen.samples)
    } else {
        seen.to_string()
    };
    Ok(judge(
        seen.plaintext == 0 && seen.encrypted() > 0 && seen.missed == 0,
        if seen.missed > 0 {
            format!("{note}; {} missed", seen.missed)
        } else {
            note
        },
    ))
}

/// For where agents may not use eBPF.
pub const REFUSED: Check = Check {
    name: "agents say why the slow path carries everything",
    run: refused,
};

fn refused(lab: &mut Lab) -> Result<Outcome> {
    let mut told = BTreeSet::new();
    for numbers in SITES.iter().filter(|numbers| numbers.role != Role::Cloud) {
        let site = lab.world.site(numbers.name)?;
        wait_until("a status", CONVERGENCE, || Ok(observe::status(site).is_ok()))?;
        let state = observe::status(site)?["fastPath"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        told.insert(state);
    }
    Ok(judge(
        told.iter().all(|state| state.starts_with("slow path only: ")),
        told.into_iter().collect::<Vec<_>>().join("; "),
    ))
}

fn route_map(lab: &mut Lab) -> Result<Outcome> {
    if lab.settings.fast_path == Switch::Off {
        return Ok(Outcome::NotHere("the fast path is off".to_owned()));
    }
    let place = &lab.world.site("edge1")?.place;
    let entries = observe::dump(place, "routes4")?;
    let named = entries
        .iter()
        .all(|entry| entry["value"].get("reqid").is_some() && entry["key"].is_object());
    let shown: Vec<String> = entries.iter().map(Value::to_string).collect();
    let words = ["bpftool", "map", "dump", "pinned", "/sys/fs/bpf/fabedge/routes4"];
    lab.figures.set("routes4", json!(entries));
    lab.quote(words.join(" "));
    lab.quote(shown.join("\n"));
    Ok(judge(
        named && !shown.is_empty(),
        format!("{} routes", shown.len()),
    ))
}

fn associations(lab: &mut Lab) -> Result<Outcome> {
    let status = observe::status(lab.world.site("edge1")?)?;
    let mut established = 0;
    for (name, peer) in status["peers"].as_object().context("the status names no peers")? {
        let children = peer["children"].as_array().cloned().unwrap_or_default();
        established += usize::from(!children.is_empty());
        for child in children {
            lab.quote(format!(
                "{name} {} at {}: SPI {:08x} in, {:08x} out, {} bytes in, {} out",
                peer["ikeState"].as_str().unwrap_or_default(),
                peer["remote"].as_str().unwrap_or_default(),
                child["spiIn"].as_u64().unwrap_or_default(),
                child["spiOut"].as_u64().unwrap_or_default(),
                child["bytesIn"],
                child["bytesOut"],
            ));
        }
    }
    Ok(judge(established > 0, format!("with {established} peers")))
}

fn metrics(lab: &mut Lab) -> Result<Outcome> {
    let place = &lab.world.site("edge1")?.place;
    let answer = observe::fetch(place, "http://127.0.0.1:20306/metrics")?;
    if !answer.ok() {
        return Ok(Outcome::Failed(answer.text()));
    }
    let health = observe::fetch(place, "http://127.0.0.1:20306/healthz")?;
    let mut check = std::process::Command::new("promtool");
    check.args(["check", "metrics"]);
    let said = command::run(&mut check, &answer.stdout, Duration::from_secs(30))?;
    let series = answer
        .stdout
        .lines()
        .filter(|line| !line.starts_with('#'))
        .count();
    // Without the fast path there are no counters by reason.
    let expected = if lab.settings.fast_path == Switch::On {
        20
    } else {
        6
    };
    Ok(judge(
        said.ok() && said.text().is_empty() && health.ok() && series > expected,
        format!(
            "{series} series, promtool: {}",
            if said.text().is_empty() {
                "clean".to_owned()
            } else {
                said.text()
            }
        ),
    ))
}

fn size(lab: &mut Lab) -> Result<Outcome> {
    let mut notes = Vec::new();
    let mut good = true;
    for numbers in &SITES {
        let kib = lab.daemon(&format!("{}/agent", numbers.name))?.resident_kib()?;
        good &= numbers.role != Role::Edge || kib <= MEMORY_KIB;
        notes.push(format!("{} {:.1}", numbers.name, kib as f64 / 1024.0));
        lab.figures.set(format!("agent_rss_kib_{}", numbers.name), kib);
    }
    let program = lab.settings.programs.join("fabedge-agent");
    let program = fs::metadata(&program).with_context(|| format!("looking at {}", program.display()))?;
    let maps = match lab.settings.fast_path {
        Switch::On => observe::map_bytes(&lab.world.site("edge1")?.place)?,
        Switch::Off => None,
    };
    good &= program.len() <= PROGRAM_BYTES && maps.is_none_or(|bytes| bytes <= MAPS_BYTES);
    lab.figures.set("agent_program_bytes", program.len());
    lab.figures.set("agent_map_bytes", maps);
    let mib = |bytes: u64| format!("{:.1}", bytes as f64 / f64::from(1 << 20));
    Ok(judge(
        good,
        format!(
            "MiB resident: {}; program {}, maps {}",
            notes.join(", "),
            mib(program.len()),
            maps.map_or("not told".to_owned(), mib)
        ),
    ))
}

/// Every command under "Looking inside", on edge1.
fn questions(lab: &mut Lab) -> Result<Outcome> {
    let path = lab.settings.programs.join("README.md");
    let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    let commands = questions_of(&text);
    let (mut asked, mut bad) = (0, Vec::new());
    for command in &commands {
        let fast_path = command.contains("bpftool") || command.contains("routes");
        if fast_path && lab.settings.fast_path == Switch::Off
            || command.contains("xfrm") && lab.settings.tunnel == Tunnel::Libipsec
        {
            continue;
        }
        let place = &lab.world.site("edge1")?.place;
        let answer = place.output(&["sh", "-c", command], Duration::from_secs(30))?;
        asked += 1;
        if !answer.ok() || answer.stdout.trim().is_empty() {
            bad.push(format!("{command}: {}", answer.text()));
        }
    }
    Ok(judge(
        bad.is_empty() && asked > 5,
        format!("{asked} commands; {}", bad.join("; ")),
    ))
}

/// What stands in backticks in the second column of the table under "Looking inside", but for options.
fn questions_of(readme: &str) -> Vec<String> {
    readme
        .split("\n## ")
        .filter(|section| section.starts_with("Looking inside"))
        .flat_map(str::lines)
        .filter_map(|row| row.strip_prefix('|')?.split('|').nth(1))
        .flat_map(|cell| cell.split('`').skip(1).step_by(2))
        .filter(|command| !command.starts_with('-'))
        .map(str::to_owned)
        .collect()
}

/// When all has settled after the last fault, the kernel's states are those that charon knows.
pub fn no_stale_state(lab: &mut Lab) -> Result<Outcome> {
    if lab.settings.tunnel == Tunnel::Libipsec {
        return Ok(Outcome::NotHere("charon keeps its own states".to_owned()));
    }
    let mut notes = Vec::new();
    let mut good = true;
    for numbers in SITES.iter().filter(|numbers| numbers.role != Role::Cloud) {
        let site = lab.world.site(numbers.name)?;
        let status = observe::status(site)?;
        let children: usize = status["peers"]
            .as_object()
            .into_iter()
            .flatten()
            .map(|(_, peer)| peer["children"].as_array().map_or(0, Vec::len))
            .sum();
        let states = site.place.must(&["ip", "xfrm", "state", "list"])?;
        let states = states.lines().filter(|line| line.starts_with("src")).count();
        good &= states == 2 * children && children > 0;
        notes.push(format!("{} {states} states for {children} SAs", numbers.name));
    }
    Ok(judge(good, notes.join(", ")))
}
