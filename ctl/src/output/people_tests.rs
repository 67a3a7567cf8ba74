//! Every shape of `-o` for the lists that people look at, byte for byte: scripts rely on the records, and eyes on the tables.

use super::paint::Paint;
use super::{BytesAs, EndpointStatus, Printer, Shape};
use crate::failure::{Exit, Failure};
use crate::settings::Format;
use api::etcdserverpb::{
    AlarmMember, AlarmResponse, AlarmType, DeleteRangeResponse, LeaseLeasesResponse, LeaseStatus,
    LeaseTimeToLiveResponse, Member, MemberListResponse, PutResponse, RangeResponse, ResponseHeader,
    ResponseOp, StatusResponse, TxnResponse, WatchResponse, response_op::Response,
};
use api::mvccpb::event::EventType;
use api::mvccpb::{Event, KeyValue};

fn printer(shape: Shape) -> Printer {
    Printer { paint: Paint::NONE, ..Printer::bare(Format::Simple, Some(shape)) }
}

fn header() -> Option<ResponseHeader> {
    Some(ResponseHeader { cluster_id: 0xc1, member_id: 0xa1, revision: 9, raft_term: 2 })
}

fn kv(key: &[u8], value: &[u8], lease: i64) -> KeyValue {
    KeyValue {
        key: key.to_vec().into(),
        value: value.to_vec().into(),
        create_revision: 2,
        mod_revision: 7,
        version: 3,
        lease,
    }
}

fn range(kvs: Vec<KeyValue>) -> RangeResponse {
    RangeResponse { header: header(), count: kvs.len() as i64, kvs, more: false }
}

/// In every shape: the shape's name and what it prints.
fn all(print: impl Fn(Printer) -> Result<Vec<u8>, Failure>) -> String {
    let shape = |(name, shape): &(&str, Shape)| match print(printer(*shape)) {
        Ok(bytes) => format!("# {name}\n{}", String::from_utf8_lossy(&bytes)),
        Err(failure) => format!("# {name}\n{failure}"),
    };
    Shape::ALL.iter().map(shape).collect()
}

#[test]
fn a_range_in_every_shape() {
    let answer = range(vec![kv("größe".as_bytes(), b"v\n1", 0), kv(b"z\xff", "鍵".as_bytes(), 0x1f)]);
    let expected = r#"# table
KEY     VALUE
größe   v\n1
z\xff   鍵
# wide
KEY     CREATED   MODIFIED   VERSION   LEASE              VALUE
größe         2          7         3   -                  v\n1
z\xff         2          7         3   000000000000001f   鍵
# json
{
  "revision": 9,
  "count": 2,
  "more": false,
  "kvs": [
    {
      "key": "größe",
      "create_revision": 2,
      "mod_revision": 7,
      "version": 3,
      "lease": null,
      "value": "v\n1"
    },
    {
      "key_base64": "ev8=",
      "create_revision": 2,
      "mod_revision": 7,
      "version": 3,
      "lease": "000000000000001f",
      "value": "鍵"
    }
  ]
}
# jsonl
{"key":"größe","create_revision":2,"mod_revision":7,"version":3,"lease":null,"value":"v\n1"}
{"key_base64":"ev8=","create_revision":2,"mod_revision":7,"version":3,"lease":"000000000000001f","value":"鍵"}
# yaml
revision: 9
count: 2
more: false
kvs:
  - key: "größe"
    create_revision: 2
    mod_revision: 7
    version: 3
    lease: null
    value: "v\n1"
  - key_base64: "ev8="
    create_revision: 2
    mod_revision: 7
    version: 3
    lease: "000000000000001f"
    value: "鍵"
# raw
Error: -o raw prints the value of one key, and 2 match: add --keys-only for their names, or use -o jsonl
"#;
    assert_eq!(all(|printer| printer.range(&answer)), expected);
}

#[test]
fn a_raw_value_is_its_bytes_and_a_missing_key_is_no_empty_value() {
    let value = b"\0\xff\n";
    let one = range(vec![kv(b"k", value, 0)]);
    assert_eq!(printer(Shape::Raw).range(&one).unwrap(), value);
    let hex = Printer { bytes_as: BytesAs::Hex, ..printer(Shape::Raw) };
    assert_eq!(hex.range(&one).unwrap(), b"00ff0a");
    let empty = range(vec![kv(b"k", b"", 0)]);
    assert_eq!(printer(Shape::Raw).range(&empty).unwrap(), b"");
    let failure = printer(Shape::Raw).range(&range(Vec::new())).unwrap_err();
    assert!(failure.exit == Exit::Error && failure.headline.starts_with("[KEY_MISSING]"));
}

#[test]
fn hex_base64_keys_only_and_count_only_say_so_in_the_names() {
    let answer = range(vec![kv(b"k", b"v", 0)]);
    let lines = |printer: Printer| String::from_utf8(printer.range(&answer).unwrap()).unwrap();
    let base = printer(Shape::JsonLines);
    assert!(lines(Printer { bytes_as: BytesAs::Hex, ..base }).starts_with(r#"{"key_hex":"6b","#));
    assert!(lines(Printer { bytes_as: BytesAs::Base64, ..base }).ends_with("\"value_base64\":\"dg==\"}\n"));
    assert_eq!(
        lines(Printer { keys_only: true, ..base }),
        "{\"key\":\"k\",\"create_revision\":2,\"mod_revision\":7,\"version\":3,\"lease\":null}\n"
    );
    assert_eq!(lines(Printer { keys_only: true, ..printer(Shape::Raw) }), "k\n");
    assert_eq!(lines(Printer { count_only: true, ..printer(Shape::Raw) }), "1\n");
    assert_eq!(lines(Printer { count_only: true, ..printer(Shape::Table) }), "COUNT\n    1\n");
}

#[test]
fn a_long_value_is_cut_in_the_table_alone() {
    let answer = range(vec![kv(b"k", &[b'x'; 100], 0)]);
    let text = |shape| String::from_utf8(printer(shape).range(&answer).unwrap()).unwrap();
    assert!(text(Shape::Table).ends_with(&format!("k     {}…\n", "x".repeat(59))), "{}", text(Shape::Table));
    assert!(text(Shape::Wide).ends_with(&format!("{}\n", "x".repeat(100))));
}

#[test]
fn members_in_every_shape() {
    let member = |id, name: &str, url: &str, is_learner| Member {
        id,
        name: name.to_owned(),
        peer_ur_ls: vec![format!("http://{url}:2380")],
        client_ur_ls: if name.is_empty() { Vec::new() } else { vec![format!("http://{url}:2379")] },
        is_learner,
    };
    let members = vec![member(0xa1, "db1", "a", false), member(0xb2, "", "b", true)];
    let answer = MemberListResponse { header: header(), members };
    let expected = r#"# table
ID   NAME   STARTED   LEARNER   CLIENT URLS
a1   db1    yes       no        http://a:2379
b2   -      no        yes       -
# wide
ID   NAME   STARTED   LEARNER   PEER URLS       CLIENT URLS
a1   db1    yes       no        http://a:2380   http://a:2379
b2   -      no        yes       http://b:2380   -
# json
{
  "cluster_id": "c1",
  "members": [
    {
      "id": "a1",
      "name": "db1",
      "started": true,
      "learner": false,
      "peer_urls": [
        "http://a:2380"
      ],
      "client_urls": [
        "http://a:2379"
      ]
    },
    {
      "id": "b2",
      "name": null,
      "started": false,
      "learner": true,
      "peer_urls": [
        "http://b:2380"
      ],
      "client_urls": []
    }
  ]
}
# jsonl
{"id":"a1","name":"db1","started":true,"learner":false,"peer_urls":["http://a:2380"],"client_urls":["http://a:2379"]}
{"id":"b2","name":null,"started":false,"learner":true,"peer_urls":["http://b:2380"],"client_urls":[]}
# yaml
cluster_id: c1
members:
  - id: a1
    name: db1
    started: true
    learner: false
    peer_urls:
      - "http://a:2380"
    client_urls:
      - "http://a:2379"
  - id: b2
    name: null
    started: false
    learner: true
    peer_urls:
      - "http://b:2380"
    client_urls: []
# raw
a1
b2
"#;
    assert_eq!(all(|printer| printer.member_list(&answer)), expected);
}

#[test]
fn endpoints_in_every_shape() {
    let status = |member_id, leader, errors: &[&str]| EndpointStatus {
        endpoint: format!("db{member_id:x}:2379"),
        status: StatusResponse {
            header: Some(ResponseHeader { member_id, ..header().unwrap() }),
            version: "3.7.1".into(),
            db_size: 20_480,
            db_size_in_use: 9_000,
            db_size_quota: 2_147_483_648,
            leader,
            raft_index: 12,
            raft_term: 2,
            raft_applied_index: 11,
            errors: errors.iter().map(|error| (*error).to_owned()).collect(),
            ..Default::default()
        },
    };
    let answer = [status(1, 1, &[]), status(2, 0, &["no leader"])];
    let expected = r#"# table
ENDPOINT   ID   VERSION   ROLE       DB SIZE   IN USE   TERM   APPLIED   ERRORS
db1:2379   1    3.7.1     leader       20 kB   9.0 kB      2        11   -
db2:2379   2    3.7.1     follower     20 kB   9.0 kB      2        11   no leader
# wide
ENDPOINT   ID   VERSION   ROLE       DB SIZE   IN USE    QUOTA   LEADER   TERM   INDEX   APPLIED   REVISION   STORAGE   ERRORS
db1:2379   1    3.7.1     leader       20 kB   9.0 kB   2.1 GB   1           2      12        11          9   -         -
db2:2379   2    3.7.1     follower     20 kB   9.0 kB   2.1 GB   none        2      12        11          9   -         no leader
# jsonl
{"endpoint":"db1:2379","member_id":"1","version":"3.7.1","role":"leader","db_size":20480,"db_size_in_use":9000,"db_size_quota":2147483648,"leader":"1","raft_term":2,"raft_index":12,"raft_applied_index":11,"revision":9,"storage_version":null,"errors":[]}
{"endpoint":"db2:2379","member_id":"2","version":"3.7.1","role":"follower","db_size":20480,"db_size_in_use":9000,"db_size_quota":2147483648,"leader":null,"raft_term":2,"raft_index":12,"raft_applied_index":11,"revision":9,"storage_version":null,"errors":["no leader"]}
# raw
db1:2379
db2:2379
"#;
    let shown = all(|printer| printer.status(&answer));
    let part = |from: &str, to: &str| {
        let start = shown.find(from).unwrap();
        let end = if to.is_empty() { shown.len() } else { shown.find(to).unwrap() };
        shown[start..end].to_owned()
    };
    assert_eq!(part("# table", "# json\n") + &part("# jsonl", "# yaml") + &part("# raw", ""), expected);
    let json: serde_json::Value =
        serde_json::from_str(&part("# json\n", "# jsonl")["# json\n".len()..]).unwrap();
    assert_eq!(json["endpoints"][1]["errors"][0], "no leader");
    assert!(
        part("# yaml", "# raw").contains("endpoints:\n  - endpoint: \"db1:2379\"\n    member_id: \"1\"\n")
    );
}

#[test]
fn leases_and_alarms_in_every_shape() {
    let leases = LeaseLeasesResponse {
        header: header(),
        leases: vec![LeaseStatus { id: 0x1f }, LeaseStatus { id: -1 }],
    };
    let life = LeaseTimeToLiveResponse { id: 0x1f, ttl: 41, granted_ttl: 60, ..Default::default() };
    let expected = r#"# table
ID                 LEFT   GRANTED
000000000000001f   41 s      60 s
-000000000000001      -         -
# wide
ID                 LEFT   GRANTED
000000000000001f   41 s      60 s
-000000000000001      -         -
# json
{
  "leases": [
    {
      "id": "000000000000001f",
      "ttl": 41,
      "granted_ttl": 60
    },
    {
      "id": "-000000000000001",
      "ttl": null,
      "granted_ttl": null
    }
  ]
}
# jsonl
{"id":"000000000000001f","ttl":41,"granted_ttl":60}
{"id":"-000000000000001","ttl":null,"granted_ttl":null}
# yaml
leases:
  - id: "000000000000001f"
    ttl: 41
    granted_ttl: 60
  - id: "-000000000000001"
    ttl: null
    granted_ttl: null
# raw
000000000000001f
-000000000000001
"#;
    assert_eq!(all(|printer| printer.leases(&leases, &[Some(life.clone())])), expected);
    let alarms = [AlarmMember { member_id: 0xa1, alarm: AlarmType::Nospace as i32 }];
    let alarms = AlarmResponse { header: header(), alarms: alarms.to_vec() };
    let expected = r#"# table
MEMBER   ALARM
a1       NOSPACE
# wide
MEMBER   ALARM
a1       NOSPACE
# json
{
  "alarms": [
    {
      "member_id": "a1",
      "alarm": "NOSPACE"
    }
  ]
}
# jsonl
{"member_id":"a1","alarm":"NOSPACE"}
# yaml
alarms:
  - member_id: a1
    alarm: NOSPACE
# raw
a1
"#;
    assert_eq!(all(|printer| printer.alarms(&alarms)), expected);
}

#[test]
fn what_is_no_list_is_a_page_of_what_the_simple_format_says() {
    let put = PutResponse { header: header(), prev_kv: Some(kv(b"k\x1b", b"old", 0)) };
    let shown = all(|printer| printer.put(&put));
    assert!(shown.contains("# table\nOK\nk\\x1b\nold\n"), "{shown}");
    assert!(shown.contains("# jsonl\n{\"revision\":9,\"prev_kv\":{\"key\":\"k\\u001b\","), "{shown}");
    assert!(shown.ends_with("# raw\nError: raw not supported as output format\n"), "{shown}");

    let delete = DeleteRangeResponse { header: header(), deleted: 2, prev_kvs: Vec::new() };
    assert!(
        all(|printer| printer.delete(&delete)).contains("{\"revision\":9,\"deleted\":2,\"prev_kvs\":[]}\n")
    );

    let responses = [
        Response::ResponseRange(range(vec![kv(b"k", b"v", 0)])),
        Response::ResponsePut(PutResponse::default()),
        Response::ResponseDeleteRange(DeleteRangeResponse { deleted: 1, ..Default::default() }),
    ];
    let responses = responses.map(|response| ResponseOp { response: Some(response) }).to_vec();
    let txn = TxnResponse { header: header(), succeeded: true, responses };
    let line = r#"{"revision":9,"succeeded":true,"responses":[{"get":{"count":1,"kvs":[{"key":"k","create_revision":2,"mod_revision":7,"version":3,"lease":null,"value":"v"}]}},{"put":{"prev_kv":null}},{"del":{"deleted":1,"prev_kvs":[]}}]}"#;
    assert_eq!(printer(Shape::JsonLines).txn(&txn).unwrap(), format!("{line}\n").into_bytes());

    let gone = LeaseTimeToLiveResponse { id: 0x1f, ttl: -1, ..Default::default() };
    let line = r#"{"id":"000000000000001f","alive":false,"granted_ttl":null,"ttl":null,"keys":[]}"#;
    assert_eq!(
        printer(Shape::JsonLines).time_to_live(&gone, true).unwrap(),
        format!("{line}\n").into_bytes()
    );
}

#[test]
fn a_watch_prints_a_record_for_each_change() {
    let event = |kind: EventType, kv: KeyValue, prev_kv| Event { r#type: kind as i32, kv: Some(kv), prev_kv };
    let answer = WatchResponse {
        header: header(),
        events: vec![
            event(EventType::Put, kv(b"k", b"new", 0), Some(kv(b"k", b"old", 0))),
            event(
                EventType::Delete,
                KeyValue { key: "k".into(), mod_revision: 8, ..Default::default() },
                None,
            ),
        ],
        ..Default::default()
    };
    let text = |shape| String::from_utf8(printer(shape).watch(&answer).unwrap()).unwrap();
    assert_eq!(text(Shape::Table), "PUT           7 k new (was old)\nDELETE        8 k\n");
    assert!(
        text(Shape::JsonLines)
            .starts_with(r#"{"type":"PUT","key":"k","create_revision":2,"mod_revision":7,"#)
    );
    assert_eq!(text(Shape::JsonLines).lines().count(), 2);
    assert!(text(Shape::Yaml).starts_with("---\ntype: PUT\nkey: k\n"));
}
