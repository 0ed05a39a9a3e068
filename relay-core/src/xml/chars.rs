//! Characters, names and references, as XML 1.0 (fifth edition) has them.

/// Whether XML 1.0 allows `c` at all (§2.2).
pub(super) const fn is_xml(c: char) -> bool {
    matches!(c, '\t' | '\n' | '\r' | '\u{20}'..='\u{d7ff}' | '\u{e000}'..='\u{fffd}' | '\u{10000}'..)
}

/// Where the first character stands that XML does not allow.
pub(super) fn first_not_xml(text: &str) -> Option<usize> {
    let bytes = text.as_bytes();
    let mut i = 0;
    while let Some(&byte) = bytes.get(i) {
        let control = byte < 0x20 && !matches!(byte, b'\t' | b'\n' | b'\r');
        // U+FFFE and U+FFFF are EF BF BE and EF BF BF.
        let noncharacter = byte == 0xef && matches!(bytes.get(i + 1..i + 3), Some([0xbf, 0xbe | 0xbf]));
        if control || noncharacter {
            return Some(i);
        }
        i += 1;
    }
    None
}

/// Whether `text` is white space alone (§2.3).
pub(super) fn is_blank(text: &str) -> bool {
    text.bytes().all(|b| matches!(b, b' ' | b'\t' | b'\n' | b'\r'))
}

const fn starts_name(c: char) -> bool {
    matches!(c,
        'A'..='Z' | 'a'..='z' | '_' | '\u{c0}'..='\u{d6}' | '\u{d8}'..='\u{f6}' | '\u{f8}'..='\u{2ff}'
        | '\u{370}'..='\u{37d}' | '\u{37f}'..='\u{1fff}' | '\u{200c}' | '\u{200d}' | '\u{2070}'..='\u{218f}'
        | '\u{2c00}'..='\u{2fef}' | '\u{3001}'..='\u{d7ff}' | '\u{f900}'..='\u{fdcf}' | '\u{fdf0}'..='\u{fffd}'
        | '\u{10000}'..='\u{effff}')
}

const fn continues_name(c: char) -> bool {
    starts_name(c)
        || matches!(c, '-' | '.' | '0'..='9' | '\u{b7}' | '\u{300}'..='\u{36f}' | '\u{203f}' | '\u{2040}')
}

/// Whether `name` is a name without colons (XML Namespaces §3).
pub(super) fn is_local_name(name: &str) -> bool {
    let mut chars = name.chars();
    chars.next().is_some_and(starts_name) && chars.all(continues_name)
}

/// What the reference `&name;` stands for.
pub(super) enum Reference {
    Char(char),
    /// A character reference to what is no character of XML.
    NotXml,
    /// Any other entity.
    Entity,
}

/// Resolves the reference written `&name;`.
pub(super) fn resolve(name: &str) -> Reference {
    let predefined = match name {
        "amp" => '&',
        "lt" => '<',
        "gt" => '>',
        "apos" => '\'',
        "quot" => '"',
        _ => {
            let Some(number) = name.strip_prefix('#') else { return Reference::Entity };
            let (digits, radix) =
                number.strip_prefix('x').map_or((number, 10), |hexadecimal| (hexadecimal, 16));
            // `from_str_radix` takes a sign, XML does not.
            let code = if digits.starts_with('+') { None } else { u32::from_str_radix(digits, radix).ok() };
            return match code.and_then(char::from_u32) {
                Some(c) if is_xml(c) => Reference::Char(c),
                _ => Reference::NotXml,
            };
        }
    };
    Reference::Char(predefined)
}

/// Words of the protocols that need no allocation when they come as a name.
pub(super) fn known_name(name: &str) -> Option<&'static str> {
    macro_rules! known {
        ($($word:literal)*) => { match name { $($word => Some($word),)* _ => None } };
    }
    known!("body" "id" "type" "request" "response" "object" "iq" "message" "from" "to" "method" "wait" "status" "xmlns"
        "rid" "sid" "ack" "outcome" "encoding" "received" "cancel" "lang" "device" "error" "presence" "ping" "pong"
        "condition" "traceparent" "length" "href" "auth" "mechanism" "challenge" "success" "failure" "bind" "jid"
        "resource" "restart" "version" "hold" "requests" "inactivity" "polling" "ver" "features" "mechanisms" "drain"
        "resume" "session" "code" "maxpause" "pause" "key" "newkey" "content" "secure")
}
