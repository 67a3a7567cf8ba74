//! Which paths belong to the service, and what they name. Pure.

use super::token::Token;

/// What a path names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// `/new`: makes a token.
    New,
    /// Something in the tree of v2 keys.
    Key(Key),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Key {
    /// As answers name it: `/discovery/<token>/<id>`.
    pub shown: String,
    pub at: At,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum At {
    /// No token's.
    Elsewhere,
    /// The directory of all tokens.
    Registry,
    /// A token's, whose directory is shown as `shown[..dir]`.
    Token { token: Token, dir: usize, part: Part },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    Directory,
    Config,
    Size,
    /// A member's; not checked yet.
    Entry(String),
    /// Something below a member's, which is shown as `shown[..end]`.
    Below {
        entry: String,
        end: usize,
    },
    /// Something below `_config` that is not there.
    Nothing,
}

/// What `path` names, if it is the service's.
pub(crate) fn claim(path: &str) -> Option<Place> {
    if path == "/new" {
        return Some(Place::New);
    }
    let rest = match path.strip_prefix("/v2/keys") {
        Some(rest) if rest.is_empty() || rest.starts_with('/') => decode(rest),
        Some(_) => return None,
        // As the public service does: the token alone.
        None => {
            let first = path.strip_prefix('/')?.split('/').next().unwrap_or_default();
            let is_made_here =
                first.len() == 32 && first.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
            if !is_made_here {
                return None;
            }
            decode(path).map(|path| format!("/_etcd/registry{path}"))
        }
    };
    let Some(rest) = rest else {
        return Some(Place::Key(Key { shown: "/".into(), at: At::Elsewhere }));
    };
    let parts: Vec<&str> = rest.split('/').filter(|part| !part.is_empty()).collect();
    let shown = format!("/{}", parts.join("/"));
    let below = match parts.as_slice() {
        ["discovery", below @ ..] | ["_etcd", "registry", below @ ..] => below,
        _ => return Some(Place::Key(Key { shown, at: At::Elsewhere })),
    };
    let at = match below {
        [] => At::Registry,
        [token, below @ ..] => match Token::new(token) {
            None => At::Elsewhere,
            Some(token) => {
                let deeper: usize = below.iter().map(|part| 1 + part.len()).sum();
                let dir = shown.len() - deeper;
                let part = match below {
                    [] => Part::Directory,
                    ["_config"] => Part::Config,
                    ["_config", "size"] => Part::Size,
                    ["_config", ..] => Part::Nothing,
                    [entry] => Part::Entry((*entry).to_owned()),
                    [entry, ..] => Part::Below { entry: (*entry).to_owned(), end: dir + 1 + entry.len() },
                };
                At::Token { token, dir, part }
            }
        },
    };
    Some(Place::Key(Key { shown, at }))
}

fn decode(path: &str) -> Option<String> {
    super::form::unescape(path.as_bytes(), false).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(path: &str) -> (String, String, Part) {
        match claim(path) {
            Some(Place::Key(Key { shown, at: At::Token { token, dir, part } })) => {
                let shown_dir = shown[..dir].to_owned();
                assert!(shown_dir.ends_with(token.as_str()), "{shown_dir}");
                (shown, shown_dir, part)
            }
            other => panic!("{path}: {other:?}"),
        }
    }

    #[test]
    fn every_path_names_one_thing() {
        let hex = "6c007a14875d53d9bf0ef5a6fc0257c8";
        for (path, shown, expected) in [
            ("/v2/keys/discovery/T", "/discovery/T", Part::Directory),
            ("/v2/keys/discovery/T/", "/discovery/T", Part::Directory),
            ("/v2/keys/_etcd/registry/T", "/_etcd/registry/T", Part::Directory),
            ("/v2/keys/discovery/T/_config", "/discovery/T/_config", Part::Config),
            ("/v2/keys/discovery/T/_config/size", "/discovery/T/_config/size", Part::Size),
            ("/v2/keys/discovery/T/_config/other", "/discovery/T/_config/other", Part::Nothing),
            ("/v2/keys/discovery/T/%61b", "/discovery/T/ab", Part::Entry("ab".into())),
            (
                "/v2/keys/discovery/T/ab/c/d",
                "/discovery/T/ab/c/d",
                Part::Below { entry: "ab".into(), end: "/discovery/T/ab".len() },
            ),
        ] {
            let (is_shown, dir, is) = part(path);
            assert_eq!((is_shown.as_str(), is), (shown, expected), "{path}");
            assert!(dir.ends_with("/T"), "{path}: {dir}");
        }
        let (shown, _, at) = part(&format!("/{hex}/ab"));
        assert_eq!((shown, at), (format!("/_etcd/registry/{hex}/ab"), Part::Entry("ab".into())));
    }

    #[test]
    fn what_is_nobodys_is_left_alone_or_nowhere() {
        for path in [
            "/",
            "/health",
            "/version",
            "/v2",
            "/v2/",
            "/v2/keysx",
            "/v2/members",
            "/newer",
            "/new/",
            "/6c007a14875d53d9bf0ef5a6fc0257c",
            "/6C007A14875D53D9BF0EF5A6FC0257C8",
            "/v3/kv/put",
        ] {
            assert_eq!(claim(path), None, "{path}");
        }
        for path in [
            "/v2/keys",
            "/v2/keys/",
            "/v2/keys/foo",
            "/v2/keys/_etcd",
            "/v2/keys/discovery/_config",
            "/v2/keys/discovery/a%00b",
            "/v2/keys/discovery/%zz",
            "/v2/keys/discovery/%ff",
        ] {
            match claim(path) {
                Some(Place::Key(Key { at: At::Elsewhere, .. })) => {}
                other => panic!("{path}: {other:?}"),
            }
        }
        let long = format!("/v2/keys/discovery/{}", "x".repeat(129));
        assert!(matches!(claim(&long), Some(Place::Key(Key { at: At::Elsewhere, .. }))));
        assert!(matches!(claim("/v2/keys/discovery"), Some(Place::Key(Key { at: At::Registry, .. }))));
        assert_eq!(claim("/new"), Some(Place::New));
    }
}
