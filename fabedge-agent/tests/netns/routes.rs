use std::sync::Arc;

use fabedge_agent::desired::routes as desired;
use fabedge_agent::facts::TunnelKind;
use fabedge_agent::netlink::Netlink;
use fabedge_agent::routes::Routes;

use super::documents;
use super::space::{assert_fine, failure, in_space, pass, settle, sh};

/// Whether the kernel refuses a lookup, in `ip`'s words for either family.
fn refused(query: &str) -> bool {
    let answer = sh(&format!("ip route get {query} 2>&1 || true"));
    answer.contains("No route to host") || answer.contains("unreachable")
}

/// A tunnel device of charon's, as far as routes are concerned, a bridge with the pods' gateway, and an uplink.
const HOST: &str = "
    ip link add ipsec0 type veth peer name far
    ip link set ipsec0 up
    ip link set far up
    ip link add br-fabedge type bridge
    ip link set br-fabedge up
    ip addr add 10.233.66.1/24 dev br-fabedge
    ip addr add fd00:233:64:66::1/64 dev br-fabedge nodad
    ip link add eth0 type veth peer name lan
    ip link set eth0 up
    ip link set lan up
    ip addr add 192.168.50.2/24 dev eth0
    ip route add default via 192.168.50.1
    echo 1 > /proc/sys/net/ipv4/ip_forward
";

fn lines(text: &str) -> Vec<String> {
    let mut lines: Vec<String> = text.lines().map(|line| line.trim().to_owned()).collect();
    lines.sort();
    lines
}

#[test]
fn an_edge_routes_pods_for_everybody_and_nodes_for_its_pods() {
    in_space(async || {
        sh(HOST);
        let netlink = Netlink::open().unwrap();
        let facts = netlink.facts(TunnelKind::Libipsec).await.unwrap();
        assert_eq!(facts.uplinks, ["eth0"]);
        let desired = desired::edge(&documents::edge(), &facts);
        settle(&mut Routes::new(netlink), &desired).await;

        let way = "dev ipsec0 proto 250 scope link src 10.233.66.1 metric 50 mtu 1400";
        assert_eq!(
            lines(&sh("ip -4 route show table 220")),
            lines(&format!(
                "10.233.0.0/18 {way}
                10.233.64.0/24 {way}
                10.233.65.0/24 {way}
                10.233.67.0/24 {way}
                throw 10.233.66.0/24 proto 250 metric 50
                unreachable 10.233.0.0/17 proto 250 metric 4096
                unreachable 10.233.0.0/18 proto 250 metric 4096
                unreachable 10.233.64.0/24 proto 250 metric 4096
                unreachable 10.233.65.0/24 proto 250 metric 4096
                unreachable 10.233.67.0/24 proto 250 metric 4096
                unreachable 10.99.0.0/16 proto 250 metric 4096"
            ))
        );
        assert_eq!(
            lines(&sh("ip -4 route show table 221")),
            lines(
                "10.20.8.23 dev ipsec0 proto 250 scope link metric 50 mtu 1400
                10.20.8.28 dev ipsec0 proto 250 scope link metric 50 mtu 1400
                unreachable 10.20.8.23 proto 250 metric 4096
                unreachable 10.20.8.28 proto 250 metric 4096"
            )
        );
        for (rules, family) in [
            (
                "220: from all lookup 220 proto 250
                221: from 10.233.66.0/24 lookup 221 proto 250",
                "-4",
            ),
            ("220: from all lookup 220 proto 250", "-6"),
        ] {
            let listed = sh(&format!("ip {family} rule show | grep 'proto 250'")).replace('\t', " ");
            assert_eq!(lines(&listed), lines(rules));
        }

        // Who goes where, as the kernel sees it.
        let get = |query: &str| sh(&format!("ip route get {query} 2>&1 || true"));
        assert!(
            get("10.233.64.9").contains("dev ipsec0 table 220 src 10.233.66.1"),
            "{}",
            get("10.233.64.9")
        );
        assert!(
            get("10.233.66.9").contains("dev br-fabedge"),
            "{}",
            get("10.233.66.9")
        );
        assert!(refused("10.233.68.9"));
        // The node itself reaches the API server's address over the underlay, its pods through the tunnel.
        assert!(
            get("10.20.8.23").contains("via 192.168.50.1 dev eth0"),
            "{}",
            get("10.20.8.23")
        );
        let pod = get("10.20.8.23 from 10.233.66.9 iif br-fabedge");
        assert!(pod.contains("dev ipsec0 table 221"), "{pod}");
        assert!(
            get("fd00:233:64:64::9").contains("dev ipsec0"),
            "{}",
            get("fd00:233:64:64::9")
        );
        assert!(
            get("fd00:233:64:66::9").contains("dev br-fabedge"),
            "{}",
            get("fd00:233:64:66::9")
        );
        assert!(refused("fd00:233:64:68::9"));
    });
}

#[test]
fn where_a_path_is_narrow_what_measures_it_has_a_table_of_its_own() {
    in_space(async || {
        sh(&HOST.replace("ipsec0", "fabedge0"));
        let netlink = Netlink::open().unwrap();
        let mut facts = netlink.facts(TunnelKind::Xfrm).await.unwrap();
        let document = documents::edge();
        let connector = document.connector().unwrap();
        let reqid = fabedge_common::abi::reqid(&connector.endpoint.name);
        facts.paths.insert(reqid, 1290);
        let mut routes = Routes::new(netlink);
        settle(&mut routes, &desired::edge(&document, &facts)).await;

        for (family, to) in [("-4", "10.233.64.9"), ("-6", "fd00:233:64:64::9")] {
            let get = |mark: &str| sh(&format!("ip {family} route get {to} {mark}"));
            assert!(get("mark 0").contains("table 220"), "{}", get(""));
            assert!(get("mark 0").contains("1290"), "{}", get(""));
            assert!(
                get("mark 0xdf").contains("dev fabedge0 table 219"),
                "{}",
                get("mark 0xdf")
            );
            assert!(get("mark 0xdf").contains("mtu 1400"), "{}", get("mark 0xdf"));
        }
        let ours = || {
            sh(
                "for f in -4 -6; do ip $f rule; ip $f route show table 219 2>/dev/null; done | grep 219 || true",
            )
        };
        assert_eq!(
            ours().matches("fwmark 0xdf lookup 219 proto 250").count(),
            2,
            "{}",
            ours()
        );

        facts.paths.insert(reqid, 1400);
        settle(&mut routes, &desired::edge(&document, &facts)).await;
        assert_eq!(ours(), "");
    });
}

#[test]
fn routes_that_vanish_with_the_device_leave_it_closed_and_come_back() {
    in_space(async || {
        sh(HOST);
        let netlink = Netlink::open().unwrap();
        let facts = netlink.facts(TunnelKind::Libipsec).await.unwrap();
        let desired = desired::edge(&documents::edge(), &facts);
        let mut routes = Routes::new(netlink);
        settle(&mut routes, &desired).await;

        sh("ip link set ipsec0 down");
        for address in [
            "10.233.64.9",
            "fd00:233:64:64::9",
            "10.20.8.23 from 10.233.66.9 iif br-fabedge",
        ] {
            assert!(refused(address), "{address}");
        }
        let waiting = failure(&pass(&mut routes, &desired).await);
        assert!(
            waiting.contains("the device ipsec0 does not exist or is down"),
            "{waiting}"
        );

        sh("ip link set ipsec0 up");
        settle(&mut routes, &desired).await;
        assert!(sh("ip route get 10.233.64.9").contains("dev ipsec0"));

        // The gateway's address goes with the bridge; what the host sends then chooses its source by itself.
        sh("ip link del br-fabedge");
        let facts = Netlink::open()
            .unwrap()
            .facts(TunnelKind::Libipsec)
            .await
            .unwrap();
        settle(&mut routes, &desired::edge(&documents::edge(), &facts)).await;
        assert!(!sh("ip route show table 220").contains("src"));
    });
}

#[test]
fn what_others_made_survives_and_nothing_of_ours_is_left() {
    in_space(async || {
        sh(HOST);
        sh("ip rule add pref 220 lookup 220 proto static
            ip rule add pref 100 lookup 100
            ip route add 10.200.0.0/16 dev eth0 table 220
            ip route add 10.233.64.0/24 dev eth0 table 220 proto static metric 4000
            ip route add fd00:1::/64 dev eth0 table 220
            ip route add 10.201.0.0/16 dev eth0 proto 250");
        let everything = || {
            sh("ip rule; ip -6 rule; ip route show table all; ip -6 route show table all")
                .lines()
                .filter(|line| !line.contains("fe80") && !line.contains("ff00"))
                .map(str::to_owned)
                .collect::<Vec<_>>()
        };
        let before = everything();
        let netlink = Netlink::open().unwrap();
        let facts = netlink.facts(TunnelKind::Libipsec).await.unwrap();
        let desired = desired::edge(&documents::edge(), &facts);
        let mut routes = Routes::new(netlink);
        settle(&mut routes, &desired).await;
        // Stale ones of ours go, whoever's restart they are from.
        sh("ip route add 10.202.0.0/16 dev eth0 table 220 proto 250 metric 50
            ip rule add from 10.9.0.0/16 pref 221 lookup 221 proto 250
            ip route change 10.233.67.0/24 dev eth0 table 220 proto 250 metric 50");
        settle(&mut routes, &desired).await;
        assert!(!sh("ip route show table 220").contains("10.202"));

        settle(&mut routes, &Default::default()).await;
        assert_eq!(everything(), before);
    });
}

#[test]
fn a_cloud_node_goes_by_way_of_the_connector_or_not_at_all() {
    in_space(async || {
        sh("ip link add eth0 type veth peer name lan
            ip link set eth0 up
            ip link set lan up
            ip addr add 10.20.8.23/24 dev eth0
            ip route add default via 10.20.8.1
            ip link add flannel.1 type bridge
            ip link set flannel.1 up
            ip addr add 10.233.65.0/32 dev flannel.1
            ip route add 10.233.64.0/24 dev flannel.1");
        let netlink = Netlink::open().unwrap();
        let facts = netlink.facts(TunnelKind::Libipsec).await.unwrap();
        let desired = desired::cloud(&documents::cloud(), &facts);
        let mut routes = Routes::new(netlink);
        settle(&mut routes, &desired).await;
        let get = |query: &str| sh(&format!("ip route get {query} 2>&1 || true"));
        assert!(
            get("10.233.66.9").contains("via 10.20.8.28 dev eth0 table 220"),
            "{}",
            get("10.233.66.9")
        );
        assert!(
            get("10.233.64.9").contains("dev flannel.1"),
            "{}",
            get("10.233.64.9")
        );
        assert!(
            get("10.233.0.1").contains("via 10.20.8.1 dev eth0"),
            "services are the CNI's: {}",
            get("10.233.0.1")
        );
        // An edge that is no peer any more is closed; a cloud node that no document tells of yet is the CNI's.
        assert!(refused("10.233.68.9"));
        assert!(
            get("10.233.70.9").contains("via 10.20.8.1"),
            "{}",
            get("10.233.70.9")
        );

        // Without an address in the connector's subnet it takes the connector for a neighbour all the same.
        sh("ip addr add 10.20.8.23/32 dev eth0
            ip addr del 10.20.8.23/24 dev eth0
            ip route replace default dev eth0");
        let facts = Netlink::open()
            .unwrap()
            .facts(TunnelKind::Libipsec)
            .await
            .unwrap();
        settle(&mut routes, &desired::cloud(&documents::cloud(), &facts)).await;
        assert!(
            sh("ip route show table 220")
                .contains("via 10.20.8.28 dev eth0 proto 250 metric 50 onlink mtu 1400")
        );

        sh("ip link set eth0 down");
        assert!(refused("10.233.66.9"));
        let waiting = failure(&pass(&mut routes, &desired).await);
        assert!(waiting.contains("eth0"), "{waiting}");
    });
}

#[test]
fn a_measured_path_is_in_the_routes_and_ipv6_is_held_to_it() {
    in_space(async || {
        sh(HOST);
        let netlink = Netlink::open().unwrap();
        let mut facts = netlink.facts(TunnelKind::Libipsec).await.unwrap();
        let mut routes = Routes::new(netlink);
        for (path, v4, v6) in [
            (1298, "mtu 1298", "mtu lock 1298"),
            (1218, "mtu 1218", "mtu lock 1280"),
            (1400, "mtu 1400", "mtu 1400"),
        ] {
            for peer in &documents::edge().peers {
                facts
                    .paths
                    .insert(fabedge_common::abi::reqid(&peer.endpoint.name), path);
            }
            settle(&mut routes, &desired::edge(&documents::edge(), &facts)).await;
            let shown = |family: &str| sh(&format!("ip {family} route show table 220 | grep 'dev ipsec0'"));
            for (family, mtu) in [("-4", v4), ("-6", v6)] {
                let shown = shown(family);
                assert!(shown.lines().all(|line| line.contains(mtu)), "{mtu}: {shown}");
            }
        }
    });
}

#[test]
fn a_thousand_peers_are_routed_in_one_pass() {
    in_space(async || {
        sh(HOST);
        let mut document = documents::edge();
        let peer = document.peers[1].clone();
        document.peers.extend((0..1000).map(|i| {
            let mut peer = peer.clone();
            Arc::make_mut(&mut peer).endpoint.subnets =
                vec![format!("10.{}.{}.0/24", 100 + i / 256, i % 256).parse().unwrap()];
            peer
        }));
        let netlink = Netlink::open().unwrap();
        let facts = netlink.facts(TunnelKind::Libipsec).await.unwrap();
        let mut routes = Routes::new(netlink);
        let started = std::time::Instant::now();
        let outcomes = pass(&mut routes, &desired::edge(&document, &facts)).await;
        println!("{} changes in {:?}", outcomes.len(), started.elapsed());
        assert!(outcomes.len() > 2000);
        assert_fine(&outcomes);
        settle(&mut routes, &Default::default()).await;
        assert_eq!(
            sh("ip route show table 220 2>&1 || true")
                .trim()
                .lines()
                .filter(|l| l.contains("10."))
                .count(),
            0
        );
    });
}
