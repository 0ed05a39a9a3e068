//! The text frames of an app's channel. Data is in binary frames and has no form here.
//!
//! | element | way | is |
//! |---|---|---|
//! | `<credit from? bytes/>` | from device | from where, on the first one; how much it can take |
//! | the header: any element | to device | what the app is told before its data |
//! | `<end bytes sha256/>` | to device | that was all |
//! | `<progress bytes note?/>` | from device | how far the app is |
//! | `<done version?/>` · `<error code>words</error>` | from device | the end of the job |
//! | `<WebSocketControl id><AppName/><Status>close</Status></WebSocketControl>` | both | the channel is to be closed |

use super::{Form, Text, VocabularyError, job, required};
use crate::{
    app::{Digest, ToDevice, ToRelay},
    ids::{AppName, RequestId},
    xml::{Element, ns},
};

/// Appends what the device says as text.
pub fn write_to_relay(message: &ToRelay, id: &RequestId, app: &AppName, out: &mut String) {
    let mut form = Text::new(out);
    match message {
        ToRelay::Credit { from, bytes } => {
            form.start("credit");
            if let Some(from) = from {
                form.attribute("from", &from.to_string());
            }
            form.attribute("bytes", &bytes.to_string());
            form.end("credit");
        }
        ToRelay::Progress(progress) => job::describe_progress(None, progress, &mut form),
        ToRelay::Done { version } => {
            form.start("done");
            if let Some(version) = version {
                form.attribute("version", version);
            }
            form.end("done");
        }
        ToRelay::Error { status, words } => {
            form.start("error");
            form.attribute("code", status.as_str());
            form.text(words);
            form.end("error");
        }
        ToRelay::Close => job::describe_close(id, app, &mut form),
    }
}

/// Appends what the relay says as text; `false` if it is data, which goes as it is.
pub fn write_to_device(message: &ToDevice, id: &RequestId, app: &AppName, out: &mut String) -> bool {
    match message {
        ToDevice::Header(header) => out.push_str(header),
        ToDevice::Data(_) => return false,
        ToDevice::End(digest) => {
            Text::new(out).empty("end", &[("bytes", &digest.bytes.to_string()), ("sha256", &digest.hex())]);
        }
        ToDevice::Close => job::describe_close(id, app, &mut Text::new(out)),
    }
    true
}

/// Reads what the device said in a text frame; `None` for an element of ours that this version does not know.
///
/// # Errors
/// [`VocabularyError`]: the channel cannot go on.
pub fn decode_to_relay(element: &Element) -> Result<Option<ToRelay>, VocabularyError> {
    if *element.namespace() != ns::RELAY {
        return Err(VocabularyError::Namespace);
    }
    Ok(Some(match element.name() {
        "credit" => ToRelay::Credit {
            from: element.attr("from").map(|from| number(from, "credit", "from")).transpose()?,
            bytes: number(required(element, "credit", "bytes")?, "credit", "bytes")?,
        },
        "progress" => ToRelay::Progress(job::decode_progress(element)?),
        "done" => ToRelay::Done { version: job::decode_version(element).map(Into::into) },
        "error" => {
            let (status, words) = job::decode_error(element)?;
            ToRelay::Error { status, words }
        }
        "WebSocketControl" if closes(element) => ToRelay::Close,
        _ => return Ok(None),
    }))
}

/// Reads what the relay said in a text frame; `first`: it is the first one, the header. `None` for an element of ours
/// that this version does not know.
///
/// # Errors
/// [`VocabularyError`]: the channel cannot go on.
pub fn decode_to_device(element: &Element, first: bool) -> Result<Option<ToDevice>, VocabularyError> {
    if first && !(element.is(ns::RELAY, "WebSocketControl") && closes(element)) {
        return Ok(Some(ToDevice::Header(element.to_document().into_boxed_str())));
    }
    if *element.namespace() != ns::RELAY {
        return Err(VocabularyError::Namespace);
    }
    Ok(Some(match element.name() {
        "end" => {
            let invalid = VocabularyError::InvalidValue { element: "end", attribute: "sha256" };
            let hex = required(element, "end", "sha256")?.to_ascii_lowercase();
            let bytes = data_encoding::HEXLOWER.decode(hex.as_bytes()).map_err(|_| invalid.clone())?;
            ToDevice::End(Digest {
                bytes: number(required(element, "end", "bytes")?, "end", "bytes")?,
                sha256: bytes.try_into().map_err(|_| invalid)?,
            })
        }
        "WebSocketControl" if closes(element) => ToDevice::Close,
        _ => return Ok(None),
    }))
}

fn closes(control: &Element) -> bool {
    control.children().any(|child| child.name() == "Status" && child.text().trim() == "close")
}

fn number(text: &str, element: &'static str, attribute: &'static str) -> Result<u64, VocabularyError> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let number = text.parse().ok().filter(|_| digits);
    number.ok_or(VocabularyError::InvalidValue { element, attribute })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{app::Progress, request::Status, xml::Limits};

    fn names() -> (RequestId, AppName) {
        (RequestId::new("r1").unwrap(), AppName::new("print").unwrap())
    }

    #[test]
    fn what_a_device_says_on_a_channel_comes_back_the_same() {
        let (id, app) = names();
        for message in [
            ToRelay::Credit { from: Some(7), bytes: 65_536 },
            ToRelay::Credit { from: None, bytes: u64::MAX },
            ToRelay::Progress(Progress::new(12).with_note("page 'one' & two")),
            ToRelay::Done { version: None },
            ToRelay::Done { version: Some("7".into()) },
            ToRelay::Error { status: Status::DeviceError, words: "paper jam".into() },
            ToRelay::Close,
        ] {
            let mut text = String::new();
            write_to_relay(&message, &id, &app, &mut text);
            let element = Element::parse(text.as_bytes(), &Limits::default()).unwrap();
            assert_eq!(decode_to_relay(&element).unwrap(), Some(message), "{text}");
        }
    }

    #[test]
    fn what_the_relay_says_on_a_channel_comes_back_the_same() {
        let (id, app) = names();
        let header = ToDevice::Header("<PrintJobRequest><Job/></PrintJobRequest>".into());
        for (message, first) in [
            (header, true),
            (ToDevice::End(Digest::of(b"abc")), false),
            (ToDevice::Close, false),
            (ToDevice::Close, true),
        ] {
            let mut text = String::new();
            assert!(write_to_device(&message, &id, &app, &mut text));
            let element = Element::parse(text.as_bytes(), &Limits::default()).unwrap();
            assert_eq!(decode_to_device(&element, first).unwrap(), Some(message), "{text}");
        }
        assert!(!write_to_device(
            &ToDevice::Data(bytes::Bytes::from_static(b"x")),
            &id,
            &app,
            &mut String::new()
        ));
    }

    #[test]
    fn t30_what_is_no_frame_of_a_channel_is_an_error_or_passed_over() {
        let read =
            |text: &str| decode_to_relay(&Element::parse(text.as_bytes(), &Limits::default()).unwrap());
        assert!(read("<credit bytes='1'/>").is_err());
        for bad in [
            "<credit xmlns='urn:relay:1'/>",
            "<credit xmlns='urn:relay:1' bytes='-1'/>",
            "<credit xmlns='urn:relay:1' bytes='+1'/>",
        ] {
            assert!(read(bad).is_err(), "{bad}");
        }
        assert_eq!(read("<wave xmlns='urn:relay:1'/>").unwrap(), None);
    }
}
