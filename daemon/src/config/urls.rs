//! URLs as etcd reads them. The text is kept as it was written (only the scheme is lower-cased), because member ids hash the text:
//! normalising a host or dropping a default port would give the member another id than etcd's.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, SocketAddr},
};

use super::value::BadValue;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scheme {
    Http,
    Https,
    Unix,
    Unixs,
}

impl Scheme {
    fn parse(text: &str) -> Option<Scheme> {
        Some(match text.to_ascii_lowercase().as_str() {
            "http" => Scheme::Http,
            "https" => Scheme::Https,
            "unix" => Scheme::Unix,
            "unixs" => Scheme::Unixs,
            _ => return None,
        })
    }

    pub fn name(self) -> &'static str {
        match self {
            Scheme::Http => "http",
            Scheme::Https => "https",
            Scheme::Unix => "unix",
            Scheme::Unixs => "unixs",
        }
    }

    pub fn is_unix(self) -> bool {
        matches!(self, Scheme::Unix | Scheme::Unixs)
    }

    pub fn is_tls(self) -> bool {
        matches!(self, Scheme::Https | Scheme::Unixs)
    }
}

/// One URL of the client or peer protocol: scheme, host and port, no path.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Url {
    /// As written, scheme in lower case: what ids hash and members announce.
    text: String,
    pub scheme: Scheme,
    /// Without brackets. For unix schemes: everything after `//`.
    pub host: String,
    /// 0 for unix schemes.
    pub port: u16,
}

impl Url {
    pub fn parse(text: &str) -> Result<Url, BadValue> {
        let bad = |why: String| Err(BadValue(why));
        if text.chars().any(|c| c.is_whitespace() || c.is_control()) {
            return bad(format!("white space or a control character in URL {text:?}"));
        }
        let Some((scheme_text, rest)) = text.split_once("://") else {
            let meant = format!("http://{text}");
            let hint = Url::parse(&meant).map(|_| format!("; did you mean {meant}?")).unwrap_or_default();
            return bad(format!("{text:?} is not a URL: expected scheme://host:port{hint}"));
        };
        let Some(scheme) = Scheme::parse(scheme_text) else {
            return bad(format!("scheme {scheme_text:?} in {text:?} must be http, https, unix or unixs"));
        };
        let kept = format!("{}://{rest}", scheme.name());
        if scheme.is_unix() {
            if rest.is_empty() {
                return bad(format!("{text:?} names no socket"));
            }
            return Ok(Url { text: kept, scheme, host: rest.to_owned(), port: 0 });
        }
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, tail) = rest.split_at(end);
        if tail.starts_with('/') {
            return bad(format!("{text:?} must not have a path, not even a trailing /"));
        }
        let place = authority.rsplit_once('@').map_or(authority, |(_, place)| place);
        let Some((host, port)) = split_place(place) else {
            return bad(format!("{text:?} must name host and port: http://host:port"));
        };
        let Ok(port) = port.parse::<u16>() else {
            return bad(format!("port {port:?} in {text:?} is not a number below 65536"));
        };
        Ok(Url { text: kept, scheme, host: host.to_owned(), port })
    }

    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The host as an address, when it is one.
    pub fn ip(&self) -> Option<IpAddr> {
        self.host.parse().ok()
    }

    /// Where a listener of this URL binds. `localhost` is the IPv4 loopback, as etcd's listener picks it.
    pub fn bind_address(&self) -> Option<SocketAddr> {
        let ip = match self.host.as_str() {
            "localhost" => IpAddr::V4(Ipv4Addr::LOCALHOST),
            host => host.parse().ok()?,
        };
        Some(SocketAddr::new(ip, self.port))
    }

    /// For listeners: the host must be an address or `localhost`.
    pub fn check_listen(&self) -> Result<(), BadValue> {
        if self.scheme.is_unix() || self.bind_address().is_some() {
            return Ok(());
        }
        let why = if self.host.is_empty() { "no host" } else { "a host name" };
        Err(BadValue(format!(
            "{self} has {why}: a listener needs an IP address to bind (0.0.0.0 for all, or localhost)"
        )))
    }

    /// For announced URLs: somebody must be able to dial them.
    pub fn check_advertise(&self) -> Result<(), BadValue> {
        if self.host.is_empty() {
            return Err(BadValue(format!("{self} has no host: other members and clients could not dial it")));
        }
        Ok(())
    }

    /// Whether nobody on another host can reach it.
    pub fn is_of_this_host_alone(&self) -> bool {
        self.scheme.is_unix() || self.host == "localhost" || self.ip().is_some_and(|ip| ip.is_loopback())
    }

    /// Nobody can dial 0.0.0.0 or [::].
    pub fn is_unspecified(&self) -> bool {
        self.ip().is_some_and(|ip| ip.is_unspecified())
    }
}

/// Splits `host:port`, brackets around an IPv6 address removed. An empty port is none.
fn split_place(place: &str) -> Option<(&str, &str)> {
    let (host, port) = match place.strip_prefix('[') {
        Some(rest) => {
            let (host, tail) = rest.split_once(']')?;
            (host, tail.strip_prefix(':')?)
        }
        None => {
            let (host, port) = place.rsplit_once(':')?;
            if host.contains(':') {
                return None;
            }
            (host, port)
        }
    };
    (!port.is_empty()).then_some((host, port))
}

/// For messages and logs: a password in the URL is not shown.
impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let authority_end = self.text.find("://").map_or(0, |at| at + 3);
        match self.text.rfind('@') {
            Some(at) if !self.scheme.is_unix() && at > authority_end => {
                write!(f, "{}…{}", &self.text[..authority_end], &self.text[at..])
            }
            _ => f.write_str(&self.text),
        }
    }
}

/// Several URLs, comma separated; at least one unless the text is empty.
pub fn parse_list(text: &str) -> Result<Vec<Url>, BadValue> {
    let mut urls: Vec<Url> = Vec::new();
    for item in super::value::parse_list(text) {
        let url = Url::parse(&item)?;
        // A URL given twice is one listener and one announcement, as in etcd.
        if !urls.contains(&url) {
            urls.push(url);
        }
    }
    Ok(urls)
}

/// For messages.
pub fn shown(urls: &[Url]) -> String {
    urls.iter().map(Url::to_string).collect::<Vec<_>>().join(",")
}

/// As announced and hashed.
pub fn texts(urls: &[Url]) -> Vec<String> {
    urls.iter().map(|url| url.as_str().to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_is_kept_because_ids_hash_it() {
        for text in ["http://LOCALHOST:24011", "http://[::1]:24011", "http://u:p@127.0.0.1:24011?x=1"] {
            assert_eq!(Url::parse(text).unwrap().as_str(), text);
        }
        assert_eq!(Url::parse("HTTP://LOCALHOST:1").unwrap().as_str(), "http://LOCALHOST:1");
    }

    #[test]
    fn every_rule_of_a_url_has_its_own_message() {
        for (text, words) in [
            ("localhost:2380", "not a URL"),
            ("ftp://a:1", "must be http"),
            ("http://a", "host and port"),
            ("http://a:", "host and port"),
            ("http://a:1/", "must not have a path"),
            ("http://a:70000", "below 65536"),
            ("http://::1:80", "host and port"),
            ("http://a :1", "white space"),
            ("unix://", "names no socket"),
        ] {
            let message = Url::parse(text).unwrap_err().0;
            assert!(message.contains(words), "{text}: {message}");
        }
    }

    #[test]
    fn listeners_want_addresses_and_announcements_want_hosts() {
        let url = |text: &str| Url::parse(text).unwrap();
        assert!(url("http://example.com:24011").check_listen().is_err());
        assert!(url("http://:24011").check_listen().is_err());
        assert!(url("http://localhost:1").check_listen().is_ok());
        assert!(url("http://[::]:1").check_listen().is_ok());
        assert!(url("http://example.com:24011").check_advertise().is_ok());
        assert!(url("http://:24011").check_advertise().is_err());
        assert_eq!(url("http://localhost:7").bind_address().unwrap().to_string(), "127.0.0.1:7");
        assert!(url("http://0.0.0.0:1").is_unspecified());
    }

    #[test]
    fn a_password_is_not_shown() {
        assert_eq!(Url::parse("http://u:p@h:1?x=1").unwrap().to_string(), "http://…@h:1?x=1");
    }

    #[test]
    fn a_listener_given_twice_is_one() {
        assert_eq!(parse_list("http://a:1, http://a:1,,http://b:1").unwrap().len(), 2);
    }
}
