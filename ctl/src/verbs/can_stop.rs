//! can-stop: whether a member may be stopped now, for whoever reboots machines. The decision is pure; nothing is changed.
//!
//! The answer is strict: every other voter is up and in sync, nothing about the membership is under way, and what is left is a quorum, also
//! if a learner that is in sync gets its vote in this moment. Between the answer and the stop something else may fail, as always; only that
//! another host gets the same answer meanwhile is kept out, by a reservation.

use super::judge::IN_SYNC_ENTRIES;
use super::member::plan::names_of;
use super::member::quorum::Count;
use super::reservation::{self, Holder};
use super::show;
use super::survey::{self, Survey, patient};
use crate::cli;
use crate::failure::{Details, Exit, Failure, Result};
use crate::output::{Printer, Value};
use crate::settings::Settings;
use crate::units::parse_duration;
use crate::verbs::member::view::client_endpoints;
use clap::{ArgMatches, Command};
use std::time::Duration;
use tokio::task::JoinSet;

/// How long a read through one member may take: an election fits.
const READ_PATIENCE: Duration = Duration::from_secs(3);

/// A reservation has to outlive the time from the answer to the stop, and the cluster's shortest leases.
const RESERVED_MIN: Duration = Duration::from_secs(10);
/// Nobody should wait for longer for a host that asked and never came back.
const RESERVED_MAX: Duration = Duration::from_secs(24 * 3600);

pub fn command() -> Command {
    cli::verb(
        "can-stop",
        "Tells whether a member may be stopped now without losing the quorum",
        "cairnctl can-stop [member id or name] [flags]",
    )
    .after_help(
        "Without a name it is about the member at the one endpoint of --endpoints. Exits with 0: yes; 9: the quorum would be lost;\n\
         10: it would be kept, but something is under way or down, later; 75: another member has reserved its stop; 1 and 2: nobody knows.\n\
         Anything but 0 means: do not stop it. Hosts that may ask at the same time ask with --reserve, which writes the key cairn/can-stop.",
    )
    .args([
        cli::value("reserve", "Keep others from being told yes for this time, if the answer is yes").value_name("time"),
        cli::switch("release", "End the reservation of the member, when it is back"),
    ])
}

/// What is to become of the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wish {
    Know,
    /// For so many seconds.
    Reserve(i64),
    Release,
}

impl Wish {
    fn read(matches: &ArgMatches) -> Result<Wish> {
        let text = cli::text(matches, "reserve");
        match (text, cli::on(matches, "release")) {
            ("", false) => Ok(Wish::Know),
            ("", true) => Ok(Wish::Release),
            (_, true) => {
                Err(Failure::arguments("--reserve and --release cannot be set at the same time, choose one"))
            }
            (text, false) => {
                let bad = |why: &str| {
                    Failure::usage(format!("invalid argument {text:?} for \"--reserve\" flag: {why}"))
                };
                let time = parse_duration(text).map_err(|why| bad(&why))?;
                if time < RESERVED_MIN || time > RESERVED_MAX {
                    return Err(bad("expecting a time from 10s to 24h"));
                }
                Ok(Wish::Reserve(time.as_secs().cast_signed()))
            }
        }
    }
}

/// What the decision needs of a member.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Facts {
    id: u64,
    label: String,
    is_learner: bool,
    is_started: bool,
    /// Entries it has still to apply; `None`: it does not answer, or knows no leader.
    behind: Option<u64>,
}

impl Facts {
    fn in_sync(&self) -> bool {
        self.behind.is_some_and(|behind| behind <= IN_SYNC_ENTRIES)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Answer {
    Yes,
    /// Nobody could write any more.
    QuorumLost,
    /// Why it should be later.
    NotNow(Vec<String>),
    /// Another member may stop: who holds the reservation.
    Reserved(String),
}

/// The counts without the member: of the voters of now, and with the learners that may vote any moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Left {
    now: Count,
    soon: Count,
}

fn left(members: &[Facts], target: u64) -> Left {
    let up = |member: &&Facts| member.in_sync() && member.id != target;
    let voters = members.iter().filter(|member| !member.is_learner);
    let soon = members.iter().filter(|member| !member.is_learner || member.in_sync());
    let count =
        |of: Vec<&Facts>| Count { voters: of.len(), up: of.iter().filter(|member| up(member)).count() };
    Left { now: count(voters.collect()), soon: count(soon.collect()) }
}

fn decide(members: &[Facts], target: u64) -> Answer {
    let left = left(members, target);
    let is_learner = members.iter().any(|member| member.id == target && member.is_learner);
    // Without a quorum already nothing is lost by stopping a learner, but nothing is well either.
    if left.now.spare().is_none() || (!is_learner && left.soon.spare().is_none()) {
        return Answer::QuorumLost;
    }
    let mut why = Vec::new();
    for member in members.iter().filter(|member| member.id != target) {
        let kind = if member.is_learner { "learner" } else { "voter" };
        let label = &member.label;
        match member.behind {
            _ if !member.is_started => {
                why.push(format!("member {label} was added and has not started: a change is under way"))
            }
            None => why.push(format!("{kind} {label} is not up")),
            Some(behind) if behind > IN_SYNC_ENTRIES && member.is_learner => {
                why.push(format!("learner {label} is {behind} entries behind: a replacement is under way"));
            }
            Some(behind) if behind > IN_SYNC_ENTRIES => {
                why.push(format!("voter {label} is {behind} entries behind"))
            }
            Some(_) => {}
        }
    }
    if why.is_empty() { Answer::Yes } else { Answer::NotNow(why) }
}

fn facts(survey: &Survey) -> Vec<Facts> {
    let fact = |seen: &survey::Seen| Facts {
        id: seen.member.id,
        label: seen.label(),
        is_learner: seen.member.is_learner,
        is_started: seen.is_started(),
        behind: survey.behind(seen).filter(|_| seen.is_up()),
    };
    survey.members.iter().map(fact).collect()
}

/// The other voters through which nothing can be read. A member that others speak against, or that does not reach the leader any more, may
/// still say for a moment that all is well; a read that passes it has come from the leader's majority.
async fn unread(settings: &Settings, survey: &Survey, target: u64) -> Vec<String> {
    let settings = &patient(settings, READ_PATIENCE);
    let mut reads = JoinSet::new();
    for seen in survey.members.iter().filter(|seen| !seen.member.is_learner && seen.member.id != target) {
        let (settings, label) = (settings.clone(), seen.label());
        let endpoints = client_endpoints(&seen.member.client_ur_ls);
        reads.spawn(async move {
            let why = survey::read(&settings, endpoints).await.err()?;
            Some(format!("no linearizable read through voter {label}: {why}"))
        });
    }
    let mut silent: Vec<String> = reads.join_all().await.into_iter().flatten().collect();
    silent.sort();
    silent
}

pub async fn can_stop(settings: &Settings, matches: &ArgMatches) -> Result<()> {
    let arguments = cli::arguments(matches);
    let named = match arguments.as_slice() {
        [] => None,
        [name] => Some(String::from_utf8_lossy(name).into_owned()),
        _ => return Err(Failure::arguments("can-stop command accepts one member")),
    };
    if named.is_none() && settings.endpoints.len() != 1 {
        return Err(Failure::arguments("can-stop command needs a member when --endpoints names several"));
    }
    let wish = Wish::read(matches)?;
    let printer = Printer::new(settings);
    printer.page(&Value::Null, |_, _| String::new())?;
    let mut assessed = Assessment::make(settings, named.as_deref()).await?;
    let holder = assessed.holder.clone();
    if wish == Wish::Release {
        let released = reservation::release(settings, holder.member).await?;
        let data =
            Value::map([("member", format!("{:x}", holder.member).into()), ("released", released.into())]);
        let words = if released { "its reservation has ended" } else { "it had no reservation" };
        let label = &assessed.label;
        return show(&printer.page(&data, |_, _| format!("member {label}: {words}\n"))?);
    }
    let mut held = None;
    match wish {
        Wish::Reserve(ttl) if assessed.answer == Answer::Yes => {
            match reservation::take(settings, &holder, ttl).await? {
                Err(found) => assessed.answer = Answer::Reserved(found.words(settings).await),
                Ok(ours) => {
                    // Whoever held it before may have stopped a member since the first look.
                    let again = Assessment::make(settings, Some(&format!("{:x}", holder.member))).await;
                    let yes = again.as_ref().is_ok_and(|again| again.answer == Answer::Yes);
                    if yes {
                        held = Some(ours);
                    } else {
                        reservation::give_back(settings, ours).await;
                    }
                    assessed = again?;
                }
            }
        }
        Wish::Know if assessed.answer == Answer::Yes => {
            // Who may not read the key has not been told of it, and is not kept from asking.
            let found = reservation::look(settings).await.ok().flatten();
            if let Some(found) = found.filter(|found| !found.is_of(holder.member)) {
                assessed.answer = Answer::Reserved(found.words(settings).await);
            }
        }
        _ => {}
    }
    assessed.tell(printer, held.map(|held| held.ttl))
}

/// What is so at one moment.
struct Assessment {
    answer: Answer,
    left: Left,
    leads: bool,
    holder: Holder,
    label: String,
}

impl Assessment {
    async fn make(settings: &Settings, named: Option<&str>) -> Result<Assessment> {
        let survey = Survey::take(settings, false).await?;
        let target = match named {
            Some(name) => survey.find(name),
            None => {
                let who = survey.asked.first().and_then(|asked| asked.who.as_ref().ok());
                who.and_then(|(_, member)| survey.members.iter().find(|seen| seen.member.id == *member))
            }
        };
        let Some(target) = target else {
            let name = named.map_or_else(|| settings.endpoints[0].name.clone(), str::to_owned);
            let labels = survey.members.iter().map(survey::Seen::label);
            return Err(names_of(&name, labels));
        };
        let facts = facts(&survey);
        let mut answer = decide(&facts, target.member.id);
        // The members say that they are up, and still nothing can be read: the arithmetic misses something, so it is not trusted.
        if let (Answer::Yes, Err(why)) = (&answer, &survey.quorum) {
            answer = Answer::NotNow(vec![format!("no linearizable read: {why}")]);
        }
        if answer == Answer::Yes {
            let silent = unread(settings, &survey, target.member.id).await;
            if !silent.is_empty() {
                answer = Answer::NotNow(silent);
            }
        }
        Ok(Assessment {
            answer,
            left: left(&facts, target.member.id),
            leads: target.leads(),
            holder: Holder { member: target.member.id, name: target.member.name.clone() },
            label: target.label(),
        })
    }

    /// `reserved`: for so many seconds.
    fn tell(self, printer: Printer, reserved: Option<i64>) -> Result<()> {
        let Assessment { answer, left, leads, holder, label } = self;
        let reasons = match &answer {
            Answer::Yes => Value::List(Vec::new()),
            Answer::QuorumLost => vec![left.now.words()].into(),
            Answer::NotNow(why) => why.clone().into(),
            Answer::Reserved(who) => vec![who.clone()].into(),
        };
        let data = Value::map([
            ("member", format!("{:x}", holder.member).into()),
            ("name", holder.name.as_str().into()),
            ("can_stop", (answer == Answer::Yes).into()),
            ("reserved_seconds", reserved.map_or(Value::Null, Value::from)),
            ("reasons", reasons),
            ("leads", leads.into()),
            ("voters", left.now.voters.into()),
            ("voters_up_without_it", left.now.up.into()),
            ("quorum", left.now.quorum().into()),
            ("more_may_fail_then", left.now.spare().into()),
        ]);
        let bytes = printer.page(&data, |paint, _| {
            let verdict = match &answer {
                Answer::Yes => paint.good("may be stopped"),
                Answer::QuorumLost => paint.bad("must not be stopped"),
                Answer::NotNow(_) | Answer::Reserved(_) => paint.warn("not now"),
            };
            let lead = if leads && left.now.voters > 1 {
                "it leads, and hands leadership over when it is stopped with SIGTERM\n"
            } else {
                ""
            };
            let reserved = reserved.map_or_else(String::new, |seconds| {
                format!("nobody else is told yes for {seconds}s, or until can-stop --release\n")
            });
            format!("member {label}: {verdict}\nwithout it: {}\n{lead}{reserved}", left.now.words())
        })?;
        show(&bytes)?;
        match answer {
            Answer::Yes => Ok(()),
            Answer::QuorumLost => Err(quorum_lost(&label, left)),
            Answer::NotNow(why) => Err(not_now(&label, why)),
            Answer::Reserved(who) => Err(reserved_by(&label, who)),
        }
    }
}

fn reserved_by(label: &str, who: String) -> Failure {
    Failure::new(Exit::Reserved, format!("[RESERVED] member {label} should wait for another one")).with(
        Details {
            cause: "another member was told that it may stop, and has not said that it is back".into(),
            evidence: vec![who],
            remedy: vec![
                "wait until it is back or its time is over, and ask again".into(),
                "when it is back and nothing says so: cairnctl can-stop --release NAME, with its name".into(),
            ],
            never: String::new(),
        },
    )
}

fn quorum_lost(label: &str, left: Left) -> Failure {
    let mut evidence = vec![left.now.words()];
    if left.now.spare().is_some() {
        evidence.push(format!("once the learners that are in sync vote: {}", left.soon.words()));
    }
    Failure::new(Exit::Unsafe, format!("[CANNOT_STOP] stopping member {label} would cost the quorum")).with(
        Details {
            cause: "fewer voters would be up and in sync than a quorum needs: no write, no linearizable read"
                .into(),
            evidence,
            remedy: vec![
            "bring back what is down, and wait: cairnctl wait --for synced --cluster".into(),
            "a cluster of one or two voters tolerates no stop: add members first (cairnctl member plan add)"
                .into(),
        ],
            never: String::new(),
        },
    )
}

fn not_now(label: &str, why: Vec<String>) -> Failure {
    Failure::new(Exit::Busy, format!("[NOT_NOW] member {label} should not be stopped now")).with(Details {
        cause: "the quorum would be kept, but one more trouble would cost it, or a change of members is under way".into(),
        evidence: why,
        remedy: vec!["wait, and ask again: cairnctl wait --for synced --cluster".into()],
        never: String::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One letter for each member: V voter, L learner, v and l behind, D voter that is down, d learner that is down, u voter that was
    /// never started, x learner that was never started.
    fn members(letters: &str) -> Vec<Facts> {
        let member = |(at, letter): (usize, char)| Facts {
            id: at as u64 + 1,
            label: format!("m{}", at + 1),
            is_learner: "Lldx".contains(letter),
            is_started: !"ux".contains(letter),
            behind: match letter {
                'V' | 'L' => Some(IN_SYNC_ENTRIES),
                'v' | 'l' => Some(IN_SYNC_ENTRIES + 1),
                _ => None,
            },
        };
        letters.chars().enumerate().map(member).collect()
    }

    #[test]
    fn who_may_be_stopped() {
        const YES: &str = "yes";
        const LOST: &str = "quorum lost";
        const LATER: &str = "not now";
        for (letters, target, expected, why) in [
            ("VVV", 1, YES, "two of three stay"),
            ("VVVVV", 3, YES, "four of five stay"),
            ("V", 1, LOST, "nobody stays"),
            ("VV", 1, LOST, "one of two is no quorum"),
            ("VVD", 1, LOST, "another one is down already"),
            ("VVD", 3, YES, "it is down itself: the others do without it"),
            ("VVv", 1, LOST, "one that is behind cannot commit what is new"),
            ("VVu", 1, LOST, "a voter that was never started counts and is not there"),
            ("VVVVD", 1, LATER, "a quorum stays, with nothing to spare"),
            ("VVVVv", 1, LATER, "the same while one catches up"),
            ("VVVVu", 1, LATER, "a change is under way"),
            ("VVVx", 1, LATER, "a learner was added and is to be started"),
            ("VVVl", 1, LATER, "a replacement catches up"),
            ("VVVd", 1, LATER, "a learner is down: whatever it is for is not done"),
            ("VVVL", 1, YES, "three of four stay, should it be promoted"),
            ("VVL", 1, LOST, "two voters: one is no quorum"),
            ("VVL", 3, YES, "a learner has no vote"),
            ("VL", 2, YES, "the same beside one voter"),
            ("VDDL", 4, LOST, "there is no quorum as it is"),
            ("VVVLL", 4, YES, "one of two learners"),
            ("VVLL", 1, LOST, "learners do not count before they vote"),
        ] {
            let answer = match decide(&members(letters), target) {
                Answer::Yes => YES,
                Answer::QuorumLost => LOST,
                Answer::Reserved(_) => unreachable!("nobody was asked"),
                Answer::NotNow(reasons) => {
                    assert!(!reasons.is_empty());
                    LATER
                }
            };
            assert_eq!(answer, expected, "{letters}, member {target}: {why}");
        }
    }

    #[test]
    fn a_learner_that_may_vote_any_moment_is_reckoned_with() {
        // Four voters, of which three would stay, and with the learner's vote five, of which four would.
        let left = left(&members("VVVVL"), 1);
        assert_eq!((left.now, left.soon), (Count { voters: 4, up: 3 }, Count { voters: 5, up: 4 }));
        assert_eq!(decide(&members("VVVVL"), 1), Answer::Yes);
        assert_eq!(decide(&members("VVVVDL"), 1), Answer::NotNow(vec!["voter m5 is not up".into()]));
    }
}
