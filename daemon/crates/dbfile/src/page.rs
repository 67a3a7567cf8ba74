//! The layout of bbolt's pages, all little-endian:
//!
//! ```text
//! page     u64 id | u16 flags | u16 count | u32 overflow (pages that follow and belong to it) | elements | data
//! leaf     u32 flags (1: value is a bucket) | u32 pos | u32 key bytes | u32 value bytes     key at element + pos, value after it
//! branch   u32 pos | u32 key bytes | u64 child
//! bucket   u64 root page | u64 sequence      root 0: an inline leaf page follows in the same value
//! meta     u32 magic | u32 version | u32 page bytes | u32 flags | u64 root | u64 sequence | u64 freelist | u64 pages | u64 txid
//!          | u64 FNV-1a of the 56 bytes before
//! ```
//!
//! Not here: trees (`bolt_read`, `bolt_write`), what etcd keeps in them (`etcd_db`).

pub const PAGE_HEADER_BYTES: usize = 16;
pub const ELEMENT_BYTES: usize = 16;
pub const BUCKET_HEADER_BYTES: usize = 16;
pub const META_BYTES: usize = 64;

pub const BRANCH: u16 = 1;
pub const LEAF: u16 = 2;
pub const META: u16 = 4;

/// Leaf element flag: the value is a bucket.
pub const IS_BUCKET: u32 = 1;

pub const MAGIC: u32 = 0xED0C_DAED;
pub const VERSION: u32 = 2;
/// "No freelist on disk", as etcd writes; free pages are found by walking the tree.
pub const NO_FREELIST: u64 = u64::MAX;

/// bbolt's limit for one key.
pub const KEY_BYTES_MAX: usize = 32 * 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageHeader {
    pub id: u64,
    pub flags: u16,
    pub count: u16,
    pub overflow: u32,
}

impl PageHeader {
    pub fn encode(self) -> [u8; PAGE_HEADER_BYTES] {
        let mut out = [0; PAGE_HEADER_BYTES];
        out[..8].copy_from_slice(&self.id.to_le_bytes());
        out[8..10].copy_from_slice(&self.flags.to_le_bytes());
        out[10..12].copy_from_slice(&self.count.to_le_bytes());
        out[12..].copy_from_slice(&self.overflow.to_le_bytes());
        out
    }

    pub fn decode(bytes: &[u8]) -> Option<PageHeader> {
        Some(PageHeader {
            id: u64_at(bytes, 0)?,
            flags: u16_at(bytes, 8)?,
            count: u16_at(bytes, 10)?,
            overflow: u32_at(bytes, 12)?,
        })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Meta {
    pub page_bytes: u32,
    pub root: u64,
    /// First page that was never used; the file has at least this many.
    pub pages: u64,
    pub txid: u64,
}

impl Meta {
    pub fn encode(self) -> [u8; META_BYTES] {
        let mut out = [0; META_BYTES];
        for (at, word) in [MAGIC, VERSION, self.page_bytes, 0].into_iter().enumerate() {
            out[at * 4..][..4].copy_from_slice(&word.to_le_bytes());
        }
        for (at, word) in [self.root, 0, NO_FREELIST, self.pages, self.txid].into_iter().enumerate() {
            out[16 + at * 8..][..8].copy_from_slice(&word.to_le_bytes());
        }
        let checksum = fnv1a(&out[..56]);
        out[56..].copy_from_slice(&checksum.to_le_bytes());
        out
    }

    /// `None` when the bytes are not a valid meta record.
    pub fn decode(bytes: &[u8]) -> Option<Meta> {
        let bytes = bytes.get(..META_BYTES)?;
        let valid = u32_at(bytes, 0)? == MAGIC
            && u32_at(bytes, 4)? == VERSION
            && u64_at(bytes, 56)? == fnv1a(&bytes[..56]);
        valid.then_some(Meta {
            page_bytes: u32_at(bytes, 8)?,
            root: u64_at(bytes, 16)?,
            pages: u64_at(bytes, 40)?,
            txid: u64_at(bytes, 48)?,
        })
    }
}

fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

pub fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..at.checked_add(2)?)?.try_into().ok()?))
}

pub fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

pub fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at.checked_add(8)?)?.try_into().ok()?))
}
