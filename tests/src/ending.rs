//! An end in good order, whatever asks for it: Ctrl-C, SIGTERM or the time limit take the world down first.

use std::process;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::sys::Signals;
use crate::world::World;

/// Watches for signals and for the time limit. To be called before any other thread is started.
///
/// # Errors
/// When signals cannot be blocked.
pub fn watch(limit: Duration) -> Result<()> {
    let signals = Signals::block().context("blocking signals")?;
    let end = Instant::now() + limit;
    thread::spawn(move || {
        let reason = loop {
            if signals.arrived(Duration::from_millis(200)) {
                break "asked to end".to_owned();
            }
            if Instant::now() > end {
                break format!("not done within {} s", limit.as_secs());
            }
        };
        eprintln!("fabedge-lab: {reason}; taking the world down");
        // No world yet: nothing to take down.
        if let Ok(world) = World::open()
            && let Err(error) = world.tear_down()
        {
            eprintln!("fabedge-lab: {error:#}");
        }
        process::exit(3);
    });
    Ok(())
}
