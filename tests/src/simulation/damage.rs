//! Directories that are wiped, replaced by an older copy, swapped between machines, or run twice; and the start of a member, which asks
//! the others first.
//!
//! Here the truth is known: which directory holds all that its member ever promised. A majority of the voters always does; nothing can be
//! promised beyond that. And a directory that does not is only used where it is *covered*: every other member durably knows, by what is
//! replicated, that it is not good. What is not covered is the window that no record can close: promises that no other member had
//! heard of (or had applied) by the time they were lost. Worlds with [`Setup::window`](super::Setup) open it on purpose, and whatever
//! goes wrong in them after that moment is counted and not failed.

use consensus::io::Role;
use identity::believe::{Voice, believed, believed_at_start, is_behind};
use identity::{Boot, Hello, Life, LogEnd, Unique, Verdict};
use rand::Rng;
use state_machine::{Memory, StateMachine};
use types::{Entry, LogIndex, MemberId};

use super::disk::Disk;
use super::jury::Heard;
use super::member::{Member, Told, open};
use super::sentry::{Origin, Papers, hello_of, judged};
use super::world::{CLIENTS_END, Event, World};
use super::{TICK, Time, client, due};

/// Copies of directories that somebody keeps.
const COPIES_MAX: usize = 16;

/// The second start of a member runs at a place of its own.
pub(super) const TWIN: u64 = 100;

/// As in the daemon's `again`: what is not outweighed counts after this, a twin's session may take longer to end.
const PATIENCE: Time = 3000;
const TWIN_PATIENCE: Time = 5000;
const ASKED_EVERY: Time = 300;

impl World {
    pub(super) fn fresh_unique(&mut self) -> Unique {
        self.next_unique += 1;
        Unique::for_test(self.next_unique)
    }

    pub(super) fn fresh_papers(&mut self, member: u64, origin: Origin, elders: Vec<MemberId>) -> Papers {
        let dir = self.fresh_unique();
        Papers { member, dir, origin, elders, ..Papers::default() }
    }

    /// Whether the voters whose directories are good, and who are not asked to go, are a majority, without this one. Whatever becomes of the
    /// changes that are under way: who is asked to vote may do so in some member's log already.
    pub(super) fn majority_is_good(&self, without: u64) -> bool {
        let voters = self.memberships.newest().voters;
        let is_good = |id: &u64| {
            let member = self.members.get(id);
            *id != without
                && !self.asked_to_go.contains(id)
                && member.is_some_and(|member| !member.disk.is_damaged && !member.disk.papers.is_quarantined)
        };
        let awaited = self.asked_to_vote.iter().filter(|id| !voters.contains(&MemberId(**id)));
        let bad_ones_more = awaited.filter(|id| !is_good(id)).count();
        voters.iter().filter(|id| is_good(&id.0)).count() > (voters.len() + bad_ones_more) / 2
    }

    /// What a start on this directory would say.
    fn would_be(&mut self, disk: &Disk) -> Hello {
        let nonce = self.fresh_unique();
        let before = disk.papers.boot;
        let previous = (before.seq > 0).then_some(before.nonce);
        let boot = Boot { seq: before.seq + 1, nonce, previous };
        let own = Papers { boot, ..disk.papers.clone() }.own(nonce);
        let last = disk.last();
        let log = LogEnd {
            last_index: last.index.0,
            last_term: last.term.0,
            term: disk.hard_state.term.0,
            commit: disk.hard_state.commit.0,
        };
        hello_of(disk.papers.member, &own, disk.papers.life(), log)
    }

    /// Whether every other member's good directory holds, as applied, what convicts this start; also one that may be found again, and that of
    /// a member that was removed while it was down and does not know it: with the bad one it could be a majority of long ago.
    fn is_covered(&self, hello: &Hello) -> bool {
        let conf = self.memberships.newest();
        let is_unaware = |id: &u64| {
            let member = &self.members[id];
            let holds = !member.disk.entries.is_empty() || member.disk.snapshot.index.0 > 0;
            *id < TWIN && !member.removed && holds
        };
        let unaware = self.members.keys().copied().filter(is_unaware);
        let mut others = conf.voters.iter().chain(&conf.learners).map(|id| id.0).chain(unaware);
        others.all(|id| {
            let Some(member) = self.members.get(&id) else { return false };
            let good = if member.disk.is_damaged { self.shelves.get(&id) } else { Some(&member.disk) };
            id == hello.member.0 || good.is_none_or(|good| convicts(good, id, hello))
        })
    }

    /// Somebody copies a directory, for a rainy day.
    fn copy_one(&mut self) {
        let places: Vec<u64> = self.members.keys().copied().filter(|place| *place < TWIN).collect();
        let place = places[self.rng.random_range(0..places.len())];
        let disk = &self.members[&place].disk;
        if disk.is_damaged || disk.papers.boot.seq == 0 {
            return;
        }
        let copy = disk.clone();
        if self.copies.len() == COPIES_MAX {
            let at = self.rng.random_range(0..COPIES_MAX);
            self.copies.remove(at);
        }
        self.note(|| format!("the directory of {place} is copied at {}", copy.last()));
        self.copies.push(copy);
    }

    pub(super) fn damage(&mut self) {
        if self.calm {
            return;
        }
        let pause = self.rng.random_range(2 * TICK..20 * TICK);
        self.at(pause, Event::Damage);
        if self.setup.lives && (self.setup.joined || self.rng.random_bool(0.25)) {
            return self.begin_a_life();
        }
        let conf = self.memberships.newest();
        let all: Vec<u64> = conf.voters.iter().chain(&conf.learners).map(|id| id.0).collect();
        let choice = self.rng.random_range(0..12);
        if choice < 4 || all.is_empty() {
            return self.copy_one();
        }
        let place = all[self.rng.random_range(0..all.len())];
        let Some(member) = self.members.get(&place) else { return };
        let papers = &member.disk.papers;
        if member.disk.is_damaged || papers.boot.seq == 0 || papers.member != place || member.removed {
            return;
        }
        match choice {
            4..7 => self.roll_back(place),
            7 | 8 => self.wipe(place),
            9 | 10 => self.run_twice(place),
            _ => {
                let other = all[self.rng.random_range(0..all.len())];
                self.swap(place, other);
            }
        }
    }

    fn draw_copy(&mut self, place: u64) -> Option<Disk> {
        let dir = self.members[&place].disk.papers.dir;
        let fitting: Vec<&Disk> = self.copies.iter().filter(|copy| copy.papers.dir == dir).collect();
        let at = (!fitting.is_empty()).then(|| self.rng.random_range(0..fitting.len()))?;
        Some(fitting[at].clone())
    }

    /// Whether the bad directories with this one would be a majority of the voters that one of them remembers: alone with each other they
    /// would be that cluster again, and nobody there to convict them.
    fn would_rise(&self, member: u64, disk: &Disk) -> bool {
        let bad = self.members.values().filter(|other| other.disk.is_damaged && other.disk.lineage == 0);
        let mut bad: Vec<(u64, &Disk)> = bad.map(|other| (other.id, &other.disk)).collect();
        bad.push((member, disk));
        bad.iter().any(|(_, one)| {
            let remembered = reopened(one).map(|machine| machine.conf_state().voters);
            let voters = remembered.filter(|voters| !voters.is_empty());
            let voters = voters.unwrap_or_else(|| one.papers.elders.clone());
            let is_bad = |voter: &&MemberId| bad.iter().any(|(id, _)| *id == voter.0);
            voters.iter().filter(is_bad).count() > voters.len() / 2
        })
    }

    /// Whether this directory may be used in a member's place. Opens the window where that is wanted.
    fn may_use(&mut self, place: u64, disk: &Disk) -> bool {
        if !self.majority_is_good(place) || self.would_rise(place, disk) {
            return false;
        }
        let hello = self.would_be(disk);
        if self.is_covered(&hello) {
            return true;
        }
        if self.setup.window {
            self.window_is_open = true;
            self.note(|| format!("nobody else may know that the directory used as {place} is bad"));
        }
        self.setup.window
    }

    pub(super) fn replace(&mut self, place: u64, mut disk: Disk, what: &str) {
        self.crash(place);
        disk.is_damaged = true;
        let member = self.members.get_mut(&place).expect("chosen among members");
        disk.lost = Some((member.disk.last(), member.disk.hard_state));
        let good = std::mem::replace(&mut member.disk, disk);
        let lost = (good.last(), member.disk.last());
        self.outcome.damaged += 1;
        self.note(|| format!("the directory of {place} {what}: {} becomes {}", lost.0, lost.1));
        self.shelves.insert(place, good);
        let pause = self.rng.random_range(1..20 * TICK);
        self.at(pause, Event::Start(place));
        if self.rng.random_bool(0.5) {
            let pause = self.rng.random_range(20 * TICK..150 * TICK);
            self.at(pause, Event::Restore(place));
        }
    }

    fn roll_back(&mut self, place: u64) {
        let Some(copy) = self.draw_copy(place) else { return };
        if self.may_use(place, &copy) {
            self.replace(place, copy, "is rolled back");
        }
    }

    fn wipe(&mut self, place: u64) {
        let origin = if self.rng.random_bool(0.5) { Origin::Unborn } else { Origin::Joining };
        let elders = self.members[&place].disk.papers.elders.clone();
        let disk = Disk { papers: self.fresh_papers(place, origin, elders), ..Disk::default() };
        if self.may_use(place, &disk) {
            self.replace(place, disk, "is wiped");
        }
    }

    /// A copy is started elsewhere, while the good one runs or not.
    fn run_twice(&mut self, place: u64) {
        let Some(mut copy) = self.draw_copy(place) else { return };
        let twin = place + TWIN;
        if self.members.contains_key(&twin) || !self.may_use(place, &copy) {
            return;
        }
        copy.is_damaged = true;
        let mut member = self.fresh(place);
        member.disk = copy;
        member.life = 1000;
        self.members.insert(twin, member);
        self.outcome.twins += 1;
        self.note(|| format!("an older copy of {place} is started at {twin}"));
        self.at(1, Event::Start(twin));
    }

    /// Two machines get each other's disks, for a while: what they find is not theirs.
    fn swap(&mut self, one: u64, other: u64) {
        let has_its_own = |member: &Member| {
            !member.removed && !member.disk.is_damaged && member.disk.papers.member == member.id
        };
        let fits = |place: u64| self.members.get(&place).is_some_and(has_its_own);
        if one == other || !fits(one) || !fits(other) {
            return;
        }
        for place in [one, other] {
            self.crash(place);
        }
        self.note(|| format!("the disks of {one} and {other} are swapped"));
        self.outcome.swaps += 1;
        self.swap_disks(one, other);
        let pause = self.rng.random_range(TICK..40 * TICK);
        self.at(pause, Event::SwapBack(one, other));
    }

    fn swap_disks(&mut self, one: u64, other: u64) {
        let mut disk = std::mem::take(&mut self.members.get_mut(&one).expect("a member").disk);
        std::mem::swap(&mut disk, &mut self.members.get_mut(&other).expect("a member").disk);
        self.members.get_mut(&one).expect("a member").disk = disk;
    }

    pub(super) fn swap_back(&mut self, one: u64, other: u64) {
        // Somebody else may have looked after one of the two meanwhile.
        if self.members[&one].disk.papers.member != other || self.members[&other].disk.papers.member != one {
            return;
        }
        self.swap_disks(one, other);
        self.note(|| format!("{one} and {other} have their own disks again"));
        self.at(1, Event::Start(one));
        self.at(1, Event::Start(other));
    }

    /// After a snapshot was installed. The directory that was good before is an older copy from now on.
    pub(super) fn heal_directory(&mut self, place: u64) {
        let Some(member) = self.members.get_mut(&place) else { return };
        if member.disk.is_whole_again() {
            (member.disk.is_damaged, member.disk.lost) = (false, None);
            self.shelves.remove(&place);
            self.note(|| format!("{place} has all that it ever promised again, by a snapshot"));
        }
    }

    /// The good directory is found again, once the bad one is out of use.
    pub(super) fn restore(&mut self, place: u64) {
        let member = &self.members[&place];
        if member.removed || !member.disk.is_damaged {
            return;
        }
        if member.running.is_some() && member.disk.lineage != 0 {
            // Its life ends here: somebody has found out.
            self.dies(place);
        } else if member.running.is_some() {
            if self.now < CLIENTS_END {
                self.at(20 * TICK, Event::Restore(place));
            }
            return;
        }
        let Some(good) = self.shelves.remove(&place) else { return };
        let member = self.members.get_mut(&place).expect("asked");
        if member.disk.lineage != 0 {
            self.came_back.insert(place, self.now);
        }
        (member.disk, member.attends) = (good, false);
        self.outcome.restored += 1;
        self.note(|| format!("{place} has its good directory again"));
        self.at(1, Event::Start(place));
    }

    /// A start asks everybody that its directory knows, and is told what they know of it.
    pub(super) fn try_start(&mut self, place: u64, since: Time) {
        let member = &self.members[&place];
        let papers = &member.disk.papers;
        if member.running.is_some() || member.removed || papers.is_quarantined {
            return;
        }
        if papers.member != member.id {
            // The name and the URL of the settings are another member's.
            return self.note(|| format!("{place} finds another member's directory and does not start"));
        }
        let origin = papers.origin;
        let is_empty = member.disk.entries.is_empty() && member.disk.snapshot.index.0 == 0;
        let disk = std::mem::take(&mut self.members.get_mut(&place).expect("it exists").disk);
        let hello = self.would_be(&disk);
        let reader = reopened(&disk).unwrap_or_else(|| open(disk.state.clone())).reader();
        self.members.get_mut(&place).expect("it exists").disk = disk;
        let elders = self.members[&place].disk.papers.elders.clone();
        let voters = Some(reader.conf_state().voters).filter(|voters| !voters.is_empty());
        let listed: Vec<MemberId> = reader.members().into_iter().map(|member| member.id).collect();
        let peers = if listed.is_empty() { elders.clone() } else { listed };
        let (now, defect) = (self.now, self.setup.defect);
        let mut answers = Vec::new();
        let own_lineage = self.members[&place].disk.lineage;
        for peer in peers.into_iter().filter(|peer| *peer != hello.member) {
            if self.reaches(place, peer.0)
                && let Some((heard, life)) = self.members[&peer.0].answer(&hello, now, defect)
            {
                answers.push((heard, life));
            }
        }
        answers.retain(|(heard, _)| !is_behind(&heard.verdict, &heard.witness, hello.log.commit));
        let voices: Vec<Voice> = answers
            .iter()
            .map(|(heard, life)| Voice {
                from: heard.witness.member,
                // As in the daemon: what is marked for good takes the same life.
                leads: heard.witness.leads
                    && (!matches!(heard.verdict, Verdict::Removed { .. }) || *life == papers_life(&hello)),
                term: heard.witness.term,
                verdict: &heard.verdict,
                is_foreign: matches!(heard.verdict, Verdict::OtherLife { .. }),
                life: papers_life(&hello).or(*life),
            })
            .collect();
        let against =
            voices.iter().find(|voice| !voice.verdict.is_welcome()).map(|voice| voice.verdict.clone());
        let waited = now - since;
        let again = |world: &mut World| {
            if now < CLIENTS_END {
                world.at(ASKED_EVERY, Event::StartAgain(place, since));
            }
        };
        if is_empty && origin != Origin::Formed {
            // Empty: somebody has to say that there is a place for it.
            let welcome = answers.iter().find(|(heard, life)| {
                heard.verdict.is_welcome() && (life.is_some() || origin == Origin::Joining)
            });
            let born = welcome.and_then(|(_, life)| *life);
            let lineage = welcome.map_or(own_lineage, |(heard, _)| self.lineage(heard.witness.member.0));
            let lost = voices.iter().find(|voice| voice.verdict.means_lost_history());
            let against = match origin {
                // As the daemon's `join`: a place is a place, whoever has none to give.
                Origin::Joining if welcome.is_some() => lost.map(|voice| voice.verdict.clone()),
                _ => lost.map(|voice| voice.verdict.clone()).or(against),
            };
            return match (against, born, origin) {
                // Nothing is marked for good in a directory that holds nothing: it may be tried again.
                (Some(Verdict::Removed { .. }), ..) if waited >= PATIENCE => {
                    self.ends_by(place, &Verdict::Stranger)
                }
                (Some(verdict), ..)
                    if waited >= PATIENCE
                        || !(verdict.may_pass() || matches!(verdict, Verdict::Removed { .. })) =>
                {
                    self.ends_by(place, &verdict)
                }
                (None, Some(life), Origin::Unborn) => {
                    // It takes its place late, with the log that all began with.
                    let (hard_state, entries) = client::first_log(self.first_members);
                    let disk = &mut self.members.get_mut(&place).expect("it exists").disk;
                    disk.lineage = lineage;
                    (disk.hard_state, disk.entries) = (hard_state, entries);
                    (disk.papers.cluster_uuid, disk.papers.origin) = (Some(life), Origin::Formed);
                    self.begins(place, hello);
                }
                (None, _, Origin::Joining) if !answers.is_empty() => {
                    self.members.get_mut(&place).expect("it exists").disk.lineage = lineage;
                    self.begins(place, hello);
                }
                (None, None, Origin::Unborn) if self.setup.lives => {
                    if !self.attend(place, hello) {
                        again(self);
                    }
                }
                _ => again(self),
            };
        }
        let voters = voters.unwrap_or(elders);
        let knows_more = |(heard, life): &&(Heard, Option<Unique>)| {
            heard.verdict.is_welcome()
                && *life == papers_life(&hello)
                && heard.witness.commit > hello.log.commit
        };
        let newest = answers.iter().filter(knows_more).max_by_key(|(heard, _)| heard.witness.commit);
        let newer =
            newest.map(|(heard, _)| self.members[&heard.witness.member.0].voters()).unwrap_or_default();
        let over = waited >= PATIENCE;
        let own_term = hello.log.term;
        // As in the daemon: no patience makes one voice enough for what is marked for good.
        let (for_good, passing): (Vec<Voice>, Vec<Voice>) =
            voices.iter().copied().partition(|voice| matches!(voice.verdict, Verdict::Removed { .. }));
        let believed = believed(&voters, own_term, &for_good)
            .or_else(|| believed_at_start(&voters, &newer, hello.member, own_term, &passing, over));
        match believed.cloned() {
            Some(verdict) => {
                let limit = match &verdict {
                    Verdict::Duplicate { .. } => TWIN_PATIENCE,
                    verdict if verdict.may_pass() => PATIENCE,
                    _ => 0,
                };
                if waited >= limit { self.ends_by(place, &verdict) } else { again(self) }
            }
            None if against.is_some() && !over => again(self),
            None => self.begins(place, hello),
        }
    }

    pub(super) fn begins(&mut self, place: u64, hello: Hello) {
        let fresh = self.fresh_unique();
        let member = self.members.get_mut(&place).expect("a member that starts exists");
        member.disk.papers.boot = hello.boot;
        let own = member.disk.papers.own(fresh);
        self.start(place, Some(own));
    }

    /// This start is over, or never was: the cluster does not take it.
    pub(super) fn ends_by(&mut self, place: u64, verdict: &Verdict) {
        let is_removed = {
            let readers = self.members.values().filter(|member| !member.disk.is_damaged);
            let mut readers = readers.filter_map(|member| Some(member.running.as_ref()?.machine.reader()));
            readers.any(|reader| reader.is_removed(MemberId(place % TWIN)))
        };
        let has_twin = self.members.contains_key(&(place % TWIN + TWIN));
        let is_good = !self.members[&place].disk.is_damaged;
        self.note(|| format!("{place} ends: {verdict:?}"));
        if self.members[&place].running.is_some() {
            self.dies(place);
        }
        self.outcome.expelled += 1;
        if !self.window_is_open && is_good {
            assert!(!verdict.means_lost_history(), "{place} holds all that it promised: {verdict:?}");
            assert!(
                !matches!(verdict, Verdict::OtherLife { .. }) || self.has_no_majority_left(place),
                "{place} ends for another life, and enough voters of its own are left"
            );
        }
        let member = self.members.get_mut(&place).expect("asked");
        match verdict {
            Verdict::Removed { .. } => {
                assert!(is_removed, "{place} was removed, or nobody may say so");
                member.removed = true;
            }
            verdict if verdict.means_lost_history() => member.disk.papers.is_quarantined = true,
            // Somebody looks at the message and starts it again.
            _ if is_good || !has_twin => {
                let pause = self.rng.random_range(10 * TICK..50 * TICK);
                if self.now + pause < CLIENTS_END {
                    self.at(pause, Event::Start(place));
                }
            }
            _ => {}
        }
    }

    fn dies(&mut self, place: u64) {
        self.members.get_mut(&place).expect("it runs").crash(usize::MAX, true);
        self.sessions_end(place);
    }

    /// A write that was acknowledged is never missing at a majority of those who vote and say that they are well.
    pub(super) fn majority_holds(&self) {
        let Some(index) = self.acknowledged.newest() else { return };
        let term = self.committed.term_at(index).expect("what was acknowledged was applied");
        let voters = self.memberships.newest().voters;
        let lacks = |member: &&Member| {
            let Some(sentry) = member.running.as_ref().and_then(|running| running.sentry.as_ref()) else {
                return false;
            };
            let disk = &member.disk;
            let holds = disk.snapshot.index >= index || disk.term_at(index) == Some(term);
            disk.lineage == 0
                && sentry.is_confirmed
                && !sentry.is_silent
                && voters.contains(&MemberId(member.id))
                && !holds
        };
        let lacking: Vec<u64> = self.members.values().filter(lacks).map(|member| member.id).collect();
        assert!(
            voters.is_empty() || lacking.len() <= voters.len() / 2,
            "{index} was acknowledged; {lacking:?} of {voters:?} say that they are well and lack it"
        );
    }

    /// At the end nobody serves on a directory that is not good, and everybody whose directory is does.
    pub(super) fn end_damage(&self) {
        for (place, member) in &self.members {
            let Some(sentry) = member.running.as_ref().and_then(|running| running.sentry.as_ref()) else {
                continue;
            };
            if member.disk.lineage != 0 {
                continue;
            }
            assert!(
                !member.disk.is_damaged || !sentry.is_confirmed || sentry.is_silent,
                "{place} serves on a directory that is not good"
            );
            let leads =
                member.running.as_ref().is_some_and(|running| running.core.status().role == Role::Leader);
            assert!(member.disk.is_damaged || !leads || sentry.is_confirmed, "{place} leads and serves");
        }
    }
}

fn papers_life(hello: &Hello) -> Option<Unique> {
    match hello.life {
        Life::Born(life) => Some(life),
        _ => None,
    }
}

/// The state that this directory has again after a start: what is durable, and what its log says to be committed. None while a snapshot is
/// not installed.
pub(super) fn reopened(disk: &Disk) -> Option<StateMachine<Memory>> {
    let mut machine = open(disk.state.clone());
    let applied: LogIndex = machine.applied().index;
    if applied < disk.snapshot.index {
        return None;
    }
    let is_due = |entry: &&Entry| entry.index > applied && entry.index <= disk.hard_state.commit;
    let rest: Vec<Entry> = disk.entries.iter().filter(is_due).cloned().collect();
    if !rest.is_empty() {
        machine.apply(&rest, &mut Told::default());
    }
    Some(machine)
}

/// What this directory holds as applied, and would again after a crash, is enough to turn that start away.
fn convicts(disk: &Disk, me: u64, hello: &Hello) -> bool {
    let Some(machine) = reopened(disk) else { return false };
    let found = machine.reader().identity_of(hello.member);
    let witness = identity::Witness { member: MemberId(me), leads: false, term: 0, commit: 0 };
    let known = due::known(&disk.papers.own(disk.papers.dir), hello.member, found, witness);
    judged(hello, &known, None).means_lost_history()
}
