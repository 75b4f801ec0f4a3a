//! The mirrors that this machine is set up with, read from its apt configuration.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// One `deb` line of Debian itself: other vendors' sources are none of our business.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Source {
    /// The mirror.
    pub uri: String,
    /// For example `bookworm-security`.
    pub suite: String,
    /// `[trusted=yes]` and the like of a one-line source, passed on as it stands.
    pub options: String,
}

impl Source {
    /// As a line for `sources.list`; `main` alone has all that we need.
    pub fn line(&self) -> String {
        self.line_of("deb")
    }

    /// The same mirror's source packages.
    pub fn source_line(&self) -> String {
        self.line_of("deb-src")
    }

    fn line_of(&self, kind: &str) -> String {
        let options = if self.options.is_empty() {
            String::new()
        } else {
            format!("{} ", self.options)
        };
        format!("{kind} {options}{} {} main", self.uri, self.suite)
    }
}

/// The Debian 12 sources of this machine.
pub fn read(apt: &Path) -> Result<Vec<Source>> {
    let mut files = vec![apt.join("sources.list")];
    if let Ok(entries) = std::fs::read_dir(apt.join("sources.list.d")) {
        let mut more: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
        more.sort();
        files.append(&mut more);
    }
    let mut sources = Vec::new();
    for file in files {
        let parse: fn(&str) -> Vec<Source> = match file.extension().and_then(|name| name.to_str()) {
            Some("list") => parse_lines,
            Some("sources") => parse_stanzas,
            _ => continue,
        };
        if !file.exists() {
            continue;
        }
        let text = std::fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
        for source in parse(&text) {
            if !sources.contains(&source) {
                sources.push(source);
            }
        }
    }
    if !sources.iter().any(|source| source.suite == "bookworm") {
        bail!(
            "{} has no source for Debian 12 (suite bookworm, component main); add a mirror there and run \
             `cargo xtask setup` again",
            apt.display()
        );
    }
    Ok(sources)
}

fn ours(suite: &str, components: &[&str]) -> bool {
    matches!(suite, "bookworm" | "bookworm-updates" | "bookworm-security") && components.contains(&"main")
}

/// The older format: `deb [options] URI SUITE COMPONENT...` per line.
fn parse_lines(text: &str) -> Vec<Source> {
    let mut sources = Vec::new();
    for line in text.lines() {
        let Some(rest) = line.trim().strip_prefix("deb ") else {
            continue;
        };
        let rest = rest.split(" #").next().unwrap_or(rest).trim();
        let (options, rest) = match rest.strip_prefix('[').and_then(|inside| inside.split_once(']')) {
            Some((options, rest)) => (format!("[{}]", options.trim()), rest),
            None => (String::new(), rest),
        };
        let mut words = rest.split_whitespace();
        let (Some(uri), Some(suite)) = (words.next(), words.next()) else {
            continue;
        };
        if ours(suite, &words.collect::<Vec<_>>()) {
            sources.push(Source {
                uri: uri.to_owned(),
                suite: suite.to_owned(),
                options,
            });
        }
    }
    sources
}

/// The deb822 format: stanzas of `Field: value`, divided by empty lines.
fn parse_stanzas(text: &str) -> Vec<Source> {
    let text: String = text
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| format!("{}\n", line.trim_end()))
        .collect();
    let mut sources = Vec::new();
    for stanza in text.split("\n\n") {
        let field = |name: &str| {
            let line = stanza.lines().find_map(|line| {
                let (key, value) = line.split_once(':')?;
                key.eq_ignore_ascii_case(name).then_some(value)
            });
            line.unwrap_or_default().split_whitespace().collect::<Vec<_>>()
        };
        if !field("Types").contains(&"deb") || field("Enabled") == ["no"] {
            continue;
        }
        let components = field("Components");
        for uri in field("URIs") {
            for suite in field("Suites")
                .into_iter()
                .filter(|suite| ours(suite, &components))
            {
                let options = match field("Trusted").as_slice() {
                    ["yes"] => "[trusted=yes]".to_owned(),
                    _ => String::new(),
                };
                sources.push(Source {
                    uri: uri.to_owned(),
                    suite: suite.to_owned(),
                    options,
                });
            }
        }
    }
    sources
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(sources: Vec<Source>) -> Vec<String> {
        sources.iter().map(Source::line).collect()
    }

    #[test]
    fn reads_stanzas_with_comments_and_several_suites() {
        let text = "Types: deb\n# a snapshot\nURIs: http://mirror.example/debian\nSuites: bookworm bookworm-updates\n\
                    Components: main contrib\n\nTypes: deb-src\nURIs: http://mirror.example/debian\nSuites: bookworm\n\
                    Components: main\n\nEnabled: no\nTypes: deb\nURIs: http://off.example\nSuites: bookworm\nComponents: main\n";
        assert_eq!(
            lines(parse_stanzas(text)),
            [
                "deb http://mirror.example/debian bookworm main",
                "deb http://mirror.example/debian bookworm-updates main"
            ]
        );
        assert_eq!(
            parse_stanzas(text)[0].source_line(),
            "deb-src http://mirror.example/debian bookworm main"
        );
    }

    #[test]
    fn reads_lines_and_leaves_other_vendors_out() {
        let text = "# deb http://old.example/debian bookworm main\n\
                    deb [arch=amd64 trusted=yes] http://mirror.example/debian bookworm main contrib # note\n\
                    deb https://vendor.example/linux/debian bookworm stable\n\
                    deb-src http://mirror.example/debian bookworm main\n";
        assert_eq!(
            lines(parse_lines(text)),
            ["deb [arch=amd64 trusted=yes] http://mirror.example/debian bookworm main"]
        );
    }
}
