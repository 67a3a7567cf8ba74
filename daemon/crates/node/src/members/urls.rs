//! Which texts are peer URLs of a member, by etcd's rules. Nothing is normalised: the texts enter the member's id.

use api::error::EtcdError;

/// White space around a URL is dropped, and the URLs are sorted, as etcd stores them. At least one is needed; each has the scheme http or
/// https, a host, a port and no path. Two things that etcd takes are refused, since nobody could dial them: an empty port and sockets of
/// the file system.
pub(super) fn peer_urls(given: &[String]) -> Result<Vec<String>, EtcdError> {
    let mut urls: Vec<String> = given.iter().map(|url| url.trim().to_owned()).collect();
    if urls.is_empty() || !urls.iter().all(|url| is_peer_url(url)) {
        return Err(EtcdError::MemberBadUrls);
    }
    urls.sort_unstable();
    Ok(urls)
}

fn is_peer_url(text: &str) -> bool {
    let Some((scheme, rest)) = text.split_once("://") else { return false };
    if !["http", "https"].iter().any(|known| scheme.eq_ignore_ascii_case(known)) {
        return false;
    }
    // The parser adds what is missing (a port, a path) to what it tells, so those are looked for in the text.
    let place = rest.split(['?', '#']).next().unwrap_or_default();
    let host_and_port = place.rsplit('@').next().unwrap_or_default();
    let port = match host_and_port.strip_prefix('[') {
        Some(bracketed) => bracketed.split_once("]:").map(|(_, port)| port),
        None => host_and_port.split_once(':').map(|(_, port)| port),
    };
    let has_port = port.is_some_and(|port| port.parse::<u16>().is_ok());
    let parsed = url::Url::parse(text);
    !place.contains('/') && has_port && parsed.is_ok_and(|url| url.has_host())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peer_urls_are_told_from_other_texts() {
        for good in
            ["http://a:1", "https://a:1", "http://[::1]:1", "http://u:p@a:1?x=1", "HTTP://LOCALHOST:1"]
        {
            assert_eq!(peer_urls(&[good.to_owned()]), Ok(vec![good.to_owned()]));
        }
        let bad = [
            "",
            "x",
            "a:1",
            "http://a",
            "http://a:",
            "http://:1",
            "http://a:1/",
            "http://a:1/p",
            "ftp://a:1",
            "unix://a:1",
            "http://::1:1",
            "http://a:70000",
            "http://[::1]",
            "http://a b:1",
            "http://",
        ];
        for bad in bad {
            assert_eq!(peer_urls(&[bad.to_owned()]), Err(EtcdError::MemberBadUrls), "{bad}");
        }
        assert_eq!(peer_urls(&[]), Err(EtcdError::MemberBadUrls));
        let two = [" http://b:2 ".to_owned(), "http://a:1".to_owned()];
        assert_eq!(peer_urls(&two).expect("two"), ["http://a:1", "http://b:2"]);
    }
}
