//! Where a packet goes. Pure: the maps are behind [`Tables`], so that the host can test every decision.

use fabedge_common::abi::{
    POD_LEARNING, POD_SHAPED, Pod, Program, ROUTE_STACK, ROUTE_TUN, ROUTE_XFRM, Reason, Route,
};

use crate::{
    family::Family,
    parse::{Bytes, FlowKey, Header, Parse},
};

/// The maps of one family, as lookups.
pub trait Tables<F: Family> {
    /// The route with the longest prefix.
    fn route(&self, addr: F::Addr) -> Option<Route>;
    /// The pod with this address.
    fn pod(&self, addr: F::Addr) -> Option<&Pod>;
    /// Whether the stack is known to carry any flow at all.
    fn stack_carries_any(&self) -> bool;
    /// Whether the stack carries this direction of the flow.
    fn stack_carries(&self, flow: &FlowKey) -> bool;
    /// Remembers that it does; true if that is news.
    fn record(&self, flow: &FlowKey, seen_by: Program) -> bool;
}

/// What is known of a packet besides its bytes.
#[derive(Clone, Copy, Debug)]
pub struct Meta {
    /// Interface on which the hook is.
    pub ifindex: u32,
    /// Bytes from the IP header on.
    pub len: u32,
    /// Payload bytes per segment; 0: not a GSO packet.
    pub gso_size: u32,
}

/// What decrypted a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sa {
    /// The SA with this reqid.
    Reqid(u32),
    /// Nothing: the packet came by no SA.
    None,
    /// Not to be known here: charon decrypted it (kernel-libipsec), and checked its own selectors.
    Unknown,
}

/// A packet that stays with the stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stack {
    /// Why.
    pub reason: Reason,
    /// By its addresses it was fit for the fast path, and its flow is not known as one that the stack translates.
    pub plain: bool,
}

impl From<Reason> for Stack {
    #[inline(always)]
    fn from(reason: Reason) -> Self {
        Self { reason, plain: false }
    }
}

/// Verdict of `pod_egress`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Egress {
    /// Into the tunnel of this route.
    Tunnel(Route),
    /// To the stack.
    Stack(Stack),
}

/// Verdict of `tunnel_ingress`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ingress<'a> {
    /// Into this pod.
    Pod(&'a Pod),
    /// To the stack.
    Stack(Stack),
    /// Nowhere.
    Drop(Reason),
}

/// A packet that a pod sends.
#[inline(always)]
pub fn pod_egress<F: Parse>(
    header: &Header<F>,
    bytes: &impl Bytes,
    meta: &Meta,
    tables: &impl Tables<F>,
) -> Egress {
    match pod_egress_route(header, bytes, meta, tables) {
        Ok(route) => Egress::Tunnel(route),
        Err(stack) => Egress::Stack(stack),
    }
}

#[inline(always)]
fn pod_egress_route<F: Parse>(
    header: &Header<F>,
    bytes: &impl Bytes,
    meta: &Meta,
    tables: &impl Tables<F>,
) -> Result<Route, Stack> {
    if F::is_local_scope(header.dst) {
        return Err(Reason::Multicast.into());
    }
    // Most packets that are not for a tunnel leave here, after one lookup.
    let route = tables.route(header.dst).ok_or(Reason::NoRoute)?;
    if route.flags & ROUTE_STACK != 0 {
        return Err(Reason::StackPrefix.into());
    }
    let pod = match tables.pod(header.src) {
        Some(pod) if pod.ifindex == meta.ifindex => pod,
        _ => return Err(Reason::ForeignSource.into()),
    };
    if pod.flags & POD_SHAPED != 0 {
        return Err(Reason::Shaped.into());
    }
    fit(header, bytes, pod, tables)?;
    if exceeds(header, bytes, meta, route.mtu) {
        return Err(Stack {
            reason: Reason::OverMtu,
            plain: true,
        });
    }
    Ok(route)
}

/// A packet that came out of a tunnel.
#[inline(always)]
pub fn tunnel_ingress<'a, F: Parse>(
    header: &Header<F>,
    bytes: &impl Bytes,
    sa: Sa,
    source: Option<&Route>,
    tables: &'a impl Tables<F>,
) -> Ingress<'a> {
    // A redirect goes past the kernel's inbound policy check, so the check is made here: the SA that decrypted the
    // packet must be the one that packets to its source would take.
    let source = match (sa, source) {
        (Sa::None, _) => return Ingress::Drop(Reason::NoSa),
        (_, None) => return Ingress::Stack(Reason::UnknownSource.into()),
        (Sa::Reqid(reqid), Some(route)) if route.kind != ROUTE_XFRM || route.reqid != reqid => {
            return Ingress::Drop(Reason::SpoofedSource);
        }
        (Sa::Unknown, Some(route)) if route.kind != ROUTE_TUN => {
            return Ingress::Drop(Reason::SpoofedSource);
        }
        (_, Some(route)) => route,
    };
    match tunnel_ingress_pod(header, bytes, source, tables) {
        Ok(pod) => Ingress::Pod(pod),
        Err(stack) => Ingress::Stack(stack),
    }
}

#[inline(always)]
fn tunnel_ingress_pod<'a, F: Parse>(
    header: &Header<F>,
    bytes: &impl Bytes,
    source: &Route,
    tables: &'a impl Tables<F>,
) -> Result<&'a Pod, Stack> {
    if F::is_local_scope(header.dst) {
        return Err(Reason::Multicast.into());
    }
    if source.flags & ROUTE_STACK != 0 {
        return Err(Reason::StackPrefix.into());
    }
    let pod = tables.pod(header.dst).ok_or(Reason::NoPod)?;
    if pod.flags & POD_SHAPED != 0 {
        return Err(Reason::Shaped.into());
    }
    fit(header, bytes, pod, tables)?;
    Ok(pod)
}

/// Whether a packet between a peer and `pod` may go past the stack, for all that its own bytes and its flow say.
#[inline(always)]
fn fit<F: Parse>(
    header: &Header<F>,
    bytes: &impl Bytes,
    pod: &Pod,
    tables: &impl Tables<F>,
) -> Result<(), Stack> {
    if let Some(reason @ (Reason::Options | Reason::Fragment)) = header.unfit {
        // Without ports it cannot be told whether its flow is one that the stack translates. That it is plain is
        // no more than likely; taken for plain wrongly, it does not refresh the record of its flow.
        return Err(Stack { reason, plain: true });
    }
    let ports = header.ports(bytes)?;
    if tables.stack_carries_any() && tables.stack_carries(&header.flow(ports)) {
        return Err(Reason::StackFlow.into());
    }
    if let Some(reason) = header.unfit {
        return Err(Stack { reason, plain: true });
    }
    if pod.flags & POD_LEARNING != 0 {
        return Err(Stack {
            reason: Reason::Learning,
            plain: true,
        });
    }
    Ok(())
}

/// Whether the packet, or a segment of it, is larger than `mtu`.
#[inline(always)]
fn exceeds<F: Parse>(header: &Header<F>, bytes: &impl Bytes, meta: &Meta, mtu: u32) -> bool {
    if meta.gso_size == 0 {
        return meta.len > mtu;
    }
    F::HEADER + header.segment_header(bytes) + meta.gso_size > mtu
}

/// A packet that the stack sends into a tunnel, and that did not come here as a plain one.
#[inline(always)]
pub fn tunnel_egress<F: Parse>(
    header: &Header<F>,
    bytes: &impl Bytes,
    destination: Option<Route>,
    tables: &impl Tables<F>,
) -> Reason {
    let pod = tables.pod(header.src);
    record(header, bytes, pod, destination, tables, Program::TunnelEgress)
}

/// A packet that the stack delivers to a pod, and that did not come here as a plain one.
#[inline(always)]
pub fn pod_ingress<F: Parse>(header: &Header<F>, bytes: &impl Bytes, tables: &impl Tables<F>) -> Reason {
    // Most of what a pod receives is from nearby or from outside; one lookup tells.
    match tables.route(header.src) {
        None => Reason::Carried,
        route => record(
            header,
            bytes,
            tables.pod(header.dst),
            route,
            tables,
            Program::PodIngress,
        ),
    }
}

/// Answers go past the stack only if they run between a pod of this node and a prefix with a fast route; only such
/// flows are worth remembering.
#[inline(always)]
fn record<F: Parse>(
    header: &Header<F>,
    bytes: &impl Bytes,
    pod: Option<&Pod>,
    route: Option<Route>,
    tables: &impl Tables<F>,
    seen_by: Program,
) -> Reason {
    match (pod, route) {
        (Some(pod), Some(route)) if pod.flags & POD_SHAPED == 0 && route.flags & ROUTE_STACK == 0 => {}
        _ => return Reason::Carried,
    }
    if header.later_fragment || header.unfit == Some(Reason::Options) {
        return Reason::Carried;
    }
    match header.ports(bytes) {
        Ok(ports) if tables.record(&header.flow(ports).reverse(), seen_by) => Reason::Recorded,
        Ok(_) | Err(_) => Reason::Carried,
    }
}

#[cfg(test)]
mod tests;
