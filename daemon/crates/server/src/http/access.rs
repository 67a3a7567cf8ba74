//! Who may ask over HTTP from a browser: `host-whitelist` against DNS rebinding, `cors` for other origins.

use std::collections::HashSet;

use http::{HeaderMap, HeaderValue, Request, header};

/// The two sets; each allows everything when empty or when it holds `*`.
pub(crate) struct Access {
    hosts: AllowList,
    origins: AllowList,
}

struct AllowList {
    all: bool,
    names: HashSet<String>,
}

impl AllowList {
    fn new(names: &[String]) -> Self {
        AllowList {
            all: names.is_empty() || names.iter().any(|name| name == "*"),
            names: names.iter().cloned().collect(),
        }
    }

    fn allows(&self, name: &str) -> bool {
        self.all || self.names.contains(name)
    }
}

/// A host that is not on the list, with what to do about it.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "cairn got your request, but its Host header {host:?} is not one it answers to.\n\n\
     To change that, do one of these:\n\
     - use https, where the certificate vouches for the name\n\
     - add the host to the setting: --host-whitelist {host:?}\n\n\
     The list keeps web pages from reaching this member through a name of their own (DNS rebinding, CVE-2018-5702)."
)]
pub(crate) struct HostRefused {
    host: String,
}

impl Access {
    pub fn new(hosts: &[String], origins: &[String]) -> Self {
        Access { hosts: AllowList::new(hosts), origins: AllowList::new(origins) }
    }

    pub fn check_host<T>(&self, request: &Request<T>) -> Result<(), HostRefused> {
        if self.hosts.all {
            return Ok(());
        }
        // HTTP/2 carries the host in the target, HTTP/1.1 in its header.
        let header = request.headers().get(header::HOST).and_then(|value| value.to_str().ok());
        let authority = header.or_else(|| request.uri().authority().map(|authority| authority.as_str()));
        let host = without_port(authority.unwrap_or_default());
        if self.hosts.allows(host) { Ok(()) } else { Err(HostRefused { host: host.to_owned() }) }
    }

    /// What to put into Access-Control-Allow-Origin, if anything.
    pub fn allowed_origin(&self, headers: &HeaderMap) -> Option<HeaderValue> {
        if self.origins.all {
            return Some(HeaderValue::from_static("*"));
        }
        let origin = headers.get(header::ORIGIN)?;
        self.origins.allows(origin.to_str().ok()?).then(|| origin.clone())
    }
}

/// `host`, `host:port`, `[v6]` or `[v6]:port` without port and brackets.
fn without_port(authority: &str) -> &str {
    if let Some(rest) = authority.strip_prefix('[') {
        return rest.split(']').next().unwrap_or(rest);
    }
    match authority.rsplit_once(':') {
        Some((host, _)) if !host.contains(':') => host,
        _ => authority,
    }
}

/// The three headers etcd answers with.
pub(crate) fn add_cors(headers: &mut HeaderMap, origin: HeaderValue) {
    headers.insert(
        header::ACCESS_CONTROL_ALLOW_METHODS,
        HeaderValue::from_static("POST, GET, OPTIONS, PUT, DELETE"),
    );
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    headers.insert(
        header::ACCESS_CONTROL_ALLOW_HEADERS,
        HeaderValue::from_static("accept, content-type, authorization"),
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_and_brackets_are_no_part_of_a_host() {
        for (authority, host) in [
            ("a.example", "a.example"),
            ("a.example:2379", "a.example"),
            ("[::1]:2379", "::1"),
            ("[::1]", "::1"),
            ("::1", "::1"),
            ("", ""),
        ] {
            assert_eq!(without_port(authority), host, "{authority}");
        }
    }

    #[test]
    fn an_empty_list_and_a_star_allow_all() {
        for names in [vec![], vec!["*".to_owned()], vec!["a".to_owned(), "*".to_owned()]] {
            assert!(AllowList::new(&names).allows("b"), "{names:?}");
        }
        assert!(!AllowList::new(&["a".to_owned()]).allows("b"));
    }
}
