//! Lets old clients in whose `:authority` is no authority. etcdctl 3.4 dials the endpoint of some calls (hashkv, move-leader) with its
//! scheme and sends `:authority: http://host:port`; etcd's gRPC library does not mind, ours resets the stream before anybody sees it.
//!
//! Only the first HEADERS of a connection is looked at: the value stands there as a literal and later requests refer to it. The three
//! characters `://` are replaced in place by `B--`, whose Huffman codes are as long bit by bit, so that no length and no entry of the
//! compression table changes. Nobody reads the value: routing goes by `:path`.
//!
//! Not here: HTTP/1.1 and its Host header (`http::access`).

/// Frame header (RFC 9113, 4.1).
const FRAME_HEAD_BYTES: usize = 9;
const HEADERS: u8 = 1;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;
/// The last kind that RFC 9113 defines, and the largest frame before our settings allow more: past either the bytes are garbage or
/// nothing that a client begins with, and the library shall see them at once.
const KIND_MAX: u8 = 9;
const FRAME_BYTES_MAX: usize = 16 * 1024;
/// Index of `:authority` in HPACK's static table (RFC 7541, appendix A).
const AUTHORITY: u64 = 1;

/// Bytes held back while the first HEADERS is incomplete. A client's is under 1 KiB; past this the bytes go on as they are.
pub(crate) const HELD_BACK_BYTES_MAX: usize = 16 * 1024;

/// `http://` in the Huffman code of RFC 7541, appendix B, and what it becomes: 41 bits, left-aligned. The codes are 100111 (h), 01001
/// (t, twice), 101011 (p), then 1011100 (:) or 1011101 (B), then twice 011000 (/) or 010110 (-).
const SCHEME_BITS: u32 = 41;
const SCHEME: u64 = 0x13a535dc618 << (64 - SCHEME_BITS);
const MENDED: u64 = 0x13a535dd596 << (64 - SCHEME_BITS);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Look {
    /// The first HEADERS has not arrived completely. The bytes before this one need no further look.
    Incomplete(usize),
    /// Nothing later in the connection needs a look.
    Done,
}

/// Looks at the bytes after the preface and mends what needs it. Bytes that are no HTTP/2 are left for the library to refuse.
pub(crate) fn mend(bytes: &mut [u8]) -> Look {
    let mut at = 0;
    loop {
        let Some(head) = bytes.get(at..at + FRAME_HEAD_BYTES) else {
            return Look::Incomplete(at.min(bytes.len()));
        };
        let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
        let (kind, flags) = (head[3], head[4]);
        let begin = at + FRAME_HEAD_BYTES;
        if length > FRAME_BYTES_MAX || kind > KIND_MAX {
            return Look::Done;
        }
        if kind != HEADERS {
            if bytes.len() < begin + length {
                return Look::Incomplete(at);
            }
            at = begin + length;
            continue;
        }
        let Some(payload) = bytes.get_mut(begin..begin + length) else { return Look::Incomplete(at) };
        mend_payload(payload, flags);
        return Look::Done;
    }
}

fn mend_payload(payload: &mut [u8], flags: u8) {
    let mut at = usize::from(flags & PADDED != 0);
    if flags & PRIORITY != 0 {
        at += 5;
    }
    let Some(mut block) = payload.get_mut(at..) else { return };
    while let Some((&first, _)) = block.split_first() {
        let Some((index, used, literal)) = field(first, block) else { return };
        block = &mut std::mem::take(&mut block)[used..];
        if !literal {
            continue;
        }
        if index == 0 {
            let Some((begin, length, _)) = string(block) else { return };
            block = &mut std::mem::take(&mut block)[begin + length..];
        }
        let Some((begin, length, huffman)) = string(block) else { return };
        let value = &mut block[begin..begin + length];
        if index == AUTHORITY {
            return mend_value(value, huffman);
        }
        block = &mut std::mem::take(&mut block)[begin + length..];
    }
}

fn mend_value(value: &mut [u8], huffman: bool) {
    if !huffman {
        if value.starts_with(b"http://") {
            value[4..7].copy_from_slice(b"B--");
        }
        return;
    }
    let Some(front) = value.first_chunk_mut::<8>() else { return };
    let bits = u64::from_be_bytes(*front);
    let mask = u64::MAX << (64 - SCHEME_BITS);
    if bits & mask == SCHEME {
        *front = ((bits & !mask) | MENDED).to_be_bytes();
    }
}

/// One representation (RFC 7541, 6): name index, bytes of it, and whether strings follow.
fn field(first: u8, block: &[u8]) -> Option<(u64, usize, bool)> {
    let (prefix, literal) = match first {
        0x80.. => (7, false),
        0x40..=0x7f => (6, true),
        0x20..=0x3f => (5, false),
        _ => (4, true),
    };
    let (index, used) = integer(block, prefix)?;
    Some((index, used, literal))
}

/// Where a string begins, how long it is, and whether it is Huffman-coded; None when it does not fit.
fn string(block: &[u8]) -> Option<(usize, usize, bool)> {
    let huffman = block.first()? & 0x80 != 0;
    let (length, begin) = integer(block, 7)?;
    let length = usize::try_from(length).ok()?;
    (length <= block.len().checked_sub(begin)?).then_some((begin, length, huffman))
}

/// A prefixed integer (RFC 7541, 5.1); at most five bytes follow the prefix, more is an attack.
fn integer(block: &[u8], prefix: u32) -> Option<(u64, usize)> {
    let mask = (1u64 << prefix) - 1;
    let mut value = u64::from(*block.first()?) & mask;
    if value < mask {
        return Some((value, 1));
    }
    for (i, byte) in block.iter().enumerate().skip(1).take(5) {
        value += u64::from(byte & 0x7f) << (7 * (i - 1));
        if byte & 0x80 == 0 {
            return Some((value, i + 1));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![0, 0, payload.len() as u8, kind, flags, 0, 0, 0, 1];
        frame.extend_from_slice(payload);
        frame
    }

    /// `:method: POST`, then `:authority` as a literal with indexing, then `:path: /` by index.
    fn headers(value: &[u8], huffman: bool) -> Vec<u8> {
        let mut block = vec![0x83, 0x41, value.len() as u8 | if huffman { 0x80 } else { 0 }];
        block.extend_from_slice(value);
        block.push(0x84);
        frame(HEADERS, 4, &block)
    }

    /// `http://127.0.0.1:1` in RFC 7541's code: the mended 41 bits and whatever follows.
    fn coded(front: u64, rest: u8) -> Vec<u8> {
        let mut value = (front | 0b010_1101).to_be_bytes().to_vec();
        value.push(rest);
        value
    }

    #[test]
    fn a_scheme_in_the_authority_is_made_harmless_and_nothing_else_changes() {
        let settings = frame(4, 0, &[]);
        for (given, expected, huffman) in [
            (b"http://127.0.0.1:2379".to_vec(), b"httpB--127.0.0.1:2379".to_vec(), false),
            (b"127.0.0.1:2379".to_vec(), b"127.0.0.1:2379".to_vec(), false),
            (coded(SCHEME, 7), coded(MENDED, 7), true),
        ] {
            let mut bytes = [settings.clone(), headers(&given, huffman)].concat();
            let wanted = [settings.clone(), headers(&expected, huffman)].concat();
            assert_eq!(mend(&mut bytes), Look::Done);
            assert_eq!(bytes, wanted);
        }
    }

    #[test]
    fn an_incomplete_head_is_waited_for_and_garbage_is_left_alone() {
        let whole = headers(b"http://127.0.0.1:2379", false);
        for length in 0..whole.len() {
            assert_eq!(mend(&mut whole[..length].to_vec()), Look::Incomplete(0));
        }
        let settings = frame(4, 0, &[0; 6]);
        let mut both = [settings.clone(), whole[..10].to_vec()].concat();
        assert_eq!(mend(&mut both), Look::Incomplete(settings.len()), "whole frames before it need not wait");
        // Any bytes at all: no panic, and nothing outside an authority changes.
        for seed in 0..2000u32 {
            let mut state = seed.wrapping_mul(2_654_435_761).max(1);
            let block: Vec<u8> = (0..40)
                .map(|_| {
                    state ^= state << 13;
                    state ^= state >> 17;
                    state ^= state << 5;
                    state as u8
                })
                .collect();
            let mut bytes = frame(HEADERS, (seed % 64) as u8, &block);
            mend(&mut bytes);
        }
    }
}
