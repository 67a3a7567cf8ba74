//! Verbs that look and do not start anything. What they print is for people; what they refuse is refused as a start would.

use std::{fmt::Write as _, path::Path};

use crate::{
    bootstrap::{facts, plan::BootPlan, prepare},
    config::{self, Surroundings, source::Source, table},
    identity::{self, FileError},
    refusal::{Id, Refusal},
};

/// `--version`: cairn's own version first, then the API level that tools look for.
pub fn version() -> String {
    format!("cairnd {}\netcd Version: {}\n", env!("CARGO_PKG_VERSION"), types::limits::ETCD_VERSION)
}

/// `config check`: the settings, and the data directory against them.
pub fn config_check(surroundings: &Surroundings) -> Result<String, Refusal> {
    let (settings, mut resolved) = config::load(surroundings)?;
    let plan = prepare::look(&settings, &mut resolved.notes)?;
    let mut out = String::new();
    for note in &resolved.notes {
        let fields: Vec<String> = note.fields.iter().map(|(key, value)| format!("{key}={value}")).collect();
        let _ = writeln!(out, "note: {}: {}", note.message, fields.join(" "));
    }
    let dir = settings.storage.data_dir.display();
    let _ = match plan {
        BootPlan::NewStatic(new) => writeln!(
            out,
            "ok: would found cluster {} as member {} ({}) in {dir}",
            new.cluster, new.member, new.name
        ),
        BootPlan::JoinExisting(joiner) => {
            writeln!(out, "ok: would ask the running cluster for the place of {} in {dir}", joiner.own.name)
        }
        BootPlan::Restart(returning) => {
            let identity = &returning.identity;
            writeln!(
                out,
                "ok: would start member {} ({}) of cluster {} again from {dir}",
                identity.member_id, identity.name, identity.cluster_id
            )
        }
        BootPlan::Discover(discoverer) => {
            writeln!(
                out,
                "ok: would look for the first members of the cluster of {} in {dir}",
                discoverer.own.name
            )
        }
    };
    Ok(out)
}

/// `config explain`: without a name every setting that somebody set, with one everything about it. The values are told also when they
/// cannot be used, beside the refusal that says why.
pub fn config_explain(surroundings: &Surroundings, key: Option<&str>) -> (String, Result<(), Refusal>) {
    let resolved = config::resolve(surroundings);
    let mut out = String::new();
    match key {
        None => {
            let file = resolved.file.as_deref().map_or("none".to_owned(), |file| file.display().to_string());
            let _ = writeln!(out, "file: {file}");
            for setting in table::settings().filter(|setting| resolved.values.is_given(setting.name)) {
                let text = setting.shown(resolved.values.text(setting.name));
                let _ = writeln!(out, "{} = {text}  ({})", setting.name, resolved.values.place(setting.name));
            }
        }
        Some(key) => {
            let bare = key.trim_start_matches('-');
            let Some(setting) = table::find(bare) else {
                let refusal = Refusal::new(Id::UnknownSetting, format!("there is no setting {bare}"));
                let refusal = match table::nearest_flag(bare) {
                    Some(near) => {
                        refusal.evidence("nearest name", near).remedy(format!("cairnd config explain {near}"))
                    }
                    None => refusal.remedy("see all of them: cairnd --help"),
                };
                return (out, Err(refusal));
            };
            let value = resolved.values.get(setting.name);
            let text = setting.shown(&value.text);
            let from = match &value.source {
                Source::Default => "default".to_owned(),
                _ => resolved.values.place(setting.name),
            };
            let _ = writeln!(out, "{} = {text}  ({from})", setting.name);
            let _ = writeln!(out, "  {}", setting.meaning);
            let _ = writeln!(
                out,
                "  flag {}, variable {}, file {}",
                setting.flag(),
                setting.variable(),
                setting.toml_shown()
            );
            let _ = writeln!(out, "  default {:?}", setting.default);
        }
    }
    let verdict = if resolved.problems.is_empty() { Ok(()) } else { Err(config::refuse(&resolved.problems)) };
    (out, verdict)
}

/// `identity show`: the identity file, and whether the log agrees.
pub fn identity_show(surroundings: &Surroundings) -> Result<String, Refusal> {
    let (settings, _) = config::load(surroundings)?;
    let facts = facts::gather(&settings)?;
    let member = settings.storage.data_dir.join(facts::MEMBER_DIR);
    let identity = match identity::read(&member) {
        Ok(Some(identity)) => identity,
        Ok(None) => return Err(nobody(&member)),
        Err(FileError::Damaged(why)) => {
            return Err(Refusal::new(Id::IdentityDamaged, "the identity file cannot be believed")
                .evidence(member.join(identity::IDENTITY_FILE).display().to_string(), why));
        }
        Err(FileError::Io(error)) => return Err(Refusal::io("read", &member, &error)),
    };
    let mut out = String::from_utf8_lossy(&identity.encode()).into_owned();
    let _ = match &facts.log.owner {
        None => writeln!(out, "log: none in {}", facts.log.dir.display()),
        Some(Err(why)) => writeln!(out, "log: {why}"),
        Some(Ok(owner)) if (owner.member, owner.cluster) == (identity.member_id, identity.cluster_id) => {
            writeln!(out, "log: agrees, in {}", facts.log.dir.display())
        }
        Some(Ok(owner)) => writeln!(out, "log: of member {} of cluster {}", owner.member, owner.cluster),
    };
    let state = if facts.state_present { "present" } else { "none" };
    let _ = writeln!(out, "state: {state}");
    Ok(out)
}

fn nobody(member: &Path) -> Refusal {
    Refusal::new(Id::IdentityMissing, "there is no identity file")
        .evidence("looked for", member.join(identity::IDENTITY_FILE).display().to_string())
        .remedy("name the data directory: cairnd identity show --data-dir=<directory>")
}
