//! The install guide, carried out on real nodes: every command that its readers type, in order, and what it leads to.

pub mod cluster;
mod clusters;
pub mod demo;
mod measures;
mod outages;
mod rows;
mod services;
mod steps;
mod traffic;
mod troubles;
mod uninstall;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::figures::Figures;
use crate::suite::judge;
use crate::table::{Outcome, Table};
use cluster::Cluster;
use guides::{Audience, Block, Cni, Side};
use services::Proxy;
use traffic::Traffic;

/// How long the commands of one block may take; they wait for images and pods.
const BLOCK_LIMIT: Duration = Duration::from_secs(420);

/// What a reader of the results should know.
const WHAT_IS_NOT_HERE: &str = "the install guide on nodes with real kubelets (a script stands in for Flannel; there is \
                                no CoreDNS and no kube-proxy, in whose place rules of this test serve Services)";

/// A reader who follows the guide.
struct Guide {
    cluster: Cluster,
    /// The cluster that joins the first one.
    member: Cluster,
    /// What kube-proxy would do, in either.
    _proxies: [Proxy; 2],
    table: Table,
    figures: Figures,
    traffic: Option<Traffic>,
    /// When something was asked for.
    asked: Instant,
    /// How long the member does without its host.
    away: Duration,
    /// A node that was deleted.
    saved: Option<Value>,
    /// Whether the state of the cluster was kept.
    evident: bool,
}

/// Follows the guide in the clusters of two sheets, the second of which joins the first; gives whether everything was as
/// it says. For `away` the member does without its host.
///
/// # Errors
/// When something cannot be tried at all.
pub fn run(sheets: &[PathBuf; 2], away: Duration) -> Result<bool> {
    let folders = [tempfile::tempdir(), tempfile::tempdir()];
    let [host, member] = folders.map(|folder| folder.context("making a folder to work in"));
    let (host, member) = (host?, member?);
    let mut guide = Guide::open(sheets, [host.path(), member.path()])?;
    guide.away = away;
    if let Err(error) = guide.all() {
        guide.end("the rest of the guide", &Outcome::Failed(format!("{error:#}")));
    }
    Ok(guide.table.close())
}

impl Guide {
    fn open(sheets: &[PathBuf; 2], folders: [&Path; 2]) -> Result<Self> {
        let cluster = Cluster::open(&sheets[0], folders[0])?;
        let member = Cluster::open(&sheets[1], folders[1])?;
        Ok(Self {
            _proxies: [Proxy::start(&cluster)?, Proxy::start(&member)?],
            cluster,
            member,
            table: Table::default(),
            figures: Figures::default(),
            traffic: None,
            asked: Instant::now(),
            away: Duration::ZERO,
            saved: None,
            evident: false,
        })
    }

    fn all(&mut self) -> Result<()> {
        self.table.section(WHAT_IS_NOT_HERE);
        self.document("install.md")?;
        self.table.section("what it leads to");
        self.measures()?;
        self.table.section("uninstalling");
        self.row("the member leaves nothing", Self::member_leaves);
        self.document("uninstall.md")
    }

    /// Carries out the commands of a document, and looks at what they lead to.
    fn document(&mut self, name: &str) -> Result<()> {
        self.part(name, |_| true)
    }

    /// The same for those of its blocks that are `wanted`.
    fn part(&mut self, name: &str, wanted: impl FnMut(&Block) -> bool) -> Result<()> {
        let path = self.cluster.sheet.repo.join("docs").join(name);
        let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        let blocks = guides::parse(&text).with_context(|| format!("in {}", path.display()))?;
        for block in blocks.into_iter().filter(wanted) {
            let title = format!("{name}: {}", block.name);
            match &block.audience {
                Audience::All | Audience::With(Cni::Flannel) => self.block(&title, &block)?,
                Audience::With(Cni::Calico) => {}
                Audience::Nobody(reason) => {
                    self.table.begin(&title);
                    self.table.end(&title, &Outcome::NotHere(reason.clone()));
                }
            }
        }
        Ok(())
    }

    /// A block that fails keeps what comes after it from succeeding, so nothing comes after it.
    fn block(&mut self, title: &str, block: &Block) -> Result<()> {
        self.before(&block.name)?;
        self.table.begin(title);
        let done = self.side(block.side).shell(&block.text, BLOCK_LIMIT)?;
        if !done.ok() {
            let said = done.text();
            self.end(title, &Outcome::Failed(said));
            bail!("the commands of {} failed", block.name);
        }
        let outcome = self.said(&block.name, &done.stdout)?;
        self.end(title, &outcome);
        if matches!(outcome, Outcome::Failed(_)) {
            self.table.quote(&done.text());
            bail!("{} did not say what the guide says", block.name);
        }
        self.after(&block.name, &done.stdout)
    }

    fn side(&self, side: Side) -> &Cluster {
        match side {
            Side::Host => &self.cluster,
            Side::Member => &self.member,
        }
    }

    /// A row of its own; a failed one does not keep others from being tried.
    fn row(&mut self, title: &str, check: impl FnOnce(&mut Self) -> Result<Outcome>) {
        self.table.begin(title);
        let outcome = check(self).unwrap_or_else(|error| Outcome::Failed(format!("{error:#}")));
        self.end(title, &outcome);
    }

    /// Ends a row. The state of the cluster is kept when the first one fails: later there may be nothing to see.
    fn end(&mut self, title: &str, outcome: &Outcome) {
        self.table.end(title, outcome);
        if self.evident || !matches!(outcome, Outcome::Failed(_)) {
            return;
        }
        self.evident = true;
        let path = self.cluster.sheet.logs.join("guide-failed.txt");
        match fs::write(&path, self.evidence()) {
            Ok(()) => self
                .table
                .quote(&format!("the state of the cluster: {}", path.display())),
            Err(error) => self.table.quote(&format!("writing {}: {error}", path.display())),
        }
    }

    fn traffic(&self) -> Result<&Traffic> {
        self.traffic.as_ref().context("no pods probe yet")
    }

    /// What to look at when something failed.
    fn evidence(&self) -> String {
        const ANY: [&str; 9] = [
            "get node -o wide --show-labels",
            "get pod -A -o wide",
            "get service,endpoints -A",
            "get community,cluster,daemonset,deployment,job,configmap,secret -A",
            "get event -A --sort-by=.lastTimestamp",
            "describe pod -n fabedge",
            "logs -n fabedge deployment/fabedge-operator --tail=200",
            "logs -n fabedge deployment/fabedge-connector --all-containers --tail=200",
            "logs -n fabedge daemonset/fabedge-cloud-agent --tail=200",
        ];
        const OF_HOST: [&str; 4] = [
            // Without the tokens.
            "get cluster -o jsonpath={.items[*].spec.endpoints}{.items[*].status}",
            "describe community",
            "logs -n fabedge fabedge-agent-edge1 --all-containers --tail=200",
            "logs -n fabedge fabedge-agent-edge2 --all-containers --tail=200",
        ];
        let ask = |cluster: &Cluster, line: &str| {
            let said = cluster.kubectl(line).unwrap_or_else(|error| format!("{error:#}"));
            format!("== {}: kubectl {line}\n{said}\n", cluster.sheet.name)
        };
        let host = ANY.iter().chain(&OF_HOST).map(|line| ask(&self.cluster, line));
        host.chain(ANY.iter().map(|line| ask(&self.member, line)))
            .collect()
    }
}

/// The names of a list of objects.
fn names(list: &Value) -> Vec<String> {
    list["items"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|item| item["metadata"]["name"].as_str().map(str::to_owned))
        .collect()
}

/// Passed when there is nothing to complain of.
fn unless(problems: &[String], seen: impl Into<String>) -> Outcome {
    if problems.is_empty() {
        judge(true, seen)
    } else {
        Outcome::Failed(problems.join("; "))
    }
}
