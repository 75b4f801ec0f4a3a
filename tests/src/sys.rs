//! The few system calls for which no safe wrapper exists: changing a thread's namespaces, and a packet socket.
#![allow(
    unsafe_code,
    reason = "unshare(2) and AF_PACKET have no safe wrapper in the crates that we use"
)]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use rustix::thread::{LinkNameSpaceType, UnshareFlags};

/// `PACKET_IGNORE_OUTGOING` of linux/if_packet.h (Linux 4.20).
const PACKET_IGNORE_OUTGOING: i32 = 23;

/// `PACKET_STATISTICS` of linux/if_packet.h.
const PACKET_STATISTICS: i32 = 6;

/// `struct tpacket_stats` of linux/if_packet.h.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Statistics {
    packets: u32,
    drops: u32,
}

fn unshare(flags: UnshareFlags) -> io::Result<()> {
    // SAFETY: unsafe because CLONE_FILES could part the file descriptor table under other threads' feet; the
    // callers below never pass it.
    unsafe { rustix::thread::unshare_unsafe(flags) }.map_err(Into::into)
}

/// Puts the calling thread into a new, empty network namespace.
///
/// # Errors
/// What unshare(2) says.
pub fn new_network() -> io::Result<()> {
    unshare(UnshareFlags::NEWNET)
}

/// Puts the calling thread into a copy of its mount namespace.
///
/// # Errors
/// What unshare(2) says.
pub fn new_mounts() -> io::Result<()> {
    unshare(UnshareFlags::NEWNS)
}

/// Moves the calling thread into a network namespace.
///
/// # Errors
/// What setns(2) says.
pub fn enter_network(file: &File) -> io::Result<()> {
    use std::os::fd::AsFd;
    rustix::thread::move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))?;
    Ok(())
}

/// Moves the calling thread into a mount namespace; its root and working directory become that namespace's root.
///
/// # Errors
/// What unshare(2) or setns(2) say.
pub fn enter_mounts(file: &File) -> io::Result<()> {
    use std::os::fd::AsFd;
    // A thread that shares its root and working directory with others may not change its mount namespace.
    unshare(UnshareFlags::FS)?;
    rustix::thread::move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Mount))?;
    Ok(())
}

/// A socket that sees every packet which arrives on any interface of the network namespace in which it was made,
/// from the network header on.
#[derive(Debug)]
pub struct PacketSocket(OwnedFd);

/// What [`PacketSocket::receive`] got.
#[derive(Clone, Copy, Debug)]
pub struct Received {
    /// The EtherType.
    pub protocol: u16,
    /// How many bytes the packet has, which may be more than the buffer took.
    pub length: usize,
}

impl PacketSocket {
    /// Opens the socket in the calling thread's network namespace. Receiving gives up after 100 ms.
    ///
    /// # Errors
    /// What socket(2) or setsockopt(2) say.
    pub fn open() -> io::Result<Self> {
        let protocol = i32::from((libc::ETH_P_ALL as u16).to_be());
        // SAFETY: no pointers are passed; the result is checked before it is owned.
        let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, protocol) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: `fd` is a fresh file descriptor that nobody else owns.
        let socket = Self(unsafe { OwnedFd::from_raw_fd(fd) });
        socket.set(libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, &(64_i32 << 20))?;
        let wait = libc::timeval {
            tv_sec: 0,
            tv_usec: 100_000,
        };
        socket.set(libc::SOL_SOCKET, libc::SO_RCVTIMEO, &wait)?;
        socket.set(libc::SOL_PACKET, PACKET_IGNORE_OUTGOING, &1_i32)?;
        Ok(socket)
    }

    fn set<T: Copy>(&self, level: i32, option: i32, value: &T) -> io::Result<()> {
        // SAFETY: the pointer and the length describe `value`, which outlives the call.
        let result = unsafe {
            libc::setsockopt(
                self.0.as_raw_fd(),
                level,
                option,
                std::ptr::from_ref(value).cast(),
                size_of::<T>() as libc::socklen_t,
            )
        };
        if result == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    }

    /// Takes the next packet; none if there was none for 100 ms.
    ///
    /// # Errors
    /// What recvfrom(2) says.
    pub fn receive(&self, buffer: &mut [u8]) -> io::Result<Option<Received>> {
        // SAFETY: all-zero is a valid sockaddr_ll.
        let mut from: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        let mut from_len = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
        // SAFETY: buffer and address are valid for the lengths passed, and outlive the call.
        let length = unsafe {
            libc::recvfrom(
                self.0.as_raw_fd(),
                buffer.as_mut_ptr().cast(),
                buffer.len(),
                libc::MSG_TRUNC,
                std::ptr::from_mut(&mut from).cast(),
                &mut from_len,
            )
        };
        match usize::try_from(length) {
            Ok(length) => Ok(Some(Received {
                protocol: u16::from_be(from.sll_protocol),
                length,
            })),
            Err(_) => {
                let error = io::Error::last_os_error();
                match error.kind() {
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(None),
                    _ => Err(error),
                }
            }
        }
    }

    /// How many packets the kernel could not hand to this socket since the last call.
    ///
    /// # Errors
    /// What getsockopt(2) says.
    pub fn missed(&self) -> io::Result<u32> {
        let mut stats = Statistics::default();
        let mut len = size_of::<Statistics>() as libc::socklen_t;
        // SAFETY: the pointer and the length describe `stats`, which outlives the call.
        let result = unsafe {
            libc::getsockopt(
                self.0.as_raw_fd(),
                libc::SOL_PACKET,
                PACKET_STATISTICS,
                std::ptr::from_mut(&mut stats).cast(),
                &mut len,
            )
        };
        if result == 0 {
            Ok(stats.drops)
        } else {
            Err(io::Error::last_os_error())
        }
    }
}

/// SIGINT and SIGTERM, taken by whoever asks instead of ending the process.
#[derive(Debug)]
pub struct Signals(libc::sigset_t);

impl Signals {
    /// Blocks them in the calling thread and in those that it starts from now on.
    ///
    /// # Errors
    /// What pthread_sigmask(3) says.
    pub fn block() -> io::Result<Self> {
        // SAFETY: all-zero is a valid sigset_t, which sigemptyset then sets up.
        let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
        // SAFETY: the pointers are to `set`, which outlives the calls; the old mask is not asked for.
        let result = unsafe {
            libc::sigemptyset(&mut set);
            libc::sigaddset(&mut set, libc::SIGINT);
            libc::sigaddset(&mut set, libc::SIGTERM);
            libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut())
        };
        if result == 0 {
            Ok(Self(set))
        } else {
            Err(io::Error::from_raw_os_error(result))
        }
    }

    /// Whether one arrives within `wait`.
    pub fn arrived(&self, wait: std::time::Duration) -> bool {
        let wait = libc::timespec {
            tv_sec: wait.as_secs() as libc::time_t,
            tv_nsec: libc::c_long::from(wait.subsec_nanos()),
        };
        // SAFETY: set and time are valid and outlive the call; details of the signal are not asked for.
        unsafe { libc::sigtimedwait(&self.0, std::ptr::null_mut(), &wait) > 0 }
    }
}

/// Has a command started with SIGINT and SIGTERM unblocked, although the lab itself blocks them: a child inherits
/// the mask, and would be deaf to both.
pub fn unblock_signals(command: &mut std::process::Command) {
    use std::os::unix::process::CommandExt;
    // SAFETY: between fork and exec only async-signal-safe functions are called, and nothing is allocated.
    unsafe {
        command.pre_exec(|| {
            // SAFETY: all-zero is a valid sigset_t, which sigemptyset then sets up.
            let mut none: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&mut none);
            match libc::pthread_sigmask(libc::SIG_SETMASK, &none, std::ptr::null_mut()) {
                0 => Ok(()),
                error => Err(io::Error::from_raw_os_error(error)),
            }
        });
    }
}
