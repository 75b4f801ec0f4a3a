//! What must hold of the objects whatever the values say.

use std::collections::{BTreeMap, BTreeSet};

use clap::Parser;
use fabedge_agent::args::{Cli, Command, Role};
use fabedge_agent::source::Place;
use fabedge_operator::{api, args as operator, crds};
use k8s_openapi::api::{apps::v1 as apps, batch::v1 as batch, core::v1 as core, rbac::v1 as rbac};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::engine::{Helm, NAMESPACE, calico, chart, guide, host, member, settings, with};

/// Values that between them take every branch of the templates.
fn worlds() -> Vec<Value> {
    let all = json!({
        "METRICS_LISTEN": "0.0.0.0:9000", "LOG": "debug", "RESYNC": 60, "TUNNEL": "libipsec", "FAST_PATH": "off",
        "SPREAD_ESP": "on",
    });
    let busy = with(&calico(), "agent.args", all);
    let busy = with(&busy, "strongswan.tunnel", json!("libipsec"));
    let busy = with(&busy, "cloudAgent.tolerations", json!([{"operator": "Exists"}]));
    let busy = with(&busy, "agent.privileged", json!(false));
    vec![
        guide(),
        host(),
        with(&host(), "cluster.cniType", json!("flannel")),
        calico(),
        member(),
        busy,
    ]
}

/// The specs of all pods, by object.
fn pods(objects: &BTreeMap<String, Value>) -> BTreeMap<&str, &Value> {
    let spec = |object: &'static str, pointer| (object, objects[object].pointer(pointer).unwrap());
    BTreeMap::from([
        spec("Deployment/fabedge-operator", "/spec/template/spec"),
        spec("Deployment/fabedge-connector", "/spec/template/spec"),
        spec("DaemonSet/fabedge-cloud-agent", "/spec/template/spec"),
        spec("PodTemplate/fabedge-agent", "/template/spec"),
        spec("Job/fabedge-operator-uninstall", "/spec/template/spec"),
    ])
}

/// A field that the type does not know is lost on the way.
fn round_trip<T: DeserializeOwned + Serialize>(object: &Value) -> Value {
    serde_json::to_value(serde_json::from_value::<T>(object.clone()).unwrap()).unwrap()
}

#[test]
fn kubernetes_knows_every_field() {
    let mut helm = Helm::start();
    for values in worlds() {
        for (name, object) in helm.objects(&values) {
            let known = match object["kind"].as_str().unwrap() {
                "ClusterRole" => round_trip::<rbac::ClusterRole>(&object),
                "ClusterRoleBinding" => round_trip::<rbac::ClusterRoleBinding>(&object),
                "ConfigMap" => round_trip::<core::ConfigMap>(&object),
                "DaemonSet" => round_trip::<apps::DaemonSet>(&object),
                "Deployment" => round_trip::<apps::Deployment>(&object),
                "Job" => round_trip::<batch::Job>(&object),
                "PodTemplate" => round_trip::<core::PodTemplate>(&object),
                "Role" => round_trip::<rbac::Role>(&object),
                "RoleBinding" => round_trip::<rbac::RoleBinding>(&object),
                "Secret" => round_trip::<core::Secret>(&object),
                "Service" => round_trip::<core::Service>(&object),
                "ServiceAccount" => round_trip::<core::ServiceAccount>(&object),
                kind => panic!("{kind} is new: add its type here"),
            };
            assert_eq!(known, object, "{name}");
        }
    }
}

/// Kubernetes 1.20 and older take no list whose elements' keys are left to a default from server-side apply, which is
/// how Helm 4 applies.
#[test]
fn ports_name_their_protocol() {
    fn ports(value: &Value, into: &mut Vec<Value>) {
        if let Some(list) = value.as_array() {
            list.iter().for_each(|value| ports(value, into));
        }
        for (name, value) in value.as_object().into_iter().flatten() {
            if name == "ports" {
                into.extend(value.as_array().unwrap().iter().cloned());
            }
            ports(value, into);
        }
    }
    let mut found = Vec::new();
    for object in Helm::start().objects(&host()).values() {
        ports(object, &mut found);
    }
    assert_eq!(found.len(), 3, "{found:?}");
    assert!(found.iter().all(|port| port["protocol"] == "TCP"), "{found:?}");
}

#[test]
fn the_operator_reads_the_settings() {
    let mut helm = Helm::start();
    for values in worlds() {
        let document = settings(&helm.objects(&values));
        let read: api::Settings = serde_json::from_value(document.clone()).unwrap();
        assert_eq!(read.api_version, api::API_VERSION);
        assert_eq!(read.kind, "Settings");
        assert_eq!(document["spec"]["name"], read.spec.name.as_str());
        assert_eq!(
            read.spec.api_listen.is_some(),
            read.spec.role.as_deref() == Some("host")
        );
        assert_eq!(
            read.spec.init_token_file.is_some(),
            read.spec.role.as_deref() == Some("member")
        );
    }
}

/// What a container's variable NAMESPACE holds.
fn namespace(container: &Value) -> Option<&'static str> {
    let variables = container["env"].as_array().into_iter().flatten();
    let mut found = variables.filter(|variable| variable["name"] == "NAMESPACE");
    let field = &found.next()?["valueFrom"]["fieldRef"]["fieldPath"];
    assert_eq!(field, "metadata.namespace");
    Some(NAMESPACE)
}

#[test]
fn the_agent_understands_its_command_lines() {
    let mut helm = Helm::start();
    for values in worlds() {
        let objects = helm.objects(&values);
        let pods = pods(&objects);
        for (object, role) in [
            ("PodTemplate/fabedge-agent", Role::Edge),
            ("Deployment/fabedge-connector", Role::Connector),
            ("DaemonSet/fabedge-cloud-agent", Role::Cloud),
        ] {
            let container = &pods[object]["containers"][0];
            let words = ["command", "args"].map(|field| container[field].as_array().unwrap().clone());
            let words = words.concat();
            // As the kubelet does, where there is such a variable.
            let words = words.iter().map(|word| match namespace(container) {
                Some(field) => word.as_str().unwrap().replace("$(NAMESPACE)", field),
                None => word.as_str().unwrap().to_owned(),
            });
            let cli = Cli::try_parse_from(words).unwrap();
            let (args, found) = match cli.command {
                Command::Edge(args) => (args, Role::Edge),
                Command::Connector(args) => (args, Role::Connector),
                Command::Cloud(args) => (args, Role::Cloud),
                other => panic!("{object} runs {other:?}"),
            };
            assert_eq!(found, role, "{object}");
            // Every path that it uses is mounted.
            let mounts = container["volumeMounts"].as_array().unwrap();
            let mounted: BTreeSet<_> = mounts
                .iter()
                .map(|mount| mount["mountPath"].as_str().unwrap())
                .collect();
            let within = |path: &std::path::Path| {
                path.ancestors()
                    .any(|folder| mounted.contains(folder.to_str().unwrap()))
            };
            assert!(within(&cli.state_dir) && within(&cli.run_dir));
            // Edges get their document from the kubelet, the cloud from the API.
            let place = args.place(role).unwrap();
            let map = |name: &str| Place::ConfigMap(format!("{NAMESPACE}/{name}").parse().unwrap());
            match role {
                Role::Edge => assert_eq!(place, Place::File(args.config.clone())),
                Role::Connector => assert_eq!(place, map("connector-config")),
                Role::Cloud => assert_eq!(place, map("fabedge-cloud-agent-config")),
            }
            assert_eq!(within(&args.config), role == Role::Edge, "{object}");
            assert_eq!(within(&cli.cni_conf_dir), role == Role::Edge, "{object}");
            assert_eq!(within(&args.key), role != Role::Cloud, "{object}");
            // Probes ask where it listens.
            let probe = &container["readinessProbe"]["httpGet"];
            assert_eq!(probe["port"], args.metrics_listen.port(), "{object}");
            assert_eq!(probe["host"], "127.0.0.1", "{object}");
        }
    }
}

/// Standbys do not serve the network API: the leader labels its pod, and its pod alone is called.
#[test]
fn members_calls_find_the_leaders_pod() {
    let mut helm = Helm::start();
    let objects = helm.objects(&with(&host(), "operator.replicas", json!(2)));
    let deployment = &objects["Deployment/fabedge-operator"]["spec"];
    let service = &objects["Service/fabedge-operator"]["spec"];
    let mut selector = service["selector"].as_object().unwrap().clone();
    assert_eq!(selector.remove("fabedge.io/leader"), Some(json!("true")));
    assert_eq!(service["publishNotReadyAddresses"], true);
    let labels = deployment["template"]["metadata"]["labels"].as_object().unwrap();
    assert!(
        selector
            .iter()
            .all(|(name, value)| labels.get(name) == Some(value))
    );
    // Neither does a pod begin as the leader's, nor is a leader's pod taken for another Deployment's.
    assert!(!labels.contains_key("fabedge.io/leader"));
    assert_eq!(
        deployment["selector"]["matchLabels"]["fabedge.io/leader"],
        Value::Null
    );
    // By its own name it knows which is its pod.
    let environment = deployment["template"]["spec"]["containers"][0]["env"]
        .as_array()
        .unwrap();
    let name = environment
        .iter()
        .find(|variable| variable["name"] == "POD_NAME")
        .unwrap();
    assert_eq!(name["valueFrom"]["fieldRef"]["fieldPath"], "metadata.name");
}

#[test]
fn the_operator_understands_its_command_lines() {
    let mut helm = Helm::start();
    for values in worlds() {
        let objects = helm.objects(&values);
        let pods = pods(&objects);
        let parse = |object: &str| {
            let container = &pods[object]["containers"][0];
            let words = ["command", "args"].map(|field| container[field].as_array().unwrap().clone());
            let words = words.concat();
            operator::Cli::try_parse_from(words.iter().map(|word| word.as_str().unwrap()))
                .unwrap()
                .command
        };
        assert!(matches!(
            parse("Deployment/fabedge-operator"),
            operator::Command::Run(_)
        ));
        match parse("Job/fabedge-operator-uninstall") {
            operator::Command::Uninstall(args) => {
                assert_eq!(args.namespace, NAMESPACE);
                // It has ended by itself before it is ended.
                let deadline = &objects["Job/fabedge-operator-uninstall"]["spec"]["activeDeadlineSeconds"];
                assert!(deadline.as_u64().unwrap() >= args.timeout + 30);
            }
            other => panic!("the Job runs {other:?}"),
        }
    }
}

#[test]
fn pods_have_the_names_and_containers_that_people_know() {
    let mut helm = Helm::start();
    let objects = helm.objects(&guide());
    let names = |list: &Value| -> Vec<String> {
        let list = list.as_array().into_iter().flatten();
        list.map(|container| container["name"].as_str().unwrap().to_owned())
            .collect()
    };
    let pods = pods(&objects);
    let edge = pods["PodTemplate/fabedge-agent"];
    assert_eq!(names(&edge["containers"]), ["agent", "strongswan"]);
    assert_eq!(names(&edge["initContainers"]), ["environment-prepare"]);
    assert_eq!(
        names(&pods["Deployment/fabedge-connector"]["containers"]),
        ["connector", "strongswan"]
    );
    assert_eq!(
        pods["Deployment/fabedge-operator"]["containers"]
            .as_array()
            .unwrap()
            .len(),
        1
    );
    let volume = |spec: &Value, name: &str| {
        let mut volumes = spec["volumes"].as_array().unwrap().iter();
        volumes.find(|volume| volume["name"] == name).unwrap().clone()
    };
    let connector = pods["Deployment/fabedge-connector"];
    assert_eq!(volume(connector, "tls")["secret"]["secretName"], "connector-tls");
    // An edge's state survives its pod; the key of everyone is for its owner only, and renewed while it runs.
    assert_eq!(volume(edge, "state")["hostPath"]["path"], "/var/lib/fabedge");
    for spec in [edge, connector] {
        let (tls, crl) = (volume(spec, "tls"), volume(spec, "crl"));
        assert_eq!(tls["secret"]["defaultMode"], 0o400);
        // Nodes come up where nobody's certificate was revoked yet.
        assert_eq!(tls["secret"]["optional"], Value::Null);
        assert_eq!(crl["secret"]["optional"], true);
        assert_eq!(crl["secret"]["secretName"], tls["secret"]["secretName"]);
        let agent = &spec["containers"][0];
        let folder = agent["volumeMounts"]
            .as_array()
            .unwrap()
            .iter()
            .find(|mount| mount["name"] == "crl")
            .unwrap()["mountPath"]
            .as_str()
            .unwrap();
        let option = format!(
            "--crl={folder}/{}",
            crl["secret"]["items"][0]["path"].as_str().unwrap()
        );
        assert!(agent["args"].as_array().unwrap().contains(&option.into()));
        assert!(!spec.to_string().contains("subPath"));
    }
    for (name, object) in &objects {
        if let Some(namespace) = object["metadata"]["namespace"].as_str() {
            let elsewhere = ["-events", "fabedge-operator-discovery"];
            assert!(
                namespace == NAMESPACE || elsewhere.iter().any(|end| name.ends_with(end)),
                "{name}"
            );
        }
    }
}

#[test]
fn only_who_must_be_is_privileged_and_edges_have_no_token() {
    let mut helm = Helm::start();
    for agents_are_privileged in [true, false] {
        let values = with(&host(), "agent.privileged", json!(agents_are_privileged));
        privileges(&helm.objects(&values), agents_are_privileged);
    }
}

fn privileges(objects: &BTreeMap<String, Value>, agents_are_privileged: bool) {
    let pods = pods(objects);
    let edge = pods["PodTemplate/fabedge-agent"];
    assert_eq!(edge["automountServiceAccountToken"], false);
    assert_eq!(edge["hostNetwork"], true);
    assert_eq!(edge["tolerations"], json!([{"operator": "Exists"}]));
    assert!(!edge.to_string().contains("serviceAccountToken"));
    for (object, spec) in &pods {
        for list in ["initContainers", "containers"] {
            for container in spec[list].as_array().into_iter().flatten() {
                let name = container["name"].as_str().unwrap();
                let security = &container["securityContext"];
                let privileged = security["privileged"] == true;
                // Kernel parameters and the BPF file system; nobody else needs more than capabilities.
                let runs_agent = container["command"] == json!(["fabedge-agent"]);
                assert_eq!(privileged, runs_agent && agents_are_privileged, "{object} {name}");
                if runs_agent {
                    let metadata = match object.split_once('/') {
                        Some(("PodTemplate", _)) => "/template/metadata/annotations",
                        _ => "/spec/template/metadata/annotations",
                    };
                    let profile = format!("container.apparmor.security.beta.kubernetes.io/{name}");
                    let annotations = objects[*object].pointer(metadata);
                    let unconfined = annotations.is_some_and(|all| all[profile] == "unconfined");
                    assert_eq!(unconfined, !agents_are_privileged, "{object}");
                    // Refused by the API where a container is not privileged.
                    let mounts = container["volumeMounts"].to_string();
                    assert_eq!(
                        mounts.contains("Bidirectional"),
                        agents_are_privileged,
                        "{object}"
                    );
                }
                assert_eq!(security["readOnlyRootFilesystem"], true, "{object} {name}");
                if !privileged {
                    assert_eq!(security["allowPrivilegeEscalation"], false, "{object} {name}");
                    assert_eq!(
                        security["capabilities"]["drop"],
                        json!(["ALL"]),
                        "{object} {name}"
                    );
                }
            }
        }
    }
    for object in ["Deployment/fabedge-operator", "Job/fabedge-operator-uninstall"] {
        let spec = pods[object];
        assert_eq!(spec["securityContext"]["runAsNonRoot"], true);
        assert_eq!(
            spec["securityContext"]["seccompProfile"]["type"],
            "RuntimeDefault"
        );
        let security = &spec["containers"][0]["securityContext"];
        assert!(security["capabilities"].get("add").is_none());
    }
}

#[test]
fn a_members_token_is_in_a_file_and_nowhere_else() {
    let mut helm = Helm::start();
    let objects = helm.objects(&member());
    assert!(!objects.contains_key("Service/fabedge-operator"));
    let with_token: Vec<_> = objects
        .iter()
        .filter(|(_, object)| object.to_string().contains("header.claims"))
        .map(|(name, _)| name)
        .collect();
    assert!(with_token.is_empty(), "{with_token:?}");
    let token = settings(&objects)["spec"]["initTokenFile"]
        .as_str()
        .unwrap()
        .to_owned();
    let operator = pods(&objects)["Deployment/fabedge-operator"];
    let folder = operator["containers"][0]["volumeMounts"][0]["mountPath"]
        .as_str()
        .unwrap();
    let item = &operator["volumes"][0]["projected"]["sources"][1]["secret"]["items"][0];
    assert_eq!(token, format!("{folder}/{}", item["path"].as_str().unwrap()));
    // Another token starts another operator.
    let other = helm.objects(&with(&member(), "cluster.initToken", json!("another")));
    let hash = "/spec/template/metadata/annotations/fabedge.io~1settings-hash";
    let name = "Deployment/fabedge-operator";
    assert_ne!(
        objects[name].pointer(hash).unwrap(),
        other[name].pointer(hash).unwrap()
    );
}

/// Who may do what where: account, namespace (empty: everywhere), verb, resource, name (empty: any).
fn rights(objects: &BTreeMap<String, Value>) -> BTreeSet<[String; 5]> {
    let mut rights = BTreeSet::new();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let texts = |value: &Value| {
        value
            .as_array()
            .into_iter()
            .flatten()
            .map(text)
            .collect::<Vec<_>>()
    };
    for binding in objects.values().filter(|object| object.get("roleRef").is_some()) {
        let role = format!(
            "{}/{}",
            text(&binding["roleRef"]["kind"]),
            text(&binding["roleRef"]["name"])
        );
        let subjects = binding["subjects"].as_array().unwrap();
        assert_eq!(subjects.len(), 1);
        let subject = &subjects[0];
        assert_eq!(subject["namespace"], NAMESPACE);
        assert!(objects.contains_key(&format!("ServiceAccount/{}", text(&subject["name"]))));
        for rule in objects[&role]["rules"].as_array().unwrap() {
            let mut names = texts(&rule["resourceNames"]);
            if names.is_empty() {
                names.push(String::new());
            }
            for verb in texts(&rule["verbs"]) {
                for resource in texts(&rule["resources"]) {
                    for name in &names {
                        let namespace = text(&binding["metadata"]["namespace"]);
                        rights.insert([
                            text(&subject["name"]),
                            namespace,
                            verb.clone(),
                            resource.clone(),
                            name.clone(),
                        ]);
                    }
                }
            }
        }
    }
    rights
}

#[test]
fn accounts_may_do_what_they_must_and_no_more() {
    let mut helm = Helm::start();
    let rights = |helm: &mut Helm, values: &Value| rights(&helm.objects(values));
    let flannel = rights(&mut helm, &with(&host(), "cluster.cniType", json!("flannel")));
    let calico_host = rights(&mut helm, &calico());
    let of_member = rights(&mut helm, &member());
    let everything = [&flannel, &calico_host, &of_member];
    for [account, namespace, verb, resource, name] in everything.into_iter().flatten() {
        let what = format!("{account} may {verb} {resource} {name} in {namespace:?}");
        assert!(verb != "*" && resource != "*", "{what}");
        let operators = ["fabedge-operator", "fabedge-operator-uninstall"].contains(&account.as_str());
        match resource.as_str() {
            "secrets" => assert!(operators && namespace == NAMESPACE, "{what}"),
            "configmaps" if !operators => {
                let own = match account.as_str() {
                    "fabedge-connector" => "connector-config",
                    "fabedge-cloud-agent" => "fabedge-cloud-agent-config",
                    _ => panic!("{what}"),
                };
                assert!(name == own && namespace == NAMESPACE, "{what}");
                assert!(["get", "list", "watch"].contains(&verb.as_str()), "{what}");
            }
            "configmaps" => assert!(
                namespace == NAMESPACE
                    || verb == "get"
                        && (namespace == "kube-system" && !name.is_empty() || name == "kube-flannel-cfg"),
                "{what}"
            ),
            "pods" => assert!(
                operators
                    && (namespace == NAMESPACE
                        || namespace == "kube-system" && ["get", "list"].contains(&verb.as_str())),
                "{what}"
            ),
            _ => assert!(operators, "{what}"),
        }
    }
    let may = |rights: &BTreeSet<[String; 5]>, verb: &str, resource: &str| {
        rights
            .iter()
            .any(|right| right[2] == verb && right[3] == resource)
    };
    assert!(may(&flannel, "watch", "nodes") && may(&calico_host, "patch", "nodes"));
    assert!(!may(&flannel, "patch", "nodes") && !may(&flannel, "list", "ippools"));
    assert!(may(&calico_host, "create", "ippools"));
    let kept = rights(
        &mut helm,
        &with(&calico(), "operator.autoKeepIPPools", json!(false)),
    );
    assert!(may(&kept, "list", "ippools") && !may(&kept, "create", "ippools"));
    assert!(may(&flannel, "patch", "clusters") && !may(&of_member, "patch", "clusters"));
}

/// What is for `helm uninstall` is there only while it runs, and in an order in which everything finds what it needs.
#[test]
fn whatever_uninstalls_leaves_nothing_of_its_own() {
    let mut helm = Helm::start();
    for values in [calico(), with(&host(), "operator.name", json!("o".repeat(63)))] {
        let objects = helm.objects(&values);
        let mut order = BTreeMap::new();
        for (name, object) in &objects {
            let ours = object["metadata"]["labels"]["fabedge.io/app"] == "fabedge-uninstall";
            let annotations = &object["metadata"]["annotations"];
            assert_eq!(ours, annotations["helm.sh/hook"] == "pre-delete", "{name}");
            if ours {
                assert_eq!(
                    annotations["helm.sh/hook-delete-policy"], "before-hook-creation,hook-succeeded",
                    "{name}"
                );
                let weight: i32 = annotations["helm.sh/hook-weight"]
                    .as_str()
                    .unwrap()
                    .parse()
                    .unwrap();
                order.insert(object["kind"].as_str().unwrap(), weight);
                // It becomes a label's value.
                let fits = object["metadata"]["name"].as_str().unwrap().len() <= 63;
                assert!(fits || object["kind"] != "Job", "{name}");
            }
        }
        assert_eq!(order.len(), 6, "{order:?}");
        for (binding, bound) in [
            ("RoleBinding", "Role"),
            ("RoleBinding", "ServiceAccount"),
            ("ClusterRoleBinding", "ClusterRole"),
            ("Job", "RoleBinding"),
            ("Job", "ClusterRoleBinding"),
        ] {
            assert!(order[binding] > order[bound], "{order:?}");
        }
    }
}

#[test]
fn notes_tell_the_next_step_of_each_role() {
    let mut helm = Helm::start();
    let notes = helm.render(&guide()).unwrap().notes;
    assert!(
        notes.contains("kubectl label node EDGE node-role.kubernetes.io/edge="),
        "{notes}"
    );
    assert!(
        notes.contains("10.20.8.28") && notes.contains("fabedge.EDGE1"),
        "{notes}"
    );
    let joining = "registers with the host at";
    assert!(
        notes.contains("cloudAgent.tolerations") && !notes.contains(joining),
        "{notes}"
    );
    let notes = helm.render(&member()).unwrap().notes;
    assert!(
        notes.contains("beijing (member)") && notes.contains(&format!("{joining} https://10.20.8.28:30303")),
        "{notes}"
    );
}

#[test]
fn definitions_are_in_the_folder_that_helm_never_deletes_from() {
    for definition in crds::definitions().unwrap() {
        let file = format!("{}/crds/{}.yaml", chart(), definition.name);
        assert_eq!(std::fs::read_to_string(file).unwrap(), definition.yaml);
    }
}

#[test]
fn nothing_asks_the_cluster_while_rendering() {
    for entry in std::fs::read_dir(format!("{}/templates", chart())).unwrap() {
        let text = std::fs::read_to_string(entry.unwrap().path()).unwrap();
        for word in ["lookup", ".Capabilities"] {
            assert!(!text.contains(word), "{word}");
        }
    }
    let about = std::fs::read_to_string(format!("{}/Chart.yaml", chart())).unwrap();
    let about: Value = serde_saphyr::from_str(&about).unwrap();
    assert_eq!(about["kubeVersion"], ">=1.18.0-0");
    assert_eq!(about["appVersion"], env!("CARGO_PKG_VERSION"));
}
