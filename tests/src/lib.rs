//! What the workspace's tests share.

pub mod checker;
pub mod harness;
pub mod machines;
pub mod namespace;
pub mod proxy;
pub mod recorder;
pub mod refusals;
pub mod simulation;
