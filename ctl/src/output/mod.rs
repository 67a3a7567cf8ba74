//! Answers as bytes for stdout, in each of the five formats of `-w`. etcdctl 3.5's shapes, byte for byte; `ctl/tests` compares.
//!
//! Not here: errors (`failure`) and the tables of the load generator (`bench::report`).

mod fields;
mod go;
pub mod json;
mod simple;
mod table;

use crate::failure::{Failure, Result};
use crate::settings::{Format, Settings};
use api::etcdserverpb::{
    AlarmResponse, DeleteRangeResponse, HashKvResponse, LeaseGrantResponse, LeaseKeepAliveResponse,
    LeaseLeasesResponse, LeaseRevokeResponse, LeaseTimeToLiveResponse, Member, MemberAddResponse,
    MemberListResponse, MoveLeaderResponse, PutResponse, RangeResponse, ResponseHeader, StatusResponse,
    TxnResponse, WatchResponse,
};
use fields::Fields;
pub use go::quote;
use prost::Message;
use simple::Simple;
pub use simple::{event_type, lease_id, member_settings};

/// What one endpoint said about itself.
pub struct EndpointStatus {
    pub endpoint: String,
    pub status: StatusResponse,
}

/// What one endpoint's store hashes to.
pub struct EndpointHash {
    pub endpoint: String,
    pub hash: HashKvResponse,
}

/// Whether one endpoint could commit. `error` is empty exactly when `healthy`.
pub struct EndpointHealth {
    pub endpoint: String,
    pub healthy: bool,
    /// In Go's notation.
    pub took: String,
    pub error: String,
}

/// How to print.
#[derive(Clone, Copy)]
pub struct Printer {
    pub format: Format,
    pub hex: bool,
    /// `get --print-value-only`.
    pub value_only: bool,
}

impl Printer {
    pub fn new(settings: &Settings) -> Printer {
        Printer { format: settings.format, hex: settings.hex, value_only: false }
    }

    fn unsupported<T>(self) -> Result<T> {
        let name = Format::ALL.iter().find(|(_, format)| *format == self.format).map_or("", |(name, _)| name);
        Err(Failure::feature(format!("{name} not supported as output format")))
    }

    /// `Err` when `-w table` was asked of a verb that has none; for verbs that should not act before saying so.
    pub fn refuse_table(self) -> Result<()> {
        if self.format == Format::Table { self.unsupported() } else { Ok(()) }
    }

    /// The same for verbs that have no fields either.
    pub fn refuse_fields_and_table(self) -> Result<()> {
        if self.format == Format::Fields { self.unsupported() } else { self.refuse_table() }
    }

    /// For verbs of cairnctl alone, which have only the formats that they say.
    pub fn refuse_all(self) -> Result<()> {
        self.unsupported()
    }

    fn key_value_verb(
        self,
        answer: &impl Message,
        simple: impl FnOnce(&mut Simple),
        fields: impl FnOnce(&mut Fields),
        json: impl FnOnce(&mut json::Object<'_>),
    ) -> Result<Vec<u8>> {
        match self.format {
            Format::Simple => Ok(self.simple(simple)),
            Format::Fields => Ok(fields_of(fields)),
            Format::Json => Ok(json_of(json)),
            Format::Protobuf => Ok(answer.encode_to_vec()),
            Format::Table => self.unsupported(),
        }
    }

    fn simple(self, fill: impl FnOnce(&mut Simple)) -> Vec<u8> {
        let mut simple = Simple { out: Vec::new(), hex: self.hex, value_only: self.value_only };
        fill(&mut simple);
        simple.out
    }

    pub fn put(self, answer: &PutResponse) -> Result<Vec<u8>> {
        self.key_value_verb(answer, |s| s.put(answer), |f| f.put(answer), |o| json::put(o, answer))
    }

    pub fn range(self, answer: &RangeResponse) -> Result<Vec<u8>> {
        self.key_value_verb(answer, |s| s.range(answer), |f| f.range(answer), |o| json::range(o, answer))
    }

    pub fn delete(self, answer: &DeleteRangeResponse) -> Result<Vec<u8>> {
        self.key_value_verb(answer, |s| s.delete(answer), |f| f.delete(answer), |o| json::delete(o, answer))
    }

    pub fn txn(self, answer: &TxnResponse) -> Result<Vec<u8>> {
        self.key_value_verb(answer, |s| s.txn(answer), |f| f.txn(answer), |o| json::txn(o, answer))
    }

    /// What one answer of a watch shows; nothing when the format has nothing to say about it.
    pub fn watch(self, answer: &WatchResponse) -> Result<Vec<u8>> {
        let bare = || WatchResponse {
            header: Some(answer.header.unwrap_or_default()),
            watch_id: 0,
            cancel_reason: String::new(),
            ..answer.clone()
        };
        match self.format {
            Format::Protobuf => Ok(bare().encode_to_vec()),
            _ => self.key_value_verb(
                answer,
                |s| s.watch(answer),
                |f| f.watch(answer),
                |o| json::watch(o, answer),
            ),
        }
    }

    pub fn lease_grant(self, answer: &LeaseGrantResponse) -> Result<Vec<u8>> {
        let text = || format!("lease {} granted with TTL({}s)", simple::lease_id(answer.id), answer.ttl);
        self.key_value_verb(
            answer,
            |s| s.line(&text()),
            |f| f.lease_grant(answer),
            |o| json::lease_grant(o, answer),
        )
    }

    pub fn lease_revoke(self, id: i64, answer: &LeaseRevokeResponse) -> Result<Vec<u8>> {
        self.key_value_verb(
            answer,
            |s| s.line(&format!("lease {} revoked", simple::lease_id(id))),
            |f| f.lease_revoke(answer),
            |o| json::lease_revoke(o, answer),
        )
    }

    pub fn keep_alive(self, answer: &LeaseKeepAliveResponse) -> Result<Vec<u8>> {
        self.key_value_verb(
            answer,
            |s| s.keep_alive(answer),
            |f| f.keep_alive(answer),
            |o| json::keep_alive(o, answer),
        )
    }

    /// `keys`: they were asked for.
    pub fn time_to_live(self, answer: &LeaseTimeToLiveResponse, keys: bool) -> Result<Vec<u8>> {
        self.key_value_verb(
            answer,
            |s| s.time_to_live(answer, keys),
            |f| f.time_to_live(answer),
            |o| json::time_to_live(o, answer),
        )
    }

    pub fn leases(self, answer: &LeaseLeasesResponse) -> Result<Vec<u8>> {
        self.key_value_verb(answer, |s| s.leases(answer), |f| f.leases(answer), |o| json::leases(o, answer))
    }

    pub fn alarms(self, answer: &AlarmResponse) -> Result<Vec<u8>> {
        self.key_value_verb(answer, |s| s.alarms(answer), |f| f.alarms(answer), |o| json::alarms(o, answer))
    }

    pub fn member_list(self, answer: &MemberListResponse) -> Result<Vec<u8>> {
        if self.format == Format::Table {
            return Ok(table::draw(simple::MEMBER_HEADINGS, &simple::member_rows(answer)).into_bytes());
        }
        let json = |o: &mut json::Object<'_>| {
            if self.hex { json::member_list_hex(o, answer) } else { json::member_list(o, answer) }
        };
        self.key_value_verb(answer, |s| s.member_list(answer), |f| f.member_list(answer), json)
    }

    /// A member that was added, and with the simple format what it has to be started with. `urls` as they were given.
    pub fn member_add(self, name: &str, urls: &str, answer: &MemberAddResponse) -> Result<Vec<u8>> {
        let id = answer.member.as_ref().map_or(0, |member| member.id);
        match self.format {
            Format::Simple => {
                let mut text = simple::member_change(id, "added to", answer.header.as_ref());
                text.push('\n');
                text.push_str(&simple::member_settings(name, urls, id, &answer.members));
                Ok(text.into_bytes())
            }
            Format::Json => Ok(json_of(|o| json::member_add(o, answer))),
            Format::Protobuf => Ok(answer.encode_to_vec()),
            Format::Fields | Format::Table => self.unsupported(),
        }
    }

    /// A member that was removed, updated or promoted; `what` says so with the simple format.
    pub fn member_changed(
        self,
        id: u64,
        what: &str,
        header: Option<&ResponseHeader>,
        members: &[Member],
        answer: &impl Message,
    ) -> Result<Vec<u8>> {
        match self.format {
            Format::Simple => Ok(simple::member_change(id, what, header).into_bytes()),
            Format::Json => Ok(json_of(|o| json::members(o, header, members))),
            Format::Protobuf => Ok(answer.encode_to_vec()),
            Format::Fields | Format::Table => self.unsupported(),
        }
    }

    pub fn move_leader(self, from: u64, to: u64, answer: &MoveLeaderResponse) -> Result<Vec<u8>> {
        match self.format {
            Format::Simple => Ok(format!("Leadership transferred from {from:x} to {to:x}\n").into_bytes()),
            Format::Json => Ok(json_of(|o| o.header(answer.header.as_ref()))),
            Format::Protobuf => Ok(answer.encode_to_vec()),
            Format::Fields | Format::Table => self.unsupported(),
        }
    }

    pub fn status(self, endpoints: &[EndpointStatus]) -> Result<Vec<u8>> {
        match self.format {
            Format::Simple => Ok(self.simple(|s| s.status(endpoints))),
            Format::Fields => Ok(fields_of(|f| endpoints.iter().for_each(|endpoint| f.status(endpoint)))),
            Format::Table => {
                Ok(table::draw(simple::STATUS_HEADINGS, &simple::status_rows(endpoints)).into_bytes())
            }
            Format::Json => Ok(json_list_of(endpoints, |o, endpoint| {
                o.text("Endpoint", &endpoint.endpoint);
                o.object("Status", |o| json::status(o, &endpoint.status));
            })),
            Format::Protobuf => self.unsupported(),
        }
    }

    pub fn hash_kv(self, endpoints: &[EndpointHash]) -> Result<Vec<u8>> {
        match self.format {
            Format::Simple => Ok(self.simple(|s| s.hash_kv(endpoints))),
            Format::Fields => Ok(fields_of(|f| endpoints.iter().for_each(|endpoint| f.hash_kv(endpoint)))),
            Format::Table => {
                Ok(table::draw(simple::HASH_HEADINGS, &simple::hash_rows(endpoints)).into_bytes())
            }
            Format::Json => Ok(json_list_of(endpoints, |o, endpoint| {
                o.text("Endpoint", &endpoint.endpoint);
                o.object("HashKV", |o| json::hash_kv(o, &endpoint.hash));
            })),
            Format::Protobuf => self.unsupported(),
        }
    }

    pub fn health(self, endpoints: &[EndpointHealth]) -> Result<Vec<u8>> {
        match self.format {
            Format::Simple => Ok(self.simple(|s| s.health(endpoints))),
            Format::Fields => Ok(fields_of(|f| endpoints.iter().for_each(|endpoint| f.health(endpoint)))),
            Format::Table => {
                Ok(table::draw(simple::HEALTH_HEADINGS, &simple::health_rows(endpoints)).into_bytes())
            }
            Format::Json => Ok(json_list_of(endpoints, |o, endpoint| {
                o.text("endpoint", &endpoint.endpoint);
                o.raw("health", endpoint.healthy);
                o.text("took", &endpoint.took);
                o.optional_text("error", &endpoint.error);
            })),
            Format::Protobuf => self.unsupported(),
        }
    }
}

fn fields_of(fill: impl FnOnce(&mut Fields)) -> Vec<u8> {
    let mut fields = Fields::default();
    fill(&mut fields);
    fields.0.into_bytes()
}

fn json_of(fill: impl FnOnce(&mut json::Object<'_>)) -> Vec<u8> {
    let mut out = String::new();
    json::object(&mut out, fill);
    out.push('\n');
    out.into_bytes()
}

fn json_list_of<T>(items: &[T], fill: impl Fn(&mut json::Object<'_>, &T)) -> Vec<u8> {
    let mut out = String::new();
    json::list(&mut out, items, fill);
    out.push('\n');
    out.into_bytes()
}
