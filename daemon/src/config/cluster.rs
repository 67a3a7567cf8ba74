//! `initial-cluster`: names and peer URLs of the members a new cluster begins with.

use std::fmt;

use super::{urls::Url, value::BadValue};

/// A member's name: not empty, without comma, equals sign or white space, because lists of members are written with these.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct MemberName(String);

impl MemberName {
    /// Trims, then checks.
    pub fn parse(text: &str) -> Result<MemberName, BadValue> {
        let name = text.trim();
        if name.is_empty() {
            return Err(BadValue("a member's name must not be empty".into()));
        }
        if let Some(odd) =
            name.chars().find(|c| matches!(c, ',' | '=') || c.is_whitespace() || c.is_control())
        {
            return Err(BadValue(format!(
                "{odd:?} in {name:?}: a member's name has no comma, = or white space"
            )));
        }
        Ok(MemberName(name.to_owned()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for MemberName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InitialMember {
    pub name: MemberName,
    /// Sorted by text, without repetition.
    pub peer_urls: Vec<Url>,
}

/// Members sorted by name; names and URLs are unique.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InitialCluster(Vec<InitialMember>);

impl InitialCluster {
    pub fn alone(name: MemberName, mut peer_urls: Vec<Url>) -> InitialCluster {
        peer_urls.sort();
        InitialCluster(vec![InitialMember { name, peer_urls }])
    }

    pub fn members(&self) -> &[InitialMember] {
        &self.0
    }

    pub fn find(&self, name: &str) -> Option<&InitialMember> {
        self.0.iter().find(|member| member.name.as_str() == name)
    }

    /// The text that gives this cluster again, names in order.
    pub fn canonical(&self) -> String {
        let pairs = self
            .0
            .iter()
            .flat_map(|m| m.peer_urls.iter().map(move |url| format!("{}={}", m.name, url.as_str())));
        pairs.collect::<Vec<_>>().join(",")
    }
}

/// `name=url,name=url`; a name repeated adds URLs to that member. An empty text is no member.
pub fn parse(text: &str) -> Result<InitialCluster, BadValue> {
    let mut members: Vec<InitialMember> = Vec::new();
    for item in text.split(',').map(str::trim).filter(|item| !item.is_empty()) {
        let Some((name, url)) = item.split_once('=') else {
            let hint = match Url::parse(item) {
                Ok(_) => format!(": put the --name of the member that is there before it, as in n1={item}"),
                Err(_) => String::new(),
            };
            return Err(BadValue(format!("{item:?} is not name=url{hint}")));
        };
        let name = MemberName::parse(name)?;
        let url = Url::parse(url.trim()).map_err(|why| BadValue(format!("member {name}: {why}")))?;
        url.check_advertise()?;
        if let Some(holder) = members.iter().find(|member| member.peer_urls.contains(&url)) {
            return Err(BadValue(format!("{url} is given twice: for {} and for {name}", holder.name)));
        }
        match members.iter_mut().find(|member| member.name == name) {
            Some(member) => member.peer_urls.push(url),
            None => members.push(InitialMember { name, peer_urls: vec![url] }),
        }
    }
    for member in &mut members {
        member.peer_urls.sort();
    }
    members.sort_by(|left, right| left.name.cmp(&right.name));
    Ok(InitialCluster(members))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_trimmed_and_a_repeated_name_adds_urls() {
        let cluster = parse("n2=http://b:1, n1=http://a:2,,n1=http://a:1").unwrap();
        assert_eq!(cluster.canonical(), "n1=http://a:1,n1=http://a:2,n2=http://b:1");
    }

    #[test]
    fn what_is_no_cluster_says_why() {
        for (text, words) in [
            ("n1", "not name=url"),
            ("http://a:1,http://b:1", "is there before it, as in n1=http://a:1"),
            ("=http://a:1", "must not be empty"),
            ("n 1=http://a:1", "white space"),
            ("n1=http://a:1,n2=http://a:1", "given twice"),
            ("n1=http://a:1,n1=http://a:1", "given twice"),
            ("n1=http://a", "host and port"),
            ("n1=http://:1", "no host"),
        ] {
            let message = parse(text).unwrap_err().0;
            assert!(message.contains(words), "{text}: {message}");
        }
    }
}
