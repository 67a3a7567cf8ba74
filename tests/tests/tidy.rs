//! The repository keeps its own rules: which crate may know which, what the pure crates must not touch, what stands at the top level.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::Value;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the tests live in the workspace").to_owned()
}

/// Who may depend on whom among our own packages (normal dependencies). An arrow only ever points to something listed.
const ALLOWED: &[(&str, &[&str])] = &[
    ("cairn-types", &[]),
    ("cairn-api", &[]),
    ("cairn-dbfile", &[]),
    ("cairn-identity", &["cairn-types"]),
    ("cairn-state-machine", &["cairn-types", "cairn-api", "cairn-identity"]),
    ("cairn-consensus", &["cairn-types", "cairn-api"]),
    ("cairn-watch", &["cairn-types", "cairn-api"]),
    ("cairn-lessor", &["cairn-types", "cairn-api"]),
    ("cairn-storage", &["cairn-types", "cairn-api", "cairn-dbfile", "cairn-identity", "cairn-state-machine"]),
    ("cairn-transport", &["cairn-types", "cairn-api", "cairn-identity"]),
    (
        "cairn-node",
        &[
            "cairn-types",
            "cairn-api",
            "cairn-identity",
            "cairn-state-machine",
            "cairn-consensus",
            "cairn-storage",
            "cairn-transport",
            "cairn-watch",
            "cairn-lessor",
        ],
    ),
    ("cairn-server", &["cairn-types", "cairn-api", "cairn-state-machine", "cairn-node"]),
    (
        "cairnd",
        &[
            "cairn-types",
            "cairn-api",
            "cairn-dbfile",
            "cairn-identity",
            "cairn-state-machine",
            "cairn-storage",
            "cairn-transport",
            "cairn-node",
            "cairn-server",
        ],
    ),
    ("cairnctl", &["cairn-api", "cairn-dbfile"]),
    (
        "cairn-tests",
        &[
            "cairn-types",
            "cairn-api",
            "cairn-dbfile",
            "cairn-identity",
            "cairn-consensus",
            "cairn-state-machine",
            "cairn-watch",
            "cairn-lessor",
        ],
    ),
];

/// Crates whose every decision must replay from a seed: no runtime, no randomness, no network, no files.
const PURE: &[&str] = &[
    "cairn-types",
    "cairn-identity",
    "cairn-state-machine",
    "cairn-consensus",
    "cairn-watch",
    "cairn-lessor",
];
const IMPURE: &[&str] =
    &["tokio", "hyper", "nix", "fjall", "getrandom", "socket2", "time", "tracing", "tempfile"];
const IMPURE_WORDS: &[&str] =
    &["std::fs", "std::net", "std::thread", "std::process", "SystemTime", "Instant::now", "std::env::"];

#[test]
fn dependencies_point_inwards_and_pure_crates_are_pure() {
    let output = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["metadata", "--format-version=1", "--no-deps", "--offline", "--locked"])
        .current_dir(root())
        .output()
        .expect("cargo metadata runs");
    assert!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("cargo metadata prints JSON");
    let packages = metadata["packages"].as_array().expect("packages");
    let ours: BTreeSet<&str> = packages.iter().filter_map(|package| package["name"].as_str()).collect();
    let allowed: BTreeMap<&str, &[&str]> = ALLOWED.iter().copied().collect();
    assert_eq!(
        ours,
        allowed.keys().copied().collect(),
        "a package without a row in ALLOWED, or a row without one"
    );
    for package in packages {
        let name = package["name"].as_str().expect("a name");
        for dependency in package["dependencies"].as_array().expect("dependencies") {
            if !dependency["kind"].is_null() {
                continue;
            }
            let on = dependency["name"].as_str().expect("a name");
            if ours.contains(on) {
                assert!(allowed[name].contains(&on), "{name} must not know {on}");
            }
            assert!(
                !(PURE.contains(&name) && IMPURE.contains(&on)),
                "{name} is pure and must not depend on {on}"
            );
        }
    }
}

#[test]
fn pure_crates_name_nothing_impure() {
    for package in PURE {
        let directory = root().join("daemon/crates").join(package.trim_start_matches("cairn-")).join("src");
        for file in rust_files(&directory) {
            let text = fs::read_to_string(&file).expect("source file");
            let code = text.split("#[cfg(test)]").next().unwrap_or_default();
            for word in IMPURE_WORDS {
                let used =
                    code.lines().any(|line| !line.trim_start().starts_with("//") && line.contains(word));
                assert!(!used, "{}: {word} in a pure crate", file.display());
            }
        }
    }
}

#[test]
fn nothing_prints_past_the_log() {
    // Refusals and verbs speak to a person on purpose and live in modules of their own.
    for file in rust_files(&root().join("daemon/crates")) {
        if file.components().any(|part| part.as_os_str() == "tests" || part.as_os_str() == "examples") {
            continue;
        }
        let text = fs::read_to_string(&file).expect("source file");
        let code = text.split("#[cfg(test)]").next().unwrap_or_default();
        for word in ["println!", "eprintln!", "print!(", "dbg!"] {
            let used = code.lines().any(|line| !line.trim_start().starts_with("//") && line.contains(word));
            assert!(!used, "{}: {word}: events go to the log", file.display());
        }
    }
}

#[test]
fn the_top_level_is_the_agreed_one() {
    let output = Command::new("git").args(["ls-files"]).current_dir(root()).output().expect("git runs");
    let tops: BTreeSet<String> = String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|path| path.split('/').next().map(str::to_owned))
        .filter(|top| !top.starts_with('.'))
        .collect();
    let agreed: BTreeSet<String> = [
        "Cargo.toml",
        "Cargo.lock",
        "README.md",
        "LICENSE",
        "daemon",
        "ctl",
        "packaging",
        "etc",
        "tests",
        "docs",
    ]
    .map(str::to_owned)
    .into();
    let extra: Vec<&String> = tops.difference(&agreed).collect();
    assert!(extra.is_empty(), "not part of the agreed layout: {extra:?}");
}

/// What docs/compatibility.md says of flags, gates and verbs is what the generated pages say, which are made from the code.
#[test]
fn the_page_on_compatibility_says_what_the_code_does() {
    let read = |page: &str| fs::read_to_string(root().join("docs").join(page)).expect("document");
    let (page, settings, verbs) = (read("compatibility.md"), read("configuration.md"), read("cairnctl.md"));
    // Cells of the rows whose first cell is code, from a heading to the next one.
    let rows = |heading: &str| -> Vec<Vec<String>> {
        let section = page.split(&format!("### {heading}\n")).nth(1);
        let found = rows_of(section.unwrap_or_else(|| panic!("no section {heading}")));
        assert!(!found.is_empty(), "no rows under {heading}: the check looks at nothing");
        found
    };

    let honoured = |here: &str| match here {
        "as described" => "works".to_owned(),
        _ if here.starts_with("Accepted without effect") => "without effect".into(),
        _ if here.starts_with("Refused unless default") => "NOT_SUPPORTED".into(),
        _ => match here.trim_start_matches("Sets ").trim_end_matches('.').split_once("feature gate ") {
            Some((_, gate)) => format!("as gate `{gate}`"),
            None => format!("as `{}`", here.trim_start_matches("Sets ").trim_end_matches('.')),
        },
    };
    let (flags, gates) = settings.split_once("## Gates").expect("a section on gates");
    let done: BTreeMap<String, String> = flags
        .split("\n## ")
        .flat_map(|section| rows_of(section.trim_start_matches('#')))
        .map(|row| (row[0].trim_start_matches("--").to_owned(), honoured(&row[row.len() - 2])))
        .collect();
    let mut said = BTreeMap::new();
    for row in rows("Flags that only some versions have") {
        assert!(said.insert(row[0].clone(), row[2].clone()).is_none(), "{} stands there twice", row[0]);
    }
    let everywhere = page.split("### Flags that all four have\n").nth(1).expect("a section");
    for line in everywhere.lines().take_while(|line| !line.starts_with('#')).filter(|line| line.contains('`'))
    {
        let Some((word, names)) = line.trim_matches(['|', ' ']).split_once(" | ") else { continue };
        for name in names.split(' ') {
            let name = name.trim_matches('`').to_owned();
            assert!(said.insert(name.clone(), word.to_owned()).is_none(), "{name} stands there twice");
        }
    }
    for (name, word) in &said {
        assert_eq!(
            Some(word),
            done.get(name),
            "--{name}: left: docs/compatibility.md, right: configuration.md"
        );
    }
    let known = fs::read_to_string(root().join("daemon/tests/data/etcd-flags.txt")).expect("etcd's flags");
    for name in known.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        assert!(said.contains_key(name), "etcd's flag {name} has no row in docs/compatibility.md");
    }

    let effect = |here: &str| if here.starts_with("no effect") { "without effect" } else { "works" };
    let done: BTreeMap<String, &str> =
        rows_of(gates).into_iter().map(|row| (row[0].clone(), effect(&row[2]))).collect();
    let told = rows("Feature gates");
    let said: BTreeMap<String, &str> = told.iter().map(|row| (row[0].clone(), row[2].as_str())).collect();
    assert_eq!(said, done, "left: gates of docs/compatibility.md, right: configuration.md");

    let verbs = verbs.split("<!-- verbs").nth(1).expect("the generated table").split("<!-- end").next();
    let known: BTreeSet<String> =
        rows_of(verbs.expect("its end")).into_iter().map(|row| row[0].clone()).collect();
    let mut told = BTreeSet::new();
    for row in rows("Verbs of etcdctl and etcdutl") {
        let works = row[2] == "works";
        let as_it_is = match row[0].split_once(' ') {
            Some(("etcdctl", verb)) => works == known.contains(verb),
            // What etcdutl does with files is not what a verb of the same name asks of a member.
            Some(("etcdutl", verb)) => !works || known.contains(verb),
            _ => true,
        };
        assert!(as_it_is, "{}: {} in docs/compatibility.md", row[0], row[2]);
        told.insert(row[0].clone());
    }
    assert!(told.len() > 50, "the table of verbs is whole");
}

/// The cells of table rows that begin with code, up to the next heading. The first cell is the first code in it, without its marks.
fn rows_of(section: &str) -> Vec<Vec<String>> {
    let lines = section.lines().take_while(|line| !line.starts_with('#'));
    lines
        .filter_map(|line| line.strip_prefix("| `"))
        .map(|row| {
            let mut cells: Vec<String> =
                row.replace("\\|", "/").split('|').map(|cell| cell.trim().to_owned()).collect();
            cells[0] = cells[0].split('`').next().unwrap_or_default().to_owned();
            // What stands behind the last bar is no cell.
            cells.pop();
            cells
        })
        .collect()
}

#[test]
fn links_between_documents_lead_somewhere() {
    let mut documents: Vec<PathBuf> = vec![root().join("README.md")];
    documents.extend(files(&root().join("docs"), "md"));
    let mut checked = 0;
    for document in documents {
        let text = fs::read_to_string(&document).expect("document");
        for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if target.contains("://") || target.starts_with('#') {
                continue;
            }
            let path =
                document.parent().expect("a directory").join(target.split('#').next().unwrap_or_default());
            assert!(path.exists(), "{} links to {target}, which is not there", document.display());
            checked += 1;
        }
    }
    assert!(checked > 0, "no links found: the check looks at nothing");
}

fn rust_files(directory: &Path) -> Vec<PathBuf> {
    files(directory, "rs")
}

fn files(directory: &Path, extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let Ok(entries) = fs::read_dir(directory) else { return found };
    for entry in entries.flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(files(&path, extension));
        } else if path.extension().is_some_and(|found| found == extension) {
            found.push(path);
        }
    }
    found
}
