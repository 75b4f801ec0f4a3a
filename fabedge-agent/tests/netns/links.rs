use std::process::Command;

use fabedge_agent::desired::links::{Links as Desired, TunnelDevice, edge};
use fabedge_agent::facts::TunnelKind;
use fabedge_agent::links::Links;
use fabedge_agent::netlink::Netlink;

use super::documents;
use super::space::{assert_settled, failure, in_space, pass, settle, sh};

fn wanted(kind: TunnelKind, mtu: u32) -> Desired {
    Desired {
        tunnel: Some(TunnelDevice { kind, mtu }),
        ..Desired::default()
    }
}

#[test]
fn the_xfrm_interface_is_made_kept_right_and_removed_or_its_lack_explained() {
    in_space(async || {
        let supported = Command::new("ip")
            .args(["link", "add", "probe", "type", "xfrm", "if_id", "1"])
            .status()
            .unwrap()
            .success();
        let mut links = Links::new(Netlink::open().unwrap());
        let desired = wanted(TunnelKind::Xfrm, 1400);
        if !supported {
            let why = failure(&pass(&mut links, &desired).await);
            assert!(
                why.contains("CONFIG_XFRM_INTERFACE") && why.contains("--tunnel libipsec"),
                "{why}"
            );
            return;
        }
        settle(&mut links, &desired).await;
        let listed = sh("ip -details link show fabedge0");
        assert!(
            listed.contains("if_id 0xfabe") && listed.contains("mtu 1400") && listed.contains(",UP"),
            "{listed}"
        );
        sh("ip link set fabedge0 down mtu 1500");
        settle(&mut links, &wanted(TunnelKind::Xfrm, 1380)).await;
        assert!(sh("ip link show fabedge0").contains("mtu 1380"));
        settle(&mut links, &Desired::default()).await;
        assert!(sh("ip link").contains("probe") && !sh("ip link").contains("fabedge0"));
    });
}

#[test]
fn a_foreign_interface_of_our_name_is_reported_and_survives() {
    in_space(async || {
        sh("ip link add fabedge0 type bridge");
        let mut links = Links::new(Netlink::open().unwrap());
        let why = failure(&pass(&mut links, &wanted(TunnelKind::Xfrm, 1400)).await);
        assert!(
            why.contains("fabedge0 of kind bridge") && why.contains("ip link delete fabedge0"),
            "{why}"
        );
        assert_settled(&mut links, &Desired::default()).await;
        sh("ip link show fabedge0");
    });
}

#[test]
fn charons_tun_is_awaited_set_up_and_left_behind() {
    in_space(async || {
        let mut links = Links::new(Netlink::open().unwrap());
        let desired = wanted(TunnelKind::Libipsec, 1380);
        let why = failure(&pass(&mut links, &desired).await);
        assert!(why.contains("charon has not made its TUN ipsec0"), "{why}");
        // Of whatever kind: the agent takes what charon has made.
        sh("ip link add ipsec0 type veth peer name other");
        settle(&mut links, &desired).await;
        let listed = sh("ip link show ipsec0");
        assert!(listed.contains("mtu 1380") && listed.contains("UP"), "{listed}");
        assert_settled(&mut links, &Desired::default()).await;
        sh("ip link show ipsec0");
    });
}

#[test]
fn a_bridge_of_another_cni_gives_way_and_comes_back() {
    in_space(async || {
        sh("ip link add br-fabedge type bridge
            ip addr add 10.233.66.1/24 dev br-fabedge
            ip link add cni0 type bridge
            ip addr add 10.233.66.1/24 dev cni0
            ip link set cni0 up
            ip link set br-fabedge up
            ip link add docker0 type bridge
            ip addr add 172.17.0.1/16 dev docker0
            ip link set docker0 up");
        assert!(
            sh("ip route get 10.233.66.7").contains("cni0"),
            "it takes what is for our pods"
        );
        let netlink = Netlink::open().unwrap();
        let facts = netlink.facts(TunnelKind::Libipsec).await.unwrap();
        let aside = edge(&documents::edge(), &facts).aside;
        assert_eq!(aside, ["cni0".to_owned()].into());
        let desired = Desired {
            aside,
            ..Desired::default()
        };
        let mut links = Links::new(netlink);
        settle(&mut links, &desired).await;
        assert!(sh("ip route get 10.233.66.7").contains("br-fabedge"));
        assert!(
            sh("ip addr show cni0").contains("10.233.66.1/24"),
            "its addresses stay"
        );
        settle(&mut links, &Desired::default()).await;
        let restored = sh("ip link show cni0");
        assert!(
            restored.contains(",UP") && !restored.contains("alias"),
            "{restored}"
        );
        assert!(sh("ip link show docker0").contains(",UP"));
    });
}
