//! From lease ids to slots: open addressing over slot numbers, in parts that grow one at a time. An id is not stored twice; a probe
//! compares with the slot. Clients choose ids, so the hash is keyed.

use crate::table::{NONE, Slots};

/// Parts of the index. Growing one of them at a million leases moves 16 thousand numbers, which is well under a millisecond; one table
/// would hold everybody up for many.
const PARTS: usize = 64;

#[derive(Debug)]
pub(crate) struct Index {
    seed: [u64; 2],
    parts: Vec<Part>,
}

#[derive(Debug, Default)]
struct Part {
    /// A power of two of them, or none.
    places: Box<[u32]>,
    used: usize,
}

impl Index {
    pub fn new(seed: [u64; 2]) -> Index {
        Index { seed: [seed[0], seed[1] | 1], parts: (0..PARTS).map(|_| Part::default()).collect() }
    }

    pub fn find(&self, id: i64, slots: &Slots) -> Option<u32> {
        let hash = hash(self.seed, id);
        let part = &self.parts[part_of(hash)];
        part.place(hash, |at| slots.get(at).id == id).map(|place| part.places[place])
    }

    /// The id is not there yet, and its slot is filled in.
    pub fn insert(&mut self, id: i64, at: u32, slots: &Slots) {
        let hash = hash(self.seed, id);
        let part = part_of(hash);
        if (self.parts[part].used + 1) * 8 > self.parts[part].places.len() * 7 {
            self.grow(part, slots);
        }
        self.parts[part].put(hash, at);
        self.parts[part].used += 1;
    }

    pub fn remove(&mut self, id: i64, slots: &Slots) {
        let seed = self.seed;
        let hash_of_id = hash(seed, id);
        let part = &mut self.parts[part_of(hash_of_id)];
        let Some(mut hole) = part.place(hash_of_id, |at| slots.get(at).id == id) else { return };
        let mask = part.places.len() - 1;
        let mut look = hole;
        // Whoever was pushed past the hole moves back into it, so that no tombstones gather.
        loop {
            look = (look + 1) & mask;
            let at = part.places[look];
            if at == NONE {
                break;
            }
            let home = hash(seed, slots.get(at).id) as usize & mask;
            if look.wrapping_sub(home) & mask >= look.wrapping_sub(hole) & mask {
                part.places[hole] = at;
                hole = look;
            }
        }
        part.places[hole] = NONE;
        part.used -= 1;
    }

    fn grow(&mut self, number: usize, slots: &Slots) {
        let room = (self.parts[number].places.len() * 2).max(16);
        let mut larger = Part { places: vec![NONE; room].into(), used: self.parts[number].used };
        for &at in self.parts[number].places.iter().filter(|at| **at != NONE) {
            larger.put(hash(self.seed, slots.get(at).id), at);
        }
        self.parts[number] = larger;
    }

    pub fn bytes(&self) -> usize {
        self.parts.iter().map(|part| part.places.len() * size_of::<u32>()).sum()
    }
}

/// Both halves of a product of which whoever chooses ids knows neither factor.
fn hash(seed: [u64; 2], id: i64) -> u64 {
    let product = u128::from(id as u64 ^ seed[0]) * u128::from(seed[1]);
    (product as u64 ^ (product >> 64) as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// By the upper bits; the place in the part is taken from the lower ones.
fn part_of(hash: u64) -> usize {
    (hash >> 58) as usize % PARTS
}

impl Part {
    fn place(&self, hash: u64, is_it: impl Fn(u32) -> bool) -> Option<usize> {
        if self.places.is_empty() {
            return None;
        }
        let mask = self.places.len() - 1;
        let mut place = hash as usize & mask;
        loop {
            match self.places[place] {
                NONE => return None,
                at if is_it(at) => return Some(place),
                _ => place = (place + 1) & mask,
            }
        }
    }

    fn put(&mut self, hash: u64, at: u32) {
        let mask = self.places.len() - 1;
        let mut place = hash as usize & mask;
        while self.places[place] != NONE {
            place = (place + 1) & mask;
        }
        self.places[place] = at;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use types::LeaseId;

    use crate::table::Table;

    #[test]
    fn every_id_is_found_until_it_is_removed() {
        let mut table = Table::new([0x1234_5678_9abc_def1, 0xfeed_face_dead_beef], 0);
        let mut there = BTreeSet::new();
        let mut random = 7u64;
        for _ in 0..60_000 {
            random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let id = (random >> 33) as i64 % 4000 - 2000;
            match table.find(LeaseId(id)) {
                Some(at) => {
                    assert!(there.remove(&id) && table.slots.get(at).id == id);
                    table.remove(at);
                }
                None => {
                    assert!(there.insert(id));
                    table.insert(LeaseId(id), 1, 1);
                }
            }
            assert_eq!(table.slots.len(), there.len());
        }
        for id in -2000..2000 {
            assert_eq!(table.find(LeaseId(id)).is_some(), there.contains(&id), "{id}");
        }
    }
}
