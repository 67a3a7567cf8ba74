//! The discovery service: members of clusters that do not exist yet find each other here, through etcd's v2 keys as 3.4 and 3.5 members ask
//! for them, and `/new`, which makes a token. Off unless `discovery-service` is set: whoever reaches the client port and knows a token may
//! register, without logging in.
//!
//! What is registered lies in the replicated key space in the layout of v3 discovery, `/_etcd/registry/<token>/_config/size` and
//! `/_etcd/registry/<token>/members/<id>`, so that v2 clients and v3 clients (which use the ordinary KV API) share one token. A v2 index is
//! the revision that created a key: it grows, survives restarts and is the same on every member. Any member serves.
//!
//! Unlike etcd's, a wait is answered from what is registered now and needs no history; a token is frozen once it is complete; what could
//! only fail later is refused at registration, in words; a registration that is repeated by a member that was killed while it waited is
//! acknowledged again; and a registration is held, not failed, while there is no leader.
//!
//! [`path`], [`form`], [`rules`] and [`answer`] are pure; [`service`] and [`wait`] carry out, [`sweep`] removes what outlived its token.
//! Not here: the rest of etcd's v2 API, and the clients, which are the daemon's.

mod answer;
mod form;
mod path;
mod rules;
mod service;
mod sweep;
mod token;
mod wait;

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

pub(crate) use path::{Place, claim};
pub(crate) use service::serve;
pub(crate) use sweep::sweep;
pub(crate) use wait::Waiters;

/// Members that one token may ask for. etcd advises against more than seven; anything far beyond is a mistake or an attack.
const SIZE_MAX: u64 = 31;

/// Members of a token whose `/new` did not say.
const SIZE_DEFAULT: u64 = 3;

/// What one member registers: its name once per peer URL. A handful of long URLs fit.
const VALUE_BYTES_MAX: usize = 2 * 1024;

/// Body of a request: the largest value with every byte escaped, and the other fields of the form.
const FORM_BYTES_MAX: usize = 8 * 1024;

/// For the body of a request to arrive. The head had five minutes, because it is also the time between two requests; this is data that
/// the client has already promised.
const FORM_PATIENCE: Duration = Duration::from_secs(10);

/// Entries of one token that are looked at. Only v3 clients, which write without asking, can make more than [`SIZE_MAX`].
const ENTRIES_MAX: usize = 256;

/// Waits at one token at a time: members that lost their connections and ask again before the old one is noticed, many times over.
const WAITERS_PER_TOKEN_MAX: usize = 256;

/// Waits in all on one member: each holds a connection and a watch.
const WAITERS_MAX: usize = 4096;

/// A wait is ended, and asked for again by the client, before proxies end it at a minute.
const WAIT_MAX: Duration = Duration::from_secs(50);

/// For a read that needs a quorum; clients give up after five seconds and come again.
const READ_PATIENCE: Duration = Duration::from_secs(4);

/// How long a registration is held while there is no leader before it is sent to another member: etcd's client gives a registration five
/// seconds, redirects included, and ends with an error afterwards.
const WRITE_PATIENCE: Duration = Duration::from_secs(4);

/// How long it is held when there is nobody to send it to.
const WRITE_PATIENCE_ALONE: Duration = Duration::from_secs(30);

/// Pause between attempts to read or write while there is no leader.
const AGAIN: Duration = Duration::from_millis(100);

/// Attempts of one registration that lost against another one of the same token. Each loss is somebody else's registration, of which a
/// token takes no more than [`SIZE_MAX`].
const ATTEMPTS_MAX: usize = 64;

/// Settings of the service.
#[derive(Clone, Debug)]
pub struct DiscoveryConfig {
    /// How long a token lives from when it was made, complete or not (`discovery-service-lifetime`).
    pub lifetime: Duration,
    /// Tokens at a time (`discovery-service-tokens`).
    pub tokens_max: usize,
    /// A registration that is there already with the same value is acknowledged while its token is incomplete
    /// (`discovery-service-resume`).
    pub resume: bool,
    /// Between two looks for registrations without a token.
    pub sweep_every: Duration,
}

impl Default for DiscoveryConfig {
    fn default() -> Self {
        DiscoveryConfig {
            lifetime: Duration::from_secs(168 * 3600),
            tokens_max: 1000,
            resume: true,
            sweep_every: Duration::from_secs(600),
        }
    }
}

/// What all runtimes share.
pub(crate) struct Discovery {
    pub config: DiscoveryConfig,
    waiters: Waiters,
    /// Tokens are made one after another, so that their number is known when one is made.
    making: tokio::sync::Mutex<()>,
    /// Some runtime sweeps.
    swept: AtomicBool,
}

impl Discovery {
    pub fn new(config: DiscoveryConfig) -> Self {
        Discovery {
            config,
            waiters: Waiters::default(),
            making: tokio::sync::Mutex::default(),
            swept: AtomicBool::new(false),
        }
    }

    /// True for the one runtime that is to sweep.
    pub fn take_sweep(&self) -> bool {
        !self.swept.swap(true, Ordering::Relaxed)
    }
}
