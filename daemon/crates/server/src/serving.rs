//! Whether clients should come here: the one value behind grpc.health.v1 and the drain.

use tokio::{sync::watch, time::Instant};

/// The life of the edge. It only ever moves forward, except between the first two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Answers, but asks load balancers to look elsewhere: the member recovers.
    NotReady,
    Serving,
    /// No new connections; calls in flight are answered until the deadline.
    Draining {
        until: Instant,
    },
}

impl Phase {
    pub fn is_draining(self) -> bool {
        matches!(self, Phase::Draining { .. })
    }
}

pub(crate) type PhaseSender = watch::Sender<Phase>;
pub(crate) type PhaseReceiver = watch::Receiver<Phase>;

/// A phase to start with and its observers.
pub(crate) fn phases() -> (PhaseSender, PhaseReceiver) {
    watch::channel(Phase::NotReady)
}
