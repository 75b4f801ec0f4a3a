//! Schedules of faults by chance, and what must hold whatever happens: a seed makes each of them, and makes it again.
//!
//! The world is made once and used for one schedule after the other, each of which ends with everything mended. Then every
//! pod must reach whom it may within a minute, and nobody else; at no time may the WAN carry a pod's packet in plaintext,
//! nor may those talk who may not. When the configuration of a node is not what it was in the same state of the Communities,
//! something was left. A schedule that fails is tried again in a new world, with ever fewer of its faults, until each that is
//! left is needed: that is what is printed, in the words that `--schedule` and [`CASES`] understand.

pub mod faults;
mod model;
mod trial;

use std::fmt;
use std::str::FromStr;

use anyhow::{Context, Result, ensure};
use clap::Args;
use fastrand::Rng;

use crate::lab::Settings;
use crate::lab::charon::STRONGSWAN_CONF;
use crate::suite::judge;
use crate::table::{Outcome, Table};
use faults::{Fault, KINDS, Kind};
use trial::Trial;

/// How many faults a schedule has.
const LENGTH: std::ops::RangeInclusive<usize> = 5..=8;

/// Schedules that failed once.
const CASES: &[&str] = &[];

/// The arguments of `fabedge-lab chaos`.
#[derive(Args, Debug)]
pub struct Options {
    /// How many faults there are to be, all in all
    #[arg(long, default_value_t = 30)]
    pub faults: usize,
    /// What the schedules are made from
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// This schedule instead: faults as they are printed, separated by commas
    #[arg(long)]
    pub schedule: Option<Schedule>,
    /// Faults about these things are left out: `clock` where it is not the lab's own, `weather` where the kernel has no netem
    #[arg(long, value_delimiter = ',', value_name = "THINGS")]
    pub leave_out: Vec<String>,
    /// Do not look for the least part of a schedule that fails
    #[arg(long)]
    pub no_shrink: bool,
    /// End with the first schedule that fails
    #[arg(long)]
    pub to_the_first: bool,
}

/// Faults, one after the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schedule(Vec<Fault>);

impl Schedule {
    /// One by chance. No two faults are about the same thing, so that each can be mended by itself.
    fn draw(kinds: &[&'static Kind], chance: &mut Rng) -> Self {
        let length = chance.usize(LENGTH);
        let mut faults: Vec<Fault> = Vec::new();
        while faults.len() < length {
            let kind = kinds[chance.usize(..kinds.len())];
            let fault = Fault {
                kind,
                target: kind.targets[chance.usize(..kind.targets.len())],
            };
            if faults.iter().all(|other| !other.meets(&fault)) {
                faults.push(fault);
            }
        }
        Self(faults)
    }

    fn without(&self, index: usize) -> Self {
        let mut faults = self.0.clone();
        faults.remove(index);
        Self(faults)
    }
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words: Vec<String> = self.0.iter().map(ToString::to_string).collect();
        f.write_str(&words.join(", "))
    }
}

impl FromStr for Schedule {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        text.split(',')
            .map(|fault| fault.trim().parse())
            .collect::<Result<_>>()
            .map(Self)
    }
}

/// Runs schedules; whether all held.
///
/// # Errors
/// When the world cannot be made.
pub fn run(options: &Options, settings: &Settings) -> Result<bool> {
    let left_out = |kind: &Kind| options.leave_out.iter().any(|thing| thing == kind.thing);
    let kinds: Vec<&Kind> = KINDS.iter().filter(|kind| !left_out(kind)).collect();
    let mut fixed = match &options.schedule {
        Some(schedule) => vec![schedule.clone()],
        None => CASES.iter().map(|case| case.parse()).collect::<Result<_>>()?,
    };
    fixed.retain(|schedule| !schedule.0.iter().any(|fault| left_out(fault.kind)));
    ensure!(
        options.schedule.is_none() || !fixed.is_empty(),
        "this schedule has faults that are left out here: {}",
        options.leave_out.join(", ")
    );
    let mut fixed = fixed.into_iter();
    let mut table = Table::default();
    let mut world = Some(Trial::start(settings)?);
    let mut chance = Rng::with_seed(options.seed);
    let mut done = 0;
    table.section(&match &options.schedule {
        Some(_) => "chaos: one schedule".to_owned(),
        None => format!("chaos: {} faults from seed {}", options.faults, options.seed),
    });
    let timers = STRONGSWAN_CONF.lines().map(str::trim);
    let timers = timers.filter(|line| line.starts_with("retransmit_") || line.starts_with("keep_alive"));
    table.quote(&format!(
        "charon as it ships: {}",
        timers.collect::<Vec<_>>().join(", ")
    ));
    while options.schedule.is_none() && done < options.faults || fixed.len() > 0 {
        let schedule = fixed
            .next()
            .unwrap_or_else(|| Schedule::draw(&kinds, &mut chance));
        let name = schedule.to_string();
        table.begin(&name);
        let pauses = chance.fork();
        let trial = world.as_mut().context("no world")?;
        let outcome = trial.hold(&schedule, pauses.clone());
        done += schedule.0.len();
        let failed = outcome.is_err();
        table.end(
            &name,
            &outcome.unwrap_or_else(|error| Outcome::Failed(format!("{error:#}"))),
        );
        if failed {
            if !options.no_shrink {
                let least = shrink(&schedule, |schedule| {
                    // There can be one at a time.
                    drop(world.take());
                    let trial = world.insert(Trial::start(settings)?);
                    Ok(trial.hold(schedule, pauses.clone()).is_err())
                })?;
                table.quote(&match least {
                    Some(least) => {
                        format!("the least of it that fails in a new world, --schedule \"{least}\"")
                    }
                    None => format!(
                        "it holds in a new world; --seed {} came to it after {done} faults",
                        options.seed
                    ),
                });
            }
            if options.to_the_first {
                return Ok(table.close());
            }
            drop(world.take());
            world = Some(Trial::start(settings)?);
        }
    }
    table.begin("nothing has leaked");
    let leaks = world.as_mut().context("no world")?.leaks()?;
    table.end("nothing has leaked", &judge(leaks.is_empty(), leaks.join("; ")));
    Ok(table.close())
}

/// The least part of a schedule that fails; none where not even the whole does.
fn shrink(schedule: &Schedule, mut fails: impl FnMut(&Schedule) -> Result<bool>) -> Result<Option<Schedule>> {
    if !fails(schedule)? {
        return Ok(None);
    }
    let mut least = schedule.clone();
    let mut index = 0;
    while index < least.0.len() && least.0.len() > 1 {
        let less = least.without(index);
        if fails(&less)? {
            least = less;
        } else {
            index += 1;
        }
    }
    Ok(Some(least))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kinds() -> Vec<&'static Kind> {
        KINDS.iter().collect()
    }

    #[test]
    fn a_seed_makes_the_same_schedules_and_what_is_printed_is_read() {
        let draw = |seed| {
            let mut chance = Rng::with_seed(seed);
            (0..50)
                .map(|_| Schedule::draw(&kinds(), &mut chance))
                .collect::<Vec<_>>()
        };
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
        for schedule in draw(1) {
            assert_eq!(schedule.to_string().parse::<Schedule>().unwrap(), schedule);
            assert!(LENGTH.contains(&schedule.0.len()));
            for (at, fault) in schedule.0.iter().enumerate() {
                assert!(
                    !schedule.0[..at].iter().any(|other| other.meets(fault)),
                    "{schedule}"
                );
            }
        }
        assert!("kill-agent mars".parse::<Schedule>().is_err());
    }

    #[test]
    fn every_kind_is_drawn() {
        let mut chance = Rng::with_seed(3);
        let drawn: Vec<Schedule> = (0..100).map(|_| Schedule::draw(&kinds(), &mut chance)).collect();
        for kind in KINDS {
            let has = |schedule: &Schedule| schedule.0.iter().any(|fault| fault.kind.name == kind.name);
            assert!(drawn.iter().any(has), "{}", kind.name);
        }
    }

    #[test]
    fn what_is_not_needed_is_left_out() {
        let mut chance = Rng::with_seed(1);
        let schedule = Schedule::draw(&kinds(), &mut chance);
        let (first, last) = (schedule.0[0], schedule.0[4]);
        let least = shrink(&schedule, |schedule| {
            Ok(schedule.0.contains(&first) && schedule.0.contains(&last))
        });
        assert_eq!(least.unwrap(), Some(Schedule(vec![first, last])));
        assert_eq!(shrink(&schedule, |_| Ok(false)).unwrap(), None);
    }
}
