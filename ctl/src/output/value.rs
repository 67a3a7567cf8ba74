//! Values that cairnctl's own formats share, and how they are written as JSON and as YAML. Keys keep their order, 64-bit numbers are whole.
//!
//! Not here: the JSON of `-w json`, which is a contract of its own (`json`).

use std::fmt::Write;

/// A tree of named values.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Null,
    Bool(bool),
    /// Wide enough for every number of the API, signed or not.
    Int(i128),
    /// Finite; anything else is written as null.
    Float(f64),
    Text(String),
    List(Vec<Value>),
    Map(Vec<(String, Value)>),
}

macro_rules! from_whole_number {
    ($($kind:ty),*) => {$(
        impl From<$kind> for Value {
            fn from(number: $kind) -> Value {
                Value::Int(number as i128)
            }
        }
    )*};
}
from_whole_number!(i32, i64, u16, u32, u64, usize);

impl From<bool> for Value {
    fn from(truth: bool) -> Value {
        Value::Bool(truth)
    }
}

impl From<f64> for Value {
    fn from(number: f64) -> Value {
        Value::Float(number)
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Value {
        Value::Text(text.to_owned())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Value {
        Value::Text(text)
    }
}

impl<T: Into<Value>> From<Vec<T>> for Value {
    fn from(items: Vec<T>) -> Value {
        Value::List(items.into_iter().map(Into::into).collect())
    }
}

impl<T: Into<Value>> From<Option<T>> for Value {
    fn from(item: Option<T>) -> Value {
        item.map_or(Value::Null, Into::into)
    }
}

impl Value {
    /// A map of these, in this order.
    pub fn map<const N: usize>(entries: [(&str, Value); N]) -> Value {
        Value::Map(entries.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
    }

    /// On one line, without the end of it.
    pub fn to_json_line(&self) -> String {
        let mut out = String::new();
        self.json(&mut out, None);
        out
    }

    /// With two blanks for each level, and the end of the last line.
    pub fn to_json(&self) -> String {
        let mut out = String::new();
        self.json(&mut out, Some(0));
        out.push('\n');
        out
    }

    /// One document, without its marker.
    pub fn to_yaml(&self) -> String {
        let mut out = String::new();
        match self {
            Value::Map(entries) if !entries.is_empty() => yaml_map(entries, 0, &mut out),
            Value::List(items) if !items.is_empty() => yaml_list(items, 0, &mut out),
            scalar => {
                scalar.yaml_scalar(&mut out);
                out.push('\n');
            }
        }
        out
    }

    /// `level`: of indentation; `None` writes one line.
    fn json(&self, out: &mut String, level: Option<usize>) {
        let deeper = level.map(|level| level + 1);
        match self {
            Value::Text(text) => json_text(text, out),
            Value::List(items) if !items.is_empty() => {
                out.push('[');
                for (at, item) in items.iter().enumerate() {
                    separate(out, at > 0, deeper);
                    item.json(out, deeper);
                }
                close(out, level, ']');
            }
            Value::Map(entries) if !entries.is_empty() => {
                out.push('{');
                for (at, (name, value)) in entries.iter().enumerate() {
                    separate(out, at > 0, deeper);
                    json_text(name, out);
                    out.push_str(if level.is_some() { ": " } else { ":" });
                    value.json(out, deeper);
                }
                close(out, level, '}');
            }
            plain => plain.plain(out),
        }
    }

    /// What JSON and YAML write alike.
    fn plain(&self, out: &mut String) {
        match self {
            Value::Bool(truth) => write!(out, "{truth}"),
            Value::Int(number) => write!(out, "{number}"),
            Value::Float(number) if number.is_finite() => write!(out, "{number:?}"),
            Value::Null | Value::Float(_) => write!(out, "null"),
            Value::List(_) => write!(out, "[]"),
            Value::Map(_) => write!(out, "{{}}"),
            Value::Text(_) => unreachable!("each format has its own texts"),
        }
        .expect("writing to a String succeeds");
    }

    fn yaml_scalar(&self, out: &mut String) {
        match self {
            Value::Text(text) if is_plain_yaml(text) => out.push_str(text),
            Value::Text(text) => yaml_quoted(text, out),
            other => other.plain(out),
        }
    }

    /// After `key:` or `-`: on the same line when it is one, below it else.
    fn yaml_after(&self, level: usize, out: &mut String) {
        match self {
            Value::Map(entries) if !entries.is_empty() => {
                out.push('\n');
                yaml_map(entries, level + 1, out);
            }
            Value::List(items) if !items.is_empty() => {
                out.push('\n');
                yaml_list(items, level + 1, out);
            }
            scalar => {
                out.push(' ');
                scalar.yaml_scalar(out);
                out.push('\n');
            }
        }
    }
}

fn separate(out: &mut String, more: bool, level: Option<usize>) {
    if more {
        out.push(',');
    }
    if let Some(level) = level {
        out.push('\n');
        out.push_str(&"  ".repeat(level));
    }
}

fn close(out: &mut String, level: Option<usize>, bracket: char) {
    if let Some(level) = level {
        out.push('\n');
        out.push_str(&"  ".repeat(level));
    }
    out.push(bracket);
}

fn json_text(text: &str, out: &mut String) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            // Terminals act on the controls behind DEL as well; JSON allows to escape any character.
            c if c.is_control() || matches!(c, '\u{2028}' | '\u{2029}' | '\u{feff}') => {
                write!(out, "\\u{:04x}", c as u32).expect("writing to a String succeeds");
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

fn yaml_map(entries: &[(String, Value)], level: usize, out: &mut String) {
    for (name, value) in entries {
        out.push_str(&"  ".repeat(level));
        yaml_entry(name, value, level, out);
    }
}

fn yaml_entry(name: &str, value: &Value, level: usize, out: &mut String) {
    if is_plain_yaml(name) {
        out.push_str(name)
    } else {
        yaml_quoted(name, out)
    }
    out.push(':');
    value.yaml_after(level, out);
}

fn yaml_list(items: &[Value], level: usize, out: &mut String) {
    for item in items {
        out.push_str(&"  ".repeat(level));
        out.push('-');
        match item {
            // The first entry stands behind the dash, the others below it.
            Value::Map(entries) if !entries.is_empty() => {
                for (at, (name, value)) in entries.iter().enumerate() {
                    if at > 0 {
                        out.push_str(&"  ".repeat(level + 1));
                    } else {
                        out.push(' ');
                    }
                    yaml_entry(name, value, level + 1, out);
                }
            }
            other => other.yaml_after(level, out),
        }
    }
}

/// JSON's quoted texts are YAML's too, for what JSON must escape; the rest of what YAML cannot print is escaped as well.
fn yaml_quoted(text: &str, out: &mut String) {
    json_text(text, out);
}

/// Whether every reader of YAML, of 1.1 or 1.2, takes the bare text for a text. Deliberately few.
fn is_plain_yaml(text: &str) -> bool {
    const WORDS: [&str; 9] = ["true", "false", "null", "yes", "no", "on", "off", "y", "n"];
    text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_' || c == '/')
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | '/'))
        && !WORDS.contains(&text.to_ascii_lowercase().as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Value {
        Value::map([
            ("name", "db1".into()),
            ("empty", Value::List(Vec::new())),
            ("nothing", Value::Null),
            ("urls", vec!["http://db1:2379", "no"].into()),
            (
                "members",
                Value::List(vec![
                    Value::map([
                        ("id", u64::MAX.into()),
                        ("lag", 1.5.into()),
                        ("in", Value::map([("a", true.into())])),
                    ]),
                    Value::map([("id", (-1).into())]),
                ]),
            ),
            ("odd: key", "two\nlines \"\\ \u{7f}\u{85}é".into()),
        ])
    }

    #[test]
    fn json_on_one_line_and_on_many_is_the_same_document() {
        let line = sample().to_json_line();
        assert_eq!(
            line,
            r#"{"name":"db1","empty":[],"nothing":null,"urls":["http://db1:2379","no"],"members":[{"id":18446744073709551615,"lag":1.5,"in":{"a":true}},{"id":-1}],"odd: key":"two\nlines \"\\ \u007f\u0085é"}"#
        );
        let read = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
        assert_eq!(read(&line), read(&sample().to_json()));
        assert_eq!(Value::map([("a", vec![1].into())]).to_json(), "{\n  \"a\": [\n    1\n  ]\n}\n");
    }

    #[test]
    fn yaml_quotes_whatever_a_reader_could_take_for_something_else() {
        let expected = "\
name: db1
empty: []
nothing: null
urls:
  - \"http://db1:2379\"
  - \"no\"
members:
  - id: 18446744073709551615
    lag: 1.5
    in:
      a: true
  - id: -1
\"odd: key\": \"two\\nlines \\\"\\\\ \\u007f\\u0085é\"
";
        assert_eq!(sample().to_yaml(), expected);
        for text in
            ["", "1", "1e3", "~", "-", "a b", "a: b", "#x", "True", "é", "0x1", "1:20", "=", "<<", ".inf"]
        {
            assert_eq!(Value::from(text).to_yaml(), format!("\"{text}\"\n"));
        }
        assert_eq!(Value::from("/registry/pods/a-1.b_2").to_yaml(), "/registry/pods/a-1.b_2\n");
    }

    #[test]
    fn numbers_that_are_none_are_null() {
        assert_eq!(Value::Float(f64::NAN).to_json_line(), "null");
        assert_eq!(Value::from(None::<i64>).to_yaml(), "null\n");
    }
}
