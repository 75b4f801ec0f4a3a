//! The install guide, carried out on real nodes: every command that its readers type, in order, and what it leads to.

pub mod cluster;
mod measures;
mod rows;
mod steps;
mod traffic;
mod uninstall;

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::suite::judge;
use crate::table::{Outcome, Table};
use cluster::Cluster;
use guides::{Audience, Block, Cni};
use traffic::Traffic;

/// How long the commands of one block may take; they wait for images and pods.
const BLOCK_LIMIT: Duration = Duration::from_secs(420);

/// What a reader of the results should know.
const WHAT_IS_NOT_HERE: &str = "the install guide on nodes with real kubelets (a script stands in for Flannel; there is \
                                no CoreDNS and no kube-proxy, in whose place one rule serves the API server's Service)";

/// A reader who follows the guide.
struct Guide {
    cluster: Cluster,
    table: Table,
    traffic: Option<Traffic>,
    /// A node that was deleted.
    saved: Option<Value>,
    /// Whether the state of the cluster was kept.
    evident: bool,
}

/// Follows the guide in the cluster of a sheet; gives whether everything was as it says.
///
/// # Errors
/// When something cannot be tried at all.
pub fn run(sheet: &Path) -> Result<bool> {
    let folder = tempfile::tempdir().context("making a folder to work in")?;
    let mut guide = Guide {
        cluster: Cluster::open(sheet, folder.path())?,
        table: Table::default(),
        traffic: None,
        saved: None,
        evident: false,
    };
    if let Err(error) = guide.all() {
        guide.end("the rest of the guide", &Outcome::Failed(format!("{error:#}")));
    }
    Ok(guide.table.close())
}

impl Guide {
    fn all(&mut self) -> Result<()> {
        self.table.section(WHAT_IS_NOT_HERE);
        self.document("install.md")?;
        self.table.section("what it leads to");
        self.measures()?;
        self.table.section("uninstalling");
        self.document("uninstall.md")
    }

    /// Carries out the commands of a document, and looks at what they lead to.
    fn document(&mut self, name: &str) -> Result<()> {
        let path = self.cluster.sheet.repo.join("docs").join(name);
        let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        for block in guides::parse(&text).with_context(|| format!("in {}", path.display()))? {
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
        let done = self.cluster.shell(&block.text, BLOCK_LIMIT)?;
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
        self.after(&block.name)
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
        [
            "get node -o wide --show-labels",
            "get pod -A -o wide",
            "get community,cluster,daemonset,deployment,job,configmap,secret -A",
            "get event -A --sort-by=.lastTimestamp",
            "describe pod -n fabedge",
            "logs -n fabedge deployment/fabedge-operator --tail=200",
            "logs -n fabedge deployment/fabedge-connector --all-containers --tail=200",
            "logs -n fabedge fabedge-agent-edge1 --all-containers --tail=200",
            "logs -n fabedge fabedge-agent-edge2 --all-containers --tail=200",
            "logs -n fabedge daemonset/fabedge-cloud-agent --tail=200",
        ]
        .iter()
        .map(|line| {
            let said = self
                .cluster
                .kubectl(line)
                .unwrap_or_else(|error| format!("{error:#}"));
            format!("== kubectl {line}\n{said}\n")
        })
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
