//! cairnctl against etcdctl: the same command line on the same store must print the same bytes and end with the same code.
//!
//! `CAIRN_REAL_ETCD` names the directory with `etcd` and `etcdctl`; without it these tests say that they are skipped.
//! `CAIRN_COMPAT_SERVER` names another server binary with etcd's flags (cairnd) to run both tools against.
//! What differs on purpose is in `differences.rs`, each with its reason.

mod bench;
mod crafted;
mod differences;
mod fake;
mod lease;
mod live;
mod member;
mod mirror;
mod operate;
mod secure;
mod shells;
mod snapshot;
mod store;
mod tools;
mod watch;
