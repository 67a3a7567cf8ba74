//! Who may talk to whom, in the simulated cluster: the identity file of each directory, the hellos that members say and judge, the notes
//! that a leader writes, the voices that a member hears of itself. What decides is the daemon's own: [`identity::judge`],
//! [`identity::believe`], the records and marks in the state machine, the node's [`due`](super::due) and [`jury`](super::jury).
//!
//! Simplified: a handshake is one moment in which both sides are heard; sessions end by silence, or at once when a process dies and the
//! network tells of it. Answers to questions take time like everything else.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use api::raftpb::{ConfChange, ConfChangeType};
use bytes::Bytes;
use consensus::io::{Input, Proposal, ProposalId, Role};
use identity::judge::judge;
use identity::{
    Boot, GenesisConfig, Hello, Home, Known, Life, LogEnd, Private, Record, Session, Unique, Verdict,
    Watermark, Witness,
};
use prost::Message as _;
use rand::Rng;
use state_machine::{Memory, Reader};
use types::{ClusterId, EntryKind, MemberId};

use super::due::{self, OwnIdentity};
use super::jury::{Heard, Jury, Oneself};
use super::member::{Member, Running, Told};
use super::world::{CLIENTS_END, Event, World};
use super::{Defect, TICK, Time};

/// As in the node and its transport, in milliseconds, which the units of time are here.
const SESSION_LIVES: Time = 4000;
const LOOK_INTERVAL: Time = 500;
const MARKS_INTERVAL: Time = 5000;
const ASK_INTERVAL: Time = 1000;
const ASK_INTERVAL_SERVING: Time = 4000;

/// No notes after this, so that the end is a standstill.
const NOTES_END: Time = CLIENTS_END + 50 * TICK;

/// How a directory came to be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Origin {
    /// It has promised nothing; told to found the cluster.
    Unborn,
    #[default]
    Formed,
    Joining,
}

/// The identity file.
#[derive(Clone, Debug)]
pub struct Papers {
    pub member: u64,
    pub dir: Unique,
    pub boot: Boot,
    pub origin: Origin,
    pub cluster_uuid: Option<Unique>,
    pub attendees: BTreeMap<MemberId, Unique>,
    /// The life that this one was forced out of.
    pub parent: Option<Unique>,
    /// Whom its settings name, which are as old as its place: whom it asks and believes while its state knows nobody.
    pub elders: Vec<MemberId>,
    /// The cluster expelled it: never again.
    pub is_quarantined: bool,
}

impl Default for Papers {
    fn default() -> Papers {
        let none = Unique::for_test(0);
        Papers {
            member: 0,
            dir: none,
            boot: Boot { seq: 0, nonce: none, previous: None },
            origin: Origin::Formed,
            cluster_uuid: None,
            attendees: BTreeMap::new(),
            parent: None,
            elders: Vec::new(),
            is_quarantined: false,
        }
    }
}

impl Papers {
    pub fn own(&self, fresh_uuid: Unique) -> OwnIdentity {
        OwnIdentity {
            record: Record { dir: self.dir, boot: self.boot, home: Home::default(), version: String::new() },
            earlier: Vec::new(),
            cluster_uuid: self.cluster_uuid,
            parent_uuid: self.parent,
            attendees: self.attendees.clone(),
            config: (self.origin == Origin::Formed && self.cluster_uuid.is_none()).then(no_settings),
            fresh_uuid,
            keeps_life: false,
        }
    }

    pub fn life(&self) -> Life {
        match (self.cluster_uuid, self.origin) {
            (Some(life), _) => Life::Born(life),
            (None, Origin::Unborn) => Life::Unborn,
            (None, Origin::Formed) => Life::Formed,
            (None, Origin::Joining) => Life::Joining,
        }
    }
}

/// Of a founder, which nobody compares here.
fn no_settings() -> GenesisConfig {
    GenesisConfig { members: Vec::new(), token: String::new(), token_sha256: String::new(), restored: None }
}

pub fn hello_of(member: u64, own: &OwnIdentity, life: Life, log: LogEnd) -> Hello {
    let Record { dir, boot, home, version } = own.record.clone();
    Hello {
        cluster_id: ClusterId(1),
        member: MemberId(member),
        name: String::new(),
        life,
        dir,
        boot,
        earlier: own.earlier.clone(),
        log,
        home,
        version,
    }
}

/// A start of a peer that is heard.
pub struct Held {
    place: u64,
    hello: Hello,
    heard: Time,
}

/// The sentinel and the desk of one running member.
pub struct Sentry {
    pub own: OwnIdentity,
    jury: Jury,
    pub is_silent: bool,
    pub is_confirmed: bool,
    taken_by: BTreeSet<u64>,
    sessions: BTreeMap<u64, Held>,
    admitted: BTreeMap<MemberId, Record>,
    marks_at: Time,
    /// The note under way, and whether it has marks.
    note: Option<(u64, bool)>,
    is_doubted: bool,
    /// The life that an attendee of the founding has told first.
    vouched: Option<Unique>,
    /// Who was not heard since everybody was asked last.
    held_off: BTreeSet<u64>,
    /// The most that this start has had on disk.
    pub longest: u64,
    asked_at: Option<Time>,
    /// The voters as of an index that is not applied here, told by somebody of this life.
    newer: (u64, Vec<MemberId>),
}

impl Sentry {
    pub fn new(own: OwnIdentity) -> Sentry {
        Sentry {
            own,
            jury: Jury::default(),
            is_silent: false,
            is_confirmed: false,
            taken_by: BTreeSet::new(),
            sessions: BTreeMap::new(),
            admitted: BTreeMap::new(),
            marks_at: 0,
            note: None,
            is_doubted: false,
            vouched: None,
            held_off: BTreeSet::new(),
            longest: 0,
            asked_at: None,
            newer: (0, Vec::new()),
        }
    }

    fn confirm(&mut self) {
        self.is_confirmed |= !self.is_silent;
    }

    /// This start of a peer is not welcome any more, if it ever was.
    fn refused(&mut self, member: MemberId, nonce: Unique) {
        if self.admitted.get(&member).is_some_and(|record| record.boot.nonce == nonce) {
            self.admitted.remove(&member);
        }
    }

    pub fn doubt(&mut self) {
        self.is_doubted = true;
    }

    pub fn leader_is(&mut self, leader: MemberId, me: u64) {
        if !leader.is_none() && (leader.0 == me || self.taken_by.contains(&leader.0)) {
            self.confirm();
        }
    }

    /// A leader has taken this member's question.
    pub fn read_is_answered(&mut self) {
        self.confirm();
    }

    pub fn dropped(&mut self, request: u64) {
        self.note = self.note.filter(|(note, _)| *note != request);
    }

    /// Its cluster's life has no name yet, as far as it knows.
    pub fn founds(&self, reader: &Reader<Memory>) -> bool {
        self.own.config.is_some() && reader.cluster_uuid().is_none()
    }

    fn said(&mut self, hello: &Hello) {
        self.vouched = self.vouched.or(self.own.vouched_by(hello));
    }

    fn current(&self, member: u64, now: Time) -> Option<&Held> {
        self.sessions.get(&member).filter(|held| now - held.heard < SESSION_LIVES)
    }

    fn forget(&mut self, place: u64) {
        self.sessions.retain(|_, held| held.place != place);
    }
}

/// As in the transport.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Via {
    Stream,
    Message,
    Answer,
}

/// What the receiver makes of a message.
pub enum Passage {
    Accepted,
    /// Perhaps later.
    HeldOff,
    /// To be told to the sender, if it is heard by then.
    Refused(Box<Heard>, Option<Unique>),
}

impl Running {
    fn life(&self, papers: &Papers) -> Life {
        match self.machine.reader().cluster_uuid() {
            Some(life) if papers.cluster_uuid.is_none() => Life::Born(life),
            _ => papers.life(),
        }
    }

    fn log_end(&self) -> LogEnd {
        let status = self.core.status();
        LogEnd {
            last_index: status.persisted.0.max(self.sentry.as_ref().map_or(0, |sentry| sentry.longest)),
            last_term: self.machine.applied().term.0,
            term: status.term.0,
            commit: status.committed.0,
        }
    }
}

impl Member {
    /// What this member says of itself now, or would if it ran.
    pub fn hello(&self) -> Option<Hello> {
        let running = self.running.as_ref()?;
        let sentry = running.sentry.as_ref()?;
        Some(hello_of(self.id, &sentry.own, running.life(&self.disk.papers), running.log_end()))
    }

    fn witness(&self) -> Option<Witness> {
        let running = self.running.as_ref()?;
        let is_silent = running.sentry.as_ref()?.is_silent;
        let status = running.core.status();
        let applied = running.machine.applied();
        let leads = status.role == Role::Leader && !is_silent && applied.term >= status.term;
        Some(Witness { member: MemberId(self.id), leads, term: status.term.0, commit: applied.index.0 })
    }

    /// What this member knows of another.
    fn known(&self, member: u64, now: Time, defect: Option<Defect>) -> Option<Known> {
        let running = self.running.as_ref()?;
        let sentry = running.sentry.as_ref()?;
        let found = running.machine.reader().identity_of(MemberId(member));
        let mut known = due::known(&sentry.own, MemberId(member), found, self.witness()?);
        known.is_founding &= !sentry.taken_by.contains(&member);
        let session = |hello: &Hello| Session {
            dir: hello.dir,
            boot: hello.boot,
            home: Home::default(),
            is_quiet: false,
        };
        known.session = match member == self.id {
            true => self.hello().map(|hello| session(&hello)),
            false => sentry.current(member, now).map(|held| session(&held.hello)),
        };
        match defect {
            Some(Defect::IgnoresRecords) => {
                (known.record, known.attendee, known.watermark) = (None, None, None)
            }
            Some(Defect::IgnoresMarks) => known.watermark = None,
            _ => {}
        }
        Some(known)
    }

    /// A caller, or who answered a call, judged.
    fn meet(&self, hello: &Hello, via: Via, now: Time, defect: Option<Defect>) -> Verdict {
        let Some(mut known) = self.known(hello.member.0, now, defect) else { return Verdict::Welcome };
        known.is_founding &= via != Via::Answer;
        let vouched = self.running.as_ref().and_then(|running| running.sentry.as_ref()?.vouched);
        known.is_founding &= vouched.is_none_or(|vouched| hello.life != Life::Born(vouched));
        let verdict = judged(hello, &known, defect);
        let knows_nobody =
            self.running.as_ref().is_some_and(|running| running.machine.reader().members().is_empty());
        let is_excused = verdict == Verdict::Stranger && (via == Via::Message || knows_nobody);
        if is_excused { Verdict::Welcome } else { verdict }
    }

    /// Whether what a founder may not know yet stands between the two.
    fn must_wait(&self, hello: &Hello, now: Time, defect: Option<Defect>) -> bool {
        let sentry = self.running.as_ref().and_then(|running| running.sentry.as_ref());
        let (Some(sentry), Some(known)) = (sentry, self.known(hello.member.0, now, defect)) else {
            return false;
        };
        defect != Some(Defect::HearsEverybody)
            && due::must_wait(&sentry.own, known.cluster_uuid, sentry.vouched, &known.standing, hello.life)
    }

    /// The answer to a question over the peer port.
    pub fn answer(
        &self,
        asker: &Hello,
        now: Time,
        defect: Option<Defect>,
    ) -> Option<(Heard, Option<Unique>)> {
        let running = self.running.as_ref()?;
        let mut known = self.known(asker.member.0, now, defect)?;
        if known.witness.leads && defect != Some(Defect::IgnoresMarks) {
            let status = running.core.status();
            if let Some(peer) = status.peers.iter().find(|peer| peer.id == asker.member) {
                let seen = Watermark { last_index: peer.matched.min(status.committed).0, term: 0 };
                known.watermark.get_or_insert_default().raise(seen);
            }
        }
        let mut verdict = judged(asker, &known, defect);
        if verdict == Verdict::Stranger && running.machine.reader().members().is_empty() {
            verdict = Verdict::Welcome;
        }
        Some((Heard { witness: known.witness, verdict }, known.cluster_uuid))
    }

    /// As applied, for somebody who asks.
    pub fn voters(&self) -> Vec<MemberId> {
        self.running.as_ref().map(|running| running.machine.conf_state().voters).unwrap_or_default()
    }

    fn oneself(&self) -> Option<Oneself> {
        let running = self.running.as_ref()?;
        let sentry = running.sentry.as_ref()?;
        let mut voters = running.machine.conf_state().voters;
        if voters.is_empty() {
            voters.clone_from(&self.disk.papers.elders);
        }
        let log = running.log_end();
        let (index, newer) = &sentry.newer;
        Some(Oneself {
            me: MemberId(self.id),
            voters,
            newer: if *index > log.commit { newer.clone() } else { Vec::new() },
            life: match running.life(&self.disk.papers) {
                Life::Born(life) => Some(life),
                _ => None,
            },
            log,
            leader: running.core.status().leader,
            is_confirmed: sentry.is_confirmed,
        })
    }
}

pub fn judged(hello: &Hello, known: &Known, defect: Option<Defect>) -> Verdict {
    match defect {
        Some(Defect::TakesEverybody) => Verdict::Welcome,
        _ => judge(hello, known),
    }
}

impl World {
    fn sentry(&mut self, place: u64) -> Option<&mut Sentry> {
        self.members.get_mut(&place)?.running.as_mut()?.sentry.as_deref_mut()
    }

    fn instant(&self) -> Instant {
        self.epoch + Duration::from_millis(self.now)
    }

    /// Both hear each other, and neither of this round trip is lost.
    pub(super) fn reaches(&mut self, a: u64, b: u64) -> bool {
        let cut = &self.network.cut;
        let linked = a != b && !cut.contains(&(a, b)) && !cut.contains(&(b, a));
        let runs = self.members.get(&b).is_some_and(|member| member.running.is_some());
        linked && runs && !self.rng.random_bool(self.network.weather.loss)
    }

    /// Where what is meant for a member goes: to the start of it that is heard, or to its address.
    pub(super) fn place_for(&self, from: u64, member: u64) -> u64 {
        let sentry = self.members.get(&from).and_then(|from| from.running.as_ref()?.sentry.as_ref());
        sentry.and_then(|sentry| sentry.current(member, self.now)).map_or(member, |held| held.place)
    }

    /// Looks after sessions, voices and notes.
    pub(super) fn look(&mut self, place: u64, life: u64) {
        if self.alive(place, life).is_none() {
            return;
        }
        let pause = self.rng.random_range(LOOK_INTERVAL..LOOK_INTERVAL + TICK);
        self.at(pause, Event::Look(place, life));
        self.judge_again(place);
        self.greet_all(place);
        let must_ask = self.conclude(place);
        if self.alive(place, life).is_none() {
            return;
        }
        let now = self.now;
        let sentry = self.sentry(place).expect("it runs");
        let is_serving = sentry.is_confirmed && !sentry.is_silent && !sentry.is_doubted;
        let pause = if is_serving { ASK_INTERVAL_SERVING } else { ASK_INTERVAL };
        if (must_ask || sentry.is_doubted) && sentry.asked_at.is_none_or(|last| now - last >= pause) {
            sentry.asked_at = Some(now);
            sentry.is_doubted = false;
            self.ask_all(place, life);
        }
        self.write_notes(place);
    }

    fn judge_again(&mut self, place: u64) {
        let (now, defect) = (self.now, self.setup.defect);
        let cut = self.network.cut.clone();
        let lives: BTreeSet<(u64, Unique)> = self
            .members
            .iter()
            .filter_map(|(place, member)| Some((*place, member.hello()?.boot.nonce)))
            .collect();
        let Some(member) = self.members.get(&place) else { return };
        let Some(sentry) = member.running.as_ref().and_then(|running| running.sentry.as_ref()) else {
            return;
        };
        let may_stay = |held: &Held| {
            let Some(mut known) = member.known(held.hello.member.0, now, defect) else { return true };
            (known.session, known.watermark) = (None, None);
            let verdict = judged(&held.hello, &known, defect);
            matches!(verdict, Verdict::Welcome | Verdict::Stranger | Verdict::Removed { .. })
        };
        let over: Vec<u64> =
            sentry.sessions.iter().filter(|(_, held)| !may_stay(held)).map(|(id, _)| *id).collect();
        let sentry = self.sentry(place).expect("it runs");
        for id in &over {
            if let Some(held) = sentry.sessions.get(id) {
                let (member, nonce) = (held.hello.member, held.hello.boot.nonce);
                sentry.refused(member, nonce);
            }
        }
        for (id, held) in &mut sentry.sessions {
            let is_heard = !cut.contains(&(held.place, place))
                && lives.contains(&(held.place, held.hello.boot.nonce))
                && !over.contains(id);
            if is_heard {
                held.heard = now;
            }
        }
        sentry.sessions.retain(|id, held| now - held.heard < SESSION_LIVES && !over.contains(id));
    }

    /// Calls everybody on the list who is not heard, or was never answered by.
    fn greet_all(&mut self, place: u64) {
        let now = self.now;
        let member = &self.members[&place];
        let me = member.id;
        let Some(running) = member.running.as_ref() else { return };
        let sentry = running.sentry.as_ref().expect("this kind of world has them");
        let peers: Vec<u64> = running
            .machine
            .reader()
            .members()
            .into_iter()
            .map(|peer| peer.id.0)
            .filter(|peer| *peer != me)
            .filter(|peer| sentry.current(*peer, now).is_none() || !sentry.taken_by.contains(peer))
            .collect();
        for peer in peers {
            if self.reaches(place, peer) {
                self.call(place, peer);
            }
        }
    }

    fn call(&mut self, place: u64, peer: u64) {
        let (now, defect) = (self.now, self.setup.defect);
        let (caller, callee) = (&self.members[&place], &self.members[&peer]);
        let (Some(hello), Some(theirs)) = (caller.hello(), callee.hello()) else { return };
        if callee.id != peer {
            return;
        }
        let verdict = callee.meet(&hello, Via::Stream, now, defect);
        if !verdict.is_welcome() {
            let heard = Heard { witness: callee.witness().expect("it runs"), verdict };
            let life = match theirs.life {
                Life::Born(life) => Some(life),
                _ => None,
            };
            self.sentry(peer).expect("it runs").refused(hello.member, hello.boot.nonce);
            let sentry = self.sentry(place).expect("it runs");
            sentry.taken_by.remove(&peer);
            self.outcome.refused += 1;
            return self.hear(place, heard, life);
        }
        let answer = caller.meet(&theirs, Via::Answer, now, defect);
        let caller_is_member = callee
            .running
            .as_ref()
            .is_some_and(|running| running.machine.reader().member(hello.member).is_some());
        if caller_is_member {
            self.begin(peer, place, &hello);
        }
        if !answer.is_welcome() {
            self.sentry(place).expect("it runs").refused(theirs.member, theirs.boot.nonce);
            self.outcome.refused += 1;
            return;
        }
        self.begin(place, peer, &theirs);
        let leader = self.members[&place].running.as_ref().map(|running| running.core.status().leader.0);
        let sentry = self.sentry(place).expect("it runs");
        sentry.jury.welcomed(MemberId(peer));
        sentry.taken_by.insert(peer);
        if leader == Some(peer) {
            sentry.confirm();
        }
    }

    fn begin(&mut self, at: u64, place: u64, hello: &Hello) {
        let now = self.now;
        let Some(sentry) = self.sentry(at) else { return };
        let member = hello.member.0;
        if sentry.current(member, now).is_some_and(|held| held.hello.boot.nonce != hello.boot.nonce) {
            return;
        }
        sentry.said(hello);
        sentry.sessions.insert(member, Held { place, hello: hello.clone(), heard: now });
        sentry.admitted.insert(hello.member, Record::from(hello));
    }

    /// A message has arrived: on a stream of the start that is heard, or brought by somebody who is judged for it.
    pub(super) fn admit(&mut self, to: u64, hello: &Hello) -> Passage {
        let (now, defect) = (self.now, self.setup.defect);
        let Some(sentry) = self.sentry(to) else { return Passage::Accepted };
        if let Some(held) = sentry.sessions.get_mut(&hello.member.0)
            && held.hello.boot.nonce == hello.boot.nonce
            && now - held.heard < SESSION_LIVES
        {
            held.heard = now;
            return Passage::Accepted;
        }
        let member = &self.members[&to];
        let verdict = member.meet(hello, Via::Message, now, defect);
        if verdict.is_welcome() {
            let must_wait = self.members[&to].must_wait(hello, now, defect);
            let sentry = self.sentry(to).expect("it runs");
            sentry.said(hello);
            if must_wait {
                sentry.doubt();
                sentry.held_off.insert(hello.member.0);
                self.outcome.held_off += 1;
                return Passage::HeldOff;
            }
            return Passage::Accepted;
        }
        self.outcome.refused += 1;
        self.sentry(to).expect("it runs").refused(hello.member, hello.boot.nonce);
        let member = &self.members[&to];
        let life = member.hello().and_then(|hello| match hello.life {
            Life::Born(life) => Some(life),
            _ => None,
        });
        Passage::Refused(Box::new(Heard { witness: member.witness().expect("it runs"), verdict }), life)
    }

    pub(super) fn hear(&mut self, place: u64, heard: Heard, life: Option<Unique>) {
        let instant = self.instant();
        let Some(own) = self.members.get(&place).and_then(Member::oneself) else { return };
        self.note(|| format!("{place} hears of {}: {:?}", heard.witness.member, heard.verdict));
        self.sentry(place).expect("it runs").jury.hear(heard, life, &own, instant);
        self.conclude(place);
    }

    /// As the node's sentinel: silence at once, the end when it is believed. Answers whether everybody should be asked.
    fn conclude(&mut self, place: u64) -> bool {
        let instant = self.instant();
        let Some(own) = self.members.get(&place).and_then(Member::oneself) else {
            return false;
        };
        let sentry = self.sentry(place).expect("it runs");
        let decision = sentry.jury.decide(&own, instant);
        let expelled = decision.expel;
        let ends = |verdict: &Verdict| !matches!(verdict, Verdict::Removed { .. });
        let silent = decision.quarantine.is_some()
            || expelled.as_ref().is_some_and(|expelled| ends(&expelled.verdict));
        let was = std::mem::replace(&mut sentry.is_silent, silent);
        if silent != was {
            self.outcome.quarantines += u64::from(silent);
            self.note(|| format!("{place} is silent: {silent}, {:?}", decision.quarantine));
        }
        if let Some(expelled) = expelled {
            self.ends_by(place, &expelled.verdict);
        }
        decision.ask
    }

    fn ask_all(&mut self, place: u64, life: u64) {
        let (now, defect) = (self.now, self.setup.defect);
        let member = &self.members[&place];
        let Some(hello) = member.hello() else { return };
        let Some(running) = &member.running else { return };
        let peers = running.machine.reader().members();
        let held_off = std::mem::take(&mut self.sentry(place).expect("it runs").held_off);
        for peer in held_off {
            if self.reaches(place, peer) && self.members[&peer].id == peer {
                self.is_vouched_for(place, peer, &hello);
            }
        }
        for peer in peers.into_iter().map(|peer| peer.id.0).filter(|peer| *peer != hello.member.0) {
            if !self.reaches(place, peer) || self.members[&peer].id != peer {
                continue;
            }
            if let Some((heard, uuid)) = self.members[&peer].answer(&hello, now, defect) {
                self.is_vouched_for(place, peer, &hello);
                if !heard.verdict.is_welcome() {
                    self.sentry(peer).expect("it runs").refused(hello.member, hello.boot.nonce);
                }
                let voters = self.members[&peer].voters();
                let ours = match self.members[&place].hello().map(|hello| hello.life) {
                    Some(Life::Born(life)) => Some(life),
                    _ => None,
                };
                let sentry = self.sentry(place).expect("it runs");
                if heard.verdict.is_welcome() && ours == uuid && heard.witness.commit > sentry.newer.0 {
                    sentry.newer = (heard.witness.commit, voters);
                }
                let delay = self.rng.random_range(1..10 * TICK);
                self.at(delay, Event::Voice(place, life, Box::new((heard, uuid))));
            }
        }
    }

    /// A founder has asked somebody who it is, and what it knows of this directory.
    fn is_vouched_for(&mut self, place: u64, peer: u64, hello: &Hello) {
        let theirs = &self.members[&peer];
        let known = theirs.known(hello.member.0, self.now, self.setup.defect);
        if let (Some(theirs), Some(known)) = (theirs.hello(), known) {
            let sentry = self.sentry(place).expect("it runs");
            sentry.vouched = sentry.vouched.or(sentry.own.vouched_in(&theirs, &known));
        }
    }

    /// The leader's desk.
    fn write_notes(&mut self, place: u64) {
        let now = self.now;
        let request = self.next_request + 1;
        if now > NOTES_END {
            return;
        }
        let Some(Member { id, running: Some(running), .. }) = self.members.get_mut(&place) else { return };
        let Some(sentry) = &mut running.sentry else { return };
        let status = running.core.status();
        if status.role != Role::Leader || running.machine.applied().term < status.term {
            sentry.note = None;
            return;
        }
        let me = MemberId(*id);
        let reader = running.machine.reader();
        if sentry.note.is_some() || reader.member(me).is_none() {
            return;
        }
        let mut notes = due::records(me, &sentry.own, &sentry.admitted, &reader);
        if (now >= sentry.marks_at || notes.is_some()) && status.peers.len() > 1 {
            let marks = due::marks(&status, &reader);
            if !marks.is_empty() {
                notes.get_or_insert_default().watermarks = marks;
            }
        }
        let Some(notes) = notes else { return };
        sentry.note = Some((request, !notes.watermarks.is_empty()));
        let data = note(me, reader.member(me).expect("asked").note_context(notes.clone()), request);
        self.next_request = request;
        self.outcome.notes += 1;
        self.note(|| format!("{place} notes {}", short(&notes)));
        let proposal = Proposal { id: ProposalId(request), kind: EntryKind::ConfChange, data };
        self.input(place, Input::Note(proposal));
    }

    /// Apply told of notes, perhaps, and of the life of the cluster.
    pub(super) fn tell_sentry(&mut self, place: u64, told: &Told) {
        let now = self.now;
        let Some(Member { running: Some(running), disk, .. }) = self.members.get_mut(&place) else { return };
        let Some(sentry) = &mut running.sentry else { return };
        let uuid = running.machine.reader().cluster_uuid();
        if disk.papers.cluster_uuid.is_none() && uuid.is_some() {
            disk.papers.cluster_uuid = uuid;
        }
        if let Some((request, has_marks)) = sentry.note
            && told.outcomes.iter().any(|(_, done, ..)| *done == request)
        {
            sentry.note = None;
            if has_marks {
                sentry.marks_at = now + MARKS_INTERVAL;
            }
        }
    }

    /// A process has died. Mostly the network tells of it.
    pub(super) fn sessions_end(&mut self, place: u64) {
        if self.rng.random_bool(0.3) {
            return;
        }
        for other in self.members.keys().copied().collect::<Vec<_>>() {
            if let Some(sentry) = self.sentry(other) {
                sentry.forget(place);
                sentry.taken_by.remove(&place);
            }
        }
    }
}

pub(super) fn note(me: MemberId, context: Vec<u8>, request: u64) -> Bytes {
    let change = ConfChange {
        id: Some(request),
        r#type: Some(ConfChangeType::ConfChangeUpdateNode as i32),
        node_id: Some(me.0),
        context: Some(context.into()),
    };
    change.encode_to_vec().into()
}

fn short(notes: &Private) -> String {
    let starts = notes.records.iter().map(|(id, record)| (id.clone(), record.boot.seq));
    let marks = notes.watermarks.iter().map(|(id, mark)| (id.clone(), mark.last_index, mark.term));
    format!("starts {:?}, marks {:?}", starts.collect::<Vec<_>>(), marks.collect::<Vec<_>>())
}
