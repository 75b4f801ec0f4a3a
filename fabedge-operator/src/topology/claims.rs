//! Which prefix is whose: a prefix belongs to one owner, and the first one keeps it.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;

/// Owner of the addresses of cloud nodes. An edge may have the same in a network of its own: it reaches the cloud's
/// through the tunnel.
pub(super) const CLOUD_ADDRESSES: &str = "the cloud nodes' addresses";

/// Disjoint prefixes with their owners. A lookup takes logarithmic time, for there may be tens of thousands.
#[derive(Debug, Default)]
pub(super) struct Claims {
    /// First address (family before number) -> the prefix that begins there.
    taken: BTreeMap<(bool, u128), (IpNet, String)>,
    /// Addresses that edges have in networks of their own, and whose they are. Many may have the same.
    underlay: BTreeMap<(bool, u128), (IpAddr, String)>,
}

impl Claims {
    /// The claimed prefix that overlaps `net` and its owner, if any.
    pub(super) fn overlapping(&self, net: IpNet) -> Option<(IpNet, &str)> {
        let (first, last) = (key(net.network()), key(net.broadcast()));
        let (_, (other, owner)) = self.taken.range(..=last).next_back()?;
        // Prefixes nest or are disjoint, so only the last one that begins at or before our end can reach us.
        (key(other.broadcast()) >= first).then_some((*other, owner.as_str()))
    }

    /// Claims `net`, unless it overlaps what another owner holds. What the owner itself holds already is no
    /// conflict and changes nothing.
    pub(super) fn claim(&mut self, net: IpNet, owner: &str) -> Result<(), (IpNet, String)> {
        match self.overlapping(net) {
            Some((_, holder)) if holder == owner => Ok(()),
            Some((other, holder)) => Err((other, holder.to_owned())),
            None => {
                self.taken.insert(key(net.network()), (net, owner.to_owned()));
                Ok(())
            }
        }
    }

    /// Notes that `owner` has this address in a network of its own, so that no prefix may hold it.
    pub(super) fn occupy(&mut self, ip: IpAddr, owner: &str) {
        self.underlay
            .entry(key(ip))
            .or_insert_with(|| (ip, owner.to_owned()));
    }

    /// An address within `net` that somebody has in a network of his own.
    pub(super) fn occupied(&self, net: IpNet) -> Option<(IpAddr, &str)> {
        let (_, (ip, owner)) = self
            .underlay
            .range(key(net.network())..=key(net.broadcast()))
            .next()?;
        Some((*ip, owner))
    }

    /// Claims all of `nets` or none.
    pub(super) fn claim_all(&mut self, nets: &[IpNet], owner: &str) -> Result<(), (IpNet, IpNet, String)> {
        for net in nets {
            if let Some((other, holder)) = self.overlapping(*net).filter(|(_, holder)| *holder != owner) {
                return Err((*net, other, holder.to_owned()));
            }
        }
        for net in nets {
            // Checked above; a prefix given twice is claimed once.
            self.claim(*net, owner)
                .map_err(|(other, holder)| (*net, other, holder))?;
        }
        Ok(())
    }
}

fn key(ip: IpAddr) -> (bool, u128) {
    match ip {
        IpAddr::V4(ip) => (false, u128::from(u32::from(ip))),
        IpAddr::V6(ip) => (true, u128::from(ip)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn net() -> impl Strategy<Value = IpNet> {
        // Few addresses, so that overlaps are common.
        (any::<bool>(), 0u8..8, 0u8..8, 8u8..=32).prop_map(|(v6, b, c, len)| {
            let text = if v6 {
                format!("fd{b:02x}:{c:02x}00::/{len}")
            } else {
                format!("10.{b}.{c}.0/{len}")
            };
            text.parse::<IpNet>().unwrap().trunc()
        })
    }

    proptest! {
        #[test]
        fn agrees_with_comparing_every_pair(nets in prop::collection::vec(net(), 0..40)) {
            let mut claims = Claims::default();
            let mut taken: Vec<(usize, IpNet)> = Vec::new();
            for (i, net) in nets.into_iter().enumerate() {
                let free = taken.iter().all(|(_, t)| !t.contains(&net) && !net.contains(t));
                prop_assert_eq!(claims.claim(net, &i.to_string()).is_ok(), free, "{} in {:?}", net, taken);
                if free {
                    taken.push((i, net));
                }
            }
        }
    }

    #[test]
    fn addresses_within_a_prefix_are_found() {
        let mut claims = Claims::default();
        for (ip, owner) in [
            ("192.168.50.2", "edge1"),
            ("192.168.50.2", "edge3"),
            ("fd00::2", "edge1"),
        ] {
            claims.occupy(ip.parse().unwrap(), owner);
        }
        let found = |net: &str| claims.occupied(net.parse().unwrap()).map(|(_, owner)| owner);
        assert_eq!(found("192.168.50.0/24"), Some("edge1"));
        assert_eq!(found("192.168.50.2/32"), Some("edge1"));
        assert_eq!(found("fd00::/64"), Some("edge1"));
        assert_eq!(found("192.168.51.0/24"), None);
        assert_eq!(found("::/64"), None, "families are apart");
    }

    #[test]
    fn all_or_none() {
        let nets = |texts: &[&str]| texts.iter().map(|t| t.parse().unwrap()).collect::<Vec<IpNet>>();
        let mut claims = Claims::default();
        claims
            .claim_all(&nets(&["10.1.0.0/24", "fd01::/64"]), "a")
            .unwrap();
        let refused = claims.claim_all(&nets(&["10.2.0.0/24", "10.1.0.0/16"]), "b");
        assert_eq!(refused.unwrap_err().2, "a");
        claims.claim_all(&nets(&["10.2.0.0/24"]), "c").unwrap();
    }
}
