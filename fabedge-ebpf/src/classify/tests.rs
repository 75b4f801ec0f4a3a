use fabedge_common::abi::{POD_LEARNING, POD_SHAPED, Pod, ROUTE_STACK, ROUTE_TUN, ROUTE_XFRM, Reason, Route};

use super::{
    Egress, Ingress, Meta, Sa, Stack, Tables, pod_egress, pod_ingress, tunnel_egress, tunnel_ingress,
};
use crate::{
    family::{Family, V4, V6, octets},
    fixtures::{Model, Raw, icmp, ipv4, ipv6, tcp, udp, v4, v6},
    parse::{Header, Parse},
};

/// As the program asks: it has looked the destination up already.
fn carried_out(header: &Header<V4>, packet: &Raw, model: &Model) -> Reason {
    tunnel_egress(header, packet, Tables::<V4>::route(model, header.dst), model)
}

const VETH: u32 = 7;
const TUNNEL: u32 = 3;
const PEER: u32 = 0x4000_0001;
const OTHER_PEER: u32 = 0x4000_0002;
const TCP: u8 = 6;
const UDP: u8 = 17;

/// A node with one pod, 10.1.0.2 and fd00::1:2, and these prefixes behind tunnels: 10.2.0.0/16 and fd00::2:0/112
/// of PEER, 10.3.0.0/16 of OTHER_PEER, and 10.2.9.0/24, which the stack translates.
fn model() -> Model {
    let mut model = Model::default();
    let route = |reqid, flags| Route {
        kind: ROUTE_XFRM,
        ifindex: TUNNEL,
        reqid,
        flags,
        mtu: 1400,
    };
    model.routes.insert(vec![10, 2], route(PEER, 0));
    model.routes.insert(vec![10, 3], route(OTHER_PEER, 0));
    model.routes.insert(vec![10, 2, 9], route(PEER, ROUTE_STACK));
    model
        .routes
        .insert([&[0xfd][..], &[0; 12], &[2]].concat(), route(PEER, 0));
    let pod = Pod {
        ifindex: VETH,
        flags: 0,
        pod_mac: [2; 6],
        gateway_mac: [4; 6],
    };
    model.pods.insert(octets(V4::wide(pod4())), pod);
    model.pods.insert(octets(V6::wide(pod6())), pod);
    model
}

fn pod4() -> u32 {
    v4(10, 1, 0, 2)
}

fn pod6() -> [u32; 4] {
    v6(1, 2)
}

fn remote4() -> u32 {
    v4(10, 2, 0, 5)
}

fn set_pod_flags(model: &mut Model, flags: u32) {
    for pod in model.pods.values_mut() {
        pod.flags = flags;
    }
}

fn egress<F: Parse>(model: &Model, packet: &Raw, gso_size: u32) -> Result<u32, Stack>
where
    Model: Tables<F>,
{
    let header = F::header(packet).map_err(Stack::from)?;
    let meta = Meta {
        ifindex: VETH,
        len: packet.0.len() as u32,
        gso_size,
    };
    match pod_egress(&header, packet, &meta, model) {
        Egress::Tunnel(route) => Ok(route.reqid),
        Egress::Stack(stack) => Err(stack),
    }
}

fn ingress<'a, F: Parse>(model: &'a Model, packet: &Raw, sa: Sa) -> Ingress<'a>
where
    Model: Tables<F>,
{
    let header = F::header(packet).unwrap_or_else(|reason| panic!("{reason:?}"));
    let source = Tables::<F>::route(model, header.src);
    tunnel_ingress(&header, packet, sa, source.as_ref(), model)
}

fn plain(reason: Reason) -> Stack {
    Stack { reason, plain: true }
}

#[test]
fn pod_to_peer_takes_the_tunnel_in_both_families() {
    let model = model();
    for (protocol, payload) in [
        (UDP, udp(1000, 53)),
        (TCP, tcp(1000, 80)),
        (1, icmp(8, 1)),
        (47, vec![]),
    ] {
        let packet = ipv4(pod4(), remote4(), protocol, &payload);
        assert_eq!(egress::<V4>(&model, &packet, 0), Ok(PEER), "protocol {protocol}");
    }
    for (protocol, payload) in [(UDP, udp(1000, 53)), (TCP, tcp(1000, 80)), (58, icmp(128, 1))] {
        let packet = ipv6(pod6(), v6(2, 9), protocol, &payload);
        assert_eq!(egress::<V6>(&model, &packet, 0), Ok(PEER), "protocol {protocol}");
    }
}

#[test]
fn what_is_not_for_a_tunnel_or_not_from_this_pod_stays() {
    let model = model();
    let from_pod = |dst| egress::<V4>(&model, &ipv4(pod4(), dst, UDP, &udp(1, 2)), 0);
    assert_eq!(from_pod(v4(8, 8, 8, 8)), Err(Reason::NoRoute.into()));
    assert_eq!(from_pod(v4(10, 2, 9, 1)), Err(Reason::StackPrefix.into()));
    for dst in [
        v4(224, 0, 0, 1),
        v4(255, 255, 255, 255),
        v4(127, 0, 0, 1),
        v4(169, 254, 1, 1),
        0,
    ] {
        assert_eq!(from_pod(dst), Err(Reason::Multicast.into()));
    }
    for src in [v4(10, 1, 0, 3), v4(10, 2, 0, 1), v4(192, 168, 1, 1)] {
        let packet = ipv4(src, remote4(), UDP, &udp(1, 2));
        assert_eq!(
            egress::<V4>(&model, &packet, 0),
            Err(Reason::ForeignSource.into())
        );
    }
    let mut elsewhere = self::model();
    for pod in elsewhere.pods.values_mut() {
        pod.ifindex = VETH + 1;
    }
    let packet = ipv4(pod4(), remote4(), UDP, &udp(1, 2));
    assert_eq!(
        egress::<V4>(&elsewhere, &packet, 0),
        Err(Reason::ForeignSource.into())
    );
}

#[test]
fn what_the_stack_must_answer_or_cut_stays_and_is_plain() {
    let model = model();
    let with = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut packet = ipv4(pod4(), remote4(), UDP, &udp(1, 2));
        change(&mut packet.0);
        egress::<V4>(&model, &packet, 0)
    };
    assert_eq!(with(&|_| ()), Ok(PEER));
    assert_eq!(with(&|p| p[8] = 1), Err(plain(Reason::Ttl)));
    assert_eq!(with(&|p| p[8] = 0), Err(plain(Reason::Ttl)));
    assert_eq!(with(&|p| p[8] = 2), Ok(PEER));
    assert_eq!(
        with(&|p| p[6] = 0x20),
        Err(plain(Reason::Fragment)),
        "more fragments"
    );
    assert_eq!(
        with(&|p| p[7] = 1),
        Err(plain(Reason::Fragment)),
        "offset, low byte"
    );
    assert_eq!(
        with(&|p| p[6] = 0x10),
        Err(plain(Reason::Fragment)),
        "offset, high byte"
    );
    assert_eq!(with(&|p| p[0] = 0x46), Err(plain(Reason::Options)));
    assert_eq!(
        with(&|p| p[0] = 0x44),
        Err(Reason::Malformed.into()),
        "header shorter than a header"
    );
    assert_eq!(
        with(&|p| p[0] = 0x65),
        Err(Reason::Malformed.into()),
        "version of another family"
    );
    assert_eq!(with(&|p| p.truncate(19)), Err(Reason::Malformed.into()));
    assert_eq!(
        with(&|p| p.truncate(22)),
        Err(Reason::Malformed.into()),
        "no ports"
    );
    assert_eq!(with(&|p| p.resize(1400, 0)), Ok(PEER));
    assert_eq!(with(&|p| p.resize(1401, 0)), Err(plain(Reason::OverMtu)));
}

#[test]
fn ipv6_extension_headers_stay() {
    let model = model();
    let next = |protocol| egress::<V6>(&model, &ipv6(pod6(), v6(2, 9), protocol, &[0; 48]), 0);
    assert_eq!(next(44), Err(plain(Reason::Fragment)));
    for protocol in [0, 43, 50, 51, 59, 60, 135] {
        assert_eq!(
            next(protocol),
            Err(plain(Reason::Options)),
            "next header {protocol}"
        );
    }
    let mut packet = ipv6(pod6(), v6(2, 9), UDP, &udp(1, 2));
    packet.0[7] = 1;
    assert_eq!(egress::<V6>(&model, &packet, 0), Err(plain(Reason::Ttl)));
    for first in [[0xff, 0x02], [0xfe, 0x80], [0xfe, 0xbf], [0, 0]] {
        let mut packet = ipv6(pod6(), v6(2, 9), UDP, &udp(1, 2));
        packet.0[24..26].copy_from_slice(&first);
        assert_eq!(egress::<V6>(&model, &packet, 0), Err(Reason::Multicast.into()));
    }
}

#[test]
fn segments_of_an_aggregate_must_fit() {
    let model = model();
    let mut packet = ipv4(pod4(), remote4(), TCP, &tcp(1, 2));
    packet.0.resize(30_000, 0);
    assert_eq!(egress::<V4>(&model, &packet, 1400 - 20 - 32), Ok(PEER));
    assert_eq!(
        egress::<V4>(&model, &packet, 1400 - 20 - 31),
        Err(plain(Reason::OverMtu))
    );
    let mut packet = ipv6(pod6(), v6(2, 9), UDP, &udp(1, 2));
    packet.0.resize(30_000, 0);
    assert_eq!(egress::<V6>(&model, &packet, 1400 - 40 - 8), Ok(PEER));
    assert_eq!(
        egress::<V6>(&model, &packet, 1400 - 40 - 7),
        Err(plain(Reason::OverMtu))
    );
}

#[test]
fn icmp_errors_stay_for_they_may_speak_of_translated_flows() {
    let model = model();
    for kind in [3, 4, 5, 11, 12, 13] {
        let packet = ipv4(pod4(), remote4(), 1, &icmp(kind, 1));
        assert_eq!(
            egress::<V4>(&model, &packet, 0),
            Err(Reason::IcmpControl.into()),
            "type {kind}"
        );
    }
    for kind in [1, 2, 3, 133, 135, 136] {
        let packet = ipv6(pod6(), v6(2, 9), 58, &icmp(kind, 1));
        assert_eq!(
            egress::<V6>(&model, &packet, 0),
            Err(Reason::IcmpControl.into()),
            "type {kind}"
        );
    }
}

#[test]
fn new_and_shaped_pods_stay() {
    let mut model = model();
    let out = ipv4(pod4(), remote4(), UDP, &udp(1, 2));
    let back = ipv4(remote4(), pod4(), UDP, &udp(2, 1));
    set_pod_flags(&mut model, POD_LEARNING);
    assert_eq!(egress::<V4>(&model, &out, 0), Err(plain(Reason::Learning)));
    assert_eq!(
        ingress::<V4>(&model, &back, Sa::Reqid(PEER)),
        Ingress::Stack(plain(Reason::Learning))
    );
    set_pod_flags(&mut model, POD_SHAPED);
    assert_eq!(egress::<V4>(&model, &out, 0), Err(Reason::Shaped.into()));
    assert_eq!(
        ingress::<V4>(&model, &back, Sa::Reqid(PEER)),
        Ingress::Stack(Reason::Shaped.into())
    );
}

#[test]
fn the_sa_must_be_that_of_the_source() {
    let model = model();
    let from = |src, sa| ingress::<V4>(&model, &ipv4(src, pod4(), UDP, &udp(2, 1)), sa);
    assert!(matches!(from(remote4(), Sa::Reqid(PEER)), Ingress::Pod(pod) if pod.ifindex == VETH));
    assert_eq!(
        from(remote4(), Sa::Reqid(OTHER_PEER)),
        Ingress::Drop(Reason::SpoofedSource)
    );
    assert_eq!(
        from(v4(10, 3, 0, 1), Sa::Reqid(PEER)),
        Ingress::Drop(Reason::SpoofedSource)
    );
    assert_eq!(from(remote4(), Sa::None), Ingress::Drop(Reason::NoSa));
    assert_eq!(from(v4(10, 9, 0, 1), Sa::None), Ingress::Drop(Reason::NoSa));
    assert_eq!(
        from(v4(10, 9, 0, 1), Sa::Reqid(PEER)),
        Ingress::Stack(Reason::UnknownSource.into())
    );
    assert_eq!(
        from(remote4(), Sa::Unknown),
        Ingress::Drop(Reason::SpoofedSource),
        "a route over the xfrm interface, but a packet out of a TUN"
    );
}

#[test]
fn spoofed_sources_are_dropped_whatever_else_the_packet_is() {
    let model = model();
    for change in [
        |p: &mut Vec<u8>| p[8] = 1,
        |p: &mut Vec<u8>| p[6] = 0x20,
        |p: &mut Vec<u8>| p[0] = 0x46,
        |p: &mut Vec<u8>| p[16..20].copy_from_slice(&[10, 1, 0, 99]),
        |p: &mut Vec<u8>| p[16..20].copy_from_slice(&[224, 0, 0, 1]),
    ] {
        let mut packet = ipv4(remote4(), pod4(), UDP, &udp(2, 1));
        change(&mut packet.0);
        assert_eq!(
            ingress::<V4>(&model, &packet, Sa::Reqid(OTHER_PEER)),
            Ingress::Drop(Reason::SpoofedSource)
        );
    }
}

#[test]
fn behind_a_tun_the_source_must_be_a_peers() {
    let mut model = model();
    for route in model.routes.values_mut() {
        route.kind = ROUTE_TUN;
    }
    let from = |src| ingress::<V4>(&model, &ipv4(src, pod4(), UDP, &udp(2, 1)), Sa::Unknown);
    assert!(matches!(from(remote4()), Ingress::Pod(_)));
    assert_eq!(
        from(v4(10, 9, 0, 1)),
        Ingress::Stack(Reason::UnknownSource.into())
    );
}

#[test]
fn out_of_the_tunnel_only_pods_are_fast() {
    let model = model();
    let to = |dst| ingress::<V4>(&model, &ipv4(remote4(), dst, UDP, &udp(2, 1)), Sa::Reqid(PEER));
    assert!(matches!(to(pod4()), Ingress::Pod(_)));
    assert_eq!(to(v4(10, 1, 0, 1)), Ingress::Stack(Reason::NoPod.into()));
    assert_eq!(to(v4(224, 0, 0, 1)), Ingress::Stack(Reason::Multicast.into()));
    let service = ipv4(v4(10, 2, 9, 1), pod4(), UDP, &udp(2, 1));
    assert_eq!(
        ingress::<V4>(&model, &service, Sa::Reqid(PEER)),
        Ingress::Stack(Reason::StackPrefix.into())
    );
    let packet = ipv6(v6(2, 9), pod6(), UDP, &udp(2, 1));
    assert!(matches!(
        ingress::<V6>(&model, &packet, Sa::Reqid(PEER)),
        Ingress::Pod(_)
    ));
}

/// A pod asks a ClusterIP, the stack picks a remote backend: the answers must go back through the stack.
#[test]
fn answers_of_a_translated_flow_stay_with_the_stack() {
    let model = model();
    let translated = ipv4(pod4(), remote4(), TCP, &tcp(4000, 80));
    let answer = ipv4(remote4(), pod4(), TCP, &tcp(80, 4000));
    let another = ipv4(remote4(), pod4(), TCP, &tcp(80, 4001));
    assert!(matches!(
        ingress::<V4>(&model, &answer, Sa::Reqid(PEER)),
        Ingress::Pod(_)
    ));
    let header = V4::header(&translated).unwrap_or_else(|reason| panic!("{reason:?}"));
    assert_eq!(carried_out(&header, &translated, &model), Reason::Recorded);
    assert_eq!(
        carried_out(&header, &translated, &model),
        Reason::Carried,
        "once is enough"
    );
    assert_eq!(
        ingress::<V4>(&model, &answer, Sa::Reqid(PEER)),
        Ingress::Stack(Reason::StackFlow.into())
    );
    assert!(matches!(
        ingress::<V4>(&model, &another, Sa::Reqid(PEER)),
        Ingress::Pod(_)
    ));
}

/// A remote pod asks a hostPort, the stack delivers to a local pod: the pod's answers must go through the stack.
#[test]
fn answers_of_a_pod_behind_a_host_port_stay_with_the_stack() {
    let model = model();
    let delivered = ipv4(remote4(), pod4(), UDP, &udp(5000, 53));
    let answer = ipv4(pod4(), remote4(), UDP, &udp(53, 5000));
    assert_eq!(egress::<V4>(&model, &answer, 0), Ok(PEER));
    let header = V4::header(&delivered).unwrap_or_else(|reason| panic!("{reason:?}"));
    assert_eq!(pod_ingress(&header, &delivered, &model), Reason::Recorded);
    assert_eq!(egress::<V4>(&model, &answer, 0), Err(Reason::StackFlow.into()));
    let expired = {
        let mut packet = ipv4(pod4(), remote4(), UDP, &udp(53, 5000));
        packet.0[8] = 1;
        packet
    };
    assert_eq!(
        egress::<V4>(&model, &expired, 0),
        Err(Reason::StackFlow.into()),
        "a flow of the stack is never called plain, or its record would not be refreshed"
    );
}

#[test]
fn only_flows_whose_answers_could_be_fast_are_remembered() {
    let mut model = model();
    let seen = |model: &Model, packet: &Raw| {
        let header = V4::header(packet).unwrap_or_else(|reason| panic!("{reason:?}"));
        (
            carried_out(&header, packet, model),
            pod_ingress(&header, packet, model),
        )
    };
    let ignored = (Reason::Carried, Reason::Carried);
    let from_node = ipv4(v4(10, 1, 0, 1), remote4(), UDP, &udp(1, 2));
    assert_eq!(seen(&model, &from_node), ignored, "the node itself is no pod");
    let from_outside = ipv4(v4(8, 8, 8, 8), pod4(), UDP, &udp(1, 2));
    assert_eq!(seen(&model, &from_outside), ignored);
    let to_service = ipv4(pod4(), v4(10, 2, 9, 1), UDP, &udp(1, 2));
    assert_eq!(
        seen(&model, &to_service),
        ignored,
        "answers from a stack prefix are never fast"
    );
    let error = ipv4(pod4(), remote4(), 1, &icmp(3, 0));
    assert_eq!(seen(&model, &error), ignored);
    let mut later = ipv4(pod4(), remote4(), UDP, &udp(1, 2));
    later.0[7] = 100;
    assert_eq!(seen(&model, &later), ignored, "payload is no port");
    let mut first = ipv4(pod4(), remote4(), UDP, &udp(1, 2));
    first.0[6] = 0x20;
    assert_eq!(
        seen(&model, &first).0,
        Reason::Recorded,
        "a first fragment has ports"
    );
    let packet = ipv4(pod4(), remote4(), UDP, &udp(1, 2));
    set_pod_flags(&mut model, POD_SHAPED);
    assert_eq!(seen(&model, &packet), ignored, "a shaped pod is never fast");
}
