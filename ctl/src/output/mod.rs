//! Answers as bytes for stdout: in each of the five formats of `-w`, which are etcdctl 3.5's, byte for byte (`ctl/tests` compares), or in a
//! shape of `-o`, which are ours (`people`).
//!
//! Not here: errors (`failure`) and the tables of the load generator (`bench::report`).

mod fields;
mod go;
pub mod json;
pub mod paint;
mod people;
#[cfg(test)]
mod people_tests;
pub mod progress;
mod sheet;
mod simple;
mod table;
pub mod text;
mod value;

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
use paint::{Paint, Tone};
use prost::Message;
pub use sheet::{Cell, Column, Shape, Sheet};
use simple::Simple;
pub use simple::{event_type, lease_id, member_settings};
pub use value::Value;

/// On stderr, line ends included. Where it cannot be written the command goes on, and ends with the status that it would have had.
pub fn complain(text: &str) {
    let _ = std::io::Write::write_all(&mut std::io::stderr(), text.as_bytes());
}

/// One line of that, in one piece: two that are told at once do not run into each other.
pub fn tell(line: std::fmt::Arguments<'_>) {
    complain(&format!("{line}\n"));
}

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

/// How `-o` prints keys and values.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BytesAs {
    /// As text; for programs in base64 when they are no UTF-8.
    #[default]
    Text,
    Hex,
    Base64,
}

/// How to print.
#[derive(Clone, Copy)]
pub struct Printer {
    pub format: Format,
    /// `-o`; it wins over `format`.
    pub shape: Option<Shape>,
    pub hex: bool,
    pub bytes_as: BytesAs,
    /// `get --print-value-only`.
    pub value_only: bool,
    pub keys_only: bool,
    pub count_only: bool,
    /// The colours of stdout.
    pub paint: Paint,
}

impl Printer {
    pub fn new(settings: &Settings) -> Printer {
        let bytes_as = match (settings.base64, settings.hex) {
            (true, _) => BytesAs::Base64,
            (false, true) => BytesAs::Hex,
            (false, false) => BytesAs::Text,
        };
        Printer {
            format: settings.format,
            shape: settings.shape,
            hex: settings.hex,
            bytes_as,
            value_only: false,
            keys_only: false,
            count_only: false,
            paint: Paint::for_stdout(),
        }
    }

    /// For verbs that ask nobody, and so may have no settings.
    pub fn bare(format: Format, shape: Option<Shape>) -> Printer {
        Printer {
            format,
            shape,
            hex: false,
            bytes_as: BytesAs::Text,
            value_only: false,
            keys_only: false,
            count_only: false,
            paint: Paint::for_stdout(),
        }
    }

    /// Whether this is etcdctl's default format, which alone may come in parts.
    pub fn is_simple(self) -> bool {
        self.format == Format::Simple && self.shape.is_none()
    }

    fn unsupported<T>(self) -> Result<T> {
        let format =
            || Format::ALL.iter().find(|(_, format)| *format == self.format).map_or("", |(name, _)| name);
        let name = self.shape.map_or_else(format, Shape::name);
        Err(Failure::feature(format!("{name} not supported as output format")))
    }

    /// A list of cairnctl's own, or one that `-o` was asked for. Without `-o` it is a table, and with `-w json` the document on one line.
    pub fn sheet(self, sheet: &Sheet) -> Result<Vec<u8>> {
        match (self.shape, self.format) {
            (Some(shape), _) => Ok(sheet.render(shape, self.paint)),
            (None, Format::Simple | Format::Table) => Ok(sheet.render(Shape::Table, self.paint)),
            (None, Format::Json) => Ok((sheet.document().to_json_line() + "\n").into_bytes()),
            (None, Format::Fields | Format::Protobuf) => self.unsupported(),
        }
    }

    /// Something that is no list: `text` for people (with whether it may be wide), `data` for programs.
    pub fn page(self, data: &Value, text: impl FnOnce(Paint, bool) -> String) -> Result<Vec<u8>> {
        let bytes = match (self.shape, self.format) {
            (Some(Shape::Table), _) | (None, Format::Simple | Format::Table) => text(self.paint, false),
            (Some(Shape::Wide), _) => text(self.paint, true),
            (Some(Shape::Json), _) => data.to_json(),
            (Some(Shape::JsonLines), _) | (None, Format::Json) => data.to_json_line() + "\n",
            (Some(Shape::Yaml), _) => data.to_yaml(),
            (Some(Shape::Raw), _) | (None, Format::Fields | Format::Protobuf) => return self.unsupported(),
        };
        Ok(bytes.into_bytes())
    }

    /// `Err` when `-w table` was asked of a verb that has none; for verbs that should not act before saying so.
    pub fn refuse_table(self) -> Result<()> {
        if self.format == Format::Table && self.shape.is_none() { self.unsupported() } else { Ok(()) }
    }

    /// The same for verbs whose answer is no list: `-o raw` has nothing to print then.
    pub fn refuse_table_and_raw(self) -> Result<()> {
        if self.shape == Some(Shape::Raw) { self.unsupported() } else { self.refuse_table() }
    }

    /// The same for verbs that have no fields either.
    pub fn refuse_fields_and_table(self) -> Result<()> {
        if self.format == Format::Fields { self.unsupported() } else { self.refuse_table_and_raw() }
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
        if self.shape.is_some() {
            return self.shaped_put(answer, self.simple(|s| s.put(answer)));
        }
        self.key_value_verb(answer, |s| s.put(answer), |f| f.put(answer), |o| json::put(o, answer))
    }

    pub fn range(self, answer: &RangeResponse) -> Result<Vec<u8>> {
        if let Some(shape) = self.shape {
            return self.shaped_range(shape, answer);
        }
        self.key_value_verb(answer, |s| s.range(answer), |f| f.range(answer), |o| json::range(o, answer))
    }

    pub fn delete(self, answer: &DeleteRangeResponse) -> Result<Vec<u8>> {
        if self.shape.is_some() {
            return self.shaped_delete(answer, self.simple(|s| s.delete(answer)));
        }
        self.key_value_verb(answer, |s| s.delete(answer), |f| f.delete(answer), |o| json::delete(o, answer))
    }

    pub fn txn(self, answer: &TxnResponse) -> Result<Vec<u8>> {
        if self.shape.is_some() {
            return self.shaped_txn(answer, self.simple(|s| s.txn(answer)));
        }
        self.key_value_verb(answer, |s| s.txn(answer), |f| f.txn(answer), |o| json::txn(o, answer))
    }

    /// etcdctl has this text in every format.
    pub fn compaction(self, revision: i64) -> Result<Vec<u8>> {
        let text = format!("compacted revision {revision}\n").into_bytes();
        match self.shape {
            None | Some(Shape::Raw) => Ok(text),
            Some(_) => self.said(Value::map([("compacted_revision", revision.into())]), text),
        }
    }

    /// What one answer of a watch shows; nothing when the format has nothing to say about it.
    pub fn watch(self, answer: &WatchResponse) -> Result<Vec<u8>> {
        if let Some(shape) = self.shape {
            return Ok(self.shaped_watch(shape, answer));
        }
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
        if self.shape.is_some() {
            let data = people::lease_data(answer.id, &[("ttl", answer.ttl.into())]);
            return self.said(data, self.simple(|s| s.line(&text())));
        }
        self.key_value_verb(
            answer,
            |s| s.line(&text()),
            |f| f.lease_grant(answer),
            |o| json::lease_grant(o, answer),
        )
    }

    pub fn lease_revoke(self, id: i64, answer: &LeaseRevokeResponse) -> Result<Vec<u8>> {
        if self.shape.is_some() {
            let text = format!("lease {} revoked\n", simple::lease_id(id));
            return self.said(people::lease_data(id, &[("revoked", true.into())]), text.into_bytes());
        }
        self.key_value_verb(
            answer,
            |s| s.line(&format!("lease {} revoked", simple::lease_id(id))),
            |f| f.lease_revoke(answer),
            |o| json::lease_revoke(o, answer),
        )
    }

    pub fn keep_alive(self, answer: &LeaseKeepAliveResponse) -> Result<Vec<u8>> {
        if self.shape.is_some() {
            let data = people::lease_data(answer.id, &[("ttl", answer.ttl.into())]);
            return self.said(data, self.simple(|s| s.keep_alive(answer)));
        }
        self.key_value_verb(
            answer,
            |s| s.keep_alive(answer),
            |f| f.keep_alive(answer),
            |o| json::keep_alive(o, answer),
        )
    }

    /// `keys`: they were asked for.
    pub fn time_to_live(self, answer: &LeaseTimeToLiveResponse, keys: bool) -> Result<Vec<u8>> {
        if self.shape.is_some() {
            return self.shaped_time_to_live(answer, keys, self.simple(|s| s.time_to_live(answer, keys)));
        }
        self.key_value_verb(
            answer,
            |s| s.time_to_live(answer, keys),
            |f| f.time_to_live(answer),
            |o| json::time_to_live(o, answer),
        )
    }

    /// `lives`: what was asked about the first of them, for the shapes.
    pub fn leases(
        self,
        answer: &LeaseLeasesResponse,
        lives: &[Option<LeaseTimeToLiveResponse>],
    ) -> Result<Vec<u8>> {
        if self.shape.is_some() {
            return self.shaped_leases(answer, lives);
        }
        self.key_value_verb(answer, |s| s.leases(answer), |f| f.leases(answer), |o| json::leases(o, answer))
    }

    pub fn alarms(self, answer: &AlarmResponse) -> Result<Vec<u8>> {
        if self.shape.is_some() {
            return self.shaped_alarms(answer);
        }
        self.key_value_verb(answer, |s| s.alarms(answer), |f| f.alarms(answer), |o| json::alarms(o, answer))
    }

    pub fn member_list(self, answer: &MemberListResponse) -> Result<Vec<u8>> {
        if self.shape.is_some() {
            return self.shaped_members(answer.header.as_ref(), &answer.members);
        }
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
        let text = || {
            let mut text = simple::member_change(id, "added to", answer.header.as_ref());
            text.push('\n');
            text.push_str(&simple::member_settings(name, urls, id, &answer.members));
            text.into_bytes()
        };
        if self.shape.is_some() {
            let data = people::changed(id, "added", answer.header.as_ref(), &answer.members);
            return self.said(data, text());
        }
        match self.format {
            Format::Simple => Ok(text()),
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
        if self.shape.is_some() {
            let change = what.split(' ').next().unwrap_or(what);
            let text = simple::member_change(id, what, header).into_bytes();
            return self.said(people::changed(id, change, header, members), text);
        }
        match self.format {
            Format::Simple => Ok(simple::member_change(id, what, header).into_bytes()),
            Format::Json => Ok(json_of(|o| json::members(o, header, members))),
            Format::Protobuf => Ok(answer.encode_to_vec()),
            Format::Fields | Format::Table => self.unsupported(),
        }
    }

    pub fn move_leader(self, from: u64, to: u64, answer: &MoveLeaderResponse) -> Result<Vec<u8>> {
        if self.shape.is_some() {
            let text = format!("Leadership transferred from {from:x} to {to:x}\n");
            let id = |id: u64| Value::from(format!("{id:x}"));
            return self.said(Value::map([("from", id(from)), ("to", id(to))]), text.into_bytes());
        }
        match self.format {
            Format::Simple => Ok(format!("Leadership transferred from {from:x} to {to:x}\n").into_bytes()),
            Format::Json => Ok(json_of(|o| o.header(answer.header.as_ref()))),
            Format::Protobuf => Ok(answer.encode_to_vec()),
            Format::Fields | Format::Table => self.unsupported(),
        }
    }

    pub fn status(self, endpoints: &[EndpointStatus]) -> Result<Vec<u8>> {
        if self.shape.is_some() {
            return self.shaped_status(endpoints);
        }
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
        if self.shape.is_some() {
            return self.shaped_hash_kv(endpoints);
        }
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
        if self.shape.is_some() {
            return self.shaped_health(endpoints);
        }
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
