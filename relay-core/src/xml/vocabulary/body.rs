//! `<body type='' encoding=''>`: bytes as text or base64, whichever holds them.

use base64::{
    Engine as _,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig, general_purpose::STANDARD},
};

use super::{VocabularyError, form::Form};
use crate::{
    envelope::MAX_INLINE_BODY,
    request::Body,
    xml::{Element, chars},
};

/// Reads base64 with and without padding.
const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

pub(super) fn describe(body: &Body, form: &mut impl Form) -> Result<(), VocabularyError> {
    if body.bytes.len() > MAX_INLINE_BODY {
        return Err(VocabularyError::BodyTooLarge { size: body.bytes.len(), max: MAX_INLINE_BODY });
    }
    form.start("body");
    form.attribute("type", body.content_type());
    match as_text(body) {
        Some(text) => form.text(text),
        None => {
            form.attribute("encoding", "base64");
            form.text(&STANDARD.encode(&body.bytes));
        }
    }
    form.end("body");
    Ok(())
}

pub(super) fn decode(element: &Element) -> Result<Body, VocabularyError> {
    if element.attr("href").is_some() {
        return Err(VocabularyError::BodyElsewhere);
    }
    if element.children().next().is_some() {
        return Err(VocabularyError::BodyMarkup);
    }
    let text = element.text();
    let (bytes, default_type) = match element.attr("encoding") {
        None | Some("") => (text.into_owned().into_bytes(), "text/plain; charset=utf-8"),
        Some("base64") => (decode_base64(&text)?, "application/octet-stream"),
        Some(_) => return Err(VocabularyError::UnknownEncoding),
    };
    if bytes.len() > MAX_INLINE_BODY {
        return Err(VocabularyError::BodyTooLarge { size: bytes.len(), max: MAX_INLINE_BODY });
    }
    Ok(Body::new(element.attr("type").unwrap_or(default_type), bytes))
}

fn decode_base64(text: &str) -> Result<Vec<u8>, VocabularyError> {
    let blank = |b: u8| matches!(b, b' ' | b'\t' | b'\n' | b'\r');
    let decoded = if text.bytes().any(blank) {
        LENIENT.decode(text.bytes().filter(|b| !blank(*b)).collect::<Vec<_>>())
    } else {
        LENIENT.decode(text)
    };
    decoded.map_err(|_| VocabularyError::InvalidBase64)
}

/// The body as text, if it may and should travel as such.
fn as_text(body: &Body) -> Option<&str> {
    if !is_textual(body.content_type()) {
        return None;
    }
    let text = std::str::from_utf8(&body.bytes).ok()?;
    if text.contains('\r') || chars::first_not_xml(text).is_some() {
        return None;
    }
    // Each of these takes four or five bytes: a body of them would outgrow what a session carries.
    let escaped = text.bytes().filter(|b| matches!(b, b'&' | b'<' | b'>')).count();
    (text.len() + escaped * 4 <= text.len().div_ceil(3) * 4 + 64).then_some(text)
}

/// Whether people would call the media type text.
fn is_textual(content_type: &str) -> bool {
    let media_type = content_type.split(';').next().unwrap_or("").trim().to_ascii_lowercase();
    media_type.starts_with("text/")
        || media_type.ends_with("+json")
        || media_type.ends_with("+xml")
        || matches!(
            &*media_type,
            "application/json" | "application/xml" | "application/x-www-form-urlencoded"
        )
}
