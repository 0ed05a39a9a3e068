//! The folder that a relay keeps its data in.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use relay_core::{
    auth::{Principal, Secret},
    ids::KeyId,
    store::{ServiceKey, StoreError},
};

use crate::relay::auth::{Auth, NewKeyError, sha256};

/// The name of the file that holds the administrator's key.
pub const ADMINISTRATOR_KEY: &str = "administrator.key";
const DATABASE: &str = "relay.sqlite";
const LOCK: &str = "relay.lock";

/// A data folder that this process alone uses, until the last clone is dropped.
#[derive(Debug, Clone)]
pub struct DataFolder {
    path: Arc<Path>,
    /// Locked as long as it is open; the system lets go of it when the process dies, however it does.
    _lock: Arc<File>,
}

/// Why a data folder cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FolderError {
    /// Another relay uses it.
    #[error("{} is in use by another relay; stop that one, or give this one a folder of its own", path.display())]
    InUse {
        /// Which folder.
        path: PathBuf,
    },
    /// Something in it cannot be made, read or written.
    #[error("cannot {what} {}", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The administrator's key could not be stored.
    #[error("the administrator's key cannot be stored")]
    Key(#[from] NewKeyError),
}

impl DataFolder {
    /// Opens `path`, making it (mode 700) if it is not there, and keeps every other relay out (F17). Blocks.
    ///
    /// # Errors
    /// [`FolderError`].
    pub fn open(path: &Path) -> Result<Self, FolderError> {
        let io = |what, path: &Path| {
            let path = path.to_owned();
            move |source| FolderError::Io { what, path, source }
        };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(io("make", path))?;
        let lock = path.join(LOCK);
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&lock)
            .map_err(io("open", &lock))?;
        match file.try_lock() {
            Ok(()) => Ok(Self { path: path.into(), _lock: Arc::new(file) }),
            Err(TryLockError::WouldBlock) => Err(FolderError::InUse { path: path.to_owned() }),
            Err(TryLockError::Error(error)) => Err(io("lock", &lock)(error)),
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The database. If it is gone while other things show that it was there, that is damage, not a fresh folder
    /// (F16).
    pub(super) fn database(&self) -> Result<PathBuf, StoreError> {
        let database = self.path.join(DATABASE);
        if !database.exists() {
            let remains = [ADMINISTRATOR_KEY, "relay.sqlite-wal"].map(|name| self.path.join(name));
            if let Some(remains) = remains.iter().find(|remains| remains.exists()) {
                return Err(StoreError::damaged(format!(
                    "{} is gone while {} is there; bring it back, or remove the rest to begin anew",
                    database.display(),
                    remains.display()
                )));
            }
        }
        Ok(database)
    }

    /// Makes sure that the folder holds a working administrator's key, mode 600, and says where. A key that was lost,
    /// or no longer works, is replaced and stops working.
    ///
    /// # Errors
    /// [`FolderError`].
    pub async fn administrator_key(&self, auth: &Auth) -> Result<PathBuf, FolderError> {
        let path = self.path.join(ADMINISTRATOR_KEY);
        let io = |what, path: &Path| {
            let path = path.to_owned();
            move |source| FolderError::Io { what, path, source }
        };
        match fs::read_to_string(&path) {
            Ok(text) => {
                let key = Secret::new(text.trim());
                if matches!(auth.principal(&key), Some(Principal::Administrator(_))) {
                    fs::set_permissions(&path, fs::Permissions::from_mode(0o600))
                        .map_err(io("protect", &path))?;
                    return Ok(path);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(io("read", &path)(error)),
        }
        let key = Secret::random();
        let id = KeyId::new("administrator")
            .map_err(|e| NewKeyError::Store(StoreError::damaged(e.to_string())))?;
        let stored = ServiceKey::new(id, sha256(&key), vec!["admin".into()], SystemTime::now());
        auth.put_key(stored).await?;
        // Under another name first: a reader never sees half a key, and never one with a wider mode.
        let new = self.path.join("administrator.key.new");
        let write = || {
            match fs::remove_file(&new) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            let mut file = OpenOptions::new().create_new(true).write(true).mode(0o600).open(&new)?;
            writeln!(file, "{}", key.expose())?;
            file.sync_all()?;
            fs::rename(&new, &path)?;
            File::open(&self.path)?.sync_all()
        };
        write().map_err(io("write", &path))?;
        Ok(path)
    }
}
