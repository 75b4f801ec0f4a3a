//! The other side of the UDP and TCP probes: echoes, checks and sends on request, and tells callers by which
//! address it sees them.

use std::io::{self, Read, Write};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result};

use super::tcp::{self, Request};
use crate::place::Place;

/// The port on which pods answer, both UDP and TCP.
pub const PORT: u16 = 7007;

/// A UDP payload that is answered with the sender's address instead of an echo.
pub const WHO: &[u8] = b"who am i?";

/// How long a connection may be silent.
const SILENCE: Duration = Duration::from_secs(30);

/// How often the threads look whether they should end.
const TICK: Duration = Duration::from_millis(50);

/// A running responder; it ends when dropped.
#[derive(Debug)]
pub struct Responder {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Responder {
    /// Starts one in `place`, on `port` of both families.
    ///
    /// # Errors
    /// When the port cannot be had.
    pub fn start(place: &Place, port: u16) -> Result<Self> {
        let any = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
        let (udp, tcp) = place
            .run(|| -> io::Result<_> { Ok((UdpSocket::bind(any)?, TcpListener::bind(any)?)) })?
            .with_context(|| format!("listening on port {port} in {}", place.name))?;
        udp.set_read_timeout(Some(TICK))
            .context("preparing a UDP socket")?;
        tcp.set_nonblocking(true).context("preparing a TCP socket")?;
        let stop = Arc::new(AtomicBool::new(false));
        let threads = vec![
            thread::spawn({
                let stop = Arc::clone(&stop);
                move || echo(&udp, &stop)
            }),
            thread::spawn({
                let stop = Arc::clone(&stop);
                move || accept(&tcp, &stop)
            }),
        ];
        Ok(Self { stop, threads })
    }
}

impl Drop for Responder {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // A panic there has been reported by itself.
            drop(thread.join());
        }
    }
}

/// Sends every datagram back.
fn echo(socket: &UdpSocket, stop: &AtomicBool) {
    let mut buffer = vec![0_u8; 65536];
    while !stop.load(Ordering::Relaxed) {
        // No datagram within a tick, or an ICMP error about an answer: neither is the end.
        let Ok((length, from)) = socket.recv_from(&mut buffer) else {
            continue;
        };
        let answer = match &buffer[..length] {
            WHO => canonical(from).to_string().into_bytes(),
            payload => payload.to_vec(),
        };
        // The caller will notice that there is no answer.
        drop(socket.send_to(&answer, from));
    }
}

/// An address as IPv4 where it is that, mapped into IPv6.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// Serves TCP connections, each in a thread.
fn accept(listener: &TcpListener, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        match listener.accept() {
            Ok((stream, from)) => {
                thread::spawn(move || {
                    // The caller judges; here a broken connection is no news.
                    drop(serve(stream, from));
                });
            }
            Err(_) => thread::sleep(Duration::from_millis(5)),
        }
    }
}

fn serve(mut stream: TcpStream, from: SocketAddr) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(SILENCE))?;
    stream.set_write_timeout(Some(SILENCE))?;
    let mut header = [0_u8; Request::LENGTH];
    stream.read_exact(&mut header)?;
    match Request::parse(&header) {
        Some(Request::Upload(length)) => {
            let digest = tcp::digest_of(&mut stream, length)?;
            stream.write_all(&digest.to_be_bytes())
        }
        Some(Request::Download(length)) => {
            let digest = tcp::send(&mut stream, length)?;
            stream.write_all(&digest.to_be_bytes())
        }
        Some(Request::Who) => stream.write_all(canonical(from).to_string().as_bytes()),
        None => Err(io::Error::new(io::ErrorKind::InvalidData, "unknown request")),
    }
}
