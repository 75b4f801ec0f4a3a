//! Network namespaces that live as long as a thread: nothing is left behind, however a test ends.
#![allow(
    unsafe_code,
    reason = "a thread is moved into a namespace of its own with unshare(2)"
)]

use std::net::UdpSocket;
use std::process::Command;
use std::sync::mpsc;
use std::thread::JoinHandle;

use fabedge_agent::subsystem::{Outcome, Phase, Subsystem};
use rustix::thread::UnshareFlags;

use super::world::PATIENCE;

type Job = Box<dyn FnOnce() + Send>;

/// A network namespace with `lo` up.
pub struct Space {
    jobs: Option<mpsc::Sender<Job>>,
    thread: Option<JoinHandle<()>>,
    id: i32,
}

impl Space {
    pub fn new() -> Self {
        let (jobs, queue) = mpsc::channel::<Job>();
        let (ready, id) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            enter();
            ready
                .send(rustix::thread::gettid().as_raw_nonzero().get())
                .unwrap();
            queue.into_iter().for_each(|job| job());
        });
        let id = id
            .recv()
            .expect("this test needs root: it makes network namespaces");
        Self {
            jobs: Some(jobs),
            thread: Some(thread),
            id,
        }
    }

    /// Runs `work` inside.
    pub fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let (done, result) = mpsc::channel();
        let job: Job = Box::new(move || done.send(work()).unwrap());
        self.jobs.as_ref().unwrap().send(job).unwrap();
        result.recv().expect("the work inside the namespace panicked")
    }

    /// Runs commands inside, one a line.
    pub fn sh(&self, script: &str) -> String {
        let script = script.to_owned();
        self.run(move || sh(&script))
    }

    /// Something that `ip link set … netns` takes.
    pub fn id(&self) -> String {
        self.id.to_string()
    }

    /// A UDP socket inside.
    pub fn udp(&self, address: &str) -> UdpSocket {
        let address = address.to_owned();
        let socket =
            self.run(move || UdpSocket::bind(&address).unwrap_or_else(|e| panic!("binding {address}: {e}")));
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        drop(self.jobs.take());
        if let Some(Err(panic)) = self.thread.take().map(JoinHandle::join)
            && !std::thread::panicking()
        {
            std::panic::resume_unwind(panic);
        }
    }
}

/// Runs a test in a fresh network namespace, on a runtime of its own.
pub fn in_space(test: impl AsyncFnOnce() + Send + 'static) {
    let thread = std::thread::spawn(move || {
        enter();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(test());
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

fn enter() {
    // SAFETY: the flags do not include FILES, so no file descriptor becomes invalid in another thread.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }
        .expect("this test needs root: it makes network namespaces");
    // Without duplicate address detection: link-local addresses, which routers speak with, are usable at once.
    sh("echo 0 > /proc/sys/net/ipv6/conf/default/dad_transmits
        echo 0 > /proc/sys/net/ipv6/conf/default/accept_dad
        ip link set lo up");
}

/// Runs commands in the namespace of the calling thread; the test fails with the first that fails.
pub fn sh(script: &str) -> String {
    let output = Command::new("sh")
        .args(["-ec", &batched(script)])
        .output()
        .expect("running sh");
    assert!(
        output.status.success(),
        "{script}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// The script with `ip` started once for all lines in a row that are plain calls of it: starting programs is what
/// takes time in an emulated machine.
fn batched(script: &str) -> String {
    let mut batched = String::new();
    let mut open = false;
    for line in script.lines().map(str::trim) {
        let plain = line.strip_prefix("ip ").filter(|rest| {
            !rest.starts_with('-') && !rest.contains(['|', ';', '&', '>', '<', '$', '\'', '"'])
        });
        if open != plain.is_some() {
            batched.push_str(if open { "END\n" } else { "ip -batch - <<END\n" });
            open = !open;
        }
        batched.push_str(plain.unwrap_or(line));
        batched.push('\n');
    }
    if open { batched + "END\n" } else { batched }
}

/// One whole pass of one subsystem; tells whether there was anything to do, and what went wrong.
pub async fn pass<S: Subsystem>(subsystem: &mut S, desired: &S::Desired) -> Vec<Outcome> {
    let plan = subsystem.plan(desired).await.unwrap();
    let mut outcomes = subsystem.apply(&plan, Phase::Grow).await;
    outcomes.extend(subsystem.apply(&plan, Phase::Shrink).await);
    outcomes
}

/// A pass that has something to do and succeeds, after which there is nothing left to do.
pub async fn settle<S: Subsystem>(subsystem: &mut S, desired: &S::Desired) {
    let outcomes = pass(subsystem, desired).await;
    assert!(!outcomes.is_empty(), "there was nothing to do");
    assert_fine(&outcomes);
    assert_settled(subsystem, desired).await;
}

/// There is nothing to do.
pub async fn assert_settled<S: Subsystem>(subsystem: &mut S, desired: &S::Desired) {
    let again = pass(subsystem, desired).await;
    assert!(again.is_empty(), "a second pass found something to do: {again:?}");
}

pub fn assert_fine(outcomes: &[Outcome]) {
    for outcome in outcomes {
        assert!(outcome.result.is_ok(), "{outcome:?}");
    }
}

/// The one failure of a pass, with its causes.
pub fn failure(outcomes: &[Outcome]) -> String {
    let failures: Vec<String> = outcomes
        .iter()
        .filter_map(|outcome| {
            let mut error: &dyn std::error::Error = &**outcome.result.as_ref().err()?;
            let mut text = error.to_string();
            while let Some(source) = error.source() {
                text = format!("{text}: {source}");
                error = source;
            }
            Some(text)
        })
        .collect();
    assert_eq!(failures.len(), 1, "{outcomes:?}");
    failures.into_iter().next().unwrap()
}
