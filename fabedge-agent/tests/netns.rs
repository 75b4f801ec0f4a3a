//! Our subsystems against a real kernel, each test in network namespaces of its own, verified with `ip`, `nft`,
//! `iptables` and packets. Needs root and those commands.
#![allow(clippy::unwrap_used, reason = "a panic is a test's report")]

mod netns {
    pub mod documents;
    pub mod space;
    pub mod world;

    mod changes;
    mod cloud;
    mod connector;
    mod edge;
    mod firewall;
    mod links;
    mod overlay;
    mod routes;
    mod sysctl;
}
