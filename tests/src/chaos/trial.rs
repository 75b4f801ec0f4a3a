//! A world in which schedules are carried out, and what is looked at in it.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::panic::resume_unwind;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use fabedge_agent::marks;
use fastrand::Rng;

use super::Schedule;
use super::faults::{KILL_CHARON, acts};
use super::model::{self, Model};
use crate::inject;
use crate::lab::{Lab, Settings, Switch, wait_until};
use crate::observe;
use crate::place::Place;
use crate::pod::Pod;
use crate::probe::stream::Stream;
use crate::scenarios::{cleanup, product, reports};
use crate::table::Outcome;
use crate::world::addresses::{Numbers, Role, SITES};

/// How soon everybody must talk after the last fault, under emulation: charon retransmits for 20 s, and tries anew.
const MENDED: Duration = Duration::from_secs(60);

/// The longest pause behind a fault.
const PAUSE_MS: u64 = 2000;

/// How many schedules it takes until programs have what they need; what they take more of later is lost.
const WARM: usize = 3;

/// How many file descriptors a program may have more than then: those of a question that is under way.
const SPARE_FILES: usize = 8;

/// How many MiB more it may take.
const SPARE_MIB: u64 = 6;

/// How soon an agent has put back what closes its node from outside, for nothing else does. Between passes it waits for
/// several times as long as one takes, which is seconds under emulation.
const REPAIRED: Duration = Duration::from_secs(30);

/// Datagrams per second that go from everybody to everybody all the time: what leaks has to be sent first.
const RATE: u32 = 5;

/// The streams that go besides, from a node itself and over IPv6.
const FROM_NODE: (&str, &str) = ("edge1", "cloud-a");
const OVER_IPV6: (&str, &str) = ("edge2-a", "cloud-b");

/// What a program has open and holds.
#[derive(Clone, Copy, Debug)]
struct Use {
    files: usize,
    mib: u64,
}

/// How soon all was as it has to be.
struct Settled {
    /// Everybody talked who may.
    talk: Duration,
    /// Every node was as it always is then.
    order: Duration,
    /// What was not, the last time that something was not.
    last: String,
}

impl fmt::Display for Settled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (talk, order) = (self.talk.as_secs_f64(), self.order.as_secs_f64());
        write!(
            f,
            "all talk after {talk:.1} s, all is in order after {order:.1} s"
        )?;
        if self.last.is_empty() {
            return Ok(());
        }
        write!(f, "; last: {}", self.last)
    }
}

/// What every site's network consists of, part by part.
type Configuration = BTreeMap<&'static str, BTreeMap<&'static str, String>>;

/// A world, and what is known of it.
pub struct Trial {
    lab: Lab,
    traffic: Vec<Stream>,
    model: Model,
    /// The configuration of all sites, by the Communities that are in force.
    known: BTreeMap<Model, Configuration>,
    /// What it was at the last look.
    seen: Option<Configuration>,
    /// What programs used when they were warm.
    used: BTreeMap<String, Use>,
    held: usize,
}

impl Trial {
    /// Makes one, with everything up and traffic in it.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn start(settings: &Settings) -> Result<Self> {
        let mut lab = Lab::build(settings)?;
        product::bring_up(&mut lab)?;
        product::tunnels_come_up(&mut lab)?;
        acts::foreign_things(&lab)?;
        let mut trial = Self {
            traffic: traffic(&lab)?,
            lab,
            model: Model::default(),
            known: BTreeMap::new(),
            seen: None,
            used: BTreeMap::new(),
            held: 0,
        };
        trial.settled()?;
        Ok(trial)
    }

    /// Carries a schedule out.
    pub fn hold(&mut self, schedule: &Schedule, mut pauses: Rng) -> Result<Outcome> {
        let before = self.lab.capture.counts();
        // Whoever may talk at some time of the schedule may do so all the time: when a change arrives is not known.
        let mut may = self.model.clone();
        let mut done = Vec::new();
        let mut outcome = Ok(());
        for fault in &schedule.0 {
            (fault.kind.change)(&mut self.model, fault.target);
            may.join(&self.model);
            done.push(fault);
            outcome = (fault.kind.act)(&mut self.lab, fault.target)
                .with_context(|| format!("doing `{fault}`"))
                .and_then(|()| {
                    thread::sleep(Duration::from_millis(pauses.u64(..PAUSE_MS)));
                    let patience = if fault.opens() { REPAIRED } else { Duration::ZERO };
                    self.nobody_else(&may)
                        .and_then(|()| self.nothing_forged(patience))
                        .with_context(|| format!("after `{fault}`"))
                });
            if outcome.is_err() {
                break;
            }
        }
        for fault in done.iter().rev() {
            (fault.kind.mend)(&mut self.lab, fault.target).with_context(|| format!("mending `{fault}`"))?;
        }
        outcome?;
        if done.iter().any(|fault| fault.kind.name == KILL_CHARON) {
            acts::look_at_peers(&self.lab)?;
        }
        let settled = self.settled()?;
        let leaked = self.lab.capture.counts().since(&before).plaintext;
        ensure!(leaked == 0, "{leaked} packets of pods in plaintext on the WAN");
        self.held += 1;
        if self.held == WARM {
            self.used = self.uses()?;
        }
        Ok(Outcome::Passed(settled.to_string()))
    }

    /// Those who may not talk do not.
    fn nobody_else(&self, may: &Model) -> Result<()> {
        for (from, to) in may.refused() {
            let echo = model::ask(&self.lab, from, to)?;
            ensure!(!echo, "{from} reaches {to}, which no Community allows");
        }
        Ok(())
    }

    /// A pod takes nothing from its site's LAN for a peer's, at least not after some time.
    fn nothing_forged(&self, patience: Duration) -> Result<()> {
        let pod = |name| self.lab.world.pod(name);
        let (source, victim) = (pod("cloud-a")?.v4, pod("edge2-a")?);
        wait_until(
            "edge2-a takes no plaintext from its LAN for that of cloud-a",
            patience,
            || Ok(inject::from_lan(&self.lab.world, source, victim, 2)? == 0),
        )?;
        Ok(())
    }

    /// Waits until everybody talks who may, and nobody else; then the nodes are as they always are then.
    fn settled(&mut self) -> Result<Settled> {
        let started = Instant::now();
        let wanted: Vec<_> = self.model.pairs().collect();
        for (from, to, talk) in wanted {
            while model::ask(&self.lab, from, to)? != talk {
                let still = if talk { "does not reach" } else { "still reaches" };
                ensure!(
                    started.elapsed() < MENDED,
                    "{from} {still} {to} {:.0} s after all was mended",
                    MENDED.as_secs_f64()
                );
                thread::sleep(Duration::from_millis(100));
            }
        }
        let talk = started.elapsed();
        let mut last = String::new();
        loop {
            match self.as_known() {
                Ok(()) => {
                    let order = started.elapsed();
                    return Ok(Settled { talk, order, last });
                }
                Err(error) if started.elapsed() > MENDED => return Err(error),
                Err(error) => last = format!("{error:#}"),
            }
            thread::sleep(Duration::from_secs(1));
        }
    }

    /// Compares the configuration of all sites with what it was with these Communities before.
    fn as_known(&mut self) -> Result<()> {
        if !observe::sas_agree(&self.lab.world)? {
            bail!("the ends of a tunnel have different SAs");
        }
        if let Outcome::Failed(why) = reports::no_stale_state(&mut self.lab)? {
            bail!("SAs that charon does not know: {why}");
        }
        let lab = &self.lab;
        let now = thread::scope(|scope| {
            let looks = SITES.map(|site| scope.spawn(move || Ok((site.name, configuration(lab, &site)?))));
            let looks = looks.into_iter();
            looks
                .map(|look| look.join().unwrap_or_else(|panic| resume_unwind(panic)))
                .collect::<Result<Configuration>>()
        })?;
        let Some(known) = self.known.get(&self.model) else {
            // What paths carry is measured in the first seconds, and shows in routes.
            if self.seen.replace(now.clone()) != Some(now.clone()) {
                bail!("it is not known what the nodes are like with these Communities");
            }
            self.known.insert(self.model.clone(), now);
            return Ok(());
        };
        for (site, parts) in known {
            for (part, text) in parts {
                let difference = cleanup::difference(text, &now[site][part]);
                ensure!(difference.is_empty(), "{part} of {site}: {difference}");
            }
        }
        Ok(())
    }

    /// What the programs use now.
    fn uses(&mut self) -> Result<BTreeMap<String, Use>> {
        let mut uses = BTreeMap::new();
        for (name, daemon) in self.lab.daemons() {
            let folder = format!("/proc/{}/fd", daemon.pid());
            let files = std::fs::read_dir(&folder).with_context(|| format!("reading {folder}"))?;
            let used = Use {
                files: files.count(),
                mib: daemon.resident_kib()? / 1024,
            };
            uses.insert(name.clone(), used);
        }
        Ok(uses)
    }

    /// What programs have taken more of since they were warm.
    ///
    /// # Errors
    /// When one cannot be asked.
    pub fn leaks(&mut self) -> Result<Vec<String>> {
        let now = self.uses()?;
        let grown = self.used.iter().filter_map(|(name, before)| {
            let now = now.get(name)?;
            let more = now.files > before.files + SPARE_FILES || now.mib > before.mib + SPARE_MIB;
            more.then(|| {
                format!(
                    "{name} has {} files open and {} MiB, and had {} and {}",
                    now.files, now.mib, before.files, before.mib
                )
            })
        });
        Ok(grown.collect())
    }
}

impl Drop for Trial {
    fn drop(&mut self) {
        for stream in self.traffic.drain(..) {
            // What it carried is of no interest.
            stream.finish().ok();
        }
    }
}

/// What a site's network consists of.
fn configuration(lab: &Lab, site: &Numbers) -> Result<BTreeMap<&'static str, String>> {
    const MAPS: [&str; 5] = ["routes4", "routes6", "pods4", "pods6", "peers"];
    let place = &lab.world.site(site.name)?.place;
    let mut parts = observe::configuration(place)?;
    // SAs come and go: whether both ends have the same, and no others, is looked at elsewhere.
    parts.remove("xfrm");
    // What charon notes for itself goes with its device, and nobody looks it up.
    let noted = format!("table {}", marks::ANCHOR_TABLE);
    if let Some(routes) = parts.get_mut("routes") {
        let looked_up = routes.lines().filter(|line| !line.contains(&noted));
        *routes = looked_up.collect::<Vec<_>>().join("\n");
    }
    // Links are pinned by the numbers of devices, and a device that was away comes back with another.
    if let Some(pins) = parts.get_mut("pins") {
        let names = pins
            .lines()
            .map(|name| name.trim_end_matches(|c: char| c.is_ascii_digit()));
        *pins = names.collect::<Vec<_>>().join("\n");
    }
    if lab.settings.fast_path == Switch::On && site.role != Role::Cloud {
        let entries = observe::entries(place, &MAPS)?;
        parts.extend(
            MAPS.into_iter()
                .zip(entries.iter().map(|count| format!("{count} entries"))),
        );
    }
    Ok(parts)
}

/// Streams between all pods that the model knows of, both ways.
fn traffic(lab: &Lab) -> Result<Vec<Stream>> {
    let pod = |name| lab.world.pod(name);
    let mut streams = Vec::new();
    let mut start = |from: &Place, to: &Pod, address: IpAddr| {
        streams.push(Stream::start(from, &to.place, address, RATE, 64)?);
        anyhow::Ok(())
    };
    for (one, other, _) in Model::default().pairs() {
        let (one, other) = (pod(one)?, pod(other)?);
        start(&one.place, other, other.v4.into())?;
        start(&other.place, one, one.v4.into())?;
    }
    let (node, to) = FROM_NODE;
    start(&lab.world.site(node)?.place, pod(to)?, pod(to)?.v4.into())?;
    let (from, to) = OVER_IPV6;
    let to = pod(to)?;
    let address = to.v6.context("a pod without IPv6")?;
    start(&pod(from)?.place, to, address.into())?;
    Ok(streams)
}
