//! etcd's configuration file: keys named like flags, some of them in groups.

use saphyr_parser::{Event, Parser, ScalarStyle};

use super::{Item, Kind, Problem, Target, bool_of_yaml, duration_of_nanoseconds, find, target_of};
use crate::{config::table, refusal::Id};

/// Groups within groups are three deep in etcd's file.
const DEPTH_MAX: usize = 8;

#[derive(Debug)]
enum Node {
    /// The text, and whether it stands there without quotes.
    Scalar(String, bool),
    List(Vec<Node>),
    Map(Vec<(String, usize, Node)>),
}

/// Keys of groups whose flags are called otherwise.
const GROUPED: [(&str, &str); 15] = [
    ("socket-options.reuse-port", "socket-reuse-port"),
    ("socket-options.reuse-address", "socket-reuse-address"),
    ("discovery-config.token", "discovery-token"),
    ("discovery-config.client.endpoints", "discovery-endpoints"),
    ("discovery-config.client.dial-timeout", "discovery-dial-timeout"),
    ("discovery-config.client.request-timeout", "discovery-request-timeout"),
    ("discovery-config.client.keepalive-time", "discovery-keepalive-time"),
    ("discovery-config.client.keepalive-timeout", "discovery-keepalive-timeout"),
    ("discovery-config.client.secure.insecure-transport", "discovery-insecure-transport"),
    ("discovery-config.client.secure.insecure-skip-tls-verify", "discovery-insecure-skip-tls-verify"),
    ("discovery-config.client.secure.cert", "discovery-cert"),
    ("discovery-config.client.secure.key", "discovery-key"),
    ("discovery-config.client.secure.cacert", "discovery-cacert"),
    ("discovery-config.client.auth.username", "discovery-user"),
    ("discovery-config.client.auth.password", "discovery-password"),
];

pub fn items(path: &str, text: &str) -> Result<Vec<Item>, Problem> {
    let problem = |line: usize, what: String| Problem {
        id: Id::ConfigFile,
        place: format!("{path}:{line}"),
        what: format!("not etcd's YAML: {what}"),
        remedy: "name etcd's configuration file, or the environment file of its package".into(),
    };
    let mut parser = Reader { parser: Parser::new_from_str(text), line: 1 };
    let root = parser.document().map_err(|(line, what)| problem(line, what))?;
    let mut items = Vec::new();
    match root {
        None => {}
        Some(Node::Map(entries)) => {
            entries.into_iter().for_each(|entry| flatten(path, "", entry, &mut items))
        }
        Some(_) => return Err(problem(1, "the file is no list of keys and values".into())),
    }
    Ok(items)
}

fn flatten(path: &str, group: &str, (key, line, node): (String, usize, Node), items: &mut Vec<Item>) {
    let name = if group.is_empty() { key } else { format!("{group}.{key}") };
    let flag = flag_of(&name);
    match node {
        Node::Map(entries) if flag == Some("feature-gates") => {
            let gates = entries.iter().map(|(gate, _, value)| match value {
                Node::Scalar(text, _) => format!("{gate}={text}"),
                _ => gate.clone(),
            });
            let text = gates.collect::<Vec<_>>().join(",");
            items.push(item(path, line, name, text, flag));
        }
        Node::Map(entries) if flag.is_none() && !entries.is_empty() => {
            entries.into_iter().for_each(|entry| flatten(path, &name, entry, items));
        }
        Node::Map(_) => items.push(Item {
            place: format!("{path}:{line}"),
            name,
            text: String::new(),
            target: Target::Unknown("a group where etcd has a value".into()),
        }),
        Node::List(list) => {
            let texts: Option<Vec<String>> = list
                .into_iter()
                .map(|node| match node {
                    Node::Scalar(text, _) => Some(text),
                    _ => None,
                })
                .collect();
            match texts {
                Some(texts) => items.push(item(path, line, name, texts.join(","), flag)),
                None => items.push(Item {
                    place: format!("{path}:{line}"),
                    name,
                    text: String::new(),
                    target: Target::Unknown("a list of something other than texts".into()),
                }),
            }
        }
        Node::Scalar(text, is_plain) => {
            let text = match flag.map(|flag| find(flag).kind) {
                _ if is_plain && ["null", "~", "Null", "NULL"].contains(&text.as_str()) => String::new(),
                Some(Kind::Duration) if is_plain => match text.parse::<u64>() {
                    Ok(nanoseconds) if nanoseconds > 0 => duration_of_nanoseconds(nanoseconds),
                    _ => text,
                },
                Some(Kind::Bool) if is_plain => bool_of_yaml(&text).map_or(text, |value| value.to_string()),
                _ => text,
            };
            items.push(item(path, line, name, text, flag));
        }
    }
}

fn item(path: &str, line: usize, name: String, text: String, flag: Option<&'static str>) -> Item {
    let target = target_of(flag, &name);
    Item { place: format!("{path}:{line}"), name, text, target }
}

/// Keys are compared as Go's decoder does, without regard to case.
fn flag_of(name: &str) -> Option<&'static str> {
    let name = name.to_ascii_lowercase();
    if let Some((_, flag)) = GROUPED.iter().find(|(key, _)| *key == name) {
        return Some(flag);
    }
    // A key that belongs into a group is none outside of it.
    let alone = table::find(&name).filter(|setting| setting.group.toml_table().is_none());
    let setting = alone.or_else(|| {
        let (group, key) = name.split_once('.')?;
        table::find_toml(Some(group), key)
    });
    setting.map(|setting| setting.name)
}

struct Reader<'a> {
    parser: Parser<'a, saphyr_parser::StrInput<'a>>,
    line: usize,
}

type Failed = (usize, String);

impl Reader<'_> {
    fn next(&mut self) -> Result<Event<'_>, Failed> {
        match self.parser.next_event() {
            Some(Ok((event, span))) => {
                self.line = span.start.line();
                Ok(event)
            }
            Some(Err(error)) => Err((error.marker().line(), error.info().to_owned())),
            None => Err((self.line, "it ends too early".into())),
        }
    }

    /// None: nothing but comments.
    fn document(&mut self) -> Result<Option<Node>, Failed> {
        let mut root = None;
        loop {
            match self.next()? {
                Event::StreamEnd => return Ok(root),
                Event::DocumentStart(_) if root.is_none() => {
                    root = Some(self.node(0)?);
                }
                Event::DocumentStart(_) => return Err((self.line, "more than one document".into())),
                _ => {}
            }
        }
    }

    fn node(&mut self, depth: usize) -> Result<Node, Failed> {
        let open = match self.next()? {
            Event::Scalar(text, style, ..) => {
                return Ok(Node::Scalar(text.into_owned(), style == ScalarStyle::Plain));
            }
            Event::SequenceStart(..) => true,
            Event::MappingStart(..) => false,
            Event::Alias(_) => {
                return Err((self.line, "an alias (*name), which is not followed here".into()));
            }
            _ => return Err((self.line, "a value is missing".into())),
        };
        if depth == DEPTH_MAX {
            return Err((self.line, "groups within groups are too deep".into()));
        }
        self.inside(open, depth + 1)
    }

    fn inside(&mut self, is_list: bool, depth: usize) -> Result<Node, Failed> {
        let (mut list, mut map): (Vec<Node>, Vec<(String, usize, Node)>) = (Vec::new(), Vec::new());
        loop {
            let ends = match self.parser.peek() {
                Some(Ok((event, _))) => matches!(event, Event::SequenceEnd | Event::MappingEnd),
                _ => false,
            };
            if ends {
                self.next()?;
                return Ok(if is_list { Node::List(list) } else { Node::Map(map) });
            }
            if is_list {
                list.push(self.node(depth)?);
                continue;
            }
            let Node::Scalar(key, _) = self.node(depth)? else {
                return Err((self.line, "a key that is no text".into()));
            };
            let line = self.line;
            if map.iter().any(|(known, ..)| *known == key) {
                return Err((line, format!("{key} is there twice")));
            }
            map.push((key, line, self.node(depth)?));
        }
    }
}
