//! What an element of the vocabulary can be made as: text for the wire, or a tree for whoever puts it into another.
//!
//! Each element is described once, to either.

use crate::xml::{Element, ns, write};

/// Is told what stands in an element, in order: attributes before children. Names and nesting are the caller's to get
/// right.
pub(super) trait Form {
    /// An element begins.
    fn start(&mut self, name: &'static str);
    /// An attribute of the element that began last.
    fn attribute(&mut self, name: &'static str, value: &str);
    /// An attribute that is a name or a number: nothing in it is to be escaped.
    fn plain(&mut self, name: &'static str, value: &str) {
        self.attribute(name, value);
    }
    /// Text in the element that is open.
    fn text(&mut self, text: &str);
    /// The element `name` ends.
    fn end(&mut self, name: &'static str);

    /// An element of somebody else's, whole.
    fn element(&mut self, element: &Element);

    /// An element of attributes alone, which are names or numbers.
    fn empty(&mut self, name: &'static str, attributes: &[(&'static str, &str)]) {
        self.start(name);
        for (attribute, value) in attributes {
            self.plain(attribute, value);
        }
        self.end(name);
    }
}

/// Writes text. The first element declares the namespace for all that is in it.
pub(super) struct Text<'o> {
    out: &'o mut String,
    elements: usize,
    /// Whether the last start tag may still get attributes.
    tag_open: bool,
}

impl<'o> Text<'o> {
    pub(super) const fn new(out: &'o mut String) -> Self {
        Self { out, elements: 0, tag_open: false }
    }

    pub(super) const fn elements(&self) -> usize {
        self.elements
    }

    /// Ends the start tag, if it is open; whether it was.
    fn close_tag(&mut self, end: &str) -> bool {
        if !self.tag_open {
            return false;
        }
        if self.elements == 1 {
            write::push_plain_attribute(self.out, "xmlns", ns::RELAY);
        }
        self.out.push_str(end);
        self.tag_open = false;
        true
    }
}

impl Form for Text<'_> {
    fn start(&mut self, name: &'static str) {
        self.close_tag(">");
        self.elements += 1;
        self.out.push('<');
        self.out.push_str(name);
        self.tag_open = true;
    }

    fn attribute(&mut self, name: &'static str, value: &str) {
        write::push_attribute(self.out, name, value);
    }

    fn plain(&mut self, name: &'static str, value: &str) {
        write::push_plain_attribute(self.out, name, value);
    }

    fn text(&mut self, text: &str) {
        if !text.is_empty() {
            self.close_tag(">");
            write::push_text(self.out, text);
        }
    }

    fn element(&mut self, element: &Element) {
        self.close_tag(">");
        self.elements += element.count();
        element.write_to(self.out, ns::RELAY);
    }

    fn end(&mut self, name: &'static str) {
        if !self.close_tag("/>") {
            self.out.push_str("</");
            self.out.push_str(name);
            self.out.push('>');
        }
    }
}

/// Builds a tree.
#[derive(Default)]
pub(super) struct Tree {
    open: Vec<Element>,
    root: Option<Element>,
}

impl Tree {
    pub(super) fn root(self) -> Element {
        self.root.unwrap_or_else(|| Element::new(ns::RELAY, ""))
    }
}

impl Form for Tree {
    fn start(&mut self, name: &'static str) {
        self.open.push(Element::new(ns::RELAY, name));
    }

    fn attribute(&mut self, name: &'static str, value: &str) {
        if let Some(element) = self.open.last_mut() {
            element.set_attr(name, value);
        }
    }

    fn text(&mut self, text: &str) {
        if let Some(element) = self.open.last_mut() {
            element.push_text(text.to_owned());
        }
    }

    fn element(&mut self, element: &Element) {
        if let Some(parent) = self.open.last_mut() {
            parent.push(element.clone());
        }
    }

    fn end(&mut self, _: &'static str) {
        let Some(element) = self.open.pop() else { return };
        match self.open.last_mut() {
            Some(parent) => parent.push(element),
            None => self.root = Some(element),
        }
    }
}
