//! Ctrl-C and its like: the first one ends things in order, the second one at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, bail};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::flag;

/// Whether somebody wants us to end.
#[derive(Clone, Debug)]
pub struct Interrupt {
    flag: Arc<AtomicBool>,
}

impl Interrupt {
    /// Takes the signals over.
    pub fn watch() -> Result<Interrupt> {
        let flag = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            // In this order: the second signal finds the flag that the first one has set.
            flag::register_conditional_shutdown(signal, 128 + signal, Arc::clone(&flag))
                .and_then(|_| flag::register(signal, Arc::clone(&flag)))
                .with_context(|| format!("watching for signal {signal}"))?;
        }
        Ok(Interrupt { flag })
    }

    /// An error once a signal has come.
    pub fn check(&self) -> Result<()> {
        if self.flag.load(Ordering::Relaxed) {
            bail!("interrupted");
        }
        Ok(())
    }
}
