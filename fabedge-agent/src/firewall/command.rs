//! nft and iptables, run as commands in the network namespace of the calling thread.

use std::collections::BTreeMap;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

use super::forward::{Backend, Family, Jump, command};
use super::listing::{self, Count, Listing};
use super::plan::Observed;
use super::ruleset::NAME;

/// No command of ours takes longer, unless somebody holds the xtables lock for ever.
const TIMEOUT: Duration = Duration::from_secs(30);

/// A command that did not do what it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It could not be run.
    #[error("running {program}: is it installed?")]
    Start {
        /// Which one.
        program: String,
        /// Why.
        source: std::io::Error,
    },
    /// It refused.
    #[error("{command}: {message}")]
    Refused {
        /// Command and arguments.
        command: String,
        /// What it said.
        message: String,
    },
    /// It did not end.
    #[error("{command} did not end within {} s", TIMEOUT.as_secs())]
    Hangs {
        /// Command and arguments.
        command: String,
    },
    /// Its output has another form.
    #[error("reading the output of nft")]
    Output(#[source] serde_json::Error),
}

/// What is there.
pub(super) async fn observe() -> Result<Observed, Error> {
    let tables = run("nft", &["list", "tables"], None).await?;
    let has = |table: &str| tables.lines().any(|line| line.trim() == format!("table {table}"));
    let mut observed = Observed::default();
    if has(NAME) {
        observed.listing = list().await?;
    }
    let legacy = legacy_tables();
    for (family, ip, legacy) in [(Family::V4, "ip", &legacy[0]), (Family::V6, "ip6", &legacy[1])] {
        for (backend, used) in [
            (Backend::Legacy, legacy.lines().any(|table| table == "filter")),
            (Backend::Nft, has(&format!("{ip} filter"))),
        ] {
            if !used {
                continue;
            }
            let program = format!("{}-save", command(backend, family));
            match run(&program, &["-t", "filter"], None).await {
                Ok(save) => {
                    observed.filters.insert((backend, family), save);
                }
                Err(error @ Error::Start { .. }) => observed.missing.push(format!(
                    "{error} ({ip} filter rules exist that may drop what pods send: install iptables)"
                )),
                Err(error) => return Err(error),
            }
        }
    }
    Ok(observed)
}

/// The tables of iptables-legacy and ip6tables-legacy, one a line. Asking those commands about a table would make that
/// table.
pub fn legacy_tables() -> [String; 2] {
    ["ip_tables_names", "ip6_tables_names"].map(|file| {
        // Not there without the module.
        std::fs::read_to_string(format!("/proc/thread-self/net/{file}")).unwrap_or_default()
    })
}

/// Our table; none where there is none.
pub(super) async fn list() -> Result<Option<Listing>, Error> {
    let text = json(&["list", "table", "inet", "fabedge"]).await?;
    text.map(|text| listing::parse(&text))
        .transpose()
        .map_err(Error::Output)
}

/// Packets and bytes that our table dropped so far, by reason; none where there is no table.
///
/// # Errors
/// When nft cannot be asked.
pub async fn dropped() -> Result<BTreeMap<String, Count>, Error> {
    let text = json(&["list", "counters", "table", "inet", "fabedge"]).await?;
    text.map_or_else(
        || Ok(BTreeMap::new()),
        |text| listing::counters(&text).map_err(Error::Output),
    )
}

/// What nft tells in JSON; none where it tells of a missing table, which it does by an error.
async fn json(args: &[&str]) -> Result<Option<String>, Error> {
    match run("nft", &[&["--json"], args].concat(), None).await {
        Err(Error::Refused { message, .. }) if message.contains("No such file or directory") => Ok(None),
        listed => listed.map(Some),
    }
}

/// Carries out a script in one transaction.
pub(super) async fn load(script: &str) -> Result<(), Error> {
    run("nft", &["-f", "-"], Some(script)).await.map(|_| ())
}

/// Deletes our table.
pub(super) async fn delete() -> Result<(), Error> {
    load(&format!("add table {NAME}\ndelete table {NAME}\n")).await
}

/// Changes one filter table, waiting for the lock that legacy commands share.
pub(super) async fn restore(jump: &Jump) -> Result<(), Error> {
    let program = format!("{}-restore", jump.name());
    run(&program, &["--wait", "10", "--noflush"], Some(&jump.script))
        .await
        .map(|_| ())
}

async fn run(program: &str, args: &[&str], input: Option<&str>) -> Result<String, Error> {
    let failed = |source| Error::Start {
        program: program.to_owned(),
        source,
    };
    let command = || format!("{program} {}", args.join(" "));
    let mut child = Command::new(program)
        .args(args)
        .env("LC_ALL", "C")
        .stdin(if input.is_some() {
            Stdio::piped()
        } else {
            Stdio::null()
        })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(failed)?;
    let stdin = child.stdin.take();
    let feed = async move {
        if let (Some(mut stdin), Some(input)) = (stdin, input) {
            // A command that does not read to the end says why by its exit code and on stderr.
            drop(stdin.write_all(input.as_bytes()).await);
        }
    };
    let both = async { tokio::join!(feed, child.wait_with_output()).1 };
    let output = tokio::time::timeout(TIMEOUT, both)
        .await
        .map_err(|_| Error::Hangs { command: command() })?
        .map_err(failed)?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    let message = if message.is_empty() {
        output.status.to_string()
    } else {
        message
    };
    Err(Error::Refused {
        command: command(),
        message,
    })
}
