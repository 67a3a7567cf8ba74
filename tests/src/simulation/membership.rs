//! Changes of membership in the middle of everything, by the rules of the node, and how a removed member goes.

use consensus::io::{Input, Proposal, ProposalId, Role};
use rand::Rng;
use types::{EntryKind, MemberId};

use super::TICK;
use super::client::{self, Change};
use super::damage::TWIN;
use super::member::{Member, Running};
use super::rules::{self, Heard};
use super::sentry::Origin;
use super::world::{CLIENTS_END, Event, MEMBERS_MAX, World};

/// How often somebody is asked for one removal: an operator who gets no answer asks again.
const REMOVAL_TRIES: u32 = 10;

/// Whom a member hears: who runs, over a link that works both ways.
struct Links<'a> {
    world: &'a World,
    me: u64,
}

impl Heard for Links<'_> {
    fn steadily(&self, id: MemberId) -> bool {
        self.now(id)
    }

    fn now(&self, id: MemberId) -> bool {
        self.world.hears(self.me, id.0)
    }
}

fn knows_removed(running: &Running, id: u64) -> bool {
    running.machine.reader().is_removed(MemberId(id))
}

impl World {
    fn who_runs(&self, id: u64) -> Option<&Running> {
        self.members.get(&id).and_then(|member| member.running.as_ref())
    }

    fn hears(&self, me: u64, other: u64) -> bool {
        let cut = &self.network.cut;
        let linked = !cut.contains(&(me, other)) && !cut.contains(&(other, me));
        me == other || (linked && self.who_runs(other).is_some())
    }

    /// An operator asks this member for something that its rules allow.
    pub(super) fn change_members(&mut self, id: u64) {
        let next = self.members.keys().rfind(|place| **place < TWIN).copied().unwrap_or(0) + 1;
        let Some(running) = self.who_runs(id) else { return };
        let state = running.machine.conf_state();
        let everybody: Vec<MemberId> = state.voters.iter().chain(&state.learners).copied().collect();
        let Some(any) = (!everybody.is_empty()).then(|| everybody[self.rng.random_range(0..everybody.len())])
        else {
            return;
        };
        match self.rng.random_range(0..8) {
            0..3 if next <= MEMBERS_MAX => {
                let is_learner = self.rng.random_bool(0.8) && !self.setup.joined;
                if self.ask(id, Change::Add { id: next, is_learner }) {
                    let mut member = self.fresh(next);
                    if self.setup.damage {
                        member.disk.papers = self.fresh_papers(next, Origin::Joining, everybody);
                    }
                    self.members.insert(next, member);
                    self.at(0, Event::Start(next));
                }
            }
            3..5 => {
                let Some(learner) = state.learners.first() else { return };
                self.publish(learner.0);
                let leads = |member: &&Member| {
                    let running = member.running.as_ref();
                    let leads = running.is_some_and(|running| running.core.status().role == Role::Leader);
                    leads && member.disk.lineage == 0
                };
                // Only a leader knows how far it is.
                if let Some(leader) = self.members.values().find(leads).map(|member| member.id) {
                    self.ask(leader, Change::Promote(learner.0));
                }
            }
            5 => {
                self.next_request += 1;
                self.ask(id, Change::Update(any.0, self.next_request));
            }
            _ => self.ask_to_remove(any.0, REMOVAL_TRIES),
        }
    }

    /// Again and again until it is gone, whoever leads by then; the member itself may be the one that is asked.
    pub(super) fn ask_to_remove(&mut self, id: u64, tries: u32) {
        let Some(asked) = self.pick_running() else { return };
        let running = self.who_runs(asked).expect("picked");
        if running.machine.reader().member(MemberId(id)).is_none() || tries == 0 || self.now > CLIENTS_END {
            return;
        }
        let leads = self.who_runs(id).is_some_and(|running| running.core.status().role == Role::Leader);
        if self.ask(asked, Change::Remove(id)) && leads {
            self.leaders_asked.insert(id);
        }
        let pause = self.rng.random_range(5 * TICK..20 * TICK);
        self.at(pause, Event::Remove(id, tries - 1));
    }

    /// A started member tells its name until the log has it; it is asked to now and then.
    fn publish(&mut self, id: u64) {
        let Some(running) = self.who_runs(id) else { return };
        let unnamed =
            running.machine.reader().member(MemberId(id)).is_some_and(|member| member.name.is_empty());
        if unnamed {
            self.next_request += 1;
            let request = self.next_request;
            let data = client::publish(request, id);
            let proposal = Proposal { id: ProposalId(request), kind: EntryKind::Normal, data };
            self.input(id, Input::Propose(vec![proposal]));
        }
    }

    /// False when it refuses.
    fn ask(&mut self, id: u64, change: Change) -> bool {
        let Some(running) = self.who_runs(id) else { return false };
        // In the node it waits: members come and go only in a life that has a name.
        if running.sentry.as_ref().is_some_and(|sentry| sentry.founds(&running.machine.reader())) {
            return false;
        }
        let membership = running.machine.reader().membership();
        let links = Links { world: self, me: id };
        let target = MemberId(change.id());
        let by_rules = match change {
            Change::Add { is_learner, .. } => rules::add(&membership, is_learner, &links),
            Change::Remove(_) => rules::remove(&membership, target, &links),
            Change::Promote(_) => rules::is_ready(&membership, target, &running.core.status())
                .and_then(|()| rules::promote(&membership)),
            Change::Update(..) => Ok(()),
        };
        let refused = by_rules
            .and_then(|()| membership.check(change.kind(), target, &change.context()).map(drop))
            .err();
        self.note(|| format!("{id} is asked to {change:?}: {refused:?}"));
        if refused.is_some() {
            return false;
        }
        if let (Change::Remove(gone), true) = (change, self.setup.damage) {
            // Who replaces a damaged member does not remove the good ones meanwhile.
            if !self.majority_is_good(gone) {
                return false;
            }
            self.asked_to_go.insert(gone);
        }
        let votes = match change {
            Change::Add { id, is_learner: false } | Change::Promote(id) => Some(id),
            _ => None,
        };
        if let (Some(voter), true) = (votes, self.setup.damage)
            && self.asked_to_vote.insert(voter)
            && !self.majority_is_good(0)
        {
            self.asked_to_vote.remove(&voter);
            return false;
        }
        self.next_request += 1;
        let request = self.next_request;
        let data = client::encode_change(change, request);
        let proposal = Proposal { id: ProposalId(request), kind: EntryKind::ConfChange, data };
        self.input(id, Input::Propose(vec![proposal]));
        true
    }

    /// A removed member leaves for ever. One that knows it from its log waits until a quorum of those who stay shows that they know: until
    /// then its vote may be needed. One that was down or cut off is told by a leader or by a majority of its own voters.
    pub(super) fn leave_if_removed(&mut self, place: u64) {
        let member = &self.members[&place];
        let id = member.id;
        let Some(running) = member.running.as_ref().filter(|_| !member.removed) else { return };
        let voters = running.machine.conf_state().voters;
        let said_by = |other: &MemberId| {
            let says = |running: &Running| knows_removed(running, id);
            // Another life has no say.
            self.lineage(other.0) == member.disk.lineage
                && other.0 != id
                && self.hears(id, other.0)
                && self.who_runs(other.0).is_some_and(says)
        };
        let saying = voters.iter().filter(|other| said_by(other)).count();
        let by_leader = || {
            let leads = |id: &MemberId| {
                self.who_runs(id.0).is_some_and(|running| running.core.status().role == Role::Leader)
            };
            voters.iter().any(|other| said_by(other) && leads(other))
        };
        let knows = knows_removed(running, id);
        if saying > voters.len() / 2 || (!knows && by_leader()) {
            self.note(|| format!("{place} was removed and leaves"));
            if let Some(member) = self.members.get_mut(&place) {
                member.removed = true;
                member.crash(usize::MAX, true);
            }
        }
    }
}
