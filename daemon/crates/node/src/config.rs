//! What a member needs to know to run. Checked by the daemon's settings; nothing here is validated again.

use std::{num::NonZeroU64, path::PathBuf, time::Duration};

use types::{ClusterId, MemberId};

use crate::auto_compaction::AutoCompaction;

#[derive(Clone)]
pub struct NodeConfig {
    pub member: MemberId,
    pub cluster: ClusterId,
    /// Published to the cluster once it has a leader.
    pub name: String,
    pub advertise_client_urls: Vec<String>,
    pub advertise_peer_urls: Vec<String>,
    /// `heartbeat-interval`: the length of one raft tick.
    pub heartbeat: Duration,
    /// `election-timeout` in ticks, rounded down as etcd does.
    pub election_ticks: usize,
    pub pre_vote: bool,
    pub max_request_bytes: u64,
    pub max_txn_ops: usize,
    /// `quota-backend-bytes`: 0 is etcd's default of 2 GiB, negative is none.
    pub quota_backend_bytes: i64,
    /// Entries applied between two snapshot records in the log.
    pub snapshot_count: u64,
    /// Entries kept in memory behind the snapshot record for slow followers.
    pub snapshot_catchup_entries: u64,
    /// How fast a snapshot for a peer is sent while writes are applied; None: as fast as it goes.
    pub snapshot_send_bytes_per_second: Option<NonZeroU64>,
    /// How fast the file of a backup is written; None: as fast as it goes.
    pub snapshot_save_bytes_per_second: Option<NonZeroU64>,
    /// Bytes of newest values kept beside the index.
    pub inline_value_bytes_max: u64,
    /// `compaction-batch-limit` and `compaction-sleep-interval`.
    pub compaction_batch: usize,
    pub compaction_sleep: Duration,
    /// None: history is forgotten only when a client asks.
    pub auto_compaction: Option<AutoCompaction>,
    /// Learners at a time when this member is asked to add one; travels with the request.
    pub max_learners: usize,
    /// Refuse changes of membership that would endanger the quorum.
    pub strict_reconfig_check: bool,
    /// While this member leads, a learner that has caught up becomes a voter by itself.
    pub auto_promote_learner: bool,
    /// `watch-progress-notify-interval`, at least 100 ms as in etcd.
    pub watch_progress_interval: Duration,
    /// Whether this member, when it leads, writes the remaining time of long leases into the log, and how often.
    pub lease_checkpoint_interval: Option<Duration>,
    /// The first election comes sooner: a fresh process has nothing to wait for.
    pub initial_election_tick_advance: bool,
    /// Where the index checkpoint and snapshots live.
    pub state_dir: PathBuf,
    pub snap_dir: PathBuf,
    /// Told how many rows of the state were read while it is opened: see `state_machine::Options`.
    pub progress: fn(u64),
    /// Told how many of the entries were applied that the log held as committed, of how many, while the member starts.
    pub replayed: fn(u64, u64),
    /// Ends the process with the exit code for the cause; called when going on would mean guessing.
    pub fatal: fn(Fatal) -> !,
}

impl NodeConfig {
    /// How long a request waits for its answer: 5 s and two election timeouts, as in etcd.
    pub fn request_timeout(&self) -> Duration {
        Duration::from_secs(5) + 2 * self.election_timeout()
    }

    /// Shortest lease in seconds: an election and a half must fit into it, as in etcd (2 with the defaults).
    pub fn lease_ttl_min(&self) -> i64 {
        let ticks = u32::try_from(3 * self.election_ticks / 2).unwrap_or(u32::MAX);
        let shortest = self.heartbeat * ticks;
        i64::try_from(shortest.as_millis().div_ceil(1000)).unwrap_or(i64::MAX)
    }

    pub fn election_timeout(&self) -> Duration {
        self.heartbeat * u32::try_from(self.election_ticks).unwrap_or(u32::MAX)
    }
}

/// Why this member cannot go on. Each is an I/O failure: what a peer or a client says never leads here.
#[derive(Debug, thiserror::Error)]
pub enum Fatal {
    #[error("write-ahead log: {0}")]
    Log(String),
    #[error("state store: {0}")]
    Store(String),
}
