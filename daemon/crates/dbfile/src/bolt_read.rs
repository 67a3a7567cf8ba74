//! Reads any valid bbolt file, and survives any other: every offset is checked, a page is visited once, depth and sizes are bounded,
//! so arbitrary bytes end in a [`BoltError`] after at most one pass over the file.
//!
//! Not here: free pages (a reader needs none of them), nested buckets (etcd has none), writing.

use std::fs::File;
use std::io;
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;

use crate::page::{
    BRANCH, BUCKET_HEADER_BYTES, ELEMENT_BYTES, IS_BUCKET, KEY_BYTES_MAX, LEAF, Meta, PAGE_HEADER_BYTES,
    PageHeader, u32_at, u64_at,
};

/// Page sizes of machines that run etcd: 4 KiB nearly everywhere, up to 64 KiB on some ARM and POWER.
const PAGE_BYTES_MIN: u32 = 1024;
const PAGE_BYTES_MAX: u32 = 64 * 1024;
/// A tree of two children a branch has this depth at 2^32 leaves.
const DEPTH_MAX: usize = 32;
/// One page with what overflows from it. A row is at most a request, a few MiB; this only keeps a damaged count from asking for all
/// memory.
const PAGE_RUN_BYTES_MAX: u64 = 512 * 1024 * 1024;
/// Buckets in the root. etcd has ten.
const BUCKETS_MAX: usize = 1024;

#[derive(Debug, thiserror::Error)]
pub enum BoltError {
    #[error("read the database file")]
    Io(#[from] io::Error),
    #[error("no valid meta page: not a bbolt database, or its beginning is damaged")]
    NoMeta,
    #[error("page size {0} is not a power of two from 1 KiB to 64 KiB")]
    PageSize(u32),
    #[error("the file has {found} bytes, its meta page promises {promised}: it was cut")]
    Truncated { found: u64, promised: u64 },
    #[error("page {page}: {what}")]
    Page { page: u64, what: &'static str },
}

/// Called with a key and its value until it breaks.
pub type EachPair<'a> = dyn FnMut(&[u8], &[u8]) -> ControlFlow<()> + 'a;
/// The same with the element's flags before.
type EachElement<'a> = dyn FnMut(u32, &[u8], &[u8]) -> ControlFlow<()> + 'a;

/// A whole bucket's place.
enum Root {
    Page(u64),
    /// The leaf page itself.
    Inline(Vec<u8>),
}

pub struct BoltFile {
    file: File,
    page_bytes: u64,
    pages: u64,
    buckets: Vec<(Vec<u8>, Root)>,
    /// Pages used by the root; every bucket's walk starts from a copy.
    root_pages: Visited,
}

impl BoltFile {
    /// Reads the meta pages and the list of buckets.
    pub fn open(file: File) -> Result<BoltFile, BoltError> {
        let len = file.metadata()?.len();
        let meta = find_meta(&file)?;
        if !meta.page_bytes.is_power_of_two() || !(PAGE_BYTES_MIN..=PAGE_BYTES_MAX).contains(&meta.page_bytes)
        {
            return Err(BoltError::PageSize(meta.page_bytes));
        }
        let page_bytes = u64::from(meta.page_bytes);
        let promised = meta.pages.saturating_mul(page_bytes);
        if promised > len {
            return Err(BoltError::Truncated { found: len, promised });
        }
        let mut bolt = BoltFile {
            file,
            page_bytes,
            pages: meta.pages,
            buckets: Vec::new(),
            root_pages: Visited::new(meta.pages),
        };
        let mut buckets = Vec::new();
        let mut visited = Visited::new(meta.pages);
        let mut fault = None;
        bolt.walk(&Root::Page(meta.root), &mut visited, &mut |flags, name, value| {
            let root = match bucket_root(value) {
                _ if flags & IS_BUCKET == 0 => Err("the root holds a plain key"),
                _ if buckets.len() >= BUCKETS_MAX => Err("more than a thousand buckets"),
                root => root,
            };
            match root {
                Ok(root) => {
                    buckets.push((name.to_vec(), root));
                    ControlFlow::Continue(())
                }
                Err(what) => {
                    fault = Some(BoltError::Page { page: meta.root, what });
                    ControlFlow::Break(())
                }
            }
        })?;
        if let Some(fault) = fault {
            return Err(fault);
        }
        bolt.buckets = buckets;
        bolt.root_pages = visited;
        Ok(bolt)
    }

    /// Bytes up to the last page in use, as etcd's status reports the size. The file may be longer.
    pub fn used_bytes(&self) -> u64 {
        self.pages * self.page_bytes
    }

    pub fn bucket_names(&self) -> impl Iterator<Item = &[u8]> {
        self.buckets.iter().map(|(name, _)| name.as_slice())
    }

    /// Calls `each` with every pair of a bucket in order. `Ok(false)` when there is no such bucket.
    pub fn each(&self, bucket: &[u8], each: &mut EachPair<'_>) -> Result<bool, BoltError> {
        let Some((_, root)) = self.buckets.iter().find(|(name, _)| name == bucket) else { return Ok(false) };
        let mut nested = None;
        self.walk(root, &mut self.root_pages.clone(), &mut |flags, key, value| {
            if flags & IS_BUCKET != 0 {
                nested = Some(BoltError::Page { page: 0, what: "a bucket inside a bucket" });
                return ControlFlow::Break(());
            }
            each(key, value)
        })?;
        nested.map_or(Ok(true), Err)
    }

    /// Calls `each` with the branch pages of a bucket and, in order, with its leaf pages and what their branch says is their first key. Leaves
    /// are not read. `Ok(false)` when there is no such bucket, it has no branches, or its branches do not agree with each other.
    pub(crate) fn each_leaf(
        &self,
        bucket: &[u8],
        each: &mut dyn FnMut(u64, Option<&[u8]>),
    ) -> Result<bool, BoltError> {
        let Some((_, Root::Page(root))) = self.buckets.iter().find(|(name, _)| name == bucket) else {
            return Ok(false);
        };
        let mut visited = self.root_pages.clone();
        let first = self.page(*root, &mut visited)?;
        if first.header.flags != BRANCH {
            return Ok(false);
        }
        each(*root, None);
        // Down the left edge: every leaf is as deep as the first one.
        let mut depth = 1;
        let (mut child, mut edge) = (first.branch(0)?.1, self.root_pages.clone());
        loop {
            let page = self.page(child, &mut edge)?;
            if page.header.flags == LEAF {
                break;
            }
            depth += 1;
            if depth >= DEPTH_MAX {
                return Err(fault(child, "the tree is deeper than 32 levels"));
            }
            child = page.branch(0)?.1;
        }
        let mut path = vec![(first, 0_usize)];
        loop {
            let level = path.len();
            let Some((page, at)) = path.last_mut() else { return Ok(true) };
            if *at >= usize::from(page.header.count) {
                path.pop();
                continue;
            }
            let (key, child) = page.branch(*at)?;
            *at += 1;
            if level == depth {
                if !visited.mark(child) {
                    return Ok(false);
                }
                each(child, Some(key));
                continue;
            }
            let next = self.page(child, &mut visited)?;
            if next.header.flags != BRANCH || next.branch(0)?.0 != key {
                return Ok(false);
            }
            each(child, None);
            path.push((next, 0));
        }
    }

    fn walk(&self, root: &Root, visited: &mut Visited, each: &mut EachElement<'_>) -> Result<(), BoltError> {
        let mut last: Option<Vec<u8>> = None;
        let first = match root {
            Root::Page(id) => self.page(*id, visited)?,
            Root::Inline(bytes) => {
                let header = PageHeader::decode(bytes).ok_or(fault(0, "inline page is cut"))?;
                if header.flags != LEAF {
                    return Err(fault(0, "inline page is not a leaf"));
                }
                Page { header, bytes: bytes.clone() }
            }
        };
        let mut path = vec![(first, 0_usize)];
        while let Some((page, at)) = path.last_mut() {
            if *at >= usize::from(page.header.count) {
                path.pop();
                continue;
            }
            let index = *at;
            *at += 1;
            if page.header.flags == BRANCH {
                let (key, child) = page.branch(index)?;
                // A branch key is at most its first leaf's key, and above everything before it.
                if index > 0 && last.as_deref().is_some_and(|last| key <= last) {
                    return Err(fault(page.header.id, "branch keys are not in order"));
                }
                if path.len() >= DEPTH_MAX {
                    return Err(fault(child, "the tree is deeper than 32 levels"));
                }
                let next = self.page(child, visited)?;
                path.push((next, 0));
                continue;
            }
            let (flags, key, value) = page.leaf(index)?;
            if key.is_empty() || key.len() > KEY_BYTES_MAX {
                return Err(fault(page.header.id, "a key is empty or longer than 32 KiB"));
            }
            if last.as_deref().is_some_and(|last| key <= last) {
                return Err(fault(page.header.id, "keys are not in order"));
            }
            let last = last.get_or_insert_default();
            last.clear();
            last.extend_from_slice(key);
            if each(flags, key, value).is_break() {
                return Ok(());
            }
        }
        Ok(())
    }

    fn page(&self, id: u64, visited: &mut Visited) -> Result<Page, BoltError> {
        if id < 2 || id >= self.pages {
            return Err(fault(id, "outside the file"));
        }
        let mut head = [0; PAGE_HEADER_BYTES];
        self.file.read_exact_at(&mut head, id * self.page_bytes)?;
        let header = PageHeader::decode(&head).expect("sixteen bytes are a header");
        if header.id != id {
            return Err(fault(id, "carries another page's number"));
        }
        if header.flags != BRANCH && header.flags != LEAF {
            return Err(fault(id, "neither branch nor leaf"));
        }
        if header.flags == BRANCH && header.count == 0 {
            return Err(fault(id, "a branch without children"));
        }
        let pages = u64::from(header.overflow) + 1;
        if pages > self.pages - id || pages * self.page_bytes > PAGE_RUN_BYTES_MAX {
            return Err(fault(id, "overflows beyond the file or beyond 512 MiB"));
        }
        for page in id..id + pages {
            if !visited.mark(page) {
                return Err(fault(page, "is used twice"));
            }
        }
        let mut bytes = vec![0; (pages * self.page_bytes) as usize];
        self.file.read_exact_at(&mut bytes, id * self.page_bytes)?;
        Ok(Page { header, bytes })
    }
}

fn find_meta(file: &File) -> Result<Meta, BoltError> {
    let at = |offset: u64| -> Result<Option<Meta>, BoltError> {
        let mut bytes = [0; crate::page::META_BYTES];
        match file.read_exact_at(&mut bytes, offset + PAGE_HEADER_BYTES as u64) {
            Ok(()) => Ok(Meta::decode(&bytes)),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
            Err(error) => Err(error.into()),
        }
    };
    let first = at(0)?;
    let mut second = None;
    // Without the first meta page the page size is not known, so the second is looked for where it could be.
    let mut guess = PAGE_BYTES_MIN;
    while guess <= PAGE_BYTES_MAX && second.is_none() {
        if first.is_none_or(|first| first.page_bytes == guess) {
            second = at(u64::from(guess))?.filter(|second| second.page_bytes == guess);
        }
        guess *= 2;
    }
    first.into_iter().chain(second).max_by_key(|meta| meta.txid).ok_or(BoltError::NoMeta)
}

fn bucket_root(value: &[u8]) -> Result<Root, &'static str> {
    match u64_at(value, 0) {
        None => Err("a bucket's value is cut"),
        Some(0) => value
            .get(BUCKET_HEADER_BYTES..)
            .map(|page| Root::Inline(page.to_vec()))
            .ok_or("a bucket's value is cut"),
        Some(id) => Ok(Root::Page(id)),
    }
}

fn fault(page: u64, what: &'static str) -> BoltError {
    BoltError::Page { page, what }
}

pub(crate) struct Page {
    pub(crate) header: PageHeader,
    pub(crate) bytes: Vec<u8>,
}

impl Page {
    pub(crate) fn leaf(&self, index: usize) -> Result<(u32, &[u8], &[u8]), BoltError> {
        let read = || {
            let at = PAGE_HEADER_BYTES + index * ELEMENT_BYTES;
            let key_at = at.checked_add(u32_at(&self.bytes, at + 4)? as usize)?;
            let value_at = key_at.checked_add(u32_at(&self.bytes, at + 8)? as usize)?;
            let end = value_at.checked_add(u32_at(&self.bytes, at + 12)? as usize)?;
            Some((
                u32_at(&self.bytes, at)?,
                self.bytes.get(key_at..value_at)?,
                self.bytes.get(value_at..end)?,
            ))
        };
        read().ok_or(fault(self.header.id, "an element points outside its page"))
    }

    fn branch(&self, index: usize) -> Result<(&[u8], u64), BoltError> {
        let read = || {
            let at = PAGE_HEADER_BYTES + index * ELEMENT_BYTES;
            let key_at = at.checked_add(u32_at(&self.bytes, at)? as usize)?;
            let end = key_at.checked_add(u32_at(&self.bytes, at + 4)? as usize)?;
            Some((self.bytes.get(key_at..end)?, u64_at(&self.bytes, at + 8)?))
        };
        read().ok_or(fault(self.header.id, "an element points outside its page"))
    }
}

/// One bit a page: 320 KiB for a file of 10 GiB.
#[derive(Clone)]
struct Visited(Vec<u64>);

impl Visited {
    fn new(pages: u64) -> Visited {
        Visited(vec![0; pages.div_ceil(64) as usize])
    }

    /// `false` when it was marked before.
    fn mark(&mut self, page: u64) -> bool {
        let Some(word) = self.0.get_mut((page / 64) as usize) else { return false };
        let bit = 1 << (page % 64);
        let new = *word & bit == 0;
        *word |= bit;
        new
    }
}
