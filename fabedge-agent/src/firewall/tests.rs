use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use proptest::prelude::*;

use super::forward::{Backend, Family, change};
use super::listing::{Count, Listing, counters, parse};
use super::plan::{Applied, Change, Observed, Plan, TablePlan, plan};
use super::ruleset;
use crate::desired::firewall::{Counter, Firewall, Hook, Pass, Rule, Set, Table, Then, When};
use crate::subsystem::Phase;

fn table() -> Table {
    Table {
        sets: BTreeMap::from([
            (Set::Own, vec!["10.1.0.0/16".parse().unwrap()]),
            (
                Set::Peers,
                vec!["10.2.0.0/16".parse().unwrap(), "fd00:2::/64".parse().unwrap()],
            ),
        ]),
        rules: BTreeMap::from([
            (
                Hook::Forward,
                vec![Rule {
                    when: vec![
                        When::Out("t0".to_owned()),
                        When::NotFrom(vec![Set::Own]),
                        When::Unsolicited,
                    ],
                    then: Then::Drop(Counter::ForwardForeign),
                }],
            ),
            (
                Hook::Translate,
                vec![
                    Rule {
                        when: vec![When::From(Set::Own), When::To(Set::Peers)],
                        then: Then::Keep,
                    },
                    Rule {
                        when: vec![When::To(Set::Peers)],
                        then: Then::Source("fd00:1::1".parse().unwrap()),
                    },
                ],
            ),
        ]),
    }
}

#[test]
fn a_rule_is_written_once_per_family_in_which_it_can_match() {
    let text = ruleset::rules(&table());
    let rules: Vec<&str> = text
        .lines()
        .filter_map(|line| line.strip_prefix("add rule inet fabedge "))
        .collect();
    assert_eq!(
        rules,
        [
            "forward meta nfproto ipv4 oifname \"t0\" ip saddr != @own4 ct direction original ct status ! dnat \
             counter name \"forward_foreign\" drop",
            "forward meta nfproto ipv4 oifname \"t0\" ip saddr != @own4 ct state invalid,untracked counter name \
             \"forward_foreign\" drop",
            "forward meta nfproto ipv6 oifname \"t0\" ip6 saddr != @own6 ct direction original ct status ! dnat \
             counter name \"forward_foreign\" drop",
            "forward meta nfproto ipv6 oifname \"t0\" ip6 saddr != @own6 ct state invalid,untracked counter name \
             \"forward_foreign\" drop",
            "translate meta nfproto ipv4 ip saddr @own4 ip daddr @peers4 snat ip to ip saddr",
            "translate meta nfproto ipv6 ip6 daddr @peers6 snat ip6 to fd00:1::1",
        ]
    );
}

fn nets(texts: &[&str]) -> Option<BTreeSet<IpNet>> {
    Some(texts.iter().map(|text| text.parse().unwrap()).collect())
}

/// The listing of [`table`] in a kernel that lists its rules as `rest`.
fn listed(rest: &str) -> Listing {
    let mut listing = Listing {
        rest: rest.to_owned(),
        ..Listing::default()
    };
    listing.sets.insert("own4".to_owned(), nets(&["10.1.0.0/16"]));
    listing.sets.insert("peers4".to_owned(), nets(&["10.2.0.0/16"]));
    listing.sets.insert("peers6".to_owned(), nets(&["fd00:2::/64"]));
    listing.chains = ["inbound", "forward", "outbound", "translate"]
        .map(str::to_owned)
        .into();
    listing
}

fn script(listing: Option<Listing>, applied: Option<&Applied>) -> Option<Change> {
    let desired = Firewall {
        table: Some(table()),
        forward: BTreeSet::new(),
    };
    let observed = Observed {
        listing,
        ..Observed::default()
    };
    match plan(&desired, &observed, applied).table {
        TablePlan::Keep => None,
        TablePlan::Change(change) => Some(change),
        TablePlan::Elements(_) | TablePlan::Delete => panic!("the table is wanted as a whole"),
    }
}

#[test]
fn rules_are_written_again_only_when_they_or_their_listing_changed() {
    let rules = ruleset::rules(&table());
    let applied = Applied {
        rules: rules.clone(),
        listed: "as applied".to_owned(),
    };
    assert_eq!(script(Some(listed("as applied")), Some(&applied)), None);
    let other = Applied {
        rules: "others".to_owned(),
        ..applied.clone()
    };
    for (listing, applied) in [
        (Some(listed("changed")), Some(&applied)),
        (Some(listed("as applied")), Some(&other)),
        (Some(listed("as applied")), None),
    ] {
        let change = script(listing, applied).unwrap();
        assert_eq!(
            (change.script, change.rules),
            (rules.clone(), Some(rules.clone()))
        );
    }
    let change = script(None, Some(&applied)).unwrap();
    assert!(change.script.starts_with(&rules) && change.script.contains("add element inet fabedge own4"));
    assert!(
        change
            .anew
            .starts_with("add table inet fabedge\ndelete table inet fabedge\n")
    );
    assert!(change.anew.ends_with(&change.script));
}

#[test]
fn sets_change_element_by_element_and_foreign_objects_go() {
    let applied = Applied {
        rules: ruleset::rules(&table()),
        listed: "as applied".to_owned(),
    };
    let mut listing = listed("as applied");
    listing
        .sets
        .insert("own4".to_owned(), nets(&["10.1.0.0/16", "10.9.0.0/16"]));
    listing.sets.insert("peers4".to_owned(), nets(&[]));
    let change = script(Some(listing.clone()), Some(&applied)).unwrap();
    assert_eq!(
        change.script,
        "delete element inet fabedge own4 { 10.9.0.0/16 }\nadd element inet fabedge peers4 { 10.2.0.0/16 }\n"
    );
    assert_eq!(change.rules, None);

    listing.rest.push_str("and more");
    listing.chains.insert("theirs".to_owned());
    listing.sets.insert("things".to_owned(), None);
    listing.sets.insert("own4".to_owned(), None);
    let script = script(Some(listing), Some(&applied)).unwrap().script;
    for expected in [
        "flush set inet fabedge own4\nadd element inet fabedge own4 { 10.1.0.0/16 }\n",
        "flush chain inet fabedge theirs\ndelete chain inet fabedge theirs\ndelete set inet fabedge things\n",
    ] {
        assert!(script.contains(expected), "{script}");
    }
}

#[test]
fn an_unwanted_table_is_deleted() {
    let observed = Observed {
        listing: Some(listed("whatever")),
        ..Observed::default()
    };
    assert_eq!(
        plan(&Firewall::default(), &observed, None).table,
        TablePlan::Delete
    );
    assert_eq!(
        plan(&Firewall::default(), &Observed::default(), None).table,
        TablePlan::Keep
    );
}

#[test]
fn a_listing_is_read_without_what_changes_by_itself() {
    let text = |handle: u32, packets: u32| {
        format!(
            r#"{{"nftables": [{{"metainfo": {{"version": "1.0.6"}}}},
            {{"table": {{"family": "inet", "name": "fabedge", "handle": {handle}}}}},
            {{"counter": {{"name": "inbound_to_pods", "handle": 1, "packets": {packets}, "bytes": 60}}}},
            {{"set": {{"name": "own4", "handle": 2, "elem": [{{"prefix": {{"addr": "10.1.0.0", "len": 16}}}}, "10.3.0.1"]}}}},
            {{"set": {{"name": "odd", "handle": 3, "elem": [{{"range": ["10.0.0.1", "10.0.0.9"]}}]}}}},
            {{"set": {{"name": "none", "handle": 4}}}},
            {{"chain": {{"name": "inbound", "handle": 5, "prio": -300}}}},
            {{"rule": {{"chain": "inbound", "handle": {handle}, "expr": [{{"drop": null}}]}}}}]}}"#
        )
    };
    let listing = parse(&text(7, 1)).unwrap();
    assert_eq!(listing, parse(&text(8, 2)).unwrap());
    assert_eq!(listing.sets["own4"], nets(&["10.1.0.0/16", "10.3.0.1/32"]));
    assert_eq!((&listing.sets["odd"], &listing.sets["none"]), (&None, &nets(&[])));
    assert_eq!(listing.chains, BTreeSet::from(["inbound".to_owned()]));
    assert!(
        listing.rest.contains("-300") && listing.rest.contains("drop") && !listing.rest.contains("10.1.0.0")
    );
    let counted = counters(&text(7, 9)).unwrap();
    assert_eq!(
        counted["inbound_to_pods"],
        Count {
            packets: 9,
            bytes: 60
        }
    );
    assert!(parse("nft: no such thing").is_err());
}

#[test]
fn a_missing_command_is_reported_only_where_a_jump_is_wanted() {
    let observed = Observed {
        missing: vec!["install iptables".to_owned()],
        ..Observed::default()
    };
    let wanted = Firewall {
        forward: BTreeSet::from([Pass::Device("t0".to_owned())]),
        ..Firewall::default()
    };
    assert_eq!(plan(&wanted, &observed, None).missing, observed.missing);
    let nothing = Plan {
        table: TablePlan::Keep,
        forward: Vec::new(),
        missing: Vec::new(),
    };
    assert_eq!(plan(&Firewall::default(), &observed, None), nothing);
}

/// A filter table in memory, with what `iptables-restore --noflush` makes of our scripts.
#[derive(Clone, Debug, PartialEq)]
struct Filter {
    chains: BTreeMap<String, Vec<String>>,
}

impl Filter {
    fn save(&self) -> String {
        let mut text = String::from("*filter\n");
        for chain in self.chains.keys() {
            text += &format!(
                ":{chain} {} [1:60]\n",
                if chain == "FORWARD" { "DROP" } else { "-" }
            );
        }
        for (chain, rules) in &self.chains {
            for rule in rules {
                text += &format!("-A {chain} {rule}\n");
            }
        }
        text + "COMMIT\n"
    }

    fn restore(&mut self, script: &str) {
        for line in script.lines() {
            let (command, rest) = line.split_once(' ').unwrap_or((line, ""));
            let (chain, rule) = rest.split_once(' ').unwrap_or((rest, ""));
            let chain = chain.to_owned();
            match command {
                "*filter" | "COMMIT" => {}
                "-F" => self.chains.get_mut(&chain).unwrap().clear(),
                "-X" => assert_eq!(self.chains.remove(&chain), Some(Vec::new())),
                "-A" => self.chains.get_mut(&chain).unwrap().push(rule.to_owned()),
                "-D" => {
                    let rules = self.chains.get_mut(&chain).unwrap();
                    let at = rules.iter().position(|known| known == rule).unwrap();
                    rules.remove(at);
                }
                "-I" => self
                    .chains
                    .get_mut(&chain)
                    .unwrap()
                    .insert(0, rule.strip_prefix("1 ").unwrap().to_owned()),
                _ => {
                    let chain = command.strip_prefix(':').unwrap_or_else(|| panic!("{line}"));
                    self.chains.insert(chain.to_owned(), Vec::new());
                }
            }
        }
    }

    fn foreign(&self) -> Vec<(&String, Vec<&String>)> {
        self.chains
            .iter()
            .filter(|(chain, _)| *chain != "FABEDGE-FORWARD")
            .map(|(chain, rules)| {
                (
                    chain,
                    rules.iter().filter(|r| !r.contains("FABEDGE-FORWARD")).collect(),
                )
            })
            .collect()
    }
}

fn filter() -> impl Strategy<Value = Filter> {
    let ours = "-m comment --comment \"fabedge: pods and tunnels\" -j FABEDGE-FORWARD";
    let rule = prop_oneof![
        Just("-j DROP"),
        Just("-s 10.0.0.0/8 -j ACCEPT"),
        Just("-j DOCKER-USER"),
        Just("-j REJECT --reject-with icmp-port-unreachable"),
        Just(ours),
        Just("-j FABEDGE-FORWARD"),
    ];
    let chain = proptest::collection::vec(
        prop_oneof![
            Just("-i t0 -j ACCEPT"),
            Just("-o t0 -j ACCEPT"),
            Just("-i t1 -j ACCEPT")
        ],
        0..3,
    );
    (proptest::collection::vec(rule, 0..5), proptest::option::of(chain)).prop_map(move |(forward, chain)| {
        let strings = |rules: Vec<&str>| rules.into_iter().map(str::to_owned).collect::<Vec<_>>();
        let mut forward = strings(forward);
        let mut chains = BTreeMap::from([("DOCKER-USER".to_owned(), strings(vec!["-j RETURN"]))]);
        match chain {
            Some(chain) => drop(chains.insert("FABEDGE-FORWARD".to_owned(), strings(chain))),
            None => forward.retain(|rule| !rule.contains("FABEDGE-FORWARD")),
        }
        chains.insert("FORWARD".to_owned(), forward);
        Filter { chains }
    })
}

proptest! {
    #[test]
    fn one_change_puts_the_jump_where_it_belongs_and_foreign_rules_survive(before in filter()) {
        let pass = BTreeSet::from([Pass::Device("t0".to_owned()), Pass::Prefix("fd00::/64".parse().unwrap())]);
        let mut after = before.clone();
        if let Some(jump) = change(Backend::Nft, Family::V4, &pass, &before.save()) {
            prop_assert_eq!(jump.phase, Phase::Grow);
            after.restore(&jump.script);
        }
        prop_assert_eq!(after.foreign(), before.foreign());
        prop_assert_eq!(&after.chains["FABEDGE-FORWARD"], &["-i t0 -j ACCEPT", "-o t0 -j ACCEPT"]);
        let forward = &after.chains["FORWARD"];
        let ours: Vec<usize> =
            (0..forward.len()).filter(|at| forward[*at].contains("FABEDGE-FORWARD")).collect();
        prop_assert_eq!(ours.len(), 1);
        prop_assert!(!forward[..ours[0]].iter().any(|rule| rule.contains("DROP") || rule.contains("REJECT")));
        prop_assert_eq!(change(Backend::Nft, Family::V4, &pass, &after.save()), None);
    }

    #[test]
    fn cleanup_removes_all_and_only_ours(before in filter()) {
        let mut after = before.clone();
        if let Some(jump) = change(Backend::Legacy, Family::V6, &BTreeSet::new(), &before.save()) {
            prop_assert_eq!(jump.phase, Phase::Shrink);
            after.restore(&jump.script);
        }
        prop_assert_eq!(after.foreign(), before.foreign());
        prop_assert!(!after.save().contains("FABEDGE"));
    }
}
