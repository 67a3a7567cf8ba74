//! The text form of a transaction: comparisons, a blank line, requests for success, a blank line, requests for failure, a blank
//! line. Requests are the verbs `get`, `put` and `del` with their flags, in a small shell-like quoting.
//!
//! Stricter than etcdctl in one place: what follows a complete comparison on its line is refused and not ignored, because a guard
//! that is half read is no guard. Not here: the verbs' own rules (`verbs::kv`).

use crate::failure::{Failure, Result};
use crate::units::{Radix, parse_i64};
use api::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use api::etcdserverpb::{Compare, RequestOp, TxnRequest};
use std::io::BufRead;

/// Reads a whole transaction. `prompt` is told before each section; `request` turns the words of one line into a request.
pub fn read(
    input: &mut impl BufRead,
    mut prompt: impl FnMut(&str),
    request: impl Fn(Vec<Vec<u8>>) -> Result<RequestOp>,
) -> Result<TxnRequest> {
    let mut txn = TxnRequest::default();
    prompt("compares:");
    while let Some(line) = section_line(input)? {
        txn.compare.push(comparison(&line)?);
    }
    for (title, ops) in [
        ("success requests (get, put, del):", &mut txn.success),
        ("failure requests (get, put, del):", &mut txn.failure),
    ] {
        prompt(title);
        while let Some(line) = section_line(input)? {
            ops.push(request(words(&line)?)?);
        }
    }
    Ok(txn)
}

/// The next line without blanks around it; `None` at the blank line that ends a section. The end of input is an error: a script
/// that was cut off must not run by halves.
fn section_line(input: &mut impl BufRead) -> Result<Option<Vec<u8>>> {
    let mut line = Vec::new();
    input.read_until(b'\n', &mut line)?;
    if line.last() != Some(&b'\n') {
        return Err(Failure::input("EOF"));
    }
    let line = line.trim_ascii();
    Ok((!line.is_empty()).then(|| line.to_vec()))
}

/// Splits a line into words: blanks separate, double quotes take Go's escapes, single quotes take everything. A quote begins a
/// quoted word only at the start of a word; one that is never closed is dropped, as etcdctl does.
pub fn words(line: &[u8]) -> Result<Vec<Vec<u8>>> {
    let mut words = Vec::new();
    let mut at = 0;
    while at < line.len() {
        let rest = &line[at..];
        at += match rest[0] {
            b if b.is_ascii_whitespace() => 1,
            b'"' => match quoted_len(rest) {
                Some(len) => {
                    words.push(unquote(&rest[..len])?);
                    len
                }
                None => 1,
            },
            b'\'' => match rest[1..].iter().position(|b| *b == b'\'') {
                Some(len) => {
                    words.push(rest[1..=len].to_vec());
                    len + 2
                }
                None => 1,
            },
            _ => {
                let len = rest.iter().position(u8::is_ascii_whitespace).unwrap_or(rest.len());
                words.push(rest[..len].to_vec());
                len
            }
        };
    }
    Ok(words)
}

/// Bytes from the opening double quote to the closing one, both included.
fn quoted_len(text: &[u8]) -> Option<usize> {
    let mut at = 1;
    while at < text.len() {
        match text[at] {
            b'"' => return Some(at + 1),
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
    None
}

/// The bytes that a double-quoted literal stands for, by Go's rules for string literals.
fn unquote(literal: &[u8]) -> Result<Vec<u8>> {
    let invalid = || Failure::input("invalid syntax");
    let inner = literal.strip_prefix(b"\"").and_then(|rest| rest.strip_suffix(b"\"")).ok_or_else(invalid)?;
    let mut out = Vec::with_capacity(inner.len());
    let mut at = 0;
    while at < inner.len() {
        if inner[at] != b'\\' {
            out.push(inner[at]);
            at += 1;
            continue;
        }
        let kind = *inner.get(at + 1).ok_or_else(invalid)?;
        let (digits_at, digits, radix) = match kind {
            b'x' => (at + 2, 2, 16),
            b'u' => (at + 2, 4, 16),
            b'U' => (at + 2, 8, 16),
            b'0'..=b'7' => (at + 1, 3, 8),
            _ => {
                out.push(match kind {
                    b'a' => 0x07,
                    b'b' => 0x08,
                    b'f' => 0x0c,
                    b'n' => b'\n',
                    b'r' => b'\r',
                    b't' => b'\t',
                    b'v' => 0x0b,
                    b'\\' | b'"' => kind,
                    _ => return Err(invalid()),
                });
                at += 2;
                continue;
            }
        };
        let text = inner.get(digits_at..digits_at + digits).and_then(|text| std::str::from_utf8(text).ok());
        let text = text.filter(|text| text.chars().all(|c| c.is_digit(radix))).ok_or_else(invalid)?;
        let number = u32::from_str_radix(text, radix).map_err(|_| invalid())?;
        if matches!(kind, b'u' | b'U') {
            let c = char::from_u32(number).ok_or_else(invalid)?;
            out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
        } else {
            out.push(u8::try_from(number).map_err(|_| invalid())?);
        }
        at = digits_at + digits;
    }
    Ok(out)
}

/// What is left to read of a comparison.
struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn blanks(&mut self) -> &mut Self {
        self.0 = self.0.trim_ascii_start();
        self
    }

    fn take(&mut self, wanted: impl Fn(u8) -> bool) -> &'a [u8] {
        let len = self.0.iter().position(|byte| !wanted(*byte)).unwrap_or(self.0.len());
        let (taken, rest) = self.0.split_at(len);
        self.0 = rest;
        taken
    }

    fn token(&mut self, token: u8) -> Option<()> {
        self.0 = self.0.strip_prefix(&[token])?;
        Some(())
    }

    /// A double-quoted literal with Go's escapes, or a back-quoted one without any.
    fn quoted(&mut self) -> Option<Vec<u8>> {
        match self.0.first()? {
            b'"' => {
                let (literal, rest) = self.0.split_at(quoted_len(self.0)?);
                self.0 = rest;
                unquote(literal).ok()
            }
            b'`' => {
                let len = self.0[1..].iter().position(|byte| *byte == b'`')?;
                let value = self.0[1..=len].to_vec();
                self.0 = &self.0[len + 2..];
                Some(value)
            }
            _ => None,
        }
    }
}

/// `target("key") op "value"`. Numbers may stand without quotes.
fn comparison(line: &[u8]) -> Result<Compare> {
    let shown = String::from_utf8_lossy(line);
    let malformed = |why: &str| Failure::input(format!("malformed comparison: {shown} ({why})"));
    let mut rest = Cursor(line);
    let target_name = rest.take(|byte| byte.is_ascii_alphabetic());
    rest.blanks().token(b'(').ok_or_else(|| malformed("expecting target(\"key\") op \"value\""))?;
    let target = match target_name {
        b"ver" | b"version" => CompareTarget::Version,
        b"c" | b"create" => CompareTarget::Create,
        b"m" | b"mod" => CompareTarget::Mod,
        b"val" | b"value" => CompareTarget::Value,
        b"lease" => CompareTarget::Lease,
        other => return Err(malformed(&format!("unknown target {}", String::from_utf8_lossy(other)))),
    };
    let key = rest.blanks().quoted().ok_or_else(|| malformed("the key must be in double quotes"))?;
    rest.blanks()
        .token(b')')
        .ok_or_else(|| malformed("the key must be followed by a closing parenthesis"))?;
    let result = match rest.blanks().take(|byte| b"=!<>".contains(&byte)) {
        b"=" => CompareResult::Equal,
        b"!=" => CompareResult::NotEqual,
        b">" => CompareResult::Greater,
        b"<" => CompareResult::Less,
        other => {
            return Err(malformed(&format!(
                "unknown operator {:?}; known are = != > <",
                String::from_utf8_lossy(other)
            )));
        }
    };
    rest.blanks();
    let bare_number =
        target != CompareTarget::Value && !rest.0.starts_with(b"\"") && !rest.0.starts_with(b"`");
    let value = if bare_number {
        rest.take(|byte| !byte.is_ascii_whitespace()).to_vec()
    } else {
        rest.quoted().ok_or_else(|| malformed("the value must be in double quotes"))?
    };
    if !rest.blanks().0.is_empty() {
        return Err(malformed(&format!("unexpected {:?} after the value", String::from_utf8_lossy(rest.0))));
    }
    let number = |radix: Radix| {
        let number = std::str::from_utf8(&value).ok().and_then(|text| parse_i64(text, radix).ok());
        number.ok_or_else(|| Failure::input(format!("invalid txn compare request: {shown}")))
    };
    let union = match target {
        CompareTarget::Version => TargetUnion::Version(number(Radix::Decimal)?),
        CompareTarget::Create => TargetUnion::CreateRevision(number(Radix::Decimal)?),
        CompareTarget::Mod => TargetUnion::ModRevision(number(Radix::Decimal)?),
        CompareTarget::Lease => TargetUnion::Lease(number(Radix::Hex)?),
        CompareTarget::Value => TargetUnion::Value(value.into()),
    };
    Ok(Compare {
        result: result as i32,
        target: target as i32,
        key: key.into(),
        range_end: Default::default(),
        target_union: Some(union),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use api::etcdserverpb::PutRequest;
    use api::etcdserverpb::request_op::Request;

    /// Stands for the verbs: a put of the words joined with `|`.
    fn echo(words: Vec<Vec<u8>>) -> Result<RequestOp> {
        Ok(RequestOp {
            request: Some(Request::RequestPut(PutRequest {
                key: words.join(&b'|').into(),
                ..Default::default()
            })),
        })
    }

    fn keys(ops: &[RequestOp]) -> Vec<String> {
        let key = |op: &RequestOp| match &op.request {
            Some(Request::RequestPut(put)) => String::from_utf8_lossy(&put.key).into_owned(),
            other => panic!("the echo makes puts, found {other:?}"),
        };
        ops.iter().map(key).collect()
    }

    fn parse(script: &str) -> Result<TxnRequest> {
        read(&mut script.as_bytes(), |_| {}, echo)
    }

    #[test]
    fn three_sections_end_at_blank_lines() {
        let txn = parse("val(\"a\") = \"1\"\n  m(\"b\") > \"2\"  \n\nput x y\n\t\nget x\ndel y\n\n").unwrap();
        assert_eq!(
            (txn.compare.len(), keys(&txn.success), keys(&txn.failure)),
            (2, vec!["put|x|y".into()], vec!["get|x".into(), "del|y".into()])
        );
        assert_eq!(parse("\n\n\n").unwrap(), TxnRequest::default());
        assert_eq!(parse("\r\n\r\n\r\n").unwrap(), TxnRequest::default());
    }

    #[test]
    fn a_script_that_was_cut_off_is_not_run() {
        for script in ["", "val(\"a\") = \"1\"\n", "\nput a b\n\n", "\n\n", "\n\nput a b"] {
            assert_eq!(parse(script).unwrap_err(), Failure::input("EOF"), "{script:?}");
        }
    }

    #[test]
    fn prompts_come_before_their_sections() {
        let mut prompts = Vec::new();
        read(&mut "\n\n\n".as_bytes(), |text| prompts.push(text.to_owned()), echo).unwrap();
        assert_eq!(
            prompts,
            ["compares:", "success requests (get, put, del):", "failure requests (get, put, del):"]
        );
    }

    #[test]
    fn words_are_split_and_quoted_like_etcdctl_does() {
        for (line, expected) in [
            (r#"put "x y" "z\n\"q\"\x41\101\u00e9""#, vec!["put", "x y", "z\n\"q\"AA\u{e9}"]),
            (r#"put a"b" c"#, vec!["put", "a\"b\"", "c"]),
            (r#"put "a"b"#, vec!["put", "a", "b"]),
            (r#"put 'x "y' z"#, vec!["put", "x \"y", "z"]),
            (r#"put k "un"#, vec!["put", "k", "un"]),
            (r#"put k \"a\nb"#, vec!["put", "k", r#"\"a\nb"#]),
            (r#"put k """#, vec!["put", "k", ""]),
        ] {
            let words = words(line.as_bytes()).unwrap();
            assert_eq!(
                words.iter().map(|word| String::from_utf8_lossy(word)).collect::<Vec<_>>(),
                expected,
                "{line}"
            );
        }
        for line in
            [r#"put k "a\qb""#, r#"put k "\x4""#, r#"put k "\777""#, r#"put k "\ud800""#, r#"put k "\'""#]
        {
            assert!(words(line.as_bytes()).is_err(), "{line} should be refused");
        }
    }

    #[test]
    fn comparisons_have_every_target_and_operator() {
        for (line, target, result, union) in [
            (
                r#"val("k") = "v w""#,
                CompareTarget::Value,
                CompareResult::Equal,
                TargetUnion::Value("v w".into()),
            ),
            (
                r#"value("k")!="""#,
                CompareTarget::Value,
                CompareResult::NotEqual,
                TargetUnion::Value("".into()),
            ),
            (
                r#"c( "k" ) > "1""#,
                CompareTarget::Create,
                CompareResult::Greater,
                TargetUnion::CreateRevision(1),
            ),
            (
                r#"create("k") < "-1""#,
                CompareTarget::Create,
                CompareResult::Less,
                TargetUnion::CreateRevision(-1),
            ),
            (r#"m("k") = 7"#, CompareTarget::Mod, CompareResult::Equal, TargetUnion::ModRevision(7)),
            (r#"mod("k") = `8`"#, CompareTarget::Mod, CompareResult::Equal, TargetUnion::ModRevision(8)),
            (r#"ver("k") = "0""#, CompareTarget::Version, CompareResult::Equal, TargetUnion::Version(0)),
            (r#"lease("k") = "7f""#, CompareTarget::Lease, CompareResult::Equal, TargetUnion::Lease(0x7f)),
        ] {
            let compare = comparison(line.as_bytes()).unwrap();
            assert_eq!(
                (compare.target(), compare.result(), compare.target_union, &compare.key[..]),
                (target, result, Some(union), &b"k"[..]),
                "{line}"
            );
        }
    }

    #[test]
    fn a_comparison_that_is_not_fully_understood_is_refused() {
        for line in [
            "bad",
            r#"zz("k") = "1""#,
            r#"val(k) = "1""#,
            r#"val("k") = 1"#,
            r#"val("k") >= "1""#,
            r#"val("k" = "1""#,
            r#"val("k") = "1" and"#,
            r#"ver("k") = "x""#,
            r#"lease("k") = "xyz""#,
            r#"val("k") ="#,
            r#"val("\q") = "1""#,
        ] {
            assert_eq!(
                comparison(line.as_bytes()).unwrap_err().exit,
                crate::failure::Exit::InvalidInput,
                "{line}"
            );
        }
    }
}
