//! The forwarding table: the routes of one family, compiled for lookups that touch few cache lines however many routes
//! there are. What people read are `routes4` and `routes6`; the programs read this, which says the same.
//!
//! An address is one word (IPv4, in the upper half) or two (IPv6). A word is looked up in a tree of nodes. A node
//! covers the words that share its prefix, and has a slot for each value of the bits after that; words without the
//! prefix miss all of it and have one answer. A slot holds a cell: an answer, a further node, or a bucket, which is the
//! rest of the slot as a sorted list of ranges with a cell each. Nodes are made so wide that most slots hold an answer
//! or a bucket: a lookup reads the root, a slot, a bucket and the answer.
//!
//! ```text
//!  root                slots                      bucket: 11 ranges of IPv4, 6 of IPv6       answers
//! +--------------+    +---+---+---+---+---+      +-----------------+-------------------+    +---------+
//! | prefix, mask | -> | 7 | b | 7 | n | b | -b-> | cells 7 2 7 5 7 | where they start  | -> | Route 2 |
//! | shift, slots |    +---+---+---+---+---+      +-----------------+-------------------+    +---------+
//! +--------------+                  |
//!                                   +-n-> a node like the root: prefix, mask, ...; slots
//! ```
//!
//! Everything is made of lines of eight words, which are as large as the cache lines of most processors. Line 0 is the
//! root node. A table is a page, and blocks behind it if the page is too small. Page and blocks are the only values of
//! arrays of one element, and these are values of the maps `fib` and `fib_block`, for two reasons. Where the lengths of
//! inner arrays are fixed, the kernel puts its lookups into the program instead of calls (`array_map_gen_lookup`,
//! `array_of_map_gen_lookup` in kernel/bpf, Linux 6.1 to 6.18; not with `BPF_F_INNER_MAP`), and with all of a page behind
//! one pointer, a table that fits into it takes one lookup of a map. And a table takes the place of its predecessor in one
//! step: its blocks are put into the bank that the predecessor does not use, then its page into the family's slot. The
//! predecessor's blocks stay where they are, and are written anew by the table after the next.

use super::Route;

/// Words of a line.
pub const WORDS: usize = 8;

/// A line.
pub type Line = [u64; WORDS];

/// Lines of a page.
pub const PAGE_LINES: usize = 1024;
/// The first lines of a table, 64 KiB (some 700 routes), as words. No structure: Linux 6.1 takes an array without BTF, as
/// agents make them, for the equal of one with BTF only if that is not about a structure (`timer_off` in
/// `bpf_map_meta_equal`).
pub type Page = [u64; PAGE_LINES * WORDS];

/// Lines of a block.
pub const BLOCK_LINES: usize = 8192;
/// Further lines, 512 KiB, as words.
pub type Block = [u64; BLOCK_LINES * WORDS];

/// Which of the map `fib` is the page of IPv4.
pub const IPV4: u32 = 0;
/// Which is that of IPv6.
pub const IPV6: u32 = 1;
/// Entries of the map `fib`.
pub const FAMILIES: usize = 2;

/// Blocks of a bank, and thus of a table.
pub const BANK_BLOCKS: usize = 128;
/// Banks of a family.
pub const BANKS: usize = 2;
/// Entries of the map `fib_block`.
pub const BLOCKS: usize = FAMILIES * BANKS * BANK_BLOCKS;

/// Where a bank begins in the map `fib_block`.
pub const fn bank(family: u32, bank: u32) -> u32 {
    (family * BANKS as u32 + bank) * BANK_BLOCKS as u32
}

/// In the number of a line: it lies in a block. A bit, and no comparison: the kernel's verifier sees the bounds of an index
/// that is masked, and may lose those of one that was compared.
const IN_BLOCK: u32 = 1 << 29;

/// Where a line is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// This line of the page.
    Page(usize),
    /// In this block, this line.
    Block(u32, usize),
}

/// Where the line with this number is.
#[inline(always)]
pub const fn place(number: u32) -> Place {
    if number & IN_BLOCK == 0 {
        Place::Page(number as usize % PAGE_LINES)
    } else {
        Place::Block(
            number % IN_BLOCK / BLOCK_LINES as u32,
            number as usize % BLOCK_LINES,
        )
    }
}

/// The number of a block's first line.
pub const fn first_line(block: u32) -> u32 {
    IN_BLOCK + block * BLOCK_LINES as u32
}

/// Words of a node's line. Two slots are in a word, the lower half first.
pub mod node {
    /// The bits that its words share, and zeros.
    pub const PREFIX: usize = 0;
    /// Ones where those bits are.
    pub const MASK: usize = 1;
    /// The cell of all words without the prefix.
    pub const MISS: usize = 2;
    /// How far to the right a word's slot number is in it.
    pub const SHIFT: usize = 3;
    /// The largest slot number.
    pub const SLOTS: usize = 4;
    /// The line of the first slots.
    pub const FIRST: usize = 5;
    /// Of the root only: the line of the first answers, two in a line.
    pub const ANSWERS: usize = 6;
    /// Of the root only: the bank of the table's blocks.
    pub const BANK: usize = 7;
}

/// Words of a bucket that hold the cells of its ranges. Behind them is where the ranges start, but for the first, which
/// starts with the slot. (In front, because the verifier of Linux 6.18 bounds which word it is by one more than there are.)
const CELLS: usize = 3;

/// Slots in a line.
pub const SLOTS: u32 = 16;

/// What a slot or a range leads to: two bits that say what, and a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cell(pub u32);

/// What kind of [`Cell`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The answer with this number; 0: there is no route.
    Answer,
    /// The bucket at this line.
    Bucket,
    /// The node at this line.
    Node,
    /// The node at this line, for the second word.
    Second,
}

const NUMBER: u32 = 0x3fff_ffff;

impl Cell {
    /// No route.
    pub const NONE: Self = Self(0);
    /// The largest number.
    pub const MAX: u32 = NUMBER;

    /// A cell.
    #[inline(always)]
    pub const fn new(kind: Kind, number: u32) -> Self {
        Self(((kind as u32) << 30) | (number & NUMBER))
    }

    /// What kind it is.
    #[inline(always)]
    pub const fn kind(self) -> Kind {
        match self.0 >> 30 {
            0 => Kind::Answer,
            1 => Kind::Bucket,
            2 => Kind::Node,
            _ => Kind::Second,
        }
    }

    /// Its number.
    #[inline(always)]
    pub const fn number(self) -> u32 {
        self.0 & NUMBER
    }
}

/// Where lines come from.
pub trait Lines {
    /// The line with this number; none behind the end.
    fn line(&self, number: u32) -> Option<&Line>;

    /// [`step`] of IPv4. Few lookups go beyond the root: the programs have this as a function.
    fn narrow(&self, node: u32, word: u64) -> Cell {
        step::<Narrow>(self, node, word)
    }

    /// [`step`] of IPv6.
    fn wide(&self, node: u32, word: u64) -> Cell {
        step::<Wide>(self, node, word)
    }
}

/// How buckets of a family are packed.
pub trait Bucket {
    /// Ranges of a bucket.
    const RANGES: usize;
    /// Significant bits of a word.
    const BITS: u32;
    /// Most nodes on the way through a word; a node is made as wide as that takes.
    const NODES: u32;

    /// The cell of the range in which the word is.
    fn find(bucket: &Line, word: u64) -> Cell;
    /// Packs ranges, of which there are [`Bucket::RANGES`]; the start of the first does not matter. None where a cell
    /// does not fit.
    fn pack(ranges: &[(u64, Cell)]) -> Option<Line>;
}

/// IPv4: ten starts of 32 bits, eleven answers of 16.
pub struct Narrow;

/// IPv6: five starts of 64 bits, six cells of 32.
pub struct Wide;

/// 1 if a word is before another. All words of a slot have the first bit in common, so the difference has a sign.
/// Arithmetic and no comparison: that would become a branch, which nobody can predict, and for the verifier twice as many
/// paths each time.
#[inline(always)]
const fn before(word: u64, start: u64) -> u64 {
    word.wrapping_sub(start) >> 63
}

impl Bucket for Narrow {
    const RANGES: usize = 11;
    const BITS: u32 = 32;
    const NODES: u32 = 5;

    #[inline(always)]
    fn find(bucket: &Line, word: u64) -> Cell {
        // The lower half of what it is compared with does not matter then.
        let word = word | 0xffff_ffff;
        let mut later = 0;
        let mut i = CELLS;
        while i < WORDS {
            later += before(word, bucket[i] << 32) + before(word, bucket[i]);
            i += 1;
        }
        let range = 10 - later;
        let cells = bucket[(range / 4) as usize];
        Cell::new(Kind::Answer, (cells >> (range % 4 * 16)) as u16 as u32)
    }

    fn pack(ranges: &[(u64, Cell)]) -> Option<Line> {
        let mut line = [0; WORDS];
        for (i, (start, cell)) in ranges.iter().enumerate() {
            if let Some(i) = i.checked_sub(1) {
                line[CELLS + i / 2] |= (start >> 32) << (i % 2 * 32);
            }
            let cell = match cell.kind() {
                Kind::Answer => u16::try_from(cell.number()).ok()?,
                Kind::Bucket | Kind::Node | Kind::Second => return None,
            };
            line[i / 4] |= u64::from(cell) << (i % 4 * 16);
        }
        Some(line)
    }
}

impl Bucket for Wide {
    const RANGES: usize = 6;
    const BITS: u32 = 64;
    const NODES: u32 = 12;

    #[inline(always)]
    fn find(bucket: &Line, word: u64) -> Cell {
        let mut later = 0;
        let mut i = CELLS;
        while i < WORDS {
            later += before(word, bucket[i]);
            i += 1;
        }
        let range = 5 - later;
        let cells = bucket[(range / 2) as usize];
        Cell((cells >> (range % 2 * 32)) as u32)
    }

    fn pack(ranges: &[(u64, Cell)]) -> Option<Line> {
        let mut line = [0; WORDS];
        for (i, (start, cell)) in ranges.iter().enumerate() {
            if let Some(i) = i.checked_sub(1) {
                line[CELLS + i] = *start;
            }
            line[i / 2] |= u64::from(cell.0) << (i % 2 * 32);
        }
        Some(line)
    }
}

/// What a node says of a word.
#[inline(always)]
pub fn step<B: Bucket>(lines: &(impl Lines + ?Sized), node: u32, word: u64) -> Cell {
    cell::<B>(lines, node, word).unwrap_or(Cell::NONE)
}

#[inline(always)]
fn cell<B: Bucket>(lines: &(impl Lines + ?Sized), node: u32, word: u64) -> Option<Cell> {
    let head = lines.line(node)?;
    if (word ^ head[node::PREFIX]) & head[node::MASK] != 0 {
        return Some(Cell(head[node::MISS] as u32));
    }
    let slot = (word.wrapping_shr(head[node::SHIFT] as u32) & head[node::SLOTS]) as u32;
    let slots = lines.line((head[node::FIRST] as u32).wrapping_add(slot / SLOTS))?;
    let pair = slots[(slot % SLOTS / 2) as usize];
    let found = Cell((pair >> (slot % 2 * 32)) as u32);
    match found.kind() {
        Kind::Bucket => Some(B::find(lines.line(found.number())?, word)),
        Kind::Answer | Kind::Node | Kind::Second => Some(found),
    }
}

#[inline(always)]
fn answer(lines: &impl Lines, found: Cell) -> Option<Route> {
    let number = match found.kind() {
        Kind::Answer if found != Cell::NONE => found.number(),
        _ => return None,
    };
    let root = lines.line(0)?;
    let line = lines.line((root[node::ANSWERS] as u32).wrapping_add(number / 2))?;
    let first = (number % 2 * 4) as usize;
    Some(Route::from_words([line[first], line[first + 1], line[first + 2]]))
}

/// The route of an IPv4 address.
#[inline(always)]
pub fn lookup4(lines: &impl Lines, address: u32) -> Option<Route> {
    let word = u64::from(address) << 32;
    let mut found = step::<Narrow>(lines, 0, word);
    let mut nodes = 1;
    while nodes < Narrow::NODES && matches!(found.kind(), Kind::Node) {
        found = lines.narrow(found.number(), word);
        nodes += 1;
    }
    answer(lines, found)
}

/// The route of an IPv6 address, given as its two words.
#[inline(always)]
pub fn lookup6(lines: &impl Lines, [first, second]: [u64; 2]) -> Option<Route> {
    let mut found = step::<Wide>(lines, 0, first);
    let mut word = first;
    let mut nodes = 1;
    while nodes < 2 * Wide::NODES {
        word = match found.kind() {
            Kind::Node => word,
            Kind::Second => second,
            Kind::Answer | Kind::Bucket => break,
        };
        found = lines.wide(found.number(), word);
        nodes += 1;
    }
    answer(lines, found)
}
