//! What its caller may do with a job that is under way: ask how it is, go on with its upload, cancel it.
//!
//! A job is there for the key that made it, and for no other (T6): for all others the answer is the one that they get
//! for a job that never was.

use std::sync::Arc;

use http::{HeaderName, HeaderValue, StatusCode, header};
use relay_core::{app::JobState, ids::RequestId, request::Status};
use serde_json::json;

use super::{
    App, Call, access,
    body::Reply,
    calls, empty,
    intake::Intake,
    jobs::{self, identify},
    json as json_reply,
    problem::{Code, Problem, shown},
};
use crate::relay::jobs::{End, Tracked};

/// Where an upload goes on.
pub(super) const UPLOAD_OFFSET: HeaderName = HeaderName::from_static("upload-offset");
/// Whether an upload is complete with this request: `?0` if the rest follows by PATCH, as a structured field has it
/// (RFC 9651 §3.3.6).
pub(super) const UPLOAD_COMPLETE: HeaderName = HeaderName::from_static("upload-complete");
/// How long the document is, of which a part comes.
const UPLOAD_LENGTH: HeaderName = HeaderName::from_static("upload-length");
/// The media type of a part of an upload.
const PARTIAL: &str = "application/partial-upload";

pub(super) fn unknown_request() -> Problem {
    Problem::new(Code::UnknownRequest, "no such request")
}

/// What a head says of its body, as a part of an upload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Part {
    /// More follows in another request.
    pub(super) more: bool,
    /// How long the whole is, if that is said.
    pub(super) length: Option<u64>,
}

impl Part {
    pub(super) fn read(call: &Call) -> Result<Self, Problem> {
        let more = match call.header(&UPLOAD_COMPLETE)?.map(str::trim) {
            None | Some("?1") => false,
            Some("?0") => true,
            Some(other) => {
                let words = format!("Upload-Complete has {}, which is neither ?0 nor ?1", shown(other));
                return Err(Problem::bad(words));
            }
        };
        Ok(Self { more, length: number(call, &UPLOAD_LENGTH, "Upload-Length")? })
    }
}

fn number(call: &Call, field: &HeaderName, name: &str) -> Result<Option<u64>, Problem> {
    let Some(text) = call.header(field)? else { return Ok(None) };
    let digits = text.bytes().all(|b| b.is_ascii_digit());
    let wrong = || Problem::bad(format!("{name} has {}, which is no number of bytes", shown(text)));
    text.parse().ok().filter(|_| digits).map(Some).ok_or_else(wrong)
}

fn find(call: &Call, request: &RequestId) -> Result<Arc<Tracked>, Problem> {
    let (_, owner) = access::key(call)?;
    call.app.jobs.of(&owner, request).ok_or_else(unknown_request)
}

/// `GET /v1/requests/{request}`
pub(super) fn get(call: &Call, request: &RequestId) -> Result<Reply, Problem> {
    let tracked = find(call, request)?;
    let report = tracked.report().borrow().clone();
    let mut about = json!({
        "id": tracked.id,
        "device": tracked.device,
        "state": report.update.state.as_str(),
        "bytes": report.update.bytes,
    });
    let outcome = match &report.end {
        Some((outcome, end)) => {
            if let End::Answered(response) = &**end {
                about["status"] = response.status.as_str().into();
            }
            jobs::describe(end, &tracked.id, &mut about);
            *outcome
        }
        None => tracked.outcome(),
    };
    about["outcome"] = outcome.as_str().into();
    if let Some(note) = &report.update.note {
        about["note"] = (**note).into();
    }
    let offset = tracked.offset().filter(|_| report.end.is_none());
    if let Some(offset) = offset {
        about["offset"] = offset.into();
    }
    let mut reply = json_reply(jobs::status_of(&report), &about);
    let headers = reply.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if let Some(offset) = offset {
        headers.insert(UPLOAD_OFFSET, HeaderValue::from(offset));
    }
    identify(headers, &tracked.id);
    Ok(reply)
}

/// `GET /v1/requests/{request}/result`: what the device gave back.
pub(super) fn result(call: &Call, request: &RequestId) -> Result<Reply, Problem> {
    let tracked = find(call, request)?;
    let end = tracked.report().borrow().end.clone();
    match end.as_ref().map(|(_, end)| &**end) {
        Some(End::Answered(response)) if response.status == Status::Ok && response.body.is_some() => {
            Ok(calls::bytes_of(&tracked.id, response.body.clone(), None))
        }
        _ => Err(unknown_request()),
    }
}

/// `DELETE /v1/requests/{request}`: cancels.
pub(super) async fn cancel(call: Call, request: RequestId) -> Result<Reply, Problem> {
    let tracked = find(&call, &request)?;
    drop(call);
    let over = || Problem::new(Code::AlreadyAnswered, "the job is over, it cannot be cancelled any more");
    if tracked.report().borrow().end.is_some() {
        return Err(over());
    }
    tracked.give_up(End::Cancelled);
    // Whichever came first: its end, or this.
    match tracked.over().await {
        Some((_, end)) if end.state() == JobState::Cancelled => Ok(empty(StatusCode::NO_CONTENT)),
        _ => Err(over()),
    }
}

/// `PATCH /v1/requests/{request}`: goes on with the upload, and with telling how the job goes.
pub(super) fn resume(call: Call, request: RequestId) -> impl Future<Output = Result<Reply, Problem>> + Send {
    let asked = Asked::read(&call, &request);
    let Call { app, parts, body, .. } = call;
    drop(parts);
    let intake = Intake::new(body, &app.limits);
    async move {
        let resumed = async {
            let Asked { tracked, offset, part, ticket } = asked?;
            go_on(&app, &tracked, offset, intake.in_part(part.more)).await.map(|mut reply| {
                reply.body_mut().hold(ticket);
                reply
            })
        };
        // Bytes that nobody asked for are on their way.
        resumed.await.map_err(|problem: Problem| problem.of_call().closing())
    }
}

struct Asked {
    tracked: Arc<Tracked>,
    offset: u64,
    part: Part,
    ticket: Option<access::Ticket>,
}

impl Asked {
    fn read(call: &Call, request: &RequestId) -> Result<Self, Problem> {
        let (principal, owner) = access::key(call)?;
        let tracked = call.app.jobs.of(&owner, request).ok_or_else(unknown_request)?;
        let kind = super::intake::media_type(&call.parts.headers)?.unwrap_or_default();
        if !kind.split(';').next().unwrap_or("").trim().eq_ignore_ascii_case(PARTIAL) {
            let words = format!("{PARTIAL} is wanted here, not {}", shown(&kind));
            return Err(Problem::new(Code::UnsupportedMediaType, words));
        }
        let offset = number(call, &UPLOAD_OFFSET, "Upload-Offset")?
            .ok_or_else(|| Problem::bad("Upload-Offset is missing"))?;
        let part = Part::read(call)?;
        let ticket = access::Ticket::take(&call.app, &principal)?;
        Ok(Self { tracked, offset, part, ticket })
    }
}

async fn go_on(
    app: &Arc<App>,
    tracked: &Arc<Tracked>,
    offset: u64,
    intake: Intake,
) -> Result<Reply, Problem> {
    let begun = tracked.report().borrow().update.state > JobState::Offered;
    let uploading = tracked.take_upload().await;
    let there = tracked.offset();
    if there.is_none() && !intake.is_empty() {
        return Err(Problem::new(Code::AlreadyAnswered, "the job is over, it takes no more of its document"));
    }
    // Of a job that is over, and asked for nothing, the end is told.
    if let Some(there) = there
        && there != offset
    {
        let words = format!("the relay has {there} bytes of the document; go on from there");
        return Err(Problem::new(Code::Conflict, words).with_offset(there));
    }
    if there.is_some() && uploading.is_none() && !intake.is_empty() {
        let words = "the relay has all of the document, or another upload of it does not end";
        return Err(Problem::new(Code::Conflict, words).with_offset(offset));
    }
    jobs::open(app, tracked, uploading, intake, begun, None).await
}
