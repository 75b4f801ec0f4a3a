//! The configuration of a node: the files that it finds below its root. Pure.

use std::net::Ipv4Addr;

use super::layout::{CLUSTER_DOMAIN, Node};

/// Where the kubelet reads its configuration.
pub const KUBELET_CONFIG: &str = "/var/lib/kubelet/config.yaml";
/// How the kubelet reaches the API server.
pub const KUBELET_KUBECONFIG: &str = "/etc/kubernetes/kubelet.conf";
/// Where containerd reads its configuration.
pub const CONTAINERD_CONFIG: &str = "/etc/containerd/config.toml";
/// containerd's socket.
pub const CONTAINERD_SOCKET: &str = "/run/containerd/containerd.sock";
/// Whom the kubelet trusts.
const AUTHORITY: &str = "/etc/kubernetes/pki/ca.crt";

/// What the lab makes the files of a node of.
pub struct Given<'a> {
    /// The node.
    pub node: &'a Node,
    /// The authority's certificate.
    pub authority: &'a str,
    /// The kubelet's kubeconfig.
    pub kubeconfig: &'a str,
    /// The cluster's DNS.
    pub dns: Ipv4Addr,
    /// The image of pods' sandboxes.
    pub sandbox: &'a str,
}

/// Path and text of every file.
pub fn files(given: &Given<'_>) -> Vec<(&'static str, String)> {
    let name = given.node.name;
    vec![
        (KUBELET_CONFIG, kubelet(given.dns)),
        (KUBELET_KUBECONFIG, given.kubeconfig.to_owned()),
        (AUTHORITY, given.authority.to_owned()),
        (CONTAINERD_CONFIG, containerd(given.sandbox)),
        ("/etc/hostname", format!("{name}\n")),
        (
            "/etc/hosts",
            format!("127.0.0.1 localhost\n{} {name}\n", given.node.address),
        ),
        // There is no DNS.
        ("/etc/resolv.conf", "nameserver 127.0.0.1\n".to_owned()),
    ]
}

fn kubelet(dns: Ipv4Addr) -> String {
    format!(
        "apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication:
  anonymous: {{enabled: false}}
  webhook: {{enabled: true}}
  x509: {{clientCAFile: {AUTHORITY}}}
authorization: {{mode: Webhook}}
readOnlyPort: 0
cgroupDriver: cgroupfs
clusterDNS: [{dns}]
clusterDomain: {CLUSTER_DOMAIN}
enforceNodeAllocatable: []
failSwapOn: false
# A node is ready a second after its network is, and says what did not change once a minute.
nodeStatusUpdateFrequency: 1s
nodeStatusReportFrequency: 1m
# The disk of a developer's machine may be as full as it is.
imageGCHighThresholdPercent: 100
evictionHard: {{memory.available: 1Mi, nodefs.available: 1Mi, imagefs.available: 1Mi}}
"
    )
}

fn containerd(sandbox: &str) -> String {
    format!(
        r#"version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.devmapper"]
[grpc]
  address = "{CONTAINERD_SOCKET}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{sandbox}"
  stream_server_address = "127.0.0.1"
  disable_apparmor = true
  # Not every root may lower it.
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/opt/cni/bin"
    conf_dir = "/etc/cni/net.d"
"#
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::k8s::nodes::layout::HOST;

    #[test]
    fn a_kubelet_is_told_of_the_cluster() {
        let files = files(&Given {
            node: &HOST.nodes[0],
            authority: "CA",
            kubeconfig: "KUBECONFIG",
            dns: HOST.dns,
            sandbox: "test/pause:1",
        });
        let text = |wanted: &str| &files.iter().find(|(path, _)| *path == wanted).unwrap().1;
        assert!(text(KUBELET_CONFIG).contains("clusterDNS: [10.96.0.10]"));
        assert!(text(CONTAINERD_CONFIG).contains("sandbox_image = \"test/pause:1\""));
        assert_eq!(text(KUBELET_KUBECONFIG), "KUBECONFIG");
    }
}
