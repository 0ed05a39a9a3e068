//! Address books in the database.

use std::{sync::Arc, time::SystemTime};

use relay_core::{
    book::{APP, BookKey, MAX_BOOKS, Version, kept},
    ids::{AccountId, BookId, DeviceId},
    store::{BookPut, BookRecord, BookStored, MAX_PAGE, Page},
};
use rusqlite::{Connection, OptionalExtension, Row, named_params, params};

use super::read::{damaged, id};

/// Whether the device `d` has the app.
const SHARES: &str = "EXISTS (SELECT 1 FROM json_each(d.own, '$.apps') AS app
    WHERE lower(json_extract(app.value, '$.name')) = :app)";

fn version(row: &Row<'_>, column: usize) -> rusqlite::Result<Version> {
    let number: i64 = row.get(column)?;
    u64::try_from(number)
        .ok()
        .and_then(|number| Version::new(number).ok())
        .ok_or(rusqlite::Error::IntegralValueOutOfRange(column, number))
}

fn number(version: Version) -> i64 {
    i64::try_from(version.number()).unwrap_or(i64::MAX)
}

fn key(row: &Row<'_>, column: usize) -> rusqlite::Result<BookKey> {
    let account = AccountId::new(row.get_ref(column)?.as_str()?).map_err(|error| damaged(column, error))?;
    let book = BookId::new(row.get_ref(column + 1)?.as_str()?).map_err(|error| damaged(column + 1, error))?;
    Ok(BookKey::new(account, book))
}

pub(super) fn book(connection: &Connection, wanted: &BookKey) -> rusqlite::Result<Option<BookRecord>> {
    let mut statement = connection.prepare_cached(
        "SELECT account_spelling, spelling, book.version, content FROM book
         JOIN book_version ON book_version.account = book.account AND book_version.book = id
             AND book_version.version = book.version
         WHERE book.account = ?1 AND id = ?2",
    )?;
    let read = |row: &Row<'_>| {
        Ok(BookRecord::new(key(row, 0)?, version(row, 2)?, Arc::from(row.get_ref(3)?.as_str()?)))
    };
    statement.query_row([wanted.account.folded(), wanted.book.folded()], read).optional()
}

pub(super) fn content(
    connection: &Connection,
    book: &BookKey,
    version: Version,
) -> rusqlite::Result<Option<Arc<str>>> {
    let mut statement = connection.prepare_cached(
        "SELECT content FROM book_version WHERE account = ?1 AND book = ?2 AND version = ?3",
    )?;
    let wanted = params![book.account.folded(), book.book.folded(), number(version)];
    statement.query_row(wanted, |row| Ok(Arc::from(row.get_ref(0)?.as_str()?))).optional()
}

pub(super) fn put(connection: &Connection, put: &BookPut, now: SystemTime) -> rusqlite::Result<BookStored> {
    let (account, id) = (put.key.account.folded(), put.key.book.folded());
    let current = connection
        .prepare_cached("SELECT version FROM book WHERE account = ?1 AND id = ?2")?
        .query_row([&account, &id], |row| version(row, 0))
        .optional()?;
    if current != put.follows {
        return Ok(BookStored::Stale);
    }
    if current.is_none() {
        let count: i64 = connection
            .prepare_cached("SELECT count(*) FROM book WHERE account = ?1")?
            .query_row([&account], |row| row.get(0))?;
        if usize::try_from(count).unwrap_or(0) >= MAX_BOOKS {
            return Ok(BookStored::Full);
        }
    }
    let made = Version::after(current, now);
    let oldest = oldest_kept(connection, &account, &id)?;
    connection
        .prepare_cached("DELETE FROM book_version WHERE account = ?1 AND book = ?2 AND version < ?3")?
        .execute(params![account, id, oldest.map_or(i64::MAX, number)])?;
    connection
        .prepare_cached(
            "INSERT INTO book (account, id, account_spelling, spelling, version) VALUES (?1, ?2, ?3, ?4, ?5)
             ON CONFLICT DO UPDATE SET version = excluded.version",
        )?
        .execute(params![account, id, put.key.account.as_str(), put.key.book.as_str(), number(made)])?;
    connection
        .prepare_cached("INSERT INTO book_version (account, book, version, content) VALUES (?1, ?2, ?3, ?4)")?
        .execute(params![account, id, number(made), &*put.content])?;
    if let Some(holder) = &put.holder {
        hold(connection, &put.key, holder, made)?;
    }
    Ok(BookStored::Stored(made))
}

/// The oldest of a book's versions that is kept once there is another one.
fn oldest_kept(connection: &Connection, account: &str, id: &str) -> rusqlite::Result<Option<Version>> {
    let mut statement = connection.prepare_cached(
        "SELECT version, octet_length(content) FROM book_version WHERE account = ?1 AND book = ?2
         ORDER BY version DESC",
    )?;
    let sizes = statement.query_map([account, id], |row| Ok((version(row, 0)?, row.get::<_, i64>(1)?)))?;
    let sizes: Vec<(Version, i64)> = sizes.collect::<rusqlite::Result<_>>()?;
    let kept = kept(sizes.iter().map(|(_, size)| usize::try_from(*size).unwrap_or(usize::MAX)));
    Ok(sizes.get(..kept).and_then(<[_]>::last).map(|(version, _)| *version))
}

pub(super) fn hold(
    connection: &Connection,
    book: &BookKey,
    device: &DeviceId,
    version: Version,
) -> rusqlite::Result<bool> {
    let held = connection
        .prepare_cached(
            "INSERT INTO book_copy (device, account, book, version) SELECT device, account, ?3, ?4 FROM agreement
             WHERE device = ?1 AND account = ?2
             ON CONFLICT DO UPDATE SET version = max(version, excluded.version)",
        )?
        .execute(params![device.folded(), book.account.folded(), book.book.folded(), number(version)])?;
    Ok(held > 0)
}

/// Forgets what `device` holds.
pub(super) fn forget(connection: &Connection, device: &str) -> rusqlite::Result<()> {
    connection.prepare_cached("DELETE FROM book_copy WHERE device = ?1")?.execute([device])?;
    Ok(())
}

pub(super) fn lacking_devices(
    connection: &Connection,
    book: &BookKey,
    after: Option<&DeviceId>,
    limit: usize,
) -> rusqlite::Result<Page<DeviceId>> {
    let limit = limit.clamp(1, MAX_PAGE);
    let mut statement = connection.prepare_cached(&format!(
        "SELECT d.spelling FROM book AS b
         JOIN agreement AS a ON a.account = b.account AND a.device > :after
         JOIN device AS d ON d.id = a.device
         LEFT JOIN book_copy AS c ON c.device = a.device AND c.account = b.account AND c.book = b.id
         WHERE b.account = :account AND b.id = :book AND c.version IS NOT b.version AND {SHARES}
         ORDER BY a.device LIMIT :limit"
    ))?;
    let mut rows = statement.query(named_params! {
        ":account": book.account.folded(),
        ":book": book.book.folded(),
        ":after": after.map(DeviceId::folded).unwrap_or_default(),
        ":app": APP,
        ":limit": i64::try_from(limit + 1).unwrap_or(i64::MAX),
    })?;
    let mut devices: Vec<DeviceId> = Vec::new();
    while let Some(row) = rows.next()? {
        if devices.len() == limit {
            let last = devices.last().cloned();
            return Ok(Page::new(devices, last));
        }
        devices.push(id(row, 0)?);
    }
    Ok(Page::new(devices, None))
}

pub(super) fn lacking_books(
    connection: &Connection,
    devices: &[DeviceId],
) -> rusqlite::Result<Vec<(DeviceId, BookKey, Version)>> {
    let mut lacking = Vec::new();
    // Most relays have no books, and all their devices are asked about.
    let any: bool =
        connection.prepare_cached("SELECT EXISTS (SELECT 1 FROM book)")?.query_row([], |row| row.get(0))?;
    if !any {
        return Ok(lacking);
    }
    let mut statement = connection.prepare_cached(&format!(
        "SELECT b.account_spelling, b.spelling, b.version FROM device AS d
         JOIN agreement AS a ON a.device = d.id
         JOIN book AS b ON b.account = a.account
         LEFT JOIN book_copy AS c ON c.device = d.id AND c.account = b.account AND c.book = b.id
         WHERE d.id = :device AND c.version IS NOT b.version AND {SHARES}
         ORDER BY b.account, b.id LIMIT :limit"
    ))?;
    let limit = i64::try_from(MAX_PAGE).unwrap_or(i64::MAX);
    for device in devices {
        let wanted = named_params! {":device": device.folded(), ":app": APP, ":limit": limit};
        let mut books = statement.query(wanted)?;
        while let Some(row) = books.next()? {
            lacking.push((device.clone(), key(row, 0)?, version(row, 2)?));
        }
    }
    Ok(lacking)
}
