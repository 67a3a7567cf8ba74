//! The peer port: accepts connections, within limits per address and in all, and routes requests.

pub(crate) mod hello;
mod info;
mod lease;
mod promote;
mod raft;
pub(crate) mod reply;
mod snapshot;

use std::{
    collections::HashMap,
    convert::Infallible,
    net::IpAddr,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use http::{Request, Response};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpStream};
use tracing::debug;

use crate::{
    config::{CONNECTIONS_MAX, CONNECTIONS_PER_ADDRESS_MAX, HEAD_BYTES_MAX},
    handler::Topic,
    link,
    wire::Shared,
};
use reply::ReplyBody;

/// Pause after a failed accept: the usual cause is a full table of descriptors, which takes a moment to empty.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Connections by address.
type Addresses = Arc<Mutex<HashMap<IpAddr, usize>>>;

/// Serves one listener until the transport stops.
pub(crate) async fn serve(shared: Arc<Shared>, listener: TcpListener) {
    let addresses = Addresses::default();
    loop {
        match listener.accept().await {
            Ok((stream, from)) => match Place::take(&shared, &addresses, from.ip()) {
                Some(place) => {
                    let shared_here = shared.clone();
                    shared.spawn(async move {
                        connection(&shared_here, stream, from).await;
                        drop(place);
                    });
                }
                None => {
                    shared.received_failure();
                    shared.report(
                        None,
                        Topic::Overflow,
                        format_args!("too many connections, refused one from {from}"),
                    );
                }
            },
            Err(error) => {
                shared.report(None, Topic::Connection, format_args!("accept on the peer port: {error}"));
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// One of the connections that may be open.
struct Place {
    shared: Arc<Shared>,
    addresses: Addresses,
    address: IpAddr,
}

impl Place {
    fn take(shared: &Arc<Shared>, addresses: &Addresses, address: IpAddr) -> Option<Place> {
        let mut by_address = addresses.lock();
        let here = by_address.entry(address).or_default();
        if *here >= CONNECTIONS_PER_ADDRESS_MAX
            || shared.connections.load(Ordering::Relaxed) >= CONNECTIONS_MAX
        {
            if *here == 0 {
                by_address.remove(&address);
            }
            return None;
        }
        *here += 1;
        shared.connections.fetch_add(1, Ordering::Relaxed);
        Some(Place { shared: shared.clone(), addresses: addresses.clone(), address })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.shared.connections.fetch_sub(1, Ordering::Relaxed);
        let mut by_address = self.addresses.lock();
        if let Some(here) = by_address.get_mut(&self.address) {
            *here -= 1;
            if *here == 0 {
                by_address.remove(&self.address);
            }
        }
    }
}

async fn connection(shared: &Arc<Shared>, stream: TcpStream, from: std::net::SocketAddr) {
    let io = match link::accepted(stream, shared.timeouts.write) {
        Ok(io) => io,
        Err(error) => return debug!(%from, %error, "accepted connection was gone"),
    };
    let service = service_fn(|request| {
        let shared = shared.clone();
        async move { Ok::<_, Infallible>(route(shared, request).await) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        // Also ends connections that are idle between requests, as etcd's read deadline does.
        .header_read_timeout(shared.timeouts.read)
        .max_buf_size(HEAD_BYTES_MAX)
        .title_case_headers(true)
        .serve_connection(TokioIo::new(io), service)
        .await;
    if let Err(error) = served {
        // Ends of streams come here too; only what was never HTTP is worth a report.
        if error.is_parse() {
            shared.received_failure();
            shared.report(None, Topic::Garbage, format_args!("connection from {from}: {error}"));
        } else {
            debug!(%from, %error, "peer connection ended");
        }
    }
}

async fn route(shared: Arc<Shared>, request: Request<Incoming>) -> Response<ReplyBody> {
    let path = request.uri().path();
    if let Some(stream) = path.strip_prefix("/raft/stream/") {
        let stream = stream.to_owned();
        return raft::stream(&shared, &request, &stream);
    }
    if let Some(id) = path.strip_prefix("/members/promote/") {
        let id = id.to_owned();
        return promote::promote(&shared, &request, &id).await;
    }
    match path {
        "/raft" => raft::message(&shared, request).await,
        "/raft/snapshot" => snapshot::receive(&shared, request).await,
        "/raft/probing" => info::probing(),
        "/members" => info::members(&shared, &request),
        "/version" => info::version(&shared, &request),
        "/members/hashkv" => info::hash_kv(&shared, request).await,
        hello::PATH => hello::answer(&shared, request).await,
        "/leases" => lease::keep_alive(&shared, request).await,
        "/leases/internal" => lease::internal(&shared, request).await,
        "/downgrade/enabled" => reply::not_implemented(),
        _ => reply::not_found(),
    }
}
