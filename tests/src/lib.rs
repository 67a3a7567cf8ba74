//! What the workspace's tests share.

pub mod harness;
pub mod recorder;
pub mod simulation;
