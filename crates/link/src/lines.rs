//! Messages as lines: JSON without raw newlines, one `\n` after each (NDJSON), cut from a stream of bytes.
//!
//! Pure: bytes in, lines out. Promise: whatever the cuts between the pieces, the lines are the same; a line longer than
//! the bound is an error before it is kept, so a peer cannot fill the memory. Must not know sockets or messages.

use bytes::Bytes;
use serde::Serialize;

/// `value` as one line, its newline included.
#[must_use]
pub fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    let mut line = serde_json::to_vec(value).expect("invariant: wire messages serialise to JSON");
    line.push(b'\n');
    line
}

/// A line exceeds the bound: the stream cannot be followed any further.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a message is longer than {max} bytes")]
pub struct LineTooLong {
    /// The bound, in bytes.
    pub max: usize,
}

/// Cuts a stream of bytes into lines of at most `max` bytes; empty lines are skipped.
#[derive(Debug)]
pub struct LineDecoder {
    buffer: Vec<u8>,
    max: usize,
}

impl LineDecoder {
    /// A decoder for lines of at most `max` bytes, newline excluded.
    #[must_use]
    pub fn new(max: usize) -> Self {
        Self { buffer: Vec::new(), max }
    }

    /// Takes the next piece of the stream and appends the lines that it completes to `lines`.
    ///
    /// # Errors
    /// [`LineTooLong`]; the decoder must not be used after it.
    pub fn push(&mut self, piece: &[u8], lines: &mut Vec<Bytes>) -> Result<(), LineTooLong> {
        let mut rest = piece;
        while let Some(at) = rest.iter().position(|b| *b == b'\n') {
            self.take(&rest[..at])?;
            rest = &rest[at + 1..];
            if !self.buffer.is_empty() {
                lines.push(Bytes::from(std::mem::take(&mut self.buffer)));
            }
        }
        self.take(rest)
    }

    fn take(&mut self, bytes: &[u8]) -> Result<(), LineTooLong> {
        if self.buffer.len() + bytes.len() > self.max {
            return Err(LineTooLong { max: self.max });
        }
        self.buffer.extend_from_slice(bytes);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn decode(bytes: &[u8], cuts: &[usize], max: usize) -> Result<Vec<Bytes>, LineTooLong> {
        let mut decoder = LineDecoder::new(max);
        let mut lines = Vec::new();
        let mut rest = bytes;
        for cut in cuts {
            let (head, tail) = rest.split_at((*cut).min(rest.len()));
            decoder.push(head, &mut lines)?;
            rest = tail;
        }
        decoder.push(rest, &mut lines)?;
        Ok(lines)
    }

    proptest! {
        #[test]
        fn lines_survive_any_cut(
            texts in proptest::collection::vec("[ -~\n\u{e9}]{0,40}", 0..20),
            cuts in proptest::collection::vec(0usize..30, 0..60),
        ) {
            let bytes: Vec<u8> = texts.iter().flat_map(encode).collect();
            let lines = decode(&bytes, &cuts, 1 << 12).unwrap();
            let back: Vec<String> =
                lines.iter().map(|l| serde_json::from_slice(l).unwrap()).collect();
            prop_assert_eq!(back, texts);
        }

        #[test]
        fn arbitrary_bytes_never_keep_more_than_the_bound(
            bytes in proptest::collection::vec(any::<u8>(), 0..400),
            cuts in proptest::collection::vec(0usize..50, 0..20),
            max in 1usize..64,
        ) {
            let longest = bytes.split(|b| *b == b'\n').map(<[u8]>::len).max().unwrap_or(0);
            match decode(&bytes, &cuts, max) {
                Ok(lines) => {
                    prop_assert!(longest <= max);
                    prop_assert!(lines.iter().all(|l| !l.is_empty() && l.len() <= max));
                }
                Err(LineTooLong { .. }) => prop_assert!(longest > max),
            }
        }
    }
}
