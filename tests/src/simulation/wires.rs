//! Messages and snapshots between members, over the simulated network.

use api::raftpb::{self, MessageType};
use consensus::io::Input;
use identity::{Hello, Life};
use prost::Message as _;
use rand::Rng;
use types::{LogPosition, MemberId, Term};

use super::checks;
use super::sentry::Passage;
use super::world::{Event, World};

/// A message on its way between two places.
#[derive(Clone)]
pub struct Parcel {
    pub message: raftpb::Message,
    pub from: u64,
    /// The start that sent it, which alone can be answered.
    pub sender: u64,
    pub to: u64,
    /// The start that it was meant for, in worlds with several lives: with the process ends the connection. One that came to a later start
    /// on a wiped directory would speak of what was before it, and where nobody has learned a life nothing could tell.
    pub start: Option<u64>,
    /// The life that the sender is of, which nobody is told.
    pub lineage: u32,
    /// What the sender says of itself, where members do.
    pub hello: Option<Hello>,
}

impl World {
    pub(super) fn send(&mut self, from: u64, message: raftpb::Message) {
        let sender = &self.members[&from];
        let to = self.place_for(from, message.to());
        let passed_on = matches!(message.r#type(), MessageType::MsgProp | MessageType::MsgReadIndex);
        assert!(message.from() == sender.id || passed_on, "members speak for themselves: {message:?}");
        checks::promise_is_durable(sender.id, &sender.disk, &message);
        let (hello, lineage) = (sender.hello(), sender.disk.lineage);
        // A stream does not repeat; a proposal that came twice would be two.
        let may_repeat = message.r#type() != MessageType::MsgProp;
        let ways = self.network.route(&mut self.rng, from, to, may_repeat);
        if ways.is_empty() && self.rng.random_bool(0.3) {
            let life = self.members[&from].life;
            self.members
                .get_mut(&from)
                .and_then(|member| member.running.as_mut())
                .expect("it speaks")
                .inbox
                .push(Input::Unreachable(MemberId(message.to())));
            self.at(1, Event::Flush(from, life));
        }
        let bytes = message.encode_to_vec();
        let (sender, start) = (self.members[&from].life, self.start_at(to));
        for delay in ways {
            let message = raftpb::Message::decode(bytes.as_slice()).expect("what was encoded decodes");
            let parcel = Parcel { message, from, sender, to, start, lineage, hello: hello.clone() };
            self.at(delay, Event::Arrive(Box::new(parcel)));
        }
    }

    fn start_at(&self, place: u64) -> Option<u64> {
        let member = self.members.get(&place).filter(|_| self.setup.lives)?;
        Some(member.life)
    }

    pub(super) fn arrive(&mut self, parcel: Parcel) {
        let Parcel { message, from, sender, to, start, lineage, hello } = parcel;
        let snapshot =
            message.snapshot.as_ref().and_then(|snapshot| snapshot.metadata.as_ref()).map(|metadata| {
                LogPosition { term: Term(metadata.term()), index: types::LogIndex(metadata.index()) }
            });
        let running = self
            .members
            .get(&to)
            .filter(|member| member.id == message.to() && start.is_none_or(|start| member.life == start))
            .is_some_and(|member| member.running.is_some());
        let passage = match &hello {
            Some(hello) if running => self.admit(to, hello),
            _ => Passage::Accepted,
        };
        if snapshot.is_some() {
            // The sender's transport learns how its stream ended.
            let ok = running && matches!(passage, Passage::Accepted);
            self.input(from, Input::SnapshotStatus { to: MemberId(message.to()), ok });
        }
        if let Passage::Refused(heard, life) = passage {
            for delay in self.network.route(&mut self.rng, to, from, false) {
                self.at(delay, Event::Voice(from, sender, Box::new(((*heard).clone(), life))));
            }
            return;
        }
        if matches!(passage, Passage::HeldOff) {
            return;
        }
        let Some(member) = self.members.get_mut(&to).filter(|_| running) else { return };
        let Some(running) = &member.running else { return };
        // The transport turns removed members away.
        if running.machine.reader().is_removed(MemberId(message.from())) {
            return;
        }
        if running.sentry.as_ref().is_some_and(|sentry| sentry.is_silent) {
            return;
        }
        // A copy of a directory that was formed and has held nothing since cannot be told from one that was formed now, and need not be.
        let is_blank = hello
            .as_ref()
            .is_some_and(|hello| hello.life == Life::Formed && hello.log.last_index <= self.first_members);
        // A joiner that holds nothing is of the life that first gives it something.
        let takes_any =
            member.hello().is_some_and(|own| own.life == Life::Joining && own.log.last_index == 0);
        if takes_any {
            member.disk.lineage = lineage;
        }
        assert!(
            is_blank || lineage == member.disk.lineage,
            "two lives of the cluster never talk: {from} to {to}: {message:?}"
        );
        if let Some(position) = snapshot {
            let state = self.snapshots.get(&(from, to, position)).expect("the bytes travel with the message");
            member.disk.received.insert(position, state.clone());
        }
        self.input(to, Input::Message(message));
    }

    pub(super) fn send_snapshot(&mut self, id: u64, life: u64, to: u64) {
        let place = self.place_for(id, to);
        let Some(running) = self.alive(id, life).and_then(|member| member.running.as_mut()) else { return };
        // What came in before is older than the state that is sent.
        let position = running.machine.applied();
        let conf_state = running.machine.conf_state();
        let made = running.core.snapshot_message(MemberId(to), position, &conf_state);
        let state = (**running.machine.store()).clone();
        let message = match made {
            Ok(message) => message,
            Err(error) => {
                self.note(|| format!("{id} sends {to} no snapshot: {error}"));
                self.input(id, Input::SnapshotStatus { to: MemberId(to), ok: false });
                return;
            }
        };
        self.snapshots.insert((id, place, position), state);
        let sender = &self.members[&id];
        checks::promise_is_durable(sender.id, &sender.disk, &message);
        let (hello, lineage) = (sender.hello(), sender.disk.lineage);
        let ways = self.network.route(&mut self.rng, id, place, true);
        let start = self.start_at(place);
        self.note(|| {
            format!("{id} sends {to} the snapshot at {position}, which arrives {} times", ways.len())
        });
        let receiver_runs = self.members.get(&place).is_some_and(|member| member.running.is_some());
        if ways.is_empty() || !receiver_runs {
            self.input(id, Input::SnapshotStatus { to: MemberId(to), ok: false });
        }
        for delay in ways {
            // Many bytes take longer.
            let (message, hello) = (message.clone(), hello.clone());
            let parcel = Parcel { message, from: id, sender: life, to: place, start, lineage, hello };
            self.at(delay * 10, Event::Arrive(Box::new(parcel)));
        }
        self.flush(id);
    }
}
