//! What a subset measured: named series of figures, each taken several times in several modes. As JSON it holds every
//! sample; as Markdown the medians and how far the samples spread.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

/// Everything that a run of a subset measured.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// The subset.
    pub subset: String,
    /// What it measures, in a line.
    pub about: String,
    /// Under which conditions: the kernel, the processor, the seed.
    pub conditions: BTreeMap<String, String>,
    /// The figures.
    pub series: Vec<Series>,
    /// What the figures are to show.
    pub goals: Vec<Goal>,
    /// What a reader must know besides.
    pub notes: Vec<String>,
}

/// Figures with one unit along one axis, in several modes that are compared.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Series {
    /// What they are figures of.
    pub title: String,
    /// Their unit.
    pub unit: String,
    /// What is varied along the axis.
    pub axis: String,
    /// The modes, in the order in which they are shown.
    pub modes: Vec<Mode>,
}

/// One of the things compared.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Mode {
    /// Its name.
    pub name: String,
    /// Its figures, ascending along the axis.
    pub points: Vec<Point>,
}

/// One figure, taken several times.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Point {
    /// Where on the axis.
    pub at: f64,
    /// What the samples come to.
    #[serde(flatten)]
    pub summary: Summary,
    /// Every sample, in the order taken.
    pub samples: Vec<f64>,
}

/// What several samples of one figure come to.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// The least.
    pub min: f64,
    /// A quarter of the samples is below.
    pub lower: f64,
    /// Half of the samples is below: the figure that tables show.
    pub median: f64,
    /// A quarter of the samples is above.
    pub upper: f64,
    /// The largest.
    pub max: f64,
}

/// What a figure is to show.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Goal {
    /// What is compared, in words.
    pub what: String,
    /// The figure.
    pub value: f64,
    /// What it may be at most.
    pub at_most: f64,
    /// Whether it is.
    pub met: bool,
}

impl Summary {
    /// Sums samples up; none of none.
    pub fn of(samples: &[f64]) -> Option<Self> {
        let mut sorted = samples.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        Some(Self {
            min,
            lower: quantile(&sorted, 0.25),
            median: quantile(&sorted, 0.5),
            upper: quantile(&sorted, 0.75),
            max,
        })
    }

    /// How far apart the middle half of the samples is, as a part of the median.
    pub fn spread(&self) -> f64 {
        if self.median == 0.0 {
            return 0.0;
        }
        (self.upper - self.lower) / self.median.abs()
    }
}

/// Between the two samples that are nearest.
fn quantile(sorted: &[f64], part: f64) -> f64 {
    let position = part * (sorted.len() - 1) as f64;
    let (below, above) = (position.floor() as usize, position.ceil() as usize);
    sorted[below] + (sorted[above] - sorted[below]) * (position - position.floor())
}

impl Report {
    /// A report without figures, with the conditions that hold for all: kernel, processor, number of CPUs.
    pub fn new(subset: &str, about: &str) -> Self {
        let mut conditions = BTreeMap::new();
        let file = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        conditions.insert(
            "kernel".to_owned(),
            file("/proc/sys/kernel/osrelease").trim().to_owned(),
        );
        let cpuinfo = file("/proc/cpuinfo");
        let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name"));
        let model = model.map_or("unknown", |text| text.trim_start_matches([' ', '\t', ':']));
        conditions.insert("processor".to_owned(), model.to_owned());
        let cpus = std::thread::available_parallelism().map_or(1, |count| count.get());
        conditions.insert("cpus".to_owned(), cpus.to_string());
        Self {
            subset: subset.to_owned(),
            about: about.to_owned(),
            conditions,
            series: Vec::new(),
            goals: Vec::new(),
            notes: Vec::new(),
        }
    }

    /// Adds a goal: a figure that may be so much at most.
    pub fn goal(&mut self, what: impl Into<String>, value: f64, at_most: f64) {
        self.goals.push(Goal {
            what: what.into(),
            value,
            at_most,
            met: value <= at_most,
        });
    }
}

impl Series {
    /// Figures in `unit` along `axis`, of these modes.
    pub fn new(title: &str, unit: &str, axis: &str, modes: &[&str]) -> Self {
        let mode = |name: &&str| Mode {
            name: (*name).to_owned(),
            points: Vec::new(),
        };
        Self {
            title: title.to_owned(),
            unit: unit.to_owned(),
            axis: axis.to_owned(),
            modes: modes.iter().map(mode).collect(),
        }
    }

    /// Takes a sample of a mode's figure at `at`. A mode that is new comes last.
    pub fn sample(&mut self, mode: &str, at: f64, value: f64) {
        let position = self.modes.iter().position(|known| known.name == mode);
        let position = position.unwrap_or_else(|| {
            self.modes.push(Mode {
                name: mode.to_owned(),
                points: Vec::new(),
            });
            self.modes.len() - 1
        });
        let points = &mut self.modes[position].points;
        match points.binary_search_by(|point| point.at.total_cmp(&at)) {
            Ok(found) => {
                let point = &mut points[found];
                point.samples.push(value);
                point.summary = Summary::of(&point.samples).unwrap_or(point.summary);
            }
            Err(place) => points.insert(
                place,
                Point {
                    at,
                    summary: Summary {
                        min: value,
                        lower: value,
                        median: value,
                        upper: value,
                        max: value,
                    },
                    samples: vec![value],
                },
            ),
        }
    }

    /// What a mode's figure at `at` comes to.
    pub fn figure(&self, mode: &str, at: f64) -> Option<Summary> {
        let mode = self.modes.iter().find(|known| known.name == mode)?;
        let point = mode.points.iter().find(|point| point.at == at)?;
        Some(point.summary)
    }

    /// Where on the axis there are figures, ascending.
    pub fn places(&self) -> Vec<f64> {
        let mut places: Vec<f64> = self
            .modes
            .iter()
            .flat_map(|mode| mode.points.iter().map(|point| point.at))
            .collect();
        places.sort_by(f64::total_cmp);
        places.dedup();
        places
    }
}

/// A number as tables show it: three digits that count, no more.
pub fn shown(value: f64) -> String {
    match value.abs() {
        large if large >= 100.0 => format!("{value:.0}"),
        middle if middle >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "# {}\n\n{}\n", self.subset, self.about)?;
        for (what, value) in &self.conditions {
            writeln!(f, "- {what}: {value}")?;
        }
        for series in &self.series {
            write!(f, "\n{series}")?;
        }
        if !self.goals.is_empty() {
            writeln!(f, "\n| goal | figure | at most | |\n|---|---:|---:|---|")?;
        }
        for goal in &self.goals {
            let met = if goal.met { "met" } else { "**not met**" };
            let (value, at_most) = (shown(goal.value), shown(goal.at_most));
            writeln!(f, "| {} | {value} | {at_most} | {met} |", goal.what)?;
        }
        for note in &self.notes {
            writeln!(f, "\n{note}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Series {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "**{}** ({})\n", self.title, self.unit)?;
        write!(f, "| {} |", self.axis)?;
        for mode in &self.modes {
            write!(f, " {} |", mode.name)?;
        }
        writeln!(f, "\n|---:|{}", "---:|".repeat(self.modes.len()))?;
        for at in self.places() {
            write!(f, "| {at} |")?;
            for mode in &self.modes {
                match self.figure(&mode.name, at) {
                    Some(figure) => {
                        write!(f, " {} ±{:.0} % |", shown(figure.median), figure.spread() * 50.0)?;
                    }
                    None => write!(f, " |")?,
                }
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a panic is how a test reports")]

    use super::*;

    #[test]
    fn samples_come_to_their_quartiles() {
        let summary = Summary::of(&[5.0, 1.0, 3.0, 2.0, 4.0]).unwrap();
        assert_eq!((summary.min, summary.max), (1.0, 5.0));
        assert_eq!((summary.lower, summary.median, summary.upper), (2.0, 3.0, 4.0));
        assert!((summary.spread() - 2.0 / 3.0).abs() < 1e-9);
        let two = Summary::of(&[1.0, 2.0]).unwrap();
        assert_eq!((two.lower, two.median, two.upper), (1.25, 1.5, 1.75));
        assert_eq!(Summary::of(&[]), None);
        assert_eq!(Summary::of(&[0.0, 0.0]).unwrap().spread(), 0.0);
    }

    #[test]
    fn a_series_keeps_its_figures_in_order_whatever_order_they_are_taken_in() {
        let mut series = Series::new("lookup", "ns", "routes", &["trie", "ours"]);
        for (mode, at, value) in [
            ("ours", 1000.0, 9.0),
            ("trie", 10.0, 20.0),
            ("ours", 10.0, 8.0),
            ("trie", 1000.0, 180.0),
            ("ours", 10.0, 10.0),
        ] {
            series.sample(mode, at, value);
        }
        assert_eq!(series.places(), [10.0, 1000.0]);
        assert_eq!(series.figure("ours", 10.0).unwrap().median, 9.0);
        let table = "**lookup** (ns)\n\n| routes | trie | ours |\n|---:|---:|---:|\n\
                     | 10 | 20.0 ±0 % | 9.00 ±6 % |\n| 1000 | 180 ±0 % | 9.00 ±0 % |\n";
        assert_eq!(series.to_string(), table);
    }

    #[test]
    fn a_goal_is_met_up_to_its_limit() {
        let mut report = Report::new("lookup", "how long it takes");
        report.goal("ours to the trie's", 0.3, 0.3);
        report.goal("ours to a hash's", 1.2, 1.0);
        assert_eq!(
            report.goals.iter().map(|goal| goal.met).collect::<Vec<_>>(),
            [true, false]
        );
        let text = report.to_string();
        assert!(
            text.contains("| ours to a hash's | 1.20 | 1.00 | **not met** |"),
            "{text}"
        );
    }
}
