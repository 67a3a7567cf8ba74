//! The place of leases in apply. There are none yet: every lease kind gets the same refusal on every member, and no lease exists.

use api::error::EtcdError;

/// The refusal of grant, revoke and checkpoint.
pub(super) const REFUSAL: EtcdError = EtcdError::NotCapable;

/// Whether a put may name this lease.
pub(super) fn exists(_lease: i64) -> bool {
    false
}
