//! How a member comes to be or comes back: facts are read, a pure plan is made of them, the plan is carried out.
//!
//! Asking peers (has this cluster been born already? do they know this directory?) and discovery will stand between facts and plan:
//! they add facts, and rows to the plan's table, but change no others.

pub mod execute;
pub mod facts;
pub mod genesis;
pub mod plan;
pub mod prepare;
