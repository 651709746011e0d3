//! Compression of answers, for clients that accept gzip.
//!
//! A short answer is compressed at once. A long one is compressed while it is sent, piece by piece: of its text no more
//! than a piece waits, and each piece leaves when it is made. Events are never compressed.

use std::io::{self, Write};

use flate2::Compression;
use flate2::write::GzEncoder;
use hyper::body::Bytes;
use hyper::header::{ACCEPT_ENCODING, HeaderMap};

/// Compressor of a long answer.
pub(super) struct GzipEncoder(Option<GzEncoder<Vec<u8>>>);

impl GzipEncoder {
    pub(super) fn new() -> Self {
        GzipEncoder(Some(GzEncoder::new(Vec::new(), Compression::fast())))
    }

    /// Compresses a piece; all of it is in what this has returned so far.
    pub(super) fn compress(&mut self, piece: &[u8]) -> io::Result<Bytes> {
        let Some(encoder) = &mut self.0 else { return Ok(Bytes::new()) };
        encoder.write_all(piece)?;
        encoder.flush()?;
        Ok(std::mem::take(encoder.get_mut()).into())
    }

    /// Returns the end of the compressed answer, once.
    pub(super) fn finish(&mut self) -> Option<io::Result<Bytes>> {
        self.0.take().map(|encoder| encoder.finish().map(Bytes::from))
    }

    /// `true` if the end was returned.
    pub(super) fn is_finished(&self) -> bool {
        self.0.is_none()
    }
}

/// Compresses a short answer.
pub(super) fn compressed(text: &[u8]) -> io::Result<Bytes> {
    let mut encoder = GzEncoder::new(Vec::with_capacity(text.len() / 4), Compression::fast());
    encoder.write_all(text)?;
    encoder.finish().map(Bytes::from)
}

/// `true` if the headers of a request accept answers in gzip.
pub(super) fn is_accepted(headers: &HeaderMap) -> bool {
    let accepted = headers.get_all(ACCEPT_ENCODING).iter().flat_map(|accept| accept.to_str().unwrap_or("").split(','));
    let mut codings = accepted.map(|coding| {
        let (name, parameters) = coding.split_once(';').unwrap_or((coding, ""));
        let weight = parameters.trim().strip_prefix("q=").map_or(Ok(1.0), |weight| weight.trim().parse::<f32>());
        (name.trim(), weight.is_ok_and(|weight| weight > 0.0))
    });
    codings.any(|(name, wanted)| wanted && name.eq_ignore_ascii_case("gzip"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::read::GzDecoder;
    use std::io::Read;

    #[test]
    fn gzip_is_for_those_who_accept_it() {
        let accepts = |value: &str| {
            let headers = HeaderMap::from_iter([(ACCEPT_ENCODING, value.parse().unwrap())]);
            is_accepted(&headers)
        };
        for value in ["gzip", "GZIP", "br, gzip;q=0.1", "deflate,gzip", "gzip ; q=1", "identity;q=0, gzip"] {
            assert!(accepts(value), "{value}");
        }
        for value in ["", "br", "gzip;q=0", "gzip; q=0.000", "gzip;q=x", "xgzip", "identity", "*"] {
            assert!(!accepts(value), "{value}");
        }
        assert!(!is_accepted(&HeaderMap::new()));
    }

    /// Whoever has the compressed pieces so far can read all that went into them.
    #[test]
    fn each_piece_leaves_at_once_and_together_they_are_the_text() {
        let (mut encoder, mut sent, mut text) = (GzipEncoder::new(), Vec::new(), Vec::new());
        for n in 0..50_u32 {
            let piece = format!("{n} {}", "~".repeat(n as usize * 100));
            text.extend(piece.as_bytes());
            sent.extend(encoder.compress(piece.as_bytes()).unwrap());
            let mut read = vec![0; text.len()];
            GzDecoder::new(&sent[..]).read_exact(&mut read).unwrap();
            assert!(read == text, "piece {n} is kept back");
        }
        assert!(!encoder.is_finished());
        sent.extend(encoder.finish().unwrap().unwrap());
        assert!(encoder.is_finished() && encoder.finish().is_none());
        let mut read = Vec::new();
        GzDecoder::new(&sent[..]).read_to_end(&mut read).unwrap();
        assert!(read == text && sent.len() * 10 < text.len(), "{} of {}", sent.len(), text.len());
        read.clear();
        GzDecoder::new(&compressed(&text).unwrap()[..]).read_to_end(&mut read).unwrap();
        assert!(read == text);
    }
}
