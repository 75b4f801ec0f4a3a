//! What the documents say must be true: links lead somewhere, the commands in them exist, and those of the guides can
//! be run by tests.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use clap::CommandFactory;
use guides::Fault;

use crate::Cli;
use crate::progress::output;
use crate::rules::Checked;

/// The guides whose commands tests run.
const GUIDES: [&str; 7] = [
    "docs/install.md",
    "docs/install.zh.md",
    "docs/upgrade.md",
    "docs/uninstall.md",
    "docs/uninstall.zh.md",
    "docs/faq.md",
    "docs/troubleshooting.md",
];

/// Guides in two languages, with the same commands.
const TRANSLATED: [(&str, &str); 2] = [
    ("docs/install.md", "docs/install.zh.md"),
    ("docs/uninstall.md", "docs/uninstall.zh.md"),
];

/// Checks every Markdown file that git tracks.
pub fn check(repo: &Path) -> Result<Vec<Checked>> {
    let listed = output(
        Command::new("git")
            .args(["ls-files", "-z", "*.md"])
            .current_dir(repo),
    )
    .context("listing the documents of the repository")?;
    let (mut dead, mut unknown) = (Vec::new(), Vec::new());
    for name in listed.split('\0').filter(|name| !name.is_empty()) {
        let path = repo.join(name);
        let text = std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        for (number, line) in text.lines().enumerate() {
            let folder = path.parent().unwrap_or(repo);
            for link in links(line).filter(|link| !folder.join(link).exists()) {
                dead.push(format!("{name}:{}: {link} does not exist", number + 1));
            }
            for command in commands(line) {
                if let Err(problem) = known(&command) {
                    unknown.push(format!("{name}:{}: {}: {problem}", number + 1, command.join(" ")));
                }
            }
        }
    }
    Ok(vec![
        ("links in documents lead to files", dead),
        ("commands in documents exist", unknown),
        ("commands of guides can be found by tests", of_guides(repo)?),
        ("tests that SECURITY.md names exist", promises(repo)?),
    ])
}

/// What the table of promises names in its last column and no test bears: a function, or the name of a check of the lab.
fn promises(repo: &Path) -> Result<Vec<String>> {
    let path = repo.join("SECURITY.md");
    let text = std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    let table = text
        .lines()
        .enumerate()
        .skip_while(|(_, line)| !line.ends_with("| tried by |"))
        .skip(2)
        .take_while(|(_, line)| line.starts_with('|'));
    let mut missing = Vec::new();
    let mut named = 0;
    for (number, row) in table {
        let tests = row
            .trim_end_matches([' ', '|'])
            .rsplit('|')
            .next()
            .unwrap_or_default();
        for name in tests.split('`').skip(1).step_by(2) {
            let wanted = if name.contains(' ') {
                format!("\"{name}")
            } else {
                format!("fn {name}(")
            };
            let found = Command::new("git")
                .args(["grep", "-q", "-F", "-e", &wanted, "--", "*.rs"])
                .current_dir(repo)
                .status()
                .context("running git grep")?;
            named += 1;
            if !found.success() {
                missing.push(format!("SECURITY.md:{}: there is no test `{name}`", number + 1));
            }
        }
    }
    if named == 0 {
        missing.push("SECURITY.md: its table of promises names no test".to_owned());
    }
    Ok(missing)
}

/// What is wrong with the marks of the guides, and where their languages differ.
fn of_guides(repo: &Path) -> Result<Vec<String>> {
    let read = |name: &str| {
        let path = repo.join(name);
        std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))
    };
    let at = |name: &str, fault: Fault| format!("{name}:{}: {}", fault.line, fault.what);
    let mut wrong = Vec::new();
    for name in GUIDES {
        let faults = guides::read(&read(name)?).faults;
        wrong.extend(faults.into_iter().map(|fault| at(name, fault)));
    }
    for (one, other) in TRANSLATED {
        let (first, second) = (guides::read(&read(one)?), guides::read(&read(other)?));
        let difference = guides::difference(&first.blocks, &second.blocks);
        wrong.extend(difference.map(|fault| at(other, fault)));
    }
    Ok(wrong)
}

/// The targets of relative links and pictures, without their anchors.
fn links(line: &str) -> impl Iterator<Item = &str> {
    line.split("](")
        .skip(1)
        .filter_map(|rest| rest.split([')', ' ']).next())
        .filter(|target| {
            !target.contains("://") && !target.starts_with(['#', '/']) && !target.starts_with("mailto:")
        })
        .filter_map(|target| target.split('#').next())
        .filter(|target| !target.is_empty())
}

/// The words after `cargo xtask` wherever it stands, up to what ends a command in text or shell.
fn commands(line: &str) -> impl Iterator<Item = Vec<String>> {
    line.split("cargo xtask ").skip(1).map(|rest| {
        let end = rest
            .find(['`', '#', ';', '&', '|', ')', ',', '"', '\''])
            .unwrap_or(rest.len());
        rest[..end]
            .split_whitespace()
            .take_while(|word| *word != "--")
            .map(str::to_owned)
            .collect()
    })
}

/// Whether a subcommand and the options after it exist. Values are not looked at: documents write `FILE` or `<site>`.
fn known(words: &[String]) -> Result<(), String> {
    let mut command = Cli::command();
    // Fills in what belongs to every subcommand, such as --help.
    command.build();
    for word in words {
        let word = word.trim_matches(['[', ']', '.']);
        if let Some(option) = word.strip_prefix("--") {
            let option = option.split('=').next().unwrap_or(option);
            if !command
                .get_arguments()
                .any(|argument| argument.get_long() == Some(option))
            {
                return Err(format!("no option --{option}"));
            }
        } else if command.has_subcommands() {
            let Some(next) = command.find_subcommand(word) else {
                return Err(format!("no command {word}"));
            };
            command = next.clone();
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_relative_links_only() {
        let line = "See [a](docs/a.md#part), ![b](b.svg \"B\"), [c](https://example.org/) and [d](#here).";
        assert_eq!(links(line).collect::<Vec<_>>(), ["docs/a.md", "b.svg"]);
    }

    #[test]
    fn knows_the_commands_and_their_options() {
        let verdict = |line: &str| {
            commands(line)
                .map(|words| known(&words))
                .collect::<Result<Vec<()>, String>>()
        };
        assert_eq!(
            verdict("Run `cargo xtask demo --kernel 6.12 --json out.json`, then `cargo xtask lab down`.")
                .unwrap()
                .len(),
            2
        );
        assert_eq!(
            verdict("    cargo xtask lab exec edge1 -- ip --brief link # look")
                .unwrap()
                .len(),
            1
        );
        assert_eq!(verdict("`cargo xtask dance`").unwrap_err(), "no command dance");
        assert_eq!(
            verdict("`cargo xtask demo --loud`").unwrap_err(),
            "no option --loud"
        );
        assert_eq!(verdict("`cargo xtask lab sing`").unwrap_err(), "no command sing");
    }
}
