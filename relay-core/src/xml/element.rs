//! The element tree.

use std::borrow::Cow;

use super::{Document, Limits, Names, Namespace, XmlError, chars, ns, write};

/// An element: a name in a namespace, attributes, children.
///
/// Trees that come from [`Element::parse`] are as shallow as its [`Limits`]; comparing, cloning and printing recurse
/// only as deep as the tree is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Element {
    pub(super) namespace: Namespace,
    pub(super) name: Cow<'static, str>,
    pub(super) attributes: Vec<Attribute>,
    pub(super) children: Vec<Node>,
    /// Prefixes to declare here when written. Parsing resolves and forgets them.
    pub(super) prefixes: Vec<(&'static str, &'static str)>,
}

/// An attribute; its namespace is empty unless it was written with a prefix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attribute {
    /// Its namespace.
    pub namespace: Namespace,
    /// Its local name.
    pub name: Cow<'static, str>,
    /// Its value, references resolved.
    pub value: String,
}

/// What stands in an element.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Node {
    /// An element.
    Element(Element),
    /// Text, references resolved; never two in a row.
    Text(String),
}

impl Element {
    /// An empty element.
    pub fn new(namespace: impl Into<Namespace>, name: impl Into<Cow<'static, str>>) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
            attributes: Vec::new(),
            children: Vec::new(),
            prefixes: Vec::new(),
        }
    }

    /// Reads a document: exactly one element, within `limits`.
    ///
    /// # Errors
    /// [`XmlError`]: the first rule broken, and where.
    pub fn parse(document: &[u8], limits: &Limits) -> Result<Self, XmlError> {
        Self::parse_with(document, limits, &Names::RELAY)
    }

    /// Reads a document in which `names` are to be expected.
    ///
    /// # Errors
    /// As [`parse`](Self::parse).
    pub fn parse_with(document: &[u8], limits: &Limits, names: &Names) -> Result<Self, XmlError> {
        Ok(Document::parse(document, limits)?.root().to_element(names))
    }

    /// An element with nothing in it, as it was read: names that are known need no copies.
    pub(super) fn read<'n>(
        namespace: &str,
        name: &str,
        attributes: impl ExactSizeIterator<Item = (&'n str, &'n str, &'n str)>,
        names: &Names,
    ) -> Self {
        let known = |name: &str| names.word(name).map_or_else(|| name.to_owned().into(), Cow::Borrowed);
        let mut element = Self::new(names.namespace(namespace), known(name));
        element.attributes.reserve_exact(attributes.len());
        element.attributes.extend(attributes.map(|(namespace, name, value)| Attribute {
            namespace: names.namespace(namespace),
            name: known(name),
            value: value.to_owned(),
        }));
        element
    }

    /// Appends the element to `out`, on one line, where `default` is the default namespace in force (empty at the start
    /// of a document). Characters that XML does not have become U+FFFD.
    pub fn write_to(&self, out: &mut String, default: &str) {
        write::write(self, out, default);
    }

    /// The element as a document of its own.
    pub fn to_document(&self) -> String {
        let mut out = String::with_capacity(256);
        self.write_to(&mut out, "");
        out
    }

    /// Its namespace; empty for none.
    pub const fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Its local name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether it is `name` in `namespace`.
    pub fn is(&self, namespace: &str, name: &str) -> bool {
        self.name == name && self.namespace == namespace
    }

    /// The attribute `name` in no namespace.
    pub fn attr(&self, name: &str) -> Option<&str> {
        self.attr_ns("", name)
    }

    /// The attribute `name` in `namespace`.
    pub fn attr_ns(&self, namespace: &str, name: &str) -> Option<&str> {
        self.attributes
            .iter()
            .find(|attribute| attribute.name == name && attribute.namespace == namespace)
            .map(|attribute| attribute.value.as_str())
    }

    /// All attributes.
    pub fn attributes(&self) -> &[Attribute] {
        &self.attributes
    }

    /// Everything in it, in order.
    pub fn nodes(&self) -> &[Node] {
        &self.children
    }

    /// The elements in it, in order.
    pub fn children(&self) -> impl Iterator<Item = &Self> {
        self.children.iter().filter_map(|node| match node {
            Node::Element(element) => Some(element),
            Node::Text(_) => None,
        })
    }

    /// The first element `name` of `namespace` in it.
    pub fn child(&self, namespace: &str, name: &str) -> Option<&Self> {
        self.children().find(|child| child.is(namespace, name))
    }

    /// Takes the elements out of it, in order; what text stands between them is dropped.
    pub fn take_children(&mut self) -> impl Iterator<Item = Self> + use<> {
        std::mem::take(&mut self.children).into_iter().filter_map(|node| match node {
            Node::Element(element) => Some(element),
            Node::Text(_) => None,
        })
    }

    /// The text directly in it.
    pub fn text(&self) -> Cow<'_, str> {
        let mut texts = self.children.iter().filter_map(|node| match node {
            Node::Text(text) => Some(text.as_str()),
            Node::Element(_) => None,
        });
        match (texts.next(), texts.next()) {
            (None, _) => Cow::Borrowed(""),
            (Some(only), None) => Cow::Borrowed(only),
            (Some(first), Some(second)) => {
                let mut all = String::from(first);
                all.push_str(second);
                all.extend(texts);
                Cow::Owned(all)
            }
        }
    }

    /// Whether text other than white space stands directly in it.
    pub fn has_text(&self) -> bool {
        self.children.iter().any(|node| matches!(node, Node::Text(text) if !chars::is_blank(text)))
    }

    /// Sets the attribute `name`.
    #[must_use]
    pub fn with_attr(mut self, name: impl Into<Cow<'static, str>>, value: impl Into<String>) -> Self {
        self.set_attr_ns(Namespace::NONE, name.into(), value.into());
        self
    }

    /// Sets the attribute `name` of `namespace`.
    #[must_use]
    pub fn with_attr_ns(
        mut self,
        namespace: impl Into<Namespace>,
        name: impl Into<Cow<'static, str>>,
        value: impl Into<String>,
    ) -> Self {
        self.set_attr_ns(namespace.into(), name.into(), value.into());
        self
    }

    /// Sets `xml:lang`.
    #[must_use]
    pub fn with_lang(self, language: impl Into<String>) -> Self {
        self.with_attr_ns(ns::XML, "lang", language)
    }

    /// Appends an element.
    #[must_use]
    pub fn with_child(mut self, child: Self) -> Self {
        self.push(child);
        self
    }

    /// Appends text.
    #[must_use]
    pub fn with_text(mut self, text: impl Into<String>) -> Self {
        self.push_text(text.into());
        self
    }

    /// Declares `prefix` for `namespace` on this element when it is written: elements and attributes of that
    /// namespace, here and below, are then written with it, which peers that match prefixes rely on.
    #[must_use]
    pub fn with_prefix(mut self, prefix: &'static str, namespace: &'static str) -> Self {
        self.prefixes.push((prefix, namespace));
        self
    }

    /// Sets the attribute `name` in no namespace.
    pub fn set_attr(&mut self, name: impl Into<Cow<'static, str>>, value: impl Into<String>) {
        self.set_attr_ns(Namespace::NONE, name.into(), value.into());
    }

    /// Removes the attribute `name` in no namespace, and returns its value.
    pub fn remove_attr(&mut self, name: &str) -> Option<String> {
        let at = self.attributes.iter().position(|a| a.name == name && a.namespace.is_empty())?;
        Some(self.attributes.remove(at).value)
    }

    fn set_attr_ns(&mut self, namespace: Namespace, name: Cow<'static, str>, value: String) {
        match self.attributes.iter_mut().find(|a| a.name == name && a.namespace == namespace) {
            Some(attribute) => attribute.value = value,
            None => self.attributes.push(Attribute { namespace, name, value }),
        }
    }

    /// Appends an element.
    pub fn push(&mut self, child: Self) {
        self.children.push(Node::Element(child));
    }

    /// Appends text.
    pub fn push_text(&mut self, text: String) {
        match self.children.last_mut() {
            Some(Node::Text(last)) => last.push_str(&text),
            _ if text.is_empty() => {}
            _ => self.children.push(Node::Text(text)),
        }
    }

    /// How many elements it is, itself included.
    pub(super) fn count(&self) -> usize {
        let mut count = 0;
        let mut pending = vec![self];
        while let Some(element) = pending.pop() {
            count += 1;
            pending.extend(element.children());
        }
        count
    }

    fn has_grandchildren(&self) -> bool {
        self.children().any(|child| !child.children.is_empty())
    }
}

impl Drop for Element {
    // Dropped level by level: a deep tree must not use up the stack.
    fn drop(&mut self) {
        if !self.has_grandchildren() {
            return;
        }
        let mut pending: Vec<Node> = std::mem::take(&mut self.children);
        while let Some(node) = pending.pop() {
            if let Node::Element(mut element) = node {
                pending.append(&mut element.children);
            }
        }
    }
}
