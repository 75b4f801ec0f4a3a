//! Certificates for the tests.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DistinguishedName, DnType, IsCa,
    Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SerialNumber,
};
use x509_parser::pem::parse_x509_pem;

use crate::site::Site;

pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pub pem: String,
}

/// The serial number of the site's certificate.
pub fn serial(site: &Site) -> Vec<u8> {
    let text = fs::read(site.path("tls.crt")).unwrap();
    let (_, pem) = parse_x509_pem(&text).unwrap();
    pem.parse_x509().unwrap().raw_serial().to_vec()
}

fn name(common: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CountryName, "CN");
    name.push(DnType::OrganizationName, "fabedge.io");
    name.push(DnType::CommonName, common);
    name
}

impl Authority {
    pub fn new(common: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name = name(common);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let pem = params.self_signed(&key).unwrap().pem();
        Self {
            issuer: Issuer::new(params, key),
            pem,
        }
    }

    /// A certificate and key for `common`, written into the site's folder with the authority's own; valid from and to
    /// the first of January of these years.
    pub fn certify_for(&self, site: &Site, common: &str, years: [i32; 2]) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![common.to_owned()]).unwrap();
        params.distinguished_name = name(common);
        params.not_before = rcgen::date_time_ymd(years[0], 1, 1);
        params.not_after = rcgen::date_time_ymd(years[1], 1, 1);
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        fs::write(site.path("ca.crt"), &self.pem).unwrap();
        fs::write(site.path("tls.crt"), certificate.pem()).unwrap();
        fs::write(site.path("tls.key"), key.serialize_pem()).unwrap();
        fs::set_permissions(site.path("tls.key"), fs::Permissions::from_mode(0o600)).unwrap();
    }

    pub fn certify(&self, site: &Site, common: &str) {
        self.certify_for(site, common, [2020, 2090]);
    }

    /// A list, the `number`th, of these serial numbers.
    pub fn revoke(&self, number: u64, serials: &[Vec<u8>]) -> String {
        let params = CertificateRevocationListParams {
            this_update: rcgen::date_time_ymd(2020, 1, 1),
            next_update: rcgen::date_time_ymd(2090, 1, 1),
            crl_number: SerialNumber::from(number),
            issuing_distribution_point: None,
            revoked_certs: serials
                .iter()
                .map(|serial| RevokedCertParams {
                    serial_number: SerialNumber::from_slice(serial),
                    revocation_time: rcgen::date_time_ymd(2020, 1, 1),
                    reason_code: None,
                    invalidity_date: None,
                })
                .collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(&self.issuer).unwrap().pem().unwrap()
    }
}
