//! One bucket of a bbolt file, read while the file still arrives: from its first byte to its last, without going back.
//!
//! That works for files whose pages are written in the order of their keys, as ours are. bbolt's own are not: whoever reads must be ready
//! to hear at any time, or at the end, that this file must be read the other way ([`BoltFile`]). What was read is a guess until
//! [`Sequence::is_bucket`] has compared it with the tree: which pages are the bucket's is known by the last page only.
//!
//! Not here: the other buckets, what pairs mean.

use std::hash::{DefaultHasher, Hasher};

use crate::bolt_read::{BoltError, BoltFile, EachPair, Page};
use crate::page::{BRANCH, IS_BUCKET, KEY_BYTES_MAX, LEAF, META_BYTES, Meta, PAGE_HEADER_BYTES, PageHeader};

/// One page with what overflows from it; it is kept in memory. Larger ones are for [`BoltFile`].
const PAGE_RUN_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// This file is not one that can be read from the first byte to the last, or it is damaged.
#[derive(Debug, thiserror::Error)]
#[error("page {page} is not what follows in a file that is written in order")]
pub struct OutOfOrder {
    page: u64,
}

/// Reads what arrives. `is_key` says which keys the bucket has: a page that begins with another one is another bucket's.
pub struct Sequence {
    is_key: fn(&[u8]) -> bool,
    /// Bytes that are not read yet, from the beginning of page `page` on.
    rest: Vec<u8>,
    page: u64,
    meta: Option<Meta>,
    /// Where pages begin; grows with the file, by a bit a page.
    begins: Vec<u64>,
    last: Vec<u8>,
    leaves: Leaves,
}

impl Sequence {
    pub fn new(is_key: fn(&[u8]) -> bool) -> Sequence {
        Sequence {
            is_key,
            rest: Vec::new(),
            page: 0,
            meta: None,
            begins: Vec::new(),
            last: Vec::new(),
            leaves: Leaves::default(),
        }
    }

    /// The next bytes of the file. `each` gets the pairs that are whole now, in strictly ascending order; when it breaks, nothing more may be
    /// given.
    ///
    /// # Errors
    /// [`OutOfOrder`], and nothing more may be given.
    pub fn take(&mut self, bytes: &[u8], each: &mut EachPair<'_>) -> Result<(), OutOfOrder> {
        self.rest.extend_from_slice(bytes);
        let mut at = 0;
        while let Some(run) = self.run(at)? {
            let bytes = self.rest[at..at + run].to_vec();
            at += run;
            let header = PageHeader::decode(&bytes).ok_or(OutOfOrder { page: self.page })?;
            if self.page >= 2 && self.read(Page { header, bytes }, each)? {
                break;
            }
            self.page += run as u64 / self.page_bytes();
        }
        self.rest.drain(..at);
        Ok(())
    }

    fn page_bytes(&self) -> u64 {
        self.meta.map_or(0, |meta| u64::from(meta.page_bytes))
    }

    /// Length of the page that begins at this byte of the rest, once all of it is there; `None` also behind the last page.
    fn run(&mut self, at: usize) -> Result<Option<usize>, OutOfOrder> {
        let odd = OutOfOrder { page: self.page };
        let rest = &self.rest[at..];
        let Some(meta) = self.meta else {
            let Some(bytes) = rest.get(PAGE_HEADER_BYTES..PAGE_HEADER_BYTES + META_BYTES) else {
                return Ok(None);
            };
            let meta = Meta::decode(bytes).filter(|meta| (1024..=65536).contains(&meta.page_bytes));
            self.meta = Some(meta.ok_or(odd)?);
            return self.run(at);
        };
        if self.page >= meta.pages || rest.len() < PAGE_HEADER_BYTES {
            return Ok(None);
        }
        let overflow = match PageHeader::decode(rest) {
            // The two meta pages.
            Some(_) if self.page < 2 => 0,
            Some(header) if header.id == self.page && matches!(header.flags, LEAF | BRANCH) => {
                header.overflow
            }
            _ => return Err(odd),
        };
        let run = (u64::from(overflow) + 1) * u64::from(meta.page_bytes);
        if run > PAGE_RUN_BYTES_MAX {
            return Err(odd);
        }
        Ok((rest.len() as u64 >= run).then_some(run as usize))
    }

    /// Whether `each` broke.
    fn read(&mut self, page: Page, each: &mut EachPair<'_>) -> Result<bool, OutOfOrder> {
        let odd = || OutOfOrder { page: page.header.id };
        let (word, bit) = ((self.page / 64) as usize, 1 << (self.page % 64));
        if self.begins.len() <= word {
            self.begins.resize(word + 1, 0);
        }
        self.begins[word] |= bit;
        if page.header.flags == BRANCH {
            return Ok(false);
        }
        for index in 0..usize::from(page.header.count) {
            let (flags, key, value) = page.leaf(index).map_err(|_| odd())?;
            let is_ours = flags & IS_BUCKET == 0 && (self.is_key)(key);
            if index == 0 {
                if !is_ours {
                    return Ok(false);
                }
                self.leaves.add(page.header.id, key);
            }
            if !is_ours || key.is_empty() || key.len() > KEY_BYTES_MAX || key <= self.last.as_slice() {
                return Err(odd());
            }
            self.last.clear();
            self.last.extend_from_slice(key);
            if each(key, value).is_break() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether the pairs that were given are the bucket's, all of them and no others, and [`BoltFile::each`] would find them without a fault. `file`
    /// is the file whose bytes were read here. Reads its branches only. A bucket that has none is not looked at: there is little in it.
    pub fn is_bucket(&self, file: &BoltFile, bucket: &[u8]) -> Result<bool, BoltError> {
        let mut found = Leaves::default();
        let mut begins = true;
        let walked = file.each_leaf(bucket, &mut |page, first_key| match first_key {
            Some(key) => found.add(page, key),
            None => {
                begins &=
                    self.begins.get((page / 64) as usize).is_some_and(|word| word >> (page % 64) & 1 == 1);
            }
        })?;
        Ok(walked && begins && found == self.leaves)
    }
}

/// Pages and their first keys, in order.
#[derive(Default)]
struct Leaves {
    count: u64,
    hasher: DefaultHasher,
}

impl Leaves {
    fn add(&mut self, page: u64, first_key: &[u8]) {
        self.count += 1;
        self.hasher.write_u64(page);
        self.hasher.write_usize(first_key.len());
        self.hasher.write(first_key);
    }
}

impl PartialEq for Leaves {
    fn eq(&self, other: &Leaves) -> bool {
        (self.count, self.hasher.finish()) == (other.count, other.hasher.finish())
    }
}
