//! Namespace names, interned.

use std::{borrow::Borrow, fmt, ops::Deref, sync::Arc};

/// The namespaces that BOSH, XMPP and the relay's vocabulary use.
pub mod ns {
    /// The relay's vocabulary.
    pub const RELAY: &str = "urn:relay:1";
    /// XEP-0124, the `<body/>` wrapper.
    pub const BOSH: &str = "http://jabber.org/protocol/httpbind";
    /// XEP-0206, attributes of the wrapper; conventional prefix `xmpp`.
    pub const XBOSH: &str = "urn:xmpp:xbosh";
    /// RFC 6120, features and stream errors; conventional prefix `stream`.
    pub const STREAMS: &str = "http://etherx.jabber.org/streams";
    /// RFC 6120, stanzas.
    pub const CLIENT: &str = "jabber:client";
    /// RFC 6120, SASL negotiation.
    pub const SASL: &str = "urn:ietf:params:xml:ns:xmpp-sasl";
    /// RFC 6120, resource binding.
    pub const BIND: &str = "urn:ietf:params:xml:ns:xmpp-bind";
    /// RFC 3921, the obsolete session.
    pub const SESSION: &str = "urn:ietf:params:xml:ns:xmpp-session";
    /// RFC 6120, conditions in stanza errors.
    pub const STANZAS: &str = "urn:ietf:params:xml:ns:xmpp-stanzas";
    /// RFC 6120, conditions in stream errors.
    pub const STREAM_ERRORS: &str = "urn:ietf:params:xml:ns:xmpp-streams";
    /// XEP-0199.
    pub const PING: &str = "urn:xmpp:ping";
    /// The prefix `xml`, which needs no declaration.
    pub const XML: &str = "http://www.w3.org/XML/1998/namespace";
}

const KNOWN: [&str; 12] = [
    ns::RELAY,
    ns::BOSH,
    ns::CLIENT,
    ns::SASL,
    ns::STREAMS,
    ns::XBOSH,
    ns::PING,
    ns::BIND,
    ns::STANZAS,
    ns::STREAM_ERRORS,
    ns::SESSION,
    ns::XML,
];

/// A namespace name. Known ones cost nothing to make and clone.
#[derive(Clone)]
pub struct Namespace(Repr);

#[derive(Clone)]
enum Repr {
    Known(&'static str),
    Other(Arc<str>),
}

impl Namespace {
    /// No namespace.
    pub const NONE: Self = Self(Repr::Known(""));

    /// The namespace called `name`.
    pub fn new(name: &str) -> Self {
        if name.is_empty() {
            return Self::NONE;
        }
        match KNOWN.iter().find(|known| known.len() == name.len() && **known == name) {
            Some(known) => Self(Repr::Known(known)),
            None => Self(Repr::Other(name.into())),
        }
    }

    /// Its name; empty for none.
    pub fn as_str(&self) -> &str {
        match &self.0 {
            Repr::Known(name) => name,
            Repr::Other(name) => name,
        }
    }
}

impl From<&'static str> for Namespace {
    fn from(name: &'static str) -> Self {
        Self(Repr::Known(name))
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
