//! The life of the process.

mod bootstrap;
mod cli;
mod config;
mod identity;
mod refusal;

fn main() {}
