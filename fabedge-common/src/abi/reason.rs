//! Why a packet went where it went: one table for the programs that count and for the agent that names.

/// What happened to a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// Redirected past the stack.
    Fast,
    /// Left to the stack.
    Stack,
    /// Dropped.
    Drop,
}

impl Verdict {
    /// The name in metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Fast => "fast",
            Self::Stack => "stack",
            Self::Drop => "drop",
        }
    }
}

/// The programs that count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u32)]
pub enum Program {
    /// TC ingress of the host side of a pod's veth: packets that a pod sends.
    PodEgress = 0,
    /// TC ingress of the tunnel device: packets that came out of a tunnel.
    TunnelIngress = 1,
    /// TC egress of the tunnel device: packets on their way into a tunnel.
    TunnelEgress = 2,
    /// TC egress of the host side of a pod's veth: packets that the stack delivers to a pod.
    PodIngress = 3,
    /// XDP on an uplink, and in the queues of CPUs: ESP on its way to its CPU.
    UplinkXdp = 4,
}

impl Program {
    /// All of them, by number.
    pub const ALL: [Self; 5] = [
        Self::PodEgress,
        Self::TunnelIngress,
        Self::TunnelEgress,
        Self::PodIngress,
        Self::UplinkXdp,
    ];

    /// The name in metrics and of the entry point.
    pub const fn name(self) -> &'static str {
        match self {
            Self::PodEgress => "pod_egress",
            Self::TunnelIngress => "tunnel_ingress",
            Self::TunnelEgress => "tunnel_egress",
            Self::PodIngress => "pod_ingress",
            Self::UplinkXdp => "uplink_xdp",
        }
    }
}

macro_rules! reasons {
    ($($(#[$doc:meta])* $variant:ident = $name:literal => $verdict:ident,)+) => {
        /// Why a packet got its verdict.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        #[repr(u32)]
        pub enum Reason {
            $($(#[$doc])* $variant,)+
        }

        impl Reason {
            /// All of them, by number.
            pub const ALL: &[Self] = &[$(Self::$variant,)+];

            /// The name in metrics.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }

            /// The verdict that goes with it.
            pub const fn verdict(self) -> Verdict {
                match self { $(Self::$variant => Verdict::$verdict,)+ }
            }
        }
    };
}

reasons! {
    /// Into the tunnel.
    Tunnel = "tunnel" => Fast,
    /// Into the pod.
    Pod = "pod" => Fast,
    /// Neither IPv4 nor IPv6.
    NotIp = "not_ip" => Stack,
    /// Shorter than its headers say, or headers that contradict themselves.
    Malformed = "malformed" => Stack,
    /// IPv4 options or IPv6 extension headers.
    Options = "ip_options" => Stack,
    /// A fragment: only the first has ports.
    Fragment = "fragment" => Stack,
    /// To a group, to all, or to an address of one link only.
    Multicast = "multicast" => Stack,
    /// TTL or hop limit 1: the stack answers the sender.
    Ttl = "ttl" => Stack,
    /// ICMP other than echo: it may speak of a flow that the stack translates.
    IcmpControl = "icmp_control" => Stack,
    /// The destination is no peer's.
    NoRoute = "no_route" => Stack,
    /// A prefix that the stack translates or filters.
    StackPrefix = "stack_prefix" => Stack,
    /// From a pod's interface, but not with an address of that pod.
    ForeignSource = "foreign_source" => Stack,
    /// Too big for the tunnel: the stack fragments it or answers the sender.
    OverMtu = "over_mtu" => Stack,
    /// Of a flow that the stack carries.
    StackFlow = "stack_flow" => Stack,
    /// From or to a pod that is new here.
    Learning = "learning" => Stack,
    /// From or to a pod whose bandwidth is limited.
    Shaped = "shaped" => Stack,
    /// The destination is no pod of this node.
    NoPod = "no_pod" => Stack,
    /// Out of the tunnel, from no peer's prefix: the kernel's own policy check decides.
    UnknownSource = "unknown_source" => Stack,
    /// The packet could not be rewritten (memory).
    Rewrite = "rewrite_failed" => Stack,
    /// Seen leaving the stack: nothing to remember about it.
    Carried = "carried" => Stack,
    /// Seen leaving the stack: its flow was remembered for the first time.
    Recorded = "flow_recorded" => Stack,
    /// Out of the tunnel, with the source of one peer and by the SA of another.
    SpoofedSource = "spoofed_source" => Drop,
    /// On the xfrm interface, but decrypted by no SA.
    NoSa = "no_sa" => Drop,
    /// ESP for another CPU, put into its queue.
    OtherCpu = "other_cpu" => Fast,
    /// ESP that came out of a CPU's queue. What went in and did not come out found the queue full.
    Arrived = "arrived" => Stack,
    /// ESP for the CPU on which it is.
    ThisCpu = "this_cpu" => Stack,
    /// ESP to this node, of no SA that is known: it is new, or not ours.
    UnknownSa = "unknown_sa" => Stack,
    /// ESP to this node that can be no SA's: too short, or with an SPI that is reserved.
    MalformedEsp = "malformed_esp" => Drop,
}

impl Reason {
    /// Number of entries of the map `stats`.
    pub const ENTRIES: usize = Program::ALL.len() * Self::ALL.len();

    /// The key in the map `stats`.
    #[inline(always)]
    pub const fn index(self, program: Program) -> u32 {
        program as u32 * Self::ALL.len() as u32 + self as u32
    }
}
