//! The relay's data folder and the SQLite store in it.
//!
//! ```text
//!   relay-data/          mode 700, one relay at a time
//!     relay.sqlite       mode 600; -wal and -shm beside it while in use
//!     relay.lock         held by the relay that runs
//!     administrator.key  mode 600
//! ```

mod books;
mod folder;
mod read;
mod schema;
mod seal;
mod sqlite;
mod write;
mod writer;

pub use self::{
    folder::{ADMINISTRATOR_KEY, DataFolder, FolderError},
    sqlite::SqliteStore,
};
