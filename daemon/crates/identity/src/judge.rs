//! A hello and what is known of its speaker in, a verdict out.

use serde::{Deserialize, Serialize};

use crate::{Boot, Hello, Home, Known, Life, Session, Standing, Unique};

/// What the hearer of a hello makes of it. Everything a message to the operator needs is inside.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    Welcome,
    /// Its directory belongs to another life of the cluster. `came_from_yours`: this cluster was restored or forced out of that one.
    OtherLife {
        yours: Unique,
        /// None where a restored or forced cluster has no leader yet that could name its new life.
        ours: Option<Unique>,
        came_from_yours: bool,
    },
    /// The list of members does not have it, which may be because the list is behind.
    Stranger,
    /// The place is prepared, but for a member that joins; this one was told to found a cluster.
    Pending,
    Removed {
        index: u64,
        term: u64,
        asked_through: Option<String>,
    },
    /// Another directory has made this member's promises.
    LostData {
        dir: Unique,
        boot_seq: u64,
        home: Home,
    },
    /// This directory has been started later than this start knows, or by somebody else: it is an older copy.
    OlderBoot {
        boot_seq: u64,
        home: Home,
    },
    /// The log ends before, or its term is below, what the cluster has seen from this member.
    ShorterLog {
        last_index: u64,
        term: u64,
        boot_seq: u64,
        home: Home,
    },
    /// Another start of the member is running.
    Duplicate {
        boot_seq: u64,
        home: Home,
    },
}

impl Verdict {
    pub fn is_welcome(&self) -> bool {
        *self == Verdict::Welcome
    }

    /// The speaker has less history than it once promised: it must neither vote nor acknowledge until this is cleared up.
    pub fn means_lost_history(&self) -> bool {
        matches!(self, Verdict::LostData { .. } | Verdict::OlderBoot { .. } | Verdict::ShorterLog { .. })
    }

    /// Whether the members' applied lists may simply be behind, so that asking again may be answered otherwise.
    pub fn may_pass(&self) -> bool {
        matches!(self, Verdict::Stranger | Verdict::Duplicate { .. })
    }

    /// The stable name in logs, metrics and headers.
    pub fn name(&self) -> &'static str {
        match self {
            Verdict::Welcome => "welcome",
            Verdict::OtherLife { .. } => "other_life",
            Verdict::Stranger => "stranger",
            Verdict::Pending => "pending",
            Verdict::Removed { .. } => "removed",
            Verdict::LostData { .. } => "lost_data",
            Verdict::OlderBoot { .. } => "older_boot",
            Verdict::ShorterLog { .. } => "shorter_log",
            Verdict::Duplicate { .. } => "duplicate",
        }
    }
}

/// Rules in this order: the life of the cluster, the list of members, a running twin, the directory, its boot, its log. Cluster *ids*
/// (etcd's, a function of the settings) are compared before, where etcd compares them.
pub fn judge(hello: &Hello, known: &Known) -> Verdict {
    if let Life::Born(yours) = hello.life {
        let came_from_yours = known.parent_uuid == Some(yours);
        // A restored member waits for the first leader of its new life: it must not take one of the old life for it.
        if known.cluster_uuid.map_or(came_from_yours, |ours| ours != yours) {
            return Verdict::OtherLife { yours, ours: known.cluster_uuid, came_from_yours };
        }
    }
    match &known.standing {
        Standing::Removed { index, term, asked_through } => {
            return Verdict::Removed { index: *index, term: *term, asked_through: asked_through.clone() };
        }
        Standing::Stranger => return Verdict::Stranger,
        Standing::Member { is_new: true, .. } if matches!(hello.life, Life::Unborn | Life::Formed) => {
            return Verdict::Pending;
        }
        Standing::Member { .. } => {}
    }
    // Where a majority founds, the member that was away may be one of an earlier life, whose log begins with the same entries. Whoever met
    // the founders may be born a moment before this one.
    if let Life::Born(yours) = hello.life
        && known.is_founding
        && known.cluster_uuid.is_none()
        && known.attendee != Some(hello.dir)
    {
        return Verdict::OtherLife { yours, ours: None, came_from_yours: false };
    }
    let is_twin = |session: &&Session| session.boot.nonce != hello.boot.nonce && !hello.succeeds(session);
    if let Some(session) = known.session.as_ref().filter(is_twin) {
        return Verdict::Duplicate { boot_seq: session.boot.seq, home: session.home.clone() };
    }
    let Some(record) = &known.record else {
        // Nothing is acknowledged before a record is written, but a vote may have been given.
        return match (known.attendee.filter(|attendee| *attendee != hello.dir), hello.life) {
            // It has had a life, and that of those whom it did not meet has not begun.
            (Some(_), Life::Born(yours)) if known.cluster_uuid.is_none() => {
                Verdict::OtherLife { yours, ours: None, came_from_yours: false }
            }
            (Some(dir), _) => Verdict::LostData { dir, boot_seq: 0, home: Home::default() },
            (None, _) => Verdict::Welcome,
        };
    };
    if record.dir != hello.dir {
        return Verdict::LostData { dir: record.dir, boot_seq: record.boot.seq, home: record.home.clone() };
    }
    if !follows(hello, &record.boot) {
        return Verdict::OlderBoot { boot_seq: record.boot.seq, home: record.home.clone() };
    }
    if let Some(mark) = known.watermark
        && (hello.log.last_index < mark.last_index || hello.log.term < mark.term)
    {
        return Verdict::ShorterLog {
            last_index: mark.last_index,
            term: mark.term,
            boot_seq: record.boot.seq,
            home: record.home.clone(),
        };
    }
    Verdict::Welcome
}

/// Whether a start came after the admitted one on the same directory. One that was admitted may be followed by starts that met nobody, and
/// so may an older copy: the count alone proves nothing. The directory remembers its starts, and the admitted one must be among them at its
/// place. Of a start that is longer ago than it remembers nothing is known.
fn follows(hello: &Hello, admitted: &Boot) -> bool {
    let boot = &hello.boot;
    let Some(since) = boot.seq.checked_sub(admitted.seq) else { return false };
    match since {
        0 => boot.nonce == admitted.nonce,
        1 => boot.previous == Some(admitted.nonce),
        _ => {
            let place = usize::try_from(since - 2).unwrap_or(usize::MAX);
            hello.earlier.get(place).is_none_or(|nonce| *nonce == admitted.nonce)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{LogEnd, Record, Watermark, Witness};
    use types::{ClusterId, MemberId};

    const UUID: Unique = unique(1);
    const DIR: Unique = unique(2);

    const fn unique(number: u8) -> Unique {
        Unique::from_bytes([number; 16])
    }

    fn boot(seq: u64, nonce: u8, previous: u8) -> Boot {
        Boot { seq, nonce: unique(nonce), previous: Some(unique(previous)) }
    }

    fn hello() -> Hello {
        Hello {
            cluster_id: ClusterId(1),
            member: MemberId(2),
            name: "n1".into(),
            life: Life::Born(UUID),
            dir: DIR,
            boot: boot(8, 108, 107),
            earlier: vec![unique(106), unique(105)],
            log: LogEnd { last_index: 70, last_term: 4, term: 5, commit: 70 },
            home: Home { host: "db1".into(), ..Home::default() },
            version: "0.1.0".into(),
        }
    }

    fn known() -> Known {
        Known {
            cluster_uuid: Some(UUID),
            parent_uuid: None,
            restored: None,
            is_founding: false,
            standing: Standing::Member { is_learner: false, is_new: false },
            record: Some(Record {
                dir: DIR,
                boot: boot(7, 107, 106),
                home: Home::default(),
                version: "0.1.0".into(),
            }),
            attendee: None,
            watermark: Some(Watermark { last_index: 70, term: 5 }),
            session: None,
            witness: Witness { member: MemberId(3), leads: true, term: 5, commit: 80 },
        }
    }

    fn verdict(change: impl FnOnce(&mut Hello, &mut Known)) -> &'static str {
        let (mut hello, mut known) = (hello(), known());
        change(&mut hello, &mut known);
        judge(&hello, &known).name()
    }

    #[test]
    fn a_member_is_its_directory_and_its_boot() {
        assert_eq!(verdict(|_, _| ()), "welcome");
        assert_eq!(verdict(|_, known| known.record = None), "welcome", "nothing is known against it");
        assert_eq!(verdict(|hello, _| hello.boot = boot(7, 107, 106)), "welcome", "the admitted boot itself");
        assert_eq!(verdict(|hello, _| hello.boot = boot(7, 99, 106)), "older_boot", "a copy of boot 6");
        assert_eq!(verdict(|hello, _| hello.boot = boot(8, 108, 99)), "older_boot", "a copy's boot 7");
        assert_eq!(verdict(|hello, _| hello.boot = boot(6, 106, 105)), "older_boot");
        let alone = |earlier: &'static [u8]| {
            verdict(|hello, _| {
                (hello.boot, hello.earlier) =
                    (boot(10, 110, 109), earlier.iter().map(|nonce| unique(*nonce)).collect());
            })
        };
        assert_eq!(alone(&[108, 107, 106]), "welcome", "it was started twice and met nobody");
        assert_eq!(alone(&[98, 97, 106]), "older_boot", "so was a copy of boot 6");
        assert_eq!(alone(&[98]), "welcome", "boot 7 is longer ago than it remembers");
        assert_eq!(verdict(|hello, _| hello.dir = unique(3)), "lost_data");
        assert_eq!(verdict(|hello, _| (hello.dir, hello.life) = (unique(3), Life::Unborn)), "lost_data");
        assert_eq!(verdict(|hello, _| hello.log.last_index = 69), "shorter_log");
        assert_eq!(verdict(|hello, _| hello.log.term = 4), "shorter_log", "a forgotten vote");
    }

    #[test]
    fn lives_of_a_cluster_do_not_mix() {
        assert_eq!(verdict(|hello, _| hello.life = Life::Born(unique(9))), "other_life");
        let mut known = known();
        known.parent_uuid = Some(unique(9));
        let verdict = judge(&Hello { life: Life::Born(unique(9)), ..hello() }, &known);
        assert!(matches!(verdict, Verdict::OtherLife { came_from_yours: true, .. }), "{verdict:?}");
        known.cluster_uuid = None;
        let verdict = judge(&Hello { life: Life::Born(unique(9)), ..hello() }, &known);
        assert!(
            matches!(verdict, Verdict::OtherLife { ours: None, came_from_yours: true, .. }),
            "{verdict:?}"
        );
        known.parent_uuid = None;
        assert_eq!(judge(&hello(), &known), Verdict::Welcome, "the new life has reached the speaker first");
    }

    /// F with a majority: two wiped members have formed a cluster and have no leader yet when the third comes back with the old one's data.
    #[test]
    fn founders_take_nobody_of_an_earlier_life_for_one_of_theirs() {
        let founding = |known: &mut Known| {
            (known.is_founding, known.cluster_uuid, known.record, known.watermark) = (true, None, None, None);
        };
        assert_eq!(verdict(|_, known| founding(known)), "other_life");
        let attended = |_: &mut Hello, known: &mut Known| {
            founding(known);
            known.attendee = Some(DIR);
        };
        assert_eq!(verdict(attended), "welcome", "born a moment earlier");
        let another_attended = |_: &mut Hello, known: &mut Known| {
            founding(known);
            (known.is_founding, known.attendee) = (false, Some(unique(77)));
        };
        assert_eq!(verdict(another_attended), "other_life", "what it promised was promised to others");
        let formed = |hello: &mut Hello, known: &mut Known| {
            founding(known);
            hello.life = Life::Formed;
        };
        assert_eq!(verdict(formed), "welcome", "it formed with a majority that this one did not see");
    }

    #[test]
    fn who_was_never_admitted_takes_its_place_late() {
        let late = |hello: &mut Hello, known: &mut Known| {
            (hello.life, known.record, known.watermark) = (Life::Unborn, None, None);
        };
        assert_eq!(verdict(late), "welcome");
        let attended = |hello: &mut Hello, known: &mut Known| {
            late(hello, known);
            known.attendee = Some(unique(3));
        };
        assert_eq!(verdict(attended), "lost_data", "another directory may have voted");
        let added = |hello: &mut Hello, known: &mut Known| {
            late(hello, known);
            known.standing = Standing::Member { is_learner: false, is_new: true };
        };
        assert_eq!(verdict(added), "pending", "added to a running cluster, started as if it founded one");
    }

    #[test]
    fn who_is_not_on_the_list_and_who_runs_twice() {
        assert_eq!(verdict(|_, known| known.standing = Standing::Stranger), "stranger");
        let removed = Standing::Removed { index: 9, term: 2, asked_through: None };
        assert_eq!(verdict(|_, known| known.standing = removed), "removed");
        let session =
            |nonce| Session { dir: DIR, boot: boot(7, nonce, 106), home: Home::default(), is_quiet: false };
        let twin = |nonce| Some(session(nonce));
        assert_eq!(
            verdict(|_, known| known.session = twin(107)),
            "duplicate",
            "the first holder keeps its place"
        );
        assert_eq!(
            verdict(|_, known| known.session = twin(108)),
            "welcome",
            "itself, over another connection"
        );
        let at = |seat: &str| Home { seat: Some(seat.to_owned()), ..Home::default() };
        let after = |change: fn(&mut Session), seat: &'static str| {
            verdict(|hello, known| {
                hello.home = at(seat);
                let mut before = Session { home: at("a"), is_quiet: true, ..session(107) };
                change(&mut before);
                known.session = Some(before);
            })
        };
        assert_eq!(after(|_| (), "a"), "welcome", "it holds the lock that the other one held");
        assert_eq!(after(|_| (), "b"), "duplicate", "a copy of the directory");
        assert_eq!(after(|before| before.home.seat = None, "a"), "duplicate", "of an older version");
        assert_eq!(
            after(|before| before.is_quiet = false, "a"),
            "duplicate",
            "a copy of the machine that runs"
        );
        assert_eq!(after(|before| before.boot.seq = 8, "a"), "duplicate", "which of the two came later?");
        assert_eq!(after(|before| before.dir = unique(9), "a"), "duplicate");
    }

    #[test]
    fn verdicts_and_hellos_travel_as_json() {
        let verdict = Verdict::Duplicate { boot_seq: 7, home: hello().home };
        let text = serde_json::to_string(&verdict).unwrap();
        assert_eq!(serde_json::from_str::<Verdict>(&text).unwrap(), verdict);
        let text = serde_json::to_string(&hello()).unwrap();
        assert_eq!(serde_json::from_str::<Hello>(&text).unwrap(), hello());
    }
}
