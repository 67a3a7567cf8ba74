//! Takes out of a text what must not leave the house: passwords, tokens and users in settings, user information in URLs, private keys.
//! What looks like a secret is taken for one; a reader of a bundle misses nothing by that. Pure.

const HIDDEN: &str = "(hidden)";

/// A setting or field whose name has one of these is a secret, whatever it says.
const SECRET_NAMES: [&str; 9] =
    ["password", "passwd", "passphrase", "secret", "token", "jwt", "credential", "authorization", "user"];

/// So many hexadecimal digits in a row are a token of discovery, a key or a digest, none of which is needed.
const HEX_DIGITS_MAX: usize = 31;

/// For settings, journals and whatever people write.
pub fn text(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut in_key = false;
    for line in text.split_inclusive('\n') {
        if line.contains("-----BEGIN ") && line.contains("KEY") {
            in_key = true;
            out.push_str(HIDDEN);
            out.push('\n');
        }
        if !in_key {
            out.push_str(&long_hex(&urls(&named(line))));
        }
        if line.contains("-----END ") {
            in_key = false;
        }
    }
    out
}

/// For numbers with labels, where a name that has "user" in it is no user.
pub fn metrics(text: &str) -> String {
    urls(text)
}

/// Values behind the name of a secret: `name = "value"`, `--name=value`, `"name":"value"`, `NAME=value`, `name   value` in a table.
fn named(line: &str) -> String {
    let lower = line.to_ascii_lowercase();
    let mut out = String::new();
    let mut at = 0;
    while at < line.len() {
        let found =
            SECRET_NAMES.iter().filter_map(|name| Some((lower[at..].find(name)? + at, name.len()))).min();
        let Some((begin, len)) = found else { break };
        // The whole name, of which the word is a part.
        let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        let name_end = line[begin + len..].find(|c| !is_name(c)).map_or(line.len(), |end| begin + len + end);
        out.push_str(&line[at..name_end]);
        at = name_end;
        let rest = &line[at..];
        let separator = rest.len() - rest.trim_start_matches(['"', '\'', ' ', '\t', ':', '=']).len();
        let gap = &rest[..separator];
        // A word of prose is followed by one blank; what follows it is no value.
        let is_value = gap.contains([':', '=', '\t']) || gap.contains("  ");
        if !is_value {
            continue;
        }
        out.push_str(gap);
        let value = &rest[separator..];
        let whole = value.trim_end_matches(['\n', '\r']).len();
        let end = match gap.chars().next_back() {
            Some(quote @ ('"' | '\'')) => closing(value, quote).unwrap_or(whole),
            // A scheme, and then what it is all about.
            _ if lower[begin..name_end].contains("authorization") => whole,
            _ => value
                .find(|c: char| c.is_whitespace() || matches!(c, ',' | '}' | ']' | ';' | '&'))
                .unwrap_or(value.len()),
        };
        if end > 0 {
            out.push_str(HIDDEN);
        }
        at += separator + end;
    }
    out.push_str(&line[at..]);
    out
}

/// Where a value ends that began behind this quote: the same one that no backslash stands before.
fn closing(value: &str, quote: char) -> Option<usize> {
    let mut is_meant = false;
    value.find(|c: char| {
        let ends = c == quote && !is_meant;
        is_meant = c == '\\' && !is_meant;
        ends
    })
}

/// `scheme://user:password@host` without what stands before the `@`.
fn urls(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("://") {
        let (before, after) = rest.split_at(at + 3);
        out.push_str(before);
        let end = after
            .find(|c: char| c.is_whitespace() || matches!(c, '/' | '?' | '#' | '"' | '\'' | ',' | '<' | '>'));
        let authority = &after[..end.unwrap_or(after.len())];
        if let Some(at) = authority.rfind('@') {
            out.push_str(HIDDEN);
            rest = &after[at..];
        } else {
            rest = after;
        }
    }
    out.push_str(rest);
    out
}

fn long_hex(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut run = String::new();
    let flush = |run: &mut String, out: &mut String| {
        out.push_str(if run.len() > HEX_DIGITS_MAX { HIDDEN } else { run });
        run.clear();
    };
    for c in text.chars() {
        if c.is_ascii_hexdigit() {
            run.push(c);
        } else {
            flush(&mut run, &mut out);
            out.push(c);
        }
    }
    flush(&mut run, &mut out);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_go_and_everything_else_stays() {
        for (given, expected) in [
            ("password = \"hunter2\"\n", "password = \"(hidden)\"\n"),
            ("CAIRNCTL_PASSWORD=hunter2 x", "CAIRNCTL_PASSWORD=(hidden) x"),
            ("--user=root:hunter2 --hex", "--user=(hidden) --hex"),
            ("{\"auth-jwt-token\":\"abc\",\"hex\":true}", "{\"auth-jwt-token\":\"(hidden)\",\"hex\":true}"),
            ("initial-cluster-token   my-cluster   default", "initial-cluster-token   (hidden)   default"),
            (
                "auth-token: jwt,pub-key=/a,sign-method=RS256",
                "auth-token: (hidden),pub-key=/a,sign-method=RS256",
            ),
            ("Authorization: Bearer eyJh.bGci.x\n", "Authorization: (hidden)\n"),
            ("{\"authorization\":\"Bearer eyJh\",\"x\":1}", "{\"authorization\":\"(hidden)\",\"x\":1}"),
            ("password = \"it's \\\"so\" # x\n", "password = \"(hidden)\" # x\n"),
            ("the user has left; a token was made", "the user has left; a token was made"),
            ("password=", "password="),
            ("http://root:pw@db1:2379/health", "http://(hidden)@db1:2379/health"),
            ("a=http://u:p@h:1,b=https://h:2 mail@x", "a=http://(hidden)@h:1,b=https://h:2 mail@x"),
            ("http://h:1/v2/6c007a14875d53d9bf0ef5a6fc0257c8", "http://h:1/v2/(hidden)"),
            ("member 8e9e05c52164694d leads", "member 8e9e05c52164694d leads"),
            ("a\n-----BEGIN PRIVATE KEY-----\nMIIx\n-----END PRIVATE KEY-----\nb\n", "a\n(hidden)\nb\n"),
            ("-----BEGIN CERTIFICATE-----\nMIIx\n", "-----BEGIN CERTIFICATE-----\nMIIx\n"),
            ("secret: ünïcode tokens=ß", "secret: (hidden) tokens=(hidden)"),
        ] {
            assert_eq!(text(given), expected);
        }
        assert_eq!(
            metrics("auth_users 3\nx{u=\"http://a:b@h\"} 1\n"),
            "auth_users 3\nx{u=\"http://(hidden)@h\"} 1\n"
        );
    }

    #[test]
    fn what_was_redacted_stays_as_it_is() {
        let once = text("user=a password: \"b\" http://c:d@e");
        assert_eq!(text(&once), once);
    }
}
