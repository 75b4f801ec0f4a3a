//! The commands of a guide: its blocks of shell, each with a mark in the line before it, by which tests find and run
//! them.
//!
//! A mark is an HTML comment, so that readers do not see it: `<!-- guide: NAME -->`, `<!-- guide: NAME CNI -->` for one
//! CNI only, `<!-- guide: NAME not-run: WHY -->` for what no test can run.

/// A block of shell.
#[derive(Debug, PartialEq, Eq)]
pub struct Block<'a> {
    /// Line of its first fence, from 1.
    pub line: usize,
    /// What its mark says, `NAME` or `NAME CNI` or `NAME not-run: WHY`; none where there is no mark.
    pub mark: Option<&'a str>,
    /// Its commands.
    pub commands: String,
}

impl Block<'_> {
    /// What tells it from the others of its guide: its name, with its CNI if it has one.
    pub fn name(&self) -> Option<&str> {
        let mark = self.mark?;
        Some(mark.split_once(" not-run:").map_or(mark, |(name, _)| name))
    }
}

/// The blocks of a guide, in order.
pub fn blocks(text: &str) -> Vec<Block<'_>> {
    let mut blocks: Vec<Block<'_>> = Vec::new();
    let (mut before, mut within) = ("", false);
    for (index, line) in text.lines().enumerate() {
        // A block may stand in a list.
        let line = line.trim();
        match (within, line) {
            (false, "```shell" | "```bash") => {
                let mark = before.strip_prefix("<!-- guide: ");
                blocks.push(Block {
                    line: index + 1,
                    mark: mark.and_then(|rest| rest.strip_suffix(" -->")),
                    commands: String::new(),
                });
                within = true;
            }
            (true, "```") => within = false,
            (true, _) => {
                if let Some(block) = blocks.last_mut() {
                    block.commands.push_str(line);
                    block.commands.push('\n');
                }
            }
            _ => {}
        }
        before = line;
    }
    blocks
}

/// What is wrong with the marks of a guide.
pub fn faults(blocks: &[Block<'_>]) -> Vec<(usize, String)> {
    let mut faults = Vec::new();
    for (index, block) in blocks.iter().enumerate() {
        let Some(name) = block.name() else {
            faults.push((
                block.line,
                "a block of shell without <!-- guide: NAME --> above it".to_owned(),
            ));
            continue;
        };
        let words: Vec<&str> = name.split(' ').collect();
        if !matches!(words[..], [word] | [word, "flannel" | "calico"] if is_name(word)) {
            faults.push((
                block.line,
                format!(
                    "{name:?} is not a name in small letters, with or without flannel or calico after it"
                ),
            ));
        }
        if let Some(first) = blocks[..index].iter().find(|other| other.name() == Some(name)) {
            faults.push((
                block.line,
                format!("the block of line {} is called {name:?} too", first.line),
            ));
        }
    }
    faults
}

fn is_name(word: &str) -> bool {
    !word.is_empty()
        && word
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
}

/// Where two languages of one guide have different commands.
pub fn differences(one: &[Block<'_>], other: &[Block<'_>]) -> Vec<(usize, String)> {
    let same = |a: &Block<'_>, b: &Block<'_>| a.mark == b.mark && a.commands == b.commands;
    let first = one.iter().zip(other).find(|(a, b)| !same(a, b));
    match first {
        Some((a, b)) => vec![(
            b.line,
            format!(
                "differs from the block {:?} of line {}",
                a.mark.unwrap_or_default(),
                a.line
            ),
        )],
        None if one.len() != other.len() => vec![(
            other.last().map_or(0, |block| block.line),
            format!("{} blocks of shell, not {}", other.len(), one.len()),
        )],
        None => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GUIDE: &str = "\
# Guide

<!-- guide: values flannel -->
```shell
cat > v << EOF
a: 1
EOF
```

```text
a: 1
```

<!-- guide: images not-run: nobody has a registry -->
```shell
push
```
";

    #[test]
    fn finds_the_blocks_of_shell_with_their_marks() {
        let blocks = blocks(GUIDE);
        assert_eq!(blocks.len(), 2);
        assert_eq!((blocks[0].line, blocks[0].name()), (4, Some("values flannel")));
        assert_eq!(blocks[0].commands, "cat > v << EOF\na: 1\nEOF\n");
        assert_eq!(blocks[1].name(), Some("images"));
        assert_eq!(faults(&blocks), []);
    }

    #[test]
    fn names_what_is_wrong_with_a_mark() {
        let told = |text: &str| {
            let faults = faults(&blocks(text));
            faults
                .into_iter()
                .map(|(line, fault)| format!("{line}: {fault}"))
                .collect::<String>()
        };
        let bare = GUIDE.replace("<!-- guide: values flannel -->", "");
        assert!(told(&bare).starts_with("4: a block of shell without"));
        let twice = GUIDE.replace("images not-run: nobody has a registry", "values flannel");
        assert!(
            told(&twice).contains("15: the block of line 4"),
            "{}",
            told(&twice)
        );
        let other = GUIDE.replace("flannel", "cilium");
        assert!(told(&other).contains("\"values cilium\" is not a name"));
    }

    #[test]
    fn tells_the_first_command_that_differs_in_another_language() {
        let one = blocks(GUIDE);
        assert_eq!(
            differences(&one, &blocks(&GUIDE.replace("# Guide", "# 指南"))),
            []
        );
        let changed = GUIDE.replace("a: 1\nEOF", "a: 2\nEOF");
        let found = differences(&one, &blocks(&changed));
        assert_eq!(found.len(), 1);
        assert!(found[0].1.contains("values flannel"), "{found:?}");
        let shorter = &GUIDE[..GUIDE.find("<!-- guide: images").unwrap()];
        assert_eq!(
            differences(&one, &blocks(shorter))[0].1,
            "1 blocks of shell, not 2"
        );
    }
}
