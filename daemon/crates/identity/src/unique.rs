//! 128 random bits, for directories, boots and lives of clusters. Never derived from the host: copies of a machine would share it.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Unique(u128);

impl Unique {
    /// Where the randomness comes from is the caller's business: this crate has none.
    pub const fn from_bytes(bytes: [u8; 16]) -> Unique {
        Unique(u128::from_be_bytes(bytes))
    }

    pub const fn to_bytes(self) -> [u8; 16] {
        self.0.to_be_bytes()
    }

    /// For tests, where small numbers are easier to read.
    pub fn for_test(number: u128) -> Unique {
        Unique(number)
    }

    /// The number as the rest of the daemon carries it, for instance as a boot's mark in read contexts.
    pub fn low_u64(self) -> u64 {
        self.0 as u64
    }
}

/// 32 hexadecimal digits.
impl fmt::Display for Unique {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl FromStr for Unique {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Unique, &'static str> {
        let digits = text.len() == 32 && text.bytes().all(|b| b.is_ascii_hexdigit());
        let number = digits.then(|| u128::from_str_radix(text, 16).ok()).flatten();
        number.map(Unique).ok_or("expected 32 hexadecimal digits")
    }
}

impl Serialize for Unique {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Unique {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Unique, D::Error> {
        let text = String::deserialize(from)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}
