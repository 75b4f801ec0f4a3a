//! What the chart renders, as the API server takes it.

use serde_json::json;

use crate::cluster::{Cluster, calico, flannel, guide, member};

/// Every field is known and every value taken, whichever way they are sent: `kubectl apply` and Helm 3 leave the merging
/// to the client, Helm 4 to the server.
#[test]
fn the_server_takes_everything_that_is_rendered() {
    let cluster = Cluster::new();
    cluster.sh("kubectl create namespace fabedge");
    let mut busy = calico();
    busy["strongswan"] = json!({"tunnel": "libipsec"});
    busy["agent"] = json!({"args": {
        "LOG": "debug", "FAST_PATH": "off", "TUNNEL": "libipsec", "RESYNC": 60, "METRICS_LISTEN": "0.0.0.0:9000",
    }});
    busy["cloudAgent"] = json!({
        "tolerations": [{"operator": "Exists"}], "resources": {"limits": {"memory": "99Mi"}},
    });
    for values in [guide(), flannel(), calico(), member(), busy] {
        cluster.values(&values);
        let lint = cluster.sh("helm lint --strict charts/fabedge -n fabedge -f values.yaml");
        assert!(lint.contains("1 chart(s) linted, 0 chart(s) failed"), "{lint}");
        cluster.sh("helm template fabedge charts/fabedge -n fabedge -f values.yaml > rendered.yaml");
        let text = std::fs::read_to_string(cluster.folder().join("rendered.yaml")).unwrap();
        let objects = text.lines().filter(|line| line.starts_with("kind: ")).count();
        for how in ["", "--server-side"] {
            let said = cluster.sh(&format!(
                "kubectl apply {how} --dry-run=server --validate=true -f rendered.yaml"
            ));
            assert_eq!(said.matches("(server dry run)").count(), objects, "{said}");
        }
    }
}

/// The least that must be able to fail.
#[test]
fn lint_complains_of_what_is_wrong() {
    let cluster = Cluster::new();
    let mut values = guide();
    values["operator"]["edgePodCidr"] = json!("10.10.0.0/16");
    cluster.values(&values);
    let said = cluster.try_sh("helm lint --strict charts/fabedge -f values.yaml");
    assert!(!said.works && said.text.contains("edgePodCidr"), "{}", said.text);
    let said =
        cluster.try_sh("helm install fabedge charts/fabedge --create-namespace -n fabedge -f values.yaml");
    assert!(!said.works && said.text.contains("edgePodCidr"), "{}", said.text);
    // Nothing has been changed.
    let said = cluster.try_sh("kubectl get namespace fabedge");
    assert!(said.text.contains("not found"), "{}", said.text);
}
