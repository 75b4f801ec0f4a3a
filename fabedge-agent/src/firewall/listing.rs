//! Our table as `nft --json` lists it. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::Value;

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

/// Reads a listing of one table.
///
/// # Errors
/// When the text is not JSON.
pub fn parse(text: &str) -> Result<Listing, serde_json::Error> {
    let value: Value = serde_json::from_str(text)?;
    let mut listing = Listing::default();
    for object in objects(&value) {
        let Some((kind, content)) = object.as_object().and_then(|object| object.iter().next()) else {
            continue;
        };
        let name = || {
            content
                .get("name")
                .and_then(Value::as_str)
                .unwrap_or_default()
                .to_owned()
        };
        match kind.as_str() {
            "metainfo" => continue,
            "chain" => drop(listing.chains.insert(name())),
            "set" => {
                let elements = content.get("elem").and_then(Value::as_array);
                listing
                    .sets
                    .insert(name(), elements.into_iter().flatten().map(element).collect());
            }
            _ => {}
        }
        let mut content = content.clone();
        if let Some(fields) = content.as_object_mut() {
            for field in ["handle", "elem", "packets", "bytes"] {
                fields.remove(field);
            }
        }
        listing.rest.push_str(&format!("{kind} {content}\n"));
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

/// A set's element: a bare address, or a prefix.
fn element(value: &Value) -> Option<IpNet> {
    if let Some(address) = value.as_str() {
        return address.parse::<IpAddr>().ok().map(IpNet::from);
    }
    let prefix = value.get("prefix")?;
    let address: IpAddr = prefix.get("addr")?.as_str()?.parse().ok()?;
    IpNet::new(address, u8::try_from(prefix.get("len")?.as_u64()?).ok()?).ok()
}
