//! The leader's desk: what it writes down, through the log, about who the members are. First of all which life of the cluster this is; then
//! the start (boot) that was admitted as each member; and while things move, how far each member has been.
//!
//! Everybody keeps what it has seen admitted; whoever leads writes what is not written yet. A note is one entry, it is no client's business,
//! and no client's change of membership waits for it ([`consensus::io::Input::Note`]).
//!
//! Not here: who is admitted (sentinel), what an entry does (state-machine), the identity file (daemon).

mod due;
mod first_write;

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use api::{
    error::EtcdError,
    raftpb::{ConfChange, ConfChangeType},
};
use bytes::Bytes;
use consensus::io::{Input, Proposal, ProposalId, Role};
use identity::{Answer, Hello, Known, Life, Private, Record, Unique, Witness};
use parking_lot::Mutex;
use prost::Message;
use state_machine::Reader;
use storage::state_store::FjallStore;
use tokio::sync::{Notify, watch};
use tracing::{info, warn};
use types::{EntryKind, MemberId};

pub use due::OwnIdentity;
pub(crate) use first_write::{is_begun, is_begun_by, is_mixed_founding};

use crate::{
    handle::Handle,
    mailbox::wait_until,
    shared::{Shared, ToRaft},
};

/// Watermarks are written at most this often: what a member loses within it can go unnoticed only if the leader is lost as well.
const MARKS_INTERVAL: Duration = Duration::from_secs(5);

/// How often a leader looks whether something is to be written, when nobody has told it.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// Between two lines that say why the cluster has no name for its life.
const TOLD_EVERY: Duration = Duration::from_secs(60);

/// Pause before a note that was not taken (another change of membership, a hand-over) is tried again.
const AGAIN: Duration = Duration::from_millis(50);

/// Pause before a leader looks again that has not applied its predecessors' entries, or has more to write than fitted into one note.
const SOON: Duration = Duration::from_millis(10);

pub(crate) struct Desk {
    pub(crate) own: OwnIdentity,
    /// The newest start that was admitted here, by member.
    admitted: Mutex<BTreeMap<MemberId, Record>>,
    /// The life that a welcome peer says it is of, where nothing here tells one.
    heard: Mutex<Option<Unique>>,
    /// The life that an attendee of the founding, or a life that has admitted this directory, has told first.
    vouched: Mutex<Option<Unique>>,
    /// Something is new, or somebody waits for marks.
    look: Arc<Notify>,
    /// Marks are wanted before leadership is handed over.
    closing: AtomicBool,
    life: watch::Sender<Option<Unique>>,
    /// When it was last said why there is no life.
    no_life_told: Mutex<Option<Instant>>,
    /// The identity file names it.
    kept: AtomicBool,
}

impl Desk {
    pub(crate) fn new(own: OwnIdentity, reader: &Reader<FjallStore>, is_joining: bool) -> Desk {
        let life = watch::Sender::new(life(&own, reader, is_joining));
        Desk {
            own,
            admitted: Mutex::new(BTreeMap::new()),
            heard: Mutex::new(None),
            vouched: Mutex::new(None),
            look: Arc::new(Notify::new()),
            closing: AtomicBool::new(false),
            no_life_told: Mutex::new(None),
            life,
            kept: AtomicBool::new(false),
        }
    }

    /// A leader has applied the first entry of its term: only now does it know what is written down.
    pub(crate) fn term_began(&self) {
        self.look.notify_one();
    }

    /// A start of a peer was welcomed, and says which life it is of.
    pub(crate) fn welcomed(&self, member: MemberId, hello: &Hello) {
        if let Life::Born(life) = hello.life {
            let mut heard = self.heard.lock();
            // A leader begins no second one: its state may have come from an etcd, which keeps none.
            if heard.is_none() && self.own.parent_uuid != Some(life) {
                *heard = Some(life);
                self.look.notify_one();
            }
        }
        self.admitted(member, Record::from(hello));
    }

    /// A peer that is not refused has said who it is.
    pub(crate) fn said(&self, hello: &Hello) {
        if let Some(life) = self.own.vouched_by(hello) {
            self.vouched.lock().get_or_insert(life);
        }
    }

    /// A peer was asked what it knows of this member.
    pub(crate) fn answered(&self, answer: &Answer) {
        if let Some(life) = self.own.vouched_in(&answer.hello, &answer.known) {
            self.vouched.lock().get_or_insert(life);
        }
    }

    /// Whether an attendee of the founding is of this life.
    pub(crate) fn is_vouched(&self, life: Life) -> bool {
        self.vouched.lock().is_some_and(|vouched| life == Life::Born(vouched))
    }

    /// Whether a speaker must wait until this founder knows more, given what is known of it.
    pub(crate) fn must_wait(&self, known: &Known, theirs: Life) -> bool {
        let vouched = *self.vouched.lock();
        due::must_wait(&self.own, known.cluster_uuid, vouched, &known.standing, theirs)
    }

    /// This start of a peer was welcomed. Called on every member, whoever leads; only the newest counts.
    pub(crate) fn admitted(&self, member: MemberId, record: Record) {
        let mut admitted = self.admitted.lock();
        if admitted.get(&member) != Some(&record) {
            admitted.insert(member, record);
            drop(admitted);
            self.look.notify_one();
        }
    }

    /// This start, which may have been welcomed before something more was known, is not welcome any more: it is not written down.
    pub(crate) fn refused(&self, member: MemberId, nonce: Unique) {
        let mut admitted = self.admitted.lock();
        if admitted.get(&member).is_some_and(|record| record.boot.nonce == nonce) {
            admitted.remove(&member);
        }
    }

    /// After entries or a snapshot that may have told the life of the cluster.
    pub(crate) fn applied(&self, reader: &Reader<FjallStore>, is_joining: bool) {
        let life = life(&self.own, reader, is_joining);
        let is_news = self.life.send_if_modified(|known| std::mem::replace(known, life) != life);
        if is_news && let Some(life) = life {
            info!(cluster_uuid = %life, "the life of this cluster is written down");
        }
        // Somebody admitted may have become a member.
        if is_news || !self.admitted.lock().is_empty() {
            self.look.notify_one();
        }
    }
}

/// The life that the state names, unless this start is to end it: then it is none until the log has been applied. While a member joins,
/// what it applies is the past, which may be that of a life that was ended by force: it is of none before the log has taken it in.
fn life(own: &OwnIdentity, reader: &Reader<FjallStore>, is_joining: bool) -> Option<Unique> {
    let ends = |life: &Unique| own.cluster_uuid.map_or(is_joining, |own| own != *life);
    reader.cluster_uuid().filter(|life| !ends(life))
}

/// What this member knows of another, for [`identity::judge`]; without the session, which is the sentinel's.
pub(crate) fn known(shared: &Shared, member: MemberId) -> Known {
    let mut found = shared.reader().identity_of(member);
    if shared.is_joining() {
        (found.cluster_uuid, found.parent_uuid) = (None, None);
    }
    due::known(&shared.records.own, member, found, witness(shared))
}

pub(crate) fn witness(shared: &Shared) -> Witness {
    Witness {
        member: shared.config.member,
        leads: shared.is_leader.load(Ordering::Acquire),
        term: shared.term().0,
        commit: shared.committed().0,
    }
}

impl Handle {
    /// The life of the cluster as applied here; None until a first leader has written it down.
    pub fn cluster_uuid(&self) -> watch::Receiver<Option<Unique>> {
        self.shared.records.life.subscribe()
    }

    /// The life that this one continues, after a restore or a forced new cluster.
    pub fn parent_uuid(&self) -> Option<Unique> {
        self.reader().parent_uuid().or(self.shared.records.own.parent_uuid)
    }

    /// What this member knows of another, without who is connected.
    pub fn known(&self, member: MemberId) -> Known {
        known(&self.shared, member)
    }

    /// This start of a peer was welcomed.
    #[doc(hidden)]
    pub fn admitted(&self, member: MemberId, record: Record) {
        self.shared.records.admitted(member, record);
    }

    /// Writes one note, as the leader, and waits until it is applied here.
    async fn note(&self, notes: Private) -> Result<(), EtcdError> {
        let shared = &self.shared;
        let me = shared.config.member;
        // The URLs are read as late as possible: an etcd takes them for an update.
        let own = self.reader().member(me).ok_or(EtcdError::MemberNotFound)?;
        let id = shared.waiters.next_id();
        let change = ConfChange {
            id: Some(id),
            r#type: Some(ConfChangeType::ConfChangeUpdateNode as i32),
            node_id: Some(me.0),
            context: Some(Bytes::from(own.note_context(notes))),
        };
        let data = Bytes::from(change.encode_to_vec());
        let told = shared.waiters.register(id);
        let proposal = Proposal { id: ProposalId(id), kind: EntryKind::ConfChange, data };
        // At most one of these is under way.
        shared.raft.push(ToRaft::input(Input::Note(proposal)));
        told.await.unwrap_or(Err(EtcdError::Stopped)).map(|_| ())
    }
}

/// Until the member stops.
pub(crate) async fn run(shared: Weak<Shared>) {
    let Some((mut leadership, look)) =
        shared.upgrade().map(|shared| (shared.leadership.subscribe(), shared.records.look.clone()))
    else {
        return;
    };
    let mut pause = Duration::ZERO;
    let mut marks_at = Instant::now();
    loop {
        tokio::select! {
            _ = leadership.changed() => {}
            () = look.notified() => {}
            () = tokio::time::sleep(pause) => {}
        }
        let Some(shared) = shared.upgrade().filter(|shared| !shared.stopping.load(Ordering::Acquire)) else {
            return;
        };
        pause = step(&shared, &mut marks_at).await;
    }
}

/// One look; answers how long to wait for the next.
async fn step(shared: &Arc<Shared>, marks_at: &mut Instant) -> Duration {
    let desk = &shared.records;
    let closing = desk.closing.load(Ordering::Acquire);
    let now = *shared.leadership.borrow();
    if now.role != Role::Leader {
        desk.closing.store(false, Ordering::Release);
        return LOOK_INTERVAL;
    }
    if shared.applied_term.load(Ordering::Acquire) < now.term.0 {
        return SOON;
    }
    let status = shared.raft_status.lock().clone();
    let marks_due = closing || Instant::now() >= *marks_at;
    let reader = shared.reader();
    let admitted = desk.admitted.lock().clone();
    let mut notes = due::records(shared.config.member, &desk.own, &admitted, &reader);
    if let Some(due) = &mut notes
        && reader.cluster_uuid().is_none()
    {
        due.cluster_uuid = life_to_begin(shared, &reader).unwrap_or_else(|away| {
            say_no_life(shared, &reader, &away);
            None
        });
        if due.cluster_uuid.is_none() && due.records.is_empty() {
            notes = None;
        }
    }
    let has_records = notes.is_some();
    // Nobody would ever hold them against an only member.
    if (marks_due || has_records) && status.peers.len() > 1 {
        let marks = due::marks(&status, &reader);
        if !marks.is_empty() {
            notes.get_or_insert_default().watermarks = marks;
        }
    }
    let Some(notes) = notes else {
        desk.closing.store(false, Ordering::Release);
        return LOOK_INTERVAL;
    };
    let (records, marks) = (notes.records.len(), notes.watermarks.len());
    match (Handle { shared: shared.clone() }).note(notes).await {
        Ok(()) => {
            tracing::debug!(records, marks, "noted who the members are");
            if marks > 0 {
                *marks_at = Instant::now() + MARKS_INTERVAL;
                desk.closing.store(false, Ordering::Release);
            }
            // There may be more than fits into one.
            if has_records { SOON } else { LOOK_INTERVAL }
        }
        Err(EtcdError::ProposalDropped) => AGAIN,
        // The next leader writes it.
        Err(_) if !shared.is_leader.load(Ordering::Acquire) => LOOK_INTERVAL,
        Err(error) => {
            warn!(%error, "what the cluster should know of its members could not be written; trying again");
            LOOK_INTERVAL
        }
    }
}

/// The life for a state that names none. One that is known here or was heard of goes on; a new one begins with a founder. Elsewhere (the
/// log was an etcd's, or an older version's) another member may know one that this state has lost: so only when all are connected, and
/// with that heard.
///
/// # Errors
/// Who is away.
fn life_to_begin(shared: &Shared, reader: &Reader<FjallStore>) -> Result<Option<Unique>, Vec<MemberId>> {
    let desk = &shared.records;
    let is_founder = desk.own.config.is_some();
    // A founder that leads has applied the note of any founder that led before it. What else it hears of is another founding, or another
    // restore, of the same members.
    let heard = desk.heard.lock().filter(|_| !is_founder);
    let known = desk.own.cluster_uuid.or(heard);
    if known.is_some() && known != reader.parent_uuid() {
        return Ok(known);
    }
    let is_heard = |id| shared.transport.get().is_some_and(|transport| transport.active_since(id).is_some());
    let others =
        reader.members().into_iter().map(|member| member.id).filter(|id| *id != shared.config.member);
    let away: Vec<MemberId> = others.filter(|id| !is_heard(*id)).collect();
    if is_founder || away.is_empty() { Ok(Some(desk.own.fresh_uuid)) } else { Err(away) }
}

fn say_no_life(shared: &Shared, reader: &Reader<FjallStore>, away: &[MemberId]) {
    let mut told = shared.records.no_life_told.lock();
    if told.is_some_and(|at| at.elapsed() < TOLD_EVERY) {
        return;
    }
    *told = Some(Instant::now());
    let name = |id: &MemberId| match reader.member(*id) {
        Some(member) if !member.name.is_empty() => format!("{} ({id})", member.name),
        _ => id.to_string(),
    };
    warn!(
        away = ?away.iter().map(name).collect::<Vec<_>>(),
        "this cluster has no name for its life yet, by which copies and other lives of it are told apart: its log is an etcd's or an older \
         version's, and a member that is away may know one. It is written down once all members are heard at one time"
    );
}

/// Before leadership is handed over: whoever takes it knows how far the others have been. Best effort, and bounded.
pub(crate) fn close(shared: &Shared, limit: Duration) {
    ask_to_close(shared);
    wait_until(limit, Duration::from_millis(5), || !shared.records.closing.load(Ordering::Acquire));
}

/// As [`close`], for a task.
pub(crate) async fn close_soon(shared: &Shared, limit: Duration) {
    ask_to_close(shared);
    let until = tokio::time::Instant::now() + limit;
    while shared.records.closing.load(Ordering::Acquire) && tokio::time::Instant::now() < until {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn ask_to_close(shared: &Shared) {
    shared.records.closing.store(true, Ordering::Release);
    shared.records.look.notify_one();
}
