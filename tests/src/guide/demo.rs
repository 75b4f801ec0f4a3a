//! Two clusters that join, as a story: the guide's own commands, what passes before, during and after.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::json;

use super::Guide;
use crate::table::Outcome;

/// What the first cluster needs before another one can join it.
const FIRST: [&str; 9] = [
    "cluster-info",
    "label-edges",
    "cni-patch",
    "keep-cni-off",
    "no-cni-on-edges",
    "label-connector",
    "values",
    "install",
    "check",
];

/// The first of the commands by which the second one joins; all after it belong to that.
const JOIN: &str = "register";

/// Runs it in the clusters of two sheets; gives whether all was as it should be.
///
/// # Errors
/// When it cannot be tried at all, or the figures cannot be written.
pub fn run(sheets: &[PathBuf; 2], json: Option<&Path>) -> Result<bool> {
    let folders = [tempfile::tempdir(), tempfile::tempdir()];
    let [host, member] = folders.map(|folder| folder.context("making a folder to work in"));
    let (host, member) = (host?, member?);
    let mut guide = Guide::open(sheets, [host.path(), member.path()])?;
    if let Err(error) = guide.story() {
        guide.end("the rest of the story", &Outcome::Failed(format!("{error:#}")));
    }
    let good = guide.table.close();
    let (passed, failed) = guide.table.counts();
    guide.figures.set("seconds", guide.table.elapsed().as_secs());
    guide
        .figures
        .set("checks", json!({"passed": passed, "failed": failed}));
    if let Some(file) = json {
        guide.figures.write(file)?;
    }
    Ok(good)
}

impl Guide {
    fn story(&mut self) -> Result<()> {
        self.table.section(
            "Two clusters at one WAN, each with an API server and kubelets of its own: fabedge, and beijing, which is \
             going to join it.\nFabEdge is installed in fabedge by the guide's commands (docs/install.md)",
        );
        self.part("install.md", |block| FIRST.contains(&block.name.as_str()))?;
        self.table.section(
            "beijing joins with a token; a Community of the two connectors comes, goes and comes again",
        );
        let mut joining = false;
        self.part("install.md", |block| {
            joining |= block.name == JOIN;
            joining
        })?;
        let title = "in all that time, no plaintext between the sites";
        self.row(title, Self::no_plaintext);
        let seen = self.traffic()?.capture.counts();
        self.figures.set("plaintext_packets", seen.plaintext);
        self.figures.set("esp_packets", seen.encrypted());
        Ok(())
    }
}
