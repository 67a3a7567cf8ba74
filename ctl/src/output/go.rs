//! Text the way Go's standard library writes it: quoted strings of the `fields` format and strings inside JSON.

use std::fmt::Write;

/// A double-quoted literal. Printable text stays, the rest is escaped; bytes that are not UTF-8 become `\xNN`.
pub fn quote(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len() + 2);
    out.push('"');
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            quote_char(c, &mut out);
        }
        for byte in chunk.invalid() {
            push_escape(&mut out, format_args!("\\x{byte:02x}"));
        }
    }
    out.push('"');
    out
}

fn quote_char(c: char, out: &mut String) {
    match c {
        '"' => out.push_str("\\\""),
        '\\' => out.push_str("\\\\"),
        '\u{07}' => out.push_str("\\a"),
        '\u{08}' => out.push_str("\\b"),
        '\u{0c}' => out.push_str("\\f"),
        '\n' => out.push_str("\\n"),
        '\r' => out.push_str("\\r"),
        '\t' => out.push_str("\\t"),
        '\u{0b}' => out.push_str("\\v"),
        _ if is_printable(c) => out.push(c),
        _ if (c as u32) < 0x20 || c as u32 == 0x7f => push_escape(out, format_args!("\\x{:02x}", c as u32)),
        _ if (c as u32) < 0x10000 => push_escape(out, format_args!("\\u{:04x}", c as u32)),
        _ => push_escape(out, format_args!("\\U{:08x}", c as u32)),
    }
}

/// Letters, marks, numbers, punctuation, symbols and the ASCII space. The standard library knows this set only through its own
/// debug escapes; a character after the first is not escaped for being a combining mark, hence the leading `a`.
pub fn is_printable(c: char) -> bool {
    if c.is_ascii() {
        return (' '..='~').contains(&c);
    }
    let mut probe = String::from("a");
    probe.push(c);
    probe.escape_debug().nth(1) == Some(c)
}

/// A string inside JSON with the characters that HTML minds escaped too, as Go's encoder does by default.
pub fn json_string(text: &str, out: &mut String) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\u{08}' => out.push_str("\\b"),
            '\u{0c}' => out.push_str("\\f"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' | '\0'..='\u{1f}' => {
                push_escape(out, format_args!("\\u{:04x}", c as u32))
            }
            _ => out.push(c),
        }
    }
    out.push('"');
}

fn push_escape(out: &mut String, escape: std::fmt::Arguments<'_>) {
    out.write_fmt(escape).expect("writing to a String succeeds");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_follow_go_for_every_kind_of_byte() {
        let raw = b"w\x01\xff\xc3\xa9\"\\\t\x7f\xe2\x80\xa8\xf0\x9f\x98\x80\xc2\xa0\xcc\x81\xee\x80\x80\xf3\xa0\x80\x81\n";
        let expected =
            "\"w\\x01\\xff\u{e9}\\\"\\\\\\t\\x7f\\u2028\u{1f600}\\u00a0\u{301}\\ue000\\U000e0001\\n\"";
        assert_eq!(quote(raw), expected);
    }

    #[test]
    fn json_escapes_what_html_minds() {
        let mut out = String::new();
        json_string("<a>&\"\\\u{1}\n\u{2028}\u{e9}\u{7f}", &mut out);
        assert_eq!(out, "\"\\u003ca\\u003e\\u0026\\\"\\\\\\u0001\\n\\u2028\u{e9}\u{7f}\"");
    }
}
