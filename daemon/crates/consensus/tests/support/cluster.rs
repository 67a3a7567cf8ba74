//! The cluster: cores, a disk and a state each, and a network that is a list of messages.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt::Write as _;

use api::raftpb::{self, MessageType};
use consensus::io::{Input, Output, Persist, Proposal, ProposalId, ReadTicket};
use consensus::{Config, Core, LoadError, Recovered, codec};
use prost::Message as _;
use types::{ConfState, Entry, EntryKind, HardState, LogPosition, MemberId};

/// What survives a crash.
#[derive(Clone, Default)]
pub struct Disk {
    pub hard_state: HardState,
    pub snapshot: LogPosition,
    pub entries: Vec<Entry>,
    pub applied: LogPosition,
    pub conf_state: ConfState,
    pub data: Vec<String>,
}

impl Disk {
    fn write(&mut self, persist: &Persist) {
        if let Some((position, _)) = &persist.snapshot {
            self.snapshot = *position;
            self.entries.clear();
        }
        if let Some(first) = persist.entries.first() {
            self.entries.retain(|entry| entry.index < first.index);
            self.entries.extend(persist.entries.iter().cloned());
        }
        if let Some(hard_state) = persist.hard_state {
            self.hard_state = hard_state;
        }
    }
}

pub struct Node {
    pub core: Option<Core>,
    pub disk: Disk,
    pub config: Config,
    unconfirmed: VecDeque<Persist>,
    unapplied: VecDeque<Output>,
    pub disk_stalled: bool,
    pub apply_stalled: bool,
    /// Its loop has not come to the end of a turn: inputs go in and no output is taken.
    pub turn_held: bool,
}

#[derive(Default)]
pub struct Cluster {
    pub nodes: BTreeMap<u64, Node>,
    pub network: Vec<raftpb::Message>,
    pub saved: BTreeMap<String, raftpb::Message>,
    pub cut: BTreeSet<(u64, u64)>,
    next_id: u64,
    snapshots: BTreeMap<(u64, u64), (LogPosition, Vec<String>)>,
    pub events: String,
    pub verbose: bool,
}

pub fn describe(message: &raftpb::Message) -> String {
    let kind = message.r#type.and_then(|number| MessageType::try_from(number).ok());
    let kind = kind.map_or("?".into(), |kind| format!("{kind:?}").trim_start_matches("Msg").to_string());
    let mut out = format!("{}->{} {kind}", message.from(), message.to());
    if message.term() != 0 {
        let _ = write!(out, " t{}", message.term());
    }
    match kind.as_str() {
        "App" => {
            let _ = write!(out, " after {}/{}", message.log_term(), message.index());
            let entries: Vec<String> =
                message.entries.iter().map(|entry| format!("{}/{}", entry.term(), entry.index())).collect();
            let _ = write!(out, " [{}] commit {}", entries.join(" "), message.commit());
        }
        "AppResp" if message.reject() => {
            let _ = write!(
                out,
                " reject {} hint {}/{}",
                message.index(),
                message.log_term(),
                message.reject_hint()
            );
        }
        "AppResp" => {
            let _ = write!(out, " match {}", message.index());
        }
        "Vote" | "PreVote" => {
            let _ = write!(out, " last {}/{}", message.log_term(), message.index());
        }
        "VoteResp" | "PreVoteResp" => out.push_str(if message.reject() { " no" } else { " yes" }),
        "Heartbeat" => {
            let _ = write!(out, " commit {}", message.commit());
        }
        "Snap" => {
            let metadata = message.snapshot.as_ref().and_then(|snapshot| snapshot.metadata.clone());
            let metadata = metadata.unwrap_or_default();
            let _ = write!(out, " at {}/{}", metadata.term(), metadata.index());
        }
        "Prop" => {
            let _ = write!(out, " {} entries", message.entries.len());
        }
        "ReadIndexResp" => {
            let _ = write!(out, " index {}", message.index());
        }
        _ => {}
    }
    let context = match kind.as_str() {
        "ReadIndex" | "ReadIndexResp" => message.entries.first().and_then(|entry| entry.data.clone()),
        _ => message.context.clone(),
    };
    if let Some(context) = context
        && context.len() == 24
    {
        let part = |at: usize| u64::from_be_bytes(context[at..at + 8].try_into().unwrap());
        let _ = write!(out, " ctx {}.{}.{}", part(0), part(8), part(16));
    }
    out
}

impl Cluster {
    pub fn add(&mut self, config: Config, disk: Disk) {
        self.add_member(config, disk, false);
    }

    pub fn add_stalled(&mut self, config: Config, disk: Disk) {
        self.add_member(config, disk, true);
    }

    fn add_member(&mut self, config: Config, disk: Disk, apply_stalled: bool) {
        let id = config.id.0;
        let node = Node {
            core: None,
            disk,
            config,
            unconfirmed: VecDeque::new(),
            unapplied: VecDeque::new(),
            disk_stalled: false,
            apply_stalled,
            turn_held: false,
        };
        self.nodes.insert(id, node);
        self.start(id).expect("a fresh member starts");
    }

    pub fn start(&mut self, id: u64) -> Result<(), LoadError> {
        let node = self.nodes.get_mut(&id).unwrap();
        let recovered = Recovered {
            hard_state: node.disk.hard_state,
            conf_state: node.disk.conf_state.clone(),
            snapshot: node.disk.snapshot,
            entries: node.disk.entries.clone(),
            applied: node.disk.applied.index,
        };
        node.config.boot += 1;
        node.core = Some(Core::new(node.config.clone(), recovered)?);
        self.run(id);
        Ok(())
    }

    /// Loses everything that was not confirmed.
    pub fn crash(&mut self, id: u64) {
        let node = self.nodes.get_mut(&id).unwrap();
        node.core = None;
        node.unconfirmed.clear();
        node.unapplied.clear();
    }

    pub fn core(&mut self, id: u64) -> &mut Core {
        self.nodes.get_mut(&id).and_then(|node| node.core.as_mut()).expect("the member runs")
    }

    pub fn input(&mut self, id: u64, input: Input) {
        if let Some(core) = self.nodes.get_mut(&id).and_then(|node| node.core.as_mut()) {
            core.handle(input);
            self.run(id);
        }
    }

    /// The turn that was held ends, and what the worker has done by then is the last of it.
    pub fn end_turn(&mut self, id: u64) {
        let node = self.nodes.get_mut(&id).unwrap();
        (node.turn_held, node.apply_stalled) = (false, false);
        for output in std::mem::take(&mut node.unapplied) {
            self.apply(id, output);
        }
        self.run(id);
    }

    pub fn propose(&mut self, id: u64, kind: EntryKind, data: Vec<Vec<u8>>) {
        let mut proposals = Vec::new();
        for data in data {
            self.next_id += 1;
            proposals.push(Proposal { id: ProposalId(self.next_id), kind, data: data.into() });
        }
        self.input(id, Input::Propose(proposals));
    }

    pub fn note(&mut self, id: u64, data: Vec<u8>) {
        self.next_id += 1;
        let id_of_it = ProposalId(self.next_id);
        let kind = EntryKind::ConfChange;
        self.input(id, Input::Note(Proposal { id: id_of_it, kind, data: data.into() }));
    }

    pub fn read(&mut self, id: u64) {
        self.next_id += 1;
        self.input(id, Input::Read(ReadTicket(self.next_id)));
    }

    /// Takes outputs until there are none; the disk confirms and the worker applies at once, unless they stall.
    pub fn run(&mut self, id: u64) {
        while !self.nodes[&id].turn_held {
            let mut idle = true;
            while let Some(output) = self.nodes.get_mut(&id).and_then(|node| node.core.as_mut()?.poll()) {
                idle = false;
                self.obey(id, output);
            }
            let node = self.nodes.get_mut(&id).unwrap();
            let Some(core) = node.core.as_mut() else { return };
            // The scripts' elections are told apart by id.
            core.set_randomized_election_timeout(node.config.election_ticks + id as usize - 1);
            if !node.disk_stalled
                && let Some(last) = node.unconfirmed.back().map(|persist| persist.seq)
            {
                for persist in node.unconfirmed.drain(..) {
                    node.disk.write(&persist);
                }
                core.handle(Input::Persisted(last));
                idle = false;
            }
            if !node.apply_stalled {
                for output in std::mem::take(&mut node.unapplied) {
                    self.apply(id, output);
                    idle = false;
                }
            }
            if idle {
                return;
            }
        }
    }

    fn obey(&mut self, id: u64, output: Output) {
        let node = self.nodes.get_mut(&id).unwrap();
        let line = match output {
            Output::Send(messages) => {
                self.network.extend(messages);
                return;
            }
            Output::Persist(persist) => {
                if self.verbose {
                    let entries: Vec<String> = persist
                        .entries
                        .iter()
                        .map(|entry| format!("{}/{}", entry.term, entry.index))
                        .collect();
                    let sync = if persist.must_sync { "" } else { " (no sync)" };
                    let hard_state = persist.hard_state.map_or(String::new(), |hard_state| {
                        format!(
                            " term {} vote {} commit {}",
                            hard_state.term, hard_state.vote, hard_state.commit
                        )
                    });
                    let _ = writeln!(
                        self.events,
                        "{id} persist #{} [{}]{hard_state}{sync}",
                        persist.seq.0,
                        entries.join(" ")
                    );
                }
                node.unconfirmed.push_back(persist);
                return;
            }
            Output::Apply(_) | Output::InstallSnapshot { .. } => {
                node.unapplied.push_back(output);
                return;
            }
            Output::ReadReady { tickets, index } => {
                let tickets: Vec<String> = tickets.iter().map(|ticket| ticket.0.to_string()).collect();
                format!("read {} ready at {index}", tickets.join(","))
            }
            Output::ReadRetry { tickets, reason } => {
                let tickets: Vec<String> = tickets.iter().map(|ticket| ticket.0.to_string()).collect();
                format!("read {} retry: {reason:?}", tickets.join(","))
            }
            Output::ProposalDropped { ids, reason } => {
                let ids: Vec<String> = ids.iter().map(|id| id.0.to_string()).collect();
                format!("proposal {} dropped: {reason:?}", ids.join(","))
            }
            Output::Leadership { leader, term, role } => {
                format!("is {role:?} in term {term}, leader {leader}")
            }
            Output::SendSnapshot { to } => format!("wants a snapshot sent to {to}"),
            Output::SnapshotIgnored { position } => format!("ignored the snapshot at {position}"),
            Output::Report(report) => format!("report {} from {}: {}", report.kind, report.from, report.text),
        };
        let _ = writeln!(self.events, "{id} {line}");
    }

    fn apply(&mut self, id: u64, output: Output) {
        let node = self.nodes.get_mut(&id).unwrap();
        match output {
            Output::Apply(entries) => {
                let mut changes = Vec::new();
                let mut shown = Vec::new();
                let mut last = LogPosition::default();
                for entry in entries {
                    last = entry.position();
                    match entry.kind {
                        EntryKind::Normal if entry.data.is_empty() => {
                            shown.push(format!("{}:-", entry.index))
                        }
                        EntryKind::Normal => {
                            let data = String::from_utf8_lossy(&entry.data).to_string();
                            shown.push(format!("{}:{data}", entry.index));
                            node.disk.data.push(data);
                        }
                        _ => {
                            let change = raftpb::ConfChange::decode(entry.data.clone()).expect("ours");
                            shown.push(format!("{}:{:?} {}", entry.index, change.r#type(), change.node_id()));
                            changes.push((entry.index, Some(codec::conf_change_v2(&change))));
                        }
                    }
                }
                node.disk.applied = last;
                let _ = writeln!(self.events, "{id} applies {}", shown.join(" "));
                let core = node.core.as_mut().unwrap();
                core.handle(Input::Applied { index: last.index, conf_changes: changes });
                node.disk.conf_state = core.conf_state();
            }
            Output::InstallSnapshot { position, conf_state } => {
                let (at, data) =
                    self.snapshots.get(&(position.term.0, position.index.0)).cloned().unwrap_or_default();
                assert_eq!(at, position, "the bytes of the snapshot are here");
                node.disk.applied = position;
                node.disk.conf_state = conf_state;
                node.disk.data = data;
                let _ = writeln!(self.events, "{id} installs the snapshot at {position}");
                node.core.as_mut().unwrap().handle(Input::SnapshotInstalled { position });
            }
            _ => unreachable!("only what goes to the worker"),
        }
    }

    /// The driver's part in sending a snapshot: of the state as it is applied now.
    pub fn send_snapshot(&mut self, from: u64, to: u64) -> Result<(), String> {
        let node = self.nodes.get_mut(&from).unwrap();
        let (position, conf_state) = (node.disk.applied, node.disk.conf_state.clone());
        let core = node.core.as_mut().unwrap();
        let message =
            core.snapshot_message(MemberId(to), position, &conf_state).map_err(|error| error.to_string())?;
        self.snapshots.insert((position.term.0, position.index.0), (position, node.disk.data.clone()));
        self.network.push(message);
        Ok(())
    }

    /// Takes the message out of the network and gives it to its addressee, or loses it when the link is cut.
    pub fn deliver(&mut self, at: usize) {
        let message = self.network.remove(at);
        let (from, to) = (message.from(), message.to());
        if self.cut.contains(&(from, to)) || !self.nodes.contains_key(&to) {
            return;
        }
        if self.verbose {
            let _ = writeln!(self.events, "{}", describe(&message));
        }
        self.input(to, Input::Message(message));
    }
}
