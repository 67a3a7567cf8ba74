//! Who listens at an address that could not be bound, as far as the kernel shows it to this user. For messages only.

use std::{fs, net::SocketAddr};

/// The state LISTEN in the kernel's tables.
const LISTEN: &str = "0A";

pub struct Holder {
    pub pid: u32,
    pub command: String,
}

/// The process that listens on this port, at this address or at any. None where it belongs to somebody whose descriptors may not be seen.
pub fn of(address: SocketAddr) -> Option<Holder> {
    let inode = ["/proc/net/tcp", "/proc/net/tcp6"]
        .into_iter()
        .find_map(|table| listener(&fs::read_to_string(table).ok()?, address.port()))?;
    let wanted = format!("socket:[{inode}]");
    let processes = fs::read_dir("/proc").ok()?.flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let holds = |pid: &u32| {
        let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        descriptors
            .map(|entry| entry.path())
            .any(|path| fs::read_link(path).is_ok_and(|target| target.as_os_str() == wanted.as_str()))
    };
    let pid = pids.into_iter().find(holds)?;
    let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let command = String::from_utf8_lossy(&command).replace('\0', " ").trim().to_owned();
    Some(Holder { pid, command })
}

/// The inode of whoever listens on `port`, in a table of the kernel's.
fn listener(table: &str, port: u16) -> Option<u64> {
    table.lines().skip(1).find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (_, local) = fields.get(1)?.rsplit_once(':')?;
        let same = u16::from_str_radix(local, 16) == Ok(port) && fields.get(3) == Some(&LISTEN);
        same.then(|| fields.get(9)?.parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn a_listener_is_found_in_the_kernels_table() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
            0: 0100007F:094C 0100007F:C001 01 00000000:00000000 00:00000000 00000000     0        0 11 1 0\n\
            1: 0100007F:094C 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 12 1 0\n";
        assert_eq!(listener(table, 2380), Some(12), "who is only connected does not hold it");
        assert_eq!(listener(table, 2379), None);
    }

    #[test]
    fn this_process_is_found() {
        let held = TcpListener::bind("127.0.0.1:0").unwrap();
        let holder = of(held.local_addr().unwrap()).expect("its descriptors may be seen");
        assert_eq!(holder.pid, std::process::id());
        assert!(!holder.command.is_empty());
    }
}
