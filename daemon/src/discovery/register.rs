//! The decisions of a member that registers at a discovery service: which question comes next, what an answer means, when to stop. Pure:
//! time is handed in, and neither HTTP nor gRPC is known here.
//!
//! The list is asked for again after every event, so that nothing depends on what an event says: deletions, updates and histories that
//! were cut off all lead to the same question. A registration is saved before it is made; one that is there already counts as our own only
//! if this directory saved it before, because a member that lost its directory must not take up its old promises.

use std::{collections::BTreeSet, mem, time::Duration};

use state_machine::membership;
use types::MemberId;

use super::{
    Found, Own, Registering,
    settings::{Patience, Way},
};
use crate::{
    config::{
        cluster::{self, InitialCluster, InitialMember},
        urls,
    },
    refusal::{Id, Refusal},
};

/// First and longest pause after a service did not answer, as in etcd.
const BACK_OFF_FIRST: Duration = Duration::from_secs(2);
const BACK_OFF_LONGEST: Duration = Duration::from_secs(256);

/// Before a question that was answered in vain is asked again, so that no service is asked in a tight loop.
const AGAIN: Duration = Duration::from_secs(1);

/// For one wait at the service; then the list is read anew, whatever the service remembers.
const HOLD: Duration = Duration::from_secs(30);

/// Entries of one token that are looked at. More is no cluster.
const ENTRIES_MAX: usize = 10_000;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Question {
    /// How many members the token asks for.
    Size,
    /// Who has registered.
    List,
    /// Write this member down, unless its key is there.
    Register,
    /// What stands at this member's key.
    OwnEntry,
    /// Whether anything changes behind a point that an answer to `List` gave.
    Wait { after: u64, at_most: Duration },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// As written, if it is there.
    Size(Option<String>),
    Listed(Listed),
    /// The token is not known.
    NoToken(String),
    Registered,
    /// The key is there already, with this value if the service told it.
    Taken(Option<String>),
    OwnEntry(Option<String>),
    /// Something changed.
    Event,
    /// The service ended the wait early, and nothing changed.
    Quiet,
    /// The wait went on for as long as it might.
    Held,
    /// The service has forgotten what happened since; the list knows.
    Forgotten,
    /// Nothing, or nothing usable now: worth another try.
    Lost(String),
    /// It answers, but is no such service.
    NotDiscovery(String),
    /// It says no, for this reason.
    Rejected(String),
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listed {
    pub entries: Vec<Entry>,
    /// Wait for what comes behind this.
    pub at: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The last part of the key: a member's id.
    pub key: String,
    pub value: String,
    /// Entries count in this order.
    pub created: u64,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    Ask(Question),
    /// Make the registration durable here, then say so.
    Save,
    Rest(Duration),
    Found(Found),
    Refuse(Refusal),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Size,
    List,
    Save,
    Register,
    OwnEntry,
    Wait,
}

pub struct Register {
    /// Where the service is, for people.
    service: String,
    /// Flag that named the token.
    flag: &'static str,
    token: String,
    own: Own,
    registering: Registering,
    patience: Patience,
    phase: Phase,
    rest_until: Duration,
    verdict: Option<Result<Found, Refusal>>,
    size: usize,
    /// What was listed last, in order.
    entries: Vec<Entry>,
    at: u64,
    /// This directory made the registration, or tried to without learning the outcome.
    ours: bool,
    /// The service may hold a registration of ours.
    seen: bool,
    registered: bool,
    /// Keys that were told about.
    told: BTreeSet<String>,
    waiting_since: Option<Duration>,
    asked_at: Duration,
    heard_at: Duration,
    failures: u32,
    trouble: Option<String>,
    lines: Vec<String>,
}

impl Register {
    pub fn new(
        way: &Way,
        own: &Own,
        registering: Registering,
        registered: Option<&Registering>,
        patience: Patience,
    ) -> Register {
        let flag = if matches!(way, Way::V2(_)) { "--discovery" } else { "--discovery-token" };
        let mut register = Register {
            service: way.shown(),
            flag,
            token: way.token().to_owned(),
            own: own.clone(),
            registering,
            patience,
            phase: Phase::Size,
            rest_until: Duration::ZERO,
            verdict: None,
            size: 0,
            entries: Vec::new(),
            at: 0,
            ours: registered.is_some(),
            seen: registered.is_some(),
            registered: false,
            told: BTreeSet::new(),
            waiting_since: None,
            asked_at: Duration::ZERO,
            heard_at: Duration::ZERO,
            failures: 0,
            trouble: None,
            lines: Vec::new(),
        };
        if let Some(earlier) = registered.filter(|earlier| **earlier != register.registering) {
            let refusal = register.registered_otherwise(earlier);
            register.verdict = Some(Err(refusal));
        }
        register
    }

    pub fn own(&self) -> &Registering {
        &self.registering
    }

    /// Whether the service may hold this member's registration.
    pub fn seen(&self) -> bool {
        self.seen
    }

    /// What happened since this was last asked for.
    pub fn lines(&mut self) -> Vec<String> {
        mem::take(&mut self.lines)
    }

    /// What is being waited for.
    pub fn waiting(&self, now: Duration) -> String {
        if let Some(trouble) = &self.trouble {
            let left = (self.heard_at + self.patience.service).saturating_sub(now).as_secs();
            return format!(
                "the discovery service {} does not serve: {trouble}; trying for {left} s more",
                self.service
            );
        }
        match self.waiting_since {
            Some(since) => format!(
                "{}; waiting for {} more ({} s)",
                self.who_is_there(),
                self.size.saturating_sub(self.entries.len()),
                now.saturating_sub(since).as_secs()
            ),
            None => format!(
                "waiting for an answer of the discovery service {} ({} s)",
                self.service,
                now.saturating_sub(self.asked_at).as_secs()
            ),
        }
    }

    pub fn step(&mut self, now: Duration) -> Step {
        match self.verdict.take() {
            Some(Ok(found)) => return Step::Found(found),
            Some(Err(refusal)) => return Step::Refuse(refusal),
            None => {}
        }
        if now < self.rest_until {
            return Step::Rest(self.rest_until - now);
        }
        let question = match self.phase {
            Phase::Size => Question::Size,
            Phase::List => Question::List,
            Phase::Save => return Step::Save,
            Phase::Register => Question::Register,
            Phase::OwnEntry => Question::OwnEntry,
            Phase::Wait => match self.time_to_wait(now) {
                Ok(at_most) => Question::Wait { after: self.at, at_most },
                Err(refusal) => return Step::Refuse(refusal),
            },
        };
        self.asked_at = now;
        Step::Ask(question)
    }

    /// The registration is durable here.
    pub fn saved(&mut self) {
        assert_eq!(self.phase, Phase::Save, "only what was asked for is saved");
        self.phase = Phase::Register;
    }

    pub fn answer(&mut self, answer: Answer, now: Duration) {
        match answer {
            Answer::Lost(why) => return self.lost(why, now),
            Answer::NotDiscovery(what) => return self.refuse(self.not_discovery(&what)),
            Answer::Rejected(what) => return self.refuse(self.rejected(&what)),
            Answer::NoToken(what) => return self.refuse(self.unknown_token(&what)),
            _ => {}
        }
        if mem::take(&mut self.trouble).is_some() {
            self.lines.push(format!("the discovery service {} answers again", self.service));
        }
        self.heard_at = now;
        self.failures = 0;
        match (self.phase, answer) {
            (Phase::Size, Answer::Size(text)) => match size(text.as_deref()) {
                Ok(size) => {
                    self.size = size;
                    self.phase = Phase::List;
                }
                Err(what) => self.refuse(self.bad_size(&what)),
            },
            (Phase::List, Answer::Listed(listed)) => self.judge(listed, now),
            (Phase::Register, Answer::Registered) => {
                (self.registered, self.ours, self.seen) = (true, true, true);
                self.phase = Phase::List;
            }
            (Phase::Register, Answer::Taken(None)) => self.phase = Phase::OwnEntry,
            (Phase::Register, Answer::Taken(Some(value)))
            | (Phase::OwnEntry, Answer::OwnEntry(Some(value))) => {
                if self.is_ours(&value) {
                    self.resume();
                    self.phase = Phase::List;
                } else {
                    self.refuse(self.taken(&value));
                }
            }
            // Gone between two questions.
            (Phase::OwnEntry, Answer::OwnEntry(None)) => self.after(AGAIN, Phase::Register, now),
            (Phase::Wait, Answer::Event | Answer::Held) => self.phase = Phase::List,
            (Phase::Wait, Answer::Forgotten) => self.after(AGAIN, Phase::List, now),
            (Phase::Wait, Answer::Quiet) => {
                let soon = now.saturating_sub(self.asked_at) < AGAIN;
                self.after(if soon { AGAIN } else { Duration::ZERO }, Phase::Wait, now);
            }
            (_, answer) => {
                self.refuse(self.not_discovery(&format!("an answer to another question: {answer:?}")))
            }
        }
    }

    fn after(&mut self, pause: Duration, phase: Phase, now: Duration) {
        self.rest_until = now + pause;
        self.phase = phase;
    }

    fn refuse(&mut self, refusal: Refusal) {
        self.verdict = Some(Err(refusal));
    }

    fn lost(&mut self, why: String, now: Duration) {
        if self.phase == Phase::Register {
            // It may have been written down all the same.
            (self.ours, self.seen) = (true, true);
        }
        if self.phase == Phase::Wait {
            self.phase = Phase::List;
        }
        let gives_up_at = self.heard_at + self.patience.service;
        if now >= gives_up_at {
            return self.refuse(self.unreachable(&why, now));
        }
        let pause = BACK_OFF_FIRST.saturating_mul(1 << self.failures.min(16)).min(BACK_OFF_LONGEST);
        let pause = pause.min(gives_up_at - now);
        self.failures += 1;
        self.rest_until = now + pause;
        self.lines.push(format!(
            "the discovery service {} does not serve: {why}; trying again in {} s, for {} s more",
            self.service,
            pause.as_secs(),
            (gives_up_at - now).as_secs()
        ));
        self.trouble = Some(why);
    }

    /// How long the service may hold the next wait.
    fn time_to_wait(&self, now: Duration) -> Result<Duration, Refusal> {
        let Some(limit) = self.patience.members else { return Ok(HOLD) };
        let left = (self.waiting_since.unwrap_or(now) + limit).saturating_sub(now);
        if left.is_zero() { Err(self.nobody_came(limit)) } else { Ok(left.min(HOLD)) }
    }

    fn is_ours(&self, value: &str) -> bool {
        self.ours && value == self.registering.value
    }

    fn resume(&mut self) {
        if !mem::replace(&mut self.registered, true) {
            self.lines
                .push(format!("this member's registration is there already: {}", self.registering.value));
        }
        self.seen = true;
    }

    fn judge(&mut self, listed: Listed, now: Duration) {
        self.at = listed.at;
        self.entries = listed.entries;
        self.entries.sort_by(|left, right| (left.created, &left.key).cmp(&(right.created, &right.key)));
        if self.entries.len() > ENTRIES_MAX {
            return self
                .refuse(self.not_discovery(&format!("{} entries below the token", self.entries.len())));
        }
        let own = self.entries.iter().position(|entry| entry.key.parse() == Ok(self.registering.member));
        match own {
            Some(at) => {
                let value = self.entries[at].value.clone();
                if !(self.registered || self.ours) || value != self.registering.value {
                    return self.refuse(self.taken(&value));
                }
                self.resume();
                if at >= self.size {
                    return self.refuse(self.full());
                }
            }
            None if self.entries.len() >= self.size => return self.refuse(self.full()),
            None => {}
        }
        self.entries.truncate(self.size);
        let members = match self.members(own.is_none()) {
            Ok(members) => members,
            Err(refusal) => return self.refuse(refusal),
        };
        if own.is_none() {
            if mem::replace(&mut self.registered, false) {
                self.lines
                    .push("this member's registration was deleted at the service: registering again".into());
                return self.after(AGAIN, Phase::Register, now);
            }
            self.phase = if self.ours { Phase::Register } else { Phase::Save };
            return;
        }
        self.tell_arrivals(&members);
        if members.len() < self.size {
            let (there, missing) = (members.len(), self.size - members.len());
            self.lines.push(format!("found {there} peer(s), waiting for {missing} more"));
            self.waiting_since.get_or_insert(now);
            self.phase = Phase::Wait;
            return;
        }
        self.lines.push(format!("found {} needed peer(s)", self.size));
        self.verdict = Some(self.complete().map(|cluster| Found {
            cluster,
            own: self.own.name.clone(),
            token: self.token.clone(),
        }));
    }

    fn tell_arrivals(&mut self, members: &[InitialMember]) {
        for (entry, member) in self.entries.iter().zip(members) {
            if self.told.insert(entry.key.clone()) {
                let who = if entry.key.parse() == Ok(self.registering.member) { "self" } else { "peer" };
                self.lines.push(format!("found {who} {} in the cluster ({})", entry.key, member.name));
            }
        }
    }

    /// What the entries say, in their order. `with_own` looks for clashes with the entry that is still to be made.
    fn members(&self, with_own: bool) -> Result<Vec<InitialMember>, Refusal> {
        let own = Entry {
            key: self.registering.member.to_string(),
            value: self.registering.value.clone(),
            created: u64::MAX,
        };
        let mut members: Vec<InitialMember> = Vec::new();
        for entry in self.entries.iter().chain(with_own.then_some(&own)) {
            let member = self.member(entry)?;
            for earlier in &members {
                let same_url = member.peer_urls.iter().find(|url| earlier.peer_urls.contains(url));
                if earlier.name == member.name || same_url.is_some() {
                    return Err(self.duplicate(&earlier.name.to_string(), entry, same_url));
                }
            }
            members.push(member);
        }
        members.truncate(self.entries.len());
        Ok(members)
    }

    fn member(&self, entry: &Entry) -> Result<InitialMember, Refusal> {
        let parsed = cluster::parse(&entry.value).map_err(|why| self.bad_entry(entry, &why.0))?;
        let [member] = parsed.members() else {
            return Err(self.bad_entry(entry, "not the name and URLs of one member"));
        };
        let id = membership::member_id(&urls::texts(&member.peer_urls), &self.token, None);
        if entry.key.parse() != Ok(id) {
            return Err(self.spelled_otherwise(entry, id));
        }
        match member.peer_urls.iter().find(|url| url.scheme != urls::Scheme::Http) {
            Some(url) => Err(unsupported(member.name.as_str(), &url.to_string())),
            None => Ok(member.clone()),
        }
    }

    fn complete(&self) -> Result<InitialCluster, Refusal> {
        let values: Vec<&str> = self.entries.iter().map(|entry| entry.value.as_str()).collect();
        let all = values.join(",");
        let whole = Entry { key: "all".into(), value: all.clone(), created: 0 };
        cluster::parse(&all).map_err(|why| self.bad_entry(&whole, &why.0))
    }

    /// `2 of 3 registered: n1, n2`.
    fn who_is_there(&self) -> String {
        let names: Vec<&str> = self.entries.iter().map(|entry| name_of(&entry.value)).collect();
        let names = if names.is_empty() { "nobody".to_owned() } else { names.join(", ") };
        format!("{} of {} registered: {names}", self.entries.len(), self.size)
    }

    fn listed(&self) -> String {
        let values: Vec<&str> = self.entries.iter().map(|entry| entry.value.as_str()).collect();
        values.join("; ")
    }

    fn refusal(&self, id: Id, cause: impl Into<String>) -> Refusal {
        Refusal::new(id, cause).evidence("service", self.service.clone())
    }

    fn unreachable(&self, why: &str, now: Duration) -> Refusal {
        let silent = now.saturating_sub(self.heard_at).as_secs();
        self.refusal(Id::DiscoveryUnreachable, format!("the discovery service has not served for {silent} s"))
            .evidence("last try", why)
            .remedy(format!(
                "check {} and that the service runs, then start again: what was registered is resumed",
                self.flag
            ))
            .remedy("to wait longer: --discovery-timeout=10m")
            .remedy("without a service: list the members in --initial-cluster on every member")
    }

    fn nobody_came(&self, limit: Duration) -> Refusal {
        let missing = self.size.saturating_sub(self.entries.len());
        self.refusal(
            Id::DiscoveryIncomplete,
            format!("{missing} of {} members did not register within {} s", self.size, limit.as_secs()),
        )
        .evidence("registered", self.listed())
        .remedy("start the missing members, then this one again: its registration is resumed")
        .remedy("to wait longer: --discovery-timeout=10m, or leave it out to wait for ever")
    }

    fn unknown_token(&self, what: &str) -> Refusal {
        self.refusal(Id::DiscoveryTokenUnknown, "the discovery service does not know this token")
            .evidence("answer", what)
            .remedy("ask the service for a token and give the same to every member: cairnctl discovery new --size=3")
            .remedy(format!("or correct {}: tokens end some time after they were made", self.flag))
    }

    fn bad_size(&self, what: &str) -> Refusal {
        self.refusal(Id::DiscoverySizeBad, "the token does not say how many members the cluster shall have")
            .evidence("_config/size", what)
            .remedy("make a new token with a size of at least 1: cairnctl discovery new --size=3")
    }

    fn full(&self) -> Refusal {
        let cause =
            format!("the token is for {} members, and they are all there without this one", self.size);
        let first = self.entries.iter().take(self.size).map(|entry| entry.value.as_str()).collect::<Vec<_>>();
        self.refusal(Id::DiscoveryFull, cause)
            .evidence("registered", first.join("; "))
            .evidence("this member", self.registering.value.clone())
            .remedy(format!(
                "to join that cluster: cairnctl member add {}, then start with --initial-cluster-state=existing",
                self.own.name
            ))
            .remedy(format!("for another cluster: a new token in {}, on every member alike", self.flag))
            .remedy(format!("if {} has been a member before: --data-dir=<its directory>", self.own.name))
    }

    fn taken(&self, value: &str) -> Refusal {
        let cause = if value == self.registering.value {
            "this member's place at the discovery service is taken by a registration that this directory did not make"
        } else {
            "this member's place at the discovery service holds something else"
        };
        self.refusal(Id::TokenConflict, cause)
            .evidence(format!("registered as {}", self.registering.member), value)
            .evidence("this member", self.registering.value.clone())
            .remedy(format!("if {} has started with this token before: --data-dir=<its directory>", self.own.name))
            .remedy("if another host has the same name and URL: correct --name and --initial-advertise-peer-urls on one of them")
            .remedy(format!("else begin anew: a new token in {}, on every member alike", self.flag))
            .never("do not delete the entry while a cluster that counts on it may exist")
    }

    fn registered_otherwise(&self, earlier: &Registering) -> Refusal {
        let now = &self.registering;
        Refusal::new(
            Id::TokenConflict,
            "this directory has registered at a discovery service as somebody else",
        )
        .evidence(
            "registered",
            format!("{} as {} with token {}", earlier.value, earlier.member, earlier.token),
        )
        .evidence("given", format!("{} as {} with token {}", now.value, now.member, now.token))
        .remedy("start again with the token, name and URLs that were registered")
        .remedy("or, if no cluster came of that: move the data directory aside and start with a new token")
    }

    fn duplicate(&self, earlier: &str, entry: &Entry, url: Option<&urls::Url>) -> Refusal {
        let what = match url {
            Some(url) => format!("peer URL {url}"),
            None => format!("name {earlier}"),
        };
        self.refusal(Id::DiscoveryDuplicate, format!("two members have the {what}"))
            .evidence("registered", self.listed())
            .evidence("clashes with", entry.value.clone())
            .remedy("give this member a name and URLs of its own: --name, --initial-advertise-peer-urls")
            .remedy(format!(
                "if both are registered already: a new token in {}, on every member alike",
                self.flag
            ))
    }

    fn bad_entry(&self, entry: &Entry, why: &str) -> Refusal {
        self.refusal(Id::DiscoveryBadEntry, "a registration is not the name and URLs of a member")
            .evidence(entry.key.clone(), format!("{}: {why}", entry.value))
            .remedy(format!("begin anew with a new token in {}, on every member alike", self.flag))
    }

    fn spelled_otherwise(&self, entry: &Entry, id: MemberId) -> Refusal {
        let cause = format!(
            "{} has registered under an id that its URLs and this token do not give",
            name_of(&entry.value)
        );
        self.refusal(Id::DiscoveryTokenSpelling, cause)
            .evidence("registered", format!("{} as {}", entry.value, entry.key))
            .evidence("with the token given here", format!("its id would be {id}"))
            .remedy(format!(
                "ids are made from the text of the token: write {} alike on every member, letter by letter",
                self.flag
            ))
            .remedy("with what has been registered under two spellings no cluster can come of this token: make a new one")
    }

    fn not_discovery(&self, what: &str) -> Refusal {
        self.refusal(Id::DiscoveryNotEtcd, "what answers is not a discovery service")
            .evidence("answer", shortened(what))
            .remedy(format!("correct {}: host, port and path must be those of the service", self.flag))
    }

    fn rejected(&self, what: &str) -> Refusal {
        self.refusal(Id::DiscoveryRejected, "the discovery service refuses this member")
            .evidence("answer", shortened(what))
            .evidence("this member", self.registering.value.clone())
            .remedy("do what the answer says, then start again")
    }
}

/// At least one member.
fn size(text: Option<&str>) -> Result<usize, String> {
    let Some(text) = text else { return Err("is not there".into()) };
    match text.parse() {
        Ok(0) => Err("is 0, and a cluster has at least one member".into()),
        Ok(size) if size <= ENTRIES_MAX => Ok(size),
        Ok(size) => Err(format!("is {size}, more than any cluster has")),
        Err(_) => Err(format!("is {:?}, not a number", shortened(text))),
    }
}

fn name_of(value: &str) -> &str {
    value.split_once('=').map_or(value, |(name, _)| name)
}

/// Of a wrong answer, what helps to recognise it.
const SHOWN_CHARS_MAX: usize = 300;

pub fn shortened(text: &str) -> String {
    match text.char_indices().nth(SHOWN_CHARS_MAX) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text.to_owned(),
    }
}

/// A member that cannot be talked to must not be counted on.
pub fn unsupported(name: &str, url: &str) -> Refusal {
    Refusal::new(Id::NotSupported, format!("{name} has a peer URL that this version cannot dial"))
        .evidence(name, url)
        .remedy("use http:// peer URLs on every member: TLS between members is not supported by this version")
}
