//! Answers as JSON in the shape that Go's encoder gives etcd's messages: proto field names, 64-bit numbers as numbers, bytes in
//! base64, enums as numbers, and every zero value left out.
//!
//! A writer of our own because that shape (order of fields, omission, escapes) is a contract, and small.

use super::go::json_string;
use api::etcdserverpb::response_op::Response;
use api::etcdserverpb::{
    AlarmResponse, DeleteRangeResponse, HashKvResponse, LeaseGrantResponse, LeaseKeepAliveResponse,
    LeaseLeasesResponse, LeaseRevokeResponse, LeaseStatus, LeaseTimeToLiveResponse, Member,
    MemberAddResponse, MemberListResponse, PutResponse, RangeResponse, ResponseHeader, StatusResponse,
    TxnResponse, WatchResponse,
};
use api::mvccpb::{Event, KeyValue};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use std::fmt::Display;

/// An object under construction. Fields appear in the order of the calls; zero values do not appear.
pub struct Object<'a> {
    out: &'a mut String,
    empty: bool,
}

/// Writes one object.
pub fn object(out: &mut String, fill: impl FnOnce(&mut Object<'_>)) {
    out.push('{');
    fill(&mut Object { out, empty: true });
    out.push('}');
}

/// Writes a list of objects.
pub fn list<T>(out: &mut String, items: &[T], fill: impl Fn(&mut Object<'_>, &T)) {
    out.push('[');
    for (i, item) in items.iter().enumerate() {
        if i > 0 {
            out.push(',');
        }
        object(out, |o| fill(o, item));
    }
    out.push(']');
}

impl Object<'_> {
    fn name(&mut self, name: &str) -> &mut String {
        if !std::mem::take(&mut self.empty) {
            self.out.push(',');
        }
        self.out.push('"');
        self.out.push_str(name);
        self.out.push_str("\":");
        self.out
    }

    /// A number or boolean, always present.
    pub fn raw(&mut self, name: &str, value: impl Display) {
        let text = value.to_string();
        self.name(name).push_str(&text);
    }

    pub fn number<T: Display + Default + PartialEq>(&mut self, name: &str, value: T) {
        if value != T::default() {
            self.raw(name, value);
        }
    }

    pub fn truth(&mut self, name: &str, value: bool) {
        if value {
            self.raw(name, true);
        }
    }

    /// A string, always present.
    pub fn text(&mut self, name: &str, value: &str) {
        json_string(value, self.name(name));
    }

    pub fn optional_text(&mut self, name: &str, value: &str) {
        if !value.is_empty() {
            self.text(name, value);
        }
    }

    pub fn bytes(&mut self, name: &str, value: &[u8]) {
        if !value.is_empty() {
            let encoded = STANDARD.encode(value);
            self.text(name, &encoded);
        }
    }

    /// A list of strings; nothing when empty.
    pub fn texts(&mut self, name: &str, values: &[String]) {
        if !values.is_empty() {
            self.all_texts(name, values);
        }
    }

    fn all_texts(&mut self, name: &str, values: &[String]) {
        let out = self.name(name);
        out.push('[');
        for (i, value) in values.iter().enumerate() {
            if i > 0 {
                out.push(',');
            }
            json_string(value, out);
        }
        out.push(']');
    }

    /// A nested object, present also when it is empty.
    pub fn object(&mut self, name: &str, fill: impl FnOnce(&mut Object<'_>)) {
        object(self.name(name), fill);
    }

    /// A list of objects; nothing when empty.
    pub fn list<T>(&mut self, name: &str, items: &[T], fill: impl Fn(&mut Object<'_>, &T)) {
        if !items.is_empty() {
            list(self.name(name), items, fill);
        }
    }

    pub fn header(&mut self, header: Option<&ResponseHeader>) {
        if let Some(header) = header {
            self.object("header", |o| o.header_fields(header));
        }
    }

    fn header_fields(&mut self, header: &ResponseHeader) {
        self.number("cluster_id", header.cluster_id);
        self.number("member_id", header.member_id);
        self.number("revision", header.revision);
        self.number("raft_term", header.raft_term);
    }

    /// A list of objects, present also when it is empty.
    fn whole_list<T>(&mut self, name: &str, items: &[T], fill: impl Fn(&mut Object<'_>, &T)) {
        list(self.name(name), items, fill);
    }
}

fn key_value(o: &mut Object<'_>, kv: &KeyValue) {
    o.bytes("key", &kv.key);
    o.number("create_revision", kv.create_revision);
    o.number("mod_revision", kv.mod_revision);
    o.number("version", kv.version);
    o.bytes("value", &kv.value);
    o.number("lease", kv.lease);
}

pub fn range(o: &mut Object<'_>, answer: &RangeResponse) {
    o.header(answer.header.as_ref());
    o.list("kvs", &answer.kvs, key_value);
    o.truth("more", answer.more);
    o.number("count", answer.count);
}

pub fn put(o: &mut Object<'_>, answer: &PutResponse) {
    o.header(answer.header.as_ref());
    if let Some(kv) = &answer.prev_kv {
        o.object("prev_kv", |o| key_value(o, kv));
    }
}

pub fn delete(o: &mut Object<'_>, answer: &DeleteRangeResponse) {
    o.header(answer.header.as_ref());
    o.number("deleted", answer.deleted);
    o.list("prev_kvs", &answer.prev_kvs, key_value);
}

pub fn txn(o: &mut Object<'_>, answer: &TxnResponse) {
    o.header(answer.header.as_ref());
    o.truth("succeeded", answer.succeeded);
    o.list("responses", &answer.responses, |o, op| match &op.response {
        None => o.raw("Response", "null"),
        Some(response) => o.object("Response", |o| match response {
            Response::ResponseRange(answer) => o.object("response_range", |o| range(o, answer)),
            Response::ResponsePut(answer) => o.object("response_put", |o| put(o, answer)),
            Response::ResponseDeleteRange(answer) => o.object("response_delete_range", |o| delete(o, answer)),
            Response::ResponseTxn(answer) => o.object("response_txn", |o| txn(o, answer)),
        }),
    });
}

/// etcdctl prints its client library's own form of this answer: capitals, nothing left out on the first level, and no watch id.
pub fn watch(o: &mut Object<'_>, answer: &WatchResponse) {
    o.object("Header", |o| o.header_fields(&answer.header.unwrap_or_default()));
    if answer.header.is_none() {
        // Made by the client itself for a watch that never began.
        o.raw("Events", "null");
    } else {
        o.whole_list("Events", &answer.events, event);
    }
    o.raw("CompactRevision", answer.compact_revision);
    o.raw("Canceled", answer.canceled);
    o.raw("Created", answer.created);
}

fn event(o: &mut Object<'_>, event: &Event) {
    o.number("type", event.r#type);
    for (name, kv) in [("kv", &event.kv), ("prev_kv", &event.prev_kv)] {
        if let Some(kv) = kv {
            o.object(name, |o| key_value(o, kv));
        }
    }
}

// The answers about leases have their header's fields beside their own, since the client library embeds the header.

pub fn lease_grant(o: &mut Object<'_>, answer: &LeaseGrantResponse) {
    o.header_fields(&answer.header.unwrap_or_default());
    o.raw("ID", answer.id);
    o.raw("TTL", answer.ttl);
    o.text("Error", &answer.error);
}

pub fn lease_revoke(o: &mut Object<'_>, answer: &LeaseRevokeResponse) {
    o.header(answer.header.as_ref());
}

pub fn keep_alive(o: &mut Object<'_>, answer: &LeaseKeepAliveResponse) {
    o.header_fields(&answer.header.unwrap_or_default());
    o.raw("ID", answer.id);
    o.raw("TTL", answer.ttl);
}

pub fn time_to_live(o: &mut Object<'_>, answer: &LeaseTimeToLiveResponse) {
    o.header_fields(&answer.header.unwrap_or_default());
    o.raw("id", answer.id);
    o.raw("ttl", answer.ttl);
    o.raw("granted-ttl", answer.granted_ttl);
    if answer.keys.is_empty() {
        o.raw("keys", "null");
    } else {
        o.all_texts("keys", &answer.keys.iter().map(|key| STANDARD.encode(key)).collect::<Vec<_>>());
    }
}

pub fn leases(o: &mut Object<'_>, answer: &LeaseLeasesResponse) {
    o.header_fields(&answer.header.unwrap_or_default());
    o.whole_list("leases", &answer.leases, |o, lease: &LeaseStatus| o.raw("id", lease.id));
}

pub fn member_list(o: &mut Object<'_>, answer: &MemberListResponse) {
    members(o, answer.header.as_ref(), &answer.members);
}

/// The answers to changes have the header and the members that are left.
pub fn members(o: &mut Object<'_>, header: Option<&ResponseHeader>, members: &[Member]) {
    o.header(header);
    o.list("members", members, member);
}

pub fn member_add(o: &mut Object<'_>, answer: &MemberAddResponse) {
    o.header(answer.header.as_ref());
    if let Some(added) = &answer.member {
        o.object("member", |o| member(o, added));
    }
    o.list("members", &answer.members, member);
}

fn member(o: &mut Object<'_>, member: &Member) {
    o.number("ID", member.id);
    o.optional_text("name", &member.name);
    o.texts("peerURLs", &member.peer_ur_ls);
    o.texts("clientURLs", &member.client_ur_ls);
    o.truth("isLearner", member.is_learner);
}

/// `member list --hex`: ids as text. etcdctl builds this by hand and so has its own spelling of `clientURLS`, no revision, and no
/// mark for learners, which is added here because a reader who does not know it loses nothing.
pub fn member_list_hex(o: &mut Object<'_>, answer: &MemberListResponse) {
    let header = answer.header.unwrap_or_default();
    o.object("header", |o| {
        o.text("cluster_id", &format!("{:x}", header.cluster_id));
        o.text("member_id", &format!("{:x}", header.member_id));
        o.raw("raft_term", header.raft_term);
    });
    o.list("members", &answer.members, |o, member: &Member| {
        o.text("ID", &format!("{:x}", member.id));
        o.text("name", &member.name);
        o.all_texts("peerURLs", &member.peer_ur_ls);
        o.all_texts("clientURLS", &member.client_ur_ls);
        o.truth("isLearner", member.is_learner);
    });
}

pub fn alarms(o: &mut Object<'_>, answer: &AlarmResponse) {
    o.header(answer.header.as_ref());
    o.list("alarms", &answer.alarms, |o, alarm| {
        o.number("memberID", alarm.member_id);
        o.number("alarm", alarm.alarm);
    });
}

pub fn status(o: &mut Object<'_>, answer: &StatusResponse) {
    o.header(answer.header.as_ref());
    o.optional_text("version", &answer.version);
    o.number("dbSize", answer.db_size);
    o.number("leader", answer.leader);
    o.number("raftIndex", answer.raft_index);
    o.number("raftTerm", answer.raft_term);
    o.number("raftAppliedIndex", answer.raft_applied_index);
    o.texts("errors", &answer.errors);
    o.number("dbSizeInUse", answer.db_size_in_use);
    o.truth("isLearner", answer.is_learner);
    o.optional_text("storageVersion", &answer.storage_version);
    o.number("dbSizeQuota", answer.db_size_quota);
    if let Some(info) = &answer.downgrade_info {
        o.object("downgradeInfo", |o| {
            o.truth("enabled", info.enabled);
            o.optional_text("targetVersion", &info.target_version);
        });
    }
}

pub fn hash_kv(o: &mut Object<'_>, answer: &HashKvResponse) {
    o.header(answer.header.as_ref());
    o.number("hash", answer.hash);
    o.number("compact_revision", answer.compact_revision);
    o.number("hash_revision", answer.hash_revision);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_values_are_absent_and_present_messages_stay() {
        let mut out = String::new();
        let answer = RangeResponse {
            header: Some(ResponseHeader::default()),
            kvs: vec![KeyValue::default()],
            ..Default::default()
        };
        object(&mut out, |o| range(o, &answer));
        assert_eq!(out, r#"{"header":{},"kvs":[{}]}"#);
    }
}
