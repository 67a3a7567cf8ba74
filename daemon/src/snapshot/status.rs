//! `snapshot status`: what etcdutl 3.5 says of a file, in its formats.

use std::path::Path;

use storage::snapshot::{DbFile, DbStatus, check_digest};

use super::{arguments::Format, chain, damaged, open};
use crate::refusal::Refusal;

pub fn status(path: &Path, format: Format) -> Result<String, Refusal> {
    let file = open(path)?;
    if check_digest(&file).map_err(|error| Refusal::io("read", path, &error))? == Some(false) {
        return Err(damaged(path, "the SHA-256 at its end does not match the database before it"));
    }
    let status = DbFile::open(file).and_then(|db| db.status());
    Ok(text(&status.map_err(|error| damaged(path, chain(&error)))?, format))
}

fn text(status: &DbStatus, format: Format) -> String {
    let DbStatus { hash, revision, pairs, total_bytes } = *status;
    let size = size(total_bytes);
    match format {
        Format::Simple => format!("{hash:x}, {revision}, {pairs}, {size}\n"),
        Format::Json => format!(
            "{{\"hash\":{hash},\"revision\":{revision},\"totalKey\":{pairs},\"totalSize\":{total_bytes}}}\n"
        ),
        Format::Fields => format!(
            "\"Hash\" : {hash}\n\"Revision\" : {revision}\n\"Keys\" : {pairs}\n\"Size\" : {total_bytes}\n"
        ),
        Format::Table => table(&[
            ("HASH", format!("{hash:x}")),
            ("REVISION", revision.to_string()),
            ("TOTAL KEYS", pairs.to_string()),
            ("TOTAL SIZE", size),
        ]),
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
fn size(bytes: u64) -> String {
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
    use types::Revision;

    /// What etcdutl 3.5.30 printed of a file.
    #[test]
    fn every_format_is_etcdutls() {
        let status = DbStatus { hash: 0x4b3b_c3cf, revision: Revision(3), pairs: 8, total_bytes: 20480 };
        assert_eq!(text(&status, Format::Simple), "4b3bc3cf, 3, 8, 20 kB\n");
        assert_eq!(
            text(&status, Format::Json),
            "{\"hash\":1262207951,\"revision\":3,\"totalKey\":8,\"totalSize\":20480}\n"
        );
        assert_eq!(
            text(&status, Format::Fields),
            "\"Hash\" : 1262207951\n\"Revision\" : 3\n\"Keys\" : 8\n\"Size\" : 20480\n"
        );
        let table = "\
┌──────────┬──────────┬────────────┬────────────┐
│   HASH   │ REVISION │ TOTAL KEYS │ TOTAL SIZE │
├──────────┼──────────┼────────────┼────────────┤
│ 4b3bc3cf │        3 │          8 │      20 kB │
└──────────┴──────────┴────────────┴────────────┘
";
        assert_eq!(text(&status, Format::Table), table);
    }
}
