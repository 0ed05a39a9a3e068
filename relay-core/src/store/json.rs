//! JSON from strangers: bounded, strict, and with the place of what is wrong with it.

use std::{cell::RefCell, fmt};

use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// How much JSON is taken (B14).
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Limits {
    /// Bytes in all (64 KiB).
    pub size: usize,
    /// Arrays and objects inside each other (16).
    pub depth: usize,
    /// Characters in one string or member name (256).
    pub text: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { size: 64 * 1024, depth: 16, text: 256 }
    }
}

impl Limits {
    /// Takes strings of any length that fits into [`Limits::size`].
    #[must_use]
    pub const fn with_any_text(mut self) -> Self {
        self.text = usize::MAX;
        self
    }

    /// Takes `size` bytes in all.
    #[must_use]
    pub const fn with_size(mut self, size: usize) -> Self {
        self.size = size;
        self
    }
}

/// JSON that was not taken: where, and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {words}")]
#[non_exhaustive]
pub struct InvalidJson {
    /// The place as a JSON pointer (RFC 6901) below `body`, such as `body/apps/3/name`; at most 256 characters.
    pub place: String,
    /// What is wrong, for people.
    pub words: String,
}

impl InvalidJson {
    /// `words` about the value at `place`, a JSON pointer with or without its leading `/`.
    pub fn new(place: &str, words: impl Into<String>) -> Self {
        let place = place.trim_start_matches('/');
        let place = if place.is_empty() { "body".to_owned() } else { format!("body/{}", cut(place)) };
        Self { place, words: words.into() }
    }
}

/// At most 256 characters of `text`, without control characters: what an error may repeat of its cause (T43).
fn cut(text: &str) -> String {
    text.chars().take(256).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// Reads `bytes` as one JSON value within `limits`. An object that names a member twice is refused: two readers could
/// take it for two different things.
///
/// # Errors
/// [`InvalidJson`] with the place.
pub fn parse(bytes: &[u8], limits: &Limits) -> Result<Value, InvalidJson> {
    if bytes.len() > limits.size {
        return Err(InvalidJson::new("", format!("has {} bytes, {} are allowed", bytes.len(), limits.size)));
    }
    let path = RefCell::new(Vec::new());
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let value = Strict { limits, depth: 0, path: &path }
        .deserialize(&mut deserializer)
        .and_then(|value| deserializer.end().map(|()| value));
    value.map_err(|error| {
        let place = path
            .take()
            .iter()
            .map(|step: &String| step.replace('~', "~0").replace('/', "~1"))
            .collect::<Vec<_>>();
        InvalidJson::new(&place.join("/"), cut(&error.to_string()))
    })
}

/// Builds a [`Value`], remembering where it is: on an error the path stays as it was at that moment.
#[derive(Clone, Copy)]
struct Strict<'a> {
    limits: &'a Limits,
    depth: usize,
    path: &'a RefCell<Vec<String>>,
}

impl Strict<'_> {
    fn deeper<E: serde::de::Error>(self) -> Result<Self, E> {
        if self.depth >= self.limits.depth {
            return Err(E::custom(format_args!(
                "more than {} arrays and objects inside each other",
                self.limits.depth
            )));
        }
        Ok(Self { depth: self.depth + 1, ..self })
    }

    fn text<E: serde::de::Error>(self, text: &str) -> Result<(), E> {
        // Bytes first: counting characters is only needed beyond them.
        if text.len() > self.limits.text && text.chars().count() > self.limits.text {
            return Err(E::custom(format_args!(
                "a string of {} characters, {} are allowed",
                text.chars().count(),
                self.limits.text
            )));
        }
        Ok(())
    }
}

impl<'de> DeserializeSeed<'de> for Strict<'_> {
    type Value = Value;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom("a number out of range"))
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Value, E> {
        self.text(text)?;
        Ok(Value::String(text.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Value, A::Error> {
        let inner = self.deeper()?;
        let mut values = Vec::new();
        loop {
            self.path.borrow_mut().push(values.len().to_string());
            match sequence.next_element_seed(inner)? {
                Some(value) => values.push(value),
                None => break,
            }
            self.path.borrow_mut().pop();
        }
        self.path.borrow_mut().pop();
        Ok(Value::Array(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let inner = self.deeper()?;
        let mut members = Map::new();
        while let Some(name) = map.next_key::<String>()? {
            self.text(&name)?;
            self.path.borrow_mut().push(name.clone());
            if members.contains_key(&name) {
                return Err(A::Error::custom("is there twice"));
            }
            let value = map.next_value_seed(inner)?;
            members.insert(name, value);
            self.path.borrow_mut().pop();
        }
        Ok(Value::Object(members))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn b14_json_has_a_size_a_depth_and_a_longest_string() {
        let limits = Limits::default();
        let deep = |depth: usize| "[".repeat(depth) + &"]".repeat(depth);
        assert!(parse(deep(16).as_bytes(), &limits).is_ok());
        assert_eq!(
            parse(deep(17).as_bytes(), &limits).unwrap_err().place,
            format!("body{}", "/0".repeat(16))
        );
        // Far beyond any stack: refused at the 17th, not followed.
        assert!(parse("[".repeat(60_000).as_bytes(), &limits).is_err());
        assert!(parse(format!("\"{}\"", "ä".repeat(256)).as_bytes(), &limits).is_ok());
        let long = format!("{{\"a/b\":[1,\"{}\"]}}", "ä".repeat(257));
        assert_eq!(parse(long.as_bytes(), &limits).unwrap_err().place, "body/a~1b/1");
        assert!(
            parse(" ".repeat(64 * 1024 + 1).as_bytes(), &limits).unwrap_err().words.contains("65537 bytes")
        );
    }

    #[test]
    fn t35_twice_the_same_member_lone_surrogates_and_endless_numbers_are_refused_with_their_place() {
        let limits = Limits::default();
        for (bad, place) in [
            ("{\"a\":{\"b\":1,\"b\":2}}", "body/a/b"),
            ("{\"a\":\"\\ud800\"}", "body/a"),
            ("{\"a\":1e400}", "body/a"),
            ("[1,2,nul]", "body/2"),
            ("{} {}", "body"),
            ("", "body"),
        ] {
            assert_eq!(parse(bad.as_bytes(), &limits).unwrap_err().place, place, "{bad}");
        }
        assert!(parse(b"\"\xff\"", &limits).is_err());
    }
}
