//! Lines of the start-up story that operators and other programs wait for, with the words they wait for. The lines in between (the
//! cluster version, publishing the member's name) are the node's and stand in `node::announce`.

use std::net::SocketAddr;

use tracing::info;

use crate::config::Settings;

pub const STARTING: &str = "starting cairnd";
pub const IDENTITY: &str = "identity";
pub const JOINING: &str = "the running cluster has a place for this member";
pub const ATTENDANCE: &str = "waiting for the first members";
pub const LATE: &str = "the cluster was founded without this member, which takes its place in it now";
pub const LISTENING_FOR_PEERS: &str = "listening for peers";
pub const LISTENING_FOR_CLIENTS: &str = "listening for client requests";
pub const LISTENING_FOR_METRICS: &str = "listening for metrics";
pub const INSECURE: &str =
    "serving client requests without TLS: anybody who reaches the port reads and writes";
/// Exactly these words: etcd's own tests and many scripts wait for them.
pub const READY: &str = "ready to serve client requests";
pub const REMOVED: &str = "this member was removed from its cluster and ends for good";
pub const EXPELLED: &str = "this member does not belong to the running cluster and ends";
pub const LEADS: &str = "this member leads the cluster";
pub const LEADS_NO_MORE: &str = "this member does not lead any more";
pub const NO_LEADER: &str = "no leader is known";
/// Followed by what changed.
pub const RELOADED: &str = "settings were read again";
pub const RELOAD_REFUSED: &str = "settings were read again and cannot be used: nothing changes";
pub const NO_PROGRESS: &str =
    "no progress: the service manager's watchdog is not fed any more, and ends this process";
pub const STOPPING: &str = "stopping";
pub const STOPPED: &str = "stopped";

pub fn starting(settings: &Settings, files: &[std::path::PathBuf]) {
    info!(
        version = env!("CARGO_PKG_VERSION"),
        etcd_version = types::limits::ETCD_VERSION,
        pid = std::process::id(),
        name = settings.membership.name.value.as_str(),
        data_dir = %settings.storage.data_dir.display(),
        config_files = ?files,
        "{STARTING}"
    );
}

pub fn listening(words: &str, addresses: &[SocketAddr]) {
    for address in addresses {
        info!(address = %address, "{words}");
    }
}

#[cfg(test)]
mod tests {
    /// Change one of these and somebody's readiness probe waits for ever.
    #[test]
    fn the_words_that_others_wait_for_stay() {
        assert_eq!(super::READY, "ready to serve client requests");
        assert_eq!(super::LISTENING_FOR_PEERS, "listening for peers");
        assert_eq!(super::LISTENING_FOR_CLIENTS, "listening for client requests");
        assert_eq!(node::CLUSTER_VERSION_SETTING, "setting up initial cluster version");
        assert_eq!(node::CLUSTER_VERSION_SET, "set initial cluster version");
        assert_eq!(node::PUBLISHED, "published name and client URLs to the cluster");
    }
}
