//! The replicated state machine: what a committed entry does to keys, members and alarms.

pub mod store;
pub mod membership;
