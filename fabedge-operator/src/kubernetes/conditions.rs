//! Communities and Clusters -> what their statuses say. Pure.

use std::collections::{BTreeMap, BTreeSet};

use fabedge_common::config::{CONNECTOR, EndpointType};

use crate::api::{ClusterStatus, CommunityStatus, Condition, ConditionStatus};
use crate::finding::{Finding, Severity};
use crate::snapshot::{Cluster, Community};

/// Whether it does what its spec says.
pub const READY: &str = "Ready";
/// Whether its spec could be read and is its to say.
pub const ACCEPTED: &str = "Accepted";
/// That the last change of the spec took members out. It stays until the next change.
pub const REPLACED: &str = "MembersReplaced";

/// Reason of [`REPLACED`] when nobody stayed.
pub const ALL_REPLACED: &str = "AllReplaced";

/// So many names, or findings, stand in a message; the rest is counted.
const NAMED: usize = 5;

/// A custom resource as the API server shows it.
#[derive(Debug)]
pub struct Shown<'a, T, S> {
    /// `metadata.name`.
    pub name: &'a str,
    /// `metadata.uid`.
    pub uid: &'a str,
    /// `metadata.generation`.
    pub generation: Option<i64>,
    /// What it says, or said when it could last be read.
    pub good: Option<&'a T>,
    /// Why it cannot be read now.
    pub malformed: &'a [Finding],
    /// The status that it has.
    pub status: &'a S,
}

/// What the last change of a Community's spec took out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dropped {
    /// The generation since which they are out.
    pub generation: Option<i64>,
    /// Those who were members and are no longer.
    pub members: Vec<String>,
    /// Whether nobody stayed: most likely another Community was meant, and took this one's name.
    pub all: bool,
}

impl Dropped {
    /// Who is no longer a member; none when everybody stayed.
    pub fn between(before: &Community, after: &Community, generation: Option<i64>) -> Option<Self> {
        let now: BTreeSet<&String> = after.members.iter().collect();
        let (stayed, members): (Vec<&String>, Vec<&String>) =
            before.members.iter().partition(|member| now.contains(member));
        (!members.is_empty()).then(|| Self {
            generation,
            members: members.into_iter().cloned().collect(),
            all: stayed.is_empty(),
        })
    }
}

/// How an agent, or the connector, stands to its newest document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Agent {
    /// It has applied it.
    Ready,
    /// It has not, or does not run.
    NotReady,
    /// The document was written a moment ago: what its pod says may still be about the one before.
    Behind,
}

/// What statuses are computed from, besides the objects themselves.
#[derive(Debug)]
pub struct Facts<'a> {
    cluster: &'a str,
    findings: BTreeMap<&'a str, Vec<&'a Finding>>,
    agents: &'a BTreeMap<String, Agent>,
}

impl<'a> Facts<'a> {
    /// `agents` are those of this cluster by local name, a node's or `connector`.
    pub fn new(cluster: &'a str, findings: &'a [Finding], agents: &'a BTreeMap<String, Agent>) -> Self {
        let mut by_object: BTreeMap<&str, Vec<&Finding>> = BTreeMap::new();
        for finding in findings {
            by_object
                .entry(finding.problem.object.as_str())
                .or_default()
                .push(finding);
        }
        Self {
            cluster,
            findings: by_object,
            agents,
        }
    }

    fn of(&self, object: &str) -> &[&'a Finding] {
        self.findings.get(object).map(Vec::as_slice).unwrap_or_default()
    }
}

/// One condition before it is known since when it holds.
struct Said {
    status: ConditionStatus,
    reason: &'static str,
    message: String,
}

impl Said {
    fn new(holds: bool, reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            status: if holds {
                ConditionStatus::True
            } else {
                ConditionStatus::False
            },
            reason,
            message: message.into(),
        }
    }
}

/// The status of a Community. `now` is RFC 3339.
pub fn community(
    shown: &Shown<'_, Community, CommunityStatus>,
    dropped: Option<&Dropped>,
    facts: &Facts<'_>,
    now: &str,
) -> CommunityStatus {
    let findings = facts.of(&format!("Community {}", shown.name)).to_vec();
    let mut status = CommunityStatus {
        observed_generation: shown.generation,
        ..CommunityStatus::default()
    };
    let ready = match shown.good {
        Some(good) if shown.malformed.is_empty() => {
            let settled = condition(&shown.status.conditions, READY).is_some_and(|before| {
                before.status == ConditionStatus::True && before.observed_generation == shown.generation
            });
            members(good, &findings, facts, settled, &mut status)
        }
        _ => Said::new(
            false,
            "Invalid",
            "its spec is refused: see the condition Accepted",
        ),
    };
    let mut said = vec![
        (READY, ready),
        (
            ACCEPTED,
            accepted(shown.malformed, &findings, shown.good.is_some()),
        ),
    ];
    let before = condition(&shown.status.conditions, REPLACED)
        .filter(|before| before.observed_generation == shown.generation);
    match (
        dropped.filter(|dropped| dropped.generation == shown.generation),
        before,
    ) {
        (Some(dropped), _) => said.push((REPLACED, replaced(dropped))),
        // An earlier operator saw it.
        (None, Some(before)) => status.conditions.push(before.clone()),
        (None, None) => {}
    }
    status
        .conditions
        .extend(stamped(said, &shown.status.conditions, shown.generation, now));
    keep_ours(&mut status.conditions);
    status
}

/// Counts members into the status, and says how many are ready.
fn members(
    community: &Community,
    findings: &[&Finding],
    facts: &Facts<'_>,
    settled: bool,
    status: &mut CommunityStatus,
) -> Said {
    let by_field: BTreeMap<&str, &Finding> = findings
        .iter()
        .map(|finding| (finding.problem.field.as_str(), *finding))
        .collect();
    let mut seen = BTreeSet::new();
    let (mut ready, mut not) = (0, Vec::new());
    let (mut pending, mut refused) = (false, false);
    for (i, member) in community.members.iter().enumerate() {
        if !seen.insert(member) {
            continue;
        }
        let finding = by_field.get(format!("spec.members[{i}]").as_str());
        let why = match finding {
            Some(finding) => {
                match finding.severity {
                    Severity::Warning => {
                        pending = true;
                        status.unknown_members.push(member.clone());
                    }
                    Severity::Error => refused = true,
                }
                let message = finding.problem.message.as_str();
                Some(message.strip_prefix(&format!("{member}: ")).unwrap_or(message))
            }
            None => unready(member, facts, settled),
        };
        match why {
            None => ready += 1,
            Some(why) => not.push(format!("{member} is not ({why})")),
        }
    }
    let all = seen.len();
    status.ready = Some(format!("{ready}/{all}"));
    status.members = u32::try_from(all).ok();
    status.ready_members = u32::try_from(ready).ok();
    let count = format!("{ready}/{all} members ready");
    if all == 0 {
        return Said::new(
            false,
            "NoMembers",
            "it has no members, so it connects nobody: name them in spec.members",
        );
    }
    if not.is_empty() {
        return Said::new(true, "MembersReady", count);
    }
    let reason = match (refused, pending) {
        (true, _) => "MembersRefused",
        (_, true) => "MembersPending",
        _ => "MembersNotReady",
    };
    Said::new(false, reason, format!("{count}: {}", some(&not, ", ")))
}

/// Why a member that is an endpoint is not ready. Of another cluster no more is known than that it is there. A
/// Community that was ready stays so while a document that some other change brought is on its way.
fn unready(member: &str, facts: &Facts<'_>, settled: bool) -> Option<&'static str> {
    let (cluster, local) = member.split_once('.')?;
    if cluster != facts.cluster {
        return None;
    }
    match facts.agents.get(local) {
        Some(Agent::Ready) => None,
        Some(Agent::Behind) if settled => None,
        Some(Agent::Behind) => Some("its newest document is on its way"),
        Some(Agent::NotReady) if local == CONNECTOR => Some("its pod is not ready"),
        Some(Agent::NotReady) => Some("its agent pod is not ready"),
        None => Some("it has no agent pod"),
    }
}

fn replaced(dropped: &Dropped) -> Said {
    let names = some(&dropped.members, ", ");
    let message = if dropped.all {
        format!(
            "none of the members before is one now: {names}; where both were meant, give each Community a name of \
             its own"
        )
    } else {
        format!("no longer a member: {names}")
    };
    let reason = if dropped.all { ALL_REPLACED } else { "SomeRemoved" };
    Said::new(true, reason, message)
}

/// The status of a Cluster. `now` is RFC 3339.
pub fn cluster(shown: &Shown<'_, Cluster, ClusterStatus>, facts: &Facts<'_>, now: &str) -> ClusterStatus {
    let findings = facts.of(&format!("Cluster {}", shown.name));
    let connector = shown.good.and_then(|cluster| {
        cluster
            .endpoints
            .iter()
            .find(|endpoint| endpoint.kind == EndpointType::Connector)
    });
    let ready = if !shown.malformed.is_empty() {
        Said::new(
            false,
            "Invalid",
            "its spec is refused: see the condition Accepted",
        )
    } else if shown.name == facts.cluster {
        Said::new(
            true,
            "ThisCluster",
            "it is this cluster, whose endpoints are its nodes",
        )
    } else if errors(findings).next().is_some() {
        Said::new(
            false,
            "PartlyRefused",
            "not all of it can be used: see the condition Accepted",
        )
    } else if let Some(connector) = connector {
        let at = connector.public_addresses.join(", ");
        Said::new(
            true,
            "EndpointsKnown",
            format!("its connector is {} at {at}", connector.name),
        )
    } else {
        Said::new(
            false,
            "NotRegistered",
            "its connector is not known yet: register the cluster with the token in spec.token",
        )
    };
    let accepted = match accepted(shown.malformed, findings, shown.good.is_some()) {
        Said {
            status: ConditionStatus::True,
            ..
        } if !shown.status.refused.is_empty() => Said::new(
            false,
            "PartlyRefused",
            format!("left out of its report: {}", some(&shown.status.refused, "; ")),
        ),
        said => said,
    };
    let said = vec![(ACCEPTED, accepted), (READY, ready)];
    ClusterStatus {
        observed_generation: shown.generation,
        conditions: stamped(said, &shown.status.conditions, shown.generation, now),
        // As it is: the network API writes it.
        ..shown.status.clone()
    }
}

fn accepted(malformed: &[Finding], findings: &[&Finding], was_good: bool) -> Said {
    let text = |finding: &Finding| format!("{}: {}", finding.problem.field, finding.problem.message);
    if !malformed.is_empty() {
        let texts: Vec<String> = malformed.iter().map(text).collect();
        let rest = if was_good {
            "; what it said before stays in effect"
        } else {
            ""
        };
        return Said::new(false, "Invalid", format!("{}{rest}", some(&texts, "; ")));
    }
    let texts: Vec<String> = errors(findings).map(text).collect();
    if texts.is_empty() {
        Said::new(true, "Accepted", "all of it could be read and is in effect")
    } else {
        Said::new(false, "PartlyRefused", some(&texts, "; "))
    }
}

fn errors<'a>(findings: &'a [&'a Finding]) -> impl Iterator<Item = &'a Finding> {
    findings
        .iter()
        .copied()
        .filter(|finding| finding.severity == Severity::Error)
}

/// The first few, and how many more there are.
pub fn some(texts: &[String], between: &str) -> String {
    let mut text = texts[..texts.len().min(NAMED)].join(between);
    if texts.len() > NAMED {
        text.push_str(&format!("{between}and {} more", texts.len() - NAMED));
    }
    text
}

/// The condition of a kind.
pub fn condition<'a>(conditions: &'a [Condition], kind: &str) -> Option<&'a Condition> {
    conditions.iter().find(|condition| condition.kind == kind)
}

/// Leaves the conditions that are written here, in their order; others have others beside them.
pub fn keep_ours(conditions: &mut Vec<Condition>) {
    conditions.retain(|condition| [READY, ACCEPTED, REPLACED].contains(&condition.kind.as_str()));
    conditions.sort_by(|one, other| one.kind.cmp(&other.kind));
}

/// Conditions with the time since when each holds: a message that changes is no transition.
fn stamped(
    said: Vec<(&'static str, Said)>,
    before: &[Condition],
    generation: Option<i64>,
    now: &str,
) -> Vec<Condition> {
    let since = |kind, status| match condition(before, kind) {
        Some(before) if before.status == status => before.last_transition_time.clone(),
        _ => now.to_owned(),
    };
    said.into_iter()
        .map(|(kind, said)| Condition {
            kind: kind.to_owned(),
            status: said.status,
            observed_generation: generation,
            last_transition_time: since(kind, said.status),
            reason: said.reason.to_owned(),
            message: said.message,
        })
        .collect()
}

#[cfg(test)]
mod tests;
