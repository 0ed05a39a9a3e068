//! Jobs in a session: the offer, and what the device says of it there.
//!
//! | element | way | is |
//! |---|---|---|
//! | `<job id app device? wait href traceparent?>header</job>` | to device | work for an app whose data is read by HTTP at `href` |
//! | `<WebSocketControl id device? wait?><AppName/><Status>open</Status>…` | to device | the same, where the device opens a channel of the transport's |
//! | `<WebSocketControl …>…<Status>close</Status>…` | both | that job's channel is to be closed |
//! | `<error id app code>words</error>` | from device | the job failed, or is not begun |
//! | `<progress id bytes note?/>` `<done id version?/>` | from device | how far it is, and its end |

use std::{sync::Arc, time::Instant};

use super::{Form, VocabularyError, request_id, required, time, wait_of};
use crate::{
    app::{Offer, Progress},
    envelope::Envelope,
    ids::{AppName, DeviceId, RequestId},
    request::{Body, Request, Response, Status},
    xml::{Element, Limits},
};

/// Where the data of request `id` is read by HTTP.
fn href(id: &RequestId) -> String {
    format!("/v1/requests/{id}/body")
}

/// Describes the offer of `request` for a device that reads its data by HTTP.
pub(super) fn describe_offer(
    (id, request, offer): (&RequestId, &Request, &Offer),
    device: &DeviceId,
    wait: std::time::Duration,
    form: &mut impl Form,
) -> Result<(), VocabularyError> {
    form.start("job");
    form.attribute("id", id.as_str());
    form.attribute("app", offer.app.as_str());
    describe_way(request, device, wait, form);
    form.attribute("href", &href(id));
    if let Some(context) = &request.traceparent {
        form.attribute("traceparent", context);
    }
    if let Some(header) = &offer.header {
        let header = Element::parse(header.as_bytes(), &Limits::default())
            .map_err(|_| VocabularyError::InvalidValue { element: "job", attribute: "header" })?;
        form.element(&header);
    }
    form.end("job");
    Ok(())
}

fn describe_way(request: &Request, device: &DeviceId, wait: std::time::Duration, form: &mut impl Form) {
    if request.device != *device {
        form.attribute("device", request.device.as_str());
    }
    form.attribute("wait", &time::write(wait));
}

/// Describes the offer of `request` for a device that opens a channel of the transport's. The header comes there.
pub(super) fn describe_open(
    (id, request, offer): (&RequestId, &Request, &Offer),
    device: &DeviceId,
    wait: std::time::Duration,
    form: &mut impl Form,
) {
    form.start("WebSocketControl");
    form.attribute("id", id.as_str());
    describe_way(request, device, wait, form);
    if let Some(context) = &request.traceparent {
        form.attribute("traceparent", context);
    }
    describe_control(&offer.app, "open", form);
}

/// Describes that the channel of job `id` is to be closed.
pub(super) fn describe_close(id: &RequestId, app: &AppName, form: &mut impl Form) {
    form.start("WebSocketControl");
    form.attribute("id", id.as_str());
    describe_control(app, "close", form);
}

fn describe_control(app: &AppName, status: &str, form: &mut impl Form) {
    for (name, text) in [("AppName", app.as_str()), ("Status", status)] {
        form.start(name);
        form.text(text);
        form.end(name);
    }
    form.end("WebSocketControl");
}

fn app_name(text: &str, element: &'static str) -> Result<AppName, VocabularyError> {
    AppName::new(text).map_err(|source| VocabularyError::InvalidId { element, part: "app", source })
}

fn device_of(element: &Element, name: &'static str, device: &DeviceId) -> Result<DeviceId, VocabularyError> {
    let invalid = |source| VocabularyError::InvalidId { element: name, part: "device", source };
    element.attr("device").map_or_else(|| Ok(device.clone()), |other| DeviceId::new(other).map_err(invalid))
}

pub(super) fn decode_offer(
    element: &Element,
    device: &DeviceId,
    now: Instant,
) -> Result<Envelope, VocabularyError> {
    let id = request_id(element, "job")?;
    let app = app_name(required(element, "job", "app")?, "job")?;
    let device = device_of(element, "job", device)?;
    let header = element.children().next().map(|header| header.to_document().into_boxed_str());
    let mut request = Request::job(device, Offer::new(app, header));
    request.traceparent = super::traceparent(element);
    Ok(Envelope::Request { id, request: Arc::new(request), deadline: now + wait_of(element, "job")? })
}

pub(super) fn decode_control(
    element: &Element,
    device: &DeviceId,
    now: Instant,
) -> Result<Envelope, VocabularyError> {
    const NAME: &str = "WebSocketControl";
    let id = request_id(element, NAME)?;
    // The seeds' form has no namespace of its own; inside ours it is ours.
    let text = |name: &str| {
        let child = element.children().find(|child| child.name() == name);
        child.map(|child| child.text().trim().to_owned())
    };
    let missing = |attribute| VocabularyError::Missing { element: NAME, attribute };
    let app = app_name(&text("AppName").ok_or_else(|| missing("AppName"))?, NAME)?;
    match &*text("Status").ok_or_else(|| missing("Status"))? {
        "open" => {
            let device = device_of(element, NAME, device)?;
            let mut request = Request::job(device, Offer::new(app, None));
            request.traceparent = super::traceparent(element);
            Ok(Envelope::Request { id, request: Arc::new(request), deadline: now + wait_of(element, NAME)? })
        }
        "close" => Ok(Envelope::Close { id, app }),
        _ => Err(VocabularyError::InvalidValue { element: NAME, attribute: "Status" }),
    }
}

pub(super) fn describe_progress(id: Option<&RequestId>, progress: &Progress, form: &mut impl Form) {
    form.start("progress");
    if let Some(id) = id {
        form.attribute("id", id.as_str());
    }
    form.attribute("bytes", &progress.bytes.to_string());
    if let Some(note) = &progress.note {
        form.attribute("note", note);
    }
    form.end("progress");
}

pub(super) fn decode_progress(element: &Element) -> Result<Progress, VocabularyError> {
    let invalid = VocabularyError::InvalidValue { element: "progress", attribute: "bytes" };
    let bytes = match element.attr("bytes") {
        None | Some("") => 0,
        Some(bytes) => bytes.parse().map_err(|_| invalid)?,
    };
    let progress = Progress::new(bytes);
    Ok(match element.attr("note") {
        Some(note) if !note.is_empty() => progress.with_note(note),
        _ => progress,
    })
}

/// The end of a job as the answer to its request.
pub(super) fn done(version: Option<&str>) -> Response {
    Response::new(Status::Ok, version.map(Body::text))
}

pub(super) fn decode_version(element: &Element) -> Option<&str> {
    element.attr("version").filter(|version| version.len() <= 64)
}

/// `<error code=''>words</error>`; without a code it is the device's own error state.
pub(super) fn decode_error(element: &Element) -> Result<(Status, Box<str>), VocabularyError> {
    let status = match element.attr("code") {
        None | Some("" | "ok") => Status::DeviceError,
        Some(code) => Status::parse(code).map_err(|source| VocabularyError::InvalidId {
            element: "error",
            part: "code",
            source,
        })?,
    };
    let words = element.text();
    let end = words.floor_char_boundary(MAX_WORDS);
    Ok((status, words[..end].into()))
}

/// The longest words of an error, in bytes.
const MAX_WORDS: usize = 1024;
