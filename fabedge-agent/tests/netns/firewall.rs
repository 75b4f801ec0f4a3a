use fabedge_agent::desired::firewall as desired;
use fabedge_agent::facts::{Facts, TunnelKind};
use fabedge_agent::firewall::{Firewall, dropped};
use fabedge_agent::netlink::{Changes, Netlink};
use fabedge_agent::subsystem::{Phase, Subsystem as _};

use super::changes::more as noticed;
use super::documents;
use super::space::{assert_fine, assert_settled, failure, in_space, settle, sh};

async fn facts() -> Facts {
    sh("ip link add br-fabedge type bridge
        ip addr add 10.233.66.1/24 dev br-fabedge
        ip addr add fd00:233:64:66::1/64 dev br-fabedge nodad");
    Netlink::open()
        .unwrap()
        .facts(TunnelKind::Libipsec)
        .await
        .unwrap()
}

#[test]
fn every_role_has_a_table_that_nft_takes_and_that_goes_without_a_trace() {
    in_space(async || {
        let facts = facts().await;
        sh("nft add table inet theirs; nft add chain inet theirs c; nft add table ip fabedge");
        let before = sh("nft list ruleset");
        let options = documents::MASQUERADE;
        let direct = fabedge_agent::desired::Options {
            masq_outgoing: false,
            fast_path: true,
            spread_esp: Default::default(),
        };
        for desired in [
            desired::edge(&documents::edge(), &facts, &options),
            desired::edge(&documents::edge(), &facts, &direct),
            desired::connector(&documents::connector(), &facts, &options),
            desired::cloud(&documents::cloud(), &facts, &options),
        ] {
            let mut firewall = Firewall::new();
            settle(&mut firewall, &desired).await;
            settle(&mut firewall, &Default::default()).await;
            assert_eq!(sh("nft list ruleset"), before);
        }
    });
}

#[test]
fn drift_is_repaired_and_counts_go_on() {
    in_space(async || {
        let facts = facts().await;
        let desired = desired::edge(&documents::edge(), &facts, &documents::MASQUERADE);
        let mut firewall = Firewall::new();
        settle(&mut firewall, &desired).await;
        for drift in [
            "nft flush chain inet fabedge inbound",
            "nft delete table inet fabedge",
            "nft add element inet fabedge own4 '{ 10.7.0.0/16 }'",
            "nft insert rule inet fabedge outbound accept",
        ] {
            sh(drift);
            settle(&mut firewall, &desired).await;
        }
        // Count something, then let an agent that knows nothing of it start.
        sh("ip link set br-fabedge up
            ip route add 10.233.64.0/24 dev br-fabedge
            ping -c 2 -W 1 -i 0.2 10.233.64.9 || true");
        let counted = dropped().await.unwrap()["outbound_to_pods"];
        assert!(counted.packets >= 2, "{counted:?}");
        let mut restarted = Firewall::new();
        settle(&mut restarted, &desired).await;
        assert_eq!(dropped().await.unwrap()["outbound_to_pods"], counted);
    });
}

#[test]
fn the_jump_stands_in_every_backend_in_use_and_only_there() {
    in_space(async || {
        let facts = facts().await;
        let desired = desired::edge(&documents::edge(), &facts, &documents::MASQUERADE);
        let mut firewall = Firewall::new();
        settle(&mut firewall, &desired).await;
        assert!(
            !sh("nft list tables").contains("filter"),
            "no backend is in use, so none is brought into use"
        );
        assert_eq!(
            sh("cat /proc/thread-self/net/ip_tables_names 2>/dev/null || true"),
            ""
        );

        let everywhere = |script: &str| {
            [
                "iptables-legacy",
                "iptables-nft",
                "ip6tables-legacy",
                "ip6tables-nft",
            ]
            .map(|command| sh(&script.replace("COMMAND", command)))
        };
        let save = || everywhere("COMMAND-save -t filter | sed '/^#/d; s/\\[.*//'");
        everywhere("COMMAND -P FORWARD DROP; COMMAND -A FORWARD -p tcp -j ACCEPT");
        let before = save();
        settle(&mut firewall, &desired).await;
        let first = || everywhere("COMMAND -S FORWARD | grep -m 1 -- '^-A'");
        let jump = "-A FORWARD -m comment --comment \"fabedge: pods and tunnels\" -j FABEDGE-FORWARD\n";
        assert_eq!(first(), [jump; 4]);
        // Somebody refuses before us, jumps twice, empties our chain.
        everywhere(
            "COMMAND -I FORWARD -p udp -j DROP; COMMAND -A FORWARD -j FABEDGE-FORWARD; COMMAND -F FABEDGE-FORWARD",
        );
        settle(&mut firewall, &desired).await;
        assert_eq!(first(), [jump; 4]);
        assert!(
            everywhere("COMMAND -S FABEDGE-FORWARD")
                .iter()
                .all(|rules| rules.matches("ACCEPT").count() == 4)
        );
        // Who merely insists on the head is not fought.
        everywhere("COMMAND -D FORWARD -p udp -j DROP; COMMAND -N cali; COMMAND -I FORWARD -j cali");
        assert_settled(&mut firewall, &desired).await;
        everywhere("COMMAND -D FORWARD -j cali; COMMAND -X cali");
        settle(&mut firewall, &Default::default()).await;
        assert_eq!(save(), before);
    });
}

#[test]
fn one_peer_is_changed_by_itself_and_the_whole_finds_nothing_left_to_do() {
    in_space(async || {
        let facts = facts().await;
        let with = |prefixes: &[&str]| {
            let mut config = documents::edge();
            let edge2 = std::sync::Arc::make_mut(config.peers.last_mut().unwrap());
            assert_eq!(edge2.endpoint.name, "fabedge.edge2");
            edge2.endpoint.subnets = prefixes.iter().map(|net| net.parse().unwrap()).collect();
            desired::edge(&config, &facts, &documents::MASQUERADE)
        };
        let steps: [&[&str]; 7] = [
            &["10.40.0.0/24", "fd00:40::/64"],
            &["10.40.0.0/24", "10.40.1.0/24", "fd00:40::/64", "fd00:40:0:1::/64"],
            // Side by side with another, but not one with it.
            &["10.40.1.0/24", "10.40.2.0/24", "fd00:40:0:1::/64"],
            &["10.40.2.0/25", "10.40.3.0/24", "fd00:40:0:1::/64"],
            // Where there is nothing behind, and nothing before.
            &[
                "255.255.255.0/24",
                "0.0.0.0/24",
                "ffff:ffff:ffff:ffff::/64",
                "::/64",
            ],
            &["255.255.255.255/32", "::1/128"],
            &["10.40.0.0/24", "fd00:40::/64"],
        ];
        let mut before = with(steps[0]);
        let mut firewall = Firewall::new();
        settle(&mut firewall, &before).await;
        let mut others = Changes::nftables(firewall.port().clone()).unwrap();
        for step in steps {
            let after = with(step);
            let (was, is) = (before.table.as_ref().unwrap(), after.table.as_ref().unwrap());
            let plan = firewall.change(was, is).expect("it can be done by itself");
            assert_fine(&firewall.apply(&plan, Phase::Grow).await);
            assert_settled(&mut firewall, &after).await;
            before = after;
        }

        assert!(!noticed(&mut others).await, "our own changes are no news");

        // Of a change that cannot be made whole, nothing is made.
        sh("nft delete element inet fabedge peers4 '{ 10.40.0.0/24 }'");
        assert!(noticed(&mut others).await);
        let listed = sh("nft list table inet fabedge");
        let after = with(&["10.41.0.0/24", "fd00:41::/64"]);
        let (was, is) = (before.table.as_ref().unwrap(), after.table.as_ref().unwrap());
        let plan = firewall.change(was, is).unwrap();
        let told = failure(&firewall.apply(&plan, Phase::Grow).await);
        assert!(
            told.starts_with("changing elements of nftables sets over netlink: No such file or directory"),
            "{told}"
        );
        assert_eq!(sh("nft list table inet fabedge"), listed);
        settle(&mut firewall, &after).await;
    });
}
