use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use fabedge_common::config::NodeConfig;
use ipnet::{IpNet, Ipv4Net};
use proptest::prelude::*;

use super::{Set, edge, without};
use crate::desired::Options;
use crate::facts::{Facts, TunnelKind};

fn net() -> impl Strategy<Value = IpNet> {
    // A small world, so that prefixes meet.
    (0_u32..1024, 22_u8..=32).prop_map(|(address, length)| {
        Ipv4Net::new(Ipv4Addr::from(0x0a00_0000 + address), length)
            .unwrap()
            .trunc()
            .into()
    })
}

proptest! {
    #[test]
    fn without_takes_out_the_holes_and_nothing_else(
        whole in net(),
        holes in proptest::collection::vec(net(), 0..4),
    ) {
        let left = without(whole, &holes.iter().copied().collect());
        for address in 0..1024 {
            let address: IpNet = Ipv4Net::from(Ipv4Addr::from(0x0a00_0000 + address)).into();
            let expected = whole.contains(&address) && !holes.iter().any(|hole| hole.contains(&address));
            prop_assert_eq!(left.iter().filter(|net| net.contains(&address)).count(), usize::from(expected));
        }
    }
}

#[test]
fn a_network_that_covers_the_underlay_does_not_refuse_esp() {
    let config = NodeConfig::parse(
        "{version: 0, id: a, name: c.a, type: EdgeNode, subnets: [10.1.1.0/24], nodeSubnets: [10.7.0.1],
          networkSubnets: [10.0.0.0/8], peers: [
          {id: b, name: c.connector, type: Connector, publicAddresses: [10.8.0.1], subnets: [10.2.0.0/16],
           nodeSubnets: [10.8.0.2]}]}",
    )
    .unwrap();
    let facts = Facts {
        links: BTreeMap::new(),
        uplinks: Vec::new(),
        tunnel: TunnelKind::Xfrm,
        hops: BTreeSet::new(),
        reception: Default::default(),
        paths: BTreeMap::new(),
    };
    let options = Options {
        masq_outgoing: true,
        fast_path: false,
        spread_esp: Default::default(),
    };
    let sets = edge(&config, &facts, &options).table.unwrap().sets;
    let holds = |set: Set, address: &str| {
        sets[&set]
            .iter()
            .any(|net| net.contains(&address.parse::<std::net::IpAddr>().unwrap()))
    };
    let closes = |address: &str| holds(Set::Network, address);
    assert_eq!(["10.7.0.1", "10.8.0.1", "10.8.0.2"].map(closes), [false; 3]);
    assert_eq!(
        ["10.2.0.1", "10.7.0.2", "10.8.0.3", "10.255.0.1"].map(closes),
        [true; 4]
    );
    assert_eq!(
        ["10.2.0.1", "10.255.0.1", "10.8.0.1", "10.8.0.2", "11.0.0.1"]
            .map(|address| holds(Set::Guarded, address)),
        [true, true, false, false, false]
    );
}
