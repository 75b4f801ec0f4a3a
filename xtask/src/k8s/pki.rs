//! Who is who in the control plane: one authority, made anew with every control plane, and its certificates.

use std::fmt;
use std::net::IpAddr;

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose,
};
use time::{Duration, OffsetDateTime};

/// Longer than a control plane of this kind stays up.
const LIFETIME: Duration = Duration::days(365);
/// Clocks of a test may stand apart.
const BACKDATE: Duration = Duration::hours(1);

/// What a certificate is to be issued for.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Identity {
    /// The name of its files.
    pub file: String,
    /// The user, to Kubernetes.
    pub common_name: String,
    /// The group, to Kubernetes.
    pub organization: Option<&'static str>,
    /// What it proves.
    pub role: Role,
}

/// Which side of a connection a certificate is for.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Role {
    /// A server under these names and addresses.
    Server(Vec<String>),
    /// A client.
    Client,
}

/// The group that may do everything.
const MASTERS: &str = "system:masters";
/// The file names of identities that others refer to.
pub const API_SERVER: &str = "apiserver";
pub const API_SERVER_AS_CLIENT: &str = "apiserver-kubelet-client";
pub const ADMIN: &str = "admin";
pub const CONTROLLER_MANAGER: &str = "controller-manager";
pub const CONTROLLER_MANAGER_SERVER: &str = "controller-manager-server";
pub const SCHEDULER: &str = "scheduler";
pub const SCHEDULER_SERVER: &str = "scheduler-server";

/// Everybody in a control plane that listens on `address`, and that pods find at the address of a Service. The names are
/// those that Kubernetes' own roles are bound to.
pub fn identities(address: IpAddr, service: IpAddr) -> Vec<Identity> {
    let server = |file: &str, common_name: &str, names: Vec<String>| Identity {
        file: file.to_owned(),
        common_name: common_name.to_owned(),
        organization: None,
        role: Role::Server(names),
    };
    let here = || vec![address.to_string(), "localhost".to_owned()];
    let mut api = here();
    api.push(service.to_string());
    for name in ["", ".default", ".default.svc", ".default.svc.cluster.local"] {
        api.push(format!("kubernetes{name}"));
    }
    vec![
        server(API_SERVER, "kube-apiserver", api),
        server(CONTROLLER_MANAGER_SERVER, "kube-controller-manager", here()),
        server(SCHEDULER_SERVER, "kube-scheduler", here()),
        client(
            API_SERVER_AS_CLIENT,
            "kube-apiserver-kubelet-client",
            Some(MASTERS),
        ),
        client(ADMIN, "kubernetes-admin", Some(MASTERS)),
        client(CONTROLLER_MANAGER, "system:kube-controller-manager", None),
        client(SCHEDULER, "system:kube-scheduler", None),
    ]
}

fn client(file: &str, common_name: &str, organization: Option<&'static str>) -> Identity {
    Identity {
        file: file.to_owned(),
        common_name: common_name.to_owned(),
        organization,
        role: Role::Client,
    }
}

/// The kubelet of a node.
pub fn kubelet(node: &str) -> Identity {
    client(
        &kubelet_file(node),
        &format!("system:node:{node}"),
        Some("system:nodes"),
    )
}

/// The file name of a kubelet's identity.
pub fn kubelet_file(node: &str) -> String {
    format!("kubelet-{node}")
}

/// A certificate, or a public key, with its private key, as PEM.
pub struct Pair {
    /// What everybody may know.
    pub public: String,
    /// What its owner alone may know.
    pub private: String,
}

// No key in messages.
impl fmt::Debug for Pair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pair")
            .field("public", &self.public)
            .finish_non_exhaustive()
    }
}

/// The authority of one control plane.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    now: OffsetDateTime,
}

impl Authority {
    /// Makes a new one.
    pub fn new(now: OffsetDateTime) -> Result<Authority> {
        let mut params = params("kubernetes", None, now);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![
            KeyUsagePurpose::KeyCertSign,
            KeyUsagePurpose::CrlSign,
            KeyUsagePurpose::DigitalSignature,
        ];
        let issuer = KeyPair::generate()
            .and_then(|key| CertifiedIssuer::self_signed(params, key))
            .context("making the authority of the control plane")?;
        Ok(Authority { issuer, now })
    }

    /// Itself: what others trust, and what the controller manager signs requests with.
    pub fn pair(&self) -> Pair {
        Pair {
            public: self.issuer.pem(),
            private: self.issuer.key().serialize_pem(),
        }
    }

    /// Issues a certificate.
    pub fn issue(&self, identity: &Identity) -> Result<Pair> {
        let mut params = params(&identity.common_name, identity.organization, self.now);
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        let failed = || format!("issuing the certificate of {}", identity.common_name);
        match &identity.role {
            Role::Client => params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth],
            Role::Server(names) => {
                params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
                params.subject_alt_names = CertificateParams::new(names.clone())
                    .with_context(failed)?
                    .subject_alt_names;
            }
        }
        let key = KeyPair::generate().with_context(failed)?;
        let certificate = params.signed_by(&key, &self.issuer).with_context(failed)?;
        Ok(Pair {
            public: certificate.pem(),
            private: key.serialize_pem(),
        })
    }
}

/// The key that signs the tokens of service accounts.
pub fn token_key() -> Result<Pair> {
    let key = KeyPair::generate().context("making the key of service account tokens")?;
    Ok(Pair {
        public: key.public_key_pem(),
        private: key.serialize_pem(),
    })
}

fn params(common_name: &str, organization: Option<&str>, now: OffsetDateTime) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    if let Some(organization) = organization {
        params
            .distinguished_name
            .push(DnType::OrganizationName, organization);
    }
    params.distinguished_name.push(DnType::CommonName, common_name);
    params.not_before = now - BACKDATE;
    params.not_after = now + LIFETIME;
    params
}

#[cfg(test)]
mod tests {
    use x509_parser::pem::Pem;
    use x509_parser::prelude::{GeneralName, X509Certificate};

    use super::*;

    fn with_parsed(pem: &str, look: impl FnOnce(&X509Certificate<'_>)) {
        let pem = Pem::iter_from_buffer(pem.as_bytes()).next().unwrap().unwrap();
        look(&pem.parse_x509().unwrap());
    }

    fn identity(file: &str, address: &str) -> Identity {
        identities(address.parse().unwrap(), [10, 96, 0, 1].into())
            .into_iter()
            .find(|identity| identity.file == file)
            .unwrap()
    }

    #[test]
    fn the_api_server_is_known_by_its_address_its_service_and_its_names() {
        let authority = Authority::new(OffsetDateTime::now_utc()).unwrap();
        let issued = authority.issue(&identity(API_SERVER, "10.200.0.1")).unwrap();
        with_parsed(&issued.public, |certificate| {
            let names = certificate.subject_alternative_name().unwrap().unwrap();
            let names: Vec<String> = names
                .value
                .general_names
                .iter()
                .map(|name| match name {
                    GeneralName::DNSName(name) => (*name).to_owned(),
                    GeneralName::IPAddress(bytes) => format!("{bytes:?}"),
                    other => panic!("{other:?}"),
                })
                .collect();
            assert_eq!(
                names,
                [
                    "[10, 200, 0, 1]",
                    "localhost",
                    "[10, 96, 0, 1]",
                    "kubernetes",
                    "kubernetes.default",
                    "kubernetes.default.svc",
                    "kubernetes.default.svc.cluster.local",
                ]
            );
            let usage = certificate.extended_key_usage().unwrap().unwrap().value;
            assert!(usage.server_auth && !usage.client_auth);
            assert!(!certificate.is_ca());
        });
    }

    #[test]
    fn clients_have_the_names_that_roles_are_bound_to() {
        let authority = Authority::new(OffsetDateTime::now_utc()).unwrap();
        let kubelet = authority.issue(&kubelet("edge1")).unwrap();
        with_parsed(&kubelet.public, |certificate| {
            assert_eq!(
                certificate.subject().to_string(),
                "O=system:nodes, CN=system:node:edge1"
            );
        });
        for (file, subject) in [
            (ADMIN, "O=system:masters, CN=kubernetes-admin"),
            (
                API_SERVER_AS_CLIENT,
                "O=system:masters, CN=kube-apiserver-kubelet-client",
            ),
            (CONTROLLER_MANAGER, "CN=system:kube-controller-manager"),
            (SCHEDULER, "CN=system:kube-scheduler"),
        ] {
            let issued = authority.issue(&identity(file, "127.0.0.1")).unwrap();
            with_parsed(&issued.public, |certificate| {
                assert_eq!(certificate.subject().to_string(), subject);
                let usage = certificate.extended_key_usage().unwrap().unwrap().value;
                assert!(usage.client_auth && !usage.server_auth);
                assert!(certificate.subject_alternative_name().unwrap().is_none());
            });
        }
    }

    #[test]
    fn everybody_is_signed_by_the_one_authority() {
        let authority = Authority::new(OffsetDateTime::now_utc()).unwrap();
        let other = Authority::new(OffsetDateTime::now_utc()).unwrap();
        for identity in identities([127, 0, 0, 1].into(), [10, 96, 0, 1].into()) {
            let issued = authority.issue(&identity).unwrap();
            with_parsed(&issued.public, |leaf| {
                with_parsed(&authority.pair().public, |ca| {
                    leaf.verify_signature(Some(ca.public_key())).unwrap();
                    assert!(ca.is_ca());
                });
                with_parsed(&other.pair().public, |ca| {
                    assert!(leaf.verify_signature(Some(ca.public_key())).is_err());
                });
            });
        }
    }

    #[test]
    fn keys_do_not_show() {
        let shown = format!("{:?}", token_key().unwrap());
        assert!(
            shown.contains("PUBLIC KEY") && !shown.contains("PRIVATE"),
            "{shown}"
        );
    }
}
