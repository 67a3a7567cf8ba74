//! put, get, del, txn, compaction. The request builders are shared by the verbs and by the lines of a transaction.

use super::confirm::{self, Blast};
use super::{begin, serializable, show};
use crate::client::{COMPACT, Client, DELETE_RANGE, PUT, RANGE, RANGE_STREAM, STATUS, TXN};
use crate::failure::{Exit, Failure, Result};
use crate::output::text::readable;
use crate::output::{Printer, tell};
use crate::settings::{Format, Settings};
use crate::units::{Radix, parse_i64};
use crate::{cli, txn_script};
use api::etcdserverpb::range_request::{SortOrder, SortTarget};
use api::etcdserverpb::request_op::Request;
use api::etcdserverpb::{
    CompactionRequest, CompactionResponse, DeleteRangeRequest, DeleteRangeResponse, PutRequest, PutResponse,
    RangeRequest, RangeResponse, RangeStreamResponse, RequestOp, StatusRequest, StatusResponse, TxnResponse,
};
use bytes::Bytes;
use clap::{ArgMatches, Command};
use std::ffi::OsString;
use std::io::Read;
use std::os::unix::ffi::OsStringExt;

/// As a key: the first key there can be. As a range end: no end at all.
const ZERO: &[u8] = b"\0";

const TOO_MANY: &str = "too many arguments, only accept one argument when `--prefix` or `--from-key` is set";
const ONE_OF_TWO: &str = "`--prefix` and `--from-key` cannot be set at the same time, choose one";

pub async fn put(settings: &Settings, matches: &ArgMatches) -> Result<()> {
    let request = put_request(matches, || {
        let mut value = Vec::new();
        std::io::stdin().lock().read_to_end(&mut value)?;
        Ok(value)
    })?;
    let (mut client, printer) = begin(settings, false)?;
    printer.refuse_table_and_raw()?;
    let answer: PutResponse = client.call(&PUT, &request).await?;
    show(&printer.put(&answer)?)
}

/// `stdin` is asked for the value when the arguments have none.
fn put_request(matches: &ArgMatches, stdin: impl FnOnce() -> Result<Vec<u8>>) -> Result<PutRequest> {
    const NEEDS: &str = "put command needs 1 argument and input from stdin or 2 arguments";
    let mut arguments = cli::arguments(matches).into_iter();
    let key = arguments.next().ok_or_else(|| Failure::arguments(NEEDS))?;
    let ignore_value = cli::on(matches, "ignore-value");
    let value = match arguments.next() {
        Some(_) if ignore_value => {
            return Err(Failure::arguments("put command needs only 1 argument when 'ignore-value' is set"));
        }
        Some(value) => value,
        None if ignore_value => Vec::new(),
        None => Some(stdin()?).filter(|value| !value.is_empty()).ok_or_else(|| Failure::arguments(NEEDS))?,
    };
    let lease = match cli::text(matches, "lease") {
        "" => 0,
        text => parse_i64(text, Radix::Hex)
            .map_err(|why| Failure::arguments(format!("bad lease ID ({why}), expecting ID in Hex")))?,
    };
    Ok(PutRequest {
        key: key.into(),
        value: value.into(),
        lease,
        prev_kv: cli::on(matches, "prev-kv"),
        ignore_value,
        ignore_lease: cli::on(matches, "ignore-lease"),
    })
}

pub async fn get(settings: &Settings, matches: &ArgMatches) -> Result<()> {
    let request = range_request(matches)?;
    let (mut client, mut printer) = begin(settings, false)?;
    printer.value_only = cli::on(matches, "print-value-only");
    (printer.keys_only, printer.count_only) = (request.keys_only, request.count_only);
    if request.count_only && printer.format != Format::Fields && printer.shape.is_none() {
        return Err(Failure::arguments("--count-only is only for `--write-out=fields`"));
    }
    if printer.value_only && !printer.is_simple() {
        return Err(Failure::arguments("print-value-only is only for `--write-out=simple`"));
    }
    printer.refuse_table()?;
    if !cli::on(matches, "stream") {
        let answer: RangeResponse = client.call(&RANGE, &request).await?;
        return show(&printer.range(&answer)?);
    }
    let mut whole = RangeResponse::default();
    client
        .stream(&RANGE_STREAM, &request, |part: RangeStreamResponse| {
            let part = part.range_response.unwrap_or_default();
            if printer.is_simple() {
                return show(&printer.range(&part)?);
            }
            // Only the last part has header, more and count; all parts together are one ordinary answer.
            whole.kvs.extend(part.kvs);
            whole.header = part.header.or(whole.header);
            whole.more |= part.more;
            whole.count = whole.count.max(part.count);
            Ok(())
        })
        .await?;
    if printer.is_simple() { Ok(()) } else { show(&printer.range(&whole)?) }
}

fn range_request(matches: &ArgMatches) -> Result<RangeRequest> {
    let arguments = cli::arguments(matches);
    if arguments.is_empty() {
        return Err(Failure::arguments(
            "get command needs one argument as key and an optional argument as range_end",
        ));
    }
    if cli::on(matches, "keys-only") && cli::on(matches, "count-only") {
        return Err(Failure::arguments(
            "`--keys-only` and `--count-only` cannot be set at the same time, choose one",
        ));
    }
    let (key, range_end) = interval(matches, arguments)?;
    let (order, by) = (cli::text(matches, "order"), cli::text(matches, "sort-by"));
    let sort_order = match order.to_uppercase().as_str() {
        "" => SortOrder::None,
        "ASCEND" => SortOrder::Ascend,
        "DESCEND" => SortOrder::Descend,
        _ => return Err(Failure::feature(format!("bad sort order {order}"))),
    };
    let sort_target = match by.to_uppercase().as_str() {
        "" | "KEY" => SortTarget::Key,
        "CREATE" => SortTarget::Create,
        "MODIFY" => SortTarget::Mod,
        "VALUE" => SortTarget::Value,
        "VERSION" => SortTarget::Version,
        _ => return Err(Failure::feature(format!("bad sort target {by}"))),
    };
    // Ascending by key is how a range comes anyway; asking for it would only make the server sort.
    let sort_order = if sort_target == SortTarget::Key && sort_order == SortOrder::Ascend {
        SortOrder::None
    } else {
        sort_order
    };
    let request = RangeRequest {
        key,
        range_end,
        limit: cli::integer(matches, "limit"),
        revision: cli::integer(matches, "rev"),
        sort_order: sort_order as i32,
        sort_target: sort_target as i32,
        serializable: serializable(matches)?,
        keys_only: cli::on(matches, "keys-only"),
        count_only: cli::on(matches, "count-only"),
        min_mod_revision: cli::integer(matches, "min-mod-rev"),
        max_mod_revision: cli::integer(matches, "max-mod-rev"),
        min_create_revision: cli::integer(matches, "min-create-rev"),
        max_create_revision: cli::integer(matches, "max-create-rev"),
    };
    for (name, min, max) in [
        ("mod", request.min_mod_revision, request.max_mod_revision),
        ("create", request.min_create_revision, request.max_create_revision),
    ] {
        if max > 0 && min > max {
            return Err(Failure::feature(format!(
                "--min-{name}-rev={min} is above --max-{name}-rev={max}: no key can match"
            )));
        }
    }
    Ok(request)
}

/// The key and range end that `--prefix`, `--from-key` and the arguments (at least one) stand for.
fn interval(matches: &ArgMatches, arguments: Vec<Vec<u8>>) -> Result<(Bytes, Bytes)> {
    let (prefix, from_key) = (cli::on(matches, "prefix"), cli::on(matches, "from-key"));
    if prefix && from_key {
        return Err(Failure::arguments(ONE_OF_TWO));
    }
    let mut arguments = arguments.into_iter();
    let key = arguments.next().expect("the callers have counted");
    let end = arguments.next();
    if !prefix && !from_key {
        return Ok((key.into(), end.unwrap_or_default().into()));
    }
    if end.is_some() {
        return Err(Failure::arguments(TOO_MANY));
    }
    if key.is_empty() {
        return Ok((Bytes::from_static(ZERO), Bytes::from_static(ZERO)));
    }
    let end = if prefix { prefix_end(&key) } else { Bytes::from_static(ZERO) };
    Ok((key.into(), end))
}

/// The first key after all keys that begin with `prefix`; "no end" when there is none.
pub fn prefix_end(prefix: &[u8]) -> Bytes {
    match prefix.iter().rposition(|byte| *byte != 0xff) {
        None => Bytes::from_static(ZERO),
        Some(last) => {
            let mut end = prefix[..=last].to_vec();
            end[last] += 1;
            end.into()
        }
    }
}

pub async fn del(settings: &Settings, matches: &ArgMatches) -> Result<()> {
    let request = delete_request(matches)?;
    if cli::arguments(matches).len() == 2 && !cli::on(matches, "range") {
        tell(format_args!(
            "warning: two arguments delete every key from the first up to the second; --range says that this is meant"
        ));
    }
    Printer::new(settings).refuse_table_and_raw()?;
    if !confirm::gate(matches, async || deletion(settings, matches, &request).await).await? {
        return Ok(());
    }
    let (mut client, printer) = begin(settings, false)?;
    let answer: DeleteRangeResponse = client.call(&DELETE_RANGE, &request).await?;
    show(&printer.delete(&answer)?)
}

/// How many keys a deletion meets, and which. One key is not worth a question.
async fn deletion(settings: &Settings, matches: &ArgMatches, request: &DeleteRangeRequest) -> Result<Blast> {
    let DeleteRangeRequest { key, range_end, .. } = request.clone();
    let range = RangeRequest {
        key: key.clone(),
        range_end: range_end.clone(),
        count_only: true,
        ..Default::default()
    };
    let answer: RangeResponse = Client::new(settings, false)?.call(&RANGE, &range).await?;
    let text = |key: &[u8]| format!("\"{}\"", readable(key));
    let place = match (cli::on(matches, "prefix"), &range_end[..]) {
        _ if key == ZERO && range_end == ZERO => "in the whole store".to_owned(),
        (true, _) => format!("under {}", text(&key)),
        (false, []) => text(&key),
        (false, ZERO) => format!("from {} on", text(&key)),
        (false, end) => format!("from {} up to {}, which stays", text(&key), text(end)),
    };
    let number = answer.count.unsigned_abs();
    Ok(Blast {
        what: format!("delete {} {place}", confirm::count(number, "key")),
        more: Vec::new(),
        ask: !range_end.is_empty() && number > 0,
    })
}

fn delete_request(matches: &ArgMatches) -> Result<DeleteRangeRequest> {
    let arguments = cli::arguments(matches);
    if arguments.is_empty() || arguments.len() > 2 {
        return Err(Failure::arguments(
            "del command needs one argument as key and an optional argument as range_end",
        ));
    }
    let (key, range_end) = interval(matches, arguments)?;
    Ok(DeleteRangeRequest { key, range_end, prev_kv: cli::on(matches, "prev-kv") })
}

pub async fn txn(settings: &Settings, matches: &ArgMatches) -> Result<()> {
    if !cli::arguments(matches).is_empty() {
        return Err(Failure::arguments("txn command does not accept argument"));
    }
    let printer = Printer::new(settings);
    printer.refuse_table_and_raw()?;
    let interactive = cli::on(matches, "interactive");
    let prompt = |text: &str| {
        if interactive {
            // A reader that left will be noticed when the answer is printed.
            let _ = show(format!("{text}\n").as_bytes());
        }
    };
    let request = txn_script::read(&mut std::io::stdin().lock(), prompt, txn_operation)?;
    let (mut client, _) = begin(settings, true)?;
    let answer: TxnResponse = client.call(&TXN, &request).await?;
    show(&printer.txn(&answer)?)
}

/// One line of a transaction.
fn txn_operation(words: Vec<Vec<u8>>) -> Result<RequestOp> {
    let line =
        words.iter().map(|word| String::from_utf8_lossy(word).into_owned()).collect::<Vec<_>>().join(" ");
    let refused = |why: &str| Failure::input(format!("invalid txn request: {line}{why}"));
    let command: Command = match words.first().map(Vec::as_slice) {
        Some(b"put") => cli::put(),
        Some(b"get") => cli::get(),
        Some(b"del") => cli::del(),
        _ => return Err(refused("")),
    };
    let name = command.get_name().to_owned();
    let matches =
        command.args_override_self(true).try_get_matches_from(words.into_iter().map(OsString::from_vec));
    let matches = matches.map_err(|_| refused(" (unknown or malformed flag)"))?;
    let request = match name.as_str() {
        "put" => {
            put_request(&matches, || Err(refused(" (a put inside a transaction has its value on the line)")))
                .map(Request::RequestPut)
        }
        "get" => range_request(&matches).map(Request::RequestRange),
        _ => delete_request(&matches).map(Request::RequestDeleteRange),
    };
    Ok(RequestOp { request: Some(request?) })
}

/// What is lost by a compaction: no key, only what keys were before.
async fn compacting(settings: &Settings, revision: i64) -> Result<Blast> {
    let status: StatusResponse = Client::new(settings, false)?.call(&STATUS, &StatusRequest {}).await?;
    let now = status.header.unwrap_or_default().revision;
    Ok(Blast {
        what: format!("discard the history before revision {revision}; the store is at {now}"),
        more: vec![
            format!(
                "no key is lost; {} of history stay",
                confirm::count((now - revision).max(0).unsigned_abs(), "revision")
            ),
            "watches and reads that need older revisions end with \"required revision has been compacted\""
                .into(),
        ],
        ask: true,
    })
}

pub async fn compaction(settings: &Settings, matches: &ArgMatches) -> Result<()> {
    let arguments = cli::arguments(matches);
    let [revision] = arguments.as_slice() else {
        return Err(Failure::arguments("compaction command needs 1 argument"));
    };
    let revision = String::from_utf8_lossy(revision);
    let revision = parse_i64(&revision, Radix::Decimal).map_err(|why| Failure::new(Exit::Error, why))?;
    if !confirm::gate(matches, async || compacting(settings, revision).await).await? {
        return Ok(());
    }
    let (mut client, printer) = begin(settings, false)?;
    let request = CompactionRequest { revision, physical: cli::on(matches, "physical") };
    let _: CompactionResponse = client.call(&COMPACT, &request).await?;
    show(&printer.compaction(revision)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn operation(line: &str) -> Result<Request> {
        txn_operation(line.split(' ').map(|word| word.as_bytes().to_vec()).collect())
            .map(|op| op.request.unwrap())
    }

    #[test]
    fn prefixes_end_after_their_last_key() {
        for (prefix, end) in
            [(&b"a"[..], &b"b"[..]), (b"a\xff", b"b"), (b"\xff\xff", b"\0"), (b"az\xff\xff", b"a{")]
        {
            assert_eq!(&prefix_end(prefix)[..], end);
        }
    }

    #[test]
    fn get_lines_become_range_requests_with_every_option() {
        let expected = RangeRequest {
            key: "k".into(),
            range_end: "l".into(),
            limit: 3,
            revision: 7,
            sort_order: SortOrder::Descend as i32,
            sort_target: SortTarget::Mod as i32,
            serializable: true,
            keys_only: true,
            min_mod_revision: 1,
            max_mod_revision: 2,
            min_create_revision: 3,
            max_create_revision: 4,
            ..Default::default()
        };
        let line = "get k --prefix --limit 3 --rev 7 --order descend --sort-by modify --consistency s --keys-only --min-mod-rev 1 --max-mod-rev 2 --min-create-rev 3 --max-create-rev 4";
        assert_eq!(operation(line).unwrap(), Request::RequestRange(expected));
    }

    #[test]
    fn ascending_by_key_is_what_a_range_is_anyway() {
        let Request::RequestRange(range) = operation("get k --order ASCEND").unwrap() else {
            panic!("a get is a range")
        };
        assert_eq!(range.sort_order, SortOrder::None as i32);
        let Request::RequestRange(range) = operation("get k --order ASCEND --sort-by VALUE").unwrap() else {
            panic!("a get is a range")
        };
        assert_eq!(range.sort_order, SortOrder::Ascend as i32);
    }

    #[test]
    fn an_empty_prefix_is_every_key() {
        let Request::RequestDeleteRange(delete) =
            txn_operation(vec![b"del".to_vec(), Vec::new(), b"--prefix".to_vec()]).unwrap().request.unwrap()
        else {
            panic!("a del is a delete")
        };
        assert_eq!((&delete.key[..], &delete.range_end[..]), (ZERO, ZERO));
    }

    #[test]
    fn empty_intervals_of_revisions_are_refused_before_asking() {
        assert_eq!(operation("get k --min-mod-rev 5 --max-mod-rev 4").unwrap_err().exit, Exit::BadFeature);
        assert!(operation("get k --min-mod-rev 5").is_ok());
    }

    #[test]
    fn a_put_line_without_a_value_does_not_eat_the_rest_of_the_script() {
        assert_eq!(operation("put k").unwrap_err().exit, Exit::InvalidInput);
        assert_eq!(
            operation("put k v --lease=1f").unwrap(),
            Request::RequestPut(PutRequest {
                key: "k".into(),
                value: "v".into(),
                lease: 0x1f,
                ..Default::default()
            })
        );
        assert_eq!(operation("frob k").unwrap_err().headline, "invalid txn request: frob k");
        assert_eq!(operation("put k --bogus").unwrap_err().exit, Exit::InvalidInput);
    }
}
