//! The sources of Kubernetes: fetched from Debian, mended for the compiler that Debian has, completed.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

use super::Go;
use crate::progress::{Log, step};
use crate::setup::{apt, sources};

/// Debian's source package; its patches concern the client alone.
const PACKAGE: &str = "kubernetes";

/// The SHA-256 of the tarball that the edits below were made for.
const TARBALL: &str = "b83c0780efb182d928dc63d46488a847f161f04e40a94b96bf5247dd671ecdfc";

/// A library whose vendored copy (1.0.1) reaches into the compiler's runtime in a way that Go 1.18 changed: the API
/// server ends with a segmentation fault when it decodes the first CRD. Debian packages 1.0.2, which knows better.
const LIBRARY: &str = "golang-github-modern-go-reflect2-dev";
const LIBRARY_PATH: &str = "github.com/modern-go/reflect2";

/// A replacement in the sources.
struct Edit {
    file: &'static str,
    find: &'static str,
    put: &'static str,
}

/// The validator of CRDs and of objects takes a value for null when it is bit for bit what `reflect.Zero` returns. In
/// Go 1.19 an empty string is just that, so that `default: ""` in a CRD and "" in an object are refused as null.
/// With the Go of its time the comparison held for nil maps only; say so.
const EDITS: [Edit; 2] = [
    Edit {
        file: "vendor/k8s.io/kube-openapi/pkg/validation/validate/type.go",
        find: NULL_BY_BITS,
        put: NULL_BY_KIND,
    },
    Edit {
        file: "vendor/github.com/go-openapi/validate/type.go",
        find: NULL_BY_BITS,
        put: NULL_BY_KIND,
    },
];
const NULL_BY_BITS: &str =
    "data == nil || reflect.DeepEqual(reflect.Zero(reflect.TypeOf(data)), reflect.ValueOf(data))";
const NULL_BY_KIND: &str =
    "data == nil || (reflect.TypeOf(data).Kind() == reflect.Map && reflect.ValueOf(data).IsNil())";

/// The mark of a package whose types belong into the OpenAPI description that the server publishes.
const MARK: &str = "+k8s:openapi-gen=";
/// Where such packages are.
const MARKED: [&str; 4] = ["cmd", "pkg", "plugin", "staging/src/k8s.io"];
/// Examples, and the generator itself.
const UNMARKED: [&str; 2] = ["vendor/k8s.io/code-generator/", "vendor/k8s.io/sample-apiserver/"];

/// What the prepared sources depend on.
pub fn parts() -> Vec<String> {
    let mut parts = vec![TARBALL.to_owned(), LIBRARY.to_owned()];
    for edit in &EDITS {
        parts.extend([edit.file, edit.find, edit.put].map(str::to_owned));
    }
    parts
}

/// Puts complete sources where `go` looks for them.
pub fn prepare(go: &Go, work: &Path, log: &Log) -> Result<()> {
    let fetched = work.join("fetched");
    let tarball = step("fetching the source package kubernetes", || {
        fetch(&fetched, work, log)
    })?;
    let sources = go.sources();
    step("unpacking and mending it", || {
        if sources.exists() {
            std::fs::remove_dir_all(&sources).with_context(|| format!("removing {}", sources.display()))?;
        }
        std::fs::create_dir_all(&sources).with_context(|| format!("creating {}", sources.display()))?;
        log.run(
            Command::new("tar")
                .arg("--extract")
                .arg("--no-same-owner")
                .arg("--strip-components=1")
                .arg("--file")
                .arg(&tarball)
                .arg("--directory")
                .arg(&sources),
        )?;
        for edit in &EDITS {
            edit.apply(&sources)?;
        }
        let unpacked = work.join(LIBRARY);
        apt::unpack(&apt::fetch(LIBRARY, &fetched, log)?, &unpacked, log)?;
        replace_library(
            &unpacked.join("usr/share/gocode/src").join(LIBRARY_PATH),
            &sources.join("vendor").join(LIBRARY_PATH),
        )
    })?;
    step("generating its OpenAPI description", || describe(go, work, log))
}

/// Fetches the tarball with package lists of our own: the machine's may have no sources, and stay as they are.
fn fetch(folder: &Path, work: &Path, log: &Log) -> Result<PathBuf> {
    if let Ok(tarball) = find_tarball(folder) {
        return Ok(tarball);
    }
    let lists = work.join("apt");
    for name in ["lists/partial", "cache/archives/partial"] {
        std::fs::create_dir_all(lists.join(name))
            .with_context(|| format!("creating {}", lists.join(name).display()))?;
    }
    std::fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
    let mirrors = sources::read(Path::new("/etc/apt"))?;
    let lines: Vec<String> = mirrors.iter().map(sources::Source::source_line).collect();
    let list = lists.join("sources.list");
    std::fs::write(&list, lines.join("\n") + "\n").with_context(|| format!("writing {}", list.display()))?;
    let apt_get = || {
        let mut command = apt::apt_get();
        for option in [
            format!("Dir::Etc::SourceList={}", list.display()),
            "Dir::Etc::SourceParts=/dev/null".to_owned(),
            format!("Dir::State::Lists={}", lists.join("lists").display()),
            format!("Dir::Cache={}", lists.join("cache").display()),
        ] {
            command.args(["-o", &option]);
        }
        command.current_dir(folder);
        command
    };
    log.run(apt_get().arg("update"))
        .context("reading the lists of source packages of this machine's mirrors")?;
    log.run(apt_get().args(["source", "--download-only", PACKAGE]))?;
    find_tarball(folder)
}

/// The tarball in a folder; another one than the edits were made for is not worth five minutes.
fn find_tarball(folder: &Path) -> Result<PathBuf> {
    let entries = std::fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))?;
    let tarball = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| {
            let name = path
                .file_name()
                .map(|name| name.to_string_lossy())
                .unwrap_or_default();
            name.starts_with("kubernetes_") && name.ends_with(".orig.tar.gz")
        })
        .with_context(|| format!("no kubernetes_*.orig.tar.gz in {}", folder.display()))?;
    let bytes = std::fs::read(&tarball).with_context(|| format!("reading {}", tarball.display()))?;
    let found: String = Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    if found != TARBALL {
        bail!(
            "{} has the SHA-256 {found}, not {TARBALL}: Debian's mirrors have other sources of Kubernetes now, for \
             which {} must be revised",
            tarball.display(),
            file!()
        );
    }
    Ok(tarball)
}

impl Edit {
    fn apply(&self, sources: &Path) -> Result<()> {
        let path = sources.join(self.file);
        let text = std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        let count = text.matches(self.find).count();
        if count != 1 {
            bail!(
                "{} has `{}` {count} times instead of once",
                path.display(),
                self.find
            );
        }
        std::fs::write(&path, text.replace(self.find, self.put))
            .with_context(|| format!("writing {}", path.display()))
    }
}

/// Puts the Go files of one folder in the place of those of another.
fn replace_library(from: &Path, to: &Path) -> Result<()> {
    let is_code = |path: &Path| path.extension().is_some_and(|kind| kind == "go" || kind == "s");
    for (folder, remove) in [(to, true), (from, false)] {
        for entry in std::fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))? {
            let entry = entry?;
            if !is_code(&entry.path()) {
                continue;
            }
            if remove {
                std::fs::remove_file(entry.path())
            } else {
                std::fs::copy(entry.path(), to.join(entry.file_name())).map(|_| ())
            }
            .with_context(|| format!("replacing {}", to.display()))?;
        }
    }
    Ok(())
}

/// Runs the sources' own generator: its outcome, which the server does not compile without, is not in the tarball.
fn describe(go: &Go, work: &Path, log: &Log) -> Result<()> {
    let sources = go.sources();
    let mut packages = BTreeSet::new();
    for folder in MARKED {
        find_marked(&sources, Path::new(folder), &mut packages)?;
    }
    if packages.is_empty() {
        bail!("no package in {} has the mark {MARK}", sources.display());
    }
    let packages: Vec<String> = packages
        .iter()
        .map(|path| format!("k8s.io/kubernetes/{path}"))
        .collect();
    let generator = work.join("openapi-gen");
    log.run(
        go.command("build")
            .arg("-o")
            .arg(&generator)
            .arg("k8s.io/kubernetes/vendor/k8s.io/kube-openapi/cmd/openapi-gen"),
    )?;
    let mut generate = Command::new(&generator);
    // It calls the compiler to find packages.
    let environment = go.command("env");
    for (name, value) in environment.get_envs() {
        match value {
            Some(value) => generate.env(name, value),
            None => generate.env_remove(name),
        };
    }
    generate.current_dir(&sources).arg("--logtostderr");
    generate.args(["--input-dirs", &packages.join(",")]);
    generate.args(["--output-package", "k8s.io/kubernetes/pkg/generated/openapi"]);
    generate.args(["--output-file-base", "zz_generated.openapi"]);
    generate.args(["--go-header-file", "hack/boilerplate/boilerplate.generatego.txt"]);
    generate.arg("--report-filename").arg(work.join("openapi.report"));
    log.run(&mut generate)?;
    let outcome = sources.join("pkg/generated/openapi/zz_generated.openapi.go");
    if !outcome.exists() {
        bail!("openapi-gen left no {}", outcome.display());
    }
    Ok(())
}

/// The folders below `folder` with a Go file that carries the mark, as Kubernetes imports them.
fn find_marked(sources: &Path, folder: &Path, packages: &mut BTreeSet<String>) -> Result<()> {
    let here = sources.join(folder);
    for entry in std::fs::read_dir(&here).with_context(|| format!("reading {}", here.display()))? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            find_marked(sources, &folder.join(entry.file_name()), packages)?;
        } else if kind.is_file()
            && is_source(&entry.file_name().to_string_lossy())
            && let Some(package) = imported(&folder.to_string_lossy())
            && !packages.contains(&package)
        {
            let text =
                std::fs::read(entry.path()).with_context(|| format!("reading {}", entry.path().display()))?;
            if String::from_utf8_lossy(&text).contains(MARK) {
                packages.insert(package);
            }
        }
    }
    Ok(())
}

fn is_source(name: &str) -> bool {
    name.ends_with(".go") && !name.ends_with("_test.go") && !name.starts_with("zz_generated")
}

/// The path by which Kubernetes imports the package of a folder, unless it is one to leave out.
fn imported(folder: &str) -> Option<String> {
    let path = match folder.strip_prefix("staging/src/") {
        Some(rest) => format!("vendor/{rest}"),
        None => folder.to_owned(),
    };
    (!UNMARKED.iter().any(|start| path.starts_with(start))).then_some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn staged_packages_are_imported_as_vendored_ones() {
        assert_eq!(
            imported("staging/src/k8s.io/api/core/v1").unwrap(),
            "vendor/k8s.io/api/core/v1"
        );
        assert_eq!(imported("pkg/apis/core").unwrap(), "pkg/apis/core");
        assert_eq!(imported("staging/src/k8s.io/sample-apiserver/pkg/apis"), None);
        assert!(is_source("types.go"));
        assert!(!is_source("types_test.go"));
        assert!(!is_source("zz_generated.deepcopy.go"));
    }

    #[test]
    fn an_edit_that_does_not_fit_exactly_once_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let edit = Edit {
            file: "type.go",
            find: "old",
            put: "new",
        };
        let path = folder.path().join("type.go");
        for text in ["nothing", "old and old"] {
            std::fs::write(&path, text).unwrap();
            assert!(edit.apply(folder.path()).is_err());
            assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
        }
        std::fs::write(&path, "the old way").unwrap();
        edit.apply(folder.path()).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "the new way");
    }

    #[test]
    fn marked_packages_are_found_once_each() {
        let folder = tempfile::tempdir().unwrap();
        let sources = folder.path();
        for (file, text) in [
            ("pkg/a/doc.go", "// +k8s:openapi-gen=true\npackage a"),
            ("pkg/a/types.go", "// +k8s:openapi-gen=false\npackage a"),
            ("pkg/b/doc_test.go", "// +k8s:openapi-gen=true"),
            ("pkg/c/c.go", "package c"),
        ] {
            let path = sources.join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        let mut packages = BTreeSet::new();
        find_marked(sources, Path::new("pkg"), &mut packages).unwrap();
        assert_eq!(packages, BTreeSet::from(["pkg/a".to_owned()]));
    }

    #[test]
    fn a_library_is_replaced_file_by_file() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        std::fs::write(from.path().join("new.go"), "new").unwrap();
        std::fs::write(to.path().join("old.go"), "old").unwrap();
        std::fs::write(to.path().join("LICENSE"), "license").unwrap();
        replace_library(from.path(), to.path()).unwrap();
        assert!(to.path().join("new.go").exists());
        assert!(!to.path().join("old.go").exists());
        assert!(to.path().join("LICENSE").exists());
    }
}
