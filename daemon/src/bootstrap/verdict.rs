//! A verdict of a peer in, the refusal that a start makes of it out: what is stored against what was seen at which peer, and the
//! commands that help, with the operator's own values. Pure.
//!
//! Not here: whether a verdict is believed (`identity::believe`), and when.

use ::identity::{Answer, Hello, Home, Life, Named, Restored, Unique, Verdict};
use types::MemberId;

use crate::refusal::{Id, Refusal};

/// The member that starts, as messages name it.
#[derive(Clone, Copy)]
pub struct Me<'a> {
    pub hello: &'a Hello,
    pub peer_urls: &'a [String],
    /// static, restore, ...: see `identity::Origin`.
    pub method: &'a str,
    /// The life that this directory was restored or forced out of.
    pub parent: Option<Unique>,
    /// What it was restored from.
    pub restored: Option<&'a Restored>,
    /// Whether a directory of this host is there.
    pub exists: &'a dyn Fn(&str) -> bool,
}

/// Who said it.
#[derive(Clone, Copy)]
pub struct Said<'a> {
    pub url: &'a str,
    pub answer: &'a Answer,
}

impl Said<'_> {
    fn at(&self) -> String {
        format!("at peer {} ({})", self.answer.hello.name, self.url)
    }
}

/// `None` for a welcome.
pub fn refusal(me: &Me, verdict: &Verdict, said: &Said) -> Option<Refusal> {
    // A restored member is no older copy of anything: it is another life, whatever the old one finds wrong with it first.
    let is_restored = matches!(me.method, "restore" | "force-new") && !matches!(me.hello.life, Life::Unborn);
    Some(match verdict {
        Verdict::Welcome => return None,
        Verdict::Removed { index, term, asked_through } => {
            removed(me, said, *index, *term, asked_through.as_deref())
        }
        Verdict::Pending => pending(me, said, me.hello.member),
        Verdict::Duplicate { boot_seq, home } => duplicate(me, said, *boot_seq, home),
        Verdict::OtherLife { yours, ours, came_from_yours } => {
            other_life(me, said, *yours, *ours, *came_from_yours)
        }
        _ if is_restored => restored_here(me, said),
        Verdict::Stranger => stranger(me, said),
        Verdict::LostData { dir, boot_seq, home } => lost_data(me, said, *dir, *boot_seq, home),
        Verdict::OlderBoot { boot_seq, home } => {
            let seen = format!("boot #{boot_seq} ({})", place(home));
            rolled_back(me, said, &seen, home)
        }
        Verdict::ShorterLog { last_index, term, boot_seq, home } => {
            let seen =
                format!("index >= {last_index} in term {term} from boot #{boot_seq} ({})", place(home));
            rolled_back(me, said, &seen, home)
        }
    })
}

fn lost_data(me: &Me, said: &Said, dir: Unique, boot_seq: u64, home: &Home) -> Refusal {
    let name = &me.hello.name;
    let cause = format!(
        "member {} ({name}) has run in another directory than this one, which has nothing of what it promised there",
        me.hello.member
    );
    let mut seen = match boot_seq {
        // It attended the founding, before anything was recorded of it.
        0 => format!("directory {dir}"),
        seq => format!("directory {dir}, boot #{seq} ({}), started {}", place(home), home.started),
    };
    if let Some(mark) = said.answer.known.watermark {
        seen += &format!(", index >= {} in term {}", mark.last_index, mark.term);
    }
    let refusal = Refusal::new(Id::LostData, cause).evidence("here", here(me)).evidence(said.at(), seen);
    with_old_directory(me, refusal, home)
        .remedy(replace(me, said))
        .never("do not let an empty member vote under an id that has voted before: what it acknowledged would be lost")
}

/// The first remedy, as far as is known where the newer directory is.
fn with_old_directory(me: &Me, refusal: Refusal, home: &Home) -> Refusal {
    let path = &home.path;
    refusal.remedy(match () {
        () if path.is_empty() => {
            "if its directory still exists: restart with --data-dir=<that directory>".to_owned()
        }
        () if home.host != me.hello.home.host => {
            format!("if the newer directory still exists: restart on {} with --data-dir={path}", home.host)
        }
        // What is at that path now is what was started.
        () if *path == me.hello.home.path => format!(
            "if the newer data still exist (a volume that is not mounted, a directory under another name): put them back at {path}, and \
             start again"
        ),
        () if (me.exists)(path) => format!("that directory is here: restart with --data-dir={path}"),
        () => format!("if the newer directory still exists: put it back at {path}, and restart with --data-dir={path}"),
    })
}

fn rolled_back(me: &Me, said: &Said, seen: &str, home: &Home) -> Refusal {
    let cause = format!(
        "this data directory is older than what the cluster has already seen from member {} ({})",
        me.hello.name, me.hello.member
    );
    let refusal = Refusal::new(Id::RolledBack, cause).evidence("here", here(me)).evidence(said.at(), seen);
    with_old_directory(me, refusal, home).remedy(replace(me, said)).never(
        "do not start this directory with --force-new-cluster: it would break promises the member made",
    )
}

fn duplicate(me: &Me, said: &Said, boot_seq: u64, home: &Home) -> Refusal {
    let member = format!("{} ({})", me.hello.name, me.hello.member);
    let here_too = home.host == me.hello.home.host;
    let stop =
        if here_too { format!("kill {}", home.pid) } else { format!("on {}: kill {}", home.host, home.pid) };
    Refusal::new(Id::DuplicateInstance, format!("member {member} already runs elsewhere"))
        .evidence("here", here(me))
        .evidence(
            said.at(),
            format!("boot #{boot_seq} ({}), pid {}, started {}", place(home), home.pid, home.started),
        )
        .remedy(format!("if this start is the right one, stop the other: {stop}"))
        .remedy(format!(
            "if this is a copy of its directory, give the copy up, and add a member of its own: {} member add <name> --peer-urls=<its URL>",
            others(me, said)
        ))
        .never("do not run one member twice: it would promise different things to different peers")
}

fn stranger(me: &Me, said: &Said) -> Refusal {
    let hello = me.hello;
    Refusal::new(
        Id::NotAMember,
        format!("the running cluster has no member {} ({})", hello.member, hello.name),
    )
    .evidence("here", here(me))
    .evidence(said.at(), format!("cluster {}: {}", said.answer.hello.cluster_id, shown(&said.answer.members)))
    .remedy(move_aside(me))
    .remedy(add(me, said))
    .never("do not start this directory with another name or token: its cluster goes on without it")
}

fn removed(me: &Me, said: &Said, index: u64, term: u64, through: Option<&str>) -> Refusal {
    let hello = me.hello;
    let has_data = hello.life != Life::Unborn;
    let mut members = said.answer.members.iter();
    let successor =
        members.find(|named| named.id != hello.member && same_urls(&named.peer_urls, me.peer_urls));
    if let (false, Some(place)) = (has_data, successor.filter(|named| named.name.is_empty())) {
        return pending(me, said, place.id);
    }
    let through = through.map(|member| format!(", as asked of member {member}")).unwrap_or_default();
    let cause = format!("member {} ({}) was removed from its cluster{through}", hello.member, hello.name);
    let mut refusal = Refusal::new(Id::Removed, cause)
        .evidence("here", here(me))
        .evidence(said.at(), format!("removed by log entry {index} of term {term}"));
    if let Some(Named { id, name, .. }) = successor {
        let name = if name.is_empty() { "not started" } else { name };
        refusal = refusal.evidence("in its place", format!("member {id} ({name})"));
    }
    if has_data {
        refusal = refusal.remedy(move_aside(me));
    }
    let refusal = match successor {
        None => refusal.remedy(add(me, said)),
        Some(place) if place.name.is_empty() => {
            refusal.remedy(format!("start with an empty data directory and {}", join_flags(me, said)))
        }
        Some(Named { id, .. }) => refusal
            .remedy(format!("if the directory of member {id} still exists: --data-dir=<that directory>"))
            .remedy(format!(
                "else replace that member: {} member remove {id}, then {}",
                others(me, said),
                add(me, said)
            )),
    };
    refusal.never("do not start this directory with another token or name: its cluster has decided")
}

/// Added to a running cluster, started as if it founded one.
pub fn pending(me: &Me, said: &Said, id: MemberId) -> Refusal {
    Refusal::new(
        Id::PendingMember,
        format!(
            "the running cluster waits for this member ({id}) to join, but this start would found a cluster"
        ),
    )
    .evidence("here", "--initial-cluster-state=new")
    .evidence(said.at(), shown(&said.answer.members))
    .remedy(format!("start with {}", join_flags(me, said)))
}

/// At the addresses of the first members there is a cluster already, and it is not the one that these settings would found.
pub fn cluster_runs(me: &Me, said: &Said) -> Refusal {
    let theirs = &said.answer.hello;
    let own = |named: &&Named| same_urls(&named.peer_urls, me.peer_urls);
    match said.answer.members.iter().find(own) {
        Some(named) if named.name.is_empty() => return pending(me, said, named.id),
        Some(named) => {
            let urls = me.peer_urls.join(",");
            let as_whom = format!("{} ({}) with {urls}", named.id, named.name);
            return Refusal::new(
                Id::ClusterRuns,
                "a running cluster has a member at this address already, under other settings than these",
            )
            .evidence("here", format!("member {} of cluster {}", me.hello.member, me.hello.cluster_id))
            .evidence(said.at(), format!("{}; member {as_whom}", lives(said)))
            .remedy(format!(
                "if this is that member: start with its data directory and the token and names it was founded with; \
                 if that directory is lost: {control} member remove {id}, then {control} member add {name} --peer-urls={urls}",
                control = others(me, said),
                id = named.id,
                name = me.hello.name,
            ))
            .remedy("if another cluster is to be founded: give its members addresses of their own")
            .never("do not found a second cluster at the addresses of a running one");
        }
        None => {}
    }
    let refusal = Refusal::new(
        Id::ClusterRuns,
        "at the address of a first member runs a cluster that these settings did not found",
    )
    .evidence("here", format!("cluster {} to be founded", me.hello.cluster_id))
    .evidence(
        said.at(),
        format!("{} as member {}: {}", lives(said), theirs.member, shown(&said.answer.members)),
    )
    .remedy(format!("to join it: {}", add(me, said)));
    let refusal = match alone(said) {
        Some(way) => refusal.remedy(way),
        None => refusal,
    };
    refusal
        .remedy(
            "to found another: correct --initial-cluster and --initial-cluster-token, on every member alike",
        )
        .never("do not found a second cluster at the addresses of a running one")
}

/// A first member that was started without the others in its settings has founded a cluster of itself. Its directory must not stay beside
/// the next one: a start that founds takes it for data of this member (`DATA_ELSEWHERE`).
fn alone(said: &Said) -> Option<String> {
    let theirs = &said.answer.hello;
    let [only] = said.answer.members.as_slice() else { return None };
    let dir = &theirs.home.path;
    (only.id == theirs.member).then(|| {
        format!(
            "if {name} was to be one of these first members and founded that cluster alone (its --initial-cluster was forgotten), and \
             nothing is kept in it yet: on {host} stop it, mv {dir} /var/tmp/{name}.alone, correct its settings, then start all of them",
            name = theirs.name,
            host = theirs.home.host,
        )
    })
}

fn other_life(me: &Me, said: &Said, yours: Unique, ours: Option<Unique>, came_from_yours: bool) -> Refusal {
    let theirs = ours.map_or("not named yet".to_owned(), |uuid| uuid.to_string());
    if me.parent.is_some() && me.parent == ours {
        return restored_here(me, said);
    }
    let (id, cause) = if came_from_yours {
        (
            Id::RestoredElsewhere,
            "the other members were restored or forced into a new life of the cluster; this directory belongs to the old one",
        )
    } else {
        (
            Id::OtherCluster,
            "this data directory belongs to another cluster than the members that it calls its own",
        )
    };
    Refusal::new(id, cause)
        .evidence("here", format!("{}; cluster {yours}", here(me)))
        .evidence(said.at(), format!("cluster {theirs}"))
        .remedy(move_aside(me))
        .remedy(add(me, said))
        .never("do not copy identity files between members: two lives of a cluster must not be mixed")
}

fn restored_here(me: &Me, said: &Said) -> Refusal {
    let parent = me.parent.map_or(String::new(), |parent| format!(", out of cluster {parent}"));
    Refusal::new(Id::RestoredElsewhere, "this directory was restored or forced into a new life; the running members were not")
        .evidence("here", format!("{}, made by {}{parent}", here(me), me.method))
        .evidence(said.at(), lives(said))
        .remedy("to go back to the backup: stop all members, restore every one of them from the same file, and start them")
        .remedy(format!("to keep the running cluster: {}", replace(me, said)))
        .never("do not mix restored and unrestored members: they would disagree about what was written")
}

/// A member that the cluster has not met yet, with another first state than the one that it began with.
pub fn began_otherwise(me: &Me, said: &Said) -> Refusal {
    let theirs = said.answer.known.restored.as_ref();
    let of = |restored: Option<&Restored>| restored.map_or("with nothing".to_owned(), from_backup);
    Refusal::new(
        Id::RestoredElsewhere,
        "this member and the running cluster did not begin with the same backup",
    )
    .evidence("here", format!("{}; begins {}", here(me), of(me.restored)))
    .evidence(said.at(), format!("{}; began {}", lives(said), of(theirs)))
    .remedy(match theirs {
        Some(_) => "if this member is to begin with the cluster: restore it from the same file, with the same flags, into an empty directory".to_owned(),
        None => "to go back to the backup: stop all members, restore every one of them from the same file, and start them".to_owned(),
    })
    .remedy(format!("to keep the running cluster: {}", replace(me, said)))
    .never("do not mix members that began differently: they would disagree about what was written")
}

/// As messages name it.
pub fn from_backup(restored: &Restored) -> String {
    let Restored { sha256, revision, is_compacted } = restored;
    let compacted = if *is_compacted { ", history before it compacted" } else { "" };
    let digest: String = sha256.chars().take(16).collect();
    format!("at revision {revision}{compacted} out of the backup with SHA-256 {digest}…")
}

fn lives(said: &Said) -> String {
    let theirs = &said.answer.hello;
    let uuid = said.answer.known.cluster_uuid.map(|uuid| format!(", {uuid}")).unwrap_or_default();
    format!("cluster {}{uuid}", theirs.cluster_id)
}

/// What this directory says of itself.
fn here(me: &Me) -> String {
    let hello = me.hello;
    match hello.life {
        Life::Unborn => format!("no data ({})", place(&hello.home)),
        _ => format!(
            "last index {}, term {}, boot #{} ({}), directory {}",
            hello.log.last_index,
            hello.log.term,
            hello.boot.seq,
            place(&hello.home),
            hello.dir
        ),
    }
}

fn place(home: &Home) -> String {
    format!("{} on {}", home.path, home.host)
}

fn move_aside(me: &Me) -> String {
    let dir = &me.hello.home.path;
    format!("move the directory aside: mv {dir} {dir}.old")
}

fn add(me: &Me, said: &Said) -> String {
    format!(
        "{} member add {} --peer-urls={}, then start with an empty data directory and {}",
        others(me, said),
        me.hello.name,
        me.peer_urls.join(","),
        join_flags(me, said)
    )
}

/// An id with lost history is never used again: the member goes and comes under a new one.
fn replace(me: &Me, said: &Said) -> String {
    let control = others(me, said);
    format!("else replace it: {control} member remove {}, then {}", me.hello.member, add(me, said))
}

/// As the cluster would list its members with this one added anew.
fn join_flags(me: &Me, said: &Said) -> String {
    let others = said.answer.members.iter().filter(|named| !same_urls(&named.peer_urls, me.peer_urls));
    let mut pairs: Vec<String> = others
        .flat_map(|named| {
            let name =
                if named.name.is_empty() { format!("member-{}", named.id) } else { named.name.clone() };
            named.peer_urls.iter().map(move |url| format!("{name}={url}"))
        })
        .collect();
    pairs.extend(me.peer_urls.iter().map(|url| format!("{}={url}", me.hello.name)));
    pairs.sort();
    format!("--initial-cluster-state=existing --initial-cluster={}", pairs.join(","))
}

fn same_urls(left: &[String], right: &[String]) -> bool {
    let (mut left, mut right) = (left.to_vec(), right.to_vec());
    left.sort();
    right.sort();
    left == right
}

fn shown(members: &[Named]) -> String {
    let one = |named: &Named| {
        let name = if named.name.is_empty() { "not started" } else { &named.name };
        format!("{} ({name}) {}", named.id, named.peer_urls.join(","))
    };
    let mut list: Vec<String> = members.iter().map(one).collect();
    list.sort();
    list.join("; ")
}

/// The control tool, pointed at those who serve clients: not at the member that does not start.
fn others(me: &Me, said: &Said) -> String {
    let members = said.answer.members.iter();
    let endpoints: Vec<&str> = members
        .filter(|named| named.id != me.hello.member && !same_urls(&named.peer_urls, me.peer_urls))
        .filter_map(|named| named.client_urls.first())
        .map(String::as_str)
        .collect();
    match endpoints.is_empty() {
        true => "cairnctl --endpoints=<a member's client URL>".to_owned(),
        false => format!("cairnctl --endpoints={}", endpoints.join(",")),
    }
}
