//! Who watches what, for people who look at a running member. Told in slices, so that the hub never stands still for it: watchers that
//! come and go between two slices are counted or not, as it happens.

use types::KeyRange;

use super::{GroupId, Hub};

/// Places in the table of ranges that one slice looks at: some tens of microseconds if each has one watcher.
const PLACES_PER_SLICE: usize = 4096;

/// Watchers on one range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WatchedRange {
    pub range: KeyRange,
    pub watchers: u64,
    /// Of these: not following live events.
    pub slow: u64,
}

/// A part of what is watched.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Census {
    pub ranges: Vec<WatchedRange>,
    /// Where the next slice begins; None: this was the last.
    pub next: Option<usize>,
}

impl Hub {
    /// The ranges that are watched, from a place on; the first slice begins at 0.
    pub fn census(&self, from: usize) -> Census {
        let end = self.ranges.places().min(from.saturating_add(PLACES_PER_SLICE));
        let mut ranges = Vec::new();
        for watched in (from..end).filter_map(|place| self.ranges.at(place)) {
            let (mut watchers, mut slow) = (u64::from(watched.waiting), 0);
            for &group in &watched.groups {
                let (all, behind) = self.count(group);
                watchers += all;
                slow += behind;
            }
            if watchers > 0 {
                ranges.push(WatchedRange { range: watched.range.clone(), watchers, slow });
            }
        }
        Census { ranges, next: (end < self.ranges.places()).then_some(end) }
    }

    fn count(&self, group: GroupId) -> (u64, u64) {
        let group = &self.groups[group as usize];
        let watchers = group.ids.len() as u64;
        let follows = self.streams[group.stream as usize].synced == Some(group.cohort);
        (watchers, if follows { 0 } else { watchers })
    }
}
