//! The tunnels subsystem against real charons, each in a network namespace of its own.
#![allow(
    clippy::unwrap_used,
    clippy::let_underscore_must_use,
    reason = "in a test a panic is the report, and cleaning up is best effort"
)]

#[path = "charon/pki.rs"]
mod pki;
#[path = "charon/site.rs"]
mod site;
#[path = "charon/world.rs"]
mod world;

use std::time::Duration;

use fabedge_agent::facts::TunnelKind;
use pki::{Authority, serial};
use site::{Site, kind};
use world::{
    CLOUD, World, both_edges_document, connector_document, edge_document, second_edge_document, start,
};

#[test]
fn a_tunnel_comes_up_and_carries_both_families() {
    let mut world = World::new();
    for site in [&mut world.edge, &mut world.connector] {
        site.start_charon();
        site.start_agent();
    }
    world.edge.document(&edge_document(CLOUD));
    world.connector.document(&connector_document(CLOUD));
    let took = world.edge.wait_ready("fabedge.connector");
    world.connector.wait_ready("fabedge.edge2");
    println!("tunnel up after {took:?}");
    world.routes();
    world.edge.run("ping -c 3 -i 0.2 -W 2 10.233.64.1");
    world.edge.run("ping -c 3 -i 0.2 -W 2 fd00:64::1");
    world.connector.run("ping -c 3 -i 0.2 -W 2 10.233.66.1");
    let report = world.edge.peer("fabedge.connector");
    assert_eq!(
        report.children.len(),
        1,
        "one CHILD_SA carries everything: {report:#?}"
    );
    world.edge.wait("bytes in the report", 20, |site| {
        site.peer("fabedge.connector")
            .children
            .iter()
            .all(|child| child.bytes_in > 0 && child.bytes_out > 0)
    });
    world.edge.wait_idle();
    world.connector.wait_idle();
    let main = world
        .edge
        .run("ip route show table main; ip -6 route show table main");
    for address in ["172.16.2.23", "10.233.0.1", "fd00:10::1"] {
        let route = world.connector.run(&format!("ip route get {address} || true"));
        assert!(
            !route.contains("local"),
            "the connector takes {address} for its own: {route}"
        );
    }
    assert!(
        !main.contains("172.16.2.28"),
        "charon routes the underlay into the tunnel:\n{main}"
    );
}

/// How many of its packets a `ping -q` got back, and what it said.
fn received(pings: std::process::Child) -> (u32, String) {
    let summary = String::from_utf8(pings.wait_with_output().unwrap().stdout).unwrap();
    let received = summary
        .lines()
        .find_map(|line| line.split_once(" received")?.0.rsplit(' ').next()?.parse().ok());
    (received.unwrap(), summary)
}

const PING: &str = "ping -c 1 -W 1 10.233.64.1";

#[test]
fn either_end_may_come_late() {
    let mut world = World::new();
    world.edge.start_agent();
    world.edge.document(&edge_document(CLOUD));
    world.edge.wait("message about the absent charon", 20, |site| {
        site.error()
            .is_some_and(|error| error.contains("charon.vici") && error.contains("strongswan"))
    });
    world.edge.start_charon();
    world.edge.wait("IKE_SA on its way to nobody", 20, |site| {
        site.peer("fabedge.connector").ike_state.is_some()
    });
    // charon answers, but knows nobody yet.
    world.connector.start_charon();
    world.connector.start_agent();
    world.edge.wait("refusal in the report", 20, |site| {
        site.peer("fabedge.connector")
            .error
            .is_some_and(|error| error.contains("NO_PROPOSAL_CHOSEN"))
    });
    world.connector.document(&connector_document(CLOUD));
    let took = world.edge.wait_ready("fabedge.connector");
    println!("tunnel up {took:?} after the peer's document");
    assert_eq!(world.edge.peer("fabedge.connector").error, None);
}

#[test]
fn a_killed_charon_gets_everything_again() {
    let mut world = start(World::new());
    world.connector.kill_charon();
    world
        .connector
        .wait("message about charon", 5, |site| site.error().is_some());
    world.connector.start_charon();
    world.routes();
    let took = world.edge.wait("packets again", 60, |site| site.succeeds(PING));
    println!("packets again {took:?} after the answering charon was killed and restarted");
    world.edge.kill_charon();
    world.edge.start_charon();
    world.routes();
    let took = world.edge.wait("packets again", 60, |site| site.succeeds(PING));
    println!("packets again {took:?} after the initiating charon was killed and restarted");
    world.edge.wait_idle();
    world.connector.wait_idle();
    assert_eq!(world.connector.peer("fabedge.edge2").children.len(), 1);
    for site in [&world.edge, &world.connector] {
        if kind() == TunnelKind::Xfrm {
            site.wait("end of what the killed charon left", 40, |site| {
                site.run("ip xfrm state").matches("0xfabe").count() == 2
            });
        }
        let policies = site.run("ip xfrm policy").matches("if_id 0xfabe").count();
        // The edge's selector of each family by the connector's 4 of IPv4 and 2 of IPv6; in, forward and out.
        assert_eq!(policies, if kind() == TunnelKind::Xfrm { 18 } else { 0 });
    }
}

#[test]
fn selectors_change_without_a_gap() {
    let world = start(World::new());
    let before = world.edge.peer("fabedge.connector");
    let wider = r#"10.233.0.0/18, 10.233.64.0/23, "fd00:10::/112", "fd00:64::/64""#;
    let pings = world.edge.start("ping -q -i 0.02 -W 1 -c 150 10.233.64.1");
    // The edge's document comes first: the peer agrees to less than is asked for until it has its own.
    world.edge.document(&edge_document(wider));
    world
        .edge
        .wait("knowledge that the tunnel carries too little", 20, |site| {
            !site.peer("fabedge.connector").ready
        });
    std::thread::sleep(Duration::from_secs(1));
    assert!(!world.edge.peer("fabedge.connector").ready);
    world.connector.document(&connector_document(wider));
    world.edge.wait_ready("fabedge.connector");
    world.connector.wait_ready("fabedge.edge2");
    world.edge.wait_idle();
    world.connector.wait_idle();
    let after = world.edge.peer("fabedge.connector");
    assert_eq!(after.children.len(), 1, "{after:#?}");
    assert_ne!(after.children[0].name, before.children[0].name);
    assert!(
        after.established_seconds >= before.established_seconds,
        "over the same IKE_SA"
    );
    let (received, summary) = received(pings);
    println!("{received} of 150 pings answered while the selectors changed");
    // The peer may use a new SA a round trip before it is there, at every attempt; an emulated CPU makes that long.
    let enough = if kind() == TunnelKind::Xfrm { 130 } else { 145 };
    assert!(received >= enough, "{summary}");
}

#[test]
fn a_peer_that_goes_takes_its_sas_along() {
    let mut world = start(World::new());
    world.connector.clear_document();
    world.edge.wait("loss of the tunnel", 20, |site| {
        site.peer("fabedge.connector").children.is_empty()
    });
    assert!(!world.edge.succeeds(PING));
    world.connector.document(&connector_document(CLOUD));
    world.edge.wait_ready("fabedge.connector");
    world.edge.clear_document();
    world.edge.wait_idle();
    world.connector.wait("loss of the tunnel", 20, |site| {
        site.peer("fabedge.edge2").children.is_empty()
    });
    world.edge.stop_agent();

    // Cleaning up where charon is dead for good.
    world.connector.kill_charon();
    world.connector.clear_document();
    world.connector.wait_idle();
    assert!(!world.connector.succeeds("ip link show fabedge-anchor"));
    if kind() == TunnelKind::Xfrm {
        assert_eq!(
            world
                .connector
                .run("ip xfrm state; ip xfrm policy")
                .matches("0xfabe")
                .count(),
            0
        );
    }
}

#[test]
fn unfit_certificates_are_refused_and_good_ones_stay() {
    let world = start(World::new());
    let refusal = |site: &Site, words: &str| {
        site.wait(&format!("refusal with {words:?}"), 5, |site| {
            site.failures()
                .iter()
                .any(|(object, text)| object.starts_with("certificate") && text.contains(words))
        });
    };
    world
        .authority
        .certify_for(&world.edge, "fabedge.edge2", [2020, 2021]);
    refusal(&world.edge, "valid from");
    world
        .authority
        .certify_for(&world.edge, "fabedge.edge2", [2089, 2090]);
    refusal(&world.edge, "set the clock");
    world.authority.certify(&world.edge, "fabedge.edge9");
    refusal(&world.edge, "CN=fabedge.edge9");
    let ca = std::fs::read(world.edge.path("ca.crt")).unwrap();
    Authority::new("fabedge-ca").certify(&world.edge, "fabedge.edge2");
    std::fs::write(world.edge.path("ca.crt"), ca).unwrap();
    refusal(&world.edge, "not signed by");
    let key = std::fs::read(world.edge.path("tls.key")).unwrap();
    world.authority.certify(&world.edge, "fabedge.edge2");
    std::fs::write(world.edge.path("tls.key"), key).unwrap();
    refusal(&world.edge, "does not belong to the certificate");
    let before = world.edge.peer("fabedge.connector");
    assert!(before.ready && world.edge.succeeds(PING));

    // A renewed one is taken without a restart, and proves itself with the next IKE_SA.
    world.authority.certify(&world.edge, "fabedge.edge2");
    world.edge.wait_idle();
    assert_eq!(world.edge.failures().len(), 0);
    let after = world.edge.peer("fabedge.connector");
    assert_eq!(
        after.children[0].spi_in, before.children[0].spi_in,
        "no SA is dropped for it"
    );
    world.connector.clear_document();
    world.edge.wait("loss of the tunnel", 20, |site| {
        !site.peer("fabedge.connector").ready
    });
    world.connector.document(&connector_document(CLOUD));
    world.edge.wait_ready("fabedge.connector");
}

#[test]
fn rekeying_and_doubles_lose_nothing() {
    let world = start(World::new());
    let child = world.edge.peer("fabedge.connector").children[0].clone();
    let pings = world.edge.start("ping -q -i 0.02 -W 1 -c 300 10.233.64.1");
    assert!(world.edge.ask("rekey", &[("child", child.name.as_str())]));
    let renewed = |site: &Site| {
        let report = site.peer("fabedge.connector");
        report.ready && report.children.len() == 1 && report.children[0].spi_in != child.spi_in
    };
    world.edge.wait("CHILD_SA with other keys", 10, renewed);
    assert!(world.edge.ask("rekey", &[("ike", "fabedge-fabedge.connector")]));
    // A second child like the first, as by two ends that initiate at once.
    let again = format!("{}-again", child.name);
    world.edge.wait("end of the older child", 20, |site| {
        // Refused while the IKE_SA is being rekeyed, and once it is there.
        site.ask("initiate", &[("child", again.as_str()), ("timeout", "2000")]);
        let report = site.peer("fabedge.connector");
        report.ready && report.children.len() == 1 && report.children[0].name == again
    });
    world.edge.wait_idle();
    world.connector.wait_idle();
    assert_eq!(world.connector.peer("fabedge.edge2").children.len(), 1);
    let (received, summary) = received(pings);
    println!("{received} of 300 pings answered during rekeying");
    assert!(
        received >= if kind() == TunnelKind::Xfrm { 270 } else { 295 },
        "{summary}"
    );
}

#[test]
fn a_nat_that_remaps_cuts_an_idle_edge_off_only_briefly() {
    let (world, nat) = World::behind_nat();
    let world = start(world);
    let from_cloud = "ping -c 1 -W 1 10.233.66.1";
    assert!(world.connector.succeeds(from_cloud));
    let before = world.connector.peer("fabedge.edge2").remote.unwrap();
    assert!(!before.ends_with(":500"), "over NAT-T: {before}");
    // With the address go the masquerades to it.
    nat.run("ip addr add 172.16.2.77/24 dev out0; ip addr del 172.16.2.2/24 dev out0; ip addr add 172.16.2.77/24 dev out0 || true");
    let took = world
        .connector
        .wait("packets to the edge", 20, |site| site.succeeds(from_cloud));
    println!("packets to the idle edge {took:?} after its NAT took another address");
    // DPD is every 5 s; the rest is for an emulated CPU.
    assert!(took < Duration::from_secs(9), "{took:?}");
    world.connector.wait("other address in the report", 20, |site| {
        site.peer("fabedge.edge2")
            .remote
            .is_some_and(|remote| remote.starts_with("172.16.2.77:"))
    });
    assert!(world.edge.succeeds(PING));
}

/// A thousand packets a second there and back.
const STREAM: &str = "ping -q -i 0.001 -W 1 -c 15000 10.233.64.1";

/// Sees that a stream lasted until now and lost nothing.
fn lossless(mut stream: std::process::Child, during: &str) {
    assert!(stream.try_wait().unwrap().is_none(), "the stream ended too early");
    let (received, summary) = received(stream);
    println!("{} of 15000 packets lost while {during}", 15000 - received);
    assert_eq!(received, 15000, "{summary}");
}

#[test]
fn another_authority_takes_over_without_a_loss() {
    let world = start(World::new());
    let old = &world.authority;
    let new = Authority::new("fabedge-ca");
    let sites = [
        (&world.edge, "fabedge.edge2"),
        (&world.connector, "fabedge.connector"),
    ];
    let spi = |site: &Site, peer: &str| site.peer(peer).children[0].spi_in;
    let before = spi(&world.edge, "fabedge.connector");
    let trust = |text: &str| {
        for (site, _) in sites {
            std::fs::write(site.path("ca.crt"), text).unwrap();
        }
    };
    let settled = |authorities: usize| {
        for (site, _) in sites {
            site.wait(&format!("{authorities} authorities at charon"), 10, |site| {
                site.authorities() == authorities
            });
            site.wait_idle();
            assert_eq!(site.failures().len(), 0, "{:?}", site.failures());
        }
    };
    let both = format!("{}{}", new.pem, old.pem);

    let pings = world.edge.start(STREAM);
    trust(&both);
    settled(2);
    for (site, name) in sites {
        new.certify(site, name);
        std::fs::write(site.path("ca.crt"), &both).unwrap();
        settled(2);
    }
    trust(&new.pem);
    settled(1);
    lossless(pings, "the authority changed");
    assert_eq!(
        spi(&world.edge, "fabedge.connector"),
        before,
        "no SA is dropped for it"
    );

    // What the new one certified serves for new SAs.
    let anew = || {
        world.connector.clear_document();
        world.edge.wait("loss of the tunnel", 20, |site| {
            !site.peer("fabedge.connector").ready
        });
        world.connector.document(&connector_document(CLOUD));
    };
    anew();
    world.edge.wait("tunnel by the new authority", 40, |site| {
        site.peer("fabedge.connector").ready
    });

    // What the old one certified is worth nothing, whatever its holder trusts.
    old.certify(&world.edge, "fabedge.edge2");
    std::fs::write(world.edge.path("ca.crt"), &both).unwrap();
    world.edge.wait_idle();
    anew();
    world.edge.wait("refusal in the report", 40, |site| {
        site.peer("fabedge.connector")
            .error
            .is_some_and(|error| error.contains("AUTHENTICATION_FAILED"))
    });
    assert!(!world.edge.peer("fabedge.connector").ready);
}

#[test]
fn an_authority_that_went_while_no_agent_ran_is_not_trusted() {
    let mut world = start(World::new());
    let old = world.authority.pem.clone();
    let pings = world.edge.start(STREAM);
    let trusted = world.connector.path("ca.crt");
    std::fs::write(&trusted, format!("{}{old}", Authority::new("somebody").pem)).unwrap();
    world
        .connector
        .wait("two authorities at charon", 10, |site| site.authorities() == 2);
    world.connector.stop_agent();
    std::fs::write(&trusted, old).unwrap();
    world.connector.start_agent();
    world
        .connector
        .wait("one authority at charon", 10, |site| site.authorities() == 1);
    world.connector.wait_idle();
    assert_eq!(world.connector.failures().len(), 0);
    lossless(pings, "the authority went");
}

#[test]
fn who_is_revoked_goes_and_stays_away_and_others_stay() {
    let world = World::new();
    let mut other = world.second_edge();
    let mut world = start(world);
    other.start_charon();
    other.start_agent();
    other.document(&second_edge_document());
    world.connector.document(&both_edges_document());
    other.wait_ready("fabedge.connector");
    let device = kind().device();
    other.run(&format!(
        "ip route replace 10.233.64.0/23 dev {device} src 10.233.67.1"
    ));
    world.connector.run(&format!(
        "ip route replace 10.233.67.0/24 dev {device} src 10.233.64.1"
    ));
    world.connector.wait_idle();
    // An agent that started after they came knows them as well.
    world.connector.stop_agent();
    world.connector.start_agent();
    world.connector.wait_ready("fabedge.edge2");

    let deliver = |text: &str| {
        for site in [&world.edge, &world.connector, &other] {
            std::fs::write(site.path("ca.crl"), text).unwrap();
        }
    };
    let ready = |site: &Site, peer: &str| site.peer(peer).ready;
    let pings = other.start(STREAM);
    let spi = other.peer("fabedge.connector").children[0].spi_in;
    let revoked = serial(&world.edge);
    deliver(&world.authority.revoke(1, &[]));
    for site in [&world.edge, &world.connector, &other] {
        site.wait_idle();
        assert_eq!(site.failures().len(), 0, "{:?}", site.failures());
    }
    assert!(
        ready(&world.edge, "fabedge.connector"),
        "an empty list concerns nobody"
    );

    deliver(&world.authority.revoke(2, std::slice::from_ref(&revoked)));
    let took = world.connector.wait("end of the revoked peer's SAs", 20, |site| {
        site.peer("fabedge.edge2").children.is_empty()
    });
    println!("the SAs of a revoked peer gone {took:?} after the list came");
    world.edge.wait("refusal in the report", 20, |site| {
        site.peer("fabedge.connector")
            .error
            .is_some_and(|error| error.contains("AUTHENTICATION_FAILED"))
    });
    world.connector.wait_idle();

    // A list that nobody trusts neither counts nor harms.
    let strangers = Authority::new("fabedge-ca").revoke(3, &[serial(&other)]);
    for (text, words) in [
        (strangers.as_str(), "not signed by"),
        ("no list", "no such block"),
    ] {
        deliver(text);
        world
            .connector
            .wait(&format!("refusal with {words:?}"), 5, |site| {
                site.failures()
                    .iter()
                    .any(|(object, text)| object == "revocation list" && text.contains(words))
            });
        assert!(!ready(&world.connector, "fabedge.edge2") && ready(&world.connector, "fabedge.edge3"));
    }
    deliver(&world.authority.revoke(3, std::slice::from_ref(&revoked)));
    lossless(pings, "another peer was revoked");
    assert_eq!(other.peer("fabedge.connector").children[0].spi_in, spi);
    assert!(
        !ready(&world.connector, "fabedge.edge2"),
        "the revoked one is back"
    );

    // With another certificate it is welcome again.
    world.authority.certify(&world.edge, "fabedge.edge2");
    world.edge.wait("tunnel with another certificate", 40, |site| {
        ready(site, "fabedge.connector")
    });
}
