//! What may be registered. Pure: a view of the token and a wish in, an answer or a write out. A write holds only while the view does, so
//! two members that come at the same time never overfill a token; whoever lost decides again.

use api::etcdserverpb as pb;
use http::StatusCode;
use state_machine::membership;

use super::{
    SIZE_MAX, VALUE_BYTES_MAX,
    answer::{Node, Refusal, event},
    token::{self, Entry, Size, Token, View, modified_at, number},
};

/// What a wish comes to.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Decision {
    /// Everything is as wished already.
    Done(StatusCode, String),
    Write(pb::TxnRequest, Box<Told>),
}

/// What is told once a write has happened, at its revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Told {
    status: StatusCode,
    action: &'static str,
    node: Node,
    /// The write creates the key, or shows it as created anew.
    is_new: bool,
    before: Option<Node>,
}

impl Told {
    pub fn at(mut self, revision: i64) -> (StatusCode, String) {
        self.node.modified = revision;
        if self.is_new {
            self.node.created = revision;
        }
        (self.status, event(self.action, &self.node, self.before.as_ref()))
    }
}

/// What somebody wants written.
#[derive(Clone, Debug)]
pub(crate) struct Wish<'a> {
    pub token: &'a Token,
    /// As answers name the token's directory.
    pub dir: &'a str,
    pub value: &'a str,
    pub prev_exist: Option<bool>,
    /// The token's URL as whoever registers may have been given it; empty when that is not known.
    pub spelled: &'a [String],
}

impl Wish<'_> {
    fn action(&self) -> &'static str {
        match self.prev_exist {
            None => "set",
            Some(false) => "create",
            Some(true) => "update",
        }
    }

    fn unchanged(&self, view: &View, success: Vec<pb::RequestOp>) -> pb::TxnRequest {
        pb::TxnRequest { compare: view.unchanged(self.token), success, failure: Vec::new() }
    }

    /// The registration of the member with this id. `resume`: one that is there already may be made again, as long as the token is not
    /// complete; `tried`: this very request may have made it.
    pub fn entry(&self, view: &View, id: &str, resume: bool, tried: bool) -> Result<Decision, Refusal> {
        let key = format!("{}/{id}", self.dir);
        let Some(size) = &view.size else { return Err(Refusal::not_found(self.dir)) };
        if let Some(entry) = view.entry(id) {
            return self.again(view, size, entry, &key, resume, tried);
        }
        if self.prev_exist == Some(true) {
            return Err(Refusal::not_found(&key));
        }
        let Some(count) = size.count() else {
            return Err(Refusal::invalid(format!(
                "the size of the token is {:?}, which is no size",
                size.text
            )));
        };
        check_id(id)?;
        let new = Registered::read(self.value).map_err(Refusal::invalid)?;
        if view.entries.len() >= count {
            return Err(Refusal::frozen(format!(
                "the token is complete: {} of {count} members are registered ({})",
                view.entries.len(),
                names(&view.entries)
            )));
        }
        for entry in &view.entries {
            // What v3 clients wrote need not be readable.
            let Ok(other) = Registered::read(&entry.value) else { continue };
            if other.name == new.name {
                return Err(Refusal::invalid(format!(
                    "the name {:?} is registered already, by member {} ({})",
                    new.name, entry.id, entry.value
                )));
            }
            if let Some(url) = new.urls.iter().find(|url| other.urls.contains(url)) {
                return Err(Refusal::invalid(format!(
                    "the peer URL {url} is registered already, by member {} ({})",
                    entry.id, entry.value
                )));
            }
        }
        self.check_spelling(view, id, &new)?;
        let put = token::put(self.token.entry_key(id), self.value, size.lease);
        let node = Node { key, value: Some(self.value.to_owned()), ..Node::default() };
        let told =
            Told { status: StatusCode::CREATED, action: self.action(), node, is_new: true, before: None };
        Ok(Decision::Write(self.unchanged(view, vec![put]), Box::new(told)))
    }

    /// Ids are made from peer URLs and the text of the token's URL, or of the token alone in v3 discovery, and the cluster's id from those.
    /// Members that were given different texts find each other, start, and never become one cluster. When it can be told which text the
    /// new member has, everybody before it must have had the same.
    fn check_spelling(&self, view: &View, id: &str, new: &Registered<'_>) -> Result<(), Refusal> {
        let made = |urls: &[&str], text: &str| {
            let urls: Vec<String> = urls.iter().map(|url| (*url).to_owned()).collect();
            format!("{:x}", membership::member_id(&urls, text, None).0)
        };
        let Some(text) = self.spelled.iter().find(|text| made(&new.urls, text) == id) else { return Ok(()) };
        for entry in &view.entries {
            let Ok(other) = Registered::read(&entry.value) else { continue };
            if made(&other.urls, text) != entry.id {
                let how = if made(&other.urls, self.token.as_str()) == entry.id {
                    "through v3 discovery"
                } else {
                    "with another spelling of the discovery URL"
                };
                return Err(Refusal::invalid(format!(
                    "member {} ({}) registered {how}: ids are made from that text, and the two would found different clusters; this one has {text}",
                    entry.id, entry.value
                )));
            }
        }
        Ok(())
    }

    fn again(
        &self,
        view: &View,
        size: &Size,
        entry: &Entry,
        key: &str,
        resume: bool,
        tried: bool,
    ) -> Result<Decision, Refusal> {
        let node = Node::of_entry(self.dir, entry);
        let is_same = entry.value == self.value;
        match self.prev_exist {
            Some(false) => {
                let is_complete = size.count().is_none_or(|count| view.entries.len() >= count);
                if is_same && (tried || (resume && !is_complete)) {
                    return Ok(Decision::Done(StatusCode::CREATED, event("create", &node, None)));
                }
                Err(Refusal::exists(key))
            }
            _ if is_same => Ok(Decision::Done(StatusCode::OK, event(self.action(), &node, Some(&node)))),
            _ => Err(Refusal::frozen(format!(
                "member {} is registered with another value ({}); DELETE it with ?force=true first if that one is never to be",
                entry.id, entry.value
            ))),
        }
    }

    /// The size of a token that is there.
    pub fn size(&self, view: &View, size: &Size) -> Result<Decision, Refusal> {
        let node = Node::of_size(self.dir, size);
        if self.prev_exist == Some(false) {
            return Err(Refusal::exists(&node.key));
        }
        check_size(self.value)?;
        if !view.entries.is_empty() {
            if size.text == self.value {
                return Ok(Decision::Done(StatusCode::OK, event(self.action(), &node, Some(&node))));
            }
            return Err(Refusal::frozen(format!(
                "members are registered for a cluster of {} ({})",
                size.text,
                names(&view.entries)
            )));
        }
        let put = token::put(self.token.size_key(), self.value, size.lease);
        let new = Node { value: Some(self.value.to_owned()), ..node.clone() };
        let told = Told {
            status: StatusCode::OK,
            action: self.action(),
            node: new,
            is_new: self.prev_exist.is_none(),
            before: Some(node),
        };
        Ok(Decision::Write(self.unchanged(view, vec![put]), Box::new(told)))
    }

    /// A token that is not there yet, held by `lease`. What v3 clients left under it when it ended goes.
    pub fn token(&self, lease: i64) -> Result<(pb::TxnRequest, Told), Refusal> {
        let key = format!("{}/_config/size", self.dir);
        check_size(self.value)?;
        if self.prev_exist == Some(true) {
            return Err(Refusal::not_found(self.dir));
        }
        let success = vec![
            token::delete(token::prefix(&self.token.members())),
            token::put(self.token.size_key(), self.value, lease),
        ];
        let compare = vec![modified_at(self.token.size_key(), 0)];
        let node = Node { key, value: Some(self.value.to_owned()), ..Node::default() };
        let told =
            Told { status: StatusCode::CREATED, action: self.action(), node, is_new: true, before: None };
        Ok((pb::TxnRequest { compare, success, failure: Vec::new() }, told))
    }
}

/// Takes one registration back.
pub(crate) fn take_back(
    token: &Token,
    dir: &str,
    view: &View,
    id: &str,
    force: bool,
) -> Result<Decision, Refusal> {
    let key = format!("{dir}/{id}");
    let Some(entry) = view.entry(id).filter(|_| view.size.is_some()) else {
        return Err(Refusal::not_found(if view.size.is_some() { &key } else { dir }));
    };
    if !force {
        return Err(Refusal::frozen(format!(
            "member {id} may be on its way; add ?force=true if it never comes ({})",
            entry.value
        )));
    }
    let compare = vec![modified_at(token.entry_key(id), entry.modified)];
    let success = vec![token::delete((token.entry_key(id), Default::default()))];
    let node = Node { key, created: entry.index, ..Node::default() };
    let before = Some(Node::of_entry(dir, entry));
    let told = Told { status: StatusCode::OK, action: "delete", node, is_new: false, before };
    Ok(Decision::Write(pb::TxnRequest { compare, success, failure: Vec::new() }, Box::new(told)))
}

/// Ends a token with everything under it.
pub(crate) fn end(
    token: &Token,
    dir: &str,
    view: &View,
    recursive: bool,
    force: bool,
) -> Result<Decision, Refusal> {
    let Some(size) = &view.size else { return Err(Refusal::not_found(dir)) };
    if !recursive {
        return Err(Refusal::not_a_file(dir));
    }
    if !force {
        return Err(Refusal::frozen(format!(
            "{} members are registered; add ?force=true if none of them is to find the others",
            view.entries.len()
        )));
    }
    let compare = vec![modified_at(token.size_key(), size.modified)];
    let success = vec![
        token::delete((token.size_key(), Default::default())),
        token::delete(token::prefix(&token.members())),
    ];
    let node = Node { key: dir.to_owned(), dir: true, created: size.created, ..Node::default() };
    let before = Node { modified: size.created, ..node.clone() };
    let told = Told { status: StatusCode::OK, action: "delete", node, is_new: false, before: Some(before) };
    Ok(Decision::Write(pb::TxnRequest { compare, success, failure: Vec::new() }, Box::new(told)))
}

/// Refuses what is no number of members.
pub(crate) fn check_size(text: &str) -> Result<usize, Refusal> {
    number(text).ok_or_else(|| {
        Refusal::invalid(format!(
            "the size of a cluster is a whole number from 1 to {SIZE_MAX}, not {text:?}"
        ))
    })
}

/// A member's id as members write it: hexadecimal, without zeros in front.
fn check_id(id: &str) -> Result<(), Refusal> {
    let is_digits = id.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    if is_digits && (1..=16).contains(&id.len()) && !id.starts_with('0') {
        return Ok(());
    }
    Err(Refusal::invalid(format!("{id:?} is no member id: up to 16 hexadecimal digits")))
}

fn names(entries: &[Entry]) -> String {
    let names: Vec<&str> =
        entries.iter().map(|entry| entry.value.split('=').next().unwrap_or_default()).collect();
    names.join(", ")
}

/// What a member says about itself.
#[derive(Debug, PartialEq, Eq)]
struct Registered<'a> {
    name: &'a str,
    urls: Vec<&'a str>,
}

impl<'a> Registered<'a> {
    /// `name=url,name=url`, the rules of `--initial-cluster` and of peer URLs.
    fn read(value: &'a str) -> Result<Registered<'a>, String> {
        if value.len() > VALUE_BYTES_MAX {
            return Err(format!("a registration has at most {VALUE_BYTES_MAX} bytes, not {}", value.len()));
        }
        let mut name = None;
        let mut urls = Vec::new();
        for item in value.split(',').filter(|item| !item.is_empty()) {
            let (its, url) = item.split_once('=').ok_or_else(|| format!("{item:?} is not name=url"))?;
            if its.is_empty() {
                return Err(format!("{item:?} has no name in front of ="));
            }
            if *name.get_or_insert(its) != its {
                return Err(format!("{value:?} names two members; each registers itself"));
            }
            check_url(url)?;
            if urls.contains(&url) {
                return Err(format!("{url} is there twice"));
            }
            urls.push(url);
        }
        let name = name.ok_or("nothing is registered: the value is empty, and should be name=url")?;
        Ok(Registered { name, urls })
    }
}

fn check_url(url: &str) -> Result<(), String> {
    let wrong = |why: &str| Err(format!("{url:?} is no peer URL: {why}"));
    let Some((scheme, rest)) = url.split_once("://") else { return wrong("it has no scheme") };
    match scheme {
        "unix" | "unixs" if !rest.is_empty() => return Ok(()),
        "http" | "https" => {}
        _ => return wrong("the scheme must be http, https, unix or unixs"),
    }
    let authority = rest.split('?').next().unwrap_or_default();
    let place = authority.rsplit_once('@').map_or(authority, |(_, place)| place);
    if place.contains(['/', '#']) {
        return wrong("it has a path");
    }
    let Some((host, port)) = place.rsplit_once(':') else { return wrong("it has no port") };
    let is_port = port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok();
    if !is_port {
        return wrong("its port is no number");
    }
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let is_host = match bare {
        Some(v6) => {
            !v6.is_empty() && v6.bytes().all(|byte| byte.is_ascii_hexdigit() || b":.%".contains(&byte))
        }
        None => {
            let can_stand = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
            !host.is_empty() && host.bytes().all(can_stand)
        }
    };
    if is_host { Ok(()) } else { wrong("its host is no name or address") }
}

#[cfg(test)]
mod tests;
