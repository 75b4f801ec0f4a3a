//! How fast an agent brings tunnels up to many real peers, each with a certificate of its own. They are in one charon; the
//! kernel has the ESP, for charon's own installs a route for each tunnel and theirs would all be the same.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::Options;
use super::control::documents::pods;
use super::control::node::{self, Node, PATIENCE};
use super::path::{self, ground::NODES, product};
use super::report::{Report, Series};
use crate::lab::{Tunnel, charon, wait_until};
use crate::{observe, world};

/// What this measures.
pub const ABOUT: &str = "How fast an agent brings tunnels up to a thousand real peers";

/// How many there are.
const PEERS: usize = 1_000;

/// How often that is measured.
const ROUNDS: usize = 1;

/// Measures.
///
/// # Errors
/// When the kernel has no ESP, a node cannot be made, or tunnels do not come up.
pub fn run(options: &Options) -> Result<Report> {
    path::load_modules()?;
    let tunnel = node::tunnel()?;
    ensure!(
        tunnel == Tunnel::Xfrm,
        "this kernel has no ESP: give --kernel 6.12"
    );
    let folder = tempfile::tempdir().context("making a folder for documents")?;
    let written = product::more_documents(folder.path(), &manifests(PEERS))?;
    let mut rates = Series::new("Tunnels brought up", "per s", "peers", &["real peers"]);
    let rounds = options.repeats.unwrap_or(ROUNDS);
    for round in 0..rounds {
        eprintln!("  {} of {rounds}: {PEERS} peers", round + 1);
        let seconds = bring_up(&mut Node::start(tunnel, &written)?, tunnel, &written, PEERS)?;
        rates.sample("real peers", PEERS as f64, PEERS as f64 / seconds);
    }
    let mut report = Report::new("tunnels", ABOUT);
    report.series.push(rates);
    Ok(report)
}

/// The manifests of so many of them.
pub fn manifests(peers: usize) -> String {
    let mut text = String::new();
    for number in 0..peers {
        let pods = pods(number, 0);
        let node = format!(
            "---\napiVersion: v1\nkind: Node\nmetadata:\n  name: node{number:05}\n  labels: {{node-role.kubernetes.io/edge: \
             \"\"}}\nspec:\n  podCIDR: {pods}\n  podCIDRs: [\"{pods}\"]\nstatus:\n  addresses:\n  - {{type: InternalIP, \
             address: 198.18.{}.{}}}\n",
            number / 250,
            number % 250 + 1
        );
        text += &node;
    }
    text
}

/// Seconds from the document until `node` has a tunnel to every one of `peers` of them.
///
/// # Errors
/// When their charon does not take them, or tunnels do not come up.
pub fn bring_up(node: &mut Node, tunnel: Tunnel, written: &Path, peers: usize) -> Result<f64> {
    let other = NODES[1];
    let site = node.ground.world.site(other.name)?;
    let log = world::documents().with_file_name("crowd.log");
    let charon = charon::start(site, tunnel, &log)?;
    load(node, written, peers)?;

    node.ground.daemons.push(charon);
    let endpoint = node.documents.endpoint().clone();
    let before = node.apply_of(|documents| documents.towards(peers, &other.address().to_string()))?;
    ensure!(
        before.seconds.is_finite(),
        "no time was told for {}",
        endpoint.name
    );
    let mut up = 0;
    let waited = wait_until("every tunnel is up", PATIENCE, || {
        let status = observe::status(node.site()?)?;
        let listed = status["peers"]
            .as_object()
            .into_iter()
            .flat_map(|peers| peers.values());
        up = listed
            .filter(|peer| peer["ready"].as_bool() == Some(true))
            .count();
        std::thread::sleep(Duration::from_millis(200));
        Ok(up == peers)
    });
    let waited = waited.with_context(|| format!("{up} of {peers} tunnels"))?;
    Ok(before.seconds + waited.as_secs_f64())
}

/// Gives the other node's charon every peer.
fn load(node: &Node, written: &Path, peers: usize) -> Result<()> {
    let other = node.ground.world.site(NODES[1].name)?;
    // Where the site sees it.
    let folder = other.path("/run/crowd");
    for sub in ["x509", "x509ca", "private"] {
        fs::create_dir_all(folder.join(sub)).with_context(|| format!("making {}", folder.display()))?;
    }
    let copy = |from: std::path::PathBuf, to: std::path::PathBuf| {
        fs::copy(&from, &to)
            .map(drop)
            .with_context(|| format!("copying {}", from.display()))
    };
    copy(
        written.join(NODES[0].name).join("ca.crt"),
        folder.join("x509ca/ca.crt"),
    )?;
    let endpoint = node.documents.endpoint();
    // A connector has its nodes in its selectors too; an edge's are narrowed down.
    let own = endpoint.subnets.iter().chain(&endpoint.node_subnets);
    let own: Vec<String> = own.map(ToString::to_string).collect();
    let mut text = "connections {\n".to_owned();
    for number in 0..peers {
        let name = format!("node{number:05}");
        copy(
            written.join(&name).join("tls.crt"),
            folder.join(format!("x509/{name}.crt")),
        )?;
        copy(
            written.join(&name).join("tls.key"),
            folder.join(format!("private/{name}.key")),
        )?;
        write!(
            text,
            "{name} {{\nversion = 2\nlocal_addrs = %any\nremote_addrs = %any\nproposals = \
             aes128gcm16-prfsha256-x25519\nmobike = no\nlocal {{\nauth = pubkey\ncerts = {name}.crt\nid = \"C=CN, O=fabedge.io, \
             CN=fabedge.{name}\"\n}}\nremote {{\nauth = pubkey\nid = \"{}\"\n}}\nchildren {{\nc {{\nlocal_ts = {}\nremote_ts = \
             {}\nesp_proposals = aes128gcm16-x25519\n}}\n}}\n}}\n",
            endpoint.id,
            pods(number, 0),
            own.join(",")
        )?;
    }
    text += "}\n";
    fs::write(folder.join("swanctl.conf"), text)
        .with_context(|| format!("writing in {}", folder.display()))?;
    // Under emulation either takes half a minute.
    let load = |what: &str| {
        let words =
            format!("SWANCTL_DIR=/run/crowd swanctl --load-{what} --uri unix:///run/charon.vici 2>&1");
        other.place.shell(&words)
    };
    load("creds")?;
    let said = load("conns")?;
    ensure!(
        said.contains(&format!("loaded {peers} connections")),
        "swanctl: {said}"
    );
    Ok(())
}
