//! The answers of etcd's verbs in the shapes of `-o`: lists as sheets, the rest as a page. Names of fields are words with underscores; ids of
//! members, clusters and leases are hexadecimal texts, which no reader of JSON rounds; a key or value is a text, or base64 under another name.

use super::sheet::{Cell, Column, Shape, Sheet};
use super::simple::{self, event_type, lease_id};
use super::text::{hex, readable};
use super::{BytesAs, EndpointHash, EndpointHealth, EndpointStatus, Printer, Tone, Value};
use crate::failure::{Exit, Failure, Result};
use api::etcdserverpb::response_op::Response;
use api::etcdserverpb::{
    AlarmResponse, AlarmType, DeleteRangeResponse, LeaseLeasesResponse, LeaseTimeToLiveResponse, Member,
    PutResponse, RangeResponse, ResponseHeader, TxnResponse, WatchResponse,
};
use api::mvccpb::KeyValue;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// A table shows so many columns of a value; `wide` shows all of it.
const VALUE_COLUMNS_MAX: usize = 60;

/// The names of one thing in bytes, in the three ways it can be written.
struct Names {
    text: &'static str,
    hex: &'static str,
    base64: &'static str,
}

const KEY: Names = Names { text: "key", hex: "key_hex", base64: "key_base64" };
const VALUE: Names = Names { text: "value", hex: "value_hex", base64: "value_base64" };

fn revision(header: Option<&ResponseHeader>) -> Value {
    header.map(|header| header.revision).into()
}

fn cluster(header: Option<&ResponseHeader>) -> Value {
    format!("{:x}", header.map_or(0, |header| header.cluster_id)).into()
}

impl BytesAs {
    fn cell(self, names: &Names, bytes: &[u8]) -> Cell {
        let encoded = |text: String, key| Cell { key: Some(key), ..Cell::shown(text.as_str(), text.clone()) };
        match (self, std::str::from_utf8(bytes)) {
            (BytesAs::Hex, _) => encoded(hex(bytes), names.hex),
            (BytesAs::Base64, _) => encoded(STANDARD.encode(bytes), names.base64),
            (BytesAs::Text, Ok(text)) => Cell::shown(text, readable(bytes)),
            // Programs get the bytes back, people read what can be read.
            (BytesAs::Text, Err(_)) => {
                Cell { key: Some(names.base64), ..Cell::shown(STANDARD.encode(bytes), readable(bytes)) }
            }
        }
    }

    /// The name and the value of it in a record.
    fn entry(self, names: &Names, bytes: &[u8]) -> (String, Value) {
        let cell = self.cell(names, bytes);
        (cell.key.unwrap_or(names.text).to_owned(), cell.value)
    }

    fn record(self, kv: &KeyValue) -> Value {
        Value::Map(vec![
            self.entry(&KEY, &kv.key),
            ("create_revision".into(), kv.create_revision.into()),
            ("mod_revision".into(), kv.mod_revision.into()),
            ("version".into(), kv.version.into()),
            ("lease".into(), lease(kv.lease)),
            self.entry(&VALUE, &kv.value),
        ])
    }

    fn records(self, kvs: &[KeyValue]) -> Value {
        Value::List(kvs.iter().map(|kv| self.record(kv)).collect())
    }
}

fn lease(id: i64) -> Value {
    if id == 0 { Value::Null } else { lease_id(id).into() }
}

fn lease_cell(id: i64) -> Cell {
    if id == 0 { Cell::nothing() } else { Cell::text(lease_id(id)) }
}

/// Keys with what belongs to them.
fn pairs(bytes_as: BytesAs, name: &'static str, kvs: &[KeyValue], keys_only: bool) -> Sheet {
    let mut columns = vec![
        Column::new(KEY.text, "KEY"),
        Column::number("create_revision", "CREATED").only_wide(),
        Column::number("mod_revision", "MODIFIED").only_wide(),
        Column::number("version", "VERSION").only_wide(),
        Column::new("lease", "LEASE").only_wide(),
    ];
    if !keys_only {
        columns.push(Column::new(VALUE.text, "VALUE").cut(VALUE_COLUMNS_MAX));
    }
    let mut sheet = Sheet::new(name, &columns);
    for kv in kvs {
        let mut cells = vec![
            bytes_as.cell(&KEY, &kv.key),
            Cell::number(kv.create_revision),
            Cell::number(kv.mod_revision),
            Cell::number(kv.version),
            lease_cell(kv.lease),
        ];
        if !keys_only {
            cells.push(bytes_as.cell(&VALUE, &kv.value));
        }
        sheet.row(cells);
    }
    sheet
}

impl Printer {
    pub(super) fn shaped_range(self, shape: Shape, answer: &RangeResponse) -> Result<Vec<u8>> {
        if self.count_only {
            let mut count = Sheet::new("counts", &[Column::number("count", "COUNT")]);
            count.row(vec![Cell::number(answer.count)]);
            return self.sheet(&count);
        }
        if shape == Shape::Raw && !self.keys_only {
            return self.raw_value(&answer.kvs);
        }
        let mut sheet = pairs(self.bytes_as, "kvs", &answer.kvs, self.keys_only);
        sheet.whole("revision", revision(answer.header.as_ref()));
        sheet.whole("count", answer.count);
        sheet.whole("more", answer.more);
        self.sheet(&sheet)
    }

    /// The bytes of one value and nothing else. Whoever asks for that means one key that is there.
    fn raw_value(self, kvs: &[KeyValue]) -> Result<Vec<u8>> {
        match kvs {
            [kv] => Ok(match self.bytes_as {
                BytesAs::Text => kv.value.to_vec(),
                BytesAs::Hex => hex(&kv.value).into_bytes(),
                BytesAs::Base64 => STANDARD.encode(&kv.value).into_bytes(),
            }),
            [] => Err(Failure::new(
                Exit::Error,
                "[KEY_MISSING] there is no such key, and so no value for -o raw",
            )),
            many => Err(Failure::arguments(format!(
                "-o raw prints the value of one key, and {} match: add --keys-only for their names, or use -o jsonl",
                many.len()
            ))),
        }
    }

    pub(super) fn shaped_put(self, answer: &PutResponse, text: Vec<u8>) -> Result<Vec<u8>> {
        let mut data = vec![("revision".to_owned(), revision(answer.header.as_ref()))];
        if let Some(kv) = &answer.prev_kv {
            data.push(("prev_kv".into(), self.bytes_as.record(kv)));
        }
        self.said(Value::Map(data), text)
    }

    pub(super) fn shaped_delete(self, answer: &DeleteRangeResponse, text: Vec<u8>) -> Result<Vec<u8>> {
        let data = Value::map([
            ("revision", revision(answer.header.as_ref())),
            ("deleted", answer.deleted.into()),
            ("prev_kvs", self.bytes_as.records(&answer.prev_kvs)),
        ]);
        self.said(data, text)
    }

    pub(super) fn shaped_txn(self, answer: &TxnResponse, text: Vec<u8>) -> Result<Vec<u8>> {
        self.said(self.txn_data(answer), text)
    }

    fn txn_data(self, answer: &TxnResponse) -> Value {
        let record = |op: &Option<Response>| match op {
            None => Value::Null,
            Some(Response::ResponseRange(answer)) => Value::map([(
                "get",
                Value::map([("count", answer.count.into()), ("kvs", self.bytes_as.records(&answer.kvs))]),
            )]),
            Some(Response::ResponsePut(answer)) => {
                let previous = answer.prev_kv.as_ref().map(|kv| self.bytes_as.record(kv));
                Value::map([("put", Value::map([("prev_kv", previous.into())]))])
            }
            Some(Response::ResponseDeleteRange(answer)) => Value::map([(
                "del",
                Value::map([
                    ("deleted", answer.deleted.into()),
                    ("prev_kvs", self.bytes_as.records(&answer.prev_kvs)),
                ]),
            )]),
            Some(Response::ResponseTxn(answer)) => Value::map([("txn", self.txn_data(answer))]),
        };
        Value::map([
            ("revision", revision(answer.header.as_ref())),
            ("succeeded", answer.succeeded.into()),
            ("responses", Value::List(answer.responses.iter().map(|op| record(&op.response)).collect())),
        ])
    }

    /// One record for each change, as it comes.
    pub(super) fn shaped_watch(self, shape: Shape, answer: &WatchResponse) -> Vec<u8> {
        let mut out = String::new();
        for event in &answer.events {
            let kind = event_type(event.r#type);
            let empty = KeyValue::default();
            let kv = event.kv.as_ref().unwrap_or(&empty);
            if matches!(shape, Shape::Table | Shape::Wide) {
                let (key, value) = (self.bytes_as.cell(&KEY, &kv.key), self.bytes_as.cell(&VALUE, &kv.value));
                let tone = if kind == "PUT" { Tone::Good } else { Tone::Bad };
                let kind = self.paint.tone(tone, &format!("{kind:<6}"));
                let before =
                    |kv: &KeyValue| format!(" (was {})", self.bytes_as.cell(&VALUE, &kv.value).shown);
                let before = event.prev_kv.as_ref().map(before).unwrap_or_default();
                out +=
                    format!("{kind} {:>8} {} {}{before}", kv.mod_revision, key.shown, value.shown).trim_end();
                out.push('\n');
                continue;
            }
            let mut entries = vec![("type".to_owned(), Value::from(kind))];
            if let Value::Map(record) = self.bytes_as.record(kv) {
                entries.extend(record);
            }
            if let Some(kv) = &event.prev_kv {
                entries.push(("prev_kv".into(), self.bytes_as.record(kv)));
            }
            let record = Value::Map(entries);
            out += &match shape {
                Shape::Yaml => format!("---\n{}", record.to_yaml()),
                _ => record.to_json_line() + "\n",
            };
        }
        out.into_bytes()
    }

    pub(super) fn shaped_leases(
        self,
        answer: &LeaseLeasesResponse,
        lives: &[Option<LeaseTimeToLiveResponse>],
    ) -> Result<Vec<u8>> {
        let columns = [
            Column::new("id", "ID"),
            Column::number("ttl", "LEFT"),
            Column::number("granted_ttl", "GRANTED"),
        ];
        let mut sheet = Sheet::new("leases", &columns).when_empty("no leases");
        for (at, status) in answer.leases.iter().enumerate() {
            // One that ended since is in the list all the same, and has nothing left.
            let life = lives.get(at).and_then(Option::as_ref).filter(|life| life.granted_ttl > 0);
            let seconds = |seconds: Option<i64>| match seconds {
                Some(seconds) => Cell::shown(seconds, format!("{seconds} s")),
                None => Cell::nothing(),
            };
            let (left, granted) = (life.map(|life| life.ttl), life.map(|life| life.granted_ttl));
            sheet.row(vec![Cell::text(lease_id(status.id)), seconds(left), seconds(granted)]);
        }
        self.sheet(&sheet)
    }

    pub(super) fn shaped_time_to_live(
        self,
        answer: &LeaseTimeToLiveResponse,
        keys: bool,
        text: Vec<u8>,
    ) -> Result<Vec<u8>> {
        let alive = answer.granted_ttl != 0;
        let seconds = |seconds: i64| Some(seconds).filter(|_| alive);
        let mut data = vec![
            ("id".to_owned(), lease_id(answer.id).into()),
            ("alive".into(), alive.into()),
            ("granted_ttl".into(), seconds(answer.granted_ttl).into()),
            ("ttl".into(), seconds(answer.ttl).into()),
        ];
        if keys {
            let key = |key: &bytes::Bytes| Value::Map(vec![self.bytes_as.entry(&KEY, key)]);
            data.push(("keys".into(), Value::List(answer.keys.iter().map(key).collect())));
        }
        self.said(Value::Map(data), text)
    }

    pub(super) fn shaped_alarms(self, answer: &AlarmResponse) -> Result<Vec<u8>> {
        let columns = [Column::new("member_id", "MEMBER"), Column::new("alarm", "ALARM")];
        let mut sheet = Sheet::new("alarms", &columns).when_empty("no alarms");
        for alarm in &answer.alarms {
            let name = AlarmType::try_from(alarm.alarm)
                .map_or_else(|_| alarm.alarm.to_string(), |kind| kind.as_str_name().to_owned());
            sheet.row(vec![Cell::id(alarm.member_id), Cell::text(name).tone(Tone::Bad)]);
        }
        self.sheet(&sheet)
    }

    pub(super) fn shaped_members(
        self,
        header: Option<&ResponseHeader>,
        members: &[Member],
    ) -> Result<Vec<u8>> {
        self.sheet(&member_sheet(header, members))
    }

    pub(super) fn shaped_status(self, endpoints: &[EndpointStatus]) -> Result<Vec<u8>> {
        let columns = [
            Column::new("endpoint", "ENDPOINT"),
            Column::new("member_id", "ID"),
            Column::new("version", "VERSION"),
            Column::new("role", "ROLE"),
            Column::number("db_size", "DB SIZE"),
            Column::number("db_size_in_use", "IN USE"),
            Column::number("db_size_quota", "QUOTA").only_wide(),
            Column::new("leader", "LEADER").only_wide(),
            Column::number("raft_term", "TERM"),
            Column::number("raft_index", "INDEX").only_wide(),
            Column::number("raft_applied_index", "APPLIED"),
            Column::number("revision", "REVISION").only_wide(),
            Column::new("storage_version", "STORAGE").only_wide(),
            Column::new("errors", "ERRORS"),
        ];
        let mut sheet = Sheet::new("endpoints", &columns);
        for EndpointStatus { endpoint, status } in endpoints {
            let header = status.header.unwrap_or_default();
            let role = match (status.leader == header.member_id, status.is_learner) {
                (true, _) => Cell::text("leader").tone(Tone::Strong),
                (false, true) => Cell::text("learner").tone(Tone::Warn),
                (false, false) => Cell::text("follower"),
            };
            let size = |bytes: i64| Cell::size(bytes.max(0).unsigned_abs());
            let known = |bytes: i64| if bytes > 0 { size(bytes) } else { Cell::nothing() };
            let leader = if status.leader == 0 {
                Cell { shown: "none".into(), ..Cell::nothing() }.tone(Tone::Bad)
            } else {
                Cell::id(status.leader)
            };
            let storage = &status.storage_version;
            sheet.row(vec![
                Cell::text(endpoint.as_str()),
                Cell::id(header.member_id),
                Cell::text(status.version.as_str()),
                role,
                size(status.db_size),
                known(status.db_size_in_use),
                known(status.db_size_quota),
                leader,
                Cell::number(status.raft_term),
                Cell::number(status.raft_index),
                Cell::number(status.raft_applied_index),
                Cell::number(header.revision),
                if storage.is_empty() { Cell::nothing() } else { Cell::text(storage.as_str()) },
                Cell::texts(&status.errors).tone(if status.errors.is_empty() {
                    Tone::Faint
                } else {
                    Tone::Bad
                }),
            ]);
        }
        self.sheet(&sheet)
    }

    pub(super) fn shaped_hash_kv(self, endpoints: &[EndpointHash]) -> Result<Vec<u8>> {
        let columns = [
            Column::new("endpoint", "ENDPOINT"),
            Column::number("hash", "HASH"),
            Column::number("hash_revision", "REVISION"),
            Column::number("compact_revision", "COMPACTED").only_wide(),
        ];
        let mut sheet = Sheet::new("endpoints", &columns);
        for EndpointHash { endpoint, hash } in endpoints {
            sheet.row(vec![
                Cell::text(endpoint.as_str()),
                Cell::number(hash.hash),
                Cell::number(hash.hash_revision),
                Cell::number(hash.compact_revision),
            ]);
        }
        self.sheet(&sheet)
    }

    pub(super) fn shaped_health(self, endpoints: &[EndpointHealth]) -> Result<Vec<u8>> {
        let columns = [
            Column::new("endpoint", "ENDPOINT"),
            Column::new("healthy", "HEALTHY"),
            Column::new("took", "TOOK"),
            Column::new("error", "ERROR"),
        ];
        let mut sheet = Sheet::new("endpoints", &columns);
        for endpoint in endpoints {
            let tone = if endpoint.healthy { Tone::Good } else { Tone::Bad };
            let error = &endpoint.error;
            sheet.row(vec![
                Cell::text(endpoint.endpoint.as_str()),
                Cell::truth(endpoint.healthy).tone(tone),
                Cell::text(endpoint.took.as_str()),
                if error.is_empty() { Cell::nothing() } else { Cell::text(error.as_str()) },
            ]);
        }
        self.sheet(&sheet)
    }

    /// A page whose text is what the simple format says, made safe for a terminal.
    pub(super) fn said(self, data: Value, text: Vec<u8>) -> Result<Vec<u8>> {
        let lines = |text: Vec<u8>| {
            let lines = text.split(|byte| *byte == b'\n').map(readable).collect::<Vec<_>>();
            lines.join("\n")
        };
        self.page(&data, |_, _| lines(text))
    }
}

fn member_sheet(header: Option<&ResponseHeader>, members: &[Member]) -> Sheet {
    let columns = [
        Column::new("id", "ID"),
        Column::new("name", "NAME"),
        Column::new("started", "STARTED"),
        Column::new("learner", "LEARNER"),
        Column::new("peer_urls", "PEER URLS").only_wide(),
        Column::new("client_urls", "CLIENT URLS"),
    ];
    let mut sheet = Sheet::new("members", &columns);
    sheet.whole("cluster_id", cluster(header));
    for member in members {
        let started = !member.name.is_empty();
        sheet.row(vec![
            Cell::id(member.id),
            if started { Cell::text(member.name.as_str()) } else { Cell::nothing() },
            Cell::truth(started).tone(if started { Tone::Plain } else { Tone::Warn }),
            Cell::truth(member.is_learner).tone(if member.is_learner { Tone::Warn } else { Tone::Plain }),
            Cell::texts(&member.peer_ur_ls),
            Cell::texts(&member.client_ur_ls),
        ]);
    }
    sheet
}

/// What changed, for the pages of changes.
pub(super) fn changed(id: u64, what: &str, header: Option<&ResponseHeader>, members: &[Member]) -> Value {
    Value::map([
        ("member_id", format!("{id:x}").into()),
        ("change", what.into()),
        ("cluster_id", cluster(header)),
        ("members", Value::List(member_sheet(header, members).records())),
    ])
}

pub(super) fn lease_data(id: i64, entries: &[(&str, Value)]) -> Value {
    let rest = entries.iter().map(|(name, value)| ((*name).to_owned(), value.clone()));
    Value::Map(std::iter::once(("id".to_owned(), simple::lease_id(id).into())).chain(rest).collect())
}
