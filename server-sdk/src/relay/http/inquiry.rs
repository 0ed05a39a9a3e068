//! Who is there: finding devices, and what is known of them (P3).

use std::time::SystemTime;

use http::StatusCode;
use relay_core::{
    ids::AccountId,
    relay::{Presence, State},
    store::{DeviceQuery, DeviceRecord, MAX_PAGE},
};
use serde_json::{Map, Value, json};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use super::{
    Call, access,
    body::Reply,
    json as json_reply,
    problem::{Problem, shown},
    route::{Query, Target},
};
use crate::relay::{auth::Action, directory::FindError};

/// Devices in a page, unless the caller says how many.
const PAGE: usize = 100;
/// `GET /v1/devices`
pub(super) async fn devices(call: Call) -> Result<Reply, Problem> {
    let principal = access::service(&call)?;
    let Filter { query, state, limit, cursor } = Filter::read(call.query()?)?;
    let app = call.app.clone();
    drop(call);
    let name = state.map_or("", State::as_str);
    let wanted = |record: &DeviceRecord| {
        state.is_none_or(|state| state == state_of(app.relay.presence(&record.id).as_ref()))
    };
    let found = app.directory.find(&principal, &query, (name, wanted), limit, cursor.as_deref()).await;
    let found = found.map_err(|error| match error {
        FindError::Store(error) => Problem::from(error),
        error => Problem::bad(error.to_string()),
    })?;
    let devices: Vec<Value> = found
        .devices
        .iter()
        .map(|record| describe(record, app.relay.presence(&record.id).as_ref()))
        .collect();
    Ok(json_reply(StatusCode::OK, &json!({ "devices": devices, "next": found.next })))
}

/// `GET /v1/devices/{id}`, or of the one device of an account.
pub(super) async fn device(call: Call, target: Target) -> Result<Reply, Problem> {
    let principal = access::service(&call)?;
    call.query()?.finish()?;
    let app = call.app.clone();
    drop(call);
    let device = access::resolve(&app, &principal, target, Action::List).await?;
    let record = app.store.device(&device).await?.ok_or_else(Problem::unknown_device)?;
    let presence = app.relay.presence(&device);
    Ok(json_reply(StatusCode::OK, &describe(&record, presence.as_ref())))
}

/// A device as services see it.
pub(super) fn describe(record: &DeviceRecord, presence: Option<&Presence>) -> Value {
    let last_heard = presence
        .and_then(|presence| presence.last_heard)
        .and_then(|ago| SystemTime::now().checked_sub(ago))
        .and_then(rfc3339);
    let mut device = Map::new();
    let mut put = |key: &str, value: Value| drop(device.insert(key.to_owned(), value));
    put("id", json!(record.id));
    put("name", json!(record.settings.name));
    put("model", json!(record.settings.model));
    put("mac", json!(record.settings.mac));
    put("location", json!(record.settings.location));
    put("state", json!(state_of(presence).as_str()));
    put("epoch", json!(presence.map_or(0, |presence| presence.epoch)));
    put("last_heard", json!(last_heard));
    put(
        "detects_loss_within",
        json!(presence.map(|presence| presence.detects_loss_within.as_secs_f64().ceil() as u64)),
    );
    put("transport", json!(presence.and_then(|presence| presence.transport)));
    put("keepalive", json!(record.keepalive.map(|keepalive| keepalive.as_secs_f64())));
    put("capabilities", Value::Object(record.capabilities.clone()));
    put("formats", json!(record.formats));
    put("apps", json!(record.apps));
    put("accounts", json!(record.accounts));
    put("site", json!(record.site));
    put("registered", json!(record.registered_at.and_then(rfc3339)));
    Value::Object(device)
}

fn state_of(presence: Option<&Presence>) -> State {
    presence.map_or(State::Offline, |presence| presence.state)
}

/// A time for people and programs, to the millisecond.
pub(super) fn rfc3339(time: SystemTime) -> Option<String> {
    let time = OffsetDateTime::from(time);
    time.replace_millisecond(time.millisecond()).ok()?.format(&Rfc3339).ok()
}

#[derive(Debug)]
struct Filter {
    query: DeviceQuery,
    state: Option<State>,
    limit: usize,
    cursor: Option<String>,
}

impl Filter {
    fn read(mut given: Query) -> Result<Self, Problem> {
        let mut query = DeviceQuery::new();
        query.account = given.take("account")?.map(|account| AccountId::new(&account)).transpose()?;
        query.name = given.take("name")?;
        query.model = given.take("model")?;
        query.location = given.take("location")?;
        query.capability = given.take("capability")?;
        let state = match given.take("state")?.as_deref() {
            None => None,
            Some("online") => Some(State::Online),
            Some("offline") => Some(State::Offline),
            Some("asleep") => Some(State::Asleep),
            Some(other) => {
                return Err(Problem::bad(format!(
                    "state is {}; it may be online, offline or asleep",
                    shown(other)
                )));
            }
        };
        let limit = match given.take("limit")? {
            None => PAGE,
            Some(limit) => match limit.parse() {
                Ok(limit) if (1..=MAX_PAGE).contains(&limit) => limit,
                _ => {
                    return Err(Problem::bad(format!(
                        "limit is {}; it may be 1 to {MAX_PAGE}",
                        shown(&limit)
                    )));
                }
            },
        };
        let cursor = given.take("cursor")?;
        given.finish()?;
        Ok(Self { query, state, limit, cursor })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn times_are_rfc_3339_to_the_millisecond() {
        let time = SystemTime::UNIX_EPOCH + Duration::from_micros(1_700_000_000_123_456);
        assert_eq!(rfc3339(time).as_deref(), Some("2023-11-14T22:13:20.123Z"));
    }

    #[test]
    fn p3_a_filter_that_means_nothing_is_refused() {
        let read = |query| Filter::read(Query::read(Some(query)).unwrap());
        assert!(read("account=a&state=online&limit=1000&capability=color&name=").is_ok());
        for bad in ["limit=0", "limit=1001", "limit=x", "state=on", "nam=x", "name=a&name=b", "account=a%20b"]
        {
            assert!(read(bad).is_err(), "{bad}");
        }
    }
}
