//! Members and settings that the stories share, and servers that they run.

use std::{io, time::Duration};

use state_machine::membership;
use types::MemberId;

use crate::{
    config::{
        cluster::{self, MemberName},
        urls::{self, Url},
    },
    discovery::{
        self, Found, NotFound, Own, Registering,
        register::Entry,
        settings::{Patience, TokenUrl, V2Settings, Way},
    },
};

pub const TOKEN: &str = "http://discovery.example:1/v2/keys/d/T";

/// Names `n0` to `n9`.
pub const MEMBERS: usize = 10;

pub const PATIENCE: Patience =
    Patience { service: Duration::from_secs(60), members: Some(Duration::from_secs(60)) };

pub fn v2(url: &str) -> V2Settings {
    let text = url.to_owned();
    V2Settings {
        url: TokenUrl { url: ::url::Url::parse(url).unwrap(), text },
        proxy: None,
        patience: PATIENCE,
    }
}

pub fn way() -> Way {
    Way::V2(v2(TOKEN))
}

pub fn own(number: usize) -> Own {
    own_at(&format!("n{number}"), &format!("http://h{number}:1"))
}

pub fn own_at(name: &str, url: &str) -> Own {
    Own {
        name: MemberName::parse(name).unwrap(),
        name_given: true,
        peer_urls: url.split(',').map(|url| Url::parse(url).unwrap()).collect(),
    }
}

pub fn registering(number: usize) -> Registering {
    discovery::registration(&way(), &own(number)).unwrap()
}

pub fn entry(number: usize, created: u64) -> Entry {
    let Registering { member, value, .. } = registering(number);
    Entry { key: member.to_string(), value, created }
}

/// The id that the value's URLs and [`TOKEN`] give.
pub fn id_of(value: &str) -> MemberId {
    let cluster = cluster::parse(value).unwrap();
    membership::member_id(&urls::texts(&cluster.members()[0].peer_urls), TOKEN, None)
}

/// What came of a search, with everything that was saved and told.
pub struct Searched {
    pub outcome: Result<Found, NotFound>,
    pub saved: Option<Registering>,
    pub lines: Vec<String>,
}

impl Searched {
    #[track_caller]
    pub fn canonical(&self) -> String {
        match &self.outcome {
            Ok(found) => found.cluster.canonical(),
            Err(not_found) => panic!("{}{:#?}", not_found.refusal.text(), self.lines),
        }
    }

    #[track_caller]
    pub fn refused(&self) -> &NotFound {
        match &self.outcome {
            Ok(found) => panic!("found {found:?}"),
            Err(not_found) => not_found,
        }
    }
}

pub fn search(way: &Way, own: &Own, registered: Option<&Registering>) -> Searched {
    search_until(way, own, registered, &mut |_| {})
}

/// With a look at each line as it is told.
pub fn search_until(
    way: &Way,
    own: &Own,
    registered: Option<&Registering>,
    seen: &mut dyn FnMut(&str),
) -> Searched {
    let (mut saved, mut lines) = (None, Vec::new());
    let outcome = discovery::discover(
        way,
        own,
        registered,
        &mut |registering| {
            assert!(saved.replace(registering.clone()).is_none(), "saved once");
            io::Result::Ok(())
        },
        &mut |line| {
            seen(&line);
            lines.push(line);
        },
    );
    Searched { outcome, saved, lines }
}
