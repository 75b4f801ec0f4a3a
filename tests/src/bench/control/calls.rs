//! What a program asks of others while it applies a document: its system calls, counted by strace.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::node::{Node, PATIENCE};
use crate::daemon::Daemon;

/// What is counted.
#[derive(Clone, Copy, Debug, Default)]
pub struct Calls {
    /// System calls, those of the commands that it runs included.
    pub all: usize,
    /// Changes of maps.
    pub maps: usize,
    /// Messages to the kernel by netlink.
    pub netlink: usize,
    /// Messages to charon.
    pub charon: usize,
    /// Commands run.
    pub commands: usize,
}

/// Counts from when the agent comes upon the next document until it has applied it.
///
/// # Errors
/// When the agent cannot be traced, or does not apply the document.
pub fn count(node: &mut Node, peers: usize, moved: usize) -> Result<Calls> {
    // As the site sees it, and as it is seen from here.
    let (inside, trace) = ("/run/trace", node.site()?.path("/run/trace"));
    let pid = node.agent.pid().to_string();
    let words = ["strace", "-f", "-yy", "-s", "200", "-p", &pid, "-o", inside];
    let log = trace.with_extension("log");
    let mut strace = Daemon::start("strace", &node.site()?.place, &words, &[], &log)?;
    let status = format!("/proc/{pid}/status");
    strace.wait_until("it traced the agent", PATIENCE, || {
        let text = fs::read_to_string(&status).unwrap_or_default();
        text.lines()
            .any(|line| line.starts_with("TracerPid:") && !line.ends_with("\t0"))
    })?;
    node.apply(peers, moved)?;
    strace.terminate(Duration::from_secs(60))?;
    let text = fs::read_to_string(&trace).with_context(|| format!("reading {}", trace.display()))?;
    let calls = Calls::of(&text);
    ensure!(
        calls.all > 0,
        "strace saw nothing: {}",
        fs::read_to_string(&log).unwrap_or_default()
    );
    Ok(calls)
}

impl Calls {
    fn of(trace: &str) -> Self {
        let begun = trace.lines().skip_while(|line| !line.contains("tunnels.yaml"));
        let lines = begun.take_while(|line| !line.contains("document applied"));
        let mut calls = Self::default();
        for line in lines {
            let call = line.trim_start_matches(|c: char| c.is_ascii_digit()).trim_start();
            if !call.starts_with(|c: char| c.is_ascii_lowercase()) {
                continue;
            }
            calls.all += 1;
            let sends = ["write(", "writev(", "sendto(", "sendmsg("]
                .iter()
                .any(|name| call.starts_with(name));
            calls.maps +=
                usize::from(call.starts_with("bpf(BPF_MAP_UPDATE") || call.starts_with("bpf(BPF_MAP_DELETE"));
            calls.netlink += usize::from(sends && call.contains("<NETLINK:"));
            calls.charon += usize::from(sends && call.contains("<UNIX"));
            calls.commands += usize::from(call.starts_with("execve("));
        }
        calls
    }
}
