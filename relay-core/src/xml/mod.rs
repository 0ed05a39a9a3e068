//! XML as XMPP restricts it: one element tree, bounded, namespace-aware, nothing expanded.
//!
//! ```text
//! bytes ── Document::parse (Limits) ──▶ ElementRef ──▶ Element ── vocabulary::decode ──▶ Envelope
//! bytes ◀───────────────────────────────────────────────────────── vocabulary::write ─── Envelope
//! ```
//!
//! The parser takes UTF-8 and refuses, at the first one it meets, document types, processing instructions, comments
//! and entity references other than the five predefined ones, so nothing is ever expanded or fetched. Character
//! references, CDATA sections and an XML declaration in front are legal. Every size has a bound ([`Limits`]), the work
//! is linear in the input, and neither parser, writer nor drop recurses.
//!
//! [`vocabulary`] is the form of an [`Envelope`](crate::envelope::Envelope) on the wire.

mod chars;
mod document;
mod element;
mod error;
mod names;
mod namespace;
mod parse;
pub mod vocabulary;
mod write;

pub use self::{
    document::{Document, ElementRef},
    element::{Attribute, Element, Node},
    error::{XmlError, XmlRule},
    names::Names,
    namespace::{Namespace, ns},
    parse::Limits,
};

/// Appends ` name='value'` to `out`, with what cannot stand there escaped; characters that XML does not have become
/// U+FFFD. For start tags that are written as text, where a tree would cost an allocation an attribute.
pub fn push_attribute(out: &mut String, name: &str, value: &str) {
    write::push_attribute(out, name, value);
}

/// Appends ` name='value'` to `out`, where the value is a name, a number or the like: nothing in it is to be escaped.
pub fn push_plain_attribute(out: &mut String, name: &str, value: &str) {
    write::push_plain_attribute(out, name, value);
}

/// Whether `name` is a name without colons (XML Namespaces §3).
pub(crate) fn is_local_name(name: &str) -> bool {
    chars::is_local_name(name)
}

/// Whether all of `text` are characters that XML has.
pub(crate) fn is_text(text: &str) -> bool {
    chars::first_not_xml(text).is_none()
}
