//! The manual pages cairnd(8) and cairnd.toml(5), read off what --help prints, the table of settings and docs/operations.md (exit codes,
//! signals). They stand in packaging/man; a test compares. To write them anew: `UPDATE=1 cargo test -p cairnd manual`.

use std::{fmt::Write as _, path::Path};

use super::{
    generate,
    table::{Group, Setting, settings},
};

const OPERATIONS: &str = include_str!("../../../docs/operations.md");

/// Text as roff prints it: no escapes, no hyphens, and no line that roff takes for a request.
fn plain(text: &str) -> String {
    let mut out = String::new();
    for (i, line) in text.split('\n').enumerate() {
        if i > 0 {
            out.push('\n');
        }
        if line.starts_with(['.', '\'']) {
            out.push_str("\\&");
        }
        for c in line.chars() {
            match c {
                '\\' => out.push_str("\\e"),
                '-' => out.push_str("\\-"),
                '\'' => out.push_str("\\(aq"),
                '`' => out.push_str("\\(ga"),
                '~' => out.push_str("\\(ti"),
                '^' => out.push_str("\\(ha"),
                c => out.push(c),
            }
        }
    }
    out
}

/// Lines that stay lines.
fn lines(out: &mut String, text: &str) {
    let _ = writeln!(out, ".nf\n{}\n.fi", plain(text.trim_matches('\n')));
}

/// A paragraph of Markdown without its signs.
fn unmarked(text: &str) -> String {
    let text = text.replace("**", "").replace('`', "");
    let mut out = String::new();
    let mut rest = text.as_str();
    // [words](place) is words.
    while let Some((before, link)) = rest.split_once('[') {
        out.push_str(before);
        match link.split_once("](").and_then(|(words, after)| Some((words, after.split_once(')')?.1))) {
            Some((words, after)) => {
                out.push_str(words);
                rest = after;
            }
            None => {
                out.push('[');
                rest = link;
            }
        }
    }
    out.push_str(rest);
    out.lines().map(str::trim).collect::<Vec<_>>().join("\n")
}

/// What operations.md says in the point of this name.
fn point(name: &str) -> String {
    let start = format!("* **{name}.** ");
    let rest =
        OPERATIONS.split(&start).nth(1).unwrap_or_else(|| panic!("docs/operations.md has no point {name}"));
    let end = ["\n* **", "\n\n"].iter().filter_map(|end| rest.find(end)).min().unwrap_or(rest.len());
    unmarked(&rest[..end])
}

/// Code, meaning, and whether trying again helps.
fn exit_codes() -> Vec<[String; 3]> {
    let table = OPERATIONS.split("\n## Exit codes\n").nth(1).and_then(|rest| rest.split("\n## ").next());
    let rows =
        table.expect("docs/operations.md lists the exit codes").lines().filter(|line| line.starts_with("| "));
    let cells = |line: &str| {
        let mut cells = line.trim_matches('|').split('|').map(|cell| unmarked(cell.trim()));
        std::array::from_fn(|_| cells.next().unwrap_or_default())
    };
    rows.skip(1).map(cells).collect()
}

fn head(out: &mut String, page: &str, section: u8, about: &str) {
    let _ = writeln!(
        out,
        ".\\\" Generated from the table of settings: UPDATE=1 cargo test -p cairnd manual\n\
         .TH {} {section} \"\" cairn \"cairn\"\n.SH NAME\n{page} \\- {about}",
        page.to_uppercase()
    );
}

fn meaning(setting: &Setting) -> String {
    format!("{}{}", setting.meaning, generate::effect_suffix(setting))
}

fn cairnd() -> String {
    let mut out = String::new();
    head(&mut out, "cairnd", 8, "a member of a replicated key\\-value cluster that speaks etcd\\(aqs v3 API");
    let (_, usage) = generate::USAGE.split_once("Usage:\n").expect("the help begins with the usage");
    let (synopsis, about) = usage.split_once("\n\n").expect("the usage ends with an empty line");
    let _ = writeln!(out, ".SH SYNOPSIS");
    lines(&mut out, synopsis);
    let _ = writeln!(out, ".SH DESCRIPTION");
    for paragraph in about.split("\n\n") {
        let _ = writeln!(out, "{}\n.PP", plain(paragraph.trim()));
    }
    let _ = writeln!(
        out,
        "Installing the package starts nothing. Write who this member is into\n.IR /etc/cairn/cairnd.toml ,\nlook at what a start would come to with\n\
         .BR \"cairnd doctor\" ,\nthen enable it with\n.BR \"systemctl enable \\-\\-now cairnd\" .\n\
         Several members on one host are instances: cairnd@NAME.service reads /etc/cairn/NAME.toml and keeps its data below /var/lib/cairn/NAME."
    );
    let _ = writeln!(out, ".SH OPTIONS");
    for group in Group::ALL.into_iter().filter(|group| !matches!(group, Group::Removed | Group::Ignored)) {
        let _ = writeln!(out, ".SS {}", plain(group.title()));
        for setting in settings().filter(|setting| setting.group == group) {
            let default = if setting.default.is_empty() {
                String::new()
            } else {
                format!(" [{}]", plain(setting.default))
            };
            let _ = writeln!(
                out,
                ".TP\n\\fB\\-\\-{}\\fR{default}\n{}",
                plain(setting.name),
                plain(&meaning(setting))
            );
        }
    }
    let _ = writeln!(out, ".SH SIGNALS\n.TP\n.B SIGTERM, SIGINT\n{}", plain(&point("Stop")));
    let _ = writeln!(out, ".TP\n.B SIGHUP\n{}", plain(&point("Reload")));
    let _ = writeln!(out, ".SH EXIT STATUS\nThe last word tells whether trying again helps.");
    for [code, meaning, again] in exit_codes() {
        let again = if again == "–" { String::new() } else { format!(" ({again})") };
        let _ = writeln!(out, ".TP\n.B {code}\n{}{}", plain(&meaning), plain(&again));
    }
    out.push_str(
        ".SH ENVIRONMENT\nEvery flag is also a variable: \\-\\-data\\-dir is ETCD_DATA_DIR. Under systemd the variables come from\n\
         .I /etc/default/cairnd\n(Debian) or\n.I /etc/sysconfig/cairnd\n(RPM).\n\
         .SH FILES\n.TP\n.I /etc/cairn/cairnd.toml\nWho this member is, and every setting: see\n.BR cairnd.toml (5).\nWithout it the unit does not start.\n\
         .TP\n.I /usr/share/doc/cairnd/cairnd.toml.example\nEvery setting with its default, to begin with.\n\
         .TP\n.I /var/lib/cairn\nThe data. No package ever deletes it.\n\
         .TP\n.I /usr/share/doc/cairnd/operations.md\nStart and stop, backup, membership, and every refusal with cause and remedy.\n\
         .TP\n.I /usr/share/cairn/prometheus, /usr/share/cairn/grafana\nAlerts and a dashboard.\n\
         .SH SEE ALSO\n.BR cairnd.toml (5),\n.BR cairnctl (1),\n.BR systemctl (1)\n",
    );
    out
}

fn cairnd_toml() -> String {
    let mut out = String::new();
    head(&mut out, "cairnd.toml", 5, "settings of cairnd");
    out.push_str(
        ".SH SYNOPSIS\n.I /etc/cairn/cairnd.toml\n.SH DESCRIPTION\nA file in TOML. Its keys are the names of the flags of\n.BR cairnd (8);\n\
         two groups of settings are tables. A flag counts before the variable, the variable before the file, the file before the default, for\n\
         each setting by itself. Keys that cairnd does not know are refused with line and column.\n.PP\n\
         .B cairnd config check \\-\\-config\\-file=\\fIfile\\fP\ntells whether it can be used,\n\
         .B cairnd config explain\nwhere each value comes from.\n.PP\n\
         Durations are written 250ms, 1m30s, 2h. Sizes are bytes, or numbers with KiB, MiB, GiB, TiB (1024) or kB, MB, GB, TB (1000). Lists are\n\
         arrays, or texts with commas. URLs, lists and durations are texts in quotation marks.\n\
         .SH EXAMPLE\nOne of three members:\n.PP\n.nf\n.RS\n\
         name = \"n1\"\n\
         data\\-dir = \"/var/lib/cairn/n1\"\n\
         listen\\-peer\\-urls = \"http://192.0.2.1:2380\"\n\
         listen\\-client\\-urls = \"http://192.0.2.1:2379,http://127.0.0.1:2379\"\n\
         initial\\-advertise\\-peer\\-urls = \"http://192.0.2.1:2380\"\n\
         advertise\\-client\\-urls = \"http://192.0.2.1:2379\"\n\
         initial\\-cluster = \"n1=http://192.0.2.1:2380,n2=http://192.0.2.2:2380,n3=http://192.0.2.3:2380\"\n\
         .RE\n.fi\n.SH SETTINGS\n",
    );
    let (top, tables): (Vec<Group>, Vec<Group>) =
        Group::ALL.iter().partition(|group| group.toml_table().is_none());
    for group in top.into_iter().chain(tables).filter(|group| *group != Group::Removed) {
        let rows: Vec<&Setting> =
            settings().filter(|setting| setting.group == group && setting.toml_place().is_some()).collect();
        if rows.is_empty() {
            continue;
        }
        let table = group.toml_table().map(|table| format!(" [{table}]")).unwrap_or_default();
        let _ = writeln!(out, ".SS {}{}", plain(group.title()), plain(&table));
        for setting in rows {
            let key = setting.toml_place().map_or("", |(_, key)| key);
            let default = if setting.default.is_empty() {
                String::new()
            } else {
                format!("; default {}", setting.default)
            };
            let kind = plain(&format!("{}{default}", setting.kind.describe()));
            let _ = writeln!(out, ".TP\n\\fB{}\\fR ({kind})\n{}", plain(key), plain(&meaning(setting)));
        }
    }
    out.push_str(
        ".SH FILES\n.TP\n.I /etc/cairn/conf.d/*.toml\nRead after the file, in the order of their names; of a key that stands in several the last counts. An instance\n\
         cairnd@NAME reads /etc/cairn/NAME.toml and /etc/cairn/NAME.conf.d/*.toml.\n.PP\n\
         The file may hold passwords: keep it at mode 0640, root:cairn.\n\
         .SH SEE ALSO\n.BR cairnd (8),\n.BR cairnctl (1)\n.br\n/usr/share/doc/cairnd/configuration.md\n",
    );
    out
}

#[test]
fn manual_pages_are_current() {
    for (name, text) in [("cairnd.8", cairnd()), ("cairnd.toml.5", cairnd_toml())] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging/man").join(name);
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write(&path, &text).expect("write it");
        }
        let found = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(found == text, "{name} differs from the table: run UPDATE=1 cargo test -p cairnd manual");
    }
}

#[test]
fn markdown_leaves_no_trace_and_text_is_never_a_request() {
    assert_eq!(unmarked("see [the `list`](#x) of **all**\n  and [1"), "see the list of all\nand [1");
    assert_eq!(plain(".x -y\n'z"), "\\&.x \\-y\n\\&\\(aqz");
    assert!(exit_codes().iter().any(|[code, ..]| code == "79"), "{:?}", exit_codes());
}
