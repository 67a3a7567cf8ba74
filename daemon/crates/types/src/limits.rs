//! Limits that more than one crate must agree on. A limit of one crate stands beside the code it limits.

/// Default of `max-request-bytes`, as in etcd: 1.5 MiB for one request in its raft form.
pub const REQUEST_BYTES_MAX_DEFAULT: u64 = 1536 * 1024;

/// gRPC messages may exceed `max-request-bytes` by this much, as in etcd, so that the refusal of an oversize request is etcd's own
/// answer and not the library's.
pub const GRPC_OVERHEAD_BYTES: u64 = 512 * 1024;

/// Default of `max-txn-ops`, as in etcd.
pub const TXN_OPS_MAX_DEFAULT: usize = 128;

/// A proposal is refused with "too many requests" when commits run this far ahead of apply, as in etcd: past it waiting clients
/// would only time out.
pub const APPLY_LAG_MAX: u64 = 5000;

/// Largest append message in bytes: etcd's receivers are tuned to 1 MiB and a single larger entry still travels alone.
pub const APPEND_BYTES_MAX: u64 = 1024 * 1024;

/// The API level that cairn implements; reported as the server version to peers and in `/version`. Strictly X.Y.Z: etcd members
/// crash on anything else.
pub const ETCD_VERSION: &str = "3.7.1";
/// The cluster version that goes with [`ETCD_VERSION`].
pub const CLUSTER_VERSION: &str = "3.7.0";
