//! ESP through the kernel's GRO and GSO: modules `esp4_offload` and `esp6_offload`.
//!
//! With them a packet of an SA is decrypted as soon as its NIC's driver hands it over, before netfilter and routing see
//! the ESP around it (`esp4_gro_receive`, since Linux 4.12), and a large TCP segment stays whole until its ESP packets
//! leave. No hardware takes part. What no SA fits goes the usual way. ESP in UDP does not take this way: it would need
//! a socket with `UDP_GRO` (Linux 6.7), and charon's has none.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

use netlink_packet_core::NLM_F_ACK;
use netlink_packet_xfrm::nlas::{AlgAead, UserOffloadDev};
use netlink_packet_xfrm::state::ModifyMessage;
use netlink_packet_xfrm::{UserSaInfo, XfrmAttrs, XfrmMessage};

use super::leftovers::{self, State, talk};

/// `XFRM_MODE_TUNNEL` of the kernel.
const TUNNEL: u8 = 1;

/// A flag of `XFRMA_OFFLOAD_DEV` that no kernel knows.
const UNKNOWN_FLAG: u8 = 0x80;

/// An SPI that charon does not choose (below 0xc0000000), and addresses that nobody has (RFC 5737, RFC 3849).
const SPI: u32 = 0x0fab_ed9e;
const NOBODY: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)),
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)),
];

/// Has the kernel load both modules, and says which of them it has as modules.
///
/// The kernel loads them itself when an SA asks for a device that encrypts, so this needs neither `CAP_SYS_MODULE` nor
/// the modules' files. The SA with which we ask has a flag for which it is refused afterwards. A kernel without the
/// modules has refused it before: then packets take the usual way.
pub fn load() -> Vec<&'static str> {
    for nobody in NOBODY {
        if talk(XfrmMessage::AddSa(request(nobody)), NLM_F_ACK, |_| {}).is_ok() {
            // A kernel that does not look at the flag.
            let state = State {
                destination: nobody,
                spi: SPI,
                protocol: libc::IPPROTO_ESP as u8,
                reqid: 0,
            };
            if let Err(error) = leftovers::delete_state(&state) {
                tracing::warn!(%error, "an SA that is of no use is left in the kernel");
            }
        }
    }
    let mut modules = vec!["esp4_offload", "esp6_offload"];
    modules.retain(|name| fs::exists(Path::new("/sys/module").join(name)).unwrap_or(false));
    modules
}

fn request(nobody: IpAddr) -> ModifyMessage {
    let mut sa = UserSaInfo {
        mode: TUNNEL,
        ..UserSaInfo::default()
    };
    sa.source(&nobody);
    sa.destination(&nobody);
    sa.id.spi = SPI;
    sa.id.proto = libc::IPPROTO_ESP as u8;
    let mut cipher = AlgAead {
        alg_name: [0; _],
        // AES-128 and the salt.
        alg_key_len: 160,
        alg_icv_len: 128,
        alg_key: vec![0; 20],
    };
    let name = b"rfc4106(gcm(aes))";
    cipher.alg_name[..name.len()].copy_from_slice(name);
    let device = UserOffloadDev {
        ifindex: 1,
        flags: UNKNOWN_FLAG,
    };
    ModifyMessage {
        user_sa_info: sa,
        nlas: vec![
            XfrmAttrs::EncryptionAlgAead(cipher),
            XfrmAttrs::OffloadDevice(device),
        ],
    }
}
