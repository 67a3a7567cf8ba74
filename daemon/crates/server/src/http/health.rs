//! `/health`, `/livez` and `/readyz`. Reads behind them are bounded: a probe must get an answer while the cluster has none.

use std::sync::Arc;

use api::{
    error::EtcdError,
    etcdserverpb::{AlarmType, RangeRequest},
};
use bytes::Bytes;
use http::{Response, StatusCode, header};
use serde::Serialize;

use super::{TEXT, error, text};
use crate::{backend::Backend, body::Body, edge::Edge, metrics::HealthKind};

/// In the order in which they run and are listed.
const LIVEZ: &[Check] = &[Check::SerializableRead];
const READYZ: &[Check] =
    &[Check::DataCorruption, Check::SerializableRead, Check::LinearizableRead, Check::NonLearner];

/// A key that is hardly ever there: the check is that a read works, not what it finds.
const PROBE_KEY: &[u8] = &[0];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Check {
    DataCorruption,
    SerializableRead,
    LinearizableRead,
    NonLearner,
}

impl Check {
    fn name(self) -> &'static str {
        match self {
            Check::DataCorruption => "data_corruption",
            Check::SerializableRead => "serializable_read",
            Check::LinearizableRead => "linearizable_read",
            Check::NonLearner => "non_learner",
        }
    }

    async fn run<B: Backend>(self, edge: &Arc<Edge<B>>) -> Result<(), String> {
        match self {
            Check::DataCorruption => {
                let corrupt = AlarmType::Corrupt as i32;
                if edge.backend.alarms().iter().any(|alarm| alarm.alarm == corrupt) {
                    return Err("alarm activated: CORRUPT".to_owned());
                }
                Ok(())
            }
            Check::SerializableRead => read(edge, false).await,
            // Its round would end in a time-out.
            Check::LinearizableRead if edge.backend.node_status().is_joining => Err(JOINING.to_owned()),
            Check::LinearizableRead => read(edge, true).await,
            Check::NonLearner => {
                if edge.backend.node_status().is_learner {
                    return Err("not supported for learner".to_owned());
                }
                Ok(())
            }
        }
    }
}

/// Which checks a path asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Checks {
    All(HealthKind),
    One(HealthKind, Check),
}

impl Checks {
    /// `/livez/<check>` and `/readyz/<check>`; None: no such path.
    pub fn one(path: &str) -> Option<Checks> {
        let (kind, name) = path.strip_prefix('/')?.split_once('/')?;
        let kind = match kind {
            "livez" => HealthKind::Livez,
            "readyz" => HealthKind::Readyz,
            _ => return None,
        };
        let check = of(kind).iter().copied().find(|check| check.name() == name)?;
        Some(Checks::One(kind, check))
    }
}

fn of(kind: HealthKind) -> &'static [Check] {
    match kind {
        HealthKind::Livez => LIVEZ,
        HealthKind::Readyz => READYZ,
    }
}

/// Runs the checks and lists them when asked to, or when one failed.
pub(super) async fn checks<B: Backend>(edge: &Arc<Edge<B>>, checks: Checks, query: &str) -> Response<Body> {
    let query = Query::parse(query);
    let (kind, wanted) = match &checks {
        Checks::All(kind) => (*kind, of(*kind)),
        Checks::One(kind, check) => (*kind, std::slice::from_ref(check)),
    };
    let is_single = matches!(checks, Checks::One(..));
    let mut details = String::new();
    let mut passed = true;
    for check in wanted {
        let name = check.name();
        if !is_single && query.excludes(name) {
            continue;
        }
        let outcome = check.run(edge).await;
        edge.shared.http.check(kind, name, outcome.is_ok());
        match outcome {
            Ok(()) => details.push_str(&format!("[+]{name} ok\n")),
            Err(reason) => {
                passed = false;
                details.push_str(&format!("[-]{name} failed: {reason}\n"));
            }
        }
    }
    if !passed {
        return error(StatusCode::SERVICE_UNAVAILABLE, details);
    }
    if query.verbose {
        details.push_str("ok\n");
        return text(details.into());
    }
    text(Bytes::from_static(b"ok\n"))
}

#[derive(Serialize)]
struct Health<'a> {
    health: &'a str,
    reason: &'a str,
}

/// Alarms, then leader, then a read: the first that is wrong is the reason.
pub(super) async fn health<B: Backend>(edge: &Arc<Edge<B>>, query: &str) -> Response<Body> {
    let query = Query::parse(query);
    let reason = unhealthy(edge, &query).await;
    edge.shared.http.health(reason.is_none());
    let body = Health {
        health: if reason.is_none() { "true" } else { "false" },
        reason: reason.as_deref().unwrap_or_default(),
    };
    let body = serde_json::to_string(&body).expect("two strings have a JSON form");
    match reason {
        Some(_) => error(StatusCode::SERVICE_UNAVAILABLE, body),
        None => {
            let mut response = Response::new(Body::Whole(body.into()));
            response.headers_mut().insert(header::CONTENT_TYPE, TEXT);
            response
        }
    }
}

async fn unhealthy<B: Backend>(edge: &Arc<Edge<B>>, query: &Query) -> Option<String> {
    for alarm in edge.backend.alarms() {
        let name = match AlarmType::try_from(alarm.alarm) {
            Ok(AlarmType::Nospace) => "NOSPACE",
            Ok(AlarmType::Corrupt) => "CORRUPT",
            _ => "UNKNOWN",
        };
        if !query.excludes(name) {
            return Some(format!("ALARM {name}"));
        }
    }
    let status = edge.backend.node_status();
    if status.is_joining {
        return Some(JOINING.to_owned());
    }
    if !query.serializable && status.leader.is_none() {
        return Some("RAFT NO LEADER".to_owned());
    }
    read(edge, !query.serializable).await.err().map(|reason| format!("RANGE ERROR:{reason}"))
}

/// What a member that joins says of itself: it is alive, and has nothing to read yet.
const JOINING: &str = "joining: the cluster's log has not named this member yet";

async fn read<B: Backend>(edge: &Arc<Edge<B>>, linearizable: bool) -> Result<(), String> {
    let request = RangeRequest {
        key: Bytes::from_static(PROBE_KEY),
        limit: 1,
        keys_only: true,
        serializable: !linearizable,
        ..Default::default()
    };
    let work = async {
        if linearizable {
            edge.backend.read_barrier().await?;
        }
        match edge.backend.range_local(&request) {
            // A member that has not found its cluster yet shows nobody what it has. It is alive all the same: whoever started it again
            // for that would keep it from ever finding it.
            Err(EtcdError::NoLeader) if !linearizable => Ok(()),
            read => read.map(|_| ()),
        }
    };
    match tokio::time::timeout(edge.shared.config.health_timeout, work).await {
        Ok(outcome) => outcome.map_err(|error: EtcdError| error.text().to_owned()),
        Err(_) => Err(EtcdError::Timeout.text().to_owned()),
    }
}

/// What a probe may say. Names that are excluded and do not exist do no harm.
#[derive(Debug, Default, PartialEq, Eq)]
struct Query {
    exclude: Vec<String>,
    verbose: bool,
    serializable: bool,
}

impl Query {
    fn parse(query: &str) -> Query {
        let mut parsed = Query::default();
        for (name, value) in url::form_urlencoded::parse(query.as_bytes()) {
            match name.as_ref() {
                "exclude" => parsed.exclude.push(value.into_owned()),
                "verbose" => parsed.verbose = true,
                "serializable" => parsed.serializable = value == "true",
                _ => {}
            }
        }
        parsed
    }

    fn excludes(&self, name: &str) -> bool {
        self.exclude.iter().any(|excluded| excluded == name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_of_single_checks() {
        assert_eq!(
            Checks::one("/livez/serializable_read"),
            Some(Checks::One(HealthKind::Livez, Check::SerializableRead))
        );
        assert_eq!(
            Checks::one("/readyz/non_learner"),
            Some(Checks::One(HealthKind::Readyz, Check::NonLearner))
        );
        for path in
            ["/livez/", "/livez/non_learner", "/readyz/nope", "/healthz/serializable_read", "/", "livez"]
        {
            assert_eq!(Checks::one(path), None, "{path}");
        }
    }

    #[test]
    fn queries() {
        let query = Query::parse("exclude=NOSPACE&exclude=a%2Db&verbose&serializable=true&other=1");
        assert_eq!(
            query,
            Query { exclude: vec!["NOSPACE".into(), "a-b".into()], verbose: true, serializable: true }
        );
        assert_eq!(Query::parse("serializable=false"), Query::default());
    }
}
