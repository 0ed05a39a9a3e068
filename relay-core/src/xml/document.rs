//! A document as it was read: flat. Whatever it holds, it is one text and two lists.

use std::{borrow::Cow, fmt};

use super::{Element, Limits, Names, XmlError, chars, parse};

/// A document that was read, for those who look at it once: cheaper than a tree of [`Element`]s.
///
/// Names and values are places in one text, which begins with the document itself; what stands in it with references,
/// or in pieces, comes behind.
#[derive(Clone, Default)]
pub struct Document {
    pub(super) text: String,
    /// In the order of the document, each element before what is in it. The first is the root.
    pub(super) nodes: Vec<Node>,
    pub(super) attributes: Vec<Attribute>,
}

impl fmt::Debug for Document {
    // It may hold secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Document({} nodes)", self.nodes.len())
    }
}

/// A part of the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Span {
    pub(super) start: u32,
    pub(super) end: u32,
}

#[derive(Debug, Clone)]
pub(super) enum Node {
    Element(ElementNode),
    Text(Span),
}

#[derive(Debug, Clone)]
pub(super) struct ElementNode {
    pub(super) namespace: Span,
    pub(super) name: Span,
    /// From its first attribute to behind its last.
    pub(super) attributes: (u32, u32),
    /// Behind the last node in it.
    pub(super) end: u32,
    /// From its start tag to behind its end tag, if it needs no declaration from outside.
    pub(super) source: Option<Span>,
}

#[derive(Debug, Clone)]
pub(super) struct Attribute {
    pub(super) namespace: Span,
    pub(super) name: Span,
    pub(super) value: Span,
}

impl Document {
    /// Reads a document: exactly one element, within `limits`.
    ///
    /// # Errors
    /// [`XmlError`]: the first rule broken, and where.
    pub fn parse(document: &[u8], limits: &Limits) -> Result<Self, XmlError> {
        parse::parse(document, limits)
    }

    /// Its one element.
    pub const fn root(&self) -> ElementRef<'_> {
        self.element(0)
    }

    /// The element at `place`, as [`ElementRef::place`] says it; what is no place of an element is an empty one.
    pub const fn element(&self, place: usize) -> ElementRef<'_> {
        ElementRef { document: self, at: place }
    }

    /// Puts the element at `place`, and everything below it down to the first element of another namespace, from
    /// namespace `from` into namespace `to`.
    ///
    /// For peers that leave a namespace out, so that what they send inherits the one around it.
    pub fn rename_namespace(&mut self, place: usize, from: &str, to: &str) {
        let end = self.element(place).node().map_or(0, |element| element.end as usize);
        let mut renamed = None;
        let mut at = place;
        while let Some(node) = self.nodes.get_mut(at).filter(|_| at < end) {
            at += 1;
            let Node::Element(element) = node else { continue };
            if element.namespace.of(&self.text) != from {
                at = element.end as usize;
                continue;
            }
            element.namespace = *renamed.get_or_insert_with(|| Span::append(&mut self.text, to));
            // It means something else now than what is written.
            element.source = None;
        }
    }
}

impl Span {
    /// The place from `start` to `end`.
    pub(super) fn new(start: usize, end: usize) -> Self {
        // The parser takes nothing that is longer.
        Self { start: start as u32, end: end as u32 }
    }

    /// Puts `part` behind `text`; where it is.
    pub(super) fn append(text: &mut String, part: &str) -> Self {
        let start = text.len();
        text.push_str(part);
        Self::new(start, text.len())
    }

    /// Whether it is `other`. Most are told apart by their lengths.
    fn is(self, text: &str, other: &str) -> bool {
        let (start, end) = (self.start as usize, self.end as usize);
        end - start == other.len() && text.as_bytes().get(start..end) == Some(other.as_bytes())
    }

    pub(super) fn of(self, text: &str) -> &str {
        text.get(self.start as usize..self.end as usize).unwrap_or_default()
    }
}

/// An element in a [`Document`].
#[derive(Clone, Copy)]
pub struct ElementRef<'d> {
    document: &'d Document,
    at: usize,
}

impl fmt::Debug for ElementRef<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.to_element(&Names::RELAY).fmt(f)
    }
}

impl PartialEq for ElementRef<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.to_element(&Names::RELAY) == other.to_element(&Names::RELAY)
    }
}

impl<'d> ElementRef<'d> {
    fn node(self) -> Option<&'d ElementNode> {
        match self.document.nodes.get(self.at) {
            Some(Node::Element(element)) => Some(element),
            _ => None,
        }
    }

    fn text_of(self, span: Option<Span>) -> &'d str {
        span.map_or("", |span| span.of(&self.document.text))
    }

    /// Where it is in its document.
    pub const fn place(self) -> usize {
        self.at
    }

    /// It as it was written, if that means the same without what stands around it.
    pub fn source(self) -> Option<&'d str> {
        Some(self.node()?.source?.of(&self.document.text))
    }

    fn own_attributes(self) -> &'d [Attribute] {
        let (from, to) = self.node().map_or((0, 0), |element| element.attributes);
        self.document.attributes.get(from as usize..to as usize).unwrap_or_default()
    }

    /// What is directly in it.
    fn nodes(self) -> impl Iterator<Item = (usize, &'d Node)> {
        let document = self.document;
        let (mut next, end) = self.node().map_or((0, 0), |element| (self.at + 1, element.end as usize));
        std::iter::from_fn(move || {
            let at = next;
            let node = document.nodes.get(at).filter(|_| at < end)?;
            next = match node {
                Node::Element(element) => element.end as usize,
                Node::Text(_) => at + 1,
            };
            Some((at, node))
        })
    }

    fn texts(self) -> impl Iterator<Item = &'d str> {
        self.nodes().filter_map(move |(_, node)| match node {
            Node::Text(span) => Some(span.of(&self.document.text)),
            Node::Element(_) => None,
        })
    }

    /// Whether text other than white space stands directly in it.
    pub fn has_text(self) -> bool {
        self.texts().any(|text| !chars::is_blank(text))
    }

    /// It as a tree of its own, in which `names` are to be expected.
    pub fn to_element(self, names: &Names) -> Element {
        let Some(root) = self.node() else { return Element::new("", "") };
        // Each with where it ends, innermost last.
        let mut open = vec![(root.end as usize, self.alone(names))];
        let mut at = self.at + 1;
        loop {
            while let Some((_, element)) = open.pop_if(|(end, _)| at >= *end) {
                match open.last_mut() {
                    Some((_, parent)) => parent.push(element),
                    None => return element,
                }
            }
            match (self.document.nodes.get(at), open.last_mut()) {
                (Some(Node::Text(span)), Some((_, parent))) => {
                    parent.push_text(span.of(&self.document.text).to_owned());
                }
                (Some(Node::Element(element)), Some(_)) => {
                    let child = Self { document: self.document, at };
                    open.push((element.end as usize, child.alone(names)));
                }
                _ => {}
            }
            at += 1;
        }
    }

    /// It with its attributes, and nothing in it.
    fn alone(self, names: &Names) -> Element {
        let text = &self.document.text;
        let own = self.own_attributes().iter();
        let attributes = own.map(|it| (it.namespace.of(text), it.name.of(text), it.value.of(text)));
        Element::read(self.namespace(), self.name(), attributes, names)
    }

    /// Its namespace; empty for none.
    pub fn namespace(self) -> &'d str {
        self.text_of(self.node().map(|element| element.namespace))
    }

    /// Its local name.
    pub fn name(self) -> &'d str {
        self.text_of(self.node().map(|element| element.name))
    }

    /// Whether it is `name` in `namespace`.
    pub fn is(self, namespace: &str, name: &str) -> bool {
        let text = &self.document.text;
        self.node().is_some_and(|node| node.name.is(text, name) && node.namespace.is(text, namespace))
    }

    /// The attribute `name` in no namespace.
    pub fn attr(self, name: &str) -> Option<&'d str> {
        let text = &self.document.text;
        let mut own = self.own_attributes().iter();
        let found = own.find(|it| it.namespace == Span::default() && it.name.is(text, name))?;
        Some(found.value.of(text))
    }

    /// The attribute `name` in `namespace`.
    pub fn attr_ns(self, namespace: &str, name: &str) -> Option<&'d str> {
        let text = &self.document.text;
        let mut own = self.own_attributes().iter();
        let found = own.find(|it| it.name.is(text, name) && it.namespace.is(text, namespace))?;
        Some(found.value.of(text))
    }

    /// The attributes in no namespace, by name.
    pub fn attributes(self) -> impl Iterator<Item = (&'d str, &'d str)> {
        let text = &self.document.text;
        let plain = self.own_attributes().iter().filter(|it| it.namespace == Span::default());
        plain.map(|it| (it.name.of(text), it.value.of(text)))
    }

    /// The elements in it, in order.
    pub fn children(self) -> impl Iterator<Item = Self> {
        let elements = self.nodes().filter(|(_, node)| matches!(node, Node::Element(_)));
        elements.map(move |(at, _)| Self { document: self.document, at })
    }

    /// The first element `name` of `namespace` in it.
    pub fn child(self, namespace: &str, name: &str) -> Option<Self> {
        self.children().find(|child| child.is(namespace, name))
    }

    /// The text directly in it.
    pub fn text(self) -> Cow<'d, str> {
        let mut texts = self.texts();
        match (texts.next(), texts.next()) {
            (None, _) => Cow::Borrowed(""),
            (Some(only), None) => Cow::Borrowed(only),
            (Some(first), Some(second)) => Cow::Owned([first, second].into_iter().chain(texts).collect()),
        }
    }
}
