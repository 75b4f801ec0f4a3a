//! Calico's own objects, by its own definitions: `FABEDGE_CALICO_MANIFESTS` names a folder with its releases'
//! manifests.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{ApiResource, DeleteParams, GroupVersionKind, Patch, PatchParams, PostParams};
use kube::core::DynamicObject;
use kube::{Api, ResourceExt as _};
use serde_json::{Value, json};

use super::world::{PATIENCE, World};

const OLD: &str = "v3.24.2";
const NEW: &str = "v3.32.1";
const DEFINITIONS: [&str; 2] = [
    "ipamblocks.crd.projectcalico.org",
    "ippools.crd.projectcalico.org",
];

fn definitions(world: &World) -> Api<CustomResourceDefinition> {
    Api::all(world.client.clone())
}

async fn uninstall(world: &World) {
    for name in DEFINITIONS {
        definitions(world)
            .delete(name, &DeleteParams::default())
            .await
            .ok();
        world
            .wait_until("a definition is gone", async || {
                definitions(world).get_opt(name).await.unwrap().is_none()
            })
            .await;
    }
}

/// Installs what we need of a release of Calico: its definitions.
async fn install(world: &World, version: &str) {
    let folder = std::env::var("FABEDGE_CALICO_MANIFESTS")
        .expect("FABEDGE_CALICO_MANIFESTS; `cargo xtask test --only k8s` sets it");
    let text = std::fs::read_to_string(format!("{folder}/{version}.yaml")).unwrap();
    let documents = text
        .split("\n---")
        .filter(|document| document.contains("kind: CustomResourceDefinition"));
    let mut installed = 0;
    for document in documents {
        let object: Value = serde_saphyr::from_str(document).unwrap();
        let name = object["metadata"]["name"].as_str().unwrap();
        if DEFINITIONS.contains(&name) {
            // Created, not applied: this server does not know every field of newer definitions, and drops those.
            let definition = serde_json::from_value(object.clone()).unwrap();
            definitions(world)
                .create(&PostParams::default(), &definition)
                .await
                .unwrap();
            let established = kube::runtime::conditions::is_crd_established();
            let wait = kube::runtime::wait::await_condition(definitions(world), name, established);
            tokio::time::timeout(PATIENCE, wait).await.unwrap().unwrap();
            installed += 1;
        }
    }
    assert_eq!(installed, DEFINITIONS.len());
}

fn api(world: &World, kind: &str, plural: &str) -> Api<DynamicObject> {
    let kind = GroupVersionKind::gvk("crd.projectcalico.org", "v1", kind);
    Api::all_with(
        world.client.clone(),
        &ApiResource::from_gvk_with_plural(&kind, plural),
    )
}

fn pools(world: &World) -> Api<DynamicObject> {
    api(world, "IPPool", "ippools")
}

fn blocks(world: &World) -> Api<DynamicObject> {
    api(world, "IPAMBlock", "ipamblocks")
}

/// Makes an object, as soon as the server has it that there are objects of that kind: a moment after it has said so.
async fn add(world: &World, to: &Api<DynamicObject>, kind: &str, name: &str, spec: Value) {
    let object: DynamicObject = serde_json::from_value(json!({
        "apiVersion": "crd.projectcalico.org/v1", "kind": kind, "metadata": {"name": name}, "spec": spec,
    }))
    .unwrap();
    let made = async || to.create(&PostParams::default(), &object).await.map(drop);
    world
        .wait_to_see(&format!("{kind} {name} is made"), made, Result::is_ok)
        .await
        .unwrap();
}

/// A block as Calico makes one, with one address given.
async fn add_block(world: &World, name: &str, cidr: &str, node: &str) {
    let spec = json!({
        "cidr": cidr, "affinity": format!("host:{node}"), "strictAffinity": false,
        "allocations": [0, null], "unallocated": [1], "attributes": [{"handle_id": "k8s-pod-network.1", "secondary": {}}],
    });
    add(world, &blocks(world), "IPAMBlock", name, spec).await;
}

/// The cloud's pod prefixes, as the edges know them.
async fn cloud(world: &World) -> Vec<String> {
    let map = format!("fabedge-agent-config-{}", world.edge(1));
    let Some((document, _)) = world.document(&map).await else {
        return vec!["no document".to_owned()];
    };
    document.peers[0]
        .endpoint
        .pod_subnets()
        .map(|net| net.to_string())
        .collect()
}

/// Takes Calico's definitions along, and with them its objects.
struct Installed<'a>(&'a World);

impl Drop for Installed<'_> {
    fn drop(&mut self) {
        self.0.runtime.block_on(async {
            for name in DEFINITIONS {
                definitions(self.0)
                    .delete(name, &DeleteParams::default())
                    .await
                    .ok();
            }
        });
    }
}

#[test]
fn the_clouds_prefixes_follow_calicos_blocks() {
    let mut world = World::new("blocks");
    world.calico = true;
    world.runtime.block_on(uninstall(&world));
    world.start("one");
    let world = world;
    let _installed = Installed(&world);
    world.runtime.block_on(async {
        world.add_connector().await;
        world.add_edge(1).await;
        let follows = async |expected: &[&str]| {
            world
                .wait_to_see(
                    &format!("the cloud is {expected:?}"),
                    async || cloud(&world).await,
                    |seen| seen == expected,
                )
                .await;
        };
        // Calico is not there yet: that is said, and what can be done without is done.
        follows(&["10.32.0.0/16"]).await;
        let missing = "ipamblocks.crd.projectcalico.org";
        world
            .wait_until("the definition is named", async || {
                world
                    .said("one")
                    .contains(&format!("{missing}: spec: is not there"))
            })
            .await;

        install(&world, OLD).await;
        follows(&[]).await;
        world
            .wait_until("that is over", async || {
                world
                    .said("one")
                    .contains(&format!("no longer: error: CustomResourceDefinition {missing}"))
            })
            .await;
        let cloud_node = format!("{}-cloud", world.name);
        add_block(&world, "10-32-7-0-26", "10.32.7.0/26", &cloud_node).await;
        add_block(&world, "10-32-8-0-26", "10.32.8.0/26", &world.edge(1)).await;
        add_block(&world, "10-32-9-0-26", "10.32.9.0/26", "elsewhere").await;
        follows(&["10.32.7.0/26", "10.32.9.0/26"]).await;
        blocks(&world)
            .delete("10-32-7-0-26", &DeleteParams::default())
            .await
            .unwrap();
        follows(&["10.32.9.0/26"]).await;
    });
}

#[test]
fn pools_are_kept_for_what_lies_beyond_the_connector() {
    let mut world = World::new("keeps");
    world.calico = true;
    // Found in Calico's own pool.
    world.settings = json!({"clusterCIDR": null});
    world.runtime.block_on(async {
        uninstall(&world).await;
        install(&world, NEW).await;
        let spec = json!({"cidr": "10.32.0.0/16", "ipipMode": "Always", "natOutgoing": true});
        add(&world, &pools(&world), "IPPool", "default-ipv4-ippool", spec).await;
    });
    let first = world.start("first");
    let own = "keeps-10-128-0-0-16";
    let foreign = "shanghai-10-234-64-0-18";
    let names = async |world: &World| -> Vec<String> {
        let list = pools(world)
            .list(&kube::api::ListParams::default())
            .await
            .unwrap();
        list.items.iter().map(|pool| pool.name_any()).collect()
    };
    world.runtime.block_on(async {
        world.add_connector().await;
        world.add_edge(1).await;
        world
            .wait_until("our own pool", async || names(&world).await.contains(&own.to_owned()))
            .await;
        let pool = pools(&world).get(own).await.unwrap();
        assert_eq!(pool.labels()["fabedge.io/created-by"], "fabedge-operator");
        let spec = &pool.data["spec"];
        assert_eq!(spec["cidr"], "10.128.0.0/16");
        assert_eq!((&spec["disabled"], &spec["natOutgoing"]), (&json!(true), &json!(false)));
        assert!(world.said("first").contains("10.32.0.0/16 according to Calico's IPPools"));
        assert_eq!(names(&world).await, ["default-ipv4-ippool", own], "no more than that");

        // Another cluster counts once our connector shares a Community with its.
        let endpoint = json!({
            "id": "C=CN, O=fabedge.io, CN=shanghai.connector", "name": "shanghai.connector", "type": "Connector",
            "publicAddresses": ["203.0.113.9"], "subnets": ["10.234.64.0/18"], "nodeSubnets": ["172.22.0.1/32"],
        });
        let cluster = json!({
            "apiVersion": "fabedge.io/v1alpha1", "kind": "Cluster", "metadata": {"name": "shanghai"},
            "spec": {"endpoints": [endpoint]},
        });
        let kind = GroupVersionKind::gvk("fabedge.io", "v1alpha1", "Cluster");
        let clusters: Api<DynamicObject> = Api::all_with(world.client.clone(), &ApiResource::from_gvk(&kind));
        let params = PatchParams::apply("tests").force();
        clusters.patch("shanghai", &params, &Patch::Apply(cluster)).await.unwrap();
        let community = json!({
            "apiVersion": "fabedge.io/v1alpha1", "kind": "Community", "metadata": {"name": "keeps-connectors"},
            "spec": {"members": ["keeps.connector", "shanghai.connector"]},
        });
        let patched = world.communities().patch("keeps-connectors", &params, &Patch::Apply(community)).await;
        patched.unwrap();
        world
            .wait_until("a pool for the other cluster", async || names(&world).await.contains(&foreign.to_owned()))
            .await;

        // What somebody changes is put right; what is not ours stays as somebody has it.
        let enabled = json!({"spec": {"disabled": false, "natOutgoing": true}});
        let params = PatchParams::default();
        for name in [foreign, "default-ipv4-ippool"] {
            pools(&world).patch(name, &params, &Patch::Merge(&enabled)).await.unwrap();
        }
        world
            .wait_until("it is disabled again", async || {
                let pool = pools(&world).get(foreign).await.unwrap();
                pool.data["spec"]["disabled"] == true && pool.data["spec"]["natOutgoing"] == false
            })
            .await;
        pools(&world).delete(own, &DeleteParams::default()).await.unwrap();
        world
            .wait_until("it is made again", async || names(&world).await.contains(&own.to_owned()))
            .await;

        // Calico gets another range: pods may be there too.
        let spec = json!({"cidr": "10.33.0.0/16", "vxlanMode": "Always", "natOutgoing": true});
        add(&world, &pools(&world), "IPPool", "second", spec).await;
        world
            .wait_until("the edge closes it", async || {
                let map = format!("fabedge-agent-config-{}", world.edge(1));
                let (document, _) = world.document(&map).await.unwrap();
                let range = "10.33.0.0/16".parse().unwrap();
                document.network_subnets.iter().any(|net| net.contains::<&ipnet::IpNet>(&range))
            })
            .await;

        world.communities().delete("keeps-connectors", &DeleteParams::default()).await.unwrap();
        world
            .wait_until("its pool is gone", async || !names(&world).await.contains(&foreign.to_owned()))
            .await;
        assert_eq!(names(&world).await, ["default-ipv4-ippool", own, "second"]);
        let theirs = pools(&world).get("default-ipv4-ippool").await.unwrap();
        assert_eq!(theirs.data["spec"]["natOutgoing"], true);
        clusters.delete("shanghai", &DeleteParams::default()).await.unwrap();
    });

    // Turned off, they are nobody's to keep.
    assert!(world.terminate(first));
    world.settings = json!({"clusterCIDR": null, "autoKeepIPPools": false});
    world.runtime.block_on(async {
        pools(&world).delete(own, &DeleteParams::default()).await.unwrap();
    });
    world.start("second");
    let world = world;
    let _installed = Installed(&world);
    world.runtime.block_on(async {
        world.add_edge(2).await;
        world
            .wait_until("it works", async || !world.peers(2).await.is_empty())
            .await;
        world.settle().await;
        assert_eq!(names(&world).await, ["default-ipv4-ippool", "second"]);
    });
}
