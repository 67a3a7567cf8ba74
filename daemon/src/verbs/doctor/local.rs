//! What doctor sees on this machine: the directory, its data, the disks, the ports, the names.

use std::{collections::BTreeSet, io as stdio, net::SocketAddr};

use nix::sys::statvfs::statvfs;
use storage::wal::{Wal, WalContents};
use tokio::net::TcpSocket;

use super::{Lock, Report, member, wal_dir};
use crate::{
    bootstrap::{execute::own_log_refusal, facts, plan::state_missing},
    config::{Settings, urls::Url},
    identity::{Identity, compare},
    lifecycle, port_holder,
    verbs::directory::{self, Usable, first_missing},
};

/// Below this backups and snapshots for peers are refused, and a busy member may fill the rest within minutes.
const FREE_BYTES_LOW: u64 = 256 << 20;

/// A state store has some hundred files.
const FREE_FILES_LOW: u64 = 1000;

/// There, or to be made; and this user's.
pub fn directory(settings: &Settings, report: &mut Report) {
    let shown = settings.storage.data_dir.display();
    match directory::usable(settings) {
        Err(refusal) => report.fail("data-dir", refusal),
        Ok(Usable::ToBeMade) => {
            report.ok("data-dir", format!("{shown} does not exist: a first start makes it"))
        }
        Ok(Usable::There { mode }) => {
            if mode & 0o077 != 0 {
                report.warn(
                    "data-dir",
                    format!("{shown} may be entered by others (mode {mode:o}): chmod 700 {shown}"),
                );
            }
            report.ok("data-dir", format!("{shown} is there, and this user may read and write it"));
        }
    }
}

/// Log and state beside an identity that counts, read as a start reads them. Of a member that runs only what does not move is looked at.
pub fn data(
    settings: &Settings,
    identity: &Identity,
    lock: &Lock,
    report: &mut Report,
) -> Option<WalContents> {
    let (log_dir, state_dir) =
        (wal_dir(settings), settings.storage.data_dir.join(facts::MEMBER_DIR).join("state"));
    let has_state = match storage::state_store::look(&state_dir) {
        Ok(Some(current)) => {
            report.ok("state", format!("whole, in a form that this version knows ({})", current.display()));
            true
        }
        Ok(None) => {
            report.ok("state", "none yet: it is made from the log");
            false
        }
        Err(error) => {
            let (error, data_dir) = (node::StartError::Store(error), &settings.storage.data_dir);
            report.fail("state", lifecycle::node_refusal(error, &state_dir, identity, data_dir));
            true
        }
    };
    let shown = log_dir.display().to_string();
    if lock.is_held() {
        report.ok("log", format!("of {}, in use ({shown})", member(identity)));
        return None;
    }
    let data_dir = settings.storage.data_dir.display().to_string();
    let contents = match Wal::look(&log_dir) {
        Ok(contents) => contents,
        Err(error) => {
            report.fail("log", own_log_refusal(identity, &data_dir, &log_dir, &error));
            return None;
        }
    };
    let last = contents.entries.last().map_or(contents.snapshot.index, |entry| entry.index);
    if contents.snapshot.index.0 > 0 && !has_state {
        report.fail("log", state_missing(identity, &data_dir, &shown, contents.snapshot.index.0 + 1));
    } else if let Err(refusal) = compare::check_clean_stop(identity, last.0, &shown, &data_dir) {
        report.fail("log", refusal);
    } else {
        report.ok(
            "log",
            format!(
                "of {}: readable from index {} to {}, committed to {} in term {} ({shown})",
                member(identity),
                contents.snapshot.index.0 + 1,
                last.0,
                contents.hard_state.commit.0,
                contents.hard_state.term.0
            ),
        );
    }
    Some(contents)
}

/// Room for log and state.
pub fn disks(settings: &Settings, report: &mut Report) {
    let dirs =
        [("data-dir", Some(&settings.storage.data_dir)), ("wal-dir", settings.storage.wal_dir.as_ref())];
    for (name, dir) in dirs.into_iter().filter_map(|(name, dir)| Some((name, dir?))) {
        let existing = if dir.exists() { dir.clone() } else { first_missing(dir).1 };
        let disk = match statvfs(&existing) {
            Ok(disk) => disk,
            Err(error) => {
                report.warn("disk", format!("the room for {name} cannot be told: {error}"));
                continue;
            }
        };
        let free = disk.blocks_available().saturating_mul(disk.fragment_size());
        let all = disk.blocks().saturating_mul(disk.fragment_size()).max(1);
        let says = format!("{} MiB of {} MiB free for {name}", free >> 20, all >> 20);
        // Some file systems count no files.
        let few_files = disk.files() > 0 && disk.files_available() < FREE_FILES_LOW;
        if free < FREE_BYTES_LOW {
            report.warn("disk", format!("{says}: below {} MiB backups and snapshots for peers stop, and a full disk ends the member", FREE_BYTES_LOW >> 20));
        } else if few_files {
            report
                .warn("disk", format!("{says}, but only {} files more may be made", disk.files_available()));
        } else {
            report.ok("disk", says);
        }
    }
}

/// Names that others dial, and that this member dials.
pub fn names(settings: &Settings, report: &mut Report) {
    let membership = &settings.membership;
    let all = membership
        .advertise_peer_urls
        .value
        .iter()
        .chain(&membership.advertise_client_urls)
        .chain(membership.initial_cluster.value.members().iter().flat_map(|member| &member.peer_urls));
    let addresses = facts::addresses(all);
    if addresses.is_empty() {
        return report.ok("names", "no host name is used");
    }
    for (host, found) in &addresses {
        if found.is_empty() {
            report.warn("names", format!("{host} does not resolve here"));
        } else {
            let found: BTreeSet<String> = found.iter().map(ToString::to_string).collect();
            report.ok("names", format!("{host} is {}", found.into_iter().collect::<Vec<_>>().join(", ")));
        }
    }
}

/// Bound for a moment and never listened on, so that nobody can connect; two that only bind do not disturb each other.
pub fn ports(settings: &Settings, runtime: &tokio::runtime::Runtime, report: &mut Report) {
    let _within = runtime.enter();
    let listen = &settings.listen;
    let lists: [(&'static str, &[Url]); 4] = [
        ("listen-peer-urls", &listen.peer),
        ("listen-client-urls", &listen.client),
        ("listen-client-http-urls", &listen.client_http),
        ("listen-metrics-urls", &listen.metrics),
    ];
    let mut free = Vec::new();
    for (setting, urls) in lists {
        for address in urls.iter().filter_map(Url::bind_address) {
            let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() };
            let bound = socket.and_then(|socket| {
                socket.set_reuseaddr(true)?;
                socket.bind(address)
            });
            match bound {
                Ok(()) => free.push(address.to_string()),
                // A socket unit holds it for the member, and hands it over at the start.
                Err(error) if is_handed_over(address, &error) => {
                    report.ok("ports", format!("{address} is held by the service manager"));
                }
                Err(error) => report.fail("ports", lifecycle::bind_refusal(setting, address, &error)),
            }
        }
    }
    if !free.is_empty() {
        report.ok("ports", format!("free: {}", free.join(", ")));
    }
}

/// The first process of this machine holds the port. Only its superuser can see that.
fn is_handed_over(address: SocketAddr, error: &stdio::Error) -> bool {
    const MANAGER: u32 = 1;
    error.kind() == stdio::ErrorKind::AddrInUse
        && port_holder::of(address).is_some_and(|holder| holder.pid == MANAGER)
}
