//! What the devices read of XML: enough to answer, far less than a parser.

/// The value of the first attribute `name` in `xml`.
pub(crate) fn attribute<'a>(xml: &'a str, name: &str) -> Option<&'a str> {
    let mut rest = xml;
    loop {
        let at = rest.find(name)?;
        let before = rest[..at].chars().next_back();
        rest = &rest[at + name.len()..];
        if before.is_some_and(char::is_whitespace)
            && let Some(value) = rest.strip_prefix('=')
        {
            let quote = value.chars().next().filter(|quote| matches!(quote, '\'' | '"'))?;
            return value[1..].split(quote).next();
        }
    }
}

/// The text of the first element `name` in `xml`.
pub(crate) fn text<'a>(xml: &'a str, name: &str) -> Option<&'a str> {
    let begin = xml.find(&format!("<{name}"))?;
    let rest = &xml[begin..];
    let rest = &rest[rest.find('>')? + 1..];
    Some(&rest[..rest.find('<')?])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_found_by_whole_name_in_either_quote() {
        let xml = r#"<body grid='1' id="a" sid='b'><iq id='c'/></body>"#;
        assert_eq!(attribute(xml, "id"), Some("a"));
        assert_eq!(attribute(xml, "sid"), Some("b"));
        assert_eq!(attribute(xml, "rid"), None);
    }

    #[test]
    fn text_is_that_of_the_first_element_of_the_name() {
        assert_eq!(
            text("<request id='a'><object>n/1</object><object>n/2</object></request>", "object"),
            Some("n/1")
        );
        assert_eq!(text("<request id='a'/>", "object"), None);
    }
}
