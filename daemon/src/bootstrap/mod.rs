//! How a member comes to be or comes back: facts are read, a pure plan is made of them, the plan is carried out.
//!
//! A member that joins has a second such step: it asks the running cluster (`ask`) and decides on the answers (`join`). Asking the members
//! of a new cluster (has it been born already? do they know this directory?) and discovery will stand in the same place: they add facts,
//! and rows to the plan's table, but change no others.

pub mod ask;
pub mod execute;
pub mod facts;
pub mod genesis;
pub mod join;
pub mod plan;
pub mod prepare;
