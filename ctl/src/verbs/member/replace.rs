//! member replace: add a learner, let it be started and catch up, promote it, remove the old member. One operation that may be stopped
//! anywhere: what to do next is read from the membership each time, so the same command goes on where the last one ended.
//!
//! The old member goes only when the new one votes, says so itself and reads with a quorum.

use super::quorum::{Count, NEW, Problem, Step, judge};
use super::view::{Seen, View, client_endpoints};
use super::{peer_urls, plan};
use crate::cli;
use crate::client::{Client, MEMBER_ADD, MEMBER_PROMOTE, MEMBER_REMOVE, MOVE_LEADER, RANGE};
use crate::failure::{Details, Exit, Failure, Result};
use crate::output::{Printer, complain, json, member_settings, tell};
use crate::settings::{Format, Settings};
use crate::units::{format_duration, parse_duration, parse_u64_hex};
use crate::verbs::show;
use crate::wire::endpoint::Endpoint;
use api::error::EtcdError;
use api::etcdserverpb::{
    Member, MemberAddRequest, MemberAddResponse, MemberPromoteRequest, MemberPromoteResponse,
    MemberRemoveRequest, MemberRemoveResponse, MoveLeaderRequest, MoveLeaderResponse, RangeRequest,
    RangeResponse,
};
use clap::ArgMatches;
use std::time::{Duration, Instant};

/// Between two looks at the membership: short beside the start of a member, and no load.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// As long as an operator may need to start a member and a large store to be copied to it.
const TIMEOUT: Duration = Duration::from_secs(30 * 60);
/// The key that is read to see whether the new member reaches a quorum; that of `endpoint health`.
const PROBE_KEY: &str = "health";

/// What the membership asks for next.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Next {
    Add,
    /// The new member has to be started by whoever runs the machines.
    AwaitStart(u64),
    Promote(u64),
    /// Remove `old`, once `new` is fit.
    Remove {
        old: u64,
        new: u64,
    },
    Done(u64),
}

/// Who the two are.
struct Wish {
    old: String,
    name: String,
    urls: Vec<String>,
}

impl Wish {
    /// The new member is who has exactly the peer URLs.
    fn new_in<'a>(&self, view: &'a View) -> Result<Option<&'a Seen>> {
        let mut wanted: Vec<&str> = self.urls.iter().map(|url| url.trim()).collect();
        wanted.sort_unstable();
        for seen in &view.members {
            let mut has: Vec<&str> = seen.member.peer_ur_ls.iter().map(String::as_str).collect();
            has.sort_unstable();
            if has == wanted {
                return Ok(Some(seen));
            }
            if has.iter().any(|url| wanted.contains(url)) {
                return Err(Failure::arguments(format!(
                    "member {} has some of these peer URLs, and others too: {}",
                    seen.label(),
                    has.join(",")
                )));
            }
        }
        Ok(None)
    }

    /// Whether the old member is the one with the new peer URLs.
    fn is_meant_by_old(&self, new: &Seen) -> bool {
        let by_id = parse_u64_hex(&self.old) == Ok(new.member.id);
        by_id || (new.member.name == self.old && new.member.name != self.name)
    }

    fn next(&self, view: &View) -> Result<Next> {
        let new = self.new_in(view)?;
        let old = view.find(&self.old, new.map(|seen| seen.member.id))?.map(|seen| seen.member.id);
        match (old, new) {
            // Somebody else's URLs: taking that member for the new one would remove the old one for nothing.
            (_, Some(new))
                if new.is_started() && new.member.name != self.name && !self.is_meant_by_old(new) =>
            {
                Err(Failure::arguments(format!(
                    "member {} has these peer URLs already and is not called {:?}; if it is to take the place of {}: --name={}",
                    new.label(),
                    self.name,
                    self.old,
                    new.member.name
                )))
            }
            (None, Some(new)) if self.is_meant_by_old(new) => Err(Failure::arguments(format!(
                "member {} has these peer URLs already; the new member needs its own",
                new.label()
            ))),
            (None, Some(new)) if !new.member.is_learner && new.is_started() => Ok(Next::Done(new.member.id)),
            (None, _) => Err(plan::unknown(view, &self.old)),
            (Some(_), None) => match view.members.iter().find(|seen| seen.member.name == self.name) {
                // The settings list members by name: with two of one name the new member would not find itself.
                Some(other) => Err(Failure::arguments(format!(
                    "member {} has the name {:?} already; the new member needs its own",
                    other.label(),
                    self.name
                ))),
                None => Ok(Next::Add),
            },
            (Some(_), Some(new)) if !new.is_started() => Ok(Next::AwaitStart(new.member.id)),
            (Some(_), Some(new)) if new.member.is_learner => Ok(Next::Promote(new.member.id)),
            (Some(old), Some(new)) => Ok(Next::Remove { old, new: new.member.id }),
        }
    }

    /// What the new member has to be started with.
    fn settings(&self, id: u64, members: &[Member]) -> String {
        member_settings(&self.name, &self.urls.join(","), id, members)
    }
}

/// What is told, each thing once.
struct Narration {
    last: String,
    lines_on_stdout: bool,
}

impl Narration {
    fn say(&mut self, text: &str) {
        if self.last != text {
            tell(format_args!("replace: {text}"));
            text.clone_into(&mut self.last);
        }
    }

    fn settings(&mut self, text: &str) -> Result<()> {
        self.say("start the new member now, with an empty data directory and these settings (flags or variables, of cairnd or etcd)");
        if self.lines_on_stdout {
            show(text.as_bytes())
        } else {
            complain(text);
            Ok(())
        }
    }
}

pub async fn replace(settings: &Settings, matches: &ArgMatches) -> Result<()> {
    let arguments = cli::arguments(matches);
    let [old] = arguments.as_slice() else { return Err(Failure::arguments("member ID is not provided")) };
    let wish = Wish {
        old: String::from_utf8_lossy(old).into_owned(),
        name: cli::text(matches, "name").to_owned(),
        urls: peer_urls(matches)?,
    };
    if wish.name.is_empty() || wish.name.contains(['=', ',']) {
        let why = "the new member needs a name without = and comma: --name";
        return Err(Failure::arguments(why));
    }
    let timeout = match cli::text(matches, "timeout") {
        "" => TIMEOUT,
        text => parse_duration(text).map_err(Failure::usage)?,
    };
    if !matches!(settings.format, Format::Simple | Format::Json) {
        Printer::new(settings).refuse_all()?;
    }
    let until = Instant::now() + timeout;
    let mut narration = Narration { last: String::new(), lines_on_stdout: settings.format == Format::Simple };
    narration.say("may be stopped at any time; the same command goes on where it was");
    let mut endpoints = settings.endpoints.clone();
    let mut told_settings = false;
    let mut looked = false;
    loop {
        let view = match View::take(settings, endpoints.clone()).await {
            Ok(view) => view,
            // An election, or a member that just went. The first look fails at once: the endpoints may be wrong.
            Err(failure) if looked => {
                narration.say(&format!("waiting for the members to be listed: {}", failure.headline));
                if Instant::now() + LOOK_EVERY >= until {
                    return Err(failure);
                }
                tokio::time::sleep(LOOK_EVERY).await;
                continue;
            }
            Err(failure) => return Err(failure),
        };
        looked = true;
        let next = wish.next(&view)?;
        endpoints = others(settings, &view, &wish)?;
        let waits_for = match next {
            Next::Done(new) => return done(settings, &view, &wish, new),
            Next::Add => {
                let old = view.find(&wish.old, None)?.expect("looked up before").member.id;
                let steps = [Step::AddLearner, Step::Start, Step::Promote(NEW), Step::Remove(old)];
                if let Some(problem) = blocked(&view, None, &steps) {
                    return Err(problem);
                }
                match add(settings, &endpoints, &wish).await? {
                    Ok(answer) => {
                        let id = answer.member.map_or(0, |member| member.id);
                        narration.say(&format!("added learner {id:x}"));
                        narration.settings(&wish.settings(id, &answer.members))?;
                        told_settings = true;
                        continue;
                    }
                    Err(why) => format!("to be added: {why}"),
                }
            }
            Next::AwaitStart(new) => {
                if !told_settings {
                    let members: Vec<Member> = view.members.iter().map(|seen| seen.member.clone()).collect();
                    narration.settings(&wish.settings(new, &members))?;
                    told_settings = true;
                }
                format!("learner {new:x} to be started")
            }
            Next::Promote(new) => {
                match advance(settings, &endpoints, &view, new, Step::Promote(NEW)).await? {
                    Ok(()) => {
                        narration.say(&format!("promoted {new:x}: it votes"));
                        continue;
                    }
                    Err(why) => why,
                }
            }
            Next::Remove { old, new } => match fit(settings, &view, new).await {
                Err(why) => format!("new member {new:x} to be fit before {old:x} goes: {why}"),
                Ok(()) => {
                    hand_over(settings, &view, old, new).await;
                    match advance(settings, &endpoints, &view, new, Step::Remove(old)).await? {
                        Ok(()) => {
                            narration.say(&format!("removed {old:x}"));
                            return done(settings, &view, &wish, new);
                        }
                        Err(why) => why,
                    }
                }
            },
        };
        narration.say(&format!("waiting for {waits_for}"));
        if Instant::now() + LOOK_EVERY >= until {
            return Err(unfinished(timeout, &waits_for));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Who is asked: the members that stay first, since the old one will be gone, then the endpoints that were given.
fn others(settings: &Settings, view: &View, wish: &Wish) -> Result<Vec<Endpoint>> {
    let new = wish.new_in(view)?.map(|seen| seen.member.id);
    let old = view.find(&wish.old, new)?.map(|seen| seen.member.id);
    let stay = view
        .members
        .iter()
        .filter(|seen| Some(seen.member.id) != old && seen.is_up() && !seen.member.is_learner);
    let mut endpoints: Vec<Endpoint> =
        stay.flat_map(|seen| client_endpoints(&seen.member.client_ur_ls)).collect();
    endpoints.extend(settings.endpoints.iter().cloned());
    Ok(endpoints)
}

/// The first problem that these steps have.
fn blocked(view: &View, new: Option<u64>, steps: &[Step]) -> Option<Failure> {
    let numbers = view.numbers(new);
    let outcomes = judge(&numbers, steps);
    let (outcome, problem): (_, Problem) =
        outcomes.iter().find_map(|outcome| Some((outcome, outcome.problem?)))?;
    Some(plan::refusal(view, Count::of(&numbers), outcome, problem))
}

/// Whether another look later can help against a refusal.
fn passes(failure: &Failure) -> bool {
    let passing = [
        EtcdError::Unhealthy,
        EtcdError::LearnerNotReady,
        // The answer of an earlier try was lost, and the change is in the membership; or somebody else who runs this command was quicker.
        EtcdError::PeerUrlExist,
        EtcdError::MemberExist,
        EtcdError::MemberNotLearner,
        EtcdError::MemberNotFound,
        EtcdError::NoLeader,
        EtcdError::LeaderChanged,
        // Nobody knows whether the change was made: the next look shows it.
        EtcdError::Timeout,
        EtcdError::TimeoutDueToLeaderFail,
        EtcdError::TimeoutDueToConnectionLost,
        EtcdError::Stopped,
    ];
    let is_lost =
        failure.headline.starts_with("[ANSWER_LOST]") || failure.headline == "context deadline exceeded";
    is_lost || passing.iter().any(|error| error.text() == failure.headline)
}

/// A change that can be tried again later gives the reason; another refusal is final.
fn outcome<T>(answer: Result<T>) -> Result<Result<T, String>> {
    match answer {
        Ok(answer) => Ok(Ok(answer)),
        Err(failure) if passes(&failure) => Ok(Err(failure.headline)),
        Err(failure) => Err(failure),
    }
}

async fn add(
    settings: &Settings,
    endpoints: &[Endpoint],
    wish: &Wish,
) -> Result<Result<MemberAddResponse, String>> {
    let request = MemberAddRequest { peer_ur_ls: wish.urls.clone(), is_learner: true };
    outcome(Client::over(settings, endpoints.to_vec(), false)?.call(&MEMBER_ADD, &request).await)
}

/// Promotes the new member or removes the old one, unless the numbers of this moment speak against it.
async fn advance(
    settings: &Settings,
    endpoints: &[Endpoint],
    view: &View,
    new: u64,
    step: Step,
) -> Result<Result<(), String>> {
    if let Some(failure) = blocked(view, Some(new), &[step]) {
        let cause = failure.details.map_or(String::new(), |details| details.cause);
        return Ok(Err(format!("the quorum ({}; {cause})", failure.headline)));
    }
    let mut client = Client::over(settings, endpoints.to_vec(), false)?;
    match step {
        Step::Remove(id) => {
            let answer: Result<MemberRemoveResponse> =
                client.call(&MEMBER_REMOVE, &MemberRemoveRequest { id }).await;
            Ok(outcome(answer)?.map(drop).map_err(|why| format!("{id:x} to be removed: {why}")))
        }
        _ => {
            let answer: Result<MemberPromoteResponse> =
                client.call(&MEMBER_PROMOTE, &MemberPromoteRequest { id: new }).await;
            let leader = view.members.iter().find(|seen| seen.leads());
            let position = |seen: Option<&Seen>| {
                seen.and_then(|seen| seen.status.as_ref().ok()).map_or(0, |status| status.raft_applied_index)
            };
            let own = view.members.iter().find(|seen| seen.member.id == new);
            let why = |why| format!("{new:x} to catch up ({} of {}): {why}", position(own), position(leader));
            Ok(outcome(answer)?.map(drop).map_err(why))
        }
    }
}

/// Whether the new member says itself that it votes, and reads with a quorum.
async fn fit(settings: &Settings, view: &View, new: u64) -> Result<(), String> {
    let seen = view.members.iter().find(|seen| seen.member.id == new).expect("it is a member");
    let status = seen.status.as_ref().map_err(Clone::clone)?;
    if status.is_learner {
        return Err("it does not know yet that it votes".into());
    }
    if !status.errors.is_empty() {
        return Err(status.errors.join(", "));
    }
    let endpoints = client_endpoints(&seen.member.client_ur_ls);
    let mut client = Client::over(settings, endpoints, false).map_err(|failure| failure.headline)?;
    let request = RangeRequest { key: PROBE_KEY.into(), ..Default::default() };
    match client.call::<RangeResponse>(&RANGE, &request).await {
        Ok(_) => Ok(()),
        Err(failure) if failure.headline == EtcdError::PermissionDenied.text() => Ok(()),
        Err(failure) => Err(failure.headline),
    }
}

/// A leader that goes hands over first, which spares the cluster an election. When that fails, the election is had.
async fn hand_over(settings: &Settings, view: &View, old: u64, new: u64) {
    let Some(leader) = view.members.iter().find(|seen| seen.member.id == old && seen.leads()) else { return };
    let Ok(mut client) = Client::over(settings, client_endpoints(&leader.member.client_ur_ls), false) else {
        return;
    };
    let _: Result<MoveLeaderResponse> =
        client.call(&MOVE_LEADER, &MoveLeaderRequest { target_id: new }).await;
}

fn done(settings: &Settings, view: &View, wish: &Wish, new: u64) -> Result<()> {
    if settings.format == Format::Json {
        let mut out = String::new();
        json::object(&mut out, |o| {
            o.text("cluster_id", &format!("{:x}", view.cluster));
            o.text("old", &wish.old);
            o.text("new", &format!("{new:x}"));
            o.raw("done", true);
        });
        out.push('\n');
        return show(out.as_bytes());
    }
    show(format!("Member {} replaced by {new:x} in cluster {:x}\n", wish.old, view.cluster).as_bytes())
}

fn unfinished(timeout: Duration, waits_for: &str) -> Failure {
    let headline = "[REPLACE_UNFINISHED] the replacement is not finished; nothing is lost by that";
    Failure::new(Exit::Error, headline).with(Details {
        cause: format!("it was not done within {} (--timeout)", format_duration(timeout)),
        evidence: vec![format!("waited for {waits_for}")],
        remedy: vec!["see to that, then run the same command again: it goes on from here".into()],
        never: "do not remove the old member by hand before the new one votes".into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use api::etcdserverpb::StatusResponse;

    fn seen(id: u64, name: &str, is_learner: bool) -> Seen {
        let peer_ur_ls = vec![format!("http://h{id}:1")];
        let member = Member { id, name: name.into(), peer_ur_ls, client_ur_ls: vec![], is_learner };
        Seen { member, status: Ok(StatusResponse { leader: 1, ..Default::default() }) }
    }

    fn next(old: &str, extra: Option<Seen>, without_old: bool) -> Result<Next> {
        let mut members = vec![seen(1, "a", false), seen(2, "b", false), seen(3, "c", false)];
        if without_old {
            members.pop();
        }
        members.extend(extra);
        let wish = Wish { old: old.into(), name: "d".into(), urls: vec!["http://h4:1".into()] };
        wish.next(&View { cluster: 7, members })
    }

    #[test]
    fn every_membership_has_its_next_step_whatever_was_interrupted() {
        for old in ["3", "c"] {
            assert_eq!(next(old, None, false), Ok(Next::Add));
            assert_eq!(next(old, Some(seen(4, "", true)), false), Ok(Next::AwaitStart(4)));
            assert_eq!(next(old, Some(seen(4, "d", true)), false), Ok(Next::Promote(4)));
            assert_eq!(next(old, Some(seen(4, "d", false)), false), Ok(Next::Remove { old: 3, new: 4 }));
            assert_eq!(next(old, Some(seen(4, "d", false)), true), Ok(Next::Done(4)));
        }
    }

    #[test]
    fn a_voter_that_never_started_replaces_nobody() {
        assert_eq!(next("3", Some(seen(4, "", false)), false), Ok(Next::AwaitStart(4)));
        assert!(next("3", Some(seen(4, "", false)), true).is_err());
    }

    #[test]
    fn an_old_member_that_is_not_there_is_an_error_unless_the_new_one_votes() {
        assert!(next("9", None, false).unwrap_err().headline.starts_with("[MEMBER_UNKNOWN]"));
        assert!(next("9", Some(seen(4, "d", true)), false).is_err());
    }

    #[test]
    fn a_name_is_not_given_twice() {
        let members = vec![seen(1, "a", false), seen(2, "b", false)];
        let wish = Wish { old: "a".into(), name: "a".into(), urls: vec!["http://h4:1".into()] };
        assert!(wish.next(&View { cluster: 7, members }).unwrap_err().headline.contains("needs its own"));
    }

    /// A slip in --peer-urls names a member that is there already: nothing may be removed in favour of it, and nothing was replaced.
    #[test]
    fn a_member_of_another_name_is_not_taken_for_the_new_one() {
        for (old, with) in [("3", seen(4, "e", false)), ("3", seen(4, "e", true)), ("9", seen(4, "e", false))]
        {
            let refused = next(old, Some(with), false).unwrap_err();
            assert!(refused.headline.contains("is not called \"d\""), "{old}: {}", refused.headline);
        }
    }

    #[test]
    fn a_change_whose_outcome_is_unknown_is_looked_at_again() {
        for error in [
            EtcdError::Timeout,
            EtcdError::TimeoutDueToLeaderFail,
            EtcdError::LearnerNotReady,
            // Within one second, in which the id is the same; later it is the URL that exists.
            EtcdError::MemberExist,
            EtcdError::PeerUrlExist,
        ] {
            assert!(passes(&Failure::new(Exit::Error, error.text())), "{error:?}");
        }
        for error in
            [EtcdError::MemberNotEnoughStarted, EtcdError::TooManyLearners, EtcdError::PermissionDenied]
        {
            assert!(!passes(&Failure::new(Exit::Error, error.text())), "{error:?}");
        }
    }

    #[test]
    fn a_member_is_not_replaced_by_itself() {
        let members = vec![seen(1, "a", false), seen(2, "b", false)];
        let view = View { cluster: 7, members };
        for (old, name) in [("1", "n"), ("1", "a"), ("a", "n")] {
            let wish = Wish { old: old.into(), name: name.into(), urls: vec!["http://h1:1".into()] };
            assert!(wish.next(&view).is_err(), "{old} {name}");
        }
    }
}
