//! Several sources about one thing, which must not contradict each other.

use std::fmt;

use ipnet::IpNet;

/// Prefixes, and who says so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Evidence {
    /// Where it is written, as it goes on after "according to".
    pub source: String,
    /// What it says; at least one.
    pub prefixes: Vec<IpNet>,
}

/// Sources that cannot all be right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict<'a>(pub &'a Evidence, pub &'a Evidence);

impl fmt::Display for Evidence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} according to {}", list(&self.prefixes), self.source)
    }
}

impl fmt::Display for Conflict<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, but {}", self.0, self.1)
    }
}

/// The source that says the most, when the others say the same or less: one may know one address family only.
///
/// # Errors
/// Two sources of which neither says all that the other does.
pub fn agreed(all: &[Evidence]) -> Result<Option<&Evidence>, Conflict<'_>> {
    let Some(most) = all.iter().rev().max_by_key(|evidence| evidence.prefixes.len()) else {
        return Ok(None);
    };
    let within = |other: &&Evidence| other.prefixes.iter().all(|net| most.prefixes.contains(net));
    match all.iter().find(|other| !within(other)) {
        Some(other) => Err(Conflict(most, other)),
        None => Ok(Some(most)),
    }
}

/// Prefixes with commas between.
pub fn list(prefixes: &[IpNet]) -> String {
    prefixes
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(",")
}
