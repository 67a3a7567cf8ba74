//! Cuts a stream of chunks into runs of known length, copying only what crosses a chunk border.

use bytes::{Buf, Bytes, BytesMut};

#[derive(Default)]
pub(super) struct Assembler {
    /// Beginning of a run whose end has not arrived.
    partial: BytesMut,
    chunk: Bytes,
}

impl Assembler {
    /// The next bytes of the stream. Call [`Assembler::take`] until it answers `None` before feeding again.
    pub(super) fn feed(&mut self, chunk: Bytes) {
        if self.chunk.is_empty() {
            self.chunk = chunk;
        } else {
            let mut joined = BytesMut::with_capacity(self.chunk.len() + chunk.len());
            joined.extend_from_slice(&self.chunk);
            joined.extend_from_slice(&chunk);
            self.chunk = joined.freeze();
        }
    }

    /// The next `length` bytes once all have arrived. After a `None` the same length must be asked for again. What has arrived of an
    /// incomplete run is moved to a buffer that doubles as it fills, so memory follows the bytes received and not the length.
    pub(super) fn take(&mut self, length: usize) -> Option<Bytes> {
        if self.partial.is_empty() && self.chunk.len() >= length {
            return Some(self.chunk.split_to(length));
        }
        let missing = length.saturating_sub(self.partial.len());
        let now = missing.min(self.chunk.len());
        self.partial.extend_from_slice(&self.chunk[..now]);
        self.chunk.advance(now);
        (now == missing).then(|| std::mem::take(&mut self.partial).freeze())
    }

    pub(super) fn take_u8(&mut self) -> Option<u8> {
        self.take(1).map(|mut bytes| bytes.get_u8())
    }

    pub(super) fn take_u64(&mut self) -> Option<u64> {
        self.take(8).map(|mut bytes| bytes.get_u64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_within_one_chunk_is_a_slice_of_it() {
        let chunk = Bytes::from_static(b"abcdef");
        let mut assembler = Assembler::default();
        assembler.feed(chunk.clone());
        let run = assembler.take(4).expect("all arrived");
        assert_eq!(run.as_ptr(), chunk.as_ptr(), "no copy was made");
        assert_eq!(assembler.take(4), None);
        assembler.feed(Bytes::from_static(b"gh"));
        assert_eq!(assembler.take(4).as_deref(), Some(b"efgh".as_slice()));
    }
}
