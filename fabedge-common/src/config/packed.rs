//! A document's text as an object of the API or a folder holds it: as it is while it is small, else compressed.

use std::io::{self, Read, Write as _};

use flate2::Compression;
use flate2::read::MultiGzDecoder;
use flate2::write::GzEncoder;

use super::Error;

/// Key, and file name, of a document as it is.
pub const DOCUMENT_KEY: &str = "tunnels.yaml";

/// Key, and file name, of a compressed document.
pub const COMPRESSED_KEY: &str = "tunnels.yaml.gz";

/// A longer text is compressed: an object of the API holds 1 MiB, with all that is around the text.
pub const PLAIN_BYTES: usize = 700 << 10;

/// A longer document is not read: 10,000 peers take about 3 MiB.
pub const MAX_BYTES: u64 = 32 << 20;

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
    let mut text = Vec::new();
    MultiGzDecoder::new(bytes)
        .take(MAX_BYTES + 1)
        .read_to_end(&mut text)
        .map_err(Error::Damaged)?;
    if text.len() as u64 > MAX_BYTES {
        return Err(Error::TooLarge);
    }
    String::from_utf8(text).map_err(|error| Error::Damaged(io::Error::new(io::ErrorKind::InvalidData, error)))
}

fn compress(text: &str) -> io::Result<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(text.as_bytes())?;
    encoder.finish()
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
