//! Ranges of keys that contain a key: an interval tree as a treap, each node knowing the largest end below it. Ten thousand distinct
//! prefixes cost an event a walk of about log n nodes, not a comparison with each.
//!
//! `iset` was looked at: its map demands that bounds are `Copy`, which keys are not. Priorities come from a seed, so the shape does not
//! depend on the keys that clients choose, and a test replays.

use std::cmp::Ordering;

use bytes::Bytes;

const NONE: u32 = u32::MAX;

/// `start <= key`, and `key < end` unless the end is open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Interval {
    pub(crate) start: Bytes,
    pub(crate) end: Option<Bytes>,
}

impl Interval {
    fn ends_after(&self, key: &[u8]) -> bool {
        self.end.as_ref().is_none_or(|end| key < end.as_ref())
    }

    fn order(&self, other: &Interval) -> Ordering {
        self.start.cmp(&other.start).then_with(|| end_order(self, other))
    }
}

fn end_order(a: &Interval, b: &Interval) -> Ordering {
    match (&a.end, &b.end) {
        (None, None) => Ordering::Equal,
        (None, _) => Ordering::Greater,
        (_, None) => Ordering::Less,
        (Some(a), Some(b)) => a.cmp(b),
    }
}

#[derive(Debug)]
struct Node {
    interval: Interval,
    value: u32,
    priority: u64,
    left: u32,
    right: u32,
    /// The node in this subtree whose interval ends last.
    last: u32,
}

/// Distinct intervals with a number each.
#[derive(Debug)]
pub(crate) struct IntervalTree {
    nodes: slab::Slab<Node>,
    root: u32,
    seed: u64,
}

/// The splitmix64 generator.
pub(crate) fn next_random(seed: &mut u64) -> u64 {
    *seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *seed;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl IntervalTree {
    pub(crate) fn new(seed: u64) -> IntervalTree {
        IntervalTree { nodes: slab::Slab::new(), root: NONE, seed }
    }

    fn node(&self, at: u32) -> &Node {
        &self.nodes[at as usize]
    }

    fn node_mut(&mut self, at: u32) -> &mut Node {
        &mut self.nodes[at as usize]
    }

    fn refresh(&mut self, at: u32) {
        let node = self.node(at);
        let mut last = at;
        for child in [node.left, node.right] {
            if child != NONE {
                let candidate = self.node(child).last;
                let (old, new) = (&self.node(last).interval, &self.node(candidate).interval);
                if end_order(old, new) == Ordering::Less {
                    last = candidate;
                }
            }
        }
        self.node_mut(at).last = last;
    }

    /// Nodes below `interval`, and the others. With `inclusive` an equal one is below.
    fn split(&mut self, at: u32, interval: &Interval, inclusive: bool) -> (u32, u32) {
        if at == NONE {
            return (NONE, NONE);
        }
        let order = self.node(at).interval.order(interval);
        if order == Ordering::Less || (inclusive && order == Ordering::Equal) {
            let (below, above) = self.split(self.node(at).right, interval, inclusive);
            self.node_mut(at).right = below;
            self.refresh(at);
            (at, above)
        } else {
            let (below, above) = self.split(self.node(at).left, interval, inclusive);
            self.node_mut(at).left = above;
            self.refresh(at);
            (below, at)
        }
    }

    fn merge(&mut self, a: u32, b: u32) -> u32 {
        if a == NONE || b == NONE {
            return if a == NONE { b } else { a };
        }
        let top = if self.node(a).priority >= self.node(b).priority {
            let right = self.merge(self.node(a).right, b);
            self.node_mut(a).right = right;
            a
        } else {
            let left = self.merge(a, self.node(b).left);
            self.node_mut(b).left = left;
            b
        };
        self.refresh(top);
        top
    }

    pub(crate) fn get(&self, interval: &Interval) -> Option<u32> {
        let mut at = self.root;
        while at != NONE {
            let node = self.node(at);
            at = match interval.order(&node.interval) {
                Ordering::Less => node.left,
                Ordering::Greater => node.right,
                Ordering::Equal => return Some(node.value),
            };
        }
        None
    }

    /// The interval is not in the tree yet.
    pub(crate) fn insert(&mut self, interval: Interval, value: u32) {
        let (below, above) = self.split(self.root, &interval, false);
        let priority = next_random(&mut self.seed);
        let node = Node { interval, value, priority, left: NONE, right: NONE, last: NONE };
        let at = self.nodes.insert(node) as u32;
        self.node_mut(at).last = at;
        let below = self.merge(below, at);
        self.root = self.merge(below, above);
    }

    pub(crate) fn remove(&mut self, interval: &Interval) {
        let (below, rest) = self.split(self.root, interval, false);
        let (equal, above) = self.split(rest, interval, true);
        if equal != NONE {
            self.nodes.remove(equal as usize);
        }
        self.root = self.merge(below, above);
        if self.nodes.is_empty() {
            self.nodes.shrink_to_fit();
        }
    }

    /// Every interval that contains the key.
    pub(crate) fn stab(&self, key: &[u8], each: &mut impl FnMut(u32)) {
        self.stab_below(self.root, key, each);
    }

    fn stab_below(&self, mut at: u32, key: &[u8], each: &mut impl FnMut(u32)) {
        while at != NONE {
            let node = self.node(at);
            if !self.node(node.last).interval.ends_after(key) {
                return;
            }
            self.stab_below(node.left, key, each);
            if key < node.interval.start.as_ref() {
                return;
            }
            if node.interval.ends_after(key) {
                each(node.value);
            }
            at = node.right;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stabbing_finds_what_a_scan_finds() {
        for mut seed in 0..50u64 {
            let replay = seed;
            let mut tree = IntervalTree::new(seed);
            let mut all: Vec<(Interval, u32)> = Vec::new();
            for step in 0..400u32 {
                let mut key = || {
                    let random = next_random(&mut seed);
                    let letters = [b'a' + (random % 4) as u8, b'a' + (random / 4 % 4) as u8];
                    Bytes::copy_from_slice(&letters[..1 + (random / 16 % 2) as usize])
                };
                let (start, end, probe) = (key(), key(), key());
                let end = (end.len() == 2 || probe.len() == 2).then_some(end);
                let interval = Interval { start, end };
                match all.iter().position(|(known, _)| *known == interval) {
                    Some(at) => {
                        assert_eq!(tree.get(&interval), Some(all[at].1));
                        tree.remove(&interval);
                        all.swap_remove(at);
                    }
                    None => {
                        assert_eq!(tree.get(&interval), None);
                        tree.insert(interval.clone(), step);
                        all.push((interval, step));
                    }
                }
                let mut found = Vec::new();
                tree.stab(&probe, &mut |value| found.push(value));
                found.sort_unstable();
                let hits = all.iter().filter(|(known, _)| known.start <= probe && known.ends_after(&probe));
                let mut expected: Vec<u32> = hits.map(|(_, value)| *value).collect();
                expected.sort_unstable();
                assert_eq!(found, expected, "seed {replay}, step {step}");
            }
        }
    }
}
