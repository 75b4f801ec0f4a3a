//! The command line of every program of a control plane: values in, words out.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

use super::pki;

/// Where a control plane listens.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Seat {
    /// The network namespace, by its file, unless it is ours.
    pub namespace: Option<PathBuf>,
    /// The address that everything listens on; in a namespace of its own, the API server listens on all.
    pub address: IpAddr,
    /// The ports.
    pub ports: Ports,
    /// The addresses of Services.
    pub services: Services,
}

/// The addresses of Services.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Services {
    /// All of them.
    pub range: &'static str,
    /// The first one, where pods find the API server.
    pub api: IpAddr,
}

impl Services {
    /// Those of a control plane without nodes.
    pub const USUAL: Services = Services {
        range: "10.96.0.0/16",
        api: IpAddr::V4(Ipv4Addr::new(10, 96, 0, 1)),
    };
}

/// The ports of a control plane.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Ports {
    /// The API server's.
    pub api: u16,
    /// etcd's, for its clients.
    pub etcd: u16,
    /// etcd's, for its peers, of which there are none.
    pub etcd_peers: u16,
    /// The controller manager's, for its health.
    pub controllers: u16,
    /// The scheduler's, for its health.
    pub scheduler: u16,
}

impl Seat {
    fn url(&self, scheme: &str, port: u16) -> String {
        format!("{scheme}://{}", SocketAddr::new(self.address, port))
    }

    /// The API server's address for clients.
    pub fn api_url(&self) -> String {
        self.url("https", self.ports.api)
    }

    /// etcd's address for clients.
    pub fn etcd_url(&self) -> String {
        self.url("http", self.ports.etcd)
    }

    /// The controller manager's address.
    pub fn controllers_url(&self) -> String {
        self.url("https", self.ports.controllers)
    }

    /// The scheduler's address.
    pub fn scheduler_url(&self) -> String {
        self.url("https", self.ports.scheduler)
    }

    /// The words in front of a program that is to run at this seat.
    pub fn entering(&self) -> Vec<String> {
        self.namespace
            .iter()
            .flat_map(|file| ["nsenter".to_owned(), format!("--net={}", file.display())])
            .collect()
    }
}

/// The files of one control plane.
#[derive(Clone, Debug)]
pub struct Files {
    /// Everything but the logs; it goes when the control plane goes.
    pub folder: PathBuf,
    /// The logs; they stay, for whoever wants to know why it went.
    pub logs: PathBuf,
}

impl Files {
    /// A certificate.
    pub fn certificate(&self, name: &str) -> PathBuf {
        self.folder.join("pki").join(format!("{name}.crt"))
    }

    /// A private key.
    pub fn key(&self, name: &str) -> PathBuf {
        self.folder.join("pki").join(format!("{name}.key"))
    }

    /// How a user reaches the API server.
    pub fn kubeconfig(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.kubeconfig"))
    }

    /// What a program wrote.
    pub fn log(&self, name: &str) -> PathBuf {
        self.logs.join(format!("{name}.log"))
    }

    /// Programs for users' PATH.
    pub fn tools(&self) -> PathBuf {
        self.folder.join("bin")
    }

    /// Where etcd sees a tmpfs.
    pub fn data(&self) -> PathBuf {
        self.folder.join("etcd")
    }
}

/// The name of the authority's files.
pub const AUTHORITY: &str = "ca";
/// The name of the files of the key for service account tokens.
pub const TOKENS: &str = "service-account";

/// Mounts a tmpfs at the first argument and becomes the others. In a mount namespace of its own: the data ends with
/// the process, however that ends.
const ON_TMPFS: &str = r#"mount -t tmpfs -o mode=700 etcd "$0" && exec "$@""#;

/// The same, with a backup in it.
const ON_TMPFS_RESTORED: &str = r#"mount -t tmpfs -o mode=700 etcd "$0" &&
ETCDCTL_API=3 etcdctl snapshot restore "$1" --data-dir="$0/data" \
    --initial-cluster="default=$2" --initial-advertise-peer-urls="$2" && shift 2 && exec "$@""#;

/// What a control plane consists of.
pub const NAMES: [&str; 4] = [
    "etcd",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
];

/// One program of a control plane.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Program {
    /// As its log and messages name it.
    pub name: &'static str,
    /// The command and its arguments.
    pub words: Vec<String>,
}

/// The store, empty or with what a backup holds. Nothing is worth a disk here: without one, a write does not wait for it
/// either.
pub fn etcd(backup: Option<&Path>, programs: &Path, seat: &Seat, files: &Files) -> Program {
    let clients = seat.etcd_url();
    let peers = seat.url("http", seat.ports.etcd_peers);
    let data = shown(&files.data());
    let mut words = strings(&["unshare", "--mount", "sh", "-c"]);
    match backup {
        None => words.extend([ON_TMPFS.to_owned(), data.clone()]),
        Some(backup) => {
            let backup = shown(backup);
            words.extend([ON_TMPFS_RESTORED.to_owned(), data.clone(), backup, peers.clone()]);
        }
    }
    words.push(shown(&programs.join("etcd")));
    words.extend([
        option("data-dir", &format!("{data}/data")),
        option("listen-client-urls", &clients),
        option("advertise-client-urls", &clients),
        option("listen-peer-urls", &peers),
        option("initial-advertise-peer-urls", &peers),
        option("initial-cluster", &format!("default={peers}")),
        // The default of 2 GiB is near when ten thousand nodes report.
        option("quota-backend-bytes", "4294967296"),
        option("logger", "zap"),
        option("log-level", "warn"),
    ]);
    at(seat, "etcd", words)
}

/// Makes a backup of the store.
pub fn back_up(seat: &Seat, file: &Path) -> Vec<String> {
    let mut words = seat.entering();
    words.extend(strings(&["env", "ETCDCTL_API=3", "etcdctl", "snapshot", "save"]));
    words.extend([shown(file), option("endpoints", &seat.etcd_url())]);
    words
}

/// The API server, with the authorization of a real cluster.
pub fn api_server(programs: &Path, seat: &Seat, files: &Files) -> Program {
    let mut words = vec![shown(&programs.join("kube-apiserver"))];
    // Pods know it by the address of its service, which somebody gives to that namespace.
    let address = match (&seat.namespace, seat.address) {
        (None, address) => address,
        (Some(_), IpAddr::V4(_)) => Ipv4Addr::UNSPECIFIED.into(),
        (Some(_), IpAddr::V6(_)) => Ipv6Addr::UNSPECIFIED.into(),
    };
    words.extend(serving(address, seat.ports.api, pki::API_SERVER, files));
    words.extend([
        option("advertise-address", &seat.address.to_string()),
        // Addresses of loopback are no endpoints; nobody could reach them from a pod.
        option(
            "endpoint-reconciler-type",
            if seat.address.is_loopback() {
                "none"
            } else {
                "lease"
            },
        ),
        option("etcd-servers", &seat.etcd_url()),
        option("client-ca-file", &shown(&files.certificate(AUTHORITY))),
        option("authorization-mode", "Node,RBAC"),
        option("enable-admission-plugins", "NodeRestriction"),
        option("allow-privileged", "true"),
        option("profiling", "false"),
        option("service-cluster-ip-range", seat.services.range),
        option("service-account-issuer", "https://kubernetes.default.svc"),
        option("service-account-key-file", &shown(&files.certificate(TOKENS))),
        option("service-account-signing-key-file", &shown(&files.key(TOKENS))),
        option(
            "kubelet-client-certificate",
            &shown(&files.certificate(pki::API_SERVER_AS_CLIENT)),
        ),
        option(
            "kubelet-client-key",
            &shown(&files.key(pki::API_SERVER_AS_CLIENT)),
        ),
        // Names of nodes are in no DNS.
        option("kubelet-preferred-address-types", "InternalIP"),
    ]);
    at(seat, "kube-apiserver", words)
}

/// Controllers that a cluster without volumes and without a cloud does not need. The ones for volumes would make folders
/// for their plugins on this machine; nodeipam would give pod networks to nodes whose network plugin has others.
const NO_CONTROLLERS: [&str; 6] = [
    "nodeipam",
    "route",
    "service",
    "attachdetach",
    "persistentvolume-binder",
    "persistentvolume-expander",
];

/// The controllers.
pub fn controller_manager(programs: &Path, seat: &Seat, files: &Files) -> Program {
    let mut words = vec![shown(&programs.join("kube-controller-manager"))];
    words.extend(serving(
        seat.address,
        seat.ports.controllers,
        pki::CONTROLLER_MANAGER_SERVER,
        files,
    ));
    words.extend(acting_as(pki::CONTROLLER_MANAGER, files));
    let authority = (files.certificate(AUTHORITY), files.key(AUTHORITY));
    words.extend([
        option("controllers", &format!("*,-{}", NO_CONTROLLERS.join(",-"))),
        // Nodes of tests are objects that nobody renews.
        option("node-monitor-grace-period", "720h"),
        option("use-service-account-credentials", "true"),
        option("root-ca-file", &shown(&authority.0)),
        option("cluster-signing-cert-file", &shown(&authority.0)),
        option("cluster-signing-key-file", &shown(&authority.1)),
        option("service-account-private-key-file", &shown(&files.key(TOKENS))),
        // A thousand nodes come at once, and nobody else asks.
        option("kube-api-qps", "500"),
        option("kube-api-burst", "1000"),
    ]);
    at(seat, "kube-controller-manager", words)
}

/// The scheduler.
pub fn scheduler(programs: &Path, seat: &Seat, files: &Files) -> Program {
    let mut words = vec![shown(&programs.join("kube-scheduler"))];
    words.extend(serving(
        seat.address,
        seat.ports.scheduler,
        pki::SCHEDULER_SERVER,
        files,
    ));
    words.extend(acting_as(pki::SCHEDULER, files));
    at(seat, "kube-scheduler", words)
}

/// The client, as the administrator; it ends with the process that starts it, and keeps what it learns in the folder of
/// the control plane.
pub fn kubectl(programs: &Path, seat: &Seat, files: &Files, arguments: &[&str]) -> Vec<String> {
    let mut words = strings(&["setpriv", "--pdeathsig", "KILL"]);
    words.extend(seat.entering());
    words.extend([
        shown(&programs.join("kubectl")),
        option("kubeconfig", &shown(&files.kubeconfig(pki::ADMIN))),
        option("cache-dir", &shown(&files.folder.join("kubectl"))),
    ]);
    words.extend(strings(arguments));
    words
}

/// Where a program of Kubernetes listens, and by which certificate it is known there.
fn serving(address: IpAddr, port: u16, name: &str, files: &Files) -> Vec<String> {
    vec![
        option("bind-address", &address.to_string()),
        option("secure-port", &port.to_string()),
        option("tls-cert-file", &shown(&files.certificate(name))),
        option("tls-private-key-file", &shown(&files.key(name))),
    ]
}

/// As whom a program of the control plane talks to the API server. There is one of each: nobody to elect.
fn acting_as(user: &str, files: &Files) -> Vec<String> {
    let kubeconfig = shown(&files.kubeconfig(user));
    let mut words: Vec<String> = [
        "kubeconfig",
        "authentication-kubeconfig",
        "authorization-kubeconfig",
    ]
    .iter()
    .map(|name| option(name, &kubeconfig))
    .collect();
    // No port without encryption.
    words.extend([option("port", "0"), option("leader-elect", "false")]);
    words
}

fn at(seat: &Seat, name: &'static str, program: Vec<String>) -> Program {
    let mut words = seat.entering();
    words.extend(program);
    Program { name, words }
}

fn option(name: &str, value: &str) -> String {
    format!("--{name}={value}")
}

fn shown(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

fn strings(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PORTS: Ports = Ports {
        api: 1,
        etcd: 2,
        etcd_peers: 3,
        controllers: 4,
        scheduler: 5,
    };

    fn seat(namespace: Option<&str>, address: &str) -> Seat {
        Seat {
            namespace: namespace.map(PathBuf::from),
            address: address.parse().unwrap(),
            ports: PORTS,
            services: Services::USUAL,
        }
    }

    fn files() -> Files {
        Files {
            folder: "/plane".into(),
            logs: "/logs".into(),
        }
    }

    fn all(seat: &Seat) -> Vec<Program> {
        let (bin, files) = (Path::new("/bin"), files());
        vec![
            etcd(None, bin, seat, &files),
            api_server(bin, seat, &files),
            controller_manager(bin, seat, &files),
            scheduler(bin, seat, &files),
        ]
    }

    #[test]
    fn every_program_listens_where_it_is_told() {
        for (address, shown) in [("127.0.0.1", "127.0.0.1"), ("fd00::1", "[fd00::1]")] {
            let seat = seat(None, address);
            assert_eq!(seat.api_url(), format!("https://{shown}:1"));
            let [etcd, api, controllers, scheduler] = all(&seat).try_into().unwrap();
            for word in [
                format!("--listen-client-urls=http://{shown}:2"),
                format!("--listen-peer-urls=http://{shown}:3"),
                format!("--initial-cluster=default=http://{shown}:3"),
            ] {
                assert!(etcd.words.contains(&word), "{word} is not in {etcd:?}");
            }
            assert!(api.words.contains(&format!("--etcd-servers=http://{shown}:2")));
            for (program, port) in [(api, 1), (controllers, 4), (scheduler, 5)] {
                assert!(program.words.contains(&format!("--bind-address={address}")));
                assert!(program.words.contains(&format!("--secure-port={port}")));
            }
        }
    }

    #[test]
    fn a_seat_elsewhere_is_entered_first() {
        let here = all(&seat(None, "127.0.0.1"));
        for (program, there) in here.iter().zip(all(&seat(Some("/run/netns/hub"), "127.0.0.1"))) {
            assert_eq!(there.words[..2], ["nsenter", "--net=/run/netns/hub"]);
            // Pods reach the API server of a namespace by more than one address.
            let words: Vec<String> = program
                .words
                .iter()
                .map(|word| match (program.name, word.as_str()) {
                    ("kube-apiserver", "--bind-address=127.0.0.1") => "--bind-address=0.0.0.0".to_owned(),
                    _ => word.clone(),
                })
                .collect();
            assert_eq!(there.words[2..], words);
        }
        let typed = kubectl(
            Path::new("/bin"),
            &seat(Some("/run/netns/hub"), "10.200.0.1"),
            &files(),
            &["get", "nodes"],
        );
        assert_eq!(
            typed[..7],
            [
                "setpriv",
                "--pdeathsig",
                "KILL",
                "nsenter",
                "--net=/run/netns/hub",
                "/bin/kubectl",
                "--kubeconfig=/plane/admin.kubeconfig"
            ]
        );
        assert!(typed.ends_with(&strings(&["get", "nodes"])));
    }

    #[test]
    fn pods_find_the_api_server_where_it_can_be_reached() {
        for (address, reconciler) in [("127.0.0.1", "none"), ("::1", "none"), ("10.200.0.1", "lease")] {
            let api = api_server(Path::new("/bin"), &seat(None, address), &files());
            assert!(
                api.words
                    .contains(&format!("--endpoint-reconciler-type={reconciler}"))
            );
        }
    }

    #[test]
    fn nobody_is_let_in_without_authorization() {
        let api = &all(&seat(None, "127.0.0.1"))[1];
        assert!(api.words.contains(&"--authorization-mode=Node,RBAC".to_owned()));
        assert!(
            api.words
                .contains(&"--client-ca-file=/plane/pki/ca.crt".to_owned())
        );
    }

    #[test]
    fn the_store_is_on_a_tmpfs_of_its_own() {
        let etcd = &all(&seat(None, "127.0.0.1"))[0];
        assert_eq!(
            etcd.words[..7],
            [
                "unshare",
                "--mount",
                "sh",
                "-c",
                ON_TMPFS,
                "/plane/etcd",
                "/bin/etcd"
            ]
        );
        assert_eq!(etcd.words[7], "--data-dir=/plane/etcd/data");
    }

    #[test]
    fn addresses_of_pods_are_left_to_the_network_plugin() {
        let controllers = &all(&seat(None, "127.0.0.1"))[2];
        let chosen = controllers
            .words
            .iter()
            .find_map(|word| word.strip_prefix("--controllers="))
            .unwrap();
        let chosen: Vec<&str> = chosen.split(',').collect();
        assert_eq!(chosen[0], "*");
        assert!(chosen.contains(&"-nodeipam"));
        assert!(chosen[1..].iter().all(|word| word.starts_with('-')));
    }
}
