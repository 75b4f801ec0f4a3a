//! The control plane, tried as a user types its commands, and what happens when it does not come up.

mod guide;

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::net::TcpStream;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::plane::{self, Plane};
use super::programs::{Files, Ports, Seat, Services};
use super::state::State;
use crate::interrupt::Interrupt;
use crate::places::Places;
use crate::progress::output;
use crate::setup::{self, kubernetes};
use crate::tally::Counts;
use crate::test::special::{self, Needs};
use crate::test::{steadied, told};

/// A namespace, a node as its kubelet would report it, and a document in the namespace.
const OBJECTS: &str = include_str!("check/objects.yaml");

/// Admitted when its namespace has an account, placed when the node counts as ready.
const POD: &str = include_str!("check/pod.yaml");

/// What a mended server alone accepts: it decodes a CRD at all, and an empty string is a string.
const CRD: &str = include_str!("check/crd.yaml");
const LETTER: &str = include_str!("check/letter.yaml");

/// What is asked of the control plane, each after `kubectl`, whether it works, and what is said.
const QUESTIONS: [(&str, bool, &str); 9] = [
    ("get --raw /readyz", true, "ok"),
    ("version -o json", true, "\"gitVersion\": \"v1.20.2\""),
    ("apply -f OBJECTS", true, "configmap/letter created"),
    (
        "get node edge1 -o jsonpath={.spec.podCIDR}",
        true,
        "10.244.7.0/24",
    ),
    (
        "-n probe get configmap letter -o jsonpath={.data.word}",
        true,
        "salt",
    ),
    // The authorization of a real cluster: nobody but the administrator may look into Secrets.
    ("auth can-i list secrets", true, "yes"),
    (
        "auth can-i list secrets --as=system:serviceaccount:probe:default",
        false,
        "no",
    ),
    ("apply -f CRD", true, "created"),
    (
        "get node edge1 -o jsonpath={.status.conditions[0].reason}",
        true,
        "Simulated",
    ),
];

/// The same for what controllers and the scheduler must do first: repeated until it holds.
const IN_TIME: [(&str, &str); 6] = [
    // An error where the server has not yet written any condition.
    ("wait --for=condition=Established --timeout=60s -f CRD", "met"),
    ("-n probe get configmap kube-root-ca.crt", "kube-root-ca.crt"),
    ("apply -f POD", "pod/guest"),
    ("-n probe get pod guest -o jsonpath={.spec.nodeName}", "edge1"),
    ("apply -f LETTER", "letter.probe.fabedge.io/first"),
    (
        "get letter first -o go-template={{printf/\"%q-%q\"/.spec.word/.spec.greeting}}",
        "\"\"-\"\"",
    ),
];

/// The test that leaves more objects than anybody wants to wait for.
const LAST_TEST: &str = "ten_thousand";

/// The test that changes Communities of a thousand nodes.
const CHANGES_TEST: &str = "cluster::scale::a_thousand_edges_and_a_hundred_changes";

/// Where the control plane listens in a namespace of its own.
const ADDRESS_THERE: &str = "192.0.2.1";

/// How long anything may take that a program of the control plane does in its time.
const IN_TIME_PATIENCE: Duration = Duration::from_secs(180);

/// Brings a control plane up, uses it, takes it down, and looks for what is left of it.
///
/// # Errors
/// When something cannot be tried at all.
pub fn check(places: &Places, interrupt: &Interrupt) -> Result<Counts> {
    setup::ensure_kubernetes(places)?;
    let calico = setup::calico::ensure(places)?;
    let promtool = setup::ensure_root(places)?.join("usr/bin/promtool");
    let programs = special::build(places, Needs::Cluster)?;
    checking(places, interrupt, |check| {
        check.all(&programs, &calico, &promtool)
    })
}

/// Brings nodes up, follows the install guide on them, takes them down, and looks for what is left of them.
///
/// # Errors
/// When something cannot be tried at all.
pub fn guide(places: &Places, interrupt: &Interrupt) -> Result<Counts> {
    checking(places, interrupt, |check| check.guide())
}

/// Brings a control plane up for the test of a thousand nodes, whose Communities change: it writes into `times` how long
/// that takes.
///
/// # Errors
/// When something cannot be tried, or fails.
pub fn changes(places: &Places, times: &Path, interrupt: &Interrupt) -> Result<()> {
    setup::ensure_kubernetes(places)?;
    let calico = setup::calico::ensure(places)?;
    let promtool = setup::ensure_root(places)?.join("usr/bin/promtool");
    let programs = special::build(places, Needs::Cluster)?;
    let counts = checking(places, interrupt, |check| {
        check.type_xtask("up", true, "export KUBECONFIG=")?;
        let Some(state) = State::read(&check.files.folder)? else {
            return Ok(());
        };
        let test = ["--exact", CHANGES_TEST];
        check.counts += check.run_tests(&programs, &test, &state, [&calico, &promtool], Some(times))?;
        check.type_xtask("down", true, "is down")
    })?;
    if counts.failed > 0 {
        bail!(
            "the changes of Communities were not measured: {} checks failed",
            counts.failed
        );
    }
    Ok(())
}

fn checking(
    places: &Places,
    interrupt: &Interrupt,
    work: impl FnOnce(&mut Check<'_>) -> Result<()>,
) -> Result<Counts> {
    let files = super::files(places);
    if State::read(&files.folder)?.is_some_and(|state| state.lives()) {
        bail!("a control plane is up: end it with `cargo xtask k8s down`, for this suite starts its own");
    }
    let folder = places.cache.join("k8s-check");
    if folder.exists() {
        std::fs::remove_dir_all(&folder).with_context(|| format!("removing {}", folder.display()))?;
    }
    std::fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
    let mut check = Check {
        places,
        interrupt,
        files,
        folder,
        counts: Counts::default(),
    };
    let outcome = work(&mut check);
    // Whatever stopped us: nothing of ours stays.
    super::end(places)?;
    outcome?;
    std::fs::remove_dir_all(&check.folder).with_context(|| format!("removing {}", check.folder.display()))?;
    Ok(check.counts)
}

struct Check<'a> {
    places: &'a Places,
    interrupt: &'a Interrupt,
    files: Files,
    folder: PathBuf,
    counts: Counts,
}

impl Check<'_> {
    fn all(&mut self, programs: &[PathBuf], calico: &Path, promtool: &Path) -> Result<()> {
        self.fails_to_start()?;
        self.starts_in_a_namespace()?;
        self.is_killed_while_starting()?;
        self.type_xtask("status", false, "no control plane is up")?;
        self.type_xtask(
            "up",
            true,
            &format!("export KUBECONFIG={}", self.files.folder.display()),
        )?;
        let Some(state) = State::read(&self.files.folder)? else {
            return Ok(());
        };
        self.type_xtask("up", false, "cargo xtask k8s down")?;
        self.type_xtask("status", true, "kube-scheduler")?;
        self.ask(&state)?;
        // To the tests' operators it would be one of the cloud's nodes, with an address that others use.
        let (worked, said) = self.kubectl(&state, "delete node edge1")?;
        self.tell(
            "kubectl delete node edge1",
            if worked { Ok(()) } else { Err(said) },
        );
        self.establish_ours(&state)?;
        let files = [calico, promtool];
        self.counts += self.run_tests(programs, &["--skip", LAST_TEST], &state, files, None)?;
        // What they would do about ten thousand nodes would take minutes. Nothing else depends on them.
        for program in ["kube-controller-manager", "kube-scheduler"] {
            let started = state.programs.iter().find(|started| started.name == program);
            let process = &started.context("a control plane without it")?.process;
            process.kill();
            let killed = Instant::now();
            while process.lives() && killed.elapsed() < IN_TIME_PATIENCE {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        self.type_xtask("status", false, "kube-scheduler ended by itself")?;
        self.counts += self.run_tests(programs, &[LAST_TEST], &state, files, None)?;
        self.type_xtask("down", true, "is down")?;
        self.nothing_is_left("nothing of it is left", &state.url)?;
        self.type_xtask("down", false, "no control plane is up")
    }

    /// Runs those tests of the programs that are asked for.
    fn run_tests(
        &self,
        programs: &[PathBuf],
        which: &[&str],
        state: &State,
        [calico, promtool]: [&Path; 2],
        times: Option<&Path>,
    ) -> Result<Counts> {
        let mut counts = Counts::default();
        for program in programs {
            // One at a time: they tell how long things take.
            let arguments = [&["--test-threads=1"], which].concat();
            counts += steadied(&arguments, |arguments| {
                let mut tests = Command::new(program);
                tests
                    .arg("--nocapture")
                    .args(arguments)
                    .env("KUBECONFIG", &state.kubeconfig)
                    .env("FABEDGE_CALICO_MANIFESTS", calico)
                    .env("FABEDGE_PROMTOOL", promtool)
                    .env("PATH", self.path())
                    .env(
                        "FABEDGE_OPERATOR",
                        self.places.target.join("release/fabedge-operator"),
                    );
                tests.envs(times.map(|file| ("FABEDGE_TIMES", file)));
                told(&mut tests)
            })?;
        }
        Ok(counts)
    }

    /// An API server that ends at once: the error says where and what it wrote, and etcd does not stay.
    fn fails_to_start(&mut self) -> Result<()> {
        let programs = self.folder.join("programs");
        std::fs::create_dir(&programs)?;
        for name in ["etcd", "kubectl"] {
            symlink(kubernetes::folder(self.places).join(name), programs.join(name))?;
        }
        let broken = programs.join("kube-apiserver");
        std::fs::write(&broken, "#!/bin/sh\nsleep 1\necho 'no such luck' >&2\nexit 3\n")?;
        std::fs::set_permissions(&broken, std::fs::Permissions::from_mode(0o755))?;
        let files = Files {
            folder: self.folder.join("plane"),
            logs: self.folder.join("logs"),
        };
        let log = files.log("kube-apiserver");
        println!("  an API server that is broken on purpose:");
        let started = Plane::start(&programs, plane::on_loopback()?, files, self.interrupt);
        let said = started.map_or_else(|problem| format!("{problem:#}"), |_| "it started".to_owned());
        let complete = said.contains("no such luck") && said.contains(&*log.to_string_lossy());
        self.tell(
            "a server that ends is told with its log",
            if complete { Ok(()) } else { Err(said) },
        );
        let left = running_in(&self.folder)?;
        self.tell(
            "what had started ends with it",
            if left.is_empty() && !self.folder.join("plane").exists() {
                Ok(())
            } else {
                Err(format!("{left:?}"))
            },
        );
        Ok(())
    }

    /// In a network namespace, on the port of a real cluster, under the address that pods use.
    fn starts_in_a_namespace(&mut self) -> Result<()> {
        let namespace = Namespace::new(&format!("fabedge-k8s-{}", std::process::id()))?;
        namespace.run("ip link set lo up")?;
        for address in [ADDRESS_THERE.to_owned(), Services::USUAL.api.to_string()] {
            namespace.run(&format!("ip address add {address}/32 dev lo"))?;
        }
        let seat = Seat {
            namespace: Some(namespace.file()),
            address: ADDRESS_THERE.parse()?,
            ports: Ports {
                api: 443,
                etcd: 2379,
                etcd_peers: 2380,
                controllers: 10257,
                scheduler: 10259,
            },
            services: Services::USUAL,
        };
        let files = Files {
            folder: self.folder.join("elsewhere"),
            logs: self.folder.join("logs"),
        };
        let plane = match Plane::start(&kubernetes::folder(self.places), seat, files, self.interrupt) {
            Ok(plane) => plane,
            Err(problem) => {
                self.tell("starts in a network namespace", Err(format!("{problem:#}")));
                return Ok(());
            }
        };
        let service = format!("https://{}", Services::USUAL.api);
        // The server writes them once it is ready.
        let outcome = self.in_time(|| {
            let (worked, said) = outcome(&mut plane.kubectl(&[
                "--server",
                &service,
                "get",
                "endpoints",
                "kubernetes",
                "--output=jsonpath={.subsets[0].addresses[0].ip}",
            ]))?;
            Ok((worked && said == ADDRESS_THERE, said))
        })?;
        self.tell("starts in a network namespace", outcome);
        drop(plane);
        let left = running_in(&self.folder)?;
        self.tell(
            "ends when its value goes",
            if left.is_empty() {
                Ok(())
            } else {
                Err(left.join("\n"))
            },
        );
        Ok(())
    }

    /// `up` has no chance to clean up: `down` does it.
    fn is_killed_while_starting(&mut self) -> Result<()> {
        let mut up = self
            .xtask("up")?
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let started = Instant::now();
        let state = loop {
            match State::read(&self.files.folder)? {
                Some(state) if state.programs.len() > 1 => break Some(state),
                _ if started.elapsed() > IN_TIME_PATIENCE => break None,
                _ => std::thread::sleep(Duration::from_millis(5)),
            }
        };
        up.kill()?;
        up.wait()?;
        let Some(state) = state else {
            self.tell(
                "k8s up, killed",
                Err(format!("nothing was started within {IN_TIME_PATIENCE:?}")),
            );
            return Ok(());
        };
        self.type_xtask("status", false, "the command that started it was killed")?;
        self.type_xtask("down", true, "is down")?;
        self.nothing_is_left("nothing is left of one whose start was killed", &state.url)
    }

    fn ask(&mut self, state: &State) -> Result<()> {
        for (name, text) in [
            ("OBJECTS", OBJECTS),
            ("POD", POD),
            ("CRD", CRD),
            ("LETTER", LETTER),
        ] {
            std::fs::write(self.folder.join(name), text)?;
        }
        for (line, works, says) in QUESTIONS {
            let (worked, said) = self.kubectl(state, line)?;
            let good = worked == works && said.contains(says);
            self.tell(&format!("kubectl {line}"), if good { Ok(()) } else { Err(said) });
        }
        for (line, says) in IN_TIME {
            self.comes_true(state, line, says)?;
        }
        Ok(())
    }

    /// Repeats a question until the answer is as it should be.
    fn comes_true(&mut self, state: &State, line: &str, says: &str) -> Result<()> {
        let outcome = self.in_time(|| {
            let (worked, said) = self.kubectl(state, line)?;
            Ok((worked && said.contains(says), said))
        })?;
        self.tell(&format!("kubectl {line}"), outcome);
        Ok(())
    }

    /// Looks until it is good what one sees, or gives what was seen last.
    fn in_time(&self, look: impl Fn() -> Result<(bool, String)>) -> Result<Result<(), String>> {
        let started = Instant::now();
        loop {
            let (good, seen) = look()?;
            if good {
                return Ok(Ok(()));
            }
            if started.elapsed() > IN_TIME_PATIENCE {
                return Ok(Err(seen));
            }
            self.interrupt.check()?;
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Where programs look for others: a helm and a kubectl of this server's version come first.
    fn path(&self) -> OsString {
        let mut path = OsString::from(self.files.tools());
        if let Some(others) = std::env::var_os("PATH") {
            path.push(":");
            path.push(others);
        }
        path
    }

    /// The CRDs of the chart, when there is one.
    fn establish_ours(&mut self, state: &State) -> Result<()> {
        let folder = self.places.repo.join("charts/fabedge/crds");
        let mut files = BTreeSet::new();
        if folder.exists() {
            for entry in std::fs::read_dir(&folder)? {
                files.insert(entry?.path());
            }
        }
        for file in files {
            let file = file.to_string_lossy();
            let line = format!("apply -f {file}");
            let (worked, said) = self.kubectl(state, &line)?;
            self.tell(
                &format!("kubectl {line}"),
                if worked { Ok(()) } else { Err(said) },
            );
            let line = format!("wait --for=condition=Established --timeout=60s -f {file}");
            self.comes_true(state, &line, "met")?;
        }
        Ok(())
    }

    /// No process has a file of the folder on its command line, the port is closed, the folder is gone.
    fn nothing_is_left(&mut self, name: &str, url: &str) -> Result<()> {
        let folder = &self.files.folder;
        let address = url
            .strip_prefix("https://")
            .context("a URL without https")?
            .parse()?;
        // A question that was on its way when its asker was killed ends by itself.
        let outcome = self.in_time(|| {
            let mut left = running_in(folder)?;
            if folder.exists() {
                left.push(folder.display().to_string());
            }
            if TcpStream::connect_timeout(&address, Duration::from_secs(1)).is_ok() {
                left.push(url.to_owned());
            }
            Ok((left.is_empty(), left.join("\n")))
        })?;
        self.tell(name, outcome);
        Ok(())
    }

    fn xtask(&self, line: &str) -> Result<Command> {
        let mut command = Command::new(std::env::current_exe().context("finding this program")?);
        command
            .arg("--cache")
            .arg(&self.places.cache)
            .arg("k8s")
            .args(line.split(' '))
            .stdin(Stdio::null());
        Ok(command)
    }

    fn type_xtask(&mut self, line: &str, works: bool, says: &str) -> Result<()> {
        self.interrupt.check()?;
        let (worked, said) = outcome(&mut self.xtask(line)?)?;
        let good = worked == works && said.contains(says);
        self.tell(
            &format!("cargo xtask k8s {line}"),
            if good { Ok(()) } else { Err(said) },
        );
        Ok(())
    }

    /// What a user's kubectl says to a line; upper-case words are files of this check, slashes in a template blanks.
    fn kubectl(&self, state: &State, line: &str) -> Result<(bool, String)> {
        let mut command = Command::new(&state.kubectl);
        command
            .env("KUBECONFIG", &state.kubeconfig)
            // What it learns of this server is of no use to the user's own kubectl.
            .arg("--cache-dir")
            .arg(self.folder.join("kubectl"))
            .arg("--request-timeout=60s");
        for word in line.split(' ') {
            match word {
                "OBJECTS" | "POD" | "CRD" | "LETTER" => command.arg(self.folder.join(word)),
                template if template.contains("{{") => command.arg(template.replace('/', " ")),
                word => command.arg(word),
            };
        }
        outcome(&mut command)
    }

    fn tell(&mut self, name: &str, outcome: Result<(), String>) {
        match outcome {
            Ok(()) => {
                println!("  {name} ... ok");
                self.counts.passed += 1;
            }
            Err(said) => {
                println!("  {name} ... FAILED\n    {}", said.trim().replace('\n', "\n    "));
                self.counts.failed += 1;
            }
        }
    }
}

/// A network namespace that goes when this value goes.
struct Namespace {
    name: String,
}

impl Namespace {
    fn new(name: &str) -> Result<Namespace> {
        output(Command::new("ip").args(["netns", "add", name]))?;
        Ok(Namespace {
            name: name.to_owned(),
        })
    }

    fn file(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.name)
    }

    fn run(&self, line: &str) -> Result<()> {
        output(
            Command::new("ip")
                .args(["netns", "exec", &self.name])
                .args(line.split(' ')),
        )
        .map(|_| ())
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if let Err(problem) = output(Command::new("ip").args(["netns", "delete", &self.name])) {
            eprintln!("warning: {problem:#}");
        }
    }
}

/// Whether a command worked, and all that it said.
fn outcome(command: &mut Command) -> Result<(bool, String)> {
    let done = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("starting {}", command.get_program().display()))?;
    let said = String::from_utf8_lossy(&[done.stdout, done.stderr].concat()).into_owned();
    Ok((done.status.success(), said))
}

/// The command lines of processes that name a file in a folder.
fn running_in(folder: &Path) -> Result<Vec<String>> {
    let inside = format!("{}/", folder.display());
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").context("listing processes")? {
        // A process may end while we look.
        let line = std::fs::read(entry?.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        if line.contains(&inside) {
            found.push(line);
        }
    }
    Ok(found)
}
