//! The data directory: layout and lock.
