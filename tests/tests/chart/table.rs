//! Every value of the chart and one place where it shows.

use serde_json::{Value, json};

use crate::engine::{calico, guide, host, member, with};

/// A value and where it shows.
pub struct Effect {
    pub values: Value,
    pub path: &'static str,
    pub value: Value,
    pub object: &'static str,
    pub pointer: &'static str,
    pub shows: Value,
}

pub const SETTINGS: &str = "Settings";
pub const OPERATOR: &str = "Deployment/fabedge-operator";
pub const CONNECTOR: &str = "Deployment/fabedge-connector";
pub const CLOUD: &str = "DaemonSet/fabedge-cloud-agent";
const EDGE: &str = "PodTemplate/fabedge-agent";
const UNINSTALL: &str = "Job/fabedge-operator-uninstall";
const CONTAINER: &str = "/spec/template/spec/containers/0";

/// A value that is handed to the operator as it is.
fn setting(values: Value, path: &'static str, value: Value, pointer: &'static str) -> Effect {
    Effect {
        shows: value.clone(),
        ..shown(values, path, value, SETTINGS, pointer, Value::Null)
    }
}

fn shown(
    values: Value,
    path: &'static str,
    value: Value,
    object: &'static str,
    pointer: &'static str,
    shows: Value,
) -> Effect {
    Effect {
        values,
        path,
        value,
        object,
        pointer,
        shows,
    }
}

fn of_settings() -> Vec<Effect> {
    let v6 = with(&host(), "cluster.edgePodCIDR6", json!("fd00:10::/48"));
    let old_member = json!({"operator": {
        "cluster": {"name": "beijing", "role": "member"},
        "connectorPublicAddresses": ["10.20.8.12"],
        "hostOperatorAPIServer": "https://10.20.8.28:30303",
        "initToken": "a.b.c",
    }});
    let mut all = vec![
        setting(host(), "cluster.name", json!("shanghai"), "/spec/name"),
        setting(guide(), "operator.cluster.name", json!("shanghai"), "/spec/name"),
        setting(member(), "cluster.role", json!("member"), "/spec/role"),
        setting(
            old_member.clone(),
            "operator.cluster.role",
            json!("member"),
            "/spec/role",
        ),
        setting(
            host(),
            "cluster.edgePodCIDR",
            json!("10.9.0.0/16"),
            "/spec/edgePodCIDR",
        ),
        setting(
            guide(),
            "operator.edgePodCIDR",
            json!("10.9.0.0/16"),
            "/spec/edgePodCIDR",
        ),
    ];
    for (values, path) in [
        (host(), "cluster.connectorPublicAddresses"),
        (guide(), "operator.connectorPublicAddresses"),
    ] {
        let addresses = json!(["10.20.8.30", "connector.example.org"]);
        all.push(setting(values, path, addresses, "/spec/connectorPublicAddresses"));
    }
    for (values, path) in [
        (host(), "cluster.serviceClusterIPRange"),
        (guide(), "operator.serviceClusterIPRanges"),
    ] {
        all.push(setting(
            values,
            path,
            json!(["10.96.0.0/12"]),
            "/spec/serviceClusterIPRange",
        ));
    }
    for (values, path) in [(host(), "cluster.edgeLabels"), (guide(), "operator.edgeLabels")] {
        all.push(setting(values, path, json!(["a", "b=c"]), "/spec/edgeLabels"));
    }
    for (values, path) in [
        (member(), "cluster.operatorAPIServer"),
        (old_member.clone(), "operator.hostOperatorAPIServer"),
    ] {
        all.push(setting(
            values,
            path,
            json!("https://h.example.org:443"),
            "/spec/operatorAPIServer",
        ));
    }
    for (values, path) in [
        (member(), "cluster.initToken"),
        (old_member, "operator.initToken"),
    ] {
        // base64 of d.e.f
        let secret = "Secret/fabedge-operator-init-token";
        all.push(shown(
            values,
            path,
            json!("d.e.f"),
            secret,
            "/data/token",
            json!("ZC5lLmY="),
        ));
    }
    let listen = "/spec/apiListen";
    all.extend([
        setting(host(), "cluster.cniType", json!("flannel"), "/spec/cniType"),
        setting(
            host(),
            "cluster.edgePodCIDR6",
            json!("fd00:10::/48"),
            "/spec/edgePodCIDR6",
        ),
        setting(
            calico(),
            "cluster.edgeCIDRMaskSize",
            json!(26),
            "/spec/edgeCIDRMaskSize",
        ),
        setting(
            v6,
            "cluster.edgeCIDRMaskSize6",
            json!(72),
            "/spec/edgeCIDRMaskSize6",
        ),
        setting(
            host(),
            "cluster.connectorPublicPort",
            json!(45000),
            "/spec/connectorPublicPort",
        ),
        setting(
            host(),
            "cluster.connectorNodeAddresses",
            json!(["10.20.8.28"]),
            "/spec/connectorNodeAddresses",
        ),
        setting(
            host(),
            "cluster.clusterCIDR",
            json!(["10.233.64.0/18"]),
            "/spec/clusterCIDR",
        ),
        setting(
            host(),
            "cluster.connectorLabels",
            json!(["a", "b="]),
            "/spec/connectorLabels",
        ),
        setting(host(), "cluster.edgeToEdge", json!("relay"), "/spec/edgeToEdge"),
        setting(
            member(),
            "cluster.operatorCAHash",
            json!("0f".repeat(32)),
            "/spec/operatorCAHash",
        ),
        setting(
            calico(),
            "operator.autoKeepIPPools",
            json!(false),
            "/spec/autoKeepIPPools",
        ),
        shown(
            host(),
            "operator.operatorAPIServer.listenAddress.address",
            json!("::"),
            SETTINGS,
            listen,
            json!("[::]:3030"),
        ),
        shown(
            host(),
            "operator.operatorAPIServer.listenAddress.port",
            json!(3031),
            SETTINGS,
            listen,
            json!("0.0.0.0:3031"),
        ),
    ]);
    all
}

fn of_workloads() -> Vec<Effect> {
    let prefers = json!({"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": []}});
    let anti = "/spec/template/spec/affinity/podAntiAffinity";
    let anti_shows = json!({"preferredDuringSchedulingIgnoredDuringExecution": []});
    let resources = json!({"limits": {"memory": "99Mi"}});
    let tolerations = json!([{"key": "node-role.kubernetes.io/master", "effect": "NoSchedule"}]);
    let rolling = json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0}});
    vec![
        shown(
            host(),
            "operator.name",
            json!("op"),
            "Deployment/op",
            "/metadata/name",
            json!("op"),
        ),
        shown(
            host(),
            "connector.name",
            json!("co"),
            "Deployment/co",
            "/metadata/name",
            json!("co"),
        ),
        shown(
            host(),
            "cloudAgent.name",
            json!("ca"),
            "DaemonSet/ca",
            "/metadata/name",
            json!("ca"),
        ),
        shown(
            host(),
            "operator.replicas",
            json!(3),
            OPERATOR,
            "/spec/replicas",
            json!(3),
        ),
        shown(
            host(),
            "connector.replicas",
            json!(0),
            CONNECTOR,
            "/spec/replicas",
            json!(0),
        ),
        shown(
            host(),
            "connector.strategy",
            rolling.clone(),
            CONNECTOR,
            "/spec/strategy/rollingUpdate",
            rolling["rollingUpdate"].clone(),
        ),
        shown(
            host(),
            "connector.syncPeriod",
            json!("1m5s"),
            CONNECTOR,
            "/spec/template/spec/containers/0/args/2",
            json!("--resync=65"),
        ),
        shown(
            host(),
            "operator.affinity",
            prefers.clone(),
            OPERATOR,
            anti,
            anti_shows.clone(),
        ),
        shown(
            host(),
            "connector.affinity",
            prefers.clone(),
            CONNECTOR,
            anti,
            anti_shows.clone(),
        ),
        shown(host(), "cloudAgent.affinity", prefers, CLOUD, anti, anti_shows),
        shown(
            host(),
            "operator.resources",
            resources.clone(),
            OPERATOR,
            "/spec/template/spec/containers/0/resources/limits/memory",
            json!("99Mi"),
        ),
        shown(
            host(),
            "agent.resources",
            resources.clone(),
            EDGE,
            "/template/spec/containers/0/resources/limits/memory",
            json!("99Mi"),
        ),
        shown(
            host(),
            "agent.resources",
            resources.clone(),
            CONNECTOR,
            "/spec/template/spec/containers/0/resources/limits/memory",
            json!("99Mi"),
        ),
        shown(
            host(),
            "strongswan.resources",
            resources.clone(),
            EDGE,
            "/template/spec/containers/1/resources/limits/memory",
            json!("99Mi"),
        ),
        shown(
            host(),
            "strongswan.resources",
            resources.clone(),
            CONNECTOR,
            "/spec/template/spec/containers/1/resources/limits/memory",
            json!("99Mi"),
        ),
        shown(
            host(),
            "cloudAgent.resources",
            resources.clone(),
            CLOUD,
            "/spec/template/spec/containers/0/resources/limits/memory",
            json!("99Mi"),
        ),
        shown(
            host(),
            "cloudAgent.tolerations",
            tolerations.clone(),
            CLOUD,
            "/spec/template/spec/tolerations",
            tolerations,
        ),
        shown(
            host(),
            "operator.service.nodePort",
            json!(31000),
            "Service/fabedge-operator",
            "/spec/ports/0/nodePort",
            json!(31000),
        ),
        shown(
            guide(),
            "operator.operatorAPIServer.nodePort",
            json!(31000),
            "Service/fabedge-operator",
            "/spec/ports/0/nodePort",
            json!(31000),
        ),
        shown(
            host(),
            "strongswan.tunnel",
            json!("libipsec"),
            CONNECTOR,
            "/spec/template/spec/containers/1/env/0/value",
            json!("/etc/strongswan-libipsec.conf"),
        ),
        shown(
            host(),
            "strongswan.tunnel",
            json!("libipsec"),
            EDGE,
            "/template/spec/containers/1/securityContext/privileged",
            json!(true),
        ),
        shown(
            host(),
            "agent.privileged",
            json!(false),
            EDGE,
            "/template/spec/containers/0/securityContext/capabilities/add",
            json!(lab::lab::AGENT_CAPABILITIES),
        ),
        shown(
            host(),
            "operator.masqOutgoing",
            json!(false),
            EDGE,
            "/template/spec/containers/0/args/2",
            json!("--masq-outgoing=false"),
        ),
        shown(
            host(),
            "agent.args.MASQ_OUTGOING",
            json!("false"),
            EDGE,
            "/template/spec/containers/0/args/2",
            json!("--masq-outgoing=false"),
        ),
        shown(
            host(),
            "agent.args.LOG",
            json!("debug"),
            EDGE,
            "/template/spec/containers/0/args/1",
            json!("--log=debug"),
        ),
        shown(
            host(),
            "agent.args.TUNNEL",
            json!("xfrm"),
            EDGE,
            "/template/spec/containers/0/args/1",
            json!("--tunnel=xfrm"),
        ),
        // What YAML makes of `FAST_PATH: off`.
        shown(
            host(),
            "agent.args.FAST_PATH",
            json!(false),
            CLOUD,
            "/spec/template/spec/containers/0/args/2",
            json!("--fast-path=off"),
        ),
        shown(
            host(),
            "agent.args.FAST_PATH",
            json!("off"),
            CONNECTOR,
            "/spec/template/spec/containers/0/args/2",
            json!("--fast-path=off"),
        ),
        shown(
            host(),
            "agent.args.SPREAD_ESP",
            json!(true),
            CONNECTOR,
            "/spec/template/spec/containers/0/args/2",
            json!("--spread-esp=on"),
        ),
        shown(
            host(),
            "agent.args.RESYNC",
            json!(7),
            CLOUD,
            "/spec/template/spec/containers/0/args/2",
            json!("--resync=7"),
        ),
        shown(
            host(),
            "uninstall.timeout",
            json!("1m30s"),
            UNINSTALL,
            "/spec/template/spec/containers/0/args/4",
            json!("90"),
        ),
        shown(
            host(),
            "agent.args.METRICS_LISTEN",
            json!("[::]:9000"),
            EDGE,
            "/template/spec/containers/0/readinessProbe/httpGet/host",
            json!("::1"),
        ),
        shown(
            host(),
            "agent.args.METRICS_LISTEN",
            json!("0.0.0.0:9000"),
            CLOUD,
            "/spec/template/spec/containers/0/livenessProbe/httpGet/port",
            json!(9000),
        ),
    ]
}

fn of_images() -> Vec<Effect> {
    let (edge, swan) = ("/template/spec/containers/0", "/template/spec/containers/1");
    let uninstall = "/spec/template/spec/containers/0/image";
    let mut all = vec![shown(
        host(),
        "operator.image.tag",
        json!("edge"),
        UNINSTALL,
        uninstall,
        json!("fabedge/operator:edge"),
    )];
    for (object, container, paths, plain) in [
        (
            OPERATOR,
            CONTAINER,
            [
                "operator.image.repository",
                "operator.image.tag",
                "operator.image.pullPolicy",
            ],
            "fabedge/operator",
        ),
        (
            EDGE,
            edge,
            [
                "agent.image.repository",
                "agent.image.tag",
                "agent.image.pullPolicy",
            ],
            "fabedge/agent",
        ),
        (
            EDGE,
            swan,
            [
                "strongswan.image.repository",
                "strongswan.image.tag",
                "strongswan.image.pullPolicy",
            ],
            "fabedge/strongswan",
        ),
    ] {
        let version = env!("CARGO_PKG_VERSION");
        for (path, value, field, shows) in [
            (
                paths[0],
                json!("registry.example.org/x"),
                "image",
                json!(format!("registry.example.org/x:{version}")),
            ),
            (paths[1], json!("edge"), "image", json!(format!("{plain}:edge"))),
            (paths[2], json!("Never"), "imagePullPolicy", json!("Never")),
        ] {
            let pointer: &'static str = format!("{container}/{field}").leak();
            all.push(shown(host(), path, value, object, pointer, shows));
        }
    }
    all
}

pub fn effects() -> Vec<Effect> {
    of_settings()
        .into_iter()
        .chain(of_workloads())
        .chain(of_images())
        .collect()
}
