//! The order in which modes are measured. A machine that others share is slow at one time and fast at another: modes
//! that take turns, in an order that changes, all see the same of it.

use fastrand::Rng;

/// `rounds` times every one of `modes`, in another order each time.
pub fn shuffled<T: Copy>(modes: &[T], rounds: usize, rng: &mut Rng) -> Vec<Vec<T>> {
    let round = |_| {
        let mut order = modes.to_vec();
        rng.shuffle(&mut order);
        order
    };
    (0..rounds).map(round).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_round_has_every_mode_once_and_a_seed_gives_its_order() {
        let modes = ["a", "b", "c", "d"];
        let order = shuffled(&modes, 20, &mut Rng::with_seed(5));
        for round in &order {
            let mut sorted = round.clone();
            sorted.sort_unstable();
            assert_eq!(sorted, modes);
        }
        assert!(order.iter().any(|round| round != &order[0]));
        assert_eq!(order, shuffled(&modes, 20, &mut Rng::with_seed(5)));
    }
}
