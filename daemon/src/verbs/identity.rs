//! `cairnd identity show`: the identity file for people, and whether log, state and lock agree with it. Reads only, also beside a member
//! that runs.

use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};

use super::{
    holder::{self, Lock},
    pretty,
};
use crate::{
    bootstrap::facts::{self, LogFact},
    cli::{GivenFlag, Look},
    config::{self, Settings, Surroundings, table},
    identity::{self, FileError, Identity, State},
    refusal::{Id, Refusal},
};

pub fn show(surroundings: &Surroundings, look: &Look) -> Result<String, Refusal> {
    let settings = settings(surroundings)?;
    let data_dir = &settings.storage.data_dir;
    let member = data_dir.join(facts::MEMBER_DIR);
    let identity = match identity::read(&member) {
        Ok(Some(identity)) => identity,
        Ok(None) => return Err(nobody(&member)),
        Err(FileError::Damaged(why)) => {
            return Err(Refusal::new(Id::IdentityDamaged, "the identity file cannot be believed")
                .evidence(member.join(identity::IDENTITY_FILE).display().to_string(), why)
                .remedy("restore the file from a backup of this very directory, or replace the member"));
        }
        Err(FileError::Io(error)) => return Err(Refusal::io("read", &member, &error)),
    };
    let facts = facts::gather(&settings)?;
    let lock = holder::look(data_dir);
    let log = log(&identity, &facts.log);
    let state = state(&member.join("state"));
    if look.json {
        return Ok(as_json(&identity, &member, &lock, &log, &state));
    }
    let mut out = described(&identity, &member);
    for (name, finding) in [("log", &log), ("state", &state)] {
        line(&mut out, name, &finding.text);
    }
    line(&mut out, "lock", &lock.told());
    Ok(out)
}

/// One thing that stands beside the identity file.
struct Finding {
    agrees: bool,
    text: String,
}

/// Only where the data are matters here, so settings that cannot be used otherwise are no hindrance.
fn settings(surroundings: &Surroundings) -> Result<Settings, Refusal> {
    let refusal = match config::load(surroundings) {
        Ok((settings, _)) => return Ok(settings),
        Err(refusal) => refusal,
    };
    let resolved = config::resolve(surroundings);
    let flags = ["data-dir", "wal-dir"].into_iter().filter_map(|name| {
        Some(GivenFlag { setting: table::find(name)?, text: resolved.values.text(name).to_owned() })
    });
    let bare = Surroundings { flags: flags.collect(), variables: Vec::new(), default_file: PathBuf::new() };
    match config::load(&bare) {
        Ok((settings, _)) if resolved.values.is_given("data-dir") => Ok(settings),
        _ => Err(refusal),
    }
}

fn nobody(member: &Path) -> Refusal {
    Refusal::new(Id::IdentityMissing, "there is no identity file")
        .evidence("looked for", member.join(identity::IDENTITY_FILE).display().to_string())
        .remedy("name the data directory: cairnd identity show --data-dir=<directory>")
}

fn log(identity: &Identity, log: &LogFact) -> Finding {
    let dir = log.dir.display();
    let begins = log.first_index.unwrap_or_default();
    let (agrees, text) = match &log.owner {
        None => (false, format!("none in {dir}")),
        Some(Err(why)) => (false, format!("cannot be read: {why}")),
        Some(Ok(owner)) if (owner.member, owner.cluster) != (identity.member_id, identity.cluster_id) => {
            (false, format!("DISAGREES: of member {} of cluster {} ({dir})", owner.member, owner.cluster))
        }
        Some(Ok(owner)) => match owner.dir {
            Some(uuid) if uuid != identity.dir_uuid => {
                (false, format!("DISAGREES: made with directory {uuid} ({dir})"))
            }
            Some(_) => {
                (true, format!("agrees in member, cluster and directory; begins at index {begins} ({dir})"))
            }
            None => (
                true,
                format!(
                    "agrees in member and cluster; made by a version that noted no directory; begins at index {begins} ({dir})"
                ),
            ),
        },
    };
    Finding { agrees, text }
}

fn state(dir: &Path) -> Finding {
    match storage::state_store::look(dir) {
        Ok(None) => Finding { agrees: true, text: format!("none in {}", dir.display()) },
        Ok(Some(current)) => Finding {
            agrees: true,
            text: format!("whole, in a form that this version knows ({})", current.display()),
        },
        Err(error) => Finding { agrees: false, text: error.to_string() },
    }
}

fn line(out: &mut String, name: &str, text: &str) {
    let _ = writeln!(out, "{name:14} {text}");
}

/// As people say it.
pub fn state_told(state: &State) -> String {
    match state {
        State::Unborn => "unborn: nobody has seen this member; it binds no setting".into(),
        State::Registering => "registering: a discovery service may have been told of it".into(),
        State::Formed => "formed: the first members are settled; the cluster has not committed yet".into(),
        State::Born => "born: it belongs to its cluster".into(),
        State::Joining => "joining: it has a place in a running cluster, and not yet its log".into(),
        State::Quarantined { reason, evidence } => {
            format!("quarantined: {reason} ({evidence}); it must be replaced")
        }
        State::Removed { index, term, asked_through } => {
            let through = asked_through.as_deref().map(|name| format!(", asked through {name}"));
            format!(
                "removed from its cluster by log entry {index} of term {term}{}",
                through.unwrap_or_default()
            )
        }
    }
}

fn described(identity: &Identity, member: &Path) -> String {
    let mut out = String::new();
    let or_none =
        |uuid: Option<identity::Unique>| uuid.map_or("none yet".to_owned(), |uuid| uuid.to_string());
    line(&mut out, "state", &state_told(&identity.state));
    line(&mut out, "member", &format!("{} ({})", identity.member_id, identity.name));
    line(&mut out, "peer URLs", &identity.peer_urls.join(", "));
    line(&mut out, "cluster", &format!("{}, token {}", identity.cluster_id, identity.token));
    line(&mut out, "cluster UUID", &or_none(identity.cluster_uuid));
    if let Some(parent) = identity.parent_uuid {
        line(&mut out, "came from", &format!("cluster UUID {parent}"));
    }
    let before = identity.prev_boot_nonce.map_or(String::new(), |nonce| format!(", before it {nonce}"));
    line(&mut out, "boot", &format!("#{}, mark {}{before}", identity.boot_seq, identity.boot_nonce));
    let log_dir = match identity.wal_dir_uuid == identity.dir_uuid {
        true => String::new(),
        false => format!(", of the log {}", identity.wal_dir_uuid),
    };
    line(&mut out, "directory", &format!("{}{log_dir}", identity.dir_uuid));
    if let Some(replaced) = &identity.replaces {
        line(&mut out, "replaces", &format!("member {}, by itself, since {}", replaced.member, replaced.at));
    }
    let origin = &identity.origin;
    let url = origin.discovery_url.as_deref().map(|url| format!(" through {url}")).unwrap_or_default();
    line(
        &mut out,
        "origin",
        &format!(
            "{}{url}, {} by cairn {}: {}",
            origin.method, origin.created_at, origin.version, origin.initial_cluster
        ),
    );
    let host = &identity.host;
    line(
        &mut out,
        "last used",
        &format!("on {} at {} (device {}, inode {})", host.name, host.path, host.device, host.inode),
    );
    for (at, known) in identity.members.iter().enumerate() {
        let own = if known.id == identity.member_id { ", this member" } else { "" };
        let learner = if known.is_learner { ", learner" } else { "" };
        let dir = known.dir_uuid.map_or(String::new(), |uuid| format!(", directory {uuid}"));
        let text = format!("{} ({}) {}{dir}{learner}{own}", known.id, known.name, known.peer_urls.join(","));
        line(&mut out, if at == 0 { "known members" } else { "" }, &text);
    }
    let stop = match &identity.clean_stop {
        Some(stop) => format!("orderly, with index {} applied in term {}", stop.last_index, stop.last_term),
        None => "not noted: it runs, or was killed, or has never run".to_owned(),
    };
    line(&mut out, "last stop", &stop);
    line(&mut out, "needs", &format!("cairn {} or newer", identity.min_version));
    line(&mut out, "file", &member.join(identity::IDENTITY_FILE).display().to_string());
    out
}

fn as_json(identity: &Identity, member: &Path, lock: &Lock, log: &Finding, state: &Finding) -> String {
    let fields: Value = serde_json::from_slice(&identity.encode()).unwrap_or_default();
    let finding = |finding: &Finding| json!({ "agrees": finding.agrees, "says": finding.text });
    let (held, pid) = match lock {
        Lock::Free(_) => (Some(false), None),
        Lock::Held { pid, .. } => (Some(true), Some(*pid)),
        Lock::Unknown(_) => (None, None),
    };
    pretty(&json!({
        "file": member.join(identity::IDENTITY_FILE).display().to_string(),
        "identity": fields,
        "log": finding(log),
        "state": finding(state),
        "lock": { "held": held, "pid": pid, "says": lock.told() },
    }))
}
