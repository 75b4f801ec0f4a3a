use fabedge_common::config::NodeConfig;

use super::*;
use crate::facts::{Link, Reception};

const DOCUMENT: &str = "
version: 1
generation: 1
id: C=CN, O=fabedge.io, CN=fabedge.connector
name: fabedge.connector
publicAddresses: [192.0.2.1]
subnets: [10.233.64.0/23]
nodeSubnets: [192.0.2.1]
type: Connector
peers:
- id: C=CN, O=fabedge.io, CN=fabedge.edge1
  name: fabedge.edge1
  subnets: [10.233.66.0/24]
  nodeSubnets: [192.168.50.2]
  type: EdgeNode
...
";

fn facts() -> Facts {
    let eth0 = Link {
        index: 2,
        name: "eth0".to_owned(),
        addresses: vec!["192.0.2.1/24".parse().unwrap(), "2001:db8::1/64".parse().unwrap()],
        ..Link::default()
    };
    let here: IpAddr = "192.0.2.1".parse().unwrap();
    let there: IpAddr = "198.51.100.7".parse().unwrap();
    Facts {
        links: BTreeMap::from([("eth0".to_owned(), eth0)]),
        uplinks: vec!["eth0".to_owned()],
        tunnel: TunnelKind::Xfrm,
        hops: BTreeSet::new(),
        paths: Default::default(),
        reception: Reception {
            cpus: BTreeSet::from([0, 1]),
            queues: BTreeMap::from([("eth0".to_owned(), 1)]),
            sas: BTreeMap::from([((here, 0xc000_0001), 7), ((there, 0xc000_0002), 7)]),
        },
    }
}

fn of(document: &str, facts: &Facts, choice: SpreadChoice) -> (Spread, BTreeSet<Hook>) {
    let mut datapath = Datapath::default();
    datapath.spread_esp(&NodeConfig::parse(document).unwrap(), facts, choice);
    (datapath.spread, datapath.hooks)
}

const AUTO: SpreadChoice = SpreadChoice::Auto;

#[test]
fn a_connector_spreads_what_its_peers_send_to_its_uplink() {
    let (spread, hooks) = of(DOCUMENT, &facts(), AUTO);
    let hooks: Vec<String> = hooks.iter().map(ToString::to_string).collect();
    assert_eq!(hooks, ["uplink_xdp on eth0"]);
    assert_eq!(spread.cpus, BTreeSet::from([0, 1]));
    assert!(spread.not.is_empty());
    let id = |address: &str, spi| sa(address.parse().unwrap(), spi);
    let expected = BTreeMap::from([
        (id("192.0.2.1", 0), 0),
        (id("2001:db8::1", 0), 0),
        (id("192.0.2.1", 0xc000_0001), 7),
    ]);
    assert_eq!(spread.sas, expected);
}

#[test]
fn where_it_does_not_pay_it_says_why() {
    let mut one = facts();
    one.reception.cpus.remove(&1);
    let mut many = facts();
    many.reception.queues.insert("eth0".to_owned(), 2);
    let mut charon = facts();
    charon.tunnel = TunnelKind::Libipsec;
    assert_eq!(
        of(DOCUMENT, &many, SpreadChoice::On),
        of(DOCUMENT, &facts(), AUTO)
    );
    for (facts, choice, why_not) in [
        (one.clone(), AUTO, "not spread: there is one CPU"),
        (one, SpreadChoice::On, "not spread: there is one CPU"),
        (many, AUTO, "not spread: 2 receive queues do it for 2 CPUs"),
        (
            charon,
            SpreadChoice::On,
            "not spread: charon decrypts, not the kernel",
        ),
        (facts(), SpreadChoice::Off, "not spread, by --spread-esp off"),
    ] {
        let (spread, hooks) = of(DOCUMENT, &facts, choice);
        assert_eq!(hooks, BTreeSet::new(), "{why_not}");
        let expected = Spread {
            not: BTreeMap::from([("eth0".to_owned(), why_not.to_owned())]),
            ..Spread::default()
        };
        assert_eq!(spread, expected);
    }
    let edge = DOCUMENT
        .replace("fabedge.connector", "fabedge.edge9")
        .replace("type: Connector", "type: EdgeNode");
    assert_eq!(
        of(&edge, &facts(), AUTO),
        Default::default(),
        "nobody asks on an edge"
    );
}

#[test]
fn peers_are_dealt_out_evenly_and_stay_where_they_are() {
    let cpus = BTreeSet::from([0, 1]);
    let id = |spi| sa("192.0.2.1".parse().unwrap(), spi);
    let mut wanted: BTreeMap<SaId, u32> = (1..=10).map(|peer| (id(0x1000 + peer), peer)).collect();
    wanted.insert(id(0), 0);
    let first = assign(&wanted, &BTreeMap::new(), &cpus);
    let on =
        |sas: &BTreeMap<SaId, SaCpu>, cpu| sas.values().filter(|sa| sa.reqid != 0 && sa.cpu == cpu).count();
    assert_eq!((on(&first, 0), on(&first, 1)), (5, 5));
    assert_eq!(first[&id(0)], SaCpu::default());
    assert_eq!(assign(&wanted, &first, &cpus), first);

    // A new SA is where the old one of the same peer is, also once that is gone.
    for peer in 1..=10 {
        wanted.insert(id(0x2000 + peer), peer);
    }
    let both = assign(&wanted, &first, &cpus);
    for peer in 1..=10 {
        assert_eq!(both[&id(0x2000 + peer)], first[&id(0x1000 + peer)]);
        wanted.remove(&id(0x1000 + peer));
    }
    let later = assign(&wanted, &both, &cpus);
    assert!(later.iter().all(|(id, cpu)| both[id] == *cpu));

    // Those of a CPU that went are dealt out to the others.
    let alone = assign(&wanted, &later, &BTreeSet::from([0]));
    assert_eq!((on(&alone, 0), on(&alone, 1)), (10, 0));
    // One peer is not left to the CPU where interrupts are.
    let single = BTreeMap::from([(id(5), 9)]);
    assert_eq!(assign(&single, &BTreeMap::new(), &cpus)[&id(5)].cpu, 1);
    assert_eq!(
        assign(&single, &BTreeMap::new(), &BTreeSet::new()),
        BTreeMap::new()
    );
}
