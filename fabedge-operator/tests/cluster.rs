//! `fabedge-operator run` against a real API server, which `KUBECONFIG` names: `cargo xtask test --only k8s` starts
//! one. Every test has a namespace, nodes and communities of its own name, and takes them away.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod cluster {
    mod allocation;
    mod calico;
    mod discovery;
    mod failover;
    mod figures;
    mod kubelet;
    mod lease;
    mod members;
    mod metrics;
    mod pods;
    mod published;
    mod revocation;
    mod rotation;
    mod scale;
    mod tells;
    mod told;
    mod uninstall;
    mod world;
    mod writes;
}
