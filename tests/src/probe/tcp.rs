//! TCP: bulk with a checksum in either direction, and by which address the other side sees us.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::place::Place;

/// How long a connection may be silent before it counts as broken.
const SILENCE: Duration = Duration::from_secs(20);

/// What a caller asks of a responder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// Take so many bytes and give their digest.
    Upload(u64),
    /// Give so many bytes and then their digest.
    Download(u64),
    /// Give the caller's address.
    Who,
}

impl Request {
    /// Length of the wire form.
    pub const LENGTH: usize = 9;

    /// The wire form: one letter, eight bytes of length.
    pub fn bytes(self) -> [u8; Self::LENGTH] {
        let (letter, length) = match self {
            Self::Upload(length) => (b'u', length),
            Self::Download(length) => (b'd', length),
            Self::Who => (b'w', 0),
        };
        let mut bytes = [letter; Self::LENGTH];
        bytes[1..].copy_from_slice(&length.to_be_bytes());
        bytes
    }

    /// Reads the wire form.
    pub fn parse(bytes: &[u8; Self::LENGTH]) -> Option<Self> {
        let (letter, length) = bytes.split_first()?;
        let length = u64::from_be_bytes(length.try_into().ok()?);
        match letter {
            b'u' => Some(Self::Upload(length)),
            b'd' => Some(Self::Download(length)),
            b'w' => Some(Self::Who),
            _ => None,
        }
    }
}

/// Connects to `to`.
///
/// # Errors
/// When that is refused or takes longer than `limit`.
pub fn connect(from: &Place, to: SocketAddr, limit: Duration) -> Result<TcpStream> {
    let stream = from
        .run(|| TcpStream::connect_timeout(&to, limit))?
        .with_context(|| format!("connecting from {} to {to}", from.name))?;
    stream
        .set_read_timeout(Some(SILENCE))
        .context("preparing a TCP socket")?;
    stream
        .set_write_timeout(Some(SILENCE))
        .context("preparing a TCP socket")?;
    Ok(stream)
}

/// The address by which a responder at `to` sees a connection from here.
///
/// # Errors
/// When there is no connection or no answer.
pub fn who(from: &Place, to: SocketAddr, limit: Duration) -> Result<SocketAddr> {
    let mut stream = connect(from, to, limit)?;
    let ask = |stream: &mut TcpStream| -> io::Result<String> {
        stream.write_all(&Request::Who.bytes())?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    };
    let text = ask(&mut stream).with_context(|| format!("asking {to} who {} is", from.name))?;
    text.parse().with_context(|| format!("{to} answered `{text}`"))
}

/// Sends `length` bytes to the responder at `to` and checks their digest; gives the bytes per second.
///
/// # Errors
/// When the connection breaks, is silent, or the content differs.
pub fn upload(from: &Place, to: SocketAddr, length: u64) -> Result<f64> {
    bulk(from, to, Request::Upload(length), length)
}

/// Takes `length` bytes from the responder at `to` and checks their digest; gives the bytes per second.
///
/// # Errors
/// When the connection breaks, is silent, or the content differs.
pub fn download(from: &Place, to: SocketAddr, length: u64) -> Result<f64> {
    bulk(from, to, Request::Download(length), length)
}

fn bulk(from: &Place, to: SocketAddr, request: Request, length: u64) -> Result<f64> {
    let mut stream = connect(from, to, SILENCE)?;
    let started = Instant::now();
    let mut transfer = || -> io::Result<(u64, u64)> {
        stream.write_all(&request.bytes())?;
        let ours = if matches!(request, Request::Upload(_)) {
            send(&mut stream, length)?
        } else {
            digest_of(&mut stream, length)?
        };
        let mut theirs = [0_u8; 8];
        stream.read_exact(&mut theirs)?;
        Ok((ours, u64::from_be_bytes(theirs)))
    };
    let (ours, theirs) = transfer().with_context(|| format!("{request:?} between {} and {to}", from.name))?;
    ensure!(
        ours == theirs,
        "{request:?} between {} and {to}: the content differs",
        from.name
    );
    Ok(length as f64 / started.elapsed().as_secs_f64())
}

/// One block of content; no block is like the one before.
fn fill(block: &mut [u8], state: &mut u64) {
    for word in block.chunks_mut(8) {
        // An LCG (Knuth's MMIX constants): content that no header could be mistaken for.
        *state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let bytes = state.to_be_bytes();
        word.copy_from_slice(&bytes[..word.len()]);
    }
}

/// Adds a block to a digest that depends on content and order (FNV-1a over words).
fn digest(block: &[u8], state: u64) -> u64 {
    block.chunks(8).fold(state, |state, word| {
        let mut bytes = [0_u8; 8];
        bytes[..word.len()].copy_from_slice(word);
        (state ^ u64::from_be_bytes(bytes)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// Where digests start.
const DIGEST_START: u64 = 0xcbf2_9ce4_8422_2325;

/// Blocks are a multiple of words, so that both sides digest the same words.
const BLOCK: usize = 64 * 1024;

/// Sends `length` bytes and gives their digest.
pub fn send(stream: &mut impl Write, length: u64) -> io::Result<u64> {
    let mut block = vec![0_u8; BLOCK];
    let (mut seed, mut state) = (length, DIGEST_START);
    let mut left = length;
    while left > 0 {
        let take = usize::try_from(left).unwrap_or(BLOCK).min(BLOCK);
        fill(&mut block[..take], &mut seed);
        state = digest(&block[..take], state);
        stream.write_all(&block[..take])?;
        left -= take as u64;
    }
    Ok(state)
}

/// Takes `length` bytes and gives their digest.
pub fn digest_of(stream: &mut impl Read, length: u64) -> io::Result<u64> {
    let mut block = vec![0_u8; BLOCK];
    let mut state = DIGEST_START;
    let mut left = length;
    while left > 0 {
        let take = usize::try_from(left).unwrap_or(BLOCK).min(BLOCK);
        stream.read_exact(&mut block[..take])?;
        state = digest(&block[..take], state);
        left -= take as u64;
    }
    Ok(state)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_survive_the_wire() {
        for request in [Request::Upload(5), Request::Download(u64::MAX), Request::Who] {
            assert_eq!(Request::parse(&request.bytes()), Some(request));
        }
        assert_eq!(Request::parse(b"x12345678"), None);
    }

    #[test]
    fn a_digest_tells_content_and_order_apart() {
        let length = BLOCK as u64 * 2 + 13;
        let mut sent = Vec::new();
        let digest = send(&mut sent, length).unwrap();
        assert_eq!(digest_of(&mut sent.as_slice(), length).unwrap(), digest);
        sent.swap(8, 16);
        assert_ne!(digest_of(&mut sent.as_slice(), length).unwrap(), digest);
    }
}
