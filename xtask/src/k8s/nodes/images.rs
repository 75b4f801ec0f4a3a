//! The image of everything in a cluster of tests that is not ours: one program, busybox, which waits, answers
//! `kubectl exec`, and runs the stand-in for Flannel.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::progress::output;

/// Its name on every node.
pub const NAME: &str = "fabedge.test/busybox:1";

/// Waits until it is told to end.
const WAIT: &str = "trap 'exit 0' TERM INT; while :; do sleep 3600 & wait $!; done";

/// Writes the archive into a folder; returns its path.
pub fn write(busybox: &Path, folder: &Path) -> Result<PathBuf> {
    let (content, layout) = (folder.join("content"), folder.join("layout"));
    std::fs::create_dir_all(content.join("bin"))?;
    std::fs::create_dir_all(layout.join("blobs/sha256"))?;
    std::fs::copy(busybox, content.join("bin/busybox"))
        .with_context(|| format!("copying {}", busybox.display()))?;
    let applets = output(Command::new(busybox).arg("--list"))?;
    for applet in applets.lines().filter(|applet| *applet != "busybox") {
        std::os::unix::fs::symlink("busybox", content.join("bin").join(applet))?;
    }
    for name in ["etc", "proc", "sys", "dev", "tmp", "run"] {
        std::fs::create_dir(content.join(name))?;
    }
    let layer = folder.join("layer.tar");
    tar(&content, &layer)?;
    let layer = std::fs::read(&layer)?;
    let config = json!({
        "architecture": "amd64",
        "os": "linux",
        "config": {"Cmd": ["/bin/sh", "-c", WAIT], "Env": ["PATH=/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [digest(&layer)]},
    })
    .to_string();
    let described = |kind: &str, blob: &[u8]| {
        json!({
            "mediaType": format!("application/vnd.oci.image.{kind}"),
            "digest": digest(blob),
            "size": blob.len(),
        })
    };
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": described("config.v1+json", config.as_bytes()),
        "layers": [described("layer.v1.tar", &layer)],
    })
    .to_string();
    let mut index = described("manifest.v1+json", manifest.as_bytes());
    index["annotations"] = json!({"io.containerd.image.name": NAME});
    for blob in [&layer[..], config.as_bytes(), manifest.as_bytes()] {
        let name = digest(blob).replace(':', "/");
        std::fs::write(layout.join("blobs").join(name), blob)?;
    }
    let index = json!({"schemaVersion": 2, "manifests": [index]}).to_string();
    std::fs::write(layout.join("index.json"), index)?;
    std::fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)?;
    let archive = folder.join("busybox.tar");
    tar(&layout, &archive)?;
    Ok(archive)
}

fn tar(folder: &Path, archive: &Path) -> Result<()> {
    let mut tar = Command::new("tar");
    tar.args(["--owner=0", "--group=0", "--numeric-owner", "--create", "--file"]);
    output(tar.arg(archive).arg("--directory").arg(folder).arg(".")).map(|_| ())
}

fn digest(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!("sha256:{hex}")
}
