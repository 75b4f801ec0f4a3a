//! A document as text and as what it says. Of the next one, which says almost the same, only what is new is read: a
//! connector's document may have ten thousand peers, of which one changed.

use std::collections::BTreeSet;
use std::sync::Arc;

use ipnet::IpNet;

use super::{EndpointType, Error, NodeConfig, Peer};
use crate::prefixes::Prefixes;

/// How the list of peers begins in the text that [`NodeConfig::to_yaml`] writes.
const PEERS: &str = "\npeers:\n";

/// More peers than this are not read one by one.
const MOST: usize = 16;

/// A document and its text.
#[derive(Clone, Debug)]
pub struct Document {
    text: Arc<String>,
    config: Arc<NodeConfig>,
    /// Where in the text each peer begins, and where the last one ends; none for a text that is not, to the byte, what
    /// [`NodeConfig::to_yaml`] makes of the document.
    marks: Option<Vec<usize>>,
    /// The prefixes of all peers, and some that they had before.
    nets: Prefixes,
}

/// The peers from `first` up to `last` give way to others.
struct Splice<'a> {
    first: usize,
    last: usize,
    /// Where the text of the others begins, and that text.
    start: usize,
    text: &'a str,
}

impl Document {
    /// Parses a document as [`NodeConfig::parse`] does.
    ///
    /// # Errors
    /// Those of [`NodeConfig::parse`].
    pub fn parse(text: String) -> Result<Self, Error> {
        let config = NodeConfig::parse(&text)?;
        let canonical = || config.to_yaml().is_ok_and(|own| own == text);
        let begin = text.find(PEERS).map(|found| found + PEERS.len());
        let marks = begin.map(|begin| items(&text[begin..]).map(|item| item + begin).collect());
        let marks = marks.filter(|marks: &Vec<usize>| marks.len() == config.peers.len() + 1 && canonical());
        let peers = config.peers.iter();
        Ok(Self {
            nets: peers
                .flat_map(|peer| peer.endpoint.subnets.iter().copied())
                .collect(),
            text: Arc::new(text),
            config: Arc::new(config),
            marks,
        })
    }

    /// Parses what takes this document's place: the outcome is that of [`Document::parse`]. After an error it stays as it is.
    ///
    /// # Errors
    /// Those of [`NodeConfig::parse`].
    pub fn next(&mut self, text: String) -> Result<(), Error> {
        let Some((config, marks, nets)) = self.spliced(&text) else {
            *self = Self::parse(text)?;
            return Ok(());
        };
        for net in nets {
            self.nets.insert(net);
        }
        self.text = Arc::new(text);
        self.config = Arc::new(config);
        self.marks = Some(marks);
        Ok(())
    }

    /// What it says.
    pub fn config(&self) -> &Arc<NodeConfig> {
        &self.config
    }

    /// Its text.
    pub fn text(&self) -> &Arc<String> {
        &self.text
    }

    /// This document with the head and those peers read anew in which `text` differs, and the prefixes of these; none where
    /// it takes more than that. Both are what `to_yaml` writes, and what it writes of a peer depends on nothing but that peer: so the
    /// whole says what its parts say.
    fn spliced(&self, text: &str) -> Option<(NodeConfig, Vec<usize>, BTreeSet<IpNet>)> {
        let marks = self.marks.as_ref()?;
        let (begin, end) = (*marks.first()?, *marks.last()?);
        let head = text.find(PEERS)? + PEERS.len();
        let Splice {
            first,
            last,
            start,
            text: changed,
        } = splice(&self.text, marks, text, head)?;

        let tail = &self.text[end..];
        let part = [&text[..head], changed, tail].concat();
        let mut config = NodeConfig::parse(&part).ok()?;
        if config.to_yaml().ok()? != part {
            return None;
        }
        let peers = std::mem::take(&mut config.peers);
        let old = &self.config.peers;
        let kept = || old[..first].iter().chain(&old[last..]);
        if config.endpoint != self.config.endpoint || !fit(&peers, &old[first..last], kept, &self.nets) {
            return None;
        }
        let nets = Own::of(&peers).nets;
        config.peers = [&old[..first], &peers, &old[last..]].concat();

        let before = marks[..first].iter().map(|mark| mark - begin + head);
        let own = items(changed).take(peers.len()).map(|item| item + start);
        let moved = |mark: &usize| text.len() - (self.text.len() - mark);
        let marks = before.chain(own).chain(marks[last..].iter().map(moved)).collect();
        Some((config, marks, nets))
    }
}

/// In which peers two texts differ; none where they differ behind them. `marks` are the old text's, and the peers of the
/// new one begin at `head`.
fn splice<'a>(old: &str, marks: &[usize], new: &'a str, head: usize) -> Option<Splice<'a>> {
    let (begin, end) = (*marks.first()?, *marks.last()?);
    let (old_body, new_body) = (&old.as_bytes()[begin..], &new.as_bytes()[head..]);
    let before = common_start(old_body, new_body).min(end - begin);
    let most = old_body.len().min(new_body.len()) - before;
    let behind = common_end(
        &old_body[old_body.len() - most..],
        &new_body[new_body.len() - most..],
    );
    if old.len() - behind > end {
        return None;
    }
    let count = marks.len() - 1;
    let mut first = marks
        .partition_point(|mark| mark - begin <= before)
        .checked_sub(1)?;
    first = first.min(count.checked_sub(1)?);
    let mut last = marks
        .partition_point(|mark| *mark < old.len() - behind)
        .max(first);
    let place = |first: usize, last: usize| {
        let start = head + (marks[first] - begin);
        let stop = new.len().checked_sub(old.len() - marks[last])?;
        Some((start, new.get(start..stop)?))
    };
    let (mut start, mut text) = place(first, last)?;
    if text.is_empty() {
        // A list of none is written in another way: the neighbour of what is gone is read with it.
        if last < count {
            last += 1;
        } else {
            first = first.checked_sub(1)?;
        }
        (start, text) = place(first, last)?;
    }
    Some(Splice {
        first,
        last,
        start,
        text,
    })
}

/// What no two peers have.
#[derive(Default)]
struct Own<'a> {
    names: BTreeSet<&'a str>,
    ids: BTreeSet<&'a str>,
    nets: BTreeSet<IpNet>,
}

impl<'a> Own<'a> {
    fn of(peers: &'a [Arc<Peer>]) -> Self {
        let mut all = Self::default();
        for peer in peers {
            all.names.insert(&peer.endpoint.name);
            all.ids.insert(&peer.endpoint.id);
            all.nets.extend(&peer.endpoint.subnets);
        }
        all
    }
}

/// Whether `peers` may take the place of `gone` beside the peers that are kept: what [`NodeConfig::parse`] checks
/// across peers. It has looked at each of `peers` by itself, and what one of them has of those that are gone fitted before.
/// Among `known` are all prefixes of those that are kept: where it tells enough, nobody looks at each of them.
fn fit<'a, I: Iterator<Item = &'a Arc<Peer>>>(
    peers: &[Arc<Peer>],
    gone: &[Arc<Peer>],
    kept: impl Fn() -> I,
    known: &Prefixes,
) -> bool {
    let connector = |peer: &Arc<Peer>| peer.endpoint.kind == EndpointType::Connector;
    if peers.len() + gone.len() > MOST || peers.iter().chain(gone).any(connector) {
        return false;
    }
    let (old, new) = (Own::of(gone), Own::of(peers));
    let names = &new.names - &old.names;
    let ids = &new.ids - &old.ids;
    let nets = &new.nets - &old.nets;
    let lost = &old.names - &new.names;
    let same = names.is_empty() && ids.is_empty() && lost.is_empty();
    if same && !nets.iter().any(|net| known.overlap(net)) {
        return true;
    }
    !kept().any(|peer| {
        let own = &peer.endpoint;
        !names.is_empty() && names.contains(own.name.as_str())
            || !ids.is_empty() && ids.contains(own.id.as_str())
            || peer.relays.iter().any(|name| lost.contains(name.as_str()))
            || own
                .subnets
                .iter()
                .any(|net| nets.iter().any(|new| new.contains(net) || net.contains(new)))
    })
}

/// Where the items of a list begin at whose first item `text` starts, and where the last one ends.
fn items(text: &str) -> impl Iterator<Item = usize> + '_ {
    let mut at = 0;
    let mut ended = false;
    let mut lines = text.split_inclusive('\n');
    std::iter::from_fn(move || {
        while !ended {
            let here = at;
            match lines.next() {
                Some(line) if line.starts_with("- ") => {
                    at += line.len();
                    return Some(here);
                }
                Some(line) if line.starts_with("  ") => at += line.len(),
                _ => {
                    ended = true;
                    return Some(here);
                }
            }
        }
        None
    })
}

/// How much is compared at once.
const BLOCK: usize = 256;

/// How many bytes both begin with.
fn common_start(a: &[u8], b: &[u8]) -> usize {
    let blocks = a.chunks_exact(BLOCK).zip(b.chunks_exact(BLOCK));
    let same = blocks.take_while(|(a, b)| a == b).count() * BLOCK;
    same + a[same..]
        .iter()
        .zip(&b[same..])
        .take_while(|(a, b)| a == b)
        .count()
}

/// How many bytes both end with.
fn common_end(a: &[u8], b: &[u8]) -> usize {
    let blocks = a.rchunks_exact(BLOCK).zip(b.rchunks_exact(BLOCK));
    let same = blocks.take_while(|(a, b)| a == b).count() * BLOCK;
    let rest = a[..a.len() - same]
        .iter()
        .rev()
        .zip(b[..b.len() - same].iter().rev());
    same + rest.take_while(|(a, b)| a == b).count()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A document of the peers with these numbers, which may be absurd; a peer's variant is its second prefix.
    fn text(generation: u64, peers: &[(u8, u8)]) -> String {
        let mut text = format!(
            "version: 1\ngeneration: {generation}\nid: CN=a.me\nname: a.me\npublicAddresses: []\nsubnets:\n- 10.0.0.0/24\n\
             nodeSubnets: []\ntype: EdgeNode\npeers:\n"
        );
        for (peer, variant) in peers {
            text += &format!(
                "- id: CN=a.edge{peer}\n  name: a.edge{peer}\n  publicAddresses: []\n  subnets:\n  - 10.1.{peer}.0/24\n  - \
                 10.2.{variant}.0/24\n  nodeSubnets: []\n  type: EdgeNode\n  via: direct\n  initiate: false\n"
            );
        }
        text + "networkSubnets:\n- 10.0.0.0/8\n...\n"
    }

    fn document(peers: &[(u8, u8)]) -> Document {
        let document = Document::parse(text(1, peers)).unwrap();
        assert!(document.marks.is_some(), "{}", document.config.to_yaml().unwrap());
        document
    }

    #[test]
    fn one_peer_of_many_is_read_by_itself() {
        let many: Vec<(u8, u8)> = (0..100).map(|number| (number, number)).collect();
        let old = document(&many);
        type Edit<'a> = &'a dyn Fn(&mut Vec<(u8, u8)>);
        let changed = |change: Edit<'_>| {
            let mut peers = many.clone();
            change(&mut peers);
            text(2, &peers)
        };
        for (what, new) in [
            ("first", changed(&|peers| peers[0].1 = 200)),
            ("middle", changed(&|peers| peers[50].1 = 200)),
            ("last", changed(&|peers| peers[99].1 = 200)),
            ("one more", changed(&|peers| peers.push((200, 200)))),
            ("one between", changed(&|peers| peers.insert(50, (200, 200)))),
            ("one less", changed(&|peers| peers.retain(|peer| peer.0 != 50))),
            ("the last less", changed(&|peers| peers.truncate(99))),
            ("only the head", changed(&|_| {})),
        ] {
            let (config, marks, _) = old.spliced(&new).unwrap_or_else(|| panic!("{what}"));
            let whole = Document::parse(new).unwrap();
            assert_eq!(
                (config, Some(marks)),
                ((*whole.config).clone(), whole.marks),
                "{what}"
            );
        }
    }

    #[test]
    fn what_contradicts_the_others_is_refused_as_ever() {
        let mut old = document(&[(1, 1), (2, 2), (3, 3)]);
        for peers in [[(1, 1), (2, 3), (3, 3)], [(1, 1), (1, 2), (3, 3)]] {
            let new = text(2, &peers);
            let whole = Document::parse(new.clone()).unwrap_err().to_string();
            assert_eq!(old.next(new).unwrap_err().to_string(), whole);
        }
    }

    #[test]
    fn a_prefix_that_another_peer_had_may_be_had() {
        let mut document = document(&[(1, 1), (2, 2), (3, 3)]);
        for (peers, fits) in [
            ([(1, 9), (2, 2), (3, 3)], true),
            ([(1, 9), (2, 1), (3, 3)], true),
            ([(1, 1), (2, 1), (3, 3)], false),
            ([(1, 2), (2, 1), (3, 3)], true),
        ] {
            assert_eq!(document.next(text(2, &peers)).is_ok(), fits, "{peers:?}");
        }
    }

    #[test]
    fn a_text_of_another_hand_is_read_as_a_whole() {
        let ours = text(1, &[(1, 1), (2, 2)]);
        let theirs = ours.replace("  via: direct\n", "  via: direct # no relay\n");
        let mut document = Document::parse(theirs.clone()).unwrap();
        assert!(document.marks.is_none());
        document
            .next(theirs.replace("generation: 1", "generation: 2"))
            .unwrap();
        assert_eq!(document.config().generation, 2);
        assert!(Document::parse(ours.clone()).unwrap().spliced(&theirs).is_none());
        assert!(Document::parse(ours).unwrap().next(theirs).is_ok());
    }

    proptest! {
        #[test]
        fn the_next_document_says_what_it_says_by_itself(
            old in proptest::collection::btree_map(0u8..20, 0u8..40, 1..12),
            edits in proptest::collection::vec((0u8..4, 0usize..12, 0u8..20, 0u8..40), 0..4),
            cut in proptest::option::of(0usize..2000),
        ) {
            let mut peers: Vec<(u8, u8)> = old.into_iter().collect();
            let Ok(mut document) = Document::parse(text(1, &peers)) else { return Ok(()) };
            for (edit, at, peer, variant) in edits {
                let at = at.min(peers.len().saturating_sub(1));
                match edit {
                    0 => peers.insert(at, (peer, variant)),
                    1 => drop(peers.drain(at..peers.len().min(at + 1))),
                    2 if !peers.is_empty() => peers[at].1 = variant,
                    _ => peers.push((peer, variant)),
                }
            }
            let mut new = text(2, &peers);
            if let Some(cut) = cut {
                new.truncate(cut.min(new.len()));
            }
            let (whole, next) = (Document::parse(new.clone()), document.next(new));
            match (whole, next) {
                (Ok(whole), Ok(())) => {
                    prop_assert_eq!(&whole.config, &document.config);
                    prop_assert_eq!(whole.marks, document.marks);
                }
                (Err(whole), Err(next)) => prop_assert_eq!(whole.to_string(), next.to_string()),
                (whole, next) => prop_assert!(false, "{:?} and {:?}", whole, next),
            }
        }
    }
}
