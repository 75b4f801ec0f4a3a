//! A pod: a network namespace that real CNI plugins have attached to a site.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::cni::Attachment;
use crate::place::Place;
use crate::site::Site;

/// A pod that is attached.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Pod {
    /// Where its commands run and its sockets are.
    pub place: Place,
    /// The name of its node's site.
    pub site: String,
    /// The conflist by which it was attached, and by which it is detached.
    conflist: String,
    /// What the runtime asked of the plugins.
    capabilities: Value,
    /// Its IPv4 address.
    pub v4: Ipv4Addr,
    /// Its IPv6 address, if its node has a pod prefix of that family.
    pub v6: Option<Ipv6Addr>,
}

impl Pod {
    /// Makes the pod `name` and attaches it to `site`.
    ///
    /// # Errors
    /// When a plugin fails or gives no address.
    pub fn attach(name: &str, site: &Site, conflist: &str, capabilities: &Value) -> Result<Self> {
        let place = Place::create(name)?;
        let made = Self::attach_to(&place, site, conflist, capabilities);
        if made.is_err() {
            place.release()?;
        }
        made
    }

    fn attach_to(place: &Place, site: &Site, conflist: &str, capabilities: &Value) -> Result<Self> {
        // The plugin would wait for duplicate address detection.
        place.sysctl(&["net/ipv6/conf/default/accept_dad=0"])?;
        let netns = place.net.to_string_lossy();
        let attachment = Attachment {
            site,
            conflist,
            container: &container(&place.name),
            netns: &netns,
            capabilities,
        };
        let result = attachment.add()?;
        place.ip("link set lo up")?;
        let addresses: Vec<IpAddr> = result["ips"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|ip| ip["address"].as_str()?.split('/').next()?.parse().ok())
            .collect();
        let v4 = addresses.iter().find_map(|address| match address {
            IpAddr::V4(v4) => Some(*v4),
            IpAddr::V6(_) => None,
        });
        let v6 = addresses.iter().find_map(|address| match address {
            IpAddr::V6(v6) => Some(*v6),
            IpAddr::V4(_) => None,
        });
        Ok(Self {
            place: place.clone(),
            site: site.place.name.clone(),
            conflist: conflist.to_owned(),
            capabilities: capabilities.clone(),
            v4: v4.with_context(|| format!("the pod {} got no IPv4 address", place.name))?,
            v6,
        })
    }

    /// Detaches the pod from `site`, its node, and removes it.
    ///
    /// # Errors
    /// When a plugin fails.
    pub fn detach(&self, site: &Site) -> Result<()> {
        let netns = self.place.net.to_string_lossy();
        Attachment {
            site,
            conflist: &self.conflist,
            container: &container(&self.place.name),
            netns: &netns,
            capabilities: &self.capabilities,
        }
        .delete()?;
        self.place.release()
    }

    /// Its address of one family.
    ///
    /// # Errors
    /// When it has none of that family.
    pub fn address(&self, v6: bool) -> Result<IpAddr> {
        if v6 {
            self.v6
                .map(IpAddr::V6)
                .with_context(|| format!("the pod {} has no IPv6 address", self.place.name))
        } else {
            Ok(IpAddr::V4(self.v4))
        }
    }
}

/// The sandbox id: like a runtime's in that it fits a file name and says nothing.
fn container(name: &str) -> String {
    format!("lab-{name}")
}
