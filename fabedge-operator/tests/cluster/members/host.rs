//! A host with members, and with its secrets at hand: what an attacker would have to have, the tests make themselves.

use std::net::{Ipv4Addr, SocketAddr};

use fabedge_operator::api::Cluster;
use fabedge_operator::federation::caller::{client_name, server_name};
use fabedge_operator::federation::token;
use fabedge_operator::pki::Authority;
use fabedge_operator::pki::authority::Purpose;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use kube::api::{Patch, PatchParams};
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, SanType};
use serde_json::{Value, json};
use time::OffsetDateTime;

use super::client::{Client, Identity};
use crate::cluster::world::{World, free_port};

pub struct Host {
    pub world: World,
    /// Of the operator's process.
    pub pid: u32,
    pub authority: Authority,
    /// What signs tokens.
    pub key: String,
    address: SocketAddr,
}

impl Host {
    /// A host whose network API answers, and these members' Clusters, which are called `<world>-<member>`.
    pub fn start(name: &'static str, members: &[&str]) -> Self {
        let mut world = World::new(name);
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
        world.settings = json!({"role": "host", "apiListen": address.to_string()});
        world.runtime.block_on(async {
            world.add_connector().await;
            world.add_edge(1).await;
            for member in members {
                world.register(&format!("{name}-{member}"), json!({})).await;
            }
        });
        let place = world.start("one");
        let pid = world.operator(place).id();
        let now = OffsetDateTime::now_utc();
        let (authority, key) = world.runtime.block_on(async {
            let text = async |secret: &str, key: &str| {
                world
                    .wait_until(secret, async || {
                        world.secrets().get_opt(secret).await.unwrap().is_some()
                    })
                    .await;
                text(&world.secrets().get(secret).await.unwrap(), key)
            };
            let ca = (
                text("fabedge-ca", "ca.crt").await,
                text("fabedge-ca", "ca.key").await,
            );
            let authority = Authority::load(&ca.0, &ca.1, now).unwrap();
            (authority, text("fabedge-token-key", "key.pem").await)
        });
        let host = Self {
            world,
            pid,
            authority,
            key,
            address,
        };
        host.run(async {
            let anybody = host.anybody();
            host.world
                .wait_until("the API is served", async || anybody.dial().await.is_ok())
                .await;
            for member in members {
                let client = host.member(member);
                let asked = async || client.call("GET /api/cidrs", &[], "").await;
                host.world
                    .wait_to_see("a member is known", asked, |reply| reply.status == 200)
                    .await;
            }
        });
        host
    }

    pub fn run<T>(&self, work: impl Future<Output = T>) -> T {
        self.world.runtime.block_on(work)
    }

    /// The name of a member's cluster.
    pub fn name(&self, member: &str) -> String {
        format!("{}-{member}", self.world.name)
    }

    pub fn client(&self, identity: Option<&Identity>) -> Client {
        let server = server_name(self.world.name);
        Client::new(self.address, self.authority.der(), &server, identity)
    }

    pub fn anybody(&self) -> Client {
        self.client(None)
    }

    /// Another replica of it, which listens at the same port of another address.
    pub fn replica(&mut self, identity: &str, address: Ipv4Addr) -> usize {
        let listen = SocketAddr::from((address, self.address.port()));
        self.world.settings["apiListen"] = json!(listen.to_string());
        self.world.start(identity)
    }

    /// Who calls a replica, and has no certificate.
    pub fn anybody_at(&self, address: Ipv4Addr) -> Client {
        let (to, server) = (
            SocketAddr::from((address, self.address.port())),
            server_name(self.world.name),
        );
        Client::new(to, self.authority.der(), &server, None)
    }

    /// Its server, if it is what one finds at this address.
    pub fn is_at(&self, address: &str) -> Client {
        Client::new(self.address, self.authority.der(), address, None)
    }

    pub fn member(&self, member: &str) -> Client {
        let name = client_name(&self.name(member));
        self.client(Some(&self.identity(&name, Purpose::ApiClient)))
    }

    /// A certificate that the host's authority signed.
    pub fn identity(&self, name: &str, purpose: Purpose) -> Identity {
        self.identity_at(name, purpose, OffsetDateTime::now_utc())
    }

    pub fn identity_at(&self, name: &str, purpose: Purpose, now: OffsetDateTime) -> Identity {
        let key = KeyPair::generate().unwrap();
        let certificate = self.authority.certify(name, purpose, &key, now).unwrap();
        Identity { certificate, key }
    }

    /// A certificate and key that the operator made.
    pub async fn stolen(&self, secret: &str) -> Identity {
        let secret = self.world.secrets().get(secret).await.unwrap();
        Identity {
            certificate: text(&secret, "tls.crt"),
            key: KeyPair::from_pem(&text(&secret, "tls.key")).unwrap(),
        }
    }

    /// A token of the host's key, good for some seconds.
    pub fn token(&self, cluster: &str, id: &str, seconds: i64) -> String {
        let key = EncodingKey::from_rsa_pem(self.key.as_bytes()).unwrap();
        jsonwebtoken::encode(
            &Header::new(Algorithm::RS256),
            &self.claims(cluster, id, seconds),
            &key,
        )
        .unwrap()
    }

    pub fn claims(&self, cluster: &str, id: &str, seconds: i64) -> Value {
        json!({
            "sub": cluster, "exp": OffsetDateTime::now_utc().unix_timestamp() + seconds, "jti": id,
            "caHash": token::ca_hash(self.authority.der()),
        })
    }

    /// Nothing that was tried has hurt it: no panic, and a decent member is answered.
    pub async fn still_serves(&self, member: &str) {
        let reply = self.member(member).call("GET /api/cidrs", &[], "").await;
        assert_eq!(reply.status, 200, "{reply:?}");
        let said = self.world.said("one");
        assert!(!said.contains("panicked"), "{said}");
    }
}

impl World {
    pub fn members(&self) -> Api<Cluster> {
        Api::all(self.client.clone())
    }

    /// Applies a Cluster as an administrator of the host does.
    pub async fn register(&self, name: &str, spec: Value) {
        let object = json!({
            "apiVersion": "fabedge.io/v1alpha1", "kind": "Cluster", "metadata": {"name": name}, "spec": spec,
        });
        let params = PatchParams::apply("tests").force();
        self.members()
            .patch(name, &params, &Patch::Apply(&object))
            .await
            .unwrap();
    }

    /// Creates or replaces a Community of whatever names.
    pub async fn unite(&self, name: &str, members: &[String]) {
        let object = json!({
            "apiVersion": "fabedge.io/v1alpha1", "kind": "Community",
            "metadata": {"name": format!("{}-{name}", self.name)}, "spec": {"members": members},
        });
        let object: fabedge_operator::api::Community = serde_json::from_value(object).unwrap();
        let params = PatchParams::apply("tests").force();
        let name = object.metadata.name.clone().unwrap();
        self.communities()
            .patch(&name, &params, &Patch::Apply(&object))
            .await
            .unwrap();
    }
}

fn text(secret: &Secret, key: &str) -> String {
    let ByteString(bytes) = &secret.data.as_ref().unwrap()[key];
    String::from_utf8(bytes.clone()).unwrap()
}

/// A request to certify a key.
pub fn csr(key: &KeyPair, name: &str, alternatives: &[&str]) -> String {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.subject_alt_names = alternatives
        .iter()
        .map(|name| match name.parse() {
            Ok(address) => SanType::IpAddress(address),
            Err(_) => SanType::DnsName((*name).try_into().unwrap()),
        })
        .collect();
    params.serialize_request(key).unwrap().pem().unwrap()
}

/// The connector of a cluster.
pub fn connector(cluster: &str, subnet: &str) -> Value {
    json!({
        "id": format!("C=CN, O=fabedge.io, CN={cluster}.connector"), "name": format!("{cluster}.connector"),
        "publicAddresses": ["203.0.113.9"], "subnets": [subnet], "nodeSubnets": [], "type": "Connector",
    })
}
