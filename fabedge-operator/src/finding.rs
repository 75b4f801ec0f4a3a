//! Problems as the operator reports them: how bad, and where the object stands.

use std::fmt;

use fabedge_common::config::Problem;

/// How much a finding matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Something is left out for now, or ignored: a community member that does not exist yet, a foreign kind.
    Warning,
    /// The user's input is not what was meant: something does not work until it is mended.
    Error,
}

/// Where an object stands in the input. The API front end has none.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// File name relative to the folder.
    pub file: String,
    /// Line of the file, from 1; 0 when the whole file is meant.
    pub line: u64,
}

/// A problem with its severity and, where known, its place.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// Where it is.
    pub place: Option<Place>,
    /// What it is.
    pub problem: Problem,
}

impl Finding {
    /// An error of `field` of `object`.
    pub fn error(object: impl Into<String>, field: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            severity: Severity::Error,
            place: None,
            problem: Problem::new(object, field, message),
        }
    }

    /// A warning about `field` of `object`.
    pub fn warning(object: impl Into<String>, field: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            severity: Severity::Warning,
            ..Self::error(object, field, message)
        }
    }

    /// The same finding at a place.
    pub fn at(mut self, file: &str, line: u64) -> Self {
        self.place = Some(Place {
            file: file.to_owned(),
            line,
        });
        self
    }

    /// Place, object, field and message, for where the severity is shown otherwise.
    pub fn text(&self) -> String {
        match &self.place {
            Some(place) => format!("{place}: {}", self.problem),
            None => self.problem.to_string(),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if self.line > 0 {
            write!(f, ":{}", self.line)?;
        }
        Ok(())
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.severity {
            Severity::Warning => "warning: ",
            Severity::Error => "error: ",
        })?;
        f.write_str(&self.text())
    }
}
