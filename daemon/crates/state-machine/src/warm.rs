//! Bringing newest values into memory after a start from a checkpoint, which holds none, a bounded piece at a time.
//!
//! A start that scans all rows has every value in its hands and keeps the newest at once. A checkpoint with values would be as large
//! as the data and be written as often; without them a start takes a tenth of a second per million keys, reads are right at once
//! (values come from the store), and a million values come inline in one to two seconds of steps beside apply.

use std::ops::ControlFlow;

use types::RowId;

use crate::StateMachine;
use crate::range::after;
use crate::state::{decode_row, fetch};
use crate::store::Store;

/// Keys looked at per step for each value that may be brought: most are inline already once the store is warm.
const VISITED_PER_KEY: usize = 16;

impl<S: Store> StateMachine<S> {
    /// Reads up to `keys_max` values from the store without a lock and puts them inline under a short one. False when there is
    /// nothing left to bring, or no budget. To be called between batches of apply when there is time.
    pub fn warm_step(&mut self, keys_max: usize) -> bool {
        let Some(from) = self.cold_from.take() else { return false };
        let shared = &*self.shared;
        let mut cold: Vec<(Vec<u8>, RowId)> = Vec::new();
        let mut visited = 0;
        let mut bytes = 0;
        let mut is_full = false;
        {
            let state = shared.state.read();
            let stopped = state.index.walk(&from, None, |key, record| {
                visited += 1;
                if record.is_live() && record.value().is_none() {
                    bytes += record.value_len() as usize;
                    is_full = !state.index.has_room(bytes);
                    if is_full {
                        return ControlFlow::Break(Vec::new());
                    }
                    cold.push((key.to_vec(), record.id()));
                }
                let is_enough = cold.len() >= keys_max || visited >= keys_max.saturating_mul(VISITED_PER_KEY);
                if is_enough { ControlFlow::Break(after(key)) } else { ControlFlow::Continue(()) }
            });
            if let ControlFlow::Break(next) = stopped
                && !is_full
            {
                self.cold_from = Some(next);
            }
        }
        let ids: Vec<RowId> = cold.iter().map(|(_, id)| *id).collect();
        let rows = fetch(&*shared.store, &ids);
        let mut state = shared.state.write();
        for ((key, id), row) in cold.into_iter().zip(rows) {
            if let Some(row) = row {
                state.index.fill(&key, id, &decode_row(id, &row).value);
            }
        }
        self.cold_from.is_some()
    }
}
