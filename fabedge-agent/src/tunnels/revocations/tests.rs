use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, IsCa, Issuer, KeyIdMethod, KeyPair,
    RevokedCertParams, SerialNumber,
};

use super::*;

struct Authority {
    issuer: Issuer<'static, KeyPair>,
    der: Vec<u8>,
}

impl Authority {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let der = params.self_signed(&key).unwrap().der().to_vec();
        Self {
            issuer: Issuer::new(params, key),
            der,
        }
    }

    fn certificate(&self, serial: u64) -> Vec<u8> {
        let mut params = CertificateParams::default();
        params.serial_number = Some(SerialNumber::from(serial));
        let key = KeyPair::generate().unwrap();
        params.signed_by(&key, &self.issuer).unwrap().der().to_vec()
    }

    fn list(&self, number: u64, serials: &[u64], year: i32, method: KeyIdMethod) -> String {
        CertificateRevocationListParams {
            this_update: rcgen::date_time_ymd(year, 1, 1),
            next_update: rcgen::date_time_ymd(year + 1, 1, 1),
            crl_number: SerialNumber::from(number),
            issuing_distribution_point: None,
            revoked_certs: serials
                .iter()
                .map(|serial| RevokedCertParams {
                    serial_number: SerialNumber::from(*serial),
                    revocation_time: rcgen::date_time_ymd(year, 1, 1),
                    reason_code: None,
                    invalidity_date: None,
                })
                .collect(),
            key_identifier_method: method,
        }
        .signed_by(&self.issuer)
        .unwrap()
        .pem()
        .unwrap()
    }
}

fn read(text: &str, authorities: &[&Authority]) -> (Vec<List>, Vec<String>) {
    let ders: Vec<Vec<u8>> = authorities
        .iter()
        .map(|authority| authority.der.clone())
        .collect();
    // 2026-11-27.
    let now = ASN1Time::from_timestamp(1_795_737_600).unwrap();
    let (lists, errors) = parse(
        Path::new("ca.crl"),
        text.as_bytes(),
        Path::new("ca.crt"),
        &ders,
        now,
    );
    (lists, errors.iter().map(ToString::to_string).collect())
}

#[test]
fn lists_name_certificates_of_their_own_authority() {
    let (one, other) = (Authority::new(), Authority::new());
    let text = format!(
        "{}{}",
        one.list(7, &[300], 2026, KeyIdMethod::Sha256),
        other.list(1, &[], 2020, KeyIdMethod::Sha256)
    );
    let (lists, errors) = read(&text, &[&one, &other]);
    assert_eq!((lists.len(), errors.len()), (2, 0), "{errors:?}");
    let revoked: Vec<Revoked> = lists.iter().flat_map(List::revoked).collect();
    assert_eq!(revoked.len(), 1);
    let both = [one.der.clone(), other.der.clone()];
    assert!(revoked[0].is(&one.certificate(300), &both));
    assert!(!revoked[0].is(&one.certificate(301), &both));
    assert!(
        !revoked[0].is(&other.certificate(300), &both),
        "both bear one name"
    );
    assert!(!revoked[0].is(b"no certificate", &both));
    assert!(lists[0].is_of(&both[..1]) && !lists[0].is_of(&both[1..]));
    assert_eq!(read(" \n", &[&one]).0.len(), 0, "nothing is revoked yet");
}

#[test]
fn a_later_list_replaces_an_earlier_one() {
    let (one, other) = (Authority::new(), Authority::new());
    let list = |authority: &Authority, number| {
        let text = authority.list(number, &[], 2026, KeyIdMethod::Sha256);
        read(&text, &[authority]).0.remove(0)
    };
    // 255 and 256 differ in length.
    assert!(list(&one, 256).replaces(&list(&one, 255)));
    assert!(!list(&one, 255).replaces(&list(&one, 256)));
    assert!(!list(&one, 256).replaces(&list(&other, 1)));
}

#[test]
fn an_unfit_list_is_named_and_the_others_count() {
    let (one, stranger) = (Authority::new(), Authority::new());
    let good = one.list(1, &[5], 2026, KeyIdMethod::Sha256);
    let broken = "-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n";
    for (bad, words) in [
        (
            stranger.list(1, &[5], 2026, KeyIdMethod::Sha256).as_str(),
            ["not signed by", "ca.crt"],
        ),
        (
            &one.list(1, &[5], 2027, KeyIdMethod::Sha256),
            ["valid from", "set the clock"],
        ),
        (
            &one.list(1, &[5], 2026, KeyIdMethod::Sha384),
            ["which key signed it", "ca.crl"],
        ),
        (broken, ["no PEM certificate revocation list", "ca.crl"]),
    ] {
        let (lists, errors) = read(&format!("{bad}{good}"), &[&one]);
        assert_eq!((lists.len(), errors.len()), (1, 1), "{errors:?}");
        for word in words {
            assert!(errors[0].contains(word), "{word:?} is not in {:?}", errors[0]);
        }
    }
}
