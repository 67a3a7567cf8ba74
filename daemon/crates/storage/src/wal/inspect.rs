//! Reads a log without locking or changing it, for tools: record by record, as far as it makes sense.

use std::fs::File;
use std::path::{Path, PathBuf};

use types::{ConfState, Entry, HardState, LogPosition};

use super::WalMetadata;
use super::codec::{self, RecordKind};
use super::error::{Damage, DamageKind, WalError};
use super::frames::{FrameReader, Next, Record};
use super::segment;

/// One record and where it lies.
#[derive(Clone, Debug, PartialEq)]
pub struct InspectedRecord {
    pub file: PathBuf,
    pub offset: u64,
    pub record: Inspected,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Inspected {
    Metadata(WalMetadata),
    Entry(Entry),
    State(HardState),
    /// Head of a segment, or a sync mark inside of one.
    Crc(u32),
    Snapshot(LogPosition, Option<ConfState>),
}

/// Calls `each` for every record of the log in `dir`, in the order they were written. Returns the place where a segment stopped
/// making sense, if one did; that is normal for the newest segment of a log in use or after a crash.
pub fn inspect(dir: &Path, each: &mut dyn FnMut(InspectedRecord)) -> Result<Option<Damage>, WalError> {
    let names = segment::list(dir)?;
    if names.is_empty() {
        return Err(WalError::Missing { dir: dir.to_owned() });
    }
    let (mut crc, mut last) = (0, names[0].index);
    for name in names {
        let path = name.path(dir);
        let failed = |source| WalError::io("read", &path, source);
        let file = File::open(&path).map_err(failed)?;
        let mut reader = FrameReader::new(&file, file.metadata().map_err(failed)?.len(), crc);
        loop {
            let offset = reader.offset();
            let running = reader.crc();
            let kind = match reader.next().map_err(failed)? {
                Next::End => break,
                Next::Fault(fault) => fault.kind,
                Next::Record(record) => match decode(record, running) {
                    Some(record) => {
                        if let Inspected::Entry(entry) = &record {
                            last = entry.index;
                        }
                        each(InspectedRecord { file: path.clone(), offset, record });
                        continue;
                    }
                    None => DamageKind::Undecodable { what: "a record" },
                },
            };
            return Ok(Some(Damage { file: path, offset, index: last.next(), kind }));
        }
        crc = reader.crc();
    }
    Ok(None)
}

fn decode(record: Record<'_>, running: u32) -> Option<Inspected> {
    Some(match record.kind {
        RecordKind::Metadata => Inspected::Metadata(codec::decode_metadata(record.data)?),
        RecordKind::Entry => Inspected::Entry(codec::decode_entry(record.data)?.to_entry()),
        RecordKind::State => Inspected::State(codec::decode_state(record.data)?),
        RecordKind::Crc => Inspected::Crc(running),
        RecordKind::Snapshot => {
            let (position, conf_state) = codec::decode_snapshot(record.data)?;
            Inspected::Snapshot(position, conf_state)
        }
    })
}
