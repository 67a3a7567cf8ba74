//! A member whose history is lost takes its own place: the old id goes for ever, the same name and URLs come back as an empty learner, and
//! the learner asks to vote when it has caught up (`auto-replace = learner`).
//!
//! An id with lost history is never used again, old directories are moved aside and never deleted, and nothing moves before a working
//! quorum of the others has confirmed that the loss is one ([`decide`]). What is done stands in `replace.json` ([`journal`]), which every
//! start looks at first, so that a crash at any point is followed by the rest.
//!
//! Not here: how a loss is found out (`bootstrap::again`, `attend`, `join`, and the sentinel of a running member), and how the new member
//! joins: that is a start like any other, with settings that say so.

mod aside;
mod decide;
mod journal;
mod outside;
mod promote;
mod steps;

use std::{
    io,
    path::Path,
    time::{Duration, Instant},
};

use ::identity::{Boot, Hello, Home, Life, LogEnd, Question};
use api::etcdserverpb::Member;
use storage::data_dir::DataDir;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use tracing::{info, warn};
use types::{ClusterId, MemberId};

use self::{
    decide::{Agreed, Lost},
    journal::{Journal, Step},
    outside::Clients,
    steps::Outside as _,
};
use crate::{
    bootstrap::{
        ask, execute,
        facts::MEMBER_DIR,
        genesis::Genesis,
        hello::{self, Target},
        prepare::{self, VERSION},
    },
    config::{
        Asked, AutoReplace, InitialState, Settings,
        cluster::{self, MemberName},
        urls::{self, Url},
    },
    identity::{self, Identity, Replaced},
    refusal::{Id, Refusal},
    signals::{Request, Signals},
    systemd,
};

pub use promote::until_voter;

/// How long the others are asked before the answer is no. An election takes two seconds, and a session of who was killed ends within five.
const DECIDES_WITHIN: Duration = Duration::from_secs(20);

/// How long a member that just got its place asks for it; then the next start does.
const JOINS_WITHIN: Duration = Duration::from_secs(15);

/// Between two rounds of questions.
const PAUSE: Duration = Duration::from_millis(500);

/// No start waits in silence for longer.
const TOLD_EVERY: Duration = Duration::from_secs(5);

pub enum Outcome {
    /// The start goes on with these settings, as a member that joins.
    Joins(Box<Settings>),
    /// Asked to stop meanwhile, by this signal.
    Stopped(&'static str),
}

/// What an earlier start has begun is finished before anything else. None: there is nothing.
pub fn resume(settings: &Settings, signals: &mut Option<Signals>) -> Result<Option<Outcome>, Refusal> {
    let data_dir = &settings.storage.data_dir;
    let Some(journal) = Journal::read(data_dir)? else { return Ok(None) };
    let refuse = |error: io::Error| Refusal::io("remove the note of a replacement from", data_dir, &error);
    let old = journal.old;
    if let Some(identity) = aside::counting(&data_dir.join(MEMBER_DIR)) {
        if identity.member_id != old {
            info!(old_member_id = %old, new_member_id = %identity.member_id, "replacement: finished before");
        } else if aside::target(data_dir, &journal).exists() || journal.step > Step::Decided {
            warn!(
                old_member_id = %old,
                "a directory of the old member was put back while it was being replaced: it is judged like any other"
            );
        }
        // Otherwise nothing has moved: whether it is still so is asked anew.
        drop(execute::lock(settings)?);
        Journal::remove(data_dir).map_err(refuse)?;
        return Ok(None);
    }
    if settings.membership.auto_replace == AutoReplace::Off {
        warn!(old_member_id = %old, "auto-replace is off now; the replacement that was begun is finished all the same");
    }
    info!(old_member_id = %old, cause = journal.cause, done = ?journal.step, "replacement: going on after an earlier start");
    finish(settings, journal, None, signals).map(Some)
}

/// In the place of a refusal: decides whether this member replaces itself, and does it. The refusal comes back when it does not.
pub fn instead(
    settings: &Settings,
    refusal: Refusal,
    signals: &mut Option<Signals>,
) -> Result<Outcome, Refusal> {
    let data_dir = &settings.storage.data_dir;
    let now = OffsetDateTime::now_utc();
    let found = aside::counting(&data_dir.join(MEMBER_DIR));
    let began = found.as_ref().and_then(|identity| identity.replaces.as_ref());
    let earlier = earlier(data_dir, began);
    match decide::may_begin(settings.membership.auto_replace, refusal.id, found.is_some(), &earlier, now) {
        Ok(()) => {}
        Err(None) => return Err(refusal),
        Err(Some(why)) => return Err(declined(refusal, &why)),
    }
    warn!(
        code = refusal.id.name(),
        cause = refusal.cause(),
        "this member has lost its history: asking the others whether it may replace itself by a learner"
    );
    // Nothing is made for a start that is refused; what is there is held, so that nobody else starts on it meanwhile.
    let dir = if data_dir.exists() { Some(execute::lock(settings)?) } else { None };
    systemd::status("history lost: asking the other members whether this one may replace itself");
    let lost = lost(settings, found.as_ref());
    let targets = targets(settings, found.as_ref());
    let agreed = match within_signals(signals, consult(settings, &lost, found.as_ref(), targets))? {
        Err(signal) => return Ok(Outcome::Stopped(signal)),
        Ok(Err(why)) => return Err(declined(refusal, &why)),
        Ok(Ok(agreed)) => agreed,
    };
    let mut journal = Journal::new(refusal.id, agreed.old, now);
    (journal.name, journal.peer_urls) = (lost.name, lost.peer_urls);
    // A learner that was on its way to vote is one still.
    journal.voted = agreed.voted || began.is_some_and(|replaced| replaced.voted);
    (journal.cluster_id, journal.cluster_uuid) = (agreed.cluster_id, agreed.cluster_uuid);
    journal.others = agreed.others;
    finish(settings, journal, dir, signals)
}

/// For who looks beside a start: what a replacement has to do with it. Asks nobody.
pub fn outlook(settings: &Settings, refused: Option<Id>) -> Result<Option<String>, Refusal> {
    let data_dir = &settings.storage.data_dir;
    if let Some(journal) = Journal::read(data_dir)? {
        return Ok(Some(format!(
            "a start would first go on with replacing member {} by a learner, begun at {} ({})",
            journal.old,
            journal.mark,
            steps::done_in_words(journal.step)
        )));
    }
    let Some(refused) = refused else { return Ok(None) };
    let found = aside::counting(&data_dir.join(MEMBER_DIR));
    let has_data = found.is_some();
    let earlier = earlier(data_dir, found.as_ref().and_then(|identity| identity.replaces.as_ref()));
    let setting = settings.membership.auto_replace;
    Ok(match decide::may_begin(setting, refused, has_data, &earlier, OffsetDateTime::now_utc()) {
        Ok(()) => Some(format!(
            "auto-replace=learner: instead of ending with {} a start would ask the others whether it may replace this member",
            refused.name()
        )),
        Err(why) => why.map(|why| format!("auto-replace=learner: {why}")),
    })
}

/// When this member replaced itself, oldest first.
fn earlier(data_dir: &Path, began: Option<&Replaced>) -> Vec<OffsetDateTime> {
    let mut earlier = aside::earlier(data_dir);
    earlier.extend(began.and_then(|replaced| OffsetDateTime::parse(&replaced.at, &Rfc3339).ok()));
    earlier.sort();
    earlier.dedup_by_key(|at| journal::mark(*at));
    earlier
}

fn declined(refusal: Refusal, why: &str) -> Refusal {
    warn!(code = refusal.id.name(), why, "this member does not replace itself");
    refusal.evidence("auto-replace", why)
}

fn lost(settings: &Settings, found: Option<&Identity>) -> Lost {
    let home = hello::home(&settings.storage.data_dir);
    if let Some(identity) = found {
        return Lost {
            id: Some(identity.member_id),
            name: identity.name.clone(),
            peer_urls: sorted(identity.peer_urls.clone()),
            cluster: Some(identity.cluster_id),
            life: identity.cluster_uuid,
            founded: None,
            home,
        };
    }
    let asked = &settings.membership;
    let name = asked.name.value.as_str();
    let listed = asked.initial_cluster.value.find(name).map(|own| &own.peer_urls);
    let genesis = match &asked.discovery {
        None => Genesis::new(&asked.initial_cluster.value, &asked.token.value).ok(),
        Some(_) => None,
    };
    let founds = asked.initial_state == InitialState::New;
    Lost {
        id: None,
        name: name.to_owned(),
        peer_urls: sorted(urls::texts(listed.unwrap_or(&asked.advertise_peer_urls.value))),
        cluster: genesis.as_ref().filter(|_| founds).map(|genesis| genesis.cluster),
        life: None,
        founded: genesis.as_ref().and_then(|genesis| genesis.find(name)).map(|first| first.id),
        home,
    }
}

fn sorted(mut urls: Vec<String>) -> Vec<String> {
    urls.sort();
    urls
}

fn targets(settings: &Settings, found: Option<&Identity>) -> Vec<Target> {
    if let Some(identity) = found {
        return prepare::peers(identity, settings);
    }
    let asked = &settings.membership;
    let others =
        asked.initial_cluster.value.members().iter().filter(|member| member.name != asked.name.value);
    let target = |name: &MemberName, url: &Url| Target {
        member: MemberId::NONE,
        name: name.to_string(),
        url: url.as_str().to_owned(),
    };
    others.flat_map(|member| member.peer_urls.iter().map(move |url| target(&member.name, url))).collect()
}

/// Asks the others until they agree, or for as long as it may still come to that.
async fn consult(
    settings: &Settings,
    lost: &Lost,
    found: Option<&Identity>,
    mut targets: Vec<Target>,
) -> Result<Agreed, String> {
    let mut own = match found {
        Some(identity) => {
            hello::of(identity, hello::boot(identity), LogEnd::default(), &settings.storage.data_dir)
        }
        None => {
            let asker = nobody(lost.cluster.unwrap_or(ClusterId(0)), &lost.name);
            let asker = asker.map_err(|error| format!("no: no random numbers: {error}"))?;
            Hello { home: lost.home.clone(), ..asker }
        }
    };
    let began = Instant::now();
    let mut told = began;
    loop {
        let why = match opinion(settings, lost, &mut own, &mut targets).await {
            decide::Step::Done(agreed) => match confirmed(&agreed, lost).await {
                Ok(()) => return Ok(agreed),
                Err(why) => why,
            },
            decide::Step::Decline(why) => return Err(why),
            decide::Step::Wait(why) => why,
        };
        if began.elapsed() >= DECIDES_WITHIN {
            return Err(format!("{why} (asked for {} s)", DECIDES_WITHIN.as_secs()));
        }
        if told.elapsed() >= TOLD_EVERY {
            told = Instant::now();
            info!(
                waited_s = began.elapsed().as_secs(),
                limit_s = DECIDES_WITHIN.as_secs(),
                why,
                "replacement: asking the others"
            );
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// A question of somebody who does not know its id yet, or asks as that of its predecessor: it has promised nothing.
fn nobody(cluster_id: ClusterId, name: &str) -> io::Result<Hello> {
    Ok(Hello {
        cluster_id,
        member: MemberId::NONE,
        name: name.to_owned(),
        life: Life::Joining,
        dir: identity::random()?,
        boot: Boot { seq: 1, nonce: identity::random()?, previous: None },
        earlier: Vec::new(),
        log: LogEnd::default(),
        home: Home::default(),
        version: VERSION.to_owned(),
    })
}

async fn opinion(
    settings: &Settings,
    lost: &Lost,
    own: &mut Hello,
    targets: &mut Vec<Target>,
) -> decide::Step<Agreed> {
    let question = Question { hello: own.clone(), config: None };
    let mut replies = hello::round(targets, &question).await;
    let id = match lost.id {
        Some(id) => id,
        None => match decide::find(lost, &replies) {
            decide::Step::Done(id) => id,
            decide::Step::Wait(why) => return decide::Step::Wait(why),
            decide::Step::Decline(why) => return decide::Step::Decline(why),
        },
    };
    // Voters that no setting names are asked, too.
    let mut grown = false;
    for reply in &replies {
        let crate::bootstrap::attend::Heard::Answer(answer) = &reply.heard else { continue };
        for named in answer.members.iter().filter(|named| named.id != id) {
            for url in &named.peer_urls {
                if !lost.peer_urls.contains(url) && targets.iter().all(|target| target.url != *url) {
                    targets.push(Target { member: named.id, name: named.name.clone(), url: url.clone() });
                    grown = true;
                }
            }
        }
    }
    if grown || own.member != id {
        own.member = id;
        replies = hello::round(targets, &Question { hello: own.clone(), config: None }).await;
    }
    let now = OffsetDateTime::now_utc();
    let max_learners = settings.membership.max_learners;
    decide::decide(lost, id, &replies, max_learners, &prepare::holds_member, now)
}

/// A quorum answers clients, here as well, and still has the old member: nothing moves before that.
async fn confirmed(agreed: &Agreed, lost: &Lost) -> Result<(), String> {
    let mut clients = Clients::new(&agreed.others, agreed.old, &lost.peer_urls);
    let members =
        clients.list().await.map_err(|why| format!("no: the others do not answer clients: {why}"))?;
    match members.iter().any(|member| member.id == agreed.old.0) {
        true => Ok(()),
        false => Err(format!("no: the cluster has no member {} any more", agreed.old)),
    }
}

/// From the decision on. Whatever is done already is not done again.
fn finish(
    settings: &Settings,
    mut journal: Journal,
    dir: Option<DataDir>,
    signals: &mut Option<Signals>,
) -> Result<Outcome, Refusal> {
    let storage = &settings.storage;
    let data_dir = &storage.data_dir;
    let old = journal.old;
    let dir = match dir {
        Some(held) => held,
        None => execute::lock(settings)?,
    };
    let write = |error: io::Error| Refusal::io("note a replacement in", data_dir, &error);
    if journal.step == Step::Decided {
        journal.write(data_dir).map_err(write)?;
        warn!(
            old_member_id = %old,
            name = journal.name,
            peer_urls = ?journal.peer_urls,
            cause = journal.cause,
            "replacement: this member gives up its id and comes back as a learner under a new one"
        );
        systemd::status(&format!("replacing member {old} by a learner: moving its directory aside"));
        aside::move_aside(data_dir, storage.wal_dir.as_deref(), &journal)?;
        steps::note(&mut journal, Step::Aside, data_dir)?;
    }
    systemd::status(&format!("replacing member {old} by a learner: changing the cluster"));
    let mut clients = Clients::new(&journal.others, old, &journal.peer_urls).of_life(&journal)?;
    let carried =
        within_signals(signals, steps::carry_out(&mut journal, data_dir, &mut clients, steps::PATIENCE))?;
    let (new, members) = match carried {
        Err(signal) => return Ok(Outcome::Stopped(signal)),
        Ok(carried) => carried?,
    };
    let joiner =
        joiner(settings, &journal, new, &members).map_err(|why| steps::blocked(&journal, data_dir, &why))?;
    systemd::status(&format!("replacing member {old} by learner {new}: joining"));
    info!(old_member_id = %old, new_member_id = %new, "replacement: joining the cluster");
    drop(dir);
    Ok(Outcome::Joins(Box::new(joiner)))
}

/// The settings with which the new member joins, whatever the first start was told.
fn joiner(
    settings: &Settings,
    journal: &Journal,
    new: MemberId,
    members: &[Member],
) -> Result<Settings, String> {
    let own_urls = urls::parse_list(&journal.peer_urls.join(",")).map_err(|why| why.0)?;
    let mut pairs: Vec<String> =
        journal.peer_urls.iter().map(|url| format!("{}={url}", journal.name)).collect();
    for member in members.iter().filter(|member| member.id != new.0) {
        let name = match member.name.is_empty() {
            true => format!("member-{}", MemberId(member.id)),
            false => member.name.clone(),
        };
        pairs.extend(member.peer_ur_ls.iter().map(|url| format!("{name}={url}")));
    }
    let mut settings = settings.clone();
    let asked = &mut settings.membership;
    asked.name = Asked { value: MemberName::parse(&journal.name).map_err(|why| why.0)?, given: true };
    asked.advertise_peer_urls = Asked { value: own_urls, given: true };
    asked.initial_cluster =
        Asked { value: cluster::parse(&pairs.join(",")).map_err(|why| why.0)?, given: true };
    asked.initial_state = InitialState::Existing;
    asked.discovery = None;
    asked.force_new_cluster = false;
    // The cluster has just answered, and no signal to stop is heard while it is asked for the place.
    asked.join_timeout = asked.join_timeout.min(JOINS_WITHIN);
    let at = journal::time_of(&journal.mark).and_then(|at| at.format(&Rfc3339).ok()).unwrap_or_default();
    asked.replaces = Some(Replaced { member: journal.old, voted: journal.voted, at });
    Ok(settings)
}

/// The new identity counts: what is left is a start like any other.
pub fn joined(data_dir: &Path) {
    // The next start sees that the identity is not the old one, and tries again.
    if let Err(error) = Journal::remove(data_dir) {
        warn!(%error, data_dir = %data_dir.display(), "the note of a finished replacement could not be removed");
    }
}

/// Runs a wait, which a signal to stop ends: what is on disk is enough to go on later.
fn within_signals<T>(
    signals: &mut Option<Signals>,
    wait: impl Future<Output = T>,
) -> Result<Result<T, &'static str>, Refusal> {
    let runtime = ask::runtime()?;
    runtime.block_on(async {
        let signals =
            Signals::of(signals).map_err(|error| Refusal::io("listen for", "signals".as_ref(), &error))?;
        tokio::pin!(wait);
        loop {
            tokio::select! {
                done = &mut wait => return Ok(Ok(done)),
                request = signals.next() => match request {
                    Request::Stop(signal) => return Ok(Err(signal)),
                    Request::Reload => crate::lifecycle::reload::too_early(),
                }
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::{config::Surroundings, identity::State};

    fn settings(data_dir: &Path) -> Settings {
        let flags = [
            format!("--data-dir={}", data_dir.display()),
            "--name=n1".to_owned(),
            "--initial-advertise-peer-urls=http://127.0.0.1:1".to_owned(),
            "--initial-cluster=n1=http://127.0.0.1:1,n2=http://127.0.0.1:2".to_owned(),
            "--auto-replace=learner".to_owned(),
        ];
        let flags = crate::cli::parse(flags.into_iter().map(std::ffi::OsString::from)).unwrap().flags;
        let surroundings = Surroundings { flags, variables: vec![], default_file: "/nonexistent".into() };
        crate::config::load(&surroundings).unwrap().0
    }

    /// A start that finds a note: the new member counts, nothing has moved, or somebody put a directory back.
    #[test]
    fn a_note_beside_a_member_that_counts_is_not_acted_upon() {
        let old = identity::sample().member_id;
        for (id, step) in [
            (MemberId(old.0 + 1), Step::Added),
            (MemberId(old.0 + 1), Step::Removed),
            (old, Step::Decided),
            (old, Step::Aside),
            (old, Step::Added),
        ] {
            let root = tempfile::tempdir().unwrap();
            let settings = settings(root.path());
            assert!(resume(&settings, &mut None).unwrap().is_none(), "there is no note");
            assert_eq!(outlook(&settings, None).unwrap(), None);
            let member = root.path().join(MEMBER_DIR);
            fs::create_dir(&member).unwrap();
            let identity = Identity { member_id: id, state: State::Joining, ..identity::sample() };
            identity::write_into(&member, &identity).unwrap();
            let mut journal = Journal::new(Id::LostData, old, OffsetDateTime::now_utc());
            journal.step = step;
            journal.write(root.path()).unwrap();
            let told = outlook(&settings, None).unwrap().expect("there is something to be finished");
            assert!(told.contains(&format!("replacing member {old}")), "{told}");
            assert!(resume(&settings, &mut None).unwrap().is_none(), "{id} {step:?}");
            assert_eq!(Journal::read(root.path()).unwrap(), None);
            assert!(member.exists());
        }
    }

    #[test]
    fn the_new_member_joins_whatever_the_first_start_was_told() {
        let root = tempfile::tempdir().unwrap();
        let mut journal =
            Journal::new(Id::LostData, MemberId(1), journal::time_of("20261122T174512Z").unwrap());
        (journal.name, journal.peer_urls) = ("n1".into(), vec!["http://127.0.0.1:1".into()]);
        let member = |id, name: &str, url: &str| Member {
            id,
            name: name.into(),
            peer_ur_ls: vec![url.into()],
            ..Member::default()
        };
        let members = [
            member(9, "", "http://127.0.0.1:1"),
            member(2, "n2", "http://127.0.0.1:2"),
            member(3, "", "http://127.0.0.1:3"),
        ];
        let asked = joiner(&settings(root.path()), &journal, MemberId(9), &members).unwrap().membership;
        assert_eq!(asked.initial_state, InitialState::Existing);
        assert_eq!(
            asked.initial_cluster.value.canonical(),
            "member-3=http://127.0.0.1:3,n1=http://127.0.0.1:1,n2=http://127.0.0.1:2"
        );
        let replaces = asked.replaces.unwrap();
        assert_eq!((replaces.member, replaces.at.as_str()), (MemberId(1), "2026-11-22T17:45:12Z"));
    }

    /// Refusals that no setting changes, and one that is told why.
    #[test]
    fn a_refusal_comes_back_as_it_was_where_it_is_no_loss() {
        let root = tempfile::tempdir().unwrap();
        let settings = settings(root.path());
        let given = Refusal::new(Id::DuplicateInstance, "it runs elsewhere");
        let Err(refusal) = instead(&settings, given.clone(), &mut None) else { panic!("nothing is lost") };
        assert_eq!(refusal, given);
        for at in ["20261122T120000Z", "20261122T130000Z", "20261122T140000Z"] {
            fs::create_dir(root.path().join(format!("member.quarantine-{at}"))).unwrap();
        }
        let Err(refusal) = instead(&settings, Refusal::new(Id::LostData, "it is empty"), &mut None) else {
            panic!("there were three before")
        };
        assert!(refusal.text().contains("auto-replace: no: 3 directories"), "{}", refusal.text());
        let told = outlook(&settings, Some(Id::LostData)).unwrap().expect("it is told");
        assert!(told.contains("no: 3 directories"), "{told}");
        assert_eq!(outlook(&settings, Some(Id::DuplicateInstance)).unwrap(), None);
    }
}
