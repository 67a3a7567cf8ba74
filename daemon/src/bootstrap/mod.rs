//! How a member comes to be or comes back: facts are read, a pure plan is made of them, the plan is carried out.
//!
//! Others are asked in between, and what they answer is decided on as purely as the facts of the disk: a founder waits until those who
//! found the cluster with it are there (`attend`), a member that comes back asks what its peers know of its directory (`again`), one that
//! joins asks for its place (`join`). What a peer's verdict means for an operator stands in `verdict`. Discovery only adds the list of
//! first members.

pub mod again;
pub mod ask;
pub mod attend;
pub mod diff;
pub mod execute;
pub mod facts;
pub mod force;
pub mod found;
pub mod genesis;
pub mod hello;
pub mod join;
pub mod plan;
pub mod prepare;
pub mod verdict;

#[cfg(test)]
mod rows;
