//! What a running member learns of itself from its cluster, and what of it the identity file must remember: the life it was born into, the
//! members as the log has them, its own new name and URLs, and that it has been found out.

use std::time::Duration;

use ::identity::{Answer, Boot, Hello, Known, Life, LogEnd, Named, Standing, Unique, Verdict};
use node::{Expelled, Handle};
use state_machine::membership::Member as Listed;
use tracing::{info, warn};
use types::MemberId;

use crate::{
    bootstrap::{
        hello, prepare,
        verdict::{self, Said},
    },
    identity::{Identity, Keeper, KnownMember},
    refusal::{Id, Refusal},
};

/// Between two tries to move this member to the URLs that its operator means it to have.
const MOVE_AGAIN: Duration = Duration::from_secs(1);

/// The members as this member has applied them, with the directories that they were last admitted with.
pub fn members(handle: &Handle) -> Vec<KnownMember> {
    let known = |member: Listed| {
        let mut peer_urls = member.peer_urls;
        peer_urls.sort();
        let dir_uuid = handle.known(member.id).record.map(|record| record.dir);
        KnownMember {
            id: member.id,
            name: member.name,
            peer_urls,
            client_urls: member.client_urls,
            dir_uuid,
            is_learner: member.is_learner,
        }
    };
    let mut members: Vec<KnownMember> = handle.members().into_iter().map(known).collect();
    members.sort_by_key(|member| member.id);
    members
}

/// Writes the members down, where that changes anything. Those that are not recorded yet keep the directory they attended with.
pub fn mirror(keeper: &mut Keeper, handle: &Handle) -> std::io::Result<()> {
    let mut now = members(handle);
    // A member that joins has applied nothing yet: the list that it was given is better than none.
    if !now.iter().any(|member| member.id == keeper.identity().member_id) {
        return Ok(());
    }
    for member in now.iter_mut().filter(|member| member.dir_uuid.is_none()) {
        let before = keeper.identity().members.iter().find(|before| before.id == member.id);
        member.dir_uuid = before.and_then(|before| before.dir_uuid);
    }
    keeper.members_are(now)
}

/// Carries the operator's new URLs into the cluster. Ends when the cluster has them.
pub async fn move_to(handle: Handle, id: MemberId, peer_urls: Vec<String>) {
    loop {
        let listed = handle.members().into_iter().find(|member| member.id == id);
        let mut now = listed.map(|member| member.peer_urls).unwrap_or_default();
        now.sort();
        if now == peer_urls {
            info!(?peer_urls, "the cluster knows this member's new peer URLs");
            return;
        }
        let request = api::etcdserverpb::MemberUpdateRequest { id: id.0, peer_ur_ls: peer_urls.clone() };
        if let Err(error) = handle.member_update(request).await {
            warn!(%error, ?peer_urls, "this member's new peer URLs could not be proposed: trying again");
        }
        tokio::time::sleep(MOVE_AGAIN).await;
    }
}

/// The refusal that a running member ends with, and notes when its history is lost.
pub fn expelled(keeper: &mut Keeper, handle: &Handle, expelled: &Expelled, dir: &std::path::Path) -> Refusal {
    let identity = keeper.identity().clone();
    let own = hello::of(&identity, hello::boot(&identity), log_end(handle), dir);
    let me = prepare::me(&identity, &own);
    let speaker = expelled
        .voices
        .iter()
        .find(|heard| heard.verdict == expelled.verdict)
        .or_else(|| expelled.voices.iter().find(|heard| !heard.verdict.is_welcome()));
    let speaker = speaker.map_or(MemberId::NONE, |heard| heard.witness.member);
    let answer = answer_of(handle, &identity, speaker, expelled);
    let url = answer.members.iter().find(|named| named.id == speaker);
    let url = url.and_then(|named| named.peer_urls.first().cloned()).unwrap_or_default();
    let said = Said { url: &url, answer: &answer };
    let refusal = verdict::refusal(&me, &expelled.verdict, &said)
        .unwrap_or_else(|| Refusal::new(Id::InternalError, "a member that is welcome was told to go"));
    if expelled.verdict.means_lost_history() {
        let evidence = refusal.text().lines().nth(2).unwrap_or_default().replacen("evidence: ", "", 1);
        if let Err(error) = keeper.quarantined(refusal.cause().to_owned(), evidence) {
            super::fatal(node::Fatal::Store(format!("write the identity file: {error}")));
        }
    }
    refusal
}

fn log_end(handle: &Handle) -> LogEnd {
    let status = handle.node_status();
    LogEnd {
        last_index: status.applied.0,
        last_term: status.term.0,
        term: status.term.0,
        commit: status.applied.0,
    }
}

/// What the speaker would answer to a question, as far as its refusal on a connection has told.
fn answer_of(handle: &Handle, identity: &Identity, speaker: MemberId, expelled: &Expelled) -> Answer {
    let members: Vec<Named> = handle
        .members()
        .into_iter()
        .map(|member| Named {
            id: member.id,
            name: member.name,
            peer_urls: member.peer_urls,
            client_urls: member.client_urls,
            is_learner: member.is_learner,
        })
        .collect();
    let name = members.iter().find(|named| named.id == speaker).map(|named| named.name.clone());
    let witness = expelled.voices.iter().map(|heard| heard.witness).find(|witness| witness.member == speaker);
    let none = Unique::from_bytes([0; 16]);
    Answer {
        hello: Hello {
            cluster_id: identity.cluster_id,
            member: speaker,
            name: name.unwrap_or_default(),
            life: identity.cluster_uuid.map_or(Life::Formed, Life::Born),
            dir: none,
            boot: Boot { seq: 0, nonce: none, previous: None },
            earlier: Vec::new(),
            log: LogEnd::default(),
            home: Default::default(),
            version: String::new(),
        },
        known: Known {
            cluster_uuid: match &expelled.verdict {
                Verdict::OtherLife { ours, .. } => *ours,
                _ => identity.cluster_uuid,
            },
            parent_uuid: None,
            restored: None,
            is_founding: false,
            standing: Standing::Stranger,
            record: None,
            attendee: None,
            watermark: None,
            session: None,
            witness: witness.unwrap_or(::identity::Witness {
                member: speaker,
                leads: false,
                term: 0,
                commit: 0,
            }),
        },
        verdict: expelled.verdict.clone(),
        config: None,
        members,
    }
}
