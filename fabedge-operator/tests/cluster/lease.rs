use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::authorization::v1::SubjectAccessReview;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::ServiceAccount;
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use kube::config::Kubeconfig;
use rustix::process::Signal;
use serde_json::json;

use super::world::World;

impl World {
    /// A kubeconfig of an account that may do nothing but lead.
    async fn kubeconfig_of_a_leader(&self) -> String {
        let made = PostParams::default();
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client.clone(), self.name);
        let account = json!({"metadata": {"name": "leader"}});
        let account = serde_json::from_value(account).unwrap();
        accounts.create(&made, &account).await.unwrap();
        let role: Role = serde_json::from_value(json!({
            "metadata": {"name": "leader"},
            "rules": [{
                "apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": ["create", "get", "update"],
            }],
        }))
        .unwrap();
        let binding: RoleBinding = serde_json::from_value(json!({
            "metadata": {"name": "leader"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "leader"},
            "subjects": [{"kind": "ServiceAccount", "name": "leader", "namespace": self.name}],
        }))
        .unwrap();
        let roles: Api<Role> = Api::namespaced(self.client.clone(), self.name);
        roles.create(&made, &role).await.unwrap();
        let bindings: Api<RoleBinding> = Api::namespaced(self.client.clone(), self.name);
        bindings.create(&made, &binding).await.unwrap();
        let request = TokenRequest {
            spec: TokenRequestSpec::default(),
            ..TokenRequest::default()
        };
        let request = accounts.create_token_request("leader", &made, &request);
        let token = request.await.unwrap().status.unwrap().token;

        let mut config = serde_json::to_value(Kubeconfig::read().unwrap()).unwrap();
        // Roles are in force once the server's watch has shown them to it.
        self.wait_until("it may have leases", async || self.may_lead("leader").await)
            .await;
        for user in config["users"].as_array_mut().unwrap() {
            user["user"] = json!({"token": token});
        }
        config.to_string()
    }

    /// Whether the server lets an account have leases.
    async fn may_lead(&self, account: &str) -> bool {
        let review = json!({
            "metadata": {},
            "spec": {
                "user": format!("system:serviceaccount:{}:{account}", self.name),
                "resourceAttributes": {
                    "namespace": self.name, "group": "coordination.k8s.io", "resource": "leases", "verb": "create",
                },
            },
        });
        let review: SubjectAccessReview = serde_json::from_value(review).unwrap();
        let reviews: Api<SubjectAccessReview> = Api::all(self.client.clone());
        let judged = reviews.create(&PostParams::default(), &review).await.unwrap();
        judged.status.is_some_and(|status| status.allowed)
    }
}

#[test]
fn who_cannot_begin_gives_the_lease_back() {
    let mut world = World::new("gives-back");
    let kubeconfig = world.runtime.block_on(world.kubeconfig_of_a_leader());
    let place = world.start_as("one", Some(&kubeconfig));
    world.ended(place);
    let said = world.said("one");
    assert!(
        said.contains("leading") && said.contains("listing ConfigMaps"),
        "{said}"
    );
    let leases: Api<Lease> = Api::namespaced(world.client.clone(), "gives-back");
    let lease = world
        .runtime
        .block_on(leases.get("fabedge-operator-leader"))
        .unwrap();
    let holder = lease.spec.unwrap().holder_identity.unwrap_or_default();
    assert_eq!(holder, "", "another may lead at once");
}

#[test]
fn who_was_not_handed_the_lease_gives_out_documents_anew() {
    let mut world = World::new("handed-over");
    let place = world.start("one");
    let map = format!("fabedge-agent-config-{}", world.edge(1));
    let before = world.runtime.block_on(async {
        world.add_connector().await;
        world.add_edge(1).await;
        world
            .wait_until("there is a document", async || {
                world.document(&map).await.is_some()
            })
            .await;
        world.settle().await;
        world.document(&map).await.unwrap().0.generation
    });
    assert!(world.terminate(place));

    // Somebody who takes over at once knows that nothing is missing.
    let place = world.start("two");
    world.runtime.block_on(async {
        world
            .wait_until("two leads", async || world.said("two").contains("leading"))
            .await;
        world.settle().await;
        let now = world.document(&map).await.unwrap().0.generation;
        assert_eq!(now, before, "nothing is missing");
    });
    world.signal(place, Signal::KILL);
    world.start("three");
    world.runtime.block_on(async {
        world
            .wait_until("everybody has a newer document", async || {
                let document = world.document(&map).await;
                document.is_some_and(|(document, _)| document.generation > before)
            })
            .await;
    });
}

/// One that was stopped, as on a machine that hangs, gives nothing back that another one has taken meanwhile.
#[test]
fn a_lease_that_another_one_holds_stays_its_own() {
    let mut world = World::new("others-lease");
    let place = world.start("one");
    let leases: Api<Lease> = Api::namespaced(world.client.clone(), "others-lease");
    let holder = async || {
        let lease = leases.get("fabedge-operator-leader").await.unwrap();
        lease.spec.unwrap().holder_identity.unwrap_or_default()
    };
    world.runtime.block_on(async {
        world
            .wait_until("one leads", async || world.said("one").contains("leading"))
            .await;
        world.signal(place, Signal::STOP);
        let taken = Patch::Merge(json!({"spec": {"holderIdentity": "two", "leaseTransitions": 7}}));
        leases
            .patch("fabedge-operator-leader", &PatchParams::default(), &taken)
            .await
            .unwrap();
    });
    world.signal(place, Signal::TERM);
    world.signal(place, Signal::CONT);
    world.ended(place);
    assert_eq!(world.runtime.block_on(holder()), "two");
}
