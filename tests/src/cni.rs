//! What a container runtime does with a CNI conflist: runs its plugins in order for a pod's network namespace,
//! hands each the result of the one before, and keeps libcni's cache of the final result.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Map, Value, json};

use crate::command;
use crate::site::Site;

/// Where Debian has the reference plugins.
pub const PLUGIN_DIR: &str = "/usr/lib/cni";

/// Where runtimes look for conflists.
pub const CONF_DIR: &str = "/etc/cni/net.d";

/// How long one plugin may take; it runs `iptables` many times, and a kernel under emulation is slow at that.
const LIMIT: Duration = Duration::from_secs(120);

/// The interface in the pod.
const IF_NAME: &str = "eth0";

/// One attachment of a pod to a network.
#[derive(Clone, Debug)]
pub struct Attachment<'a> {
    /// The node on which the pod is.
    pub site: &'a Site,
    /// The conflist's text.
    pub conflist: &'a str,
    /// The pod sandbox's id.
    pub container: &'a str,
    /// The path of the pod's network namespace.
    pub netns: &'a str,
    /// What the runtime passes to plugins that declare the capability: `portMappings`, `bandwidth`, `ipRanges`.
    pub capabilities: &'a Value,
}

impl Attachment<'_> {
    /// Attaches the pod, and gives the last plugin's result.
    ///
    /// # Errors
    /// When a plugin fails; what was set up by those before it is removed.
    pub fn add(&self) -> Result<Value> {
        let list = self.parse()?;
        let mut previous = Value::Null;
        for plugin in plugins(&list)? {
            match self.plugin("ADD", &list, plugin, &previous) {
                Ok(result) => previous = result,
                Err(error) => {
                    // The first error is the one to report.
                    drop(self.delete_with(&list, &previous));
                    return Err(error);
                }
            }
        }
        self.write_cache(&list, &previous)?;
        Ok(previous)
    }

    /// Detaches the pod.
    ///
    /// # Errors
    /// When a plugin fails.
    pub fn delete(&self) -> Result<()> {
        let list = self.parse()?;
        let path = self.cache_path(&list)?;
        let previous = match fs::read(&path) {
            Ok(bytes) => {
                let cache: Value =
                    serde_json::from_slice(&bytes).with_context(|| format!("parsing {}", path.display()))?;
                cache["result"].clone()
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Value::Null,
            Err(error) => return Err(error).with_context(|| format!("reading {}", path.display())),
        };
        self.delete_with(&list, &previous)?;
        match fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("removing {}", path.display()))
            }
            _ => Ok(()),
        }
    }

    fn delete_with(&self, list: &Value, previous: &Value) -> Result<()> {
        for plugin in plugins(list)?.iter().rev() {
            self.plugin("DEL", list, plugin, previous)?;
        }
        Ok(())
    }

    fn parse(&self) -> Result<Value> {
        serde_json::from_str(self.conflist).context("parsing a CNI conflist")
    }

    /// Runs one plugin.
    fn plugin(&self, verb: &str, list: &Value, plugin: &Value, previous: &Value) -> Result<Value> {
        let kind = plugin["type"].as_str().context("a CNI plugin has no type")?;
        let input = self.configuration(list, plugin, previous)?.to_string();
        let what = || {
            format!(
                "CNI {verb} of {} by {kind} on {}",
                self.container, self.site.place.name
            )
        };
        let output = self
            .site
            .place
            .run(|| {
                let mut command = Command::new(format!("{PLUGIN_DIR}/{kind}"));
                command
                    .env("CNI_COMMAND", verb)
                    .env("CNI_CONTAINERID", self.container)
                    .env("CNI_NETNS", self.netns)
                    .env("CNI_IFNAME", IF_NAME)
                    .env("CNI_ARGS", "IgnoreUnknown=1")
                    .env("CNI_PATH", PLUGIN_DIR);
                command::run(&mut command, &input, LIMIT)
            })?
            .with_context(what)?;
        if !output.ok() {
            bail!("{}: {}", what(), output.text());
        }
        if output.stdout.trim().is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_str(&output.stdout).with_context(what)
    }

    /// A plugin's own configuration, with what libcni adds to it.
    fn configuration(&self, list: &Value, plugin: &Value, previous: &Value) -> Result<Value> {
        let mut configuration = plugin.as_object().context("a CNI plugin is no object")?.clone();
        for key in ["cniVersion", "name"] {
            configuration.insert(key.to_owned(), list[key].clone());
        }
        if !previous.is_null() {
            configuration.insert("prevResult".to_owned(), previous.clone());
        }
        let runtime: Map<String, Value> = configuration
            .remove("capabilities")
            .as_ref()
            .and_then(Value::as_object)
            .into_iter()
            .flatten()
            .filter(|(_, declared)| declared.as_bool() == Some(true))
            .filter_map(|(name, _)| Some((name.clone(), self.capabilities.get(name)?.clone())))
            .collect();
        if !runtime.is_empty() {
            configuration.insert("runtimeConfig".to_owned(), Value::Object(runtime));
        }
        Ok(Value::Object(configuration))
    }

    fn cache_path(&self, list: &Value) -> Result<PathBuf> {
        let name = list["name"].as_str().context("a CNI conflist has no name")?;
        let file = format!("{name}-{}-{IF_NAME}", self.container);
        Ok(self.site.path("/var/lib/cni/results").join(file))
    }

    /// Writes the result the way libcni does (`cniCacheV1`).
    fn write_cache(&self, list: &Value, result: &Value) -> Result<()> {
        let path = self.cache_path(list)?;
        let cache = json!({
            "kind": "cniCacheV1",
            "containerId": self.container,
            "config": base64(self.conflist.as_bytes()),
            "ifName": IF_NAME,
            "networkName": list["name"],
            "cniArgs": [["IgnoreUnknown", "1"]],
            "capabilityArgs": self.capabilities,
            "result": result,
        });
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory).with_context(|| format!("making {}", directory.display()))?;
        }
        fs::write(&path, cache.to_string()).with_context(|| format!("writing {}", path.display()))
    }
}

fn plugins(list: &Value) -> Result<&Vec<Value>> {
    list["plugins"]
        .as_array()
        .context("a CNI conflist has no plugins")
}

/// Standard base64 with padding (RFC 4648 §4), in which Go's JSON writes bytes.
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let mut group = [0_u8; 3];
        group[..chunk.len()].copy_from_slice(chunk);
        let bits = u32::from_be_bytes([0, group[0], group[1], group[2]]);
        for index in 0..4 {
            let sextet = (bits >> (18 - 6 * index)) & 0x3f;
            text.push(if index <= chunk.len() {
                char::from(ALPHABET[sextet as usize])
            } else {
                '='
            });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_of_rfc_4648() {
        for (plain, encoded) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(base64(plain.as_bytes()), encoded);
        }
    }
}
