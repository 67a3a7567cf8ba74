//! One keep-alive stream: renewals out, answers in, in order.

use crate::bench::fields::{Messages, Value, field};
use crate::bench::run::{Plan, describe};
use crate::bench::watch::streams::batches;
use crate::failure::Result;
use crate::wire::{Answers, Connection, Requests, frame};
use api::etcdserverpb::LeaseKeepAliveRequest;
use std::collections::VecDeque;

const KEEP_ALIVE_PATH: &str = "/etcdserverpb.Lease/LeaseKeepAlive";

/// What an answer says: the lease and the seconds it lives from now on; zero: there is no such lease.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Renewed {
    pub id: i64,
    pub ttl: i64,
}

impl Renewed {
    /// `None`: not a LeaseKeepAliveResponse.
    pub fn read(mut answer: &[u8]) -> Option<Renewed> {
        let mut renewed = Renewed::default();
        while !answer.is_empty() {
            match field(&mut answer)? {
                (2, Value::Number(id)) => renewed.id = id as i64,
                (3, Value::Number(ttl)) => renewed.ttl = ttl as i64,
                _ => {}
            }
        }
        Some(renewed)
    }
}

/// The sending half.
pub struct Renewals(Requests);

/// The receiving half.
pub struct Heard {
    answers: Answers,
    messages: Messages,
    ready: VecDeque<Renewed>,
}

/// Opens a stream.
pub async fn open(plan: &Plan, connection: &Connection) -> Result<(Renewals, Heard), String> {
    let head = plan.head(connection, KEEP_ALIVE_PATH).map_err(|failure| failure.headline)?;
    let (requests, answers) = connection.bidi(&head).await.map_err(|error| describe(&error))?;
    Ok((Renewals(requests), Heard { answers, messages: Messages::default(), ready: VecDeque::new() }))
}

impl Renewals {
    /// Asks for the renewal of leases, in this order.
    pub async fn send(&mut self, ids: impl Iterator<Item = i64>) -> Result<(), String> {
        for batch in batches(ids.map(|id| frame(&LeaseKeepAliveRequest { id }))) {
            self.0.send(batch).await.map_err(|error| describe(&error))?;
        }
        Ok(())
    }
}

impl Heard {
    /// The next answer. A future that is dropped before its end loses nothing.
    pub async fn next(&mut self) -> Result<Renewed, String> {
        loop {
            if let Some(renewed) = self.ready.pop_front() {
                return Ok(renewed);
            }
            let chunk = self.answers.chunk().await.map_err(|error| describe(&error))?;
            let chunk = chunk.ok_or("the server ended a keep-alive stream")?;
            let mut garbage = false;
            let fed = self.messages.feed(&chunk, |message| match Renewed::read(message) {
                Some(renewed) => self.ready.push_back(renewed),
                None => garbage = true,
            });
            if fed.is_err() || garbage {
                return Err("a keep-alive answer cannot be read".into());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use api::etcdserverpb::{LeaseKeepAliveResponse, ResponseHeader};
    use prost::Message;

    #[test]
    fn an_answer_tells_lease_and_life() {
        let header = Some(ResponseHeader { revision: 5, ..Default::default() });
        let answer = LeaseKeepAliveResponse { header, id: i64::MAX - 3, ttl: 60 }.encode_to_vec();
        assert_eq!(Renewed::read(&answer), Some(Renewed { id: i64::MAX - 3, ttl: 60 }));
        assert_eq!(Renewed::read(&answer[..1]), None);
    }
}
