//! The namespaces of BOSH and XMPP, and the names that come in their messages.

use relay_core::{xml::Names, xml_words};

pub use relay_core::xml::ns::{RELAY, XML};

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

/// What to expect in a message.
pub(crate) const NAMES: Names = Names::new(
    &[RELAY, BOSH, CLIENT, SASL, STREAMS, XBOSH, PING, BIND, STANZAS, STREAM_ERRORS, SESSION, XML],
    xml_words!(
        "iq", "rid", "sid", "ver", "jid", "key", "from", "lang", "hold", "bind", "auth", "xmlns", "pause", "newkey", "secure", "message", "success", "failure", "restart", "version", "polling", "content", "requests", "features", "maxpause", "resource", "condition", "mechanism", "challenge", "inactivity", "mechanisms";
        else Names::RELAY
    ),
);
