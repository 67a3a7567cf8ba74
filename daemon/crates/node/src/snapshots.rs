//! Whole states on their way: out to a peer that needs what the log no longer holds, and in from a leader.
//!
//! Out: a thread pins a view of the state and measures it, the raft loop makes the message, and the transport streams the view in etcd's
//! database format as it is read, no faster than the settings allow while writes are applied. No file is made. In: the transport writes the
//! file, it is synced and named before raft hears of it, and the apply worker installs it when the core says so: as a rule the state that was
//! built while it arrived, else from the file. A crash in between leaves a complete file whose index the log names; [`resume`] installs it at
//! start.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Write},
    num::NonZeroU64,
    ops::ControlFlow,
    path::{Path, PathBuf},
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use api::raftpb;
use bytes::Bytes;
use consensus::{Core, io::Input};
use parking_lot::Mutex;
use state_machine::{
    StateMachine,
    membership::Member,
    rows::{self, meta},
    store::{StoreError, Table},
};
use storage::{
    snapshot::{self, Ahead, DbFile, Room, SyncBehind, View},
    state_store::{FjallStore, StateView, TABLE_KEY_BYTES_MAX},
};
use tracing::{info, warn};
use transport::{SnapshotSink, SnapshotSource, Transport};
use types::{ConfState, LogIndex, LogPosition, MemberId, Term};

use crate::{
    config::NodeConfig,
    paced::Paced,
    shared::{Shared, ToRaft},
    v2_store,
};

/// A file that is not needed any more goes in pieces of this size, with a pause after each: the file system writes down at once what it frees
/// at once, and the log's syncs stand behind that.
const DISCARD_SLICE_BYTES: u64 = 64 << 20;
const DISCARD_PAUSE: Duration = Duration::from_millis(20);

/// Why a snapshot could not be written, received or installed.
#[derive(Debug, thiserror::Error)]
#[error("{operation}: {source}")]
pub struct SnapshotError {
    operation: &'static str,
    source: Box<dyn std::error::Error + Send + Sync>,
}

fn failed<E: std::error::Error + Send + Sync + 'static>(
    operation: &'static str,
) -> impl FnOnce(E) -> SnapshotError {
    move |source| SnapshotError { operation, source: Box::new(source) }
}

/// Reading alone is a small part of what sending costs: the view is measured so many times faster than the settings let it be sent.
const MEASURING_FACTOR: u64 = 4;

/// A state that is ready to be streamed to a peer.
pub(crate) struct Outgoing {
    pub(crate) to: MemberId,
    pub(crate) position: LogPosition,
    pub(crate) conf_state: ConfState,
    /// The members for an etcd; see [`v2_store`].
    pub(crate) v2_store: Bytes,
    pub(crate) source: SnapshotSource,
}

/// Raft loop: begins to make a snapshot for this peer. Ends in a `ToRaft::SnapshotReady` or a failed status.
pub(crate) fn begin(shared: &Arc<Shared>, to: MemberId) {
    let worker = shared.clone();
    let spawned =
        std::thread::Builder::new().name("snapshot".to_owned()).spawn(move || match prepare(&worker, to) {
            Ok(outgoing) => worker.raft.push(ToRaft::SnapshotReady(outgoing)),
            Err(error) => {
                warn!(peer = %to, %error, "snapshot for a peer could not be made");
                worker.raft.push(ToRaft::input(Input::SnapshotStatus { to, ok: false }));
            }
        });
    if let Err(error) = spawned {
        warn!(peer = %to, %error, "no thread for a snapshot");
        shared.raft.push(ToRaft::input(Input::SnapshotStatus { to, ok: false }));
    }
}

fn prepare(shared: &Arc<Shared>, to: MemberId) -> Result<Outgoing, SnapshotError> {
    let view = shared.store().view().map_err(failed("take a view of the state"))?;
    let position = view.position();
    let conf_state = conf_state(&view).map_err(failed("read the configuration"))?;
    if conf_state.voters.is_empty() {
        return Err(failed("read the configuration")(io::Error::other(format!(
            "none is known at {position}"
        ))));
    }
    let v2_store = v2_store::json(&view).map_err(failed("read the members"))?.into();
    let began = Instant::now();
    let layout = paced(shared, &view, MEASURING_FACTOR, |view| snapshot::measure(view))
        .map_err(failed("measure the state"))?;
    info!(
        peer = %to,
        index = position.index.0,
        bytes = layout.bytes(),
        took_ms = began.elapsed().as_millis() as u64,
        "made ready a snapshot for a peer"
    );
    let shared = shared.clone();
    let source = SnapshotSource::new(move |out| {
        paced(&shared, &view, 1, |view| snapshot::stream(view, &layout, out)).map_err(io::Error::other)
    });
    Ok(Outgoing { to, position, conf_state, v2_store, source })
}

/// Reads the view `factor` times as fast as snapshots may be sent, and not at all once this member has no business sending any.
fn paced<T>(
    shared: &Shared,
    view: &StateView,
    factor: u64,
    read: impl FnOnce(&Paced<'_, StateView>) -> T,
) -> T {
    let me = shared.config.member;
    let unwanted = || shared.stopping.load(Ordering::Relaxed) || shared.leadership.borrow().leader != me;
    let applied = || shared.applied();
    let rate = shared.live().snapshot_send_bytes_per_second;
    let rate = rate.map(|rate| rate.saturating_mul(NonZeroU64::MIN.saturating_add(factor - 1)));
    read(&Paced::new(view, rate, &applied, &unwanted))
}

/// Who votes and who learns at the view's position. From the view itself: the configuration of another moment, sent along with it, would
/// leave the receiver with one that no later entry corrects.
pub(crate) fn conf_state(view: &impl View) -> Result<ConfState, StoreError> {
    let meta = view.table(Table::Meta)?;
    let Some((_, json)) = meta.iter().find(|(key, _)| key == meta::CONF_STATE) else {
        return Ok(ConfState::default());
    };
    rows::parse_conf_state(json)
        .map_err(|error| StoreError { operation: "read the configuration", source: error.into() })
}

/// Raft loop: the state is measured; enters raft's snapshot state for the peer and streams.
pub(crate) fn stream(shared: &Shared, core: &mut Core, transport: &Transport, outgoing: Outgoing) {
    let Outgoing { to, position, conf_state, v2_store, source } = outgoing;
    match core.snapshot_message(to, position, &conf_state) {
        Ok(mut message) => {
            message.snapshot.get_or_insert_default().data = Some(v2_store);
            transport.send_snapshot(to, message, source);
        }
        Err(reason) => {
            info!(peer = %to, %reason, "snapshot is not sent");
            shared.raft.push(ToRaft::input(Input::SnapshotStatus { to, ok: false }));
        }
    }
}

fn snapshot_path(config: &NodeConfig, index: LogIndex) -> PathBuf {
    config.snap_dir.join(format!("{:016x}.snap.db", index.0))
}

/// Received files that have their name, and of which raft has been told or is about to be. Two may come at one index, from a leader and from
/// its successor, with the same state in them, and are one file then: what raft says to the message of one must not take it from the other.
#[derive(Default)]
pub(crate) struct Arrived(Mutex<BTreeMap<LogIndex, usize>>);

impl Arrived {
    fn give_name(&self, index: LogIndex, name: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        let mut messages = self.0.lock();
        name()?;
        *messages.entry(index).or_default() += 1;
        Ok(())
    }

    /// Raft did not want one of them.
    fn ignored(&self, index: LogIndex, remove: impl FnOnce()) {
        let mut messages = self.0.lock();
        let left = messages.get(&index).map_or(0, |count| count.saturating_sub(1));
        if left > 0 {
            messages.insert(index, left);
            return;
        }
        messages.remove(&index);
        remove();
    }

    /// Nobody needs any of them any more.
    fn installed(&self, index: LogIndex, remove: impl FnOnce()) {
        let mut messages = self.0.lock();
        messages.retain(|other, _| *other > index);
        remove();
    }
}

/// Transport: bytes of a snapshot begin to arrive.
pub(crate) fn receive(shared: &Arc<Shared>, message: raftpb::Message) -> io::Result<Box<dyn SnapshotSink>> {
    let metadata = message.snapshot.as_ref().and_then(|snapshot| snapshot.metadata.as_ref());
    let number = |of: fn(&raftpb::SnapshotMetadata) -> Option<u64>| metadata.and_then(of).unwrap_or_default();
    let position = LogPosition { term: Term(number(|at| at.term)), index: LogIndex(number(|at| at.index)) };
    if position.index.0 == 0 || position.index <= shared.applied() {
        return Err(io::Error::other(format!(
            "snapshot at index {} is not above the applied {}",
            position.index,
            shared.applied()
        )));
    }
    let config = &shared.config;
    let room = Room::of(&config.snap_dir)?;
    let partial = tempfile::Builder::new().prefix("tmp-").tempfile_in(&config.snap_dir)?;
    let path = snapshot_path(config, position.index);
    let syncing = partial.reopen()?;
    let behind = SyncBehind::new(move || syncing.sync_data())?;
    let ahead = Ahead::begin(&config.state_dir, position, &crate::store_options(config), rows::is_row)?;
    let shared = shared.clone();
    Ok(Box::new(Incoming { shared, message, position, partial, path, room, behind, ahead: Some(ahead) }))
}

struct Incoming {
    shared: Arc<Shared>,
    message: raftpb::Message,
    position: LogPosition,
    /// Removed on drop unless it got its name.
    partial: tempfile::NamedTempFile,
    path: PathBuf,
    room: Room<'static>,
    behind: SyncBehind,
    /// Builds the state; gone when it cannot, as from what an etcd sends.
    ahead: Option<Ahead>,
}

impl SnapshotSink for Incoming {
    fn write(&mut self, chunk: Bytes) -> io::Result<()> {
        let bytes = chunk.len() as u64;
        // The file, and the state that is built from it.
        self.room.take(if self.ahead.is_some() { 2 * bytes } else { bytes })?;
        self.partial.write_all(&chunk)?;
        self.behind.wrote(bytes);
        if self.ahead.as_mut().is_some_and(|ahead| !ahead.take(chunk)) {
            self.ahead = None;
        }
        Ok(())
    }

    fn finish(self: Box<Self>) -> io::Result<()> {
        let Incoming { shared, message, position, partial, path, room, behind, ahead } = *self;
        behind.finish()?;
        partial.as_file().sync_all()?;
        // Before raft hears of it: once it is noted in the log there is no way back, and a file that cannot be installed would end this
        // member at every start. Whatever a peer sends must not.
        let file = partial.reopen()?;
        let bytes = file.metadata()?.len();
        let open = || DbFile::open(partial.reopen()?).map_err(io::Error::other);
        let prepared = match ahead {
            Some(ahead) if !snapshot::has_digest(bytes) => ahead.finish(open()?),
            _ => None,
        };
        if prepared.is_some() {
            // Every row was looked at, and the state compared with the file.
            check_tables(&open()?)?;
        } else {
            // The state that is built from it stands beside the old one for a while. Later there is no way to refuse it.
            room.needs(bytes)?;
            check_content(&file, position.index)?;
        }
        let is_built = prepared.is_some();
        shared.arrived.give_name(position.index, || {
            partial.persist(&path)?;
            File::open(&shared.config.snap_dir)?.sync_all()
        })?;
        shared.prepared.put(prepared);
        info!(path = %path.display(), is_built, "received a snapshot");
        shared.raft.push(ToRaft::input(Input::Message(message)));
        Ok(())
    }
}

/// Reads all of a received database, as installing and opening it will.
fn check_content(file: &File, announced: LogIndex) -> io::Result<()> {
    if snapshot::check_digest(file)? == Some(false) {
        return Err(bad("the SHA-256 at the end of the snapshot does not match".to_owned()));
    }
    let db = DbFile::open(file.try_clone()?).map_err(io::Error::other)?;
    // A database that is further on would hold configuration changes that raft never hears of.
    if db.position().index != announced {
        return Err(bad(format!("the snapshot is at {}, announced as {announced}", db.position())));
    }
    let mut fault = None;
    db.each_row(&mut |id, _, value| {
        if rows::is_row(id, value) {
            return ControlFlow::Continue(());
        }
        fault = Some(format!("row {id} of the snapshot is no key-value"));
        ControlFlow::Break(())
    })
    .map_err(io::Error::other)?;
    fault.map_or(Ok(()), |what| Err(bad(what)))?;
    check_tables(&db)
}

fn check_tables(db: &DbFile) -> io::Result<()> {
    let mut fault = None;
    for table in Table::ALL {
        db.each_pair(table, &mut |key, value| {
            let good = match table {
                Table::Members => Member::from_row(value).is_ok(),
                Table::Meta if key == meta::CONF_STATE => rows::parse_conf_state(value).is_ok(),
                _ => key.len() <= TABLE_KEY_BYTES_MAX,
            };
            if good {
                return ControlFlow::Continue(());
            }
            fault = Some(format!("a pair of the snapshot's bucket {} cannot be read", table.name()));
            ControlFlow::Break(())
        })
        .map_err(io::Error::other)?;
    }
    fault.map_or(Ok(()), |what| Err(bad(what)))
}

fn bad(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// Apply worker: replaces the state by the received one. The old state stays until the new one is complete and durable.
pub(crate) fn install(
    shared: &Shared,
    machine: &mut StateMachine<FjallStore>,
    position: LogPosition,
) -> Result<(), SnapshotError> {
    let config = &shared.config;
    match shared.prepared.take(position) {
        Some(prepared) => {
            remove_checkpoint(config)?;
            let rows = prepared.install(&config.state_dir).map_err(failed("install the snapshot"))?;
            info!(index = position.index.0, rows, "the state that was built while it arrived is in place");
        }
        None => install_file(config, &snapshot_path(config, position.index), position)?,
    }
    let began = Instant::now();
    let store = FjallStore::open(&config.state_dir, crate::store_options(config))
        .map_err(failed("open the new state"))?;
    let store = Arc::new(store);
    let fresh = StateMachine::open(store.clone(), crate::machine_options(config), None)
        .map_err(failed("read the new state"))?;
    info!(took_ms = began.elapsed().as_millis() as u64, "built the index of the received state");
    *shared.reader.write() = fresh.reader();
    *shared.store.write() = store;
    *machine = fresh;
    shared.arrived.installed(position.index, || remove(config, position));
    let config = config.clone();
    aside("clean-up", move || clean_up(&config));
    Ok(())
}

/// Work that nobody waits for.
fn aside(name: &str, work: impl FnOnce() + Send + 'static) {
    if let Err(error) = std::thread::Builder::new().name(name.to_owned()).spawn(work) {
        warn!(name, %error, "no thread to tidy up; the next start does it");
    }
}

/// The state before goes once nobody reads it any more. One that cannot be removed costs space; the next start tries again.
pub(crate) fn clean_up(config: &NodeConfig) {
    if let Err(error) = storage::state_store::clean_unused(&config.state_dir) {
        warn!(%error, "former states could not be removed");
    }
}

/// Raft loop: the bytes of a snapshot that raft did not want.
pub(crate) fn discard(shared: &Shared, position: LogPosition) {
    shared.arrived.ignored(position.index, || {
        drop(shared.prepared.take(position));
        remove(&shared.config, position);
    });
}

fn remove(config: &NodeConfig, position: LogPosition) {
    let path = snapshot_path(config, position.index);
    // Under a name that nobody installs, before anything of it goes.
    let unnamed = config.snap_dir.join(format!("tmp-{:016x}.discarded", position.index.0));
    match fs::rename(&path, &unnamed) {
        Ok(()) => aside("discard", move || {
            if let Err(error) = shrink_and_remove(&unnamed) {
                warn!(path = %unnamed.display(), %error, "a used snapshot file could not be removed");
            }
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => warn!(path = %path.display(), %error, "a used snapshot file could not be removed"),
    }
}

fn shrink_and_remove(path: &Path) -> io::Result<()> {
    let file = File::options().write(true).open(path)?;
    let mut left = file.metadata()?.len();
    while left > DISCARD_SLICE_BYTES {
        left -= DISCARD_SLICE_BYTES;
        file.set_len(left)?;
        std::thread::sleep(DISCARD_PAUSE);
    }
    fs::remove_file(path)
}

/// At start: the log may name a snapshot that was received but not yet installed. Anything else in the directory is a leftover.
pub(crate) fn resume(config: &NodeConfig, noted: LogPosition) -> Result<(), SnapshotError> {
    fs::create_dir_all(&config.snap_dir).map_err(failed("create the snap directory"))?;
    let path = snapshot_path(config, noted.index);
    if path.exists() {
        let applied = FjallStore::open(&config.state_dir, crate::store_options(config))
            .map_err(failed("open the state"))?
            .position();
        if applied.index < noted.index {
            info!(index = noted.index.0, "installing the snapshot that was received before the last stop");
            install_file(config, &path, noted)?;
        }
    }
    let entries = fs::read_dir(&config.snap_dir).map_err(failed("list the snap directory"))?;
    for entry in entries.flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with("tmp-") || name.ends_with(".snap.db") {
            fs::remove_file(entry.path()).map_err(failed("remove a leftover snapshot"))?;
        }
    }
    Ok(())
}

/// A checkpoint belongs to the state it was made from, so it goes first.
fn remove_checkpoint(config: &NodeConfig) -> Result<(), SnapshotError> {
    storage::checkpoint::remove(&config.snap_dir).map_err(failed("remove the index checkpoint"))
}

fn install_file(config: &NodeConfig, path: &Path, position: LogPosition) -> Result<(), SnapshotError> {
    remove_checkpoint(config)?;
    let installed = snapshot::install(&config.state_dir, path, position, &crate::store_options(config))
        .map_err(failed("install the snapshot"))?;
    info!(index = installed.position.index.0, rows = installed.rows, "the received state is in place");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// AP20: also when the one that is not wanted came first.
    #[test]
    fn a_refused_snapshot_leaves_another_ones_bytes_of_its_index() {
        let arrived = Arrived::default();
        let at = LogIndex(7);
        let is_removed = |tell: &dyn Fn(&mut bool)| {
            let mut removed = false;
            tell(&mut removed);
            removed
        };
        let comes = || arrived.give_name(at, || Ok(())).unwrap();
        let ignored = |index| is_removed(&|removed| arrived.ignored(index, || *removed = true));
        let installed = || is_removed(&|removed| arrived.installed(at, || *removed = true));
        comes();
        comes();
        assert!(!ignored(at), "the other one is still to be decided");
        assert!(installed());
        comes();
        assert!(ignored(at), "the only one");
        assert!(ignored(at), "a copy that came while the first was installed");
        comes();
        comes();
        assert!(installed(), "the copy is not needed either");
        comes();
        assert!(ignored(at));
        arrived.give_name(at, || Err(io::Error::other("no room"))).unwrap_err();
        assert!(ignored(at), "what got no name does not count");
        assert!(ignored(LogIndex(8)));
    }
}
