//! Who claims to be somebody else, and what the network API says to it.

use fabedge_operator::federation::caller::client_name;
use fabedge_operator::pki::authority::Purpose;
use fabedge_operator::pki::{Authority, inspect};
use rcgen::KeyPair;
use time::{Duration, OffsetDateTime};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::client::{Client, Identity};
use super::host::{Host, connector, csr};

/// What only members may call, each with a body that would do.
const CALLS: [&str; 5] = [
    "PUT /api/cluster",
    "PUT /api/endpoints",
    "GET /api/endpoints-and-communities",
    "GET /api/cidrs",
    "POST /api/sign-cert",
];

/// TLS 1.3 tells a client that its certificate is refused only when it reads.
async fn is_shut_out(client: &Client) -> bool {
    client
        .raw(["GET /api/cidrs HTTP/1.1\r\nHost: host\r\n\r\n"])
        .await
        .is_err()
}

#[test]
fn who_calls_is_what_the_certificate_says() {
    let host = Host::start("callers", &["beijing", "bei"]);
    host.run(async {
        let beijing = host.member("beijing");
        // A header is not believed: not beside a certificate, and not instead of one.
        let own = [("X-FabEdge-Cluster", "callers-beijing")];
        assert_eq!(beijing.call("GET /api/cidrs", &own, "").await.status, 200);
        for forged in [
            "callers-bei",
            "callers",
            "beijing",
            "",
            "callers-beijing, callers-bei",
        ] {
            let header = [("X-FabEdge-Cluster", forged)];
            for line in CALLS {
                let reply = beijing.call(line, &header, "").await;
                assert_eq!(reply.status, 403, "{line} as {forged:?}: {reply:?}");
                let status = host.anybody().call(line, &header, "").await.status;
                assert!([401, 429].contains(&status), "{line} as {forged:?}: {status}");
            }
        }
        // Nor is a second one, after a good one.
        let twice = [own[0], ("X-FabEdge-Cluster", "callers-bei")];
        assert_eq!(beijing.call("GET /api/cidrs", &twice, "").await.status, 403);

        // What the authority signed for tunnels opens no API: neither what the operator made, nor one in a member's
        // name. TLS refuses it.
        let edge = format!("fabedge-agent-tls-{}", host.world.edge(1));
        for secret in [edge.as_str(), "connector-tls"] {
            host.world
                .wait_until(secret, async || {
                    host.world.secrets().get_opt(secret).await.unwrap().is_some()
                })
                .await;
            assert!(
                is_shut_out(&host.client(Some(&host.stolen(secret).await))).await,
                "{secret}"
            );
        }
        let name = client_name("callers-beijing");
        let now = OffsetDateTime::now_utc();
        for (what, identity) in [
            ("for IKE", host.identity(&name, Purpose::Ipsec)),
            ("of a server", host.identity(&name, Purpose::ApiServer)),
            (
                "of last year",
                host.identity_at(&name, Purpose::ApiClient, now - Duration::days(365)),
            ),
            (
                "of next year",
                host.identity_at(&name, Purpose::ApiClient, now + Duration::days(365)),
            ),
        ] {
            assert!(is_shut_out(&host.client(Some(&identity))).await, "{what}");
        }
        // An authority of the same name, but another key.
        let ca = Authority::generate("callers", now).unwrap();
        let other = Authority::load(&ca.certificate, &ca.key, now).unwrap();
        let key = KeyPair::generate().unwrap();
        let certificate = other.certify(&name, Purpose::ApiClient, &key, now).unwrap();
        assert!(is_shut_out(&host.client(Some(&Identity { certificate, key }))).await);

        // Clients' certificates, but of no member that is registered.
        for (name, status) in [
            ("callers-beijing.connector", 403),
            ("fabedge-client", 403),
            ("x.callers-beijing.fabedge-client", 403),
            ("callers-beijing.x.fabedge-client", 403),
            ("callers-shanghai.fabedge-client", 404),
            ("callers-bei-jing.fabedge-client", 404),
            // The host itself is no member of its own.
            ("callers.fabedge-client", 404),
        ] {
            let client = host.client(Some(&host.identity(name, Purpose::ApiClient)));
            let reply = client.call("GET /api/cidrs", &[], "").await;
            assert_eq!(reply.status, status, "{name}: {reply:?}");
        }
        // Nothing is there but what is written down, and no way around that.
        for (line, status) in [
            ("GET /", 404),
            ("GET /metrics", 404),
            ("GET /api/cidrs/", 404),
            ("GET //api/cidrs", 404),
            ("GET /api/%63idrs", 404),
            ("GET /api/ca-cert/../cidrs", 404),
            ("DELETE /api/cluster", 405),
            ("POST /api/cidrs", 405),
        ] {
            assert_eq!(beijing.call(line, &[], "").await.status, status, "{line}");
            assert_eq!(host.anybody().call(line, &[], "").await.status, status, "{line}");
        }
        host.still_serves("beijing").await;
    });
}

/// `bei` begins as `beijing` does, and has no say in it.
#[test]
fn the_beginning_of_a_name_is_not_the_name() {
    let host = Host::start("prefix", &["beijing", "bei"]);
    host.run(async {
        let bei = host.member("bei");
        let key = KeyPair::generate().unwrap();
        for name in [
            "prefix-beijing.connector",
            "prefix-beijing.fabedge-client",
            "prefix-beijing",
            "prefix-beijing.edge1",
        ] {
            let reply = bei.call("POST /api/sign-cert", &[], &csr(&key, name, &[])).await;
            assert_eq!(reply.status, 403, "{name}: {reply:?}");
        }
        let body = serde_json::json!([connector("prefix-beijing", "192.168.0.0/24")]).to_string();
        let reply = bei.call("PUT /api/endpoints", &[], &body).await;
        assert_eq!(reply.status, 400, "{reply:?}");
        assert!(reply.body.contains("must be prefix-bei.<node>"), "{reply:?}");

        let beijing = host.member("beijing");
        let reply = beijing.call("PUT /api/endpoints", &[], &body).await;
        assert_eq!(reply.status, 204, "{reply:?}");
        host.world
            .unite(
                "both",
                &[
                    "prefix.connector".to_owned(),
                    "prefix-beijing.connector".to_owned(),
                ],
            )
            .await;
        let line = "GET /api/endpoints-and-communities";
        let hears = async || beijing.call(line, &[], "").await.json();
        host.world
            .wait_to_see("beijing hears of it", hears, |heard| {
                heard["communities"]["prefix-both"].is_array()
            })
            .await;
        let heard = bei.call(line, &[], "").await.json();
        assert_eq!(heard["communities"], serde_json::json!({}));
        assert_eq!(heard["endpoints"], serde_json::json!([]));
        host.still_serves("bei").await;
    });
}

#[test]
fn a_request_is_signed_by_its_key_and_for_a_name_of_its_own() {
    let host = Host::start("requests", &["beijing", "shanghai"]);
    host.run(async {
        let beijing = host.member("beijing");
        let key = KeyPair::generate().unwrap();
        let sign = async |body: &str| beijing.call("POST /api/sign-cert", &[], body).await;
        // Its own, whatever is in fashion for names of nodes. A quarter of a year, for one purpose, of no authority.
        for (name, client) in [
            ("requests-beijing.connector", false),
            ("requests-beijing.edge1.shop", false),
            ("requests-beijing.fabedge-client", true),
        ] {
            let reply = sign(&csr(&key, name, &[name])).await;
            assert_eq!(reply.status, 200, "{name}: {reply:?}");
            let der = inspect::certificate_der(&reply.body).unwrap();
            assert!(inspect::verifies(&der, host.authority.der()));
            let (_, leaf) = X509Certificate::from_der(&der).unwrap();
            let usage = leaf.extended_key_usage().unwrap().unwrap().value;
            assert_eq!(
                (usage.client_auth, usage.server_auth, usage.any),
                (client, false, false),
                "{name}"
            );
            assert!(!leaf.is_ca());
            let until = leaf.validity().not_after.to_datetime();
            assert!(until <= OffsetDateTime::now_utc() + Duration::days(90), "{until}");
            assert!(until >= OffsetDateTime::now_utc() + Duration::days(89), "{until}");
        }
        for name in [
            "requests-shanghai.connector",
            "requests.connector",
            "requests.fabedge-operator",
            "requests-beijing",
            "requests-beijing.",
            "requests-beijing.fabedge-operator",
            "requests-beijing.mediator",
            "requests-beijing.*",
            "requests-beijing..edge1",
            "requests-beijing.edge1\0.x",
            "REQUESTS-BEIJING.edge1",
            "connector",
            "",
        ] {
            let reply = sign(&csr(&key, name, &[])).await;
            assert_eq!(reply.status, 403, "{name:?}: {reply:?}");
        }
        let own = "requests-beijing.connector";
        for other in [
            "requests.connector",
            "requests-shanghai.connector",
            "requests-beijing.edge1",
            "10.0.0.1",
        ] {
            let reply = sign(&csr(&key, own, &[own, other])).await;
            assert_eq!(reply.status, 403, "{other}: {reply:?}");
        }
        // The key of somebody else put in, and the name changed after it was signed.
        let mine = pem_bytes(&csr(&key, own, &[]));
        let theirs = KeyPair::generate().unwrap();
        for (from, to) in [
            (inspect::public_key(&key), inspect::public_key(&theirs)),
            (b"beijing.connector".to_vec(), b"beijing.konnector".to_vec()),
        ] {
            let at = mine.windows(from.len()).position(|part| part == from).unwrap();
            let mut forged = mine.clone();
            forged[at..at + to.len()].copy_from_slice(&to);
            let reply = sign(&pem_text(&forged)).await;
            assert_eq!(reply.status, 400, "{reply:?}");
            assert!(reply.body.contains("not signed"), "{reply:?}");
        }
        // What cannot be certified is refused, and no empty certificate is handed out.
        let weak = std::process::Command::new("openssl")
            .args([
                "req",
                "-new",
                "-newkey",
                "rsa:1024",
                "-nodes",
                "-keyout",
                "/dev/null",
            ])
            .args(["-subj", &format!("/CN={own}")])
            .output()
            .unwrap();
        let weak = String::from_utf8(weak.stdout).unwrap();
        assert!(weak.contains("BEGIN CERTIFICATE REQUEST"));
        let unusual = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        let unusual = csr(&unusual, own, &[]);
        let cut = &weak[..weak.len() / 2];
        for body in [
            "",
            "hello",
            &weak,
            &unusual,
            cut,
            &pem_text(&mine[..60]),
            &key.serialize_pem(),
        ] {
            let reply = sign(body).await;
            assert_eq!(reply.status, 400, "{body}: {reply:?}");
        }
        host.still_serves("beijing").await;
    });
}

fn pem_bytes(pem: &str) -> Vec<u8> {
    let (_, block) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).unwrap();
    block.contents
}

fn pem_text(der: &[u8]) -> String {
    let lines = base64::Engine::encode(&base64::prelude::BASE64_STANDARD, der);
    format!("-----BEGIN CERTIFICATE REQUEST-----\n{lines}\n-----END CERTIFICATE REQUEST-----\n")
}
