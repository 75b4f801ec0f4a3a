//! Compiles routes into the forwarding table that the programs look addresses up in. Pure.
//!
//! The prefixes of a word become ranges that do not overlap, each with its cell. A tree over them is made from the
//! root down: what is left of the ranges in a slot is a bucket where they fit into one, else a node again.

use std::collections::{BTreeMap, HashMap};

use fabedge_common::abi::Route;
use fabedge_common::abi::fib::{
    BANK_BLOCKS, BLOCK_LINES, Bucket, Cell, IPV4, IPV6, Kind, Line, Lines, Narrow, PAGE_LINES, SLOTS, WORDS,
    Wide, bank, first_line, node,
};
use foldhash::fast::FixedState;
use ipnet::IpNet;

/// Most slots of a node, as a power of two: 1 MiB of them.
const MOST_BITS: u32 = 18;

/// Fewest slots of a node that has room for them, as a power of two: a line.
const LEAST_BITS: u32 = 4;

/// How many times as many slots a node gets if that makes a bucket of none of them, as a power of two. A bucket is
/// 16 times as large as a slot.
const UNBUCKETED_BITS: u32 = 3;

/// A table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// The lines of its page that are in use.
    page: Vec<Line>,
    /// Those of its blocks.
    blocks: Vec<Line>,
    /// The number of the first of those.
    first: u32,
}

impl Table {
    /// The lines of a [`Page`](fabedge_common::abi::fib::Page).
    pub fn page(&self) -> Box<[Line; PAGE_LINES]> {
        filled(&self.page)
    }

    /// Those of [`Block`](fabedge_common::abi::fib::Block)s.
    pub fn blocks(&self) -> impl Iterator<Item = Box<[Line; BLOCK_LINES]>> + '_ {
        self.blocks.chunks(BLOCK_LINES).map(filled)
    }

    /// Whether it has no more blocks than a bank takes.
    pub fn fits(&self) -> bool {
        self.blocks.len() <= BANK_BLOCKS * BLOCK_LINES
    }

    /// Lines in use.
    pub fn lines(&self) -> usize {
        self.page.len() + self.blocks.len()
    }

    /// Adds lines of zeros; the number of the first.
    fn add(&mut self, lines: usize) -> u32 {
        let in_page = self.page.len();
        if in_page + lines <= PAGE_LINES {
            self.page.resize(in_page + lines, [0; WORDS]);
            return in_page as u32;
        }
        let behind = self.blocks.len();
        self.blocks.resize(behind + lines, [0; WORDS]);
        self.first + behind as u32
    }

    fn line_mut(&mut self, number: u32) -> &mut Line {
        match number.checked_sub(self.first) {
            Some(behind) => &mut self.blocks[behind as usize],
            None => &mut self.page[number as usize],
        }
    }
}

impl Lines for Table {
    fn line(&self, number: u32) -> Option<&Line> {
        match number.checked_sub(self.first) {
            Some(behind) => self.blocks.get(behind as usize),
            None => self.page.get(number as usize),
        }
    }
}

/// Lines as a value of a map, with zeros behind.
fn filled<const N: usize>(lines: &[Line]) -> Box<[Line; N]> {
    let mut all = Vec::with_capacity(N);
    all.extend_from_slice(lines);
    all.resize(N, [0; WORDS]);
    match all.into_boxed_slice().try_into() {
        Ok(all) => all,
        Err(_) => unreachable!("it has been made that long"),
    }
}

/// Whose table has this prefix.
pub fn family(net: &IpNet) -> u32 {
    match net {
        IpNet::V4(_) => IPV4,
        IpNet::V6(_) => IPV6,
    }
}

/// Compiles the routes of a family into a table with its blocks in this bank. Of other families' routes it has none.
pub fn compile<'a>(
    family: u32,
    number: u32,
    routes: impl IntoIterator<Item = (&'a IpNet, &'a Route)>,
) -> Table {
    let routes = routes.into_iter();
    let most = routes.size_hint().0;
    let mut answers = Answers::with_capacity(most);
    let (mut ipv4, mut ipv6) = (Vec::with_capacity(most), Vec::new());
    for (net, route) in routes {
        let length = u32::from(net.prefix_len());
        match net {
            IpNet::V4(net) if family == IPV4 => ipv4.push(Prefix {
                first: u64::from(net.network().to_bits()) << 32,
                length,
                cell: answers.number(*route),
            }),
            IpNet::V6(net) if family == IPV6 => {
                ipv6.push((net.network().to_bits(), length, answers.number(*route)));
            }
            IpNet::V4(_) | IpNet::V6(_) => {}
        }
    }
    let first = first_line(bank(family, number));
    let mut table = match family {
        IPV4 => {
            let mut tree = Tree::<Narrow>::new(first, &answers);
            tree.fill(0, &ranges(&mut ipv4, Cell::NONE));
            tree.table
        }
        _ => compile6(ipv6, first, &answers),
    };
    table.line_mut(0)[node::BANK] = number.into();
    table
}

/// Compiles IPv6 prefixes: those longer than a word into trees for the second word, one per first word.
fn compile6(prefixes: Vec<(u128, u32, Cell)>, first: u32, answers: &Answers) -> Table {
    let mut shorter = Vec::new();
    let mut longer: BTreeMap<u64, Vec<Prefix>> = BTreeMap::new();
    for (network, length, cell) in prefixes {
        let (first, second) = ((network >> 64) as u64, network as u64);
        match length.checked_sub(64) {
            None | Some(0) => shorter.push(Prefix { first, length, cell }),
            Some(length) => longer.entry(first).or_default().push(Prefix {
                first: second,
                length,
                cell,
            }),
        }
    }
    let outer = ranges(&mut shorter, Cell::NONE);
    let mut tree = Tree::<Wide>::new(first, answers);
    for (index, (first, mut within)) in longer.into_iter().enumerate() {
        let around = outer[outer.partition_point(|(start, _)| *start <= first) - 1].1;
        tree.seconds.push(ranges(&mut within, around));
        // Behind the prefix of all its 64 bits, if there is one, and so in its place.
        shorter.push(Prefix {
            first,
            length: 64,
            cell: Cell::new(Kind::Second, index as u32),
        });
    }
    tree.fill(0, &ranges(&mut shorter, Cell::NONE));
    tree.table
}

/// Different routes, numbered from 1.
struct Answers {
    routes: Vec<Route>,
    numbers: HashMap<[u64; 3], u32, FixedState>,
}

impl Answers {
    fn with_capacity(most: usize) -> Self {
        Self {
            routes: Vec::with_capacity(most),
            numbers: HashMap::with_capacity_and_hasher(most, FixedState::default()),
        }
    }

    fn number(&mut self, route: Route) -> Cell {
        let number = *self.numbers.entry(route.to_words()).or_insert_with(|| {
            self.routes.push(route);
            self.routes.len() as u32
        });
        Cell::new(Kind::Answer, number)
    }
}

/// A prefix within a word.
#[derive(Clone, Copy)]
struct Prefix {
    first: u64,
    length: u32,
    cell: Cell,
}

impl Prefix {
    fn last(&self) -> u64 {
        self.first | u64::MAX.checked_shr(self.length).unwrap_or(0)
    }
}

/// Where a cell starts to be that of the words; it is up to the next.
type Range = (u64, Cell);

/// The ranges of a word, from 0 on, none with the cell of its neighbour. Of prefixes that are the same, the last counts.
fn ranges(prefixes: &mut [Prefix], around: Cell) -> Vec<Range> {
    prefixes.sort_by_key(|prefix| (prefix.first, prefix.length));
    let mut ranges: Vec<Range> = Vec::with_capacity(2 * prefixes.len() + 1);
    let mut begin = |start: u64, cell: Cell| {
        if ranges.last().is_some_and(|last| last.0 == start) {
            ranges.pop();
        }
        if ranges.last().is_none_or(|last| last.1 != cell) {
            ranges.push((start, cell));
        }
    };
    begin(0, around);
    // The prefixes that the present one is within.
    let mut open: Vec<Prefix> = Vec::new();
    let close = |open: &mut Vec<Prefix>, before: Option<u64>, begin: &mut dyn FnMut(u64, Cell)| {
        while let Some(prefix) = open.pop_if(|prefix| before.is_none_or(|before| prefix.last() < before)) {
            if let Some(next) = prefix.last().checked_add(1) {
                begin(next, open.last().map_or(around, |outer| outer.cell));
            }
        }
    };
    for prefix in prefixes.iter() {
        close(&mut open, Some(prefix.first), &mut begin);
        begin(prefix.first, prefix.cell);
        open.push(*prefix);
    }
    close(&mut open, None, &mut begin);
    ranges
}

/// Words that share all but their last bits.
#[derive(Clone, Copy)]
struct Span {
    first: u64,
    /// How many bits the words do not share; the lowest 64 - [`Bucket::BITS`] are not counted.
    bits: u32,
}

/// A table in the making.
struct Tree<B> {
    table: Table,
    /// Ranges of second words, by the number in the cell that leads there.
    seconds: Vec<Vec<Range>>,
    bucket: std::marker::PhantomData<B>,
}

impl<B: Bucket> Tree<B> {
    /// Bits of a word that no address uses.
    const UNUSED: u32 = 64 - B::BITS;

    /// A table with answers, and a root yet to be filled.
    fn new(first: u32, answers: &Answers) -> Self {
        let mut table = Table {
            page: vec![[0; WORDS]],
            blocks: Vec::new(),
            first,
        };
        // Number 0 is none.
        let at = table.add(1 + answers.routes.len() / 2);
        table.line_mut(0)[node::ANSWERS] = at.into();
        for (number, route) in (1..).zip(&answers.routes) {
            let begin = number as usize % 2 * 4;
            table.line_mut(at + number / 2)[begin..begin + 3].copy_from_slice(&route.to_words());
        }
        Self {
            table,
            seconds: Vec::new(),
            bucket: std::marker::PhantomData,
        }
    }

    /// Makes a line the node of a whole word.
    fn fill(&mut self, line: u32, ranges: &[Range]) {
        let bits = B::BITS;
        self.node(line, ranges, Span { first: 0, bits }, B::NODES);
    }

    /// A cell for the words of a span, with at most so many nodes behind it; of the ranges, the first may start before it.
    fn cell(&mut self, ranges: &[Range], span: Span, nodes: u32) -> Cell {
        if let [(_, cell)] = ranges {
            return self.placed(*cell);
        }
        if ranges.len() <= B::RANGES {
            let mut packed: Vec<Range> = ranges
                .iter()
                .map(|(start, cell)| (*start, self.placed(*cell)))
                .collect();
            // What is left of the bucket says of the last word what is said of it anyway.
            let last = span.first | Self::ones(span.bits);
            let cell = packed[packed.len() - 1].1;
            packed.resize(B::RANGES, (last, cell));
            if let Some(bucket) = B::pack(&packed) {
                let line = self.table.add(1);
                *self.table.line_mut(line) = bucket;
                return Cell::new(Kind::Bucket, line);
            }
        }
        let line = self.table.add(1);
        self.node(line, ranges, span, nodes);
        Cell::new(Kind::Node, line)
    }

    /// A cell with its number as it is in the table.
    fn placed(&mut self, cell: Cell) -> Cell {
        match cell.kind() {
            Kind::Second => {
                let ranges = std::mem::take(&mut self.seconds[cell.number() as usize]);
                let line = self.table.add(1);
                self.fill(line, &ranges);
                Cell::new(Kind::Second, line)
            }
            Kind::Answer | Kind::Bucket | Kind::Node => cell,
        }
    }

    /// Makes a line the node of a span, the first of at most so many.
    fn node(&mut self, line: u32, ranges: &[Range], span: Span, nodes: u32) {
        let (inner, miss) = Self::tight(ranges, span);
        let bits = Self::width(ranges, inner, nodes);
        let slots: u32 = 1 << bits;
        let first = self.table.add(slots.div_ceil(SLOTS) as usize);
        let head = self.table.line_mut(line);
        head[node::PREFIX] = inner.first;
        head[node::MASK] = !Self::ones(inner.bits);
        head[node::MISS] = u64::from(miss.0);
        head[node::SHIFT] = u64::from(inner.bits - bits + Self::UNUSED);
        head[node::SLOTS] = u64::from(slots) - 1;
        head[node::FIRST] = u64::from(first);
        let mut rest = &ranges[ranges.partition_point(|(start, _)| *start <= inner.first) - 1..];
        for slot in 0..slots {
            let span = Span {
                first: inner.first | u64::from(slot).wrapping_shl(inner.bits - bits + Self::UNUSED),
                bits: inner.bits - bits,
            };
            let last = span.first | Self::ones(span.bits);
            // All in all a slot starts few ranges, so that looking at one after the other finds their end soonest.
            let here = rest.iter().take_while(|(start, _)| *start <= last).count();
            let cell = self.cell(&rest[..here], span, nodes - 1);
            let pair = &mut self.table.line_mut(first + slot / SLOTS)[(slot % SLOTS / 2) as usize];
            *pair |= u64::from(cell.0) << (slot % 2 * 32);
            // The next slot starts in the last range of this one, or with one of its own.
            let starts = rest
                .get(here)
                .is_some_and(|next| Some(next.0) == last.checked_add(1));
            rest = &rest[if starts { here } else { here - 1 }..];
        }
    }

    /// The least span with all words whose cell is not that of the words around it, and the cell around it.
    fn tight(ranges: &[Range], span: Span) -> (Span, Cell) {
        let (Some(first), Some(last)) = (ranges.first(), ranges.last()) else {
            return (span, Cell::NONE);
        };
        if ranges.len() < 3 || first.1 != last.1 || matches!(first.1.kind(), Kind::Second) {
            return (span, Cell::NONE);
        }
        let different = ranges[1].0 ^ (last.0 - 1);
        let bits = (64 - different.leading_zeros()).max(Self::UNUSED + 1) - Self::UNUSED;
        let bits = bits.max(LEAST_BITS).min(span.bits);
        let inner = Span {
            first: ranges[1].0 & !Self::ones(bits),
            bits,
        };
        (inner, first.1)
    }

    /// How many bits of a span its slots are for, where so many nodes are left for all of them.
    fn width(ranges: &[Range], span: Span, nodes: u32) -> u32 {
        let slots = (ranges.len() / (B::RANGES / 2)).next_power_of_two();
        let least = span.bits.div_ceil(nodes).max(LEAST_BITS).min(span.bits);
        let bits = slots.ilog2().clamp(least, MOST_BITS.min(span.bits).max(least));
        // Ranges that start where slots do need no buckets.
        let starts = ranges.iter().skip(1).fold(0, |all, (start, _)| all | start);
        let aligned = starts.trailing_zeros().max(Self::UNUSED) - Self::UNUSED;
        match span.bits.checked_sub(aligned) {
            Some(exact) if exact <= (bits + UNBUCKETED_BITS).min(MOST_BITS) => exact.max(bits),
            _ => bits,
        }
    }

    /// The bits that the words of a span do not share, as ones; those that no address uses are among them.
    fn ones(bits: u32) -> u64 {
        u64::MAX.checked_shr(64 - Self::UNUSED - bits).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests;
