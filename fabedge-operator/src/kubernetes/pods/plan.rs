//! What to do about the agents' pods: what is wanted and what is there -> actions.

use std::collections::{BTreeMap, BTreeSet};

use time::{Duration, OffsetDateTime};

use super::observed::{AgentPod, ConnectorPod};
use super::template::Hash;

/// How many pods are replaced at a time. Each costs its node some seconds of its tunnels.
pub const AT_A_TIME: usize = 3;

/// For how long a pod that was made or deleted holds up the others.
pub const PATIENCE: Duration = Duration::minutes(3);

/// For how long a pod that ended stays: where its successors end like it, this is the pace.
pub const PAUSE: Duration = Duration::seconds(10);

/// A kubelet watches pods and ConfigMaps apart: when it hears of the pod first, it finds the document as it was. So it
/// is told again.
pub const BETWEEN_TOUCHES: Duration = Duration::seconds(2);

/// What the document's hash ends in while a second touch is owed.
const ONCE: &str = "-1";

/// The pod that an edge should have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Want {
    /// `metadata.uid` of the node.
    pub node: String,
    /// Whether the node's kubelet is heard of.
    pub online: bool,
    /// What it is to be made of; none while there is no PodTemplate.
    pub hash: Option<Hash>,
    /// Hash of its document and certificate.
    pub document: String,
}

/// What is known.
#[derive(Clone, Copy, Debug)]
pub struct State<'a> {
    /// By node.
    pub wanted: &'a BTreeMap<String, Want>,
    /// Nodes whose pod stays as it is, if it is not wanted; none: all of them.
    pub keep: Option<&'a BTreeSet<String>>,
    /// By node.
    pub pods: &'a BTreeMap<String, AgentPod>,
    /// Pods of the connector by their names.
    pub connectors: &'a BTreeMap<String, ConnectorPod>,
    /// Hash of the connector's certificate, once it has one. Its document comes by another way.
    pub certificate: Option<&'a str>,
    /// Nodes of which something is under way, or has just failed.
    pub busy: &'a BTreeSet<String>,
    /// When a pod was touched for the first time.
    pub touched: &'a BTreeMap<String, OffsetDateTime>,
}

/// What to do about one pod.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Action {
    /// Annotate it with this, so that its kubelet looks for the new document.
    Touch(String),
    /// The same for a pod of the connector, by its own name and not by that of a node, and for its certificate.
    TouchConnector(String),
    /// Give it the template's images.
    Patch,
    /// Make it.
    Create,
    /// Delete it, and why.
    Delete(&'static str),
}

/// What to do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Actions and their nodes, the most urgent first.
    pub actions: Vec<(Action, String)>,
    /// When there will be more, though nothing happens.
    pub next: Option<OffsetDateTime>,
    /// How many pods wait until it is their turn to be replaced.
    pub waiting: usize,
}

/// Computes it.
pub fn plan(state: &State<'_>, now: OffsetDateTime) -> Plan {
    let mut plan = Plan::default();
    // Replaced for new arguments or another template: those that do not work first, for it costs nothing.
    let mut outdated: Vec<(bool, &str)> = Vec::new();
    let mut under_way = 0;
    for (name, want) in state.wanted {
        let pod = state.pods.get(name);
        if want.online && holds_up(want, pod, now, &mut plan) || state.busy.contains(name) {
            under_way += 1;
        }
        if state.busy.contains(name) {
            continue;
        }
        let Some(pod) = pod else {
            if want.hash.is_some() {
                plan.act(Action::Create, name);
            }
            continue;
        };
        if pod.deleted.is_some() {
            continue;
        }
        if pod.owner.as_ref() != Some(&want.node) {
            plan.act(Action::Delete("it belongs to an earlier node of this name"), name);
            continue;
        }
        if pod.ended {
            match pod
                .created
                .map(|created| created + PAUSE)
                .filter(|due| now < *due)
            {
                Some(due) => plan.wake(due),
                None => plan.act(Action::Delete("it has ended"), name),
            }
            continue;
        }
        match want.hash.as_ref().map(|hash| differs(hash, &pod.hash)) {
            Some(Difference::Rest) if want.online => outdated.push((pod.ready, name)),
            Some(Difference::Images) => {
                plan.act(Action::Patch, name);
                continue;
            }
            _ => {}
        }
        let touched = state.touched.get(name).copied();
        plan.nudge(name, [&pod.document, &want.document], touched, now, Action::Touch);
    }
    for (name, pod) in state.connectors {
        if let Some(wanted) = state.certificate
            && pod.node.is_some()
            && !state.busy.contains(name)
        {
            let touched = state.touched.get(name).copied();
            let hashes = [&pod.certificate, wanted];
            plan.nudge(name, hashes, touched, now, Action::TouchConnector);
        }
    }
    for name in state.pods.keys().filter(|name| !state.wanted.contains_key(*name)) {
        let pod = &state.pods[name];
        let stays = state.keep.is_none_or(|keep| keep.contains(name));
        if !stays && pod.deleted.is_none() && !state.busy.contains(name) {
            plan.act(Action::Delete("its node is no edge"), name);
        }
    }
    outdated.sort();
    let turn = AT_A_TIME.saturating_sub(under_way).min(outdated.len());
    plan.waiting = outdated.len() - turn;
    for (_, name) in &outdated[..turn] {
        plan.actions.retain(|(_, other)| other != name);
        plan.act(
            Action::Delete("it is made of another template or other arguments"),
            name,
        );
    }
    plan.actions.sort();
    plan
}

impl Plan {
    fn act(&mut self, action: Action, node: &str) {
        self.actions.push((action, node.to_owned()));
    }

    fn wake(&mut self, at: OffsetDateTime) {
        self.next = Some(self.next.map_or(at, |next| next.min(at)));
    }

    /// The annotation itself tells what is owed, so that a new operator knows.
    fn nudge(
        &mut self,
        name: &str,
        [told, wanted]: [&str; 2],
        touched: Option<OffsetDateTime>,
        now: OffsetDateTime,
        touch: fn(String) -> Action,
    ) {
        if told == wanted {
            return;
        }
        let once = format!("{wanted}{ONCE}");
        if told != once {
            return self.act(touch(once), name);
        }
        match touched.map(|at| at + BETWEEN_TOUCHES).filter(|due| now < *due) {
            Some(due) => self.wake(due),
            None => self.act(touch(wanted.to_owned()), name),
        }
    }
}

/// Whether the others have to wait for this pod.
fn holds_up(want: &Want, pod: Option<&AgentPod>, now: OffsetDateTime, plan: &mut Plan) -> bool {
    let until = match pod {
        // The next action makes it.
        None => return want.hash.is_some(),
        Some(pod) => match (pod.deleted, pod.created) {
            (Some(deleted), _) => deleted,
            (None, Some(created)) if !pod.ready && is_current(want, pod) => created,
            _ => return false,
        },
    } + PATIENCE;
    if now < until {
        plan.wake(until);
    }
    now < until
}

fn is_current(want: &Want, pod: &AgentPod) -> bool {
    let difference = want.hash.as_ref().map(|hash| differs(hash, &pod.hash));
    difference.is_none_or(|difference| difference != Difference::Rest)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Difference {
    None,
    Images,
    Rest,
}

fn differs(want: &Hash, have: &str) -> Difference {
    match have.split_once('-') {
        Some((rest, images)) if rest == want.rest => {
            if images == want.images {
                Difference::None
            } else {
                Difference::Images
            }
        }
        _ => Difference::Rest,
    }
}

#[cfg(test)]
mod tests;
