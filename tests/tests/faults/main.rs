//! Release binaries under faults: networks that fail in one direction or all, disks that are full or damaged, bytes of strangers, and
//! kills at the worst moments. What must hold is always the same: nothing acknowledged is lost, revisions never go back, members
//! agree, and a member that cannot go on says why.
//!
//! Moments are drawn from a seed; `FAULTS_SEED=<n>` repeats them, and each test that draws prints its command.

mod client_port;
mod crash;
mod disk;
mod network;
mod peer_port;
mod snapshot;

use anyhow::{Context, Result};
use api::etcdserverpb::{
    CompactionRequest, PutRequest, RangeRequest, RangeResponse, StatusRequest, StatusResponse,
    kv_client::KvClient, maintenance_client::MaintenanceClient,
};
use cairn_tests::{
    harness::{Cluster, Member, http_get, wait_for},
    recorder::{Record, Writers, channel, verify_equal},
};
use rand::{SeedableRng, rngs::StdRng};

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(future)
}

/// Numbers for this test, and the command that draws them again.
fn random(test: &str) -> StdRng {
    let seed =
        std::env::var("FAULTS_SEED").ok().map_or(1, |text| text.parse().expect("FAULTS_SEED is a number"));
    println!("replay: FAULTS_SEED={seed} cargo test -p cairn-tests --test faults {test}");
    StdRng::seed_from_u64(seed)
}

fn endpoints(cluster: &Cluster) -> Vec<String> {
    cluster.members.iter().map(|member| member.client_url.clone()).collect()
}

/// Waits until the writers have been promised this much more.
fn let_write(writers: &Writers, more: u64) -> Result<()> {
    let goal = writers.acknowledged() + more;
    wait_for("acknowledged writes", || (writers.acknowledged() >= goal).then_some(()))
}

/// Everything promised is at every member, and all members are equal.
fn verify(cluster: &Cluster, record: &Record) -> Result<()> {
    assert!(record.acknowledged > 0, "the writers got nothing done; {} attempts failed", record.failed);
    block_on(async {
        for endpoint in endpoints(cluster) {
            record.verify(&endpoint).await?;
        }
        verify_equal(&endpoints(cluster)).await
    })
}

/// The value of a metric of this member.
fn metric(member: &Member, name: &str) -> Option<f64> {
    let answer = http_get(&member.client_url, "/metrics").ok()?;
    answer.body.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
}

fn wait_metric(member: &Member, name: &str, what: impl Fn(f64) -> bool) -> Result<f64> {
    wait_for(&format!("{name} of {}", member.name), || metric(member, name).filter(|value| what(*value)))
}

fn status(member: &Member) -> Result<StatusResponse> {
    block_on(async {
        let mut client = MaintenanceClient::new(channel(&member.client_url)?);
        Ok(client.status(StatusRequest {}).await?.into_inner())
    })
}

/// The leader among these members, once all of them know one and it is one of them.
fn wait_leader_among(cluster: &Cluster, members: &[usize]) -> Result<usize> {
    wait_for(&format!("a leader among {members:?}"), || {
        let members = || members.iter().map(|i| (*i, &cluster.members[*i]));
        let mut known = members().map(|(_, member)| metric(member, "etcd_server_has_leader"));
        if !known.all(|has| has == Some(1.0)) {
            return None;
        }
        let mut leads = members().filter(|(_, member)| metric(member, "etcd_server_is_leader") == Some(1.0));
        leads.next().map(|(i, _)| i)
    })
}

/// Puts until it is acknowledged by one of them; the revision.
fn put(endpoints: &[String], key: &str, value: impl Into<Vec<u8>>) -> Result<i64> {
    let value = bytes::Bytes::from(value.into());
    let mut at = 0;
    wait_for(&format!("a put of {key}"), || {
        let request = PutRequest { key: key.to_owned().into(), value: value.clone(), ..Default::default() };
        at += 1;
        let endpoint = &endpoints[at % endpoints.len()];
        let answer =
            block_on(async { Ok::<_, anyhow::Error>(KvClient::new(channel(endpoint)?).put(request).await?) });
        answer.ok()?.into_inner().header.map(|header| header.revision)
    })
}

async fn range(endpoint: &str, request: RangeRequest) -> Result<RangeResponse> {
    let answer = KvClient::new(channel(endpoint)?).range(request).await;
    Ok(answer.with_context(|| format!("read from {endpoint}"))?.into_inner())
}

/// The member's own revision, by a linearizable read.
fn revision(member: &Member) -> Result<i64> {
    let request = RangeRequest { key: "x".into(), ..Default::default() };
    let answer = block_on(range(&member.client_url, request))?;
    Ok(answer.header.context("a header")?.revision)
}

fn compact(member: &Member, revision: i64) -> Result<()> {
    block_on(async {
        let mut client = KvClient::new(channel(&member.client_url)?);
        client.compact(CompactionRequest { revision, physical: false }).await?;
        Ok(())
    })
}
