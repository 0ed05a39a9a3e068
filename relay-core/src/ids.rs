//! The names of things: validated once, at construction, and cheap to clone ever after.
//!
//! IDs and app names are `[A-Za-z0-9._-]{1,64}`, other than `.` and `..`, kept as they were written and
//! compared without case. Object IDs are `[A-Za-z0-9._/-]{1,256}` and methods `[A-Za-z0-9._-]{1,64}`, both
//! compared exactly.

use std::{
    cmp::Ordering,
    fmt,
    hash::{Hash, Hasher},
    str::FromStr,
    sync::Arc,
};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// The longest ID, in bytes.
pub const MAX_ID: usize = 64;
/// The longest object ID, in bytes.
pub const MAX_OBJECT_ID: usize = 256;

/// A text that is no ID, and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidId {
    /// Nothing, or more than the bound.
    #[error("{what} must have 1 to {max} characters, not {length}")]
    Length {
        /// What the text was to name.
        what: &'static str,
        /// How long it may be, in bytes.
        max: usize,
        /// How long it is, in bytes.
        length: usize,
    },
    /// A character outside the alphabet.
    #[error("{what} has {character:?} at position {position}; allowed are {allowed}")]
    Character {
        /// What the text was to name.
        what: &'static str,
        /// The first character that is not allowed.
        character: char,
        /// Its place, counted in bytes from 0.
        position: usize,
        /// The alphabet, for people.
        allowed: &'static str,
    },
    /// `.` or `..`, which mean something else in a path.
    #[error("{what} must not be \".\" or \"..\"")]
    Dots {
        /// What the text was to name.
        what: &'static str,
    },
}

/// Which bytes every name may have.
const ALPHABET: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0u8;
    while byte < 128 {
        table[byte as usize] = byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
        byte += 1;
    }
    table
};

fn check(what: &'static str, text: &str, max: usize, slash: bool) -> Result<(), InvalidId> {
    if text.is_empty() || text.len() > max {
        return Err(InvalidId::Length { what, max, length: text.len() });
    }
    // Names are read at every step of a request: a table, and no branch on the way through one that is allowed.
    let plain = text.bytes().fold(true, |all, byte| all & ALPHABET[usize::from(byte)]);
    let allowed = |byte: u8| ALPHABET[usize::from(byte)] || (slash && byte == b'/');
    if !plain && let Some(position) = text.bytes().position(|byte| !allowed(byte)) {
        let character = text[position..].chars().next().unwrap_or(char::REPLACEMENT_CHARACTER);
        let allowed = if slash { "A-Z a-z 0-9 . _ / -" } else { "A-Z a-z 0-9 . _ -" };
        return Err(InvalidId::Character { what, character, position, allowed });
    }
    if text == "." || text == ".." {
        return Err(InvalidId::Dots { what });
    }
    Ok(())
}

macro_rules! common {
    ($name:ident, $what:literal) => {
        impl $name {
            /// The text as it was written.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl FromStr for $name {
            type Err = InvalidId;
            fn from_str(text: &str) -> Result<Self, InvalidId> {
                Self::new(text)
            }
        }
        impl TryFrom<&str> for $name {
            type Error = InvalidId;
            fn try_from(text: &str) -> Result<Self, InvalidId> {
                Self::new(text)
            }
        }
        impl TryFrom<String> for $name {
            type Error = InvalidId;
            fn try_from(text: String) -> Result<Self, InvalidId> {
                Self::new(&text)
            }
        }
        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
                Self::new(&text).map_err(de::Error::custom)
            }
        }
    };
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone)]
        pub struct $name(Arc<str>);

        impl $name {
            /// Checks `text` and keeps it as written.
            ///
            /// # Errors
            /// [`InvalidId`] if it is not `[A-Za-z0-9._-]{1,64}`, or is `.` or `..`.
            pub fn new(text: &str) -> Result<Self, InvalidId> {
                check($what, text, MAX_ID, false)?;
                Ok(Self(text.into()))
            }

            /// The form that is equal for all spellings: lower case.
            pub fn folded(&self) -> String {
                self.0.to_ascii_lowercase()
            }
        }
        impl PartialEq for $name {
            fn eq(&self, other: &Self) -> bool {
                // Nearly always they are spelled alike.
                self.0 == other.0 || self.0.eq_ignore_ascii_case(&other.0)
            }
        }
        impl Eq for $name {}
        impl Hash for $name {
            fn hash<H: Hasher>(&self, state: &mut H) {
                let mut folded = [0u8; MAX_ID];
                let folded = &mut folded[..self.0.len()];
                folded.copy_from_slice(self.0.as_bytes());
                folded.make_ascii_lowercase();
                state.write(folded);
                state.write_u8(0xff);
            }
        }
        impl Ord for $name {
            fn cmp(&self, other: &Self) -> Ordering {
                let folded = self.0.bytes().map(|b| b.to_ascii_lowercase());
                folded.cmp(other.0.bytes().map(|b| b.to_ascii_lowercase()))
            }
        }
        impl PartialOrd for $name {
            fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
                Some(self.cmp(other))
            }
        }
        common!($name, $what);
    };
}

macro_rules! shown {
    ($($name:ident),*) => { $(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($name), self.0)
            }
        }
    )* };
}

id!(
    /// The machine behind the firewall: a serial number, say.
    DeviceId,
    "a device ID"
);
id!(
    /// Who devices belong to.
    AccountId,
    "an account ID"
);
id!(
    /// A service's key, by its public name (the secret half is no ID).
    KeyId,
    "a key ID"
);
id!(
    /// A named function of a device (print, address).
    AppName,
    "an app name"
);
id!(
    /// An address book of an account.
    BookId,
    "an address book's name"
);
id!(
    /// A document that is kept on the relay.
    DocumentId,
    "a document's name"
);
id!(
    /// The LAN that a gateway stands in.
    SiteId,
    "a site ID"
);
id!(
    /// The relay's name for one request: pairs a response with its request, end to end. Unguessable.
    RequestId,
    "a request ID"
);
id!(
    /// The relay's name for one lasting relation with a device. Knowing it is close to being that device, so
    /// [`Debug`](fmt::Debug) shows its first four characters alone and there is no `Display`.
    SessionId,
    "a session ID"
);
shown!(DeviceId, AccountId, KeyId, AppName, BookId, DocumentId, SiteId, RequestId, ObjectId, Method);

impl fmt::Debug for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SessionId({}…)", self.0.get(..4).unwrap_or(""))
    }
}

/// What a GET or SET names: a dotted OID of the Printer MIB (RFC 3805) or any path-like name.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectId(Arc<str>);

impl ObjectId {
    /// Checks `text`.
    ///
    /// # Errors
    /// [`InvalidId`] if it is not `[A-Za-z0-9._/-]{1,256}`, or is `.` or `..`.
    pub fn new(text: &str) -> Result<Self, InvalidId> {
        check("an object ID", text, MAX_OBJECT_ID, true)?;
        Ok(Self(text.into()))
    }
}
common!(ObjectId, "an object ID");

/// What is asked of a device: [`GET`](Method::get), [`SET`](Method::set), or any name a vendor adds.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Method(Arc<str>);

impl Method {
    /// Checks `text`.
    ///
    /// # Errors
    /// [`InvalidId`] if it is not `[A-Za-z0-9._-]{1,64}`, or is `.` or `..`.
    pub fn new(text: &str) -> Result<Self, InvalidId> {
        check("a method", text, MAX_ID, false)?;
        Ok(Self(text.into()))
    }

    /// Reads an object.
    pub fn get() -> Self {
        static GET: std::sync::LazyLock<Method> = std::sync::LazyLock::new(|| Method("GET".into()));
        GET.clone()
    }

    /// Writes an object; answered with the value now in force.
    pub fn set() -> Self {
        static SET: std::sync::LazyLock<Method> = std::sync::LazyLock::new(|| Method("SET".into()));
        SET.clone()
    }

    /// Opens an app: the method of jobs.
    pub fn open() -> Self {
        static OPEN: std::sync::LazyLock<Method> = std::sync::LazyLock::new(|| Method("OPEN".into()));
        OPEN.clone()
    }

    /// Whether this is GET, which asks for nothing to be changed.
    pub fn is_get(&self) -> bool {
        &*self.0 == "GET"
    }

    /// Whether this is SET.
    pub fn is_set(&self) -> bool {
        &*self.0 == "SET"
    }
}
common!(Method, "a method");

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn ids_compare_without_case_and_keep_their_spelling() {
        let (upper, lower) = (DeviceId::new("PRN-7.a").unwrap(), DeviceId::new("prn-7.A").unwrap());
        assert_eq!(upper, lower);
        assert_eq!(upper.cmp(&lower), Ordering::Equal);
        assert_eq!(upper.as_str(), "PRN-7.a");
        assert!(HashSet::from([upper]).contains(&lower));
    }

    #[test]
    fn b14_ids_have_an_alphabet_and_a_length() {
        for bad in ["", ".", "..", "a b", "a/b", "ä", "a\0", "%2e", &"x".repeat(65)] {
            assert!(DeviceId::new(bad).is_err(), "{bad:?} was taken");
        }
        assert!(DeviceId::new(&"x".repeat(64)).is_ok());
        assert!(ObjectId::new("1.3.6.1/a_b-c").is_ok());
        assert!(ObjectId::new(&"x".repeat(257)).is_err());
    }

    #[test]
    fn t44_a_session_id_is_not_shown_whole() {
        let id = SessionId::new("abcdefghijkl").unwrap();
        assert_eq!(format!("{id:?}"), "SessionId(abcd…)");
    }
}
