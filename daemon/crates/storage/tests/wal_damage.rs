//! A log whose bytes were cut, zeroed, flipped or exchanged: what may be lost is lost and reported, everything else is refused, and
//! nothing is ever made up.

mod wal_support;

use std::collections::BTreeSet;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use storage::wal::{DamageKind, Inspected, InspectedRecord, Wal, WalContents, WalError, inspect};
use types::{Entry, HardState, LogIndex, LogPosition};
use wal_support::*;

/// A log, record by record, as a tool sees it.
fn records(dir: &Path) -> Vec<InspectedRecord> {
    let mut records = Vec::new();
    assert_eq!(inspect(dir, &mut |record| records.push(record)).unwrap(), None);
    records
}

/// What a log of these records says. Written from the rules, not from the code: entries replace, the newest snapshot record at or
/// below the commit is the start.
fn meaning<'a>(records: impl Iterator<Item = &'a Inspected> + Clone) -> (LogPosition, HardState, Vec<Entry>) {
    let mut state = HardState::default();
    let mut entries: Vec<Entry> = Vec::new();
    for record in records.clone() {
        match record {
            Inspected::State(read) => state = *read,
            Inspected::Entry(entry) => {
                entries.retain(|earlier| earlier.index < entry.index);
                entries.push(entry.clone());
            }
            _ => {}
        }
    }
    let start = records
        .filter_map(|record| match record {
            Inspected::Snapshot(position, _) if position.index <= state.commit => Some(*position),
            _ => None,
        })
        .next_back_by_index();
    entries.retain(|entry| entry.index > start.index);
    (start, state, entries)
}

trait NewestByIndex: Iterator<Item = LogPosition> + Sized {
    fn next_back_by_index(self) -> LogPosition {
        self.max_by_key(|position| position.index).expect("a log begins with the empty snapshot")
    }
}

impl<I: Iterator<Item = LogPosition>> NewestByIndex for I {}

fn means(contents: &WalContents) -> (LogPosition, HardState, Vec<Entry>) {
    (contents.snapshot, contents.hard_state, contents.entries.clone())
}

/// A log of several segments with everything in it that a member writes.
fn write_log(dir: &Path, random: &mut Random, groups: u64) {
    let mut wal = Wal::create(dir, &ME, with_disk(Arc::new(FaultyDisk::never()))).unwrap();
    let (mut term, mut commit, mut last) = (1, 0, 0);
    for _ in 0..groups {
        for _ in 0..=random.below(2) {
            let mut first = last + 1;
            if random.below(8) == 0 {
                term += 1;
                first = commit + 1 + random.below(last - commit + 1);
            }
            let group: Vec<_> = (first..first + 1 + random.below(4))
                .map(|index| {
                    let len = random.below(700);
                    // Zeros inside of values look like sectors that were not written.
                    let data = if random.below(4) == 0 { vec![0; len as usize] } else { random.bytes(len) };
                    entry(term, index, data)
                })
                .collect();
            last = group[group.len() - 1].index.0;
            commit += random.below(last - commit + 1).min(3);
            wal.append(&group, Some(&state(term, commit))).unwrap();
        }
        wal.sync().unwrap();
        if random.below(10) == 0 && commit > 0 {
            let term = records(dir)
                .iter()
                .rev()
                .find_map(|record| match &record.record {
                    Inspected::Entry(entry) if entry.index.0 == commit => Some(entry.term.0),
                    _ => None,
                })
                .unwrap();
            wal.append_snapshot(at(term, commit), &voters(&[1, 2, 3])).unwrap();
            wal.sync().unwrap();
        }
    }
}

#[test]
fn cut_at_every_byte_of_the_last_records_leaves_a_prefix() {
    let root = tempfile::tempdir().unwrap();
    let (dir, copy) = (root.path().join("wal"), root.path().join("copy"));
    let mut wal = Wal::create(&dir, &ME, small_segments()).unwrap();
    for index in 1..=8 {
        wal.append(&entries(1, index..=index), Some(&state(1, index - 1))).unwrap();
        wal.sync().unwrap();
    }
    drop(wal);
    let records = records(&dir);
    let bytes = std::fs::read(&segments(&dir)[0]).unwrap();
    let end = bytes.iter().rposition(|byte| *byte != 0).unwrap() as u64 + 1;
    let first = records[records.len() / 2].offset;
    for len in first..=end {
        copy_dir(&dir, &copy);
        let file = &segments(&copy)[0];
        std::fs::OpenOptions::new().write(true).open(file).unwrap().set_len(len).unwrap();

        let (mut wal, contents) = Wal::open(&copy, with_disk(Arc::new(FaultyDisk::never())))
            .unwrap_or_else(|error| panic!("cut at {len}: {error}"));
        let kept = records.iter().enumerate().filter(|(at, _)| {
            let ends = records.get(at + 1).map_or(end.next_multiple_of(8), |next| next.offset);
            ends <= len
        });
        let expected = meaning(kept.map(|(_, record)| &record.record));
        assert_eq!(means(&contents), expected, "cut at {len}");

        let on_frame = records.iter().any(|record| record.offset == len);
        assert_eq!(contents.repaired.is_none(), on_frame, "cut at {len}: {:?}", contents.repaired);
        if let Some(repair) = &contents.repaired {
            let broken = std::fs::read(repair.copy.as_ref().unwrap()).unwrap();
            assert_eq!(broken, bytes[..len as usize], "the copy is what was found");
        }

        // The log goes on from there.
        let next = contents.entries.last().unwrap().index.next();
        wal.append(&entries(9, next.0..=next.0), Some(&state(9, next.0))).unwrap();
        wal.sync().unwrap();
        drop(wal);
        let contents = open(&copy).unwrap();
        assert_eq!((contents.repaired, contents.entries.last().unwrap().term.0), (None, 9));
    }
}

/// Offsets of the frames of one kind in the newest segment.
fn offsets(dir: &Path, wanted: impl Fn(&Inspected) -> bool) -> Vec<u64> {
    let newest = segments(dir).pop().unwrap();
    let of_kind = |record: &InspectedRecord| record.file == newest && wanted(&record.record);
    records(dir).iter().filter(|record| of_kind(record)).map(|record| record.offset).collect()
}

fn zero(file: &Path, from: u64, to: u64) {
    let file = std::fs::OpenOptions::new().write(true).open(file).unwrap();
    file.write_all_at(&vec![0; (to - from) as usize], from).unwrap();
}

fn flip(file: &Path, offset: u64, bit: u64) {
    let file = std::fs::OpenOptions::new().read(true).write(true).open(file).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    byte[0] ^= 1 << bit;
    file.write_all_at(&byte, offset).unwrap();
}

/// A log with two synced groups of three entries, the second of several sectors.
fn two_groups(dir: &Path) -> (PathBuf, Vec<u64>) {
    let mut wal = Wal::create(dir, &ME, small_segments()).unwrap();
    for first in [1, 4] {
        let group: Vec<_> =
            (first..first + 3).map(|index| entry(1, index, vec![index as u8; 1500])).collect();
        wal.append(&group, Some(&state(1, first - 1))).unwrap();
        wal.sync().unwrap();
    }
    drop(wal);
    (segments(dir).remove(0), offsets(dir, |record| matches!(record, Inspected::Entry(_))))
}

#[test]
fn torn_or_reordered_append_detected() {
    // The disk wrote some sectors of the last group and not others, in whatever order.
    for lost in 0..3 {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("wal");
        let (file, entries) = two_groups(&dir);
        let sector = (entries[3 + lost] + 8).next_multiple_of(512);
        zero(&file, sector, sector + 512);
        let contents = open(&dir).unwrap();
        assert_eq!(
            contents.entries.len(),
            3 + lost,
            "cut at the first record that was torn, nothing below it"
        );
        let repair = contents.repaired.unwrap();
        assert_eq!((repair.offset, repair.last_index), (entries[3 + lost], LogIndex(3 + lost as u64)));
        assert!(repair.copy.unwrap().exists());
        assert_eq!(open(&dir).unwrap().repaired, None, "repaired once");
    }

    // The sector in which a record begins is missing, those behind it are there.
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("wal");
    let (file, entries) = two_groups(&dir);
    zero(&file, entries[4], entries[4].next_multiple_of(512));
    let contents = open(&dir).unwrap();
    assert_eq!((contents.entries.len(), contents.repaired.unwrap().offset), (4, entries[4]));
}

#[test]
fn what_was_synced_before_something_else_is_never_taken_for_torn() {
    for lost in 0..3 {
        for whole_record in [false, true] {
            let root = tempfile::tempdir().unwrap();
            let dir = root.path().join("wal");
            let (file, entries) = two_groups(&dir);
            let sector = (entries[lost] + 8).next_multiple_of(512);
            if whole_record {
                zero(&file, entries[lost], entries[lost + 1].min(entries[lost] + 1500));
            } else {
                zero(&file, sector, sector + 512);
            }
            let before = contents_of(&dir);
            let error = open(&dir).unwrap_err();
            let damage = error.damage().unwrap_or_else(|| panic!("{error}"));
            assert_eq!(
                (&damage.file, damage.offset, damage.index.0),
                (&file, entries[lost], lost as u64 + 1)
            );
            assert!(matches!(damage.kind, DamageKind::BelowSynced { .. }), "{error}");
            assert_eq!(contents_of(&dir), before, "a refusal changes nothing");
        }
    }
}

#[test]
fn log_validation_checks_crc() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("wal");
    let (file, entries) = two_groups(&dir);
    flip(&file, entries[5] + 700, 3);
    let error = open(&dir).unwrap_err();
    let damage = error.damage().unwrap();
    assert_eq!((&damage.file, damage.offset, damage.index), (&file, entries[5], LogIndex(6)));
    assert!(matches!(damage.kind, DamageKind::Checksum { .. }), "{error}");
    let text = error.to_string();
    assert!(text.contains("log index 6") && text.contains(".wal at offset"), "{text}");

    let mut seen = 0;
    let found =
        inspect(&dir, &mut |record| seen += usize::from(matches!(record.record, Inspected::Entry(_))));
    assert_eq!((found.unwrap().as_ref(), seen), (Some(damage), 5), "a tool reads up to there");
}

#[test]
fn corrupt_file_refuses_once() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("wal");
    let (file, entries) = two_groups(&dir);
    flip(&file, entries[1] + 100, 0);
    let before = contents_of(&dir);
    let first = open(&dir).unwrap_err().to_string();
    assert_eq!(open(&dir).unwrap_err().to_string(), first, "the same reason each time");
    assert_eq!(contents_of(&dir), before, "and nothing is worn away by trying");
}

#[test]
fn a_length_that_lies_is_not_a_torn_tail() {
    for bit in 3..56 {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("wal");
        let (file, entries) = two_groups(&dir);
        flip(&file, entries[5] + bit / 8, bit % 8);
        let error = open(&dir).map(|contents| contents.repaired).unwrap_err();
        assert_eq!(error.damage().unwrap().offset, entries[5], "bit {bit}: {error}");
    }
}

#[test]
fn segments_that_do_not_belong_together_are_refused() {
    let root = tempfile::tempdir().unwrap();
    let (dir, other) = (root.path().join("wal"), root.path().join("other"));
    for (dir, value) in [(&dir, 1), (&other, 2)] {
        let mut wal = Wal::create(dir, &ME, small_segments()).unwrap();
        for index in 1..=60 {
            wal.append(&[entry(1, index, vec![value; 1000])], Some(&state(1, index))).unwrap();
            wal.sync().unwrap();
        }
    }
    let files = segments(&dir);
    let whole = root.path().join("whole");
    copy_dir(&dir, &whole);

    std::fs::remove_file(&files[2]).unwrap();
    let error = open(&dir).unwrap_err();
    assert!(matches!(error.damage().unwrap().kind, DamageKind::SequenceGap { last: 1, found: 3 }), "{error}");

    copy_dir(&whole, &dir);
    std::fs::copy(&segments(&other)[2], &files[2]).unwrap();
    let error = open(&dir).unwrap_err();
    assert!(matches!(error.damage().unwrap().kind, DamageKind::Checksum { .. }), "{error}");

    copy_dir(&whole, &dir);
    std::fs::remove_file(files.last().unwrap()).unwrap();
    assert!(open(&dir).is_ok(), "a log without its end is a shorter log: only the cluster can know better");

    copy_dir(&whole, &dir);
    std::fs::remove_file(&files[0]).unwrap();
    let error = open(&dir).unwrap_err();
    assert!(matches!(error.damage().unwrap().kind, DamageKind::SnapshotMissing { .. }), "{error}");

    // A closed segment that lost its end: not a torn tail, since the next segment exists.
    copy_dir(&whole, &dir);
    let file = std::fs::OpenOptions::new().write(true).open(&files[1]).unwrap();
    for cut in [1, 8, 500] {
        file.set_len(file.metadata().unwrap().len() - cut).unwrap();
        let error = open(&dir).unwrap_err();
        assert!(error.damage().is_some(), "{error}");
    }
}

/// A place where the log was damaged: bytes from `from` to `to` of `file`.
#[derive(Debug)]
struct Blow {
    file: PathBuf,
    from: u64,
    to: u64,
}

fn strike(dir: &Path, random: &mut Random, used: u64) -> Blow {
    let files = segments(dir);
    let pick = if random.below(3) == 0 { random.below(files.len() as u64) as usize } else { files.len() - 1 };
    let file = files[pick].clone();
    let len = file.metadata().unwrap().len();
    let used = if pick == files.len() - 1 { used } else { len };
    let from = random.below(used);
    match random.below(5) {
        0 => {
            std::fs::OpenOptions::new().write(true).open(&file).unwrap().set_len(from).unwrap();
            Blow { file, from, to: len }
        }
        1 => {
            let to = (from + 1 + random.below(2000)).min(len);
            zero(&file, from, to);
            Blow { file, from, to }
        }
        2 => {
            let from = from / 512 * 512;
            let to = (from + 512 * (1 + random.below(3))).min(len);
            zero(&file, from, to);
            Blow { file, from, to }
        }
        3 => {
            let rubbish_len = 1 + random.below(64).min(len - from - 1);
            let rubbish = random.bytes(rubbish_len);
            let to = from + rubbish.len() as u64;
            std::fs::OpenOptions::new()
                .write(true)
                .open(&file)
                .unwrap()
                .write_all_at(&rubbish, from)
                .unwrap();
            Blow { file, from, to }
        }
        _ => {
            flip(&file, from, random.below(8));
            Blow { file, from, to: from + 1 }
        }
    }
}

/// Logs that are damaged, twenty times each, when nobody asks for more: some seconds.
const CASES_DEFAULT: u64 = 60;

/// Random damage to random logs; `CAIRN_WAL_CASES` of them. Replay one case with `CAIRN_WAL_SEED=<seed> cargo test -p cairn-storage --test wal_damage random`.
#[test]
fn random_damage_is_cut_or_refused_and_never_believed() {
    let one: Option<u64> = std::env::var("CAIRN_WAL_SEED").ok().map(|seed| seed.parse().unwrap());
    let cases = std::env::var("CAIRN_WAL_CASES").map_or(CASES_DEFAULT, |cases| cases.parse().unwrap());
    let seeds = one.map_or(0..cases, |seed| seed..seed + 1);
    let (mut refused, mut cut, mut whole) = (0, 0, 0);
    for seed in seeds {
        let replay =
            format!("replay: CAIRN_WAL_SEED={seed} cargo test -p cairn-storage --test wal_damage random");
        let random = &mut Random(seed);
        let root = tempfile::tempdir().unwrap();
        let (dir, copy) = (root.path().join("wal"), root.path().join("copy"));
        let groups = 1 + random.below(60);
        write_log(&dir, random, groups);
        let records = records(&dir);
        let newest = segments(&dir).pop().unwrap();
        let bytes = std::fs::read(&newest).unwrap();
        let used = (bytes.iter().rposition(|byte| *byte != 0).unwrap() as u64 + 1).next_multiple_of(8);
        let undamaged = meaning(records.iter().map(|record| &record.record));
        assert_eq!(means(&open(&dir).unwrap()), undamaged, "{replay}");

        for _ in 0..20 {
            copy_dir(&dir, &copy);
            let blow = strike(&copy, random, used);
            let original = dir.join(blow.file.file_name().unwrap());
            let contents = match open(&copy) {
                Ok(contents) => contents,
                Err(WalError::Damaged(_)) => {
                    refused += 1;
                    continue;
                }
                Err(WalError::Missing { .. }) => panic!("{replay}: {blow:?}"),
                Err(error) => panic!("{replay}: {blow:?}: {error}"),
            };
            let found = means(&contents);
            if found == undamaged {
                whole += 1;
                continue;
            }
            cut += 1;
            assert_eq!(original, newest, "{replay}: {blow:?}: only the newest segment may lose its end");
            // With everything up to the end gone, a frame boundary looks like the end of a sound log.
            assert!(contents.repaired.is_some() || blow.to + 8 > used, "{replay}: {blow:?}");
            // Everything before the damage is kept, and what is kept is a prefix.
            let end_of = |at: usize| match records.get(at + 1) {
                Some(next) if next.file == newest => next.offset,
                _ => used,
            };
            let intact = (0..records.len())
                .filter(|at| records[*at].file != newest || end_of(*at) <= blow.from)
                .count();
            let is_prefix = (intact..=records.len())
                .any(|len| meaning(records[..len].iter().map(|record| &record.record)) == found);
            assert!(is_prefix, "{replay}: {blow:?}: {:?} is no prefix", found.1);
            // An intact sync mark behind the damage, followed by anything, proves that this was no torn write.
            let proven = records.iter().enumerate().any(|(at, record)| {
                record.file == newest
                    && record.offset >= blow.to
                    && matches!(record.record, Inspected::Crc(_))
                    && at + 1 < records.len()
            });
            assert!(!proven, "{replay}: {blow:?}: synced entries were cut");
        }
    }
    println!("{refused} refused, {cut} cut, {whole} without effect");
    assert!(one.is_some() || (refused > 100 && cut > 100 && whole > 10), "{refused} {cut} {whole}");
}

/// Files of rubbish, also rubbish that looks like frames: an answer, never a panic.
#[test]
fn any_bytes_get_an_answer() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("wal");
    drop(Wal::create(&dir, &ME, small_segments()).unwrap());
    let head = std::fs::read(&segments(&dir)[0]).unwrap();
    let mut answers = BTreeSet::new();
    for seed in 0..300 {
        let random = &mut Random(seed);
        let mut bytes = if random.below(2) == 0 { head[..72].to_vec() } else { Vec::new() };
        while bytes.len() < 3000 {
            let len = random.below(100);
            let body = random.bytes(len);
            if random.below(2) == 0 {
                let field = len | if len.is_multiple_of(8) { 0 } else { (0x80 | (8 - len % 8)) << 56 };
                bytes.extend(field.to_le_bytes());
                bytes.extend([8, random.below(6) as u8, 16, 0, 26, random.below(100) as u8]);
            }
            bytes.extend(body);
            bytes.resize(bytes.len().next_multiple_of(8), 0);
        }
        std::fs::write(&segments(&dir)[0], &bytes).unwrap();
        let _ = inspect(&dir, &mut |_| {});
        answers.insert(match open(&dir) {
            Ok(_) => "opened".to_owned(),
            Err(WalError::Damaged(damage)) => format!("{:?}", std::mem::discriminant(&damage.kind)),
            Err(error) => panic!("seed {seed}: {error}"),
        });
    }
    assert!(answers.len() > 2, "{answers:?}");
}
