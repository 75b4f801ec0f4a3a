//! Values that fail `helm template`, and the words in which.

use serde_json::{Value, json};

use crate::engine::{Helm, calico, guide, host, member, with};

/// Paths of values that this version refuses whenever they would have an effect.
pub const REFUSED: [&str; 4] = [
    "cluster.region",
    "cluster.zone",
    "cluster.connectorAsMediator",
    // Every name that is not an option of the agent.
    "agent.args.*",
];

fn refused() -> Vec<(Value, &'static [&'static str])> {
    vec![
        (json!({}), &["cluster.name", "required"]),
        (
            json!({"cluster": {"name": "fabedge"}}),
            &["cluster.connectorPublicAddresses", "required"],
        ),
        // What there is not.
        (
            with(&host(), "cluster.region", json!("north")),
            &["cluster.region is \"north\"", "remove it"],
        ),
        (
            with(&host(), "cluster.zone", json!("n1")),
            &["cluster.zone is \"n1\"", "remove it"],
        ),
        (
            with(&host(), "cluster.connectorAsMediator", json!(true)),
            &["cluster.connectorAsMediator is true", "no mediator"],
        ),
        (
            with(&host(), "agent.args.ENABLE_PROXY", json!(true)),
            &["agent.args.ENABLE_PROXY is true"],
        ),
        (
            with(&host(), "agent.args.ENABLE_PROXY", json!("true")),
            &["agent.args.ENABLE_PROXY is \"true\""],
        ),
        (
            with(&host(), "agent.args.ENABLE_DNS", json!(true)),
            &["agent.args.ENABLE_DNS", "DNS server"],
        ),
        (
            with(&host(), "agent.args.DNS_CLUSTER_DOMAIN", json!("cluster.local")),
            &["agent.args.DNS_CLUSTER_DOMAIN is \"cluster.local\""],
        ),
        (
            with(&host(), "agent.args.AUTO_NETWORKING", json!("true")),
            &["agent.args.AUTO_NETWORKING", "Community"],
        ),
        (
            with(&host(), "agent.args.MULTICAST_TOKEN", json!("1b1bb5")),
            &["agent.args.MULTICAST_TOKEN"],
        ),
        (
            with(
                &host(),
                "agent.args.MULTICAST_ADDRESS",
                json!("239.40.20.81:18080"),
            ),
            &["agent.args.MULTICAST_ADDRESS"],
        ),
        (
            with(&host(), "agent.args.MULTICAST_INTERVAL", json!(5)),
            &["agent.args.MULTICAST_INTERVAL is 5"],
        ),
        (
            with(&host(), "agent.args.ENABLE_MAGIC", json!(true)),
            &["agent.args.ENABLE_MAGIC", "FAST_PATH"],
        ),
        (
            with(&host(), "connector.replicas", json!(2)),
            &["connector.replicas is 2", "more than one"],
        ),
        // What contradicts.
        (
            with(&calico(), "cluster.cniType", json!("flannel")),
            &["cluster.edgePodCIDR", "must not be set with Flannel"],
        ),
        (
            with(
                &with(&guide(), "operator.edgePodCIDR", json!("10.10.0.0/16")),
                "cluster.cniType",
                json!("flannel"),
            ),
            &["operator.edgePodCIDR", "must not be set with Flannel"],
        ),
        (
            with(&host(), "cluster.cniType", json!("calico")),
            &["cluster.edgePodCIDR", "required with Calico"],
        ),
        (
            with(&host(), "cluster.edgeCIDRMaskSize", json!(26)),
            &["cluster.edgeCIDRMaskSize", "no effect"],
        ),
        (
            with(&host(), "cluster.edgeCIDRMaskSize6", json!(64)),
            &["cluster.edgeCIDRMaskSize6", "no effect"],
        ),
        (
            with(
                &with(&host(), "cluster.cniType", json!("flannel")),
                "operator.autoKeepIPPools",
                json!(true),
            ),
            &["operator.autoKeepIPPools", "Calico"],
        ),
        (
            with(&host(), "cluster.initToken", json!("x")),
            &["cluster.initToken", "member"],
        ),
        (
            with(&guide(), "operator.initToken", json!("x")),
            &["operator.initToken", "member"],
        ),
        (
            with(&host(), "cluster.operatorAPIServer", json!("https://h:30303")),
            &["cluster.operatorAPIServer", "member"],
        ),
        (
            with(&host(), "cluster.operatorCAHash", json!("a".repeat(64))),
            &["cluster.operatorCAHash", "member"],
        ),
        (
            with(&member(), "cluster.initToken", json!("")),
            &["cluster.initToken", "required with the role member"],
        ),
        (
            with(&member(), "cluster.operatorAPIServer", json!("")),
            &["cluster.operatorAPIServer", "required with the role member"],
        ),
        (
            with(&member(), "operator.service.nodePort", json!(30303)),
            &["operator.service.nodePort", "host"],
        ),
        (
            with(&member(), "operator.operatorAPIServer.nodePort", json!(30303)),
            &["operator.operatorAPIServer.nodePort", "host"],
        ),
        (
            with(
                &member(),
                "operator.operatorAPIServer.listenAddress.port",
                json!(3030),
            ),
            &["operator.operatorAPIServer.listenAddress.port", "host"],
        ),
        (
            with(
                &member(),
                "operator.operatorAPIServer.listenAddress.address",
                json!("0.0.0.0"),
            ),
            &["operator.operatorAPIServer.listenAddress.address", "host"],
        ),
        // What is no value.
        (
            with(&host(), "cluster.nmae", json!("fabedge")),
            &["/cluster", "nmae"],
        ),
        (
            with(&host(), "operator.connectorLabels", json!(["a"])),
            &["/operator", "connectorLabels"],
        ),
        (
            with(&host(), "cluster.name", json!("Fab.Edge")),
            &["/cluster/name"],
        ),
        (with(&host(), "cluster.role", json!("guest")), &["/cluster/role"]),
        (
            with(&host(), "cluster.cniType", json!("cilium")),
            &["/cluster/cniType"],
        ),
        (
            with(&host(), "cluster.edgeLabels", json!(["=x"])),
            &["/cluster/edgeLabels/0"],
        ),
        (
            with(&host(), "cluster.connectorPublicPort", json!(0)),
            &["/cluster/connectorPublicPort"],
        ),
        (
            with(&member(), "cluster.operatorAPIServer", json!("http://h:30303")),
            &["/cluster/operatorAPIServer"],
        ),
        (
            with(&host(), "agent.args.FAST_PATH", json!("maybe")),
            &["/agent/args/FAST_PATH"],
        ),
        (
            with(&host(), "agent.args.SPREAD_ESP", json!(2)),
            &["/agent/args/SPREAD_ESP"],
        ),
        (
            with(&host(), "connector.syncPeriod", json!("soon")),
            &["/connector/syncPeriod"],
        ),
        (
            with(&host(), "connector.syncPeriod", json!("2h")),
            &["connector.syncPeriod is 2h", "1h"],
        ),
        (
            with(&host(), "connector.syncPeriod", json!("0s")),
            &["connector.syncPeriod is 0s"],
        ),
        (
            with(&host(), "uninstall.timeout", json!("9s")),
            &["uninstall.timeout is 9s", "10s to 1h"],
        ),
        (
            with(&host(), "uninstall.timeout", json!("61m")),
            &["uninstall.timeout is 61m", "10s to 1h"],
        ),
        (
            with(&host(), "uninstall.timeout", json!(120)),
            &["/uninstall/timeout"],
        ),
    ]
}

#[test]
fn each_is_refused_by_its_name() {
    let mut helm = Helm::start();
    for (values, words) in refused() {
        match helm.render(&values) {
            Ok(_) => panic!("{values} is accepted"),
            Err(error) => {
                for word in words {
                    assert!(error.contains(word), "{values}: {error:?} does not say {word:?}");
                }
            }
        }
    }
}

#[test]
fn what_would_be_without_effect_anyway_may_stand_there() {
    let mut helm = Helm::start();
    let plain = helm.objects(&host());
    for (path, value) in [
        ("cluster.region", json!("")),
        ("cluster.zone", json!("")),
        ("cluster.connectorAsMediator", json!(false)),
        ("cluster.initToken", json!("")),
        ("cluster.operatorAPIServer", json!("")),
        ("cluster.clusterCIDR", json!([])),
        ("agent.args.ENABLE_PROXY", json!(false)),
        ("agent.args.ENABLE_DNS", json!("false")),
        ("agent.args.AUTO_NETWORKING", json!("false")),
        ("agent.args.MULTICAST_TOKEN", json!("")),
    ] {
        assert!(helm.objects(&with(&host(), path, value)) == plain, "{path}");
    }
}
