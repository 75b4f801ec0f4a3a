//! The search for the largest size that gets through. Pure.

use std::collections::BTreeSet;

/// What every path is taken to carry, and what is asked to see whether anybody answers. Every IPv4 host takes 576 bytes
/// (RFC 791); a tunnel over that has 60 to 85 less.
const LEAST: u32 = 490;

/// How near to the largest size that gets through the result has to be.
const NEAR: u32 = 8;

/// How many sizes are asked at once to narrow the search.
const AT_ONCE: u32 = 16;

/// A size that gets no answer so many times does not get through.
const TRIES: u32 = 3;

/// A search, and what it has found so far.
#[derive(Debug)]
pub struct Search {
    /// The largest size that was answered.
    passes: Option<u32>,
    /// The smallest one that does not get through, or that is of no interest.
    fails: u32,
    /// Sizes that are asked now, and how often they were.
    asked: (BTreeSet<u32>, u32),
}

impl Search {
    /// Searches up to `most`, and first where the result was last time.
    pub fn new(most: u32, known: Option<u32>) -> Self {
        let near = known.into_iter().flat_map(|known| [known, known + NEAR]);
        let first = [LEAST, most].into_iter().chain(near);
        Self {
            passes: None,
            fails: most + 1,
            asked: (first.filter(|size| (LEAST..=most).contains(size)).collect(), 0),
        }
    }

    /// The sizes to ask now; none when the search is over.
    pub fn sizes(&self) -> Vec<u32> {
        self.asked.0.iter().copied().collect()
    }

    /// Takes notice of which of the sizes were answered.
    pub fn learn(&mut self, answered: &BTreeSet<u32>) {
        let (asked, tries) = &mut self.asked;
        self.passes = self.passes.max(answered.intersection(asked).max().copied());
        // Who carries a larger packet carries a smaller one.
        asked.retain(|size| Some(*size) > self.passes);
        *tries += 1;
        if !asked.is_empty() && *tries < TRIES {
            return;
        }
        self.fails = asked.first().copied().unwrap_or(self.fails);
        self.asked = (self.between(), 0);
    }

    /// The largest size that was answered.
    pub fn found(&self) -> Option<u32> {
        self.passes
    }

    fn between(&self) -> BTreeSet<u32> {
        let Some(passes) = self.passes.filter(|passes| self.fails - passes > NEAR) else {
            return BTreeSet::new();
        };
        let step = (self.fails - passes).div_ceil(AT_ONCE).max(NEAR);
        (passes..self.fails).step_by(step as usize).skip(1).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The result over a path of this MTU that loses every so manieth of its packets, and how many were sent.
    fn run(mut search: Search, path: u32, loss: usize) -> (Option<u32>, usize) {
        let mut sent = 0;
        loop {
            let sizes = search.sizes();
            if sizes.is_empty() {
                return (search.found(), sent);
            }
            let arrives = |size: &&u32| {
                sent += 1;
                **size <= path && (loss == 0 || !sent.is_multiple_of(loss))
            };
            let answered = sizes.iter().filter(arrives).copied().collect();
            search.learn(&answered);
        }
    }

    #[test]
    fn a_path_that_carries_everything_takes_two_packets() {
        assert_eq!(run(Search::new(1400, None), 1500, 0), (Some(1400), 2));
        assert_eq!(run(Search::new(1400, Some(1400)), 1500, 0), (Some(1400), 2));
        // It has become wider.
        assert_eq!(run(Search::new(1400, Some(1218)), 1500, 0), (Some(1400), 4));
    }

    #[test]
    fn what_has_not_changed_takes_few() {
        let (found, sent) = run(Search::new(1400, Some(1216)), 1218, 0);
        assert_eq!((found, sent), (Some(1216), 8));
    }

    #[test]
    fn who_does_not_answer_is_asked_no_more() {
        assert_eq!(run(Search::new(1400, None), 0, 0), (None, 6));
    }

    proptest! {
        #[test]
        fn the_result_is_near_and_never_above(
            most in 1280_u32..9000,
            path in LEAST..9100,
            known in proptest::option::of(LEAST..9100),
            loss in prop_oneof![Just(0_usize), 3_usize..20],
        ) {
            let (found, sent) = run(Search::new(most, known), path, loss);
            let best = path.min(most);
            match found {
                None => prop_assert!(loss > 0, "nothing found without loss"),
                Some(found) => {
                    prop_assert!(found <= best);
                    prop_assert!(loss > 0 || best - found <= NEAR, "{found} of {best}");
                }
            }
            prop_assert!(sent < 200, "{sent} packets");
        }
    }
}
