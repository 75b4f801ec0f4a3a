//! Which certificates were taken back, and the lists by which their authorities say so (RFC 5280 §5). No files and no
//! clock.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use sha2::{Digest as _, Sha256};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use x509_parser::pem::Pem;
use x509_parser::prelude::{CertificateRevocationList, FromDer, X509Certificate};

use super::authority::{Error, LEAF_LIFETIME};
use super::{Authority, inspect};

/// Serial numbers, hexadecimal digits in lower case without zeros in front, and when they were revoked.
pub type Serials = BTreeMap<String, OffsetDateTime>;

/// The most that are remembered: lists go to every node, in a Secret that holds 1 MiB at most.
const LIMIT: usize = 4096;

/// The digits of 20 octets, the longest serial number (RFC 5280 §4.1.2.2).
const DIGITS: usize = 40;

/// Certificates that were taken back, until they would have ended anyway.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Revocations(BTreeMap<String, Revocation>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Revocation {
    time: OffsetDateTime,
    /// Which authorities may have signed it: those that there were then.
    authorities: BTreeSet<String>,
    /// Whose it was. None where only the number was told.
    name: Option<String>,
}

impl Revocations {
    /// Reads what [`Self::text`] wrote.
    ///
    /// # Errors
    /// When a line is something else: who was revoked must not be let in because of it.
    pub fn read(text: &str) -> Result<Self, Error> {
        let line = |line: &str| {
            let mut words = line.split_whitespace();
            let (serial, time) = (serial(words.next()?)?, words.next()?);
            let time = OffsetDateTime::parse(time, &Rfc3339).ok()?;
            let authorities: BTreeSet<String> = words.next()?.split(',').map(str::to_owned).collect();
            if authorities.contains("") {
                return None;
            }
            let name = words.next().map(str::to_owned);
            let revocation = Revocation {
                time,
                authorities,
                name,
            };
            Some((serial, revocation))
        };
        let lines = text.lines().filter(|line| !line.trim().is_empty());
        lines
            .map(|text| line(text).ok_or_else(|| Error::Revoked(text.to_owned())))
            .collect::<Result<_, _>>()
            .map(Self)
    }

    /// A line for each: serial number, time, identifiers of authorities with commas between them, and name where it is
    /// known.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for (serial, revoked) in &self.0 {
            let time = revoked.time.format(&Rfc3339).unwrap_or_default();
            let authorities: Vec<&str> = revoked.authorities.iter().map(String::as_str).collect();
            let authorities = authorities.join(",");
            let name = revoked.name.as_deref().unwrap_or_default();
            let line = format!("{serial} {time} {authorities} {name}");
            // Writing to a String cannot fail.
            _ = writeln!(text, "{}", line.trim_end());
        }
        text
    }

    /// Takes certificates back: serial numbers, and whose they are where that is known. Forgets what has ended by now, and
    /// beyond the limit those of nodes that left longest ago: nobody lets them in anyway.
    pub fn add(
        &mut self,
        more: &[(String, Option<String>)],
        authorities: &BTreeSet<String>,
        now: OffsetDateTime,
    ) {
        self.0
            .retain(|_, revoked| now < revoked.time.saturating_add(LEAF_LIFETIME));
        for (serial, name) in more {
            self.0.entry(serial.clone()).or_insert_with(|| Revocation {
                time: now,
                authorities: authorities.clone(),
                name: name.clone(),
            });
        }
        let mut named: Vec<_> = self
            .0
            .iter()
            .filter(|(_, revoked)| revoked.name.is_some())
            .map(|(serial, revoked)| (revoked.time, serial.clone()))
            .collect();
        named.sort();
        let surplus = self.0.len().saturating_sub(LIMIT);
        for (_, serial) in named.iter().take(surplus) {
            self.0.remove(serial);
        }
    }

    /// Those that somebody could still show: in a name that is in use, or nobody knows in which. Others wait until their
    /// name is given again, so that a node that leaves is no news for all others.
    fn wanted(&self, in_use: impl Fn(&str) -> bool) -> Self {
        let wanted = self
            .0
            .iter()
            .filter(|(_, revoked)| revoked.name.as_deref().is_none_or(&in_use));
        Self(
            wanted
                .map(|(serial, revoked)| (serial.clone(), revoked.clone()))
                .collect(),
        )
    }

    /// What the list of an authority is to name.
    fn of(&self, authority: &str) -> Serials {
        let own = self
            .0
            .iter()
            .filter(|(_, revoked)| revoked.authorities.contains(authority));
        own.map(|(serial, revoked)| (serial.clone(), revoked.time))
            .collect()
    }
}

/// The serial number of a certificate, PEM.
pub fn serial_of(certificate: &str) -> Option<String> {
    revocation_of(certificate).map(|(serial, _)| serial)
}

/// The serial number of a certificate, PEM, and the name that it is for.
pub fn revocation_of(certificate: &str) -> Option<(String, String)> {
    let der = inspect::certificate_der(certificate).ok()?;
    let (_, parsed) = X509Certificate::from_der(&der).ok()?;
    let name = parsed.subject().iter_common_name().next()?.as_str().ok()?;
    Some((digits(parsed.raw_serial()), name.to_owned()))
}

/// A serial number as `openssl x509 -noout -serial` and others print it.
pub fn serial(text: &str) -> Option<String> {
    let text = text.trim();
    let text = text.strip_prefix("serial=").unwrap_or(text).replace(':', "");
    let text = text.trim_start_matches('0').to_ascii_lowercase();
    let fits = (1..=DIGITS).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    fits.then_some(text)
}

/// The octets of a serial number.
pub(super) fn octets(serial: &str) -> Vec<u8> {
    let padded = format!(
        "{}{serial}",
        if serial.len().is_multiple_of(2) { "" } else { "0" }
    );
    let pairs = padded.as_bytes().chunks(2);
    pairs
        .filter_map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok())
        .collect()
}

fn digits(octets: &[u8]) -> String {
    let text = super::request::hex(octets);
    text.trim_start_matches('0').to_owned()
}

/// A list as its authority signed it.
#[derive(Debug)]
struct List {
    /// A later list has a greater one.
    number: u64,
    serials: BTreeSet<String>,
}

/// Reads a text of lists; every one must be signed by one of `authorities` (DER). With each, the place of that one.
fn read(text: &str, authorities: &[&[u8]]) -> Result<Vec<(usize, List)>, Error> {
    let broken = |why: String| Error::List(why);
    let mut lists = Vec::new();
    for block in Pem::iter_from_buffer(text.as_bytes()) {
        let block = block.map_err(|error| broken(error.to_string()))?;
        if block.label != "X509 CRL" {
            return Err(broken(format!("it holds a {}", block.label)));
        }
        let (_, list) = CertificateRevocationList::from_der(&block.contents)
            .map_err(|error| broken(error.to_string()))?;
        let signer = authorities.iter().position(|der| {
            X509Certificate::from_der(der).is_ok_and(|(_, authority)| {
                authority.subject().as_raw() == list.issuer().as_raw()
                    && list.verify_signature(authority.public_key()).is_ok()
            })
        });
        let signer =
            signer.ok_or_else(|| broken(format!("no authority here signed that of {}", list.issuer())))?;
        let number = list.crl_number().and_then(|number| number.try_into().ok());
        let serials = list.iter_revoked_certificates();
        let serials = serials.map(|revoked| digits(revoked.raw_serial())).collect();
        lists.push((
            signer,
            List {
                number: number.unwrap_or_default(),
                serials,
            },
        ));
    }
    if lists.is_empty() && !text.trim().is_empty() {
        return Err(broken("it holds none".to_owned()));
    }
    Ok(lists)
}

/// The serial numbers that lists name.
///
/// # Errors
/// When something is no list, or of none of the `authorities` (DER).
pub(super) fn named(text: &str, authorities: &[&[u8]]) -> Result<BTreeSet<String>, Error> {
    let lists = read(text, authorities)?;
    Ok(lists.into_iter().flat_map(|(_, list)| list.serials).collect())
}

/// By which an authority (DER) is known among those that there were. Two may bear one name.
fn identifier(authority: &[u8]) -> String {
    let key = X509Certificate::from_der(authority).map(|(_, parsed)| Sha256::digest(parsed.public_key().raw));
    key.map_or_else(|_| String::new(), |key| super::request::hex(&key[..8]))
}

/// What is to be kept once more was revoked.
#[derive(Debug)]
pub(super) struct Kept {
    pub revocations: Revocations,
    /// Lists, when they are to be others than those that there are.
    pub lists: Option<String>,
    /// Authorities that should sign a list and cannot.
    pub failed: Vec<Error>,
}

/// Revokes `more`, and has every one of the `authorities` sign a list of what it may have signed itself, as far as somebody
/// could still show it, unless `lists` say just that.
pub(super) fn revoke(
    before: &Revocations,
    more: &[(String, Option<String>)],
    lists: &str,
    authorities: &[&Authority],
    in_use: impl Fn(&str) -> bool,
    now: OffsetDateTime,
) -> Kept {
    let ders: Vec<&[u8]> = authorities.iter().map(|authority| authority.der()).collect();
    let identifiers: Vec<String> = ders.iter().map(|der| identifier(der)).collect();
    let mut revocations = before.clone();
    revocations.add(more, &identifiers.iter().cloned().collect(), now);
    let wanted = revocations.wanted(in_use);

    // A text that is broken, or of an authority that is gone, is made anew.
    let there = read(lists, &ders);
    let number = there.iter().flatten().map(|(_, list)| list.number).max();
    // Also where the last number is not known: seconds grow faster than lists.
    let number = (number.unwrap_or_default() + 1).max(now.unix_timestamp().unsigned_abs());
    let (mut signed, mut fits, mut failed) = (String::new(), there.is_ok(), Vec::new());
    for (place, (authority, identifier)) in authorities.iter().zip(&identifiers).enumerate() {
        let serials = wanted.of(identifier);
        let held = there.iter().flatten().find(|(signer, _)| *signer == place);
        if held.is_none() && serials.is_empty() {
            continue;
        }
        match authority.list(number, &serials, now) {
            Ok(list) => {
                signed += &list;
                fits &= held.is_some_and(|(_, list)| list.serials.iter().eq(serials.keys()));
            }
            Err(error) => failed.push(error),
        }
    }
    Kept {
        revocations,
        lists: (!fits).then_some(signed),
        failed,
    }
}

/// Whether lists of `authorities` (DER) that name the serial numbers `named` are as they should be.
pub(super) fn fit(
    revocations: &Revocations,
    named: &BTreeSet<String>,
    authorities: &[&[u8]],
    in_use: impl Fn(&str) -> bool,
) -> bool {
    let wanted = revocations.wanted(in_use);
    let serials = authorities
        .iter()
        .flat_map(|der| wanted.of(&identifier(der)).into_keys());
    serials.collect::<BTreeSet<_>>() == *named
}

#[cfg(test)]
#[path = "revocation/tests.rs"]
mod tests;
