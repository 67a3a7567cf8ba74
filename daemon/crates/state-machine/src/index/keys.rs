//! Up to some dozens of sorted keys in one piece of memory, the prefix they share stored once.
//!
//! One allocation per block instead of one per key: a search touches two or three neighbouring cache lines, and a key costs its
//! suffix and four bytes. Not here: what belongs to a key (the tree keeps records at the same positions).

/// Sorted keys without repetition. Positions are stable between changes.
#[derive(Clone, Debug, Default)]
pub(super) struct KeyBlock {
    /// The shared prefix, then the suffixes in key order.
    bytes: Vec<u8>,
    prefix: u32,
    /// Where each suffix ends in `bytes`.
    ends: Vec<u32>,
}

/// Growth of the byte buffer beyond what is needed: an eighth, at least this much. Doubling would waste a third on average.
const SLACK_BYTES_MIN: usize = 48;
/// Growth of the offsets, for the same reason.
const SLACK_KEYS: usize = 8;

fn shared(a: &[u8], b: &[u8]) -> usize {
    a.iter().zip(b).take_while(|(x, y)| x == y).count()
}

impl KeyBlock {
    pub fn from_sorted<K: AsRef<[u8]>>(keys: &[K]) -> KeyBlock {
        let (Some(first), Some(last)) = (keys.first(), keys.last()) else { return KeyBlock::default() };
        let prefix = shared(first.as_ref(), last.as_ref());
        let total: usize = prefix + keys.iter().map(|key| key.as_ref().len() - prefix).sum::<usize>();
        let mut bytes = Vec::with_capacity(total);
        bytes.extend_from_slice(&first.as_ref()[..prefix]);
        let mut ends = Vec::with_capacity(keys.len());
        for key in keys {
            bytes.extend_from_slice(&key.as_ref()[prefix..]);
            ends.push(offset(bytes.len()));
        }
        KeyBlock { bytes, prefix: offset(prefix), ends }
    }

    pub fn len(&self) -> usize {
        self.ends.len()
    }

    pub fn byte_len(&self) -> usize {
        self.bytes.len()
    }

    pub fn heap_bytes(&self) -> usize {
        self.bytes.capacity() + self.ends.capacity() * size_of::<u32>()
    }

    fn prefix(&self) -> &[u8] {
        &self.bytes[..self.prefix as usize]
    }

    fn suffix(&self, at: usize) -> &[u8] {
        let start = if at == 0 { self.prefix } else { self.ends[at - 1] };
        &self.bytes[start as usize..self.ends[at] as usize]
    }

    /// Writes key `at` into `key`, whose former content is dropped.
    pub fn read(&self, at: usize, key: &mut Vec<u8>) {
        key.clear();
        key.extend_from_slice(self.prefix());
        key.extend_from_slice(self.suffix(at));
    }

    /// Calls `each` with the keys from `from` to below `to`, in order, all through one buffer.
    pub fn for_each<B>(
        &self,
        from: usize,
        to: usize,
        key: &mut Vec<u8>,
        mut each: impl FnMut(usize, &[u8]) -> std::ops::ControlFlow<B>,
    ) -> std::ops::ControlFlow<B> {
        key.clear();
        key.extend_from_slice(self.prefix());
        for at in from..to {
            key.truncate(self.prefix as usize);
            key.extend_from_slice(self.suffix(at));
            each(at, key)?;
        }
        std::ops::ControlFlow::Continue(())
    }

    pub fn key(&self, at: usize) -> Vec<u8> {
        let mut key = Vec::with_capacity(self.prefix as usize + self.suffix(at).len());
        self.read(at, &mut key);
        key
    }

    /// The position of `key`, or where it belongs.
    pub fn search(&self, key: &[u8]) -> Result<usize, usize> {
        let prefix = self.prefix();
        let head = &key[..key.len().min(prefix.len())];
        match head.cmp(prefix) {
            std::cmp::Ordering::Less => return Err(0),
            std::cmp::Ordering::Greater => return Err(self.len()),
            std::cmp::Ordering::Equal => {}
        }
        let rest = &key[prefix.len()..];
        let (mut low, mut high) = (0, self.len());
        while low < high {
            let middle = (low + high) / 2;
            match self.suffix(middle).cmp(rest) {
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Greater => high = middle,
                std::cmp::Ordering::Equal => return Ok(middle),
            }
        }
        Err(low)
    }

    /// The first position whose key is not below `key`.
    pub fn lower_bound(&self, key: &[u8]) -> usize {
        match self.search(key) {
            Ok(at) | Err(at) => at,
        }
    }

    pub fn insert(&mut self, at: usize, key: &[u8]) {
        if self.ends.is_empty() {
            self.bytes.clear();
            self.prefix = offset(key.len());
            reserve(&mut self.bytes, key.len());
            self.bytes.extend_from_slice(key);
            self.ends.push(offset(key.len()));
            return;
        }
        let common = shared(key, self.prefix());
        if common < self.prefix as usize {
            self.shorten_prefix(common);
        }
        let suffix = &key[self.prefix as usize..];
        let start = if at == 0 { self.prefix } else { self.ends[at - 1] } as usize;
        reserve(&mut self.bytes, suffix.len());
        let old_len = self.bytes.len();
        self.bytes.resize(old_len + suffix.len(), 0);
        self.bytes.copy_within(start..old_len, start + suffix.len());
        self.bytes[start..start + suffix.len()].copy_from_slice(suffix);
        offset(self.bytes.len());
        if self.ends.len() == self.ends.capacity() {
            self.ends.reserve_exact(SLACK_KEYS);
        }
        self.ends.insert(at, offset(start));
        for end in &mut self.ends[at..] {
            *end += suffix.len() as u32;
        }
    }

    pub fn remove(&mut self, at: usize) {
        let start = if at == 0 { self.prefix } else { self.ends[at - 1] };
        let end = self.ends[at];
        self.bytes.drain(start as usize..end as usize);
        self.ends.remove(at);
        for later in &mut self.ends[at..] {
            *later -= end - start;
        }
        if self.ends.is_empty() {
            *self = KeyBlock::default();
        }
    }

    /// Keeps the keys below position `at`, returns the others. Both get the longest prefix they can have.
    pub fn split_off(&mut self, at: usize) -> KeyBlock {
        let keys: Vec<Vec<u8>> = (0..self.len()).map(|position| self.key(position)).collect();
        let right = KeyBlock::from_sorted(&keys[at..]);
        *self = KeyBlock::from_sorted(&keys[..at]);
        right
    }

    /// Appends `between`, if any, and then the keys of `right`, all of which are above those here.
    pub fn append(&mut self, between: Option<Vec<u8>>, right: &KeyBlock) {
        let mut keys: Vec<Vec<u8>> = (0..self.len()).map(|position| self.key(position)).collect();
        keys.extend(between);
        keys.extend((0..right.len()).map(|position| right.key(position)));
        *self = KeyBlock::from_sorted(&keys);
    }

    fn shorten_prefix(&mut self, to: usize) {
        let moved = self.bytes[to..self.prefix as usize].to_vec();
        let mut bytes = Vec::with_capacity(self.bytes.len() + moved.len() * self.len() + SLACK_BYTES_MIN);
        bytes.extend_from_slice(&self.bytes[..to]);
        let mut ends = Vec::with_capacity(self.ends.capacity());
        for at in 0..self.len() {
            bytes.extend_from_slice(&moved);
            bytes.extend_from_slice(self.suffix(at));
            ends.push(offset(bytes.len()));
        }
        *self = KeyBlock { bytes, prefix: offset(to), ends };
    }
}

fn reserve(bytes: &mut Vec<u8>, more: usize) {
    if bytes.capacity() - bytes.len() < more {
        bytes.reserve_exact(more + SLACK_BYTES_MIN.max(bytes.len() / 8));
    }
}

/// A block is split long before four gigabytes; one key alone is bounded by the size of a log entry.
fn offset(bytes: usize) -> u32 {
    u32::try_from(bytes).expect("a block of keys stays below four gigabytes")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_come_back_in_order_whatever_the_prefix() {
        let mut block = KeyBlock::default();
        let mut model: Vec<Vec<u8>> = Vec::new();
        let words =
            ["/a/b/2", "/a/b/1", "/a/b/10", "/a/b/", "/a", "/a/c", "", "/a/b/1\0", "zebra", "/a/b/11"];
        for word in words {
            let key = word.as_bytes();
            let at = block.search(key).expect_err("not yet inside");
            block.insert(at, key);
            model.insert(model.binary_search(&key.to_vec()).unwrap_err(), key.to_vec());
            assert_eq!((0..block.len()).map(|i| block.key(i)).collect::<Vec<_>>(), model);
        }
        for probe in ["/", "/a/b/1", "/a/b/1!", "zz", "", "/a/b/2"] {
            assert_eq!(
                block.search(probe.as_bytes()),
                model.binary_search(&probe.as_bytes().to_vec()),
                "{probe}"
            );
        }
        let mut left = block.clone();
        let right = left.split_off(4);
        let joined: Vec<_> =
            (0..4).map(|i| left.key(i)).chain((0..right.len()).map(|i| right.key(i))).collect();
        assert_eq!(joined, model);
        left.append(None, &right);
        assert_eq!((0..left.len()).map(|i| left.key(i)).collect::<Vec<_>>(), model);
        while block.len() > 0 {
            block.remove(block.len() / 2);
            model.remove(model.len() / 2);
            assert_eq!((0..block.len()).map(|i| block.key(i)).collect::<Vec<_>>(), model);
        }
    }
}
