//! The opening handshake (RFC 6455 §4): what a relay asks of a head, and what a device asks of the answer.

use base64::{Engine as _, prelude::BASE64_STANDARD as BASE64};
use http::{HeaderMap, HeaderName, Method, StatusCode, Version, header, request, response};
use relay_core::{
    auth::Secret,
    ids::{RequestId, SessionId},
};
use sha1::{Digest, Sha1};

/// The subprotocol of control sessions.
pub const CONTROL: &str = "control";
/// The one version of the protocol.
pub const VERSION: &str = "13";
/// The header field that names a session.
pub const RELAY_SESSION: HeaderName = HeaderName::from_static("relay-session");

/// The answer to a `Sec-WebSocket-Key` (RFC 6455 §4.2.2).
pub fn accept(key: &str) -> String {
    let mut hash = Sha1::new();
    hash.update(key.as_bytes());
    hash.update(b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    BASE64.encode(hash.finalize())
}

/// Why a head opens no WebSocket here. Nothing was asked of anybody yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HeadError {
    /// It asks for no WebSocket.
    #[error("this is a WebSocket endpoint: the request asks for no upgrade to websocket")]
    NoUpgrade,
    /// It asks for another version.
    #[error("the WebSocket version is not 13")]
    Version,
    /// It is not as RFC 6455 wants it.
    #[error("{0}")]
    Malformed(&'static str),
    /// It offers no subprotocol that is served here.
    #[error("none of the subprotocols offered is served here; control is")]
    Subprotocol,
    /// It is for a channel, and offers no subprotocol.
    #[error("a channel is opened with the subprotocol of its app, and none was offered")]
    NoSubprotocol,
    /// It has no bearer token.
    #[error("a WebSocket to the relay needs Authorization: Bearer and the device's token")]
    NoToken,
}

/// What every upgrade request says.
struct Upgrade<'h> {
    accept: String,
    token: Secret,
    /// The subprotocols that it offers.
    offered: Vec<&'h str>,
}

impl<'h> Upgrade<'h> {
    /// `judge` says whether a subprotocol that will do is among those offered.
    fn read(
        head: &'h request::Parts,
        judge: impl FnOnce(&[&'h str]) -> Result<(), HeadError>,
    ) -> Result<Self, HeadError> {
        let headers = &head.headers;
        if head.method != Method::GET || head.version != Version::HTTP_11 {
            return Err(HeadError::Malformed("a WebSocket opens with GET and HTTP/1.1"));
        }
        if !has_token(headers, &header::UPGRADE, "websocket")
            || !has_token(headers, &header::CONNECTION, "upgrade")
        {
            return Err(HeadError::NoUpgrade);
        }
        match only(headers, &header::SEC_WEBSOCKET_VERSION) {
            Some(VERSION) => {}
            _ => return Err(HeadError::Version),
        }
        let body = headers.contains_key(header::TRANSFER_ENCODING)
            || only(headers, &header::CONTENT_LENGTH).is_some_and(|length| length != "0");
        if body {
            return Err(HeadError::Malformed("a request that opens a WebSocket has no body"));
        }
        let key = only(headers, &header::SEC_WEBSOCKET_KEY)
            .filter(|key| BASE64.decode(key).is_ok_and(|bytes| bytes.len() == 16))
            .ok_or(HeadError::Malformed("Sec-WebSocket-Key is not one of 16 bytes in base64"))?;
        // RFC 6455 §11.3.4: the field may be there more than once, which is one list.
        let offered: Vec<_> = list(headers, &header::SEC_WEBSOCKET_PROTOCOL).collect();
        if !offered.iter().copied().all(is_token) {
            return Err(HeadError::Malformed("Sec-WebSocket-Protocol is not a list of names"));
        }
        judge(&offered)?;
        let token = only(headers, &header::AUTHORIZATION)
            .and_then(|value| value.split_once(' '))
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
            .map(|(_, token)| Secret::new(token.trim()))
            .ok_or(HeadError::NoToken)?;
        Ok(Self { accept: accept(key), token, offered })
    }
}

/// What a head that opens a control session says.
#[derive(Debug)]
pub struct Head {
    /// The answer to its key.
    pub accept: String,
    /// Who it says it is.
    pub token: Secret,
    /// The session that it wants to go on with.
    pub resume: Option<SessionId>,
}

impl Head {
    /// Reads the head of an upgrade request.
    ///
    /// `Origin` is not looked at: who shows a bearer token is no page of a browser, which cannot set one (RFC 6455 §10.2
    /// is about credentials that a browser adds by itself).
    ///
    /// # Errors
    /// [`HeadError`]: the first rule that it breaks.
    pub fn read(head: &request::Parts) -> Result<Self, HeadError> {
        let control = |offered: &[&str]| {
            if offered.contains(&CONTROL) { Ok(()) } else { Err(HeadError::Subprotocol) }
        };
        let Upgrade { accept, token, .. } = Upgrade::read(head, control)?;
        // What cannot be a session's ID is the ID of no session: the device gets a new one.
        let resume = only(&head.headers, &RELAY_SESSION).and_then(|id| SessionId::new(id).ok());
        Ok(Self { accept, token, resume })
    }
}

/// What a head that opens the channel of a job says.
#[derive(Debug)]
pub struct ChannelHead {
    /// The answer to its key.
    pub accept: String,
    /// Who it says it is.
    pub token: Secret,
    /// The job; `None` for what is the ID of none.
    pub job: Option<RequestId>,
    /// The subprotocols that it offers: one at least.
    pub protocols: Vec<Box<str>>,
}

impl ChannelHead {
    /// Reads the head of an upgrade request. As with [`Head::read`], `Origin` is not looked at.
    ///
    /// # Errors
    /// [`HeadError`]: the first rule that it breaks.
    pub fn read(head: &request::Parts) -> Result<Self, HeadError> {
        let some = |offered: &[&str]| if offered.is_empty() { Err(HeadError::NoSubprotocol) } else { Ok(()) };
        let Upgrade { accept, token, offered } = Upgrade::read(head, some)?;
        let query = head.uri.query().unwrap_or("");
        let job = query
            .split('&')
            .find_map(|pair| pair.strip_prefix("id="))
            .ok_or(HeadError::Malformed("a channel is opened with ?id= and the job's ID"))?;
        let protocols = offered.into_iter().map(Into::into).collect();
        Ok(Self { accept, token, job: RequestId::new(job).ok(), protocols })
    }
}

/// Why an answer with status 101 opens no WebSocket of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct AnswerError(pub &'static str);

/// Reads a 101 to a request that had the key `key` and asked for a control session: the session's ID.
///
/// # Errors
/// [`AnswerError`]: the first rule that it breaks.
pub fn read_answer(answer: &response::Parts, key: &str) -> Result<SessionId, AnswerError> {
    check_answer(answer, key, CONTROL)?;
    only(&answer.headers, &RELAY_SESSION)
        .and_then(|id| SessionId::new(id).ok())
        .ok_or(AnswerError("the answer names no session"))
}

/// Checks a 101 to a request that had the key `key` and offered `protocol` alone.
///
/// # Errors
/// [`AnswerError`]: the first rule that it breaks.
pub fn check_answer(answer: &response::Parts, key: &str, protocol: &str) -> Result<(), AnswerError> {
    let headers = &answer.headers;
    if answer.status != StatusCode::SWITCHING_PROTOCOLS || answer.version != Version::HTTP_11 {
        return Err(AnswerError("the answer is not 101 in HTTP/1.1"));
    }
    if !has_token(headers, &header::UPGRADE, "websocket")
        || !has_token(headers, &header::CONNECTION, "upgrade")
    {
        return Err(AnswerError("the answer upgrades to something other than websocket"));
    }
    if only(headers, &header::SEC_WEBSOCKET_ACCEPT) != Some(accept(key).as_str()) {
        return Err(AnswerError("Sec-WebSocket-Accept is not the answer to the key"));
    }
    // RFC 6455 §4.1: neither an extension nor a subprotocol that was not offered.
    if list(headers, &header::SEC_WEBSOCKET_EXTENSIONS).next().is_some() {
        return Err(AnswerError("the answer has an extension, and none was offered"));
    }
    if only(headers, &header::SEC_WEBSOCKET_PROTOCOL) != Some(protocol) {
        return Err(AnswerError("the answer's subprotocol is not the one that was offered"));
    }
    Ok(())
}

/// The value of a field that is there once, and plain text.
fn only<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Option<&'h str> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?;
    if values.next().is_some() {
        return None;
    }
    value.to_str().ok().map(str::trim)
}

/// The members of a list field, over all its lines.
fn list<'h>(headers: &'h HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'h str> {
    let values = headers.get_all(name).into_iter();
    // What is no text is no name either.
    let texts = values.map(|value| value.to_str().unwrap_or("\u{0}"));
    texts.flat_map(|text| text.split(',')).map(str::trim).filter(|member| !member.is_empty())
}

fn has_token(headers: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    list(headers, name).any(|member| member.eq_ignore_ascii_case(token))
}

/// RFC 9110 §5.6.2.
pub(crate) fn is_token(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";

    fn request(change: impl FnOnce(&mut request::Parts)) -> Result<Head, HeadError> {
        let request = http::Request::get("/ws")
            .header("upgrade", "websocket")
            .header("connection", "Upgrade")
            .header("sec-websocket-version", "13")
            .header("sec-websocket-key", KEY)
            .header("sec-websocket-protocol", "control")
            .header("authorization", "Bearer secret");
        let (mut parts, ()) = request.body(()).unwrap().into_parts();
        change(&mut parts);
        Head::read(&parts)
    }

    fn set(name: &'static str, value: &'static str) -> impl FnOnce(&mut request::Parts) {
        move |parts| drop(parts.headers.insert(name, value.parse().unwrap()))
    }

    fn remove(name: &'static str) -> impl FnOnce(&mut request::Parts) {
        move |parts| drop(parts.headers.remove(name))
    }

    #[test]
    fn o5_the_key_of_the_rfc_has_the_answer_of_the_rfc() {
        assert_eq!(accept(KEY), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        assert_eq!(request(|_| ()).unwrap().accept, accept(KEY));
    }

    #[test]
    fn o5_tokens_have_no_case_and_connection_is_a_list() {
        for connection in ["upgrade", "keep-alive, Upgrade", "UPGRADE ,close"] {
            assert!(request(set("connection", connection)).is_ok(), "{connection}");
        }
        assert!(request(set("upgrade", "WebSocket")).is_ok());
        assert!(request(set("upgrade", "h2c, websocket")).is_ok());
    }

    #[test]
    fn o5_what_is_no_upgrade_is_refused() {
        for (change, error) in [
            (Box::new(remove("upgrade")) as Box<dyn FnOnce(&mut request::Parts)>, HeadError::NoUpgrade),
            (Box::new(set("upgrade", "websockets")), HeadError::NoUpgrade),
            (Box::new(remove("connection")), HeadError::NoUpgrade),
            (Box::new(set("connection", "keep-alive")), HeadError::NoUpgrade),
            (Box::new(remove("sec-websocket-version")), HeadError::Version),
            (Box::new(set("sec-websocket-version", "8")), HeadError::Version),
            (Box::new(set("sec-websocket-version", "13, 8")), HeadError::Version),
            (Box::new(remove("authorization")), HeadError::NoToken),
            (Box::new(set("authorization", "Basic c2VjcmV0")), HeadError::NoToken),
            (Box::new(remove("sec-websocket-protocol")), HeadError::Subprotocol),
        ] {
            assert_eq!(request(change).unwrap_err(), error);
        }
        let malformed = |change: Box<dyn FnOnce(&mut request::Parts)>| {
            assert!(matches!(request(change), Err(HeadError::Malformed(_))));
        };
        malformed(Box::new(remove("sec-websocket-key")));
        malformed(Box::new(set("sec-websocket-key", "c2hvcnQ=")));
        malformed(Box::new(set("sec-websocket-key", "not base64")));
        malformed(Box::new(|parts| {
            parts.headers.append("sec-websocket-key", KEY.parse().unwrap());
        }));
        malformed(Box::new(set("content-length", "1")));
        malformed(Box::new(set("transfer-encoding", "chunked")));
        malformed(Box::new(|parts| parts.method = Method::POST));
        malformed(Box::new(|parts| parts.version = Version::HTTP_10));
    }

    #[test]
    fn o3_the_subprotocol_is_chosen_from_all_lines_and_by_its_exact_name() {
        for offered in ["control", "v2.control, control", "print,control , x"] {
            assert!(request(set("sec-websocket-protocol", offered)).is_ok(), "{offered}");
        }
        let two_lines = |parts: &mut request::Parts| {
            parts.headers.insert("sec-websocket-protocol", "other".parse().unwrap());
            parts.headers.append("sec-websocket-protocol", "control".parse().unwrap());
        };
        assert!(request(two_lines).is_ok());
        for offered in ["Control", "controls", "other", ""] {
            let refused = request(set("sec-websocket-protocol", offered)).unwrap_err();
            assert_eq!(refused, HeadError::Subprotocol, "{offered}");
        }
        let refused = request(set("sec-websocket-protocol", "a b, control")).unwrap_err();
        assert!(matches!(refused, HeadError::Malformed(_)));
    }

    #[test]
    fn o7_an_origin_says_nothing_about_who_shows_a_token() {
        assert!(request(set("origin", "https://evil.example")).is_ok());
        assert_eq!(
            request(|parts| {
                remove("authorization")(parts);
                set("origin", "https://evil.example")(parts);
            })
            .unwrap_err(),
            HeadError::NoToken
        );
    }

    #[test]
    fn what_is_no_session_id_asks_for_a_new_session() {
        assert_eq!(request(set("relay-session", "abc")).unwrap().resume, SessionId::new("abc").ok());
        assert_eq!(request(set("relay-session", "a b")).unwrap().resume, None);
    }

    fn answer(change: impl FnOnce(&mut response::Parts)) -> Result<SessionId, AnswerError> {
        let response = http::Response::builder()
            .status(101)
            .header("upgrade", "websocket")
            .header("connection", "upgrade")
            .header("sec-websocket-accept", accept(KEY))
            .header("sec-websocket-protocol", "control")
            .header("relay-session", "abc");
        let (mut parts, ()) = response.body(()).unwrap().into_parts();
        change(&mut parts);
        read_answer(&parts, KEY)
    }

    #[test]
    fn o2_o6_an_answer_is_taken_only_if_it_is_what_was_asked_for() {
        assert!(answer(|_| ()).is_ok());
        let put = |name: &'static str, value: &'static str| {
            answer(move |parts| drop(parts.headers.insert(name, value.parse().unwrap())))
        };
        let without = |name: &'static str| answer(move |parts| drop(parts.headers.remove(name)));
        for name in
            ["upgrade", "connection", "sec-websocket-accept", "sec-websocket-protocol", "relay-session"]
        {
            assert!(without(name).is_err(), "without {name}");
        }
        for (name, value) in [
            ("upgrade", "h2c"),
            ("sec-websocket-accept", "s3pPLMBiTxaQ9kYGzzhZRbK+xOp="),
            ("sec-websocket-accept", "S3PPLMBITXAQ9KYGZZHZRBK+XOO="),
            ("sec-websocket-protocol", "Control"),
            ("sec-websocket-protocol", "control, control"),
            ("sec-websocket-protocol", "other"),
            ("sec-websocket-extensions", "permessage-deflate"),
            ("relay-session", "not an id"),
        ] {
            assert!(put(name, value).is_err(), "{name}: {value}");
        }
        assert!(answer(|parts| parts.version = Version::HTTP_10).is_err());
        assert!(answer(|parts| parts.status = StatusCode::OK).is_err());
    }
}
