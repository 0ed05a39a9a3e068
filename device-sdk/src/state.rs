//! The state folder: what a device must still know after a power cut.
//!
//! One small [file](WholeFile), `device.state`, with JSON in it.

use std::{
    fmt,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use relay_core::{
    auth::Secret,
    ids::{DeviceId, SessionId},
};
use serde::{Deserialize, Deserializer, Serialize};

use crate::{
    error::StateError,
    keepalive::Lesson,
    whole_file::{Form, Found, WholeFile, io_error, make_private_folder, private_file},
};

static FORM: Form = Form { magic: "relay-device-state", version: 1, max: 64 * 1024 };
const CURRENT: &str = "device.state";
/// Networks that are remembered: more than a device is carried between.
const MAX_LESSONS: usize = 16;

/// What is kept.
#[derive(Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Stored {
    device: String,
    token: Option<String>,
    /// Session maintenance as somebody set it; absent if nobody did.
    pub(crate) maintenance: Option<bool>,
    session: Option<String>,
    /// The transport that got through last, by its name.
    pub(crate) transport: Option<String>,
    /// How long networks leave connections alone, by the way through them; the latest last.
    #[serde(deserialize_with = "lessons")]
    lessons: Vec<(String, Lesson)>,
}

/// What cannot be read costs a few cuts, and not the device's credential beside it.
fn lessons<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<(String, Lesson)>, D::Error> {
    let value = serde_json::Value::deserialize(from)?;
    Ok(serde_json::from_value(value).unwrap_or_else(|error| {
        tracing::warn!(%error, "what was learned of networks cannot be read, and is forgotten");
        Vec::new()
    }))
}

impl fmt::Debug for Stored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stored").field("device", &self.device).finish_non_exhaustive()
    }
}

impl Stored {
    pub(crate) fn token(&self) -> Option<Secret> {
        self.token.clone().map(Secret::new)
    }

    pub(crate) fn session(&self) -> Option<SessionId> {
        self.session.as_deref().and_then(|text| SessionId::new(text).ok())
    }

    /// What was learned of `way`.
    #[cfg_attr(not(any(feature = "ws", feature = "bosh")), expect(dead_code, reason = "nothing learns"))]
    pub(crate) fn lesson(&self, way: &str) -> Option<Lesson> {
        self.lessons.iter().find(|(of, _)| of == way).map(|(_, lesson)| *lesson)
    }

    /// Remembers what was learned of `way`, or forgets it.
    #[cfg_attr(not(any(feature = "ws", feature = "bosh")), expect(dead_code, reason = "nothing learns"))]
    pub(crate) fn set_lesson(&mut self, way: &str, lesson: Option<Lesson>) {
        self.lessons.retain(|(of, _)| of != way);
        self.lessons.extend(lesson.map(|lesson| (way.to_owned(), lesson)));
        let beyond = self.lessons.len().saturating_sub(MAX_LESSONS);
        self.lessons.drain(..beyond);
    }

    pub(crate) fn set_token(&mut self, token: &Secret) {
        self.token = Some(token.expose().to_owned());
    }

    pub(crate) fn set_session(&mut self, session: Option<&SessionId>) {
        self.session = session.map(|session| session.as_str().to_owned());
    }
}

/// What was wrong with the state that was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Damage {
    /// Whether the state before was whole.
    pub(crate) recovered: bool,
}

/// The device's state, in a folder or in memory alone. Clones are one.
#[derive(Debug, Clone)]
pub(crate) struct State(Arc<Mutex<Inner>>);

#[derive(Debug)]
struct Inner {
    stored: Stored,
    folder: Option<Folder>,
}

#[derive(Debug)]
struct Folder {
    path: PathBuf,
    file: WholeFile,
    /// Held for as long as the device lives.
    lock: Arc<File>,
}

/// What keeps the folder from being another device's.
#[derive(Debug)]
pub(crate) struct Hold {
    _lock: Arc<File>,
}

impl State {
    /// State that is gone with the process.
    pub(crate) fn in_memory(device: &DeviceId) -> Self {
        let stored = Stored { device: device.as_str().to_owned(), ..Stored::default() };
        Self(Arc::new(Mutex::new(Inner { stored, folder: None })))
    }

    /// The state in the folder at `path`, which is made if there is none.
    pub(crate) fn open(path: &Path, device: &DeviceId) -> Result<(Self, Option<Damage>), StateError> {
        make_private_folder(path).map_err(io_error("make", path))?;
        let lock_path = path.join("lock");
        let lock = private_file(&lock_path).map_err(io_error("open", &lock_path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => return Err(StateError::InUse(path.to_owned())),
            Err(fs::TryLockError::Error(source)) => return Err(io_error("lock", &lock_path)(source)),
        }
        let (file, found) =
            WholeFile::open(&FORM, path, CURRENT, |json| serde_json::from_slice::<Stored>(json).ok())?;
        let (stored, damage) = match found {
            Found::Whole(stored) => (stored, None),
            Found::Before(stored) => (stored, Some(Damage { recovered: true })),
            Found::Torn => (Stored::default(), Some(Damage { recovered: false })),
            Found::Nothing => (Stored::default(), None),
        };
        if !stored.device.is_empty() && !stored.device.eq_ignore_ascii_case(device.as_str()) {
            return Err(StateError::OtherDevice { folder: path.to_owned(), found: stored.device });
        }
        let stored = Stored { device: device.as_str().to_owned(), ..stored };
        let folder = Some(Folder { path: path.to_owned(), file, lock: Arc::new(lock) });
        Ok((Self(Arc::new(Mutex::new(Inner { stored, folder }))), damage))
    }

    pub(crate) fn read(&self) -> Stored {
        self.lock().stored.clone()
    }

    /// Changes the state, on disk first. Blocks on the disk if there is a folder.
    fn change(&self, change: impl FnOnce(&mut Stored)) -> Result<(), StateError> {
        let mut inner = self.lock();
        let mut stored = inner.stored.clone();
        change(&mut stored);
        if let Some(folder) = &mut inner.folder {
            let json =
                serde_json::to_vec(&stored).map_err(|error| io_error("write", &folder.path)(error.into()))?;
            folder.file.write(&json)?;
        }
        inner.stored = stored;
        Ok(())
    }

    /// Changes the state, on disk first, without blocking the caller's thread on the disk.
    pub(crate) async fn store(
        &self,
        change: impl FnOnce(&mut Stored) + Send + 'static,
    ) -> Result<(), StateError> {
        if self.lock().folder.is_none() {
            return self.change(change);
        }
        let state = self.clone();
        let path = self.folder().unwrap_or_default();
        tokio::task::spawn_blocking(move || state.change(change)).await.unwrap_or_else(|error| {
            Err(StateError::Io { what: "write", path, source: io::Error::other(error) })
        })
    }

    /// The folder, if there is one. For what else is kept in it: nothing is written there without a [`State::hold`].
    pub(crate) fn folder(&self) -> Option<PathBuf> {
        self.lock().folder.as_ref().map(|folder| folder.path.clone())
    }

    /// Keeps the folder this device's for as long as it is not dropped; `None` once it is let go of.
    pub(crate) fn hold(&self) -> Option<Hold> {
        self.lock().folder.as_ref().map(|folder| Hold { _lock: folder.lock.clone() })
    }

    /// Lets go of the folder: another device may have it. What is stored from now on is in memory.
    pub(crate) fn release(&self) {
        self.lock().folder = None;
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: &str = "device.state.old";

    fn device() -> DeviceId {
        DeviceId::new("printer-1").unwrap()
    }

    fn open(folder: &Path) -> (State, Option<Damage>) {
        State::open(folder, &device()).unwrap()
    }

    #[test]
    fn f31_state_survives_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let (state, damage) = open(folder.path());
        assert_eq!(damage, None);
        state.change(|stored| stored.set_token(&Secret::new("token"))).unwrap();
        state.change(|stored| stored.maintenance = Some(false)).unwrap();
        drop(state);
        let (state, damage) = open(folder.path());
        assert_eq!(damage, None);
        assert_eq!(state.read().token().unwrap().expose(), "token");
        assert_eq!(state.read().maintenance, Some(false));
    }

    #[test]
    fn f31_wherever_a_file_is_torn_the_previous_state_is_used_and_said() {
        let folder = tempfile::tempdir().unwrap();
        let (state, _) = open(folder.path());
        state.change(|stored| stored.set_token(&Secret::new("first"))).unwrap();
        state.change(|stored| stored.set_token(&Secret::new("second"))).unwrap();
        drop(state);
        let whole = fs::read(folder.path().join(CURRENT)).unwrap();
        for cut in 0..whole.len() {
            fs::write(folder.path().join(CURRENT), &whole[..cut]).unwrap();
            let (state, damage) = open(folder.path());
            assert_eq!(damage, Some(Damage { recovered: true }), "cut at {cut}");
            assert_eq!(state.read().token().unwrap().expose(), "first", "cut at {cut}");
        }
        for flipped in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[flipped] ^= 0x10;
            fs::write(folder.path().join(CURRENT), &bytes).unwrap();
            match State::open(folder.path(), &device()) {
                Ok((state, Some(Damage { recovered: true }))) => {
                    assert_eq!(state.read().token().unwrap().expose(), "first");
                }
                // The one bit that makes the version another one.
                Err(StateError::Later(_)) => {}
                other => panic!("bit flipped at {flipped}: {other:?}"),
            }
        }
    }

    #[test]
    fn f31_a_cut_between_the_renames_leaves_the_previous_state() {
        let folder = tempfile::tempdir().unwrap();
        let (state, _) = open(folder.path());
        state.change(|stored| stored.set_token(&Secret::new("first"))).unwrap();
        drop(state);
        fs::rename(folder.path().join(CURRENT), folder.path().join(OLD)).unwrap();
        let (state, damage) = open(folder.path());
        assert_eq!(damage, Some(Damage { recovered: true }));
        assert_eq!(state.read().token().unwrap().expose(), "first");
    }

    #[test]
    fn f31_a_torn_file_never_takes_the_place_of_the_whole_one_before_it() {
        let folder = tempfile::tempdir().unwrap();
        let (state, _) = open(folder.path());
        state.change(|stored| stored.set_token(&Secret::new("first"))).unwrap();
        state.change(|stored| stored.maintenance = Some(true)).unwrap();
        drop(state);
        fs::write(folder.path().join(CURRENT), "torn").unwrap();
        let (state, _) = open(folder.path());
        state.change(|stored| stored.maintenance = Some(false)).unwrap();
        drop(state);
        fs::remove_file(folder.path().join(CURRENT)).unwrap();
        let (state, damage) = open(folder.path());
        assert_eq!(damage, Some(Damage { recovered: true }));
        assert_eq!(state.read().token().unwrap().expose(), "first");
    }

    fn lesson(survived: u64) -> Lesson {
        serde_json::from_value(serde_json::json!({ "survived": survived, "cut": survived + 1 })).unwrap()
    }

    #[test]
    fn s4_lessons_survive_a_restart_and_the_latest_few_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        let (state, _) = open(folder.path());
        for n in 0..100 {
            state.change(|stored| stored.set_lesson(&format!("way {n}"), Some(lesson(n)))).unwrap();
        }
        state.change(|stored| stored.set_lesson("way 90", Some(lesson(7)))).unwrap();
        state.change(|stored| stored.set_lesson("way 99", None)).unwrap();
        drop(state);
        let stored = open(folder.path()).0.read();
        assert_eq!(stored.lesson("way 83"), None);
        assert_eq!(stored.lesson("way 90"), Some(lesson(7)));
        assert_eq!(stored.lesson("way 98"), Some(lesson(98)));
        assert_eq!(stored.lesson("way 99"), None);
        assert!(stored.lessons.len() <= MAX_LESSONS);
    }

    #[test]
    fn s4_lessons_that_cannot_be_read_cost_nothing_else() {
        for lessons in ["7", "[[1,2]]", r#"{"way":{}}"#, r#"[["way",{"survived":-1}]]"#, "null"] {
            let json = format!(r#"{{"device":"printer-1","token":"token","lessons":{lessons}}}"#);
            let stored: Stored = serde_json::from_str(&json).unwrap();
            assert_eq!(stored.token().unwrap().expose(), "token", "{lessons}");
            assert!(stored.lessons.is_empty());
        }
    }

    #[test]
    fn f31_when_nothing_is_whole_that_is_said() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(CURRENT), "torn").unwrap();
        let (state, damage) = open(folder.path());
        assert_eq!(damage, Some(Damage { recovered: false }));
        assert!(state.read().token().is_none());
    }

    #[test]
    fn a_state_folder_serves_one_device_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let (state, _) = open(folder.path());
        assert!(matches!(State::open(folder.path(), &device()), Err(StateError::InUse(_))));
        state.change(|stored| stored.maintenance = Some(true)).unwrap();
        drop(state);
        let other = DeviceId::new("printer-2").unwrap();
        assert!(matches!(State::open(folder.path(), &other), Err(StateError::OtherDevice { .. })));
    }

    #[cfg(unix)]
    #[test]
    fn t44_only_its_owner_can_read_the_state() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let inside = folder.path().join("new");
        let (state, _) = open(&inside);
        state.change(|stored| stored.set_token(&Secret::new("token"))).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&inside), 0o700);
        assert_eq!(mode(&inside.join(CURRENT)), 0o600);
        assert!(!format!("{state:?}").contains("token\""));
    }
}
