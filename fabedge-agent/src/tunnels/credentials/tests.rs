use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use tempfile::TempDir;

use super::*;

const ID: &str = "C=CN, O=fabedge.io, CN=f.edge1";

fn name(common: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CountryName, "CN");
    name.push(DnType::OrganizationName, "fabedge.io");
    name.push(DnType::CommonName, common);
    name
}

fn authority(is_ca: bool) -> (Issuer<'static, KeyPair>, String) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name = name("f-ca");
    if is_ca {
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    }
    let pem = params.self_signed(&key).unwrap().pem();
    (Issuer::new(params, key), pem)
}

fn certificate(issuer: &Issuer<'_, KeyPair>, common: &str) -> (String, String) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name = name(common);
    params.not_before = rcgen::date_time_ymd(2026, 1, 1);
    params.not_after = rcgen::date_time_ymd(2026, 4, 1);
    (params.signed_by(&key, issuer).unwrap().pem(), key.serialize_pem())
}

fn check(authorities: &str, certificate: &str, key: &str, day: u64) -> Result<Material, Error> {
    let files = Files {
        authorities: authorities.into(),
        certificate: certificate.into(),
        key: key.into(),
        revocations: Vec::new(),
        key_exposed: false,
    };
    // Days since 2026-01-01.
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_767_225_600 + day * 86_400);
    files.check(&Paths::default(), ID, now)
}

#[test]
fn a_good_certificate_is_taken() {
    let (issuer, ca) = authority(true);
    let (cert, key) = certificate(&issuer, "f.edge1");
    let material = check(&ca, &cert, &key, 10).unwrap();
    assert_eq!(material.subject, ID);
    assert_eq!(material.not_after, 1_767_225_600 + 90 * 86_400);
    assert_eq!(material.key_id.len(), 40);
    assert_eq!(material.authorities.len(), 1);
    assert!(!format!("{material:?}").contains("PRIVATE"), "keys have no Debug");

    // During a change of the CA both are trusted; text around the blocks is of no account.
    let (_, other) = authority(true);
    let both = format!("the new one\n{other}\nthe old one\n{ca}");
    assert_eq!(check(&both, &cert, &key, 10).unwrap().authorities.len(), 2);
}

#[test]
fn a_bad_one_is_refused_with_the_file_and_the_mend() {
    let (issuer, ca) = authority(true);
    let (cert, key) = certificate(&issuer, "f.edge1");
    let (others_cert, _) = certificate(&issuer, "f.edge2");
    let (stranger, strangers_ca) = authority(true);
    let (strangers_cert, _) = certificate(&stranger, "f.edge1");
    let (pretender, pretenders_ca) = authority(false);
    let (pretenders_cert, _) = certificate(&pretender, "f.edge1");
    let broken = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    for (ca, cert, key, day, words) in [
        (
            ca.as_str(),
            cert.as_str(),
            key.as_str(),
            91,
            vec!["tls.crt", "valid from", "renew it"],
        ),
        (&strangers_ca, &cert, &key, 10, vec!["not signed by", "ca.crt"]),
        (&ca, &strangers_cert, &key, 10, vec!["not signed by"]),
        (&pretenders_ca, &pretenders_cert, &key, 10, vec!["not signed by"]),
        (&ca, &others_cert, &key, 10, vec!["CN=f.edge2", "CN=f.edge1"]),
        (&ca, &key, &key, 10, vec!["tls.crt", "no PEM certificate"]),
        (&ca, &cert, &cert, 10, vec!["tls.key", "no PEM private key"]),
        ("", &cert, &key, 10, vec!["ca.crt", "no such block"]),
        (&ca, broken, &key, 10, vec!["tls.crt"]),
        (&ca, &cert[..200], &key, 10, vec!["tls.crt"]),
    ] {
        let text = check(ca, cert, key, day).unwrap_err().to_string();
        for word in words {
            assert!(text.contains(word), "{word:?} is not in {text:?}");
        }
    }
}

#[test]
fn a_key_that_others_can_read_is_noticed() {
    let folder = TempDir::new().unwrap();
    let path = |file: &str| folder.path().join(file);
    let paths = Paths {
        authorities: path("ca.crt"),
        certificate: path("tls.crt"),
        key: path("tls.key"),
        revocations: path("ca.crl"),
    };
    let text = Files::read(&paths).err().unwrap().to_string();
    assert!(text.contains("tls.key"), "{text}");
    for file in [&paths.authorities, &paths.certificate, &paths.key] {
        std::fs::write(file, "").unwrap();
    }
    for (mode, exposed) in [(0o600, false), (0o400, false), (0o640, true), (0o604, true)] {
        std::fs::set_permissions(&paths.key, std::fs::Permissions::from_mode(mode)).unwrap();
        assert_eq!(Files::read(&paths).unwrap().key_exposed, exposed, "{mode:o}");
    }
}

#[test]
fn names_differ_by_more_than_blanks() {
    assert_eq!(dn("C=CN, O=fabedge.io, CN=f.e"), dn("C=CN,O = fabedge.io,CN=f.e"));
    assert_ne!(dn("C=CN, O=fabedge.io, CN=f.e"), dn("O=fabedge.io, CN=f.e"));
    assert_ne!(dn("CN=f.e"), dn("CN=f.e2"));
}

#[test]
fn copies_serve_where_the_mounted_files_are_gone() {
    let folder = TempDir::new().unwrap();
    let mounted = Paths::within(&folder.path().join("mounted"));
    let copies = Paths::within(&folder.path().join("kept"));
    assert!(Files::read_or_kept(&mounted, Some(&copies)).is_err());
    for (path, text) in [
        (&mounted.authorities, "authority"),
        (&mounted.certificate, "certificate"),
        (&mounted.key, "key"),
    ] {
        crate::source::write_private(path, text.as_bytes()).unwrap();
    }
    let (files, origin) = Files::read_or_kept(&mounted, Some(&copies)).unwrap();
    assert_eq!(origin, Origin::Mounted);
    files.keep(&copies).unwrap();
    std::fs::remove_file(&mounted.key).unwrap();
    let (kept, origin) = Files::read_or_kept(&mounted, Some(&copies)).unwrap();
    assert_eq!(origin, Origin::Kept);
    assert!(kept == files);
    assert!(Files::read_or_kept(&mounted, None).is_err());
}
