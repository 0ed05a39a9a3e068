//! Who calls, whether they may, and how many calls they have in flight.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use foldhash::quality::RandomState;
use http::header;
use relay_core::{
    auth::{Principal, Secret},
    ids::{AccountId, DeviceId, KeyId},
    store::{DeviceQuery, MAX_PAGE},
};

use super::{
    App, Call,
    problem::{Code, Problem},
    route::Target,
    text_of,
};
use crate::relay::auth::{Action, Denied};

/// Who shows the call's token.
pub(super) fn principal(call: &Call) -> Result<Principal, Problem> {
    let unauthenticated = |words: &'static str| Problem::new(Code::Unauthenticated, words);
    let value = text_of(&call.parts.headers, &header::AUTHORIZATION)?
        .ok_or_else(|| unauthenticated("this call needs Authorization: Bearer and a token"))?;
    let token = match value.split_once(' ') {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => token.trim(),
        _ => return Err(unauthenticated("the Authorization is not Bearer and a token")),
    };
    let principal = call
        .app
        .auth
        .principal(&Secret::new(token))
        .ok_or_else(|| unauthenticated("the token is not one that holds"))?;
    call.place.trust();
    if let Principal::Device(device) = &principal {
        // Any word from a device restarts its presence timer (P2).
        call.app.relay.heard(device);
    }
    Ok(principal)
}

/// The device that calls.
pub(super) fn any_device(call: &Call) -> Result<DeviceId, Problem> {
    match principal(call)? {
        Principal::Device(device) => Ok(device),
        _ => Err(Problem::new(Code::Forbidden, "this call is for devices")),
    }
}

/// Lets `device` call, and nobody in its name (T8).
pub(super) fn device(call: &Call, device: &DeviceId) -> Result<(), Problem> {
    if any_device(call)? == *device {
        Ok(())
    } else {
        Err(Problem::new(Code::Forbidden, "the token belongs to another device"))
    }
}

/// The service or administrator that calls.
pub(super) fn service(call: &Call) -> Result<Principal, Problem> {
    match principal(call)? {
        Principal::Device(_) => Err(Problem::new(Code::Forbidden, "this call is not for devices")),
        principal => Ok(principal),
    }
}

/// The service or administrator that calls, and the key by which it is known.
pub(super) fn key(call: &Call) -> Result<(Principal, KeyId), Problem> {
    let principal = service(call)?;
    match &principal {
        Principal::Service(key) | Principal::Administrator(key) => {
            let key = key.clone();
            Ok((principal, key))
        }
        _ => Err(Problem::new(Code::Forbidden, "this call is for keys")),
    }
}

/// Lets administrators call.
pub(super) fn administrator(call: &Call) -> Result<(), Problem> {
    match principal(call)? {
        Principal::Administrator(_) => Ok(()),
        _ => Err(Problem::new(Code::Forbidden, "this call is for the administrator")),
    }
}

/// Finds the device that is meant and lets `principal` do `action` to it. What the caller may not see is not there
/// (X2).
pub(super) async fn resolve(
    app: &App,
    principal: &Principal,
    target: Target,
    action: Action<'_>,
) -> Result<DeviceId, Problem> {
    let device = match target {
        Target::Device(device) => device,
        Target::Account(account) => of_account(app, principal, account, action).await?,
    };
    match app.auth.authorize(principal, &device, action).await {
        // The engine, which is asked next, knows whether there is such a device.
        Ok(()) => Ok(device),
        Err(Denied::Forbidden) if app.relay.knows(&device) => {
            Err(Problem::new(Code::Forbidden, "the key's scopes do not allow this on the device"))
        }
        Err(Denied::Store(error)) => Err(error.into()),
        Err(_) => Err(Problem::unknown_device()),
    }
}

/// The one device of `account` that the caller sees (Q5). Only such devices count: whoever sees one of two is not told
/// that there is another (T47).
async fn of_account(
    app: &App,
    principal: &Principal,
    account: AccountId,
    action: Action<'_>,
) -> Result<DeviceId, Problem> {
    let mut query = DeviceQuery::new();
    query.account = Some(account);
    let mut found = None;
    let mut after = None;
    loop {
        let page = app.store.devices(&query, after.as_ref(), MAX_PAGE).await?;
        let seen = page.items.into_iter().filter(|record| {
            app.auth.allows(principal, record, action) || app.auth.allows(principal, record, Action::List)
        });
        for record in seen {
            if found.replace(record.id).is_some() {
                return Err(Problem::new(
                    Code::AmbiguousAccount,
                    "the account has several devices; name one of them",
                ));
            }
        }
        after = page.next;
        if after.is_none() {
            return found.ok_or_else(Problem::unknown_device);
        }
    }
}

/// Calls in flight of each key (B6).
#[derive(Debug)]
pub(super) struct InFlight {
    max: usize,
    by_key: Mutex<HashMap<KeyId, Arc<AtomicUsize>, RandomState>>,
}

/// Keys that are remembered although none of their calls is in flight.
const IDLE_KEYS: usize = 1_000;

impl InFlight {
    pub(super) fn new(max: usize) -> Self {
        Self { max, by_key: Mutex::default() }
    }

    fn of(&self, key: &KeyId) -> Arc<AtomicUsize> {
        let mut by_key = self.by_key.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = by_key.get(key) {
            return count.clone();
        }
        if by_key.len() >= IDLE_KEYS {
            // Whoever counts on one holds it.
            by_key.retain(|_, count| Arc::strong_count(count) > 1);
        }
        by_key.entry(key.clone()).or_default().clone()
    }
}

/// One call in flight; it no longer is once this is dropped.
#[derive(Debug)]
pub(super) struct Ticket(Arc<AtomicUsize>);

impl Ticket {
    /// Counts one more call of `principal`.
    pub(super) fn take(app: &App, principal: &Principal) -> Result<Option<Self>, Problem> {
        let (Principal::Service(key) | Principal::Administrator(key)) = principal else { return Ok(None) };
        let max = app.in_flight.max;
        let ticket = Self(app.in_flight.of(key));
        if ticket.0.fetch_add(1, Relaxed) >= max {
            let words = format!("the key has {max} calls in flight, which is its bound");
            return Err(Problem::new(Code::TooManyRequests, words).retry_after(Duration::from_secs(1)));
        }
        Ok(Some(ticket))
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}
