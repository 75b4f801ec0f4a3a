//! charon in a site, with the configuration that ships.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use super::{Lab, START, Tunnel};
use crate::daemon::Daemon;
use crate::site::Site;

/// charon's configuration as it ships, so that what the lab tests is what nodes run.
pub const STRONGSWAN_CONF: &str = include_str!("../../../images/strongswan/strongswan.conf");
const STRONGSWAN_LIBIPSEC_CONF: &str = include_str!("../../../images/strongswan/strongswan-libipsec.conf");

/// Where a site finds charon's configuration.
const STRONGSWAN_DIR: &str = "/run/strongswan";

impl Lab {
    /// Starts a site's charon and waits for its socket.
    ///
    /// # Errors
    /// When it ends or does not listen.
    pub fn start_charon(&mut self, site: &str) -> Result<()> {
        let daemon = start(
            self.world.site(site)?,
            self.settings.tunnel,
            &self.log(&format!("{site}-charon")),
        )?;
        self.daemons.insert(format!("{site}/charon"), daemon);
        Ok(())
    }
}

/// Tells a site's charon something, or asks it.
///
/// # Errors
/// When charon refuses, or is not there.
pub fn swanctl(site: &Site, words: &[&str]) -> Result<String> {
    let uri = ["--uri", "unix:///run/charon.vici"];
    site.place.must(&[&["swanctl"], words, &uri].concat())
}

/// Starts charon in a site and waits for its socket.
///
/// # Errors
/// When it ends or does not listen.
pub fn start(site: &Site, tunnel: Tunnel, log: &Path) -> Result<Daemon> {
    let folder = site.path(STRONGSWAN_DIR);
    fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
    for (name, text) in [
        ("strongswan.conf", STRONGSWAN_CONF),
        ("strongswan-libipsec.conf", STRONGSWAN_LIBIPSEC_CONF),
    ] {
        let file = folder.join(name);
        fs::write(&file, text).with_context(|| format!("writing {}", file.display()))?;
    }
    let conf = match tunnel {
        Tunnel::Xfrm => format!("{STRONGSWAN_DIR}/strongswan.conf"),
        Tunnel::Libipsec => format!("{STRONGSWAN_DIR}/strongswan-libipsec.conf"),
    };
    let socket = site.path("/run/charon.vici");
    // A killed charon leaves its socket behind, which would pass for a new one's.
    match fs::remove_file(&socket) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("removing {}", socket.display()));
        }
        _ => {}
    }
    let mut daemon = Daemon::start(
        &format!("charon of {}", site.place.name),
        &site.place,
        &["/usr/sbin/charon-systemd"],
        &[("STRONGSWAN_CONF", &conf)],
        log,
    )?;
    daemon.wait_until("its socket was there", START, || socket.exists())?;
    Ok(daemon)
}
