//! top: which prefixes have how many keys and bytes, how much is written to them and how many watch them.
//!
//! cairn's members count (`cairn.v1.Operator`). Others do not know that service: then the keys are read page by page and counted here, and
//! of writes only what shows in the keys is known. Writes are those of the whole cluster; watchers are added up over all members.

use super::survey::{self, reason};
use crate::again;
use crate::cli;
use crate::client::{Client, OPERATOR_PREFIXES, OPERATOR_WATCHERS, OPERATOR_WRITES, RANGE};
use crate::failure::{Failure, Result};
use crate::output::text::{one_line, readable};
use crate::output::{Cell, Column, Printer, Sheet, complain};
use crate::settings::Settings;
use crate::units::{format_duration, parse_duration};
use crate::verbs::kv::prefix_end;
use crate::verbs::member::view::client_endpoints;
use api::etcdserverpb::{RangeRequest, RangeResponse};
use api::operator::{
    PrefixesRequest, PrefixesResponse, WatchersRequest, WatchersResponse, WritesRequest, WritesResponse,
};
use bytes::Bytes;
use clap::{ArgMatches, Command};
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::task::JoinSet;

/// Rows when nothing else is asked: a screen.
const ROWS: i64 = 20;
/// Prefixes that are kept here while they are counted. Beyond it a smaller depth is the answer, not more memory.
const PREFIXES_MAX: usize = 200_000;
/// How long writes are looked at when nothing else is asked.
const WINDOW: Duration = Duration::from_secs(1);
const WINDOW_MAX: Duration = Duration::from_secs(60);
/// Keys of one page when this tool counts by itself: with values of a few kB below what a message may have.
const PAGE_KEYS: i64 = 1000;
/// Separators that a prefix may span.
const DEPTH_MAX: i64 = 32;

pub fn command() -> Command {
    cli::verb("top", "Shows which prefixes are large, written to and watched", "cairnctl top [prefix] [flags]")
        .after_help(
            "KEYS and BYTES are of the newest versions of keys and values; history and overhead come on top. WRITES/S is looked at for --window\n\
             on the whole cluster, WATCHERS is the sum over all members. An etcd server does not count: then keys are read and counted here.",
        )
        .args([
            cli::number("depth", "How many separators a prefix spans, behind the given one; 1 when not given"),
            cli::value("by", "Order: size, keys, writes or watchers; size when not given")
                .value_parser(["size", "keys", "writes", "watchers"]),
            cli::value("separator", "What separates the parts of a key; / when not given"),
            cli::number("limit", "So many rows; 20 when not given, 0: all"),
            cli::value("window", "How long to look at writes; 1s when not given, 0: not at all"),
            again::flag(),
        ])
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum By {
    Size,
    Keys,
    Writes,
    Watchers,
}

struct Wish {
    prefix: Bytes,
    depth: u32,
    separator: Bytes,
    by: By,
    limit: usize,
    window: Duration,
}

/// What is known of one prefix.
#[derive(Clone, Debug, Default, PartialEq)]
struct Use {
    keys: i64,
    bytes: i64,
    /// Puts and deletes per second.
    writes: f64,
    written_bytes: f64,
    watchers: i64,
    slow: i64,
}

/// Everything that was counted.
#[derive(Clone, Debug, Default, PartialEq)]
struct Tally {
    rows: BTreeMap<Bytes, Use>,
    revision: i64,
    /// Unknown is not none.
    knows_writes: bool,
    knows_watchers: bool,
    notes: Vec<String>,
}

fn wish(matches: &ArgMatches) -> Result<Wish> {
    let arguments = cli::arguments(matches);
    let prefix = match arguments.as_slice() {
        [] => Bytes::new(),
        [prefix] => prefix.clone().into(),
        _ => return Err(Failure::arguments("top command accepts one prefix")),
    };
    let given = |name: &str, default: i64| matches.get_one::<i64>(name).copied().unwrap_or(default);
    let (depth, limit) = (given("depth", 1), given("limit", ROWS));
    if !(0..=DEPTH_MAX).contains(&depth) || limit < 0 {
        return Err(Failure::usage(format!(
            "bad --depth or --limit: a depth is 0 to {DEPTH_MAX}, a limit not negative"
        )));
    }
    let window = match cli::text(matches, "window") {
        "" => WINDOW,
        text => parse_duration(text).map_err(|why| Failure::usage(format!("bad --window: {why}")))?,
    };
    if window > WINDOW_MAX {
        return Err(Failure::usage(format!("bad --window: at most {}", format_duration(WINDOW_MAX))));
    }
    let by = match cli::text(matches, "by") {
        "keys" => By::Keys,
        "writes" => By::Writes,
        "watchers" => By::Watchers,
        _ => By::Size,
    };
    let separator = Bytes::copy_from_slice(cli::text(matches, "separator").as_bytes());
    Ok(Wish { prefix, depth: depth as u32, separator, by, limit: limit as usize, window })
}

pub async fn top(settings: &Settings, matches: &ArgMatches) -> Result<()> {
    let wish = wish(matches)?;
    let printer = Printer::new(settings);
    printer.sheet(&Sheet::new("prefixes", &COLUMNS))?;
    again::looking(settings, matches, async || {
        let tally = count(settings, &wish).await?;
        for note in &tally.notes {
            complain(&format!("note: {note}\n"));
        }
        printer.sheet(&sheet(&tally, &wish))
    })
    .await
}

/// The server does not know the service, or not this method of it.
fn is_unknown(failure: &Failure) -> bool {
    failure.headline.starts_with("rpc error: code = Unimplemented")
}

async fn count(settings: &Settings, wish: &Wish) -> Result<Tally> {
    // Counting takes as long as it takes, unless somebody says how long.
    let mut client = Client::new(settings, true)?;
    let writes = async {
        if wish.window.is_zero() {
            return None;
        }
        let request = WritesRequest {
            prefix: wish.prefix.clone(),
            depth: wish.depth,
            separator: wish.separator.clone(),
            window_ms: u32::try_from(wish.window.as_millis()).unwrap_or(u32::MAX).max(1),
        };
        let mut client = match Client::new(settings, true) {
            Ok(client) => client,
            Err(failure) => return Some(Err(failure)),
        };
        Some(client.call::<WritesResponse>(&OPERATOR_WRITES, &request).await)
    };
    let (sizes, writes, watchers) = tokio::join!(sizes(&mut client, wish), writes, watchers(settings, wish));
    let mut tally = match sizes {
        Err(failure) if is_unknown(&failure) => {
            let mut tally = count_here(&mut client, wish).await?;
            let note = "this server does not count by prefix (it is no cairn): keys were read and counted here, writes and watchers are not known";
            tally.notes.insert(0, note.into());
            return Ok(tally);
        }
        sizes => sizes?,
    };
    match writes {
        None => {}
        Some(Ok(answer)) => tally.add_writes(answer),
        Some(Err(failure)) => tally.notes.push(format!("writes are not known: {}", reason(&failure))),
    }
    tally.add_watchers(watchers);
    Ok(tally)
}

/// Call after call, until everything is counted, at the revision of the first.
async fn sizes(client: &mut Client, wish: &Wish) -> Result<Tally> {
    let mut tally = Tally::default();
    let mut request = PrefixesRequest {
        prefix: wish.prefix.clone(),
        depth: wish.depth,
        separator: wish.separator.clone(),
        ..Default::default()
    };
    loop {
        let answer: PrefixesResponse = match client.call(&OPERATOR_PREFIXES, &request).await {
            Ok(answer) => answer,
            Err(failure) if tally.rows.is_empty() => return Err(failure),
            Err(failure) => {
                tally.notes.push(format!("not everything was counted: {}", reason(&failure)));
                return Ok(tally);
            }
        };
        request.revision = answer.header.map_or(request.revision, |header| header.revision);
        tally.revision = request.revision;
        for row in answer.prefixes {
            let uses = tally.rows.entry(row.prefix).or_default();
            uses.keys += row.keys;
            uses.bytes += row.key_bytes + row.value_bytes;
        }
        if answer.resume_key.is_empty() {
            return Ok(tally);
        }
        if tally.rows.len() > PREFIXES_MAX {
            let at = readable(&answer.resume_key);
            tally.notes.push(format!(
                "counted up to {at}: too many prefixes, ask with a smaller --depth or a prefix"
            ));
            return Ok(tally);
        }
        request.resume_key = answer.resume_key;
    }
}

/// Of every member that can be asked.
async fn watchers(
    settings: &Settings,
    wish: &Wish,
) -> Result<Vec<(String, Result<WatchersResponse, String>)>> {
    let mut asked = JoinSet::new();
    for member in survey::list(settings).await?.members {
        let endpoints = client_endpoints(&member.client_ur_ls);
        let name = if member.name.is_empty() { format!("{:x}", member.id) } else { one_line(&member.name) };
        let settings = survey::patient(settings, settings.command_timeout);
        let request = WatchersRequest {
            prefix: wish.prefix.clone(),
            depth: wish.depth,
            separator: wish.separator.clone(),
        };
        asked.spawn(async move {
            if endpoints.is_empty() {
                return (name, Err("it has no client URL".to_owned()));
            }
            let answer = match Client::over(&settings, endpoints, false) {
                Ok(mut client) => client.call(&OPERATOR_WATCHERS, &request).await,
                Err(failure) => Err(failure),
            };
            (name, answer.map_err(|failure| reason(&failure)))
        });
    }
    Ok(asked.join_all().await)
}

impl Tally {
    fn add_writes(&mut self, answer: WritesResponse) {
        self.knows_writes = true;
        let seconds = f64::from(answer.window_ms.max(1)) / 1000.0;
        // What was not looked at is taken to be like what was.
        let share = if answer.revisions_seen > 0 && answer.revisions_seen < answer.revisions {
            self.notes.push(format!(
                "writes are estimated from {} of {} revisions",
                answer.revisions_seen, answer.revisions
            ));
            answer.revisions as f64 / answer.revisions_seen as f64
        } else {
            1.0
        };
        for row in answer.prefixes {
            let uses = self.rows.entry(row.prefix).or_default();
            uses.writes += (row.puts + row.deletes) as f64 * share / seconds;
            uses.written_bytes += row.bytes as f64 * share / seconds;
        }
        if let Some(others) = answer.others {
            let number = (others.puts + others.deletes) as f64 * share / seconds;
            self.notes.push(format!("{number:.1} writes per second are of prefixes beyond those counted"));
        }
    }

    fn add_watchers(&mut self, answers: Result<Vec<(String, Result<WatchersResponse, String>)>>) {
        let answers = match answers {
            Ok(answers) => answers,
            Err(failure) => return self.notes.push(format!("watchers are not known: {}", reason(&failure))),
        };
        for (name, answer) in answers {
            match answer {
                Err(why) => self.notes.push(format!("watchers of member {name} are not known: {why}")),
                Ok(answer) => {
                    self.knows_watchers = true;
                    for row in answer.prefixes {
                        let uses = self.rows.entry(row.prefix).or_default();
                        uses.watchers += row.watchers;
                        uses.slow += row.slow;
                    }
                    if let Some(others) = answer.others {
                        self.notes.push(format!(
                            "{} watchers of member {name} are of prefixes beyond those counted",
                            others.watchers
                        ));
                    }
                }
            }
        }
    }
}

/// As a member of cairn does it, on keys that are read at one revision.
async fn count_here(client: &mut Client, wish: &Wish) -> Result<Tally> {
    let mut tally = Tally::default();
    let zero = Bytes::from_static(&[0]);
    let mut request = RangeRequest {
        key: if wish.prefix.is_empty() { zero.clone() } else { wish.prefix.clone() },
        range_end: if wish.prefix.is_empty() { zero } else { prefix_end(&wish.prefix) },
        limit: PAGE_KEYS,
        serializable: true,
        ..Default::default()
    };
    loop {
        let answer: RangeResponse = client.call(&RANGE, &request).await?;
        request.revision = answer.header.map_or(0, |header| header.revision).min(match request.revision {
            0 => i64::MAX,
            pinned => pinned,
        });
        for kv in &answer.kvs {
            let uses = tally.rows.entry(Bytes::copy_from_slice(group(wish, &kv.key))).or_default();
            uses.keys += 1;
            uses.bytes += (kv.key.len() + kv.value.len()) as i64;
        }
        tally.revision = request.revision;
        let Some(last) = answer.kvs.last().filter(|_| answer.more) else { return Ok(tally) };
        if tally.rows.len() > PREFIXES_MAX {
            let at = readable(&last.key);
            tally.notes.push(format!(
                "counted up to {at}: too many prefixes, ask with a smaller --depth or a prefix"
            ));
            return Ok(tally);
        }
        request.key = [&last.key[..], &[0]].concat().into();
    }
}

/// The server's rule: up to and including the `depth`-th separator behind the asked prefix; one at the very beginning does not count.
fn group<'a>(wish: &Wish, key: &'a [u8]) -> &'a [u8] {
    let separator: &[u8] = if wish.separator.is_empty() { b"/" } else { &wish.separator };
    let mut end = wish.prefix.len().min(key.len());
    if wish.depth == 0 {
        return &key[..end];
    }
    if end == 0 && key.starts_with(separator) {
        end = separator.len();
    }
    for _ in 0..wish.depth {
        let found = key[end..].windows(separator.len()).position(|window| window == separator);
        let Some(at) = found else { break };
        end += at + separator.len();
    }
    &key[..end]
}

const COLUMNS: [Column; 7] = [
    Column::new("prefix", "PREFIX"),
    Column::number("keys", "KEYS"),
    Column::number("bytes", "BYTES"),
    Column::number("writes_per_second", "WRITES/S"),
    Column::number("written_bytes_per_second", "WRITTEN/S").only_wide(),
    Column::number("watchers", "WATCHERS"),
    Column::number("slow_watchers", "SLOW").only_wide(),
];

fn sheet(tally: &Tally, wish: &Wish) -> Sheet {
    let mut sheet = Sheet::new("prefixes", &COLUMNS).when_empty("no keys");
    let mut rows: Vec<(&Bytes, &Use)> = tally.rows.iter().collect();
    let order = |uses: &Use| match wish.by {
        By::Size => uses.bytes as f64,
        By::Keys => uses.keys as f64,
        By::Writes => uses.writes,
        By::Watchers => uses.watchers as f64,
    };
    // Equal ones stay in the order of their prefixes.
    rows.sort_by(|(_, a), (_, b)| order(b).total_cmp(&order(a)));
    let shown = if wish.limit == 0 { rows.len() } else { wish.limit.min(rows.len()) };
    sheet.whole("revision", tally.revision);
    sheet.whole("prefixes_in_all", rows.len());
    sheet.whole("keys_in_all", rows.iter().map(|(_, uses)| uses.keys).sum::<i64>());
    sheet.whole("bytes_in_all", rows.iter().map(|(_, uses)| uses.bytes).sum::<i64>());
    sheet.whole("notes", tally.notes.clone());
    let rate = |known: bool, rate: f64| {
        if known { Cell::shown((rate * 10.0).round() / 10.0, format!("{rate:.1}")) } else { Cell::nothing() }
    };
    let number = |known: bool, number: i64| if known { Cell::number(number) } else { Cell::nothing() };
    for (prefix, uses) in &rows[..shown] {
        let text = readable(prefix);
        let name = if prefix.is_empty() { "(no prefix)".to_owned() } else { one_line(&text) };
        sheet.row(vec![
            Cell::shown(text, name),
            Cell::number(uses.keys),
            Cell::size(uses.bytes.unsigned_abs()),
            rate(tally.knows_writes, uses.writes),
            match rate(tally.knows_writes, uses.written_bytes) {
                cell if tally.knows_writes => {
                    Cell { shown: crate::units::format_size(uses.written_bytes as u64), ..cell }
                }
                cell => cell,
            },
            number(tally.knows_watchers, uses.watchers),
            number(tally.knows_watchers, uses.slow),
        ]);
    }
    sheet
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::Shape;
    use crate::output::paint::Paint;
    use api::operator::{PrefixWatchers, PrefixWrites};

    fn wish(prefix: &'static str, depth: u32, by: By, limit: usize) -> Wish {
        Wish { prefix: prefix.into(), depth, separator: Bytes::new(), by, limit, window: WINDOW }
    }

    #[test]
    fn keys_count_for_the_prefix_that_a_member_would_say() {
        for (prefix, depth, key, expected) in [
            ("", 1, "/registry/pods/a", "/registry/"),
            ("", 2, "/registry/pods/a", "/registry/pods/"),
            ("", 0, "/registry/pods/a", ""),
            ("", 1, "plain", ""),
            ("/registry/", 1, "/registry/pods/a", "/registry/pods/"),
            ("/registry/", 0, "/registry/pods/a", "/registry/"),
        ] {
            assert_eq!(
                group(&wish(prefix, depth, By::Size, 0), key.as_bytes()),
                expected.as_bytes(),
                "{key}"
            );
        }
    }

    fn tally() -> Tally {
        let uses = |keys, bytes| Use { keys, bytes, ..Use::default() };
        let rows = [("", uses(1, 5)), ("/a/", uses(30, 100)), ("/b/", uses(2, 9000))];
        let rows = rows.map(|(prefix, uses)| (Bytes::from(prefix), uses)).into();
        Tally { rows, revision: 7, ..Tally::default() }
    }

    #[test]
    fn rows_come_in_the_asked_order_and_what_is_not_known_is_not_zero() {
        let mut tally = tally();
        let drawn = |tally: &Tally, by, limit| {
            String::from_utf8(sheet(tally, &wish("", 1, by, limit)).render(Shape::Table, Paint::NONE))
                .unwrap()
        };
        let expected = "\
PREFIX        KEYS    BYTES   WRITES/S   WATCHERS
/b/              2   9.0 kB          -          -
/a/             30    100 B          -          -
(no prefix)      1      5 B          -          -
";
        assert_eq!(drawn(&tally, By::Size, 0), expected);
        assert!(drawn(&tally, By::Keys, 1).ends_with("\n/a/        30   100 B          -          -\n"));
        // A second of writes of which a quarter was looked at, and a prefix that has no keys any more.
        let row = |prefix: &'static str, puts, deletes| PrefixWrites {
            prefix: prefix.into(),
            puts,
            deletes,
            bytes: 10,
        };
        tally.add_writes(WritesResponse {
            prefixes: vec![row("/a/", 1, 1), row("/gone/", 0, 3)],
            window_ms: 2000,
            revisions: 40,
            revisions_seen: 10,
            ..Default::default()
        });
        let watchers =
            |prefix: &'static str, watchers, slow| PrefixWatchers { prefix: prefix.into(), watchers, slow };
        let answer = |rows| Ok(WatchersResponse { prefixes: rows, ..Default::default() });
        tally.add_watchers(Ok(vec![
            ("n1".into(), answer(vec![watchers("/a/", 4, 1)])),
            ("n2".into(), answer(vec![watchers("/a/", 3, 0), watchers("", 1, 0)])),
            ("n3".into(), Err("connect: refused".into())),
        ]));
        let by_writes = drawn(&tally, By::Writes, 2);
        assert_eq!(
            by_writes,
            "PREFIX   KEYS   BYTES   WRITES/S   WATCHERS\n/gone/      0     0 B        6.0          0\n/a/        30   100 B        4.0          7\n"
        );
        assert!(drawn(&tally, By::Watchers, 1).contains("/a/"));
        assert_eq!(
            tally.notes,
            [
                "writes are estimated from 10 of 40 revisions",
                "watchers of member n3 are not known: connect: refused"
            ]
        );
    }
}
