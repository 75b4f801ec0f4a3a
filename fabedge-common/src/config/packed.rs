//! A document's text as an object of the API or a folder holds it: as it is while it is small, else compressed.

use std::error::Error as StdError;
use std::io::{self, Write as _};
use std::ops::Range;

use flate2::write::GzEncoder;
use flate2::{Compression, Crc, Decompress, FlushDecompress, Status};

use super::Error;

/// Key, and file name, of a document as it is.
pub const DOCUMENT_KEY: &str = "tunnels.yaml";

/// Key, and file name, of a compressed document.
pub const COMPRESSED_KEY: &str = "tunnels.yaml.gz";

/// A longer text is compressed: an object of the API holds 1 MiB, with all that is around the text.
pub const PLAIN_BYTES: usize = 700 << 10;

/// A longer document is not read: 10,000 peers take about 3 MiB.
pub const MAX_BYTES: u64 = 32 << 20;

/// The largest window that gzip has, as a power of two.
const WINDOW_BITS: u8 = 15;

/// How many items of a list are a part of their own, on average: of peers some 50 KB.
const ITEMS: u32 = 256;

/// How many known members are looked at for the one that comes next: so many may have gone at one place.
const AHEAD: usize = 8;

/// For how many bytes more there is room at a time.
const ROOM: usize = 64 << 10;

/// A text in one of its two forms.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Packed {
    /// As it is, for [`DOCUMENT_KEY`].
    Plain(String),
    /// By gzip (RFC 1952), for [`COMPRESSED_KEY`].
    Compressed(Vec<u8>),
}

/// Brings a text into the form in which it fits. The same text always gives the same bytes.
pub fn pack(text: String) -> Packed {
    if text.len() <= PLAIN_BYTES {
        return Packed::Plain(text);
    }
    // Writing to memory does not fail.
    match compress(&text) {
        Ok(bytes) => Packed::Compressed(bytes),
        Err(_) => Packed::Plain(text),
    }
}

/// The text of a compressed document.
///
/// # Errors
/// [`Error::Damaged`] for what is not gzip, not all of it, or not text, [`Error::TooLarge`] for more than [`MAX_BYTES`].
pub fn unpack(bytes: &[u8]) -> Result<String, Error> {
    Members::default()
        .next("", bytes, String::new())
        .map(|(text, _)| text)
}

/// A compressed document, and where in it and in its text each of its members (RFC 1952, section 2.2) ends.
#[derive(Clone, Debug, Default)]
pub struct Members {
    bytes: Vec<u8>,
    ends: Vec<[usize; 2]>,
}

impl Members {
    /// The compressed document.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The text of the document that follows this one, which has `text`: members that are the same are not unpacked again.
    /// It goes where `room` is, whose content does not matter: to have the kernel make room takes longer than to fill it.
    ///
    /// # Errors
    /// Those of [`unpack`].
    pub fn next(&self, text: &str, bytes: &[u8], room: String) -> Result<(String, Self), Error> {
        let mut next = room.into_bytes();
        next.clear();
        next.reserve(text.len() + ROOM);
        let mut ends = Vec::with_capacity(self.ends.len() + 1);
        let (mut at, mut first) = (0, 0);
        while at < bytes.len() || ends.is_empty() {
            let rest = &bytes[at..];
            let known = (first..self.ends.len())
                .take(AHEAD)
                .find(|member| rest.starts_with(&self.bytes[self.range(*member, 0)]));
            match known {
                Some(member) => {
                    next.extend_from_slice(&text.as_bytes()[self.range(member, 1)]);
                    at += self.range(member, 0).len();
                    first = member + 1;
                }
                None => at += member(rest, &mut next)?,
            }
            ends.push([at, next.len()]);
        }
        if next.len() as u64 > MAX_BYTES {
            return Err(Error::TooLarge);
        }
        let next = String::from_utf8(next).map_err(|error| damaged(error.into()))?;
        let bytes = bytes.to_vec();
        Ok((next, Self { bytes, ends }))
    }

    /// Where a member is: in the bytes (0), or in the text (1).
    fn range(&self, member: usize, which: usize) -> Range<usize> {
        let start = member.checked_sub(1).map_or(0, |before| self.ends[before][which]);
        start..self.ends[member][which]
    }
}

/// Unpacks the member that `bytes` begin with behind `text`; its length.
fn member(bytes: &[u8], text: &mut Vec<u8>) -> Result<usize, Error> {
    let mut decoder = Decompress::new_gzip(WINDOW_BITS);
    loop {
        text.reserve(ROOM);
        let before = (decoder.total_in(), decoder.total_out());
        let rest = &bytes[before.0 as usize..];
        let status = decoder.decompress_vec(rest, text, FlushDecompress::None);
        let ended = status.map_err(|error| damaged(error.into()))? == Status::StreamEnd;
        if text.len() as u64 > MAX_BYTES {
            return Err(Error::TooLarge);
        }
        if ended {
            return Ok(decoder.total_in() as usize);
        }
        if before == (decoder.total_in(), decoder.total_out()) {
            return Err(damaged("it ends too early".into()));
        }
    }
}

fn damaged(why: Box<dyn StdError + Send + Sync>) -> Error {
    Error::Damaged(io::Error::new(io::ErrorKind::InvalidData, why))
}

/// A member for every part, so that what did not change need not be unpacked again.
fn compress(text: &str) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    for part in parts(text) {
        let mut encoder = GzEncoder::new(&mut bytes, Compression::default());
        encoder.write_all(part.as_bytes())?;
        encoder.finish()?;
    }
    Ok(bytes)
}

/// Parts of a text. Each starts at an item of a list whose first line says so by its checksum: so whatever comes and goes
/// elsewhere, it starts there again.
fn parts(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let mut end = 0;
        for line in rest.split_inclusive('\n') {
            if end > 0 && line.starts_with("- ") && starts_part(line) {
                break;
            }
            end += line.len();
        }
        let (part, behind) = rest.split_at(end);
        rest = behind;
        (!part.is_empty()).then_some(part)
    })
}

fn starts_part(line: &str) -> bool {
    let mut sum = Crc::new();
    sum.update(line.as_bytes());
    sum.sum().is_multiple_of(ITEMS)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compressed(text: &str) -> Vec<u8> {
        compress(text).unwrap()
    }

    #[test]
    fn only_what_does_not_fit_is_compressed() {
        let fits = "a".repeat(PLAIN_BYTES);
        assert_eq!(pack(fits.clone()), Packed::Plain(fits.clone()));
        let text = fits + "b";
        let Packed::Compressed(bytes) = pack(text.clone()) else {
            panic!("{} bytes are not compressed", text.len());
        };
        assert_eq!(unpack(&bytes).unwrap(), text);
        assert_eq!(
            pack(text),
            Packed::Compressed(bytes),
            "the same text, the same bytes"
        );
    }

    #[test]
    fn what_did_not_change_is_not_unpacked_again() {
        let text = |peers: &mut dyn Iterator<Item = usize>| {
            let peers = peers.map(|peer| format!("- id: CN=a.edge{peer}\n  name: a.edge{peer}\n"));
            format!("version: 1\npeers:\n{}...\n", peers.collect::<String>())
        };
        let most = 5000;
        let before = text(&mut (0..most));
        let (unpacked, members) = Members::default()
            .next("", &compressed(&before), String::new())
            .unwrap();
        assert_eq!(unpacked, before);
        assert!(members.ends.len() > 10, "{} members", members.ends.len());
        for (what, after) in [
            ("nothing", before.clone()),
            ("the head", before.replace("version: 1", "version: 2")),
            ("the end", before.replace("...\n", "other: 1\n...\n")),
            ("one", before.replace("name: a.edge2500\n", "name: a.other\n")),
            ("one less", text(&mut (0..most).filter(|peer| *peer != 2500))),
            (
                "many less",
                text(&mut (0..most).filter(|peer| !(1000..3000).contains(peer))),
            ),
            ("one more", text(&mut (0..most).chain([most]))),
            ("many more", text(&mut (0..2 * most))),
            ("the other way round", text(&mut (0..most).rev())),
            ("none", "none".to_owned()),
        ] {
            let (unpacked, next) = members.next(&before, &compressed(&after), String::new()).unwrap();
            assert_eq!(unpacked, after, "{what}");
            assert_eq!(
                next.ends,
                Members::default()
                    .next("", &compressed(&after), String::new())
                    .unwrap()
                    .1
                    .ends,
                "{what}"
            );
        }
        // Of the others no byte is looked into: they could be anything.
        let one = compressed(&before.replace("name: a.edge2500\n", "name: a.other\n"));
        let anything = "x".repeat(before.len());
        let (unpacked, _) = members.next(&anything, &one, "of another".to_owned()).unwrap();
        assert!(unpacked.contains("name: a.other\n"));
        assert!(unpacked.matches('x').count() > before.len() * 8 / 10);
    }

    #[test]
    fn what_is_damaged_or_foreign_is_refused() {
        let bytes = compressed(&"version: 1\n".repeat(100));
        for cut in [0, 1, 9, 10, bytes.len() / 2, bytes.len() - 1] {
            assert!(
                matches!(unpack(&bytes[..cut]), Err(Error::Damaged(_))),
                "{cut} bytes"
            );
        }
        let mut flipped = bytes.clone();
        flipped[bytes.len() / 2] ^= 1;
        let trailing = [&bytes[..], b"version: 2"].concat();
        let binary = {
            let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
            encoder.write_all(&[0xff, 0xfe]).unwrap();
            encoder.finish().unwrap()
        };
        for foreign in [b"version: 1\n".as_slice(), &flipped, &trailing, &binary] {
            let error = unpack(foreign).unwrap_err();
            assert!(matches!(error, Error::Damaged(_)), "{error:?}");
            assert!(error.to_string().contains("tunnels.yaml.gz"), "{error}");
        }
    }

    #[test]
    fn a_small_object_cannot_fill_the_memory() {
        let bomb = compressed(&"\0".repeat(MAX_BYTES as usize + 1));
        assert!(bomb.len() < 64 << 10);
        assert!(matches!(unpack(&bomb), Err(Error::TooLarge)));
        let largest = compressed(&"\0".repeat(MAX_BYTES as usize));
        assert_eq!(unpack(&largest).unwrap().len() as u64, MAX_BYTES);
    }
}
