//! Maintenance.Snapshot over the wire: pieces in order, on learners and without a leader too, and an end as soon as nobody listens.

mod support;

use std::sync::atomic::Ordering::SeqCst;

use api::etcdserverpb::{SnapshotRequest, maintenance_client::MaintenanceClient};
use support::{channel, up};

#[tokio::test]
async fn pieces_arrive_in_order_with_their_version() {
    let up = up();
    // None of these is asked by a backup: it is of this member alone.
    up.fake.inner.learner.store(true, SeqCst);
    up.fake.inner.leaderless.store(true, SeqCst);
    let mut client = MaintenanceClient::new(channel(up.address).await);
    let mut stream = client.snapshot(SnapshotRequest {}).await.unwrap().into_inner();
    let mut remaining = Vec::new();
    while let Some(piece) = stream.message().await.unwrap() {
        assert_eq!((piece.version.as_str(), piece.blob.len()), ("3.7.0", 8));
        assert!(piece.header.is_none(), "etcd sends none");
        remaining.push(piece.remaining_bytes);
    }
    assert_eq!(remaining, [2, 1, 0]);
    assert_eq!(up.fake.inner.barriers.load(SeqCst), 0, "no round was made");
}

#[tokio::test]
async fn a_client_that_goes_away_ends_the_backup() {
    let up = up();
    up.fake.inner.stuck.store(true, SeqCst);
    let mut client = MaintenanceClient::new(channel(up.address).await);
    let mut stream = client.snapshot(SnapshotRequest {}).await.unwrap().into_inner();
    for _ in 0..3 {
        stream.message().await.unwrap().expect("three pieces come before it hangs");
    }
    drop(stream);
    // The member's half of the backup sees that nobody listens; the test hangs if it never does.
    while up.fake.inner.barriers.load(SeqCst) == 0 {
        tokio::task::yield_now().await;
    }
}
