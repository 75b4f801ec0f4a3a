//! What was counted, as tables and goals.

use super::SIZES;
use super::meter::{Count, Way};
use super::modes::{CLASSIC, FAST, FLOOR, MODES, Mode, SLOW, WIREGUARD};
use crate::bench::report::{Report, Series};

/// The axis of every table.
const AXIS: &str = "bytes of the IP packet";

/// What the fast path may cost above the floor, where the classic way costs one: at most, and as a goal.
const SHARE: [f64; 2] = [0.45, 0.35];

/// How far a sample may be from the median of its figure.
const REPEATABLE: f64 = 0.02;

/// The figures of a run.
#[derive(Debug)]
pub struct Figures {
    tables: Vec<(Table, Series)>,
    wire: Series,
}

/// Which figures are in one table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Table {
    encrypted: bool,
    rules: bool,
    way: Way,
}

impl Table {
    fn series(self) -> Series {
        let Self {
            encrypted,
            rules,
            way,
        } = self;
        let title = format!(
            "{}, {}, {}",
            way.name(),
            if encrypted { "encrypted" } else { "in the clear" },
            if rules {
                "nodes with the rules of others"
            } else {
                "bare nodes"
            }
        );
        let modes = MODES.iter().filter(|mode| mode.encrypted == encrypted);
        let names: Vec<&str> = modes.map(|mode| mode.name).collect();
        Series::new(&title, "instructions per packet", AXIS, &names)
    }
}

impl Default for Figures {
    fn default() -> Self {
        let mut tables = Vec::new();
        for encrypted in [true, false] {
            for rules in [true, false] {
                for way in Way::ALL {
                    let table = Table {
                        encrypted,
                        rules,
                        way,
                    };
                    tables.push((table, table.series()));
                }
            }
        }
        let names: Vec<&str> = MODES.iter().map(|mode| mode.name).collect();
        let wire = Series::new("Between the nodes", "bytes per frame", AXIS, &names);
        Self { tables, wire }
    }
}

impl Figures {
    /// Takes a sample. One without nodes is the same on nodes of both kinds.
    pub fn take(&mut self, mode: &Mode, rules: bool, way: Way, size: usize, count: Count) {
        let at = size as f64;
        for (table, series) in &mut self.tables {
            let nodes = table.rules == rules || !mode.nodes;
            if nodes && table.encrypted == mode.encrypted && table.way == way {
                series.sample(mode.name, at, count.instructions);
            }
        }
        self.wire.sample(mode.name, at, count.wire);
    }

    /// Puts tables and goals into a report.
    pub fn tell(self, report: &mut Report) {
        let loaded: Vec<&Series> = self
            .tables
            .iter()
            .filter(|(table, _)| table.encrypted && table.rules)
            .map(|(_, series)| series)
            .collect();
        if let Some(share) = worst(&loaded, |series, at| {
            let floor = series.figure(FLOOR, at)?.median;
            let above = |mode: &str| Some(series.figure(mode, at)?.median - floor);
            Some(above(FAST)? / above(CLASSIC)?)
        }) {
            let what = "the fast path to the classic way, both above the floor, on nodes with rules";
            for at_most in SHARE {
                report.goal(what, share, at_most);
            }
        }
        let encrypted: Vec<&Series> = self
            .tables
            .iter()
            .filter(|(table, _)| table.encrypted)
            .map(|(_, series)| series)
            .collect();
        for other in [WIREGUARD, SLOW] {
            if let Some(ratio) = worst(&encrypted, |series, at| {
                Some(series.figure(FAST, at)?.median / series.figure(other, at)?.median)
            }) {
                report.goal(format!("the fast path to {other}"), ratio, 1.0);
            }
        }
        let spread = self.tables.iter().flat_map(|(_, series)| {
            let points = series.modes.iter().flat_map(|mode| &mode.points);
            points.map(|point| {
                let summary = point.summary;
                (summary.max - summary.median).max(summary.median - summary.min) / summary.median
            })
        });
        report.goal(
            "the sample that is farthest from the median of its figure",
            spread.fold(0.0, f64::max),
            REPEATABLE,
        );
        report.notes.push(NOTE.to_owned());
        report
            .series
            .extend(self.tables.into_iter().map(|(_, series)| series));
        report.series.push(self.wire);
    }
}

/// What the tables do not say by themselves.
const NOTE: &str = "A goal's figure is the worst of all sizes and both ways. The floor has ESP (or, in the clear, \
                    nothing) in the pods themselves and no nodes, so rules of nodes do not concern it.";

/// The largest figure of some tables.
fn worst(tables: &[&Series], figure: impl Fn(&Series, f64) -> Option<f64>) -> Option<f64> {
    let figures = tables
        .iter()
        .flat_map(|series| SIZES.map(|size| figure(series, size as f64)))
        .flatten();
    figures.reduce(f64::max)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(name: &str) -> &'static Mode {
        MODES
            .iter()
            .find(|mode| mode.name == name)
            .unwrap_or_else(|| panic!("no mode {name}"))
    }

    fn met(fast: f64) -> Vec<bool> {
        let mut figures = Figures::default();
        for (name, instructions) in [
            (FLOOR, 20.0),
            (CLASSIC, 60.0),
            (WIREGUARD, 50.0),
            (SLOW, 55.0),
            (FAST, fast),
        ] {
            for rules in [false, true] {
                let count = Count {
                    instructions,
                    wire: 100.0,
                    vain: 0.0,
                };
                figures.take(mode(name), rules, Way::OneWay, 64, count);
            }
        }
        let mut report = Report::new("path", "");
        figures.tell(&mut report);
        report.goals.iter().map(|goal| goal.met).collect()
    }

    #[test]
    fn goals_are_about_what_is_above_the_floor() {
        assert_eq!(met(34.0), [true, true, true, true, true]);
        assert_eq!(met(36.0), [true, false, true, true, true]);
        assert_eq!(met(51.0), [false, false, false, true, true]);
        assert_eq!(met(56.0), [false, false, false, false, true]);
    }
}
