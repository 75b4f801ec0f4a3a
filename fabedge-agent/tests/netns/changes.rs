use std::time::Duration;

use fabedge_agent::netlink::{Changes, OwnPort};

use super::space::{in_space, sh};

async fn noticed(changes: &mut Changes) -> bool {
    noticed_within(changes, Duration::from_secs(5)).await
}

/// Whether something more is noticed, which costs a moment where nothing is.
pub async fn more(changes: &mut Changes) -> bool {
    noticed_within(changes, Duration::from_millis(100)).await
}

async fn noticed_within(changes: &mut Changes, time: Duration) -> bool {
    match tokio::time::timeout(time, changes.next()).await {
        Ok(result) => {
            result.unwrap();
            true
        }
        Err(_) => false,
    }
}

#[test]
fn every_kind_of_change_is_noticed_once() {
    in_space(async || {
        let mut changes = Changes::network().unwrap();
        assert!(!more(&mut changes).await, "nothing has happened");
        for change in [
            "ip link add d0 type dummy || ip link add d0 type bridge
 ip link set d0 up",
            "ip addr add 10.1.0.1/24 dev d0",
            "ip route add 10.2.0.0/16 dev d0 table 220",
            "ip -6 route add fd00::/64 dev d0 table 220",
            "ip rule add pref 220 lookup 220",
            "ip -6 rule add pref 220 lookup 220",
            "ip link del d0",
        ] {
            sh(change);
            assert!(noticed(&mut changes).await, "{change}");
            // What the kernel does by itself after a change, such as an address of its own, may follow.
            while more(&mut changes).await {}
        }
    });
}

#[test]
fn an_overrun_is_a_change_and_no_error() {
    in_space(async || {
        let mut changes = Changes::network().unwrap();
        // Many times what the socket's buffer holds.
        sh("ip link add d0 type bridge
            ip link set d0 up
            for i in $(seq 0 15); do for j in $(seq 0 255); do
                echo route add 10.$i.$j.0/24 dev d0 table 220
            done; done | ip -batch -");
        assert!(noticed(&mut changes).await);
        while more(&mut changes).await {}
        sh("ip link del d0");
        assert!(
            noticed(&mut changes).await,
            "the subscription outlives the overrun"
        );
    });
}

#[test]
fn a_change_of_nftables_is_noticed_whoever_makes_it() {
    in_space(async || {
        let mut changes = Changes::nftables(OwnPort::default()).unwrap();
        assert!(!more(&mut changes).await, "nothing has happened");
        for change in [
            "nft add table inet other",
            "iptables-nft -P FORWARD DROP",
            "iptables-nft -A FORWARD -j ACCEPT",
            "iptables-nft -F FORWARD",
            "nft delete table inet other",
        ] {
            sh(change);
            assert!(noticed(&mut changes).await, "{change}");
            while more(&mut changes).await {}
        }
    });
}
