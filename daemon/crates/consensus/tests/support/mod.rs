//! A cluster of cores in one thread, driven by hand: nothing moves unless a script says so.

pub mod cluster;
pub mod script;
