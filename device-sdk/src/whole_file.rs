//! A file that is whole whatever the moment of a power cut.
//!
//! A line with a SHA-256, then the payload. It is written beside, synced, and renamed into place, and the one before stays
//! as `NAME.old`. So one of the two is always whole; which one is told by the checksum, and a file that is neither is said,
//! not guessed at.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    path::{Path, PathBuf},
};

use data_encoding::HEXLOWER;
use sha2::{Digest, Sha256};

use crate::error::StateError;

/// What files of a kind have in common.
#[derive(Debug)]
pub(crate) struct Form {
    /// How they begin.
    pub(crate) magic: &'static str,
    /// What this version of the SDK writes.
    pub(crate) version: u32,
    /// Far more than there can be; what is larger was not written here.
    pub(crate) max: u64,
}

/// What was there.
#[derive(Debug)]
pub(crate) enum Found<T> {
    /// What was written last.
    Whole(T),
    /// What was written before that; the last one is torn or gone.
    Before(T),
    /// Something, and nothing of it is whole.
    Torn,
    Nothing,
}

/// One such file.
#[derive(Debug)]
pub(crate) struct WholeFile {
    form: &'static Form,
    folder: PathBuf,
    current: PathBuf,
    old: PathBuf,
    new: PathBuf,
    /// Whether the current one is worth keeping as the old one.
    current_is_whole: bool,
}

impl WholeFile {
    /// The file `name` in `folder`, and what `read` makes of its payload; `None` is as good as torn.
    pub(crate) fn open<T>(
        form: &'static Form,
        folder: &Path,
        name: &str,
        read: impl Fn(&[u8]) -> Option<T>,
    ) -> Result<(Self, Found<T>), StateError> {
        let at = |suffix: &str| folder.join(format!("{name}{suffix}"));
        let mut file = Self {
            form,
            folder: folder.to_owned(),
            current: at(""),
            old: at(".old"),
            new: at(".new"),
            current_is_whole: false,
        };
        let found = match file.read(&file.current, &read)? {
            Found::Whole(current) => {
                file.current_is_whole = true;
                Found::Whole(current)
            }
            lacking => match (file.read(&file.old, &read)?, lacking) {
                (Found::Whole(before), _) => Found::Before(before),
                (Found::Nothing, Found::Nothing) => Found::Nothing,
                _ => Found::Torn,
            },
        };
        Ok((file, found))
    }

    /// Puts `payload` in the place of what was there. Blocks on the disk.
    pub(crate) fn write(&mut self, payload: &[u8]) -> Result<(), StateError> {
        let sum = HEXLOWER.encode(&Sha256::digest(payload));
        let head = format!("{} {} {sum}\n", self.form.magic, self.form.version);
        let write = || -> io::Result<()> {
            let mut file = private_file(&self.new)?;
            file.set_len(0)?;
            file.write_all(head.as_bytes())?;
            file.write_all(payload)?;
            file.write_all(b"\n")?;
            file.sync_all()
        };
        write().map_err(io_error("write", &self.new))?;
        if self.current_is_whole {
            fs::rename(&self.current, &self.old).map_err(io_error("rename", &self.current))?;
            self.current_is_whole = false;
        }
        fs::rename(&self.new, &self.current).map_err(io_error("rename", &self.new))?;
        self.current_is_whole = true;
        sync_folder(&self.folder).map_err(io_error("sync", &self.folder))
    }

    fn read<T>(&self, path: &Path, read: impl Fn(&[u8]) -> Option<T>) -> Result<Found<T>, StateError> {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Found::Nothing),
            Err(error) => return Err(io_error("open", path)(error)),
        };
        let mut bytes = Vec::new();
        file.take(self.form.max).read_to_end(&mut bytes).map_err(io_error("read", path))?;
        let Some((version, payload)) = self.payload(&bytes) else { return Ok(Found::Torn) };
        if version > self.form.version {
            return Err(StateError::Later(path.to_owned()));
        }
        Ok(read(payload).map_or(Found::Torn, Found::Whole))
    }

    /// The version and the payload of a file that is whole.
    fn payload<'a>(&self, bytes: &'a [u8]) -> Option<(u32, &'a [u8])> {
        let end = bytes.iter().position(|&byte| byte == b'\n')?;
        let head = std::str::from_utf8(&bytes[..end]).ok()?;
        let mut words = head.split(' ');
        let (magic, version, sum) = (words.next()?, words.next()?.parse::<u32>().ok()?, words.next()?);
        let payload = bytes[end + 1..].strip_suffix(b"\n")?;
        let whole = magic == self.form.magic && HEXLOWER.encode(&Sha256::digest(payload)) == sum;
        whole.then_some((version, payload))
    }
}

pub(crate) fn io_error(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StateError {
    let path = path.to_owned();
    move |source| StateError::Io { what, path, source }
}

/// A file that its owner alone can read.
pub(crate) fn private_file(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path)
}

/// A folder that its owner alone can look into.
pub(crate) fn make_private_folder(path: &Path) -> io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(path)
}

/// A rename is on disk once its folder is.
#[cfg(unix)]
fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

#[cfg(not(unix))]
fn sync_folder(_: &Path) -> io::Result<()> {
    Ok(())
}
