//! Looks after what stands against this member: asks all peers what they know of it, again and again until nothing does.

use std::{
    sync::{Arc, Weak, atomic::Ordering},
    time::{Duration, Instant},
};

use identity::{Answer, Question};
use state_machine::membership::Member;
use tokio::{task::JoinSet, time::timeout};
use transport::{PeerClient, PeerClientError};
use types::MemberId;
use url::Url;

use super::{answered, conclude, hello, judge_again, jury::Heard, oneself};
use crate::{Remote, peers::parse_urls, shared::Shared};

/// How often sessions are judged again and voices grow old.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

/// Between two rounds of questions while this member is silent or not yet part of its cluster.
const ASK_INTERVAL: Duration = Duration::from_secs(1);

/// While it serves all the same: some peer says what the leader does not.
const ASK_INTERVAL_SERVING: Duration = Duration::from_secs(4);

/// Of somebody that is on no list, so many addresses are tried.
const URLS_MAX: usize = 4;

/// For one answer. A member that answers at all does so in milliseconds.
const PATIENCE: Duration = Duration::from_secs(1);

pub(crate) async fn watch(shared: Weak<Shared>) {
    let client = PeerClient::new(PATIENCE);
    let Some(look) = shared.upgrade().map(|shared| shared.sentinel.look.clone()) else { return };
    let mut asked: Option<Instant> = None;
    loop {
        let Some(shared) = shared.upgrade().filter(|shared| !shared.stopping.load(Ordering::Acquire)) else {
            return;
        };
        judge_again(&shared);
        let is_doubted = shared.sentinel.doubted.load(Ordering::Acquire);
        let must_ask = conclude(&shared) || is_doubted;
        let pause = match shared.sentinel.is_confirmed() && !shared.sentinel.is_quarantined() && !is_doubted {
            true => ASK_INTERVAL_SERVING,
            false => ASK_INTERVAL,
        };
        if must_ask && asked.is_none_or(|last| last.elapsed() >= pause) {
            asked = Some(Instant::now());
            shared.sentinel.doubted.store(false, Ordering::Release);
            ask(&shared, &client).await;
            conclude(&shared);
        }
        drop(shared);
        let _ = timeout(LOOK_INTERVAL, look.notified()).await;
    }
}

/// All peers at once.
async fn ask(shared: &Arc<Shared>, client: &PeerClient) {
    let me = shared.config.member;
    let question = Arc::new(Question { hello: hello(shared), config: None });
    let mut asking = JoinSet::new();
    for (id, urls) in whom(me, shared.reader().members(), &shared.sentinel.elders) {
        let (client, question, urls) = (client.clone(), question.clone(), parse_urls(&urls));
        asking.spawn(async move { Some((id, ask_one(&client, &urls, &question).await?)) });
    }
    // They are asked whether they know this directory, and have no other say.
    let held_off = std::mem::take(&mut *shared.sentinel.held_off.lock());
    let mut asking_held_off = JoinSet::new();
    for urls in held_off.into_values() {
        let (client, question) = (client.clone(), question.clone());
        asking_held_off
            .spawn(async move { ask_one(&client, &urls[..urls.len().min(URLS_MAX)], &question).await });
    }
    while let Some(answer) = asking_held_off.join_next().await {
        if let Ok(Some(answer)) = answer {
            shared.records.answered(&answer);
        }
    }
    while let Some(answer) = asking.join_next().await {
        let Ok(Some((peer, answer))) = answer else { continue };
        shared.records.answered(&answer);
        // Somebody else at the peer's address speaks for nobody.
        if answer.hello.member != peer || answer.known.witness.member != peer {
            continue;
        }
        answered(shared, &answer);
        let heard = Heard { witness: answer.known.witness, verdict: answer.verdict };
        let life = answer.known.cluster_uuid;
        shared.sentinel.jury.lock().hear(heard, life, &oneself(shared), Instant::now());
    }
}

/// Who has a say. A joiner has heard of no member before its first entries, and may have been removed by then: what it was told once, when
/// a connection was refused, is too old to be acted on, so those who gave it its place are asked.
fn whom(me: MemberId, members: Vec<Member>, elders: &[Remote]) -> Vec<(MemberId, Vec<String>)> {
    let known = members.into_iter().map(|member| (member.id, member.peer_urls));
    let mut all: Vec<_> = known.filter(|(id, _)| *id != me).collect();
    if all.is_empty() {
        let elders = elders.iter().filter(|elder| elder.id != me);
        all.extend(elders.map(|elder| (elder.id, elder.peer_urls.clone())));
    }
    all
}

async fn ask_one(client: &PeerClient, urls: &[Url], question: &Question) -> Option<Answer> {
    for url in urls {
        match client.hello(url, question).await {
            Ok(answer) => return Some(answer),
            // A member of etcd knows nothing of us.
            Err(PeerClientError::NotCairn { .. }) => return None,
            Err(_) => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_joiner_without_a_state_asks_those_who_gave_it_its_place() {
        let elder = |id| Remote { id: MemberId(id), peer_urls: vec![format!("http://h{id}:1")] };
        let member =
            |id| Member { id: MemberId(id), peer_urls: vec![format!("http://m{id}:1")], ..Member::default() };
        let elders = [elder(1), elder(2), elder(9)];
        let asked = |members| whom(MemberId(9), members, &elders);
        let of = |id, url: &str| (MemberId(id), vec![url.to_owned()]);
        assert_eq!(asked(vec![]), [of(1, "http://h1:1"), of(2, "http://h2:1")]);
        assert_eq!(asked(vec![member(9), member(3)]), [of(3, "http://m3:1")], "its log knows better");
    }
}
