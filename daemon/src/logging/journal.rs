//! The journal's own protocol: a record as fields, in one datagram or, where that is too small, in a sealed file in memory.
//!
//! Used when stderr leads to the journal (`JOURNAL_STREAM` names it): the fields then can be searched and explained. Not here: what a
//! record says ([`super::record`]), and what becomes of a record that the journal does not take (the writer has stderr for it).

use std::{
    fs::File,
    io::{self, IoSlice, Write as _},
    os::{fd::AsRawFd as _, unix::net::UnixDatagram},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use nix::{
    fcntl::{FcntlArg, SealFlag, fcntl},
    sys::{
        memfd::{MFdFlags, memfd_create},
        socket::{ControlMessage, MsgFlags, UnixAddr, getsockopt, sendmsg, setsockopt, sockopt},
        stat::fstat,
    },
};

const SOCKET: &str = "/run/systemd/journal/socket";

/// Another place for that socket: for a journal that does not live at the usual one, and for tests.
const SOCKET_VARIABLE: &str = "CAIRN_JOURNAL_SOCKET";

/// Longest wait for room in the journal's queue. A record that waits longer goes to stderr, which has the journal's patience and not ours.
const SEND_WAIT: Duration = Duration::from_secs(2);

/// Longest wait for the journal to take what was sent, at the end of a process. A journal that is slower finds nobody to ask whose the record was.
pub const SETTLE_WAIT: Duration = Duration::from_secs(1);

/// The kernel counts at least this for a datagram without content: its two headers.
const EMPTY_BYTES_MIN: usize = 512;

pub struct Journal {
    socket: UnixDatagram,
    path: PathBuf,
}

/// Whether what is written to stderr ends in the journal anyway: the manager names the device and inode of the stream it has made.
pub fn has_stderr() -> bool {
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else { return false };
    let Ok(stat) = fstat(io::stderr()) else { return false };
    stream == format!("{}:{}", stat.st_dev, stat.st_ino)
}

impl Journal {
    /// The journal behind stderr. None where stderr leads elsewhere, or no socket can be made.
    pub fn behind_stderr() -> Option<Journal> {
        let path = std::env::var_os(SOCKET_VARIABLE).map_or_else(|| PathBuf::from(SOCKET), PathBuf::from);
        if has_stderr() { Journal::at(&path).ok() } else { None }
    }

    pub fn at(path: &Path) -> io::Result<Journal> {
        // Not connected: the journal may be restarted.
        let socket = UnixDatagram::unbound()?;
        socket.set_write_timeout(Some(SEND_WAIT))?;
        Ok(Journal { socket, path: path.to_path_buf() })
    }

    /// One record, as [`Fields`] has put it together.
    pub fn send(&self, record: &[u8]) -> io::Result<()> {
        match self.socket.send_to(record, &self.path) {
            Ok(_) => Ok(()),
            Err(error) if is_too_large(&error) => self.send_as_file(record),
            Err(error) => Err(error),
        }
    }

    /// Waits until the journal has taken what was sent so far. It finds out whose a record is (the unit, the command) from the process that sent
    /// it, when it takes the record: of a process that has ended by then it finds nothing, and `journalctl -u` does not show its last words.
    ///
    /// The journal answers nothing, but the kernel counts what nobody has taken yet: with the smallest room for that, so many empty records as fit
    /// and one more are only sent once the first of them was taken, which comes after everything before it. The journal passes them over.
    pub fn settle(&self, wait: Duration) -> io::Result<()> {
        let until = Instant::now() + wait;
        let before = getsockopt(&self.socket, sockopt::SndBuf)?;
        setsockopt(&self.socket, sockopt::SndBuf, &1)?;
        let fitting = getsockopt(&self.socket, sockopt::SndBuf)? / EMPTY_BYTES_MIN;
        // The second one behind the first: the journal has then done with what came before the first.
        let settled = (0..fitting + 2).try_for_each(|_| {
            let left = until.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
            self.socket.set_write_timeout(Some(left))?;
            self.socket.send_to(&[], &self.path).map(drop)
        });
        self.socket.set_write_timeout(Some(SEND_WAIT))?;
        // The kernel tells twice what it was asked for.
        setsockopt(&self.socket, sockopt::SndBuf, &(before / 2))?;
        settled
    }

    fn send_as_file(&self, record: &[u8]) -> io::Result<()> {
        let flags = MFdFlags::MFD_ALLOW_SEALING | MFdFlags::MFD_CLOEXEC;
        let mut file = File::from(memfd_create("cairnd-journal", flags)?);
        file.write_all(record)?;
        // The journal maps the file, and takes only one that cannot change under it.
        let seals =
            SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_SEAL;
        fcntl(&file, FcntlArg::F_ADD_SEALS(seals))?;
        let descriptors = [file.as_raw_fd()];
        let address = UnixAddr::new(&self.path)?;
        let nothing: [IoSlice<'_>; 0] = [];
        let message = [ControlMessage::ScmRights(&descriptors)];
        sendmsg(self.socket.as_raw_fd(), &nothing, &message, MsgFlags::empty(), Some(&address))?;
        Ok(())
    }
}

fn is_too_large(error: &io::Error) -> bool {
    [nix::errno::Errno::EMSGSIZE as i32, nix::errno::Errno::ENOBUFS as i32]
        .contains(&error.raw_os_error().unwrap_or(0))
}

/// The journal takes names of at most this many characters.
const NAME_CHARS_MAX: usize = 64;

/// A record in the making.
#[derive(Clone, Debug, Default)]
pub struct Fields(Vec<u8>);

impl Fields {
    /// `name` is one of the journal's names: capitals, digits and underscores, a letter first.
    pub fn put(&mut self, name: &str, value: &str) {
        self.0.extend_from_slice(name.as_bytes());
        if value.contains('\n') {
            self.0.push(b'\n');
            self.0.extend_from_slice(&(value.len() as u64).to_le_bytes());
        } else {
            self.0.push(b'=');
        }
        self.0.extend_from_slice(value.as_bytes());
        self.0.push(b'\n');
    }

    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

/// A field of ours as the journal may name it: `took-ms` is `CAIRN_TOOK_MS`.
pub fn own_name(key: &str) -> String {
    let mapped = key.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' });
    "CAIRN_".chars().chain(mapped).take(NAME_CHARS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use std::{
        io::Read as _,
        sync::atomic::{AtomicBool, Ordering},
    };

    use nix::{
        cmsg_space,
        sys::socket::{ControlMessageOwned, recvmsg},
    };

    use super::*;

    #[test]
    fn a_field_is_a_line_unless_its_value_has_lines() {
        let mut fields = Fields::default();
        fields.put("PRIORITY", "6");
        fields.put("MESSAGE", "a\nb");
        fields.put("EMPTY", "");
        assert_eq!(fields.bytes(), b"PRIORITY=6\nMESSAGE\n\x03\0\0\0\0\0\0\0a\nb\nEMPTY=\n");
        assert_eq!(own_name("took-ms"), "CAIRN_TOOK_MS");
        assert_eq!(own_name(&"x".repeat(100)).len(), 64);
    }

    /// A datagram where it fits, a sealed file where it does not.
    #[test]
    fn a_record_of_any_size_arrives() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let receiver = UnixDatagram::bind(&path).unwrap();
        let journal = Journal::at(&path).unwrap();
        for size in [10, 2 << 20] {
            let mut fields = Fields::default();
            fields.put("MESSAGE", &"x".repeat(size));
            journal.send(fields.bytes()).unwrap();
            let mut bytes = vec![0; 256 << 10];
            let mut space = cmsg_space!([std::os::fd::RawFd; 1]);
            let mut parts = [io::IoSliceMut::new(&mut bytes)];
            let message =
                recvmsg::<()>(receiver.as_raw_fd(), &mut parts, Some(&mut space), MsgFlags::empty()).unwrap();
            let length = message.bytes;
            let file = message.cmsgs().unwrap().find_map(|control| match control {
                ControlMessageOwned::ScmRights(descriptors) => descriptors.first().copied(),
                _ => None,
            });
            let got = match file {
                None => bytes[..length].to_vec(),
                Some(descriptor) => {
                    let mut got = Vec::new();
                    // By its name in /proc, since a number alone is nobody's file here.
                    File::open(format!("/proc/self/fd/{descriptor}")).unwrap().read_to_end(&mut got).unwrap();
                    nix::unistd::close(descriptor).unwrap();
                    got
                }
            };
            assert_eq!(file.is_some(), size > 1 << 20);
            assert_eq!(got, fields.bytes());
        }
        drop(receiver);
        assert!(journal.send(b"MESSAGE=x\n").is_err(), "nobody listens");
    }

    /// The journal has to find the process that it asks about.
    #[test]
    fn last_words_are_waited_for_until_the_journal_has_taken_them() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let receiver = UnixDatagram::bind(&path).unwrap();
        let journal = Journal::at(&path).unwrap();
        for size in [1, 100, 5000] {
            let record = vec![b'x'; size];
            journal.send(&record).unwrap();
            let error = journal.settle(Duration::from_millis(20)).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::WouldBlock, "nobody has taken the {size} bytes yet");
            let (taken, over) = (AtomicBool::new(false), AtomicBool::new(false));
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    let mut bytes = vec![0; 1 << 16];
                    receiver.set_read_timeout(Some(Duration::from_millis(5))).unwrap();
                    while !over.load(Ordering::Relaxed) {
                        match receiver.recv(&mut bytes) {
                            Ok(length) if length == size => taken.store(true, Ordering::Relaxed),
                            Ok(length) => assert_eq!(length, 0),
                            Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
                        }
                    }
                });
                journal.settle(Duration::from_secs(60)).unwrap();
                assert!(taken.load(Ordering::Relaxed), "{size} bytes");
                over.store(true, Ordering::Relaxed);
            });
        }
        // As much fits again as before.
        journal.send(&vec![b'x'; 60_000]).unwrap();
        let mut bytes = vec![0; 1 << 16];
        let length = std::iter::repeat_with(|| receiver.recv(&mut bytes).unwrap()).find(|length| *length > 0);
        assert_eq!(length, Some(60_000));
    }
}
