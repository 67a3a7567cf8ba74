//! Which way to the first members the settings ask for, with everything that way needs. Whoever holds a [`Way`] need not check anything
//! again but the contents of certificate files.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use url::Url;

use crate::{
    config::{
        Note, Problem,
        source::Values,
        value::{BadValue, parse_list},
    },
    identity::host,
    refusal::Id,
};

/// A service that nobody reaches for so long is not coming by itself; the unit's restart tries again.
const UNREACHABLE_LIMIT: Duration = Duration::from_secs(60);

#[derive(Clone, Debug)]
pub enum Way {
    V2(V2Settings),
    V3(V3Settings),
    Srv(SrvSettings),
}

impl Way {
    /// As the identity file names how a member came to be.
    pub fn method(&self) -> &'static str {
        match self {
            Way::V2(_) => "discovery-v2",
            Way::V3(_) => "discovery-v3",
            Way::Srv(_) => "srv",
        }
    }

    /// What enters the ids of members: the whole URL, the token, or for SRV initial-cluster-token.
    pub fn token(&self) -> &str {
        match self {
            Way::V2(settings) => &settings.url.text,
            Way::V3(settings) => &settings.token,
            Way::Srv(settings) => &settings.token,
        }
    }

    /// Where the members are found, for people and for the identity file: without passwords.
    pub fn shown(&self) -> String {
        match self {
            Way::V2(settings) => host::redacted(&settings.url.text),
            Way::V3(settings) => {
                let endpoints: Vec<String> = settings.endpoints.iter().map(Endpoint::to_string).collect();
                format!("{} at {}", settings.token, endpoints.join(","))
            }
            Way::Srv(settings) => format!("SRV {}", settings.domain),
        }
    }
}

/// How long to wait for what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// For a service (or name server) that does not answer.
    pub service: Duration,
    /// For members that have not come; none: for ever.
    pub members: Option<Duration>,
}

#[derive(Clone, Debug)]
pub struct V2Settings {
    pub url: TokenUrl,
    /// `http://host:port`.
    pub proxy: Option<Url>,
    pub patience: Patience,
}

/// The URL of a token: its text enters ids, so it is kept as typed.
#[derive(Clone, Debug)]
pub struct TokenUrl {
    pub text: String,
    pub url: Url,
}

#[derive(Clone, Debug)]
pub struct V3Settings {
    pub endpoints: Vec<Endpoint>,
    pub token: String,
    pub dial_timeout: Duration,
    pub request_timeout: Duration,
    /// Zero: no pings.
    pub keepalive_time: Duration,
    pub keepalive_timeout: Duration,
    pub tls: TlsFiles,
    pub login: Option<Login>,
    pub patience: Patience,
}

/// One address of the v3 service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    pub tls: bool,
    /// Without brackets.
    pub host: String,
    pub port: u16,
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "https" } else { "http" };
        let brackets = if self.host.contains(':') { ("[", "]") } else { ("", "") };
        write!(f, "{scheme}://{}{}{}:{}", brackets.0, self.host, brackets.1, self.port)
    }
}

#[derive(Clone, Debug, Default)]
pub struct TlsFiles {
    pub cert: Option<PathBuf>,
    pub key: Option<PathBuf>,
    /// None: the system's authorities.
    pub cacert: Option<PathBuf>,
    pub skip_verify: bool,
}

#[derive(Clone)]
pub struct Login {
    pub user: String,
    pub password: String,
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Login({})", self.user)
    }
}

/// Which of the two sets of records count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Schemes {
    /// The one that exists; both is a refusal.
    TheOnlyOne,
    Http,
    Https,
    Both,
}

#[derive(Clone, Debug)]
pub struct SrvSettings {
    /// Without a final dot.
    pub domain: String,
    pub service_suffix: Option<String>,
    pub schemes: Schemes,
    /// None: as many as there are.
    pub size: Option<usize>,
    /// None: as /etc/resolv.conf says.
    pub nameserver: Option<SocketAddr>,
    /// initial-cluster-token.
    pub token: String,
    pub patience: Patience,
}

/// Settings of one way each; they do nothing without the first of their line.
const COMPANIONS: [(&str, &[&str]); 3] = [
    ("discovery", &["discovery-proxy"]),
    (
        "discovery-endpoints",
        &[
            "discovery-dial-timeout",
            "discovery-request-timeout",
            "discovery-keepalive-time",
            "discovery-keepalive-timeout",
            "discovery-insecure-transport",
            "discovery-insecure-skip-tls-verify",
            "discovery-cert",
            "discovery-key",
            "discovery-cacert",
            "discovery-user",
            "discovery-password",
        ],
    ),
    (
        "discovery-srv",
        &["discovery-srv-name", "discovery-srv-scheme", "discovery-srv-size", "discovery-srv-nameserver"],
    ),
];

struct Reader<'a> {
    values: &'a Values,
    problems: Vec<Problem>,
}

/// The way that the settings ask for; none when they list the members.
pub fn read(values: &Values, notes: &mut Vec<Note>) -> Result<Option<Way>, Vec<Problem>> {
    let mut reader = Reader { values, problems: Vec::new() };
    let set = |name: &str| values.is_given(name) && !values.text(name).is_empty();
    for (first, companions) in COMPANIONS {
        for name in companions.iter().filter(|name| set(name) && !set(first)) {
            notes.push(Note {
                message: "setting has no effect",
                fields: vec![("setting", values.place(name)), ("reason", format!("{first} is not set"))],
            });
        }
    }
    let v3 = if set("discovery-token") { "discovery-token" } else { "discovery-endpoints" };
    let ways: Vec<&str> =
        ["discovery", v3, "discovery-srv", "initial-cluster"].into_iter().filter(|name| set(name)).collect();
    if let [first, second, ..] = ways[..] {
        let what = format!("{first} and {second} are two ways to the members, and only one can count");
        reader.problem(Id::SettingsConflict, second, what, format!("keep {first} or {second}, not both"));
    }
    let found = ways.first().copied().filter(|way| *way != "initial-cluster");
    if let Some(way) = found {
        if values.text("initial-cluster-state") == "existing" {
            let what = format!("{way} founds a cluster, and initial-cluster-state is existing");
            let remedy = "to join a running cluster, name a member of it: --initial-cluster=<name>=<URL>,… instead of discovery";
            reader.problem(Id::SettingsConflict, "initial-cluster-state", what, remedy);
        }
        if set("initial-cluster-token") && way != "discovery-srv" {
            let reason = format!("the token is that of {way}");
            let fields = vec![("setting", values.place("initial-cluster-token")), ("reason", reason)];
            notes.push(Note { message: "setting has no effect", fields });
        }
    } else if set("discovery-timeout") {
        let fields =
            vec![("setting", values.place("discovery-timeout")), ("reason", "no discovery is set".into())];
        notes.push(Note { message: "setting has no effect", fields });
    }
    let way = match found {
        Some("discovery") => reader.v2().map(Way::V2),
        Some("discovery-srv") => reader.srv().map(Way::Srv),
        Some(_) => reader.v3().map(Way::V3),
        None => None,
    };
    if reader.problems.is_empty() { Ok(way) } else { Err(reader.problems) }
}

impl Reader<'_> {
    fn problem(&mut self, id: Id, setting: &str, what: impl Into<String>, remedy: impl Into<String>) {
        let place = self.values.place(setting);
        self.problems.push(Problem { id, place, what: what.into(), remedy: remedy.into() });
    }

    /// The value, or a problem with it.
    fn or_problem<T>(&mut self, setting: &str, value: Result<T, BadValue>, remedy: &str) -> Option<T> {
        value.map_err(|why| self.problem(Id::BadValue, setting, why.0, remedy)).ok()
    }

    fn patience(&self) -> Patience {
        let given = Some(self.values.duration("discovery-timeout")).filter(|limit| !limit.is_zero());
        Patience { service: given.unwrap_or(UNREACHABLE_LIMIT), members: given }
    }

    fn path(&self, setting: &str) -> Option<PathBuf> {
        Some(self.values.text(setting)).filter(|text| !text.is_empty()).map(PathBuf::from)
    }

    fn v2(&mut self) -> Option<V2Settings> {
        let url = token_url(self.values.text("discovery"));
        let url = self.or_problem(
            "discovery",
            url,
            "give the URL as the service handed it out: http://host:port/…/<token>",
        );
        let proxy = match self.values.text("discovery-proxy") {
            "" => Some(None),
            text => self.or_problem("discovery-proxy", proxy(text), "give it as http://host:port").map(Some),
        };
        Some(V2Settings { url: url?, proxy: proxy?, patience: self.patience() })
    }

    fn v3(&mut self) -> Option<V3Settings> {
        let values = self.values;
        let token = values.text("discovery-token").to_owned();
        let texts = parse_list(values.text("discovery-endpoints"));
        for (missing, other, empty) in [
            ("discovery-endpoints", "discovery-token", texts.is_empty()),
            ("discovery-token", "discovery-endpoints", token.is_empty()),
        ] {
            if empty {
                let what = format!("{other} is set and {missing} is not");
                self.problem(
                    Id::SettingsConflict,
                    other,
                    what,
                    format!("set both, or for v2 only --discovery; {missing} is missing"),
                );
            }
        }
        if token.contains('/') || token.chars().any(char::is_whitespace) {
            let what = format!("{token:?} is no token: it has a slash or white space in it");
            self.problem(
                Id::BadValue,
                "discovery-token",
                what,
                "give the token alone, without the address of the service",
            );
        }
        let tls = TlsFiles {
            cert: self.path("discovery-cert"),
            key: self.path("discovery-key"),
            cacert: self.path("discovery-cacert"),
            skip_verify: values.bool("discovery-insecure-skip-tls-verify"),
        };
        if tls.cert.is_some() != tls.key.is_some() {
            let (there, missing) = if tls.cert.is_some() {
                ("discovery-cert", "discovery-key")
            } else {
                ("discovery-key", "discovery-cert")
            };
            self.problem(
                Id::SettingsConflict,
                there,
                format!("{there} is set and {missing} is not"),
                format!("set {missing} too"),
            );
        }
        for setting in ["discovery-dial-timeout", "discovery-request-timeout"] {
            if values.duration(setting).is_zero() {
                let what = format!("{setting} is 0, and nothing answers in no time");
                self.problem(Id::BadValue, setting, what, format!("give it some seconds: --{setting}=5s"));
            }
        }
        let only_tls = !values.bool("discovery-insecure-transport");
        let by_default = only_tls || tls.cert.is_some() || tls.cacert.is_some() || tls.skip_verify;
        let mut endpoints = Vec::new();
        for text in &texts {
            let parsed = endpoint(text, by_default);
            let Some(endpoint) = self.or_problem(
                "discovery-endpoints",
                parsed,
                "give each as http://host:port or https://host:port",
            ) else {
                continue;
            };
            if only_tls && !endpoint.tls {
                let what = format!("{endpoint} is without TLS, and discovery-insecure-transport is false");
                self.problem(
                    Id::SettingsConflict,
                    "discovery-endpoints",
                    what,
                    format!("write https:// for {text}"),
                );
            }
            endpoints.push(endpoint);
        }
        Some(V3Settings {
            endpoints,
            token,
            dial_timeout: values.duration("discovery-dial-timeout"),
            request_timeout: values.duration("discovery-request-timeout"),
            keepalive_time: values.duration("discovery-keepalive-time"),
            keepalive_timeout: values.duration("discovery-keepalive-timeout"),
            tls,
            login: self.login(),
            patience: self.patience(),
        })
    }

    /// The user alone with a password beside it, or both in one as etcd's help describes it.
    fn login(&mut self) -> Option<Login> {
        let (user, password) = (self.values.text("discovery-user"), self.values.text("discovery-password"));
        let (user, password) = match user.split_once(':') {
            Some((user, inline)) if password.is_empty() => (user, inline),
            _ => (user, password),
        };
        if user.is_empty() && !password.is_empty() {
            let remedy = "name the user: --discovery-user";
            self.problem(
                Id::SettingsConflict,
                "discovery-password",
                "discovery-password is set and discovery-user is not",
                remedy,
            );
        }
        (!user.is_empty()).then(|| Login { user: user.to_owned(), password: password.to_owned() })
    }

    fn srv(&mut self) -> Option<SrvSettings> {
        let values = self.values;
        let domain = values.text("discovery-srv").trim_end_matches('.').to_owned();
        if domain.is_empty() || !domain.chars().all(is_of_names) {
            let what = format!("{:?} is no domain", values.text("discovery-srv"));
            self.problem(
                Id::BadValue,
                "discovery-srv",
                what,
                "give the domain alone: --discovery-srv=example.com",
            );
        }
        let suffix = values.text("discovery-srv-name");
        if !suffix.chars().all(|c| is_of_names(c) && c != '.') {
            let what = format!("{suffix:?} cannot be part of a service name");
            self.problem(Id::BadValue, "discovery-srv-name", what, "use letters, digits and dashes");
        }
        let nameserver = match values.text("discovery-srv-nameserver") {
            "" => None,
            text => self.or_problem(
                "discovery-srv-nameserver",
                nameserver(text),
                "give it as 192.0.2.1 or 192.0.2.1:53",
            ),
        };
        let size: usize = values.count("discovery-srv-size");
        Some(SrvSettings {
            domain,
            service_suffix: Some(suffix).filter(|text| !text.is_empty()).map(str::to_owned),
            schemes: match values.text("discovery-srv-scheme") {
                "http" => Schemes::Http,
                "https" => Schemes::Https,
                "both" => Schemes::Both,
                _ => Schemes::TheOnlyOne,
            },
            size: Some(size).filter(|size| *size > 0),
            nameserver,
            token: values.text("initial-cluster-token").to_owned(),
            patience: self.patience(),
        })
    }
}

/// Letters, digits, dashes, underscores and dots.
fn is_of_names(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.')
}

fn token_url(text: &str) -> Result<TokenUrl, BadValue> {
    let shown = host::redacted(text);
    let url = Url::parse(text).map_err(|why| BadValue(format!("{shown:?} is not a URL: {why}")))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(BadValue(format!("scheme {:?} in {shown:?} must be http or https", url.scheme())));
    }
    if url.path().trim_matches('/').is_empty() {
        return Err(BadValue(format!("{shown:?} names no token: its path is empty")));
    }
    Ok(TokenUrl { text: text.to_owned(), url })
}

fn proxy(text: &str) -> Result<Url, BadValue> {
    let shown = host::redacted(text);
    let url = Url::parse(text).map_err(|why| BadValue(format!("{shown:?} is not a URL: {why}")))?;
    if url.scheme() != "http" || url.host().is_none() || !url.path().trim_matches('/').is_empty() {
        return Err(BadValue(format!("{shown:?} is no http proxy")));
    }
    Ok(url)
}

/// `host:port` with or without a scheme.
fn endpoint(text: &str, tls_by_default: bool) -> Result<Endpoint, BadValue> {
    let bad = |why: String| BadValue(format!("endpoint {text:?}: {why}"));
    let (tls, place) = match text.split_once("://") {
        Some(("http", place)) => (false, place),
        Some(("https", place)) => (true, place),
        Some((other, _)) => return Err(bad(format!("scheme {other:?} must be http or https"))),
        None => (tls_by_default, text),
    };
    let parsed =
        Url::parse(&format!("http://{}", place.trim_end_matches('/'))).map_err(|why| bad(why.to_string()))?;
    let port = place.trim_end_matches('/').rsplit_once(':').and_then(|(_, port)| port.parse().ok());
    let host = parsed.host_str().unwrap_or_default().trim_matches(['[', ']']).to_owned();
    match port {
        Some(port) if parsed.path() == "/" && parsed.username().is_empty() => {
            Ok(Endpoint { tls, host, port })
        }
        Some(_) => Err(bad("only host and port are expected".into())),
        None => Err(bad("the port is missing".into())),
    }
}

/// The port of name servers.
const DNS_PORT: u16 = 53;

fn nameserver(text: &str) -> Result<SocketAddr, BadValue> {
    let alone = text.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, DNS_PORT));
    text.parse()
        .or(alone)
        .map_err(|_| BadValue(format!("{text:?} is neither an IP address nor address:port")))
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use super::*;
    use crate::{
        config::{self, Settings, Surroundings},
        refusal::Refusal,
    };

    fn load(flags: &[&str]) -> Result<(Settings, Vec<Note>), Refusal> {
        let flags = crate::cli::parse(flags.iter().map(OsString::from)).unwrap().flags;
        let surroundings = Surroundings { flags, variables: vec![], default_file: "/nonexistent".into() };
        config::load(&surroundings).map(|(settings, resolved)| (settings, resolved.notes))
    }

    fn way(flags: &[&str]) -> Way {
        load(flags)
            .unwrap_or_else(|refusal| panic!("{flags:?}: {}", refusal.text()))
            .0
            .membership
            .discovery
            .unwrap()
    }

    #[test]
    fn each_way_is_read_with_what_it_needs() {
        let Way::V2(v2) =
            way(&["--discovery=http://u:p@h:1/v2/keys/d/T", "--discovery-proxy=http://proxy:3128"])
        else {
            panic!("not v2")
        };
        assert_eq!((v2.url.text.as_str(), v2.url.url.path()), ("http://u:p@h:1/v2/keys/d/T", "/v2/keys/d/T"));
        assert_eq!(v2.patience, Patience { service: UNREACHABLE_LIMIT, members: None });
        assert_eq!(Way::V2(v2).shown(), "http://…@h:1/v2/keys/d/T");

        let Way::V3(v3) = way(&[
            "--discovery-endpoints=a:1,https://b:2,http://[::1]:3",
            "--discovery-token=T",
            "--discovery-user=root:pass",
            "--discovery-timeout=7s",
        ]) else {
            panic!("not v3")
        };
        let shown: Vec<String> = v3.endpoints.iter().map(Endpoint::to_string).collect();
        assert_eq!(shown, ["http://a:1", "https://b:2", "http://[::1]:3"]);
        assert_eq!(
            (v3.patience.service, v3.patience.members),
            (Duration::from_secs(7), Some(Duration::from_secs(7)))
        );
        assert!(!format!("{v3:?}").contains("pass\""), "a password is not shown");
        assert_eq!(v3.login.map(|login| (login.user, login.password)), Some(("root".into(), "pass".into())));

        let Way::V3(v3) =
            way(&["--discovery-endpoints=a:1", "--discovery-token=T", "--discovery-cacert=/ca.pem"])
        else {
            panic!("not v3")
        };
        assert!(v3.endpoints[0].tls, "an authority asks for TLS");

        let Way::Srv(srv) = way(&[
            "--discovery-srv=example.com.",
            "--discovery-srv-size=3",
            "--discovery-srv-nameserver=127.0.0.1",
        ]) else {
            panic!("not SRV")
        };
        assert_eq!((srv.domain.as_str(), srv.size), ("example.com", Some(3)));
        assert_eq!(srv.nameserver.unwrap().to_string(), "127.0.0.1:53");
        assert_eq!(srv.token, "etcd-cluster");
    }

    /// Nobody is founded alone because a way was asked for and forgotten.
    #[test]
    fn a_way_leaves_no_cluster_of_one_behind() {
        let (settings, _) = load(&["--discovery=http://h:1/t", "--initial-cluster-token=x"]).unwrap();
        assert!(settings.membership.initial_cluster.value.members().is_empty());
        assert_eq!(settings.membership.token.value, "http://h:1/t");
        assert!(!settings.membership.token.given, "the token of discovery contradicts nothing on disk");
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        for (flags, id, words) in [
            (
                &["--discovery=http://h:1/t", "--initial-cluster=default=http://h:1"][..],
                Id::SettingsConflict,
                "two ways",
            ),
            (&["--discovery=http://h:1/t", "--discovery-srv=example.com"], Id::SettingsConflict, "two ways"),
            (
                &["--discovery-srv=example.com", "--discovery-token=t", "--discovery-endpoints=h:1"],
                Id::SettingsConflict,
                "two ways",
            ),
            (
                &["--initial-cluster=default=http://localhost:2380", "--discovery-srv=example.com"],
                Id::SettingsConflict,
                "two ways",
            ),
            (
                &["--initial-cluster-state=existing", "--discovery=http://h:1/t"],
                Id::SettingsConflict,
                "founds a cluster",
            ),
            (&["--discovery=http://h:1"], Id::BadValue, "names no token"),
            (&["--discovery=http://h:1/"], Id::BadValue, "names no token"),
            (&["--discovery=ftp://h:1/t"], Id::BadValue, "http or https"),
            (&["--discovery=token"], Id::BadValue, "not a URL"),
            (&["--discovery-proxy=socks5://h:1", "--discovery=http://h:1/t"], Id::BadValue, "no http proxy"),
            (
                &["--discovery-fallback=proxy", "--discovery=http://h:1/t"],
                Id::NotSupported,
                "never turns into a proxy",
            ),
            (&["--discovery-token=t"], Id::SettingsConflict, "discovery-endpoints is not"),
            (&["--discovery-endpoints=h:1"], Id::SettingsConflict, "discovery-token is not"),
            (&["--discovery-token=a/b", "--discovery-endpoints=h:1"], Id::BadValue, "no token"),
            (&["--discovery-endpoints=h", "--discovery-token=t"], Id::BadValue, "port is missing"),
            (&["--discovery-endpoints=ftp://h:1", "--discovery-token=t"], Id::BadValue, "http or https"),
            (
                &[
                    "--discovery-endpoints=http://h:1",
                    "--discovery-token=t",
                    "--discovery-insecure-transport=false",
                ],
                Id::SettingsConflict,
                "without TLS",
            ),
            (
                &["--discovery-cert=/c", "--discovery-endpoints=h:1", "--discovery-token=t"],
                Id::SettingsConflict,
                "discovery-key is not",
            ),
            (
                &["--discovery-password=p", "--discovery-endpoints=h:1", "--discovery-token=t"],
                Id::SettingsConflict,
                "discovery-user is not",
            ),
            (
                &["--discovery-request-timeout=0", "--discovery-endpoints=h:1", "--discovery-token=t"],
                Id::BadValue,
                "in no time",
            ),
            (&["--discovery-srv=http://example.com"], Id::BadValue, "no domain"),
            (&["--discovery-srv-nameserver=ns", "--discovery-srv=a.b"], Id::BadValue, "IP address"),
        ] {
            let refusal = load(flags).expect_err(&format!("{flags:?} was accepted"));
            assert_eq!(refusal.id, id, "{flags:?}: {}", refusal.text());
            assert!(refusal.text().contains(words), "{flags:?}: {}", refusal.text());
            let named = flags[0].split('=').next().unwrap();
            assert!(refusal.text().contains(named.trim_start_matches('-')), "{named}: {}", refusal.text());
        }
    }

    /// The old default of discovery-fallback is nobody's wish.
    #[test]
    fn fallback_is_refused_only_when_asked_for() {
        assert!(load(&["--discovery=http://h:1/t", "--discovery-fallback=exit"]).is_ok());
        assert!(load(&["--discovery=http://h:1/t"]).is_ok());
    }

    #[test]
    fn a_setting_of_a_way_not_taken_is_told() {
        let (_, notes) =
            load(&["--discovery-cacert=/ca", "--discovery-srv-size=3", "--discovery-timeout=1s"]).unwrap();
        let idle = notes.iter().filter(|note| note.message == "setting has no effect").count();
        assert_eq!(idle, 3, "{notes:?}");
    }
}
