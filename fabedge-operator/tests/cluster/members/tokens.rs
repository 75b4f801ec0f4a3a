//! Tokens that are not the caller's, not of this host, or no longer good.

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use fabedge_operator::federation::caller::client_name;
use fabedge_operator::federation::token;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use rcgen::KeyPair;
use rsa::RsaPrivateKey;
use rsa::pkcs8::{DecodePrivateKey as _, EncodePublicKey as _, LineEnding};
use serde_json::{Value, json};

use super::client::{Client, Identity, Reply};
use super::host::{Host, csr};

async fn join(client: &Client, authorization: &str, request: &str) -> Reply {
    let header = [("Authorization", authorization)];
    client.call("POST /api/sign-cert", &header, request).await
}

fn claims(token: &str) -> Value {
    let part = token.split('.').nth(1).unwrap();
    serde_json::from_slice(&BASE64_URL_SAFE_NO_PAD.decode(part).unwrap()).unwrap()
}

#[test]
fn a_token_lets_one_key_of_one_cluster_in_and_only_in_time() {
    let host = Host::start("tokens", &["beijing", "bei"]);
    host.run(async {
        let anybody = host.anybody();
        let (key, other) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
        let own = client_name("tokens-beijing");
        let request = csr(&key, &own, &[]);
        let now = |seconds| host.token("tokens-beijing", "one", seconds);
        let public = RsaPrivateKey::from_pkcs8_pem(&host.key)
            .unwrap()
            .to_public_key()
            .to_public_key_pem(LineEnding::LF)
            .unwrap();
        let body = host.claims("tokens-beijing", "one", 600);
        let shared = EncodingKey::from_secret(public.as_bytes());
        let confused = jsonwebtoken::encode(&Header::new(Algorithm::HS256), &body, &shared).unwrap();
        let elsewhere = EncodingKey::from_rsa_pem(token::generate_key().unwrap().as_bytes()).unwrap();
        let foreign = jsonwebtoken::encode(&Header::new(Algorithm::RS256), &body, &elsewhere).unwrap();
        let part = |text: &str| BASE64_URL_SAFE_NO_PAD.encode(text);
        let unsigned = format!(
            "{}.{}.",
            part(r#"{"alg":"none","typ":"JWT"}"#),
            part(&body.to_string())
        );
        let upper = format!("{}.{}.", part(r#"{"alg":"NONE"}"#), part(&body.to_string()));
        let good = now(600);
        let (head, signature) = (good.split('.').next().unwrap(), good.rsplit('.').next().unwrap());
        let swapped = host.claims("tokens-beijing", "one", 1_000_000).to_string();
        let swapped = format!("{head}.{}.{signature}", part(&swapped));
        let own_key = Header {
            jwk: Some(jsonwebtoken::jwk::Jwk::from_encoding_key(&elsewhere, Algorithm::RS256).unwrap()),
            ..Header::new(Algorithm::RS256)
        };
        let own_key = jsonwebtoken::encode(&own_key, &body, &elsewhere).unwrap();
        let refused = [
            // Shorter than the scheme, and other schemes.
            String::new(),
            "B".to_owned(),
            "Bearer".to_owned(),
            "Bearer ".to_owned(),
            "bearer  ".to_owned(),
            format!("Basic {good}"),
            good.clone(),
            "Bearer \u{e9}\u{e9}".to_owned(),
            "Bearer a.b.c".to_owned(),
            "Bearer ..".to_owned(),
            format!("Bearer {}", "a".repeat(8000)),
            format!("Bearer {}", now(-120)),
            format!("Bearer {unsigned}"),
            format!("Bearer {upper}"),
            format!("Bearer {confused}"),
            format!("Bearer {foreign}"),
            format!("Bearer {own_key}"),
            format!("Bearer {swapped}"),
            format!("Bearer {head}.{}.", part(&body.to_string())),
        ];
        for (i, authorization) in refused.iter().enumerate() {
            // Each from an address of its own, which has not failed before.
            let reply = join(&anybody.from(i as u8 + 1), authorization, &request).await;
            assert_eq!(reply.status, 401, "{authorization}: {reply:?}");
        }
        // A token opens what needs no certificate yet, and nothing else.
        let bearer = format!("Bearer {good}");
        for line in ["PUT /api/cluster", "PUT /api/endpoints", "GET /api/cidrs"] {
            let reply = anybody.call(line, &[("Authorization", &bearer)], "").await;
            assert_eq!(reply.status, 401, "{line}: {reply:?}");
        }
        // In no other name: not another cluster's, not an endpoint's, not beside its own.
        for name in [
            "tokens-bei.fabedge-client",
            "tokens-beijing.connector",
            "tokens.fabedge-operator",
        ] {
            let reply = join(&anybody, &bearer, &csr(&other, name, &[])).await;
            assert_eq!(reply.status, 403, "{name}: {reply:?}");
        }
        let both = csr(&other, &own, &[&own, "tokens-bei.fabedge-client"]);
        assert_eq!(join(&anybody, &bearer, &both).await.status, 403);
        let of_bei = format!("Bearer {}", host.token("tokens-bei", "two", 600));
        assert_eq!(join(&anybody, &of_bei, &request).await.status, 403);
        let of_nobody = format!("Bearer {}", host.token("tokens-tokyo", "three", 600));
        let tokyo = csr(&other, "tokens-tokyo.fabedge-client", &[]);
        assert_eq!(join(&anybody, &of_nobody, &tokyo).await.status, 404);
        let header = [
            ("Authorization", bearer.as_str()),
            ("X-FabEdge-Cluster", "tokens-bei"),
        ];
        let reply = anybody.call("POST /api/sign-cert", &header, &request).await;
        assert_eq!(reply.status, 403, "{reply:?}");
        // None of that has used it up.
        let spent = async || {
            host.world
                .members()
                .get("tokens-beijing")
                .await
                .unwrap()
                .status
                .unwrap_or_default()
        };
        assert_eq!(spent().await.registration, None);

        // Two at once, each with a key of its own: one of them.
        let requests = (request.clone(), csr(&other, &own, &[]));
        let (first, second) = tokio::join!(
            join(&anybody, &bearer, &requests.0),
            join(&anybody, &bearer, &requests.1)
        );
        let mut statuses = [first.status, second.status];
        statuses.sort_unstable();
        assert_eq!(statuses, [200, 403], "{first:?} {second:?}");
        let (won, lost, reply, key) = if first.status == 200 {
            (requests.0, requests.1, first, key)
        } else {
            (requests.1, requests.0, second, other)
        };
        // A reply that was lost is had again; whoever has seen the token has nothing.
        assert_eq!(join(&anybody, &bearer, &won).await.status, 200);
        assert_eq!(join(&anybody, &bearer, &lost).await.status, 403);
        let late = format!("Bearer {}", host.token("tokens-beijing", "four", 600));
        assert_eq!(
            join(&anybody, &late, &lost).await.status,
            403,
            "it has registered"
        );
        assert_eq!(spent().await.registration.unwrap().token, "one");
        let identity = Identity {
            certificate: reply.body,
            key,
        };
        let joined = host.client(Some(&identity)).call("GET /api/cidrs", &[], "").await;
        assert_eq!(joined.status, 200, "{joined:?}");
        host.still_serves("bei").await;
    });
}

#[test]
fn who_guesses_has_to_wait_and_keeps_nobody_from_joining() {
    let host = Host::start("guesses", &["beijing"]);
    host.run(async {
        let guesser = host.anybody().from(200);
        let key = KeyPair::generate().unwrap();
        let request = csr(&key, &client_name("guesses-beijing"), &[]);
        let mut statuses = Vec::new();
        for _ in 0..30 {
            statuses.push(join(&guesser, "Bearer a.b.c", &request).await.status);
        }
        assert_eq!(statuses[0], 401, "{statuses:?}");
        assert!(statuses[10..].iter().all(|status| *status == 429), "{statuses:?}");
        // Behind a NodePort others may have the same address.
        let good = format!("Bearer {}", host.token("guesses-beijing", "one", 600));
        assert_eq!(join(&guesser, &good, &request).await.status, 200);
        host.still_serves("beijing").await;
    });
}

#[test]
fn a_token_is_renewed_until_it_is_used_and_is_written_nowhere_else() {
    let mut host = Host::start("renewals", &["beijing", "bei"]);
    host.run(async {
        let token = async |name: &str| {
            host.world
                .members()
                .get(name)
                .await
                .unwrap()
                .spec
                .token
                .unwrap_or_default()
        };
        let given = token("renewals-beijing").await;
        let said = claims(&given);
        assert_eq!(said["sub"], "renewals-beijing");
        // By which the member knows the host's authority before it trusts it.
        assert_eq!(said["caHash"], token::ca_hash(host.authority.der()));
        let shown = host.anybody().call("GET /api/ca-cert", &[], "").await;
        assert_eq!(shown.body, host.authority.certificate());
        assert_ne!(said["jti"], claims(&token("renewals-bei").await)["jti"]);

        // One that is about to end, one that has ended, one of somebody else's key, and no token at all.
        let almost = host.token("renewals-beijing", "almost", 300);
        let ended = host.token("renewals-beijing", "ended", -86400);
        for old in [almost.as_str(), ended.as_str(), "hello", ""] {
            host.world
                .register("renewals-beijing", json!({"token": old}))
                .await;
            host.world
                .wait_until("it is replaced", async || {
                    let token = token("renewals-beijing").await;
                    token != old && !token.is_empty()
                })
                .await;
            let new = claims(&token("renewals-beijing").await);
            let left = new["exp"].as_i64().unwrap() - time::OffsetDateTime::now_utc().unix_timestamp();
            assert!((11 * 3600..=12 * 3600).contains(&left), "{left} s");
        }
        // One that is good stays as it is: the member may be on its way with it.
        let good = token("renewals-beijing").await;
        host.world.register("renewals-other", json!({})).await;
        host.world
            .wait_until("another has one", async || {
                !token("renewals-other").await.is_empty()
            })
            .await;
        assert_eq!(token("renewals-beijing").await, good);

        // Used: no other one is made, though it ends soon.
        let key = KeyPair::generate().unwrap();
        let request = csr(&key, &client_name("renewals-beijing"), &[]);
        let reply = join(&host.anybody(), &format!("Bearer {good}"), &request).await;
        assert_eq!(reply.status, 200, "{reply:?}");
        host.world
            .register("renewals-beijing", json!({"token": almost}))
            .await;
        host.world.register("renewals-more", json!({})).await;
        host.world
            .wait_until("another has one", async || {
                !token("renewals-more").await.is_empty()
            })
            .await;
        assert_eq!(token("renewals-beijing").await, almost);

        // Where others read: arguments, environment, log.
        let process = format!("/proc/{}", host.pid);
        let mut texts = vec![host.world.said("one")];
        for file in ["cmdline", "environ"] {
            texts.push(
                String::from_utf8_lossy(&std::fs::read(format!("{process}/{file}")).unwrap()).into_owned(),
            );
        }
        assert!(texts[1].contains("run"), "{texts:?}");
        for secret in [
            &given,
            &good,
            &almost,
            &host.key.lines().nth(1).unwrap().to_owned(),
        ] {
            let part = secret.rsplit('.').next().unwrap();
            for text in &texts {
                assert!(!text.contains(part), "{text}");
            }
        }
        host.still_serves("bei").await;
    });
    // It ends well, though somebody is still there.
    let waiting = host.member("bei");
    let held = host.run(waiting.connect()).unwrap();
    assert!(host.world.terminate(0));
    drop(held);
}
