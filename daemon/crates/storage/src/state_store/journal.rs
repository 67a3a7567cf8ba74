//! Cuts the damaged tail of fjall's newest journal. After a power loss the part that was never synced may have any of its pages and
//! miss others. fjall cuts a tail that simply ends, but refuses the whole database when a batch is there with a wrong checksum, and
//! takes lengths as they stand. For us that tail is worth nothing, since the write-ahead log has everything above what was synced, so
//! it goes before fjall sees it. Reading the journal once more costs about 30 ms; it is at most some 64 MB.
//!
//! ```text
//! start  1 | u32 items | u64 sequence number
//! item   2 | u8 kind | u8 compression | u64 keyspace | u16 key bytes | u32 value bytes | u32 stored bytes | key | value
//! clear  4 | u64 keyspace
//! end    3 | u64 XXH3 of the items' bytes | "FJL" 3
//! ```
//!
//! Only the newest journal is looked at: fjall syncs the others before it begins a new one, so damage there is damage to what the disk
//! had promised to keep, and stays a refusal.
//!
//! Not here: reading journals in general (fjall does), compressed items (the store writes none; one would be cut).

use std::fs::{self, File};
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::Xxh3;

const START: u8 = 1;
const ITEM: u8 = 2;
const END: u8 = 3;
const CLEAR: u8 = 4;
const TRAILER: [u8; 4] = *b"FJL\x03";
const BUFFER_BYTES: usize = 256 * 1024;

/// What was cut.
#[derive(Debug, PartialEq, Eq)]
pub struct Cut {
    pub journal: PathBuf,
    /// The file ends here now.
    pub at: u64,
    pub before: u64,
}

/// Cuts the newest journal in `dir` after its last whole batch. `None` when there is nothing to cut.
pub fn cut_damaged_tail(dir: &Path) -> io::Result<Option<Cut>> {
    let Some(journal) = newest(dir)? else { return Ok(None) };
    let file = File::options().read(true).write(true).open(&journal)?;
    let before = file.metadata()?.len();
    let at = whole_batches(BufReader::with_capacity(BUFFER_BYTES, &file))?;
    if at == before {
        return Ok(None);
    }
    file.set_len(at)?;
    file.sync_all()?;
    Ok(Some(Cut { journal, at, before }))
}

fn newest(dir: &Path) -> io::Result<Option<PathBuf>> {
    let mut newest = None;
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let number =
            path.file_name().and_then(|name| name.to_str()?.strip_suffix(".jnl")?.parse::<u64>().ok());
        if let Some(number) = number {
            newest = newest.max(Some((number, path)));
        }
    }
    Ok(newest.map(|(_, path)| path))
}

/// Length of the journal up to the end of its last whole batch before the first that is not.
fn whole_batches(mut journal: impl Read) -> io::Result<u64> {
    let mut whole = 0;
    let mut value = Vec::new();
    loop {
        match batch(&mut journal, &mut value) {
            Ok(Some(bytes)) => whole += bytes,
            Ok(None) => return Ok(whole),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(whole),
            Err(error) => return Err(error),
        }
    }
}

/// Bytes of the next batch; `None` when what follows is not a whole one.
fn batch(journal: &mut impl Read, value: &mut Vec<u8>) -> io::Result<Option<u64>> {
    if byte(journal)? != START {
        return Ok(None);
    }
    let items = u32::from_le_bytes(bytes(journal)?);
    let _sequence_number: [u8; 8] = bytes(journal)?;
    let mut length = 13;
    let mut sum = Xxh3::new();
    for _ in 0..items {
        match byte(journal)? {
            ITEM => {
                let head: [u8; 20] = bytes(journal)?;
                let key_bytes = u16::from_le_bytes([head[10], head[11]]);
                let value_bytes = u32::from_le_bytes([head[12], head[13], head[14], head[15]]);
                let stored_bytes = u32::from_le_bytes([head[16], head[17], head[18], head[19]]);
                if head[1] != 0 || stored_bytes != value_bytes {
                    return Ok(None);
                }
                let rest = u64::from(key_bytes) + u64::from(stored_bytes);
                value.clear();
                // By what is there, not by what a damaged length claims.
                if journal.by_ref().take(rest).read_to_end(value)? as u64 != rest {
                    return Ok(None);
                }
                sum.update(&[ITEM]);
                sum.update(&head);
                sum.update(value);
                length += 21 + rest;
            }
            CLEAR => {
                let keyspace: [u8; 8] = bytes(journal)?;
                sum.update(&[CLEAR]);
                sum.update(&keyspace);
                length += 9;
            }
            _ => return Ok(None),
        }
    }
    let end = byte(journal)? == END;
    let stored = u64::from_le_bytes(bytes(journal)?);
    let trailer: [u8; 4] = bytes(journal)?;
    Ok((end && trailer == TRAILER && stored == sum.digest()).then_some(length + 13))
}

fn byte(journal: &mut impl Read) -> io::Result<u8> {
    bytes(journal).map(|[byte]| byte)
}

fn bytes<const N: usize>(journal: &mut impl Read) -> io::Result<[u8; N]> {
    let mut out = [0; N];
    journal.read_exact(&mut out)?;
    Ok(out)
}
