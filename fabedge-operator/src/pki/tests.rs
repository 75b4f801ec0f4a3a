use std::process::Command;

use tempfile::TempDir;
use x509_parser::extensions::GeneralName;
use x509_parser::pem::parse_x509_pem;

use super::super::inspect::{Verdict, judge, key_pair};
use super::super::store;
use super::*;

/// 2026-11-23 00:00 UTC. Tests that ask openssl for its opinion use the real time, as it does.
fn noon() -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(1_795_392_000).unwrap()
}

fn authority(now: OffsetDateTime) -> Authority {
    let new = Authority::generate("fabedge", now).unwrap();
    Authority::load(&new.certificate, &new.key, now).unwrap()
}

fn with_certificate<T>(pem: &str, look: impl FnOnce(&X509Certificate<'_>) -> T) -> T {
    let (_, block) = parse_x509_pem(pem.as_bytes()).unwrap();
    look(&X509Certificate::from_der(&block.contents).unwrap().1)
}

fn openssl(dir: &TempDir, args: &str) -> String {
    let out = Command::new("openssl")
        .args(args.split_whitespace())
        .current_dir(dir.path())
        .output()
        .unwrap();
    assert!(
        out.status.success(),
        "openssl {args}: {}",
        String::from_utf8_lossy(&out.stderr)
    );
    String::from_utf8(out.stdout).unwrap()
}

#[test]
fn a_leaf_says_what_strongswan_needs_and_no_more() {
    let leaf = authority(noon()).issue("fabedge.edge1", noon()).unwrap();
    assert!(leaf.key.starts_with("-----BEGIN PRIVATE KEY-----"), "PKCS#8");
    with_certificate(&leaf.certificate, |cert| {
        let subject: Vec<(String, u32, &str)> = cert
            .subject()
            .iter_attributes()
            .map(|a| {
                (
                    a.attr_type().to_id_string(),
                    a.attr_value().tag().0,
                    a.as_str().unwrap(),
                )
            })
            .collect();
        // countryName, organizationName, commonName; each a PrintableString (19).
        assert_eq!(
            subject,
            [
                ("2.5.4.6".to_owned(), 19, "CN"),
                ("2.5.4.10".to_owned(), 19, "fabedge.io"),
                ("2.5.4.3".to_owned(), 19, "fabedge.edge1"),
            ]
        );
        assert_eq!(cert.subject().iter().count(), 3, "one attribute per RDN");
        let san = cert.subject_alternative_name().unwrap().unwrap();
        assert_eq!(san.value.general_names, [GeneralName::DNSName("fabedge.edge1")]);
        assert!(!cert.is_ca());
        let usage = cert.key_usage().unwrap().unwrap();
        assert!(usage.critical && usage.value.digital_signature() && !usage.value.key_cert_sign());
        let purposes = cert.extended_key_usage().unwrap().unwrap().value;
        assert!(
            !purposes.any && !purposes.client_auth && !purposes.server_auth,
            "opens no API"
        );
        assert_eq!(purposes.other.len(), 1);
        assert_eq!(purposes.other[0].to_id_string(), "1.3.6.1.5.5.7.3.17");
        let life = cert.validity().not_after.timestamp() - cert.validity().not_before.timestamp();
        assert_eq!(life, LEAF_LIFETIME.whole_seconds());
    });
}

#[test]
fn an_authority_can_sign_leaves_only() {
    let new = Authority::generate("fabedge", noon()).unwrap();
    with_certificate(&new.certificate, |cert| {
        let constraints = cert.basic_constraints().unwrap().unwrap();
        assert!(constraints.critical && constraints.value.ca);
        assert_eq!(constraints.value.path_len_constraint, Some(0));
        let usage = cert.key_usage().unwrap().unwrap().value;
        assert!(usage.key_cert_sign() && usage.crl_sign() && !usage.digital_signature());
        assert_eq!(
            cert.public_key().algorithm.algorithm.to_id_string(),
            "1.2.840.10045.2.1"
        );
    });
    assert!(
        !format!(
            "{:?}",
            Authority::load(&new.certificate, &new.key, noon()).unwrap()
        )
        .contains("PRIVATE")
    );
    assert!(!format!("{new:?}").contains("PRIVATE"));
}

#[test]
fn openssl_agrees() {
    let dir = tempfile::tempdir().unwrap();
    let authority = authority(OffsetDateTime::now_utc());
    let leaf = authority
        .issue("fabedge.edge1", OffsetDateTime::now_utc())
        .unwrap();
    for (file, text) in [
        ("ca.crt", authority.certificate()),
        ("tls.crt", &leaf.certificate),
        ("tls.key", &leaf.key),
    ] {
        std::fs::write(dir.path().join(file), text).unwrap();
    }
    assert_eq!(
        openssl(&dir, "verify -x509_strict -CAfile ca.crt tls.crt"),
        "tls.crt: OK\n"
    );
    let subject = openssl(
        &dir,
        "x509 -in tls.crt -noout -subject -nameopt sname,sep_comma_plus_space",
    );
    assert_eq!(subject, "subject=C=CN, O=fabedge.io, CN=fabedge.edge1\n");
    assert_eq!(
        openssl(&dir, "pkey -in tls.key -pubout"),
        openssl(&dir, "x509 -in tls.crt -noout -pubkey")
    );
}

/// As the predecessor leaves them: RSA, in PKCS#1 or PKCS#8, with a name of its own shape.
#[test]
fn an_rsa_authority_is_taken_as_it_is() {
    for form in ["-traditional", ""] {
        let dir = tempfile::tempdir().unwrap();
        openssl(
            &dir,
            "req -x509 -newkey rsa:2048 -nodes -keyout p8.key -out ca.crt -days 30 -subj /O=fabedge.io/CN=fabedge \
             -addext keyUsage=critical,keyCertSign,digitalSignature",
        );
        openssl(&dir, &format!("rsa -in p8.key -out ca.key {form}"));
        let before = std::fs::read(dir.path().join("ca.key")).unwrap();
        let now = OffsetDateTime::now_utc();
        let authority = store::open(dir.path(), "fabedge", now).unwrap();
        let leaf = authority.issue("fabedge.edge1", now).unwrap();
        std::fs::write(dir.path().join("tls.crt"), &leaf.certificate).unwrap();
        assert_eq!(openssl(&dir, "verify -CAfile ca.crt tls.crt"), "tls.crt: OK\n");
        assert_eq!(std::fs::read(dir.path().join("ca.key")).unwrap(), before);
        with_certificate(&leaf.certificate, |cert| {
            assert_eq!(
                cert.validity().not_after.to_datetime(),
                authority.not_after(),
                "never beyond the CA"
            );
        });
        // Renewing early would gain nothing.
        let verdict = judge(
            &leaf.certificate,
            &leaf.key,
            "fabedge.edge1",
            authority.trust(),
            now + Duration::days(25),
        );
        let renew_at = authority.not_after();
        assert_eq!(verdict, Verdict::Keep { renew_at });
        assert_eq!(authority.renewal(now), renew_at);
    }
}

#[test]
fn a_leaf_is_kept_until_two_thirds_and_renewed_for_cause() {
    let now = noon();
    let authority = authority(now);
    let other_authority = self::authority(now);
    let leaf = authority.issue("fabedge.edge1", now).unwrap();
    let other = authority.issue("fabedge.edge2", now).unwrap();
    let foreign = other_authority.issue("fabedge.edge1", now).unwrap();
    let at = |time| {
        judge(
            &leaf.certificate,
            &leaf.key,
            "fabedge.edge1",
            authority.trust(),
            time,
        )
    };
    let renew_at = now - BACKDATE + Duration::days(60);
    assert_eq!(at(now), Verdict::Keep { renew_at });
    assert_eq!(authority.renewal(now), renew_at);
    assert_eq!(at(renew_at - Duration::SECOND), Verdict::Keep { renew_at });
    assert!(matches!(at(renew_at), Verdict::Renew(why) if why.contains("two thirds")));
    assert!(matches!(at(now + Duration::days(100)), Verdict::Renew(_)));
    assert!(matches!(at(now - Duration::days(1)), Verdict::Renew(why) if why.contains("future")));

    let judge =
        |certificate: &str, key: &str| judge(certificate, key, "fabedge.edge1", authority.trust(), now);
    for (certificate, key, expected) in [
        (&foreign.certificate, &foreign.key, "another CA"),
        (&other.certificate, &other.key, "another name"),
        (&leaf.certificate, &other.key, "not that of its certificate"),
        (&leaf.certificate, &String::new(), "key does not parse"),
        (
            &leaf.certificate[..200].to_owned(),
            &leaf.key,
            "certificate does not parse",
        ),
        (&leaf.key, &leaf.key, "certificate does not parse"),
    ] {
        let verdict = judge(certificate, key);
        assert!(
            matches!(verdict, Verdict::Renew(why) if why.contains(expected)),
            "{expected}: {verdict:?}"
        );
    }
}

#[test]
fn an_authority_that_cannot_be_used_is_refused_and_left_alone() {
    let now = noon();
    let good = Authority::generate("fabedge", now).unwrap();
    let other = Authority::generate("fabedge", now).unwrap();
    let expired = Authority::generate("fabedge", now - AUTHORITY_LIFETIME - Duration::days(1)).unwrap();
    let leaf = authority(now).issue("fabedge.edge1", now).unwrap();
    for (certificate, key, expected) in [
        ("", good.key.as_str(), "certificate does not parse"),
        (&good.certificate[..300], &good.key, "certificate does not parse"),
        (
            &good.certificate,
            "-----BEGIN EC PRIVATE KEY-----\nAAAA\n-----END EC PRIVATE KEY-----\n",
            "openssl pkcs8",
        ),
        (&good.certificate, "nonsense", "key does not parse"),
        (&good.certificate, &other.key, "not that of the CA certificate"),
        (&expired.certificate, &expired.key, "valid from"),
        (&leaf.certificate, &leaf.key, "not that of an authority"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("ca.crt"), certificate).unwrap();
        std::fs::write(dir.path().join("ca.key"), key).unwrap();
        let error = store::open(dir.path(), "fabedge", now).unwrap_err();
        let source = std::error::Error::source(&error).unwrap().to_string();
        assert!(source.contains(expected), "{expected}: {source}");
        assert!(error.to_string().contains(&*dir.path().to_string_lossy()));
        assert_eq!(
            std::fs::read_to_string(dir.path().join("ca.crt")).unwrap(),
            certificate
        );
        assert_eq!(std::fs::read_to_string(dir.path().join("ca.key")).unwrap(), key);
    }
    for (file, text) in [("ca.crt", &good.certificate), ("ca.key", &good.key)] {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(file), text).unwrap();
        assert!(matches!(
            store::open(dir.path(), "fabedge", now),
            Err(store::Error::Half { .. })
        ));
        assert_eq!(
            std::fs::read_dir(dir.path()).unwrap().count(),
            1,
            "nothing is added to half of a CA"
        );
    }
}

#[test]
fn a_new_authority_is_kept_and_its_key_is_private() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("made/for/it");
    let first = store::open(&folder, "fabedge", noon()).unwrap();
    let second = store::open(&folder, "fabedge", noon()).unwrap();
    assert_eq!(first.certificate(), second.certificate());
    let mode = |path: &std::path::Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&folder.join("ca.key")), 0o600);
    assert_eq!(mode(&folder), 0o700);
}

#[test]
fn names_that_cannot_be_written_are_errors() {
    let authority = authority(noon());
    for name in ["fabedge.é", "fabedge.a*b@c"] {
        assert!(
            matches!(authority.issue(name, noon()), Err(Error::Issue { .. })),
            "{name}"
        );
    }
    assert!(key_pair("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").is_err());
}
