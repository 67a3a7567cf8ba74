//! Whole states on their way: out to a peer that needs what the log no longer holds, and in from a leader.
//!
//! Out: a thread pins a view of the state and measures it, the raft loop makes the message, and the transport streams the view in etcd's
//! database format as it is read, no faster than the settings allow while writes are applied. No file is made. In: the transport writes the file, it is synced and named before raft hears of it, and the apply worker installs
//! it when the core says so. A crash in between leaves a complete file whose index the log names; [`resume`] installs it at start.

use std::{
    fs::{self, File},
    io::{self, Write},
    num::NonZeroU64,
    ops::ControlFlow,
    path::{Path, PathBuf},
    sync::{Arc, atomic::Ordering},
    time::Instant,
};

use api::raftpb;
use bytes::Bytes;
use consensus::{Core, io::Input};
use state_machine::{
    StateMachine,
    membership::Member,
    rows::{self, meta},
    store::{StoreError, Table},
};
use storage::{
    snapshot::{self, DbFile, Room, View},
    state_store::{FjallStore, StateView, TABLE_KEY_BYTES_MAX},
};
use tracing::{info, warn};
use transport::{SnapshotSink, SnapshotSource, Transport};
use types::{ConfState, LogIndex, LogPosition, MemberId};

use crate::{
    config::NodeConfig,
    paced::Paced,
    shared::{Shared, ToRaft},
    v2_store,
};

/// Bytes of an arriving snapshot that may wait to be written to the disk: what the kernel holds back is written out in one go otherwise, and
/// the log's syncs stand behind all of it.
const SYNC_EVERY_BYTES: u64 = 2 << 20;

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

/// Transport: bytes of a snapshot begin to arrive.
pub(crate) fn receive(shared: &Arc<Shared>, message: raftpb::Message) -> io::Result<Box<dyn SnapshotSink>> {
    let metadata = message.snapshot.as_ref().and_then(|snapshot| snapshot.metadata.as_ref());
    let index = metadata.and_then(|metadata| metadata.index).unwrap_or_default();
    if index == 0 || index <= shared.applied().0 {
        return Err(io::Error::other(format!(
            "snapshot at index {index} is not above the applied {}",
            shared.applied()
        )));
    }
    let room = Room::of(&shared.config.snap_dir)?;
    let partial = tempfile::Builder::new().prefix("tmp-").tempfile_in(&shared.config.snap_dir)?;
    let path = snapshot_path(&shared.config, LogIndex(index));
    Ok(Box::new(Incoming { shared: shared.clone(), message, partial, path, room, unsynced: 0 }))
}

struct Incoming {
    shared: Arc<Shared>,
    message: raftpb::Message,
    /// Removed on drop unless it got its name.
    partial: tempfile::NamedTempFile,
    path: PathBuf,
    room: Room<'static>,
    unsynced: u64,
}

impl SnapshotSink for Incoming {
    fn write(&mut self, chunk: Bytes) -> io::Result<()> {
        self.room.take(chunk.len() as u64)?;
        self.partial.write_all(&chunk)?;
        self.unsynced += chunk.len() as u64;
        if self.unsynced >= SYNC_EVERY_BYTES {
            self.partial.as_file().sync_data()?;
            self.unsynced = 0;
        }
        Ok(())
    }

    fn finish(self: Box<Self>) -> io::Result<()> {
        let Incoming { shared, message, partial, path, room, .. } = *self;
        partial.as_file().sync_all()?;
        // The state that is built from it stands beside the old one for a while. Later there is no way to refuse it.
        room.needs(partial.as_file().metadata()?.len())?;
        // Before raft hears of it: once it is noted in the log there is no way back, and a file that cannot be installed would end this
        // member at every start. Whatever a peer sends must not.
        let metadata = message.snapshot.as_ref().and_then(|snapshot| snapshot.metadata.as_ref());
        let announced = metadata.and_then(|metadata| metadata.index).unwrap_or_default();
        check_content(&partial.reopen()?, LogIndex(announced))?;
        partial.persist(&path)?;
        File::open(&shared.config.snap_dir)?.sync_all()?;
        info!(path = %path.display(), "received a snapshot");
        shared.raft.push(ToRaft::input(Input::Message(message)));
        Ok(())
    }
}

/// Reads all of a received database, as installing and opening it will.
fn check_content(file: &File, announced: LogIndex) -> io::Result<()> {
    let bad = |what: String| io::Error::new(io::ErrorKind::InvalidData, what);
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

/// Apply worker: replaces the state by the received one. The old state stays until the new one is complete and durable.
pub(crate) fn install(
    shared: &Shared,
    machine: &mut StateMachine<FjallStore>,
    position: LogPosition,
) -> Result<(), SnapshotError> {
    let config = &shared.config;
    let path = snapshot_path(config, position.index);
    install_file(config, &path, position)?;
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
    discard(config, position);
    clean_up(config);
    Ok(())
}

/// The state before goes once nobody reads it any more. One that cannot be removed costs space; the next start tries again.
pub(crate) fn clean_up(config: &NodeConfig) {
    if let Err(error) = storage::state_store::clean_unused(&config.state_dir) {
        warn!(%error, "former states could not be removed");
    }
}

/// The bytes of a snapshot that raft did not want, or that is installed.
pub(crate) fn discard(config: &NodeConfig, position: LogPosition) {
    let path = snapshot_path(config, position.index);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            warn!(path = %path.display(), %error, "a used snapshot file could not be removed");
        }
        _ => {}
    }
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
fn install_file(config: &NodeConfig, path: &Path, position: LogPosition) -> Result<(), SnapshotError> {
    storage::checkpoint::remove(&config.snap_dir).map_err(failed("remove the index checkpoint"))?;
    let installed = snapshot::install(&config.state_dir, path, position, &crate::store_options(config))
        .map_err(failed("install the snapshot"))?;
    info!(index = installed.position.index.0, rows = installed.rows, "the received state is in place");
    Ok(())
}
