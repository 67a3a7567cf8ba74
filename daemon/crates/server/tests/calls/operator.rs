//! `cairn.v1.Operator` through a real client: numbers by prefix, bounds, and what is refused.

use api::etcdserverpb::CompactionRequest;
use api::operator::{
    PrefixUse, PrefixWatchers, PrefixWrites, PrefixesRequest, WatchersRequest, WritesRequest,
    operator_client::OperatorClient,
};
use node::WatchedRange;
use tonic::Code;
use types::KeyRange;

use crate::support::{channel, kv, put, up};

fn asked(prefix: &'static str, depth: u32) -> PrefixesRequest {
    PrefixesRequest { prefix: prefix.into(), depth, ..Default::default() }
}

fn uses(prefix: &'static str, keys: i64, key_bytes: i64, value_bytes: i64) -> PrefixUse {
    PrefixUse { prefix: prefix.into(), keys, key_bytes, value_bytes }
}

#[tokio::test]
async fn keys_and_bytes_are_counted_by_prefix_at_one_revision() {
    let up = up();
    let mut kv = kv(up.address).await;
    for (key, value) in [("/a/1", "x"), ("/a/b/1", "yyy"), ("/a/b/2", "y"), ("/c", "zz"), ("d/1", "")] {
        kv.put(put(key, value)).await.unwrap();
    }
    let mut operator = OperatorClient::new(channel(up.address).await);
    let first = operator.prefixes(asked("", 1)).await.unwrap().into_inner();
    assert_eq!(first.prefixes, [uses("/", 1, 2, 2), uses("/a/", 3, 16, 5), uses("d/", 1, 3, 0)]);
    assert!(first.resume_key.is_empty(), "all of it was counted");
    let revision = first.header.unwrap().revision;
    assert_eq!(revision, 6);
    // What comes later does not show at that revision, and does show without one.
    kv.put(put("/a/3", "new")).await.unwrap();
    let then = operator.prefixes(PrefixesRequest { revision, ..asked("/a/", 1) }).await.unwrap().into_inner();
    assert_eq!(then.prefixes, [uses("/a/", 1, 4, 1), uses("/a/b/", 2, 12, 4)]);
    let now = operator.prefixes(asked("/a/", 0)).await.unwrap().into_inner();
    assert_eq!(now.prefixes, [uses("/a/", 4, 20, 8)]);
    let rest = PrefixesRequest { resume_key: "/a/b/2".into(), ..asked("/a/", 1) };
    assert_eq!(operator.prefixes(rest).await.unwrap().into_inner().prefixes, [uses("/a/b/", 1, 6, 1)]);
    for (wrong, why) in [
        (PrefixesRequest { resume_key: "/b".into(), ..asked("/a/", 1) }, "outside"),
        (PrefixesRequest { separator: vec![b'/'; 17].into(), ..asked("", 1) }, "at most 16 bytes"),
    ] {
        let refused = operator.prefixes(wrong).await.unwrap_err();
        assert!(refused.code() == Code::InvalidArgument && refused.message().contains(why), "{refused:?}");
    }
}

#[tokio::test]
async fn a_store_of_many_prefixes_is_told_in_several_answers() {
    let up = up();
    let mut kv = kv(up.address).await;
    // 10001 prefixes, made by transactions.
    for batch in 0..=100 {
        let op = |n: usize| api::etcdserverpb::RequestOp {
            request: Some(api::etcdserverpb::request_op::Request::RequestPut(put(format!("p{n:05}/k"), "v"))),
        };
        let success = (batch * 100..(batch * 100 + 100).min(10_001)).map(op).collect();
        kv.txn(api::etcdserverpb::TxnRequest { success, ..Default::default() }).await.unwrap();
    }
    let mut operator = OperatorClient::new(channel(up.address).await).max_decoding_message_size(usize::MAX);
    let first = operator.prefixes(asked("", 1)).await.unwrap().into_inner();
    assert_eq!((first.prefixes.len(), &first.resume_key[..]), (10_000, &b"p10000/k"[..]));
    let revision = first.header.unwrap().revision;
    let rest = PrefixesRequest { resume_key: first.resume_key, revision, ..asked("", 1) };
    let rest = operator.prefixes(rest).await.unwrap().into_inner();
    assert_eq!((rest.prefixes, rest.resume_key.len()), (vec![uses("p10000/", 1, 8, 1)], 0));
}

#[tokio::test]
async fn changes_are_counted_while_the_call_lasts() {
    let up = up();
    let mut kv = kv(up.address).await;
    kv.put(put("/a/before", "x")).await.unwrap();
    let look = || {
        let address = up.address;
        tokio::spawn(async move {
            let mut operator = OperatorClient::new(channel(address).await);
            let request = WritesRequest { depth: 1, window_ms: 300, ..Default::default() };
            operator.writes(request).await.unwrap().into_inner()
        })
    };
    let looking = look();
    while !looking.is_finished() {
        kv.put(put("/a/1", "xy")).await.unwrap();
        kv.put(put("b", "xyz")).await.unwrap();
    }
    let answer = looking.await.unwrap();
    assert!(answer.revisions > 0 && answer.revisions_seen == answer.revisions, "{answer:?}");
    let [b, a] = &answer.prefixes[..] else { panic!("two prefixes: {answer:?}") };
    assert_eq!((&a.prefix[..], &b.prefix[..]), (&b"/a/"[..], &b""[..]));
    assert_eq!(a.puts + b.puts, answer.revisions, "each revision is one put");
    assert_eq!((a.bytes, b.bytes), (a.puts * 6, b.puts * 4));
    assert_eq!((a.deletes, answer.others.clone()), (0, None::<PrefixWrites>));
    // Compaction behind every change leaves little of the window, and that little is told.
    let looking = look();
    while !looking.is_finished() {
        let put = kv.put(put("/a/1", "xy")).await.unwrap().into_inner();
        let revision = put.header.unwrap().revision;
        kv.compact(CompactionRequest { revision, physical: false }).await.unwrap();
    }
    let answer = looking.await.unwrap();
    assert!(answer.revisions_seen <= answer.revisions, "{answer:?}");
    assert!(answer.revisions < 5 || answer.revisions_seen < answer.revisions, "{answer:?}");
}

#[tokio::test]
async fn watchers_are_counted_by_what_they_watch() {
    let up = up();
    let watched = |range, watchers, slow| WatchedRange { range, watchers, slow };
    let one = |key: &'static str| KeyRange::One(key.into());
    let span = KeyRange::Span { start: "/a/".into(), end: "/a0".into() };
    *up.fake.inner.watched.lock() = vec![
        watched(one("/a/x"), 2, 1),
        watched(span, 40, 0),
        watched(one("/b/x"), 5, 5),
        watched(KeyRange::From(bytes::Bytes::from_static(&[0])), 1, 0),
    ];
    let mut operator = OperatorClient::new(channel(up.address).await);
    let row =
        |prefix: &'static [u8], watchers, slow| PrefixWatchers { prefix: prefix.into(), watchers, slow };
    let all =
        operator.watchers(WatchersRequest { depth: 1, ..Default::default() }).await.unwrap().into_inner();
    assert_eq!(all.prefixes, [row(b"", 1, 0), row(b"/a/", 42, 1), row(b"/b/", 5, 5)]);
    let some = WatchersRequest { prefix: "/a/".into(), depth: 1, ..Default::default() };
    let some = operator.watchers(some).await.unwrap().into_inner();
    assert_eq!(
        some.prefixes,
        [row(b"", 1, 0), row(b"/a/", 42, 1)],
        "who watches everything watches this too"
    );
}
