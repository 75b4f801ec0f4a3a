//! The API over real TLS on loopback; what it writes goes to a registry in memory.

use std::collections::HashMap;

use rcgen::{CertificateParams, DnType, KeyPair, SanType};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;

use super::*;
use crate::federation::caller::server_name;
use crate::federation::report::Owner;
use crate::federation::{listener, token};
use crate::pki::{Authority, inspect};

#[path = "tests/bounds.rs"]
mod bounds;

#[derive(Clone, Default)]
struct Memory {
    redeemed: Arc<Mutex<HashMap<String, String>>>,
    reports: Arc<Mutex<Vec<(String, Report)>>>,
}

impl Registry for Memory {
    async fn redeem(&self, _cluster: &str, id: &str, fingerprint: &str) -> Result<bool, Unavailable> {
        let mut redeemed = self.redeemed.lock().unwrap();
        let known = redeemed
            .entry(id.to_owned())
            .or_insert_with(|| fingerprint.to_owned());
        Ok(known == fingerprint)
    }

    async fn report(&self, cluster: &str, taken: Report, _: &[String]) -> Result<(), Unavailable> {
        self.reports.lock().unwrap().push((cluster.to_owned(), taken));
        Ok(())
    }
}

struct World {
    address: SocketAddr,
    authority: Arc<Authority>,
    authorities: Arc<Authorities>,
    tokens: Arc<Tokens>,
    view: watch::Sender<Option<Arc<View>>>,
    registry: Memory,
    serving: tokio::task::JoinHandle<()>,
}

impl Drop for World {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

/// A certificate and its key.
type Identity = (String, KeyPair);

fn connector(cluster: &str, subnet: &str) -> Endpoint {
    serde_json::from_value(serde_json::json!({
        "id": format!("C=CN, O=fabedge.io, CN={cluster}.connector"), "name": format!("{cluster}.connector"),
        "publicAddresses": ["203.0.113.7"], "subnets": [subnet], "type": "Connector",
    }))
    .unwrap()
}

impl World {
    async fn new() -> Self {
        let now = OffsetDateTime::now_utc();
        let ca = Authority::generate("fabedge", now).unwrap();
        let load = || Authority::load(&ca.certificate, &ca.key, now).unwrap();
        let (authority, authorities) = (Arc::new(load()), Arc::new(Authorities::only(load())));
        let tokens = Arc::new(Tokens::new(&token::generate_key().unwrap()).unwrap());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (view, seen) = watch::channel(None);
        let registry = Memory::default();
        let router = router(seen.clone(), registry.clone());
        let serving = tokio::spawn(listener::serve(listener, "fabedge".to_owned(), seen, router));
        let world = Self {
            address,
            authority,
            authorities,
            tokens,
            view,
            registry,
            serving,
        };
        world.show(&["fabedge.connector", "beijing.connector"]);
        world
    }

    fn show(&self, members: &[&str]) {
        let mut others = Others::default();
        others.add("10.233.64.0/18".parse().unwrap(), Owner::Host("pods"));
        let members = members.iter().map(|name| (*name).to_owned()).collect();
        self.view.send_replace(Some(Arc::new(View {
            authorities: Arc::clone(&self.authorities),
            addresses: Vec::new(),
            tokens: Arc::clone(&self.tokens),
            clusters: ["bei", "beijing", "shanghai"].map(str::to_owned).into(),
            communities: [("connectors".to_owned(), members)].into(),
            endpoints: vec![
                connector("fabedge", "10.233.64.0/18"),
                connector("beijing", "10.234.64.0/18"),
                connector("shanghai", "10.235.64.0/18"),
            ],
            cidrs: [("fabedge".to_owned(), vec!["10.233.64.0/18".to_owned()])].into(),
            others,
        })));
    }

    fn identity(&self, name: &str, purpose: Purpose) -> Identity {
        let key = KeyPair::generate().unwrap();
        let now = OffsetDateTime::now_utc();
        (self.authority.certify(name, purpose, &key, now).unwrap(), key)
    }

    fn member(&self, cluster: &str) -> Identity {
        self.identity(&client_name(cluster), Purpose::ApiClient)
    }

    async fn connect(
        &self,
        identity: Option<&Identity>,
    ) -> std::io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
        let mut roots = RootCertStore::empty();
        roots
            .add(CertificateDer::from(self.authority.der().to_vec()))
            .unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let config = match identity {
            None => config.with_no_client_auth(),
            Some((certificate, key)) => config
                .with_client_auth_cert(
                    vec![CertificateDer::from(
                        inspect::certificate_der(certificate).unwrap(),
                    )],
                    PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
                )
                .unwrap(),
        };
        let stream = TcpStream::connect(self.address).await?;
        // Whatever address was dialled.
        let name = ServerName::try_from(server_name("fabedge")).unwrap();
        TlsConnector::from(Arc::new(config)).connect(name, stream).await
    }

    /// Sends what is given as it is, and reads until the server closes.
    async fn raw(&self, identity: Option<&Identity>, bytes: &[u8]) -> std::io::Result<(u16, String)> {
        let mut stream = self.connect(identity).await?;
        // A server that has seen enough closes before it has read all.
        stream.write_all(bytes).await.ok();
        let mut text = Vec::new();
        let mut part = [0; 4096];
        loop {
            match stream.read(&mut part).await {
                Ok(0) => break,
                Ok(count) => text.extend(&part[..count]),
                Err(_) if !text.is_empty() => break,
                Err(error) => return Err(error),
            }
        }
        let text = String::from_utf8(text).unwrap();
        let status = text.split(' ').nth(1).and_then(|status| status.parse().ok());
        Ok((status.ok_or_else(|| std::io::Error::other("no answer"))?, text))
    }

    async fn call(
        &self,
        identity: Option<&Identity>,
        line: &str,
        headers: &str,
        body: &str,
    ) -> (u16, String) {
        let request = format!(
            "{line} HTTP/1.1\r\nHost: fabedge\r\nConnection: close\r\nContent-Length: {}\r\n{headers}\r\n{body}",
            body.len()
        );
        self.raw(identity, request.as_bytes()).await.unwrap()
    }

    async fn sign(&self, identity: Option<&Identity>, headers: &str, request: &str) -> (u16, String) {
        self.call(identity, "POST /api/sign-cert", headers, request).await
    }
}

fn csr(key: &KeyPair, name: &str, alternatives: &[&str]) -> String {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.subject_alt_names = alternatives
        .iter()
        .map(|name| SanType::DnsName((*name).try_into().unwrap()))
        .collect();
    params.serialize_request(key).unwrap().pem().unwrap()
}

fn bearer(token: &str) -> String {
    format!("Authorization: Bearer {token}\r\n")
}

#[tokio::test]
async fn every_route_lets_in_whom_the_table_names_and_nothing_else_is_there() {
    let world = World::new().await;
    let (status, text) = world.call(None, "GET /api/ca-cert", "", "").await;
    assert_eq!(status, 200);
    assert!(text.contains("BEGIN CERTIFICATE"), "{text}");
    let beijing = world.member("beijing");
    for (method, path, admits) in ADMISSION {
        let line = format!("{method} {path}");
        let (anybody, _) = world.call(None, &line, "", "").await;
        let (member, text) = world.call(Some(&beijing), &line, "", "").await;
        let lets_in = matches!(admits, Admits::Anybody);
        assert_eq!(anybody == 401, !lets_in, "{line}: {anybody}");
        assert!(![401, 403, 404, 405].contains(&member), "{line}: {text}");
    }
    for (line, status) in [
        ("GET /", 404),
        ("GET /metrics", 404),
        ("GET /api/cidrs/", 404),
        ("GET /api/../api/cidrs", 404),
        ("DELETE /api/cluster", 405),
        ("GET /api/sign-cert", 405),
    ] {
        let (found, text) = world.call(Some(&beijing), line, "", "").await;
        assert_eq!(found, status, "{line}: {text}");
    }
}

#[tokio::test]
async fn who_calls_is_what_the_certificate_says() {
    let world = World::new().await;
    let beijing = world.member("beijing");
    let header = |cluster: &str| format!("X-FabEdge-Cluster: {cluster}\r\n");
    let own = world
        .call(Some(&beijing), "GET /api/cidrs", &header("beijing"), "")
        .await;
    assert_eq!(own.0, 200, "{}", own.1);
    for forged in ["shanghai", "bei", ""] {
        let (status, _) = world
            .call(Some(&beijing), "GET /api/cidrs", &header(forged), "")
            .await;
        assert_eq!(status, 403, "{forged:?}");
        let (status, _) = world.call(None, "GET /api/cidrs", &header(forged), "").await;
        assert_eq!(status, 401, "{forged:?}");
    }
    // Of clients, but of none of the members.
    for name in ["beijing.connector", "fabedge-client", "bei.jing.fabedge-client"] {
        let other = world.identity(name, Purpose::ApiClient);
        let (status, _) = world.call(Some(&other), "GET /api/cidrs", "", "").await;
        assert_eq!(status, 403, "{name}");
    }
    // One that was never registered.
    let tokyo = world.member("tokyo");
    assert_eq!(world.call(Some(&tokyo), "GET /api/cidrs", "", "").await.0, 404);
    // An edge's, for IKE, in a member's name even; and one that another authority signed.
    let request = b"GET /api/cidrs HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    let edge = world.identity("beijing.fabedge-client", Purpose::Ipsec);
    world.raw(Some(&edge), request).await.unwrap_err();
    let elsewhere = World::new().await.member("beijing");
    world.raw(Some(&elsewhere), request).await.unwrap_err();
}

#[tokio::test]
async fn a_member_gets_certificates_in_its_own_names_only() {
    let world = World::new().await;
    let beijing = world.member("beijing");
    let key = KeyPair::generate().unwrap();
    for (name, server, client) in [
        ("beijing.connector", false, false),
        ("beijing.edge1.shop", false, false),
        ("beijing.fabedge-client", false, true),
    ] {
        let (status, text) = world.sign(Some(&beijing), "", &csr(&key, name, &[name])).await;
        assert_eq!(status, 200, "{name}: {text}");
        let pem = &text[text.find("-----BEGIN").unwrap()..];
        let der = inspect::certificate_der(pem).unwrap();
        assert!(inspect::verifies(&der, world.authority.der()));
        let (_, leaf) =
            <x509_parser::prelude::X509Certificate<'_> as x509_parser::prelude::FromDer<'_, _>>::from_der(
                &der,
            )
            .unwrap();
        let usage = leaf.extended_key_usage().unwrap().unwrap().value;
        assert_eq!((usage.server_auth, usage.client_auth), (server, client), "{name}");
        assert!(!leaf.is_ca());
    }
    for name in [
        "shanghai.connector",
        "fabedge.connector",
        "beijing",
        "beijing.",
        "beijing.fabedge-operator",
        "beijing.mediator",
        "beijing2.connector",
        "connector",
        "beijing.*",
    ] {
        let (status, text) = world.sign(Some(&beijing), "", &csr(&key, name, &[])).await;
        assert_eq!(status, 403, "{name}: {text}");
    }
    // `bei` is not `beijing`.
    let bei = world.member("bei");
    let request = csr(&key, "beijing.connector", &[]);
    assert_eq!(world.sign(Some(&bei), "", &request).await.0, 403);
    // A second name hidden beside the first.
    let request = csr(
        &key,
        "beijing.connector",
        &["beijing.connector", "fabedge.connector"],
    );
    assert_eq!(world.sign(Some(&beijing), "", &request).await.0, 403);
    // Of a key that somebody else has: the request of one with another's key put in.
    let mut lines: Vec<String> = csr(&key, "beijing.connector", &[])
        .lines()
        .map(str::to_owned)
        .collect();
    let swapped = if lines[3].starts_with('A') { "B" } else { "A" };
    lines[3].replace_range(..1, swapped);
    assert_eq!(world.sign(Some(&beijing), "", &lines.join("\n")).await.0, 400);
    for body in ["", "hello", &"A".repeat(1000)] {
        assert_eq!(world.sign(Some(&beijing), "", body).await.0, 400);
    }
}

/// An authority whose name, with two of a kind, comes out of the library otherwise than it went in, so that nothing that it signs would hold.
fn unfit() -> Authority {
    let made = std::process::Command::new("openssl")
        .args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
        ])
        .args(["-subj", "/OU=a/OU=b/CN=fabedge CA", "-days", "9"])
        .args(["-keyout", "-", "-out", "-"])
        .output()
        .unwrap();
    let text = String::from_utf8(made.stdout).unwrap();
    let (key, certificate) = text.split_at(text.find("-----BEGIN CERTIFICATE").unwrap());
    Authority::load(certificate, key, OffsetDateTime::now_utc()).unwrap()
}

#[tokio::test]
async fn what_cannot_be_signed_is_no_certificate_and_no_fault_of_who_asks() {
    let world = World::new().await;
    let beijing = world.member("beijing");
    let request = csr(&KeyPair::generate().unwrap(), "beijing.connector", &[]);
    // Shown after the listener has set up its own.
    assert_eq!(world.sign(Some(&beijing), "", &request).await.0, 200);
    world.view.send_modify(|view| {
        let before = view.take().unwrap();
        *view = Some(Arc::new(View {
            authorities: Arc::new(Authorities::only(unfit())),
            addresses: Vec::new(),
            tokens: Arc::clone(&before.tokens),
            clusters: before.clusters.clone(),
            communities: BTreeMap::new(),
            endpoints: Vec::new(),
            cidrs: BTreeMap::new(),
            others: Others::default(),
        }));
    });
    for _ in 0..2 {
        let (status, text) = world.sign(Some(&beijing), "", &request).await;
        assert_eq!(status, 503, "{text}");
        assert!(
            !text.contains("BEGIN") && text.contains("replace the CA"),
            "{text}"
        );
    }
    assert_eq!(world.call(Some(&beijing), "GET /api/cidrs", "", "").await.0, 200);
    world.show(&[]);
    assert_eq!(world.sign(Some(&beijing), "", &request).await.0, 200);
}

#[tokio::test]
async fn a_token_lets_one_key_of_one_cluster_in() {
    let world = World::new().await;
    let now = OffsetDateTime::now_utc();
    let issue = |cluster: &str, at| world.tokens.issue(cluster, world.authority.der(), at).unwrap();
    let token = issue("beijing", now);
    let key = KeyPair::generate().unwrap();
    let request = csr(&key, "beijing.fabedge-client", &[]);
    let (status, text) = world.sign(None, &bearer(&token), &request).await;
    assert_eq!(status, 200, "{text}");
    // Its reply was lost: once more.
    assert_eq!(world.sign(None, &bearer(&token), &request).await.0, 200);
    // Somebody else has seen the token.
    let other = csr(&KeyPair::generate().unwrap(), "beijing.fabedge-client", &[]);
    assert_eq!(world.sign(None, &bearer(&token), &other).await.0, 403);
    // The certificate opens the API.
    let pem = text[text.find("-----BEGIN").unwrap()..].to_owned();
    assert_eq!(
        world.call(Some(&(pem, key)), "GET /api/cidrs", "", "").await.0,
        200
    );

    // The token opens nothing else, and no other name.
    assert_eq!(
        world.call(None, "GET /api/cidrs", &bearer(&token), "").await.0,
        401
    );
    for name in [
        "shanghai.fabedge-client",
        "beijing.connector",
        "bei.fabedge-client",
    ] {
        let request = csr(&KeyPair::generate().unwrap(), name, &[]);
        assert_eq!(world.sign(None, &bearer(&token), &request).await.0, 403, "{name}");
    }
    let tokyo = issue("tokyo", now);
    assert_eq!(world.sign(None, &bearer(&tokyo), &request).await.0, 404);
}

#[tokio::test]
async fn who_guesses_is_refused_and_soon_has_to_wait_while_members_do_not() {
    let world = World::new().await;
    let late = world
        .tokens
        .issue(
            "beijing",
            world.authority.der(),
            OffsetDateTime::now_utc() - time::Duration::days(1),
        )
        .unwrap();
    let request = csr(&KeyPair::generate().unwrap(), "beijing.fabedge-client", &[]);
    let attempts = [
        String::new(),
        "Authorization: \r\n".to_owned(),
        "Authorization: B\r\n".to_owned(),
        "Authorization: Bearer\r\n".to_owned(),
        "Authorization: Bearer \r\n".to_owned(),
        "Authorization: Basic Zm9vOmJhcg==\r\n".to_owned(),
        "Authorization: Bearer \u{e9}\r\n".to_owned(),
        bearer("a.b.c"),
        bearer(&late),
        bearer(&"a".repeat(4000)),
    ];
    for attempt in &attempts {
        let (status, text) = world.sign(None, attempt, &request).await;
        assert_eq!(status, 401, "{attempt:?}: {text}");
    }
    let (status, text) = world.sign(None, &attempts[7], &request).await;
    assert_eq!(status, 429, "{text}");
    assert!(text.to_ascii_lowercase().contains("retry-after: "), "{text}");
    let beijing = world.member("beijing");
    assert_eq!(world.call(Some(&beijing), "GET /api/cidrs", "", "").await.0, 200);
}

#[tokio::test]
async fn what_a_member_reports_is_judged() {
    let world = World::new().await;
    let beijing = world.member("beijing");
    let report =
        |endpoints: serde_json::Value| serde_json::json!({"spec": {"endpoints": endpoints}}).to_string();
    let good = serde_json::to_value(connector("beijing", "10.234.64.0/18")).unwrap();
    let put = "PUT /api/cluster";
    assert_eq!(
        world
            .call(Some(&beijing), put, "", &report(serde_json::json!([good])))
            .await
            .0,
        204
    );
    let old = serde_json::json!([good]).to_string();
    assert_eq!(
        world.call(Some(&beijing), "PUT /api/endpoints", "", &old).await.0,
        204
    );
    for bad in [
        connector("fabedge", "10.240.0.0/24"),
        connector("beijing", "0.0.0.0/0"),
        connector("beijing", "10.233.65.0/24"),
    ] {
        let body = report(serde_json::json!([bad]));
        let (status, text) = world.call(Some(&beijing), put, "", &body).await;
        assert_eq!(status, 400, "{text}");
        assert!(text.contains("spec.endpoints[0]"), "{text}");
    }
    let reports = world.registry.reports.lock().unwrap().clone();
    let counts: Vec<usize> = reports.iter().map(|(_, spec)| spec.endpoints.len()).collect();
    assert_eq!(counts, [1, 1, 0, 0, 0]);
    assert!(reports.iter().all(|(cluster, _)| cluster == "beijing"));
    for body in ["", "{", "null", "[[[[", &"[".repeat(100_000)] {
        let (status, _) = world.call(Some(&beijing), put, "", body).await;
        assert_eq!(status, 400, "{body:.10}");
    }
}

#[tokio::test]
async fn a_member_hears_of_its_own_communities_and_at_once() {
    let world = World::new().await;
    let (beijing, shanghai) = (world.member("beijing"), world.member("shanghai"));
    let line = "GET /api/endpoints-and-communities";
    let (status, text) = world.call(Some(&beijing), line, "", "").await;
    assert_eq!(status, 200);
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    let news: serde_json::Value = serde_json::from_str(body).unwrap();
    assert_eq!(news["communities"]["connectors"][1], "beijing.connector");
    assert_eq!(
        news["endpoints"].as_array().unwrap().len(),
        1,
        "the other member's: {body}"
    );
    assert_eq!(news["endpoints"][0]["name"], "fabedge.connector");
    let (_, text) = world.call(Some(&shanghai), line, "", "").await;
    // Whose prefixes are whose, it has to know all the same.
    let nothing_but_prefixes = r#"{"communities":{},"endpoints":[],"cidrs":{"fabedge":["10.233.64.0/18"]}}"#;
    assert!(text.ends_with(nothing_but_prefixes), "{text}");

    let tag = head
        .lines()
        .find_map(|line| {
            line.to_ascii_lowercase()
                .strip_prefix("etag: ")
                .map(str::to_owned)
        })
        .unwrap();
    let known = format!("If-None-Match: {tag}\r\nPrefer: wait=");
    let began = Instant::now();
    let (status, _) = world
        .call(Some(&beijing), line, &format!("{known}1\r\n"), "")
        .await;
    assert_eq!(status, 304);
    assert!(began.elapsed() >= Duration::from_secs(1));
    let headers = format!("{known}50\r\n");
    let (answer, changed) = tokio::join!(
        async {
            let answer = world.call(Some(&beijing), line, &headers, "").await;
            (answer, Instant::now())
        },
        async {
            tokio::time::sleep(Duration::from_millis(300)).await;
            // What is not about this member ends no wait of its.
            world.show(&["fabedge.connector", "beijing.connector"]);
            tokio::time::sleep(Duration::from_millis(300)).await;
            world.show(&["beijing.connector", "shanghai.connector"]);
            Instant::now()
        }
    );
    let ((status, text), at) = answer;
    assert_eq!(status, 200);
    assert!(text.contains("shanghai.connector"), "{text}");
    let took = at.duration_since(changed);
    assert!(
        took < Duration::from_secs(5),
        "{took:?}, of the 50 s that it would wait"
    );
}
