//! What etcd's `snapshot status` says of a file, number by number and in its formats.
//!
//! Not here: whether a member can be made of the file, which takes a look at every row.

use std::fs::File;
use std::io;
use std::ops::ControlFlow;

use crate::bolt_read::{BoltError, BoltFile};
use crate::digest::{SECTOR_BYTES, check_digest};

/// The bucket of the rows.
pub const KEY_BUCKET: &str = "key";

/// As etcdutl 3.5 reckons it: `pairs` are those of all buckets (3.6 counts live keys instead).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// CRC-32C over each bucket's name and its pairs, buckets in order of their names.
    pub hash: u32,
    /// Of the last row; 0 without rows.
    pub revision: i64,
    pub pairs: u64,
    /// Of the pages in use; the file may be longer.
    pub total_bytes: u64,
}

/// Why a file has no status.
#[derive(Debug, thiserror::Error)]
pub enum LookError {
    #[error("read the file")]
    Io(#[from] io::Error),
    #[error(transparent)]
    Bolt(#[from] BoltError),
    #[error("the SHA-256 at its end does not match the database before it")]
    Digest,
    #[error("{0} bytes are neither whole pages nor whole pages and a SHA-256: its end is missing")]
    Length(u64),
}

/// Reads the file twice, once for its digest, if it has one, and once for its content. Memory does not grow with the file.
///
/// # Errors
/// Whatever is not a whole bbolt file, and a digest that does not match.
pub fn look(file: File) -> Result<Status, LookError> {
    match check_digest(&file)? {
        Some(true) => {}
        Some(false) => return Err(LookError::Digest),
        None => {
            let bytes = file.metadata()?.len();
            if bytes % SECTOR_BYTES != 0 {
                return Err(LookError::Length(bytes));
            }
        }
    }
    Ok(status_of(&BoltFile::open(file)?)?)
}

/// The status of an open file; nothing is said of its digest.
///
/// # Errors
/// A page that is not what its parent says.
pub fn status_of(bolt: &BoltFile) -> Result<Status, BoltError> {
    let mut names: Vec<&[u8]> = bolt.bucket_names().collect();
    names.sort_unstable();
    let mut status = Status { total_bytes: bolt.used_bytes(), ..Status::default() };
    for name in names {
        status.hash = crc32c::crc32c_append(status.hash, name);
        let rows = name == KEY_BUCKET.as_bytes();
        bolt.each(name, &mut |key, value| {
            status.hash = crc32c::crc32c_append(crc32c::crc32c_append(status.hash, key), value);
            status.pairs += 1;
            if rows && let Some(main) = key.first_chunk::<8>() {
                status.revision = i64::from_be_bytes(*main);
            }
            ControlFlow::Continue(())
        })?;
    }
    Ok(status)
}

/// The forms in which etcd's tools print a status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    Simple,
    Json,
    Fields,
    /// Drawn with lines, as etcdctl 3.5 and etcdutl do; 3.4 draws it in ASCII.
    Table,
}

impl Status {
    /// What is printed, with the end of the last line.
    pub fn text(&self, look: Look) -> String {
        let Status { hash, revision, pairs, total_bytes } = *self;
        let size = write_size(total_bytes);
        match look {
            Look::Simple => format!("{hash:x}, {revision}, {pairs}, {size}\n"),
            Look::Json => format!(
                "{{\"hash\":{hash},\"revision\":{revision},\"totalKey\":{pairs},\"totalSize\":{total_bytes}}}\n"
            ),
            Look::Fields => format!(
                "\"Hash\" : {hash}\n\"Revision\" : {revision}\n\"Keys\" : {pairs}\n\"Size\" : {total_bytes}\n"
            ),
            Look::Table => table(&[
                ("HASH", format!("{hash:x}")),
                ("REVISION", revision.to_string()),
                ("TOTAL KEYS", pairs.to_string()),
                ("TOTAL SIZE", size),
            ]),
        }
    }
}

/// One row under its heads; heads in the middle, values to the right.
fn table(columns: &[(&str, String)]) -> String {
    let widths: Vec<usize> = columns.iter().map(|(head, value)| head.len().max(value.len())).collect();
    let rule = |left: &str, middle: &str, right: &str| {
        let parts: Vec<String> = widths.iter().map(|width| "─".repeat(width + 2)).collect();
        format!("{left}{}{right}\n", parts.join(middle))
    };
    let row = |cells: Vec<String>| format!("│ {} │\n", cells.join(" │ "));
    let heads = columns.iter().zip(&widths).map(|((head, _), width)| format!("{head:^width$}")).collect();
    let values = columns.iter().zip(&widths).map(|((_, value), width)| format!("{value:>width$}")).collect();
    [rule("┌", "┬", "┐"), row(heads), rule("├", "┼", "┤"), row(values), rule("└", "┴", "┘")].concat()
}

/// Bytes for people, in powers of ten as etcd's tools print them.
pub fn write_size(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["B", "kB", "MB", "GB", "TB", "PB", "EB"];
    let (mut value, mut unit) = (bytes as f64, 0);
    while value >= 1000.0 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    match value {
        small if unit > 0 && small < 10.0 => format!("{small:.1} {}", UNITS[unit]),
        large => format!("{large:.0} {}", UNITS[unit]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What etcdutl 3.5.30 printed of a file.
    #[test]
    fn every_format_is_etcdutls() {
        let status = Status { hash: 0x4b3b_c3cf, revision: 3, pairs: 8, total_bytes: 20480 };
        assert_eq!(status.text(Look::Simple), "4b3bc3cf, 3, 8, 20 kB\n");
        assert_eq!(
            status.text(Look::Json),
            "{\"hash\":1262207951,\"revision\":3,\"totalKey\":8,\"totalSize\":20480}\n"
        );
        assert_eq!(
            status.text(Look::Fields),
            "\"Hash\" : 1262207951\n\"Revision\" : 3\n\"Keys\" : 8\n\"Size\" : 20480\n"
        );
        let table = "\
┌──────────┬──────────┬────────────┬────────────┐
│   HASH   │ REVISION │ TOTAL KEYS │ TOTAL SIZE │
├──────────┼──────────┼────────────┼────────────┤
│ 4b3bc3cf │        3 │          8 │      20 kB │
└──────────┴──────────┴────────────┴────────────┘
";
        assert_eq!(status.text(Look::Table), table);
    }

    #[test]
    fn sizes_are_as_etcds_tools_print_them() {
        for (bytes, text) in
            [(0, "0 B"), (999, "999 B"), (20_480, "20 kB"), (1_500, "1.5 kB"), (94_000_000, "94 MB")]
        {
            assert_eq!(write_size(bytes), text);
        }
    }
}
