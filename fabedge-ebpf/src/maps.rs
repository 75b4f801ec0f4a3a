//! The maps, and safe ways to read and write them.
#![allow(
    unsafe_code,
    reason = "map values are shared with other CPUs and the agent; aya marks that unsafe"
)]

use aya_ebpf::{
    btf_maps::{Array, ArrayOfMaps, HashMap, LpmTrie, LruHashMap, PerCpuArray, PerCpuHashMap},
    macros::btf_map,
};
use fabedge_common::abi::fib::{self, Block, Cell, Line, Lines, Narrow, Page, Place, Wide};
use fabedge_common::abi::{Counter, Flow, Peer, Pod, Program, Reason, Route, StackFlow, State, capacity};
use fabedge_ebpf::{
    classify::Tables,
    family::{V4, V6, octets},
    parse::FlowKey,
};

/// `BPF_F_NO_PREALLOC`: memory for the entries there are, not for those there could be.
pub const NO_PREALLOC: usize = aya_ebpf::bindings::BPF_F_NO_PREALLOC as usize;
const BPF_NOEXIST: u64 = 1;

/// For people; in the benchmark, what to compare with.
#[btf_map(name = "routes4")]
pub static ROUTES4: LpmTrie<[u8; 4], Route, { capacity::ROUTES }> = LpmTrie::new();
/// For people; in the benchmark, what to compare with.
#[btf_map(name = "routes6")]
pub static ROUTES6: LpmTrie<[u8; 16], Route, { capacity::ROUTES }> = LpmTrie::new();
#[btf_map(name = "fib")]
static FIB: ArrayOfMaps<Array<Page, 1>, { fib::FAMILIES }> = ArrayOfMaps::new();
#[btf_map(name = "fib_block")]
static FIB_BLOCKS: ArrayOfMaps<Array<Block, 1>, { fib::BLOCKS }> = ArrayOfMaps::new();
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

/// The forwarding table of a family.
struct Table<'a>(&'a Page);

impl Table<'_> {
    #[inline(always)]
    fn of(family: u32) -> Option<Self> {
        Some(Self(FIB.get(family)?.get(0)?))
    }
}

impl Lines for Table<'_> {
    #[inline(always)]
    fn line(&self, number: u32) -> Option<&Line> {
        Some(match fib::place(number) {
            Place::Page(line) => &self.0.as_chunks().0[line],
            Place::Block(block, line) => &FIB_BLOCKS.get(block)?.get(0)?.as_chunks().0[line],
        })
    }

    #[inline(always)]
    fn narrow(&self, node: u32, word: u64) -> Cell {
        Cell(fib_narrow(self.0, node, word))
    }

    #[inline(always)]
    fn wide(&self, node: u32, word: u64) -> Cell {
        Cell(fib_wide(self.0, node, word))
    }
}

/// The functions below are global ones to the kernel, which verifies such by themselves, once for a program, and not at
/// each call again (kernel/bpf/verifier.c, `do_check_subprogs`; Linux 5.6). Their arguments are what it takes for that:
/// numbers, and pointers to what has a size, which may be null as far as it knows.
///
/// With the page that the lookup began with: the present one may be another table's by now.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn fib_narrow(page: *const Page, node: u32, word: u64) -> u32 {
    // SAFETY: null, or the page of the caller.
    match unsafe { page.as_ref() } {
        Some(page) => fib::step::<Narrow>(&Table(page), node, word).0,
        None => Cell::NONE.0,
    }
}

/// As above.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn fib_wide(page: *const Page, node: u32, word: u64) -> u32 {
    // SAFETY: as above.
    match unsafe { page.as_ref() } {
        Some(page) => fib::step::<Wide>(&Table(page), node, word).0,
        None => Cell::NONE.0,
    }
}

/// A route on its way between functions.
type Words = [u64; 3];

/// Looks an IPv4 route up; 1 if there is one.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn fib_route4(addr: u32, found: *mut Words) -> u32 {
    let route = Table::of(fib::IPV4).and_then(|table| fib::lookup4(&table, u32::from_be(addr)));
    hand_over(route, found)
}

/// Looks an IPv6 route up; 1 if there is one.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn fib_route6(first: u64, second: u64, found: *mut Words) -> u32 {
    let route = Table::of(fib::IPV6).and_then(|table| fib::lookup6(&table, [first, second]));
    hand_over(route, found)
}

#[inline(always)]
fn hand_over(route: Option<Route>, to: *mut Words) -> u32 {
    // SAFETY: null, or the caller's own words.
    match (route, unsafe { to.as_mut() }) {
        (Some(route), Some(to)) => {
            *to = route.to_words();
            1
        }
        _ => 0,
    }
}

/// The route that a lookup of `addr` finds.
#[inline(always)]
fn found(addr: u64, lookup: impl FnOnce(&mut Words) -> u32) -> Option<Route> {
    // Set beforehand, for the verifier demands that memory handed to a global function is; and not to zeros, of which
    // the compiler makes a call of `memset`, byte by byte.
    let mut words = [addr; 3];
    (lookup(&mut words) != 0).then_some(Route::from_words(words))
}

/// The maps as lookups.
pub struct Maps;

impl Tables<V4> for Maps {
    #[inline(always)]
    fn route(&self, addr: u32) -> Option<Route> {
        found(addr.into(), |route| fib_route4(addr, route))
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
    fn route(&self, addr: [u32; 4]) -> Option<Route> {
        let [a, b, c, d] = addr.map(|word| u64::from(u32::from_be(word)));
        let (first, second) = (a << 32 | b, c << 32 | d);
        found(first, |route| fib_route6(first, second, route))
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
