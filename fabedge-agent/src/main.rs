//! `fabedge-agent`.
fn main() {}
