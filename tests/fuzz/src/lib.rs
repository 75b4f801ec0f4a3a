//! The parsers at the boundary: what strangers, members, nodes and users send. A target takes any bytes, and panics
//! when the parser does, or when what it let through is not what it promises.

use std::collections::BTreeSet;
use std::sync::{Arc, OnceLock};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use fabedge_common::config::{Document, NodeConfig, packed};
use fabedge_operator::federation::caller::{Caller, client_name};
use fabedge_operator::federation::news::News;
use fabedge_operator::federation::report::{Others, Owner, Report};
use fabedge_operator::federation::token::{self, Said, Tokens};
use fabedge_operator::observe::manifest;
use fabedge_operator::pki::rotation::{Authorities, CERTIFICATE, Entries, KEY};
use fabedge_operator::pki::{Authority, Revocations, request, revocation};
use ipnet::IpNet;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::Value;
use time::OffsetDateTime;

/// The variable of the environment that names the target to the fuzzer's program.
pub const VARIABLE: &str = "FABEDGE_FUZZ_TARGET";

/// One parser.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Also the folder of its corpus.
    pub name: &'static str,
    /// Takes any bytes.
    pub run: fn(&[u8]),
}

/// All of them.
pub const TARGETS: &[Target] = &[
    Target {
        name: "csr",
        run: csr,
    },
    Target {
        name: "jwt",
        run: jwt,
    },
    Target {
        name: "report",
        run: report,
    },
    Target {
        name: "news",
        run: news,
    },
    Target {
        name: "node-config",
        run: node_config,
    },
    Target {
        name: "manifest",
        run: manifests,
    },
    Target {
        name: "client-certificate",
        run: client_certificate,
    },
    Target {
        name: "revocation-lists",
        run: revocation_lists,
    },
    Target {
        name: "revoked",
        run: revoked,
    },
];

/// The certificate signing request of a member that joins: PEM, or DER, of which PEM is made.
fn csr(data: &[u8]) {
    let pem = match std::str::from_utf8(data) {
        Ok(text) if text.contains("-----") => text.to_owned(),
        _ => format!(
            "-----BEGIN CERTIFICATE REQUEST-----\n{}\n-----END CERTIFICATE REQUEST-----\n",
            STANDARD.encode(data)
        ),
    };
    if let Ok(request) = request::read(&pem) {
        assert_eq!(request.fingerprint.len(), 64);
    }
}

/// The token of a member that joins: as it comes, or claims, of which a token is made that is signed with our key.
fn jwt(data: &[u8]) {
    static KEY: OnceLock<(Tokens, EncodingKey)> = OnceLock::new();
    let (tokens, key) = KEY.get_or_init(|| {
        let pem = token::generate_key().expect("there is randomness");
        let key = EncodingKey::from_rsa_pem(pem.as_bytes()).expect("it is a key");
        (Tokens::new(&pem).expect("it is a key"), key)
    });
    let now = OffsetDateTime::UNIX_EPOCH + time::Duration::days(20_000);
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    // As a member reads it, who has no key to check it with.
    drop(Said::read(text));
    if !text.starts_with('{') {
        assert!(tokens.check(text, now).is_err(), "nobody else has the key");
        return;
    }
    // Claims as they are, whatever they are; only a text that is a JSON value of its own can stand in a token.
    let Ok(claims) = serde_json::from_str::<Value>(text) else {
        return;
    };
    let token =
        jsonwebtoken::encode(&Header::new(Algorithm::RS256), &claims, key).expect("any claims can be signed");
    if let Ok(claims) = tokens.check(&token, now) {
        assert!(claims.exp > now.unix_timestamp() - 61, "{claims:?}");
    }
}

/// What a member reports of itself, in the shapes of both calls.
fn report(data: &[u8]) {
    static OTHERS: OnceLock<(Vec<IpNet>, Others)> = OnceLock::new();
    let (nets, others) = OTHERS.get_or_init(|| {
        let mut others = Others::default();
        let nets =
            ["10.233.0.0/16", "10.235.64.0/18", "fd00:64::/64"].map(|net| net.parse().expect("a prefix"));
        others.add(nets[0], Owner::Host("pods"));
        others.add(nets[1], Owner::Member("shanghai".to_owned()));
        others.add(nets[2], Owner::Member("bei".to_owned()));
        (nets.to_vec(), others)
    });
    for report in [Report::of_cluster(data), Report::of_endpoints(data)]
        .into_iter()
        .flatten()
    {
        let (taken, _) = report.judge("beijing", others);
        for endpoint in &taken.endpoints {
            assert!(endpoint.name.starts_with("beijing."), "{endpoint:?}");
        }
        let endpoints = taken.endpoints.iter();
        let prefixes = endpoints.flat_map(|endpoint| endpoint.subnets.iter().chain(&endpoint.node_subnets));
        for text in prefixes.chain(taken.cidrs.iter().flatten()) {
            let net = text
                .parse::<IpNet>()
                .or_else(|_| text.parse::<std::net::IpAddr>().map(IpNet::from))
                .expect("what was taken is a prefix");
            assert!(net.prefix_len() > 0, "{text}");
            for other in nets {
                assert!(
                    !net.contains(other) && !other.contains(&net),
                    "{text} is another's"
                );
            }
        }
    }
}

/// What a host tells its members.
fn news(data: &[u8]) {
    if let Ok(text) = std::str::from_utf8(data) {
        // What of it is taken is for the topology.
        drop(News::read(text));
    }
}

/// A node's document, plain or packed.
fn node_config(data: &[u8]) {
    let plain = std::str::from_utf8(data).map(str::to_owned).ok();
    for text in plain.into_iter().chain(packed::unpack(data)) {
        if let Ok(config) = NodeConfig::parse(&text) {
            let text = config.to_yaml().expect("what was read can be written");
            assert_eq!(NodeConfig::parse(&text).expect("and read again"), config);
            follow(text, config);
        }
    }
}

/// Documents that follow one another say what each says by itself: one, the same with its last peer elsewhere, and the first again.
fn follow(text: String, config: NodeConfig) {
    let mut other = config.clone();
    let Some(last) = other.peers.last_mut() else {
        return;
    };
    let addresses = &mut Arc::make_mut(last).endpoint.public_addresses;
    addresses.push("192.0.2.1".to_owned());
    let between = other.to_yaml().expect("so can another");
    let mut document = Document::parse(text.clone()).expect("read before");
    let alone = NodeConfig::parse(&between).ok();
    let next = document.next(between).ok();
    let next = next.map(|()| (**document.config()).clone());
    assert_eq!(next, alone);
    document.next(text).expect("read before");
    assert_eq!(**document.config(), config);
}

/// Manifests and settings of a user.
fn manifests(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    // What comes of it is for the topology; what is wrong is told.
    drop(manifest::parse("file.yaml", text));
    drop(manifest::settings(text));
}

/// The certificate of who calls the network API, DER.
fn client_certificate(data: &[u8]) {
    if let Caller::Member(cluster) = Caller::of(Some(data)) {
        assert!(!cluster.contains('.') && !cluster.is_empty());
        let name = client_name(&cluster);
        assert!(
            data.windows(name.len()).any(|bytes| bytes == name.as_bytes()),
            "{cluster}"
        );
    }
}

/// Authorities, and what is kept of them.
fn authorities() -> &'static (Entries, Authorities, OffsetDateTime) {
    static KEPT: OnceLock<(Entries, Authorities, OffsetDateTime)> = OnceLock::new();
    KEPT.get_or_init(|| {
        let now = OffsetDateTime::UNIX_EPOCH + time::Duration::days(20_000);
        let made = Authority::generate("fabedge", now).expect("there is randomness");
        let entries = [(CERTIFICATE, made.certificate), (KEY, made.key)];
        let entries = Entries::from(entries.map(|(name, text)| (name.to_owned(), text)));
        let authorities = Authorities::load(&entries, now).expect("it is one");
        (entries, authorities, now)
    })
}

/// What a host says that its authorities have revoked, as a member reads it: PEM, or DER, of which PEM is
/// made.
fn revocation_lists(data: &[u8]) {
    let (_, authorities, _) = authorities();
    let pem = match std::str::from_utf8(data) {
        Ok(text) => text.to_owned(),
        Err(_) => format!(
            "-----BEGIN X509 CRL-----\n{}\n-----END X509 CRL-----\n",
            STANDARD.encode(data)
        ),
    };
    if authorities.trust().clone().with_lists(&pem).is_ok() {
        assert!(pem.trim().is_empty(), "nobody else has the key");
    }
}

/// What is kept of revocations, and the annotation's serial numbers. What is read there comes out of lists again.
fn revoked(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    if let Ok(read) = Revocations::read(text) {
        assert_eq!(Revocations::read(&read.text()).expect("its own text"), read);
    }
    let (entries, _, now) = authorities();
    let mut entries = entries.clone();
    entries.insert("revoked".to_owned(), text.to_owned());
    let Ok(authorities) = Authorities::load(&entries, *now) else {
        return;
    };
    let serials: BTreeSet<String> = text.split([',', ' ']).filter_map(revocation::serial).collect();
    let certificates: Vec<_> = serials.into_iter().map(|serial| (serial, None)).collect();
    let (kept, failed) = authorities.revoke(&entries, &certificates, |_| true, *now);
    assert!(failed.is_empty(), "{failed:?}");
    if let Some(kept) = kept {
        let all = Authorities::load(&kept, *now).expect("what was kept");
        let (again, _) = all.revoke(&kept, &certificates, |_| true, *now);
        assert_eq!(again, None, "everything is on a list");
    }
}
