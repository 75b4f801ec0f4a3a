//! The programs: loaded once per agent, attached to devices in a way that outlives the agent.

use std::borrow::Cow;

use aya::programs::links::{FdLink, LinkError, PinnedLink};
use aya::programs::tc::{self, NlOptions, SchedClassifierLink, TcAttachOptions, TcError, TcHandle};
use aya::programs::xdp::{XdpLink, XdpMode};
use aya::programs::{Link, LinkOrder, ProgramError, ProgramFd, SchedClassifier, TcAttachType, Xdp};
use aya::util::nr_cpus;
use aya::{Ebpf, EbpfError, EbpfLoader};
use fabedge_common::abi::map;

use super::bpffs::{self, Pinboard};
use crate::desired::datapath::{Entry, Hook};

/// Preference of our filters on kernels without TCX: ahead of what the kernel numbers by itself (from 49152 down).
pub const PRIORITY: u16 = 250;

/// Handle of our filters on kernels without TCX: the mark by which we know them.
pub const HANDLE: u16 = 0xfabe;

/// The program that takes packets out of a CPU's queue.
const UPLINK_CPU: &str = "uplink_cpu";

/// How TC programs hang on a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// TCX links, pinned (Linux 6.6 and later).
    Tcx,
    /// Filters of the `clsact` qdisc, which stay without a pin.
    Clsact,
}

impl Mode {
    /// What this kernel has.
    pub fn detect() -> Self {
        match SchedClassifier::query_tcx("lo", TcAttachType::Ingress) {
            Ok(_) => Self::Tcx,
            Err(_) => Self::Clsact,
        }
    }
}

/// Why a program is not where it should be.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The object as a whole.
    #[error("loading the eBPF object")]
    Object(#[from] EbpfError),
    /// The object has no such program.
    #[error("the eBPF object has no program {0}")]
    Missing(&'static str),
    /// The kernel refused a program.
    #[error("loading the program {name}")]
    Load {
        /// The program.
        name: &'static str,
        /// Why.
        source: ProgramError,
    },
    /// Attaching or replacing.
    #[error("attaching")]
    Attach(#[source] ProgramError),
    /// The qdisc that filters hang on.
    #[error("adding the qdisc clsact")]
    Qdisc(#[source] TcError),
    /// Another qdisc in its place.
    #[error(
        "attaching to egress: the device has an `ingress` qdisc, which excludes `clsact`; remove it, or use Linux 6.6 or \
         later, which needs neither (until then its pod stays on the slow path)"
    )]
    Excluded(#[source] ProgramError),
    /// A link.
    #[error("the link")]
    Link(#[source] LinkError),
    /// A device that is gone.
    #[error("the device")]
    Device(#[source] std::io::Error),
    /// Pinning a link.
    #[error("pinning the link")]
    Pin(#[source] aya::pin::PinError),
    /// The BPF file system.
    #[error(transparent)]
    Bpffs(#[from] bpffs::Error),
    /// The number of CPUs.
    #[error("reading {file}")]
    Cpus {
        /// Where it is told.
        file: &'static str,
        /// Why it failed.
        source: std::io::Error,
    },
}

/// The object in the kernel.
#[derive(Debug)]
pub struct Programs {
    ebpf: Ebpf,
    mode: Mode,
}

impl Programs {
    /// Loads the object. Maps that are pinned on `board` are used, the others are made and pinned there.
    ///
    /// # Errors
    /// When the kernel refuses maps or programs.
    pub fn load(object: &[u8], board: &Pinboard, mode: Mode) -> Result<Self, Error> {
        let cpus = nr_cpus().map_err(|(file, source)| Error::Cpus { file, source })?;
        let mut loader = EbpfLoader::new();
        loader.map_max_entries(map::CPUS, cpus as u32);
        for name in map::ALL {
            loader.map_pin_path(name, Cow::Owned(board.map(name)));
        }
        let mut programs = Self {
            ebpf: loader.load(object)?,
            mode,
        };
        // The others are loaded with the hook that needs them: a kernel without IPsec knows no `tunnel_ingress`.
        for entry in [Entry::PodEgress, Entry::PodIngress, Entry::TunnelEgress] {
            programs.program(entry)?;
        }
        Ok(programs)
    }

    fn program(&mut self, entry: Entry) -> Result<&mut SchedClassifier, Error> {
        let name = entry.name();
        let failed = |source| Error::Load { name, source };
        let program = self.ebpf.program_mut(name).ok_or(Error::Missing(name))?;
        let program: &mut SchedClassifier = program.try_into().map_err(failed)?;
        if program.fd().is_err() {
            program.load().map_err(failed)?;
        }
        Ok(program)
    }

    fn xdp(&mut self, name: &'static str) -> Result<&mut Xdp, Error> {
        let failed = |source| Error::Load { name, source };
        let program = self.ebpf.program_mut(name).ok_or(Error::Missing(name))?;
        let program: &mut Xdp = program.try_into().map_err(failed)?;
        if program.fd().is_err() {
            program.load().map_err(failed)?;
        }
        Ok(program)
    }

    /// The program that takes packets out of a CPU's queue.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub fn uplink_cpu(&mut self) -> Result<&ProgramFd, Error> {
        self.xdp(UPLINK_CPU)?.fd().map_err(Error::Attach)
    }

    /// Attaches a program where none of ours is.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn attach(&mut self, hook: &Hook, board: &Pinboard) -> Result<(), Error> {
        if hook.entry.is_xdp() {
            let program = self.xdp(hook.entry.name())?;
            // Generic XDP comes after GRO, and so after ESP is decrypted, and it copies packets.
            let id = program
                .attach_to_if_index(hook.ifindex, XdpMode::Driver)
                .map_err(Error::Attach)?;
            let link = program.take_link(id).map_err(Error::Attach)?;
            board.remove_link(hook)?;
            let link = FdLink::try_from(link).map_err(Error::Link)?;
            link.pin(board.link(hook)).map_err(Error::Pin)?;
            return Ok(());
        }
        let mode = self.mode;
        let (options, had_qdisc) = match mode {
            Mode::Tcx => (TcAttachOptions::TcxOrder(LinkOrder::first()), false),
            Mode::Clsact => (TcAttachOptions::Netlink(filter()), !add_clsact(&hook.device)?),
        };
        let program = self.program(hook.entry)?;
        let id = program
            .attach_with_options(&hook.device, direction(hook.entry), options)
            .map_err(|error| {
                // Both qdiscs have the same handle, and to add one where the other is fails as "exists".
                if had_qdisc && !hook.entry.on_ingress() {
                    Error::Excluded(error)
                } else {
                    Error::Attach(error)
                }
            })?;
        let link = program.take_link(id).map_err(Error::Attach)?;
        match mode {
            Mode::Tcx => {
                // A link to a device that had the same index leaves its pin behind.
                board.remove_link(hook)?;
                let link = FdLink::try_from(link).map_err(Error::Link)?;
                link.pin(board.link(hook)).map_err(Error::Pin)?;
            }
            // Dropping the link would remove the filter.
            Mode::Clsact => std::mem::forget(link),
        }
        Ok(())
    }

    /// Puts the loaded program in the place of the one that hangs there, without a gap.
    ///
    /// # Errors
    /// When the kernel refuses; the old program goes on then.
    pub fn replace(&mut self, hook: &Hook, board: &Pinboard) -> Result<(), Error> {
        if hook.entry.is_xdp() {
            let pinned = PinnedLink::from_pin(board.link(hook)).map_err(Error::Link)?;
            let link = XdpLink::try_from(FdLink::from(pinned)).map_err(Error::Link)?;
            let program = self.xdp(hook.entry.name())?;
            let id = program.attach_to_link(link).map_err(Error::Attach)?;
            // The pin holds it.
            drop(program.take_link(id).map_err(Error::Attach)?);
            return Ok(());
        }
        let mode = self.mode;
        let link = match mode {
            Mode::Tcx => {
                let pinned = PinnedLink::from_pin(board.link(hook)).map_err(Error::Link)?;
                SchedClassifierLink::try_from(FdLink::from(pinned)).map_err(Error::Link)?
            }
            Mode::Clsact => attached(hook)?,
        };
        let program = self.program(hook.entry)?;
        let id = program.attach_to_link(link).map_err(Error::Attach)?;
        let link = program.take_link(id).map_err(Error::Attach)?;
        match mode {
            // The pin holds it.
            Mode::Tcx => drop(link),
            Mode::Clsact => std::mem::forget(link),
        }
        Ok(())
    }
}

/// Takes our program off a device. Needs no loaded object.
///
/// # Errors
/// When the kernel refuses.
pub fn detach(hook: &Hook, board: &Pinboard, mode: Mode) -> Result<(), Error> {
    match mode {
        _ if hook.entry.is_xdp() => Ok(board.remove_link(hook)?),
        Mode::Tcx => Ok(board.remove_link(hook)?),
        Mode::Clsact => attached(hook)?.detach().map_err(Error::Attach),
    }
}

/// The direction of an entry point's hook.
pub fn direction(entry: Entry) -> TcAttachType {
    if entry.on_ingress() {
        TcAttachType::Ingress
    } else {
        TcAttachType::Egress
    }
}

fn filter() -> NlOptions {
    NlOptions {
        priority: PRIORITY,
        handle: TcHandle::new(0, HANDLE),
        classid: None,
    }
}

fn attached(hook: &Hook) -> Result<SchedClassifierLink, Error> {
    let NlOptions {
        priority,
        handle,
        classid,
    } = filter();
    SchedClassifierLink::attached(&hook.device, direction(hook.entry), priority, handle, classid)
        .map_err(Error::Device)
}

/// False if there was one.
fn add_clsact(device: &str) -> Result<bool, Error> {
    match tc::qdisc_add_clsact(device) {
        Ok(()) => Ok(true),
        Err(TcError::NetlinkError(error)) if error.raw_os_error() == Some(libc::EEXIST) => Ok(false),
        Err(error) => Err(Error::Qdisc(error)),
    }
}
