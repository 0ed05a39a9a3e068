//! What is written into the database, each within the transaction that the writer has open.

use std::time::SystemTime;

use relay_core::{
    ids::{AccountId, DeviceId, KeyId},
    store::{
        Credential, DeviceRecord, DeviceSettings, Enrolment, MAX_WRONG_PINS, Membership, Pin, PinAttempt,
        Prepared, Registered, Registration, ServiceKey, StoredSecret, fold, takes_books,
    },
};
use rusqlite::{Connection, OptionalExtension, params};

use super::{
    books,
    read::{self, milliseconds},
};

fn json(value: &impl serde::Serialize) -> rusqlite::Result<String> {
    serde_json::to_string(value).map_err(|error| rusqlite::Error::ToSqlConversionFailure(Box::new(error)))
}

pub(super) fn secret(connection: &Connection, name: &str) -> rusqlite::Result<StoredSecret> {
    connection
        .prepare_cached("INSERT INTO secret (name, value) VALUES (?1, ?2) ON CONFLICT DO NOTHING")?
        .execute(params![name, StoredSecret::random().expose()])?;
    let mut statement = connection.prepare_cached("SELECT value FROM secret WHERE name = ?1")?;
    statement.query_row([name], |row| row.get(0)).map(StoredSecret::new)
}

/// Makes `device` known if it is not, and gives back its folded ID.
fn know(connection: &Connection, device: &DeviceId, now: SystemTime) -> rusqlite::Result<String> {
    let id = device.folded();
    connection
        .prepare_cached(
            "INSERT INTO device (id, spelling, own, known_since) VALUES (?1, ?2, '{}', ?3) ON CONFLICT DO NOTHING",
        )?
        .execute(params![id, device.as_str(), milliseconds(now)])?;
    Ok(id)
}

/// The device as it stands now; it has just been made known.
fn stored(connection: &Connection, device: &DeviceId) -> rusqlite::Result<DeviceRecord> {
    read::device(connection, device)?.ok_or(rusqlite::Error::QueryReturnedNoRows)
}

/// Brings the columns that are searched up to what holds now.
fn index(connection: &Connection, id: &str, settings: &DeviceSettings) -> rusqlite::Result<()> {
    let folded = |text: &Option<String>| text.as_deref().map(fold);
    connection
        .prepare_cached(
            "UPDATE device SET folded_name = ?2, folded_model = ?3, folded_location = ?4 WHERE id = ?1",
        )?
        .execute(params![id, folded(&settings.name), folded(&settings.model), folded(&settings.location)])?;
    Ok(())
}

pub(super) fn prepare(
    connection: &Connection,
    devices: &[Prepared],
    now: SystemTime,
) -> rusqlite::Result<()> {
    for prepared in devices {
        let id = know(connection, &prepared.device, now)?;
        let DeviceSettings { name, model, mac, location } = &prepared.settings;
        connection
            .prepare_cached(
                "UPDATE device SET set_name = coalesce(?2, set_name), set_model = coalesce(?3, set_model),
                 set_mac = coalesce(?4, set_mac), set_location = coalesce(?5, set_location) WHERE id = ?1",
            )?
            .execute(params![id, name, model, mac, location])?;
        for account in &prepared.accounts {
            put_agreement(connection, &id, account, Membership::Administrator)?;
        }
        index(connection, &id, &stored(connection, &prepared.device)?.settings)?;
    }
    Ok(())
}

pub(super) fn register(
    connection: &Connection,
    device: &DeviceId,
    registration: &Registration,
    now: SystemTime,
) -> rusqlite::Result<Registered> {
    let id = know(connection, device, now)?;
    let first = connection
        .prepare_cached("SELECT registered_at IS NULL FROM device WHERE id = ?1")?
        .query_row([&id], |row| row.get(0))?;
    let keepalive = registration.keepalive.map(|time| i64::try_from(time.as_millis()).unwrap_or(i64::MAX));
    connection
        .prepare_cached("UPDATE device SET own = ?2, keepalive = ?3, registered_at = ?4 WHERE id = ?1")?
        .execute(params![id, json(&**registration)?, keepalive, milliseconds(now)])?;
    let claimed: Vec<String> = registration.accounts.iter().map(AccountId::folded).collect();
    connection
        .prepare_cached(
            "DELETE FROM agreement WHERE device = ?1 AND NOT by_administrator
             AND account NOT IN (SELECT value FROM json_each(?2))",
        )?
        .execute(params![id, json(&claimed)?])?;
    if !takes_books(&registration.apps) {
        books::forget(connection, &id)?;
    }
    let record = stored(connection, device)?;
    index(connection, &id, &record.settings)?;
    Ok(Registered::new(first, record))
}

fn put_agreement(
    connection: &Connection,
    device: &str,
    account: &AccountId,
    by: Membership,
) -> rusqlite::Result<()> {
    connection
        .prepare_cached(
            "INSERT INTO agreement (device, account, spelling, by_administrator) VALUES (?1, ?2, ?3, ?4)
             ON CONFLICT DO UPDATE SET by_administrator = max(by_administrator, excluded.by_administrator)",
        )?
        .execute(params![device, account.folded(), account.as_str(), by == Membership::Administrator])?;
    Ok(())
}

pub(super) fn agree(
    connection: &Connection,
    device: &DeviceId,
    account: &AccountId,
    by: Membership,
) -> rusqlite::Result<bool> {
    let Some(record) = read::device(connection, device)? else { return Ok(false) };
    if by == Membership::Account && !record.claimed_accounts.contains(account) {
        return Ok(false);
    }
    put_agreement(connection, &device.folded(), account, by)?;
    Ok(true)
}

pub(super) fn withdraw(
    connection: &Connection,
    device: &DeviceId,
    account: &AccountId,
) -> rusqlite::Result<bool> {
    let gone = connection
        .prepare_cached("DELETE FROM agreement WHERE device = ?1 AND account = ?2")?
        .execute([device.folded(), account.folded()])?;
    Ok(gone > 0)
}

pub(super) fn put_pin(connection: &Connection, pin: &Pin, now: SystemTime) -> rusqlite::Result<()> {
    let id = know(connection, &pin.device, now)?;
    connection
        .prepare_cached(
            "INSERT OR REPLACE INTO pin (device, salt, iterations, hash, expires, wrong) VALUES (?1, ?2, ?3, ?4, ?5, 0)",
        )?
        .execute(params![id, pin.parameters.salt, pin.parameters.iterations, pin.hash, milliseconds(pin.expires)])?;
    Ok(())
}

pub(super) fn enrol(
    connection: &Connection,
    attempt: &PinAttempt,
    credential: &Credential,
    now: SystemTime,
) -> rusqlite::Result<Enrolment> {
    let id = attempt.device.folded();
    let pin = connection
        .prepare_cached("SELECT salt, hash, expires, wrong FROM pin WHERE device = ?1")?
        .query_row([&id], |row| {
            Ok((
                row.get::<_, [u8; 16]>(0)?,
                row.get::<_, [u8; 32]>(1)?,
                row.get::<_, i64>(2)?,
                row.get::<_, u32>(3)?,
            ))
        })
        .optional()?;
    // T10: without a PIN a try is counted, too, and so waits for the disk like any other.
    connection.prepare_cached("UPDATE pin_refusals SET count = count + 1")?.execute([])?;
    let Some((salt, hash, expires, wrong)) = pin else { return Ok(Enrolment::Refused) };
    if salt != attempt.salt {
        return Ok(Enrolment::Refused);
    }
    if !attempt.meets(&hash) {
        connection
            .prepare_cached("UPDATE pin SET wrong = min(wrong + 1, 1000) WHERE device = ?1")?
            .execute([&id])?;
        return Ok(Enrolment::Refused);
    }
    if wrong >= MAX_WRONG_PINS || expires <= milliseconds(now) {
        return Ok(Enrolment::Refused);
    }
    connection.prepare_cached("DELETE FROM pin WHERE device = ?1")?.execute([&id])?;
    let Credential { token_hash, sha256, sha1 } = credential;
    connection
        .prepare_cached(
            "INSERT OR REPLACE INTO credential (device, token_hash,
             sha256_iterations, sha256_salt, sha256_stored_key, sha256_server_key,
             sha1_iterations, sha1_salt, sha1_stored_key, sha1_server_key)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
        )?
        .execute(params![
            id,
            token_hash,
            sha256.iterations,
            &*sha256.salt,
            &*sha256.stored_key,
            &*sha256.server_key,
            sha1.iterations,
            &*sha1.salt,
            &*sha1.stored_key,
            &*sha1.server_key,
        ])?;
    books::forget(connection, &id)?;
    connection.prepare_cached("UPDATE pin_refusals SET count = count - 1")?.execute([])?;
    Ok(Enrolment::Enrolled)
}

pub(super) fn put_key(connection: &Connection, key: &ServiceKey) -> rusqlite::Result<()> {
    connection
        .prepare_cached(
            "INSERT OR REPLACE INTO service_key (id, spelling, hash, scopes, created, expires)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        )?
        .execute(params![
            key.id.folded(),
            key.id.as_str(),
            key.hash,
            json(&key.scopes)?,
            milliseconds(key.created),
            key.expires.map(milliseconds),
        ])?;
    Ok(())
}

pub(super) fn remove_key(connection: &Connection, id: &KeyId) -> rusqlite::Result<bool> {
    let gone = connection.prepare_cached("DELETE FROM service_key WHERE id = ?1")?.execute([id.folded()])?;
    Ok(gone > 0)
}
