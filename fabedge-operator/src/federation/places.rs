//! How many connections a caller may have at one time.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::caller::Caller;

/// All those who show no certificate together.
const ANONYMOUS: usize = 64;

/// Each of those who show one: what a member's operator has open, and as much again for the next one.
const EACH: usize = 16;

/// The places that are taken. Who has a certificate finds one whatever others do.
#[derive(Clone, Debug, Default)]
pub struct Places(Arc<Mutex<HashMap<Caller, usize>>>);

/// A place; free again when dropped.
#[derive(Debug)]
pub struct Place {
    of: Caller,
    places: Places,
}

impl Places {
    /// Takes a place, if the caller has one left.
    pub fn take(&self, caller: &Caller) -> Option<Place> {
        let most = match caller {
            Caller::Anybody => ANONYMOUS,
            Caller::Member(_) | Caller::Other(_) => EACH,
        };
        let mut taken = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = taken.entry(caller.clone()).or_default();
        if *count >= most {
            return None;
        }
        *count += 1;
        Some(Place {
            of: caller.clone(),
            places: self.clone(),
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = taken.get_mut(&self.of) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.of);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_takes_the_places_of_others() {
        let places = Places::default();
        let beijing = Caller::Member("beijing".to_owned());
        let mut taken: Vec<_> = std::iter::from_fn(|| places.take(&beijing)).collect();
        let anonymous: Vec<_> = std::iter::from_fn(|| places.take(&Caller::Anybody)).collect();
        assert_eq!((taken.len(), anonymous.len()), (EACH, ANONYMOUS));
        let shanghai = places.take(&Caller::Member("shanghai".to_owned()));
        assert!(shanghai.is_some());
        taken.pop();
        assert!(places.take(&beijing).is_some(), "free again");
        drop((taken, anonymous, shanghai));
        assert!(places.0.lock().unwrap().is_empty(), "nobody is remembered");
    }
}
