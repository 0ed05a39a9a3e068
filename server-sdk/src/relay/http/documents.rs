//! `/v1/documents`: documents that a key keeps on the relay.

use std::time::{Duration, SystemTime};

use http::{HeaderValue, StatusCode, header};
use relay_core::{
    app::Source,
    ids::{DocumentId, KeyId},
};
use serde_json::{Value, json};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use super::{
    Call,
    access::{self, Ticket},
    body::{Reply, ReplyBody},
    calls, empty,
    intake::{Intake, media_type},
    job_data::{REPR_DIGEST, repr_digest},
    jobs::unknown_document,
    json as json_reply,
    problem::{Code, Problem},
};
use crate::relay::documents::{KeepError, Kept};

/// What is read at once.
const PIECE: usize = 16 * 1024;

/// `GET /v1/documents`
pub(super) fn list(call: &Call) -> Result<Reply, Problem> {
    let (_, owner) = access::key(call)?;
    call.query()?.finish()?;
    let documents: Vec<_> = call.app.documents.all_of(&owner).iter().map(|kept| describe(kept)).collect();
    Ok(json_reply(StatusCode::OK, &json!({ "documents": documents })))
}

fn describe(kept: &Kept) -> Value {
    json!({
        "name": kept.name,
        "content_type": kept.content_type,
        "bytes": kept.digest.bytes,
        "sha256": kept.digest.hex(),
        "created": OffsetDateTime::from(kept.created).format(&Rfc3339).ok(),
    })
}

/// `PUT /v1/documents/{doc}`
pub(super) fn put(call: Call, name: DocumentId) -> impl Future<Output = Result<Reply, Problem>> + Send {
    let asked = Asked::read(&call);
    let Call { app, parts, body, .. } = call;
    drop(parts);
    let intake = Intake::new(body, &app.limits);
    async move {
        let kept = async {
            let Asked { owner, content_type, ticket } = asked?;
            let mut writer = app.documents.begin(&owner, &name, intake.announced()).await?;
            intake.all(&mut writer).await?;
            let now = SystemTime::now();
            let kept = app.documents.keep(&owner, name, content_type, writer, now).await?;
            drop(ticket);
            Ok::<_, Problem>(kept)
        };
        let (kept, replaced) = kept.await.map_err(Problem::closing)?;
        let status = if replaced { StatusCode::OK } else { StatusCode::CREATED };
        Ok(json_reply(status, &describe(&kept)))
    }
}

struct Asked {
    owner: KeyId,
    content_type: Box<str>,
    ticket: Option<Ticket>,
}

impl Asked {
    fn read(call: &Call) -> Result<Self, Problem> {
        let (principal, owner) = access::key(call)?;
        call.query()?.finish()?;
        let content_type = media_type(&call.parts.headers)?;
        let content_type = content_type.unwrap_or_else(|| "application/octet-stream".into()).into();
        let ticket = Ticket::take(&call.app, &principal)?;
        Ok(Self { owner, content_type, ticket })
    }
}

impl From<KeepError> for Problem {
    fn from(error: KeepError) -> Self {
        match error {
            KeepError::TooMany { .. } => {
                Self::new(Code::TooManyRequests, error.to_string() + "; delete some")
                    .retry_after(Duration::from_secs(60))
            }
            KeepError::Spool(error) => error.into(),
        }
    }
}

/// `GET /v1/documents/{doc}`
pub(super) async fn get(call: Call, name: DocumentId) -> Result<Reply, Problem> {
    let (principal, owner) = access::key(&call)?;
    let app = call.app.clone();
    drop(call);
    let kept = app.documents.of(&owner, &name).ok_or_else(unknown_document)?;
    let ticket = Ticket::take(&app, &principal)?;
    let document = app.documents.open(&kept).await?;
    let (pieces, mut body) = ReplyBody::stream();
    body.hold(ticket);
    let mut reply = Reply::new(body);
    let headers = reply.headers_mut();
    calls::harmless(headers, &kept.content_type);
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(kept.digest.bytes));
    headers.insert(REPR_DIGEST, repr_digest(&kept.digest));
    tokio::spawn(async move {
        let mut at = 0;
        loop {
            match document.read(at, PIECE).await {
                Ok(piece) if piece.is_empty() => return pieces.finish(),
                Ok(piece) => {
                    at += piece.len() as u64;
                    if pieces.send(piece).await.is_err() {
                        return;
                    }
                }
                Err(error) => return tracing::error!(%error, "a document cannot be read"),
            }
        }
    });
    Ok(reply)
}

/// `DELETE /v1/documents/{doc}`
pub(super) async fn delete(call: Call, name: DocumentId) -> Result<Reply, Problem> {
    let (_, owner) = access::key(&call)?;
    match call.app.documents.delete(&owner, &name).await {
        true => Ok(empty(StatusCode::NO_CONTENT)),
        false => Err(unknown_document()),
    }
}
