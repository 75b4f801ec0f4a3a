//! Documents and certificates as objects of the API. Pure.

use std::collections::BTreeMap;

use fabedge_common::config::packed::{self, Packed};
use fabedge_common::config::{CLOUD, CONNECTOR};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

use kube::ResourceExt;
use sha2::{Digest, Sha256};

use super::MANAGER;
use crate::pki::Leaf;

/// Keys of a Secret of type kubernetes.io/tls, and of the authority beside them.
pub const CERTIFICATE: &str = "tls.crt";
/// The private key.
pub const KEY: &str = "tls.key";
/// The authority's certificate.
pub const AUTHORITY: &str = "ca.crt";

/// What the authorities have revoked.
pub const LISTS: &str = "ca.crl";

/// Label by which our objects are known, and watched.
pub const CREATED_BY: &str = "fabedge.io/created-by";
/// Label with the name of the program that a pod runs.
pub const APP: &str = "fabedge.io/app";
const NODE: &str = "fabedge.io/node";

/// What the name of an edge's ConfigMap begins with; its own follows.
pub const NODE_CONFIG: &str = "fabedge-agent-config-";
/// The same of its Secret.
pub const NODE_TLS: &str = "fabedge-agent-tls-";
const CONNECTOR_CONFIG: &str = "connector-config";
const CONNECTOR_TLS: &str = "connector-tls";
const CLOUD_CONFIG: &str = "fabedge-cloud-agent-config";

/// The longest value of a label.
const LABEL: usize = 63;

/// Name of the ConfigMap with the document of a local name: a node's, `connector` or `cloud`.
pub fn config_map_name(local: &str) -> String {
    match local {
        CONNECTOR => CONNECTOR_CONFIG.to_owned(),
        CLOUD => CLOUD_CONFIG.to_owned(),
        node => format!("{NODE_CONFIG}{node}"),
    }
}

/// Name of the Secret with the certificate of a local name.
pub fn secret_name(local: &str) -> String {
    match local {
        CONNECTOR => CONNECTOR_TLS.to_owned(),
        node => format!("{NODE_TLS}{node}"),
    }
}

/// The local name whose document a ConfigMap holds.
pub fn local_of_config_map(name: &str) -> Option<&str> {
    match name {
        CONNECTOR_CONFIG => Some(CONNECTOR),
        CLOUD_CONFIG => Some(CLOUD),
        name => name.strip_prefix(NODE_CONFIG),
    }
}

/// The local name whose certificate a Secret holds.
pub fn local_of_secret(name: &str) -> Option<&str> {
    match name {
        CONNECTOR_TLS => Some(CONNECTOR),
        name => name.strip_prefix(NODE_TLS),
    }
}

/// A ConfigMap with a document, compressed where it would not fit. `node` is the `metadata.uid` of the node that it
/// goes with.
pub fn config_map(local: &str, node: Option<&str>, text: &str) -> ConfigMap {
    let metadata = metadata(config_map_name(local), local, node);
    match packed::pack(text.to_owned()) {
        Packed::Plain(text) => ConfigMap {
            metadata,
            data: Some(BTreeMap::from([(packed::DOCUMENT_KEY.to_owned(), text)])),
            ..ConfigMap::default()
        },
        Packed::Compressed(bytes) => ConfigMap {
            metadata,
            binary_data: Some(BTreeMap::from([(
                packed::COMPRESSED_KEY.to_owned(),
                ByteString(bytes),
            )])),
            ..ConfigMap::default()
        },
    }
}

/// The document in a ConfigMap. One that is damaged is as good as none.
pub fn document(map: &ConfigMap) -> Option<String> {
    let compressed = map
        .binary_data
        .as_ref()
        .and_then(|data| data.get(packed::COMPRESSED_KEY));
    match compressed {
        Some(bytes) => packed::unpack(&bytes.0).ok(),
        None => map.data.as_ref()?.get(packed::DOCUMENT_KEY).cloned(),
    }
}

/// A Secret with a certificate, the authorities beside it and, once something is revoked, their lists.
pub fn secret(local: &str, node: Option<&str>, authority: &str, lists: &str, leaf: &Leaf) -> Secret {
    let entry = |key: &str, text: &str| (key.to_owned(), ByteString(text.as_bytes().to_vec()));
    let mut data = BTreeMap::from([
        entry(AUTHORITY, authority),
        entry(CERTIFICATE, &leaf.certificate),
        entry(KEY, &leaf.key),
    ]);
    if !lists.is_empty() {
        data.extend([entry(LISTS, lists)]);
    }
    Secret {
        metadata: metadata(secret_name(local), local, node),
        type_: Some("kubernetes.io/tls".to_owned()),
        data: Some(data),
        ..Secret::default()
    }
}

fn metadata(name: String, local: &str, node: Option<&str>) -> ObjectMeta {
    match node {
        Some(uid) => of_node(name, local, uid),
        None => unowned(name),
    }
}

/// Metadata of an object that goes with the operator alone.
pub fn unowned(name: impl Into<String>) -> ObjectMeta {
    ObjectMeta {
        name: Some(name.into()),
        labels: Some(BTreeMap::from([created_by()])),
        ..ObjectMeta::default()
    }
}

fn created_by() -> (String, String) {
    (CREATED_BY.to_owned(), MANAGER.to_owned())
}

/// Metadata of an object that goes with its node, also while no operator runs.
pub fn of_node(name: String, node: &str, uid: &str) -> ObjectMeta {
    let mut labels = BTreeMap::from([created_by()]);
    if node.len() <= LABEL {
        labels.insert(NODE.to_owned(), node.to_owned());
    }
    ObjectMeta {
        name: Some(name),
        labels: Some(labels),
        owner_references: Some(vec![OwnerReference {
            api_version: "v1".to_owned(),
            kind: "Node".to_owned(),
            name: node.to_owned(),
            uid: uid.to_owned(),
            ..OwnerReference::default()
        }]),
        ..ObjectMeta::default()
    }
}

/// The `metadata.uid` of the node that an object goes with.
pub fn owner(object: &impl ResourceExt) -> Option<String> {
    object.owner_references().first().map(|owner| owner.uid.clone())
}

/// A short hash of texts, the same for the same texts in the same order only.
pub fn digest<'a>(texts: impl IntoIterator<Item = &'a str>) -> String {
    let mut hash = Sha256::new();
    for text in texts {
        hash.update((text.len() as u64).to_be_bytes());
        hash.update(text);
    }
    hash.finalize()[..8]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// Text of a Secret's entry.
pub fn text(secret: &Secret, key: &str) -> Option<String> {
    let bytes = &secret.data.as_ref()?.get(key)?.0;
    String::from_utf8(bytes.clone()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_there_and_back() {
        for local in ["edge1", CONNECTOR, "shop-7.example"] {
            assert_eq!(local_of_config_map(&config_map_name(local)), Some(local));
            assert_eq!(local_of_secret(&secret_name(local)), Some(local));
        }
        assert_eq!(config_map_name(CONNECTOR), "connector-config");
        assert_eq!(config_map_name("edge1"), "fabedge-agent-config-edge1");
        assert_eq!(secret_name("edge1"), "fabedge-agent-tls-edge1");
        assert_eq!(local_of_config_map(&config_map_name(CLOUD)), Some(CLOUD));
        assert_eq!(local_of_config_map("kube-root-ca.crt"), None);
    }

    #[test]
    fn a_document_that_does_not_fit_is_compressed() {
        for (length, compressed) in [(10, false), (packed::PLAIN_BYTES + 1, true)] {
            let text = "a".repeat(length);
            let map = config_map("edge1", Some("7"), &text);
            assert_eq!(
                (map.data.is_some(), map.binary_data.is_some()),
                (!compressed, compressed)
            );
            assert_eq!(document(&map), Some(text));
        }
        let mut damaged = config_map("edge1", None, &"a".repeat(packed::PLAIN_BYTES + 1));
        for bytes in damaged.binary_data.iter_mut().flat_map(BTreeMap::values_mut) {
            bytes.0.truncate(20);
        }
        assert_eq!(document(&damaged), None);
    }

    #[test]
    fn an_object_of_a_node_goes_with_it() {
        let long = "n".repeat(64);
        for (local, labels) in [("edge1", 2), (long.as_str(), 1)] {
            let meta = config_map(local, Some("7"), "text").metadata;
            let owner = &meta.owner_references.unwrap()[0];
            assert_eq!((owner.name.as_str(), owner.uid.as_str()), (local, "7"));
            assert_eq!(meta.labels.unwrap().len(), labels, "a label holds 63 characters");
        }
        assert!(
            config_map(CONNECTOR, None, "")
                .metadata
                .owner_references
                .is_none()
        );
    }
}
