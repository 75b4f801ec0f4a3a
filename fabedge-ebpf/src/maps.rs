//! The maps, and safe ways to read and write them.
#![allow(
    unsafe_code,
    reason = "map values are shared with other CPUs and the agent; aya marks that unsafe"
)]

use aya_ebpf::{
    btf_maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, PerCpuHashMap, lpm_trie::Key},
    macros::btf_map,
};
use fabedge_common::abi::{Counter, Flow, Peer, Pod, Program, Reason, Route, StackFlow, State, capacity};
use fabedge_ebpf::{
    classify::Tables,
    family::{V4, V6, octets},
    parse::FlowKey,
};

/// `BPF_F_NO_PREALLOC`: memory for the entries there are, not for those there could be.
const NO_PREALLOC: usize = aya_ebpf::bindings::BPF_F_NO_PREALLOC as usize;
const BPF_NOEXIST: u64 = 1;

/// What programs look IPv4 addresses up in.
#[btf_map(name = "routes4")]
pub static ROUTES4: LpmTrie<[u8; 4], Route, { capacity::ROUTES }> = LpmTrie::new();
/// The same for IPv6.
#[btf_map(name = "routes6")]
pub static ROUTES6: LpmTrie<[u8; 16], Route, { capacity::ROUTES }> = LpmTrie::new();
#[btf_map(name = "pods4")]
static PODS4: HashMap<[u8; 4], Pod, { capacity::PODS }, NO_PREALLOC> = HashMap::new();
#[btf_map(name = "pods6")]
static PODS6: HashMap<[u8; 16], Pod, { capacity::PODS }, NO_PREALLOC> = HashMap::new();
#[btf_map(name = "peers")]
static PEERS: PerCpuHashMap<u32, Peer, { capacity::PEERS }, NO_PREALLOC> = PerCpuHashMap::new();
#[btf_map(name = "stats")]
static STATS: PerCpuArray<Counter, { Reason::ENTRIES }> = PerCpuArray::new();
#[btf_map(name = "stack_flows")]
static STACK_FLOWS: LruHashMap<Flow, StackFlow, { capacity::STACK_FLOWS }> = LruHashMap::new();
#[btf_map(name = "state")]
static STATE: Array<State, 1> = Array::new();

/// A key on the stack, aligned so that it is stored word by word and not byte by byte.
#[repr(C, align(8))]
struct Aligned<T>(T);

/// The maps as lookups.
pub struct Maps;

impl Tables<V4> for Maps {
    #[inline(always)]
    fn route(&self, addr: u32) -> Option<&Route> {
        let key = Aligned(Key::new(32, addr.to_ne_bytes()));
        ROUTES4.get(&key.0)
    }

    #[inline(always)]
    fn pod(&self, addr: u32) -> Option<&Pod> {
        let key = Aligned(addr.to_ne_bytes());
        // SAFETY: without preallocation the memory of a removed entry is not used again while the program runs; a torn
        // read can only mix two versions of one pod's entry.
        unsafe { PODS4.get(&key.0) }
    }

    #[inline(always)]
    fn stack_carries_any(&self) -> bool {
        any_recorded()
    }

    #[inline(always)]
    fn stack_carries(&self, flow: &FlowKey) -> bool {
        STACK_FLOWS.get_ptr(as_flow(flow)).is_some()
    }

    #[inline(always)]
    fn record(&self, flow: &FlowKey, seen_by: Program) -> bool {
        record(as_flow(flow), seen_by)
    }
}

impl Tables<V6> for Maps {
    #[inline(always)]
    fn route(&self, addr: [u32; 4]) -> Option<&Route> {
        let key = Aligned(Key::new(128, octets(addr)));
        ROUTES6.get(&key.0)
    }

    #[inline(always)]
    fn pod(&self, addr: [u32; 4]) -> Option<&Pod> {
        let key = Aligned(octets(addr));
        // SAFETY: as above.
        unsafe { PODS6.get(&key.0) }
    }

    #[inline(always)]
    fn stack_carries_any(&self) -> bool {
        any_recorded()
    }

    #[inline(always)]
    fn stack_carries(&self, flow: &FlowKey) -> bool {
        STACK_FLOWS.get_ptr(as_flow(flow)).is_some()
    }

    #[inline(always)]
    fn record(&self, flow: &FlowKey, seen_by: Program) -> bool {
        record(as_flow(flow), seen_by)
    }
}

#[inline(always)]
fn any_recorded() -> bool {
    STATE.get(0).is_some_and(|state| state.flows_recorded != 0)
}

const _: () =
    assert!(size_of::<FlowKey>() == size_of::<Flow>() && align_of::<FlowKey>() == align_of::<Flow>());

#[inline(always)]
fn as_flow(key: &FlowKey) -> &Flow {
    // SAFETY: same size and alignment, and every bit pattern is a `Flow`; a host test holds the fields together.
    unsafe { &*core::ptr::from_ref(key).cast() }
}

#[inline(always)]
fn record(flow: &Flow, seen_by: Program) -> bool {
    // The lookup also moves the entry to the young end of the LRU list, so a flow in use is not evicted.
    if STACK_FLOWS.get_ptr(flow).is_some() {
        return false;
    }
    let value = StackFlow {
        seen_by: seen_by as u32,
    };
    let recorded = STACK_FLOWS.insert(flow, &value, BPF_NOEXIST).is_ok();
    if let Some(state) = STATE.get_ptr_mut(0) {
        // SAFETY: the pointer is to the array's only element; every writer in the kernel writes the same value.
        unsafe { (*state).flows_recorded = 1 };
    }
    recorded
}

/// Counts under a reason.
#[inline(always)]
pub fn count(index: u32, packets: u64, bytes: u64) {
    if let Some(counter) = STATS.get_ptr_mut(index) {
        // SAFETY: the element of this CPU; programs on one CPU do not interrupt each other within a hook.
        unsafe {
            (*counter).packets += packets;
            (*counter).bytes += bytes;
        }
    }
}

/// Counts towards a peer.
#[inline(always)]
pub fn count_sent(reqid: u32, packets: u64, bytes: u64) {
    if let Some(peer) = PEERS.get_ptr_mut(&reqid) {
        // SAFETY: as in `count`.
        unsafe {
            (*peer).tx_packets += packets;
            (*peer).tx_bytes += bytes;
        }
    }
}

/// Counts from a peer.
#[inline(always)]
pub fn count_received(reqid: u32, packets: u64, bytes: u64) {
    if let Some(peer) = PEERS.get_ptr_mut(&reqid) {
        // SAFETY: as in `count`.
        unsafe {
            (*peer).rx_packets += packets;
            (*peer).rx_bytes += bytes;
        }
    }
}
