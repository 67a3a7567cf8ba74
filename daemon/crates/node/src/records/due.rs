//! What a leader should write down now, and what any member knows of another: pure, from what it has seen and what is written.

use std::collections::BTreeMap;

use consensus::Status;
use identity::{GenesisConfig, Hello, Known, Life, Private, Record, Standing, Unique, Watermark, Witness};
use state_machine::{Reader, identities::Identified, store::Store};
use types::{LogIndex, MemberId};

/// Records in one note. A record is a few hundred bytes, at most some KiB with a very long path; a note stays far below any request.
const RECORDS_MAX: usize = 8;

/// What this start of the member is, as the daemon knows it.
#[derive(Clone, Debug)]
pub struct OwnIdentity {
    pub record: Record,
    /// See [`Hello::earlier`].
    pub earlier: Vec<Unique>,
    /// From the identity file; None until the member is born.
    pub cluster_uuid: Option<Unique>,
    pub parent_uuid: Option<Unique>,
    /// Which directories answered when the cluster was founded, by member.
    pub attendees: BTreeMap<MemberId, Unique>,
    /// The first members by the settings, while the member is not born.
    pub config: Option<GenesisConfig>,
    /// Random. The life of the cluster, should this member be its first leader.
    pub fresh_uuid: Unique,
    /// Whoever runs the member writes the life into a file of its own, and says so with [`crate::Handle::life_is_kept`]. A founder takes no
    /// client's write before.
    pub keeps_life: bool,
}

impl OwnIdentity {
    /// It has met those with whom it founds its cluster, or is the only one. A log that was an etcd's, or an older version's, has no such.
    fn is_founder(&self) -> bool {
        self.config.as_ref().is_some_and(|config| !self.attendees.is_empty() || config.members.len() == 1)
    }

    /// The life of somebody that was asked and knows this directory for its member's: it was admitted there, or both attended. One that has
    /// no place for it, as a founder that was forced into a life of its own since, tells of another life.
    pub(super) fn vouched_in(&self, theirs: &Hello, known: &Known) -> Option<Unique> {
        let Standing::Member { .. } = known.standing else { return None };
        let is_ours = known.record.as_ref().is_some_and(|record| record.dir == self.record.dir);
        match theirs.life {
            Life::Born(life) if is_ours => Some(life),
            _ => self.vouched_by(theirs),
        }
    }

    /// The life that somebody is of who attended the founding, with this very directory: that of the cluster that was founded there.
    pub(super) fn vouched_by(&self, hello: &Hello) -> Option<Unique> {
        match hello.life {
            Life::Born(life) if self.attendees.get(&hello.member) == Some(&hello.dir) => Some(life),
            _ => None,
        }
    }
}

/// Whether a welcome speaker of a message has to wait until this member knows the life of its cluster (`life`, as far as it is known).
///
/// The list of a founder without a life is that of the founding. Who is not on it joined later: this life, or an earlier one with the
/// same first members, whose log begins with the same entries. To this life nobody is added before a founder has applied it, so a member
/// of it is of the life that an attendee has told, or in which this directory was admitted (`vouched`). Nobody else is heard, or a write of the earlier life could come into this
/// one; nothing is held against it either.
pub(super) fn must_wait(
    own: &OwnIdentity,
    life: Option<Unique>,
    vouched: Option<Unique>,
    standing: &Standing,
    theirs: Life,
) -> bool {
    let is_of_ours = vouched.is_some_and(|vouched| theirs == Life::Born(vouched));
    life.is_none() && own.is_founder() && *standing == Standing::Stranger && !is_of_ours
}

/// Without the session, which is the sentinel's.
pub(super) fn known(own: &OwnIdentity, member: MemberId, found: Identified, witness: Witness) -> Known {
    let attendee = own.attendees.get(&member).copied().filter(|_| found.record.is_none());
    Known {
        // The file's first: after a forced new cluster the log says it a little later.
        cluster_uuid: own.cluster_uuid.or(found.cluster_uuid),
        parent_uuid: own.parent_uuid.or(found.parent_uuid),
        restored: found.restored,
        is_founding: own.config.is_some() && !own.attendees.is_empty(),
        standing: found.standing,
        record: found.record,
        attendee,
        watermark: found.watermark,
        session: None,
        witness,
    }
}

/// The life of the cluster and the starts that are not written yet. None when all are.
pub(super) fn records<S: Store>(
    me: MemberId,
    own: &OwnIdentity,
    admitted: &BTreeMap<MemberId, Record>,
    reader: &Reader<S>,
) -> Option<Private> {
    let is_due = |id: MemberId, record: &Record| {
        reader.member(id).is_some()
            && match reader.identity_of(id).record {
                None => true,
                Some(written) => written != *record && record.may_follow(&written),
            }
    };
    let others = admitted.iter().filter(|(id, _)| **id != me);
    let all = std::iter::once((&me, &own.record)).chain(others);
    let due = all.filter(|(id, record)| is_due(**id, record)).take(RECORDS_MAX);
    let records: BTreeMap<String, Record> =
        due.map(|(id, record)| (id.to_string(), record.clone())).collect();
    let written = reader.cluster_uuid();
    if records.is_empty() && written.is_some() {
        return None;
    }
    // Said again with every record: a state that came from an etcd has lost it.
    let life = written.or(own.cluster_uuid).unwrap_or(own.fresh_uuid);
    Some(Private { cluster_uuid: Some(life), records, ..Private::default() })
}

/// How far every member has been, where that is more than is written; empty while nothing has happened but notes.
pub(super) fn marks<S: Store>(status: &Status, reader: &Reader<S>) -> BTreeMap<String, Watermark> {
    let notes = reader.newest_notes();
    let mut moved = false;
    let mut raised = BTreeMap::new();
    // A member that has acknowledged nothing to this leader may not even be in its term.
    for peer in status.peers.iter().filter(|peer| peer.matched.0 > 0) {
        let written = reader.identity_of(peer.id).watermark.unwrap_or_default();
        let now = Watermark { last_index: peer.matched.0, term: status.term.0 };
        let mut mark = written;
        mark.raise(now);
        if mark != written {
            moved |= now.term > written.term || !only_notes(notes, written.last_index, now.last_index);
            raised.insert(peer.id.to_string(), mark);
        }
    }
    if moved { raised } else { BTreeMap::new() }
}

/// Whether everything after `before` and up to `now` are notes.
fn only_notes(notes: Option<(LogIndex, LogIndex)>, before: u64, now: u64) -> bool {
    notes.is_some_and(|(first, last)| before + 1 >= first.0 && now <= last.0)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use api::raftpb::{ConfChange, ConfChangeType, ConfChangeV2};
    use consensus::{Peer, PeerState, io::Role};
    use identity::{Boot, FirstMember, Home, LogEnd};
    use prost::Message;
    use state_machine::{Memory, Options, Outcome, Sink, StateMachine, membership::Member};
    use types::{ClusterId, Entry, EntryKind, Revision, Term};

    use super::*;

    const ME: MemberId = MemberId(1);

    struct Deaf;

    impl Sink for Deaf {
        fn outcome(&mut self, _: LogIndex, _: u64, outcome: Result<Outcome, api::error::EtcdError>) {
            outcome.expect("every entry of this test is good");
        }
        fn events(&mut self, _: Revision, _: Vec<api::mvccpb::Event>) {}
        fn conf_change(&mut self, _: LogIndex, _: Option<ConfChangeV2>) {}
    }

    /// A leader of a cluster of two, whose log is what is applied.
    struct Leader {
        machine: StateMachine<Memory>,
        term: u64,
    }

    impl Leader {
        fn new() -> Leader {
            let machine = StateMachine::open(Arc::new(Memory::new()), Options::default(), None);
            let mut leader = Leader { machine: machine.expect("an empty state"), term: 2 };
            for id in [ME, MemberId(2)] {
                let member = Member {
                    id,
                    name: "m".into(),
                    peer_urls: vec![format!("http://{id}:1")],
                    ..Member::default()
                };
                leader.change(ConfChangeType::ConfChangeAddNode, id, member.bootstrap_context());
            }
            leader
        }

        fn change(&mut self, kind: ConfChangeType, id: MemberId, context: Vec<u8>) {
            let change = ConfChange {
                id: Some(0),
                r#type: Some(kind as i32),
                node_id: Some(id.0),
                context: Some(context.into()),
            };
            self.apply(EntryKind::ConfChange, change.encode_to_vec());
        }

        fn apply(&mut self, kind: EntryKind, data: Vec<u8>) {
            let index = self.machine.applied().index.next();
            let entry = Entry { term: Term(self.term), index, kind, data: data.into() };
            self.machine.apply(&[entry], &mut Deaf);
        }

        /// Something of a client's, or the first entry of a term.
        fn work(&mut self) {
            self.apply(EntryKind::Normal, Vec::new());
        }

        fn note(&mut self, notes: Private) {
            let own = self.machine.reader().member(ME).expect("it is a member");
            self.change(ConfChangeType::ConfChangeUpdateNode, ME, own.note_context(notes));
        }

        /// The other one has everything up to `matched`.
        fn marks(&self, matched: u64) -> BTreeMap<String, Watermark> {
            let last = self.machine.applied().index;
            let peer = |id, matched| Peer {
                id,
                learner: false,
                matched,
                next: matched,
                state: PeerState::Replicate,
                recent_active: true,
            };
            let status = Status {
                id: ME,
                role: Role::Leader,
                term: Term(self.term),
                leader: ME,
                voter: true,
                committed: last,
                persisted: last,
                applied: last,
                first_index: LogIndex(1),
                last_index: last,
                log_tail_bytes: 0,
                lead_transferee: None,
                peers: vec![peer(ME, last), peer(MemberId(2), LogIndex(matched))],
            };
            marks(&status, &self.machine.reader())
        }

        fn last(&self) -> u64 {
            self.machine.applied().index.0
        }
    }

    #[test]
    fn marks_follow_what_happens_and_rest_when_nothing_does() {
        let mut leader = Leader::new();
        leader.work();
        let first = leader.marks(leader.last());
        assert_eq!(first.len(), 2);
        assert!(first.values().all(|mark| *mark == Watermark { last_index: 3, term: 2 }));
        leader.note(Private { watermarks: first, ..Private::default() });
        assert!(leader.marks(leader.last()).is_empty(), "its own note is no progress");
        leader.note(Private::default());
        assert!(leader.marks(leader.last()).is_empty(), "nor is another");
        assert!(leader.marks(leader.last() - 1).is_empty());

        leader.work();
        assert_eq!(leader.marks(leader.last()).len(), 2);
        let behind = leader.marks(4);
        assert_eq!(behind["1"].last_index, leader.last(), "who has moved is written");
        assert_eq!(behind["2"], Watermark { last_index: 4, term: 2 }, "and so is everybody else");
        leader.note(Private { watermarks: leader.marks(leader.last()), ..Private::default() });
        assert!(leader.marks(leader.last()).is_empty());

        leader.term = 3;
        leader.work();
        assert_eq!(leader.marks(0).len(), 1, "who has not answered this leader may have another term");
        assert!(leader.marks(leader.last()).values().all(|mark| mark.term == 3));
    }

    /// Of a cluster of three that is being founded; the second has attended with directory 2.
    fn founder() -> OwnIdentity {
        let first =
            |name: &str| FirstMember { name: name.to_owned(), peer_urls: vec![format!("http://{name}:1")] };
        OwnIdentity {
            record: Record {
                dir: Unique::for_test(1),
                boot: Boot { seq: 1, nonce: Unique::for_test(1), previous: None },
                home: Home::default(),
                version: String::new(),
            },
            earlier: Vec::new(),
            cluster_uuid: None,
            parent_uuid: None,
            attendees: BTreeMap::from([(MemberId(2), Unique::for_test(2))]),
            config: Some(GenesisConfig {
                members: ["a", "b", "c"].map(first).to_vec(),
                token: String::new(),
                token_sha256: String::new(),
                restored: None,
            }),
            fresh_uuid: Unique::for_test(99),
            keeps_life: false,
        }
    }

    /// Those who joined an earlier life still run while a wiped majority founds anew: what they say could come into the new life.
    #[test]
    fn a_founder_without_a_life_hears_nobody_who_may_be_of_an_earlier_one() {
        let (ours, earlier) = (Unique::for_test(5), Unique::for_test(6));
        let listed = Standing::Member { is_learner: false, is_new: false };
        let waits = |own: &OwnIdentity, life, vouched, standing: &Standing, theirs| {
            must_wait(own, life, vouched, standing, theirs)
        };
        let own = founder();
        for theirs in [Life::Born(earlier), Life::Joining, Life::Formed, Life::Unborn] {
            assert!(waits(&own, None, None, &Standing::Stranger, theirs), "{theirs:?}");
            assert!(waits(&own, None, Some(ours), &Standing::Stranger, theirs), "{theirs:?}");
            assert!(!waits(&own, None, None, &listed, theirs), "judged by what is known of it");
            assert!(!waits(&own, Some(ours), None, &Standing::Stranger, theirs), "the life says who is who");
        }
        let leader = Life::Born(ours);
        assert!(waits(&own, None, None, &Standing::Stranger, leader), "nobody has told that it is ours");
        assert!(!waits(&own, None, Some(ours), &Standing::Stranger, leader), "it joined, and leads by now");

        let alone = |members: usize, own: OwnIdentity| {
            let mut config = own.config.expect("a founder");
            config.members.truncate(members);
            OwnIdentity { attendees: BTreeMap::new(), config: Some(config), ..own }
        };
        assert!(waits(&alone(1, founder()), None, None, &Standing::Stranger, Life::Born(earlier)));
        let upgraded = alone(3, founder());
        assert!(
            !waits(&upgraded, None, None, &Standing::Stranger, leader),
            "it has met nobody at a founding"
        );
        let joiner = OwnIdentity { config: None, ..founder() };
        assert!(!waits(&joiner, None, None, &Standing::Stranger, leader), "it was told whom to hear");
    }

    #[test]
    fn only_who_attended_tells_the_life_of_a_founding() {
        let own = founder();
        let hello = |member: u64, dir: u128, life| Hello {
            cluster_id: ClusterId(1),
            member: MemberId(member),
            name: String::new(),
            life,
            dir: Unique::for_test(dir),
            boot: own.record.boot,
            earlier: Vec::new(),
            log: LogEnd::default(),
            home: Home::default(),
            version: String::new(),
        };
        let life = Unique::for_test(5);
        assert_eq!(own.vouched_by(&hello(2, 2, Life::Born(life))), Some(life));
        assert_eq!(own.vouched_by(&hello(2, 2, Life::Formed)), None);
        assert_eq!(own.vouched_by(&hello(2, 7, Life::Born(life))), None, "another directory");
        assert_eq!(own.vouched_by(&hello(3, 2, Life::Born(life))), None, "it was not there");

        let told_by = |by: u64, dir: u128, standing: Standing| {
            let record = Record { dir: Unique::for_test(dir), ..own.record.clone() };
            let witness = Witness { member: MemberId(4), leads: true, term: 2, commit: 9 };
            let found = Identified {
                record: Some(record),
                standing,
                ..Leader::new().machine.reader().identity_of(ME)
            };
            own.vouched_in(&hello(by, by.into(), Life::Born(life)), &known(&founder(), ME, found, witness))
        };
        let told = |dir, standing| told_by(4, dir, standing);
        let member = || Standing::Member { is_learner: false, is_new: false };
        assert_eq!(
            told(1, member()),
            Some(life),
            "those who attended are gone, but this directory was admitted"
        );
        assert_eq!(told(8, member()), None, "the earlier life knows another directory");
        assert_eq!(
            told(1, Standing::Removed { index: 9, term: 2, asked_through: None }),
            None,
            "it was forced out"
        );
        let removed = Standing::Removed { index: 9, term: 2, asked_through: None };
        assert_eq!(told_by(2, 8, member()), Some(life), "it attended, and nobody was admitted yet");
        assert_eq!(told_by(2, 1, removed), None, "it attended, and was forced into another life since");
    }

    #[test]
    fn what_is_not_written_is_due_and_older_starts_never_are() {
        let mut leader = Leader::new();
        let start = |seq: u64, nonce: u128| Record {
            dir: Unique::for_test(7),
            boot: Boot { seq, nonce: Unique::for_test(nonce), previous: None },
            home: Home::default(),
            version: "0.1.0".to_owned(),
        };
        let own = OwnIdentity {
            record: start(1, 1),
            earlier: Vec::new(),
            cluster_uuid: None,
            parent_uuid: None,
            attendees: BTreeMap::new(),
            config: None,
            fresh_uuid: Unique::for_test(99),
            keeps_life: false,
        };
        let due = |leader: &Leader, own: &OwnIdentity, other: Option<Record>| {
            let admitted =
                other.into_iter().flat_map(|record| [(MemberId(2), record.clone()), (MemberId(77), record)]);
            records(ME, own, &admitted.collect(), &leader.machine.reader())
        };
        let first = due(&leader, &own, None).expect("its own start, and the first life");
        assert_eq!((first.cluster_uuid, first.records.len()), (Some(own.fresh_uuid), 1));
        let known = OwnIdentity { cluster_uuid: Some(Unique::for_test(5)), ..own.clone() };
        let told = due(&leader, &known, None).expect("the same");
        assert_eq!(told.cluster_uuid, known.cluster_uuid, "a life that is known is not made anew");

        leader.note(first);
        assert_eq!(due(&leader, &own, None), None);
        let second = due(&leader, &own, Some(start(4, 4))).expect("the other's start");
        assert_eq!(second.records.keys().collect::<Vec<_>>(), ["2"], "not the stranger's");
        leader.note(second);
        assert_eq!(due(&leader, &own, Some(start(4, 4))), None);
        for stale in [start(3, 3), start(4, 5), Record { dir: Unique::for_test(8), ..start(9, 9) }] {
            assert_eq!(due(&leader, &own, Some(stale)), None);
        }
        assert!(due(&leader, &own, Some(start(6, 6))).is_some(), "starts in between may not have been seen");
    }
}
