//! A tar archive in gzip with plain files in one directory, as every tar reads it (POSIX ustar). Nothing else is needed of the format.

use flate2::Compression;
use flate2::write::GzEncoder;
use std::io::{Result, Write};

const BLOCK: usize = 512;

pub struct Archive<W: Write> {
    out: GzEncoder<W>,
    directory: String,
    seconds: u64,
}

impl<W: Write> Archive<W> {
    /// `directory` stands before every name; `seconds` since 1970 is the time of every file.
    pub fn new(out: W, directory: &str, seconds: u64) -> Archive<W> {
        Archive { out: GzEncoder::new(out, Compression::default()), directory: directory.to_owned(), seconds }
    }

    /// # Panics
    /// When the whole name has 100 bytes or more: names are ours and short.
    pub fn add(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        self.out.write_all(&head(&format!("{}/{name}", self.directory), bytes.len(), self.seconds))?;
        self.out.write_all(bytes)?;
        let rest = bytes.len().next_multiple_of(BLOCK) - bytes.len();
        self.out.write_all(&[0; BLOCK][..rest])
    }

    pub fn finish(mut self) -> Result<W> {
        self.out.write_all(&[0; 2 * BLOCK])?;
        self.out.finish()
    }
}

fn head(name: &str, size: usize, seconds: u64) -> [u8; BLOCK] {
    assert!(name.len() < 100, "the name {name} fits into a head");
    let mut head = [0; BLOCK];
    let mut put = |at: usize, text: &str| head[at..at + text.len()].copy_from_slice(text.as_bytes());
    put(0, name);
    // For the owner alone; owner and group are whoever unpacks it.
    put(100, "0000600\0");
    put(108, "0000000\0");
    put(116, "0000000\0");
    put(124, &format!("{size:011o}\0"));
    put(136, &format!("{seconds:011o}\0"));
    // Blanks stand for the sum while it is made.
    put(148, "        ");
    put(156, "0");
    put(257, "ustar\x0000");
    let sum: u32 = head.iter().map(|byte| u32::from(*byte)).sum();
    head[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    head
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn a_head_has_its_fields_and_sum_and_files_fill_blocks() {
        let mut archive = Archive::new(Vec::new(), "d", 1_795_369_001);
        archive.add("a.txt", b"hello").unwrap();
        archive.add("empty", b"").unwrap();
        archive.add("full", &[b'x'; BLOCK]).unwrap();
        let packed = archive.finish().unwrap();
        let mut tar = Vec::new();
        flate2::read::GzDecoder::new(&packed[..]).read_to_end(&mut tar).unwrap();
        assert_eq!(tar.len(), BLOCK * (2 + 1 + 2 + 2));
        assert!(
            tar.starts_with(b"d/a.txt\0")
                && &tar[124..136] == b"00000000005\0"
                && &tar[257..265] == b"ustar\x0000"
        );
        let stored = u32::from_str_radix(std::str::from_utf8(&tar[148..154]).unwrap(), 8).unwrap();
        let sum: u32 = tar[..BLOCK]
            .iter()
            .enumerate()
            .map(|(at, byte)| if (148..156).contains(&at) { 32 } else { u32::from(*byte) })
            .sum();
        assert_eq!(stored, sum);
        assert_eq!(&tar[BLOCK..BLOCK + 5], b"hello");
    }
}
