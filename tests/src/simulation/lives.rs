//! More than one life of a cluster at a time: a member that is forced into a life of its own at its own address, and a majority that is
//! wiped and founds the cluster anew, with the same settings, while the rest have the old data. Who belongs to which life is known here
//! and told to nobody; a message that passes from one to another fails (see `wires`).
//!
//! A founder that is wiped attends as the daemon's `attend` has it: whoever is awaited says that it is unborn, or formed and not yet
//! led, and a majority is enough.

use std::collections::BTreeMap;

use identity::{Hello, Life, Private, Unique};
use rand::Rng;
use state_machine::{Memory, Reader};
use types::{Entry, EntryKind, HardState, LogPosition, MemberId, Term};

use super::Time;
use super::checks::{Committed, EqualMembers, EqualStates, OneLeader, content};
use super::client::{self, Change};
use super::damage::reopened;
use super::disk::Disk;
use super::member::{Told, open};
use super::sentry::{Origin, note};
use super::world::World;

/// So long a jury remembers what was said, as does the node's.
const VOICE_LIVES: Time = 10_000;

/// What holds in one life.
#[derive(Default)]
pub struct Truth {
    pub leaders: OneLeader,
    committed: Committed,
    states: EqualStates,
    memberships: EqualMembers,
}

impl Truth {
    pub fn applied(
        &mut self,
        member: u64,
        entries: &[Entry],
        position: LogPosition,
        reader: &Reader<Memory>,
        members_changed: bool,
    ) {
        for entry in entries {
            let request =
                client::request_of(entry).and_then(|request| request.header).map(|header| header.id);
            self.committed.applies(member, entry, request);
        }
        if EqualStates::looks_at(position.index) {
            self.states.sees(member, position, content(reader));
        }
        if members_changed {
            self.memberships.sees(member, position.index, reader.membership());
        }
    }
}

impl World {
    pub(super) fn lineage(&self, place: u64) -> u32 {
        self.members.get(&place).map_or(0, |member| member.disk.lineage)
    }

    /// Mostly one member; at times, and once, a majority.
    pub(super) fn begin_a_life(&mut self) {
        if !self.is_doomed && (self.setup.joined || self.rng.random_bool(0.15)) {
            return self.wipe_a_majority();
        }
        if self.setup.joined {
            return;
        }
        let voters = self.memberships.newest().voters;
        if voters.is_empty() {
            return;
        }
        let place = voters[self.rng.random_range(0..voters.len())].0;
        self.force(place);
    }

    /// `--force-new-cluster` on a stopped member, while the others may live.
    fn force(&mut self, place: u64) {
        let Some(member) = self.members.get(&place) else { return };
        let is_usable = !member.disk.is_damaged && !member.removed && member.disk.papers.member == place;
        let Some(old) = member.disk.papers.cluster_uuid.filter(|_| is_usable) else { return };
        if !self.majority_is_good(place) {
            return;
        }
        let mut disk = member.disk.clone();
        let mut machine = open(disk.state.clone());
        let applied = machine.applied().index;
        if applied < disk.snapshot.index {
            return;
        }
        let me = MemberId(place);
        let rest: Vec<Entry> = disk.entries.iter().filter(|entry| entry.index > applied).cloned().collect();
        if !rest.is_empty() {
            machine.apply(&rest, &mut Told::default());
        }
        let members: Vec<MemberId> = machine.reader().members().into_iter().map(|member| member.id).collect();
        if !members.contains(&me) {
            return;
        }
        let fresh = self.fresh_unique();
        let term = Term(disk.hard_state.term.max(disk.last().term).0 + 1);
        let mut index = disk.last().index;
        let mut entries = Vec::new();
        let mut push = |data: bytes::Bytes| {
            index = index.next();
            entries.push(Entry { term, index, kind: EntryKind::ConfChange, data });
        };
        for other in members.iter().filter(|other| **other != me) {
            self.next_request += 1;
            push(client::encode_change(Change::Remove(other.0), self.next_request));
        }
        let own = machine.reader().member(me).expect("asked");
        let told = Private { cluster_uuid: Some(fresh), parent_uuid: Some(old), ..Private::default() };
        self.next_request += 1;
        push(note(me, own.note_context(told), self.next_request));
        machine.apply(&entries, &mut Told::default());
        let last = machine.applied().index;
        disk.state = (**machine.reader().store()).clone();
        disk.entries.extend(entries);
        (disk.hard_state, disk.unsynced) = (HardState { term, vote: MemberId::NONE, commit: last }, None);
        let papers = &mut disk.papers;
        (papers.cluster_uuid, papers.parent, papers.origin) = (Some(fresh), Some(old), Origin::Formed);
        (papers.elders, papers.attendees) = (vec![me], BTreeMap::new());
        self.last_lineage += 1;
        disk.lineage = self.last_lineage;
        self.outcome.forced += 1;
        self.replace(place, disk, "is forced into a life of its own");
        self.members.get_mut(&place).expect("asked").disk.lost = None;
    }

    /// Their operator starts them again with the flags of the first start.
    fn wipe_a_majority(&mut self) {
        let first: Vec<u64> = (1..=self.first_members).collect();
        let voters: Vec<u64> = self.memberships.newest().voters.iter().map(|id| id.0).collect();
        let is_usable = |place: &u64| {
            let member = &self.members[place];
            !member.disk.is_damaged && !member.removed && member.disk.papers.cluster_uuid.is_some()
        };
        // Others may have joined since. They go on at their addresses, and the founders' settings name none of them.
        let are_voters = first.iter().chain(&self.asked_to_vote).all(|place| voters.contains(place));
        let is_story = !self.setup.joined || voters.len() > first.len();
        if !are_voters || !is_story || !first.iter().all(is_usable) {
            return;
        }
        self.is_doomed = true;
        self.last_lineage += 1;
        self.outcome.wiped += 1;
        let spared = self.rng.random_range(0..first.len());
        let count = first.len() / 2 + 1;
        for place in (0..count).map(|at| first[(spared + 1 + at) % first.len()]) {
            let elders = self.members[&place].disk.papers.elders.clone();
            let papers = self.fresh_papers(place, Origin::Unborn, elders);
            let disk = Disk { papers, lineage: self.last_lineage, ..Disk::default() };
            self.replace(place, disk, "is wiped with those of a majority");
            self.members.get_mut(&place).expect("asked").disk.lost = None;
        }
    }

    /// Whether it forms the cluster now. It waits otherwise.
    pub(super) fn attend(&mut self, place: u64, hello: Hello) -> bool {
        let elders = self.members[&place].disk.papers.elders.clone();
        let me = hello.member;
        let cut = &self.network.cut;
        let is_linked = |other: u64| !cut.contains(&(place, other)) && !cut.contains(&(other, place));
        let attends = |other: &MemberId| {
            let member = self.members.get(&other.0)?;
            let is_formed = member.hello().is_some_and(|hello| hello.life == Life::Formed);
            let is_there = is_linked(other.0) && member.disk.papers.member == other.0;
            (is_there && (member.attends || is_formed))
                .then_some((member.disk.papers.dir, member.disk.lineage))
        };
        let others = elders.iter().filter(|other| **other != me);
        let there: BTreeMap<MemberId, (Unique, u32)> =
            others.filter_map(|other| Some((*other, attends(other)?))).collect();
        let member = self.members.get_mut(&place).expect("it starts");
        member.attends = true;
        if there.len() < elders.len() / 2 {
            return false;
        }
        let disk = &mut member.disk;
        disk.lineage = there.values().map(|(_, lineage)| *lineage).fold(disk.lineage, u32::max);
        (disk.hard_state, disk.entries) = client::first_log(self.first_members);
        disk.papers.origin = Origin::Formed;
        disk.papers.attendees = there.iter().map(|(id, (dir, _))| (*id, *dir)).collect();
        disk.papers.attendees.insert(me, hello.dir);
        // As in the node: what the log had committed is applied before anybody is met, or nobody would be known.
        if let Some(machine) = reopened(disk) {
            disk.state = (**machine.reader().store()).clone();
        }
        let lineage = disk.lineage;
        self.note(|| format!("{place} forms a cluster with {:?}, life {lineage}", there.keys()));
        self.begins(place, hello);
        true
    }

    /// Enough of the voters that this member knows of are of another life, as it must have found out.
    pub(super) fn has_no_majority_left(&self, place: u64) -> bool {
        let member = &self.members[&place];
        let running = member.running.as_ref().map(|running| running.machine.conf_state().voters);
        let stopped = || reopened(&member.disk).map(|machine| machine.conf_state().voters);
        let mut voters = running.or_else(stopped).unwrap_or_default();
        if voters.is_empty() {
            voters.clone_from(&member.disk.papers.elders);
        }
        let is_elsewhere = |id: &&MemberId| {
            let was_lately = self.came_back.get(&id.0).is_some_and(|at| self.now - at < VOICE_LIVES);
            self.lineage(id.0) != member.disk.lineage || was_lately
        };
        let elsewhere = voters.iter().filter(is_elsewhere).count();
        voters.len() - elsewhere < voters.len() / 2 + 1
    }
}
