//! A print server of one's own with a relay inside: what is put into a device's folder is printed on that device.
//!
//! ```sh
//! mkdir -p jobs/printer-1
//! print-server --data ./data --jobs ./jobs
//! relay enroll printer-1 --data ./data            # and start the printer with that PIN
//! cp minutes.pdf jobs/printer-1/.minutes.pdf && mv jobs/printer-1/.minutes.pdf jobs/printer-1/minutes.pdf
//! ```
//!
//! The relay is hosted in this very process: printers connect to it, people can use its page, and jobs go to its engine
//! without HTTP in between. A document may be of any size: it is read from its file as the printer takes it, again from
//! where a broken connection left off. What was printed goes to `done/`; what could not be, to `failed/` with a note; what
//! cannot be printed now, since the printer is away, waits. The ID of a job under way stands in a hidden file beside its
//! document, so that a print server that was killed goes on with the job, and the printer prints it once.

use std::{
    collections::{HashMap, HashSet},
    ffi::OsStr,
    io::SeekFrom,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use clap::Parser;
use examples::{Failure, asked_to_stop};
use relay_core::{
    Relay,
    app::{Digest, Source, SourceError, print::PrintTicket},
    ids::{AppName, DeviceId, RequestId},
    relay::JobCall,
    request::Status,
    store::App,
};
use server_sdk::relay::{Server, ServerConfig};
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _};

#[derive(Debug, Parser)]
#[command(about = "Prints what is put into a device's folder")]
struct Options {
    /// Where the relay listens.
    #[arg(long, env = "RELAY_LISTEN", default_value = "127.0.0.1:8080")]
    listen: SocketAddr,
    /// The relay's data folder.
    #[arg(long, env = "RELAY_DATA")]
    data: PathBuf,
    /// The folder with a folder for each device.
    #[arg(long)]
    jobs: PathBuf,
}

/// How often the folders are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let options = Options::parse();
    if let Err(error) = std::fs::read_dir(&options.jobs) {
        return Err(format!("{} is no folder to take documents from: {error}", options.jobs.display()).into());
    }
    let mut config = ServerConfig::default();
    config.listen = vec![options.listen];
    config.data = options.data;
    let server = Server::bind(config).await?;
    println!("listening on http://{}", server.addresses()[0]);
    println!("put documents into {}/DEVICE/", options.jobs.display());
    let relay = server.relay().clone();
    let watching = tokio::spawn(watch(relay, options.jobs));
    let mut asked = Ok(());
    server.run(async { asked = asked_to_stop().await }).await;
    watching.abort();
    Ok(asked?)
}

/// A document that waits: whether somebody is at it, and what was said of it last.
#[derive(Default)]
struct Waiting {
    busy: bool,
    said: String,
}

/// Prints what it finds, for ever.
async fn watch(relay: Relay, jobs: PathBuf) {
    let waiting: Arc<Mutex<HashMap<PathBuf, Waiting>>> = Arc::default();
    let mut odd = HashSet::new();
    let mut looks = tokio::time::interval(LOOK_EVERY);
    loop {
        looks.tick().await;
        let found = match documents(&jobs, &mut odd).await {
            Ok(found) => found,
            Err(error) => {
                eprintln!("cannot look into {}: {error}", jobs.display());
                continue;
            }
        };
        for (device, document) in found {
            let begin = || {
                let mut waiting = waiting.lock().unwrap_or_else(PoisonError::into_inner);
                let one = waiting.entry(document.clone()).or_default();
                !std::mem::replace(&mut one.busy, true)
            };
            if !begin() {
                continue;
            }
            let (relay, waiting) = (relay.clone(), waiting.clone());
            tokio::spawn(async move {
                let mut words = None;
                match print(&relay, device, &document).await {
                    Ok(()) => set_aside(&document, "done", None).await,
                    // Nothing was printed yet: the printer may come back, or have room later.
                    Err(NotPrinted::NotNow(because)) => words = Some(because),
                    Err(NotPrinted::Failed(words)) => set_aside(&document, "failed", Some(&words)).await,
                }
                let mut waiting = waiting.lock().unwrap_or_else(PoisonError::into_inner);
                // Said once, and not at every look.
                match words {
                    Some(words) => {
                        let one = waiting.entry(document.clone()).or_default();
                        if one.said != words {
                            println!("{}: {words}; it waits", document.display());
                        }
                        *one = Waiting { busy: false, said: words };
                    }
                    None => drop(waiting.remove(&document)),
                }
            });
        }
    }
}

/// All documents that wait, and for whom. A name that begins with a dot is one that is still being written. What is in
/// nobody's folder is told of, once.
async fn documents(jobs: &Path, odd: &mut HashSet<PathBuf>) -> std::io::Result<Vec<(DeviceId, PathBuf)>> {
    let mut found = Vec::new();
    let mut devices = tokio::fs::read_dir(jobs).await?;
    while let Some(folder) = devices.next_entry().await? {
        let (name, path) = (folder.file_name(), folder.path());
        let device = name.to_str().and_then(|name| DeviceId::new(name).ok());
        let (Some(device), Ok(mut files)) = (device, tokio::fs::read_dir(&path).await) else {
            if odd.insert(path.clone()) {
                eprintln!(
                    "{}: not printed, for it is no folder that has a device's ID for its name",
                    path.display()
                );
            }
            continue;
        };
        while let Some(file) = files.next_entry().await? {
            let hidden = file.file_name().as_encoded_bytes().starts_with(b".");
            if !hidden && file.file_type().await?.is_file() {
                found.push((device.clone(), file.path()));
            }
        }
    }
    Ok(found)
}

/// Why a document was not printed.
enum NotPrinted {
    /// The printer has not acted: to be tried again.
    NotNow(String),
    /// To be looked at by somebody.
    Failed(String),
}

async fn print(relay: &Relay, device: DeviceId, document: &Path) -> Result<(), NotPrinted> {
    let source = Document::open(document).await.map_err(|error| NotPrinted::NotNow(error.to_string()))?;
    let mut ticket = PrintTicket::new();
    ticket.user = Some("print-server".into());
    ticket.job_name = document.file_name().and_then(OsStr::to_str).map(Into::into);
    ticket.content_type = Some(content_type(document).into());
    let mut call = JobCall::new(device, print_app(), Arc::new(source));
    call.header = Some(ticket.to_header());
    let note = note_of(document);
    let before = tokio::fs::read_to_string(&note).await.ok().and_then(|id| RequestId::new(id.trim()).ok());
    call.id.clone_from(&before);

    let mut job = relay.job(call).map_err(|error| not_printed(&error.error))?;
    if before.is_none() {
        // Without it, a print server after this one would print the document anew.
        let noted = tokio::fs::write(&note, job.id().as_str()).await;
        noted.map_err(|error| NotPrinted::NotNow(format!("{}: {error}", note.display())))?;
    }
    println!("{}: job {}", document.display(), job.id());
    let mut updates = job.updates();
    let reporting = tokio::spawn({
        let name = document.display().to_string();
        async move {
            while updates.changed().await.is_ok() {
                let update = updates.borrow_and_update().clone();
                println!(
                    "{name}: {} {} bytes {}",
                    update.state.as_str(),
                    update.bytes,
                    update.note.unwrap_or_default()
                );
            }
        }
    });
    let end = job.finished().await;
    drop(job);
    let _ = reporting.await;
    if end.is_err() && relay.is_draining() {
        return Err(NotPrinted::NotNow("the print server stops".into()));
    }
    // From here on it is another job, or none.
    let _ = tokio::fs::remove_file(&note).await;
    match end {
        Ok(response) if response.status == Status::Ok => Ok(()),
        Ok(response) => {
            let words = response.body.map(|body| String::from_utf8_lossy(&body.bytes).into_owned());
            Err(NotPrinted::Failed(format!("{}: {}", response.status.as_str(), words.unwrap_or_default())))
        }
        Err(error) => Err(not_printed(&error)),
    }
}

/// Where the ID of a document's job stands.
fn note_of(document: &Path) -> PathBuf {
    let mut name = std::ffi::OsString::from(".");
    name.push(document.file_name().unwrap_or_default());
    name.push(".job");
    document.with_file_name(name)
}

fn not_printed(error: &relay_core::outcome::RequestError) -> NotPrinted {
    if error.is_safe_to_retry() {
        NotPrinted::NotNow(error.to_string())
    } else {
        NotPrinted::Failed(error.to_string())
    }
}

/// The print app, as devices have it unless they say otherwise.
fn print_app() -> App {
    let name = AppName::new("print").expect("a valid name");
    App { name, path: "/print".into(), port: None, protocol: "print".into() }
}

fn content_type(document: &Path) -> &'static str {
    match document.extension().and_then(OsStr::to_str).map(str::to_ascii_lowercase).as_deref() {
        Some("pdf") => "application/pdf",
        Some("pwg") => "image/pwg-raster",
        Some("txt") => "text/plain",
        _ => "application/octet-stream",
    }
}

/// Moves a document that is through, with a note beside it.
async fn set_aside(document: &Path, folder: &str, note: Option<&str>) {
    let Some((parent, name)) = document.parent().zip(document.file_name()) else { return };
    let folder = parent.join(folder);
    let moved = async {
        tokio::fs::create_dir_all(&folder).await?;
        if let Some(note) = note {
            let mut file = name.to_owned();
            file.push(".txt");
            tokio::fs::write(folder.join(file), note).await?;
        }
        tokio::fs::rename(document, folder.join(name)).await
    };
    match moved.await {
        Ok(()) => println!("{}: {}", document.display(), note.unwrap_or("printed")),
        Err(error) => eprintln!("cannot move {}: {error}", document.display()),
    }
}

/// A document in a file: read piece by piece, from any place, as often as it takes.
#[derive(Debug)]
struct Document {
    path: PathBuf,
    digest: Digest,
}

impl Document {
    async fn open(path: &Path) -> std::io::Result<Self> {
        use sha2::{Digest as _, Sha256};
        let mut file = tokio::fs::File::open(path).await?;
        let (mut hash, mut bytes, mut piece) = (Sha256::new(), 0, vec![0; 64 * 1024]);
        loop {
            let read = file.read(&mut piece).await?;
            if read == 0 {
                break;
            }
            bytes += read as u64;
            hash.update(&piece[..read]);
        }
        Ok(Self { path: path.to_owned(), digest: Digest { bytes, sha256: hash.finalize().into() } })
    }
}

#[async_trait]
impl Source for Document {
    async fn read(&self, offset: u64, max: usize) -> Result<Bytes, SourceError> {
        let read = async {
            let mut file = tokio::fs::File::open(&self.path).await?;
            file.seek(SeekFrom::Start(offset)).await?;
            let mut piece = vec![0; max];
            let mut filled = 0;
            while filled < max {
                match file.read(&mut piece[filled..]).await? {
                    0 => break,
                    read => filled += read,
                }
            }
            piece.truncate(filled);
            Ok::<_, std::io::Error>(Bytes::from(piece))
        };
        read.await.map_err(|error| SourceError::Unreadable(error.to_string().into()))
    }

    fn digest(&self) -> Option<Digest> {
        Some(self.digest)
    }
}
