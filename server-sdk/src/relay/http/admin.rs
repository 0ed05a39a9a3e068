//! What administrators call, and accounts for themselves: device tables, PINs, keys, agreement.

use std::time::SystemTime;

use http::{HeaderValue, StatusCode, header};
use relay_core::{
    ids::{AccountId, DeviceId, KeyId},
    store::{MAX_ACCOUNTS, ServiceKey, json::InvalidJson},
};
use serde_json::{Value, json};

use super::{
    Call, access,
    body::{self, Reply},
    devices::{nothing_more, object},
    empty,
    import::{self, LineError, MAX_ERRORS},
    inquiry::rfc3339,
    json as json_reply,
    problem::{Code, Problem, shown},
    text_of,
};
use crate::relay::auth::{EnrolError, NewKeyError};

/// `PUT /v1/accounts/{account}/devices/{id}`: the account's side agrees to a device that claims it.
pub(super) async fn agree(call: Call, account: AccountId, device: DeviceId) -> Result<Reply, Problem> {
    let by = side_of(&call, &account)?;
    let app = call.app.clone();
    drop(call);
    if app.store.agree(&device, &account, by).await? {
        app.books.look(&device);
        tracing::info!(device_id = %device, account = %account, "account agreed to device");
        Ok(empty(StatusCode::NO_CONTENT))
    } else {
        // Unknown, or not claiming this account: told apart, it would say which devices there are.
        Err(Problem::unknown_device())
    }
}

/// `DELETE /v1/accounts/{account}/devices/{id}`: it withdraws.
pub(super) async fn withdraw(call: Call, account: AccountId, device: DeviceId) -> Result<Reply, Problem> {
    side_of(&call, &account)?;
    let app = call.app.clone();
    drop(call);
    if app.store.withdraw(&device, &account).await? {
        tracing::info!(device_id = %device, account = %account, "account withdrew from device");
        Ok(empty(StatusCode::NO_CONTENT))
    } else {
        Err(Problem::unknown_device())
    }
}

fn side_of(call: &Call, account: &AccountId) -> Result<relay_core::store::Membership, Problem> {
    let principal = access::service(call)?;
    call.app
        .auth
        .speaks_for(&principal, account)
        .ok_or_else(|| Problem::new(Code::Forbidden, "the key does not speak for this account"))
}

/// `POST /v1/devices/import`: a device table, taken whole or not at all.
pub(super) async fn import(call: Call) -> Result<Reply, Problem> {
    access::administrator(&call)?;
    body::refuse_encoded(&call.parts.headers)?;
    let content_type = text_of(&call.parts.headers, &header::CONTENT_TYPE)?.unwrap_or("");
    let read = match content_type.split(';').next().unwrap_or("").trim().to_ascii_lowercase().as_str() {
        "text/csv" => import::csv,
        "application/x-ndjson" | "application/ndjson" | "application/jsonl" => import::ndjson,
        other => {
            let words = format!("a device table is text/csv or application/x-ndjson, not {}", shown(other));
            return Err(Problem::new(Code::UnsupportedMediaType, words).closing());
        }
    };
    let Call { app, parts, body, .. } = call;
    drop(parts);
    let bytes = body::read(body, app.limits.max_import, &app).await?;
    // A large table takes a moment, which is not to be the network's.
    let table = tokio::task::spawn_blocking(move || read(&bytes))
        .await
        .map_err(|_| Problem::new(Code::Internal, "the table could not be read"))?
        .map_err(in_lines)?;
    app.store.prepare(&table, SystemTime::now()).await?;
    for prepared in &table {
        if !app.relay.knows(&prepared.device) {
            app.relay.know(&prepared.device);
        }
        app.books.look(&prepared.device);
    }
    tracing::info!(devices = table.len(), "device table imported");
    Ok(json_reply(StatusCode::OK, &json!({ "imported": table.len() })))
}

fn in_lines(errors: Vec<LineError>) -> Problem {
    let more = if errors.len() >= MAX_ERRORS { "at least " } else { "" };
    let first =
        errors.first().map_or_else(String::new, |error| format!("line {}: {}", error.line, error.words));
    let words = format!("nothing was imported: {more}{} lines are wrong; {first}", errors.len());
    let errors = errors.into_iter().map(|error| json!({ "line": error.line, "detail": error.words }));
    Problem::bad(words).with_errors(errors.collect())
}

/// `POST /v1/devices/{id}/pin`: a PIN with which the device may enrol once.
pub(super) async fn new_pin(call: Call, device: DeviceId) -> Result<Reply, Problem> {
    access::administrator(&call)?;
    let app = call.app.clone();
    let mut members = optional_object(call).await?;
    let accounts = texts(members.remove("accounts"), "accounts", MAX_ACCOUNTS)?
        .iter()
        .enumerate()
        .map(|(at, text)| {
            AccountId::new(text)
                .map_err(|error| InvalidJson::new(&format!("accounts/{at}"), error.to_string()))
        })
        .collect::<Result<Vec<_>, _>>()?;
    nothing_more(&members)?;
    let issued = app.auth.issue_pin(&device, &accounts).await.map_err(|error| match error {
        EnrolError::Store(error) => error.into(),
        EnrolError::Busy { retry_after } | EnrolError::TooMany { retry_after } => {
            Problem::new(Code::Overloaded, "too many PINs at once").retry_after(retry_after)
        }
        EnrolError::Refused => Problem::new(Code::Internal, "no PIN could be made"),
    })?;
    if !app.relay.knows(&device) {
        app.relay.know(&device);
    }
    app.books.look(&device);
    let pin = json!({
        "device_id": issued.device,
        "pin": issued.pin.expose(),
        "expires": rfc3339(issued.expires),
    });
    Ok(secret(json_reply(StatusCode::CREATED, &pin)))
}

/// `GET /v1/keys`
pub(super) fn keys(call: &Call) -> Result<Reply, Problem> {
    access::administrator(call)?;
    let keys: Vec<Value> = call.app.auth.keys().iter().map(describe).collect();
    Ok(json_reply(StatusCode::OK, &json!({ "keys": keys })))
}

fn describe(key: &ServiceKey) -> Value {
    json!({
        "id": key.id,
        "scopes": key.scopes,
        "created": rfc3339(key.created),
        "expires": key.expires.and_then(rfc3339),
    })
}

/// `POST /v1/keys`: the key itself is told this once.
pub(super) async fn new_key(call: Call) -> Result<Reply, Problem> {
    access::administrator(&call)?;
    let app = call.app.clone();
    let mut members = optional_object(call).await?;
    let scopes = texts(members.remove("scopes"), "scopes", 64)?;
    nothing_more(&members)?;
    let (id, key) = app.auth.new_key(scopes.clone()).await.map_err(|error| match error {
        NewKeyError::Scope(error) => Problem::from(InvalidJson::new("scopes", error.to_string())),
        NewKeyError::Store(error) => error.into(),
        error @ NewKeyError::Full => Problem::new(Code::Conflict, error.to_string()),
    })?;
    tracing::info!(key_id = %id, "key made");
    Ok(secret(json_reply(StatusCode::CREATED, &json!({ "id": id, "key": key.expose(), "scopes": scopes }))))
}

/// `DELETE /v1/keys/{id}`
pub(super) async fn revoke_key(call: Call, key: KeyId) -> Result<Reply, Problem> {
    access::administrator(&call)?;
    let app = call.app.clone();
    drop(call);
    if app.auth.revoke_key(&key).await? {
        tracing::info!(key_id = %key, "key revoked");
        Ok(empty(StatusCode::NO_CONTENT))
    } else {
        Err(Problem::new(Code::UnknownKey, "no such key"))
    }
}

/// The body's JSON object, if there is a body.
async fn optional_object(call: Call) -> Result<serde_json::Map<String, Value>, Problem> {
    if hyper::body::Body::is_end_stream(&call.body) {
        return Ok(serde_json::Map::new());
    }
    object(call).await
}

fn texts(value: Option<Value>, place: &str, max: usize) -> Result<Vec<String>, InvalidJson> {
    let values = match value {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(Value::Array(values)) if values.len() <= max => values,
        Some(Value::Array(_)) => return Err(InvalidJson::new(place, format!("has more than {max} entries"))),
        Some(_) => return Err(InvalidJson::new(place, "is not an array")),
    };
    let text = |(at, value)| match value {
        Value::String(text) => Ok(text),
        _ => Err(InvalidJson::new(&format!("{place}/{at}"), "is not a string")),
    };
    values.into_iter().enumerate().map(text).collect()
}

fn secret(mut reply: Reply) -> Reply {
    reply.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    reply
}
