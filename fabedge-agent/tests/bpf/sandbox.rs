//! Namespaces for one test, and the subsystem in them.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use fabedge_agent::datapath::{Datapath, Options};
use fabedge_agent::desired::datapath::Datapath as Desired;
use fabedge_agent::subsystem::{Outcome, Phase, Subsystem};
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
use rustix::thread::{LinkNameSpaceType, UnshareFlags};
use tokio::runtime::{Builder, Runtime};

/// The object under test.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("FABEDGE_EBPF_OBJECT"));

/// A place for one test.
pub struct Sandbox {
    /// Folder of pins, as the agent makes it.
    pub pins: PathBuf,
    /// CNI state directory.
    pub cni: PathBuf,
    runtime: Runtime,
}

/// Runs a test in namespaces of its own, which end with it.
pub fn sandbox(test: impl FnOnce(&Sandbox) + Send + 'static) {
    assert!(rustix::process::geteuid().is_root(), "these tests need root");
    let body = move || {
        isolate();
        let folder = tempfile::tempdir().unwrap();
        let bpffs = folder.path().join("bpf");
        std::fs::create_dir(&bpffs).unwrap();
        mount("bpf", &bpffs, "bpf", MountFlags::empty(), None).unwrap();
        ip("link set lo up");
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        let sandbox = Sandbox {
            pins: bpffs.join("fabedge"),
            cni: folder.path().join("cni"),
            runtime,
        };
        test(&sandbox);
        // The temporary folder cannot be removed under a mount.
        rustix::mount::unmount(&bpffs, rustix::mount::UnmountFlags::DETACH).unwrap();
    };
    // A thread of its own, because namespaces belong to threads and the harness reuses its own.
    if let Err(panic) = thread::spawn(body).join() {
        std::panic::resume_unwind(panic);
    }
}

#[allow(
    deprecated,
    reason = "unshare_unsafe is for FILES, which is not asked for here"
)]
fn isolate() {
    rustix::thread::unshare(UnshareFlags::NEWNS | UnshareFlags::NEWNET).unwrap();
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).unwrap();
    // `ip netns` leaves files there.
    mount("tmpfs", "/run", "tmpfs", MountFlags::empty(), None).unwrap();
}

impl Sandbox {
    /// An agent's subsystem as after its start.
    pub fn datapath(&self) -> Datapath {
        Datapath::new(self.options(&self.pins))
    }

    /// Options with pins in `dir`, and a short time to learn.
    pub fn options(&self, dir: &Path) -> Options {
        Options {
            dir: dir.to_owned(),
            cni_state_dir: self.cni.clone(),
            learning: Duration::from_millis(200),
        }
    }

    /// One pass; all outcomes.
    pub fn pass(&self, datapath: &mut Datapath, desired: &Desired) -> Vec<Outcome> {
        self.runtime.block_on(async {
            let plan = datapath.plan(desired).await.unwrap();
            let mut outcomes = datapath.apply(&plan, Phase::Grow).await;
            outcomes.extend(datapath.apply(&plan, Phase::Shrink).await);
            outcomes
        })
    }

    /// Passes until nothing is left to do; every action must succeed.
    pub fn settle(&self, datapath: &mut Datapath, desired: &Desired) {
        for _ in 0..10 {
            let outcomes = self.pass(datapath, desired);
            for Outcome {
                action,
                object,
                result,
            } in &outcomes
            {
                assert!(result.is_ok(), "{action} {object}: {result:?}");
            }
            match datapath.next_attempt() {
                Some(wait) => thread::sleep(wait),
                None if outcomes.is_empty() => return,
                None => {}
            }
        }
        panic!("does not settle");
    }

    /// Polls a future on this test's runtime.
    pub fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.block_on(future)
    }

    /// Packets counted under `program/reason`.
    pub fn count(&self, name: &str) -> u64 {
        let counters = fabedge_agent::datapath::read::counters_in(&self.pins).unwrap();
        counters.reasons.get(name).copied().unwrap_or(0)
    }
}

/// Runs `ip` with these words.
pub fn ip(words: &str) {
    run("ip", words);
}

/// Runs a program that must succeed; its output.
pub fn run(program: &str, words: &str) -> String {
    let output = Command::new(program).args(words.split_whitespace()).output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}"));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {words}: {errors}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Index of a device.
pub fn ifindex(device: &str) -> u32 {
    let json = run("ip", &format!("-j link show dev {device}"));
    let links: serde_json::Value = serde_json::from_str(&json).unwrap();
    links[0]["ifindex"].as_u64().unwrap().try_into().unwrap()
}

/// Hardware address of a device, in the named namespace if one is given.
pub fn mac(device: &str, namespace: Option<&str>) -> [u8; 6] {
    let inside = namespace.map_or(String::new(), |name| format!("-n {name} "));
    let json = run("ip", &format!("{inside}-j link show dev {device}"));
    let links: serde_json::Value = serde_json::from_str(&json).unwrap();
    let mut mac = [0; 6];
    for (byte, part) in mac
        .iter_mut()
        .zip(links[0]["address"].as_str().unwrap().split(':'))
    {
        *byte = u8::from_str_radix(part, 16).unwrap();
    }
    mac
}

/// Runs a function in a network namespace; sockets that it makes stay there.
pub fn inside<T: Send + 'static>(namespace: &str, body: impl FnOnce() -> T + Send + 'static) -> T {
    let file = std::fs::File::open(format!("/run/netns/{namespace}")).unwrap();
    let body = move || {
        rustix::thread::move_into_link_name_space(
            std::os::fd::AsFd::as_fd(&file),
            Some(LinkNameSpaceType::Network),
        )
        .unwrap();
        body()
    };
    thread::spawn(body).join().unwrap()
}

/// How long a packet may take that is expected.
pub const PATIENCE: Duration = Duration::from_secs(3);
