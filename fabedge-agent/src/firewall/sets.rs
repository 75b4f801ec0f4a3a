//! The elements of one set, merged, as an interval set wants them; changed prefix by prefix. Pure.

use std::collections::BTreeSet;

use ipnet::IpNet;

/// A set that changes, and what has changed.
#[derive(Debug)]
pub struct Elements<'a> {
    /// Disjoint, and in as few prefixes as there are.
    now: &'a mut BTreeSet<IpNet>,
    /// What has to be added to what was.
    pub added: BTreeSet<IpNet>,
    /// What has to be deleted from what was.
    pub deleted: BTreeSet<IpNet>,
}

impl<'a> Elements<'a> {
    /// Begins with `now`.
    pub fn new(now: &'a mut BTreeSet<IpNet>) -> Self {
        Self {
            now,
            added: BTreeSet::new(),
            deleted: BTreeSet::new(),
        }
    }

    /// Takes a prefix out; none where not all of it is in the set.
    pub fn take(&mut self, net: IpNet) -> Option<()> {
        let mut whole = wider(net).find(|whole| self.now.contains(whole))?;
        self.delete(whole);
        while whole != net {
            let [low, high] = halves(whole)?;
            let (within, beside) = if low.contains(&net) {
                (low, high)
            } else {
                (high, low)
            };
            self.add(beside);
            whole = within;
        }
        Some(())
    }

    /// Puts a prefix in; none where some of it is in the set.
    pub fn put(&mut self, mut net: IpNet) -> Option<()> {
        let within = self
            .now
            .range(net..)
            .next()
            .is_some_and(|other| net.contains(other));
        if within || wider(net).any(|whole| self.now.contains(&whole)) {
            return None;
        }
        while let Some(whole) = net.supernet() {
            let [low, high] = halves(whole)?;
            let other = if low == net { high } else { low };
            if !self.now.contains(&other) {
                break;
            }
            self.delete(other);
            net = whole;
        }
        self.add(net);
        Some(())
    }

    fn add(&mut self, net: IpNet) {
        self.now.insert(net);
        if !self.deleted.remove(&net) {
            self.added.insert(net);
        }
    }

    fn delete(&mut self, net: IpNet) {
        self.now.remove(&net);
        if !self.added.remove(&net) {
            self.deleted.insert(net);
        }
    }
}

/// The prefix itself and every one that it is in, the longest first.
fn wider(net: IpNet) -> impl Iterator<Item = IpNet> {
    std::iter::successors(Some(net), IpNet::supernet)
}

fn halves(net: IpNet) -> Option<[IpNet; 2]> {
    let mut halves = net.subnets(net.prefix_len() + 1).ok()?;
    Some([halves.next()?, halves.next()?])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn merged(nets: &BTreeSet<IpNet>) -> BTreeSet<IpNet> {
        IpNet::aggregate(&nets.iter().copied().collect())
            .into_iter()
            .collect()
    }

    proptest! {
        #[test]
        fn what_is_taken_and_put_leaves_what_is_merged_anew(
            had in proptest::collection::btree_set(0u8..64, 0..64),
            steps in proptest::collection::vec(0u8..64, 0..20),
        ) {
            let net = |number: u8| IpNet::from(std::net::IpAddr::from([10, 0, 0, number]));
            let mut nets: BTreeSet<IpNet> = had.into_iter().map(net).collect();
            let before = merged(&nets);
            let mut now = before.clone();
            let mut elements = Elements::new(&mut now);
            for number in steps {
                let net = net(number);
                let there = nets.contains(&net);
                prop_assert_eq!(elements.put(net).is_none(), there);
                if there {
                    prop_assert!(elements.take(net).is_some());
                    prop_assert!(elements.take(net).is_none());
                    nets.remove(&net);
                } else {
                    nets.insert(net);
                }
            }
            let Elements { added, deleted, .. } = elements;
            prop_assert_eq!(&now, &merged(&nets));
            prop_assert_eq!(&added, &now.difference(&before).copied().collect());
            prop_assert_eq!(&deleted, &before.difference(&now).copied().collect());
        }
    }
}
