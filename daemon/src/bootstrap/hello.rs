//! Questions to peers before raft runs: who are you, and what do you make of me? Everybody is asked at once, so that one that hangs costs
//! a round no more than its patience. Nothing is decided here.

use std::{path::Path, time::Duration};

use ::identity::{Boot, EARLIER_MAX, Hello, Home, Life, LogEnd, Question, Unique};
use storage::wal::WalContents;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use tokio::task::JoinSet;
use transport::{PeerClient, PeerClientError};
use types::MemberId;

use super::{
    attend::{Heard, Reply},
    genesis::FirstMember,
    prepare::VERSION,
};
use crate::identity::{Identity, State, host};

/// For one question to one URL: a member that answers at all does so within milliseconds.
pub const PATIENCE: Duration = Duration::from_secs(1);

/// Whom to ask, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// NONE: only the settings name this URL.
    pub member: MemberId,
    pub name: String,
    pub url: String,
}

impl Target {
    /// Every URL of every one of them.
    pub fn of_founders(members: &[FirstMember]) -> Vec<Target> {
        let targets = members.iter().flat_map(|member| {
            let at = |url: &String| Target { member: member.id, name: member.name.clone(), url: url.clone() };
            member.peer_urls.iter().map(at)
        });
        targets.collect()
    }
}

/// What this directory says of itself when it runs as `boot`.
pub fn of(identity: &Identity, boot: Boot, log: LogEnd, data_dir: &Path) -> Hello {
    Hello {
        cluster_id: identity.cluster_id,
        member: identity.member_id,
        name: identity.name.clone(),
        life: life(identity),
        dir: identity.dir_uuid,
        boot,
        earlier: earlier(identity, &boot),
        log,
        home: home(data_dir),
        version: VERSION.to_owned(),
    }
}

/// The running boot of an identity that has been written.
pub fn boot(identity: &Identity) -> Boot {
    Boot { seq: identity.boot_seq, nonce: identity.boot_nonce, previous: identity.prev_boot_nonce }
}

/// What of the directory's starts comes before the predecessor of `boot`, which is the running one or the next.
pub fn earlier(identity: &Identity, boot: &Boot) -> Vec<Unique> {
    let before = identity.boots_before().into_iter();
    before.skip(usize::from(boot.seq == identity.boot_seq)).take(EARLIER_MAX).collect()
}

fn life(identity: &Identity) -> Life {
    match (&identity.state, identity.cluster_uuid) {
        (State::Unborn | State::Registering, _) => Life::Unborn,
        (_, Some(uuid)) => Life::Born(uuid),
        (State::Joining, None) => Life::Joining,
        // Also the directories of versions that knew of no lives, until their cluster names its own.
        (_, None) => Life::Formed,
    }
}

pub fn home(data_dir: &Path) -> Home {
    let here = host::here(data_dir);
    Home {
        host: here.name,
        path: here.path,
        pid: std::process::id(),
        started: OffsetDateTime::now_utc()
            .replace_nanosecond(0)
            .unwrap_or(OffsetDateTime::UNIX_EPOCH)
            .format(&Rfc3339)
            .unwrap_or_default(),
        seat: host::seat(data_dir),
    }
}

pub fn log_end(contents: &WalContents) -> LogEnd {
    let (last_index, last_term) = contents
        .entries
        .last()
        .map_or((contents.snapshot.index, contents.snapshot.term), |entry| (entry.index, entry.term));
    LogEnd {
        last_index: last_index.0,
        last_term: last_term.0,
        term: contents.hard_state.term.0,
        commit: contents.hard_state.commit.0,
    }
}

/// In the order of the targets.
pub async fn round(targets: &[Target], question: &Question) -> Vec<Reply> {
    let client = PeerClient::new(PATIENCE);
    let mut asked = JoinSet::new();
    for (at, target) in targets.iter().enumerate() {
        let (client, target, question) = (client.clone(), target.clone(), question.clone());
        asked.spawn(async move {
            let heard = one(&client, &target.url, &question).await;
            (at, Reply { member: target.member, name: target.name, url: target.url, heard })
        });
    }
    let mut replies = asked.join_all().await;
    replies.sort_by_key(|(at, _)| *at);
    replies.into_iter().map(|(_, reply)| reply).collect()
}

async fn one(client: &PeerClient, url: &str, question: &Question) -> Heard {
    let parsed = match url::Url::parse(url) {
        Ok(parsed) => parsed,
        Err(error) => return Heard::Silent(error.to_string()),
    };
    match client.hello(&parsed, question).await {
        Ok(answer) => Heard::Answer(Box::new(answer)),
        Err(PeerClientError::NotCairn { .. }) => match client.version(&parsed).await {
            Ok(versions) => Heard::Etcd(versions.server),
            Err(_) => Heard::Silent("what answers there is no member".to_owned()),
        },
        Err(PeerClientError::Unreachable { cause, .. }) => Heard::Silent(cause),
        Err(PeerClientError::TimedOut { patience, .. }) => {
            Heard::Silent(format!("no answer within {} s", patience.as_secs()))
        }
        Err(error) => Heard::Silent(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::{Keeper, sample, write_into};

    #[test]
    fn the_running_start_and_the_next_name_all_starts_before_them() {
        let dir = tempfile::tempdir().unwrap();
        let (nonce, mut identity) = (Unique::for_test, sample());
        identity.boot_nonce = nonce(1);
        write_into(dir.path(), &identity).unwrap();
        let mut keeper = Keeper::new(dir.path().to_owned(), None, identity);
        [2, 3, 4].into_iter().for_each(|number| keeper.booted(nonce(number)).unwrap());
        let identity = keeper.identity();
        let running = boot(identity);
        assert_eq!(running.previous, Some(nonce(3)));
        assert_eq!(earlier(identity, &running), [nonce(2), nonce(1)]);
        let next = Boot { seq: running.seq + 1, nonce: nonce(5), previous: Some(nonce(4)) };
        assert_eq!(earlier(identity, &next), [nonce(3), nonce(2), nonce(1)]);
    }
}
