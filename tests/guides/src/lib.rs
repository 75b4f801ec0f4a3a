//! The commands of a guide: its fenced blocks of shell, each with a mark in the line before it, by which tests find and
//! run them. Pure.
//!
//! A mark is an HTML comment, so that readers do not see it. `<!-- guide: NAME -->` is for everybody,
//! `<!-- guide: NAME flannel -->` for one CNI, and `<!-- guide: NAME not-run: REASON -->` for what no test can do. With
//! `member` after its name a block is for the cluster that joins, and else for the first one.

use std::fmt;

/// What runs the cloud's pod network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cni {
    /// Flannel.
    Flannel,
    /// Calico.
    Calico,
}

/// For which cluster a block is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The first cluster, which others join.
    Host,
    /// One that joins.
    Member,
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
    /// Line of its first fence, from 1.
    pub line: usize,
    /// Its name.
    pub name: String,
    /// The cluster that it is for.
    pub side: Side,
    /// Who runs it.
    pub audience: Audience,
    /// The commands.
    pub text: String,
}

/// What is wrong at a line of a guide.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The line, from 1.
    pub line: usize,
    /// What is wrong.
    pub what: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.what)
    }
}

impl std::error::Error for Fault {}

/// A guide as far as it can be read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Guide {
    /// The blocks in their order.
    pub blocks: Vec<Block>,
    /// What is wrong.
    pub faults: Vec<Fault>,
}

const MARK: &str = "<!-- guide:";

/// The blocks of a guide.
///
/// # Errors
/// The first thing that is wrong.
pub fn parse(document: &str) -> Result<Vec<Block>, Fault> {
    let Guide { blocks, faults } = read(document);
    faults.into_iter().next().map_or(Ok(blocks), Err)
}

/// Reads a guide.
pub fn read(document: &str) -> Guide {
    let mut guide = Guide::default();
    let mut mark = None;
    let mut lines = document.lines().zip(1..);
    while let Some((text, line)) = lines.next() {
        let content = text.trim();
        let shell = matches!(content, "```shell" | "```bash");
        let above = mark.take();
        if let (Some((line, _)), false) = (above, shell) {
            guide.fault(line, format!("{content:?} follows instead of ```shell"));
        }
        mark = content.strip_prefix(MARK).map(|rest| (line, rest));
        if !shell {
            continue;
        }
        // A block may stand in a list.
        let indent = text.len() - text.trim_start().len();
        let mut commands = String::new();
        loop {
            match lines.next() {
                Some((text, _)) if text.trim() == "```" => break,
                Some((text, _)) => {
                    commands += text.get(indent..).unwrap_or_default();
                    commands.push('\n');
                }
                None => {
                    guide.fault(line, "the block does not end".to_owned());
                    break;
                }
            }
        }
        let Some((above, rest)) = above else {
            guide.fault(line, format!("a block of shell without {MARK} NAME --> above it"));
            continue;
        };
        match marked(rest) {
            Ok((name, side, audience)) => guide.add(Block {
                line,
                name: name.to_owned(),
                side,
                audience,
                text: commands,
            }),
            Err(what) => guide.fault(above, what),
        }
    }
    if let Some((line, _)) = mark {
        guide.fault(line, "nothing follows".to_owned());
    }
    guide
}

impl Guide {
    fn fault(&mut self, line: usize, what: String) {
        self.faults.push(Fault { line, what });
    }

    fn add(&mut self, block: Block) {
        let same = |other: &&Block| other.name == block.name && rivals(&other.audience, &block.audience);
        if let Some(first) = self.blocks.iter().find(same) {
            let what = format!("the block of line {} is called {:?} too", first.line, block.name);
            self.fault(block.line, what);
        }
        self.blocks.push(block);
    }
}

/// Whether one name for both says nothing: two CNIs may have a block of the same name each.
fn rivals(one: &Audience, other: &Audience) -> bool {
    !matches!((one, other), (Audience::With(one), Audience::With(other)) if one != other)
}

fn marked(rest: &str) -> Result<(&str, Side, Audience), String> {
    let mark = rest.strip_suffix("-->").ok_or("the mark does not end in -->")?;
    let mark = mark.trim();
    let (name, rest) = mark.split_once(' ').unwrap_or((mark, ""));
    if !is_name(name) {
        return Err(format!("{name:?} is not a name in small letters"));
    }
    let rest = rest.trim();
    let (side, rest) = match rest.strip_prefix("member") {
        Some("") => (Side::Member, ""),
        Some(more) if more.starts_with(' ') => (Side::Member, more.trim()),
        _ => (Side::Host, rest),
    };
    let audience = match rest {
        "" => Audience::All,
        "flannel" => Audience::With(Cni::Flannel),
        "calico" => Audience::With(Cni::Calico),
        _ => match rest.strip_prefix("not-run:").map(str::trim) {
            Some(reason) if !reason.is_empty() => Audience::Nobody(reason.to_owned()),
            Some(_) => return Err("not-run needs a reason".to_owned()),
            None => return Err(format!("{rest:?} is neither member, flannel, calico nor not-run")),
        },
    };
    Ok((name, side, audience))
}

fn is_name(word: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    !word.is_empty() && word.bytes().all(allowed)
}

/// Where the commands of a guide in another language differ first; its lines may be others.
pub fn difference(one: &[Block], other: &[Block]) -> Option<Fault> {
    let same = |a: &Block, b: &Block| {
        (&a.name, a.side, &a.audience, &a.text) == (&b.name, b.side, &b.audience, &b.text)
    };
    if let Some((a, b)) = one.iter().zip(other).find(|(a, b)| !same(a, b)) {
        let what = format!("differs from the block {:?} of line {}", a.name, a.line);
        return Some(Fault { line: b.line, what });
    }
    (one.len() != other.len()).then(|| Fault {
        line: other.last().map_or(0, |block| block.line),
        what: format!("{} blocks of shell, not {}", other.len(), one.len()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_found_with_their_names() {
        let text = "# A\n<!-- guide: one -->\n```shell\necho 1\n\necho 2\n```\n\n```text\n1\n```\n\
                    1. in a list\n   <!-- guide: two calico -->\n   ```bash\n   cat << EOF\n     deep\n   EOF\n   ```\n\
                    <!-- guide: three not-run: needs a person -->\n```shell\nvi file\n```\n<!-- other -->\n\
                    <!-- guide: four member -->\n```shell\nls\n```\n\
                    <!-- guide: five member flannel -->\n```shell\n```\n";
        let block = |line, name: &str, side, audience, text: &str| Block {
            line,
            name: name.to_owned(),
            side,
            audience,
            text: text.to_owned(),
        };
        assert_eq!(
            parse(text).unwrap(),
            [
                block(3, "one", Side::Host, Audience::All, "echo 1\n\necho 2\n"),
                block(
                    14,
                    "two",
                    Side::Host,
                    Audience::With(Cni::Calico),
                    "cat << EOF\n  deep\nEOF\n"
                ),
                block(
                    20,
                    "three",
                    Side::Host,
                    Audience::Nobody("needs a person".to_owned()),
                    "vi file\n"
                ),
                block(25, "four", Side::Member, Audience::All, "ls\n"),
                block(29, "five", Side::Member, Audience::With(Cni::Flannel), ""),
            ]
        );
    }

    #[test]
    fn a_fault_names_its_line() {
        let good = "<!-- guide: a -->\n```shell\n```\n";
        for (text, says) in [
            (
                "<!-- guide: a -->\n\n```shell\n```\n",
                "line 1: \"\" follows instead of ```shell",
            ),
            ("<!-- guide: a -->\n```yaml\n```\n", "line 1: \"```yaml\" follows"),
            ("<!-- guide: a -->\n```shell\n", "line 2: the block does not end"),
            ("<!-- guide: a -->", "line 1: nothing follows"),
            (
                "<!-- guide: a cilium -->\n```shell\n```\n",
                "line 1: \"cilium\" is neither",
            ),
            (
                "<!-- guide: a members -->\n```shell\n```\n",
                "line 1: \"members\" is neither",
            ),
            (
                "<!-- guide: a not-run: -->\n```shell\n```\n",
                "line 1: not-run needs a reason",
            ),
            ("<!-- guide: -->\n```shell\n```\n", "line 1: \"\" is not a name"),
            (
                "<!-- guide: A -->\n```shell\n```\n",
                "line 1: \"A\" is not a name",
            ),
            ("<!-- guide: a\n```shell\n```\n", "line 1: the mark does not end"),
            (
                "```shell\nls\n```\n",
                "line 1: a block of shell without <!-- guide: NAME -->",
            ),
            (
                good.repeat(2).as_str(),
                "line 5: the block of line 2 is called \"a\" too",
            ),
        ] {
            let said = parse(text).unwrap_err().to_string();
            assert!(said.starts_with(says), "{text:?}: {said}");
        }
    }

    #[test]
    fn two_cnis_may_have_a_block_of_one_name() {
        let with = |cni: &str| format!("<!-- guide: a {cni} -->\n```shell\n```\n");
        assert_eq!(parse(&(with("flannel") + &with("calico"))).unwrap().len(), 2);
        for again in [with("flannel"), with("")] {
            assert!(parse(&(with("flannel") + &again)).is_err(), "{again}");
        }
    }

    #[test]
    fn the_first_command_that_differs_in_another_language_is_told() {
        let text = "# Guide\n<!-- guide: a flannel -->\n```shell\nls 1\n```\n<!-- guide: b -->\n```shell\nls 2\n```\n";
        let one = parse(text).unwrap();
        let against = |text: &str| difference(&one, &parse(text).unwrap());
        assert_eq!(against(&text.replace("# Guide", "# 指南\n")), None);
        for changed in [
            text.replace("ls 1", "ls 3"),
            text.replace(" flannel", ""),
            text.replace(" flannel", " member flannel"),
        ] {
            let said = against(&changed).unwrap().to_string();
            assert_eq!(said, "line 3: differs from the block \"a\" of line 3");
        }
        let shorter = &text[..text.find("<!-- guide: b").unwrap()];
        assert_eq!(against(shorter).unwrap().what, "1 blocks of shell, not 2");
    }
}
