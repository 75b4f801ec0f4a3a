//! Cuts edge pod prefixes from a pool, where the cluster's CNI gives none to nodes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use crate::snapshot::Pool;

/// One prefix per node from one pool.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Allocation {
    /// What each node got.
    pub given: BTreeMap<String, IpNet>,
    /// Nodes for which nothing was left.
    pub without: BTreeSet<String>,
}

/// Gives each of `nodes` a prefix of `pool`. A node keeps what it has in `held` (several sources, the first with
/// a usable prefix counts), unless a node earlier in `nodes` holds something that overlaps it; the others get the
/// lowest free ones in the order of `nodes`. What a node that is no more had is free again.
pub fn allocate(pool: Pool, nodes: &[&str], held: &dyn Fn(&str) -> Vec<IpNet>) -> Allocation {
    let mut allocation = Allocation::default();
    // First -> last address of what is taken; disjoint.
    let mut taken: BTreeMap<u128, u128> = BTreeMap::new();
    for node in nodes {
        let usable = held(node).into_iter().find(|net| {
            pool.range.contains(net)
                && taken
                    .range(..=number(net.broadcast()))
                    .next_back()
                    .is_none_or(|(_, last)| *last < number(net.network()))
        });
        if let Some(net) = usable {
            taken.insert(number(net.network()), number(net.broadcast()));
            allocation.given.insert((*node).to_owned(), net);
        }
    }
    let size = 1u128 << (pool.range.max_prefix_len() - pool.prefix_len);
    let end = number(pool.range.broadcast());
    // The next block to look at; none beyond the last address there is.
    let mut next = Some(number(pool.range.network()));
    for node in nodes {
        if allocation.given.contains_key(*node) {
            continue;
        }
        while let Some(block) = next {
            let in_the_way = taken
                .range(..=block + (size - 1))
                .next_back()
                .map(|(_, last)| *last);
            match in_the_way {
                // `last` may lie inside a block, when a held prefix is longer than those cut now.
                Some(last) if last >= block => next = (last / size * size).checked_add(size),
                _ => break,
            }
        }
        let net = next
            .filter(|block| *block <= end)
            .and_then(|block| IpNet::new(address(block, pool.range.addr()), pool.prefix_len).ok());
        match net {
            Some(net) => _ = allocation.given.insert((*node).to_owned(), net),
            None => _ = allocation.without.insert((*node).to_owned()),
        }
        next = next.and_then(|block| block.checked_add(size));
    }
    allocation
}

fn number(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(ip) => u128::from(u32::from(ip)),
        IpAddr::V6(ip) => u128::from(ip),
    }
}

fn address(number: u128, family: IpAddr) -> IpAddr {
    match family {
        // Within the pool, which is within 32 bits.
        IpAddr::V4(_) => Ipv4Addr::from(number as u32).into(),
        IpAddr::V6(_) => Ipv6Addr::from(number).into(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pool(range: &str, prefix_len: u8) -> Pool {
        Pool {
            range: range.parse().unwrap(),
            prefix_len,
        }
    }

    fn names(ids: &BTreeSet<u8>) -> Vec<String> {
        ids.iter().map(|id| format!("edge{id}")).collect()
    }

    fn run(pool: Pool, nodes: &[String], held: &BTreeMap<String, Vec<IpNet>>) -> Allocation {
        let nodes: Vec<&str> = nodes.iter().map(String::as_str).collect();
        allocate(pool, &nodes, &|node| held.get(node).cloned().unwrap_or_default())
    }

    fn as_held(allocation: &Allocation) -> BTreeMap<String, Vec<IpNet>> {
        allocation
            .given
            .iter()
            .map(|(node, net)| (node.clone(), vec![*net]))
            .collect()
    }

    #[test]
    fn lowest_first_and_reused_after_release() {
        let pool = pool("10.10.0.0/22", 24);
        let all: Vec<String> = ["a", "b", "c"].map(str::to_owned).to_vec();
        let first = run(pool, &all, &BTreeMap::new());
        assert_eq!(first.given["a"].to_string(), "10.10.0.0/24");
        assert_eq!(first.given["c"].to_string(), "10.10.2.0/24");

        let nodes: Vec<String> = ["b", "c", "d"].map(str::to_owned).to_vec();
        let second = run(pool, &nodes, &as_held(&first));
        assert_eq!(second.given["b"], first.given["b"]);
        assert_eq!(second.given["c"], first.given["c"]);
        assert_eq!(
            second.given["d"], first.given["a"],
            "released with the node, so free again"
        );
    }

    #[test]
    fn says_who_got_nothing() {
        let nodes = ["a", "b", "c", "d", "e"].map(str::to_owned);
        let allocation = run(pool("10.10.0.0/22", 24), &nodes, &BTreeMap::new());
        assert_eq!(allocation.given.len(), 4);
        assert_eq!(allocation.without, BTreeSet::from(["e".to_owned()]));
        let last = pool("ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffc/126", 127);
        assert_eq!(
            run(last, &nodes, &BTreeMap::new()).given.len(),
            2,
            "no overflow at the top"
        );
    }

    #[test]
    fn what_lies_outside_the_pool_is_not_kept() {
        let held = BTreeMap::from([("a".to_owned(), vec!["10.9.0.0/24".parse().unwrap()])]);
        let allocation = run(pool("10.10.0.0/16", 24), &["a".to_owned()], &held);
        assert_eq!(allocation.given["a"].to_string(), "10.10.0.0/24");
    }

    #[test]
    fn goes_round_held_prefixes_of_other_lengths() {
        let held = BTreeMap::from([
            ("a".to_owned(), vec!["10.10.0.128/25".parse().unwrap()]),
            ("b".to_owned(), vec!["10.10.2.0/23".parse().unwrap()]),
        ]);
        let nodes = ["a", "b", "c", "d"].map(str::to_owned);
        let allocation = run(pool("10.10.0.0/16", 24), &nodes, &held);
        assert_eq!(allocation.given["c"].to_string(), "10.10.1.0/24");
        assert_eq!(allocation.given["d"].to_string(), "10.10.4.0/24");
    }

    proptest! {
        #[test]
        fn disjoint_stable_and_exhausted_only_when_full(
            v6 in any::<bool>(),
            ids in prop::collection::btree_set(any::<u8>(), 0..40),
            later in prop::collection::btree_set(any::<u8>(), 0..40),
            // Anything may stand in an annotation: overlapping, foreign, of another length.
            junk in prop::collection::btree_map(any::<u8>(), (0u8..40, 22u8..30), 0..10),
        ) {
            let pool = if v6 { pool("fd10::/59", 64) } else { pool("10.10.0.0/19", 24) };
            let junk = junk.into_iter().map(|(id, (block, len))| {
                let text = if v6 { format!("fd10:0:0:{block:x}::/{}", len + 36) } else { format!("10.10.{block}.0/{len}") };
                (format!("edge{id}"), vec![text.parse::<IpNet>().unwrap().trunc()])
            }).collect();
            let first = run(pool, &names(&ids), &junk);
            let second = run(pool, &names(&later), &as_held(&first));
            for (allocation, nodes) in [(&first, &ids), (&second, &later)] {
                let nets: Vec<_> = allocation.given.values().collect();
                for (i, a) in nets.iter().enumerate() {
                    prop_assert!(pool.range.contains(*a));
                    for b in &nets[i + 1..] {
                        prop_assert!(!a.contains(*b) && !b.contains(*a), "{} overlaps {}", a, b);
                    }
                }
                prop_assert_eq!(allocation.given.len() + allocation.without.len(), nodes.len());
            }
            for (node, net) in &first.given {
                if let Some(now) = second.given.get(node) {
                    prop_assert_eq!(now, net, "{} moved", node);
                }
            }
            let again = run(pool, &names(&ids), &as_held(&first));
            prop_assert_eq!(&again.given, &first.given);
            let held_sizes_differ = first.given.values().any(|net| net.prefix_len() != pool.prefix_len);
            if !first.without.is_empty() && !held_sizes_differ {
                prop_assert_eq!(first.given.len(), 32);
            }
        }
    }
}
