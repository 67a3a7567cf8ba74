//! What a transport is started with, and its limits.

use std::{net::TcpListener, time::Duration};

use types::{ClusterId, MemberId, limits};

/// Messages queued for one stream. As in etcd; raft keeps at most 512 appends in flight to one peer, so only a stalled link gets here.
pub const STREAM_QUEUE_MESSAGES_MAX: usize = 4096;

/// Bytes queued for one stream. Half a second of a gigabit link; past it the peer does not keep up and raft should probe instead. The
/// entries are shared with the log's tail, so they cost memory only once the tail has let go of them.
pub const STREAM_QUEUE_BYTES_MAX: usize = 64 << 20;

/// Messages queued for `POST /raft`, as in etcd. Stale raft messages are worth little, so few are kept.
pub const PIPELINE_QUEUE_MESSAGES_MAX: usize = 64;

/// Bytes queued for `POST /raft`: this path only bridges the time until a stream is attached.
pub const PIPELINE_QUEUE_BYTES_MAX: usize = 16 << 20;

/// Concurrent `POST /raft` per peer, as in etcd.
pub const PIPELINE_WORKERS: usize = 4;

/// The least frame that is accepted. A neighbour whose `max-request-bytes` was raised must still be able to replicate its entries to
/// us, or replication stops for ever; 64 MiB is beyond any sensible setting and memory is only used as bytes arrive.
pub const FRAME_BYTES_FLOOR: u64 = 64 << 20;

/// Room in a frame beside entry data: fields, ids, signatures of a gathered proposal.
pub const FRAME_SLACK_BYTES: u64 = 4 << 20;

/// Envelope of a snapshot upload, as in etcd since 3.6.14.
pub const SNAPSHOT_ENVELOPE_BYTES_MAX: u64 = 64 << 20;

/// All bodies of `POST /raft` being received at one time. Past it the sender is told 503 and retries.
pub const BODIES_BYTES_MAX: u64 = 256 << 20;

/// Open connections on the peer port. A cluster of nine needs about a hundred.
pub const CONNECTIONS_MAX: usize = 1024;

/// Open connections from one address, so that a broken neighbour cannot take all of them.
pub const CONNECTIONS_PER_ADDRESS_MAX: usize = 256;

/// Request head on the peer port; etcd's are under one KiB.
pub const HEAD_BYTES_MAX: usize = 64 << 10;

/// Bytes that one stream write gathers. Larger batches save little; smaller ones let urgent messages in sooner.
pub const STREAM_BATCH_BYTES: usize = 128 << 10;

/// Members known only by their own word (`X-PeerURLs`): joiners that we have not heard of from the log.
pub const REMOTES_MAX: usize = 16;

/// Snapshots being received at one time: one from a leader that lost its office half way, one from the next.
pub const SNAPSHOT_RECEIVES_MAX: usize = 2;

/// How fast a receiver is at least expected to sync and check what it got: a disk that is slower than this holds up its member in any
/// case. Without it a state of some size could never be handed over.
pub const SNAPSHOT_SETTLE_BYTES_PER_SECOND: u64 = 16 << 20;

/// Largest frame accepted from a peer, in bytes, given `max-request-bytes`. One append holds up to [`limits::APPEND_BYTES_MAX`] or a
/// single larger entry, which is at most a request; forwarded proposals are gathered up to about the same.
pub const fn frame_bytes_max(request_bytes_max: u64) -> u64 {
    let needed = request_bytes_max
        .saturating_mul(2)
        .saturating_add(limits::APPEND_BYTES_MAX)
        .saturating_add(FRAME_SLACK_BYTES);
    if needed > FRAME_BYTES_FLOOR { needed } else { FRAME_BYTES_FLOOR }
}

/// Everything needed to start. Times and limits have etcd's values by default.
pub struct TransportConfig {
    /// Where all tasks of the transport run. It must have timers and I/O enabled.
    pub runtime: tokio::runtime::Handle,
    /// Already bound, one per listen-peer-url.
    pub listeners: Vec<TcpListener>,
    pub member: MemberId,
    pub cluster: ClusterId,
    /// What we claim to peers and in `/version`; strictly X.Y.Z, since etcd crashes on anything else.
    pub server_version: String,
    /// Our advertised peer URLs as the operator wrote them: etcd refuses `http://host:1/` where it accepts `http://host:1`.
    pub peer_urls: Vec<String>,
    pub limits: Limits,
    pub timeouts: Timeouts,
}

#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// See [`frame_bytes_max`].
    pub frame_bytes_max: u64,
    pub stream_queue_messages_max: usize,
    pub stream_queue_bytes_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            frame_bytes_max: frame_bytes_max(limits::REQUEST_BYTES_MAX_DEFAULT),
            stream_queue_messages_max: STREAM_QUEUE_MESSAGES_MAX,
            stream_queue_bytes_max: STREAM_QUEUE_BYTES_MAX,
        }
    }
}

#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// Name resolution and connect.
    pub dial: Duration,
    /// A stream without a byte for this long is dead; also each read of a request body.
    pub read: Duration,
    /// A socket that takes no byte for this long is dead.
    pub write: Duration,
    /// Least time between two attempts to open the same stream.
    pub reconnect: Duration,
    /// Longest time between attempts while the peer answers with a refusal.
    pub reconnect_max: Duration,
    /// Answer to one `POST /raft`, from its first byte.
    pub request: Duration,
    /// Between two measurements of the round trip.
    pub probe: Duration,
    /// A snapshot transfer without progress for this long has failed; disks may stall longer than networks.
    pub snapshot_stall: Duration,
    /// From the end of an upload to its answer, and a second more for each [`SNAPSHOT_SETTLE_BYTES_PER_SECOND`] of it. etcd gives up after
    /// 5 s, but the receiver syncs the file and reads all of it first.
    pub snapshot_answer: Duration,
}

impl Timeouts {
    /// etcd's numbers for a cluster with this election timeout.
    pub fn for_election_timeout(election: Duration) -> Self {
        Timeouts { dial: Duration::from_secs(1) + election, ..Timeouts::default() }
    }

    /// Links are kept alive three times per read timeout.
    pub(crate) fn heartbeat(&self) -> Duration {
        self.read / 3
    }
}

impl Default for Timeouts {
    fn default() -> Self {
        Timeouts {
            dial: Duration::from_secs(2),
            read: Duration::from_secs(5),
            write: Duration::from_secs(5),
            reconnect: Duration::from_millis(100),
            reconnect_max: Duration::from_secs(1),
            request: Duration::from_secs(5),
            probe: Duration::from_secs(4),
            snapshot_stall: Duration::from_secs(30),
            snapshot_answer: Duration::from_secs(60),
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("server version {0:?} is not of the form X.Y.Z")]
    Version(String),
    #[error("use peer listener: {0}")]
    Listener(#[from] std::io::Error),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn append_fits_the_peers_limit() {
        for request_bytes_max in [1, limits::REQUEST_BYTES_MAX_DEFAULT, 10 << 20, 512 << 20] {
            let largest = request_bytes_max.max(limits::APPEND_BYTES_MAX) + FRAME_SLACK_BYTES;
            assert!(
                frame_bytes_max(request_bytes_max) >= largest,
                "with max-request-bytes {request_bytes_max}"
            );
        }
    }
}
