//! The `fields` format: one `"Name" : value` per line, strings quoted.

use super::go::quote;
use super::{EndpointHash, EndpointHealth, EndpointStatus};
use api::etcdserverpb::response_op::Response;
use api::etcdserverpb::{
    AlarmResponse, AlarmType, DeleteRangeResponse, LeaseGrantResponse, LeaseKeepAliveResponse,
    LeaseLeasesResponse, LeaseRevokeResponse, LeaseTimeToLiveResponse, MemberListResponse, PutResponse,
    RangeResponse, ResponseHeader, TxnResponse, WatchResponse,
};
use api::mvccpb::KeyValue;
use std::fmt::{Display, Write};

/// Text under construction.
#[derive(Default)]
pub struct Fields(pub String);

impl Fields {
    fn line(&mut self, name: &str, value: impl Display) {
        writeln!(self.0, "\"{name}\" : {value}").expect("writing to a String succeeds");
    }

    fn header(&mut self, header: Option<&ResponseHeader>) {
        let header = header.copied().unwrap_or_default();
        self.line("ClusterID", header.cluster_id);
        self.line("MemberID", header.member_id);
        self.line("Revision", header.revision);
        self.line("RaftTerm", header.raft_term);
    }

    fn key_value(&mut self, prefix: &str, kv: &KeyValue) {
        self.line(&format!("{prefix}Key"), quote(&kv.key));
        self.line(&format!("{prefix}CreateRevision"), kv.create_revision);
        self.line(&format!("{prefix}ModRevision"), kv.mod_revision);
        self.line(&format!("{prefix}Version"), kv.version);
        self.line(&format!("{prefix}Value"), quote(&kv.value));
        self.line(&format!("{prefix}Lease"), kv.lease);
    }

    pub fn range(&mut self, answer: &RangeResponse) {
        self.header(answer.header.as_ref());
        for kv in &answer.kvs {
            self.key_value("", kv);
        }
        self.line("More", answer.more);
        self.line("Count", answer.count);
    }

    pub fn put(&mut self, answer: &PutResponse) {
        self.header(answer.header.as_ref());
        if let Some(kv) = &answer.prev_kv {
            self.key_value("Prev", kv);
        }
    }

    pub fn delete(&mut self, answer: &DeleteRangeResponse) {
        self.header(answer.header.as_ref());
        self.line("Deleted", answer.deleted);
        for kv in &answer.prev_kvs {
            self.key_value("Prev", kv);
        }
    }

    pub fn txn(&mut self, answer: &TxnResponse) {
        self.header(answer.header.as_ref());
        self.line("Succeeded", answer.succeeded);
        for op in &answer.responses {
            match &op.response {
                None => {}
                Some(Response::ResponseRange(answer)) => self.range(answer),
                Some(Response::ResponsePut(answer)) => self.put(answer),
                Some(Response::ResponseDeleteRange(answer)) => self.delete(answer),
                Some(Response::ResponseTxn(answer)) => self.txn(answer),
            }
        }
    }

    pub fn watch(&mut self, answer: &WatchResponse) {
        self.header(answer.header.as_ref());
        for event in &answer.events {
            self.line("Type", super::simple::event_type(event.r#type));
            if let Some(kv) = &event.prev_kv {
                self.key_value("Prev", kv);
            }
            self.key_value("", event.kv.as_ref().unwrap_or(&KeyValue::default()));
        }
    }

    pub fn lease_grant(&mut self, answer: &LeaseGrantResponse) {
        self.header(answer.header.as_ref());
        self.line("ID", answer.id);
        self.line("TTL", answer.ttl);
    }

    pub fn lease_revoke(&mut self, answer: &LeaseRevokeResponse) {
        self.header(answer.header.as_ref());
    }

    pub fn keep_alive(&mut self, answer: &LeaseKeepAliveResponse) {
        self.header(answer.header.as_ref());
        self.line("ID", answer.id);
        self.line("TTL", answer.ttl);
    }

    pub fn time_to_live(&mut self, answer: &LeaseTimeToLiveResponse) {
        self.header(answer.header.as_ref());
        self.line("ID", answer.id);
        self.line("TTL", answer.ttl);
        self.line("GrantedTTL", answer.granted_ttl);
        for key in &answer.keys {
            self.line("Key", quote(key));
        }
    }

    pub fn leases(&mut self, answer: &LeaseLeasesResponse) {
        self.header(answer.header.as_ref());
        for lease in &answer.leases {
            self.line("ID", lease.id);
        }
    }

    pub fn member_list(&mut self, answer: &MemberListResponse) {
        self.header(answer.header.as_ref());
        for member in &answer.members {
            self.line("ID", member.id);
            self.line("Name", quote(member.name.as_bytes()));
            for url in &member.peer_ur_ls {
                self.line("PeerURL", quote(url.as_bytes()));
            }
            for url in &member.client_ur_ls {
                self.line("ClientURL", quote(url.as_bytes()));
            }
            self.line("IsLearner", member.is_learner);
            self.0.push('\n');
        }
    }

    pub fn alarms(&mut self, answer: &AlarmResponse) {
        self.header(answer.header.as_ref());
        for alarm in &answer.alarms {
            self.line("MemberID", alarm.member_id);
            match AlarmType::try_from(alarm.alarm) {
                Ok(kind) => self.line("AlarmType", kind.as_str_name()),
                Err(_) => self.line("AlarmType", alarm.alarm),
            }
            self.0.push('\n');
        }
    }

    pub fn status(&mut self, endpoint: &EndpointStatus) {
        let status = &endpoint.status;
        self.header(status.header.as_ref());
        self.line("Version", quote(status.version.as_bytes()));
        self.line("DBSize", status.db_size);
        self.line("Leader", status.leader);
        self.line("IsLearner", status.is_learner);
        self.line("RaftIndex", status.raft_index);
        self.line("RaftTerm", status.raft_term);
        self.line("RaftAppliedIndex", status.raft_applied_index);
        self.line("Errors", format_args!("[{}]", status.errors.join(" ")));
        self.line("Endpoint", quote(endpoint.endpoint.as_bytes()));
        self.0.push('\n');
    }

    pub fn hash_kv(&mut self, endpoint: &EndpointHash) {
        self.header(endpoint.hash.header.as_ref());
        self.line("Endpoint", quote(endpoint.endpoint.as_bytes()));
        self.line("Hash", endpoint.hash.hash);
        self.0.push('\n');
    }

    pub fn health(&mut self, endpoint: &EndpointHealth) {
        self.line("Endpoint", quote(endpoint.endpoint.as_bytes()));
        self.line("Health", endpoint.healthy);
        self.line("Took", &endpoint.took);
        self.line("Error", &endpoint.error);
        self.0.push('\n');
    }
}
