//! The settings that may change while a member runs: one value, replaced as a whole, read where it is used.
//!
//! None of them decides what an entry does, so members may differ in them for as long as it takes to change them everywhere.

use std::{num::NonZeroU64, time::Duration};

use crate::{auto_compaction::AutoCompaction, config::NodeConfig, handle::Handle};

/// See [`NodeConfig`] for what each of them means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tunable {
    pub quota_backend_bytes: i64,
    pub snapshot_count: u64,
    pub snapshot_send_bytes_per_second: Option<NonZeroU64>,
    pub snapshot_save_bytes_per_second: Option<NonZeroU64>,
    pub compaction_batch: usize,
    pub compaction_sleep: Duration,
    pub auto_compaction: Option<AutoCompaction>,
    pub max_learners: usize,
    pub strict_reconfig_check: bool,
    pub auto_promote_learner: bool,
}

impl NodeConfig {
    /// What it says of these, as a member starts with it.
    pub fn tunable(&self) -> Tunable {
        Tunable {
            quota_backend_bytes: self.quota_backend_bytes,
            snapshot_count: self.snapshot_count,
            snapshot_send_bytes_per_second: self.snapshot_send_bytes_per_second,
            snapshot_save_bytes_per_second: self.snapshot_save_bytes_per_second,
            compaction_batch: self.compaction_batch,
            compaction_sleep: self.compaction_sleep,
            auto_compaction: self.auto_compaction,
            max_learners: self.max_learners,
            strict_reconfig_check: self.strict_reconfig_check,
            auto_promote_learner: self.auto_promote_learner,
        }
    }
}

impl Handle {
    /// From here on. What is under way (a snapshot that is being written, a batch of compaction) ends as it began.
    pub fn tune(&self, tunable: Tunable) {
        let shared = &self.shared;
        // First what a state that is being installed in this moment will be given, then the state that is there.
        shared.live.send_if_modified(|live| std::mem::replace(live, tunable) != tunable);
        shared.reader().set_quota(tunable.quota_backend_bytes);
    }
}
