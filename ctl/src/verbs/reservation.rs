//! The reservation behind `can-stop --reserve`: one key with a lease, so that of two hosts that ask at the same time only one is told yes.
//! It is taken before the members are looked at for the last time, and ends by itself with its lease. Not here: whether a member may be
//! stopped (`can_stop`).

use crate::client::{Client, LEASE_GRANT, LEASE_REVOKE, LEASE_TIME_TO_LIVE, RANGE, TXN};
use crate::failure::{Exit, Failure, Result};
use crate::output::tell;
use crate::output::text::one_line;
use crate::settings::Settings;
use api::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use api::etcdserverpb::request_op::Request;
use api::etcdserverpb::response_op::Response;
use api::etcdserverpb::{
    Compare, DeleteRangeRequest, LeaseGrantRequest, LeaseGrantResponse, LeaseRevokeRequest,
    LeaseRevokeResponse, LeaseTimeToLiveRequest, LeaseTimeToLiveResponse, PutRequest, RangeRequest,
    RangeResponse, RequestOp, TxnRequest, TxnResponse,
};
use api::mvccpb::KeyValue;

/// Documented, so that permissions can be given for it and others can watch it.
pub const KEY: &[u8] = b"cairn/can-stop";

/// How often the key may change hands between two looks at it, before that is called a failure.
const TRIES: usize = 5;

/// For whom a reservation is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    pub member: u64,
    pub name: String,
}

impl Holder {
    fn to_json(&self) -> String {
        serde_json::json!({ "member": format!("{:x}", self.member), "name": self.name }).to_string()
    }

    /// What somebody else wrote there is a holder too, one that nobody knows.
    fn read(value: &[u8]) -> Option<Holder> {
        let value: serde_json::Value = serde_json::from_slice(value).ok()?;
        let member = u64::from_str_radix(value["member"].as_str()?, 16).ok()?;
        Some(Holder { member, name: value["name"].as_str().unwrap_or_default().to_owned() })
    }
}

/// A reservation that is there.
pub struct Found {
    pub holder: Option<Holder>,
    lease: i64,
    mod_revision: i64,
}

impl Found {
    fn of(kv: &KeyValue) -> Found {
        Found { holder: Holder::read(&kv.value), lease: kv.lease, mod_revision: kv.mod_revision }
    }

    pub fn is_of(&self, member: u64) -> bool {
        self.holder.as_ref().is_some_and(|holder| holder.member == member)
    }

    /// Who holds it and for how long, for people.
    pub async fn words(&self, settings: &Settings) -> String {
        let who = match &self.holder {
            Some(holder) => format!("member {:x} ({})", holder.member, one_line(&holder.name)),
            None => "somebody whose value cannot be read".to_owned(),
        };
        let key = String::from_utf8_lossy(KEY);
        if self.lease == 0 {
            return format!("{who} holds the key {key}, without an end");
        }
        let request = LeaseTimeToLiveRequest { id: self.lease, keys: false };
        let left = async {
            let mut client = Client::new(settings, false)?;
            client.call::<LeaseTimeToLiveResponse>(&LEASE_TIME_TO_LIVE, &request).await
        };
        match left.await {
            Ok(left) if left.ttl >= 0 => format!("{who} holds the key {key} for another {}s", left.ttl),
            _ => format!("{who} holds the key {key}"),
        }
    }
}

/// A reservation that is ours.
pub struct Held {
    lease: i64,
    /// In seconds, as the cluster granted it.
    pub ttl: i64,
}

fn if_at(mod_revision: i64) -> Compare {
    Compare {
        result: CompareResult::Equal as i32,
        target: CompareTarget::Mod as i32,
        key: KEY.into(),
        range_end: Default::default(),
        target_union: Some(TargetUnion::ModRevision(mod_revision)),
    }
}

fn op(request: Request) -> RequestOp {
    RequestOp { request: Some(request) }
}

fn read() -> RangeRequest {
    RangeRequest { key: KEY.into(), ..Default::default() }
}

/// Who holds it now.
pub async fn look(settings: &Settings) -> Result<Option<Found>> {
    let answer: RangeResponse = Client::new(settings, false)?.call(&RANGE, &read()).await?;
    Ok(answer.kvs.first().map(Found::of))
}

/// Takes it, or takes it again when it is `holder`'s already. The inner error is the reservation of somebody else.
pub async fn take(settings: &Settings, holder: &Holder, ttl: i64) -> Result<Result<Held, Found>> {
    let mut client = Client::new(settings, false)?;
    let granted: LeaseGrantResponse = client.call(&LEASE_GRANT, &LeaseGrantRequest { ttl, id: 0 }).await?;
    let held = Held { lease: granted.id, ttl: granted.ttl };
    match put(&mut client, holder, &held).await {
        Ok(Ok(earlier)) => {
            if let Some(lease) = earlier {
                // The key has left that lease; what goes wrong here ends by itself.
                let _ = revoke(&mut client, lease).await;
            }
            Ok(Ok(held))
        }
        Ok(Err(found)) => {
            let _ = revoke(&mut client, held.lease).await;
            Ok(Err(found))
        }
        Err(failure) => {
            give_back(settings, held).await;
            Err(failure)
        }
    }
}

/// The lease under which the key was before.
async fn put(client: &mut Client, holder: &Holder, held: &Held) -> Result<Result<Option<i64>, Found>> {
    let (mut at, mut earlier) = (0, None);
    for _ in 0..TRIES {
        let value = holder.to_json().into();
        let put = PutRequest { key: KEY.into(), value, lease: held.lease, ..Default::default() };
        let request = TxnRequest {
            compare: vec![if_at(at)],
            success: vec![op(Request::RequestPut(put))],
            failure: vec![op(Request::RequestRange(read()))],
        };
        let answer: TxnResponse = client.call(&TXN, &request).await?;
        if answer.succeeded {
            return Ok(Ok(earlier));
        }
        let found = answer.responses.into_iter().find_map(|response| match response.response {
            Some(Response::ResponseRange(range)) => range.kvs.first().map(Found::of),
            _ => None,
        });
        match found {
            Some(found) if !found.is_of(holder.member) => return Ok(Err(found)),
            Some(ours) => (at, earlier) = (ours.mod_revision, Some(ours.lease).filter(|lease| *lease != 0)),
            // It ended in this moment.
            None => (at, earlier) = (0, None),
        }
    }
    Err(Failure::new(Exit::Error, "the reservation changes hands all the time; try again"))
}

async fn revoke(client: &mut Client, id: i64) -> Result<()> {
    client.call::<LeaseRevokeResponse>(&LEASE_REVOKE, &LeaseRevokeRequest { id }).await.map(drop)
}

/// Ends a reservation that was taken a moment ago.
pub async fn give_back(settings: &Settings, held: Held) {
    let revoked = async { revoke(&mut Client::new(settings, false)?, held.lease).await };
    if let Err(failure) = revoked.await {
        tell(format_args!(
            "can-stop: the reservation ends by itself in {}s, since it could not be given back: {}",
            held.ttl, failure.headline
        ));
    }
}

/// Ends the reservation of a member, if there is one. Somebody else's stays.
pub async fn release(settings: &Settings, member: u64) -> Result<bool> {
    let Some(found) = look(settings).await?.filter(|found| found.is_of(member)) else { return Ok(false) };
    let mut client = Client::new(settings, false)?;
    let delete = DeleteRangeRequest { key: KEY.into(), ..Default::default() };
    let request = TxnRequest {
        compare: vec![if_at(found.mod_revision)],
        success: vec![op(Request::RequestDeleteRange(delete))],
        failure: Vec::new(),
    };
    let answer: TxnResponse = client.call(&TXN, &request).await?;
    if answer.succeeded && found.lease != 0 {
        // An empty lease ends by itself.
        let _ = revoke(&mut client, found.lease).await;
    }
    Ok(answer.succeeded)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_holder_is_read_back_and_anything_else_is_nobody_we_know() {
        let holder = Holder { member: 0xfd42, name: "db\"1".into() };
        assert_eq!(Holder::read(holder.to_json().as_bytes()), Some(holder));
        for strange in [&b""[..], b"{}", b"db1", b"{\"member\":7}", b"{\"member\":\"x\"}", b"\xff"] {
            assert_eq!(Holder::read(strange), None, "{strange:?}");
        }
    }
}
