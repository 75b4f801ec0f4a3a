//! How each fault comes about, and how it is mended.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use fabedge_agent::marks;
use rcgen::{
    CertificateParams, CertificateRevocationListParams, DistinguishedName, DnType, DnValue, Issuer,
    KeyIdMethod, KeyPair, RevokedCertParams, SerialNumber,
};
use serde_json::Value;
use x509_parser::pem::parse_x509_pem;

use super::{NODES, TUNNELLED};
use crate::lab::Lab;
use crate::lab::charon::swanctl;
use crate::observe;
use crate::place::Place;
use crate::scenarios::faults::replace;
use crate::scenarios::product;
use crate::world::documents;

/// How long a program may take to end, or to answer.
const END: Duration = Duration::from_secs(20);

/// How our routes are told from others'.
pub(super) fn ours() -> String {
    format!("proto {}", marks::ROUTE_PROTOCOL)
}

/// What nobody of ours may touch, on every node: a table, a rule and a route of somebody else.
///
/// # Errors
/// When it cannot be made.
pub fn foreign_things(lab: &Lab) -> Result<()> {
    for site in NODES {
        let place = &lab.world.site(site)?.place;
        place.nft(
            "table inet foreign {\n chain forward {\n type filter hook forward priority 10\n counter\n }\n}",
        )?;
        place.ip(
            "rule add pref 30000 from 203.0.113.77 lookup main\nroute add 10.99.0.0/16 dev lo table 220",
        )?;
    }
    Ok(())
}

/// A line of the shell on a node. What is to be taken away may be away already.
pub(super) fn on(lab: &Lab, site: &str, script: &str) -> Result<()> {
    let place = &lab.world.site(site)?.place;
    let script = script.replace("; ", " || true\n");
    place.shell(&format!("{script} || true"))?;
    Ok(())
}

pub(super) fn end(lab: &mut Lab, name: &str, kill: bool) -> Result<()> {
    let daemon = lab.take_daemon(name)?;
    if kill {
        daemon.kill()
    } else {
        daemon.terminate(END).map(drop)
    }
}

/// On the way to a site, as the WAN router sends it there.
pub(super) fn weather(lab: &Lab, link: &str, how: &str) -> Result<()> {
    wan(lab)?.must(
        &[
            &["tc", "qdisc", "add", "dev", link, "root", "netem"],
            &*how.split(' ').collect::<Vec<_>>(),
        ]
        .concat(),
    )?;
    Ok(())
}

pub(super) fn fair_weather(lab: &mut Lab, link: &str) -> Result<()> {
    wan(lab)?.must(&["tc", "qdisc", "del", "dev", link, "root"])?;
    Ok(())
}

fn wan(lab: &Lab) -> Result<&Place> {
    lab.world.router("wan")
}

pub(super) fn partition(lab: &mut Lab, link: &str) -> Result<()> {
    wan(lab)?.nft(&format!(
        "table inet cut-{link} {{\n chain forward {{\n type filter hook forward priority 0\n iifname {link} drop\n oifname {link} drop\n }}\n}}"
    ))
}

pub(super) fn rejoin(lab: &mut Lab, link: &str) -> Result<()> {
    wan(lab)?.nft(&format!("delete table inet cut-{link}"))
}

/// The provider gives the NAT another address, as it does once a day.
pub(super) fn nat_address(lab: &Lab, nat: &str, host: u8) -> Result<()> {
    let net = nat.strip_prefix("nat").context("no NAT")?;
    let router = lab.world.router(nat)?;
    router.ip(&format!(
        "addr flush dev out0\naddr add 172.16.{net}.{host}/24 dev out0\nroute add default via 172.16.{net}.1"
    ))?;
    router.must(&["conntrack", "-F"])?;
    Ok(())
}

pub(super) fn turn_clock(lab: &Lab, by: &str) -> Result<()> {
    wan(lab)?.must(&["date", "--set", by])?;
    Ok(())
}

/// The maps that tell the fast path where packets go.
const MAPS: [&str; 4] = ["routes4", "routes6", "pods4", "pods6"];

/// The entries of a map as they are, in hexadecimal: key and value.
fn entries(place: &Place, map: &str) -> Result<Vec<(Vec<String>, Vec<String>)>> {
    let pin = format!("{}/{map}", observe::PINS);
    let text = place
        .output(&["bpftool", "-j", "map", "dump", "pinned", &pin], END)?
        .stdout;
    // There is none while the fast path is gone.
    let dump: Value = serde_json::from_str(&text).unwrap_or_default();
    let hex = |bytes: &Value| {
        let bytes = bytes.as_array().into_iter().flatten();
        bytes.filter_map(|byte| Some(byte.as_str()?.to_owned())).collect()
    };
    let entries = dump.as_array().into_iter().flatten();
    Ok(entries
        .map(|entry| (hex(&entry["key"]), hex(&entry["value"])))
        .filter(|(key, _): &(Vec<String>, _)| !key.is_empty())
        .collect())
}

pub(super) fn no_entries(lab: &mut Lab, site: &str) -> Result<()> {
    let place = &lab.world.site(site)?.place;
    let mut script = String::new();
    for map in MAPS {
        for (key, _) in entries(place, map)? {
            let key = key.join(" ");
            writeln!(
                script,
                "bpftool map delete pinned {}/{map} key {key} || true",
                observe::PINS
            )?;
        }
    }
    place.shell(&script)?;
    Ok(())
}

/// A route that is none of ours, to wherever one of ours leads.
pub(super) fn an_entry(lab: &mut Lab, site: &str) -> Result<()> {
    let place = &lab.world.site(site)?.place;
    if let Some((_, value)) = entries(place, "routes4")?.first() {
        let pin = format!("{}/routes4", observe::PINS);
        let script = format!(
            "bpftool map update pinned {pin} key hex 20 00 00 00 0a 63 00 01 value {} || true",
            value.join(" ")
        );
        place.shell(&script)?;
    }
    Ok(())
}

pub(super) fn mtu(lab: &Lab, link: &str, mtu: u32) -> Result<()> {
    wan(lab)?.ip(&format!("link set {link} mtu {mtu}"))
}

pub(super) fn full_disk(lab: &mut Lab, site: &str) -> Result<()> {
    on(
        lab,
        site,
        "mount -t tmpfs -o size=16k full /var/lib/fabedge; dd if=/dev/zero of=/var/lib/fabedge/full bs=4k 2>/dev/null",
    )
}

/// A file among those that the operator gives a site.
fn given(site: &str, name: &str) -> Result<PathBuf> {
    Ok(documents()
        .join(crate::world::numbers(site)?.documents)
        .join(name))
}

fn read(file: &Path) -> Result<String> {
    fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))
}

/// Where a good file is kept while there is a bad one.
fn kept(lab: &Lab, site: &str, name: &str) -> PathBuf {
    lab.settings.out.join(format!("{site}-{name}"))
}

/// Puts something else in a document's place.
pub(super) fn document(lab: &Lab, site: &str, change: &dyn Fn(&str) -> Result<String>) -> Result<()> {
    let file = given(site, "tunnels.yaml")?;
    let good = read(&file)?;
    replace(&kept(lab, site, "document"), &good)?;
    replace(&file, &change(&good)?)
}

/// The document as the last but one was, by its number.
pub(super) fn older(text: &str) -> Result<String> {
    let line = text
        .lines()
        .find(|line| line.starts_with("generation: "))
        .context("a document without a generation")?;
    Ok(text.replacen(line, "generation: 1", 1))
}

pub(super) fn good_document(lab: &mut Lab, site: &str) -> Result<()> {
    let kept = kept(lab, site, "document");
    let good = read(&kept)?;
    fs::remove_file(&kept).context("removing a kept document")?;
    let file = given(site, "tunnels.yaml")?;
    let now = read(&file)?;
    let whole = now.trim_end().ends_with("...") && !now.contains("generation: 1\n");
    // Or the operator has written a newer one meanwhile.
    if whole { Ok(()) } else { replace(&file, &good) }
}

/// The operator finds it missing when it starts, and issues another; while it is away, nobody does.
pub(super) fn new_certificate(lab: &mut Lab, site: &str) -> Result<()> {
    let file = given(site, "tls.crt")?;
    fs::remove_file(&file).with_context(|| format!("removing {}", file.display()))?;
    let Ok(operator) = lab.take_daemon("operator") else {
        return Ok(());
    };
    operator.terminate(END)?;
    lab.start_operator()
}

/// Who signs certificates and lists.
fn authority() -> Result<Issuer<'static, KeyPair>> {
    let folder = documents().join("_ca");
    let key = KeyPair::from_pem(&read(&folder.join("ca.key"))?).context("reading the authority's key")?;
    Issuer::from_ca_cert_pem(&read(&folder.join("ca.crt"))?, key)
        .context("reading the authority's certificate")
}

/// One whose time is over, from the network's own authority.
pub(super) fn expired_certificate(lab: &mut Lab, site: &str) -> Result<()> {
    let own = KeyPair::from_pem(&read(&given(site, "tls.key")?)?).context("reading a node's key")?;
    let name = format!("fabedge.{}", crate::world::numbers(site)?.documents);
    let mut params = CertificateParams::new(vec![name.clone()]).context("naming a node")?;
    params.distinguished_name = DistinguishedName::new();
    for (part, text) in [
        (DnType::CountryName, "CN"),
        (DnType::OrganizationName, "fabedge.io"),
        (DnType::CommonName, &name),
    ] {
        params.distinguished_name.push(
            part,
            DnValue::PrintableString(text.try_into().context("naming a node")?),
        );
    }
    params.not_before = rcgen::date_time_ymd(2024, 1, 1);
    params.not_after = rcgen::date_time_ymd(2024, 4, 1);
    let expired = params.signed_by(&own, &authority()?).context("signing")?.pem();
    let file = given(site, "tls.crt")?;
    replace(&kept(lab, site, "certificate"), &read(&file)?)?;
    replace(&kept(lab, site, "expired"), &expired)?;
    replace(&file, &expired)
}

pub(super) fn good_certificate(lab: &mut Lab, site: &str) -> Result<()> {
    let (good, expired) = (kept(lab, site, "certificate"), kept(lab, site, "expired"));
    let file = given(site, "tls.crt")?;
    // Or the operator has issued one meanwhile, with another key.
    if read(&file)? == read(&expired)? {
        replace(&file, &read(&good)?)?;
    }
    fs::remove_file(&expired).context("removing a kept certificate")?;
    fs::remove_file(&good).context("removing a kept certificate")
}

/// Everybody hears that a site's certificate, and those of others before, are worth nothing any more.
pub(super) fn revoked_certificate(lab: &mut Lab, site: &str) -> Result<()> {
    let pem = read(&given(site, "tls.crt")?)?;
    let (_, pem) = parse_x509_pem(pem.as_bytes()).context("reading a certificate")?;
    let serial = pem
        .parse_x509()
        .context("parsing a certificate")?
        .raw_serial_as_string();
    // As long as the world is there, a list names what the one before it named.
    let file = lab.manifests().with_file_name("revoked");
    let mut serials: Vec<String> = fs::read_to_string(&file)
        .unwrap_or_default()
        .lines()
        .map(str::to_owned)
        .collect();
    serials.push(serial);
    replace(&file, &serials.join("\n"))?;
    let revoked = serials.iter().map(|serial| {
        let octets = serial.split(':').map(|octet| u8::from_str_radix(octet, 16));
        Ok(RevokedCertParams {
            serial_number: SerialNumber::from_slice(&octets.collect::<Result<Vec<_>, _>>()?),
            revocation_time: rcgen::date_time_ymd(2024, 1, 1),
            reason_code: None,
            invalidity_date: None,
        })
    });
    let list = CertificateRevocationListParams {
        this_update: rcgen::date_time_ymd(2024, 1, 1),
        next_update: rcgen::date_time_ymd(2090, 1, 1),
        crl_number: SerialNumber::from(serials.len() as u64),
        issuing_distribution_point: None,
        revoked_certs: revoked.collect::<Result<_>>()?,
        key_identifier_method: KeyIdMethod::Sha256,
    };
    let list = list.signed_by(&authority()?).context("signing")?.pem()?;
    for site in TUNNELLED {
        replace(&given(site, "ca.crl")?, &list)?;
    }
    Ok(())
}

/// While there is nobody to do it, or no tunnel, it is not done.
pub(super) fn rekey(lab: &Lab, site: &str, peer: &str) -> Result<()> {
    let connection = format!("{}{peer}", marks::CONNECTION_PREFIX);
    swanctl(lab.world.site(site)?, &["--rekey", "--ike", &connection]).ok();
    Ok(())
}

/// Has every charon ask its peers for something, so that it finds out who was killed and knows it no more. It does so by
/// itself once nothing comes from there for some seconds, or when keys are due, but by the kernel's SAs traffic goes on.
///
/// # Errors
/// When an agent has not reported.
pub fn look_at_peers(lab: &Lab) -> Result<()> {
    for site in TUNNELLED {
        let peers = observe::status(lab.world.site(site)?)?["peers"].clone();
        for peer in peers.as_object().into_iter().flat_map(|peers| peers.keys()) {
            rekey(lab, site, peer)?;
        }
    }
    Ok(())
}

pub(super) fn toggle(lab: &mut Lab, manifest: &str) -> Result<()> {
    if lab.manifests().join(manifest).exists() {
        product::withdraw(lab, manifest)
    } else {
        product::apply(lab, manifest)
    }
}
