//! The operator's program, run as a pod of the chart would run it: with the token of its account and nothing else.

use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::cluster::{Cluster, NAMESPACE, PATIENCE};

/// A service account's way to the API.
pub struct Account {
    kubeconfig: PathBuf,
    folder: PathBuf,
    name: String,
}

/// A program that runs.
pub struct Running {
    child: Child,
    log: PathBuf,
}

impl Account {
    pub fn new(cluster: &Cluster, name: &str) -> Self {
        cluster.write(
            "token-request.json",
            r#"{"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}"#,
        );
        let answer = cluster.json(&format!(
            "kubectl create --raw /api/v1/namespaces/{NAMESPACE}/serviceaccounts/{name}/token -f token-request.json"
        ));
        let mut config = cluster.json("kubectl config view --raw --minify -o json");
        let user = config["contexts"][0]["context"]["user"].clone();
        config["users"] = json!([{"name": user, "user": {"token": answer["status"]["token"]}}]);
        let file = format!("{name}.kubeconfig");
        cluster.write(&file, &config.to_string());
        Self {
            kubeconfig: cluster.folder().join(file),
            folder: cluster.folder().to_owned(),
            name: name.to_owned(),
        }
    }

    /// Starts the operator's program.
    pub fn start(&self, words: &[&str]) -> Running {
        let program = std::env::var("FABEDGE_OPERATOR")
            .expect("FABEDGE_OPERATOR is not set: run `cargo xtask test --only k8s`");
        let log = self.folder.join(format!("{}.log", self.name));
        let file = File::create(&log).unwrap();
        let child = Command::new(program)
            .args(words)
            .current_dir(&self.folder)
            .env("KUBECONFIG", &self.kubeconfig)
            .stdin(Stdio::null())
            .stdout(file.try_clone().unwrap())
            .stderr(file)
            .spawn()
            .unwrap();
        Running { child, log }
    }
}

impl Running {
    /// What it has said.
    pub fn said(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    /// Waits for its end; whether that was a good one.
    pub fn wait(&mut self) -> bool {
        let started = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.success();
            }
            assert!(started.elapsed() < PATIENCE, "it goes on for {PATIENCE:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// SIGTERM, as a kubelet ends a container.
    pub fn terminate(&mut self) -> bool {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        self.wait()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
        if std::thread::panicking() {
            eprintln!("-- {}\n{}", self.log.display(), self.said());
        }
    }
}
