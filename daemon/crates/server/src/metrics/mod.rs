//! Counters of the edge under etcd's names. Each runtime writes its own set with relaxed atomics; a scrape adds them up.
//!
//! Not here: what the member itself counts, which comes as text from the backend.

mod http;
mod process;
mod rpc;
mod text;

pub(crate) use self::http::{HealthKind, HttpMetrics};
pub(crate) use process::descriptor_limit;
pub(crate) use rpc::{Registry, RequestType, RpcMetrics};

use crate::{backend::Backend, edge::Shared};

/// The whole answer of `/metrics`.
pub(crate) fn render<B: Backend>(shared: &Shared, backend: &B) -> String {
    shared.http.scraped();
    // A member's text and ours are some 150 KiB; growing there by doubling would copy it several times.
    let mut out = String::with_capacity(192 * 1024);
    out.push_str(&backend.metrics_text());
    if !out.is_empty() && !out.ends_with('\n') {
        out.push('\n');
    }
    shared.registry.render(&mut out, shared.config.metrics_extensive);
    shared.http.render(&mut out);
    process::render(&mut out);
    out
}
