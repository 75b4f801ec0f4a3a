//! A member joins, with the means that its administrator has: kubectl, openssl and curl.

use std::path::Path;
use std::process::Command;

use fabedge_operator::api::{Cluster, Community};
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::json;

use crate::cluster::world::{World, free_port};

struct Member {
    /// `<world>-<name>`: the name of its Cluster.
    cluster: String,
    folder: tempfile::TempDir,
    port: u16,
}

impl Member {
    fn new(world: &World, name: &str, port: u16) -> Self {
        Self {
            cluster: format!("{}-{name}", world.name),
            folder: tempfile::tempdir().unwrap(),
            port,
        }
    }

    fn run(&self, command: &str, args: &[&str]) -> String {
        let done = Command::new(command)
            .args(args)
            .current_dir(self.folder.path())
            .output()
            .unwrap_or_else(|error| panic!("{command}: {error}"));
        let said = String::from_utf8_lossy(&done.stderr);
        assert!(done.status.success(), "{command} {args:?}: {said}");
        String::from_utf8(done.stdout).unwrap()
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    /// A key and a request in this name.
    fn request(&self, file: &str, name: &str) {
        let subject = format!("/C=CN/O=fabedge.io/CN={name}");
        let key = format!("{file}.key");
        let out = format!("{file}.csr");
        self.run(
            "openssl",
            &[
                "req", "-new", "-newkey", "rsa:2048", "-nodes", "-subj", &subject, "-keyout", &key, "-out",
                &out,
            ],
        );
    }

    /// Calls the API; returns the status, and keeps the body in `reply`.
    fn call(&self, args: &[&str], path: &str) -> u16 {
        // By the name in the certificate, at the address of any node.
        let host = format!("{}.fabedge-operator", self.cluster.split_once('-').unwrap().0);
        let to = format!("{host}:{0}:127.0.0.1:{0}", self.port);
        let url = format!("https://{host}:{}{path}", self.port);
        let mut all = vec![
            "-s",
            "-S",
            "-m",
            "60",
            "-o",
            "reply",
            "-w",
            "%{http_code}",
            "--connect-to",
            &to,
        ];
        all.extend(args);
        all.push(&url);
        self.run("curl", &all).parse().unwrap()
    }

    fn reply(&self) -> String {
        std::fs::read_to_string(self.path().join("reply")).unwrap()
    }

    fn keep_reply(&self, file: &str) {
        std::fs::rename(self.path().join("reply"), self.path().join(file)).unwrap();
    }
}

#[test]
fn a_cluster_registers_by_its_token_and_reports_its_connector() {
    let mut world = World::new("members");
    let port = free_port();
    world.settings = json!({"role": "host", "apiListen": format!("127.0.0.1:{port}")});
    world.start("one");
    world.runtime.block_on(async {
        world.add_connector().await;
        let clusters: Api<Cluster> = Api::all(world.client.clone());
        let member = Member::new(&world, "beijing", port);
        let name = member.cluster.as_str();
        let object = json!({"apiVersion": "fabedge.io/v1alpha1", "kind": "Cluster", "metadata": {"name": name}});
        clusters
            .patch(name, &PatchParams::apply("tests"), &Patch::Apply(&object))
            .await
            .unwrap();
        // As the guide has it, to the letter but for the name.
        let template = "--template={{.spec.token}}";
        let token = async || world.kubectl(&["get", "cluster", name, "-o", "go-template", template]);
        world
            .wait_until("there is a token", async || token().await.starts_with("eyJ"))
            .await;
        let authorization = format!("Authorization: Bearer {}", token().await);
        world.wait_until("the API answers", async || {
            Command::new("curl")
                .args(["-s", "-k", "-o", "/dev/null", &format!("https://127.0.0.1:{port}/api/ca-cert")])
                .status()
                .unwrap()
                .success()
        })
        .await;

        // Fetched blindly, and known by the hash in the token.
        assert_eq!(member.call(&["-k"], "/api/ca-cert"), 200);
        member.keep_reply("ca.crt");
        let hash = member.run("sh", &["-c", "openssl x509 -in ca.crt -outform der | sha256sum | cut -d' ' -f1"]);
        let claims = member.run(
            "sh",
            &["-c", &format!(
                "printf '%s' '{}' | cut -d. -f2 | tr '_-' '/+' | sed 's/$/==/' | base64 -d 2>/dev/null; true",
                token().await
            )],
        );
        assert!(claims.contains(hash.trim()), "{claims} names the CA");

        member.request("client", &format!("{name}.fabedge-client"));
        let sign = ["--cacert", "ca.crt", "-H", &authorization, "--data-binary", "@client.csr"];
        assert_eq!(member.call(&sign, "/api/sign-cert"), 200, "{}", member.reply());
        member.keep_reply("client.crt");
        assert_eq!(member.call(&sign, "/api/sign-cert"), 200, "again with the same key");
        member.request("thief", &format!("{name}.fabedge-client"));
        let stolen = ["--cacert", "ca.crt", "-H", &authorization, "--data-binary", "@thief.csr"];
        assert_eq!(member.call(&stolen, "/api/sign-cert"), 403);
        let used = clusters.get(name).await.unwrap().status.unwrap().registration.unwrap();
        assert_eq!(used.key.len(), 64);

        let tls = ["--cacert", "ca.crt", "--cert", "client.crt", "--key", "client.key"];
        let with = |more: &[&'static str]| [&tls[..], more].concat();
        member.request("connector", &format!("{name}.connector"));
        assert_eq!(member.call(&with(&["--data-binary", "@connector.csr"]), "/api/sign-cert"), 200);
        member.keep_reply("connector.crt");
        member.run("openssl", &["verify", "-CAfile", "ca.crt", "connector.crt"]);

        // Its connector, and one that is the host's to name.
        let endpoint = |cluster: &str, subnet: &str| {
            json!({
                "id": format!("C=CN, O=fabedge.io, CN={cluster}.connector"), "name": format!("{cluster}.connector"),
                "publicAddresses": ["203.0.113.9"], "subnets": [subnet], "nodeSubnets": [], "type": "Connector",
            })
        };
        let report = |endpoints: serde_json::Value| {
            let body = json!({"spec": {"cidrs": ["192.168.64.0/18"], "endpoints": endpoints}});
            std::fs::write(member.path().join("report"), body.to_string()).unwrap();
        };
        let put = with(&["-X", "PUT", "--data-binary", "@report"]);
        report(json!([endpoint(name, "192.168.64.0/18"), endpoint(world.name, "10.99.0.0/24")]));
        assert_eq!(member.call(&put, "/api/cluster"), 400);
        assert!(member.reply().contains("spec.endpoints[1]"), "{}", member.reply());
        world.wait_for_event(("Cluster", "beijing"), "Warning", "spec.endpoints[1]").await;
        report(json!([endpoint(name, "192.168.64.0/18")]));
        assert_eq!(member.call(&put, "/api/cluster"), 204, "{}", member.reply());
        let spec = clusters.get(name).await.unwrap().spec;
        assert_eq!((spec.cidrs, spec.endpoints.len()), (vec!["192.168.64.0/18".to_owned()], 1));
        world
            .wait_until("it is ready", async || {
                let table = world.kubectl(&["get", "cluster", name]);
                table.lines().nth(1).is_some_and(|line| line.split_whitespace().any(|word| word == "True"))
            })
            .await;

        // Told of each other, and tunnels between them, as long as a Community names both.
        let community = json!({
            "apiVersion": "fabedge.io/v1alpha1", "kind": "Community", "metadata": {"name": "members-both"},
            "spec": {"members": [format!("{name}.connector"), format!("{}.connector", world.name)]},
        });
        let community: Community = serde_json::from_value(community).unwrap();
        let params = PatchParams::apply("tests").force();
        world
            .communities()
            .patch("members-both", &params, &Patch::Apply(&community))
            .await
            .unwrap();
        let peers = async || {
            let document = world.document("connector-config").await;
            document.map_or_else(Vec::new, |(document, _)| {
                document.peers.iter().map(|peer| peer.endpoint.name.clone()).collect()
            })
        };
        world
            .wait_until("the connector has a peer", async || {
                peers().await == [format!("{name}.connector")]
            })
            .await;
        // Members are told once the documents are written.
        let news = async || {
            assert_eq!(member.call(&tls, "/api/endpoints-and-communities"), 200);
            serde_json::from_str(&member.reply()).unwrap()
        };
        let own = format!("{}.connector", world.name);
        world
            .wait_to_see("the member is told", news, |news: &serde_json::Value| news["endpoints"][0]["name"] == own)
            .await;
        assert_eq!(member.call(&tls, "/api/cidrs"), 200);
        assert!(member.reply().contains("10.0.0.0/8"), "{}", member.reply());

        // Gone from here: its certificate opens nothing, and its tunnel ends.
        clusters.delete(name, &Default::default()).await.unwrap();
        world
            .wait_to_see("it is forgotten", async || member.call(&tls, "/api/cidrs"), |status| *status == 404)
            .await;
        world
            .wait_until("the connector has no peer", async || peers().await.is_empty())
            .await;
    });
}
