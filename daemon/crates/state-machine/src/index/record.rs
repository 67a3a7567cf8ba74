//! What the index knows of one key: its newest version in full, the older ones by coordinates.

use types::{Revision, RowId};

/// Coordinates of a version, 12 bytes: a history costs as little as it can.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Version {
    main_high: u32,
    main_low: u32,
    /// `sub * 2`, plus one for a tombstone.
    sub_dead: u32,
}

/// Changes within one revision stay below this: coordinates are packed into 31 bits. A request of 1.5 MiB cannot come near it except
/// by deleting more keys than fit in memory.
pub const SUB_MAX: i64 = (u32::MAX >> 1) as i64;

impl Version {
    pub fn new(id: RowId, dead: bool) -> Version {
        let main = id.main.0 as u64;
        Version { main_high: (main >> 32) as u32, main_low: main as u32, sub_dead: pack(id.sub, dead) }
    }

    pub fn main(self) -> i64 {
        ((u64::from(self.main_high) << 32) | u64::from(self.main_low)) as i64
    }

    pub fn is_dead(self) -> bool {
        self.sub_dead & 1 == 1
    }

    pub fn id(self) -> RowId {
        RowId { main: Revision(self.main()), sub: i64::from(self.sub_dead >> 1) }
    }
}

fn pack(sub: i64, dead: bool) -> u32 {
    assert!((0..=SUB_MAX).contains(&sub), "a change has a place among those of its revision, not {sub}");
    ((sub as u32) << 1) | u32::from(dead)
}

/// One key. 64 bytes; the inline value and a history come on top.
#[derive(Clone, Debug, Default)]
pub struct Record {
    modified: i64,
    created: i64,
    version: i64,
    lease: i64,
    value: Option<Box<[u8]>>,
    /// Older versions, oldest first. Absent for most keys of most stores.
    #[expect(
        clippy::box_collection,
        reason = "a thin pointer: 16 bytes less for the many keys without a history"
    )]
    older: Option<Box<Vec<Version>>>,
    sub_dead: u32,
    value_len: u32,
}

/// Facts about a live version that the index holds for the newest one only.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    pub created: i64,
    pub version: i64,
    pub lease: i64,
}

impl Record {
    /// A key that has no version yet; exists only inside an insertion.
    pub(super) fn vacant() -> Record {
        Record { sub_dead: 1, ..Record::default() }
    }

    fn is_vacant(&self) -> bool {
        self.modified == 0 && self.sub_dead == 1 && self.older.is_none()
    }

    pub fn is_live(&self) -> bool {
        self.sub_dead & 1 == 0
    }

    pub fn newest(&self) -> Version {
        Version::new(self.id(), !self.is_live())
    }

    pub fn id(&self) -> RowId {
        RowId { main: Revision(self.modified), sub: i64::from(self.sub_dead >> 1) }
    }

    pub fn modified(&self) -> i64 {
        self.modified
    }

    pub fn facts(&self) -> Facts {
        Facts { created: self.created, version: self.version, lease: self.lease }
    }

    /// The newest value, when the memory budget had room for it.
    pub fn value(&self) -> Option<&[u8]> {
        self.value.as_deref()
    }

    /// Length of the newest value, inline or not.
    pub fn value_len(&self) -> u32 {
        self.value_len
    }

    pub fn older(&self) -> &[Version] {
        self.older.as_deref().map_or(&[], Vec::as_slice)
    }

    /// The newest version at or below `revision`, dead or alive.
    pub fn at(&self, revision: i64) -> Option<Version> {
        if self.modified <= revision {
            return (!self.is_vacant()).then(|| self.newest());
        }
        let older = self.older();
        let count = older.partition_point(|version| version.main() <= revision);
        count.checked_sub(1).map(|last| older[last])
    }

    /// A new newest version. `value` is None when it is not kept inline.
    pub(super) fn push(&mut self, id: RowId, facts: Option<Facts>, value_len: usize, value: Option<&[u8]>) {
        if !self.is_vacant() {
            let past = self.newest();
            assert!(past.id() < id, "versions of a key rise: {id} after {}", past.id());
            self.older.get_or_insert_default().push(past);
        }
        let Facts { created, version, lease } = facts.unwrap_or_default();
        self.modified = id.main.0;
        self.sub_dead = pack(id.sub, facts.is_none());
        (self.created, self.version, self.lease) = (created, version, lease);
        self.value_len = value_len as u32;
        match (&mut self.value, value) {
            // Overwriting in place spares a trip to the allocator for values of constant size.
            (Some(old), Some(new)) if old.len() == new.len() => old.copy_from_slice(new),
            (slot, new) => *slot = new.map(Box::from),
        }
    }

    pub(super) fn set_value(&mut self, value: &[u8]) {
        self.value = Some(Box::from(value));
    }

    pub(super) fn set_older(&mut self, older: Vec<Version>) {
        self.older = if older.is_empty() { None } else { Some(Box::new(older)) };
    }

    /// Appends to `gone` what compaction at `at` does not keep: everything below the newest version at or below it, and that one
    /// too when it is a tombstone from before `at`. What happened at `at` itself stays, for watches that begin there: tombstones, and
    /// versions that the same revision replaced. Changes nothing.
    pub fn superseded(&self, at: i64, gone: &mut Vec<Version>) {
        let older = self.older();
        let (below, last) = if self.modified <= at {
            (older, self.newest())
        } else {
            let count = older.partition_point(|version| version.main() <= at);
            let Some(last) = count.checked_sub(1) else { return };
            (&older[..last], older[last])
        };
        gone.extend_from_slice(&below[..below.partition_point(|version| version.main() < at)]);
        if last.is_dead() && last.main() < at {
            gone.push(last);
        }
    }

    /// Forgets what [`Record::superseded`] lists. True when nothing is left of the key.
    pub(super) fn forget_superseded(&mut self, at: i64) -> bool {
        let mut gone = Vec::new();
        self.superseded(at, &mut gone);
        if gone.len() > self.older().len() {
            return true;
        }
        if let Some(older) = &mut self.older {
            older.drain(..gone.len());
            if older.is_empty() {
                self.older = None;
            } else {
                older.shrink_to_fit();
            }
        }
        false
    }

    pub(super) fn heap_bytes(&self) -> usize {
        self.value.as_ref().map_or(0, |value| value.len())
            + self
                .older
                .as_ref()
                .map_or(0, |older| size_of::<Vec<Version>>() + older.capacity() * size_of::<Version>())
    }
}

const _: () = assert!(size_of::<Record>() == 64 && size_of::<Version>() == 12);
