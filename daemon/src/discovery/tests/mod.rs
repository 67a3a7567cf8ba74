//! Stories of discovery: scripts of answers for the decisions, and real servers for the drivers.

mod dns;
mod etcd;
mod http;
mod register;
mod srv;
mod support;
