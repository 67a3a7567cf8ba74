//! grpc.health.v1 for the whole server: only the service name "" exists, and it follows the phase of the edge.

use std::{
    collections::HashMap,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use api::{
    error::EtcdError,
    health::{
        HealthCheckRequest, HealthCheckResponse, HealthListRequest, HealthListResponse,
        health_check_response::ServingStatus,
    },
};
use bytes::Bytes;
use futures_util::Stream;
use tokio_stream::wrappers::WatchStream;
use tonic::Status;

use super::wire;
use crate::{backend::Backend, body::Messages, edge::Edge, serving::Phase};

fn answer(phase: Phase) -> HealthCheckResponse {
    let status = if phase == Phase::Serving { ServingStatus::Serving } else { ServingStatus::NotServing };
    HealthCheckResponse { status: status.into() }
}

pub(super) async fn check<B: Backend>(
    edge: &Arc<Edge<B>>,
    request: HealthCheckRequest,
) -> Result<HealthCheckResponse, Status> {
    if !request.service.is_empty() {
        return Err(EtcdError::UnknownService.into());
    }
    Ok(answer(*edge.shared.phase.borrow()))
}

pub(super) async fn list<B: Backend>(
    edge: &Arc<Edge<B>>,
    _: HealthListRequest,
) -> Result<HealthListResponse, Status> {
    Ok(HealthListResponse { statuses: HashMap::from([(String::new(), answer(*edge.shared.phase.borrow()))]) })
}

/// Tells the status now and on each change. A service that does not exist may come to exist, so that stream stays open with
/// SERVICE_UNKNOWN, as the protocol demands. A draining server says so and ends the stream: it would outlive the drain otherwise.
pub(super) async fn watch<B: Backend>(
    edge: &Arc<Edge<B>>,
    request: HealthCheckRequest,
) -> Result<Box<dyn Messages>, Status> {
    let phases = WatchStream::new(edge.shared.phase.clone());
    Ok(Box::new(Watch { phases, known: request.service.is_empty(), last: None, draining: false }))
}

struct Watch {
    phases: WatchStream<Phase>,
    known: bool,
    last: Option<i32>,
    draining: bool,
}

impl Messages for Watch {
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Status>>> {
        loop {
            if self.draining {
                return Poll::Ready(Some(Err(EtcdError::Stopped.into())));
            }
            let phase = match ready!(Pin::new(&mut self.phases).poll_next(cx)) {
                Some(phase) => phase,
                None => return Poll::Ready(None),
            };
            self.draining = phase.is_draining();
            let response = if self.known {
                answer(phase)
            } else {
                HealthCheckResponse { status: ServingStatus::ServiceUnknown.into() }
            };
            if self.last != Some(response.status) {
                self.last = Some(response.status);
                return Poll::Ready(Some(wire::encode(&response)));
            }
        }
    }
}
