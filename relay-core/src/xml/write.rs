//! From a tree to text.

use std::borrow::Cow;

use super::{Element, Node, chars, ns};

/// Prefixes in force, innermost last.
type Prefixes<'e> = Vec<(Cow<'e, str>, &'e str)>;

/// One element that is open while its children are written.
struct Level<'e> {
    element: &'e Element,
    /// The prefix it was written with, if any.
    prefix: Option<Cow<'e, str>>,
    default: &'e str,
    next: usize,
    outer_prefixes: usize,
}

pub(super) fn write(root: &Element, out: &mut String, default: &str) {
    let mut writer = Writer { out, prefixes: Vec::new(), generated: 0 };
    let mut open: Vec<Level<'_>> = Vec::new();
    open.extend(writer.start(root, default));
    while let Some(level) = open.last_mut() {
        let node = level.element.children.get(level.next);
        level.next += 1;
        let default = level.default;
        match node {
            Some(Node::Text(text)) => escape(text, writer.out, false),
            Some(Node::Element(child)) => open.extend(writer.start(child, default)),
            None => {
                writer.out.push_str("</");
                writer.name(level.prefix.as_deref(), &level.element.name);
                writer.out.push('>');
                writer.prefixes.truncate(level.outer_prefixes);
                open.pop();
            }
        }
    }
}

struct Writer<'o, 'e> {
    out: &'o mut String,
    prefixes: Prefixes<'e>,
    /// How many prefixes were made up.
    generated: usize,
}

impl<'e> Writer<'_, 'e> {
    /// Writes a start tag; `None` if the element is empty and this was all of it.
    fn start(&mut self, element: &'e Element, outer_default: &'e str) -> Option<Level<'e>> {
        let outer_prefixes = self.prefixes.len();
        self.prefixes.extend(element.prefixes.iter().map(|&(prefix, bound)| (Cow::Borrowed(prefix), bound)));
        let namespace = element.namespace.as_str();
        let prefix = if namespace == outer_default { None } else { self.prefix_of(namespace) };
        let default = if prefix.is_some() { outer_default } else { namespace };
        self.out.push('<');
        self.name(prefix.as_deref(), &element.name);
        for attribute in &element.attributes {
            let prefix = match attribute.namespace.as_str() {
                "" => None,
                ns::XML => Some(Cow::Borrowed("xml")),
                bound => Some(self.prefix_of(bound).unwrap_or_else(|| {
                    let prefix = Cow::<'e, str>::Owned(format!("ns{}", self.generated));
                    self.generated += 1;
                    self.prefixes.push((prefix.clone(), bound));
                    prefix
                })),
            };
            self.out.push(' ');
            self.name(prefix.as_deref(), &attribute.name);
            self.value(&attribute.value);
        }
        if default != outer_default {
            self.out.push_str(" xmlns");
            self.value(default);
        }
        for i in outer_prefixes..self.prefixes.len() {
            let (prefix, bound) = self.prefixes[i].clone();
            self.out.push(' ');
            self.name(Some("xmlns"), &prefix);
            self.value(bound);
        }
        if element.children.is_empty() {
            self.out.push_str("/>");
            self.prefixes.truncate(outer_prefixes);
            return None;
        }
        self.out.push('>');
        Some(Level { element, prefix, default, next: 0, outer_prefixes })
    }

    fn prefix_of(&self, namespace: &str) -> Option<Cow<'e, str>> {
        let found = self.prefixes.iter().rposition(|(_, bound)| *bound == namespace)?;
        let (prefix, _) = &self.prefixes[found];
        // An inner declaration of the same prefix hides it.
        let hidden = self.prefixes[found + 1..].iter().any(|(inner, _)| inner == prefix);
        (!hidden).then(|| prefix.clone())
    }

    fn name(&mut self, prefix: Option<&str>, local: &str) {
        if let Some(prefix) = prefix {
            self.out.push_str(prefix);
            self.out.push(':');
        }
        self.out.push_str(local);
    }

    fn value(&mut self, value: &str) {
        push_value(self.out, value);
    }
}

/// Appends ` name='value'`.
pub(super) fn push_attribute(out: &mut String, name: &str, value: &str) {
    out.push(' ');
    out.push_str(name);
    push_value(out, value);
}

fn push_value(out: &mut String, value: &str) {
    out.push_str("='");
    escape(value, out, true);
    out.push('\'');
}

/// Appends ` name='value'` where nothing in the value needs to be escaped, as in a name or a number.
pub(super) fn push_plain_attribute(out: &mut String, name: &str, value: &str) {
    debug_assert!(chars::is_plain(value), "{value:?}");
    out.reserve(name.len() + value.len() + 4);
    out.push(' ');
    out.push_str(name);
    out.push_str("='");
    out.push_str(value);
    out.push('\'');
}

/// Appends text between tags.
pub(super) fn push_text(out: &mut String, text: &str) {
    escape(text, out, false);
}

/// Which bytes need a look before they are written.
const SPECIAL: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < 0x20 {
        table[byte] = true;
        byte += 1;
    }
    table[b'&' as usize] = true;
    table[b'<' as usize] = true;
    table[b'>' as usize] = true;
    table[b'\'' as usize] = true;
    // Where U+FFFE and U+FFFF begin.
    table[0xef] = true;
    table
};

/// Appends `text` so that it reads as itself in text or, if `attribute`, between single quotes.
fn escape(text: &str, out: &mut String, attribute: bool) {
    if chars::is_plain(text) {
        return out.push_str(text);
    }
    let mut rest = text;
    while let Some(at) = rest.bytes().position(|byte| SPECIAL[usize::from(byte)]) {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        let Some(c) = rest.chars().next() else { break };
        rest = &rest[c.len_utf8()..];
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '\'' if attribute => out.push_str("&apos;"),
            '\t' if attribute => out.push_str("&#9;"),
            '\n' if attribute => out.push_str("&#10;"),
            // A bare CR would come back as LF (XML 1.0 §2.11).
            '\r' => out.push_str("&#13;"),
            c if chars::is_xml(c) => out.push(c),
            _ => out.push('\u{fffd}'),
        }
    }
    out.push_str(rest);
}
