//! How we know our own: everything that the agent creates carries one of these, and it deletes only what does.

/// `if_id` of the xfrm interface and of every SA and policy that belongs to it.
pub const IF_ID: u32 = 0xfabe;

/// The xfrm interface.
pub const XFRM_DEVICE: &str = "fabedge0";

/// The TUN that charon's kernel-libipsec plugin makes. charon's, not ours: used, never deleted.
pub const LIBIPSEC_DEVICE: &str = "ipsec0";

/// The bridge that the CNI plugin makes for local pods.
pub const BRIDGE: &str = "br-fabedge";

/// Alias of another CNI's interface that was set down because it held an address of this node's pods.
pub const ASIDE_ALIAS: &str = "set down by fabedge";

/// `rtm_protocol` of our routes and rules (an unassigned number of `/etc/iproute2/rt_protos`).
pub const ROUTE_PROTOCOL: u8 = 0xfa;

/// Table for peers' pod and service prefixes, looked up for everybody (strongSwan's number, which the
/// troubleshooting guide names).
pub const POD_TABLE: u32 = 220;

/// Table for remote node addresses, looked up for local pods only.
pub const NODE_TABLE: u32 = 221;

/// Table by which [`crate::paths`] sends, for packets that are larger than the routes of the others say.
pub const PROBE_TABLE: u32 = 219;

/// Priority of the rules for [`PROBE_TABLE`]: before those for everybody.
pub const PROBE_RULE_PRIORITY: u32 = 219;

/// Priority of the rule for [`POD_TABLE`]; the one for [`NODE_TABLE`] follows.
pub const POD_RULE_PRIORITY: u32 = 220;

/// Priority of the rules for [`NODE_TABLE`].
pub const NODE_RULE_PRIORITY: u32 = 221;

/// The nftables table (family inet), and the iptables chain behind our one FORWARD jump.
pub const NFT_TABLE: &str = "fabedge";

/// The iptables chain that our one jump in FORWARD leads to.
pub const IPTABLES_CHAIN: &str = "FABEDGE-FORWARD";

/// Mark of the packets that measure paths, in a byte that kube-proxy, Calico and Cilium leave alone.
pub const PROBE_MARK: u32 = 0xdf;

/// Prefix of VICI connection names.
pub const CONNECTION_PREFIX: &str = "fabedge-";

/// Directory of pinned maps and links.
pub const BPF_DIR: &str = "/sys/fs/bpf/fabedge";

/// The bridge, never up, that holds addresses for charon's kernel-libipsec; see [`crate::tunnels::anchors`].
pub const ANCHOR_DEVICE: &str = "fabedge-anchor";

/// The table, never looked up, to which charon's kernel-libipsec writes its routes.
pub const ANCHOR_TABLE: u32 = 64250;
