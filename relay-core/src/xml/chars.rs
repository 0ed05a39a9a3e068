//! Characters, names and references, as XML 1.0 (fifth edition) has them.

/// Whether XML 1.0 allows `c` at all (§2.2).
pub(super) const fn is_xml(c: char) -> bool {
    matches!(c, '\t' | '\n' | '\r' | '\u{20}'..='\u{d7ff}' | '\u{e000}'..='\u{fffd}' | '\u{10000}'..)
}

/// Whether any of `bytes` is in question. Without an early exit, so that it runs on many bytes at a time.
fn any(bytes: &[u8], question: impl Fn(u8) -> bool) -> bool {
    bytes.chunks(64).any(|chunk| chunk.iter().fold(false, |found, byte| found | question(*byte)))
}

/// Where the first character stands that XML does not allow.
pub(super) fn first_not_xml(text: &str) -> Option<usize> {
    let bytes = text.as_bytes();
    if !any(bytes, |byte| byte < 0x20 || byte == 0xef) {
        return None;
    }
    bytes.iter().enumerate().position(|(i, &byte)| {
        let control = byte < 0x20 && !matches!(byte, b'\t' | b'\n' | b'\r');
        // U+FFFE and U+FFFF are EF BF BE and EF BF BF.
        let noncharacter = byte == 0xef && matches!(bytes.get(i + 1..i + 3), Some([0xbf, 0xbe | 0xbf]));
        control || noncharacter
    })
}

/// Whether an attribute's value is more than it seems: references, `<`, white space to be made blanks.
pub(super) fn needs_normalising(value: &str) -> bool {
    any(value.as_bytes(), |byte| matches!(byte, b'&' | b'<' | b'\t' | b'\n' | b'\r'))
}

/// Whether `text` can be written as it is, in text and between single quotes.
pub(super) fn is_plain(text: &str) -> bool {
    // U+FFFE and U+FFFF begin with EF.
    !any(text.as_bytes(), |byte| byte < 0x20 || matches!(byte, b'&' | b'<' | b'>' | b'\'' | 0xef))
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

/// Which bytes a name of ASCII alone may have, the colon apart.
const ASCII_NAME: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0u8;
    while byte < 128 {
        table[byte as usize] = byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.');
        byte += 1;
    }
    table
};

/// Whether `name` is a name without colons (XML Namespaces §3), and of ASCII alone, as nearly all are.
pub(super) fn is_ascii_local_name(name: &str) -> bool {
    let bytes = name.as_bytes();
    bytes.first().is_some_and(|first| first.is_ascii_alphabetic() || *first == b'_')
        && bytes.iter().all(|byte| ASCII_NAME[usize::from(*byte)])
}

/// Whether `name` is a name without colons (XML Namespaces §3).
pub(super) fn is_local_name(name: &str) -> bool {
    let mut chars = name.chars();
    is_ascii_local_name(name) || (chars.next().is_some_and(starts_name) && chars.all(continues_name))
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

/// `text` as a number, if it has at most eight bytes: different for different texts of one length.
pub(super) fn packed(text: &str) -> Option<u64> {
    let bytes = text.as_bytes();
    (bytes.len() <= 8).then(|| bytes.iter().fold(0, |number, byte| number << 8 | u64::from(*byte)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_that_xml_lacks_are_found_wherever_they_stand() {
        for at in [0, 1, 63, 64, 65, 200] {
            for bad in ["\0", "\u{1f}", "\u{fffe}", "\u{ffff}"] {
                let text = format!("{}\u{fffd}\n{bad}x", "x".repeat(at));
                assert_eq!(first_not_xml(&text), Some(at + 4));
            }
        }
        assert_eq!(first_not_xml("\t\r\n\u{fffd}\u{feff}\u{10ffff}"), None);
    }

    #[test]
    fn names_have_an_alphabet() {
        for good in ["a", "_", "a-b.c_1", "é", "日本", "a\u{b7}"] {
            assert!(is_local_name(good), "{good:?}");
        }
        for bad in ["", "-a", ".a", "1a", "a:b", "a b", "a\u{d7}", "\u{b7}", "a/", "a'"] {
            assert!(!is_local_name(bad), "{bad:?}");
        }
    }
}
