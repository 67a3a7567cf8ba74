//! The index from all rows: the start without a checkpoint.
//!
//! Rows come by revision, keys are wanted in order. Keys are gathered in a hash map and sorted once; versions are logged in one
//! array and dealt out to their keys at the end. Every step touches as few places in memory as it can, and rows are taken in small
//! batches whose steps are independent of each other, because waiting for memory is all that this costs. The map's order of iteration
//! does not matter.

use std::collections::HashMap;

use bytes::Bytes;
use types::RowId;

use crate::index::{Facts, Index, Record, RecordBuilder, Version};
use crate::machine::{OpenError, Version as Row, scan_rows};
use crate::store::Store;

/// Rows taken at a time.
const BATCH_ROWS: usize = 256;

/// The newest version of one key so far.
#[derive(Default)]
struct Newest {
    id: RowId,
    facts: Option<Facts>,
    value_len: u32,
    /// Versions of the key.
    count: u32,
    /// In its row's memory: a value that is overwritten later is never copied. Empty when the budget is used up.
    value: Bytes,
}

struct Gathering {
    places: HashMap<Box<[u8]>, u32>,
    newest: Vec<Newest>,
    /// All versions in order of revision, with the place of their key.
    log: Vec<(u32, Version)>,
    inline_bytes: u64,
    inline_bytes_max: u64,
    batch: Vec<Row>,
}

impl Gathering {
    fn take_batch(&mut self) {
        let first = self.log.len();
        for row in &self.batch {
            let place = match self.places.get(row.key()) {
                Some(place) => *place,
                None => {
                    let place = u32::try_from(self.newest.len())
                        .expect("an index in memory has fewer than 2^32 keys");
                    self.places.insert(Box::from(row.key()), place);
                    self.newest.push(Newest::default());
                    place
                }
            };
            self.log.push((place, Version::new(row.id, row.facts.is_none())));
        }
        for (row, (place, _)) in self.batch.drain(..).zip(&self.log[first..]) {
            let newest = &mut self.newest[*place as usize];
            (newest.id, newest.facts, newest.count) = (row.id, row.facts, newest.count + 1);
            newest.value_len = row.value().len() as u32;
            self.inline_bytes -= newest.value.len() as u64;
            let fits = row.facts.is_some()
                && self.inline_bytes + u64::from(newest.value_len) <= self.inline_bytes_max;
            newest.value = if fits { row.into_value() } else { Bytes::new() };
            self.inline_bytes += newest.value.len() as u64;
        }
    }

    /// All versions, those of one key side by side, and where each key's begin.
    fn deal(&mut self) -> (Vec<Version>, Vec<usize>) {
        let mut starts = Vec::with_capacity(self.newest.len());
        let mut total = 0;
        for newest in &self.newest {
            starts.push(total);
            total += newest.count as usize;
        }
        let mut next = starts.clone();
        let mut dealt = vec![Version::new(RowId::default(), true); total];
        for (place, version) in std::mem::take(&mut self.log) {
            dealt[next[place as usize]] = version;
            next[place as usize] += 1;
        }
        (dealt, starts)
    }
}

/// Answers the index and the revision of the newest row.
pub(crate) fn rebuild<S: Store>(
    store: &S,
    inline_bytes_max: u64,
    progress: fn(u64),
) -> Result<(Index, i64), OpenError> {
    let mut gathering = Gathering {
        places: HashMap::new(),
        newest: Vec::new(),
        log: Vec::new(),
        inline_bytes: 0,
        inline_bytes_max,
        batch: Vec::with_capacity(BATCH_ROWS),
    };
    let mut last = 0;
    scan_rows(store, 0, progress, &mut |row| {
        last = row.id.main.0;
        gathering.batch.push(row);
        if gathering.batch.len() == BATCH_ROWS {
            gathering.take_batch();
        }
    })?;
    gathering.take_batch();
    let (versions, starts) = gathering.deal();
    let Gathering { places, mut newest, .. } = gathering;
    let record = |(key, place): (Box<[u8]>, u32)| -> (Vec<u8>, Record) {
        let place = place as usize;
        let Newest { id, facts, value_len, count, value } = std::mem::take(&mut newest[place]);
        let older = versions[starts[place]..starts[place] + count as usize - 1].to_vec();
        let mut record = RecordBuilder::with_older(older).newest(id, facts, value_len as usize);
        RecordBuilder::fill(&mut record, &value);
        (key.into_vec(), record)
    };
    let sorted = sort(places.into_iter().collect());
    Ok((Index::from_sorted(inline_bytes_max, sorted.into_iter().map(record)), last))
}

/// Sorts by key. Most comparisons are decided by eight bytes behind the prefix that all keys share, kept beside the place, so that
/// they do not follow a pointer.
fn sort(mut keys: Vec<(Box<[u8]>, u32)>) -> Vec<(Box<[u8]>, u32)> {
    let Some((first, _)) = keys.first() else { return keys };
    let mut shared = first.len();
    for (key, _) in &keys {
        shared = key.iter().zip(first.iter()).take(shared).take_while(|(a, b)| a == b).count();
    }
    let head = |key: &[u8]| {
        let mut bytes = [0; 8];
        let rest = &key[shared..key.len().min(shared + 8)];
        bytes[..rest.len()].copy_from_slice(rest);
        u64::from_be_bytes(bytes)
    };
    let mut order: Vec<(u64, u32)> =
        keys.iter().enumerate().map(|(at, (key, _))| (head(key), at as u32)).collect();
    order.sort_unstable_by(|(a, i), (b, j)| {
        a.cmp(b).then_with(|| keys[*i as usize].0.cmp(&keys[*j as usize].0))
    });
    order.into_iter().map(|(_, at)| std::mem::take(&mut keys[at as usize])).collect()
}
