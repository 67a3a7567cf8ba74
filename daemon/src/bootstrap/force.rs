//! `--force-new-cluster`: of a member with data, a cluster of one that continues it. Its log stays, whatever the others have; the log removes
//! every other member; and a new life of the cluster begins, so that those of the old one neither follow this member nor are stopped by it.
//!
//! etcd cuts what is not known to be committed. Here that stays too: after a kill or a power cut the disk knows less of the commit index
//! than clients were told, and what nobody was told of may happen or not.
//!
//! Order of writing: the identity file names the new life first, and only then is the log changed. A start that was cut short between the
//! two is finished by the next one, with or without the flag: by then no member of the old life speaks with this one any more, so its log
//! can mislead nobody.
//!
//! Not here: what the entries do (state-machine), who is refused by whom (node).

use std::{collections::BTreeSet, sync::Arc};

use ::identity::{Private, Unique};
use api::{
    error::EtcdError,
    mvccpb::Event,
    raftpb::{ConfChange, ConfChangeType, ConfChangeV2},
};
use prost::Message as _;
use state_machine::{
    Options, Outcome, Sink, StateMachine,
    membership::{Member, promote_context},
    store::{Store as _, Table},
};
use storage::{
    data_dir::DataDir,
    snapshot::{Quiet, View as _},
    state_store::{FjallStore, StoreOptions},
    wal::WalContents,
};
use tracing::warn;
use types::{Entry, EntryKind, HardState, LogIndex, MemberId, Revision, Term};

use super::{
    execute,
    prepare::{Opened, Uncounted},
};
use crate::{
    config::Settings,
    identity::{self, Identity, Keeper, State, compare::Changes, remedy},
    refusal::{Id, Refusal},
};

/// How the identity file names a member that was forced.
pub const METHOD: &str = "force-new";

/// Whether this start has to force, or to finish what an earlier one began.
pub fn is_wanted(identity: &Identity, settings: &Settings) -> bool {
    settings.membership.force_new_cluster || is_unfinished(identity)
}

fn is_unfinished(identity: &Identity) -> bool {
    identity.origin.method == METHOD && identity.state == State::Formed
}

/// There is nothing to continue.
pub fn without_data(data_dir: &str) -> Refusal {
    Refusal::new(Id::BadValue, "--force-new-cluster continues a member with data, and there is none")
        .evidence("--data-dir", format!("{data_dir} holds no member"))
        .remedy("name the directory of the member to continue: --data-dir=<its directory>")
        .remedy("or, for a cluster that begins empty, leave --force-new-cluster out")
}

/// What is to be cut and who is to go.
#[derive(Debug, PartialEq, Eq)]
struct Plan {
    /// What is kept ends here.
    cut: LogIndex,
    /// Of the entries that are written behind it; above every term that anybody of the old life can have voted in here.
    term: Term,
    me: Member,
    others: BTreeSet<MemberId>,
}

/// The member as it comes back. Nothing is forced before [`carry_out`].
pub fn come_back(
    dir: &DataDir,
    identity: Identity,
    changes: Changes,
    settings: &Settings,
) -> Result<Opened, Refusal> {
    let (wal, contents) = execute::open_log(dir, &identity, settings)?;
    let keeper = Keeper::new(dir.member(), settings.storage.wal_dir.clone(), identity);
    Ok(Opened { keeper, wal, contents, changes, uncounted: Some(Uncounted::Force) })
}

/// Makes the member the only one. Its ports are bound by then: a start that is refused for them has begun no other life.
pub fn carry_out(dir: &DataDir, opened: Opened, settings: &Settings) -> Result<Opened, Refusal> {
    let Opened { mut keeper, mut wal, contents, changes, .. } = opened;
    let member_dir = dir.member();
    let refuse = |error: std::io::Error| Refusal::io("write the identity into", &member_dir, &error);
    let unfinished = is_unfinished(keeper.identity());
    let (plan, life) = plan(dir, keeper.identity(), &contents)?;
    if plan.others.is_empty() && !unfinished && keeper.identity().origin.method == METHOD {
        warn!(
            "this member is a cluster of one already; leave --force-new-cluster out from now on, or it removes who joins"
        );
        keeper.booted(identity::random().map_err(refuse)?).map_err(refuse)?;
        return Ok(Opened { keeper, wal, contents, changes, uncounted: None });
    }
    let (fresh, parent) = match keeper.identity().cluster_uuid.filter(|_| unfinished) {
        Some(begun) => (begun, keeper.identity().parent_uuid),
        None => (identity::random().map_err(refuse)?, life.or(keeper.identity().cluster_uuid)),
    };
    if !unfinished {
        keeper.forced(METHOD, fresh, parent).map_err(refuse)?;
    }
    let (entries, hard_state) = entries(&plan, fresh, parent);
    let refuse_log = |error| execute::log_refusal(dir.wal(), &error);
    wal.append(&entries, Some(&hard_state)).map_err(refuse_log)?;
    wal.sync().map_err(refuse_log)?;
    drop(wal);
    let (wal, now) = execute::open_log(dir, keeper.identity(), settings)?;
    apply(dir, keeper.identity(), &now.entries)?;
    keeper.born(Some(fresh), parent).map_err(refuse)?;
    keeper.booted(identity::random().map_err(refuse)?).map_err(refuse)?;
    let last = contents.entries.last().map_or(contents.snapshot.index, |entry| entry.index);
    warn!(
        member = %plan.me.id,
        cluster_uuid = %fresh,
        parent_uuid = parent.map(|parent| parent.to_string()),
        kept = plan.cut.0,
        discarded = last.0.saturating_sub(plan.cut.0),
        removed = ?plan.others.iter().map(MemberId::to_string).collect::<Vec<_>>(),
        "this member is a new cluster of one; give the others empty data directories and add them as new members, they cannot come back \
         with what they have"
    );
    Ok(Opened { keeper, wal, contents: now, changes, uncounted: None })
}

/// Brings the state up to the end of the log, before anything runs: a member that still saw the others in its list would dial them, be
/// refused for its new life, and believe them.
fn apply(dir: &DataDir, identity: &Identity, entries: &[Entry]) -> Result<(), Refusal> {
    let bad = |error: &dyn std::error::Error| damaged(dir, identity, error.to_string());
    let store = FjallStore::open(&dir.state(), StoreOptions::default()).map_err(|error| bad(&error))?;
    let store = Arc::new(store);
    let mut machine =
        StateMachine::open(store.clone(), Options::default(), None).map_err(|error| bad(&error))?;
    machine.apply(entries, &mut Deaf);
    store.persist().map_err(|error| bad(&error))?;
    Ok(())
}

/// Nobody waits for what these entries come to.
struct Deaf;

impl Sink for Deaf {
    fn outcome(&mut self, _: LogIndex, _: u64, _: Result<Outcome, EtcdError>) {}
    fn wants_events(&self) -> bool {
        false
    }
    fn events(&mut self, _: Revision, _: Vec<Event>) {}
    fn conf_change(&mut self, _: LogIndex, _: Option<ConfChangeV2>) {}
}

fn unusable(dir: &DataDir, why: String) -> Refusal {
    Refusal::new(Id::StateDamaged, "the state of this member cannot be used")
        .evidence(dir.state().display().to_string(), why)
}

/// Whoever forces has no cluster to take the member back.
fn damaged(dir: &DataDir, identity: &Identity, why: String) -> Refusal {
    let state = dir.state().display().to_string();
    unusable(dir, why)
        .remedy(format!("mv {state} {state}.damaged, and force again: a log that still holds everything rebuilds it, any other start is refused"))
        .remedy("else force the cluster from the directory of another member")
        .remedy(format!("else {}", remedy::restore(identity)))
}

/// The plan, and the life that ends with it.
fn plan(
    dir: &DataDir,
    identity: &Identity,
    contents: &WalContents,
) -> Result<(Plan, Option<Unique>), Refusal> {
    let unreadable = |why: String| damaged(dir, identity, why);
    let bad = |error: &dyn std::error::Error| unreadable(error.to_string());
    let store = FjallStore::open(&dir.state(), StoreOptions::default()).map_err(|error| bad(&error))?;
    let applied = Quiet::new(&store).map_err(|error| bad(&error))?.position();
    let mut members = Vec::new();
    for (_, row) in store.table(Table::Members).map_err(|error| bad(&error))? {
        members.push(Member::from_row(&row).map_err(|error| bad(&error))?);
    }
    let meta = store.table(Table::Meta).map_err(|error| bad(&error))?;
    let life = state_machine::identities::life(&meta).map_err(unreadable)?;

    let known = contents.hard_state.commit.max(applied.index);
    let last = contents.entries.last().map_or(contents.snapshot.index, |entry| entry.index);
    if known > last {
        return Err(unreadable(format!("it is at index {}, and the log ends at {last}", applied.index)));
    }
    if contents.snapshot.index > applied.index {
        let (snapshot, applied) = (contents.snapshot.index, applied.index);
        return Err(unusable(
            dir,
            format!("it is at index {applied}, and a snapshot of {snapshot} has arrived"),
        )
        .remedy(
            "start once without --force-new-cluster, which installs the snapshot, stop, and force then",
        ));
    }
    let cut = kept(&contents.entries, known, last, identity.member_id);
    let kept = contents.entries.iter().filter(|entry| entry.index > applied.index && entry.index <= cut);
    let me = change_members(&mut members, kept, identity.member_id);
    let mut others: BTreeSet<MemberId> = members.iter().map(|member| member.id).collect();
    others.remove(&identity.member_id);
    let Some(me) = me else {
        return Err(Refusal::new(
            Id::NotAMember,
            "the configuration in this directory does not have this member",
        )
        .evidence("member", identity.member_id.to_string())
        .remedy("force the cluster from the directory of another member"));
    };
    let newest = contents.entries.last().map_or(Term(0), |entry| entry.term);
    let term = Term(contents.hard_state.term.max(newest).0 + 1);
    Ok((Plan { cut, term, me, others }, life))
}

/// Through which index the log is kept: all of it, unless it removes this very member and is not known to be committed that far.
fn kept(log: &[Entry], known: LogIndex, last: LogIndex, me: MemberId) -> LogIndex {
    let removes_me = |entry: &Entry| {
        entry.kind == EntryKind::ConfChange
            && ConfChange::decode(entry.data.clone()).is_ok_and(|change| {
                change.r#type == Some(ConfChangeType::ConfChangeRemoveNode as i32)
                    && change.node_id == Some(me.0)
            })
    };
    let removal = log.iter().find(|entry| entry.index > known && removes_me(entry));
    removal.map_or(last, |entry| LogIndex(entry.index.0 - 1))
}

/// As the entries would change the list if none of them is refused: one too many is removed in vain.
fn change_members<'a>(
    members: &mut Vec<Member>,
    entries: impl Iterator<Item = &'a Entry>,
    me: MemberId,
) -> Option<Member> {
    for entry in entries.filter(|entry| entry.kind == EntryKind::ConfChange) {
        let Ok(change) = ConfChange::decode(entry.data.clone()) else { continue };
        let id = MemberId(change.node_id.unwrap_or(0));
        let is_learner = match ConfChangeType::try_from(change.r#type.unwrap_or(0)) {
            Ok(ConfChangeType::ConfChangeAddNode) => false,
            Ok(ConfChangeType::ConfChangeAddLearnerNode) => true,
            Ok(ConfChangeType::ConfChangeRemoveNode) => {
                members.retain(|member| member.id != id);
                continue;
            }
            _ => continue,
        };
        let context = change.context.unwrap_or_default();
        match members.iter_mut().find(|member| member.id == id) {
            Some(known) => known.is_learner = is_learner,
            None => {
                members.push(Member { id, is_learner, ..Member::from_row(&context).unwrap_or_default() });
            }
        }
    }
    members.iter().find(|member| member.id == me).cloned()
}

/// This member votes, nobody else is left, and a new life begins; all of it committed.
fn entries(plan: &Plan, life: Unique, parent: Option<Unique>) -> (Vec<Entry>, HardState) {
    let me = plan.me.id;
    let note = Private { cluster_uuid: Some(life), parent_uuid: parent, ..Private::default() };
    let promotion = plan.me.is_learner.then(|| (ConfChangeType::ConfChangeAddNode, me, promote_context(me)));
    let removals = plan.others.iter().map(|id| (ConfChangeType::ConfChangeRemoveNode, *id, Vec::new()));
    let birth = (ConfChangeType::ConfChangeUpdateNode, me, plan.me.note_context(note));
    let changes = promotion.into_iter().chain(removals).chain([birth]);
    let entry = |(at, (kind, id, context)): (u64, (ConfChangeType, MemberId, Vec<u8>))| Entry {
        term: plan.term,
        index: LogIndex(at),
        kind: EntryKind::ConfChange,
        data: ConfChange {
            id: Some(0),
            r#type: Some(kind as i32),
            node_id: Some(id.0),
            context: (!context.is_empty()).then(|| context.into()),
        }
        .encode_to_vec()
        .into(),
    };
    let entries: Vec<Entry> = (plan.cut.0 + 1..).zip(changes).map(entry).collect();
    let commit = entries.last().map_or(plan.cut, |entry| entry.index);
    (entries, HardState { term: plan.term, vote: MemberId::NONE, commit })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(id: u64, is_learner: bool) -> Member {
        Member {
            id: MemberId(id),
            peer_urls: vec![format!("http://m{id}:1")],
            is_learner,
            ..Member::default()
        }
    }

    fn change(index: u64, kind: ConfChangeType, id: u64) -> Entry {
        let change = ConfChange {
            id: Some(0),
            r#type: Some(kind as i32),
            node_id: Some(id),
            context: Some(member(id, false).to_row().into()),
        };
        let data = change.encode_to_vec().into();
        Entry { term: Term(2), index: LogIndex(index), kind: EntryKind::ConfChange, data }
    }

    #[test]
    fn the_log_is_kept_up_to_a_removal_of_this_member_that_may_not_have_happened() {
        use ConfChangeType::*;
        let log = [
            change(5, ConfChangeUpdateNode, 2),
            change(6, ConfChangeRemoveNode, 3),
            change(7, ConfChangeRemoveNode, 1),
        ];
        let kept = |known, me| kept(&log, LogIndex(known), LogIndex(8), MemberId(me)).0;
        assert_eq!(kept(4, 1), 6);
        assert_eq!(kept(4, 2), 8, "nobody removes it");
        assert_eq!(kept(7, 1), 8, "it is known to be committed: the list says so");
    }

    #[test]
    fn the_list_is_that_of_the_last_entry_that_is_kept() {
        use ConfChangeType::*;
        let mut members = vec![member(1, false), member(2, false)];
        let log = [
            change(5, ConfChangeAddLearnerNode, 3),
            change(6, ConfChangeRemoveNode, 2),
            change(7, ConfChangeAddLearnerNode, 4),
            change(8, ConfChangeAddNode, 4),
            change(9, ConfChangeUpdateNode, 1),
        ];
        let me = change_members(&mut members, log.iter(), MemberId(3)).expect("it is listed");
        assert!(me.is_learner);
        assert_eq!(me.peer_urls, ["http://m3:1"]);
        let ids: Vec<u64> = members.iter().map(|member| member.id.0).collect();
        assert_eq!(ids, [1, 3, 4]);
        assert!(!members[2].is_learner, "it was promoted");
    }

    #[test]
    fn the_log_makes_this_member_the_only_one_and_names_the_new_life() {
        let others = BTreeSet::from([MemberId(2), MemberId(3)]);
        let plan = Plan { cut: LogIndex(40), term: Term(7), me: member(1, true), others };
        let (life, parent) = (Unique::for_test(9), Some(Unique::for_test(8)));
        let (entries, hard_state) = entries(&plan, life, parent);
        assert_eq!(hard_state, HardState { term: Term(7), vote: MemberId::NONE, commit: LogIndex(44) });
        let indexes: Vec<u64> = entries.iter().map(|entry| entry.index.0).collect();
        assert_eq!(indexes, [41, 42, 43, 44]);
        let kinds: Vec<(i32, u64)> = entries
            .iter()
            .map(|entry| ConfChange::decode(entry.data.clone()).expect("a conf change"))
            .map(|change| (change.r#type.unwrap_or(-1), change.node_id.unwrap_or(0)))
            .collect();
        assert_eq!(kinds, [(0, 1), (1, 2), (1, 3), (2, 1)], "promoted, the others removed, the life noted");
        let last =
            ConfChange::decode(entries[3].data.clone()).expect("a conf change").context.expect("a note");
        let text = String::from_utf8_lossy(&last).into_owned();
        assert!(text.contains(&life.to_string()) && text.contains("parent_uuid"), "{text}");
    }

    /// Founders of three on this machine, as far as the log: nobody has ever run.
    fn settings(data_dir: &std::path::Path, force: bool) -> Settings {
        let mut flags = vec![
            format!("--data-dir={}", data_dir.display()),
            "--name=m1".to_owned(),
            "--initial-advertise-peer-urls=http://127.0.0.1:1".to_owned(),
            "--initial-cluster=m1=http://127.0.0.1:1,m2=http://127.0.0.1:2,m3=http://127.0.0.1:3".to_owned(),
        ];
        flags.extend(force.then(|| "--force-new-cluster".to_owned()));
        let flags = crate::cli::parse(flags.into_iter().map(std::ffi::OsString::from)).unwrap().flags;
        let surroundings =
            crate::config::Surroundings { flags, variables: vec![], default_file: "/nonexistent".into() };
        crate::config::load(&surroundings).unwrap().0
    }

    /// Every file and its bytes, but for the lock.
    fn files(dir: &std::path::Path) -> Vec<(std::path::PathBuf, Vec<u8>)> {
        let mut found = Vec::new();
        for path in std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()) {
            match path.is_dir() {
                true => found.extend(files(&path)),
                false if path.ends_with("LOCK") => {}
                false => found.push((path.clone(), std::fs::read(&path).unwrap())),
            }
        }
        found.sort();
        found
    }

    /// Killed between the identity file and the log: the next start, without the flag, finishes; one with the flag then finds nothing to do.
    #[test]
    fn a_force_that_was_cut_short_is_finished_by_the_next_start() {
        let root = tempfile::tempdir().unwrap();
        let data_dir = root.path().join("m1");
        let plain = settings(&data_dir, false);
        let dir = execute::lock(&plain).unwrap();
        let found = super::super::prepare::look(&plain, &mut Vec::new()).unwrap();
        let super::super::plan::BootPlan::NewStatic(new) = found else { panic!("it founds: {found:?}") };
        let mut keeper = execute::found(&dir, &new, &plain).unwrap();
        keeper.formed(execute::known_members(&new, keeper.identity().dir_uuid)).unwrap();
        let (old, fresh) = (Unique::for_test(1), Unique::for_test(2));
        keeper.born(Some(old), None).unwrap();
        assert!(!is_wanted(keeper.identity(), &plain));
        assert!(is_wanted(keeper.identity(), &settings(&data_dir, true)));
        keeper.forced(METHOD, fresh, Some(old)).unwrap();
        drop(keeper);

        let read = || identity::read(&dir.member()).unwrap().unwrap();
        assert!(is_wanted(&read(), &plain), "although nobody asks for it any more");
        let before = files(&data_dir);
        drop(come_back(&dir, read(), Changes::default(), &plain).unwrap());
        assert_eq!(files(&data_dir), before, "nothing is written until the ports are bound");
        let forced = |settings: &Settings| {
            let opened = come_back(&dir, read(), Changes::default(), settings).unwrap();
            carry_out(&dir, opened, settings).unwrap()
        };
        let opened = forced(&plain);
        let identity = opened.keeper.identity();
        assert_eq!((identity.cluster_uuid, identity.parent_uuid), (Some(fresh), Some(old)));
        assert_eq!((&identity.state, identity.boot_seq), (&State::Born, 2));
        assert_eq!(identity.members.len(), 1);
        let last = opened.contents.entries.last().unwrap().index;
        assert_eq!((last, opened.contents.hard_state.commit), (LogIndex(6), LogIndex(6)));
        assert!(!is_wanted(identity, &plain));
        drop(opened);

        let again = forced(&settings(&data_dir, true));
        assert_eq!(again.contents.entries.last().unwrap().index, last, "there is nobody left to remove");
        assert_eq!(again.keeper.identity().cluster_uuid, Some(fresh));
        assert_eq!(again.keeper.identity().boot_seq, 3);
    }
}
