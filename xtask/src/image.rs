//! `cargo xtask image`: the container images, built from their Dockerfiles into OCI archives, without a daemon and
//! without a registry.

pub mod archive;
pub mod check;
pub mod store;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use sha2::{Digest, Sha256};

use crate::build;
use crate::places::{Places, stamp};
use crate::progress::{Log, step};
use crate::setup;
use archive::Summary;
use store::Store;

/// The images, each by the name of its folder in `images`.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd, ValueEnum)]
pub enum Image {
    /// The control plane
    Operator,
    /// The node agent, with the CNI plugins
    Agent,
    /// charon
    Strongswan,
}

impl Image {
    /// All of them.
    pub const ALL: [Image; 3] = [Image::Operator, Image::Agent, Image::Strongswan];

    /// As users write it.
    pub fn name(self) -> &'static str {
        match self {
            Image::Operator => "operator",
            Image::Agent => "agent",
            Image::Strongswan => "strongswan",
        }
    }

    /// The program of ours that its Dockerfile copies.
    fn program(self) -> Option<&'static str> {
        match self {
            Image::Operator => Some("fabedge-operator"),
            Image::Agent => Some("fabedge-agent"),
            Image::Strongswan => None,
        }
    }
}

/// The arguments of `image`.
#[derive(Args, Debug)]
pub struct Arguments {
    /// Which of them; all when none is named
    #[arg(value_enum, value_name = "NAME")]
    names: Vec<Image>,
    /// Where the archives go; by default target/images
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

/// An image that was built.
#[derive(Clone, Debug)]
pub struct Built {
    /// Which it is.
    pub image: Image,
    /// The archive: `ctr -n k8s.io images import` takes it.
    pub file: PathBuf,
    /// What is in it.
    pub summary: Summary,
}

/// Builds what was asked for and says what came of it.
pub fn image(places: &Places, arguments: &Arguments) -> Result<()> {
    let images: BTreeSet<Image> = match arguments.names.as_slice() {
        [] => Image::ALL.into(),
        names => names.iter().copied().collect(),
    };
    let out = arguments.out.clone().unwrap_or_else(|| folder(places));
    for built in build(places, &images, &out)? {
        println!(
            "{}  {}\n  {}\n  {}",
            built.summary.name,
            built.summary.digest,
            built.file.display(),
            built.summary
        );
    }
    Ok(())
}

/// Where archives go by default.
pub fn folder(places: &Places) -> PathBuf {
    places.target.join("images")
}

/// Builds images into archives `<name>.tar` in `out`; what is there already and would come out the same stays.
pub fn build(places: &Places, images: &BTreeSet<Image>, out: &Path) -> Result<Vec<Built>> {
    if images.iter().any(|image| image.program().is_some()) {
        setup::ensure(places)?;
        build::all(places)?;
    }
    let version = version(places)?;
    let store = Store::ensure(places)?;
    let _lock = places.lock()?;
    std::fs::create_dir_all(out).with_context(|| format!("creating {}", out.display()))?;
    let log = Log::at(places.log("image"))?;
    images
        .iter()
        .map(|image| one(places, &store, *image, &version, out, &log))
        .collect()
}

fn one(places: &Places, store: &Store, image: Image, version: &str, out: &Path, log: &Log) -> Result<Built> {
    let context = places.repo.join("images").join(image.name());
    let programs = places.target.join("release");
    let reference = format!("docker.io/fabedge/{}:{version}", image.name());
    let file = out.join(format!("{}.tar", image.name()));
    let stamp_file = out.join(format!("{}.stamp", image.name()));
    let program = image.program().map(|name| programs.join(name));
    let stamp = recipe(&context, program, version, store)?;
    if !file.exists() || std::fs::read_to_string(&stamp_file).ok().as_ref() != Some(&stamp) {
        step(&format!("building the image {}", image.name()), || {
            store.build(&context, &programs, version, &reference, false, log)?;
            archived(store, version, &reference, &file, log)?;
            std::fs::write(&stamp_file, &stamp).with_context(|| format!("writing {}", stamp_file.display()))
        })
        .with_context(|| format!("the image {} could not be built", image.name()))?;
    }
    let summary = archive::read(&file)?;
    Ok(Built { image, file, summary })
}

/// Builds an image of other programs, and of nothing that a build before has left, into the archive `file`. The image
/// of its own name stays.
fn again(places: &Places, image: Image, programs: &Path, file: &Path) -> Result<Built> {
    let version = version(places)?;
    let store = Store::ensure(places)?;
    let _lock = places.lock()?;
    let log = Log::at(places.log("image"))?;
    let context = places.repo.join("images").join(image.name());
    let reference = format!("localhost/again/{}:{version}", image.name());
    store.build(&context, programs, &version, &reference, true, &log)?;
    archived(&store, &version, &reference, file, &log)?;
    store.remove(&reference, &log)?;
    Ok(Built {
        image,
        file: file.to_owned(),
        summary: archive::read(file)?,
    })
}

/// Brings an image from the store into an archive.
fn archived(store: &Store, version: &str, reference: &str, file: &Path, log: &Log) -> Result<()> {
    let layout = store.layout(reference, version, log)?;
    archive::write(&layout, reference, file, log)?;
    std::fs::remove_dir_all(&layout).with_context(|| format!("removing {}", layout.display()))
}

/// Stands for everything that goes into an image.
fn recipe(context: &Path, program: Option<PathBuf>, version: &str, store: &Store) -> Result<String> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(context)
        .with_context(|| format!("reading {}", context.display()))?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<_>>()?;
    files.sort();
    files.extend(program);
    let mut parts = vec![version.to_owned(), store.stamp().to_owned()];
    for file in files {
        let content = std::fs::read(&file).with_context(|| format!("reading {}", file.display()))?;
        parts.push(file.file_name().unwrap_or_default().display().to_string());
        parts.push(format!("{:x}", Sha256::digest(content)));
    }
    Ok(stamp(parts))
}

/// The version that the chart asks for when its values name none.
fn version(places: &Places) -> Result<String> {
    let chart = places.repo.join("charts/fabedge/Chart.yaml");
    let text = std::fs::read_to_string(&chart).with_context(|| format!("reading {}", chart.display()))?;
    let version = text.lines().find_map(|line| line.strip_prefix("appVersion:"));
    match version.map(|version| version.trim().trim_matches('"')) {
        Some(version) if !version.is_empty() => Ok(version.to_owned()),
        _ => bail!("{} has no line `appVersion: VERSION`", chart.display()),
    }
}
