//! Member clusters at a host: how one joins, what the network API refuses, and what it bears.

mod attacks;
mod bounds;
mod client;
mod host;
mod joining;
mod polling;
mod replays;
mod reports;
mod tokens;
