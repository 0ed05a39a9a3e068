//! From bytes to a document.

use memchr::memchr;
use quick_xml::{
    Reader,
    events::{BytesDecl, BytesStart, Event},
};
use smallvec::SmallVec;

use super::{
    XmlError, XmlRule,
    chars::{self, Reference},
    document::{Attribute, Document, ElementNode, Node, Span},
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

/// No place in a document is beyond what 32 bits can say, with room for what is put behind it.
const LARGEST: usize = u32::MAX as usize / 4;

pub(super) fn parse(document: &[u8], limits: &Limits) -> Result<Document, XmlError> {
    let most = limits.bytes.min(LARGEST);
    if document.len() > most {
        return Err(XmlError { rule: XmlRule::Bytes(most), offset: most });
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
        source: stripped,
        document: Document {
            text: stripped.to_owned(),
            nodes: Vec::with_capacity(8),
            attributes: Vec::with_capacity(8),
        },
        elements: 0,
        open: SmallVec::new(),
        bindings: SmallVec::new(),
        names: SmallVec::new(),
        after_text: false,
    };
    parser.run().map_err(|(rule, offset)| XmlError { rule, offset: offset + skipped })
}

/// A prefix in force; the empty prefix is the default namespace.
struct Binding<'i> {
    prefix: &'i str,
    /// [`key`] of the prefix.
    key: u64,
    namespace: Span,
}

struct Open {
    node: usize,
    start: usize,
    /// How many bindings were in force outside it.
    outer_bindings: usize,
    /// The outermost binding that it, or anything in it, makes use of.
    reach: usize,
}

struct Parser<'l, 'i> {
    limits: &'l Limits,
    source: &'i str,
    document: Document,
    elements: usize,
    open: SmallVec<[Open; 4]>,
    bindings: SmallVec<[Binding<'i>; 4]>,
    /// [`key`] of the local name, and prefix, of each attribute of the tag at hand.
    names: SmallVec<[(u64, &'i str); 8]>,
    /// Whether the last node is text that may go on.
    after_text: bool,
}

impl<'i> Parser<'_, 'i> {
    fn run(mut self) -> Result<Document, (XmlRule, usize)> {
        let text = self.source;
        let mut reader = Reader::from_str(text);
        loop {
            let offset = position(reader.buffer_position(), text);
            let event = reader
                .read_event()
                .map_err(|_| (malformed(text, offset), position(reader.error_position(), text)))?;
            let after = position(reader.buffer_position(), text);
            let at = |rule| (rule, offset);
            match event {
                Event::Start(tag) => self.start(offset, &tag).map_err(at)?,
                Event::Empty(tag) => {
                    self.start(offset, &tag).map_err(at)?;
                    self.end(after);
                }
                Event::End(_) => self.end(after),
                Event::Text(piece) => {
                    let place = Span::new(offset, offset + piece.len());
                    self.text(&piece, Some(place)).map_err(at)?;
                }
                Event::CData(piece) if self.open.is_empty() => {
                    let _ = piece;
                    return Err(at(XmlRule::TextOutsideRoot));
                }
                Event::CData(piece) => self.text(&piece, None).map_err(at)?,
                Event::GeneralRef(name) => match chars::resolve(&name) {
                    _ if self.open.is_empty() => return Err(at(XmlRule::TextOutsideRoot)),
                    Reference::Char(c) => self.append(c.encode_utf8(&mut [0; 4]), None),
                    Reference::NotXml => return Err(at(XmlRule::Character)),
                    Reference::Entity => return Err(at(XmlRule::EntityReference)),
                },
                Event::Decl(declaration) if offset == 0 => check_declaration(&declaration).map_err(at)?,
                Event::Decl(_) | Event::PI(_) => return Err(at(XmlRule::ProcessingInstruction)),
                Event::Comment(_) => return Err(at(XmlRule::Comment)),
                Event::DocType(_) => return Err(at(XmlRule::DocumentType)),
                Event::Eof if self.open.is_empty() && !self.document.nodes.is_empty() => {
                    return Ok(self.document);
                }
                Event::Eof => return Err(at(XmlRule::Unfinished)),
            }
        }
    }

    /// Where `part` of the source is.
    fn place(&self, part: &'i str) -> Span {
        let start = part.as_ptr().addr() - self.source.as_ptr().addr();
        Span::new(start, start + part.len())
    }

    fn start(&mut self, offset: usize, tag: &BytesStart<'_>) -> Result<(), XmlRule> {
        if self.open.is_empty() && !self.document.nodes.is_empty() {
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
        let first = self.document.attributes.len();
        // Borrowed from the source, not from the event, so that prefixes need no copies.
        let raw = self.source.get(offset + 1..offset + 1 + tag.len()).ok_or(XmlRule::Malformed)?;
        let (tag_name, rest) = raw.split_at_checked(tag.name().as_ref().len()).ok_or(XmlRule::Malformed)?;
        self.names.clear();
        let plain = !chars::needs_normalising(rest);
        let mut rest = AttributeText(rest);
        while let Some((name, value)) = rest.next_attribute()? {
            if value.len() > self.limits.attribute_bytes || name.len() > self.limits.attribute_bytes {
                return Err(XmlRule::AttributeBytes(self.limits.attribute_bytes));
            }
            if let Some(prefix) = declared_prefix(name) {
                self.declare(prefix, value, plain, outer_bindings)?;
            } else if self.names.len() == self.limits.attributes {
                return Err(XmlRule::Attributes(self.limits.attributes));
            } else {
                let (prefix, local) = split_name(name, self.limits)?;
                let value = self.value(value, plain)?;
                self.names.push((key(local), prefix));
                // An attribute without a prefix is in no namespace, whatever the default is.
                let attribute = Attribute { namespace: Span::default(), name: self.place(local), value };
                self.document.attributes.push(attribute);
            }
        }
        let mut reach = usize::MAX;
        self.resolve_attributes(first, &mut reach)?;
        let (prefix, local) = split_name(tag_name, self.limits)?;
        let element = ElementNode {
            namespace: self.resolve(prefix, &mut reach)?,
            name: self.place(local),
            attributes: (first as u32, self.document.attributes.len() as u32),
            end: 0,
            source: None,
        };
        self.open.push(Open { node: self.document.nodes.len(), start: offset, outer_bindings, reach });
        self.document.nodes.push(Node::Element(element));
        self.after_text = false;
        Ok(())
    }

    /// Finds the namespaces of a tag's attributes, now that all its declarations are known; none may be there twice.
    fn resolve_attributes(&mut self, first: usize, reach: &mut usize) -> Result<(), XmlRule> {
        for i in 0..self.names.len() {
            let (key, prefix) = self.names[i];
            if !prefix.is_empty() {
                self.document.attributes[first + i].namespace = self.resolve(prefix, reach)?;
            }
            if self.names[..i].iter().any(|(other, _)| *other == key) {
                let Document { text, attributes, .. } = &self.document;
                let full = |it: &Attribute| (it.name.of(text), it.namespace.of(text));
                let name = full(&attributes[first + i]);
                if attributes[first..first + i].iter().any(|other| full(other) == name) {
                    return Err(XmlRule::DuplicateAttribute);
                }
            }
        }
        Ok(())
    }

    fn declare(
        &mut self,
        prefix: &'i str,
        value: &'i str,
        plain: bool,
        outer_bindings: usize,
    ) -> Result<(), XmlRule> {
        if self.bindings.len() - outer_bindings == self.limits.declarations {
            return Err(XmlRule::Declarations(self.limits.declarations));
        }
        if self.bindings.len() == self.limits.bindings {
            return Err(XmlRule::Bindings(self.limits.bindings));
        }
        if self.bindings[outer_bindings..].iter().any(|binding| binding.prefix == prefix) {
            return Err(XmlRule::DuplicateAttribute);
        }
        let place = self.value(value, plain)?;
        let namespace = place.of(&self.document.text);
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
        self.bindings.push(Binding { prefix, key: key(prefix), namespace: place });
        Ok(())
    }

    /// The namespace of `prefix`. Moves `reach` out to the binding that says so.
    fn resolve(&mut self, prefix: &str, reach: &mut usize) -> Result<Span, XmlRule> {
        let wanted = key(prefix);
        let is_it = |binding: &Binding<'_>| binding.key == wanted && binding.prefix == prefix;
        if let Some(at) = self.bindings.iter().rposition(is_it) {
            *reach = at.min(*reach);
            return Ok(self.bindings[at].namespace);
        }
        match prefix {
            "" => Ok(Span::default()),
            "xml" => Ok(Span::append(&mut self.document.text, ns::XML)),
            _ => Err(XmlRule::UndeclaredPrefix),
        }
    }

    fn end(&mut self, after: usize) {
        let Some(Open { node, start, outer_bindings, reach }) = self.open.pop() else { return };
        self.bindings.truncate(outer_bindings);
        self.after_text = false;
        let end = self.document.nodes.len() as u32;
        if let Some(Node::Element(element)) = self.document.nodes.get_mut(node) {
            element.end = end;
            element.source = (reach >= outer_bindings).then(|| Span::new(start, after));
        }
        if let Some(parent) = self.open.last_mut() {
            parent.reach = parent.reach.min(reach);
        }
    }

    /// Takes `piece` in, which stands as it is at `place`, if anywhere.
    fn text(&mut self, piece: &str, place: Option<Span>) -> Result<(), XmlRule> {
        if self.open.is_empty() {
            return if chars::is_blank(piece) { Ok(()) } else { Err(XmlRule::TextOutsideRoot) };
        }
        // XML 1.0 §2.11: line ends are LF.
        if piece.contains('\r') {
            self.append(&piece.replace("\r\n", "\n").replace('\r', "\n"), None);
        } else {
            self.append(piece, place);
        }
        Ok(())
    }

    fn append(&mut self, piece: &str, place: Option<Span>) {
        let Document { text, nodes, .. } = &mut self.document;
        match nodes.last_mut() {
            Some(Node::Text(last)) if self.after_text => {
                if last.end as usize != text.len() {
                    let start = text.len();
                    text.extend_from_within(last.start as usize..last.end as usize);
                    *last = Span::new(start, text.len());
                }
                text.push_str(piece);
                last.end = text.len() as u32;
            }
            _ if piece.is_empty() => {}
            _ => {
                let place = place.unwrap_or_else(|| Span::append(text, piece));
                nodes.push(Node::Text(place));
                self.after_text = true;
            }
        }
    }

    /// XML 1.0 §3.3.3: the value of an attribute, references resolved, white space made blanks. `plain`: it is known to
    /// have neither.
    fn value(&mut self, raw: &'i str, plain: bool) -> Result<Span, XmlRule> {
        if plain || !chars::needs_normalising(raw) {
            Ok(self.place(raw))
        } else {
            Ok(Span::append(&mut self.document.text, &normalised(raw)?))
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
        // Names are so short that a search by the word costs more.
        let equals = trimmed.bytes().position(|byte| byte == b'=').ok_or(XmlRule::Attribute)?;
        let (name, rest) = (&trimmed[..equals], &trimmed[equals + 1..]);
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

/// An attribute's value with references resolved and white space made blanks.
fn normalised(raw: &str) -> Result<String, XmlRule> {
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
