//! Certificates for the tests.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};

use crate::site::Site;

pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
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
}
