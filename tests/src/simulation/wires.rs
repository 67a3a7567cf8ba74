//! Messages and snapshots between members, over the simulated network.

use api::raftpb::{self, MessageType};
use consensus::io::Input;
use prost::Message as _;
use rand::Rng;
use types::{LogPosition, MemberId, Term};

use super::checks;
use super::world::{Event, World};

impl World {
    pub(super) fn send(&mut self, from: u64, message: raftpb::Message) {
        let to = message.to();
        let passed_on = matches!(message.r#type(), MessageType::MsgProp | MessageType::MsgReadIndex);
        assert!(message.from() == from || passed_on, "members speak for themselves: {message:?}");
        checks::promise_is_durable(from, &self.members[&from].disk, &message);
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
                .push(Input::Unreachable(MemberId(to)));
            self.at(1, Event::Flush(from, life));
        }
        let bytes = message.encode_to_vec();
        for delay in ways {
            let message = raftpb::Message::decode(bytes.as_slice()).expect("what was encoded decodes");
            self.at(delay, Event::Arrive(Box::new(message)));
        }
    }

    pub(super) fn arrive(&mut self, message: raftpb::Message) {
        let (from, to) = (message.from(), message.to());
        let snapshot =
            message.snapshot.as_ref().and_then(|snapshot| snapshot.metadata.as_ref()).map(|metadata| {
                LogPosition { term: Term(metadata.term()), index: types::LogIndex(metadata.index()) }
            });
        let running = self.members.get(&to).is_some_and(|member| member.running.is_some());
        if snapshot.is_some() {
            // The sender's transport learns how its stream ended.
            self.input(from, Input::SnapshotStatus { to: MemberId(to), ok: running });
        }
        let Some(member) = self.members.get_mut(&to) else { return };
        let Some(running) = &member.running else { return };
        // The transport turns removed members away.
        if running.machine.reader().is_removed(MemberId(from)) {
            return;
        }
        if let Some(position) = snapshot {
            let state = self.snapshots.get(&(from, to, position)).expect("the bytes travel with the message");
            member.disk.received.insert(position, state.clone());
        }
        self.input(to, Input::Message(message));
    }

    pub(super) fn send_snapshot(&mut self, id: u64, life: u64, to: u64) {
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
        self.snapshots.insert((id, to, position), state);
        checks::promise_is_durable(id, &self.members[&id].disk, &message);
        let ways = self.network.route(&mut self.rng, id, to, true);
        self.note(|| {
            format!("{id} sends {to} the snapshot at {position}, which arrives {} times", ways.len())
        });
        let receiver_runs = self.members.get(&to).is_some_and(|member| member.running.is_some());
        if ways.is_empty() || !receiver_runs {
            self.input(id, Input::SnapshotStatus { to: MemberId(to), ok: false });
        }
        for delay in ways {
            // Many bytes take longer.
            self.at(delay * 10, Event::Arrive(Box::new(message.clone())));
        }
        self.flush(id);
    }
}
