//! Stopping with manners: calls in flight are answered, nobody new comes in, and the wait has a bound.

mod support;

use std::{sync::atomic::Ordering::SeqCst, time::Duration};

use api::health::{HealthCheckRequest, health_client::HealthClient};
use server::Drained;
use support::{PATIENCE, Up, channel, kv, put, up};
use tokio::{net::TcpStream, task::spawn_blocking, time::timeout};

#[tokio::test]
async fn calls_in_flight_are_answered() {
    let Up { running, fake, address } = up();
    let mut health = HealthClient::new(channel(address).await);
    let mut watch = health.watch(HealthCheckRequest::default()).await.unwrap().into_inner();
    assert_eq!(watch.message().await.unwrap().unwrap().status, 1);

    fake.inner.holding.store(true, SeqCst);
    let mut kv = kv(address).await;
    let call = tokio::spawn(async move { kv.put(put("a", "1")).await });
    fake.inner.arrived.acquire().await.unwrap().forget();

    let drain = spawn_blocking(move || running.drain(PATIENCE));
    // A health watch learns of it first, and is not what the drain waits for.
    assert_eq!(watch.message().await.unwrap().unwrap().status, 2);
    watch.message().await.unwrap_err();
    assert!(!drain.is_finished(), "a call is in flight");
    fake.inner.released.add_permits(1);
    let answer = timeout(PATIENCE, call).await.unwrap().unwrap().unwrap();
    assert_eq!(answer.into_inner().header.unwrap().revision, 2);
    assert_eq!(timeout(PATIENCE, drain).await.unwrap().unwrap(), Drained { cut_count: 0 });
    TcpStream::connect(address).await.expect_err("nobody listens any more");
}

#[tokio::test]
async fn the_deadline_cuts_what_is_left() {
    let Up { running, fake, address } = up();
    fake.inner.holding.store(true, SeqCst);
    let mut kv = kv(address).await;
    let call = tokio::spawn(async move { kv.put(put("a", "1")).await });
    fake.inner.arrived.acquire().await.unwrap().forget();
    let drain = spawn_blocking(move || running.drain(Duration::from_millis(50)));
    assert_eq!(timeout(PATIENCE, drain).await.unwrap().unwrap(), Drained { cut_count: 1 });
    timeout(PATIENCE, call).await.unwrap().unwrap().unwrap_err();
}

#[tokio::test]
async fn idle_and_half_open_connections_do_not_hold_a_drain() {
    let Up { running, address, .. } = up();
    let _silent = TcpStream::connect(address).await.unwrap();
    let mut idle = kv(address).await;
    idle.put(put("a", "1")).await.unwrap();
    let drain = spawn_blocking(move || running.drain(PATIENCE));
    assert_eq!(timeout(PATIENCE, drain).await.unwrap().unwrap(), Drained { cut_count: 0 });
}

#[tokio::test]
async fn dropping_stops_at_once() {
    let Up { running, address, .. } = up();
    spawn_blocking(move || drop(running)).await.unwrap();
    TcpStream::connect(address).await.expect_err("nobody listens any more");
}
