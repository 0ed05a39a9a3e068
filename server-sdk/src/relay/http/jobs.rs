//! `POST …/apps/{app}`: a job, whose data is the HTTP body and whose progress is the answer.
//!
//! ```text
//! head ─▶ may it? has the device that app, that format? ─▶ offer ─▶ the device opened the app
//!                                                                     │ 100 Continue, 200
//! body ──▶ spool ──▶ device        lines of progress ◀────────────────┘
//! ```
//!
//! Nothing of the body is asked for before the device opened the app. Body and progress are two tasks from then on:
//! a caller that reads nothing before it has sent everything is as good as any.

use std::{sync::Arc, time::Duration};

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use relay_core::{
    app::{JobState, Source, print::PrintTicket},
    auth::Principal,
    ids::{AppName, DocumentId, KeyId, RequestId},
    outcome::{CallError, Outcome},
    relay::JobCall,
    request::{Call as RelayCall, Status},
    store::{App as DeviceApp, DeviceRecord},
    xml::{Element, Namespace},
};
use serde_json::{Value, json};
use tokio::{
    sync::oneshot,
    time::{Instant, MissedTickBehavior, interval, sleep_until},
};

use super::{
    App, Call, RELAY_OUTCOME, RELAY_REQUEST_ID,
    access::{self, Ticket},
    body::{Pieces, Reply, ReplyBody},
    calls::{Options, words_of},
    intake::{Broken, Intake, media_type},
    now,
    problem::{Code, Problem, shown},
    requests::{Part, UPLOAD_COMPLETE},
    route::{Query, Target},
};
use crate::relay::{
    auth::Action,
    convert::Conversion,
    jobs::{Document, End, Report, Revived, Told, Tracked, UNKNOWN_APP, Uploading},
    spool::Kind,
};

/// The least time between two lines: enough for eyes, and little for the network.
const BETWEEN_LINES: Duration = Duration::from_millis(200);
/// The same while the document comes in: many callers read nothing before they have sent all, and what they do not read
/// must find room on the way.
const BETWEEN_LINES_WHILE_UPLOADING: Duration = Duration::from_secs(2);
/// The longest time between two lines: proxies cut what is silent for a minute.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// How often a caller's key is looked at again: so long may a revoked one still send and hear (T17).
const KEY_CHECK: Duration = Duration::from_secs(5);
/// The longest value in a ticket, in characters.
const MAX_VALUE: usize = 1024;

/// `POST …/apps/{app}`
pub(super) fn start(
    call: Call,
    target: Target,
    name: AppName,
) -> impl Future<Output = Result<Reply, Problem>> + Send {
    let asked = Asked::read(&call);
    let Call { app, parts, body, .. } = call;
    drop(parts);
    let intake = Intake::new(body, &app.limits);
    async move {
        let start = now();
        let part = asked.as_ref().map_or(Part { more: false, length: None }, |asked| asked.part);
        let intake = intake.in_part(part.more);
        let bytes = if part.more { part.length } else { intake.announced() };
        let body = Announced { bytes, none: intake.is_empty() && !part.more };
        let offered = match asked {
            Ok(asked) => {
                // On its own, so that it comes to its end whether the caller waits for it or not.
                let app = app.clone();
                let offered =
                    tokio::spawn(async move { offer(&app, asked, target, name, body, start).await });
                offered
                    .await
                    .unwrap_or_else(|_| Err(Problem::new(Code::Internal, "the relay failed in this call")))
            }
            Err(problem) => Err(problem),
        };
        let Offered { tracked, uploading, wait } = match offered {
            Ok(offered) => offered,
            Err(problem) => {
                let problem = problem.of_call().closing();
                app.metrics.call(problem.outcome(), start.elapsed());
                return Err(problem);
            }
        };
        let reply = open(&app, &tracked.0, uploading, intake, false, wait).await;
        tracked.opened();
        reply
    }
}

/// What a job's head says.
struct Asked {
    principal: Principal,
    owner: KeyId,
    options: Options,
    content_type: Option<String>,
    document: Option<DocumentId>,
    part: Part,
    query: Query,
}

impl Asked {
    fn read(call: &Call) -> Result<Self, Problem> {
        let (principal, owner) = access::key(call)?;
        let mut query = call.query()?;
        let options = Options::read(&call.parts.headers, &mut query)?;
        let document = query.take("document")?.map(|name| DocumentId::new(&name)).transpose()?;
        let content_type = media_type(&call.parts.headers)?;
        let part = Part::read(call)?;
        Ok(Self { principal, owner, options, content_type, document, part, query })
    }
}

/// A job that its device was offered.
struct Offered {
    tracked: HangUp,
    /// The document's upload, if one is still to come.
    uploading: Option<Uploading>,
    wait: Option<Duration>,
}

/// What a head says of its body.
struct Announced {
    bytes: Option<u64>,
    none: bool,
}

async fn offer(
    app: &Arc<App>,
    asked: Asked,
    target: Target,
    name: AppName,
    body: Announced,
    start: Instant,
) -> Result<Offered, Problem> {
    let Asked { principal, owner, options, content_type, document, query, .. } = asked;
    let device = access::resolve(app, &principal, target, Action::App(&name)).await?;
    let record = app.store.device(&device).await?.ok_or_else(Problem::unknown_device)?;
    let device_app = find_app(&record, &name)?;
    let kept = match &document {
        Some(_) if !body.none => {
            return Err(Problem::bad("document= names what is to be printed, and there is a body as well"));
        }
        Some(name) => Some(app.documents.of(&owner, name).ok_or_else(unknown_document)?),
        None => None,
    };
    let from = match &kept {
        Some(kept) => Some(kept.content_type.to_string()),
        None => content_type,
    };
    let conversion = format_for(app, &record, from.as_deref())?;
    let to = conversion.as_ref().map(|(_, to)| to.clone()).or(from);
    let header = header_of(&device_app, query, to)?;
    let ticket = Ticket::take(app, &principal)?;
    let mut document = match &kept {
        Some(kept) => {
            let (sent, own) = app.documents.for_job(kept).await?;
            Document { sent, converted: None, writer: None, own }
        }
        None => {
            let writer = app.spool.begin(Kind::Job, body.bytes).await?;
            Document { sent: writer.spooled().clone(), converted: None, writer: Some(writer), own: true }
        }
    };
    let conversion = match conversion {
        Some((hook, to)) => {
            let output = app.spool.begin(Kind::Job, None).await?;
            document.converted = Some(output.spooled().clone());
            Some((hook, to, output))
        }
        None => None,
    };
    let sent = document.sent.clone();
    let wait = options.wait.map(|wait| wait.min(RelayCall::MAX_WAIT));
    let mut job =
        JobCall::new(device.clone(), device_app.clone(), document.data().clone() as Arc<dyn Source>);
    job.header = Some(header.clone());
    job.wait = wait.unwrap_or(RelayCall::DEFAULT_WAIT);
    job.traceparent = options.traceparent;
    let told = Told { owner, device, app: device_app, header: Some(header), wait: job.wait };
    let job = app.relay.job(job)?;
    let tracked = app.jobs.track(&job, told, document).await;
    let uploading = tracked.take_upload().await;
    if let Some((hook, to, output)) = conversion {
        let tracked = tracked.clone();
        tokio::spawn(async move { Conversion::new(hook, to, sent, output).run(&tracked).await });
    }
    let (jobs, app, running) = (app.jobs.clone(), app.clone(), tracked.clone());
    tokio::spawn(async move {
        let (outcome, ()) = tokio::join!(jobs.run(job, running.clone()), app.outcomes.follow(&app, &running));
        app.metrics.call(outcome, start.elapsed());
        drop(ticket);
    });
    Ok(Offered { tracked: HangUp(tracked, true), uploading, wait })
}

/// The app as the device's table has it.
fn find_app(record: &DeviceRecord, name: &AppName) -> Result<DeviceApp, Problem> {
    let found = record.apps.iter().find(|app| app.name == *name).cloned();
    found.ok_or_else(|| Problem::new(Code::UnknownApp, format!("the device has no app {name}")))
}

pub(super) fn unknown_document() -> Problem {
    Problem::new(Code::UnknownDocument, "no such document")
}

type Hook = Arc<dyn crate::relay::Convert>;

/// Whether the device takes a document of type `from` as it is (`None`), or which hook makes what of it.
fn format_for(
    app: &App,
    record: &DeviceRecord,
    from: Option<&str>,
) -> Result<Option<(Hook, String)>, Problem> {
    let from = from.unwrap_or("application/octet-stream");
    if record.formats.is_empty() || record.formats.iter().any(|format| takes(format, from)) {
        return Ok(None);
    }
    if let Some(hook) = app.convert.get()
        && let Some(to) = hook.converts(from, &record.formats)
    {
        return Ok(Some((hook.clone(), to)));
    }
    let words =
        format!("the device does not take {}; it takes {}", shown(from), shown(&record.formats.join(", ")));
    Err(Problem::new(Code::UnsupportedMediaType, words))
}

/// Whether a device that registered `format` takes a document of `media_type`.
fn takes(format: &str, media_type: &str) -> bool {
    let essence = |text: &str| text.split(';').next().unwrap_or("").trim().to_ascii_lowercase();
    let (format, media_type) = (essence(format), essence(media_type));
    match format.strip_suffix("/*") {
        Some("*") => true,
        Some(kind) => media_type.split('/').next() == Some(kind),
        None => format == media_type,
    }
}

/// The job's header: the print app's is the print ticket, any other's has the same in a `<Job>`.
fn header_of(app: &DeviceApp, mut query: Query, content_type: Option<String>) -> Result<Box<str>, Problem> {
    let mut ticket = PrintTicket::new();
    ticket.user = query.take("user")?.map(Into::into);
    ticket.job_name = query.take("job_name")?.map(Into::into);
    ticket.content_type = content_type.map(Into::into);
    for (name, value) in query.rest() {
        if !PrintTicket::is_name(&name) {
            return Err(Problem::bad(format!(
                "the query has {}, which cannot stand in a ticket",
                shown(&name)
            )));
        }
        if ticket.attribute(&name).is_some() {
            return Err(Problem::bad(format!("the query has {} more than once", shown(&name))));
        }
        if ticket.attributes.len() == PrintTicket::MAX_ATTRIBUTES {
            let words = format!("a ticket has at most {} attributes", PrintTicket::MAX_ATTRIBUTES);
            return Err(Problem::bad(words));
        }
        ticket.attributes.push((name.into(), value.into()));
    }
    let values = [&ticket.user, &ticket.job_name, &ticket.content_type].into_iter().flatten();
    for value in values.chain(ticket.attributes.iter().map(|(_, value)| value)) {
        // They end in logs, on displays and in XML (T43).
        if value.chars().any(char::is_control) || value.chars().count() > MAX_VALUE {
            let words = "a value of the ticket has control characters or more than 1,024 characters";
            return Err(Problem::bad(words));
        }
    }
    if &*app.protocol == "print" || app.name.as_str().eq_ignore_ascii_case("print") {
        return Ok(ticket.to_header());
    }
    let text = |name: String, value: &str| Element::new(Namespace::NONE, name).with_text(value);
    let known = [("User", ticket.user), ("JobName", ticket.job_name), ("Type", ticket.content_type)];
    let mut job = Element::new(Namespace::NONE, "Job");
    for (name, value) in known {
        if let Some(value) = value {
            job.push(text(name.to_owned(), &value));
        }
    }
    for (name, value) in ticket.attributes {
        job.push(text(name.into(), &value));
    }
    Ok(job.to_document().into())
}

/// A job of a caller that may yet go away: if that is before the device opened the app, the job is not wanted any more.
struct HangUp(Arc<Tracked>, bool);

impl HangUp {
    fn opened(mut self) {
        self.1 = false;
    }
}

impl Drop for HangUp {
    fn drop(&mut self) {
        if self.1 {
            self.0.give_up(End::Cancelled);
        }
    }
}

/// Waits until the device opened the app; then the upload goes on, and the answer tells of all. Of a job that had begun
/// before it was asked for, it tells the end, too, and how it went is no error of this call.
pub(super) async fn open(
    app: &Arc<App>,
    tracked: &Arc<Tracked>,
    mut uploading: Option<Uploading>,
    mut intake: Intake,
    begun: bool,
    wait: Option<Duration>,
) -> Result<Reply, Problem> {
    let replaced = async {
        match &mut uploading {
            Some(uploading) => uploading.not_wanted().await,
            None => std::future::pending().await,
        }
    };
    let report = tokio::select! {
        biased;
        report = tracked.opened() => report,
        () = replaced => return Err(elsewhere().of_request(Some(tracked.id.clone())).closing()),
    };
    if let Some((outcome, end)) = &report.end
        && end.state() != JobState::Completed
        && !begun
    {
        return Err(problem_of(end, *outcome, &tracked.id).closing());
    }
    let (done, uploaded) = oneshot::channel();
    let in_part = uploading.is_some() && intake.is_part();
    match uploading {
        Some(uploading) => {
            intake.ask().await;
            let (app, tracked) = (app.clone(), tracked.clone());
            tokio::spawn(async move { drop(done.send(upload(&app, &tracked, uploading, intake).await)) });
        }
        None => drop(done.send(Ok(()))),
    }
    let (pieces, body) = ReplyBody::stream();
    let (auth, caller) = (app.auth.clone(), Principal::Service(tracked.owner().clone()));
    tokio::spawn(tell(tracked.clone(), pieces, uploaded, move || auth.holds(&caller)));
    let mut reply = Reply::new(body);
    let headers = reply.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson"));
    let outcome = report.end.map_or(Outcome::Received, |(outcome, _)| outcome);
    headers.insert(RELAY_OUTCOME, HeaderValue::from_static(outcome.as_str()));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    // nginx and its kin would keep lines until a buffer is full.
    headers.insert(HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));
    identify(headers, &tracked.id);
    if in_part {
        headers.insert(UPLOAD_COMPLETE, HeaderValue::from_static("?0"));
    }
    let applied = wait.and_then(|wait| HeaderValue::try_from(format!("wait={}", wait.as_secs())).ok());
    if let Some(applied) = applied {
        headers.insert(HeaderName::from_static("preference-applied"), applied);
    }
    Ok(reply)
}

pub(super) fn identify(headers: &mut HeaderMap, id: &RequestId) {
    if let Ok(id) = HeaderValue::from_str(id.as_str()) {
        headers.insert(RELAY_REQUEST_ID, id);
    }
}

/// Why the answer to an upload cannot go on.
enum Cut {
    /// Nobody is there to read it.
    Gone,
    /// The part that it is the answer to is here, and another is to come.
    Part,
    /// The reason in words, which still reach the caller.
    Because(Problem),
}

/// Takes the document in, as far as it comes.
async fn upload(
    app: &Arc<App>,
    tracked: &Arc<Tracked>,
    mut uploading: Uploading,
    mut intake: Intake,
) -> Result<(), Cut> {
    loop {
        let more_at_once = intake.is_there().await;
        let Some(writer) = uploading.writer() else { return Ok(()) };
        if !more_at_once && let Err(error) = writer.flush().await {
            return refuse(tracked, error.into());
        }
        let next = tokio::select! {
            biased;
            () = uploading.not_wanted() => {
                if tracked.report().borrow().end.is_some() {
                    return Ok(());
                }
                return Err(Cut::Because(elsewhere()));
            }
            next = intake.next() => next,
        };
        let Some(writer) = uploading.writer() else { return Ok(()) };
        match next {
            Ok(Some(bytes)) => {
                if let Err(error) = writer.write(bytes).await {
                    return refuse(tracked, error.into());
                }
            }
            Ok(None) if intake.is_part() => match writer.flush().await {
                Ok(()) => return Err(Cut::Part),
                Err(error) => return refuse(tracked, error.into()),
            },
            Ok(None) => {
                if let Err(error) = writer.finish().await {
                    return refuse(tracked, error.into());
                }
                app.jobs.note(tracked).await;
                uploading.close();
                return Ok(());
            }
            Err(broken) => {
                // What came before it broke off need not come again.
                if let Err(error) = writer.flush().await {
                    return refuse(tracked, error.into());
                }
                return Err(match broken {
                    Broken::Gone(error) => {
                        tracing::debug!(request = %tracked.id, %error, "an upload broke off");
                        Cut::Gone
                    }
                    slow @ Broken::TooSlow { .. } => Cut::Because(slow.into()),
                });
            }
        }
    }
}

fn elsewhere() -> Problem {
    Problem::new(Code::Conflict, "the upload is gone on with on another connection")
}

/// The document cannot be taken: the job is over.
fn refuse(tracked: &Tracked, problem: Problem) -> Result<(), Cut> {
    tracked.give_up(End::NoDocument(problem.code().as_str(), problem.detail().to_owned()));
    // Its end is told to the caller, who is still there.
    Ok(())
}

/// Tells how the job goes, to its end. `holds` says whether the caller's key still does.
async fn tell(
    tracked: Arc<Tracked>,
    pieces: Pieces,
    mut uploaded: oneshot::Receiver<Result<(), Cut>>,
    holds: impl Fn() -> bool + Send,
) {
    let mut report = tracked.report();
    let mut uploading = true;
    let mut checks = interval(KEY_CHECK);
    checks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let now = report.borrow_and_update().clone();
        let line = line(&tracked, &now, None);
        if pieces.send(line).await.is_err() || now.end.is_some() {
            return pieces.finish();
        }
        let told = Instant::now();
        loop {
            let between = if uploading { BETWEEN_LINES_WHILE_UPLOADING } else { BETWEEN_LINES };
            let over = |report: &Report| report.end.is_some();
            let mut waiting = report.clone();
            // Something worth a line, and not too soon after the last one.
            let news = async {
                let _ = waiting.wait_for(|report| over(report) || report.update != now.update).await;
                tokio::select! {
                    _ = waiting.wait_for(over) => {}
                    () = sleep_until(told + between) => {}
                }
            };
            tokio::select! {
                () = news => break,
                () = sleep_until(told + KEEP_ALIVE) => break,
                () = pieces.hung_up() => return,
                _ = checks.tick() => if !holds() {
                    if uploading {
                        let words = "the key was revoked while its document came in";
                        tracked.give_up(End::NoDocument(Code::Unauthenticated.as_str(), words.into()));
                    }
                    return pieces.finish();
                },
                cut = &mut uploaded, if uploading => {
                    uploading = false;
                    match cut {
                        Ok(Ok(())) => {}
                        Ok(Err(Cut::Part)) => return pieces.finish(),
                        Ok(Err(Cut::Because(problem))) => {
                            let now = report.borrow().clone();
                            // Its state is not final: the caller sees that this was not the job's end.
                            let _ = pieces.send(self::line(&tracked, &now, Some(&problem))).await;
                            return pieces.finish();
                        }
                        Ok(Err(Cut::Gone)) | Err(_) => return,
                    }
                }
            }
        }
    }
}

/// A line of progress.
fn line(tracked: &Tracked, report: &Report, cut: Option<&Problem>) -> String {
    let mut line = json!({ "state": report.update.state.as_str(), "bytes": report.update.bytes });
    if let Some(note) = &report.update.note {
        line["note"] = Value::from(&**note);
    }
    if let Some((outcome, end)) = &report.end {
        line["outcome"] = outcome.as_str().into();
        describe(end, &tracked.id, &mut line);
    } else if let Some(problem) = cut {
        line["code"] = problem.code().as_str().into();
        line["detail"] = problem.detail().into();
    }
    line.to_string() + "\n"
}

/// Says how a job ended: `code` and `detail` if not well, `result` if the device gave something back.
pub(super) fn describe(end: &End, id: &RequestId, json: &mut Value) {
    let (code, detail) = match end {
        End::Answered(response) if response.status == Status::Ok => {
            if response.body.as_ref().is_some_and(|body| !body.bytes.is_empty()) {
                json["result"] = format!("/v1/requests/{id}/result").into();
            }
            return;
        }
        End::Answered(response) => (response.status.as_str().to_owned(), words_of(response.body.as_ref())),
        End::Unanswered(error) => {
            let problem = Problem::from(CallError { id: None, error: error.clone() });
            (problem.code().as_str().to_owned(), problem.detail().to_owned())
        }
        End::NoDocument(code, words) => ((*code).to_owned(), words.clone()),
        End::Cancelled => return,
    };
    json["code"] = code.into();
    if !detail.is_empty() {
        json["detail"] = detail.into();
    }
}

/// The error that a job's end is to a caller who was told nothing yet.
fn problem_of(end: &End, outcome: Outcome, id: &RequestId) -> Problem {
    let problem = match end {
        End::Answered(response) => {
            let code = match &response.status {
                Status::DeviceError => Code::DeviceError,
                status if status.as_str() == UNKNOWN_APP => Code::UnknownApp,
                _ => Code::DeviceFailed,
            };
            Problem::of_device(code, response.status.as_str(), words_of(response.body.as_ref()))
        }
        End::Unanswered(error) => Problem::from(CallError { id: None, error: error.clone() }),
        End::Cancelled => Problem::new(Code::Conflict, "the job was cancelled"),
        End::NoDocument(_, words) => Problem::new(Code::Conflict, words.clone()),
    };
    problem.with_outcome(outcome).of_request(Some(id.clone()))
}

/// Goes on with the jobs that a relay before this one was killed in.
pub(crate) fn revive(app: &Arc<App>, revived: Vec<Revived>) {
    for revived in revived {
        let app = app.clone();
        tokio::spawn(async move {
            let start = now();
            let job = revived.tracked.clone();
            let revived = app.jobs.revive(&app.relay, revived);
            let (outcome, ()) = tokio::join!(revived, app.outcomes.follow(&app, &job));
            app.metrics.call(outcome, start.elapsed());
        });
    }
}

/// The status of an answer about a job: whether there is more to come.
pub(super) const fn status_of(report: &Report) -> StatusCode {
    if report.end.is_some() { StatusCode::OK } else { StatusCode::ACCEPTED }
}

#[cfg(test)]
mod tests;
