//! The archive of an image: a tar of the OCI's image layout, which says by what name a runtime is to know the image.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use serde::Deserialize;
use serde_json::Value;

use crate::progress::{Log, output};

/// The annotation that containerd reads: by the standard's own, which holds but a tag, it finds no name.
const NAME: &str = "io.containerd.image.name";

/// What an archive holds.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Summary {
    /// The name under which a container runtime knows the image once it is imported.
    pub name: String,
    /// The manifest's digest, which identifies the image.
    pub digest: String,
    /// The layers as they are transferred, the base first.
    pub layers: Vec<Descriptor>,
}

/// What the standard calls a descriptor, as far as we look at it.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq)]
pub struct Descriptor {
    /// Names the content.
    pub digest: String,
    /// Its bytes.
    pub size: u64,
}

#[derive(Deserialize)]
struct Index {
    manifests: [Named; 1],
}

#[derive(Deserialize)]
struct Named {
    digest: String,
    annotations: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct Manifest {
    layers: Vec<Descriptor>,
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let megabytes =
            |layers: &[Descriptor]| layers.iter().map(|layer| layer.size).sum::<u64>() as f64 / 1e6;
        let (base, own) = self.layers.split_at(self.layers.len().min(1));
        write!(
            f,
            "{:.1} MB: the base, which all share, {:.1} MB; its own {:.1} MB",
            megabytes(&self.layers),
            megabytes(base),
            megabytes(own)
        )
    }
}

/// Puts the name into an image layout, and the layout into an archive, which appears when it is complete.
pub fn write(layout: &Path, reference: &str, file: &Path, log: &Log) -> Result<()> {
    let path = layout.join("index.json");
    let text = std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    let named = named(&text, reference).with_context(|| format!("naming the image in {}", path.display()))?;
    std::fs::write(&path, named).with_context(|| format!("writing {}", path.display()))?;
    let part = file.with_extension("part");
    let mut tar = Command::new("tar");
    tar.arg("--create").arg("--file").arg(&part);
    // The same layout gives the same bytes.
    tar.args([
        "--format=ustar",
        "--sort=name",
        "--mtime=@0",
        "--mode=u=rwX,go=rX",
    ])
    .args(["--owner=0", "--group=0", "--numeric-owner", "--directory"])
    .arg(layout)
    .args(["oci-layout", "index.json", "blobs"]);
    log.run(&mut tar)?;
    std::fs::rename(&part, file).with_context(|| format!("naming {}", file.display()))
}

fn named(index: &str, reference: &str) -> Result<String> {
    let mut index: Value = serde_json::from_str(index)?;
    let annotations = index
        .pointer_mut("/manifests/0/annotations")
        .and_then(Value::as_object_mut)
        .context("its one manifest has no annotations")?;
    annotations.insert(NAME.to_owned(), reference.into());
    Ok(index.to_string())
}

/// Says what an archive holds.
pub fn read(file: &Path) -> Result<Summary> {
    let entry = |name: &str| {
        output(
            Command::new("tar")
                .arg("--extract")
                .arg("--to-stdout")
                .arg("--file")
                .arg(file)
                .arg(name),
        )
    };
    let index: Index = serde_json::from_str(&entry("index.json")?)
        .with_context(|| format!("reading the index of {}", file.display()))?;
    let [
        Named {
            digest,
            mut annotations,
        },
    ] = index.manifests;
    let manifest: Manifest = serde_json::from_str(&entry(&format!("blobs/{}", digest.replace(':', "/")))?)
        .with_context(|| format!("reading the manifest of {}", file.display()))?;
    let name = annotations.remove(NAME);
    Ok(Summary {
        name: name.with_context(|| format!("the image in {} has no name", file.display()))?,
        digest,
        layers: manifest.layers,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAYOUT: &str = r#"{"schemaVersion":2,"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json",
        "digest":"sha256:aa","size":3,"annotations":{"org.opencontainers.image.ref.name":"1.2"}}]}"#;

    #[test]
    fn an_archive_says_its_name_and_layers_and_the_same_layout_gives_the_same_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let log = Log::at(folder.path().join("log")).unwrap();
        let mut archives = Vec::new();
        for round in ["1", "2"] {
            let layout = folder.path().join(round);
            let blobs = layout.join("blobs/sha256");
            std::fs::create_dir_all(&blobs).unwrap();
            std::fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
            std::fs::write(layout.join("index.json"), LAYOUT).unwrap();
            let manifest =
                r#"{"layers":[{"digest":"sha256:b","size":29000000},{"digest":"sha256:c","size":4100000}]}"#;
            std::fs::write(blobs.join("aa"), manifest).unwrap();
            let file = folder.path().join(round).join("image.tar");
            write(&layout, "docker.io/fabedge/agent:1.2", &file, &log).unwrap();
            archives.push(file);
        }
        let [first, second] = archives.as_slice() else {
            panic!("two were made");
        };
        assert_eq!(std::fs::read(first).unwrap(), std::fs::read(second).unwrap());
        let summary = read(first).unwrap();
        assert_eq!(summary.name, "docker.io/fabedge/agent:1.2");
        assert_eq!(summary.digest, "sha256:aa");
        assert_eq!(
            summary.to_string(),
            "33.1 MB: the base, which all share, 29.0 MB; its own 4.1 MB"
        );
    }

    #[test]
    fn a_layout_of_no_image_is_refused() {
        assert!(named(r#"{"manifests":[]}"#, "docker.io/fabedge/agent:1.2").is_err());
    }
}
