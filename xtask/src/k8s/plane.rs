//! A control plane that runs: etcd, API server, controller manager, scheduler, each a process in a session of its own.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::net::{IpAddr, TcpListener};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;
use time::OffsetDateTime;

use super::nodes::ground::Ground;
use super::pki::{self, Authority, Identity, Pair};
use super::programs::{self, AUTHORITY, Files, Ports, Program, Seat, Services, TOKENS};
use super::state::{self, Started, State};
use crate::interrupt::Interrupt;
use crate::process::Process;
use crate::progress::{step, tail};

/// A busy machine may take its time: alone, it is six seconds.
const PATIENCE: Duration = Duration::from_secs(180);
/// Becomes a program once it is recorded; when this process is killed before that, nothing starts.
const WHEN_RECORDED: &str = r#"read -r go && exec "$@" </dev/null"#;
const BETWEEN_PROBES: Duration = Duration::from_millis(200);

/// A control plane. Unless it is kept, dropping it ends it.
#[derive(Debug)]
pub struct Plane {
    programs: PathBuf,
    seat: Seat,
    files: Files,
    state: State,
    children: Vec<Child>,
    interrupt: Interrupt,
    keep: bool,
}

impl Plane {
    /// Starts one without nodes and waits until it serves. Its folder must not be there.
    pub fn start(programs: &Path, seat: Seat, files: Files, interrupt: &Interrupt) -> Result<Plane> {
        Plane::start_on(programs, seat, files, Ground::default(), interrupt)
    }

    /// The same on a ground for nodes, which is laid first and goes with it.
    pub fn start_on(
        programs: &Path,
        seat: Seat,
        files: Files,
        ground: Ground,
        interrupt: &Interrupt,
    ) -> Result<Plane> {
        prepare(&seat, &files, &ground.kubelets())?;
        let state = State {
            url: seat.api_url(),
            kubeconfig: files.kubeconfig(pki::ADMIN),
            kubectl: programs.join("kubectl"),
            complete: false,
            programs: Vec::new(),
            ground,
        };
        // Before anything of it is there: whoever finds the record can take away what was made until then.
        state.write(&files.folder)?;
        let mut plane = Plane {
            programs: programs.to_owned(),
            seat,
            files,
            state,
            children: Vec::new(),
            interrupt: interrupt.clone(),
            keep: false,
        };
        plane.state.ground.lay()?;
        step("starting etcd and kube-apiserver", || plane.start_servers(None))?;
        step("starting kube-controller-manager and kube-scheduler", || {
            plane.start_controllers()
        })?;
        Ok(plane)
    }

    /// One that another command has started. It stays up when this value goes.
    pub fn of(state: State, programs: &Path, seat: Seat, files: Files, interrupt: &Interrupt) -> Plane {
        Plane {
            programs: programs.to_owned(),
            seat,
            files,
            state,
            children: Vec::new(),
            interrupt: interrupt.clone(),
            keep: true,
        }
    }

    /// Puts a backup in the place of what the store holds, and starts everything anew that knows what it held.
    pub fn restore(&mut self, backup: &Path) -> Result<()> {
        step("ending the control plane", || {
            self.state.end_some(&programs::NAMES)?;
            self.state.write(&self.files.folder)
        })?;
        step("starting etcd with the backup, and kube-apiserver", || {
            self.start_servers(Some(backup))
        })?;
        step("starting kube-controller-manager and kube-scheduler", || {
            self.start_controllers()
        })
    }

    fn start_servers(&mut self, backup: Option<&Path>) -> Result<()> {
        self.spawn(&programs::etcd(backup, &self.programs, &self.seat, &self.files))?;
        // It waits for etcd by itself.
        let api = programs::api_server(&self.programs, &self.seat, &self.files);
        self.spawn(&api)?;
        self.wait_for(&api, &["get", "--raw", "/readyz"])
    }

    fn start_controllers(&mut self) -> Result<()> {
        let controllers = programs::controller_manager(&self.programs, &self.seat, &self.files);
        let scheduler = programs::scheduler(&self.programs, &self.seat, &self.files);
        self.spawn(&controllers)?;
        self.spawn(&scheduler)?;
        let urls = [self.seat.controllers_url(), self.seat.scheduler_url()];
        for (program, url) in [&controllers, &scheduler].into_iter().zip(&urls) {
            self.wait_for(program, &["--server", url, "get", "--raw", "/healthz"])?;
        }
        // Without it no pod is admitted to the namespace.
        let account = "/api/v1/namespaces/default/serviceaccounts/default";
        self.wait_for(&controllers, &["get", "--raw", account])
    }

    /// Starts a program, which its folder records before it begins.
    pub fn spawn(&mut self, program: &Program) -> Result<()> {
        let path = self.files.log(program.name);
        let log = File::create(&path).with_context(|| format!("creating {}", path.display()))?;
        // Not by the user's environment: a proxy, say, is for other connections.
        let mut child = Command::new("setsid")
            .args(["sh", "-c", WHEN_RECORDED, program.name])
            .args(&program.words)
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .current_dir(&self.files.folder)
            .stdin(Stdio::piped())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("starting {}", program.name))?;
        let (id, go) = (child.id(), child.stdin.take());
        self.children.push(child);
        self.state.programs.push(Started {
            name: program.name.to_owned(),
            log: path,
            process: Process::of(id).with_context(|| format!("starting {}", program.name))?,
        });
        self.state.write(&self.files.folder)?;
        self.state.ground.admit(program.name, id)?;
        // From here on another process can end it, whatever becomes of this one.
        go.context("a child without input")?
            .write_all(b"go\n")
            .with_context(|| format!("starting {}", program.name))
    }

    /// A kubectl command of the administrator.
    pub fn kubectl(&self, arguments: &[&str]) -> Command {
        let words = programs::kubectl(&self.programs, &self.seat, &self.files, arguments);
        let mut command = Command::new(&words[0]);
        command
            .args(&words[1..])
            .env("NO_PROXY", "*")
            .stdin(Stdio::null());
        command
    }

    /// Waits until a question to a program is answered.
    fn wait_for(&self, program: &Program, question: &[&str]) -> Result<()> {
        let started = Instant::now();
        loop {
            let asked = self
                .kubectl(question)
                .arg("--request-timeout=10s")
                .output()
                .context("starting kubectl")?;
            if asked.status.success() {
                return Ok(());
            }
            self.check_alive()?;
            self.interrupt.check()?;
            if started.elapsed() > PATIENCE {
                bail!(
                    "{} did not serve within {PATIENCE:?} (`kubectl {}`: {}); the end of {}:\n{}",
                    program.name,
                    question.join(" "),
                    String::from_utf8_lossy(&asked.stderr).trim(),
                    self.files.log(program.name).display(),
                    tail(&self.files.log(program.name), 0)
                );
            }
            std::thread::sleep(BETWEEN_PROBES);
        }
    }

    /// An error with the end of its log when a program has ended.
    pub fn check_alive(&self) -> Result<()> {
        match self
            .state
            .programs
            .iter()
            .find(|program| !program.process.lives())
        {
            None => Ok(()),
            Some(program) => bail!(
                "{} has ended; the end of {}:\n{}",
                program.name,
                program.log.display(),
                tail(&program.log, 0)
            ),
        }
    }

    /// Records that it is whole, and leaves it up when this value goes.
    pub fn keep(mut self) -> Result<()> {
        self.state.complete = true;
        self.state.write(&self.files.folder)?;
        self.keep = true;
        Ok(())
    }

    /// Its record.
    pub fn state(&self) -> &State {
        &self.state
    }
}

impl Drop for Plane {
    fn drop(&mut self) {
        if self.keep {
            return;
        }
        // Children become zombies, which this process alone can take away.
        for child in self.children.iter_mut().rev() {
            if child.kill().and_then(|()| child.wait()).is_err() {
                eprintln!("warning: process {} could not be ended", child.id());
            }
        }
        if let Err(problem) = self.state.ground.remove() {
            eprintln!("warning: {problem:#}; `cargo xtask k8s down` tries again");
            return;
        }
        if let Err(problem) = state::remove(&self.files.folder) {
            eprintln!("warning: {problem:#}");
        }
    }
}

/// Loopback, on ports that nobody has. They lie below those that the kernel gives to outgoing connections, and commands
/// that start at the same time look at different places first: nobody takes them before our programs do.
pub fn on_loopback() -> Result<Seat> {
    let address: IpAddr = [127, 0, 0, 1].into();
    let first = 20_000 + u16::try_from(std::process::id() % 1_000)? * 10;
    let mut held = Vec::new();
    for port in first..32_000 {
        if let Ok(listener) = TcpListener::bind((address, port)) {
            held.push((port, listener));
        }
        if let [
            (api, _),
            (etcd, _),
            (etcd_peers, _),
            (controllers, _),
            (scheduler, _),
        ] = held[..]
        {
            return Ok(Seat {
                namespace: None,
                address,
                ports: Ports {
                    api,
                    etcd,
                    etcd_peers,
                    controllers,
                    scheduler,
                },
                services: Services::USUAL,
            });
        }
    }
    bail!("no five free ports on {address} between {first} and 32000")
}

/// Makes the folders, keys, certificates and kubeconfigs.
fn prepare(seat: &Seat, files: &Files, kubelets: &[Identity]) -> Result<()> {
    std::fs::create_dir_all(&files.logs).with_context(|| format!("creating {}", files.logs.display()))?;
    for folder in [files.folder.clone(), files.folder.join("pki"), files.data()] {
        std::fs::DirBuilder::new()
            .mode(0o700)
            .create(&folder)
            .with_context(|| format!("creating {}", folder.display()))?;
    }
    let authority = Authority::new(OffsetDateTime::now_utc())?;
    let trusted = authority.pair();
    write_pair(files, AUTHORITY, &trusted)?;
    write_pair(files, TOKENS, &pki::token_key()?)?;
    for identity in pki::identities(seat.address, seat.services.api)
        .iter()
        .chain(kubelets)
    {
        let pair = authority.issue(identity)?;
        write_pair(files, &identity.file, &pair)?;
        if identity.role == pki::Role::Client {
            write_private(
                &files.kubeconfig(&identity.file),
                &kubeconfig(&seat.api_url(), &trusted.public, &pair),
            )?;
        }
    }
    Ok(())
}

fn write_pair(files: &Files, name: &str, pair: &Pair) -> Result<()> {
    write_private(&files.certificate(name), &pair.public)?;
    write_private(&files.key(name), &pair.private)
}

fn write_private(path: &Path, text: &str) -> Result<()> {
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .with_context(|| format!("writing {}", path.display()))
}

/// How a client finds the API server and proves itself, with everything inside, as the JSON that is YAML too.
fn kubeconfig(url: &str, authority: &str, client: &Pair) -> String {
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "fabedge", "cluster": {
            "server": url,
            "certificate-authority-data": STANDARD.encode(authority),
        }}],
        "users": [{"name": "user", "user": {
            "client-certificate-data": STANDARD.encode(&client.public),
            "client-key-data": STANDARD.encode(&client.private),
        }}],
        "contexts": [{"name": "fabedge", "context": {"cluster": "fabedge", "user": "user"}}],
        "current-context": "fabedge",
    });
    format!("{config:#}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kubeconfig_carries_everything_inside() {
        let client = Pair {
            public: "certificate".to_owned(),
            private: "key".to_owned(),
        };
        let text = kubeconfig("https://[::1]:6443", "authority", &client);
        let config: serde_json::Value = serde_json::from_str(&text).unwrap();
        let inside = |pointer: &str| {
            let value = config.pointer(pointer).and_then(|value| value.as_str()).unwrap();
            String::from_utf8(STANDARD.decode(value).unwrap()).unwrap()
        };
        assert_eq!(config["clusters"][0]["cluster"]["server"], "https://[::1]:6443");
        assert_eq!(
            inside("/clusters/0/cluster/certificate-authority-data"),
            "authority"
        );
        assert_eq!(inside("/users/0/user/client-certificate-data"), "certificate");
        assert_eq!(inside("/users/0/user/client-key-data"), "key");
        assert_eq!(config["current-context"], config["contexts"][0]["name"]);
    }

    #[test]
    fn everybodys_files_are_there_and_private() {
        use std::os::unix::fs::PermissionsExt;

        let folder = tempfile::tempdir().unwrap();
        let files = Files {
            folder: folder.path().join("plane"),
            logs: folder.path().join("logs"),
        };
        let seat = on_loopback().unwrap();
        prepare(&seat, &files, &[pki::kubelet("edge1")]).unwrap();
        assert!(files.kubeconfig(&pki::kubelet_file("edge1")).exists());
        let bin = Path::new("/bin");
        for program in [
            programs::etcd(None, bin, &seat, &files),
            programs::api_server(bin, &seat, &files),
            programs::controller_manager(bin, &seat, &files),
            programs::scheduler(bin, &seat, &files),
        ] {
            for word in program.words {
                // What a program is told to read must have been made.
                if let Some((_, file)) = word.split_once('=')
                    && file.starts_with(&*files.folder.to_string_lossy())
                    && !word.starts_with("--data-dir")
                {
                    let mode = std::fs::metadata(file).unwrap().permissions().mode();
                    assert_eq!(mode & 0o777, 0o600, "{word}");
                }
            }
        }
        assert!(
            prepare(&seat, &files, &[]).is_err(),
            "another control plane is not written over"
        );
    }

    #[test]
    fn ports_are_all_different_and_free() {
        let Ports {
            api,
            etcd,
            etcd_peers,
            controllers,
            scheduler,
        } = on_loopback().unwrap().ports;
        let mut ports = vec![api, etcd, etcd_peers, controllers, scheduler];
        ports.dedup();
        assert_eq!(ports.len(), 5);
        assert!(ports.iter().all(|port| (20_000..32_000).contains(port)));
    }
}
