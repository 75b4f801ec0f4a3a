use proptest::prelude::*;

use super::*;

const EDGE1: &str = r#"
version: 1
generation: 7
id: C=CN, O=fabedge.io, CN=fabedge.edge1
name: fabedge.edge1
publicAddresses: [192.168.50.2]
subnets: [10.10.1.0/24, "fd10:1::/64"]
nodeSubnets: [192.168.50.2/32]
type: EdgeNode
networkSubnets: [10.10.0.0/16]
peers:
- id: C=CN, O=fabedge.io, CN=fabedge.connector
  name: fabedge.connector
  publicAddresses: [10.20.8.28]
  subnets: [10.233.64.0/24, 10.233.0.0/18]
  serviceSubnets: [10.233.0.0/18]
  nodeSubnets: [10.20.8.28/32, 10.20.8.23/32]
  type: Connector
  initiate: true
- id: C=CN, O=fabedge.io, CN=fabedge.edge3
  name: fabedge.edge3
  subnets: [10.10.3.0/24]
  type: EdgeNode
  via: relay
...
"#;

/// As FabEdge 0.4 writes it: Go's field order, no version, no generation.
const PREDECESSOR: &str = r#"
id: C=CN, O=fabedge.io, CN=fabedge.edge1
name: fabedge.edge1
publicAddresses:
- 10.20.8.4
subnets:
- 10.233.67.0/24
nodeSubnets:
- 10.20.8.4
type: EdgeNode
peers:
- id: C=CN, O=fabedge.io, CN=fabedge.connector
  name: fabedge.connector
  publicAddresses:
  - 10.20.8.28
  subnets:
  - 10.233.0.0/18
  - 10.233.64.0/24
  nodeSubnets:
  - 10.20.8.28
  type: Connector
"#;

fn problems(text: &str) -> Vec<String> {
    match NodeConfig::parse(text) {
        Err(Error::Invalid { problems, .. }) => problems.iter().map(ToString::to_string).collect(),
        other => panic!("expected problems, got {other:?}"),
    }
}

#[test]
fn a_document_survives_a_round_trip() {
    let config = NodeConfig::parse(EDGE1).unwrap();
    assert_eq!(config.generation, 7);
    assert_eq!(config.connector().unwrap().endpoint.name, "fabedge.connector");
    assert_eq!(config.peer("fabedge.edge3").unwrap().via, Via::Relay);
    assert_eq!(NodeConfig::parse(&config.to_yaml().unwrap()).unwrap(), config);
}

#[test]
fn a_document_of_the_predecessor_is_read() {
    let config = NodeConfig::parse(PREDECESSOR).unwrap();
    assert_eq!(config.version, VERSION);
    assert!(config.peers[0].initiate, "an edge initiates to its connector");
    assert_eq!(
        config.endpoint.node_subnets,
        ["10.20.8.4/32".parse().unwrap()],
        "a bare address is a host prefix"
    );
}

#[test]
fn a_newer_document_is_refused_by_its_version() {
    let text = EDGE1.replace("version: 1", "version: 2");
    assert!(matches!(
        NodeConfig::parse(&text),
        Err(Error::Version { found: 2 })
    ));
}

#[test]
fn a_field_of_the_future_is_no_error() {
    NodeConfig::parse(&EDGE1.replace("generation: 7", "comingSoon: {a: 1}")).unwrap();
}

#[test]
fn what_a_document_may_not_say() {
    for (from, to, expected) in [
        (
            "10.10.3.0/24",
            "10.10.1.128/25",
            "peer fabedge.edge3: subnets[0]: 10.10.1.128/25 overlaps 10.10.1.0/24 of fabedge.edge1",
        ),
        (
            "10.10.3.0/24",
            "10.233.64.0/26",
            "peer fabedge.edge3: subnets[0]: 10.233.64.0/26 overlaps 10.233.64.0/24 of fabedge.connector",
        ),
        (
            "10.10.3.0/24",
            "0.0.0.0/0",
            "peer fabedge.edge3: subnets[0]: 0.0.0.0/0 is the default route",
        ),
        (
            "10.10.3.0/24",
            "10.10.3.1/24",
            "peer fabedge.edge3: subnets[0]: 10.10.3.1/24 has host bits set",
        ),
        (
            "10.10.3.0/24",
            "169.254.3.0/24",
            "peer fabedge.edge3: subnets[0]: 169.254.3.0/24 is link-local",
        ),
        (
            "10.10.3.0/24",
            "224.0.0.0/8",
            "peer fabedge.edge3: subnets[0]: 224.0.0.0/8 is not a unicast prefix",
        ),
        (
            "CN=fabedge.edge3",
            "CN=fabedge.connector",
            "is also the id of fabedge.connector",
        ),
        (
            "name: fabedge.edge3",
            "name: fabedge.edge1",
            "peer fabedge.edge1: name: stands twice",
        ),
        (
            "name: fabedge.edge3",
            "name: edge3",
            "peer edge3: name: is not <cluster>.<node>",
        ),
        (
            "name: fabedge.edge3",
            "name: other.connector",
            "the name `connector` is for connectors",
        ),
        (
            "serviceSubnets: [10.233.0.0/18]",
            "serviceSubnets: [10.96.0.0/12]",
            "10.96.0.0/12 is not one of subnets",
        ),
        (
            "via: relay",
            "relays: [fabedge.edge9]",
            "relays[0]: fabedge.edge9 is not among the peers",
        ),
    ] {
        let found = problems(&EDGE1.replacen(from, to, 1));
        assert!(
            found.iter().any(|p| p.contains(expected)),
            "{from} -> {to}: {found:?}"
        );
    }
}

#[test]
fn a_truncated_document_never_passes_for_a_whole_one() {
    let end = EDGE1.trim_end().len();
    for end in (0..end).filter(|end| EDGE1.is_char_boundary(*end)) {
        assert!(NodeConfig::parse(&EDGE1[..end]).is_err(), "cut at {end}");
    }
}

proptest! {
    #[test]
    fn parsing_never_panics(text in "(?s).{0,400}") {
        drop(NodeConfig::parse(&text));
    }

    #[test]
    fn parsing_a_damaged_document_never_panics(at in 0..EDGE1.len(), with in "[^ -~]{0,3}|[ -~]{0,8}") {
        let mut text = EDGE1.to_owned();
        if text.is_char_boundary(at) {
            text.insert_str(at, &with);
            drop(NodeConfig::parse(&text));
        }
    }
}
