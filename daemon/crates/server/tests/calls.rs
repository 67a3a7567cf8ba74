//! gRPC through a real client: every method is answered, refusals carry etcd's code and text, limits hold.

#[path = "calls/operator.rs"]
mod operator;
mod support;

use std::{collections::BTreeMap, sync::atomic::Ordering::SeqCst};

use api::{
    error::EtcdError,
    etcdserverpb::{
        self as pb, auth_client::AuthClient, cluster_client::ClusterClient,
        maintenance_client::MaintenanceClient, request_op::Request as Op,
    },
    health::{HealthCheckRequest, HealthListRequest, health_client::HealthClient},
};
use server::Backend;
use support::{CLUSTER, MEMBER, assert_refused, channel, config, kv, put, range, up, up_with};
use tonic::{Code, Request, Status, metadata::AsciiMetadataValue};

/// Every method of etcd's services but the streams in both directions: (path, what the answer to an empty message is).
const SURFACE: &[(&str, Code)] = &[
    ("/etcdserverpb.KV/Range", Code::InvalidArgument),
    ("/etcdserverpb.KV/RangeStream", Code::InvalidArgument),
    ("/etcdserverpb.KV/Put", Code::InvalidArgument),
    ("/etcdserverpb.KV/DeleteRange", Code::InvalidArgument),
    ("/etcdserverpb.KV/Txn", Code::Ok),
    ("/etcdserverpb.KV/Compact", Code::Ok),
    ("/etcdserverpb.Lease/LeaseGrant", Code::Ok),
    ("/etcdserverpb.Lease/LeaseRevoke", Code::Ok),
    ("/etcdserverpb.Lease/LeaseTimeToLive", Code::Ok),
    ("/etcdserverpb.Lease/LeaseLeases", Code::Ok),
    ("/etcdserverpb.Cluster/MemberAdd", Code::InvalidArgument),
    ("/etcdserverpb.Cluster/MemberRemove", Code::NotFound),
    ("/etcdserverpb.Cluster/MemberUpdate", Code::NotFound),
    ("/etcdserverpb.Cluster/MemberList", Code::Ok),
    ("/etcdserverpb.Cluster/MemberPromote", Code::NotFound),
    ("/etcdserverpb.Maintenance/Alarm", Code::Ok),
    ("/etcdserverpb.Maintenance/Status", Code::Ok),
    ("/etcdserverpb.Maintenance/Defragment", Code::Ok),
    ("/etcdserverpb.Maintenance/Hash", Code::Ok),
    ("/etcdserverpb.Maintenance/HashKV", Code::Ok),
    ("/etcdserverpb.Maintenance/Snapshot", Code::Ok),
    ("/etcdserverpb.Maintenance/MoveLeader", Code::FailedPrecondition),
    ("/etcdserverpb.Maintenance/Downgrade", Code::Unimplemented),
    ("/etcdserverpb.Auth/AuthEnable", Code::Unimplemented),
    ("/etcdserverpb.Auth/AuthDisable", Code::Unimplemented),
    ("/etcdserverpb.Auth/AuthStatus", Code::Ok),
    ("/etcdserverpb.Auth/Authenticate", Code::FailedPrecondition),
    ("/etcdserverpb.Auth/UserAdd", Code::Unimplemented),
    ("/etcdserverpb.Auth/UserGet", Code::Unimplemented),
    ("/etcdserverpb.Auth/UserList", Code::Unimplemented),
    ("/etcdserverpb.Auth/UserDelete", Code::Unimplemented),
    ("/etcdserverpb.Auth/UserChangePassword", Code::Unimplemented),
    ("/etcdserverpb.Auth/UserGrantRole", Code::Unimplemented),
    ("/etcdserverpb.Auth/UserRevokeRole", Code::Unimplemented),
    ("/etcdserverpb.Auth/RoleAdd", Code::Unimplemented),
    ("/etcdserverpb.Auth/RoleGet", Code::Unimplemented),
    ("/etcdserverpb.Auth/RoleList", Code::Unimplemented),
    ("/etcdserverpb.Auth/RoleDelete", Code::Unimplemented),
    ("/etcdserverpb.Auth/RoleGrantPermission", Code::Unimplemented),
    ("/etcdserverpb.Auth/RoleRevokePermission", Code::Unimplemented),
    ("/v3electionpb.Election/Campaign", Code::Unimplemented),
    ("/v3electionpb.Election/Proclaim", Code::Unimplemented),
    ("/v3electionpb.Election/Leader", Code::Unimplemented),
    ("/v3electionpb.Election/Observe", Code::Unimplemented),
    ("/v3electionpb.Election/Resign", Code::Unimplemented),
    ("/v3lockpb.Lock/Lock", Code::Unimplemented),
    ("/v3lockpb.Lock/Unlock", Code::Unimplemented),
    ("/grpc.health.v1.Health/Check", Code::Ok),
    ("/grpc.health.v1.Health/List", Code::Ok),
    ("/cairn.v1.Operator/Prefixes", Code::Ok),
    ("/cairn.v1.Operator/Writes", Code::Ok),
    ("/cairn.v1.Operator/Watchers", Code::Ok),
];

/// Calls any path with an empty message.
async fn empty_call(channel: tonic::transport::Channel, path: &'static str) -> Result<(), Status> {
    let mut client = tonic::client::Grpc::new(channel);
    client.ready().await.unwrap();
    let codec = tonic_prost::ProstCodec::<(), ()>::default();
    let path = http::uri::PathAndQuery::from_static(path);
    client.unary(Request::new(()), path, codec).await.map(|_| ())
}

#[tokio::test]
async fn every_method_is_answered() {
    let up = up();
    let channel = channel(up.address).await;
    for &(path, expected) in SURFACE {
        let answer = empty_call(channel.clone(), path).await;
        let code = answer.as_ref().err().map_or(Code::Ok, Status::code);
        assert_eq!(code, expected, "{path}: {answer:?}");
        if expected == Code::Unimplemented {
            let name = path.trim_start_matches('/');
            assert_eq!(answer.unwrap_err().message(), format!("cairn does not implement {name} yet"));
        }
    }
}

/// docs/compatibility.md says of every method whether it works; what it says is what the calls above came to.
#[test]
fn the_page_on_compatibility_says_what_works() {
    const STREAMS: [&str; 3] =
        ["/etcdserverpb.Watch/Watch", "/etcdserverpb.Lease/LeaseKeepAlive", "/grpc.health.v1.Health/Watch"];
    let page = include_str!("../../../../docs/compatibility.md");
    let table = page.split("### Methods of the client API").nth(1).expect("the page has the table");
    let said: BTreeMap<String, &str> = table
        .lines()
        .take_while(|line| !line.starts_with('#'))
        .filter_map(|line| line.strip_prefix("| `"))
        .map(|row| {
            let cells: Vec<&str> = row.split('|').map(str::trim).collect();
            (format!("/{}", cells[0].trim_end_matches('`')), cells[2])
        })
        .collect();
    let done: BTreeMap<String, &str> = SURFACE
        .iter()
        .filter(|(path, _)| !path.starts_with("/cairn."))
        .map(|&(path, code)| (path, if code == Code::Unimplemented { "UNIMPLEMENTED" } else { "works" }))
        .chain(STREAMS.map(|path| (path, "works")))
        .map(|(path, word)| (path.to_owned(), word))
        .collect();
    assert_eq!(said, done, "left: docs/compatibility.md, right: what the server does");
}

#[tokio::test]
async fn unknown_paths_in_the_words_of_grpc_go() {
    let up = up();
    let channel = channel(up.address).await;
    for (path, text) in [
        ("/etcdserverpb.KV/Foo", "unknown method Foo for service etcdserverpb.KV"),
        ("/foo.Bar/Foo", "unknown service foo.Bar"),
        ("/foo", "malformed method name: \"/foo\""),
    ] {
        let status = empty_call(channel.clone(), path).await.unwrap_err();
        assert_eq!((status.code(), status.message()), (Code::Unimplemented, text));
    }
}

#[tokio::test]
async fn keys_are_put_read_changed_and_deleted() {
    let up = up();
    let mut kv = kv(up.address).await;
    let answer = kv.put(put("a", "1")).await.unwrap().into_inner();
    let header = answer.header.unwrap();
    assert_eq!(
        (header.cluster_id, header.member_id, header.revision, header.raft_term),
        (CLUSTER, MEMBER, 2, 1)
    );

    let txn = pb::TxnRequest {
        success: vec![
            pb::RequestOp { request: Some(Op::RequestPut(put("b", "2"))) },
            pb::RequestOp { request: Some(Op::RequestRange(range("a", ""))) },
        ],
        ..Default::default()
    };
    let answer = kv.txn(txn).await.unwrap().into_inner();
    assert!(answer.succeeded);
    assert_eq!(answer.responses.len(), 2);

    let answer = kv.range(range("a", "z")).await.unwrap().into_inner();
    assert_eq!((answer.count, answer.kvs.len(), answer.header.unwrap().revision), (2, 2, 3));
    let delete = pb::DeleteRangeRequest { key: "a".into(), ..Default::default() };
    assert_eq!(kv.delete_range(delete).await.unwrap().into_inner().deleted, 1);
    let compact = pb::CompactionRequest { revision: 3, physical: false };
    kv.compact(compact).await.unwrap();
    let old = pb::RangeRequest { revision: 2, ..range("a", "") };
    assert_refused(kv.range(old).await, EtcdError::Compacted);
    assert_refused(kv.range(pb::RangeRequest { revision: 99, ..range("a", "") }).await, EtcdError::FutureRev);
}

/// A stale read would be invisible here; that the round happened is not.
#[tokio::test]
async fn default_reads_are_linearizable() {
    let up = up();
    let mut kv = kv(up.address).await;
    kv.range(range("a", "")).await.unwrap();
    assert_eq!(up.fake.inner.barriers.load(SeqCst), 1);
    kv.range(pb::RangeRequest { serializable: true, ..range("a", "") }).await.unwrap();
    assert_eq!(up.fake.inner.barriers.load(SeqCst), 1);
    let stream = kv.range_stream(range("a", "")).await.unwrap();
    drop(stream);
    assert_eq!(up.fake.inner.barriers.load(SeqCst), 2);
}

#[tokio::test]
async fn requests_are_refused_in_etcds_words() {
    let up = up();
    let mut kv = kv(up.address).await;
    assert_refused(kv.put(put("", "1")).await, EtcdError::EmptyKey);
    assert_refused(
        kv.put(pb::PutRequest { ignore_value: true, ..put("a", "1") }).await,
        EtcdError::ValueProvided,
    );
    let lease = pb::PutRequest { ignore_lease: true, lease: 1, ..put("a", "1") };
    assert_refused(kv.put(lease).await, EtcdError::LeaseProvided);
    assert_refused(
        kv.put(pb::PutRequest { ignore_value: true, ..put("a", "") }).await,
        EtcdError::KeyNotFound,
    );
    assert_refused(kv.range(range("", "")).await, EtcdError::EmptyKey);
    let sort = pb::RangeRequest { sort_order: 9, ..range("a", "") };
    assert_refused(kv.range(sort).await, EtcdError::InvalidSortOption);
    let op = |key: &'static str| pb::RequestOp { request: Some(Op::RequestPut(put(key, "1"))) };
    let many = pb::TxnRequest { success: (0..129).map(|_| op("a")).collect(), ..Default::default() };
    assert_refused(kv.txn(many).await, EtcdError::TooManyOps);
    let twice = pb::TxnRequest { success: vec![op("a"), op("a")], ..Default::default() };
    assert_refused(kv.txn(twice).await, EtcdError::DuplicateKey);
}

#[tokio::test]
async fn quota_is_asked_before_the_fields() {
    let up = up();
    up.fake.inner.full.store(true, SeqCst);
    let mut kv = kv(up.address).await;
    assert_refused(kv.put(put("", "1")).await, EtcdError::NoSpace);
    let op = pb::RequestOp { request: Some(Op::RequestPut(put("", "1"))) };
    assert_refused(
        kv.txn(pb::TxnRequest { success: vec![op], ..Default::default() }).await,
        EtcdError::NoSpace,
    );
    assert_eq!(up.fake.inner.raised.load(SeqCst), 2);
    // What frees space, or costs none, is not asked.
    kv.delete_range(pb::DeleteRangeRequest { key: "a".into(), ..Default::default() }).await.unwrap();
    kv.txn(pb::TxnRequest::default()).await.unwrap();
    kv.range(range("a", "")).await.unwrap();
    assert_eq!(up.fake.inner.raised.load(SeqCst), 2);
}

#[tokio::test]
async fn oversize_requests_by_either_limit() {
    let up = up();
    let mut kv = kv(up.address).await;
    let limit = types::limits::REQUEST_BYTES_MAX_DEFAULT as usize;
    kv.put(put("a", vec![0; limit - 64])).await.unwrap();
    assert_refused(kv.put(put("a", vec![0; limit])).await, EtcdError::RequestTooLarge);
    let op = pb::RequestOp { request: Some(Op::RequestPut(put("a", vec![0; limit]))) };
    let txn = pb::TxnRequest { success: vec![op], ..Default::default() };
    assert_refused(kv.txn(txn).await, EtcdError::RequestTooLarge);

    let message_limit = limit + types::limits::GRPC_OVERHEAD_BYTES as usize;
    let big = put("a", vec![0; message_limit]);
    let length = prost::Message::encoded_len(&big);
    let status = kv.put(big).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert_eq!(
        status.message(),
        format!("grpc: received message larger than max ({length} vs. {message_limit})")
    );
    // The connection outlives it.
    kv.range(range("a", "")).await.unwrap();
}

#[tokio::test]
async fn metadata_of_etcds_clients() {
    let up = up();
    let mut kv = kv(up.address).await;
    let with = |key: &'static str, value: AsciiMetadataValue| {
        let mut request = Request::new(pb::RangeRequest { serializable: true, ..range("a", "") });
        request.metadata_mut().insert(key, value);
        request
    };
    kv.range(with("hasleader", "true".parse().unwrap())).await.unwrap();
    up.fake.inner.leaderless.store(true, SeqCst);
    assert_refused(kv.range(with("hasleader", "true".parse().unwrap())).await, EtcdError::NoLeader);
    kv.range(with("hasleader", "false".parse().unwrap())).await.unwrap();
    kv.range(with("client-api-version", "3.7".parse().unwrap())).await.unwrap();
}

#[tokio::test]
async fn a_learner_answers_little() {
    let up = up();
    up.fake.inner.learner.store(true, SeqCst);
    let mut kv = kv(up.address).await;
    let serializable = pb::RangeRequest { serializable: true, ..range("a", "") };
    kv.range(serializable.clone()).await.unwrap();
    assert_refused(kv.range(range("a", "")).await, EtcdError::NotSupportedForLearner);
    assert_refused(kv.range_stream(serializable).await, EtcdError::NotSupportedForLearner);
    assert_refused(kv.put(put("a", "1")).await, EtcdError::NotSupportedForLearner);
    let channel = channel(up.address).await;
    let mut maintenance = MaintenanceClient::new(channel.clone());
    assert!(maintenance.status(pb::StatusRequest::default()).await.unwrap().into_inner().is_learner);
    assert_refused(maintenance.hash(pb::HashRequest::default()).await, EtcdError::NotSupportedForLearner);
    HealthClient::new(channel).check(HealthCheckRequest::default()).await.unwrap();
}

/// It has nothing yet, and an empty answer would look like an empty cluster.
#[tokio::test]
async fn a_member_that_joins_answers_nothing_but_who_it_is() {
    let up = up();
    up.fake.inner.joining.store(true, SeqCst);
    let mut kv = kv(up.address).await;
    let serializable = pb::RangeRequest { serializable: true, ..range("a", "") };
    assert_refused(kv.range(serializable).await, EtcdError::Unhealthy);
    assert_refused(kv.put(put("a", "1")).await, EtcdError::Unhealthy);
    let channel = channel(up.address).await;
    let members = ClusterClient::new(channel.clone()).member_list(pb::MemberListRequest::default()).await;
    assert_refused(members, EtcdError::Unhealthy);
    MaintenanceClient::new(channel.clone()).status(pb::StatusRequest::default()).await.unwrap();
    HealthClient::new(channel).check(HealthCheckRequest::default()).await.unwrap();
    up.fake.inner.joining.store(false, SeqCst);
    kv.range(range("a", "")).await.unwrap();
}

#[tokio::test]
async fn members_and_maintenance() {
    let up = up();
    let channel = channel(up.address).await;
    let mut cluster = ClusterClient::new(channel.clone());
    let members = cluster.member_list(pb::MemberListRequest::default()).await.unwrap().into_inner().members;
    assert_eq!(members[0].id, MEMBER);
    let mut maintenance = MaintenanceClient::new(channel.clone());
    let status = maintenance.status(pb::StatusRequest::default()).await.unwrap().into_inner();
    assert_eq!(status.version, types::limits::ETCD_VERSION);
    assert_eq!(maintenance.hash(pb::HashRequest::default()).await.unwrap().into_inner().hash, 7);
    let future = pb::HashKvRequest { revision: 100 };
    assert_refused(maintenance.hash_kv(future).await, EtcdError::FutureRev);
    let stranger = pb::MoveLeaderRequest { target_id: 1 };
    assert_refused(maintenance.move_leader(stranger).await, EtcdError::BadLeaderTransferee);
    maintenance.move_leader(pb::MoveLeaderRequest { target_id: MEMBER }).await.unwrap();
    let alarm = pb::AlarmRequest {
        action: pb::alarm_request::AlarmAction::Activate.into(),
        member_id: MEMBER,
        alarm: pb::AlarmType::Nospace.into(),
    };
    assert_eq!(maintenance.alarm(alarm).await.unwrap().into_inner().alarms.len(), 1);
    assert_refused(kv(up.address).await.put(put("a", "1")).await, EtcdError::NoSpace);
    let auth =
        AuthClient::new(channel).auth_status(pb::AuthStatusRequest::default()).await.unwrap().into_inner();
    assert_eq!((auth.enabled, auth.auth_revision, auth.header.unwrap().member_id), (false, 1, MEMBER));
}

#[tokio::test]
async fn health_follows_the_phase() {
    let up = up();
    let mut health = HealthClient::new(channel(up.address).await);
    let whole = HealthCheckRequest::default();
    let mut watch = health.watch(whole.clone()).await.unwrap().into_inner();
    assert_eq!(watch.message().await.unwrap().unwrap().status, 1);
    assert_eq!(health.check(whole.clone()).await.unwrap().into_inner().status, 1);
    let listed = health.list(HealthListRequest {}).await.unwrap().into_inner().statuses;
    assert_eq!(listed.len(), 1);
    assert_eq!(listed[""].status, 1);
    up.running.set_serving(false);
    assert_eq!(watch.message().await.unwrap().unwrap().status, 2);
    assert_eq!(health.check(whole).await.unwrap().into_inner().status, 2);
    let other = HealthCheckRequest { service: "etcdserverpb.KV".into() };
    assert_refused(health.check(other.clone()).await, EtcdError::UnknownService);
    let mut unknown = health.watch(other).await.unwrap().into_inner();
    assert_eq!(unknown.message().await.unwrap().unwrap().status, 3);
}

#[tokio::test]
async fn health_is_not_serving_before_it_is_ready() {
    let running = server::Server::start(config(), support::Fake::new()).unwrap();
    let mut health = HealthClient::new(channel(running.client_addresses()[0]).await);
    assert_eq!(health.check(HealthCheckRequest::default()).await.unwrap().into_inner().status, 2);
}

#[tokio::test]
async fn a_wide_range_is_the_same_in_pieces() {
    let up = up();
    let mut kv = kv(up.address).await;
    // Values of every size around the size of a piece.
    for number in 0..60 {
        kv.put(put(format!("k{number:02}"), vec![b'v'; 7 * number * number * number])).await.unwrap();
    }
    let base = range("k", "l");
    for request in [
        base.clone(),
        range("k07", [0].as_slice()),
        range("x", "y"),
        range("z", "a"),
        pb::RangeRequest { keys_only: true, ..base.clone() },
        pb::RangeRequest { limit: 1001, ..base.clone() },
        pb::RangeRequest { revision: 40, ..base.clone() },
        pb::RangeRequest { serializable: true, sort_order: 1, ..base.clone() },
    ] {
        let expected = up.fake.range_local(&request).unwrap();
        assert_eq!(kv.range(request.clone()).await.unwrap().into_inner(), expected, "{request:?}");
    }
    assert_refused(kv.range(pb::RangeRequest { revision: 99, ..base.clone() }).await, EtcdError::FutureRev);
    kv.compact(pb::CompactionRequest { revision: 30, physical: false }).await.unwrap();
    assert_refused(kv.range(pb::RangeRequest { revision: 29, ..base }).await, EtcdError::Compacted);
}

/// The member compacts while the range is read: whoever asks for the newest state gets it all the same.
#[tokio::test]
async fn a_wide_range_overtaken_by_compaction_is_read_again() {
    let up = up();
    let mut kv = kv(up.address).await;
    for number in 0..40 {
        kv.put(put(format!("k{number:02}"), vec![1; 100_000])).await.unwrap();
    }
    for times in [1, 2, 10] {
        up.fake.inner.overtake.store(times, SeqCst);
        let answer = kv.range(range("k", "l")).await.unwrap().into_inner();
        assert_eq!((answer.kvs.len(), answer.count), (40, 40));
        let now = up.fake.header(0).revision;
        assert_eq!(answer.header.unwrap().revision, now, "read again means read anew");
        assert!(up.fake.inner.overtake.load(SeqCst) < times, "nothing was overtaken");
    }
    // An asked revision that is gone in the middle is an honest refusal.
    up.fake.inner.overtake.store(1, SeqCst);
    let asked = pb::RangeRequest { revision: up.fake.header(0).revision, ..range("k", "l") };
    assert_refused(kv.range(asked).await, EtcdError::Compacted);
}

async fn streamed(
    kv: &mut pb::kv_client::KvClient<tonic::transport::Channel>,
    request: pb::RangeRequest,
) -> Vec<pb::RangeResponse> {
    let mut stream = kv.range_stream(request).await.unwrap().into_inner();
    let mut chunks = Vec::new();
    while let Some(chunk) = stream.message().await.unwrap() {
        chunks.push(chunk.range_response.expect("a chunk holds a response"));
    }
    chunks
}

/// Puts the chunks together the way clients do.
fn merged(chunks: Vec<pb::RangeResponse>) -> pb::RangeResponse {
    let mut whole = pb::RangeResponse::default();
    let last = chunks.len() - 1;
    for (number, chunk) in chunks.into_iter().enumerate() {
        assert_eq!(chunk.header.is_some(), number == last, "the header travels with the last chunk only");
        assert!(number == last || (chunk.count == 0 && !chunk.more));
        whole.kvs.extend(chunk.kvs);
        whole.header = chunk.header;
        whole.more = chunk.more;
        whole.count = chunk.count;
    }
    whole
}

#[tokio::test]
async fn a_streamed_range_equals_the_range() {
    let up = up();
    let mut kv = kv(up.address).await;
    for number in 0..100 {
        kv.put(put(format!("k{number:03}"), vec![b'v'; number])).await.unwrap();
    }
    let base = range("k", "l");
    let cases = [
        base.clone(),
        range("k007", ""),
        range("k05", [0].as_slice()),
        range([0].as_slice(), [0].as_slice()),
        range("x", "y"),
        range("z", "a"),
        pb::RangeRequest { limit: 10, ..base.clone() },
        pb::RangeRequest { limit: 37, ..base.clone() },
        pb::RangeRequest { limit: 100, ..base.clone() },
        pb::RangeRequest { limit: 1000, ..base.clone() },
        pb::RangeRequest { keys_only: true, ..base.clone() },
        pb::RangeRequest { count_only: true, ..base.clone() },
        pb::RangeRequest { revision: 50, ..base.clone() },
        pb::RangeRequest { serializable: true, ..base.clone() },
    ];
    for request in cases {
        let chunks = streamed(&mut kv, request.clone()).await;
        if request.count_only {
            assert_eq!(chunks.len(), 1);
        }
        let expected = kv.range(request.clone()).await.unwrap().into_inner();
        assert_eq!(merged(chunks), expected, "{request:?}");
    }
    let chunks = streamed(&mut kv, base).await;
    let sizes: Vec<usize> = chunks.iter().map(|chunk| chunk.kvs.len()).collect();
    assert_eq!(sizes, [10, 20, 40, 30], "chunks start with ten keys and double while they are small");
}

#[tokio::test]
async fn a_stream_stays_at_its_revision() {
    let up = up();
    let mut kv = kv(up.address).await;
    // Larger than every window and buffer on the way, so that the stream must wait for its reader.
    for number in 0..40 {
        kv.put(put(format!("k{number:02}"), vec![1; 1_000_000])).await.unwrap();
    }
    let mut stream = kv.range_stream(range("k", "l")).await.unwrap().into_inner();
    let first = stream.message().await.unwrap().unwrap().range_response.unwrap();
    for number in 0..40 {
        kv.put(put(format!("k{number:02}"), "new")).await.unwrap();
    }
    kv.put(put("k99", "new")).await.unwrap();
    let mut chunks = vec![first];
    while let Some(chunk) = stream.message().await.unwrap() {
        chunks.push(chunk.range_response.unwrap());
    }
    let whole = merged(chunks);
    assert_eq!((whole.count, whole.kvs.len(), whole.header.unwrap().revision), (40, 40, 41));
    assert!(
        whole.kvs.iter().all(|pair| pair.value.len() == 1_000_000),
        "a later value slipped into the stream"
    );
}

#[tokio::test]
async fn a_stream_overtaken_by_compaction_ends_with_the_reason() {
    let up = up();
    let mut kv = kv(up.address).await;
    for number in 0..40 {
        kv.put(put(format!("k{number:02}"), vec![1; 1_000_000])).await.unwrap();
    }
    let mut stream = kv.range_stream(range("k", "l")).await.unwrap().into_inner();
    stream.message().await.unwrap();
    kv.put(put("k00", "new")).await.unwrap();
    kv.compact(pb::CompactionRequest { revision: 42, physical: false }).await.unwrap();
    let end = loop {
        match stream.message().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("the stream ended as if it were complete"),
            Err(status) => break status,
        }
    };
    assert_refused(Err::<(), _>(end), EtcdError::Compacted);
}

#[tokio::test]
async fn what_cannot_be_streamed() {
    let up = up();
    let mut kv = kv(up.address).await;
    assert_refused(kv.range_stream(range("", "")).await, EtcdError::EmptyKey);
    let descending = pb::RangeRequest { sort_order: 2, ..range("a", "b") };
    assert_refused(kv.range_stream(descending).await, EtcdError::RangeStreamSort);
    let by_value = pb::RangeRequest { sort_order: 1, sort_target: 4, ..range("a", "b") };
    assert_refused(kv.range_stream(by_value).await, EtcdError::RangeStreamSort);
    let filtered = pb::RangeRequest { min_mod_revision: 1, ..range("a", "b") };
    assert_refused(kv.range_stream(filtered).await, EtcdError::RangeStreamFilters);
    let future = pb::RangeRequest { revision: 99, ..range("a", "b") };
    assert_refused(kv.range_stream(future).await, EtcdError::FutureRev);
}

#[tokio::test]
async fn a_deadline_ends_a_call() {
    let up = up();
    up.fake.inner.stuck.store(true, SeqCst);
    let answer = support::raw::grpc(
        up.address,
        "/etcdserverpb.KV/Range",
        &[("grpc-timeout", "20m")],
        &[0, 0, 0, 0, 3, 10, 1, b'a'],
    )
    .await;
    assert_eq!(answer.status(), (4, "context deadline exceeded".to_owned()));
}

#[tokio::test]
async fn frames_a_client_should_not_send() {
    let up = up();
    let call = async |headers: &[(&str, &str)], frame: &[u8]| {
        support::raw::grpc(up.address, "/etcdserverpb.KV/Range", headers, frame).await.status()
    };
    let serializable = [0, 0, 0, 0, 5, 10, 1, b'a', 56, 1];
    assert_eq!(call(&[], &serializable).await.0, 0);
    let (code, text) = call(&[], &[0, 0, 0, 0, 2, 0xff, 0xff]).await;
    assert_eq!(code, Code::Internal as i32);
    assert!(text.starts_with("grpc: error unmarshalling request: "), "{text}");
    let compressed = [1, 0, 0, 0, 0];
    assert_eq!(
        call(&[], &compressed).await,
        (13, "grpc: compressed flag set with identity or empty encoding".to_owned())
    );
    assert_eq!(
        call(&[("grpc-encoding", "gzip")], &compressed).await,
        (12, "grpc: Decompressor is not installed for grpc-encoding \"gzip\"".to_owned())
    );
    // The flag decides, not the header.
    assert_eq!(call(&[("grpc-encoding", "gzip")], &serializable).await.0, 0);
    assert_eq!(
        call(&[], &[0, 0x10, 0, 0, 0]).await,
        (8, "grpc: received message larger than max (268435456 vs. 2097152)".to_owned())
    );
    for (frame, what) in [
        (&[][..], "nothing"),
        (&[0, 0, 0], "half a head"),
        (&[0, 0, 0, 0, 9, 1], "half a message"),
        (&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0], "two messages"),
    ] {
        assert_eq!(call(&[], frame).await.0, Code::Internal as i32, "{what}");
    }
    assert_eq!(call(&[("grpc-timeout", "soon")], &serializable).await.0, Code::Internal as i32);
}

/// A message may come in any pieces.
#[tokio::test]
async fn a_request_in_pieces() {
    let up = up();
    let request = put("key", vec![7; 300]);
    let mut frame = vec![0, 0, 0];
    let message = prost::Message::encode_to_vec(&request);
    frame.extend((message.len() as u16).to_be_bytes());
    frame.extend(message);
    for piece in [1, 2, 4, 5, 6, 100, 1000] {
        let pieces: Vec<_> = frame.chunks(piece).map(<[u8]>::to_vec).collect();
        let answer = support::raw::grpc_pieces(up.address, "/etcdserverpb.KV/Put", &[], pieces).await;
        assert_eq!(answer.status(), (0, String::new()), "pieces of {piece}");
    }
}

#[tokio::test]
async fn calls_are_counted() {
    let up = up_with(server::ServerConfig { metrics_extensive: true, ..config() });
    let mut kv = kv(up.address).await;
    kv.put(put("a", "1")).await.unwrap();
    kv.put(put("", "1")).await.unwrap_err();
    streamed(&mut kv, range("a", "")).await;
    let text =
        support::raw::http1(up.address, "GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
            .await;
    for line in [
        "etcd_server_has_leader 1",
        "grpc_server_started_total{grpc_method=\"Put\",grpc_service=\"etcdserverpb.KV\",grpc_type=\"unary\"} 2",
        "grpc_server_handled_total{grpc_code=\"OK\",grpc_method=\"Put\",grpc_service=\"etcdserverpb.KV\",grpc_type=\"unary\"} 1",
        "grpc_server_handled_total{grpc_code=\"InvalidArgument\",grpc_method=\"Put\",grpc_service=\"etcdserverpb.KV\",grpc_type=\"unary\"} 1",
        "grpc_server_handled_total{grpc_code=\"OK\",grpc_method=\"RangeStream\",grpc_service=\"etcdserverpb.KV\",grpc_type=\"server_stream\"} 1",
        "grpc_server_msg_received_total{grpc_method=\"Put\",grpc_service=\"etcdserverpb.KV\",grpc_type=\"unary\"} 2",
        "grpc_server_msg_sent_total{grpc_method=\"RangeStream\",grpc_service=\"etcdserverpb.KV\",grpc_type=\"server_stream\"} 1",
        "grpc_server_started_total{grpc_method=\"Watch\",grpc_service=\"etcdserverpb.Watch\",grpc_type=\"bidi_stream\"} 0",
        "etcd_network_client_grpc_received_bytes_total 12",
        "etcd_server_client_requests_total{client_api_version=\"unknown\",type=\"unary\"} 2",
        "etcd_server_client_requests_total{client_api_version=\"unknown\",type=\"stream\"} 1",
        "etcd_server_request_duration_seconds_count{success=\"true\",type=\"Put\"} 1",
        "grpc_server_handling_seconds_count{grpc_method=\"Put\",grpc_service=\"etcdserverpb.KV\",grpc_type=\"unary\"} 2",
        "promhttp_metric_handler_requests_total{code=\"200\"} 1",
    ] {
        assert!(text.lines().any(|found| found.trim_end() == line), "no line {line}");
    }
}
