//! From bytes to a tree.

use std::borrow::Cow;

use memchr::memchr;
use quick_xml::{
    Reader,
    events::{BytesDecl, BytesStart, Event},
};

use super::{
    Attribute, Element, Names, Namespace, Node, XmlError, XmlRule,
    chars::{self, Reference},
    ns,
};

/// The bounds of a document. The default is what the relay takes from a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// Bytes in all (256 KiB).
    pub bytes: usize,
    /// Nested elements (32).
    pub depth: usize,
    /// Elements in all (1,000).
    pub elements: usize,
    /// Attributes of one tag, namespace declarations apart (64).
    pub attributes: usize,
    /// Namespace declarations of one tag (16).
    pub declarations: usize,
    /// Namespace declarations in force at one place (64), so that resolving a prefix stays cheap.
    pub bindings: usize,
    /// Bytes of one attribute's value or one name, as written (8 KiB).
    pub attribute_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            bytes: 256 * 1024,
            depth: 32,
            elements: 1_000,
            attributes: 64,
            declarations: 16,
            bindings: 64,
            attribute_bytes: 8 * 1024,
        }
    }
}

impl Limits {
    /// Takes documents of up to `bytes` bytes.
    #[must_use]
    pub const fn with_bytes(mut self, bytes: usize) -> Self {
        self.bytes = bytes;
        self
    }
}

pub(super) fn parse(document: &[u8], limits: &Limits, names: &Names) -> Result<Element, XmlError> {
    if document.len() > limits.bytes {
        return Err(XmlError { rule: XmlRule::Bytes(limits.bytes), offset: limits.bytes });
    }
    let text = std::str::from_utf8(document)
        .map_err(|error| XmlError { rule: XmlRule::Encoding, offset: error.valid_up_to() })?;
    if let Some(offset) = chars::first_not_xml(text) {
        return Err(XmlError { rule: XmlRule::Character, offset });
    }
    let stripped = text.strip_prefix('\u{feff}').unwrap_or(text);
    let skipped = text.len() - stripped.len();
    let parser = Parser {
        limits,
        names,
        elements: 0,
        open: Vec::with_capacity(4),
        bindings: Vec::with_capacity(4),
        attributes: Vec::with_capacity(8),
        name_keys: Vec::with_capacity(8),
        root: None,
    };
    parser.run(stripped).map_err(|(rule, offset)| XmlError { rule, offset: offset + skipped })
}

/// A prefix in force; the empty prefix is the default namespace.
struct Binding<'i> {
    prefix: &'i str,
    /// [`key`] of the prefix.
    key: u64,
    namespace: Namespace,
}

struct Open {
    element: Element,
    /// How many bindings were in force outside it.
    outer_bindings: usize,
}

struct Parser<'l, 'i> {
    limits: &'l Limits,
    names: &'l Names,
    elements: usize,
    open: Vec<Open>,
    bindings: Vec<Binding<'i>>,
    /// Names and values of the tag at hand, as written; empty between tags.
    attributes: Vec<(&'i str, &'i str)>,
    /// [`key`] of each attribute's local name in the tag at hand.
    name_keys: Vec<u64>,
    root: Option<Element>,
}

impl<'i> Parser<'_, 'i> {
    fn run(mut self, text: &'i str) -> Result<Element, (XmlRule, usize)> {
        let mut reader = Reader::from_str(text);
        loop {
            let offset = position(reader.buffer_position(), text);
            let event = reader
                .read_event()
                .map_err(|_| (malformed(text, offset), position(reader.error_position(), text)))?;
            let at = |rule| (rule, offset);
            match event {
                Event::Start(tag) => self.start(tag_text(text, offset, &tag), &tag).map_err(at)?,
                Event::Empty(tag) => {
                    self.start(tag_text(text, offset, &tag), &tag).map_err(at)?;
                    self.end();
                }
                Event::End(_) => self.end(),
                Event::Text(piece) => self.text(&piece).map_err(at)?,
                Event::CData(piece) if self.open.is_empty() => {
                    let _ = piece;
                    return Err(at(XmlRule::TextOutsideRoot));
                }
                Event::CData(piece) => self.text(&piece).map_err(at)?,
                Event::GeneralRef(name) => match chars::resolve(&name) {
                    _ if self.open.is_empty() => return Err(at(XmlRule::TextOutsideRoot)),
                    Reference::Char(c) => self.append(c.encode_utf8(&mut [0; 4])),
                    Reference::NotXml => return Err(at(XmlRule::Character)),
                    Reference::Entity => return Err(at(XmlRule::EntityReference)),
                },
                Event::Decl(declaration) if offset == 0 => check_declaration(&declaration).map_err(at)?,
                Event::Decl(_) | Event::PI(_) => return Err(at(XmlRule::ProcessingInstruction)),
                Event::Comment(_) => return Err(at(XmlRule::Comment)),
                Event::DocType(_) => return Err(at(XmlRule::DocumentType)),
                Event::Eof if self.open.is_empty() => return self.root.ok_or((XmlRule::Unfinished, offset)),
                Event::Eof => return Err(at(XmlRule::Unfinished)),
            }
        }
    }

    fn start(&mut self, raw: &'i str, tag: &BytesStart<'_>) -> Result<(), XmlRule> {
        if self.root.is_some() {
            return Err(XmlRule::SecondRoot);
        }
        if self.open.len() >= self.limits.depth {
            return Err(XmlRule::Depth(self.limits.depth));
        }
        self.elements += 1;
        if self.elements > self.limits.elements {
            return Err(XmlRule::Elements(self.limits.elements));
        }
        let outer_bindings = self.bindings.len();
        let name_length = tag.name().as_ref().len();
        let (tag_name, rest) = raw.split_at_checked(name_length).ok_or(XmlRule::Malformed)?;
        let mut attributes = std::mem::take(&mut self.attributes);
        let mut rest = AttributeText(rest);
        while let Some((name, value)) = rest.next_attribute()? {
            if value.len() > self.limits.attribute_bytes || name.len() > self.limits.attribute_bytes {
                return Err(XmlRule::AttributeBytes(self.limits.attribute_bytes));
            }
            if let Some(prefix) = declared_prefix(name) {
                self.declare(prefix, value, outer_bindings)?;
            } else if attributes.len() == self.limits.attributes {
                return Err(XmlRule::Attributes(self.limits.attributes));
            } else {
                attributes.push((name, value));
            }
        }
        let (prefix, local) = split_name(tag_name, self.limits)?;
        let namespace = self.resolve(prefix)?;
        let mut element = Element::new(namespace, self.owned_name(local));
        element.attributes.reserve_exact(attributes.len());
        self.name_keys.clear();
        for (name, value) in attributes.drain(..) {
            let (prefix, local) = split_name(name, self.limits)?;
            // An attribute without a prefix is in no namespace, whatever the default is.
            let namespace = if prefix.is_empty() { Namespace::NONE } else { self.resolve(prefix)? };
            let key = key(local);
            if self.name_keys.contains(&key)
                && element.attributes.iter().any(|a| a.name == local && a.namespace == namespace)
            {
                return Err(XmlRule::DuplicateAttribute);
            }
            self.name_keys.push(key);
            element.attributes.push(Attribute {
                namespace,
                name: self.owned_name(local),
                value: attribute_value(value)?,
            });
        }
        self.attributes = attributes;
        self.open.push(Open { element, outer_bindings });
        Ok(())
    }

    fn declare(&mut self, prefix: &'i str, value: &str, outer_bindings: usize) -> Result<(), XmlRule> {
        if self.bindings.len() - outer_bindings == self.limits.declarations {
            return Err(XmlRule::Declarations(self.limits.declarations));
        }
        if self.bindings.len() == self.limits.bindings {
            return Err(XmlRule::Bindings(self.limits.bindings));
        }
        if self.bindings[outer_bindings..].iter().any(|binding| binding.prefix == prefix) {
            return Err(XmlRule::DuplicateAttribute);
        }
        let namespace = if chars::needs_normalising(value) {
            self.names.namespace(&attribute_value(value)?)
        } else {
            self.names.namespace(value)
        };
        // XML Namespaces §3: `xml` is bound to its own name and nothing else is; only the default can be undone.
        let allowed = match prefix {
            "" => namespace != ns::XML && namespace != "http://www.w3.org/2000/xmlns/",
            "xml" => namespace == ns::XML,
            "xmlns" => false,
            _ => {
                chars::is_local_name(prefix)
                    && !namespace.is_empty()
                    && namespace != ns::XML
                    && namespace != "http://www.w3.org/2000/xmlns/"
            }
        };
        if !allowed {
            return Err(XmlRule::Declaration);
        }
        self.bindings.push(Binding { prefix, key: key(prefix), namespace });
        Ok(())
    }

    fn resolve(&self, prefix: &str) -> Result<Namespace, XmlRule> {
        let wanted = key(prefix);
        let mut bindings = self.bindings.iter().rev();
        if let Some(binding) = bindings.find(|binding| binding.key == wanted && binding.prefix == prefix) {
            return Ok(binding.namespace.clone());
        }
        match prefix {
            "" => Ok(Namespace::NONE),
            "xml" => Ok(Namespace::from(ns::XML)),
            _ => Err(XmlRule::UndeclaredPrefix),
        }
    }

    fn owned_name(&self, name: &str) -> Cow<'static, str> {
        self.names.word(name).map_or_else(|| Cow::Owned(name.to_owned()), Cow::Borrowed)
    }

    fn end(&mut self) {
        let Some(Open { element, outer_bindings }) = self.open.pop() else { return };
        self.bindings.truncate(outer_bindings);
        match self.open.last_mut() {
            Some(parent) => parent.element.children.push(Node::Element(element)),
            None => self.root = Some(element),
        }
    }

    fn text(&mut self, piece: &str) -> Result<(), XmlRule> {
        if self.open.is_empty() {
            return if chars::is_blank(piece) { Ok(()) } else { Err(XmlRule::TextOutsideRoot) };
        }
        // XML 1.0 §2.11: line ends are LF.
        if piece.contains('\r') {
            self.append(&piece.replace("\r\n", "\n").replace('\r', "\n"));
        } else {
            self.append(piece);
        }
        Ok(())
    }

    fn append(&mut self, piece: &str) {
        let Some(Open { element, .. }) = self.open.last_mut() else { return };
        match element.children.last_mut() {
            Some(Node::Text(text)) => text.push_str(piece),
            _ if piece.is_empty() => {}
            _ => element.children.push(Node::Text(piece.to_owned())),
        }
    }
}

/// A number that is equal for equal names, and nearly always different for different ones: comparing a name with all
/// others of its tag costs a handful of instructions then, whatever a peer sends (threat T21).
fn key(name: &str) -> u64 {
    // FNV-1a for the long ones
    chars::packed(name).unwrap_or_else(|| {
        name.bytes()
            .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
    })
}

fn position(offset: u64, text: &str) -> usize {
    usize::try_from(offset).unwrap_or(usize::MAX).min(text.len())
}

/// Why the reader could not go on at `offset`.
fn malformed(text: &str, offset: usize) -> XmlRule {
    let rest = text.get(offset..).unwrap_or("");
    if rest.starts_with("<!DOCTYPE") {
        XmlRule::DocumentType
    } else if rest.starts_with("<!--") {
        XmlRule::Comment
    } else if rest.starts_with("<?") {
        XmlRule::ProcessingInstruction
    } else if rest.starts_with('<') && !rest.contains('>') {
        XmlRule::Unfinished
    } else {
        XmlRule::Malformed
    }
}

/// What stands between `<` and `>` (or `/>`) of the tag that starts at `offset`: borrowed from the document, so that
/// prefixes need no copies.
fn tag_text<'i>(text: &'i str, offset: usize, tag: &BytesStart<'_>) -> &'i str {
    text.get(offset + 1..offset + 1 + tag.len()).unwrap_or("")
}

/// XML 1.0 §2.8: version first; an encoding, if named, must be the one that we read.
fn check_declaration(declaration: &BytesDecl<'_>) -> Result<(), XmlRule> {
    if declaration.version().is_err() {
        return Err(XmlRule::Malformed);
    }
    match declaration.encoding() {
        None => Ok(()),
        Some(Ok(encoding))
            if encoding.eq_ignore_ascii_case("utf-8") || encoding.eq_ignore_ascii_case("us-ascii") =>
        {
            Ok(())
        }
        Some(_) => Err(XmlRule::Encoding),
    }
}

/// The prefix that the attribute `name` declares, if it is a declaration; empty for the default namespace.
fn declared_prefix(name: &str) -> Option<&str> {
    match name.strip_prefix("xmlns") {
        Some("") => Some(""),
        Some(rest) => rest.strip_prefix(':'),
        None => None,
    }
}

fn split_name<'n>(name: &'n str, limits: &Limits) -> Result<(&'n str, &'n str), XmlRule> {
    if name.len() > limits.attribute_bytes {
        return Err(XmlRule::AttributeBytes(limits.attribute_bytes));
    }
    if chars::is_ascii_local_name(name) {
        return Ok(("", name));
    }
    let (prefix, local) = match name.split_once(':') {
        Some((prefix, local)) if chars::is_local_name(prefix) => (prefix, local),
        Some(_) => return Err(XmlRule::Name),
        None => ("", name),
    };
    if chars::is_local_name(local) { Ok((prefix, local)) } else { Err(XmlRule::Name) }
}

/// The part of a tag that is still to be read.
struct AttributeText<'i>(&'i str);

impl<'i> AttributeText<'i> {
    /// The next name and its value as written.
    fn next_attribute(&mut self) -> Result<Option<(&'i str, &'i str)>, XmlRule> {
        let trimmed = trim_start(self.0);
        if trimmed.is_empty() {
            return Ok(None);
        }
        if trimmed.len() == self.0.len() {
            return Err(XmlRule::Attribute);
        }
        let (name, rest) = split_at_byte(trimmed, b'=').ok_or(XmlRule::Attribute)?;
        let rest = trim_start(rest);
        let quote =
            *rest.as_bytes().first().filter(|b| matches!(b, b'\'' | b'"')).ok_or(XmlRule::Attribute)?;
        let (value, rest) = split_at_byte(&rest[1..], quote).ok_or(XmlRule::Attribute)?;
        self.0 = rest;
        let blanks = name.bytes().rev().take_while(|byte| is_blank(*byte)).count();
        Ok(Some((&name[..name.len() - blanks], value)))
    }
}

const fn is_blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r')
}

fn trim_start(text: &str) -> &str {
    let blanks = text.bytes().take_while(|byte| is_blank(*byte)).count();
    &text[blanks..]
}

/// What stands before and after the first `byte`, which must be an ASCII one.
fn split_at_byte(text: &str, byte: u8) -> Option<(&str, &str)> {
    let at = memchr(byte, text.as_bytes())?;
    Some((&text[..at], &text[at + 1..]))
}

/// XML 1.0 §3.3.3: references resolved, white space made blanks.
fn attribute_value(raw: &str) -> Result<String, XmlRule> {
    if !chars::needs_normalising(raw) {
        return Ok(raw.to_owned());
    }
    let special = |b: u8| matches!(b, b'&' | b'<' | b'\t' | b'\n' | b'\r');
    let mut value = String::with_capacity(raw.len());
    let mut rest = raw;
    while let Some(at) = rest.bytes().position(special) {
        value.push_str(&rest[..at]);
        rest = &rest[at..];
        if let Some(reference) = rest.strip_prefix('&') {
            let (name, after) = reference.split_once(';').ok_or(XmlRule::Attribute)?;
            match chars::resolve(name) {
                Reference::Char(c) => value.push(c),
                Reference::NotXml => return Err(XmlRule::Character),
                Reference::Entity => return Err(XmlRule::EntityReference),
            }
            rest = after;
        } else if rest.starts_with('<') {
            return Err(XmlRule::Attribute);
        } else {
            value.push(' ');
            rest = rest.strip_prefix("\r\n").unwrap_or_else(|| &rest[1..]);
        }
    }
    value.push_str(rest);
    Ok(value)
}
