//! The XML tree: what is taken, what is refused, and that writing is the inverse of reading.

use std::time::{Duration, Instant};

use proptest::prelude::*;
use relay_core::xml::{Document, Element, Limits, Names, Namespace, Node, XmlRule};

/// As in the documents of BOSH and XMPP, which nest more namespaces than most.
mod ns {
    pub(crate) use relay_core::xml::ns::{RELAY, XML};
    pub(crate) const BOSH: &str = "http://jabber.org/protocol/httpbind";
    pub(crate) const XBOSH: &str = "urn:xmpp:xbosh";
    pub(crate) const STREAMS: &str = "http://etherx.jabber.org/streams";
    pub(crate) const CLIENT: &str = "jabber:client";
    pub(crate) const SASL: &str = "urn:ietf:params:xml:ns:xmpp-sasl";
}

fn parse(document: &str) -> Result<Element, XmlRule> {
    Element::parse(document.as_bytes(), &Limits::default()).map_err(|error| error.rule)
}

fn refused(document: &str) -> XmlRule {
    parse(document).expect_err(&format!("taken: {:?}", &document[..document.len().min(200)]))
}

/// The clock of a test that measures.
#[expect(clippy::disallowed_methods, reason = "measures the parser itself")]
fn clock() -> Instant {
    Instant::now()
}

#[test]
fn names_resolve_by_namespace_not_by_prefix() {
    let plain = parse("<body xmlns='http://jabber.org/protocol/httpbind' rid='1'/>").unwrap();
    let prefixed = parse("<b:body xmlns:b='http://jabber.org/protocol/httpbind' rid='1'/>").unwrap();
    assert_eq!(plain, prefixed);
    assert!(plain.is(ns::BOSH, "body"));
    assert_eq!(plain.attr("rid"), Some("1"));
}

#[test]
fn prefixes_end_with_the_element_that_declares_them() {
    assert_eq!(refused("<a><b xmlns:p='urn:p'/><p:c/></a>"), XmlRule::UndeclaredPrefix);
    let tree = parse("<a xmlns='urn:1'><b xmlns='urn:2'><c/></b><d/></a>").unwrap();
    assert!(tree.child("urn:2", "b").unwrap().child("urn:2", "c").is_some());
    assert!(tree.child("urn:1", "d").is_some());
}

#[test]
fn an_attribute_without_prefix_is_in_no_namespace() {
    let tree = parse("<a xmlns='urn:1' xmlns:p='urn:1' x='0' p:x='1' xml:lang='en'/>").unwrap();
    assert_eq!(tree.attr("x"), Some("0"));
    assert_eq!(tree.attr_ns("urn:1", "x"), Some("1"));
    assert_eq!(tree.attr_ns(ns::XML, "lang"), Some("en"));
}

#[test]
fn references_and_cdata_become_text() {
    let tree = parse("<a x='&lt;&#65;&#x42;&apos;'>&amp;x&#x1F600;<![CDATA[<y/>&amp;]]>z</a>").unwrap();
    assert_eq!(tree.attr("x"), Some("<AB'"));
    assert_eq!(tree.text(), "&x\u{1f600}<y/>&amp;z");
    assert!(matches!(tree.nodes(), [Node::Text(_)]));
}

#[test]
fn line_ends_and_blanks_are_normalised_as_xml_says() {
    let tree = parse("<a x='1\r\n2\t3&#13;'>1\r\n2\r3&#13;</a>").unwrap();
    assert_eq!(tree.attr("x"), Some("1 2 3\r"));
    assert_eq!(tree.text(), "1\n2\n3\r");
}

#[test]
fn t19_an_xml_declaration_in_front_and_blanks_around_are_taken() {
    for good in [
        "<?xml version='1.0'?><a/>",
        "<?xml version=\"1.0\" encoding=\"utf-8\" standalone='yes'?>\r\n<a></a>\n",
        "\u{feff}<a/>",
        "\u{feff}<?xml version='1.0' encoding='UTF-8'?><a/>",
        "  <a/>  ",
    ] {
        assert!(parse(good).is_ok(), "{good:?} was refused: {:?}", parse(good));
    }
}

#[test]
fn t18_document_types_and_entities_are_refused_at_the_first() {
    let billion_laughs = "<!DOCTYPE lolz [<!ENTITY lol 'lol'><!ENTITY lol2 '&lol;&lol;'>]><a>&lol2;</a>";
    for (document, rule) in [
        (billion_laughs, XmlRule::DocumentType),
        ("<!DOCTYPE a SYSTEM 'file:///etc/passwd'><a/>", XmlRule::DocumentType),
        ("<!DOCTYPE a", XmlRule::DocumentType),
        ("<?xml version='1.0'?><!DOCTYPE a><a/>", XmlRule::DocumentType),
        ("<a><!DOCTYPE b></a>", XmlRule::DocumentType),
        ("<a>&lol;</a>", XmlRule::EntityReference),
        ("<a>&nbsp;</a>", XmlRule::EntityReference),
        ("<a x='&lol;'/>", XmlRule::EntityReference),
        ("<a xmlns='&lol;'/>", XmlRule::EntityReference),
        ("<!ENTITY x 'y'><a/>", XmlRule::Malformed),
    ] {
        assert_eq!(refused(document), rule, "{document}");
    }
}

#[test]
fn t18_the_refusal_says_where() {
    let error = Element::parse(b"<a><b>&lol;</b></a>", &Limits::default()).unwrap_err();
    assert_eq!(error.offset, 6);
    let error = Element::parse("\u{feff}<a><b>&lol;</b></a>".as_bytes(), &Limits::default()).unwrap_err();
    assert_eq!(error.offset, 9);
}

#[test]
fn t19_instructions_comments_second_roots_and_stray_text_are_refused() {
    for (document, rule) in [
        ("<?php x?><a/>", XmlRule::ProcessingInstruction),
        ("<a><?x y?></a>", XmlRule::ProcessingInstruction),
        ("<a/><?x y?>", XmlRule::ProcessingInstruction),
        ("<a><?xml version='1.0'?></a>", XmlRule::ProcessingInstruction),
        (" <?xml version='1.0'?><a/>", XmlRule::ProcessingInstruction),
        ("<!-- x --><a/>", XmlRule::Comment),
        ("<a><!----></a>", XmlRule::Comment),
        ("<a/><b/>", XmlRule::SecondRoot),
        ("<a/></a>", XmlRule::Malformed),
        ("x<a/>", XmlRule::TextOutsideRoot),
        ("<a/>x", XmlRule::TextOutsideRoot),
        ("<a/>&#32;", XmlRule::TextOutsideRoot),
        ("<![CDATA[]]><a/>", XmlRule::TextOutsideRoot),
        ("", XmlRule::Unfinished),
        ("<a>", XmlRule::Unfinished),
        ("<a><b></a></b>", XmlRule::Malformed),
        ("<a", XmlRule::Unfinished),
    ] {
        assert_eq!(refused(document), rule, "{document}");
    }
}

#[test]
fn malformed_tags_are_refused() {
    for document in [
        "<a x/>",
        "<a x=1/>",
        "<a x='1/>",
        "<a x='1'y='2'/>",
        "<a x='<'/>",
        "<a x='1' x='2'/>",
        "<a 'x'/>",
        "<a =''/>",
        "<1/>",
        "<a:b:c xmlns:a='x'/>",
        "<:a/>",
        "<a:/>",
        "< a/>",
        "<a&b/>",
        "<a x='&'/>",
        "<a x='&#;'/>",
        "<a x='&#+65;'/>",
        "<a x='&#x+41;'/>",
        "<a>&#xD800;</a>",
        "<a>&</a>",
        "<a>& b;</a>",
        "<p:a/>",
        "<a p:x=''/>",
        "<a xmlns:p=''/>",
        "<a xmlns:xmlns='x'/>",
        "<a xmlns:xml='x'/>",
        "<a xmlns:x='http://www.w3.org/XML/1998/namespace'/>",
        "<a xmlns='x' xmlns='y'/>",
        "<a xmlns:p='x' xmlns:q='x' p:b='1' q:b='2'/>",
        "<a><b/ ></a>",
        "</a>",
        "<>",
        "<a></>",
        "<a xmlns:1='x'/>",
    ] {
        assert!(parse(document).is_err(), "{document} was taken");
    }
}

#[test]
fn t22_only_utf8_of_xml_characters_is_taken() {
    let utf16: Vec<u8> = "<a/>".encode_utf16().flat_map(u16::to_le_bytes).collect();
    for bad in [
        &b"<a>\xff</a>"[..],
        b"<a>\xc3</a>",
        b"<a>\xc0\x80</a>",
        b"<a>\xed\xa0\x80</a>",
        b"<a>\xf4\x90\x80\x80</a>",
        b"<a>\0</a>",
        b"<a>\x01</a>",
        b"<a x='\x1f'/>",
        b"<a>\xef\xbf\xbf</a>",
        b"<a>\xef\xbf\xbe</a>",
        b"<a>&#0;</a>",
        b"<a>&#xFFFE;</a>",
        b"<a>&#1;</a>",
        b"<a>&#x110000;</a>",
        b"<a>\xe2\x82",
        &utf16,
        b"\xfe\xff\0<\0a\0/\0>",
        b"<?xml version='1.0' encoding='utf-16'?><a/>",
        b"<?xml version='1.0' encoding='iso-8859-1'?><a/>",
    ] {
        let error = Element::parse(bad, &Limits::default());
        assert!(error.is_err(), "{bad:?} was taken");
    }
    assert!(parse("<a>\u{fffd}\u{10ffff}\u{85}</a>").is_ok());
}

#[test]
fn b2_bytes_are_bounded() {
    let document = |bytes: usize| format!("<a>{}</a>", "x".repeat(bytes - 7));
    assert!(parse(&document(256 * 1024)).is_ok());
    assert_eq!(refused(&document(256 * 1024 + 1)), XmlRule::Bytes(256 * 1024));
}

#[test]
fn b2_depth_is_bounded() {
    let document = |depth: usize| format!("{}{}", "<a>".repeat(depth), "</a>".repeat(depth));
    assert!(parse(&document(32)).is_ok());
    assert_eq!(refused(&document(33)), XmlRule::Depth(32));
    let empty = format!("{}<a/>{}", "<a>".repeat(32), "</a>".repeat(32));
    assert_eq!(refused(&empty), XmlRule::Depth(32));
}

#[test]
fn b2_elements_are_bounded() {
    let document = |elements: usize| format!("<a>{}</a>", "<b/>".repeat(elements - 1));
    assert!(parse(&document(1_000)).is_ok());
    assert_eq!(refused(&document(1_001)), XmlRule::Elements(1_000));
}

#[test]
fn b2_attributes_and_their_size_are_bounded() {
    let document = |n: usize| format!("<a{}/>", (0..n).map(|i| format!(" x{i}=''")).collect::<String>());
    assert!(parse(&document(64)).is_ok());
    assert_eq!(refused(&document(65)), XmlRule::Attributes(64));
    let long = |n: usize| format!("<a x='{}'/>", "y".repeat(n));
    assert!(parse(&long(8 * 1024)).is_ok());
    assert_eq!(refused(&long(8 * 1024 + 1)), XmlRule::AttributeBytes(8 * 1024));
    assert_eq!(refused(&format!("<{}/>", "a".repeat(8 * 1024 + 1))), XmlRule::AttributeBytes(8 * 1024));
}

#[test]
fn b2_namespace_declarations_are_bounded() {
    let document =
        |n: usize| format!("<a{}/>", (0..n).map(|i| format!(" xmlns:x{i}='u'")).collect::<String>());
    assert!(parse(&document(16)).is_ok());
    assert_eq!(refused(&document(17)), XmlRule::Declarations(16));
}

#[test]
fn t20_depth_costs_no_stack() {
    let deep = "<a>".repeat(80_000);
    assert_eq!(refused(&deep), XmlRule::Depth(32));
    let deep: String = (0..20_000).map(|i| format!("<a xmlns:x{i}='u'>")).collect();
    assert_eq!(refused(&deep[..200_000]), XmlRule::Depth(32));

    // Writer and drop meet deeper trees only if we build them.
    let worker = std::thread::Builder::new().stack_size(128 * 1024).spawn(|| {
        let mut tree = Element::new(ns::RELAY, "a");
        for _ in 0..100_000 {
            tree = Element::new(ns::RELAY, "a").with_child(tree);
        }
        assert_eq!(
            tree.to_document().len(),
            "<a xmlns='urn:relay:1'>".len() + 100_000 * "<a></a>".len() - 2 + 3
        );
        drop(tree);
    });
    worker.unwrap().join().unwrap();
}

#[test]
fn t21_floods_of_attributes_and_namespaces_are_refused_at_once() {
    let attributes: String = (0..20_000).map(|i| format!(" a{i}='v'")).collect();
    assert_eq!(refused(&format!("<a{attributes}/>")), XmlRule::Attributes(64));
    let namespaces: String = (0..10_000).map(|i| format!(" xmlns:a{i}='v'")).collect();
    assert_eq!(refused(&format!("<a{namespaces}/>")), XmlRule::Declarations(16));
    let mut nested = String::new();
    for depth in 0..5 {
        let declarations: String = (0..16).map(|i| format!(" xmlns:p{depth}x{i}='u'")).collect();
        nested.push_str(&format!("<a{declarations}>"));
    }
    assert_eq!(refused(&nested), XmlRule::Bindings(64));
}

#[test]
fn t21_no_accepted_document_takes_long() {
    let mut documents = Vec::new();
    // As many attributes as fit, all of one length and one prefix, the prefix declared first of many.
    let declarations: Vec<String> = (0..4)
        .map(|level| (0..16).map(|i| format!(" xmlns:{}='u{level}{i}'", prefix(level * 16 + i))).collect())
        .collect();
    let tag: String = (0..60).map(|i| format!(" aa:{}=''", prefix(i))).collect();
    let mut wide = String::new();
    for level in &declarations {
        wide.push_str(&format!("<a{level}>"));
    }
    let room = (256 * 1024 - wide.len() - 100) / (tag.len() + 5);
    wide.push_str(&format!("<b{tag}/>").repeat(room.min(990)));
    wide.push_str("</a></a></a></a>");
    documents.push(wide);
    documents.push(format!("<a>{}</a>", "&lt;".repeat(65_000)));
    documents.push(format!("<a>{}</a>", "]".repeat(260_000)));
    documents.push(format!("<a>{}</a>", "<![CDATA[]]>".repeat(21_000)));
    documents.push(format!("<a>{}</a>", "<b/>x".repeat(999)));
    documents.push(format!("<a>{}</a>", "\r".repeat(260_000)));
    for document in documents {
        // The best of several runs: others share the processor.
        let best = (0..7)
            .map(|_| {
                let start = clock();
                parse(&document).unwrap();
                start.elapsed()
            })
            .min()
            .unwrap();
        let bound = Duration::from_millis(if cfg!(debug_assertions) { 1_000 } else { 10 });
        assert!(best < bound, "{best:?} for {:?}", &document[..60]);
    }
}

/// Two letters, different for each number below 676.
fn prefix(i: usize) -> String {
    let letter = |i: usize| char::from(b'a' + u8::try_from(i % 26).unwrap());
    [letter(i / 26), letter(i)].iter().collect()
}

#[test]
fn stanzas_in_the_wrapper_declare_their_namespace() {
    let body = Element::new(ns::BOSH, "body")
        .with_attr("sid", "x")
        .with_prefix("xmpp", ns::XBOSH)
        .with_prefix("stream", ns::STREAMS)
        .with_attr_ns(ns::XBOSH, "restart", "true")
        .with_lang("en")
        .with_child(
            Element::new(ns::STREAMS, "features")
                .with_child(Element::new(ns::SASL, "mechanisms").with_text("a<b")),
        )
        .with_child(
            Element::new(ns::CLIENT, "message").with_child(Element::new(ns::CLIENT, "body").with_text("hi")),
        );
    assert_eq!(
        body.to_document(),
        "<body sid='x' xmpp:restart='true' xml:lang='en' xmlns='http://jabber.org/protocol/httpbind' \
         xmlns:xmpp='urn:xmpp:xbosh' xmlns:stream='http://etherx.jabber.org/streams'><stream:features>\
         <mechanisms xmlns='urn:ietf:params:xml:ns:xmpp-sasl'>a&lt;b</mechanisms></stream:features>\
         <message xmlns='jabber:client'><body>hi</body></message></body>"
    );
}

#[test]
fn foreign_attribute_namespaces_get_a_prefix_of_their_own() {
    let tree = Element::new("", "a")
        .with_attr_ns(Namespace::new("urn:x"), "k", "1")
        .with_attr_ns(Namespace::new("urn:y"), "k", "2")
        .with_child(Element::new("urn:x", "b").with_attr_ns(Namespace::new("urn:z"), "k", "3"));
    let document = tree.to_document();
    assert_eq!(parse(&document).unwrap(), tree, "{document}");
}

#[test]
fn the_writer_never_writes_what_the_parser_refuses() {
    let tree = Element::new("", "a").with_attr("x", "\0\u{ffff}'\"<&>\t\n\r").with_text("\u{1b}[31m]]>\r\n");
    let back = parse(&tree.to_document()).unwrap();
    assert_eq!(back.attr("x"), Some("\u{fffd}\u{fffd}'\"<&>\t\n\r"));
    assert_eq!(back.text(), "\u{fffd}[31m]]>\r\n");
}

#[test]
fn inherited_default_namespace_is_not_repeated() {
    let mut out = String::new();
    Element::new(ns::BOSH, "a").with_child(Element::new("", "b")).write_to(&mut out, ns::BOSH);
    assert_eq!(out, "<a><b xmlns=''/></a>");
}

#[test]
fn w10_a_stanza_in_the_wrong_namespace_is_moved_with_its_subtree() {
    let mut document = Document::parse(
        b"<body xmlns='http://jabber.org/protocol/httpbind'><message><body>x</body><x xmlns='urn:x'><y/></x>\
          <z><w/></z></message><message/></body>",
        &Limits::default(),
    )
    .unwrap();
    let place = document.root().children().next().unwrap().place();
    document.rename_namespace(place, ns::BOSH, ns::CLIENT);
    assert_eq!(document.root().namespace(), ns::BOSH);
    assert!(document.root().child(ns::BOSH, "message").is_some(), "the other one stays");
    let stanza = document.element(place);
    assert_eq!((stanza.namespace(), stanza.source()), (ns::CLIENT, None));
    assert!(stanza.child(ns::CLIENT, "body").is_some());
    assert!(stanza.child("urn:x", "x").unwrap().child("urn:x", "y").is_some());
    assert!(stanza.child(ns::CLIENT, "z").unwrap().child(ns::CLIENT, "w").is_some());
}

#[test]
fn an_element_that_needs_nothing_from_outside_is_had_as_it_was_written() {
    let source = |xml: &str, path: &[usize]| {
        let document = Document::parse(xml.as_bytes(), &Limits::default()).unwrap();
        let inner = path.iter().fold(document.root(), |at, &n| at.children().nth(n).unwrap());
        inner.source().map(str::to_owned)
    };
    let whole = "<a xmlns='urn:a' xmlns:p='urn:p'><b xmlns=\"urn:b\" p:x='1'>&lt;</b><c xmlns='urn:c'>\
                 <d p='2'><![CDATA[<]]></d><p:e xmlns:p='urn:q'/></c><f xml:lang='en' xmlns=''/><g/></a>";
    assert_eq!(source(whole, &[]).as_deref(), Some(whole));
    assert_eq!(source(whole, &[0]), None, "its attribute's prefix is declared outside");
    assert_eq!(
        source(whole, &[1]).as_deref(),
        Some("<c xmlns='urn:c'><d p='2'><![CDATA[<]]></d><p:e xmlns:p='urn:q'/></c>")
    );
    assert_eq!(source(whole, &[1, 0]), None, "it inherits its namespace");
    assert_eq!(source(whole, &[1, 1]).as_deref(), Some("<p:e xmlns:p='urn:q'/>"));
    assert_eq!(source(whole, &[2]).as_deref(), Some("<f xml:lang='en' xmlns=''/>"));
    assert_eq!(source(whole, &[3]), None);
    assert_eq!(source("<a><b/></a>", &[0]).as_deref(), Some("<b/>"), "no namespace is none everywhere");
}

#[test]
fn text_in_pieces_is_one_text() {
    let document = b"<a>x&amp;y<![CDATA[z]]>\r\n<b>1</b>2<b c='&#65;\t'>&gt;</b></a>";
    let document = Document::parse(document, &Limits::default()).unwrap();
    let root = document.root();
    assert_eq!(root.text(), "x&yz\n2");
    assert_eq!(root.children().map(|b| b.text()).collect::<Vec<_>>(), ["1", ">"]);
    assert_eq!(root.children().last().and_then(|b| b.attr("c")), Some("A "));
}

fn text() -> impl Strategy<Value = String> {
    prop_oneof!["[ -~\\t\\n\\r]{0,20}", "[&<>'\"\\]]{0,10}", "\\PC{0,10}"]
        .prop_map(|text| text.replace(['\u{fffe}', '\u{ffff}'], ""))
}

fn element() -> impl Strategy<Value = Element> {
    let namespace =
        || prop::sample::select(vec!["", ns::RELAY, ns::BOSH, ns::STREAMS, ns::XBOSH, "urn:a", "urn:b&'"]);
    let name = || "[a-zé_][a-z0-9._-]{0,6}";
    let leaf =
        (namespace(), name(), prop::collection::vec((namespace(), name(), text()), 0..4), any::<bool>())
            .prop_map(|(namespace, name, attributes, declares)| {
                let mut element = Element::new(Namespace::new(namespace), name);
                for (namespace, name, value) in attributes {
                    element = element.with_attr_ns(Namespace::new(namespace), name, value);
                }
                if declares {
                    element.with_prefix("stream", ns::STREAMS).with_prefix("x", "urn:a")
                } else {
                    element
                }
            });
    let leaf = leaf.boxed();
    leaf.clone().prop_recursive(5, 40, 5, move |inner| {
        let node = prop_oneof![inner.prop_map(Ok), text().prop_map(Err)];
        (leaf.clone(), prop::collection::vec(node, 0..5)).prop_map(|(mut element, nodes)| {
            for node in nodes {
                match node {
                    Ok(child) => element.push(child),
                    Err(text) => element.push_text(text),
                }
            }
            element
        })
    })
}

proptest! {
    #[test]
    fn reading_is_the_inverse_of_writing(tree in element()) {
        let document = tree.to_document();
        let back = Element::parse(document.as_bytes(), &Limits::default()).unwrap();
        // Prefixes are declared when written and forgotten when read: compare what is written without them.
        prop_assert_eq!(shape(&back), shape(&tree), "{}", document);
    }

    #[test]
    fn t22_arbitrary_bytes_are_refused_or_rewritten_alike(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        check_rewrite(&bytes)?;
    }

    #[test]
    fn t19_arbitrary_markup_is_refused_or_rewritten_alike(
        pieces in prop::collection::vec(prop::sample::select(vec![
            "<a>", "</a>", "<a/>", "<p:a xmlns:p='u'>", "</p:a>", "<b xmlns='v' x='&lt;'>", "</b>", "&amp;", "&x;", "&#65;",
            "text", "<!--", "-->", "<![CDATA[", "]]>", "<?xml version='1.0'?>", "<?p", "?>", "<!DOCTYPE a>", " ", "\r\n", "é",
            "\"", "'", "=", "<", ">", "/", "xmlns:p='w'", "&#0;", "\u{ffff}",
        ]), 0..24)
    ) {
        check_rewrite(pieces.concat().as_bytes())?;
    }
}

fn check_rewrite(bytes: &[u8]) -> Result<(), TestCaseError> {
    if let Ok(tree) = Element::parse(bytes, &Limits::default()) {
        let document = tree.to_document();
        prop_assert_eq!(Element::parse(document.as_bytes(), &Limits::default()), Ok(tree));
        // An element that stands by itself means the same alone.
        let read = Document::parse(bytes, &Limits::default()).unwrap();
        let mut pending = vec![read.root()];
        while let Some(element) = pending.pop() {
            if let Some(source) = element.source() {
                let alone = Element::parse(source.as_bytes(), &Limits::default());
                prop_assert_eq!(alone, Ok(element.to_element(&Names::RELAY)));
            }
            pending.extend(element.children());
        }
    }
    Ok(())
}

/// Everything about a tree but the prefixes that it declares.
fn shape(element: &Element) -> String {
    let mut attributes: Vec<_> = element.attributes().iter().collect();
    attributes.sort_by_key(|a| (a.namespace.to_string(), a.name.to_string()));
    let nodes: Vec<String> = element
        .nodes()
        .iter()
        .map(|node| match node {
            Node::Element(element) => shape(element),
            Node::Text(text) => format!("{text:?}"),
        })
        .collect();
    format!("{}:{}{attributes:?}{nodes:?}", element.namespace(), element.name())
}
