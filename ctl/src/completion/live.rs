//! What the cluster offers for a word, within a second and without a word of complaint.

use super::grammar::LiveKind;
use super::{Flags, OFFERED_MAX, Offer};
use crate::client::{Client, LEASE_LEASES, MEMBER_LIST, RANGE};
use crate::failure::Result;
use crate::output::lease_id;
use crate::settings::{self, Settings, Variables, contexts};
use crate::verbs::kv::prefix_end;
use api::etcdserverpb::{
    LeaseLeasesRequest, LeaseLeasesResponse, MemberListRequest, MemberListResponse, RangeRequest,
    RangeResponse,
};
use bytes::Bytes;
use std::time::Duration;
use tokio::time::{Instant, timeout_at};

/// All of it, dialling included: longer nobody waits for a key press.
const PATIENCE: Duration = Duration::from_secs(1);
/// Keys are in levels for most who use them.
const LEVEL: u8 = b'/';

pub fn ask(kind: LiveKind, typed: &str, given: &Flags, variables: &Variables) -> Vec<Offer> {
    if kind == LiveKind::Contexts {
        let file = contexts::File::read(contexts::path(variables).as_deref()).unwrap_or_default();
        return file.names().map(|name| Offer::new(name, "")).collect();
    }
    let Ok(settings) = settings::resolve(given, variables) else { return Vec::new() };
    let settings = Settings { dial_timeout: PATIENCE, command_timeout: PATIENCE, debug: false, ..settings };
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else {
        return Vec::new();
    };
    let mut offers = Vec::new();
    runtime.block_on(async {
        let until = Instant::now() + PATIENCE;
        // What came in time is offered, also when there would have been more.
        let _ = timeout_at(until, fill(kind, typed, &settings, &mut offers)).await;
    });
    // A name that is being looked up would be waited for otherwise.
    runtime.shutdown_background();
    offers
}

async fn fill(kind: LiveKind, typed: &str, settings: &Settings, offers: &mut Vec<Offer>) -> Result<()> {
    let mut client = Client::new(settings, false)?;
    match kind {
        LiveKind::Keys => return keys(&mut client, typed, offers).await,
        LiveKind::Leases => {
            let answer: LeaseLeasesResponse = client.call(&LEASE_LEASES, &LeaseLeasesRequest {}).await?;
            offers.extend(
                answer.leases.iter().take(OFFERED_MAX).map(|lease| Offer::new(lease_id(lease.id), "")),
            );
        }
        LiveKind::MemberIds | LiveKind::Members | LiveKind::Endpoints => {
            // Also where there is no quorum.
            let request = MemberListRequest { linearizable: false };
            let answer: MemberListResponse = client.call(&MEMBER_LIST, &request).await?;
            for member in answer.members {
                let id = format!("{:x}", member.id);
                if kind == LiveKind::Endpoints {
                    offers.extend(
                        member.client_ur_ls.iter().map(|url| Offer::new(url.as_str(), member.name.as_str())),
                    );
                    continue;
                }
                if kind == LiveKind::Members && !member.name.is_empty() {
                    offers.push(Offer::new(member.name.as_str(), id.as_str()));
                }
                offers.push(Offer::new(id, member.name));
            }
        }
        LiveKind::Contexts => {}
    }
    Ok(())
}

/// The keys that begin so; where they are many, level by level as a shell shows directories.
async fn keys(client: &mut Client, typed: &str, offers: &mut Vec<Offer>) -> Result<()> {
    let all = page(client, typed.as_bytes(), typed.as_bytes(), OFFERED_MAX).await?;
    if !all.more {
        offers.extend(all.kvs.iter().filter_map(|kv| offer(&kv.key)));
        return Ok(());
    }
    let mut from = Bytes::copy_from_slice(typed.as_bytes());
    for _ in 0..OFFERED_MAX {
        let next = page(client, &from, typed.as_bytes(), 1).await?;
        let Some(kv) = next.kvs.first() else { return Ok(()) };
        let level = level_of(&kv.key, typed.len());
        offers.extend(offer(level));
        from = if level.len() == kv.key.len() && level.last() != Some(&LEVEL) {
            [level, b"\0"].concat().into()
        } else {
            prefix_end(level)
        };
        // After the last key there can be there is nothing to ask for.
        if from.as_ref() == b"\0" {
            return Ok(());
        }
    }
    Ok(())
}

async fn page(client: &mut Client, from: &[u8], prefix: &[u8], limit: usize) -> Result<RangeResponse> {
    let from = if from.is_empty() { Bytes::from_static(b"\0") } else { Bytes::copy_from_slice(from) };
    let request = RangeRequest {
        key: from,
        range_end: prefix_end(prefix),
        limit: limit as i64,
        keys_only: true,
        // From the member's own state: fast, and also without a quorum.
        serializable: true,
        ..Default::default()
    };
    client.call(&RANGE, &request).await
}

/// The key up to and with the first slash after what is typed.
fn level_of(key: &[u8], typed: usize) -> &[u8] {
    let rest = key.get(typed..).unwrap_or_default();
    rest.iter().position(|byte| *byte == LEVEL).map_or(key, |at| &key[..=typed + at])
}

/// Keys that a person could have typed.
fn offer(key: &[u8]) -> Option<Offer> {
    let text = std::str::from_utf8(key).ok()?;
    (!text.is_empty() && !text.chars().any(char::is_control)).then(|| Offer::new(text, ""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_end_with_the_next_slash() {
        for (key, typed, level) in [
            ("/a/b/c", "", "/"),
            ("/a/b/c", "/", "/a/"),
            ("/a/b/c", "/a", "/a/"),
            ("/a/b", "/a/", "/a/b"),
            ("k", "", "k"),
        ] {
            assert_eq!(level_of(key.as_bytes(), typed.len()), level.as_bytes(), "{key} {typed}");
        }
    }

    #[test]
    fn keys_that_nobody_can_type_are_not_offered() {
        assert_eq!(offer(b"a\nb"), None);
        assert_eq!(offer(b"\xff"), None);
        assert_eq!(offer("größe 1".as_bytes()), Some(Offer::new("größe 1", "")));
    }

    #[test]
    fn an_endpoint_where_nobody_is_offers_nothing() {
        let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let given: Flags = [("endpoints", vec![address.to_string()])].into();
        assert_eq!(ask(LiveKind::Keys, "", &given, &Variables::new()), []);
        let given: Flags = [("endpoints", vec!["ftp://x".to_owned()])].into();
        assert_eq!(ask(LiveKind::Members, "", &given, &Variables::new()), []);
    }
}
