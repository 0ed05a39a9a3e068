//! The control session's vocabulary: one element of `urn:relay:1` a text message.

use std::time::Instant;

use relay_core::{
    envelope::Envelope,
    ids::{DeviceId, RequestId},
    request::{Response, Status},
    xml::{
        Element, Limits, ns,
        vocabulary::{self, Decoded, VocabularyError},
    },
};

use super::close;
use crate::proto::frame::Fault;

/// Room for most elements, so that writing one does not grow it step by step.
const ROOM: usize = 512;

/// What a text message turned out to be.
#[derive(Debug, PartialEq, Eq)]
pub enum Read {
    /// An envelope.
    Envelope(Envelope),
    /// Something to pass over: an element that this version does not know, or that means nothing from this side, or one
    /// that cannot be read. The session goes on.
    Ignored(Ignored),
}

/// Why an element was passed over.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Ignored {
    /// This version does not know it.
    #[error("an element that is not known here")]
    Unknown,
    /// It is for the other end to hear.
    #[error("an element that means nothing from this side")]
    WrongSide,
    /// It is known and cannot be read.
    #[error("an element that cannot be read: {0}")]
    Unreadable(VocabularyError),
}

/// `envelope` as text, for the session of `device`. `None` if it cannot travel at all, which is logged.
pub fn encode(envelope: &Envelope, device: &DeviceId, now: Instant) -> Option<String> {
    let mut text = String::with_capacity(ROOM);
    let Err(error) = vocabulary::write_with_channels(envelope, device, now, &mut text) else {
        return Some(text);
    };
    tracing::warn!(%device, %error, "an envelope cannot be written");
    let Envelope::Response { id, .. } = envelope else { return None };
    // The caller learns that there is an answer, and why it does not get it.
    let refusal = too_large(id, &error);
    text.clear();
    vocabulary::write(&refusal, device, now, &mut text).is_ok().then_some(text)
}

fn too_large(id: &RequestId, error: &VocabularyError) -> Envelope {
    let status = Status::parse("too-large").unwrap_or(Status::DeviceError);
    Envelope::Response {
        id: id.clone(),
        response: Response::error(status, error.to_string()),
        acknowledge: true,
    }
}

/// Reads a text message: from the device if `at_relay`, else from the relay.
///
/// # Errors
/// [`Fault`] for what is not one element of the vocabulary's namespace.
pub fn decode(
    message: &[u8],
    limits: &Limits,
    device: &DeviceId,
    at_relay: bool,
    now: Instant,
) -> Result<Read, Fault> {
    let element = Element::parse(message, limits).map_err(|error| {
        tracing::debug!(%device, %error, "a message that is not one element");
        Fault::new(close::INVALID, "a message is not one XML element")
    })?;
    if *element.namespace() != ns::RELAY {
        return Err(Fault::new(close::POLICY, "an element is not in the namespace urn:relay:1"));
    }
    Ok(match vocabulary::decode(&element, device, now) {
        Ok(Decoded::Envelope(envelope)) if is_for(&envelope, at_relay) => Read::Envelope(envelope),
        Ok(Decoded::Envelope(_)) => Read::Ignored(Ignored::WrongSide),
        Ok(_) => Read::Ignored(Ignored::Unknown),
        Err(error) => Read::Ignored(Ignored::Unreadable(error)),
    })
}

const fn is_for(envelope: &Envelope, relay: bool) -> bool {
    match envelope {
        Envelope::Ping | Envelope::Pong | Envelope::Close { .. } => true,
        Envelope::Response { .. } | Envelope::Received { .. } | Envelope::Progress { .. } => relay,
        Envelope::Request { .. }
        | Envelope::Ack { .. }
        | Envelope::Cancel { .. }
        | Envelope::Drain { .. } => !relay,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(message: &str, at_relay: bool) -> Result<Read, Fault> {
        let device = DeviceId::new("printer-1").unwrap();
        let now = tokio::time::Instant::now().into_std();
        decode(message.as_bytes(), &Limits::default(), &device, at_relay, now)
    }

    #[test]
    fn t30_what_is_not_one_element_is_not_taken() {
        for not_one in
            ["", "hello", "<ping", "<a/><b/>", "<ping xmlns='urn:relay:1'/>x", "<!DOCTYPE a><a/>", "<!-- -->"]
        {
            assert_eq!(read(not_one, true).unwrap_err().code, close::INVALID, "{not_one:?}");
        }
        for foreign in ["<ping/>", "<ping xmlns='urn:relay:2'/>"] {
            assert_eq!(read(foreign, true).unwrap_err().code, close::POLICY, "{foreign:?}");
        }
    }

    #[test]
    fn t30_what_is_not_known_or_not_for_this_side_is_passed_over() {
        let ignored = |message: &str, at_relay| match read(message, at_relay) {
            Ok(Read::Ignored(why)) => why,
            other => panic!("{message}: {other:?}"),
        };
        assert_eq!(ignored("<frobnicate xmlns='urn:relay:1'/>", true), Ignored::Unknown);
        assert_eq!(ignored("<cancel xmlns='urn:relay:1' id='a'/>", true), Ignored::WrongSide);
        assert_eq!(ignored("<drain xmlns='urn:relay:1' retry-after='1'/>", true), Ignored::WrongSide);
        assert_eq!(ignored("<received xmlns='urn:relay:1' id='a'/>", false), Ignored::WrongSide);
        assert!(matches!(ignored("<response xmlns='urn:relay:1'/>", true), Ignored::Unreadable(_)));
    }

    #[test]
    fn both_sides_ping() {
        for at_relay in [true, false] {
            assert_eq!(read("<ping xmlns='urn:relay:1'/>", at_relay), Ok(Read::Envelope(Envelope::Ping)));
            assert_eq!(read("<r:pong xmlns:r='urn:relay:1'/>", at_relay), Ok(Read::Envelope(Envelope::Pong)));
        }
    }
}
