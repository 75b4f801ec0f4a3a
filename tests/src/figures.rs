//! Every figure of a run by name, for `--json`.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;
use serde_json::Value;

/// Figures by name.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(transparent)]
pub struct Figures(BTreeMap<String, Value>);

impl Figures {
    /// Keeps a figure; one of the same name is replaced.
    pub fn set(&mut self, name: impl Into<String>, value: impl Into<Value>) {
        self.0.insert(name.into(), value.into());
    }

    /// Keeps a number of seconds, to the millisecond.
    pub fn seconds(&mut self, name: impl Into<String>, time: std::time::Duration) {
        self.set(name, (time.as_secs_f64() * 1e3).round() / 1e3);
    }

    /// Adds to a figure that is a count.
    pub fn add(&mut self, name: &str, count: u64) {
        let sum = self.0.get(name).and_then(Value::as_u64).unwrap_or(0);
        self.set(name, sum + count);
    }

    /// Writes them to a file.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(&self, file: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self).context("writing the figures")?;
        fs::write(file, text + "\n").with_context(|| format!("writing {}", file.display()))
    }
}
