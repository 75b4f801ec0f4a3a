use fabedge_agent::desired::sysctl as desired;
use fabedge_agent::facts::TunnelKind;
use fabedge_agent::netlink::Netlink;
use fabedge_agent::sysctl::Sysctl;

use super::documents;
use super::space::{assert_settled, in_space, settle, sh};

#[test]
fn a_node_forwards_and_still_listens_to_its_router() {
    in_space(async || {
        sh("ip link add ipsec0 type veth peer name far
            ip link add eth0 type veth peer name lan
            ip link set eth0 up
            ip link set lan up
            ip addr add 192.168.50.2/24 dev eth0
            ip route add default via 192.168.50.1
            echo 0 > /proc/sys/net/ipv4/ip_forward
            echo 1 > /proc/sys/net/ipv6/conf/eth0/accept_ra
            echo 1 > /proc/sys/net/ipv4/conf/all/rp_filter
            echo 1 > /proc/sys/net/ipv4/conf/ipsec0/rp_filter
            echo 1 > /proc/sys/net/ipv4/conf/eth0/rp_filter");
        let facts = Netlink::open()
            .unwrap()
            .facts(TunnelKind::Libipsec)
            .await
            .unwrap();
        let desired = desired::edge(&documents::edge(), &facts);
        let mut sysctl = Sysctl::new();
        settle(&mut sysctl, &desired).await;
        let values = sh("cd /proc/sys/net
            cat ipv4/ip_forward ipv6/conf/all/forwarding ipv6/conf/eth0/accept_ra
            cat ipv4/conf/ipsec0/rp_filter ipv4/conf/eth0/rp_filter ipv4/conf/all/rp_filter");
        assert_eq!(
            values.split_whitespace().collect::<Vec<_>>(),
            ["1", "1", "2", "2", "1", "1"]
        );
        // Others may forward by now.
        assert_settled(&mut sysctl, &Default::default()).await;
        assert_eq!(sh("cat /proc/sys/net/ipv4/ip_forward").trim(), "1");
    });
}
