//! Which rule a document broke, and where.

/// A document that was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{rule}, at byte {offset}")]
pub struct XmlError {
    /// The rule.
    pub rule: XmlRule,
    /// The byte at which it was broken (for a tag: at which the tag starts).
    pub offset: usize,
}

/// A rule that a document can break.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum XmlRule {
    /// Larger than [`Limits::bytes`](super::Limits::bytes).
    #[error("the document has more than {0} bytes")]
    Bytes(usize),
    /// Nested more deeply than [`Limits::depth`](super::Limits::depth).
    #[error("elements are nested more than {0} deep")]
    Depth(usize),
    /// More than [`Limits::elements`](super::Limits::elements).
    #[error("there are more than {0} elements")]
    Elements(usize),
    /// More than [`Limits::attributes`](super::Limits::attributes) on one tag.
    #[error("a tag has more than {0} attributes")]
    Attributes(usize),
    /// More than [`Limits::declarations`](super::Limits::declarations) on one tag.
    #[error("a tag declares more than {0} namespaces")]
    Declarations(usize),
    /// More than [`Limits::bindings`](super::Limits::bindings) in force at one place.
    #[error("more than {0} namespace declarations are in force")]
    Bindings(usize),
    /// An attribute longer than [`Limits::attribute_bytes`](super::Limits::attribute_bytes).
    #[error("an attribute has more than {0} bytes")]
    AttributeBytes(usize),
    /// Not UTF-8.
    #[error("the text is not UTF-8")]
    Encoding,
    /// NUL, another control character, or a noncharacter; literally or as a reference.
    #[error("a character is none of XML's")]
    Character,
    /// `<!DOCTYPE`.
    #[error("document types are not allowed")]
    DocumentType,
    /// `<?…?>`, or an XML declaration anywhere but in front.
    #[error("processing instructions are not allowed")]
    ProcessingInstruction,
    /// `<!-- … -->`.
    #[error("comments are not allowed")]
    Comment,
    /// A reference to an entity that is not predefined.
    #[error("entity references other than the five predefined ones are not allowed")]
    EntityReference,
    /// Text before or after the root element.
    #[error("there is text outside the root element")]
    TextOutsideRoot,
    /// Something after the root element.
    #[error("there is a second root element")]
    SecondRoot,
    /// The document ends too early.
    #[error("the document ends before its root element does")]
    Unfinished,
    /// A prefix that nothing declares.
    #[error("a prefix is not declared")]
    UndeclaredPrefix,
    /// A declaration that XML Namespaces forbids.
    #[error("a namespace declaration is not allowed")]
    Declaration,
    /// The same attribute twice.
    #[error("an attribute is there twice")]
    DuplicateAttribute,
    /// Not a name, or with more than one colon.
    #[error("a name is not valid")]
    Name,
    /// An attribute without quotes, `<` in one, or the like.
    #[error("an attribute is not well-formed")]
    Attribute,
    /// Anything else that is not XML.
    #[error("the document is not well-formed")]
    Malformed,
}
