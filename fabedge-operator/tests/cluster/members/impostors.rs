//! Somebody else at the address of the host, and what a member tells him: nothing. What it had of its host it keeps.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use fabedge_operator::federation::api::{Registry, Unavailable, View, router};
use fabedge_operator::federation::caller::server_name;
use fabedge_operator::federation::listener;
use fabedge_operator::federation::report::Report;
use fabedge_operator::federation::token::{self, Tokens};
use fabedge_operator::pki::authority::Purpose;
use fabedge_operator::pki::{Authorities, Authority, inspect};
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use rcgen::KeyPair;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use serde_json::json;
use time::{Duration, OffsetDateTime};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

use super::host::connector;
use crate::cluster::world::World;

/// The host's cluster.
const HOST: &str = "impostorshost";
/// The member's, and its world.
const MEMBER: &str = "impostors";

/// Who answers at the address that the member dials.
#[derive(Clone)]
enum Answers {
    Nobody,
    Host(SocketAddr),
    Impostor(Arc<Impostor>),
}

/// Somebody who would like to be taken for the host.
struct Impostor {
    tls: TlsAcceptor,
    /// What it shows for its CA.
    shown: String,
    calls: AtomicUsize,
    /// What it was told past TLS.
    heard: Mutex<Vec<String>>,
}

impl Impostor {
    /// Asks for client certificates as the host does.
    fn new(
        signer: &Authority,
        name: &str,
        purpose: Purpose,
        at: OffsetDateTime,
        shown: &Authority,
    ) -> Arc<Self> {
        let key = KeyPair::generate().unwrap();
        let certificate = signer.certify(name, purpose, &key, at).unwrap();
        let chain = [
            inspect::certificate_der(&certificate).unwrap(),
            signer.der().to_vec(),
        ];
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from(shown.der().to_vec())).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
            .allow_unauthenticated()
            .build()
            .unwrap();
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(clients)
            .with_single_cert(
                chain.map(CertificateDer::from).to_vec(),
                PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
            )
            .unwrap();
        Arc::new(Self {
            tls: TlsAcceptor::from(Arc::new(config)),
            shown: shown.certificate().to_owned(),
            calls: AtomicUsize::default(),
            heard: Mutex::default(),
        })
    }

    async fn serve(&self, stream: TcpStream) {
        self.calls.fetch_add(1, Ordering::Relaxed);
        let Ok(stream) = self.tls.accept(stream).await else {
            return;
        };
        let known = stream.get_ref().1.peer_certificates().is_some();
        let service = service_fn(async |request: Request<Incoming>| {
            let (head, body) = request.into_parts();
            let body = body.collect().await.unwrap().to_bytes();
            let text = format!("{} {} {:?} {body:?}", head.method, head.uri, head.headers);
            let who = if known { ", with a certificate" } else { "" };
            self.heard.lock().unwrap().push(text + who);
            let answer = match head.uri.path() {
                "/api/ca-cert" => self.shown.clone(),
                // That everybody is gone.
                _ => json!({"communities": {}, "endpoints": [], "cidrs": {}}).to_string(),
            };
            Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(answer))))
        });
        http1::Builder::new()
            .serve_connection(TokioIo::new(stream), service)
            .await
            .ok();
    }

    /// All that it was told: a question for its CA, by nobody.
    fn heard_nothing(&self, who: &str) {
        assert!(self.calls.load(Ordering::Relaxed) > 0, "{who} was not called");
        for text in self.heard.lock().unwrap().iter() {
            assert!(text.starts_with("GET /api/ca-cert "), "{who}: {text}");
            for secret in ["authorization", "certificate", "eyJ", "BEGIN"] {
                assert!(!text.contains(secret), "{who}: {text}");
            }
        }
    }
}

/// Lets whoever it is answer, and ends his connections when it is another one's turn.
async fn answer(listener: TcpListener, who: watch::Receiver<Answers>) {
    loop {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut who = who.clone();
        tokio::spawn(async move {
            let answers = who.borrow_and_update().clone();
            let served = async {
                match answers {
                    Answers::Nobody => {}
                    Answers::Host(address) => {
                        let mut host = TcpStream::connect(address).await.unwrap();
                        tokio::io::copy_bidirectional(&mut stream, &mut host).await.ok();
                    }
                    Answers::Impostor(impostor) => impostor.serve(stream).await,
                }
            };
            tokio::select! {
                () = served => {}
                _ = who.changed() => {}
            }
        });
    }
}

/// Where the host writes to.
#[derive(Clone, Default)]
struct Memory(Arc<Mutex<Vec<String>>>);

impl Registry for Memory {
    async fn redeem(&self, cluster: &str, _: &str, _: &str) -> Result<bool, Unavailable> {
        self.0.lock().unwrap().push(cluster.to_owned());
        Ok(true)
    }

    async fn report(&self, _: &str, _: Report, _: &[String]) -> Result<(), Unavailable> {
        Ok(())
    }
}

fn authority(cluster: &str, now: OffsetDateTime) -> Authority {
    let ca = Authority::generate(cluster, now).unwrap();
    Authority::load(&ca.certificate, &ca.key, now).unwrap()
}

#[test]
fn nobody_but_its_host_hears_a_members_token_or_changes_what_it_has() {
    let now = OffsetDateTime::now_utc();
    let ca = Authority::generate(HOST, now).unwrap();
    let load = || Authority::load(&ca.certificate, &ca.key, now).unwrap();
    let (good, evil) = (load(), authority(HOST, now));
    let tokens = Arc::new(Tokens::new(&token::generate_key().unwrap()).unwrap());
    let mut world = World::new(MEMBER);
    world.listen();

    // The host itself, in this process.
    let (redeemed, server) = (Memory::default(), server_name(HOST));
    let connectors = [HOST, MEMBER].map(|cluster| format!("{cluster}.connector"));
    let view = View {
        authorities: Arc::new(Authorities::only(load())),
        addresses: Vec::new(),
        tokens: Arc::clone(&tokens),
        clusters: BTreeSet::from([MEMBER.to_owned()]),
        communities: [("connectors".to_owned(), connectors.to_vec())].into(),
        endpoints: vec![serde_json::from_value(connector(HOST, "192.168.0.0/18")).unwrap()],
        cidrs: [(HOST.to_owned(), vec!["192.168.0.0/18".to_owned()])].into(),
        others: Default::default(),
    };
    let (shows, shown) = watch::channel(None);
    let (who, answers) = watch::channel(Answers::Nobody);
    let local = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let (address, host) = world.runtime.block_on(async {
        let (dialled, own) = (
            TcpListener::bind(local).await.unwrap(),
            TcpListener::bind(local).await.unwrap(),
        );
        let addresses = (dialled.local_addr().unwrap(), own.local_addr().unwrap());
        tokio::spawn(answer(dialled, answers));
        let router = router(shown.clone(), redeemed.clone());
        tokio::spawn(listener::serve(own, HOST.to_owned(), shown, router));
        shows.send_replace(Some(Arc::new(view)));
        world.add_connector().await;
        addresses
    });

    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    world.settings = json!({
        "role": "member", "operatorAPIServer": format!("https://{address}"), "initTokenFile": file,
    });
    let token = tokens.issue(MEMBER, good.der(), now).unwrap();
    let of_evil = tokens.issue(MEMBER, evil.der(), now).unwrap();

    let impostor = Impostor::new;
    let pinned = "is not the one that was pinned";
    let cases = [
        (
            "another CA",
            impostor(&evil, &server, Purpose::ApiServer, now, &evil),
            pinned,
        ),
        // What the CA is anybody may ask the host.
        (
            "the CA shown on",
            impostor(&evil, &server, Purpose::ApiServer, now, &good),
            "BadSignature",
        ),
        (
            "a member",
            impostor(&good, "other.fabedge-client", Purpose::ApiServer, now, &good),
            "not that of a host",
        ),
        (
            "an endpoint",
            impostor(&good, "other.connector", Purpose::Ipsec, now, &good),
            "not that of a host",
        ),
        (
            "a client in a host's name",
            impostor(&good, &server, Purpose::ApiClient, now, &good),
            "invalid peer certificate",
        ),
        (
            "a host of last year",
            impostor(
                &good,
                &server,
                Purpose::ApiServer,
                now - Duration::days(365),
                &good,
            ),
            "the server's certificate is good until ",
        ),
    ];
    let kept = async |world: &World, entry: &str| {
        let secret = world.secrets().get_opt("api-client-tls").await.unwrap();
        let data = secret.and_then(|secret| secret.data).unwrap_or_default();
        data.get(entry).map_or(0, |bytes| bytes.0.len())
    };
    let refuses = |world: &mut World, what: &str, why: &str| {
        let place = world.start(what);
        world.runtime.block_on(async {
            world
                .wait_until(what, async || world.said(what).contains(why))
                .await;
            // A key of its own it may have made, and nothing that it was given.
            for entry in ["tls.crt", "ca.crt"] {
                assert_eq!(kept(world, entry).await, 0, "{what}: {entry}");
            }
        });
        assert!(world.terminate(place));
        let said = world.said(what);
        for token in [&token, &of_evil] {
            assert!(!said.contains(token.rsplit('.').next().unwrap()), "{said}");
        }
    };
    std::fs::write(&file, &token).unwrap();
    for (what, impostor, why) in &cases {
        who.send_replace(Answers::Impostor(Arc::clone(impostor)));
        refuses(&mut world, what, why);
        impostor.heard_nothing(what);
    }
    // The other way round: the host is who it is, and the token is of another one.
    std::fs::write(&file, &of_evil).unwrap();
    who.send_replace(Answers::Host(host));
    refuses(&mut world, "a token of another host", pinned);
    assert_eq!(*redeemed.0.lock().unwrap(), [""; 0]);

    // It joins whom its token is of.
    std::fs::write(&file, &token).unwrap();
    let place = world.start("joined");
    let peers = async |world: &World| {
        let document = world.document("connector-config").await;
        document.map_or_else(Vec::new, |(document, _)| {
            document
                .peers
                .iter()
                .map(|peer| peer.endpoint.name.clone())
                .collect()
        })
    };
    let heard = |world: &World, yes: u8| {
        let metrics = world.get("/metrics").unwrap_or_default().1;
        metrics.contains(&format!("\nfabedge_operator_host_heard {yes}\n"))
    };
    let versions = world.runtime.block_on(async {
        world
            .wait_until("the host's connector is a peer", async || {
                peers(&world).await == connectors[..1]
            })
            .await;
        world.wait_until("it is heard", async || heard(&world, 1)).await;
        world.settle().await;
        world.versions().await
    });
    assert_eq!(*redeemed.0.lock().unwrap(), [MEMBER]);
    assert!(
        versions
            .iter()
            .any(|(name, _)| name.as_deref() == Some("api-client-tls")),
        "{versions:?}"
    );

    // Somebody takes the host's place: what stands goes on, also after a restart.
    let (_, first, why) = &cases[1];
    world.runtime.block_on(async {
        who.send_replace(Answers::Impostor(Arc::clone(first)));
        world
            .wait_until("it is told", async || {
                let said = world.said("joined");
                said.contains(why) && said.contains("what stands goes on") && heard(&world, 0)
            })
            .await;
    });
    assert!(world.terminate(place));
    world.start("restarted");
    world.runtime.block_on(async {
        for (what, impostor, why) in &cases[..3] {
            let before = impostor.calls.load(Ordering::Relaxed);
            who.send_replace(Answers::Impostor(Arc::clone(impostor)));
            // Who is registered asks nobody for its CA: it has it.
            let why = if *why == pinned { "BadSignature" } else { why };
            world
                .wait_until(what, async || {
                    impostor.calls.load(Ordering::Relaxed) > before && world.said("restarted").contains(why)
                })
                .await;
            impostor.heard_nothing(what);
            assert_eq!(peers(&world).await, connectors[..1], "{what}");
        }
        assert_eq!(world.versions().await, versions);
        who.send_replace(Answers::Host(host));
        world
            .wait_until("the host is heard again", async || heard(&world, 1))
            .await;
        assert_eq!(world.versions().await, versions);
    });
    assert_eq!(*redeemed.0.lock().unwrap(), [MEMBER], "its token is used once");
}
