//! Who may talk to this member, and what the others say of it.
//!
//! Each peer that connects is judged by what is known of it; one that is not welcome is refused with a reason, and nothing more: this
//! member goes on. What peers say against this member is collected by the [`jury`]; a word that its history is short silences it at once
//! (the raft loop then drops everything in and out), and the others are asked until the leader or a majority has decided.
//!
//! Not here: what is known (records), who is connected (transport), what a member that is expelled does (daemon).

mod ask;
mod jury;
mod refusals;

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Instant,
};

use api::error::EtcdError;
use identity::{
    Answer, Hello, Known, Life, LogEnd, Named, Question, Record, Session, Unique, Verdict, Watermark,
    judge::judge,
};
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tracing::{error, info, warn};
use transport::{Met, Refused, Via};
use types::{LogIndex, MemberId};
use url::Url;

use crate::{Remote, handle::Handle, members, records, shared::Shared};

pub(crate) use ask::watch;
pub use jury::{Expelled, Heard};
use jury::{Jury, Oneself};
pub(crate) use refusals::Refusals;

/// Of those who are not heard yet, so many are asked. Those who lead or campaign speak most, and there are few of them.
const HELD_OFF_MAX: usize = 8;

pub(crate) struct Sentinel {
    jury: Mutex<Jury>,
    /// This member neither hears nor says anything of raft's. Read by the raft loop for each message.
    quarantined: AtomicBool,
    /// This member was taken by a leader in this start, or needs none.
    confirmed: watch::Sender<bool>,
    /// The leader that is known, and whom it could be asked for a stream since.
    taken_by: Mutex<Vec<MemberId>>,
    expelled: watch::Sender<Option<Expelled>>,
    /// Who was not heard since everybody was asked last, and where it can be asked.
    held_off: Mutex<BTreeMap<MemberId, Vec<Url>>>,
    /// The most that this start has had on disk. What raft says falls back to the old commit while a snapshot is being installed, and a
    /// hello of that moment must not look like a log that was lost.
    longest: AtomicU64,
    /// The voters as of an index that this member has not applied, told by somebody of its life who takes it.
    newer: Mutex<Option<(u64, Vec<MemberId>)>>,
    /// The leader has something else where this member has committed entries. Never taken back in one start: whatever this member would
    /// say from its state, a majority says otherwise.
    contradicted: AtomicBool,
    /// The guard in front of raft has seen something that means lost history, here or there.
    doubted: AtomicBool,
    look: Arc<Notify>,
    pub(crate) refusals: Refusals,
    /// Whom a joiner believes until its log names the voters.
    elders: Vec<Remote>,
}

impl Sentinel {
    pub(crate) fn new(elders: Vec<Remote>) -> Sentinel {
        Sentinel {
            jury: Mutex::default(),
            quarantined: AtomicBool::new(false),
            confirmed: watch::Sender::new(false),
            taken_by: Mutex::default(),
            expelled: watch::Sender::new(None),
            held_off: Mutex::default(),
            longest: AtomicU64::new(0),
            newer: Mutex::new(None),
            contradicted: AtomicBool::new(false),
            doubted: AtomicBool::new(false),
            look: Arc::default(),
            refusals: Refusals::default(),
            elders,
        }
    }

    pub(crate) fn is_quarantined(&self) -> bool {
        self.quarantined.load(Ordering::Acquire) || self.is_contradicted()
    }

    pub(crate) fn is_contradicted(&self) -> bool {
        self.contradicted.load(Ordering::Acquire)
    }

    /// By the raft loop: the leader that this member follows contradicts what is committed here. One of the two sides has lost what it
    /// acknowledged, and nobody here can know which. This member's state is not that of the majority, so it serves nobody, votes for nobody
    /// and changes nothing on its disk: that may be the only copy.
    pub(crate) fn contradicted(&self, leader: MemberId, evidence: &str) {
        if !self.contradicted.swap(true, Ordering::AcqRel) {
            error!(
                peer = %leader,
                "the leader contradicts what is committed here: {evidence}. One side has lost acknowledged writes. This member serves nobody \
                 until it is started again. Remedy: 1. stop this member and keep a copy of its directory: it may hold writes that the others have \
                 lost; 2. find out which member came back with an older disk; 3. replace the one that is wrong: cairnctl member replace. Do not \
                 delete this directory before that is known"
            );
        }
    }

    pub(crate) fn is_confirmed(&self) -> bool {
        *self.confirmed.borrow()
    }

    /// Waits until clients may be served.
    pub(crate) async fn until_confirmed(&self) {
        // The sender lives as long as this does.
        let _ = self.confirmed.subscribe().wait_for(|is_confirmed| *is_confirmed).await;
    }

    /// By the raft loop, at every turn.
    pub(crate) fn has_on_disk(&self, last: LogIndex) {
        self.longest.fetch_max(last.0, Ordering::AcqRel);
    }

    /// By the raft loop: a report of the guard that means lost history.
    pub(crate) fn doubt(&self) {
        if !self.doubted.swap(true, Ordering::AcqRel) {
            self.look.notify_one();
        }
    }

    /// By the raft loop, when it learns of a leader. Messages alone prove nothing: somebody may send them who would not take ours.
    pub(crate) fn leader_is(&self, shared: &Shared, leader: MemberId) {
        let me = shared.config.member;
        if !leader.is_none() && (leader == me || self.taken_by.lock().contains(&leader)) {
            self.confirm();
        }
    }

    pub(crate) fn confirm(&self) {
        if self.is_quarantined() || self.is_confirmed() {
            return;
        }
        if self.confirmed.send_if_modified(|is_confirmed| !std::mem::replace(is_confirmed, true)) {
            info!("this member is part of its cluster: clients are served");
        }
    }
}

impl Handle {
    /// Tells when this member must not go on: whoever runs it ends it, and remembers why where history is lost. It is silent by then.
    pub fn expelled(&self) -> watch::Receiver<Option<Expelled>> {
        self.shared.sentinel.expelled.subscribe()
    }

    /// Whether this member has been part of its cluster in this start. Nobody is served before.
    pub fn is_confirmed(&self) -> bool {
        self.shared.sentinel.is_confirmed()
    }

    /// What was said of this member, while it is silent because of it.
    pub fn quarantined(&self) -> Option<Verdict> {
        self.shared.sentinel.jury.lock().quarantine().cloned()
    }

    /// Reads that ask nobody are refused until somebody has told this member that it still belongs, and while somebody doubts it.
    pub(crate) fn confirmed_only(&self) -> Result<(), EtcdError> {
        let may_serve = self.is_confirmed() && !self.shared.sentinel.is_quarantined();
        if may_serve { Ok(()) } else { Err(EtcdError::NoLeader) }
    }
}

/// What this member says of itself now.
pub(crate) fn hello(shared: &Shared) -> Hello {
    let config = &shared.config;
    let Record { dir, boot, home, version } = shared.records.own.record.clone();
    Hello {
        cluster_id: config.cluster,
        member: config.member,
        name: config.name.clone(),
        life: match life(shared) {
            Some(life) => Life::Born(life),
            None if shared.is_joining() => Life::Joining,
            None => Life::Formed,
        },
        dir,
        boot,
        earlier: shared.records.own.earlier.clone(),
        log: log_end(shared),
        home,
        version,
    }
}

fn life(shared: &Shared) -> Option<Unique> {
    // What a member that joins has applied so far may be of a life that has ended since.
    let applied = || if shared.is_joining() { None } else { shared.reader().cluster_uuid() };
    shared.records.own.cluster_uuid.or_else(applied)
}

fn log_end(shared: &Shared) -> LogEnd {
    let status = shared.raft_status.lock();
    LogEnd {
        last_index: status.persisted.0.max(shared.sentinel.longest.load(Ordering::Acquire)),
        // For people: where nothing is under way it is the last entry's.
        last_term: shared.applied_term.load(Ordering::Acquire),
        term: status.term.0,
        commit: status.committed.0,
    }
}

fn oneself(shared: &Shared) -> Oneself {
    let mut voters = shared.conf_state.lock().voters.clone();
    if voters.is_empty() {
        voters.extend(shared.sentinel.elders.iter().map(|elder| elder.id));
    }
    let log = log_end(shared);
    let newer = shared.sentinel.newer.lock().clone().filter(|(index, _)| *index > log.commit);
    Oneself {
        me: shared.config.member,
        voters,
        newer: newer.map(|(_, voters)| voters).unwrap_or_default(),
        life: life(shared),
        log,
        leader: MemberId(shared.leader.load(Ordering::Acquire)),
        is_confirmed: shared.sentinel.is_confirmed(),
    }
}

/// The transport: somebody is at the other end of a connection.
pub(crate) fn meet(shared: &Shared, met: &Met<'_>) -> Result<(), Box<Refused>> {
    let mut known = known(shared, met.peer, met.session.clone());
    // It answers, so it takes this member.
    known.is_founding &= met.via != Via::Answer;
    known.is_founding &= !met.hello.is_some_and(|hello| shared.records.is_vouched(hello.life));
    if let Some(hello) = met.hello {
        let nonce = Some(hello.boot.nonce);
        let is_admitted = known.record.as_ref().map(|record| record.boot.nonce) == nonce;
        let is_heard = known.session.as_ref().map(|session| session.boot.nonce) == nonce;
        // What a leader sees of a start that runs moves with every entry, and a hello is older than that. What is written down moves every
        // few seconds and counts for everybody: a machine that was put back to an earlier moment runs the same start with a shorter log.
        if !is_admitted && !is_heard {
            add_what_is_seen(shared, &mut known, met.peer);
        }
    }
    let verdict = match (met.hello, &known.record) {
        (Some(hello), _) => judge(hello, &known),
        // A member of etcd, or one that pretends to be.
        (None, None) => {
            shared.sentinel.refusals.unprotected(met.peer);
            return Ok(());
        }
        (None, Some(record)) => {
            Verdict::LostData { dir: record.dir, boot_seq: record.boot.seq, home: record.home.clone() }
        }
    };
    // Messages of who is not on the list (yet) are raft's own business: a member that lags must be able to hear a leader that it does not
    // know. And who has no list knows nobody.
    let is_excused =
        verdict == Verdict::Stranger && (met.via == Via::Message || shared.reader().members().is_empty());
    let nonce = met.hello.map(|hello| hello.boot.nonce);
    let is_heard = met.session.as_ref().map(|session| session.boot.nonce) == nonce;
    if let Some(hello) = met.hello.filter(|_| is_heard && verdict.is_welcome()) {
        shared.records.admitted(met.peer, Record::from(hello));
    }
    if verdict.is_welcome() || is_excused {
        if let Some(hello) = met.hello {
            shared.records.said(hello);
        }
        return Ok(());
    }
    // It may have been welcome as long as this member had not applied what speaks against it.
    if let Some(nonce) = nonce {
        shared.records.refused(met.peer, nonce);
    }
    shared.sentinel.refusals.refused(&shared.reader(), met.peer, &verdict);
    Err(Box::new(Refused { verdict, witness: known.witness }))
}

/// The transport: whether what a peer brings, which is not refused, may be taken now. What is not is brought again. `hello` is none from a
/// member of etcd, which is taken as etcd takes it.
pub(crate) fn may_speak(shared: &Shared, peer: MemberId, hello: Option<&Hello>, urls: &[Url]) -> bool {
    let Some(hello) = hello else { return true };
    let desk = &shared.records;
    if desk.own.config.is_none() || shared.is_joining() || life(shared).is_some() {
        return true;
    }
    if !desk.must_wait(&records::known(shared, peer), hello.life) || records::is_mixed_founding(shared) {
        return true;
    }
    // Those who attended may have been told the life since. Or it knows this directory itself.
    let mut held_off = shared.sentinel.held_off.lock();
    if held_off.len() < HELD_OFF_MAX || held_off.contains_key(&peer) {
        held_off.insert(peer, urls.to_vec());
    }
    drop(held_off);
    shared.sentinel.doubt();
    shared.sentinel.refusals.held_off(&shared.reader(), peer);
    false
}

/// The transport: a welcome start of a peer is heard.
pub(crate) fn began(shared: &Shared, peer: MemberId, hello: &Hello) {
    info!(peer = %peer, boot = hello.boot.seq, host = hello.home.host, path = hello.home.path, "a start of a peer is heard");
    shared.records.welcomed(peer, hello);
}

/// The transport: a peer has answered our call.
pub(crate) fn welcomed(shared: &Shared, peer: MemberId) {
    let sentinel = &shared.sentinel;
    sentinel.jury.lock().welcomed(peer);
    {
        let mut taken_by = sentinel.taken_by.lock();
        if !taken_by.contains(&peer) {
            taken_by.push(peer);
        }
    }
    if shared.leader.load(Ordering::Acquire) == peer.0 {
        sentinel.confirm();
    }
}

/// The transport: a peer refuses this member.
pub(crate) fn refused(shared: &Shared, peer: MemberId, refused: &Refused, theirs: Option<&Hello>) {
    let sentinel = &shared.sentinel;
    sentinel.refusals.refused_by(&shared.reader(), peer, &refused.verdict);
    sentinel.taken_by.lock().retain(|known| *known != peer);
    // Somebody else at the peer's address speaks for nobody.
    if refused.witness.member != peer {
        return;
    }
    let life = theirs.and_then(|hello| match hello.life {
        Life::Born(life) => Some(life),
        _ => None,
    });
    let heard = Heard { witness: refused.witness, verdict: refused.verdict.clone() };
    sentinel.jury.lock().hear(heard, life, &oneself(shared), Instant::now());
    conclude(shared);
    sentinel.look.notify_one();
}

/// What stands against this member now has its consequences. Silence begins here and not on the next turn of some thread.
pub(crate) fn conclude(shared: &Shared) -> bool {
    let sentinel = &shared.sentinel;
    let own = oneself(shared);
    let mut jury = sentinel.jury.lock();
    let decision = jury.decide(&own, Instant::now());
    // A removed member goes on voting until the others know: who does not may need it.
    let is_expelled = |expelled: &Expelled| !matches!(expelled.verdict, Verdict::Removed { .. });
    let is_over = decision.expel.as_ref().is_some_and(is_expelled) || sentinel.expelled.borrow().is_some();
    let silent = decision.quarantine.is_some() || is_over;
    if sentinel.quarantined.swap(silent, Ordering::AcqRel) != silent {
        match &decision.quarantine {
            Some(verdict) => warn!(
                verdict = verdict.name(),
                "a peer says: {}. This member votes and acknowledges nothing until that is cleared up",
                refusals::sentence(verdict)
            ),
            None if silent => {}
            None => warn!("somebody who must know takes this member's side: it goes on"),
        }
    }
    if let Some(Expelled { verdict: Verdict::Removed { index, term, asked_through }, .. }) = &decision.expel {
        drop(jury);
        members::told_of_removal(shared, *index, *term, asked_through.as_deref());
        return decision.ask;
    }
    if let Some(expelled) = decision.expel.filter(|_| sentinel.expelled.borrow().is_none()) {
        warn!(
            verdict = expelled.verdict.name(),
            voices = expelled.voices.len(),
            "the cluster does not take this member: {}",
            refusals::sentence(&expelled.verdict)
        );
        sentinel.expelled.send_replace(Some(expelled));
    }
    decision.ask
}

fn known(shared: &Shared, member: MemberId, session: Option<Session>) -> Known {
    let mut known = records::known(shared, member);
    known.session = session;
    if member == shared.config.member {
        let Record { dir, boot, home, .. } = shared.records.own.record.clone();
        known.session = Some(Session { dir, boot, home, is_quiet: false });
    }
    known.is_founding &= !shared.sentinel.taken_by.lock().contains(&member);
    // What a leader knows counts once it has applied what its predecessors left.
    known.witness.leads &= !shared.sentinel.is_quarantined()
        && shared.applied_term.load(Ordering::Acquire) >= known.witness.term;
    // What it says comes from what it has applied.
    known.witness.commit = shared.applied().0;
    known
}

/// A leader also knows what a follower has acknowledged in its term, be it written down or not. Only up to the commit: the rest may be taken
/// back one day.
fn add_what_is_seen(shared: &Shared, known: &mut Known, member: MemberId) {
    if !known.witness.leads {
        return;
    }
    let status = shared.raft_status.lock();
    if let Some(peer) = status.peers.iter().find(|peer| peer.id == member) {
        let seen = Watermark { last_index: peer.matched.min(status.committed).0, term: 0 };
        known.watermark.get_or_insert_default().raise(seen);
    }
}

/// A peer was asked what it knows of this member. One that takes it may know who votes by now.
fn answered(shared: &Shared, answer: &Answer) {
    let index = answer.known.witness.commit;
    if !answer.verdict.is_welcome() || life(shared) != answer.known.cluster_uuid {
        return;
    }
    let mut newer = shared.sentinel.newer.lock();
    if newer.as_ref().is_none_or(|(known, _)| index > *known) {
        *newer = Some((index, answer.voters()));
    }
}

/// The answer to a question over the peer port.
pub(crate) fn answer(shared: &Shared, question: &Question, session: Option<Session>) -> Answer {
    let asker = &question.hello;
    let mut known = known(shared, asker.member, session);
    add_what_is_seen(shared, &mut known, asker.member);
    let verdict = if asker.cluster_id != shared.config.cluster {
        Verdict::Stranger
    } else {
        let members_known = !shared.reader().members().is_empty();
        Some(judge(asker, &known))
            .filter(|verdict| members_known || *verdict != Verdict::Stranger)
            .unwrap_or(Verdict::Welcome)
    };
    if !verdict.is_welcome() {
        shared.records.refused(asker.member, asker.boot.nonce);
    }
    let config = shared.records.own.config.clone().filter(|_| known.cluster_uuid.is_none());
    let members = shared.reader().members().into_iter().map(|member| Named {
        id: member.id,
        name: member.name,
        peer_urls: member.peer_urls,
        client_urls: member.client_urls,
        is_learner: member.is_learner,
    });
    Answer { hello: hello(shared), verdict, config, members: members.collect(), known }
}

/// Streams of starts that are not welcome any more end: what was written since counts for those who came before.
fn judge_again(shared: &Arc<Shared>) {
    let Some(transport) = shared.transport.get() else { return };
    for hello in transport.sessions() {
        let mut known = known(shared, hello.member, None);
        // The log has grown since that hello was made.
        known.watermark = None;
        let verdict = judge(&hello, &known);
        // Who was removed shall still hear that it is committed; its streams end with its peer.
        let may_stay = matches!(verdict, Verdict::Welcome | Verdict::Stranger | Verdict::Removed { .. });
        if !may_stay {
            shared.records.refused(hello.member, hello.boot.nonce);
            shared.sentinel.refusals.refused(&shared.reader(), hello.member, &verdict);
            transport.end_session(hello.member, hello.boot.nonce);
        }
    }
}
