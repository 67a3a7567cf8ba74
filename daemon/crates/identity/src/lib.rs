//! Who may be a member: what two members tell each other before they talk raft, and what each concludes. Pure.
//!
//! An id proves nothing. The voter is a member's id together with the directory that made its promises and the start (boot) that is
//! running on it. Members therefore say [`Hello`] on every connection; a member is judged by what its peers [`Known`] of it, which is
//! replicated; and nobody leaves on one peer's word ([`believe`]).
//!
//! Not here: files, sockets, the log. Who stores what stands in docs/ARCHITECTURE.md.

pub mod believe;
mod hello;
pub mod judge;
mod known;
mod unique;

pub use hello::{
    Answer, Boot, EARLIER_MAX, FirstMember, GenesisConfig, Hello, Home, Life, LogEnd, Named, Question,
    Restored,
};
pub use judge::Verdict;
pub use known::{Known, Private, Record, Session, Standing, Watermark, Witness};
pub use unique::Unique;

/// Ids in JSON: hexadecimal without padding, as etcd prints them, since a JSON number beyond 2^53 is read as a double by many.
pub mod hex {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};
    use types::{ClusterId, MemberId};

    pub mod member {
        use super::*;
        pub fn serialize<S: Serializer>(id: &MemberId, to: S) -> Result<S::Ok, S::Error> {
            to.collect_str(id)
        }
        pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<MemberId, D::Error> {
            let text = String::deserialize(from)?;
            u64::from_str_radix(&text, 16).map(MemberId).map_err(D::Error::custom)
        }
    }

    pub mod cluster {
        use super::*;
        pub fn serialize<S: Serializer>(id: &ClusterId, to: S) -> Result<S::Ok, S::Error> {
            to.collect_str(id)
        }
        pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<ClusterId, D::Error> {
            let text = String::deserialize(from)?;
            u64::from_str_radix(&text, 16).map(ClusterId).map_err(D::Error::custom)
        }
    }
}
