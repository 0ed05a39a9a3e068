//! A printer that is a device of the relay, made with the SDK: it prints into a folder, and stops where it is told to.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use device_sdk::{App, Device, HandlerError, Job, Registration};
use tokio::{io::AsyncWriteExt, runtime::Runtime};

/// What it is at.
#[derive(Debug, Default)]
struct Works {
    jammed: AtomicBool,
    /// Bytes after which it takes no more.
    stops_after: AtomicU64,
    taken: AtomicU64,
}

/// A printer on a runtime of its own, which can be gone from one moment to the next.
#[derive(Debug)]
pub(crate) struct Printer {
    works: Arc<Works>,
    device: Device,
    runtime: Option<Runtime>,
}

impl Printer {
    pub(crate) fn start(relay: &str, id: &str, pin: &str, registration: Registration, out: &Path) -> Self {
        let works = Arc::new(Works::default());
        works.stops_after.store(u64::MAX, SeqCst);
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let (printing, ready, out) = (works.clone(), works.clone(), out.to_owned());
        let print = App::new("print", move |job| print(job, printing.clone(), out.clone()));
        let jam = "paper jam in tray 2";
        let print = print.ready(move || match ready.jammed.load(SeqCst) {
            true => Err(HandlerError::device_error(jam)),
            false => Ok(()),
        });
        let builder = Device::builder(relay, id).registration(registration).pin(pin).app(print);
        let device = runtime.block_on(builder.start()).unwrap();
        Self { works, device, runtime: Some(runtime) }
    }

    pub(crate) fn jam(&self, jammed: bool) {
        self.works.jammed.store(jammed, SeqCst);
    }

    /// From now on it takes so many bytes of each job.
    pub(crate) fn stop_after(&self, bytes: u64) {
        self.works.taken.store(0, SeqCst);
        self.works.stops_after.store(bytes, SeqCst);
    }

    /// How many bytes it took since.
    pub(crate) fn taken(&self) -> u64 {
        self.works.taken.load(SeqCst)
    }

    /// Says goodbye and goes.
    pub(crate) fn leave(mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.block_on(self.device.clone().shutdown(Duration::from_secs(5)));
            runtime.shutdown_background();
        }
    }

    /// Is gone without a word.
    pub(crate) fn vanish(mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Drop for Printer {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

async fn print(mut job: Job, works: Arc<Works>, out: PathBuf) -> Result<(), HandlerError> {
    let ticket = job.ticket().await?;
    let mut file = tokio::fs::File::create(out.join(job.id().as_str())).await?;
    let mut all = 0;
    while let Some(bytes) = job.next().await? {
        file.write_all(&bytes).await?;
        all += bytes.len() as u64;
        works.taken.store(all, SeqCst);
        if all >= works.stops_after.load(SeqCst) {
            job.cancelled().await;
            return Err(HandlerError::other("cancelled", "nobody wants it"));
        }
    }
    file.sync_all().await?;
    let told = format!("{:?} {:?}", ticket.user.as_deref(), ticket.job_name.as_deref());
    fs::write(out.join(format!("{}.ticket", job.id())), told)?;
    Ok(())
}
