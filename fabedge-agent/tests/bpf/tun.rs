//! A TUN in the place of charon's: what the node sends into the tunnel is read here, what peers send is written here.
#![allow(
    unsafe_code,
    reason = "TUNSETIFF has no safe wrapper in the crates that we use"
)]

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::sandbox::run;

/// `IFF_TUN | IFF_NO_PI` of linux/if_tun.h.
const FLAGS: libc::c_short = 0x0001 | 0x1000;

/// The device, for as long as it is held.
pub struct Tun(File);

impl Tun {
    /// Makes the device in this thread's namespace.
    pub fn new(name: &str) -> Self {
        let path = "/dev/net/tun";
        if !std::path::Path::new(path).exists() {
            // A module in Debian's kernels; the device node comes with it.
            run("modprobe", "tun");
        }
        let file = File::options().read(true).write(true).open(path).unwrap();
        // SAFETY: all zero is a valid `ifreq`.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
            *to = from as libc::c_char;
        }
        request.ifr_ifru.ifru_flags = FLAGS;
        // SAFETY: TUNSETIFF reads and writes one `ifreq`, which lives until the call returns.
        let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
        assert_eq!(result, 0, "making {name}: {}", std::io::Error::last_os_error());
        Self(file)
    }

    /// Receives a packet as a peer would.
    pub fn send(&self, packet: &[u8]) {
        assert_eq!((&self.0).write(packet).unwrap(), packet.len());
    }

    /// The next packet that fits, within a time; others are passed over.
    pub fn receive(&self, patience: Duration, fits: impl Fn(&[u8]) -> bool) -> Option<Vec<u8>> {
        let deadline = Instant::now() + patience;
        let mut buffer = vec![0; 65_536];
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let timeout = Timespec {
                tv_sec: left.as_secs().cast_signed(),
                tv_nsec: left.subsec_nanos().into(),
            };
            let mut fds = [PollFd::new(&self.0, PollFlags::IN)];
            if poll(&mut fds, Some(&timeout)).unwrap() == 0 {
                return None;
            }
            let length = (&self.0).read(&mut buffer).unwrap();
            if fits(&buffer[..length]) {
                return Some(buffer[..length].to_vec());
            }
        }
    }
}
