//! A checksum of every row.
//!
//! SQLite finds damage to the structure of its file, but not to what stands in a row: a flipped bit in a hash or a name
//! is a value like any other to it. So each row has a `seal` of its other columns, which triggers of the writing
//! connection keep up, and which is compared for every row when the database is opened.

use rusqlite::{Connection, functions::FunctionFlags, types::ValueRef};
use sha2::{Digest, Sha256};

/// Tables by name, with their keys and all their columns but the seal. A migration that changes a table's columns has
/// [`renew`] called after it.
const SEALED: &[(&str, &str, &[&str])] = &[
    ("secret", "name", &["name", "value"]),
    (
        "device",
        "id",
        &[
            "id",
            "spelling",
            "own",
            "keepalive",
            "set_name",
            "set_model",
            "set_mac",
            "set_location",
            "folded_name",
            "folded_model",
            "folded_location",
            "known_since",
            "registered_at",
        ],
    ),
    ("agreement", "device, account", &["device", "account", "spelling", "by_administrator"]),
    ("pin", "device", &["device", "salt", "iterations", "hash", "expires", "wrong"]),
    (
        "credential",
        "device",
        &[
            "device",
            "token_hash",
            "sha256_iterations",
            "sha256_salt",
            "sha256_stored_key",
            "sha256_server_key",
            "sha1_iterations",
            "sha1_salt",
            "sha1_stored_key",
            "sha1_server_key",
        ],
    ),
    ("service_key", "id", &["id", "spelling", "hash", "scopes", "created", "expires"]),
    ("book", "account, id", &["account", "id", "account_spelling", "spelling", "version"]),
    ("book_version", "account, book, version", &["account", "book", "version", "content"]),
    ("book_copy", "device, account, book", &["device", "account", "book", "version"]),
];

/// Has every row that `connection` writes from now on sealed.
pub(super) fn keep(connection: &Connection) -> rusqlite::Result<()> {
    define(connection)?;
    for (table, key, columns) in SEALED {
        let new = |columns: &[&str]| {
            columns.iter().map(|column| format!("NEW.{column}")).collect::<Vec<_>>().join(", ")
        };
        let keys: Vec<&str> = key.split(", ").collect();
        let seal = format!(
            "BEGIN UPDATE {table} SET seal = seal('{table}', {}) WHERE ({key}) = ({}); END",
            new(columns),
            new(&keys)
        );
        // Temporary: of this connection alone, so that they always fit this program.
        connection.execute_batch(&format!(
            "CREATE TEMP TRIGGER {table}_inserted AFTER INSERT ON main.{table} {seal};
             CREATE TEMP TRIGGER {table}_updated AFTER UPDATE OF {} ON main.{table} {seal};",
            columns.join(", ")
        ))?;
    }
    Ok(())
}

/// The first table with a row whose seal is not of what stands in it.
pub(super) fn broken(connection: &Connection) -> rusqlite::Result<Option<&'static str>> {
    define(connection)?;
    for (table, _, columns) in SEALED {
        let sql = format!(
            "SELECT count(*) FROM {table} NOT INDEXED WHERE seal IS NOT seal('{table}', {})",
            columns.join(", ")
        );
        let broken: i64 = connection.query_row(&sql, [], |row| row.get(0))?;
        if broken > 0 {
            return Ok(Some(table));
        }
    }
    Ok(None)
}

/// Seals every row anew.
pub(super) fn renew(connection: &Connection) -> rusqlite::Result<()> {
    define(connection)?;
    for (table, _, columns) in SEALED {
        connection
            .execute(&format!("UPDATE {table} SET seal = seal('{table}', {})", columns.join(", ")), [])?;
    }
    Ok(())
}

fn define(connection: &Connection) -> rusqlite::Result<()> {
    let flags =
        FunctionFlags::SQLITE_UTF8 | FunctionFlags::SQLITE_DETERMINISTIC | FunctionFlags::SQLITE_INNOCUOUS;
    connection.create_scalar_function("seal", -1, flags, |context| {
        let mut hash = Sha256::new();
        for at in 0..context.len() {
            // Kind and length first, so that no two rows are written alike.
            let mut put = |kind: u8, bytes: &[u8]| {
                hash.update([kind]);
                hash.update((bytes.len() as u64).to_le_bytes());
                hash.update(bytes);
            };
            match context.get_raw(at) {
                ValueRef::Null => put(0, &[]),
                ValueRef::Integer(number) => put(1, &number.to_le_bytes()),
                ValueRef::Real(number) => put(2, &number.to_le_bytes()),
                ValueRef::Text(text) => put(3, text),
                ValueRef::Blob(bytes) => put(4, bytes),
            }
        }
        let hash: [u8; 32] = hash.finalize().into();
        Ok(hash.first_chunk().map_or(0, |first| i64::from_le_bytes(*first)))
    })
}
