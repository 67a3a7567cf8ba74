//! `/debug/vars`: the few variables that tools read. The command line shows the program alone: its arguments may hold secrets.

use std::{collections::BTreeMap, sync::Arc};

use http::{HeaderValue, Response, StatusCode, header};
use serde::Serialize;

use super::json;
use crate::{backend::Backend, body::Body, edge::Edge, metrics::descriptor_limit};

#[derive(Serialize)]
struct Vars {
    cmdline: Vec<String>,
    file_descriptor_limit: u64,
    memstats: BTreeMap<&'static str, u64>,
    #[serde(rename = "raft.status")]
    raft_status: RaftStatus,
}

#[derive(Serialize)]
struct RaftStatus {
    id: String,
    term: u64,
    commit: u64,
    applied: u64,
    lead: String,
}

pub(super) fn vars<B: Backend>(edge: &Arc<Edge<B>>) -> Response<Body> {
    let status = edge.backend.node_status();
    let mut response = json(
        StatusCode::OK,
        &Vars {
            cmdline: std::env::args().take(1).collect(),
            file_descriptor_limit: descriptor_limit().unwrap_or_default(),
            memstats: BTreeMap::new(),
            raft_status: RaftStatus {
                id: status.member.to_string(),
                term: status.term.0,
                commit: status.committed.0,
                applied: status.applied.0,
                lead: status.leader.to_string(),
            },
        },
    );
    let value = HeaderValue::from_static("application/json; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, value);
    response
}
