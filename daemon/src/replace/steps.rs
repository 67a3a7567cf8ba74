//! The cluster's half of a replacement: the old id goes, a place for the new member comes. What to do next is read off the list of members
//! each time, so it may be cut short anywhere, and an answer that is lost does no harm.

use std::{
    future::Future,
    path::Path,
    time::{Duration, Instant},
};

use api::etcdserverpb::Member;
use tracing::{info, warn};
use types::MemberId;

use super::journal::{Journal, Step};
use crate::{
    refusal::{Id, Refusal},
    systemd,
};

/// How long the cluster is asked before the start gives up for now: an election and a leader that does not feel safe yet take seconds.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Between two tries.
const PAUSE: Duration = Duration::from_millis(500);

/// No wait is silent for longer.
const TOLD_EVERY: Duration = Duration::from_secs(5);

/// The cluster, as its clients reach it.
pub trait Outside {
    /// Confirmed by a quorum.
    fn list(&mut self) -> impl Future<Output = Result<Vec<Member>, String>>;
    fn remove(&mut self, id: MemberId) -> impl Future<Output = Result<(), String>>;
    fn add_learner(&mut self, peer_urls: &[String]) -> impl Future<Output = Result<MemberId, String>>;
}

#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    Remove(MemberId),
    Add,
    /// This place waits for the new member.
    Join(MemberId),
    Blocked(String),
}

pub fn next(journal: &Journal, members: &[Member]) -> Next {
    if members.iter().any(|member| member.id == journal.old.0) {
        return Next::Remove(journal.old);
    }
    let mut ours = None;
    for member in members {
        let mut urls = member.peer_ur_ls.clone();
        urls.sort();
        if urls == journal.peer_urls && member.name.is_empty() {
            ours = Some(MemberId(member.id));
        } else if urls.iter().any(|url| journal.peer_urls.contains(url)) || member.name == journal.name {
            return Next::Blocked(format!(
                "member {} ({}) {} has this member's name or one of its URLs",
                MemberId(member.id),
                member.name,
                urls.join(",")
            ));
        }
    }
    ours.map_or(Next::Add, Next::Join)
}

/// Ends with the place and everybody in the list.
pub async fn carry_out(
    journal: &mut Journal,
    data_dir: &Path,
    outside: &mut impl Outside,
    patience: Duration,
) -> Result<(MemberId, Vec<Member>), Refusal> {
    let old = journal.old;
    let began = Instant::now();
    let mut told: Option<Instant> = None;
    let mut asked = None;
    loop {
        let failed = match outside.list().await {
            Err(why) => format!("to be told the members: {why}"),
            Ok(members) => match next(journal, &members) {
                Next::Join(new) => {
                    note(journal, Step::Added, data_dir)?;
                    info!(old_member_id = %old, new_member_id = %new, "replacement: the cluster has a place for the new member");
                    return Ok((new, members));
                }
                Next::Blocked(why) => return Err(blocked(journal, data_dir, &why)),
                Next::Remove(id) => {
                    if asked.replace(Step::Removed) != Some(Step::Removed) {
                        info!(old_member_id = %old, "replacement: asking the cluster to remove the old member");
                    }
                    match outside.remove(id).await {
                        Ok(()) => {
                            info!(old_member_id = %old, "replacement: the old member is removed");
                            continue;
                        }
                        Err(why) => format!("{id} to be removed: {why}"),
                    }
                }
                Next::Add => {
                    note(journal, Step::Removed, data_dir)?;
                    if asked.replace(Step::Added) != Some(Step::Added) {
                        let peer_urls = &journal.peer_urls;
                        info!(old_member_id = %old, ?peer_urls, "replacement: asking the cluster to add a learner");
                    }
                    match outside.add_learner(&journal.peer_urls).await {
                        Ok(new) => {
                            info!(old_member_id = %old, new_member_id = %new, "replacement: a learner is added");
                            continue;
                        }
                        Err(why) => format!("a learner to be added: {why}"),
                    }
                }
            },
        };
        if began.elapsed() >= patience {
            return Err(unfinished(journal, &failed, patience));
        }
        if told.is_none_or(|at| at.elapsed() >= TOLD_EVERY) {
            told = Some(Instant::now());
            systemd::status(&format!("replacing member {old} by a learner: waiting for {failed}"));
            warn!(
                old_member_id = %old,
                waited_s = began.elapsed().as_secs(),
                limit_s = patience.as_secs(),
                waits_for = failed,
                "replacement: waiting for the cluster"
            );
        }
        tokio::time::sleep(PAUSE).await;
    }
}

pub fn note(journal: &mut Journal, step: Step, data_dir: &Path) -> Result<(), Refusal> {
    if journal.step >= step {
        return Ok(());
    }
    journal.step = step;
    let file = data_dir.join(crate::bootstrap::facts::REPLACEMENT);
    journal.write(data_dir).map_err(|error| Refusal::io("write", &file, &error))
}

fn unfinished(journal: &Journal, waits_for: &str, patience: Duration) -> Refusal {
    let old = journal.old;
    Refusal::new(
        Id::ReplaceUnfinished,
        format!("member {old} ({}) replaces itself, and the cluster has not let it finish yet", journal.name),
    )
    .evidence("done", done_in_words(journal.step))
    .evidence("waited for", format!("{waits_for} ({} s)", patience.as_secs()))
    .remedy("see that a majority of the other members runs and can be reached from here, then start again: it goes on from there")
    .remedy(format!("or finish by hand: {}", by_hand(journal)))
    .never("do not move a directory back whose name says quarantine: its member has forgotten promises")
}

pub fn blocked(journal: &Journal, data_dir: &Path, why: &str) -> Refusal {
    let file = data_dir.join(crate::bootstrap::facts::REPLACEMENT).display().to_string();
    Refusal::new(
        Id::ReplaceBlocked,
        format!("member {} ({}) cannot finish replacing itself", journal.old, journal.name),
    )
    .evidence("done", done_in_words(journal.step))
    .evidence("members", why)
    .remedy("give the other member a name and URLs of its own, or remove it, then start again: it goes on from there")
    .remedy(format!("or take this member back by hand: mv {file} {file}.given-up, then {}", by_hand(journal)))
    .never("do not move a directory back whose name says quarantine: its member has forgotten promises")
}

pub fn done_in_words(step: Step) -> &'static str {
    match step {
        Step::Decided => "nothing has moved yet",
        Step::Aside => "the old directory is aside",
        Step::Removed => "the old directory is aside, the old member is removed",
        Step::Added => {
            "the old directory is aside, the old member is removed, the cluster has a place for the new one"
        }
    }
}

fn by_hand(journal: &Journal) -> String {
    let endpoints: Vec<&str> =
        journal.others.iter().filter_map(|other| other.client_urls.first()).map(String::as_str).collect();
    let control = format!("cairnctl --endpoints={}", endpoints.join(","));
    format!(
        "{control} member remove {} (unless it is gone), then {control} member add {} --learner --peer-urls={}, then start with \
         --initial-cluster-state=existing",
        journal.old,
        journal.name,
        journal.peer_urls.join(",")
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replace::journal::time_of;

    fn member(id: u64, name: &str, url: &str) -> Member {
        Member { id, name: name.into(), peer_ur_ls: vec![url.into()], ..Member::default() }
    }

    fn journal() -> Journal {
        let mut journal = Journal::new(Id::LostData, MemberId(3), time_of("20261122T174512Z").unwrap());
        (journal.name, journal.peer_urls) = ("n3".into(), vec!["http://c:1".into()]);
        journal
    }

    #[test]
    fn every_membership_has_its_next_step() {
        let (one, two) = (member(1, "n1", "http://a:1"), member(2, "n2", "http://b:1"));
        let next = |third: Option<Member>| {
            next(&journal(), &[one.clone(), two.clone()].into_iter().chain(third).collect::<Vec<_>>())
        };
        assert_eq!(next(Some(member(3, "n3", "http://c:1"))), Next::Remove(MemberId(3)));
        assert_eq!(
            next(Some(member(3, "", "http://moved:1"))),
            Next::Remove(MemberId(3)),
            "wherever it was moved"
        );
        assert_eq!(next(None), Next::Add);
        assert_eq!(next(Some(member(9, "", "http://c:1"))), Next::Join(MemberId(9)), "an answer was lost");
        for other in [
            member(9, "n9", "http://c:1"),
            member(9, "n3", "http://d:1"),
            Member { peer_ur_ls: vec!["http://c:1".into(), "http://d:1".into()], ..member(9, "", "") },
        ] {
            assert!(matches!(next(Some(other)), Next::Blocked(why) if why.contains("member 9")));
        }
    }

    /// A cluster that can fail before or after each change: as its caller sees it, a kill at that moment.
    #[derive(Clone)]
    struct Fake {
        members: Vec<Member>,
        calls: usize,
        /// The call that fails, and whether it has taken effect.
        cut: Option<(usize, bool)>,
        ids: u64,
    }

    impl Fake {
        fn answers(&mut self, effect: impl FnOnce(&mut Fake)) -> Result<(), String> {
            self.calls += 1;
            match self.cut {
                Some((at, false)) if at == self.calls => return Err("cut".into()),
                _ => effect(self),
            }
            match self.cut {
                Some((at, true)) if at == self.calls => Err("cut".into()),
                _ => Ok(()),
            }
        }
    }

    impl Outside for Fake {
        async fn list(&mut self) -> Result<Vec<Member>, String> {
            self.answers(|_| ())?;
            Ok(self.members.clone())
        }

        async fn remove(&mut self, id: MemberId) -> Result<(), String> {
            self.answers(|fake| fake.members.retain(|member| member.id != id.0))
        }

        async fn add_learner(&mut self, peer_urls: &[String]) -> Result<MemberId, String> {
            let url = peer_urls[0].clone();
            self.answers(|fake| {
                fake.ids += 1;
                assert!(
                    fake.members.iter().all(|member| member.peer_ur_ls[0] != url),
                    "the cluster refuses it"
                );
                fake.members.push(Member { is_learner: true, ..member(fake.ids, "", &url) });
            })?;
            Ok(MemberId(self.ids))
        }
    }

    /// Each call fails once, before and after its effect, and the process starts again with what the disk says.
    #[test]
    fn cut_short_at_every_call_it_ends_with_one_new_member_and_without_the_old_one() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let mut cuts = 0;
        for at in 1..=6 {
            for after in [false, true] {
                let dir = tempfile::tempdir().unwrap();
                let members = vec![
                    member(1, "n1", "http://a:1"),
                    member(2, "n2", "http://b:1"),
                    member(3, "n3", "http://c:1"),
                ];
                let mut fake = Fake { members, calls: 0, cut: Some((at, after)), ids: 100 };
                let mut first = journal();
                first.step = Step::Aside;
                first.write(dir.path()).unwrap();
                let mut starts = 0;
                let (new, list) = loop {
                    starts += 1;
                    let mut found = Journal::read(dir.path()).unwrap().expect("it is not finished");
                    match runtime.block_on(carry_out(&mut found, dir.path(), &mut fake, Duration::ZERO)) {
                        Ok(done) => break done,
                        Err(refusal) => {
                            assert_eq!(refusal.id, Id::ReplaceUnfinished);
                            assert_eq!(refusal.exit() as u8, 75, "a service manager starts it again");
                            cuts += 1;
                        }
                    }
                    assert!(starts < 3);
                };
                let ids: Vec<u64> = list.iter().map(|member| member.id).collect();
                assert_eq!(ids, [1, 2, new.0], "cut at {at}, {after}");
                assert_eq!(Journal::read(dir.path()).unwrap().unwrap().step, Step::Added);
            }
        }
        assert_eq!(cuts, 10, "five calls make a replacement, and each was cut short twice");
    }

    #[test]
    fn a_place_that_somebody_else_has_is_not_fought_for() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let members = vec![member(1, "n1", "http://a:1"), member(9, "n9", "http://c:1")];
        let mut fake = Fake { members, calls: 0, cut: None, ids: 100 };
        let refused =
            runtime.block_on(carry_out(&mut journal(), dir.path(), &mut fake, Duration::ZERO)).unwrap_err();
        assert_eq!((refused.id, refused.exit() as u8), (Id::ReplaceBlocked, 79));
        assert!(refused.text().contains("n9"), "{}", refused.text());
    }
}
