//! The pod of an agent -> the pod that removes the agent's traces from its node. Pure.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, SecurityContext};

use crate::kubernetes::objects;

/// What its name begins with; the node's follows.
pub const PREFIX: &str = "fabedge-cleanup-";
/// Label `fabedge.io/app` of these pods.
pub const APP: &str = "fabedge-cleanup";

/// The program.
const AGENT: &str = "fabedge-agent";

/// Options of the agent that its subcommand `cleanup` has too: without the same paths it would look elsewhere.
const COMMON: [&str; 5] = ["log", "state-dir", "run-dir", "cni-conf-dir", "vici-socket"];

/// What such a pod is made of, whatever its node; none when there is no agent in `spec`.
pub fn spec(spec: &PodSpec) -> Option<PodSpec> {
    let is_agent = |container: &&Container| {
        let program = container.command.iter().flatten().next();
        program.is_some_and(|program| program.rsplit('/').next() == Some(AGENT))
    };
    let mut container = spec.containers.iter().find(is_agent)?.clone();
    let mut spec = spec.clone();
    // The node's own document and key, and an account's token: it needs none of them, and they may be gone already.
    let mut dropped = BTreeSet::new();
    if let Some(volumes) = &mut spec.volumes {
        volumes.retain(|volume| {
            let keep = volume.config_map.is_none() && volume.secret.is_none() && volume.projected.is_none();
            if !keep {
                dropped.insert(volume.name.clone());
            }
            keep
        });
    }
    if let Some(mounts) = &mut container.volume_mounts {
        mounts.retain(|mount| !dropped.contains(&mount.name));
    }
    let mut args = vec!["cleanup".to_owned()];
    args.extend(common(container.args.as_deref().unwrap_or_default()));
    container.args = Some(args);
    // However the agent ran: a pod of its own has neither its annotations nor the time for its misfortunes.
    container.security_context = Some(SecurityContext {
        privileged: Some(true),
        ..SecurityContext::default()
    });
    container.readiness_probe = None;
    container.liveness_probe = None;
    container.startup_probe = None;
    container.lifecycle = None;
    // Why it failed can then be told from its status.
    container.termination_message_policy = Some("FallbackToLogsOnError".to_owned());
    spec.containers = vec![container];
    spec.init_containers = None;
    spec.ephemeral_containers = None;
    spec.restart_policy = Some("Never".to_owned());
    spec.automount_service_account_token = Some(false);
    // Where it runs is given.
    spec.affinity = None;
    spec.node_selector = None;
    spec.node_name = None;
    // Set by the API server from the name of its class.
    spec.priority = None;
    spec.preemption_policy = None;
    Some(spec)
}

/// The pod of a node; `uid` is the node's.
pub fn pod(node: &str, uid: &str, spec: &PodSpec) -> Pod {
    let mut metadata = objects::of_node(format!("{PREFIX}{node}"), node, uid);
    metadata
        .labels
        .get_or_insert_default()
        .insert(objects::APP.to_owned(), APP.to_owned());
    Pod {
        metadata,
        spec: Some(PodSpec {
            node_name: Some(node.to_owned()),
            ..spec.clone()
        }),
        status: None,
    }
}

fn common(args: &[String]) -> Vec<String> {
    let mut kept = Vec::new();
    let mut args = args.iter().peekable();
    while let Some(arg) = args.next() {
        let Some(option) = arg.strip_prefix("--") else {
            continue;
        };
        let (name, joined) = match option.split_once('=') {
            Some((name, _)) => (name, true),
            None => (option, false),
        };
        if COMMON.contains(&name) {
            kept.push(arg.clone());
            kept.extend(args.next_if(|_| !joined).cloned());
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_cleanup_pod_is_the_agents_without_all_that_it_does_not_need() {
        let ran: PodSpec = serde_json::from_value(json!({
            "hostNetwork": true, "nodeName": "edge1", "priorityClassName": "system-node-critical", "priority": 2000001000,
            "serviceAccountName": "default", "tolerations": [{"operator": "Exists"}],
            "affinity": {"nodeAffinity": {}},
            "initContainers": [{"name": "environment-prepare", "image": "agent:1"}],
            "containers": [
                {"name": "strongswan", "image": "strongswan:1"},
                {
                    "name": "agent", "image": "agent:1", "command": ["fabedge-agent"],
                    "args": ["edge", "--log=debug", "--resync", "30", "--state-dir", "/data", "--tunnel=xfrm"],
                    "securityContext": {"privileged": true},
                    "readinessProbe": {"httpGet": {"port": 1}}, "livenessProbe": {"httpGet": {"port": 1}},
                    "volumeMounts": [
                        {"name": "config", "mountPath": "/etc/fabedge"},
                        {"name": "state", "mountPath": "/data"},
                        {"name": "default-token-x", "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount"},
                    ],
                },
            ],
            "volumes": [
                {"name": "config", "configMap": {"name": "fabedge-agent-config-edge1"}},
                {"name": "state", "hostPath": {"path": "/var/lib/fabedge"}},
                {"name": "default-token-x", "secret": {"secretName": "default-token-x"}},
            ],
        }))
        .unwrap();
        let made = pod("edge1", "n", &spec(&ran).unwrap());
        assert_eq!(
            serde_json::to_value(&made).unwrap(),
            json!({
                "apiVersion": "v1", "kind": "Pod",
                "metadata": {
                    "name": "fabedge-cleanup-edge1",
                    "labels": {
                        "fabedge.io/app": "fabedge-cleanup", "fabedge.io/created-by": "fabedge-operator",
                        "fabedge.io/node": "edge1",
                    },
                    "ownerReferences": [{"apiVersion": "v1", "kind": "Node", "name": "edge1", "uid": "n"}],
                },
                "spec": {
                    "hostNetwork": true, "nodeName": "edge1", "priorityClassName": "system-node-critical",
                    "serviceAccountName": "default", "tolerations": [{"operator": "Exists"}],
                    "automountServiceAccountToken": false, "restartPolicy": "Never",
                    "containers": [{
                        "name": "agent", "image": "agent:1", "command": ["fabedge-agent"],
                        "args": ["cleanup", "--log=debug", "--state-dir", "/data"],
                        "securityContext": {"privileged": true},
                        "terminationMessagePolicy": "FallbackToLogsOnError",
                        "volumeMounts": [{"name": "state", "mountPath": "/data"}],
                    }],
                    "volumes": [{"name": "state", "hostPath": {"path": "/var/lib/fabedge"}}],
                },
            })
        );
        assert_eq!(spec(&PodSpec::default()), None, "no agent, nothing to clean");
    }
}
