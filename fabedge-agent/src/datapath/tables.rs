//! The forwarding tables in the kernel: put in the place of their predecessors so that a packet sees the one or the
//! other, whole.

use std::panic::resume_unwind;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use aya::maps::{Array, ArrayOfMaps, HashOfMaps, Map, MapData, MapError};
use fabedge_common::abi::Route;
use fabedge_common::abi::fib::{
    BANK_BLOCKS, BANKS, BLOCK_LINES, Block, FAMILIES, Line, PAGE_LINES, bank, node,
};
use fabedge_common::abi::map;
use ipnet::IpNet;

use super::fib::{self, Table};

/// A table that is not in the kernel.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A map cannot be used.
    #[error("the map {map}")]
    Map {
        /// Which.
        map: &'static str,
        /// Why.
        source: MapError,
    },
    /// It is too large.
    #[error(
        "a forwarding table takes {} MiB at most, and {routes} prefixes as scattered as these need more; aggregate them (until then the table in force stays)",
        (BANK_BLOCKS * size_of::<Block>()) >> 20
    )]
    Full {
        /// How many prefixes.
        routes: usize,
    },
}

fn failed(map: &'static str) -> impl Fn(MapError) -> Error {
    move |source| Error::Map { map, source }
}

type Page = Array<MapData, [Line; PAGE_LINES]>;
type Pages = ArrayOfMaps<MapData, Page>;

/// The kernel's wait for the programs that may still read a table which was replaced. The next table must not be put before
/// it is over.
#[must_use]
#[derive(Debug)]
pub struct Grace(JoinHandle<Result<(), MapError>>);

impl Grace {
    /// Waits with it.
    pub fn end(self) {
        // The table is in its place, and there is nothing to do about a thread that failed afterwards.
        drop(self.0.join());
    }
}

/// How often to look whether a table is in its place, which takes no longer than the start of a thread.
const LOOK: Duration = Duration::from_micros(50);

/// The maps of both families' tables.
pub struct Tables {
    pages: Pages,
    /// The same as `pages`, for each time that waiting is left to a thread.
    spare: Vec<Pages>,
    blocks: ArrayOfMaps<MapData, Array<MapData, [Line; BLOCK_LINES]>>,
    /// The same as `blocks`: aya removes entries of hashes only, the kernel those of arrays of maps by the same call.
    removable: HashOfMaps<MapData, u32>,
}

impl Tables {
    /// Takes the maps, which `open` opens by their names.
    ///
    /// # Errors
    /// When one is not what it should be.
    pub fn new(open: impl Fn(&'static str) -> Result<MapData, MapError>) -> Result<Self, Error> {
        let blocks = || open(map::FIB_BLOCKS).map_err(failed(map::FIB_BLOCKS));
        let pages = || {
            open(map::FIB)
                .and_then(|data| ArrayOfMaps::try_from(Map::ArrayOfMaps(data)))
                .map_err(failed(map::FIB))
        };
        Ok(Self {
            pages: pages()?,
            spare: (0..FAMILIES).map(|_| pages()).collect::<Result<_, _>>()?,
            blocks: ArrayOfMaps::try_from(Map::ArrayOfMaps(blocks()?)).map_err(failed(map::FIB_BLOCKS))?,
            removable: HashOfMaps::try_from(Map::HashOfMaps(blocks()?)).map_err(failed(map::FIB_BLOCKS))?,
        })
    }

    /// Compiles a family's routes, and puts their table in the place of the present one. Of other families' routes it
    /// takes no notice. The table is in force then, whether or not there is a wait left.
    ///
    /// # Errors
    /// When the table is too large, or the kernel has no memory for it; the present one stays then.
    pub fn replace<'a>(
        &mut self,
        family: u32,
        routes: impl IntoIterator<Item = (&'a IpNet, &'a Route)> + Clone,
    ) -> Result<Option<Grace>, Error> {
        let next = self
            .bank(family)?
            .map_or(0, |present| (present + 1) % BANKS as u32);
        let table = fib::compile(family, next, routes.clone());
        if !table.fits() {
            return Err(Error::Full {
                routes: routes.into_iter().count(),
            });
        }
        self.put(family, next, &table)
    }

    /// The bank of the present table, if there is one.
    fn bank(&self, family: u32) -> Result<Option<u32>, Error> {
        let page = match self.pages.get(&family, 0) {
            Err(MapError::KeyNotFound) => return Ok(None),
            page => page.and_then(|page| page.get(&0, 0)),
        };
        let page = page.map_err(failed(map::FIB))?;
        Ok(Some(page[0][node::BANK] as u32))
    }

    /// Blocks that are in the bank are written anew: nobody reads them, for the kernel waited for the programs that might
    /// when the page before the present one was replaced (`maybe_wait_bpf_programs` in kernel/bpf/syscall.c). It does so
    /// each time that an entry of an array of maps changes, so this is done to the page alone where it can be.
    fn put(&mut self, family: u32, number: u32, table: &Table) -> Result<Option<Grace>, Error> {
        let first = bank(family, number);
        let mut behind = first;
        for lines in table.blocks() {
            match self.blocks.get(&behind, 0) {
                Ok(mut there) => there.set(0, lines, 0),
                Err(MapError::KeyNotFound) => array(lines).and_then(|map| self.blocks.set(behind, &map, 0)),
                Err(error) => Err(error),
            }
            .map_err(failed(map::FIB_BLOCKS))?;
            behind += 1;
        }
        self.remove(behind..first + BANK_BLOCKS as u32)?;
        self.reserve(bank(family, (number + 1) % BANKS as u32), behind - first)?;
        let page = array(table.page()).map_err(failed(map::FIB))?;
        match self.spare.pop() {
            Some(pages) => self.swap(family, number, pages, page),
            None => {
                self.pages.set(family, &page, 0).map_err(failed(map::FIB))?;
                Ok(None)
            }
        }
    }

    /// Has the other bank hold as many blocks, for the table that comes next: making one there would take it the kernel's wait.
    fn reserve(&mut self, first: u32, count: u32) -> Result<(), Error> {
        for block in first..first + count {
            let made = match self.blocks.get(&block, 0) {
                Ok(_) => Ok(()),
                Err(MapError::KeyNotFound) => {
                    Array::create(1, 0).and_then(|map| self.blocks.set(block, &map, 0))
                }
                Err(error) => Err(error),
            };
            made.map_err(failed(map::FIB_BLOCKS))?;
        }
        Ok(())
    }

    /// Puts a page, and returns as soon as it is in its place: the wait is left to a thread.
    fn swap(&self, family: u32, number: u32, mut pages: Pages, page: Page) -> Result<Option<Grace>, Error> {
        let thread = thread::Builder::new()
            .spawn(move || pages.set(family, &page, 0))
            .map_err(|error| failed(map::FIB)(error.into()))?;
        // The one before may go while it is looked at.
        while !self.bank(family).is_ok_and(|bank| bank == Some(number)) {
            if thread.is_finished() {
                let set = thread.join().unwrap_or_else(|panic| resume_unwind(panic));
                return set.map(|()| None).map_err(failed(map::FIB));
            }
            thread::sleep(LOOK);
        }
        Ok(Some(Grace(thread)))
    }

    /// Removes blocks of a bank: the last first, so that those that are left begin the bank also when this ends on the
    /// way.
    fn remove(&mut self, blocks: std::ops::Range<u32>) -> Result<(), Error> {
        let mut there = blocks.start;
        while there < blocks.end {
            match self.blocks.get(&there, 0) {
                Ok(_) => there += 1,
                Err(MapError::KeyNotFound) => break,
                Err(error) => return Err(failed(map::FIB_BLOCKS)(error)),
            }
        }
        (blocks.start..there)
            .rev()
            .try_for_each(|block| self.removable.remove(&block))
            .map_err(failed(map::FIB_BLOCKS))
    }
}

/// An array with this element.
fn array<V: aya::Pod>(value: Box<V>) -> Result<Array<MapData, V>, MapError> {
    let mut array = Array::create(1, 0)?;
    array.set(0, value, 0)?;
    Ok(array)
}
