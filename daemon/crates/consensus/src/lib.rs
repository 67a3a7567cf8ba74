//! Consensus as a value: raft-rs behind [`Core`], inputs in, outputs out.

pub mod io;
