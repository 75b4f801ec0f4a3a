use std::path::Path;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DistinguishedName, DnType, IsCa,
    Issuer, KeyIdMethod, KeyPair, RevokedCertParams, SerialNumber,
};
use x509_parser::time::ASN1Time;

use super::*;
use crate::tunnels::revocations::{self, List};

const NOW: u64 = 1_795_737_600;

fn certificate(common: &str, year: i32) -> Vec<u8> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common);
    params.not_after = rcgen::date_time_ymd(year, 11, 1);
    params
        .self_signed(&KeyPair::generate().unwrap())
        .unwrap()
        .der()
        .to_vec()
}

#[test]
fn what_is_known_outlives_the_agent_but_not_for_ever() {
    let mut known = Known::default();
    let (old, older) = (certificate("f.edge1", 2026), certificate("f.edge1", 2025));
    for der in [&old, &older, &certificate("f.edge2", 2027)] {
        assert!(known.add(der));
        assert!(!known.add(der), "it is known already");
    }
    assert!(!known.add(b"no certificate"));
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(NOW);
    let read = Known::parse(&known.bytes(), now);
    assert_eq!(read.0["CN=f.edge1"], BTreeSet::from([old]));
    assert_eq!(read.0.len(), 2);
    // Of a file that was damaged the beginning counts.
    let bytes = read.bytes();
    assert_eq!(Known::parse(&bytes[..bytes.len() - 1], now).0.len(), 1);
}

fn named(common: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common);
    params
}

#[test]
fn who_showed_a_revoked_certificate_and_who_may_have_is_barred() {
    let mut params = named("f-ca");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    let authorities = [params.self_signed(&key).unwrap().der().to_vec()];
    let issuer = Issuer::new(params, key);
    let date = rcgen::date_time_ymd(2026, 1, 1);
    let list = CertificateRevocationListParams {
        this_update: date,
        next_update: rcgen::date_time_ymd(2027, 1, 1),
        crl_number: SerialNumber::from(1_u64),
        issuing_distribution_point: None,
        revoked_certs: vec![RevokedCertParams {
            serial_number: SerialNumber::from(7_u64),
            revocation_time: date,
            reason_code: None,
            invalidity_date: None,
        }],
        key_identifier_method: KeyIdMethod::Sha256,
    };
    let list = list.signed_by(&issuer).unwrap().pem().unwrap();
    let now = ASN1Time::from_timestamp(i64::try_from(NOW).unwrap()).unwrap();
    let (lists, _) = revocations::parse(Path::new("l"), list.as_bytes(), Path::new("a"), &authorities, now);
    let revoked: BTreeSet<Revoked> = lists.iter().flat_map(List::revoked).collect();

    let mut known = Known::default();
    // The first has shown two certificates, of which one was revoked.
    for (peer, serial) in [("f.edge1", 6_u64), ("f.edge1", 7), ("f.edge2", 8)] {
        let mut params = named(peer);
        params.serial_number = Some(SerialNumber::from(serial));
        let key = KeyPair::generate().unwrap();
        known.add(params.signed_by(&key, &issuer).unwrap().der());
    }
    let peers = ["f.edge1", "f.edge2", "f.edge3"];
    let connections: BTreeMap<_, _> = peers
        .iter()
        .map(|peer| {
            let connection = desired::Connection {
                peer: (*peer).to_owned(),
                local_id: "CN=f.connector".to_owned(),
                remote_id: format!("CN = {peer}"),
                remote_addrs: Vec::new(),
                remote_port: None,
                initiate: false,
                reqid: 1,
                if_id: None,
                child: String::new(),
                local: BTreeSet::new(),
                remote: BTreeSet::new(),
            };
            (format!("fabedge-{peer}"), connection.into())
        })
        .collect();
    let ike = |id, peer: &str, state| Ike {
        name: format!("fabedge-{peer}"),
        id,
        state,
        state_name: String::new(),
        remote: String::new(),
        established: None,
        creating: false,
        children: Vec::new(),
    };
    let ikes = [
        ike(1, "f.edge1", IkeState::Established),
        ike(2, "f.edge1", IkeState::Connecting),
        ike(3, "f.edge1", IkeState::Leaving),
        ike(4, "f.edge2", IkeState::Established),
        ike(5, "f.edge3", IkeState::Established),
        ike(6, "f.edge3", IkeState::Connecting),
        ike(7, "others", IkeState::Established),
    ];
    let barred = known.barred(&connections, &ikes, &revoked, &authorities);
    let ids: Vec<u32> = barred.iter().map(|doomed| doomed.id).collect();
    assert_eq!(ids, [1, 2, 5]);
}
