//! Which kernel parameters to raise. Pure.

use std::collections::BTreeMap;

use crate::desired::sysctl::Sysctl;

/// IPv4 forwarding.
pub const FORWARD4: &str = "net/ipv4/ip_forward";
/// IPv6 forwarding.
pub const FORWARD6: &str = "net/ipv6/conf/all/forwarding";

/// Values by parameter, as a path below `/proc/sys`; one that does not exist is absent.
pub type Observed = BTreeMap<String, i64>;

/// Values to write, in this order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Values to write, in this order.
    pub writes: Vec<Write>,
}

/// A value to write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    /// Path below `/proc/sys`.
    pub parameter: String,
    /// The new value.
    pub value: i64,
}

/// `rp_filter` of an interface, or of `all`.
pub fn rp_filter(interface: &str) -> String {
    format!("net/ipv4/conf/{interface}/rp_filter")
}

/// `accept_ra` of an interface.
pub fn accept_ra(interface: &str) -> String {
    format!("net/ipv6/conf/{interface}/accept_ra")
}

/// Every parameter that [`plan`] asks about.
pub fn parameters(desired: &Sysctl) -> Vec<String> {
    let mut parameters = vec![FORWARD4.to_owned(), FORWARD6.to_owned(), rp_filter("all")];
    parameters.extend(desired.advertised.iter().map(|interface| accept_ra(interface)));
    parameters.extend(desired.asymmetric.iter().map(|interface| rp_filter(interface)));
    parameters
}

/// Raises what falls short.
pub fn plan(desired: &Sysctl, observed: &Observed) -> Plan {
    let value = |parameter: &str| observed.get(parameter).copied();
    let mut plan = Plan::default();
    let mut write = |parameter: String, value| plan.writes.push(Write { parameter, value });

    // Before forwarding: the moment it is on, an interface with 1 stops listening to its router.
    for interface in &desired.advertised {
        let parameter = accept_ra(interface);
        if value(&parameter) == Some(1) {
            write(parameter, 2);
        }
    }
    for (wanted, parameter) in [(desired.forward4, FORWARD4), (desired.forward6, FORWARD6)] {
        // A kernel without IPv6 has nothing to forward; the routes say so.
        if wanted && value(parameter) == Some(0) {
            write(parameter.to_owned(), 1);
        }
    }
    // The kernel takes the larger of the interface's and of all's: 1 is strict, 2 is loose, so 2 wins.
    let all = value(&rp_filter("all")).unwrap_or(0);
    for interface in &desired.asymmetric {
        let parameter = rp_filter(interface);
        if value(&parameter).is_some_and(|own| own.max(all) == 1) {
            write(parameter, 2);
        }
    }
    plan
}
