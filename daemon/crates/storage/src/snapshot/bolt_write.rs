//! Writes a valid bbolt file in one pass over sorted pairs. Pages are laid out upward from page 2; leaf pages leave as they fill,
//! and each level of branches keeps at most two pages' worth of children, so memory does not grow with the file. The two meta pages
//! stand before them, but name the root, which is the last page: who can go back writes them at the end, and who cannot measures the same
//! pairs first.
//!
//! Not here: updating a file, free pages.

use std::io::{self, Write};

use bytes::Bytes;
use dbfile::page::{
    BRANCH, BUCKET_HEADER_BYTES, ELEMENT_BYTES, IS_BUCKET, KEY_BYTES_MAX, LEAF, META, Meta,
    PAGE_HEADER_BYTES, PageHeader,
};

/// etcd's files have the page size of the machine that wrote them; every reader takes it from the meta page.
pub const PAGE_BYTES: usize = 4096;
/// How full a page is made. The rest lets a bbolt that opens the file insert without splitting every page.
const FILL_BYTES: usize = PAGE_BYTES * 9 / 10;
/// bbolt keeps a bucket whose leaf is at most a quarter page inside its parent.
const INLINE_BYTES_MAX: usize = PAGE_BYTES / 4;
/// bbolt's own hot copies carry two neighbouring transaction ids; the higher one is valid.
const TXID: u64 = 2;

/// The meta pages' place at the front of the file.
pub const META_BYTES: usize = 2 * PAGE_BYTES;

/// What the meta pages say: where the pages of the same pairs in the same order end up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    root: u64,
    pages: u64,
}

impl Layout {
    /// Length of the whole file.
    pub fn bytes(&self) -> u64 {
        self.pages * PAGE_BYTES as u64
    }

    /// The beginning of the file.
    pub fn meta_pages(&self) -> [u8; META_BYTES] {
        let mut out = [0; META_BYTES];
        for (page, (id, txid)) in out.chunks_exact_mut(PAGE_BYTES).zip([(0, TXID), (1, TXID - 1)]) {
            page[..PAGE_HEADER_BYTES]
                .copy_from_slice(&PageHeader { id, flags: META, count: 0, overflow: 0 }.encode());
            let meta =
                Meta { page_bytes: PAGE_BYTES as u32, root: self.root, pages: self.pages, txid }.encode();
            page[PAGE_HEADER_BYTES..][..meta.len()].copy_from_slice(&meta);
        }
        out
    }
}

/// Everything of a file behind its meta pages, while it is written. [`BoltWriter::finish`] must be called for it to be whole.
pub struct BoltWriter<W> {
    /// Without it pages are only counted.
    out: Option<W>,
    next_page: u64,
    buckets: Level,
}

impl BoltWriter<io::Sink> {
    /// Writes nothing.
    pub fn measuring() -> BoltWriter<io::Sink> {
        BoltWriter { out: None, next_page: 2, buckets: Level::new(LEAF) }
    }
}

impl<W: Write> BoltWriter<W> {
    /// `out` is where the pages behind the meta pages belong.
    pub fn new(out: W) -> BoltWriter<W> {
        BoltWriter { out: Some(out), next_page: 2, buckets: Level::new(LEAF) }
    }

    /// Begins a bucket. Names come in ascending order.
    pub fn bucket(&mut self, name: &str) -> BucketWriter<'_, W> {
        BucketWriter {
            name: name.to_owned(),
            levels: vec![Level::new(LEAF)],
            last_key: Vec::new(),
            file: self,
        }
    }

    /// Writes the root, the last page.
    pub fn finish(mut self) -> io::Result<Layout> {
        let mut levels = vec![std::mem::replace(&mut self.buckets, Level::new(LEAF))];
        let root = self.finish_levels(&mut levels)?;
        if let Some(out) = &mut self.out {
            out.flush()?;
        }
        Ok(Layout { root, pages: self.next_page })
    }

    /// Writes the first `count` elements of a level as one page and hands the page up.
    fn emit(&mut self, levels: &mut Vec<Level>, at: usize, count: usize) -> io::Result<()> {
        let (first_key, id) = {
            let level = &mut levels[at];
            let elements: Vec<Element> = level.elements.drain(..count).collect();
            let bytes = elements.iter().map(Element::bytes).sum::<usize>();
            level.bytes -= bytes;
            level.emitted += 1;
            let id = self.next_page;
            let pages = (PAGE_HEADER_BYTES + bytes).div_ceil(PAGE_BYTES);
            if let Some(out) = &mut self.out {
                let mut page = encode_page(id, level.flags, &elements);
                page.resize(pages * PAGE_BYTES, 0);
                page[12..16].copy_from_slice(&(pages as u32 - 1).to_le_bytes());
                out.write_all(&page)?;
            }
            self.next_page += pages as u64;
            (elements.into_iter().next().map(|element| element.key).unwrap_or_default(), id)
        };
        if levels.len() == at + 1 {
            levels.push(Level::new(BRANCH));
        }
        levels[at + 1].push(Element { kind: Kind::Child(id), key: first_key, value: Bytes::new() });
        Ok(())
    }

    /// Lets full pages leave, from the leaves up.
    fn spill(&mut self, levels: &mut Vec<Level>) -> io::Result<()> {
        let mut at = 0;
        while at < levels.len() && levels[at].bytes > 2 * PAGE_BYTES {
            while levels[at].bytes > 2 * PAGE_BYTES {
                let count = levels[at].group();
                if count == levels[at].elements.len() {
                    break;
                }
                self.emit(levels, at, count)?;
            }
            at += 1;
        }
        Ok(())
    }

    /// Empties every level; the page that ends up alone on its level is the root.
    fn finish_levels(&mut self, levels: &mut Vec<Level>) -> io::Result<u64> {
        let mut at = 0;
        loop {
            while !levels[at].elements.is_empty() || levels[at].emitted == 0 {
                let count = levels[at].group();
                self.emit(levels, at, count)?;
            }
            if levels[at].emitted == 1 {
                let root = &levels[at + 1].elements[0];
                match root.kind {
                    Kind::Child(id) => return Ok(id),
                    _ => unreachable!("a level above the leaves holds only children"),
                }
            }
            at += 1;
        }
    }
}

/// One bucket while it is written.
pub struct BucketWriter<'a, W> {
    name: String,
    levels: Vec<Level>,
    last_key: Vec<u8>,
    file: &'a mut BoltWriter<W>,
}

impl<W: Write> BucketWriter<'_, W> {
    /// Keys come in strictly ascending order, not empty, at most 32 KiB. Anything else is an error of kind `InvalidInput`.
    pub fn put(&mut self, key: &[u8], value: Bytes) -> io::Result<()> {
        let fault = |what: &str| Err(io::Error::new(io::ErrorKind::InvalidInput, what.to_owned()));
        if key.is_empty() || key.len() > KEY_BYTES_MAX {
            return fault("key is empty or longer than 32 KiB");
        }
        if value.len() > i32::MAX as usize - 2 {
            return fault("value is longer than 2 GiB");
        }
        if key <= self.last_key.as_slice() {
            return fault("keys are not in ascending order");
        }
        self.last_key.clear();
        self.last_key.extend_from_slice(key);
        self.levels[0].push(Element { kind: Kind::Pair, key: key.to_vec(), value });
        self.file.spill(&mut self.levels)
    }

    /// Completes the bucket.
    pub fn finish(mut self) -> io::Result<()> {
        let leaf = &self.levels[0];
        let value = if leaf.emitted == 0 && PAGE_HEADER_BYTES + leaf.bytes <= INLINE_BYTES_MAX {
            let mut value = vec![0; BUCKET_HEADER_BYTES];
            value.extend_from_slice(&encode_page(0, LEAF, &leaf.elements));
            value
        } else {
            let root = self.file.finish_levels(&mut self.levels)?;
            let mut value = vec![0; BUCKET_HEADER_BYTES];
            value[..8].copy_from_slice(&root.to_le_bytes());
            value
        };
        let value = value.into();
        self.file.buckets.push(Element { kind: Kind::Bucket, key: self.name.into_bytes(), value });
        Ok(())
    }
}

#[derive(Clone, Copy)]
enum Kind {
    Pair,
    Bucket,
    Child(u64),
}

struct Element {
    kind: Kind,
    key: Vec<u8>,
    value: Bytes,
}

impl Element {
    fn bytes(&self) -> usize {
        ELEMENT_BYTES + self.key.len() + self.value.len()
    }
}

/// Elements of one level that are not in a page yet.
struct Level {
    flags: u16,
    elements: std::collections::VecDeque<Element>,
    bytes: usize,
    emitted: u64,
}

impl Level {
    fn new(flags: u16) -> Level {
        Level { flags, elements: std::collections::VecDeque::new(), bytes: 0, emitted: 0 }
    }

    fn push(&mut self, element: Element) {
        self.bytes += element.bytes();
        self.elements.push_back(element);
    }

    /// How many elements the next page takes: as many as fit, but branches always two at least, and never all but one.
    fn group(&self) -> usize {
        let least = if self.flags == BRANCH { 2 } else { 1 };
        let mut bytes = PAGE_HEADER_BYTES;
        let mut count = 0;
        for element in &self.elements {
            bytes += element.bytes();
            if count >= least && bytes > FILL_BYTES {
                break;
            }
            count += 1;
        }
        if self.flags == BRANCH && self.elements.len() - count == 1 {
            // The last child may not stay alone: it joins, or one goes back to it.
            if count > least { count - 1 } else { count + 1 }
        } else {
            count
        }
    }
}

/// A page without padding, overflow not yet set.
fn encode_page<'a>(
    id: u64,
    flags: u16,
    elements: impl IntoIterator<Item = &'a Element, IntoIter: ExactSizeIterator + Clone>,
) -> Vec<u8> {
    let elements = elements.into_iter();
    let count = elements.len();
    let header = PageHeader { id, flags, count: count as u16, overflow: 0 };
    let mut out = Vec::with_capacity(PAGE_BYTES);
    out.extend_from_slice(&header.encode());
    let mut data_at = ELEMENT_BYTES * count;
    for (at, element) in elements.clone().enumerate() {
        let pos = (data_at - ELEMENT_BYTES * at) as u32;
        let key_bytes = element.key.len() as u32;
        match element.kind {
            Kind::Pair | Kind::Bucket => {
                let flags = if matches!(element.kind, Kind::Bucket) { IS_BUCKET } else { 0 };
                for word in [flags, pos, key_bytes, element.value.len() as u32] {
                    out.extend_from_slice(&word.to_le_bytes());
                }
            }
            Kind::Child(id) => {
                out.extend_from_slice(&pos.to_le_bytes());
                out.extend_from_slice(&key_bytes.to_le_bytes());
                out.extend_from_slice(&id.to_le_bytes());
            }
        }
        data_at += element.key.len() + element.value.len();
    }
    for element in elements {
        out.extend_from_slice(&element.key);
        out.extend_from_slice(&element.value);
    }
    out
}
