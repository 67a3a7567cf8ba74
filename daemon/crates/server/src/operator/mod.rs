//! What operators ask of one member beyond etcd's API (`cairn.v1.Operator`): who fills the store, who writes, who watches, by prefix.
//!
//! Keys are counted on a view pinned at one revision, changes from the history that is kept anyway, watchers by the hub in slices: the
//! apply path does nothing for any of it and nothing is counted while nobody asks. Every slice runs on a thread made for waiting, with
//! a pause as long as itself behind it, and one question at a time; every answer has a named bound.
//!
//! Whoever may watch a range may know its numbers; without authentication that is everybody, as with every other call. Not here: the
//! order in which a person wants to see rows, several members (`cairnctl top`).

mod group;
mod prefixes;
mod watchers;
mod writes;

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use api::error::EtcdError;
use bytes::Bytes;
use tonic::Status;

pub(crate) use prefixes::prefixes;
pub(crate) use watchers::watchers;
pub(crate) use writes::writes;

/// Prefixes in one answer: a screen shows fifty, and a report of ten thousand is a file.
const ROWS_MAX: usize = 10_000;

/// Bytes of all prefixes of one answer, of which one alone may be longer: with `ROWS_MAX` prefixes of a hundred bytes each. Keys may be as long as a request.
const ROWS_BYTES_MAX: usize = 1024 * 1024;

/// The pause behind a slice is as long as the slice, and at most this: a scan takes at most half of a core and of the disk.
const PAUSE_MAX: Duration = Duration::from_millis(50);

/// Runs one slice beside the calls of this thread, then leaves its time to others. A question that nobody waits for any more ends with the
/// slice.
async fn slice<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Status> {
    let began = Instant::now();
    let done = tokio::task::spawn_blocking(work).await.map_err(|_| EtcdError::Stopped)?;
    tokio::time::sleep(began.elapsed().min(PAUSE_MAX)).await;
    Ok(done)
}

/// Rows by prefix, as many as an answer holds.
struct Rows<T> {
    rows: BTreeMap<Bytes, T>,
    bytes: usize,
    rows_max: usize,
}

impl<T: Default> Rows<T> {
    fn new(rows_max: usize) -> Rows<T> {
        Rows { rows: BTreeMap::new(), bytes: 0, rows_max }
    }

    /// The row of a prefix; None when it would be one too many.
    fn at(&mut self, prefix: &[u8]) -> Option<&mut T> {
        if !self.rows.contains_key(prefix) {
            // The first one always: a call that counts nothing would be followed by the same again, for ever.
            let fits = self.rows.is_empty()
                || (self.rows.len() < self.rows_max && self.bytes + prefix.len() <= ROWS_BYTES_MAX);
            if !fits {
                return None;
            }
            self.bytes += prefix.len();
            // A copy: a part of a key would keep the whole piece that it was read with.
            self.rows.insert(Bytes::copy_from_slice(prefix), T::default());
        }
        self.rows.get_mut(prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_holds_a_bounded_number_of_rows_and_bytes() {
        let mut rows: Rows<u32> = Rows::new(2);
        for prefix in [&b"a/"[..], b"b/", b"a/"] {
            *rows.at(prefix).expect("two prefixes fit") += 1;
        }
        assert!(rows.at(b"c/").is_none());
        assert_eq!(rows.rows.values().copied().collect::<Vec<_>>(), [2, 1]);
        let mut rows: Rows<u32> = Rows::new(10);
        assert!(rows.at(&vec![b'a'; ROWS_BYTES_MAX]).is_some());
        assert!(rows.at(b"b").is_none() && rows.at(b"").is_some());
        let mut rows: Rows<u32> = Rows::new(10);
        assert!(
            rows.at(&vec![b'a'; ROWS_BYTES_MAX + 1]).is_some(),
            "a key may be longer than an answer, and is counted all the same"
        );
        assert!(rows.at(b"b").is_none());
    }
}
