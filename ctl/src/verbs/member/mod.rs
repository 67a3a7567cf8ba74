//! member add, remove, update and promote: one call each. What can be refused without a member is refused before any call.
//!
//! Not here: `member list` (`verbs::cluster`); what a change would mean (`plan`), and the change made of several (`replace`).

pub mod plan;
pub mod quorum;
pub mod replace;
pub mod view;

use super::{begin, confirm, show};
use crate::cli;
use crate::client::{MEMBER_ADD, MEMBER_LIST, MEMBER_PROMOTE, MEMBER_REMOVE, MEMBER_UPDATE};
use crate::failure::{Exit, Failure, Result};
use crate::output::Printer;
use crate::settings::Settings;
use crate::units::parse_u64_hex;
use api::etcdserverpb::{
    MemberAddRequest, MemberAddResponse, MemberListRequest, MemberListResponse, MemberPromoteRequest,
    MemberPromoteResponse, MemberRemoveRequest, MemberRemoveResponse, MemberUpdateRequest,
    MemberUpdateResponse,
};
use clap::ArgMatches;

pub async fn add(settings: &Settings, matches: &ArgMatches) -> Result<()> {
    let arguments = cli::arguments(matches);
    let name = match arguments.as_slice() {
        [] => return Err(Failure::arguments("member name not provided")),
        [name] => String::from_utf8_lossy(name).into_owned(),
        [_, second, ..] => {
            let second = String::from_utf8_lossy(second);
            let hint = if second.starts_with("http://") || second.starts_with("https://") {
                format!(", did you mean --peer-urls={second}")
            } else {
                String::new()
            };
            return Err(Failure::arguments(format!("too many arguments{hint}")));
        }
    };
    let urls = peer_urls(matches)?;
    let (mut client, printer) = begin(settings, false)?;
    printer.refuse_fields_and_table()?;
    let request = MemberAddRequest { peer_ur_ls: urls.clone(), is_learner: cli::on(matches, "learner") };
    let answer: MemberAddResponse = client.call(&MEMBER_ADD, &request).await?;
    show(&printer.member_add(&name, &urls.join(","), &answer)?)
}

pub async fn remove(settings: &Settings, matches: &ArgMatches) -> Result<()> {
    let id = member_id(settings, matches).await?;
    Printer::new(settings).refuse_fields_and_table()?;
    if !confirm::gate(matches, async || plan::blast(settings, id).await).await? {
        return Ok(());
    }
    let (mut client, printer) = begin(settings, false)?;
    let answer: MemberRemoveResponse = client.call(&MEMBER_REMOVE, &MemberRemoveRequest { id }).await?;
    show(&printer.member_changed(id, "removed from", answer.header.as_ref(), &answer.members, &answer)?)
}

pub async fn update(settings: &Settings, matches: &ArgMatches) -> Result<()> {
    let id = member_id(settings, matches).await?;
    let urls = peer_urls(matches)?;
    let (mut client, printer) = begin(settings, false)?;
    printer.refuse_fields_and_table()?;
    let request = MemberUpdateRequest { id, peer_ur_ls: urls };
    let answer: MemberUpdateResponse = client.call(&MEMBER_UPDATE, &request).await?;
    show(&printer.member_changed(id, "updated in", answer.header.as_ref(), &answer.members, &answer)?)
}

pub async fn promote(settings: &Settings, matches: &ArgMatches) -> Result<()> {
    let id = member_id(settings, matches).await?;
    let (mut client, printer) = begin(settings, false)?;
    printer.refuse_fields_and_table()?;
    let answer: MemberPromoteResponse = client.call(&MEMBER_PROMOTE, &MemberPromoteRequest { id }).await?;
    show(&printer.member_changed(id, "promoted in", answer.header.as_ref(), &answer.members, &answer)?)
}

/// Ids as they are printed, but for the few that begin with a zero.
const ID_DIGITS: usize = 16;

async fn member_id(settings: &Settings, matches: &ArgMatches) -> Result<u64> {
    let arguments = cli::arguments(matches);
    let [given] = arguments.as_slice() else { return Err(Failure::arguments("member ID is not provided")) };
    let bad = |why| format!("bad member ID arg ({why}), expecting ID in Hex");
    meant(settings, &String::from_utf8_lossy(given), bad).await
}

/// The member that is meant: by its id, as with etcdctl, or by its name where no member has that id. `db3` is both. What is neither is
/// refused in the words that `bad` makes of the reason.
pub async fn meant(settings: &Settings, given: &str, bad: impl FnOnce(String) -> String) -> Result<u64> {
    let id = parse_u64_hex(given).map_err(|why| Failure::arguments(bad(why)));
    if id.is_ok() && given.trim_start_matches("0x").len() >= ID_DIGITS {
        return id;
    }
    // Who cannot list the members is told so by the call that follows.
    let listed = async {
        let (mut client, _) = begin(settings, false)?;
        let request = MemberListRequest { linearizable: false };
        client.call::<MemberListResponse>(&MEMBER_LIST, &request).await
    };
    let Ok(list) = listed.await else { return id };
    if id.as_ref().is_ok_and(|id| list.members.iter().any(|member| member.id == *id)) {
        return id;
    }
    let mut named = list.members.iter().filter(|member| member.name == given);
    match (named.next(), named.next()) {
        (Some(member), None) => Ok(member.id),
        (Some(_), Some(_)) => Err(Failure::arguments(format!(
            "several members are called {given}; name one by its id in hexadecimal"
        ))),
        (None, _) => id,
    }
}

/// The URLs of `--peer-urls`, as they were given.
fn peer_urls(matches: &ArgMatches) -> Result<Vec<String>> {
    let text = cli::text(matches, "peer-urls");
    if text.is_empty() {
        return Err(Failure::arguments("member peer urls not provided"));
    }
    let urls: Vec<String> = text.split(',').map(str::to_owned).collect();
    urls.iter().try_for_each(|url| check_peer_url(url)).map_err(|why| Failure::new(Exit::Error, why))?;
    Ok(urls)
}

/// Refuses, in etcdctl's words, what a member could never be reached at.
fn check_peer_url(url: &str) -> Result<(), String> {
    let url = url.trim();
    let segment = url.split('/').next().unwrap_or(url);
    if segment.contains(':') && !url.starts_with(|c: char| c.is_ascii_alphabetic()) {
        let why = if url.starts_with(':') {
            "missing protocol scheme"
        } else {
            "first path segment in URL cannot contain colon"
        };
        return Err(format!("parse \"{url}\": {why}"));
    }
    let (scheme, rest) = url.split_once("://").unwrap_or(("", ""));
    match scheme {
        "unix" | "unixs" => return Ok(()),
        "http" | "https" => {}
        _ => return Err(format!("URL scheme must be http, https, unix, or unixs: {url}")),
    }
    let authority = rest.split(['/', '?', '#']).next().unwrap_or(rest);
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    if host.contains(' ') {
        return Err(format!("parse \"{url}\": invalid character \" \" in host name"));
    }
    let address = host
        .rsplit_once(':')
        .filter(|(name, _)| !name.contains(':') || (name.starts_with('[') && name.ends_with(']')));
    let Some((_, port)) = address else {
        return Err(format!("URL address does not have the form \"host:port\": {url}"));
    };
    if !port.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(format!("parse \"{url}\": invalid port \":{port}\" after host"));
    }
    if rest[authority.len()..].starts_with('/') {
        return Err(format!("URL must not contain a path: {url}"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peer_urls_are_refused_in_the_words_of_etcdctl() {
        let host_port = |url| Err(format!("URL address does not have the form \"host:port\": {url}"));
        let path = |url| Err(format!("URL must not contain a path: {url}"));
        let scheme = |url| Err(format!("URL scheme must be http, https, unix, or unixs: {url}"));
        for (url, expected) in [
            ("http://a:1", Ok(())),
            (" https://a:1", Ok(())),
            ("http://[::1]:1", Ok(())),
            ("http://:1", Ok(())),
            ("unix://a", Ok(())),
            ("http://a", host_port("http://a")),
            ("http://::1:1", host_port("http://::1:1")),
            ("http://a:1/", path("http://a:1/")),
            ("http://a:1/p", path("http://a:1/p")),
            ("a:1", scheme("a:1")),
            ("", scheme("")),
            ("http://a:b", Err("parse \"http://a:b\": invalid port \":b\" after host".into())),
        ] {
            assert_eq!(check_peer_url(url), expected, "{url}");
        }
    }
}
