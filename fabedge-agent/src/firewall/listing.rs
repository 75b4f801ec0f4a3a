//! Our table as `nft --json` lists it. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Map, Value};

/// What a named counter counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Packets.
    pub packets: u64,
    /// Bytes.
    pub bytes: u64,
}

/// What is in our table, whoever put it there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listing {
    /// Elements by set; none where they are not all prefixes.
    pub sets: BTreeMap<String, Option<BTreeSet<IpNet>>>,
    /// Names of the chains.
    pub chains: BTreeSet<String>,
    /// Everything but elements, counts and handles, in the kernel's order.
    pub rest: String,
}

/// A reply of nft. Elements are read into what they are at once: there may be ten thousand of them.
#[derive(Deserialize)]
struct Reply {
    nftables: Vec<BTreeMap<String, Object>>,
}

#[derive(Deserialize)]
struct Object {
    #[serde(default)]
    elem: Vec<Element>,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

/// A set's element: a bare address, or a prefix.
#[derive(Deserialize)]
#[serde(untagged)]
enum Element {
    Address(IpAddr),
    Prefix { prefix: Prefix },
    Other(IgnoredAny),
}

#[derive(Deserialize)]
struct Prefix {
    addr: IpAddr,
    len: u8,
}

impl Element {
    fn net(&self) -> Option<IpNet> {
        match self {
            Self::Address(address) => Some(IpNet::from(*address)),
            Self::Prefix { prefix } => IpNet::new(prefix.addr, prefix.len).ok(),
            Self::Other(IgnoredAny) => None,
        }
    }
}

/// Reads a listing of one table.
///
/// # Errors
/// When the text is not JSON.
pub fn parse(text: &str) -> Result<Listing, serde_json::Error> {
    let reply: Reply = serde_json::from_str(text)?;
    let mut listing = Listing::default();
    for (kind, Object { elem, mut rest }) in reply.nftables.into_iter().flatten() {
        let name = || {
            let name = rest.get("name").and_then(Value::as_str);
            name.unwrap_or_default().to_owned()
        };
        match kind.as_str() {
            "metainfo" => continue,
            "chain" => drop(listing.chains.insert(name())),
            "set" => drop(
                listing
                    .sets
                    .insert(name(), elem.iter().map(Element::net).collect()),
            ),
            _ => {}
        }
        for field in ["handle", "packets", "bytes"] {
            rest.remove(field);
        }
        listing
            .rest
            .push_str(&format!("{kind} {}\n", Value::Object(rest)));
    }
    Ok(listing)
}

/// Reads a listing of counters.
///
/// # Errors
/// When the text is not JSON.
pub fn counters(text: &str) -> Result<BTreeMap<String, Count>, serde_json::Error> {
    let value: Value = serde_json::from_str(text)?;
    Ok(objects(&value)
        .filter_map(|object| object.get("counter"))
        .filter_map(|counter| {
            let number = |field: &str| counter.get(field).and_then(Value::as_u64);
            let name = counter.get("name").and_then(Value::as_str)?;
            let count = Count {
                packets: number("packets")?,
                bytes: number("bytes")?,
            };
            Some((name.to_owned(), count))
        })
        .collect())
}

fn objects(value: &Value) -> impl Iterator<Item = &Value> {
    value
        .get("nftables")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
}
