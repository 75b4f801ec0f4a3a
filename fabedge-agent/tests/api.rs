//! The document through a real API server, which `KUBECONFIG` names: `cargo xtask test --only k8s` starts one. Every test
//! has a namespace of its own name, and takes it away.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use fabedge_agent::source::{self, Current, Origin};
use fabedge_common::config::packed::{self, Packed};
use k8s_openapi::ByteString;
use k8s_openapi::api::authentication::v1::TokenRequest;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, ServiceAccount};
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use kube::api::{DeleteParams, PostParams};
use kube::{Api, Client, Config};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

/// How long anything may take that should be a matter of moments; back-off is part of some.
const PATIENCE: Duration = Duration::from_secs(120);

const MAP: &str = "connector-config";

struct World {
    namespace: &'static str,
    client: Client,
    config: Config,
    state: tempfile::TempDir,
}

fn object<T: DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

impl World {
    async fn new(namespace: &'static str) -> Self {
        let config = Config::infer()
            .await
            .expect("KUBECONFIG names an API server; `cargo xtask test --only k8s` starts one");
        let client = Client::try_from(config.clone()).unwrap();
        let namespaces: Api<Namespace> = Api::all(client.clone());
        let own = object(json!({"metadata": {"name": namespace}}));
        namespaces.create(&PostParams::default(), &own).await.unwrap();
        Self {
            namespace,
            client,
            config,
            state: tempfile::tempdir().unwrap(),
        }
    }

    fn maps(&self) -> Api<ConfigMap> {
        Api::namespaced(self.client.clone(), self.namespace)
    }

    fn follow(&self, config: Config) -> watch::Receiver<Current> {
        self.follow_asking_every(Duration::from_secs(60), config)
    }

    fn follow_asking_every(&self, period: Duration, config: Config) -> watch::Receiver<Current> {
        let client = Client::try_from(config).unwrap();
        let name = format!("{}/{MAP}", self.namespace).parse().unwrap();
        source::follow(client, name, self.state.path(), period)
    }

    /// Waits until there is a copy of a document on disk.
    async fn kept(&self) {
        let copy = self.state.path().join(packed::DOCUMENT_KEY);
        let started = Instant::now();
        while !copy.exists() {
            assert!(started.elapsed() < PATIENCE, "no copy at {}", copy.display());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Writes the ConfigMap anew; gone by [`World::delete`].
    async fn write(&self, data: Option<&str>, compressed: Option<Vec<u8>>) {
        let mut map = ConfigMap::default();
        map.metadata.name = Some(MAP.to_owned());
        map.data = data.map(|text| [(packed::DOCUMENT_KEY.to_owned(), text.to_owned())].into());
        map.binary_data =
            compressed.map(|bytes| [(packed::COMPRESSED_KEY.to_owned(), ByteString(bytes))].into());
        if self.maps().get_opt(MAP).await.unwrap().is_none() {
            self.maps().create(&PostParams::default(), &map).await.unwrap();
        } else {
            self.maps()
                .replace(MAP, &PostParams::default(), &map)
                .await
                .unwrap();
        }
    }

    /// The configuration of an account that may read the one ConfigMap, as the chart makes one.
    async fn account(&self) -> Config {
        let namespace = self.namespace;
        let params = PostParams::default();
        let metadata = json!({"name": "reader", "namespace": namespace});
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client.clone(), namespace);
        accounts
            .create(&params, &object(json!({"metadata": metadata})))
            .await
            .unwrap();
        let rule = json!({"apiGroups": [""], "resources": ["configmaps"], "resourceNames": [MAP],
            "verbs": ["get", "list", "watch"]});
        let role: Role = object(json!({"metadata": metadata, "rules": [rule]}));
        let roles: Api<Role> = Api::namespaced(self.client.clone(), namespace);
        roles.create(&params, &role).await.unwrap();
        let binding: RoleBinding = object(json!({"metadata": metadata,
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "reader"},
            "subjects": [{"kind": "ServiceAccount", "name": "reader", "namespace": namespace}]}));
        let bindings: Api<RoleBinding> = Api::namespaced(self.client.clone(), namespace);
        bindings.create(&params, &binding).await.unwrap();
        let request: TokenRequest = object(json!({"spec": {"audiences": []}}));
        let token = accounts
            .create_token_request("reader", &params, &request)
            .await
            .unwrap();
        let mut config = self.config.clone();
        config.auth_info = object(json!({"token": token.status.unwrap().token}));
        config
    }

    async fn delete(self) {
        let namespaces: Api<Namespace> = Api::all(self.client.clone());
        namespaces
            .delete(self.namespace, &DeleteParams::default())
            .await
            .unwrap();
    }
}

fn document(generation: u64) -> String {
    format!(
        "version: 1\ngeneration: {generation}\nid: CN=a.connector\nname: a.connector\ntype: Connector\nsubnets: [10.1.1.0/24]\n...\n"
    )
}

fn in_force(current: &Current) -> Option<(u64, Origin)> {
    current
        .config
        .as_ref()
        .map(|(config, origin)| (config.generation, *origin))
}

fn problem(current: &Current) -> String {
    current
        .problem
        .as_ref()
        .map_or(String::new(), ToString::to_string)
}

/// Waits until `holds`; returns how long that took.
async fn until(receiver: &mut watch::Receiver<Current>, holds: impl Fn(&Current) -> bool) -> Duration {
    let started = Instant::now();
    while !holds(&receiver.borrow_and_update()) {
        let changed = tokio::time::timeout(PATIENCE, receiver.changed()).await;
        assert!(matches!(changed, Ok(Ok(()))), "still {:?}", receiver.borrow());
    }
    started.elapsed()
}

/// A document is in force and nothing is wrong.
fn is_fine(current: &Current, generation: u64) -> bool {
    in_force(current) == Some((generation, Origin::Api))
        && current.problem.is_none()
        && current.outage.is_none()
}

#[tokio::test]
async fn an_account_with_a_right_to_one_name_follows_what_is_there() {
    let world = World::new("agent-api-names").await;
    let account = world.account().await;
    // Forbidden is what the rights do not name, so the rest shows that they suffice.
    let api: Api<ConfigMap> = Api::namespaced(Client::try_from(account.clone()).unwrap(), world.namespace);
    for forbidden in [
        api.list(&Default::default()).await.err(),
        api.get("another").await.err(),
    ] {
        assert!(
            matches!(&forbidden, Some(kube::Error::Api(status)) if status.code == 403),
            "{forbidden:?}"
        );
    }

    let mut receiver = world.follow(account);
    until(&mut receiver, |now| {
        problem(now).contains("there is no ConfigMap agent-api-names/connector-config")
    })
    .await;
    world.write(Some(&document(1)), None).await;
    let took = until(&mut receiver, |now| is_fine(now, 1)).await;
    println!("{took:?} after the write was answered the document is taken");

    let long = format!("# {}\n{}", "x".repeat(packed::PLAIN_BYTES), document(2));
    let Packed::Compressed(bytes) = packed::pack(long) else {
        panic!("not compressed");
    };
    world.write(None, Some(bytes.clone())).await;
    until(&mut receiver, |now| is_fine(now, 2)).await;
    for (data, compressed, why) in [
        (
            Some(&document(3)[..50]),
            None,
            "ConfigMap agent-api-names/connector-config is refused",
        ),
        (
            Some(document(1).as_str()),
            None,
            "its generation 1 is older than 2",
        ),
        (None, Some(bytes[..99].to_vec()), "truncated"),
        (None, None, "holds neither tunnels.yaml nor tunnels.yaml.gz"),
    ] {
        world.write(data, compressed).await;
        until(&mut receiver, |now| problem(now).contains(why)).await;
        assert_eq!(in_force(&receiver.borrow()), Some((2, Origin::Api)), "{why}");
    }
    world.write(Some(&document(4)), None).await;
    until(&mut receiver, |now| is_fine(now, 4)).await;

    world.maps().delete(MAP, &DeleteParams::default()).await.unwrap();
    until(&mut receiver, |now| {
        problem(now).contains("there is no ConfigMap")
    })
    .await;
    assert_eq!(in_force(&receiver.borrow()), Some((4, Origin::Api)));
    world.write(Some(&document(5)), None).await;
    until(&mut receiver, |now| is_fine(now, 5)).await;
    world.delete().await;
}

/// Far more often than in use, so that what it costs adds up.
#[tokio::test]
async fn asking_anew_leaves_nobody_deaf() {
    const PERIOD: Duration = Duration::from_millis(50);
    let world = World::new("agent-api-anew").await;
    world.write(Some(&document(1)), None).await;
    let mut receiver = world.follow_asking_every(PERIOD, world.config.clone());
    until(&mut receiver, |now| is_fine(now, 1)).await;
    let mut times = Vec::new();
    for generation in 2..12 {
        tokio::time::sleep(PERIOD * 6).await;
        world.write(Some(&document(generation)), None).await;
        times.push(until(&mut receiver, |now| is_fine(now, generation)).await);
    }
    // In one of them the machine may have had something else to do.
    times.sort();
    assert!(
        times[times.len() / 2] < Duration::from_millis(500),
        "documents were taken {times:?} after they were written"
    );
    world.delete().await;
}

/// Carries connections to the API server until it is dropped, and breaks them then.
struct Road(JoinHandle<()>);

impl Road {
    async fn open(at: SocketAddr, to: SocketAddr) -> Self {
        let listener = TcpListener::bind(at).await.unwrap();
        Self(tokio::spawn(async move {
            let mut carried = JoinSet::new();
            while let Ok((mut near, _)) = listener.accept().await {
                carried.spawn(async move {
                    let mut far = TcpStream::connect(to).await.unwrap();
                    drop(tokio::io::copy_bidirectional(&mut near, &mut far).await);
                });
            }
        }))
    }

    async fn close(self) {
        self.0.abort();
        drop(self.0.await);
    }
}

/// An address that nobody has, and that nobody is given who does not ask for it: the ports of connections are higher.
fn free_address() -> SocketAddr {
    let mut ports = (20_000..28_000).map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
    ports
        .find(|address| std::net::TcpListener::bind(address).is_ok())
        .unwrap()
}

#[tokio::test]
async fn an_api_that_is_away_takes_nothing_away() {
    let world = World::new("agent-api-away").await;
    world.write(Some(&document(1)), None).await;
    let url = &world.config.cluster_url;
    let (host, port) = (url.host().unwrap().to_owned(), url.port_u16().unwrap_or(443));
    let to = tokio::net::lookup_host((host.as_str(), port))
        .await
        .unwrap()
        .next()
        .unwrap();
    let at = free_address();
    let mut config = world.config.clone();
    config.cluster_url = format!("https://{at}").parse().unwrap();
    config.tls_server_name = Some(host);

    let mut receiver = world.follow(config.clone());
    assert!(problem(&receiver.borrow()).contains("has not yet told"));
    until(&mut receiver, |now| {
        problem(now).contains("watching ConfigMap agent-api-away/connector-config")
    })
    .await;
    assert_eq!(in_force(&receiver.borrow()), None);
    let road = Road::open(at, to).await;
    let took = until(&mut receiver, |now| is_fine(now, 1)).await;
    println!("{took:?} after the API came the document is taken");

    road.close().await;
    until(&mut receiver, |now| now.outage.is_some()).await;
    assert_eq!(in_force(&receiver.borrow()), Some((1, Origin::Api)));
    assert!(
        receiver.borrow().problem.is_none(),
        "the newest document that is known is in force"
    );
    world.kept().await;
    let mut restarted = world.follow(config);
    assert_eq!(in_force(&restarted.borrow()), Some((1, Origin::Cache)));
    assert!(restarted.borrow().problem.is_some());
    world.write(Some(&document(2)), None).await;
    let road = Road::open(at, to).await;
    let took = until(&mut receiver, |now| is_fine(now, 2)).await;
    println!("{took:?} after the API came back the outage is over");
    until(&mut restarted, |now| is_fine(now, 2)).await;
    road.close().await;
    world.delete().await;
}
