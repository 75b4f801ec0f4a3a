//! `cargo xtask generate`: files of the repository that are made from its code.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::build;
use crate::places::Places;
use crate::progress::{attached, step};

/// Where the chart keeps the custom resource definitions.
const CRDS: &str = "charts/fabedge/crds";

/// Makes the files; with `check` it fails instead where one is not as it would be made.
pub fn generate(places: &Places, check: bool) -> Result<()> {
    // The operator knows its own types; linking it here would make every xtask command wait for kube.
    build::all(places)?;
    step("custom resource definitions of the chart", || {
        let made = definitions(places)?;
        let folder = places.repo.join(CRDS);
        let present = read(&folder)?;
        if made == present {
            return Ok(());
        }
        if check {
            bail!(
                "{CRDS} is not what the types of fabedge-operator say: {}; run `cargo xtask generate`",
                differences(&made, &present).join(", ")
            );
        }
        std::fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
        for name in present.keys().filter(|name| !made.contains_key(*name)) {
            let file = folder.join(name);
            std::fs::remove_file(&file).with_context(|| format!("removing {}", file.display()))?;
        }
        for (name, text) in &made {
            let file = folder.join(name);
            std::fs::write(&file, text).with_context(|| format!("writing {}", file.display()))?;
        }
        Ok(())
    })
}

/// What the operator that was built says.
fn definitions(places: &Places) -> Result<BTreeMap<String, String>> {
    let folder = places.target.join("generate");
    if folder.exists() {
        std::fs::remove_dir_all(&folder).with_context(|| format!("removing {}", folder.display()))?;
    }
    std::fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
    let mut operator = Command::new(places.target.join("release/fabedge-operator"));
    attached(operator.args(["crds", "--out"]).arg(&folder))?;
    read(&folder)
}

/// The files of a folder by name; none when there is no such folder.
fn read(folder: &Path) -> Result<BTreeMap<String, String>> {
    let mut files = BTreeMap::new();
    if !folder.exists() {
        return Ok(files);
    }
    for entry in std::fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))? {
        let file = entry?.path();
        let name = file
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let text = std::fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
        files.insert(name, text);
    }
    Ok(files)
}

fn differences(made: &BTreeMap<String, String>, present: &BTreeMap<String, String>) -> Vec<String> {
    let stale = made.iter().filter_map(|(name, text)| match present.get(name) {
        None => Some(format!("{name} is missing")),
        Some(found) => (found != text).then(|| format!("{name} differs")),
    });
    let left = present
        .keys()
        .filter(|name| !made.contains_key(*name))
        .map(|name| format!("{name} is of no type"));
    stale.chain(left).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_difference_is_named() {
        let files = |list: &[(&str, &str)]| -> BTreeMap<String, String> {
            list.iter()
                .map(|(name, text)| ((*name).to_owned(), (*text).to_owned()))
                .collect()
        };
        let made = files(&[("a.yaml", "1"), ("b.yaml", "2"), ("c.yaml", "3")]);
        let present = files(&[("a.yaml", "1"), ("b.yaml", "9"), ("d.yaml", "4")]);
        assert_eq!(
            differences(&made, &present),
            ["b.yaml differs", "c.yaml is missing", "d.yaml is of no type"]
        );
        assert!(differences(&made, &made).is_empty());
    }
}
