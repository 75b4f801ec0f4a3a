//! What the WAN router sees: every packet that arrives on any of its interfaces, by kind.

pub mod classify;

use std::collections::BTreeSet;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result};
use serde::Serialize;

use crate::place::Place;
use crate::sys::PacketSocket;
use classify::{Kind, classify};

/// How much of a packet is looked at: enough for every header that is followed.
const SNAP: usize = 256;

/// How many different plaintext packets are described.
const SAMPLES: usize = 10;

/// Packets by kind.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// ESP straight over IP.
    pub esp: u64,
    /// ESP in UDP, port 4500 on at least one side.
    pub esp_in_udp: u64,
    /// IKE, on port 500 or 4500.
    pub ike: u64,
    /// NAT keepalives.
    pub keepalive: u64,
    /// Packets that show an address of a pod or a service, in whatever they may be wrapped.
    pub plaintext: u64,
    /// Everything else.
    pub other: u64,
    /// Packets that the capture could not keep up with.
    pub missed: u64,
    /// What the first plaintext packets were.
    pub samples: BTreeSet<String>,
}

impl Counts {
    /// Encrypted packets, however wrapped.
    pub fn encrypted(&self) -> u64 {
        self.esp + self.esp_in_udp
    }

    /// What was counted since `before`; the samples are all there are.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        Self {
            esp: self.esp - before.esp,
            esp_in_udp: self.esp_in_udp - before.esp_in_udp,
            ike: self.ike - before.ike,
            keepalive: self.keepalive - before.keepalive,
            plaintext: self.plaintext - before.plaintext,
            other: self.other - before.other,
            missed: self.missed - before.missed,
            samples: self.samples.clone(),
        }
    }

    fn count(&mut self, kind: Kind) {
        match kind {
            Kind::Esp => self.esp += 1,
            Kind::EspInUdp => self.esp_in_udp += 1,
            Kind::Ike => self.ike += 1,
            Kind::Keepalive => self.keepalive += 1,
            Kind::Other => self.other += 1,
            Kind::Plaintext(sample) => {
                self.plaintext += 1;
                if self.samples.len() < SAMPLES {
                    self.samples.insert(sample);
                }
            }
        }
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "ESP {}, ESP in UDP 4500 {}, IKE {}, pod plaintext {}",
            self.esp, self.esp_in_udp, self.ike, self.plaintext
        )
    }
}

/// A running capture; it ends when dropped.
#[derive(Debug)]
pub struct Capture {
    counts: Arc<Mutex<Counts>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Capture {
    /// Starts one in `place`.
    ///
    /// # Errors
    /// When there is no packet socket.
    pub fn start(place: &Place) -> Result<Self> {
        let socket = place
            .run(PacketSocket::open)?
            .with_context(|| format!("opening a packet socket in {}", place.name))?;
        let counts = Arc::new(Mutex::new(Counts::default()));
        let stop = Arc::new(AtomicBool::new(false));
        let thread = thread::spawn({
            let (counts, stop) = (Arc::clone(&counts), Arc::clone(&stop));
            move || watch(&socket, &counts, &stop)
        });
        Ok(Self {
            counts,
            stop,
            thread: Some(thread),
        })
    }

    /// What was seen so far. Waits a moment, so that what has just been sent is in it.
    pub fn counts(&self) -> Counts {
        thread::sleep(Duration::from_millis(300));
        self.counts.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic there has been reported by itself.
            drop(thread.join());
        }
    }
}

fn watch(socket: &PacketSocket, counts: &Mutex<Counts>, stop: &AtomicBool) {
    let mut buffer = [0_u8; SNAP];
    while !stop.load(Ordering::Relaxed) {
        let received = socket.receive(&mut buffer);
        let mut counts = counts.lock().unwrap_or_else(PoisonError::into_inner);
        match received {
            Ok(Some(packet)) => {
                let seen = &buffer[..packet.length.min(SNAP)];
                counts.count(classify(packet.protocol, seen, packet.length));
            }
            Ok(None) => counts.missed += u64::from(socket.missed().unwrap_or(0)),
            // Nothing that can be read any more is as bad as packets that were missed.
            Err(_) => {
                counts.missed += 1;
                return;
            }
        }
    }
}
