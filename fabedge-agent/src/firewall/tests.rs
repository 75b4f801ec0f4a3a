use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::forward::{Backend, Family, change};
use super::plan::{Applied, Observed, Plan, TablePlan, plan};
use super::ruleset::{Count, render};
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
    let counted = BTreeMap::from([(
        "forward_foreign".to_owned(),
        Count {
            packets: 7,
            bytes: 700,
        },
    )]);
    let text = render(&table(), &counted);
    assert!(text.starts_with("add table inet fabedge\ndelete table inet fabedge\ntable inet fabedge {\n"));
    assert!(text.contains("counter forward_foreign { packets 7 bytes 700 }"));
    assert!(text.contains("counter inbound_to_pods { packets 0 bytes 0 }"));
    let rules: Vec<&str> = text
        .lines()
        .map(str::trim)
        .filter(|line| line.starts_with("meta nfproto"))
        .collect();
    assert_eq!(
        rules,
        [
            "meta nfproto ipv4 oifname \"t0\" ip saddr != @own4 ct direction original ct status ! dnat counter name \
             \"forward_foreign\" drop",
            "meta nfproto ipv4 oifname \"t0\" ip saddr != @own4 ct state invalid,untracked counter name \
             \"forward_foreign\" drop",
            "meta nfproto ipv6 oifname \"t0\" ip6 saddr != @own6 ct direction original ct status ! dnat counter name \
             \"forward_foreign\" drop",
            "meta nfproto ipv6 oifname \"t0\" ip6 saddr != @own6 ct state invalid,untracked counter name \
             \"forward_foreign\" drop",
            "meta nfproto ipv4 ip saddr @own4 ip daddr @peers4 snat ip to ip saddr",
            "meta nfproto ipv6 ip6 daddr @peers6 snat ip6 to fd00:1::1",
        ]
    );
}

fn firewall() -> Firewall {
    Firewall {
        table: Some(table()),
        forward: BTreeSet::new(),
    }
}

#[test]
fn the_table_is_replaced_unless_it_is_listed_as_it_was_after_we_applied_it() {
    let listed = |listing: &str| Observed {
        listing: Some(listing.to_owned()),
        ..Observed::default()
    };
    let applied = Applied {
        table: table(),
        listing: "as applied".to_owned(),
    };
    let replace = TablePlan::Replace(Box::new(table()));
    let of = |observed: &Observed, applied: Option<&Applied>| plan(&firewall(), observed, applied).table;
    assert_eq!(of(&listed("as applied"), Some(&applied)), TablePlan::Keep);
    assert_eq!(of(&listed("changed"), Some(&applied)), replace);
    assert_eq!(of(&Observed::default(), Some(&applied)), replace);
    assert_eq!(of(&listed("as applied"), None), replace);
    let other = Applied {
        table: Table::default(),
        ..applied.clone()
    };
    assert_eq!(of(&listed("as applied"), Some(&other)), replace);

    let none = Firewall::default();
    assert_eq!(
        plan(&none, &listed("as applied"), Some(&applied)).table,
        TablePlan::Delete
    );
    assert_eq!(plan(&none, &Observed::default(), None).table, TablePlan::Keep);
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
