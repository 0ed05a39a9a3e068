//! Documents that are kept on the relay, to be printed as often as wanted.
//!
//! A document belongs to the key that sent it: another key's documents are not there for one (X2). Its name is an ID,
//! and names no file; what it takes is counted with all other documents.

use std::{
    collections::{BTreeMap, HashMap},
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use data_encoding::HEXLOWER;
use relay_core::{
    app::Digest,
    ids::{DocumentId, KeyId},
};
use serde::{Deserialize, Serialize};

use super::spool::{Held, Kind, Spool, SpoolError, Spooled, Writer};

/// A document that is kept.
#[derive(Debug)]
pub(crate) struct Kept {
    pub(crate) name: DocumentId,
    pub(crate) content_type: Box<str>,
    pub(crate) digest: Digest,
    pub(crate) created: SystemTime,
    file: Box<str>,
    /// Where files have no names, it is there as long as it is open.
    open: Option<Arc<Spooled>>,
    /// What it counts for, while it is not open.
    _held: Option<Held>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Note {
    owner: KeyId,
    name: DocumentId,
    content_type: Box<str>,
    bytes: u64,
    sha256: String,
    /// Milliseconds since 1970.
    created: u64,
}

impl Note {
    fn digest(&self) -> Option<Digest> {
        let sha256 = HEXLOWER.decode(self.sha256.as_bytes()).ok()?.try_into().ok()?;
        Some(Digest { bytes: self.bytes, sha256 })
    }
}

/// Why a document is not kept.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KeepError {
    /// The key has as many as it may.
    #[error("the key keeps {max} documents already")]
    TooMany { max: usize },
    /// As all documents.
    #[error(transparent)]
    Spool(#[from] SpoolError),
}

/// All documents that are kept.
#[derive(Debug)]
pub(crate) struct Documents {
    spool: Spool,
    table: Mutex<HashMap<KeyId, BTreeMap<DocumentId, Arc<Kept>>>>,
}

impl Documents {
    /// Those that `spool` has. Whose key is gone (`holds` says no) are nobody's, and go.
    ///
    /// # Errors
    /// If their folder cannot be read.
    pub(crate) async fn load(spool: Spool, holds: impl Fn(&KeyId) -> bool) -> io::Result<Self> {
        let mut table: HashMap<KeyId, BTreeMap<_, Arc<Kept>>> = HashMap::new();
        for (file, note) in spool.notes(Kind::Kept).await? {
            let note = serde_json::from_value::<Note>(note).ok().filter(|note| holds(&note.owner));
            let Some((note, digest)) = note.and_then(|note| note.digest().map(|digest| (note, digest)))
            else {
                spool.remove(Kind::Kept, &file).await;
                continue;
            };
            let kept = Kept {
                name: note.name.clone(),
                content_type: note.content_type,
                digest,
                created: SystemTime::UNIX_EPOCH + Duration::from_millis(note.created),
                file,
                open: None,
                _held: Some(spool.hold(digest.bytes)),
            };
            let others = table.entry(note.owner).or_default();
            // Of two under one name, one is from a relay that died between writing the one and removing the other.
            let loser = match others.get(&note.name) {
                Some(other) if other.created > kept.created => Some(kept.file.clone()),
                _ => others.insert(note.name, Arc::new(kept)).map(|older| older.file.clone()),
            };
            if let Some(loser) = loser {
                spool.remove(Kind::Kept, &loser).await;
            }
        }
        Ok(Self { spool, table: Mutex::new(table) })
    }

    /// Where they are.
    pub(crate) const fn spool(&self) -> &Spool {
        &self.spool
    }

    fn table(&self) -> MutexGuard<'_, HashMap<KeyId, BTreeMap<DocumentId, Arc<Kept>>>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The document `name` of `owner`.
    pub(crate) fn of(&self, owner: &KeyId, name: &DocumentId) -> Option<Arc<Kept>> {
        self.table().get(owner)?.get(name).cloned()
    }

    /// All documents of `owner`, by name.
    pub(crate) fn all_of(&self, owner: &KeyId) -> Vec<Arc<Kept>> {
        self.table().get(owner).map(|kept| kept.values().cloned().collect()).unwrap_or_default()
    }

    /// Begins to take a document in, of which `expected` bytes were announced.
    ///
    /// # Errors
    /// [`KeepError`].
    pub(crate) async fn begin(
        &self,
        owner: &KeyId,
        name: &DocumentId,
        expected: Option<u64>,
    ) -> Result<Writer, KeepError> {
        self.room(owner, name)?;
        Ok(self.spool.begin(Kind::Kept, expected).await?)
    }

    fn room(&self, owner: &KeyId, name: &DocumentId) -> Result<(), KeepError> {
        let max = self.spool.limits().max_documents;
        match self.table().get(owner) {
            Some(kept) if kept.len() >= max && !kept.contains_key(name) => Err(KeepError::TooMany { max }),
            _ => Ok(()),
        }
    }

    /// Keeps a document, all of which was written, in place of the one that had its name before. Whether there was one.
    ///
    /// # Errors
    /// [`KeepError`]: it is not kept.
    pub(crate) async fn keep(
        &self,
        owner: &KeyId,
        name: DocumentId,
        content_type: Box<str>,
        mut writer: Writer,
        now: SystemTime,
    ) -> Result<(Arc<Kept>, bool), KeepError> {
        let digest = writer.finish().await?;
        let spooled = writer.spooled().clone();
        drop(writer);
        let file: Box<str> = spooled.name().into();
        let since = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let note = Note {
            owner: owner.clone(),
            name: name.clone(),
            content_type: content_type.clone(),
            bytes: digest.bytes,
            sha256: digest.hex(),
            created: u64::try_from(since.as_millis()).unwrap_or(u64::MAX),
        };
        let kept = async {
            self.room(owner, &name)?;
            spooled.sync().await?;
            let note = serde_json::to_value(&note).unwrap_or_default();
            self.spool.note(Kind::Kept, &file, &note, true).await?;
            spooled.stays();
            Ok::<_, KeepError>(())
        };
        kept.await?;
        let kept = Arc::new(Kept {
            name: name.clone(),
            content_type,
            digest,
            created: now,
            file,
            _held: self.spool.is_on_disk().then(|| self.spool.hold(digest.bytes)),
            open: (!self.spool.is_on_disk()).then_some(spooled),
        });
        let before = self.table().entry(owner.clone()).or_default().insert(name, kept.clone());
        if let Some(before) = &before {
            self.spool.remove(Kind::Kept, &before.file).await;
        }
        Ok((kept, before.is_some()))
    }

    /// Deletes a document; whether there was one.
    pub(crate) async fn delete(&self, owner: &KeyId, name: &DocumentId) -> bool {
        let removed = {
            let mut table = self.table();
            let removed = table.get_mut(owner).and_then(|kept| kept.remove(name));
            if table.get(owner).is_some_and(BTreeMap::is_empty) {
                table.remove(owner);
            }
            removed
        };
        match removed {
            Some(kept) => {
                self.spool.remove(Kind::Kept, &kept.file).await;
                true
            }
            None => false,
        }
    }

    /// A document, to read.
    ///
    /// # Errors
    /// [`SpoolError`]; also if it was deleted just now.
    pub(crate) async fn open(&self, kept: &Kept) -> Result<Arc<Spooled>, SpoolError> {
        match &kept.open {
            Some(open) => Ok(open.clone()),
            None => self.spool.whole(Kind::Kept, &kept.file, kept.digest).await,
        }
    }

    /// A document for a job, and whether it is the job's own from then on: then deleting it leaves the job alone, and a
    /// relay after this one can go on with it.
    ///
    /// # Errors
    /// As [`Documents::open`].
    pub(crate) async fn for_job(&self, kept: &Kept) -> Result<(Arc<Spooled>, bool), SpoolError> {
        match self.spool.link(&kept.file).await {
            Some(file) => Ok((self.spool.whole(Kind::Job, &file, kept.digest).await?, true)),
            None => Ok((self.open(kept).await?, false)),
        }
    }
}
