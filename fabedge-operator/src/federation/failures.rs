//! How often an address may fail to show who it is.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// Failures that an address has in [`WINDOW`].
const ALLOWED: u32 = 10;

/// After which failures are forgotten.
const WINDOW: Duration = Duration::from_secs(60);

/// Addresses that are remembered; the oldest make room.
const REMEMBERED: usize = 4096;

/// Counts failures by address. Behind a NodePort many may have the same, so this bounds only who shows no certificate.
#[derive(Debug, Default)]
pub struct Failures {
    by_address: HashMap<IpAddr, (Instant, u32)>,
}

impl Failures {
    /// How long an address has to wait, when it failed too often.
    pub fn must_wait(&self, address: IpAddr, now: Instant) -> Option<Duration> {
        let (since, count) = self.by_address.get(&address)?;
        let left = (*since + WINDOW).checked_duration_since(now)?;
        (*count >= ALLOWED && !left.is_zero()).then_some(left)
    }

    /// Counts a failure.
    pub fn count(&mut self, address: IpAddr, now: Instant) {
        if self.by_address.len() >= REMEMBERED && !self.by_address.contains_key(&address) {
            self.by_address
                .retain(|_, (since, _)| now.duration_since(*since) < WINDOW);
            if self.by_address.len() >= REMEMBERED {
                let oldest = self.by_address.iter().min_by_key(|(_, (since, _))| *since);
                if let Some(address) = oldest.map(|(address, _)| *address) {
                    self.by_address.remove(&address);
                }
            }
        }
        let (since, count) = self.by_address.entry(address).or_insert((now, 0));
        if now.duration_since(*since) >= WINDOW {
            (*since, *count) = (now, 0);
        }
        *count += 1;
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn who_fails_too_often_waits_and_others_do_not() {
        let mut failures = Failures::default();
        let (now, bad, good) = (
            Instant::now(),
            IpAddr::from([10, 0, 0, 1]),
            IpAddr::from([10, 0, 0, 2]),
        );
        for _ in 0..ALLOWED {
            assert_eq!(failures.must_wait(bad, now), None);
            failures.count(bad, now);
        }
        assert_eq!(failures.must_wait(bad, now), Some(WINDOW));
        assert_eq!(failures.must_wait(good, now), None);
        assert_eq!(failures.must_wait(bad, now + WINDOW), None);
        failures.count(bad, now + WINDOW);
        assert_eq!(failures.must_wait(bad, now + WINDOW), None, "counted anew");
    }

    #[test]
    fn memory_is_bounded() {
        let mut failures = Failures::default();
        let now = Instant::now();
        for i in 0..2 * REMEMBERED as u32 {
            failures.count(
                Ipv4Addr::from(i).into(),
                now + Duration::from_millis(u64::from(i)),
            );
        }
        assert_eq!(failures.by_address.len(), REMEMBERED);
    }
}
