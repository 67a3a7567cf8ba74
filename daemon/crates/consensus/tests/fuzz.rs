//! No message and no recovered state makes a core panic. Three cores talk to each other, and some of what they say is garbled, forged,
//! repeated or of another time; the cluster may well lose its way, since a liar among members is beyond raft, but nobody falls over.
//!
//! `PROPTEST_CASES=100000 cargo test -p cairn-consensus --test fuzz` looks longer.

use std::collections::VecDeque;

use api::raftpb;
use bytes::Bytes;
use consensus::io::{Input, Output, PersistSeq, Proposal, ProposalId, ReadTicket};
use consensus::{Config, Core, Recovered, codec};
use proptest::prelude::*;
use prost::Message as _;
use types::{ConfState, Entry, EntryKind, HardState, LogIndex, LogPosition, MemberId, Term};

const MEMBERS: u64 = 3;

/// Small numbers meet each other; large ones overflow.
fn number() -> impl Strategy<Value = u64> {
    prop_oneof![
        20 => 0u64..8,
        1 => Just(u64::MAX),
        1 => Just(1 << 62),
        1 => any::<u64>(),
    ]
}

/// Index, term, voters, learners, whether joint.
type Snapshot = (u64, u64, Vec<u64>, Vec<u64>, bool);

#[derive(Clone, Debug)]
struct Garbage {
    kind: Option<i32>,
    numbers: [Option<u64>; 8],
    entries: Vec<(i32, u64, u64, u8)>,
    snapshot: Option<Snapshot>,
    reject: bool,
    context: u8,
}

fn garbage() -> impl Strategy<Value = Garbage> {
    (
        proptest::option::weighted(0.99, -1i32..26),
        proptest::array::uniform8(proptest::option::weighted(0.9, number())),
        proptest::collection::vec((-1i32..4, number(), number(), any::<u8>()), 0..4),
        proptest::option::of((
            number(),
            number(),
            proptest::collection::vec(0u64..5, 0..4),
            proptest::collection::vec(0u64..5, 0..2),
            proptest::bool::weighted(0.1),
        )),
        any::<bool>(),
        0u8..4,
    )
        .prop_map(|(kind, numbers, entries, snapshot, reject, context)| Garbage {
            kind,
            numbers,
            entries,
            snapshot,
            reject,
            context,
        })
}

fn context(choice: u8) -> Option<Bytes> {
    match choice {
        0 => None,
        1 => Some(Bytes::from_static(b"CampaignTransfer")),
        2 => Some(Bytes::from_static(b"\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\x01")),
        _ => Some(Bytes::from(vec![7; 100])),
    }
}

fn conf_change(choice: u8) -> Bytes {
    let change = raftpb::ConfChange {
        id: Some(1),
        r#type: Some(i32::from(choice % 5)),
        node_id: Some(u64::from(choice / 5 % 5)),
        context: None,
    };
    if choice > 250 { Bytes::from_static(b"\xff\xff") } else { change.encode_to_vec().into() }
}

fn forged(garbage: &Garbage) -> raftpb::Message {
    let [to, from, term, log_term, index, commit, hint, vote] = garbage.numbers;
    raftpb::Message {
        r#type: garbage.kind,
        to: to.map(|to| to % 4),
        from: from.map(|from| from % 5),
        term,
        log_term,
        index,
        entries: garbage
            .entries
            .iter()
            .map(|(kind, term, index, data)| raftpb::Entry {
                r#type: Some(*kind),
                term: Some(*term),
                index: Some(*index),
                data: Some(conf_change(*data)),
            })
            .collect(),
        commit,
        snapshot: garbage.snapshot.clone().map(|(index, term, voters, learners, joint)| raftpb::Snapshot {
            data: None,
            metadata: Some(raftpb::SnapshotMetadata {
                conf_state: Some(raftpb::ConfState {
                    voters_outgoing: if joint { voters.clone() } else { Vec::new() },
                    voters,
                    learners,
                    learners_next: Vec::new(),
                    auto_leave: Some(joint),
                }),
                index: Some(index),
                term: Some(term),
            }),
        }),
        reject: Some(garbage.reject),
        reject_hint: hint,
        context: context(garbage.context),
        vote,
        responses: Vec::new(),
    }
}

/// A real message with one field changed.
fn garble(mut message: raftpb::Message, field: u8, value: u64) -> raftpb::Message {
    match field % 12 {
        0 => message.r#type = Some(value as i32),
        1 => message.from = Some(value % 4),
        2 => message.term = Some(value),
        3 => message.log_term = Some(value),
        4 => message.index = Some(value),
        5 => message.commit = Some(value),
        6 => message.reject = Some(!message.reject()),
        7 => message.reject_hint = Some(value),
        8 => message.context = context(value as u8),
        9 => {
            if let Some(entry) = message.entries.last_mut() {
                entry.term = Some(value);
            }
        }
        10 => {
            message.entries.pop();
        }
        _ => message.to = Some(1 + value % MEMBERS),
    }
    message
}

#[derive(Clone, Debug)]
enum Action {
    Deliver(u16),
    Repeat(u16),
    Garble(u16, u8, u64),
    Forge(u8, Box<Garbage>),
    Lose(u16),
    Tick(u8, u8),
    Propose(u8, bool, u8),
    Read(u8),
    Persist(u8),
    Apply(u8),
    Campaign(u8),
    Transfer(u8, u8),
    Compact(u8),
    Snapshot(u8, u8),
    SnapshotStatus(u8, u8, bool),
    Unreachable(u8, u8),
    Restart(u8),
}

fn action() -> impl Strategy<Value = Action> {
    let at = any::<u16>;
    let id = || 0u8..MEMBERS as u8;
    prop_oneof![
        20 => at().prop_map(Action::Deliver),
        2 => at().prop_map(Action::Repeat),
        3 => (at(), any::<u8>(), number()).prop_map(|(at, field, value)| Action::Garble(at, field, value)),
        4 => (id(), garbage()).prop_map(|(id, garbage)| Action::Forge(id, Box::new(garbage))),
        1 => at().prop_map(Action::Lose),
        4 => (id(), 1u8..15).prop_map(|(id, count)| Action::Tick(id, count)),
        3 => (id(), proptest::bool::weighted(0.3), any::<u8>()).prop_map(|(id, conf, data)| Action::Propose(id, conf, data)),
        2 => id().prop_map(Action::Read),
        8 => id().prop_map(Action::Persist),
        8 => id().prop_map(Action::Apply),
        2 => id().prop_map(Action::Campaign),
        1 => (id(), id()).prop_map(|(id, to)| Action::Transfer(id, to)),
        1 => id().prop_map(Action::Compact),
        2 => (id(), id()).prop_map(|(id, to)| Action::Snapshot(id, to)),
        1 => (id(), id(), any::<bool>()).prop_map(|(id, to, ok)| Action::SnapshotStatus(id, to, ok)),
        1 => (id(), id()).prop_map(|(id, to)| Action::Unreachable(id, to)),
        1 => id().prop_map(Action::Restart),
    ]
}

#[derive(Default)]
struct Disk {
    hard_state: HardState,
    snapshot: LogPosition,
    entries: Vec<Entry>,
}

struct Node {
    core: Core,
    disk: Disk,
    config: Config,
    writes: VecDeque<consensus::io::Persist>,
    work: VecDeque<Output>,
    applied: LogPosition,
    conf_state: ConfState,
}

fn config(id: u64) -> Config {
    let mut config = Config::new(MemberId(id), 1);
    config.log_tail_entries_keep = 2;
    config.append_bytes_max = 64;
    config.uncommitted_bytes_max = 200;
    config.inflight_messages_max = 3;
    config
}

struct World {
    nodes: Vec<Node>,
    network: Vec<raftpb::Message>,
    next: u64,
}

impl World {
    fn new(voters: u64) -> World {
        let conf_state = ConfState {
            voters: (1..=voters).map(MemberId).collect(),
            learners: (voters + 1..=MEMBERS).map(MemberId).collect(),
            ..ConfState::default()
        };
        let nodes = (1..=MEMBERS)
            .map(|id| {
                let recovered = Recovered { conf_state: conf_state.clone(), ..Recovered::default() };
                Node {
                    core: Core::new(config(id), recovered).expect("an empty member starts"),
                    disk: Disk::default(),
                    config: config(id),
                    writes: VecDeque::new(),
                    work: VecDeque::new(),
                    applied: LogPosition::default(),
                    conf_state: conf_state.clone(),
                }
            })
            .collect();
        World { nodes, network: Vec::new(), next: 0 }
    }

    fn input(&mut self, at: usize, input: Input) {
        self.nodes[at].core.handle(input);
        self.drain(at);
    }

    fn drain(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        while let Some(output) = node.core.poll() {
            match output {
                Output::Send(messages) => self.network.extend(messages),
                Output::Persist(persist) => node.writes.push_back(persist),
                Output::Apply(_) | Output::InstallSnapshot { .. } => node.work.push_back(output),
                _ => {}
            }
        }
        // What is too much for one case is lost, as in any network.
        self.network.truncate(200);
        node.core.status();
    }

    fn message(&mut self, message: raftpb::Message) {
        let to = message.to.unwrap_or_default().wrapping_sub(1) as usize;
        if to < self.nodes.len() {
            self.input(to, Input::Message(message));
        }
    }

    fn run(&mut self, action: Action) {
        let index = |at: u16, length: usize| (length > 0).then(|| usize::from(at) % length);
        match action {
            Action::Deliver(at) => {
                if let Some(at) = index(at, self.network.len()) {
                    let message = self.network.remove(at);
                    self.message(message);
                }
            }
            Action::Repeat(at) => {
                if let Some(at) = index(at, self.network.len()) {
                    let message = self.network[at].clone();
                    self.message(message);
                }
            }
            Action::Garble(at, field, value) => {
                if let Some(at) = index(at, self.network.len()) {
                    let message = garble(self.network[at].clone(), field, value);
                    self.message(message);
                }
            }
            Action::Forge(at, garbage) => {
                let message = forged(&garbage);
                self.input(at.into(), Input::Message(message));
            }
            Action::Lose(at) => {
                if let Some(at) = index(at, self.network.len()) {
                    self.network.remove(at);
                }
            }
            Action::Tick(at, count) => {
                for _ in 0..count {
                    self.nodes[usize::from(at)].core.handle(Input::Tick);
                }
                self.drain(at.into());
            }
            Action::Propose(at, conf, data) => {
                self.next += 1;
                let (kind, data) = if conf {
                    (EntryKind::ConfChange, conf_change(data))
                } else {
                    (EntryKind::Normal, Bytes::from(vec![data; usize::from(data)]))
                };
                let one = Proposal { id: ProposalId(self.next), kind, data };
                self.input(at.into(), Input::Propose(vec![one.clone(), one]));
            }
            Action::Read(at) => {
                self.next += 1;
                self.input(at.into(), Input::Read(ReadTicket(self.next)));
            }
            Action::Persist(at) => self.persist(at.into()),
            Action::Apply(at) => self.apply(at.into()),
            Action::Campaign(at) => self.input(at.into(), Input::Campaign),
            Action::Transfer(at, to) => {
                self.input(at.into(), Input::TransferLeader(MemberId(u64::from(to) + 1)));
            }
            Action::Compact(at) => {
                let node = &self.nodes[usize::from(at)];
                let (through, conf_state) = (node.applied, node.conf_state.clone());
                self.input(at.into(), Input::Compact { through, conf_state });
            }
            Action::Snapshot(at, to) => {
                let node = &mut self.nodes[usize::from(at)];
                let to = MemberId(u64::from(to) + 1);
                if let Ok(message) = node.core.snapshot_message(to, node.applied, &node.conf_state) {
                    self.network.push(message);
                }
                self.drain(at.into());
            }
            Action::SnapshotStatus(at, to, ok) => {
                self.input(at.into(), Input::SnapshotStatus { to: MemberId(u64::from(to) + 1), ok });
            }
            Action::Unreachable(at, to) => {
                self.input(at.into(), Input::Unreachable(MemberId(u64::from(to) + 1)))
            }
            Action::Restart(at) => {
                let node = &mut self.nodes[usize::from(at)];
                node.writes.clear();
                node.work.clear();
                node.config.boot += 1;
                let recovered = Recovered {
                    hard_state: node.disk.hard_state,
                    conf_state: node.conf_state.clone(),
                    snapshot: node.disk.snapshot,
                    entries: node.disk.entries.clone(),
                    applied: node.applied.index,
                };
                // A snapshot that was recorded and not installed is finished by the real driver; here the member stays as it was.
                if let Ok(core) = Core::new(node.config.clone(), recovered) {
                    node.core = core;
                } else {
                    node.disk = Disk::default();
                    node.applied = LogPosition::default();
                    let recovered = Recovered { conf_state: node.conf_state.clone(), ..Recovered::default() };
                    node.core = Core::new(node.config.clone(), recovered).expect("an empty member starts");
                }
                self.drain(at.into());
            }
        }
    }

    fn persist(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        let Some(write) = node.writes.pop_front() else { return };
        if let Some((position, _)) = write.snapshot {
            node.disk.snapshot = position;
            node.disk.entries.clear();
        }
        if let Some(first) = write.entries.first() {
            node.disk.entries.retain(|entry| entry.index < first.index);
            node.disk.entries.extend(write.entries.iter().cloned());
        }
        node.disk.hard_state = write.hard_state.unwrap_or(node.disk.hard_state);
        let seq: PersistSeq = write.seq;
        self.input(at, Input::Persisted(seq));
    }

    fn apply(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        match node.work.pop_front() {
            Some(Output::Apply(entries)) => {
                let mut conf_changes = Vec::new();
                for entry in &entries {
                    node.applied = entry.position();
                    if entry.kind == EntryKind::ConfChange {
                        let change = raftpb::ConfChange::decode(entry.data.clone());
                        conf_changes
                            .push((entry.index, change.ok().map(|change| codec::conf_change_v2(&change))));
                    }
                }
                let index = node.applied.index;
                node.core.handle(Input::Applied { index, conf_changes });
                node.conf_state = node.core.conf_state();
            }
            Some(Output::InstallSnapshot { position, conf_state }) => {
                node.applied = position;
                node.conf_state = conf_state;
                node.core.handle(Input::SnapshotInstalled { position });
            }
            _ => return,
        }
        self.drain(at);
    }
}

/// Enough to find a known panic within seconds; PROPTEST_CASES asks for more.
fn cases() -> u32 {
    std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(400)
}

proptest! {
    #![proptest_config(ProptestConfig { max_shrink_iters: 20_000, ..ProptestConfig::with_cases(cases()) })]

    #[test]
    fn no_message_makes_a_core_panic(
        voters in 1u64..=3,
        actions in proptest::collection::vec(action(), 1..300),
    ) {
        let mut world = World::new(voters);
        for action in actions {
            world.run(action);
        }
    }

    #[test]
    fn no_recovered_state_makes_a_core_panic(
        hard_state in (number(), number(), number()),
        snapshot in (number(), number()),
        entries in proptest::collection::vec((0u8..3, 0u64..4, 0u64..3), 0..6),
        gaps in proptest::bool::weighted(0.2),
        applied in number(),
        voters in proptest::collection::vec(0u64..4, 0..4),
        learners in proptest::collection::vec(0u64..5, 0..2),
        joint in proptest::bool::weighted(0.1),
        messages in proptest::collection::vec(garbage(), 0..20),
    ) {
        let ids = |numbers: &[u64]| numbers.iter().copied().map(MemberId).collect::<Vec<_>>();
        let mut index = snapshot.0;
        let entries = entries.into_iter().map(|(kind, term, step)| {
            index = index.saturating_add(if gaps { step } else { 1 });
            let kind = [EntryKind::Normal, EntryKind::ConfChange, EntryKind::ConfChangeV2][usize::from(kind)];
            Entry { term: Term(term), index: LogIndex(index), kind, data: Bytes::new() }
        }).collect();
        let recovered = Recovered {
            hard_state: HardState { term: Term(hard_state.0), vote: MemberId(hard_state.1), commit: LogIndex(hard_state.2) },
            conf_state: ConfState {
                voters: ids(&voters),
                learners: ids(&learners),
                voters_outgoing: if joint { ids(&voters) } else { Vec::new() },
                ..ConfState::default()
            },
            snapshot: LogPosition { index: LogIndex(snapshot.0), term: Term(snapshot.1) },
            entries,
            applied: LogIndex(applied),
        };
        if let Ok(mut core) = Core::new(config(1), recovered) {
            for garbage in &messages {
                core.handle(Input::Message(forged(garbage)));
                core.handle(Input::Tick);
                while core.poll().is_some() {}
            }
            for _ in 0..25 {
                core.handle(Input::Tick);
                while core.poll().is_some() {}
            }
        }
    }
}
