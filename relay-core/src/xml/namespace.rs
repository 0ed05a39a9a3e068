//! Namespace names.

use std::{borrow::Borrow, fmt, ops::Deref, sync::Arc};

/// The namespaces that the relay's vocabulary uses.
pub mod ns {
    /// The relay's vocabulary.
    pub const RELAY: &str = "urn:relay:1";
    /// The prefix `xml`, which needs no declaration.
    pub const XML: &str = "http://www.w3.org/XML/1998/namespace";
}

/// A namespace name. Cheap to clone, and made of a constant it costs nothing.
#[derive(Clone)]
pub struct Namespace(Repr);

#[derive(Clone)]
enum Repr {
    Static(&'static str),
    Other(Arc<str>),
}

impl Namespace {
    /// No namespace.
    pub const NONE: Self = Self(Repr::Static(""));

    /// The namespace called `name`.
    pub fn new(name: &str) -> Self {
        if name.is_empty() {
            return Self::NONE;
        }
        Self(Repr::Other(name.into()))
    }

    /// Its name; empty for none.
    pub fn as_str(&self) -> &str {
        match &self.0 {
            Repr::Static(name) => name,
            Repr::Other(name) => name,
        }
    }
}

impl From<&'static str> for Namespace {
    fn from(name: &'static str) -> Self {
        Self(Repr::Static(name))
    }
}
impl Deref for Namespace {
    type Target = str;
    fn deref(&self) -> &str {
        self.as_str()
    }
}
impl Borrow<str> for Namespace {
    fn borrow(&self) -> &str {
        self.as_str()
    }
}
impl PartialEq for Namespace {
    fn eq(&self, other: &Self) -> bool {
        self.as_str() == other.as_str()
    }
}
impl Eq for Namespace {}
impl PartialEq<str> for Namespace {
    fn eq(&self, other: &str) -> bool {
        self.as_str() == other
    }
}
impl PartialEq<&str> for Namespace {
    fn eq(&self, other: &&str) -> bool {
        self.as_str() == *other
    }
}
impl fmt::Debug for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}
impl fmt::Display for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
