//! Requests to devices: what a service asks goes in, the device's answer comes out as the answer of that very call.

use std::{
    sync::{Arc, LazyLock},
    time::Duration,
};

use base64::{Engine, prelude::BASE64_STANDARD as BASE64};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, header};
use hyper::body::Incoming;
use relay_core::{
    Body, Call as RelayCall, Request, Response,
    auth::Principal,
    ids::{Method, ObjectId, RequestId},
    outcome::Outcome,
    request::Status,
    store::json::{InvalidJson, Limits, parse},
};
use serde_json::Value;
use tokio::time::Instant;

use super::{
    App, Call, RELAY_OUTCOME, RELAY_REQUEST_ID, access,
    body::{self, Reply, ReplyBody},
    expect_json, now,
    outcomes::Noted,
    problem::{Code, Problem, shown},
    route::{Query, Target},
    text_of,
};
use crate::relay::auth::Action;

const PREFER: HeaderName = HeaderName::from_static("prefer");
const PREFERENCE_APPLIED: HeaderName = HeaderName::from_static("preference-applied");
const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
/// The longest words of a device that are repeated in an error, in characters.
const MAX_WORDS: usize = 1024;

/// `GET …/objects/{object}`
pub(super) fn get(
    call: Call,
    target: Target,
    object: ObjectId,
) -> impl Future<Output = Result<Reply, Problem>> + Send {
    let asked = Asked::read(&call).and_then(Asked::of_object);
    let app = call.app.clone();
    drop(call);
    counted(app.clone(), async move {
        let Asked { principal, options, .. } = asked?;
        let device = access::resolve(&app, &principal, target, Action::Method(&Method::get())).await?;
        Ready::new(&app, &principal, options, Request::get(device, object))
    })
}

/// `PUT …/objects/{object}`
pub(super) fn set(
    call: Call,
    target: Target,
    object: ObjectId,
) -> impl Future<Output = Result<Reply, Problem>> + Send {
    let asked = Asked::read(&call).and_then(Asked::of_object);
    let (app, payload) = Payload::of(call);
    counted(app.clone(), async move {
        let Asked { principal, options, .. } = asked?;
        let device = access::resolve(&app, &principal, target, Action::Method(&Method::set())).await?;
        let (value, _) = payload?.read(&app).await?;
        Ready::new(&app, &principal, options, Request::set(device, object, value))
    })
}

/// `POST …/requests`: with a query that has a method, the HTTP body is the request's; without, it is JSON.
pub(super) fn request(call: Call, target: Target) -> impl Future<Output = Result<Reply, Problem>> + Send {
    let asked = Asked::read(&call).and_then(Asked::of_method);
    let json = expect_json(&call.parts.headers);
    let (app, payload) = Payload::of(call);
    counted(app.clone(), async move {
        let Asked { principal, options, method, objects } = asked?;
        let Some(method) = method else {
            json?;
            let written = Written::read(payload?.body, &app).await?;
            let device = access::resolve(&app, &principal, target, Action::Method(&written.method)).await?;
            return Ready::new(&app, &principal, options, written.of(device));
        };
        let device = access::resolve(&app, &principal, target, Action::Method(&method)).await?;
        let (body, told) = payload?.read(&app).await?;
        let mut request = Request::new(device, method);
        request.objects = objects;
        request.body = (told || !body.bytes.is_empty()).then_some(body);
        Ready::new(&app, &principal, options, request)
    })
}

/// What a call's head says. Read before anything is waited for, so that the head can go.
struct Asked {
    principal: Principal,
    options: Options,
    method: Option<Method>,
    objects: Vec<ObjectId>,
}

impl Asked {
    fn read(call: &Call) -> Result<Self, Problem> {
        let principal = access::service(call)?;
        let mut query = call.query()?;
        let options = Options::read(&call.parts.headers, &mut query)?;
        let method = query.take("method")?.map(|method| Method::new(&method)).transpose()?;
        let objects = query.take_all("object");
        let objects = objects.iter().map(|object| ObjectId::new(object)).collect::<Result<_, _>>()?;
        query.finish()?;
        Ok(Self { principal, options, method, objects })
    }

    /// Where the path says what is asked.
    fn of_object(self) -> Result<Self, Problem> {
        match (&self.method, self.objects.is_empty()) {
            (None, true) => Ok(self),
            _ => Err(Problem::bad("method and object are in the path; they mean nothing in the query here")),
        }
    }

    /// Where the query does, or the body.
    fn of_method(self) -> Result<Self, Problem> {
        match (&self.method, self.objects.is_empty()) {
            (None, false) => Err(Problem::bad("the query has objects but no method")),
            _ => Ok(self),
        }
    }
}

/// A call that was understood and may go.
struct Ready {
    call: RelayCall,
    /// The wait in force, if the caller named one.
    applied: Option<Duration>,
    ticket: Option<access::Ticket>,
    noted: Option<Box<Noted>>,
}

impl Ready {
    fn new(
        app: &Arc<App>,
        principal: &Principal,
        options: Options,
        mut request: Request,
    ) -> Result<Self, Problem> {
        let ticket = access::Ticket::take(app, principal)?;
        request.traceparent = options.traceparent;
        let noted = app.outcomes.note(principal, &request);
        let mut call = RelayCall::new(request);
        if let Some(wait) = options.wait {
            call = call.with_wait(wait);
        }
        let applied = options.wait.map(|_| call.wait);
        Ok(Self { call, applied, ticket, noted })
    }
}

/// Makes a call once it is understood, and counts how far it came.
fn counted(
    app: Arc<App>,
    understood: impl Future<Output = Result<Ready, Problem>> + Send,
) -> impl Future<Output = Result<Reply, Problem>> + Send {
    let mut count = Count { app, start: now(), outcome: None, noted: None };
    // In a box of its own, which is gone while the answer is awaited: that wait is to cost little.
    let understood = Box::pin(understood);
    async move {
        let result = match understood.await {
            Ok(Ready { call, applied, ticket, noted }) => {
                count.noted = noted;
                match count.app.relay.request(call).await {
                    Ok(answer) => reply(answer.id, answer.response, applied).map(|mut reply| {
                        reply.body_mut().hold(ticket);
                        reply
                    }),
                    Err(error) => Err(Problem::from(error)),
                }
            }
            Err(problem) => Err(problem),
        };
        let result = result.map_err(Problem::of_call);
        count.outcome = Some(result.as_ref().map_or_else(Problem::outcome, |_| Outcome::Answered));
        if let Some(noted) = count.noted.take() {
            noted.ended(&count.app, &result);
        }
        drop(count);
        result
    }
}

/// Counts a call as it goes, also if its caller goes first.
struct Count {
    app: Arc<App>,
    start: Instant,
    /// `None` until there is one.
    outcome: Option<Outcome>,
    /// Where it is to be written down, if anywhere.
    noted: Option<Box<Noted>>,
}

impl Drop for Count {
    fn drop(&mut self) {
        let took = self.start.elapsed();
        match self.outcome {
            Some(outcome) => self.app.metrics.call(outcome, took),
            None => self.app.metrics.cancelled(took),
        }
        if let Some(noted) = self.noted.take() {
            noted.cancelled(&self.app);
        }
    }
}

/// The device's answer as the call's.
fn reply(id: RequestId, response: Response, wait: Option<Duration>) -> Result<Reply, Problem> {
    let code = match &response.status {
        Status::Ok => return Ok(bytes_of(&id, response.body, wait)),
        Status::UnknownObject => Code::UnknownObject,
        Status::DeviceError => Code::DeviceError,
        Status::Other(_) => Code::DeviceFailed,
    };
    let words = words_of(response.body.as_ref());
    let problem = Problem::of_device(code, response.status.as_str(), words);
    Err(problem.of_request(Some(id)))
}

/// What every answer of a device says of itself.
fn answered() -> HeaderMap {
    let mut headers = HeaderMap::with_capacity(7);
    // To be replaced, for which a copy needs no more room than it has.
    headers.insert(RELAY_REQUEST_ID, HeaderValue::from_static(""));
    headers.insert(RELAY_OUTCOME, HeaderValue::from_static(Outcome::Answered.as_str()));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    // The bytes are a device's, which may be hostile: a browser shall neither guess what they are nor run them.
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers
}

/// The media types of most answers.
const COMMON: [&str; 4] =
    ["text/plain; charset=utf-8", "application/json", "application/xml", "application/octet-stream"];

/// The header fields of answers of the [`COMMON`] types: copying them takes a fraction of making them.
static ANSWERED: LazyLock<[HeaderMap; COMMON.len()]> = LazyLock::new(|| {
    COMMON.map(|content_type| {
        let mut headers = answered();
        harmless(&mut headers, content_type);
        headers
    })
});

pub(super) fn bytes_of(id: &RequestId, body: Option<Body>, wait: Option<Duration>) -> Reply {
    let mut reply = Reply::new(ReplyBody::default());
    let content_type = body.as_ref().map(Body::content_type);
    let common = COMMON.iter().position(|common| content_type == Some(common));
    let headers = reply.headers_mut();
    *headers = match (common, content_type) {
        (Some(at), _) => ANSWERED[at].clone(),
        (None, None) => answered(),
        (None, Some(content_type)) => {
            let mut headers = answered();
            harmless(&mut headers, content_type);
            headers
        }
    };
    let id = HeaderValue::from_str(id.as_str());
    headers.insert(RELAY_REQUEST_ID, id.unwrap_or(HeaderValue::from_static("")));
    let applied = wait.and_then(|wait| HeaderValue::try_from(format!("wait={}", wait.as_secs())).ok());
    if let Some(applied) = applied {
        headers.insert(PREFERENCE_APPLIED, applied);
    }
    if let Some(body) = body {
        *reply.body_mut() = ReplyBody::from(body.bytes);
    }
    reply
}

/// Says what media type bytes of others have, so that a browser neither guesses nor runs them.
pub(super) fn harmless(headers: &mut HeaderMap, content_type: &str) {
    let essence = content_type.split(';').next().unwrap_or("").trim();
    if !INERT.iter().any(|inert| essence.eq_ignore_ascii_case(inert)) {
        headers
            .insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static("default-src 'none'; sandbox"));
    }
    let content_type = HeaderValue::from_str(content_type);
    headers.insert(
        header::CONTENT_TYPE,
        content_type.unwrap_or(HeaderValue::from_static("application/octet-stream")),
    );
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
}

/// Media types in which nothing runs.
const INERT: [&str; 4] = ["text/plain", "application/json", "application/octet-stream", "application/pdf"];

/// A device's words, as far as they can stand in an error.
pub(super) fn words_of(body: Option<&Body>) -> String {
    let Some(body) = body else { return String::new() };
    let head = &body.bytes[..body.bytes.len().min(MAX_WORDS * 4)];
    String::from_utf8_lossy(head)
        .chars()
        .take(MAX_WORDS)
        .map(|c| if c.is_control() && c != '\n' { '\u{fffd}' } else { c })
        .collect()
}

/// The HTTP body as a request's.
struct Payload {
    body: Incoming,
    content_type: Option<String>,
}

impl Payload {
    fn of(call: Call) -> (Arc<App>, Result<Self, Problem>) {
        let Call { app, parts, body, .. } = call;
        let content_type = body::refuse_encoded(&parts.headers)
            .and_then(|()| Ok(text_of(&parts.headers, &header::CONTENT_TYPE)?.map(str::to_owned)));
        (app, content_type.map(|content_type| Self { body, content_type }))
    }

    /// The body, and whether its type was told.
    async fn read(self, app: &App) -> Result<(Body, bool), Problem> {
        let bytes = body::read(self.body, app.limits.max_body, app).await?;
        let told = self.content_type.is_some();
        Ok((Body::new(self.content_type.as_deref().unwrap_or(""), bytes), told))
    }
}

/// A request as it stands in JSON.
struct Written {
    method: Method,
    objects: Vec<ObjectId>,
    body: Option<Body>,
}

impl Written {
    async fn read(body: Incoming, app: &App) -> Result<Self, Problem> {
        let max = app.limits.max_body;
        // Base64 and escapes make a body longer in JSON than it is.
        let size = max.saturating_mul(2).saturating_add(app.limits.max_json);
        let bytes = body::read(body, size, app).await?;
        let value =
            parse(&bytes, &Limits::default().with_any_text().with_size(size)).map_err(Problem::from)?;
        drop(bytes);
        Self::from_json(value, max)
    }

    fn from_json(value: Value, max: usize) -> Result<Self, Problem> {
        let Value::Object(mut members) = value else {
            return Err(InvalidJson::new("", "is not an object").into());
        };
        let method = match members.remove("method") {
            Some(Value::String(method)) => {
                Method::new(&method).map_err(|error| InvalidJson::new("method", error.to_string()))?
            }
            Some(_) => return Err(InvalidJson::new("method", "is not a string").into()),
            None => return Err(InvalidJson::new("method", "is missing").into()),
        };
        let objects = match members.remove("objects") {
            None => Vec::new(),
            Some(Value::Array(values)) => values.iter().enumerate().map(object).collect::<Result<_, _>>()?,
            Some(_) => return Err(InvalidJson::new("objects", "is not an array").into()),
        };
        let content_type = match members.remove("content_type") {
            None | Some(Value::Null) => None,
            Some(Value::String(content_type)) => Some(content_type),
            Some(_) => return Err(InvalidJson::new("content_type", "is not a string").into()),
        };
        let body = match (members.remove("body"), members.remove("body_base64")) {
            (None, None) => None,
            (Some(Value::String(text)), None) => Some(("text/plain; charset=utf-8", Bytes::from(text))),
            (Some(value), None) => Some(("application/json", Bytes::from(value.to_string()))),
            (None, Some(Value::String(text))) => {
                let bytes = BASE64
                    .decode(&text)
                    .map_err(|error| InvalidJson::new("body_base64", format!("is not base64: {error}")))?;
                Some(("application/octet-stream", Bytes::from(bytes)))
            }
            (None, Some(_)) => return Err(InvalidJson::new("body_base64", "is not a string").into()),
            (Some(_), Some(_)) => {
                return Err(
                    InvalidJson::new("body_base64", "is there beside body; one of them is enough").into()
                );
            }
        };
        if let Some(member) = members.keys().next() {
            return Err(InvalidJson::new(member, "means nothing here").into());
        }
        let body = match body {
            Some((_, bytes)) if bytes.len() > max => {
                let words = format!("the request's body has {} bytes, {max} are allowed", bytes.len());
                return Err(Problem::new(Code::TooLarge, words));
            }
            Some((default, bytes)) => Some(Body::new(content_type.as_deref().unwrap_or(default), bytes)),
            None => None,
        };
        Ok(Self { method, objects, body })
    }

    fn of(self, device: relay_core::ids::DeviceId) -> Request {
        let mut request = Request::new(device, self.method);
        request.objects = self.objects;
        request.body = self.body;
        request
    }
}

fn object((at, value): (usize, &Value)) -> Result<ObjectId, InvalidJson> {
    let place = || format!("objects/{at}");
    let text = value.as_str().ok_or_else(|| InvalidJson::new(&place(), "is not a string"))?;
    ObjectId::new(text).map_err(|error| InvalidJson::new(&place(), error.to_string()))
}

/// What a caller wants of the relay itself.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Options {
    pub(super) wait: Option<Duration>,
    pub(super) traceparent: Option<Box<str>>,
}

impl Options {
    pub(super) fn read(headers: &HeaderMap, query: &mut Query) -> Result<Self, Problem> {
        match query.take("deliver")?.as_deref() {
            None | Some("now") => {}
            Some(other) => {
                return Err(Problem::bad(format!(
                    "deliver={} is not something that this relay does; now is",
                    shown(other)
                )));
            }
        }
        // A caller that sends one relies on it: better no call than two.
        if headers.contains_key(IDEMPOTENCY_KEY) {
            return Err(Problem::bad("this relay keeps no idempotency keys; send the call without one"));
        }
        let wait = headers
            .get_all(PREFER)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .find_map(wait_of);
        let traceparent = headers
            .get(TRACEPARENT)
            .and_then(|value| value.to_str().ok())
            .filter(|value| is_traceparent(value))
            .map(Box::from);
        Ok(Self { wait, traceparent })
    }
}

/// `wait=N` (RFC 7240 §4.3). What cannot be understood is passed over, as RFC 7240 has it.
fn wait_of(preference: &str) -> Option<Duration> {
    let (name, value) = preference.split(';').next()?.split_once('=')?;
    if !name.trim().eq_ignore_ascii_case("wait") {
        return None;
    }
    value.trim().trim_matches('"').parse().ok().map(Duration::from_secs)
}

/// Whether `value` is a trace context of version 00 (W3C Trace Context §3.2).
fn is_traceparent(value: &str) -> bool {
    let mut parts = value.split('-');
    let mut hex = |length: usize| {
        let part = parts.next()?;
        let fits = part.len() == length && part.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        fits.then_some(part)
    };
    let zero = |part: &str| part.bytes().all(|b| b == b'0');
    hex(2) == Some("00")
        && hex(32).is_some_and(|part| !zero(part))
        && hex(16).is_some_and(|part| !zero(part))
        && hex(2).is_some()
        && parts.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(fields: &[(&'static str, &'static str)]) -> Options {
        let headers =
            fields.iter().map(|&(k, v)| (HeaderName::from_static(k), HeaderValue::from_static(v))).collect();
        Options::read(&headers, &mut Query::read(None).unwrap()).unwrap()
    }

    #[test]
    fn a_preferred_wait_is_found_among_others() {
        let wait = |value| options(&[("prefer", value)]).wait.map(|wait| wait.as_secs());
        assert_eq!(wait("wait=10"), Some(10));
        assert_eq!(wait("return=minimal, Wait = \"7\"; x=y"), Some(7));
        assert_eq!(wait("wait=-1"), None);
        assert_eq!(wait("wait=soon"), None);
        assert_eq!(wait("respond-async"), None);
    }

    #[test]
    fn a_trace_context_is_taken_only_whole() {
        let good = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        assert_eq!(options(&[("traceparent", good)]).traceparent.as_deref(), Some(good));
        for bad in [
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-x",
        ] {
            assert_eq!(options(&[("traceparent", bad)]).traceparent, None, "{bad}");
        }
    }

    #[test]
    fn q7_a_request_in_json_names_what_is_wrong_in_it() {
        let read = |text: &str| Written::from_json(serde_json::from_str(text).unwrap(), 8);
        let asked = read(r#"{"method":"GET","objects":["a","b/c"]}"#).unwrap();
        assert_eq!((asked.objects.len(), asked.body), (2, None));
        let body = |text| read(text).unwrap().body.unwrap();
        assert_eq!(body(r#"{"method":"X","body":"é"}"#), Body::text("é"));
        assert_eq!(body(r#"{"method":"X","body":{"a":1}}"#).content_type(), "application/json");
        assert_eq!(&*body(r#"{"method":"X","body_base64":"AAH/"}"#).bytes, [0, 1, 255]);
        assert_eq!(body(r#"{"method":"X","body":"1","content_type":"a/b"}"#).content_type(), "a/b");
        for (bad, place) in [
            (r#"[]"#, "body:"),
            (r#"{}"#, "body/method:"),
            (r#"{"method":"a b"}"#, "body/method:"),
            (r#"{"method":"X","objects":["a","b c"]}"#, "body/objects/1:"),
            (r#"{"method":"X","objects":"a"}"#, "body/objects:"),
            (r#"{"method":"X","body_base64":"?"}"#, "body/body_base64:"),
            (r#"{"method":"X","body":"a","body_base64":"AA=="}"#, "body/body_base64:"),
            (r#"{"method":"X","objcts":[]}"#, "body/objcts:"),
        ] {
            let problem = read(bad).err().unwrap();
            assert_eq!(problem.code(), Code::BadRequest);
            assert!(problem.to_string().contains(place), "{bad}: {problem}");
        }
        assert_eq!(read(r#"{"method":"X","body":"123456789"}"#).err().unwrap().code(), Code::TooLarge);
    }
}
