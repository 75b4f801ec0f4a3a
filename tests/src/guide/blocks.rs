//! The commands of a document: fenced blocks of the shell that a comment in front of them names. Pure.
//!
//! `<!-- guide: NAME -->` is for everybody, `<!-- guide: NAME flannel -->` for one CNI, and
//! `<!-- guide: NAME not-run: REASON -->` for what no test can do.

use anyhow::{Context, Result, bail};

/// What runs the cloud's pod network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cni {
    /// Flannel.
    Flannel,
    /// Calico.
    Calico,
}

/// Who runs a block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Audience {
    /// Everybody.
    All,
    /// Clusters with this CNI.
    With(Cni),
    /// No test, for a reason.
    Nobody(String),
}

/// A block of commands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    /// Its name.
    pub name: String,
    /// Who runs it.
    pub audience: Audience,
    /// The commands.
    pub text: String,
}

const MARK: &str = "<!-- guide:";

/// The named blocks of a document in their order.
///
/// # Errors
/// When a mark cannot be read, or no block of the shell follows it.
pub fn parse(document: &str) -> Result<Vec<Block>> {
    let mut blocks = Vec::new();
    let mut lines = document.lines().enumerate();
    while let Some((number, line)) = lines.next() {
        let Some(mark) = line.trim().strip_prefix(MARK) else {
            continue;
        };
        let at = || format!("line {}: {}", number + 1, line.trim());
        let mark = mark.strip_suffix("-->").with_context(at)?.trim();
        let (name, audience) = audience(mark).with_context(at)?;
        let Some((_, fence)) = lines.next() else {
            bail!("{}: nothing follows", at());
        };
        // A block may stand in a list.
        let indent = fence.len() - fence.trim_start().len();
        if !matches!(fence.trim(), "```shell" | "```bash") {
            bail!("{}: {:?} follows instead of ```shell", at(), fence.trim());
        }
        let mut text = String::new();
        loop {
            let Some((_, line)) = lines.next() else {
                bail!("{}: its block does not end", at());
            };
            if line.trim() == "```" {
                break;
            }
            text += line.get(indent..).unwrap_or_default();
            text.push('\n');
        }
        blocks.push(Block {
            name: name.to_owned(),
            audience,
            text,
        });
    }
    Ok(blocks)
}

fn audience(mark: &str) -> Result<(&str, Audience)> {
    let (name, rest) = mark.split_once(' ').unwrap_or((mark, ""));
    let rest = rest.trim();
    let audience = match rest {
        _ if name.is_empty() => bail!("it has no name"),
        "" => Audience::All,
        "flannel" => Audience::With(Cni::Flannel),
        "calico" => Audience::With(Cni::Calico),
        _ => match rest.strip_prefix("not-run:").map(str::trim) {
            Some(reason) if !reason.is_empty() => Audience::Nobody(reason.to_owned()),
            Some(_) => bail!("not-run needs a reason"),
            None => bail!("{rest:?} is neither flannel, calico nor not-run"),
        },
    };
    Ok((name, audience))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn blocks_are_found_with_their_names() {
        let text = "# A\n<!-- guide: one -->\n```shell\necho 1\n\necho 2\n```\n\n```shell\nnot named\n```\n\
                    1. in a list\n   <!-- guide: two calico -->\n   ```shell\n   cat << EOF\n     deep\n   EOF\n   ```\n\
                    <!-- guide: three not-run: needs a person -->\n```shell\nvi file\n```\n<!-- other -->\n";
        let block = |name: &str, audience, text: &str| Block {
            name: name.to_owned(),
            audience,
            text: text.to_owned(),
        };
        assert_eq!(
            parse(text).unwrap(),
            [
                block("one", Audience::All, "echo 1\n\necho 2\n"),
                block("two", Audience::With(Cni::Calico), "cat << EOF\n  deep\nEOF\n"),
                block(
                    "three",
                    Audience::Nobody("needs a person".to_owned()),
                    "vi file\n"
                ),
            ]
        );
    }

    #[test]
    fn a_mark_that_means_nothing_is_an_error() {
        for (text, says) in [
            ("<!-- guide: a -->\n\n```shell\n```\n", "instead of ```shell"),
            ("<!-- guide: a -->\n```yaml\n```\n", "instead of ```shell"),
            ("<!-- guide: a -->\n```shell\n", "does not end"),
            ("<!-- guide: a -->", "nothing follows"),
            ("<!-- guide: a cilium -->\n```shell\n```\n", "cilium"),
            ("<!-- guide: a not-run: -->\n```shell\n```\n", "reason"),
            ("<!-- guide: -->\n```shell\n```\n", "no name"),
            ("<!-- guide: a\n```shell\n```\n", "line 1"),
        ] {
            let said = format!("{:#}", parse(text).unwrap_err());
            assert!(said.contains(says), "{text:?}: {said}");
        }
    }

    /// Readers of either language type the same.
    #[test]
    fn translations_have_the_same_blocks() {
        let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs");
        let read = |file: &str| {
            let text = std::fs::read_to_string(docs.join(file)).unwrap();
            parse(&text).unwrap_or_else(|error| panic!("{file}: {error:#}"))
        };
        let mut translated = 0;
        for entry in std::fs::read_dir(&docs).unwrap() {
            let file = entry.unwrap().file_name().into_string().unwrap();
            if let Some(name) = file.strip_suffix(".zh.md") {
                translated += 1;
                assert_eq!(read(&format!("{name}.md")), read(&file), "{file}");
            }
        }
        assert!(translated > 0 && !read("install.md").is_empty());
    }
}
