//! Watches, decided purely: who gets which event of which revision, in what order, and what happens to those who cannot keep up.
//!
//! ```text
//! apply ──events──► Hub ──one queue per stream──► Responses ──frames──► the edge
//!                   │ ▲
//!        what to read │ what was read            (history of the store, read by somebody else)
//! ```
//!
//! [`Hub`] has one owner and holds all watchers. A watcher is *synced* when everything up to the hub's revision was queued for it; it
//! then gets events as they are told. Otherwise it belongs to a *cohort*, the watchers of one stream that are equally far behind, and is
//! caught up from recent history in memory or from the store. Both happen on the owner's thread, revision after revision, so the step from
//! one to the other leaves neither a gap nor a duplicate. [`Responses`] is the other end of a stream's queue; it makes the bytes.
//!
//! Not here: threads, clocks, the store (history is asked for and handed in), the wire beyond the bytes of a response, permissions.

mod events;
mod gauges;
mod hub;
mod queue;
mod ranges;
mod responses;
mod ring;
mod tree;

pub use events::{Previous, RevisionEvents};
pub use gauges::Gauges;
pub use hub::{Census, Hub, HubConfig, ReadJob, Request, Slice, StoreNow, WatchedRange};
pub use queue::{Door, QueueLimits, StreamQueue, WatchClosed};
pub use responses::{Face, Responses};
