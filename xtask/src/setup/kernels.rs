//! Debian's own kernels, unpacked and never installed, each with an initramfs that mounts the shared root.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::cpio::Archive;
use super::{apt, root};
use crate::places::{Places, fill_once, stamp};
use crate::progress::{Log, output, step};

/// The kernels that the project is tested on.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Version {
    /// The kernel of Debian 12: no TCX.
    V6_1,
    /// A kernel with TCX.
    V6_12,
}

impl Version {
    /// All of them.
    pub const ALL: [Version; 2] = [Version::V6_1, Version::V6_12];

    /// As users write it.
    pub fn name(self) -> &'static str {
        match self {
            Version::V6_1 => "6.1",
            Version::V6_12 => "6.12",
        }
    }
}

/// Raise it when the way of making the folder changes.
const RECIPE: &str = "2";

/// Modules that the initramfs loads, in the order of need; built-in ones are left out by themselves.
const EARLY_MODULES: &[&str] = &["virtio_pci", "virtio_rng", "virtiofs", "overlay"];

/// The first program of the guest: mounts the shared root below a tmpfs, then starts our own PID 1.
const INIT: &str = r#"#!/bin/busybox sh
b=/bin/busybox
die() { echo "initramfs: $1 failed"; $b poweroff -f; }
$b mount -t proc proc /proc; $b mount -t sysfs sysfs /sys; $b mount -t devtmpfs dev /dev
for m in $($b cat /modules/order); do $b insmod /modules/$m || die "loading $m"; done
for word in $($b cat /proc/cmdline); do
  case $word in fabedge.layers=*) layers=${word#*=};; fabedge.host=*) host=${word#*=};; esac
done
$b mount -t virtiofs -o ro base /base || die "mounting the root"
$b mount -t tmpfs tmpfs /rw && $b mkdir /rw/upper /rw/work || die "mounting a tmpfs"
cd /base && $b mount -t overlay -o lowerdir=$layers,upperdir=/rw/upper,workdir=/rw/work overlay /new || die "mounting the overlay"
cd /
$b mount -o bind,ro /base/$host /new/host || die "mounting /host"
$b mount -t virtiofs box /new/box || die "mounting /box"
$b mount -o bind /new/box/out /new/out || die "mounting /out"
$b mount --move /dev /new/dev; $b mount --move /proc /new/proc; $b mount --move /sys /new/sys
exec $b switch_root /new /host/xtask guest vm
"#;

/// One unpacked kernel.
#[derive(Clone, Debug)]
pub struct Kernel {
    folder: PathBuf,
}

impl Kernel {
    /// The kernel image.
    pub fn image(&self) -> PathBuf {
        self.folder.join("vmlinuz")
    }

    /// The initramfs.
    pub fn initramfs(&self) -> PathBuf {
        self.folder.join("initramfs")
    }

    /// A folder with `usr/lib/modules`, laid over the root folder.
    pub fn layer(&self) -> PathBuf {
        self.folder.join("layer")
    }
}

/// Where the kernel of this recipe is.
pub fn find(places: &Places, version: Version) -> Kernel {
    let parts = [version.name(), RECIPE, INIT]
        .into_iter()
        .chain(EARLY_MODULES.iter().copied());
    Kernel {
        folder: places.cache.join(format!(
            "kernel-{}-{}",
            version.name().replace('.', "_"),
            stamp(parts)
        )),
    }
}

/// Fetches and unpacks the kernel unless it is there.
pub fn ensure(places: &Places, version: Version, log: &Log) -> Result<()> {
    let kernel = find(places, version);
    if kernel.folder.exists() {
        return Ok(());
    }
    step(&format!("fetching Debian's kernel {}", version.name()), || {
        fill_once(&kernel.folder, |part| make(part, places, version, log))
    })
    .with_context(|| format!("Debian's kernel {} could not be set up", version.name()))
}

fn make(folder: &Path, places: &Places, version: Version, log: &Log) -> Result<()> {
    let package = match newest(version)? {
        Some(package) => package,
        None => {
            apt::update(log)?;
            newest(version)?.with_context(|| {
                format!(
                    "no package linux-image-{}.*-cloud-amd64 in the package lists; /etc/apt needs the suites \
                     bookworm and bookworm-security",
                    version.name()
                )
            })?
        }
    };
    let deb = apt::fetch(&package, folder, log)?;
    let unpacked = folder.join("unpacked");
    apt::unpack(&deb, &unpacked, log)?;
    let release = package.strip_prefix("linux-image-").unwrap_or(&package);
    std::fs::rename(
        unpacked.join(format!("boot/vmlinuz-{release}")),
        folder.join("vmlinuz"),
    )
    .with_context(|| format!("no kernel image in {package}"))?;
    let modules = folder.join("layer/usr/lib/modules");
    std::fs::create_dir_all(&modules)?;
    let modules = modules.join(release);
    std::fs::rename(unpacked.join("lib/modules").join(release), &modules)
        .with_context(|| format!("no modules in {package}"))?;
    std::fs::remove_dir_all(&unpacked)?;
    std::fs::remove_file(&deb)?;
    log.run(
        Command::new("depmod")
            .arg("-b")
            .arg(folder.join("layer/usr"))
            .arg(release),
    )?;
    initramfs(
        &folder.join("initramfs"),
        &root::folder(places).join("usr/bin/busybox"),
        &modules,
    )
}

/// The newest package of a kernel series, by its version numbers.
fn newest(version: Version) -> Result<Option<String>> {
    let pattern = format!("^linux-image-{}\\.", version.name().replace('.', "\\."));
    let found = output(Command::new("apt-cache").args(["search", "--names-only", &pattern]))?;
    Ok(found
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| name.ends_with("-cloud-amd64") && !name.contains("rc"))
        .max_by_key(|name| numbers(name))
        .map(str::to_owned))
}

/// Every number in a text, so that 6.12.117 is after 6.12.99.
fn numbers(text: &str) -> Vec<u64> {
    text.split(|c: char| !c.is_ascii_digit())
        .filter_map(|part| part.parse().ok())
        .collect()
}

fn initramfs(path: &Path, busybox: &Path, modules: &Path) -> Result<()> {
    let mut archive = Archive::default();
    for folder in ["bin", "proc", "sys", "dev", "base", "rw", "new", "modules"] {
        archive.folder(folder);
    }
    let program = std::fs::read(busybox).with_context(|| format!("reading {}", busybox.display()))?;
    archive.file("bin/busybox", 0o755, &program);
    archive.file("init", 0o755, INIT.as_bytes());
    let mut order = Vec::new();
    for relative in with_dependencies(
        &std::fs::read_to_string(modules.join("modules.dep"))?,
        EARLY_MODULES,
    ) {
        let file = modules.join(&relative);
        let name = module_name(&relative).to_owned() + ".ko";
        let bytes = if relative.ends_with(".xz") {
            let unpacked = Command::new("xz")
                .arg("-dc")
                .arg(&file)
                .output()
                .context("starting xz")?;
            anyhow::ensure!(
                unpacked.status.success(),
                "xz could not unpack {}",
                file.display()
            );
            unpacked.stdout
        } else {
            std::fs::read(&file).with_context(|| format!("reading {}", file.display()))?
        };
        archive.file(&format!("modules/{name}"), 0o644, &bytes);
        order.push(name);
    }
    archive.file("modules/order", 0o644, order.join("\n").as_bytes());
    std::fs::write(path, archive.finish()).with_context(|| format!("writing {}", path.display()))
}

/// The module's own name in a path of `modules.dep`.
fn module_name(path: &str) -> &str {
    let name = path.rsplit('/').next().unwrap_or(path);
    name.split(".ko").next().unwrap_or(name)
}

/// The files of `wanted` and of all they depend on, in the order of loading; a module without a line of its
/// own is built in.
fn with_dependencies(modules_dep: &str, wanted: &[&str]) -> Vec<String> {
    let mut files: Vec<String> = Vec::new();
    for module in wanted {
        let line = modules_dep
            .lines()
            .filter_map(|line| line.split_once(':'))
            .find(|(path, _)| module_name(path) == *module);
        let Some((path, dependencies)) = line else {
            continue;
        };
        // modules.dep lists the deepest dependency last.
        for file in dependencies.split_whitespace().rev().chain([path]) {
            if !files.iter().any(|known| known == file) {
                files.push(file.to_owned());
            }
        }
    }
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependencies_come_first_and_built_in_modules_are_left_out() {
        let dep = "kernel/fs/fuse/fuse.ko.xz:\nkernel/fs/fuse/virtiofs.ko.xz: kernel/fs/fuse/fuse.ko.xz kernel/drivers/virtio/virtio.ko.xz\n\
                   kernel/fs/overlayfs/overlay.ko.xz:\n";
        assert_eq!(
            with_dependencies(dep, &["virtio_pci", "virtiofs", "overlay"]),
            [
                "kernel/drivers/virtio/virtio.ko.xz",
                "kernel/fs/fuse/fuse.ko.xz",
                "kernel/fs/fuse/virtiofs.ko.xz",
                "kernel/fs/overlayfs/overlay.ko.xz"
            ]
        );
    }

    #[test]
    fn versions_compare_as_numbers() {
        assert!(
            numbers("linux-image-6.12.117+deb12-cloud-amd64")
                > numbers("linux-image-6.12.99+deb12-cloud-amd64")
        );
        assert!(numbers("linux-image-6.1.0-50-cloud-amd64") > numbers("linux-image-6.1.0-9-cloud-amd64"));
    }
}
