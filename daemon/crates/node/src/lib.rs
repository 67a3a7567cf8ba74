//! One running member: the threads that own consensus, log, state and reads, and the handle with which the rest asks them.

pub mod handle;

pub use handle::Handle;
