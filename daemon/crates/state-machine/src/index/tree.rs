//! The counted B+tree under the index.

use std::ops::ControlFlow;

use super::keys::KeyBlock;
use super::record::Record;

/// Keys of a leaf. A leaf's records are 4 KiB then: an insertion moves half of that, and slack stays small beside it.
const LEAF_KEYS_MAX: usize = 64;
/// Key bytes of a leaf, so that long keys do not make insertions slow.
const LEAF_KEY_BYTES_MAX: usize = 16 * 1024;
/// Children of an inner node: ten million keys are four levels.
const CHILDREN_MAX: usize = 128;
/// Below this share of its maximum a node is joined with a neighbour, if both fit into three quarters.
const UNDERFLOW_DIVISOR: usize = 4;
/// Keys of a leaf that is built in bulk: room for some growth without a split.
const LEAF_KEYS_BULK: usize = 56;
const CHILDREN_BULK: usize = 112;
/// Records grow by this many at a time: doubling would waste a quarter of the largest part of the index.
const SLACK_RECORDS: usize = 8;

#[derive(Debug)]
enum Node {
    Leaf(Box<Leaf>),
    Inner(Box<Inner>),
}

#[derive(Debug, Default)]
struct Leaf {
    keys: KeyBlock,
    records: Vec<Record>,
}

#[derive(Debug)]
struct Inner {
    /// `fences[i]` is at or below every key of child `i + 1` and above every key of child `i`.
    fences: KeyBlock,
    children: Vec<Node>,
    /// Live keys of each child.
    live: Vec<u64>,
}

#[derive(Debug)]
pub(super) struct Tree {
    root: Node,
    live: u64,
    keys: u64,
}

impl Default for Tree {
    fn default() -> Self {
        Tree { root: Node::Leaf(Box::default()), live: 0, keys: 0 }
    }
}

struct Upserted<R> {
    answer: R,
    inserted: bool,
    live: i64,
    split: Option<(Vec<u8>, Node)>,
}

impl Tree {
    pub fn live(&self) -> u64 {
        self.live
    }

    pub fn keys(&self) -> u64 {
        self.keys
    }

    pub fn heap_bytes(&self) -> usize {
        self.root.heap_bytes()
    }

    /// From records in strictly ascending key order.
    pub fn from_sorted(records: impl Iterator<Item = (Vec<u8>, Record)>) -> Tree {
        let mut keys = 0;
        let mut level: Vec<(Vec<u8>, Node)> = Vec::new();
        let mut leaf_keys: Vec<Vec<u8>> = Vec::with_capacity(LEAF_KEYS_BULK);
        let mut leaf_records = Vec::new();
        let mut bytes = 0;
        let mut close = |keys: &mut Vec<Vec<u8>>, records: &mut Vec<Record>| {
            if let Some(first) = keys.first() {
                let leaf = Leaf { keys: KeyBlock::from_sorted(keys), records: std::mem::take(records) };
                level.push((first.clone(), Node::Leaf(Box::new(leaf))));
                keys.clear();
            }
        };
        for (key, record) in records {
            if let Some(last) = leaf_keys.last() {
                assert!(*last < key, "bulk load gets keys in strictly ascending order");
            }
            if leaf_keys.len() == LEAF_KEYS_BULK || bytes + key.len() > LEAF_KEY_BYTES_MAX {
                close(&mut leaf_keys, &mut leaf_records);
                bytes = 0;
            }
            if leaf_records.capacity() == 0 {
                leaf_records.reserve_exact(LEAF_KEYS_BULK);
            }
            bytes += key.len();
            leaf_keys.push(key);
            leaf_records.push(record);
            keys += 1;
        }
        leaf_records.shrink_to_fit();
        close(&mut leaf_keys, &mut leaf_records);
        while level.len() > 1 {
            let mut upper = Vec::with_capacity(level.len() / CHILDREN_BULK + 1);
            let mut nodes = level.into_iter().peekable();
            while nodes.peek().is_some() {
                let group: Vec<(Vec<u8>, Node)> = nodes.by_ref().take(CHILDREN_BULK).collect();
                let (firsts, children): (Vec<Vec<u8>>, Vec<Node>) = group.into_iter().unzip();
                let live = children.iter().map(Node::live).collect();
                let fences = KeyBlock::from_sorted(&firsts[1..]);
                let first = firsts.into_iter().next().expect("a group has a first member");
                upper.push((first, Node::Inner(Box::new(Inner { fences, children, live }))));
            }
            level = upper;
        }
        let root = level.pop().map_or_else(|| Node::Leaf(Box::default()), |(_, node)| node);
        Tree { live: root.live(), keys, root }
    }

    pub fn get(&self, key: &[u8]) -> Option<&Record> {
        let mut node = &self.root;
        loop {
            match node {
                Node::Inner(inner) => node = &inner.children[inner.child_of(key)],
                Node::Leaf(leaf) => return leaf.keys.search(key).ok().map(|at| &leaf.records[at]),
            }
        }
    }

    /// For changes that do not touch liveness.
    pub fn get_mut(&mut self, key: &[u8]) -> Option<&mut Record> {
        let mut node = &mut self.root;
        loop {
            match node {
                Node::Inner(inner) => {
                    let at = inner.child_of(key);
                    node = &mut inner.children[at];
                }
                Node::Leaf(leaf) => return leaf.keys.search(key).ok().map(|at| &mut leaf.records[at]),
            }
        }
    }

    /// Edits the record of `key`, a vacant one when the key is new. `edit` leaves it with a version.
    pub fn upsert<R>(&mut self, key: &[u8], edit: impl FnOnce(&mut Record) -> R) -> R {
        let done = self.root.upsert(key, edit);
        if let Some((fence, right)) = done.split {
            let left = std::mem::replace(&mut self.root, Node::Leaf(Box::default()));
            let live = vec![left.live(), right.live()];
            let fences = KeyBlock::from_sorted(&[fence]);
            self.root = Node::Inner(Box::new(Inner { fences, children: vec![left, right], live }));
        }
        self.keys += u64::from(done.inserted);
        self.live = self.live.checked_add_signed(done.live).expect("no more keys die than live");
        done.answer
    }

    pub fn remove(&mut self, key: &[u8]) -> bool {
        let Some(live) = self.root.remove(key) else { return false };
        self.keys -= 1;
        self.live -= live;
        while let Node::Inner(inner) = &mut self.root {
            if inner.children.len() > 1 {
                break;
            }
            self.root = inner.children.pop().expect("an inner node has a child");
        }
        true
    }

    /// Live keys below `key`.
    pub fn rank(&self, key: &[u8]) -> u64 {
        let mut below = 0;
        let mut node = &self.root;
        loop {
            match node {
                Node::Inner(inner) => {
                    let at = inner.child_of(key);
                    below += inner.live[..at].iter().sum::<u64>();
                    node = &inner.children[at];
                }
                Node::Leaf(leaf) => {
                    let end = leaf.keys.lower_bound(key);
                    return below + live_among(&leaf.records[..end]);
                }
            }
        }
    }

    pub fn select(&self, mut rank: u64) -> Option<Vec<u8>> {
        if rank >= self.live {
            return None;
        }
        let mut node = &self.root;
        loop {
            match node {
                Node::Inner(inner) => {
                    let mut at = 0;
                    while rank >= inner.live[at] {
                        rank -= inner.live[at];
                        at += 1;
                    }
                    node = &inner.children[at];
                }
                Node::Leaf(leaf) => {
                    let mut live = leaf.records.iter().enumerate().filter(|(_, record)| record.is_live());
                    let (at, _) =
                        live.nth(rank as usize).expect("counts of inner nodes agree with their leaves");
                    return Some(leaf.keys.key(at));
                }
            }
        }
    }

    pub fn walk<B>(
        &self,
        from: &[u8],
        end: Option<&[u8]>,
        each: &mut impl FnMut(&[u8], &Record) -> ControlFlow<B>,
    ) -> ControlFlow<B> {
        if end.is_some_and(|end| end <= from) {
            return ControlFlow::Continue(());
        }
        let mut key = Vec::new();
        match self.root.walk(Some(from), end, &mut key, each) {
            ControlFlow::Break(Stop::Asked(answer)) => ControlFlow::Break(answer),
            ControlFlow::Break(Stop::End) | ControlFlow::Continue(()) => ControlFlow::Continue(()),
        }
    }

    /// Panics when fences, counts or order are wrong; for tests.
    #[cfg(test)]
    pub fn check(&self) {
        let (keys, live) = self.root.check(None, None);
        assert_eq!((keys, live), (self.keys, self.live));
    }
}

enum Stop<B> {
    /// The end of the range was met.
    End,
    Asked(B),
}

fn live_among(records: &[Record]) -> u64 {
    records.iter().filter(|record| record.is_live()).count() as u64
}

impl Inner {
    fn child_of(&self, key: &[u8]) -> usize {
        match self.fences.search(key) {
            Ok(at) => at + 1,
            Err(at) => at,
        }
    }

    /// Joins child `at` with a neighbour when it has become small.
    fn rebalance(&mut self, at: usize) {
        if !self.children[at].is_small() || self.children.len() == 1 {
            return;
        }
        let left = if at + 1 < self.children.len() { at } else { at - 1 };
        if !self.children[left].fits_with(&self.children[left + 1]) {
            return;
        }
        let right = self.children.remove(left + 1);
        let live = self.live.remove(left + 1);
        let fence = self.fences.key(left);
        self.fences.remove(left);
        self.live[left] += live;
        self.children[left].join(fence, right);
    }
}

impl Node {
    fn live(&self) -> u64 {
        match self {
            Node::Leaf(leaf) => live_among(&leaf.records),
            Node::Inner(inner) => inner.live.iter().sum(),
        }
    }

    fn heap_bytes(&self) -> usize {
        match self {
            Node::Leaf(leaf) => {
                size_of::<Leaf>()
                    + leaf.keys.heap_bytes()
                    + leaf.records.capacity() * size_of::<Record>()
                    + leaf.records.iter().map(Record::heap_bytes).sum::<usize>()
            }
            Node::Inner(inner) => {
                size_of::<Inner>()
                    + inner.fences.heap_bytes()
                    + inner.children.capacity() * size_of::<Node>()
                    + inner.live.capacity() * size_of::<u64>()
                    + inner.children.iter().map(Node::heap_bytes).sum::<usize>()
            }
        }
    }

    fn upsert<R>(&mut self, key: &[u8], edit: impl FnOnce(&mut Record) -> R) -> Upserted<R> {
        match self {
            Node::Leaf(leaf) => match leaf.keys.search(key) {
                Ok(at) => {
                    let record = &mut leaf.records[at];
                    let before = record.is_live();
                    let answer = edit(record);
                    let live = i64::from(record.is_live()) - i64::from(before);
                    Upserted { answer, inserted: false, live, split: None }
                }
                Err(at) => {
                    let mut record = Record::vacant();
                    let answer = edit(&mut record);
                    let live = i64::from(record.is_live());
                    leaf.keys.insert(at, key);
                    if leaf.records.len() == leaf.records.capacity() {
                        leaf.records.reserve_exact(SLACK_RECORDS);
                    }
                    leaf.records.insert(at, record);
                    Upserted { answer, inserted: true, live, split: leaf.split(at) }
                }
            },
            Node::Inner(inner) => {
                let at = inner.child_of(key);
                let mut done = inner.children[at].upsert(key, edit);
                inner.live[at] =
                    inner.live[at].checked_add_signed(done.live).expect("no more keys die than live");
                if let Some((fence, right)) = done.split.take() {
                    let moved = right.live();
                    inner.live[at] -= moved;
                    inner.live.insert(at + 1, moved);
                    inner.children.insert(at + 1, right);
                    inner.fences.insert(at, &fence);
                    done.split = inner.split(at + 1);
                }
                done
            }
        }
    }

    /// Answers how many live keys went: 0 or 1, or None when the key is unknown.
    fn remove(&mut self, key: &[u8]) -> Option<u64> {
        match self {
            Node::Leaf(leaf) => {
                let at = leaf.keys.search(key).ok()?;
                leaf.keys.remove(at);
                Some(u64::from(leaf.records.remove(at).is_live()))
            }
            Node::Inner(inner) => {
                let at = inner.child_of(key);
                let live = inner.children[at].remove(key)?;
                inner.live[at] -= live;
                inner.rebalance(at);
                Some(live)
            }
        }
    }

    fn walk<B>(
        &self,
        from: Option<&[u8]>,
        end: Option<&[u8]>,
        key: &mut Vec<u8>,
        each: &mut impl FnMut(&[u8], &Record) -> ControlFlow<B>,
    ) -> ControlFlow<Stop<B>> {
        match self {
            Node::Leaf(leaf) => {
                let start = from.map_or(0, |from| leaf.keys.lower_bound(from));
                let stop = end.map_or(leaf.keys.len(), |end| leaf.keys.lower_bound(end));
                let walked =
                    leaf.keys.for_each(start, stop.max(start), key, |at, key| each(key, &leaf.records[at]));
                if let ControlFlow::Break(answer) = walked {
                    return ControlFlow::Break(Stop::Asked(answer));
                }
                if stop < leaf.keys.len() { ControlFlow::Break(Stop::End) } else { ControlFlow::Continue(()) }
            }
            Node::Inner(inner) => {
                let first = from.map_or(0, |from| inner.child_of(from));
                inner.children[first].walk(from, end, key, each)?;
                for child in &inner.children[first + 1..] {
                    child.walk(None, end, key, each)?;
                }
                ControlFlow::Continue(())
            }
        }
    }

    fn is_small(&self) -> bool {
        match self {
            Node::Leaf(leaf) => leaf.records.len() < LEAF_KEYS_MAX / UNDERFLOW_DIVISOR,
            Node::Inner(inner) => inner.children.len() < CHILDREN_MAX / UNDERFLOW_DIVISOR,
        }
    }

    fn fits_with(&self, right: &Node) -> bool {
        match (self, right) {
            (Node::Leaf(a), Node::Leaf(b)) => {
                a.records.len() + b.records.len() <= LEAF_KEYS_MAX * 3 / 4
                    && a.keys.byte_len() + b.keys.byte_len() <= LEAF_KEY_BYTES_MAX
            }
            (Node::Inner(a), Node::Inner(b)) => a.children.len() + b.children.len() <= CHILDREN_MAX * 3 / 4,
            _ => unreachable!("siblings are of one kind"),
        }
    }

    fn join(&mut self, fence: Vec<u8>, right: Node) {
        match (self, right) {
            (Node::Leaf(left), Node::Leaf(right)) => {
                left.keys.append(None, &right.keys);
                left.records.reserve_exact(right.records.len());
                left.records.extend(right.records);
            }
            (Node::Inner(left), Node::Inner(right)) => {
                left.fences.append(Some(fence), &right.fences);
                left.children.extend(right.children);
                left.live.extend(right.live);
            }
            _ => unreachable!("siblings are of one kind"),
        }
    }

    #[cfg(test)]
    fn check(&self, low: Option<&[u8]>, high: Option<&[u8]>) -> (u64, u64) {
        match self {
            Node::Leaf(leaf) => {
                assert_eq!(leaf.keys.len(), leaf.records.len());
                let keys: Vec<Vec<u8>> = (0..leaf.keys.len()).map(|at| leaf.keys.key(at)).collect();
                assert!(keys.windows(2).all(|pair| pair[0] < pair[1]), "keys ascend");
                assert!(low.is_none_or(|low| keys.iter().all(|key| key.as_slice() >= low)));
                assert!(high.is_none_or(|high| keys.iter().all(|key| key.as_slice() < high)));
                (keys.len() as u64, live_among(&leaf.records))
            }
            Node::Inner(inner) => {
                assert_eq!(inner.fences.len() + 1, inner.children.len());
                assert_eq!(inner.live.len(), inner.children.len());
                let fences: Vec<Vec<u8>> = (0..inner.fences.len()).map(|at| inner.fences.key(at)).collect();
                let mut sum = (0, 0);
                for (at, child) in inner.children.iter().enumerate() {
                    let low = if at == 0 { low } else { Some(fences[at - 1].as_slice()) };
                    let high = fences.get(at).map(Vec::as_slice).or(high);
                    let (keys, live) = child.check(low, high);
                    assert_eq!(live, inner.live[at], "counts agree");
                    sum = (sum.0 + keys, sum.1 + live);
                }
                sum
            }
        }
    }
}

impl Leaf {
    /// Splits when too full. After an append at the very end the left part stays full: ascending keys then fill the tree to the brim
    /// instead of to the half.
    fn split(&mut self, inserted: usize) -> Option<(Vec<u8>, Node)> {
        let count = self.records.len();
        if count < 2 || (count <= LEAF_KEYS_MAX && self.keys.byte_len() <= LEAF_KEY_BYTES_MAX) {
            return None;
        }
        let at = if inserted + 1 == count { count - 1 } else { count / 2 };
        let keys = self.keys.split_off(at);
        let mut records = Vec::with_capacity(count - at + SLACK_RECORDS);
        records.extend(self.records.drain(at..));
        self.records.shrink_to(at + if at == count - 1 { 0 } else { SLACK_RECORDS });
        let fence = keys.key(0);
        Some((fence, Node::Leaf(Box::new(Leaf { keys, records }))))
    }
}

impl Inner {
    fn split(&mut self, inserted: usize) -> Option<(Vec<u8>, Node)> {
        let count = self.children.len();
        if count <= CHILDREN_MAX {
            return None;
        }
        let at = if inserted + 1 == count { count - 1 } else { count / 2 };
        // The fence between the halves moves up.
        let mut right_fences = self.fences.split_off(at - 1);
        let fence = right_fences.key(0);
        right_fences.remove(0);
        let children = self.children.split_off(at);
        let live = self.live.split_off(at);
        Some((fence, Node::Inner(Box::new(Inner { fences: right_fences, children, live }))))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use types::{Revision, RowId};

    use super::super::record::Facts;
    use super::*;

    fn put(tree: &mut Tree, key: &[u8], main: i64) {
        let id = RowId { main: Revision(main), sub: 0 };
        tree.upsert(key, |record| record.push(id, Some(Facts::default()), 0, None));
    }

    /// A small generator: the tests need variety, not quality.
    fn next(seed: &mut u64) -> u64 {
        *seed ^= *seed << 13;
        *seed ^= *seed >> 7;
        *seed ^= *seed << 17;
        *seed
    }

    #[test]
    fn counts_order_and_fences_hold_under_random_change() {
        let mut seed = 0x9E37_79B9_7F4A_7C15;
        let mut tree = Tree::default();
        let mut model: BTreeMap<Vec<u8>, bool> = BTreeMap::new();
        for step in 1..60_000i64 {
            let key = format!("/k/{:x}", next(&mut seed) % 20_000).into_bytes();
            match next(&mut seed) % 8 {
                0..=4 => {
                    put(&mut tree, &key, step);
                    model.insert(key, true);
                }
                5 if model.get(&key) == Some(&true) => {
                    let id = RowId { main: Revision(step), sub: 0 };
                    tree.upsert(&key, |record| record.push(id, None, 0, None));
                    model.insert(key, false);
                }
                _ => assert_eq!(tree.remove(&key), model.remove(&key).is_some()),
            }
            if step == 40_000 {
                let doomed: Vec<Vec<u8>> = model.keys().filter(|key| key[3] % 3 != 0).cloned().collect();
                for key in doomed {
                    assert!(tree.remove(&key));
                    model.remove(&key);
                }
            }
            if step % 5_000 == 0 {
                tree.check();
                let probe = format!("/k/{:x}", next(&mut seed) % 20_000).into_bytes();
                let below = model.range(..probe.clone()).filter(|(_, live)| **live).count() as u64;
                assert_eq!(tree.rank(&probe), below);
                let expected =
                    model.iter().filter(|(_, live)| **live).nth(below as usize).map(|(key, _)| key.clone());
                assert_eq!(tree.select(below), expected);
            }
        }
        let mut walked = Vec::new();
        let _ = tree.walk(b"/k/5", Some(b"/k/a"), &mut |key: &[u8], _: &Record| -> ControlFlow<()> {
            walked.push(key.to_vec());
            ControlFlow::Continue(())
        });
        let expected: Vec<Vec<u8>> =
            model.range(b"/k/5".to_vec()..b"/k/a".to_vec()).map(|(key, _)| key.clone()).collect();
        assert_eq!(walked, expected);
    }

    #[test]
    fn bulk_load_equals_insertion() {
        let keys: Vec<Vec<u8>> = (0..50_000).map(|number| format!("key/{number:08}").into_bytes()).collect();
        let mut inserted = Tree::default();
        for key in &keys {
            put(&mut inserted, key, 5);
        }
        inserted.check();
        let loaded =
            Tree::from_sorted(keys.iter().map(|key| (key.clone(), inserted.get(key).unwrap().clone())));
        loaded.check();
        assert_eq!((loaded.keys(), loaded.live()), (50_000, 50_000));
        assert_eq!(loaded.select(777), inserted.select(777));
    }
}
