//! One long call of many requests and answers, and how it may end: with a refusal, which is final, or by being lost, after which
//! the same call may go on elsewhere. Not here: what it takes to go on (`verbs::watch`, `verbs::lease`).

use crate::wire::{self, Answers, CallError, Requests, Status, UNAVAILABLE};
use prost::Message;
use std::pin::Pin;

/// A member's own trouble. It is the connection's as well, since HTTP/2 libraries report a broken stream so.
const INTERNAL: i32 = 13;

/// Why a call is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The connection, the member or its leader is gone.
    Lost(String),
    /// The server does not want this call.
    Refused(Status),
}

impl From<CallError> for Ended {
    fn from(error: CallError) -> Self {
        match error {
            CallError::Status(status) if [UNAVAILABLE, INTERNAL].contains(&status.code) => {
                Ended::Lost(status.message)
            }
            CallError::Status(status) => Ended::Refused(status),
            CallError::Broken { why, .. } => Ended::Lost(why),
        }
    }
}

/// An open call. Dropping it cancels it.
pub struct Session {
    requests: Requests,
    answers: Answers,
    silence: Pin<Box<dyn Future<Output = String> + Send>>,
    pub endpoint: String,
}

impl Session {
    /// `silence` ends with the reason when the member should be given up.
    pub fn new(
        (requests, answers): (Requests, Answers),
        silence: impl Future<Output = String> + Send + 'static,
        endpoint: String,
    ) -> Session {
        Session { requests, answers, silence: Box::pin(silence), endpoint }
    }

    pub async fn send(&mut self, request: &impl Message) -> Result<(), Ended> {
        tokio::select! {
            sent = self.requests.send(wire::frame(request)) => Ok(sent?),
            why = &mut self.silence => Err(Ended::Lost(why)),
        }
    }

    /// The next answer. A future that is dropped before its end loses none.
    pub async fn next<A: Message + Default>(&mut self) -> Result<A, Ended> {
        let answer = tokio::select! {
            answer = self.answers.next() => answer?,
            why = &mut self.silence => return Err(Ended::Lost(why)),
        };
        let Some(answer) = answer else { return Err(Ended::Lost("the member ended the call".into())) };
        A::decode(answer).map_err(|error| Ended::Lost(format!("an answer cannot be read: {error}")))
    }
}
