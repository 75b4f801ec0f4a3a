//! The world: places, sites and pods by name, kept in a folder under `/run` from which another process can find
//! them again, and gone without a trace afterwards.

pub mod addresses;
pub mod network;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::mount::{MountFlags, UnmountFlags};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::place::{NETNS_DIR, Place};
use crate::pod::Pod;
use crate::site::Site;
use addresses::{Numbers, Role, SITES};

/// Everything that the lab keeps is here, on a file system of its own.
pub const DIR: &str = "/run/fabedge-lab";

/// The world's record.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct World {
    /// Routers and other places that are neither sites nor pods.
    pub routers: BTreeMap<String, Place>,
    /// The nodes.
    pub sites: BTreeMap<String, Site>,
    /// The pods.
    pub pods: BTreeMap<String, Pod>,
}

impl World {
    /// Makes networks and sites; no pods and no programs yet.
    ///
    /// # Errors
    /// When one exists already, or something cannot be made; what was made is gone again then.
    pub fn build() -> Result<Self> {
        let sites = SITES.map(|numbers| (numbers.name, numbers.documents));
        Self::build_of(&network::ROUTERS, &sites, network::build, |world| {
            for numbers in SITES.iter().filter(|numbers| numbers.role != Role::Edge) {
                let site = world.site(numbers.name)?;
                let file = site.path(crate::cni::CONF_DIR).join("10-flannel.conflist");
                fs::write(&file, network::flannel_conflist(numbers))
                    .with_context(|| format!("writing {}", file.display()))?;
            }
            Ok(())
        })
    }

    /// The same of other places: `connect` joins routers and sites (each with the folder of its documents), before
    /// sites have mounts of their own; `furnish` does the rest.
    ///
    /// # Errors
    /// As [`World::build`].
    pub fn build_of(
        routers: &[&str],
        sites: &[(&str, &str)],
        connect: impl FnOnce(&BTreeMap<String, Place>) -> Result<()>,
        furnish: impl FnOnce(&Self) -> Result<()>,
    ) -> Result<Self> {
        if Path::new(DIR).join("world.json").exists() {
            bail!("there is a lab already: `lab list` shows it, `lab down` removes it");
        }
        let mut world = Self::default();
        let built = world
            .make(routers, sites, connect)
            .and_then(|()| furnish(&world))
            .and_then(|()| world.save());
        match built {
            Ok(()) => Ok(world),
            Err(error) => {
                // The first error is the one to report.
                drop(world.tear_down());
                Err(error)
            }
        }
    }

    fn make(
        &mut self,
        routers: &[&str],
        sites: &[(&str, &str)],
        connect: impl FnOnce(&BTreeMap<String, Place>) -> Result<()>,
    ) -> Result<()> {
        prepare_directory()?;
        for name in routers {
            self.routers.insert((*name).to_owned(), Place::create(name)?);
        }
        let mut places = self.routers.clone();
        for (name, _) in sites {
            let place = Place::create(name)?;
            places.insert((*name).to_owned(), place.clone());
            // Known from now on, so that it is torn down also when the rest fails.
            self.sites.insert(
                (*name).to_owned(),
                Site {
                    place,
                    root: site_root(name),
                },
            );
        }
        connect(&places)?;
        for (name, folder) in sites {
            let site = Site::create(places[*name].clone(), &site_root(name), &documents().join(folder))?;
            self.sites.insert((*name).to_owned(), site);
        }
        Ok(())
    }

    /// Finds the world that another process made.
    ///
    /// # Errors
    /// When there is none.
    pub fn open() -> Result<Self> {
        let file = Path::new(DIR).join("world.json");
        let text = fs::read_to_string(&file)
            .with_context(|| format!("reading {} (no lab is up?)", file.display()))?;
        serde_json::from_str(&text).with_context(|| format!("parsing {}", file.display()))
    }

    /// Writes the record for other processes.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn save(&self) -> Result<()> {
        let file = Path::new(DIR).join("world.json");
        let text = serde_json::to_string_pretty(self).context("writing the world's record")?;
        fs::write(&file, text).with_context(|| format!("writing {}", file.display()))
    }

    /// A site by name.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn site(&self, name: &str) -> Result<&Site> {
        self.sites
            .get(name)
            .with_context(|| format!("there is no site {name}"))
    }

    /// A pod by name.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn pod(&self, name: &str) -> Result<&Pod> {
        self.pods
            .get(name)
            .with_context(|| format!("there is no pod {name}"))
    }

    /// A router by name.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn router(&self, name: &str) -> Result<&Place> {
        self.routers
            .get(name)
            .with_context(|| format!("there is no router {name}"))
    }

    /// Any place by name.
    ///
    /// # Errors
    /// When there is none of that name; the error lists those that are.
    pub fn place(&self, name: &str) -> Result<&Place> {
        self.places().find(|place| place.name == name).with_context(|| {
            let known: Vec<&str> = self.places().map(|place| place.name.as_str()).collect();
            format!("there is no {name} here, only {}", known.join(", "))
        })
    }

    /// Every place.
    pub fn places(&self) -> impl Iterator<Item = &Place> {
        let sites = self.sites.values().map(|site| &site.place);
        let pods = self.pods.values().map(|pod| &pod.place);
        sites.chain(pods).chain(self.routers.values())
    }

    /// Adds a pod on a site by the conflist that the site has in its CNI folder.
    ///
    /// # Errors
    /// When the site has no conflist, or a plugin fails.
    pub fn add_pod(&mut self, name: &str, site: &str, capabilities: &Value) -> Result<Pod> {
        let conflist = self.conflist(site)?;
        self.add_pod_by(name, site, &conflist, capabilities)
    }

    /// Adds a pod on a site by a given conflist.
    ///
    /// # Errors
    /// When a plugin fails.
    pub fn add_pod_by(
        &mut self,
        name: &str,
        site: &str,
        conflist: &str,
        capabilities: &Value,
    ) -> Result<Pod> {
        let pod = Pod::attach(name, self.site(site)?, conflist, capabilities)
            .with_context(|| format!("adding the pod {name} to {site}"))?;
        self.pods.insert(name.to_owned(), pod.clone());
        self.save()?;
        Ok(pod)
    }

    /// Removes a pod.
    ///
    /// # Errors
    /// When a plugin fails.
    pub fn remove_pod(&mut self, name: &str) -> Result<()> {
        let pod = self.pod(name)?.clone();
        pod.detach(self.site(&pod.site)?)
            .with_context(|| format!("removing the pod {name}"))?;
        self.pods.remove(name);
        self.save()
    }

    /// The first conflist in a site's CNI folder, as a runtime picks it.
    fn conflist(&self, site: &str) -> Result<String> {
        let directory = self.site(site)?.path(crate::cni::CONF_DIR);
        let mut names: Vec<PathBuf> = fs::read_dir(&directory)
            .with_context(|| format!("reading {}", directory.display()))?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| path.extension().is_some_and(|end| end == "conflist"))
            .collect();
        names.sort();
        let name = names
            .first()
            .and_then(|path| path.file_name()?.to_str())
            .with_context(|| format!("{site} has no CNI conflist"))?;
        // By the site's own eyes: the file may be a link to a path that means something else out here.
        self.site(site)?
            .place
            .must(&["cat", &format!("{}/{name}", crate::cni::CONF_DIR)])
    }

    /// Ends every process in the world, and removes it.
    ///
    /// # Errors
    /// When something cannot be removed; the rest is.
    pub fn tear_down(&self) -> Result<()> {
        let ended = self.end_processes();
        let released: Vec<Result<()>> = self.places().map(Place::release).collect();
        // Namespaces and their bpffs are gone with their last holder; this takes the files. Where it is not
        // mounted there is nothing to unmount.
        rustix::mount::unmount(DIR, UnmountFlags::DETACH).ok();
        if fs::read_dir(NETNS_DIR).is_ok_and(|mut names| names.next().is_none()) {
            rustix::mount::unmount(NETNS_DIR, UnmountFlags::DETACH).ok();
        }
        match fs::remove_dir_all(DIR) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("removing {DIR}"));
            }
            _ => {}
        }
        released.into_iter().collect::<Result<()>>()?;
        ended
    }

    /// Ends the processes that are in one of the world's network namespaces.
    fn end_processes(&self) -> Result<()> {
        let namespaces: BTreeSet<u64> = self
            .places()
            .filter_map(|place| Some(fs::metadata(&place.net).ok()?.ino()))
            .collect();
        for _ in 0..200 {
            let members = members(&namespaces)?;
            if members.is_empty() {
                return Ok(());
            }
            for pid in members {
                // It may have ended by itself in between.
                rustix::process::kill_process(pid, rustix::process::Signal::KILL).ok();
            }
            thread::sleep(Duration::from_millis(25));
        }
        bail!("processes in the lab's namespaces do not end");
    }
}

/// Where the operator writes its documents.
pub fn documents() -> PathBuf {
    Path::new(DIR).join("documents")
}

/// The folder of a site.
fn site_root(name: &str) -> PathBuf {
    Path::new(DIR).join("sites").join(name)
}

/// The numbers of a site.
///
/// # Errors
/// When there is none of that name.
pub fn numbers(site: &str) -> Result<&'static Numbers> {
    SITES
        .iter()
        .find(|numbers| numbers.name == site)
        .with_context(|| format!("there is no site {site}"))
}

/// Puts a file system of its own at [`DIR`].
fn prepare_directory() -> Result<()> {
    fs::create_dir_all(DIR).with_context(|| format!("making {DIR}"))?;
    rustix::mount::mount("tmpfs", DIR, "tmpfs", MountFlags::empty(), None)
        .with_context(|| format!("mounting {DIR}"))
}

/// The processes in one of `namespaces`, zombies and this one excepted.
fn members(namespaces: &BTreeSet<u64>) -> Result<Vec<rustix::process::Pid>> {
    let own = rustix::process::getpid();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").context("reading /proc")?.flatten() {
        let pid = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
            .and_then(rustix::process::Pid::from_raw);
        // A zombie has no namespaces any more.
        let inode = fs::metadata(entry.path().join("ns/net")).map(|meta| meta.ino());
        if let (Some(pid), Ok(inode)) = (pid, inode)
            && pid != own
            && namespaces.contains(&inode)
        {
            found.push(pid);
        }
    }
    Ok(found)
}
