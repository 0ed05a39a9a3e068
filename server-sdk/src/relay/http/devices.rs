//! What devices call: enrolment, registration, survival notifications, responses.

use std::time::SystemTime;

use http::{HeaderValue, StatusCode, header};
use relay_core::{
    Body, Response,
    auth::Secret,
    ids::{DeviceId, RequestId, SessionId},
    outcome::Disposition,
    request::Status,
    store::{
        Registration,
        json::{InvalidJson, Limits, parse},
    },
};
use serde_json::{Map, Value};

use super::{
    Call, RELAY_STATUS, access,
    body::{self, Reply},
    empty, expect_json, inquiry, json,
    problem::{Code, Problem, shown},
};
use crate::relay::auth::EnrolError;

/// `POST /v1/enroll`: a PIN, once, for a token.
pub(super) async fn enroll(call: Call) -> Result<Reply, Problem> {
    let (app, place, peer) = (call.app.clone(), call.place.clone(), call.peer);
    let mut members = object(call).await?;
    let device = take_text(&mut members, "device_id")?;
    let pin = Secret::new(take_text(&mut members, "pin")?);
    nothing_more(&members)?;
    let refused = || Problem::new(Code::Unauthenticated, "device or PIN was not accepted");
    let device = DeviceId::new(&device).map_err(|_| refused())?;
    let token = app.auth.enrol(&device, &pin, peer.address).await.map_err(|error| match error {
        EnrolError::Refused => refused(),
        EnrolError::TooMany { retry_after } => {
            Problem::new(Code::TooManyRequests, "too many failed enrolments from this address")
                .retry_after(retry_after)
        }
        EnrolError::Busy { retry_after } => {
            Problem::new(Code::Overloaded, "too many devices enrol at once").retry_after(retry_after)
        }
        EnrolError::Store(error) => error.into(),
    })?;
    place.trust();
    app.relay.know(&device);
    // Whoever is on with the credential that this one replaces is on no longer (T17).
    app.relay.revoke(&device);
    tracing::info!(device_id = %device, "device enrolled");
    let mut reply = json(StatusCode::CREATED, &serde_json::json!({ "token": token.expose() }));
    reply.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(reply)
}

/// `PUT /v1/devices/{id}`: what the device says of itself, on disk before it is told so.
pub(super) async fn register(call: Call, device: DeviceId) -> Result<Reply, Problem> {
    access::device(&call, &device)?;
    expect_json(&call.parts.headers)?;
    let Call { app, parts, body, .. } = call;
    drop(parts);
    let bytes = body::read(body, app.limits.max_json, &app).await?;
    let registration = Registration::from_json(&bytes).map_err(Problem::from)?;
    drop(bytes);
    let registered = app.store.register(&device, &registration, SystemTime::now()).await?;
    app.books.look(&device);
    app.relay.registered(&device, registration.keepalive);
    let status = if registered.first { StatusCode::CREATED } else { StatusCode::OK };
    let presence = app.relay.presence(&device);
    Ok(json(status, &inquiry::describe(&registered.record, presence.as_ref())))
}

/// `POST /v1/devices/{id}/alive`: whether the relay still knows the device's session (S3).
pub(super) async fn alive(call: Call, device: DeviceId) -> Result<Reply, Problem> {
    access::device(&call, &device)?;
    let app = call.app.clone();
    let mut members = object(call).await?;
    let session = take_text(&mut members, "session")?;
    if !app.relay.knows(&device) {
        return Err(Problem::new(Code::UnknownDevice, "the relay does not know the device: register"));
    }
    // What cannot be a session's ID is the ID of none.
    let known = SessionId::new(&session).is_ok_and(|session| app.relay.alive(&device, &session));
    let word = if known { "known" } else { "unknown" };
    Ok(json(StatusCode::OK, &serde_json::json!({ "session": word })))
}

/// `POST /v1/requests/{request}/response`: the answer to a request, met with the engine's verdict (Q4).
pub(super) fn respond(call: Call, request: RequestId) -> impl Future<Output = Result<Reply, Problem>> + Send {
    let told = Told::read(&call);
    let Call { app, parts, body, .. } = call;
    drop(parts);
    async move {
        let Told { device, status, content_type } = told?;
        let bytes = body::read(body, app.limits.max_body, &app).await?;
        let body = (content_type.is_some() || !bytes.is_empty())
            .then(|| Body::new(content_type.as_deref().unwrap_or(""), bytes));
        let disposition = app.relay.respond(&device, &request, Response::new(status, body));
        app.metrics.response(disposition);
        Err(match disposition {
            Disposition::Accepted => return Ok(empty(StatusCode::NO_CONTENT)),
            Disposition::AlreadyAnswered => {
                Problem::new(Code::AlreadyAnswered, "the request was answered before")
            }
            Disposition::TooLate => Problem::new(Code::TooLate, "nobody waits for this response any more"),
            Disposition::Forbidden => {
                tracing::warn!(device_id = %device, request_id = %request, "response to another device's request");
                Problem::new(Code::Forbidden, "the request did not go to this device")
            }
            _ => Problem::new(Code::UnknownRequest, "no such request"),
        })
    }
}

/// What a response's head says.
struct Told {
    device: DeviceId,
    status: Status,
    content_type: Option<String>,
}

impl Told {
    fn read(call: &Call) -> Result<Self, Problem> {
        let device = access::any_device(call)?;
        body::refuse_encoded(&call.parts.headers)?;
        let status = match call.header(&RELAY_STATUS)? {
            None => Status::Ok,
            Some(code) => Status::parse(code)
                .map_err(|_| Problem::bad(format!("Relay-Status has {}, which is no code", shown(code))))?,
        };
        let content_type = call.header(&header::CONTENT_TYPE)?.map(str::to_owned);
        Ok(Self { device, status, content_type })
    }
}

/// The call's body as a JSON object.
pub(super) async fn object(call: Call) -> Result<Map<String, Value>, Problem> {
    expect_json(&call.parts.headers)?;
    let Call { app, parts, body, .. } = call;
    drop(parts);
    let bytes = body::read(body, app.limits.max_json, &app).await?;
    match parse(&bytes, &Limits::default().with_size(app.limits.max_json))? {
        Value::Object(members) => Ok(members),
        _ => Err(InvalidJson::new("", "is not an object").into()),
    }
}

fn take_text(members: &mut Map<String, Value>, name: &'static str) -> Result<String, Problem> {
    match members.remove(name) {
        Some(Value::String(text)) => Ok(text),
        Some(_) => Err(InvalidJson::new(name, "is not a string").into()),
        None => Err(InvalidJson::new(name, "is missing").into()),
    }
}

/// Refuses members that nobody took.
pub(super) fn nothing_more(members: &Map<String, Value>) -> Result<(), Problem> {
    match members.keys().next() {
        None => Ok(()),
        Some(member) => Err(InvalidJson::new(member, "means nothing here").into()),
    }
}
