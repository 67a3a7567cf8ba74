//! Keys and values as people read them, and how many columns that takes on a terminal.

use std::fmt::Write;
use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

/// The bytes as text: UTF-8 that can be printed stays, the rest becomes `\n`, `\t`, `\xNN` or `\u{N}`, and a backslash is doubled, so that
/// two different keys never look the same.
pub fn readable(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            readable_char(c, &mut out);
        }
        for byte in chunk.invalid() {
            write!(out, "\\x{byte:02x}").expect("writing to a String succeeds");
        }
    }
    out
}

/// One line of text from elsewhere (names, URLs, messages), safe for a terminal.
pub fn one_line(text: &str) -> String {
    readable_keeping_backslashes(text)
}

fn readable_keeping_backslashes(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c == '\\' { out.push(c) } else { readable_char(c, &mut out) }
    }
    out
}

fn readable_char(c: char, out: &mut String) {
    match c {
        '\\' => out.push_str("\\\\"),
        '\n' => out.push_str("\\n"),
        '\r' => out.push_str("\\r"),
        '\t' => out.push_str("\\t"),
        '\0' => out.push_str("\\0"),
        c if c.is_ascii_control() => {
            write!(out, "\\x{:02x}", c as u32).expect("writing to a String succeeds")
        }
        c if super::go::is_printable(c) => out.push(c),
        c => write!(out, "\\u{{{:x}}}", c as u32).expect("writing to a String succeeds"),
    }
}

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut out, byte| {
        write!(out, "{byte:02x}").expect("writing to a String succeeds");
        out
    })
}

/// Columns on a terminal.
pub fn width(text: &str) -> usize {
    text.width()
}

/// The text in at most `columns`, with an ellipsis when something is missing.
pub fn cut(text: &str, columns: usize) -> String {
    if width(text) <= columns {
        return text.to_owned();
    }
    let mut out = String::new();
    let mut left = columns.saturating_sub(1);
    for c in text.chars() {
        let wide = c.width().unwrap_or(0);
        if wide > left {
            break;
        }
        left -= wide;
        out.push(c);
    }
    out.push('…');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_readable_and_never_alike() {
        for (bytes, text) in [
            (&b"plain/key"[..], "plain/key"),
            ("größe 鍵 😀".as_bytes(), "größe 鍵 😀"),
            (b"a\nb\tc\r\0", "a\\nb\\tc\\r\\0"),
            (b"\\n", "\\\\n"),
            (b"\xff\xc3", "\\xff\\xc3"),
            (b"\x1b[2J\x7f", "\\x1b[2J\\x7f"),
            ("\u{85}\u{2028}\u{202e}".as_bytes(), "\\u{85}\\u{2028}\\u{202e}"),
        ] {
            assert_eq!(readable(bytes), text);
        }
    }

    #[test]
    fn widths_are_those_of_a_terminal() {
        assert_eq!((width("abc"), width("鍵"), width("e\u{301}")), (3, 2, 1));
        assert_eq!(cut("abcdef", 6), "abcdef");
        assert_eq!(cut("abcdefg", 6), "abcde…");
        assert_eq!(cut("鍵鍵鍵鍵", 6), "鍵鍵…");
    }
}
