//! What is read from the database: rows to records.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use relay_core::{
    auth::ScramVerifier,
    ids::{AccountId, DeviceId, KeyId},
    store::{
        Credential, Description, DeviceQuery, DeviceRecord, DeviceSettings, KnownDevice, MAX_PAGE,
        Membership, Page, PinParameters, ServiceKey, fold, has_capability,
    },
};
use rusqlite::{Connection, OptionalExtension, Row, named_params, types::Type};

/// Rows looked at for one page when what decides is not in an index.
const LOOKED_AT: usize = 1000;

const DEVICE: &str =
    "SELECT id, device.spelling, own, set_name, set_model, set_mac, set_location, known_since, registered_at
    FROM device";

/// A value that is not what was written there.
pub(super) fn damaged(
    column: usize,
    error: impl std::error::Error + Send + Sync + 'static,
) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(column, Type::Text, Box::new(error))
}

pub(super) fn milliseconds(time: SystemTime) -> i64 {
    // Before 1970 no relay ran: a clock that says so says nothing.
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

fn time(milliseconds: i64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_millis(u64::try_from(milliseconds).unwrap_or(0))
}

pub(super) fn id(row: &Row<'_>, column: usize) -> rusqlite::Result<DeviceId> {
    DeviceId::new(row.get_ref(column)?.as_str()?).map_err(|error| damaged(column, error))
}

fn array<const N: usize>(row: &Row<'_>, column: usize) -> rusqlite::Result<[u8; N]> {
    row.get_ref(column)?.as_blob()?.try_into().map_err(|error| damaged(column, error))
}

fn record(connection: &Connection, row: &Row<'_>) -> rusqlite::Result<DeviceRecord> {
    let own: Description =
        serde_json::from_str(row.get_ref(2)?.as_str()?).map_err(|error| damaged(2, error))?;
    let set =
        DeviceSettings { name: row.get(3)?, model: row.get(4)?, mac: row.get(5)?, location: row.get(6)? };
    let registered_at: Option<i64> = row.get(8)?;
    let agreed = agreed(connection, row.get_ref(0)?.as_str()?)?;
    Ok(DeviceRecord::merge(id(row, 1)?, own, set, agreed, time(row.get(7)?), registered_at.map(time)))
}

/// Reads with several statements as of one moment, so that a record and what belongs to it agree. Within the writer's
/// transaction they do already.
fn at_once<T>(
    connection: &Connection,
    work: impl FnOnce(&Connection) -> rusqlite::Result<T>,
) -> rusqlite::Result<T> {
    if !connection.is_autocommit() {
        return work(connection);
    }
    let transaction = connection.unchecked_transaction()?;
    let value = work(&transaction)?;
    transaction.finish()?;
    Ok(value)
}

fn agreed(connection: &Connection, device: &str) -> rusqlite::Result<BTreeMap<AccountId, Membership>> {
    let mut statement =
        connection.prepare_cached("SELECT spelling, by_administrator FROM agreement WHERE device = ?1")?;
    let agreements = statement.query_map([device], |row| {
        let account = AccountId::new(row.get_ref(0)?.as_str()?).map_err(|error| damaged(0, error))?;
        Ok((account, if row.get(1)? { Membership::Administrator } else { Membership::Account }))
    })?;
    agreements.collect()
}

pub(super) fn device(connection: &Connection, device: &DeviceId) -> rusqlite::Result<Option<DeviceRecord>> {
    at_once(connection, |connection| {
        let mut statement = connection.prepare_cached(&format!("{DEVICE} WHERE id = ?1"))?;
        statement.query_row([device.folded()], |row| record(connection, row)).optional()
    })
}

pub(super) fn devices(
    connection: &Connection,
    query: &DeviceQuery,
    after: Option<&DeviceId>,
    limit: usize,
) -> rusqlite::Result<Page<DeviceRecord>> {
    at_once(connection, |connection| find(connection, query, after, limit))
}

fn find(
    connection: &Connection,
    query: &DeviceQuery,
    after: Option<&DeviceId>,
    limit: usize,
) -> rusqlite::Result<Page<DeviceRecord>> {
    // Fixed pieces, parameters for all that comes from outside (T41).
    let mut sql = DEVICE.to_owned();
    sql.push_str(match &query.account {
        Some(_) => {
            " JOIN agreement ON agreement.device = id
             WHERE agreement.account = :account AND agreement.device > :after"
        }
        None => " WHERE id > :after",
    });
    for (wanted, condition) in [
        (&query.name, " AND folded_name = :name"),
        (&query.model, " AND folded_model = :model"),
        (&query.location, " AND folded_location = :location"),
    ] {
        if wanted.is_some() {
            sql.push_str(condition);
        }
    }
    let folded = |text: &Option<String>| text.as_deref().map(fold);
    let parameters: [(&str, Option<String>); 5] = [
        (":account", query.account.as_ref().map(AccountId::folded)),
        (":after", Some(after.map(DeviceId::folded).unwrap_or_default())),
        (":name", folded(&query.name)),
        (":model", folded(&query.model)),
        (":location", folded(&query.location)),
    ];
    sql.push_str(" ORDER BY id LIMIT :limit");
    let limit = limit.clamp(1, MAX_PAGE);
    let looked_at = if query.capability.is_some() { LOOKED_AT.max(limit) } else { limit };

    let mut statement = connection.prepare_cached(&sql)?;
    for (name, value) in &parameters {
        if let (Some(at), Some(value)) = (statement.parameter_index(name)?, value) {
            statement.raw_bind_parameter(at, value)?;
        }
    }
    if let Some(at) = statement.parameter_index(":limit")? {
        statement.raw_bind_parameter(at, i64::try_from(looked_at + 1).unwrap_or(i64::MAX))?;
    }
    let mut rows = statement.raw_query();
    let (mut items, mut seen, mut last) = (Vec::new(), 0, None);
    while let Some(row) = rows.next()? {
        if items.len() == limit || seen == looked_at {
            return Ok(Page::new(items, last));
        }
        seen += 1;
        let record = record(connection, row)?;
        last = Some(record.id.clone());
        if query.capability.as_ref().is_none_or(|wanted| has_capability(&record.capabilities, wanted)) {
            items.push(record);
        }
    }
    Ok(Page::new(items, None))
}

pub(super) fn known(
    connection: &Connection,
    after: Option<&DeviceId>,
    limit: usize,
) -> rusqlite::Result<Page<KnownDevice>> {
    let limit = limit.clamp(1, MAX_PAGE);
    let mut statement = connection.prepare_cached(
        "SELECT spelling, keepalive, token_hash FROM device LEFT JOIN credential ON device = id
         WHERE id > :after ORDER BY id LIMIT :limit",
    )?;
    let after = after.map(DeviceId::folded).unwrap_or_default();
    let asked = i64::try_from(limit + 1).unwrap_or(i64::MAX);
    let mut rows = statement.query(named_params! {":after": after, ":limit": asked})?;
    let mut items: Vec<KnownDevice> = Vec::new();
    while let Some(row) = rows.next()? {
        if items.len() == limit {
            let last = items.last().map(|known| known.id.clone());
            return Ok(Page::new(items, last));
        }
        let keepalive: Option<i64> = row.get(1)?;
        let keepalive = keepalive.map(|time| Duration::from_millis(u64::try_from(time).unwrap_or(0)));
        let hash = match row.get_ref(2)?.as_blob_or_null()? {
            None => None,
            Some(_) => Some(array(row, 2)?),
        };
        items.push(KnownDevice::new(id(row, 0)?, keepalive, hash));
    }
    Ok(Page::new(items, None))
}

pub(super) fn pin_parameters(
    connection: &Connection,
    device: &DeviceId,
) -> rusqlite::Result<Option<PinParameters>> {
    let mut statement = connection.prepare_cached("SELECT salt, iterations FROM pin WHERE device = ?1")?;
    let read = |row: &Row<'_>| Ok(PinParameters { salt: array(row, 0)?, iterations: row.get(1)? });
    statement.query_row([device.folded()], read).optional()
}

pub(super) fn credential(connection: &Connection, device: &DeviceId) -> rusqlite::Result<Option<Credential>> {
    let mut statement = connection.prepare_cached(
        "SELECT token_hash, sha256_iterations, sha256_salt, sha256_stored_key, sha256_server_key,
         sha1_iterations, sha1_salt, sha1_stored_key, sha1_server_key FROM credential WHERE device = ?1",
    )?;
    let verifier = |row: &Row<'_>, from: usize| {
        Ok::<_, rusqlite::Error>(ScramVerifier {
            iterations: row.get(from)?,
            salt: row.get_ref(from + 1)?.as_blob()?.into(),
            stored_key: row.get_ref(from + 2)?.as_blob()?.into(),
            server_key: row.get_ref(from + 3)?.as_blob()?.into(),
        })
    };
    let read = |row: &Row<'_>| {
        Ok(Credential { token_hash: array(row, 0)?, sha256: verifier(row, 1)?, sha1: verifier(row, 5)? })
    };
    statement.query_row([device.folded()], read).optional()
}

pub(super) fn keys(connection: &Connection) -> rusqlite::Result<Vec<ServiceKey>> {
    let mut statement = connection
        .prepare_cached("SELECT spelling, hash, scopes, created, expires FROM service_key ORDER BY id")?;
    let keys = statement.query_map([], |row| {
        let id = KeyId::new(row.get_ref(0)?.as_str()?).map_err(|error| damaged(0, error))?;
        let scopes = serde_json::from_str(row.get_ref(2)?.as_str()?).map_err(|error| damaged(2, error))?;
        let key = ServiceKey::new(id, array(row, 1)?, scopes, time(row.get(3)?));
        Ok(match row.get::<_, Option<i64>>(4)? {
            Some(expires) => key.with_expiry(time(expires)),
            None => key,
        })
    })?;
    keys.collect()
}
