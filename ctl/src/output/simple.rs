//! The default format: what a person or a shell loop wants to read, and nothing else.

use super::go::quote;
use super::{EndpointHash, EndpointHealth, EndpointStatus};
use crate::units::format_size;
use api::etcdserverpb::response_op::Response;
use api::etcdserverpb::{
    AlarmMember, AlarmResponse, AlarmType, DeleteRangeResponse, LeaseKeepAliveResponse, LeaseLeasesResponse,
    LeaseTimeToLiveResponse, Member, MemberListResponse, PutResponse, RangeResponse, ResponseHeader,
    TxnResponse, WatchResponse,
};
use api::mvccpb::KeyValue;
use api::mvccpb::event::EventType;
use std::fmt::Write;

/// Bytes under construction; keys and values may be anything.
pub struct Simple {
    pub out: Vec<u8>,
    pub hex: bool,
    pub value_only: bool,
}

impl Simple {
    pub fn line(&mut self, text: &str) {
        self.out.extend_from_slice(text.as_bytes());
        self.out.push(b'\n');
    }

    fn bytes_line(&mut self, bytes: &[u8]) {
        if self.hex {
            let hex = bytes.iter().fold(String::with_capacity(bytes.len() * 4), |mut hex, byte| {
                write!(hex, "\\x{byte:02x}").expect("writing to a String succeeds");
                hex
            });
            self.out.extend_from_slice(hex.as_bytes());
        } else {
            self.out.extend_from_slice(bytes);
        }
        self.out.push(b'\n');
    }

    pub fn key_value(&mut self, kv: &KeyValue) {
        if !self.value_only {
            self.bytes_line(&kv.key);
        }
        self.bytes_line(&kv.value);
    }

    pub fn range(&mut self, answer: &RangeResponse) {
        for kv in &answer.kvs {
            self.key_value(kv);
        }
    }

    pub fn put(&mut self, answer: &PutResponse) {
        self.line("OK");
        if let Some(kv) = &answer.prev_kv {
            self.key_value(kv);
        }
    }

    pub fn delete(&mut self, answer: &DeleteRangeResponse) {
        self.line(&answer.deleted.to_string());
        for kv in &answer.prev_kvs {
            self.key_value(kv);
        }
    }

    pub fn txn(&mut self, answer: &TxnResponse) {
        self.line(if answer.succeeded { "SUCCESS" } else { "FAILURE" });
        for op in &answer.responses {
            self.line("");
            match &op.response {
                None => self.line("\"unexpected response\""),
                Some(Response::ResponseRange(answer)) => self.range(answer),
                Some(Response::ResponsePut(answer)) => self.put(answer),
                Some(Response::ResponseDeleteRange(answer)) => self.delete(answer),
                Some(Response::ResponseTxn(answer)) => self.txn(answer),
            }
        }
    }

    pub fn watch(&mut self, answer: &WatchResponse) {
        for event in &answer.events {
            self.line(event_type(event.r#type));
            if let Some(kv) = &event.prev_kv {
                self.key_value(kv);
            }
            self.key_value(event.kv.as_ref().unwrap_or(&KeyValue::default()));
        }
    }

    pub fn keep_alive(&mut self, answer: &LeaseKeepAliveResponse) {
        self.line(&format!("lease {} keepalived with TTL({})", lease_id(answer.id), answer.ttl));
    }

    /// `keys`: they were asked for.
    pub fn time_to_live(&mut self, answer: &LeaseTimeToLiveResponse, keys: bool) {
        let id = lease_id(answer.id);
        if answer.granted_ttl == 0 {
            return self.line(&format!("lease {id} already expired"));
        }
        let (granted, left) = (answer.granted_ttl, answer.ttl);
        let text = format!("lease {id} granted with TTL({granted}s), remaining({left}s)");
        self.out.extend_from_slice(text.as_bytes());
        if keys {
            self.out.extend_from_slice(b", attached keys([");
            self.out.extend_from_slice(&answer.keys.join(&b' '));
            self.out.extend_from_slice(b"])");
        }
        self.out.push(b'\n');
    }

    pub fn leases(&mut self, answer: &LeaseLeasesResponse) {
        self.line(&format!("found {} leases", answer.leases.len()));
        for lease in &answer.leases {
            self.line(&lease_id(lease.id));
        }
    }

    pub fn member_list(&mut self, answer: &MemberListResponse) {
        for row in member_rows(answer) {
            self.line(&row.join(", "));
        }
    }

    pub fn alarms(&mut self, answer: &AlarmResponse) {
        for alarm in &answer.alarms {
            self.line(&alarm_text(alarm));
        }
    }

    pub fn status(&mut self, endpoints: &[EndpointStatus]) {
        for row in status_rows(endpoints) {
            self.line(&row.join(", "));
        }
    }

    pub fn hash_kv(&mut self, endpoints: &[EndpointHash]) {
        for row in hash_rows(endpoints) {
            self.line(&row.join(", "));
        }
    }

    /// Healthy endpoints only; the others are the caller's to put on stderr.
    pub fn health(&mut self, endpoints: &[EndpointHealth]) {
        for endpoint in endpoints.iter().filter(|endpoint| endpoint.error.is_empty()) {
            self.line(&format!(
                "{} is healthy: successfully committed proposal: took = {}",
                endpoint.endpoint, endpoint.took
            ));
        }
    }
}

/// A lease's id as people see it: sixteen hexadecimal digits, the sign of a negative one among them.
pub fn lease_id(id: i64) -> String {
    if id < 0 { format!("-{:015x}", id.unsigned_abs()) } else { format!("{id:016x}") }
}

/// The name of an event's type.
pub fn event_type(value: i32) -> &'static str {
    EventType::try_from(value).map_or("UNKNOWN", |known| known.as_str_name())
}

/// The text form of a protobuf message, with the blank that etcd's runtime leaves after each field.
fn alarm_text(alarm: &AlarmMember) -> String {
    let mut text = String::new();
    if alarm.member_id != 0 {
        write!(text, "memberID:{} ", alarm.member_id).expect("writing to a String succeeds");
    }
    match AlarmType::try_from(alarm.alarm) {
        Ok(AlarmType::None) => {}
        Ok(kind) => write!(text, "alarm:{} ", kind.as_str_name()).expect("writing to a String succeeds"),
        Err(_) => write!(text, "alarm:{} ", alarm.alarm).expect("writing to a String succeeds"),
    }
    text
}

pub const MEMBER_HEADINGS: &[&str] = &["ID", "Status", "Name", "Peer Addrs", "Client Addrs", "Is Learner"];

/// The columns of `member list`, for both text formats. A member without a name has not started yet.
pub fn member_rows(answer: &MemberListResponse) -> Vec<Vec<String>> {
    let row = |member: &api::etcdserverpb::Member| {
        let started = if member.name.is_empty() { "unstarted" } else { "started" };
        let urls = (member.peer_ur_ls.join(","), member.client_ur_ls.join(","));
        vec![
            format!("{:x}", member.id),
            started.into(),
            member.name.clone(),
            urls.0,
            urls.1,
            member.is_learner.to_string(),
        ]
    };
    answer.members.iter().map(row).collect()
}

/// What became of a member; ids are as wide as the longest.
pub fn member_change(id: u64, what: &str, header: Option<&ResponseHeader>) -> String {
    let cluster = header.map_or(0, |header| header.cluster_id);
    format!("Member {id:16x} {what} cluster {cluster:16x}\n")
}

/// What the member `id` has to be started with, as lines for a shell. Members that have not started have no name yet; the new one
/// has the one that was given.
pub fn member_settings(name: &str, urls: &str, id: u64, members: &[Member]) -> String {
    let cluster: Vec<String> = members
        .iter()
        .flat_map(|member| {
            let name = if member.id == id { name } else { &member.name };
            member.peer_ur_ls.iter().map(move |url| format!("{name}={url}"))
        })
        .collect();
    let lines = [
        ("ETCD_NAME", name),
        ("ETCD_INITIAL_CLUSTER", &cluster.join(",")),
        ("ETCD_INITIAL_ADVERTISE_PEER_URLS", urls),
        ("ETCD_INITIAL_CLUSTER_STATE", "existing"),
    ];
    lines.iter().map(|(name, value)| format!("{name}={}\n", quote(value.as_bytes()))).collect()
}

pub const STATUS_HEADINGS: &[&str] = &[
    "Endpoint",
    "ID",
    "Version",
    "DB Size",
    "Is Leader",
    "Is Learner",
    "Raft Term",
    "Raft Index",
    "Raft Applied Index",
    "Errors",
];

/// The columns of `endpoint status` as etcdctl 3.5 has them; later columns are in the JSON.
pub fn status_rows(endpoints: &[EndpointStatus]) -> Vec<Vec<String>> {
    let row = |endpoint: &EndpointStatus| {
        let status = &endpoint.status;
        let member = status.header.unwrap_or_default().member_id;
        vec![
            endpoint.endpoint.clone(),
            format!("{member:x}"),
            status.version.clone(),
            format_size(status.db_size.max(0).unsigned_abs()),
            (status.leader == member).to_string(),
            status.is_learner.to_string(),
            status.raft_term.to_string(),
            status.raft_index.to_string(),
            status.raft_applied_index.to_string(),
            status.errors.join(", "),
        ]
    };
    endpoints.iter().map(row).collect()
}

pub const HASH_HEADINGS: &[&str] = &["Endpoint", "Hash"];

/// The columns of `endpoint hashkv`.
pub fn hash_rows(endpoints: &[EndpointHash]) -> Vec<Vec<String>> {
    endpoints.iter().map(|endpoint| vec![endpoint.endpoint.clone(), endpoint.hash.hash.to_string()]).collect()
}

pub const HEALTH_HEADINGS: &[&str] = &["Endpoint", "Health", "Took", "Error"];

/// The columns of `endpoint health`.
pub fn health_rows(endpoints: &[EndpointHealth]) -> Vec<Vec<String>> {
    endpoints
        .iter()
        .map(|e| vec![e.endpoint.clone(), e.healthy.to_string(), e.took.clone(), e.error.clone()])
        .collect()
}
