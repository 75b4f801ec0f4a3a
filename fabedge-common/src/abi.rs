//! The kernel ABI: map keys and values, names, drop reasons.
