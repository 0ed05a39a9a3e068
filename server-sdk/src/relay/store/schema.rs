//! The database's form, its versions, and how it is opened.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::Path,
    sync::Arc,
    time::Duration,
};

use relay_core::store::StoreError;
use rusqlite::{Connection, ErrorCode, OpenFlags};

use super::seal;

/// `relY`: tells the relay's databases from any other (`PRAGMA application_id`).
const APPLICATION: i32 = 0x7265_6c59;

/// What makes version n + 1 of version n, by n. Each is run in one transaction with the change of the version number.
const MIGRATIONS: &[&str] = &[
    // `seal` is a checksum of its row. IDs are folded to lower case; `spelling` is how they were first written. Times
    // are milliseconds since 1970.
    "
    CREATE TABLE secret (
        name  TEXT NOT NULL PRIMARY KEY,
        value BLOB NOT NULL CHECK (length(value) = 32),
        seal  INTEGER NOT NULL DEFAULT 0
    ) STRICT, WITHOUT ROWID;

    CREATE TABLE device (
        id              TEXT NOT NULL PRIMARY KEY,
        spelling        TEXT NOT NULL,
        own             TEXT NOT NULL,
        keepalive       INTEGER,
        set_name        TEXT,
        set_model       TEXT,
        set_mac         TEXT,
        set_location    TEXT,
        folded_name     TEXT,
        folded_model    TEXT,
        folded_location TEXT,
        known_since     INTEGER NOT NULL,
        registered_at   INTEGER,
        seal            INTEGER NOT NULL DEFAULT 0
    ) STRICT;
    CREATE INDEX device_by_name ON device (folded_name, id);
    CREATE INDEX device_by_model ON device (folded_model, id);
    CREATE INDEX device_by_location ON device (folded_location, id);

    CREATE TABLE agreement (
        device           TEXT NOT NULL REFERENCES device (id) ON DELETE CASCADE,
        account          TEXT NOT NULL,
        spelling         TEXT NOT NULL,
        by_administrator INTEGER NOT NULL CHECK (by_administrator IN (0, 1)),
        seal             INTEGER NOT NULL DEFAULT 0,
        PRIMARY KEY (device, account)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX agreement_by_account ON agreement (account, device);

    CREATE TABLE pin (
        device     TEXT NOT NULL PRIMARY KEY REFERENCES device (id) ON DELETE CASCADE,
        salt       BLOB NOT NULL CHECK (length(salt) = 16),
        iterations INTEGER NOT NULL,
        hash       BLOB NOT NULL CHECK (length(hash) = 32),
        expires    INTEGER NOT NULL,
        wrong      INTEGER NOT NULL,
        seal       INTEGER NOT NULL DEFAULT 0
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE pin_refusals (only INTEGER NOT NULL PRIMARY KEY CHECK (only = 1), count INTEGER NOT NULL) STRICT;
    INSERT INTO pin_refusals VALUES (1, 0);

    CREATE TABLE credential (
        device            TEXT NOT NULL PRIMARY KEY REFERENCES device (id) ON DELETE CASCADE,
        token_hash        BLOB NOT NULL CHECK (length(token_hash) = 32),
        sha256_iterations INTEGER NOT NULL,
        sha256_salt       BLOB NOT NULL,
        sha256_stored_key BLOB NOT NULL,
        sha256_server_key BLOB NOT NULL,
        sha1_iterations   INTEGER NOT NULL,
        sha1_salt         BLOB NOT NULL,
        sha1_stored_key   BLOB NOT NULL,
        sha1_server_key   BLOB NOT NULL,
        seal              INTEGER NOT NULL DEFAULT 0
    ) STRICT, WITHOUT ROWID;

    CREATE TABLE service_key (
        id       TEXT NOT NULL PRIMARY KEY,
        spelling TEXT NOT NULL,
        hash     BLOB NOT NULL CHECK (length(hash) = 32),
        scopes   TEXT NOT NULL,
        created  INTEGER NOT NULL,
        expires  INTEGER,
        seal     INTEGER NOT NULL DEFAULT 0
    ) STRICT, WITHOUT ROWID;
    ",
    // Address books: the current version of each, what is in that and in those before it, and which version each device
    // has. A device that no longer counts for an account may have lost what it had of it.
    "
    CREATE TABLE book (
        account          TEXT NOT NULL,
        id               TEXT NOT NULL,
        account_spelling TEXT NOT NULL,
        spelling         TEXT NOT NULL,
        version          INTEGER NOT NULL,
        seal             INTEGER NOT NULL DEFAULT 0,
        PRIMARY KEY (account, id)
    ) STRICT, WITHOUT ROWID;

    CREATE TABLE book_version (
        account TEXT NOT NULL,
        book    TEXT NOT NULL,
        version INTEGER NOT NULL,
        content TEXT NOT NULL,
        seal    INTEGER NOT NULL DEFAULT 0,
        PRIMARY KEY (account, book, version),
        FOREIGN KEY (account, book) REFERENCES book (account, id) ON DELETE CASCADE
    ) STRICT;

    CREATE TABLE book_copy (
        device  TEXT NOT NULL,
        account TEXT NOT NULL,
        book    TEXT NOT NULL,
        version INTEGER NOT NULL,
        seal    INTEGER NOT NULL DEFAULT 0,
        PRIMARY KEY (device, account, book),
        FOREIGN KEY (device, account) REFERENCES agreement (device, account) ON DELETE CASCADE
    ) STRICT, WITHOUT ROWID;
    ",
];

/// The version that this program writes.
pub(super) fn supported() -> i64 {
    i64::try_from(MIGRATIONS.len()).unwrap_or(i64::MAX)
}

/// Opens the database at `path` to write it: makes it whole if there is none, checks it if there is one, and brings
/// it to the supported version. A database that is damaged is left as it is.
pub(super) fn open(path: &Path) -> Result<Connection, StoreError> {
    if !path.exists() {
        create(path, MIGRATIONS)?;
    }
    let length = fs::metadata(path).map_err(|error| io_error("read", path, error))?.len();
    // SQLite takes an empty file for a new database. Ours is never empty: it gets its name once it is whole.
    if length == 0 {
        return Err(StoreError::damaged(format!("{} is empty", path.display())));
    }
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))
        .map_err(|error| io_error("protect", path, error))?;
    let mut connection =
        connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE).map_err(|error| store_error(path, error))?;
    check(path, &connection)?;
    let finish = |connection: &mut Connection| {
        if migrate(connection, MIGRATIONS)? {
            seal::renew(connection)?;
        }
        seal::keep(connection)
    };
    finish(&mut connection).map_err(|error| store_error(path, error))?;
    Ok(connection)
}

/// Opens the database at `path` to read it.
pub(super) fn open_reader(path: &Path) -> Result<Connection, StoreError> {
    connect(path, OpenFlags::SQLITE_OPEN_READ_ONLY).map_err(|error| store_error(path, error))
}

fn connect(path: &Path, flags: OpenFlags) -> rusqlite::Result<Connection> {
    let connection = Connection::open_with_flags(path, flags | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    connection.busy_timeout(Duration::from_secs(5))?;
    connection.set_prepared_statement_cache_capacity(64);
    // KiB. What is read often is in memory already; SQLite's own 2 MiB for each reader would be the fleet's.
    connection.pragma_update(None, "cache_size", -128)?;
    connection.pragma_update(None, "foreign_keys", true)?;
    connection.pragma_update(None, "trusted_schema", false)?;
    connection.pragma_update(None, "cell_size_check", true)?;
    // R1: durable means synced before the acknowledgement.
    connection.pragma_update(None, "synchronous", "FULL")?;
    Ok(connection)
}

/// Makes a new database under another name, and gives it its own once it is whole and on disk: at no moment is there
/// half a database, so an empty one is always damage.
fn create(path: &Path, migrations: &[&str]) -> Result<(), StoreError> {
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    let new = Path::new(&new);
    let files = || -> io::Result<()> {
        match fs::remove_file(new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        OpenOptions::new().create_new(true).write(true).mode(0o600).open(new).map(drop)
    };
    files().map_err(|error| io_error("make", new, error))?;
    let fill = || -> rusqlite::Result<()> {
        let mut connection = connect(new, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
        connection.pragma_update(None, "application_id", APPLICATION)?;
        migrate(&mut connection, migrations)?;
        // Written into the file's head: all that open it later use the log. Closing empties the log.
        connection.pragma_update_and_check(None, "journal_mode", "WAL", |_| Ok(()))?;
        connection.close().map_err(|(_, error)| error)
    };
    fill().map_err(|error| store_error(new, error))?;
    let name = || -> io::Result<()> {
        File::open(new)?.sync_all()?;
        fs::rename(new, path)?;
        path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
    };
    name().map_err(|error| io_error("make", path, error))
}

/// Refuses what is not ours, not whole, or not of our time.
fn check(path: &Path, connection: &Connection) -> Result<(), StoreError> {
    let store_error = |error| store_error(path, error);
    let application: i32 =
        connection.pragma_query_value(None, "application_id", |row| row.get(0)).map_err(store_error)?;
    if application != APPLICATION {
        return Err(StoreError::damaged(format!("{} is not a relay's database", path.display())));
    }
    let found: i64 =
        connection.pragma_query_value(None, "user_version", |row| row.get(0)).map_err(store_error)?;
    let supported = supported();
    if found > supported {
        return Err(StoreError::Version { found, supported });
    }
    if found < 1 {
        return Err(StoreError::damaged(format!(
            "{} has version {found}, which there never was",
            path.display()
        )));
    }
    let mode: String =
        connection.pragma_query_value(None, "journal_mode", |row| row.get(0)).map_err(store_error)?;
    if mode != "wal" {
        return Err(StoreError::damaged(format!(
            "{} is in journal mode {mode:?}, not in WAL",
            path.display()
        )));
    }
    let verdict: String =
        connection.pragma_query_value(None, "integrity_check", |row| row.get(0)).map_err(store_error)?;
    if verdict != "ok" {
        return Err(StoreError::damaged(format!("{}: {verdict}", path.display())));
    }
    if found == supported {
        if schema(connection).map_err(store_error)? != expected_schema().map_err(store_error)? {
            return Err(StoreError::damaged(format!("{} has other tables than were made", path.display())));
        }
        if let Some(table) = seal::broken(connection).map_err(store_error)? {
            let words = format!("{}: a row of {table} is not what was written there", path.display());
            return Err(StoreError::damaged(words));
        }
    }
    // With the log worked in, nothing of the file may be missing. SQLite itself reads what is missing as zeros.
    connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).map_err(store_error)?;
    let pragma =
        |name| connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0)).map_err(store_error);
    let expected = pragma("page_count")?.saturating_mul(pragma("page_size")?).unsigned_abs();
    let length = fs::metadata(path).map_err(|error| io_error("read", path, error))?.len();
    if length != expected {
        let words = format!("{} has {length} bytes where there should be {expected}", path.display());
        return Err(StoreError::damaged(words));
    }
    Ok(())
}

/// Tables and indexes by their text.
fn schema(connection: &Connection) -> rusqlite::Result<Vec<String>> {
    let mut statement = connection
        .prepare("SELECT format('%s %s %s %s', type, name, tbl_name, sql) FROM sqlite_schema ORDER BY 1")?;
    let texts = statement.query_map([], |row| row.get(0))?;
    texts.collect()
}

fn expected_schema() -> rusqlite::Result<Vec<String>> {
    let mut connection = Connection::open_in_memory()?;
    migrate(&mut connection, MIGRATIONS)?;
    schema(&connection)
}

/// Brings the database to the last version that `migrations` make, a version at a time (F28: never between two). True
/// if it was not there already.
fn migrate(connection: &mut Connection, migrations: &[&str]) -> rusqlite::Result<bool> {
    let mut migrated = false;
    loop {
        let transaction = connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
        let found: i64 = transaction.pragma_query_value(None, "user_version", |row| row.get(0))?;
        let Some(migration) = usize::try_from(found).ok().and_then(|at| migrations.get(at)) else {
            return Ok(migrated);
        };
        transaction.execute_batch(migration)?;
        transaction.pragma_update(None, "user_version", found + 1)?;
        transaction.commit()?;
        migrated = true;
    }
}

fn io_error(what: &str, path: &Path, error: io::Error) -> StoreError {
    StoreError::Unavailable {
        words: format!("cannot {what} {}", path.display()).into(),
        source: Some(Arc::new(error)),
    }
}

/// What an error of SQLite's means to the caller.
pub(super) fn store_error(path: &Path, error: rusqlite::Error) -> StoreError {
    let damaged = match &error {
        rusqlite::Error::SqliteFailure(failure, _) => {
            matches!(failure.code, ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase)
        }
        // A row that does not read as what was written into it.
        rusqlite::Error::FromSqlConversionFailure(..)
        | rusqlite::Error::IntegralValueOutOfRange(..)
        | rusqlite::Error::InvalidColumnType(..)
        | rusqlite::Error::Utf8Error(..) => true,
        _ => false,
    };
    let words = format!("{}: {error}", path.display()).into();
    let source = Some(Arc::new(error) as _);
    if damaged { StoreError::Damaged { words, source } } else { StoreError::Unavailable { words, source } }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder() -> tempfile::TempDir {
        tempfile::tempdir().unwrap()
    }

    #[test]
    fn a_new_database_is_whole_private_and_of_the_supported_version() {
        let folder = folder();
        let path = folder.path().join("relay.sqlite");
        drop(open(&path).unwrap());
        let connection = open(&path).unwrap();
        let version: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0)).unwrap();
        assert_eq!(version, supported());
        let synchronous: i64 = connection.pragma_query_value(None, "synchronous", |row| row.get(0)).unwrap();
        assert_eq!(synchronous, 2, "FULL");
        connection.execute("UPDATE pin_refusals SET count = 1", []).unwrap();
        for file in fs::read_dir(folder.path()).unwrap() {
            let file = file.unwrap();
            assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{:?}", file.path());
        }
        assert!(!folder.path().join("relay.sqlite.new").exists());
    }

    #[test]
    fn f16_what_is_no_database_of_ours_is_refused_and_left_alone() {
        let folder = folder();
        let path = folder.path().join("relay.sqlite");
        for content in [&b""[..], b"hello", &[0; 8192]] {
            fs::write(&path, content).unwrap();
            assert!(matches!(open(&path), Err(StoreError::Damaged { .. })), "{content:?}");
            assert_eq!(fs::read(&path).unwrap(), content);
        }
        fs::remove_file(&path).unwrap();
        let foreign = Connection::open(&path).unwrap();
        foreign.execute_batch("CREATE TABLE t (x); PRAGMA user_version = 1").unwrap();
        drop(foreign);
        let error = open(&path).unwrap_err().to_string();
        assert!(error.contains("not a relay's database"), "{error}");
    }

    #[test]
    fn f28_another_version_is_refused_by_number() {
        let folder = folder();
        let path = folder.path().join("relay.sqlite");
        let connection = open(&path).unwrap();
        let newer = format!("has version {}, this program reads up to {}", supported() + 1, supported());
        for (version, expected) in [(supported() + 1, &*newer), (0, "version 0")] {
            connection.pragma_update(None, "user_version", version).unwrap();
            let error = open(&path).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn f28_a_database_of_any_version_before_becomes_one_of_this_with_all_that_is_in_it() {
        for version in 1..MIGRATIONS.len() {
            let folder = folder();
            let path = folder.path().join("relay.sqlite");
            create(&path, &MIGRATIONS[..version]).unwrap();
            let old = connect(&path, OpenFlags::SQLITE_OPEN_READ_WRITE).unwrap();
            old.execute_batch(
                "INSERT INTO device (id, spelling, own, known_since) VALUES ('d', 'D', '{}', 1);
                 INSERT INTO agreement (device, account, spelling, by_administrator) VALUES ('d', 'a', 'A', 1);",
            )
            .unwrap();
            drop(old);
            drop(open(&path).unwrap());
            // Opened again, it is looked at as one that was never anything else.
            let connection = open(&path).unwrap();
            let spelling: String = connection
                .query_row("SELECT d.spelling FROM device AS d JOIN agreement ON device = d.id", [], |row| {
                    row.get(0)
                })
                .unwrap();
            assert_eq!(spelling, "D", "from version {version}");
        }
    }

    #[test]
    fn f16_a_truncated_database_is_refused() {
        let folder = folder();
        let path = folder.path().join("relay.sqlite");
        drop(open(&path).unwrap());
        let whole = fs::read(&path).unwrap();
        for length in (1..whole.len()).step_by(509) {
            fs::write(&path, &whole[..length]).unwrap();
            let error =
                open(&path).err().unwrap_or_else(|| panic!("{length} of {} bytes were taken", whole.len()));
            assert!(matches!(error, StoreError::Damaged { .. }), "{length}: {error}");
            for rest in ["-wal", "-shm"] {
                let _ = fs::remove_file(folder.path().join(format!("relay.sqlite{rest}")));
            }
        }
    }
}
