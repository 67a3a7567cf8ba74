//! Requests and responses in the JSON of etcd's gateway: zero values left out, bytes in base64, 64-bit numbers as strings.

use api::etcdserverpb::compare::TargetUnion;
use api::etcdserverpb::*;
use api::mvccpb::KeyValue;
use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Map, Value, json};

fn object(fields: impl IntoIterator<Item = (&'static str, Value)>) -> Value {
    let is_zero = |value: &Value| match value {
        Value::Null | Value::Bool(false) => true,
        Value::String(text) => text.is_empty() || text == "0",
        Value::Array(items) => items.is_empty(),
        Value::Number(number) => number.as_i64() == Some(0),
        _ => false,
    };
    let kept = fields.into_iter().filter(|(_, value)| !is_zero(value));
    Value::Object(kept.map(|(name, value)| (name.to_owned(), value)).collect::<Map<_, _>>())
}

pub fn base(bytes: &[u8]) -> Value {
    json!(STANDARD.encode(bytes))
}

fn number(number: i64) -> Value {
    json!(number.to_string())
}

pub fn range(r: &RangeRequest) -> Value {
    object([
        ("key", base(&r.key)),
        ("range_end", base(&r.range_end)),
        ("limit", number(r.limit)),
        ("revision", number(r.revision)),
        ("sort_order", json!(r.sort_order)),
        ("sort_target", json!(r.sort_target)),
        ("keys_only", json!(r.keys_only)),
        ("count_only", json!(r.count_only)),
        ("min_mod_revision", number(r.min_mod_revision)),
        ("max_mod_revision", number(r.max_mod_revision)),
        ("min_create_revision", number(r.min_create_revision)),
        ("max_create_revision", number(r.max_create_revision)),
    ])
}

pub fn put(p: &PutRequest) -> Value {
    object([
        ("key", base(&p.key)),
        ("value", base(&p.value)),
        ("lease", number(p.lease)),
        ("prev_kv", json!(p.prev_kv)),
        ("ignore_value", json!(p.ignore_value)),
        ("ignore_lease", json!(p.ignore_lease)),
    ])
}

pub fn delete_range(d: &DeleteRangeRequest) -> Value {
    object([("key", base(&d.key)), ("range_end", base(&d.range_end)), ("prev_kv", json!(d.prev_kv))])
}

pub fn txn(t: &TxnRequest) -> Value {
    let ops = |ops: &[RequestOp]| ops.iter().map(op).collect::<Vec<Value>>();
    object([
        ("compare", t.compare.iter().map(compare).collect::<Vec<Value>>().into()),
        ("success", ops(&t.success).into()),
        ("failure", ops(&t.failure).into()),
    ])
}

fn op(op: &RequestOp) -> Value {
    match &op.request {
        Some(request_op::Request::RequestRange(r)) => json!({ "request_range": range(r) }),
        Some(request_op::Request::RequestPut(p)) => json!({ "request_put": put(p) }),
        Some(request_op::Request::RequestDeleteRange(d)) => {
            json!({ "request_delete_range": delete_range(d) })
        }
        Some(request_op::Request::RequestTxn(t)) => json!({ "request_txn": txn(t) }),
        None => json!({}),
    }
}

fn compare(c: &Compare) -> Value {
    let mut fields = vec![
        ("result", json!(c.result)),
        ("target", json!(c.target)),
        ("key", base(&c.key)),
        ("range_end", base(&c.range_end)),
    ];
    fields.extend(c.target_union.as_ref().map(|union| match union {
        TargetUnion::Version(n) => ("version", number(*n)),
        TargetUnion::CreateRevision(n) => ("create_revision", number(*n)),
        TargetUnion::ModRevision(n) => ("mod_revision", number(*n)),
        TargetUnion::Value(value) => ("value", base(value)),
        TargetUnion::Lease(n) => ("lease", number(*n)),
    }));
    object(fields)
}

fn header(header: &Option<ResponseHeader>) -> Value {
    header.as_ref().map_or(Value::Null, |header| object([("revision", number(header.revision))]))
}

fn kv(kv: &KeyValue) -> Value {
    object([
        ("key", base(&kv.key)),
        ("create_revision", number(kv.create_revision)),
        ("mod_revision", number(kv.mod_revision)),
        ("version", number(kv.version)),
        ("value", base(&kv.value)),
        ("lease", number(kv.lease)),
    ])
}

fn kvs(kvs: &[KeyValue]) -> Value {
    kvs.iter().map(kv).collect::<Vec<Value>>().into()
}

pub fn range_response(r: &RangeResponse) -> Value {
    object([
        ("header", header(&r.header)),
        ("kvs", kvs(&r.kvs)),
        ("more", json!(r.more)),
        ("count", number(r.count)),
    ])
}

pub fn put_response(p: &PutResponse) -> Value {
    object([("header", header(&p.header)), ("prev_kv", p.prev_kv.as_ref().map_or(Value::Null, kv))])
}

pub fn delete_range_response(d: &DeleteRangeResponse) -> Value {
    object([("header", header(&d.header)), ("deleted", number(d.deleted)), ("prev_kvs", kvs(&d.prev_kvs))])
}

pub fn txn_response(t: &TxnResponse) -> Value {
    let responses: Vec<Value> = t
        .responses
        .iter()
        .map(|op| match &op.response {
            Some(response_op::Response::ResponseRange(r)) => json!({ "response_range": range_response(r) }),
            Some(response_op::Response::ResponsePut(p)) => json!({ "response_put": put_response(p) }),
            Some(response_op::Response::ResponseDeleteRange(d)) => {
                json!({ "response_delete_range": delete_range_response(d) })
            }
            Some(response_op::Response::ResponseTxn(t)) => json!({ "response_txn": txn_response(t) }),
            None => json!({}),
        })
        .collect();
    object([
        ("header", header(&t.header)),
        ("succeeded", json!(t.succeeded)),
        ("responses", responses.into()),
    ])
}
