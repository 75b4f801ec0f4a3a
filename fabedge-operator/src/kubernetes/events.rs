//! What is to be said about an object by an Event, and when: what holds is said once, and again while it holds, and an
//! object that keeps changing its mind does not flood the cluster.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use sha2::{Digest as _, Sha256};

use super::MANAGER;
use super::conditions::{self, READY, REPLACED, condition};
use crate::api::{API_VERSION, CommunityStatus, Condition, ConditionStatus};
use crate::finding::{Finding, Severity};
use crate::observe::manifest::{Key, Kind};

/// Where Events about objects without a namespace are.
pub const NAMESPACE: &str = "default";

/// API servers forget an Event after an hour; what still holds is said again before.
const AGAIN: Duration = Duration::from_secs(50 * 60);

/// What one object may say in a row, and the pause after which it may say one thing more.
const PER_OBJECT: (u32, Duration) = (10, Duration::from_secs(60));

/// The same for all objects together.
const IN_ALL: (u32, Duration) = (50, Duration::from_millis(100));

/// The least pause before what had to wait is looked at again.
const LATER: Duration = Duration::from_secs(1);

/// What an API server takes as an Event's message.
const LONGEST: usize = 1024;

/// The longest name of an object.
const LONGEST_NAME: usize = 253;

/// Something to say about an object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Note {
    /// About whom.
    pub object: Key,
    /// `metadata.uid` of the object.
    pub uid: String,
    /// Whether somebody should mend something.
    pub warning: bool,
    /// Why, in one word.
    pub reason: String,
    /// Why, for people.
    pub message: String,
}

impl Note {
    /// Cuts the message to what fits.
    pub(super) fn new(object: Key, uid: &str, warning: bool, reason: &str, message: &str) -> Self {
        let mut end = message.len().min(LONGEST);
        while !message.is_char_boundary(end) {
            end -= 1;
        }
        Self {
            object,
            uid: uid.to_owned(),
            warning,
            reason: reason.to_owned(),
            message: message[..end].to_owned(),
        }
    }

    /// The Event. Whoever says the same gives it the same name, and so an operator finds what its predecessor said.
    pub fn event(&self, instance: &str, at: Time) -> core::Event {
        core::Event {
            metadata: ObjectMeta {
                name: Some(self.name()),
                namespace: Some(NAMESPACE.to_owned()),
                ..ObjectMeta::default()
            },
            involved_object: core::ObjectReference {
                api_version: Some(match self.object.kind {
                    Kind::Node => "v1".to_owned(),
                    _ => API_VERSION.to_owned(),
                }),
                kind: Some(format!("{:?}", self.object.kind)),
                name: Some(self.object.name.clone()),
                uid: Some(self.uid.clone()),
                ..core::ObjectReference::default()
            },
            type_: Some(if self.warning { "Warning" } else { "Normal" }.to_owned()),
            reason: Some(self.reason.clone()),
            message: Some(self.message.clone()),
            count: Some(1),
            first_timestamp: Some(at.clone()),
            last_timestamp: Some(at),
            source: Some(core::EventSource {
                component: Some(MANAGER.to_owned()),
                ..core::EventSource::default()
            }),
            reporting_component: Some(MANAGER.to_owned()),
            reporting_instance: Some(instance.to_owned()),
            ..core::Event::default()
        }
    }

    /// Name of the Event.
    pub fn name(&self) -> String {
        let mut hash = Sha256::new();
        for part in [&self.uid, &self.reason, &self.message] {
            hash.update(part.as_bytes());
            hash.update([0]);
        }
        let hash = hash.finalize();
        let tail: String = hash.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        let room = LONGEST_NAME - tail.len() - 1;
        // Names of objects are ASCII.
        let name = self.object.name.get(..room).unwrap_or(&self.object.name);
        format!("{}.{tail}", name.trim_end_matches(['.', '-']))
    }
}

/// What findings say of objects that can have Events, one note for each object and severity. `uid` knows them.
pub fn of_findings<'a>(findings: &[Finding], uid: impl Fn(&Key) -> Option<&'a str>) -> Vec<Note> {
    let mut texts: BTreeMap<(Key, Severity), Vec<String>> = BTreeMap::new();
    for finding in findings {
        let problem = &finding.problem;
        let Some((kind, name)) = problem.object.split_once(' ') else {
            continue;
        };
        let kind = match kind {
            "Node" => Kind::Node,
            "Community" => Kind::Community,
            "Cluster" => Kind::Cluster,
            _ => continue,
        };
        let key = Key {
            kind,
            name: name.to_owned(),
        };
        texts
            .entry((key, finding.severity))
            .or_default()
            .push(format!("{}: {}", problem.field, problem.message));
    }
    texts
        .into_iter()
        .filter_map(|((key, severity), texts)| {
            let reason = match severity {
                Severity::Warning => "Pending",
                Severity::Error => "Invalid",
            };
            let uid = uid(&key)?;
            Some(Note::new(key, uid, true, reason, &conditions::some(&texts, "; ")))
        })
        .collect()
}

/// What users want to hear when a Community's status changes.
pub fn of_transition(name: &str, uid: &str, before: &CommunityStatus, after: &CommunityStatus) -> Vec<Note> {
    let is_true = |condition: &&Condition| condition.status == ConditionStatus::True;
    let came = |kind| {
        let had = condition(&before.conditions, kind).filter(is_true);
        condition(&after.conditions, kind).filter(is_true).filter(|now| {
            had.is_none_or(|had| kind == REPLACED && had.observed_generation != now.observed_generation)
        })
    };
    let object = || Key {
        kind: Kind::Community,
        name: name.to_owned(),
    };
    let note = |condition: &Condition, warning, reason| {
        Note::new(object(), uid, warning, reason, &condition.message)
    };
    [
        came(REPLACED).map(|c| note(c, c.reason == conditions::ALL_REPLACED, REPLACED)),
        came(READY).map(|c| note(c, false, &c.reason)),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Everything that was said lately.
#[derive(Debug)]
pub struct Book {
    said: BTreeMap<Note, Entry>,
    objects: BTreeMap<Key, Budget>,
    all: Budget,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    /// How often it was said, as its Event counts.
    count: i32,
    /// When last.
    at: Instant,
    holds: bool,
}

/// One thing to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Saying {
    /// What.
    pub note: Note,
    /// How often it was said before, if it was.
    pub count: Option<i32>,
    /// Whether it happened, rather than holds: then it is news though an Event says it already.
    pub happened: bool,
}

/// What is to be said of what holds.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Due {
    /// What to say now.
    pub sayings: Vec<Saying>,
    /// When to ask again, where something has to wait.
    pub again: Option<Instant>,
}

impl Book {
    /// Nothing said yet.
    pub fn new(now: Instant) -> Self {
        Self {
            said: BTreeMap::new(),
            objects: BTreeMap::new(),
            all: Budget::new(IN_ALL.0, now),
        }
    }

    /// Picks what to say of what holds now: what is new, what came back, and what was said long ago. It counts as
    /// said unless it is forgotten.
    pub fn holding(&mut self, notes: Vec<Note>, now: Instant) -> Due {
        let mut due = Due::default();
        let holding: BTreeSet<Note> = notes.into_iter().collect();
        for (note, entry) in &mut self.said {
            // What ceases to hold may be said at once when it holds again.
            entry.holds &= holding.contains(note);
        }
        let lately = |entry: &Entry| now.saturating_duration_since(entry.at) < AGAIN;
        self.said.retain(|_, entry| entry.holds || lately(entry));
        for note in holding {
            let entry = self.said.get(&note).copied();
            if entry.is_some_and(|entry| entry.holds && lately(&entry)) {
                continue;
            }
            match self.allows(&note.object, now) {
                Ok(()) => due.sayings.push(self.saying(note, false, now)),
                Err(when) => {
                    let when = when.max(now + LATER);
                    due.again = Some(due.again.map_or(when, |again| again.min(when)));
                }
            }
        }
        self.objects
            .retain(|_, budget| budget.left(PER_OBJECT, now) < PER_OBJECT.0);
        due
    }

    /// Picks what to say of what happened: what would have to wait is no news by then.
    pub fn happened(&mut self, notes: Vec<Note>, now: Instant) -> Vec<Saying> {
        let mut sayings = Vec::new();
        for note in notes {
            if self.allows(&note.object, now).is_ok() {
                sayings.push(self.saying(note, true, now));
            }
        }
        sayings
    }

    fn saying(&mut self, note: Note, happened: bool, now: Instant) -> Saying {
        let count = self.said.get(&note).map(|entry| entry.count);
        let entry = Entry {
            count: count.unwrap_or_default(),
            at: now,
            holds: !happened,
        };
        self.said.insert(note.clone(), entry);
        Saying {
            note,
            // Zero while the first is under way.
            count: count.filter(|count| *count > 0),
            happened,
        }
    }

    /// Takes down how often a note was said by now.
    pub fn said(&mut self, note: &Note, count: i32) {
        if let Some(entry) = self.said.get_mut(note) {
            entry.count = count;
        }
    }

    /// Takes down that a note was not said.
    pub fn forget(&mut self, note: &Note) {
        self.said.remove(note);
    }

    fn allows(&mut self, object: &Key, now: Instant) -> Result<(), Instant> {
        let budget = self
            .objects
            .entry(object.clone())
            .or_insert_with(|| Budget::new(PER_OBJECT.0, now));
        if budget.left(PER_OBJECT, now) == 0 {
            return Err(budget.since + PER_OBJECT.1);
        }
        if self.all.left(IN_ALL, now) == 0 {
            return Err(self.all.since + IN_ALL.1);
        }
        budget.left -= 1;
        self.all.left -= 1;
        Ok(())
    }
}

/// A token bucket.
#[derive(Debug)]
struct Budget {
    left: u32,
    /// When a token was last added.
    since: Instant,
}

impl Budget {
    fn new(left: u32, since: Instant) -> Self {
        Self { left, since }
    }

    fn left(&mut self, (most, pause): (u32, Duration), now: Instant) -> u32 {
        let passed = now.saturating_duration_since(self.since).as_nanos() / pause.as_nanos();
        let more = u32::try_from(passed).unwrap_or(u32::MAX).min(most - self.left);
        self.left += more;
        self.since = if self.left == most {
            now
        } else {
            self.since + pause * more
        };
        self.left
    }
}

#[cfg(test)]
mod tests;
