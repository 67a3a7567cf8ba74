//! One address of a member as the user wrote it, and what it means.

/// Where to connect to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// `host:port`; the host may be a name and IPv6 addresses are in brackets.
    Tcp(String),
    /// A socket in the file system.
    Unix(String),
}

/// An endpoint. `name` is exactly what the user gave, because output and complaints repeat it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    pub name: String,
    pub address: Address,
    pub secure: bool,
}

/// The client port of etcd and cairn, for endpoints that name only a host.
const DEFAULT_PORT: u16 = 2379;

impl Endpoint {
    /// Understands `host`, `host:port`, `http(s)://host:port`, `unix(s)://path` and `unix(s):path`. `bare_is_secure` decides for
    /// endpoints without a scheme.
    pub fn parse(name: &str, bare_is_secure: bool) -> Result<Endpoint, String> {
        let endpoint = |address, secure| Ok(Endpoint { name: name.to_owned(), address, secure });
        for (scheme, secure) in [("unix", false), ("unixs", true)] {
            let path = name
                .strip_prefix(scheme)
                .and_then(|rest| rest.strip_prefix("://").or_else(|| rest.strip_prefix(':')));
            if let Some(path) = path {
                return if path.is_empty() {
                    Err(format!("{name:?} names no socket"))
                } else {
                    endpoint(Address::Unix(path.to_owned()), secure)
                };
            }
        }
        let (host, secure) = match name.split_once("://") {
            Some(("http", rest)) => (rest, false),
            Some(("https", rest)) => (rest, true),
            Some((scheme, _)) => {
                return Err(format!(
                    "{name:?} has the unknown scheme {scheme:?}; known are http, https, unix and unixs"
                ));
            }
            None => (name, bare_is_secure),
        };
        let host = host.trim_end_matches('/');
        if host.is_empty() || host.contains(['/', ' ', '@', '?']) {
            return Err(format!("{name:?} is not host:port"));
        }
        let port = match host.strip_prefix('[') {
            Some(rest) => rest
                .split_once(']')
                .ok_or_else(|| format!("{name:?} lacks a closing bracket"))?
                .1
                .strip_prefix(':'),
            None => host.split_once(':').map(|(_, port)| port),
        };
        match port {
            None => endpoint(Address::Tcp(format!("{host}:{DEFAULT_PORT}")), secure),
            Some(port) if port.parse::<u16>().is_ok() => endpoint(Address::Tcp(host.to_owned()), secure),
            Some(port) => {
                Err(format!("{name:?} has the port {port:?}, which is not a number from 0 to 65535"))
            }
        }
    }

    /// The host alone: what a certificate is checked against. Bracket-free.
    pub fn host(&self) -> &str {
        match &self.address {
            Address::Tcp(address) => {
                address.rsplit_once(':').map_or(address.as_str(), |(host, _)| host).trim_matches(['[', ']'])
            }
            Address::Unix(_) => "localhost",
        }
    }

    /// The `:authority` of requests to it.
    pub fn authority(&self) -> &str {
        match &self.address {
            Address::Tcp(address) => address,
            Address::Unix(_) => "localhost",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_to_write_an_endpoint() {
        let tcp = |text: &str| Address::Tcp(text.to_owned());
        for (name, address, secure) in [
            ("h:1", tcp("h:1"), false),
            ("h", tcp("h:2379"), false),
            ("http://h:1", tcp("h:1"), false),
            ("https://h:1/", tcp("h:1"), true),
            ("[::1]:5", tcp("[::1]:5"), false),
            ("[::1]", tcp("[::1]:2379"), false),
            ("unix:///run/x", Address::Unix("/run/x".into()), false),
            ("unixs:/run/x", Address::Unix("/run/x".into()), true),
        ] {
            let endpoint = Endpoint::parse(name, false).unwrap();
            assert_eq!(
                (&endpoint.address, endpoint.secure, endpoint.name.as_str()),
                (&address, secure, name)
            );
        }
        assert!(
            Endpoint::parse("h:1", true).unwrap().secure
                && !Endpoint::parse("http://h:1", true).unwrap().secure
        );
        assert_eq!(Endpoint::parse("[::1]:5", false).unwrap().host(), "::1");
        for name in ["", "h:x", "ftp://h:1", "http://", "h:1/path", "unix:", "[::1", "h:70000"] {
            assert!(Endpoint::parse(name, false).is_err(), "{name} should be refused");
        }
    }
}
