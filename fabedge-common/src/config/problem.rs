use std::fmt;

/// Something that is wrong with an object, told so that a person can mend it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// Which object: `peer fabedge.edge2`, `Node edge1`.
    pub object: String,
    /// Which field of it: `subnets[0]`, `spec.podCIDR`.
    pub field: String,
    /// What is wrong, and what to do about it.
    pub message: String,
}

impl Problem {
    /// A problem of `field` of `object`.
    pub fn new(object: impl Into<String>, field: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            object: object.into(),
            field: field.into(),
            message: message.into(),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: {}", self.object, self.field, self.message)
    }
}

pub(super) fn join(problems: &[Problem]) -> String {
    problems
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join("; ")
}
