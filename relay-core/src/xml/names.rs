//! Names that are known before a document is read.

use super::{Namespace, ns};

/// What a reader expects to meet: the namespaces of its protocol, and the names of its elements and attributes. These
/// come in every document, and take no allocation then. Any other name is read all the same.
#[derive(Debug, Clone, Copy)]
pub struct Names {
    namespaces: &'static [&'static str],
    word: fn(&str) -> Option<&'static str>,
}

impl Names {
    /// Those of the relay's vocabulary.
    pub const RELAY: Self = Self::new(
        &[ns::RELAY, ns::XML],
        crate::xml_words!(
            "id",
            "to",
            "ack",
            "type",
            "body",
            "wait",
            "ping",
            "pong",
            "href",
            "code",
            "error",
            "drain",
            "object",
            "status",
            "method",
            "device",
            "cancel",
            "length",
            "resume",
            "request",
            "outcome",
            "session",
            "response",
            "encoding",
            "received",
            "presence",
            "traceparent"
        ),
    );

    /// `namespaces`, the most frequent first, and what `word` knows; [`xml_words!`](crate::xml_words) writes that.
    pub const fn new(namespaces: &'static [&'static str], word: fn(&str) -> Option<&'static str>) -> Self {
        Self { namespaces, word }
    }

    /// `name`, if it is known.
    pub fn word(&self, name: &str) -> Option<&'static str> {
        (self.word)(name)
    }

    pub(super) fn namespace(&self, name: &str) -> Namespace {
        match self.namespaces.iter().find(|known| known.len() == name.len() && **known == name) {
            Some(known) => Namespace::from(*known),
            None => Namespace::new(name),
        }
    }
}

/// A function that knows these words, for [`Names::new`](crate::xml::Names::new); `else NAMES` asks those for others.
#[macro_export]
macro_rules! xml_words {
    ($($word:literal),+ $(,)?) => {
        |name: &str| -> Option<&'static str> {
            match name {
                $($word => Some($word),)+
                _ => None,
            }
        }
    };
    ($($word:literal),+; else $names:expr) => {
        |name: &str| -> Option<&'static str> {
            match name {
                $($word => Some($word),)+
                _ => $names.word(name),
            }
        }
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_found_here_and_there() {
        const MORE: Names = Names::new(&[], crate::xml_words!("seldom"; else Names::RELAY));
        assert_eq!(MORE.word("seldom"), Some("seldom"));
        assert_eq!(MORE.word("request"), Some("request"));
        assert_eq!(Names::RELAY.word("seldom"), None);
        for unknown in ["", "a-name-of-somebody-else"] {
            assert_eq!(MORE.word(unknown), None);
        }
    }
}
