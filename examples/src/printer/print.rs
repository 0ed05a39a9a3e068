//! The print app: a job's bytes go into a file of their own, unchanged, and are "printed" once.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use device_sdk::{App, HandlerError, Job, PrintTicket, RequestId};
use tokio::{
    fs::{self, File},
    io::AsyncWriteExt as _,
};

use super::Printer;

/// What a finished job's file may end in, by its media type.
const ENDINGS: [(&str, &str); 4] =
    [("application/pdf", "pdf"), ("image/pwg-raster", "pwg"), ("text/plain", "txt"), ("", "prn")];
/// How old the part of a job may be that nobody goes on with.
const STALE: Duration = Duration::from_secs(24 * 3600);
/// How much is printed between two looks at the paper.
const SHEET: usize = 64 * 1024;

impl Printer {
    /// What prints.
    pub fn print_app(&self) -> App {
        let (printer, ready) = (self.clone(), self.clone());
        App::new("print", move |job| printer.clone().print(job)).ready(move || ready.ready())
    }

    /// What keeps it from printing, in words.
    pub(super) fn ready(&self) -> Result<(), HandlerError> {
        let works = self.works();
        if works.jammed {
            return Err(HandlerError::device_error("paper jam: open cover A and remove the sheet"));
        }
        if works.sheets == 0 {
            return Err(HandlerError::device_error("tray 1 is empty"));
        }
        Ok(())
    }

    async fn print(self, mut job: Job) -> Result<(), HandlerError> {
        let Some(out) = self.works().out.clone() else { return self.print_into_thin_air(job).await };
        fs::create_dir_all(&out).await?;
        if finished(&out, job.id()).await.is_some() {
            // It was printed, and nobody heard of it.
            return Ok(());
        }
        remove_stale(&out).await?;
        let path = out.join(format!("{}.part", job.id()));
        let mut part =
            File::options().create(true).read(true).write(true).truncate(false).open(&path).await?;
        let had = job.resume_with(&mut part).await?;
        let ticket = job.ticket().await?;
        let _printing = self.begin(&ticket);
        match self.put_on_paper(&mut job, &mut part, had).await {
            Ok(()) => {}
            Err(error) => {
                // What was cancelled may be offered again, and gone on with; what failed is not.
                if !job.is_cancelled() {
                    fs::remove_file(&path).await?;
                }
                return Err(error);
            }
        }
        part.sync_all().await?;
        let ending = ending(ticket.content_type.as_deref().unwrap_or_default());
        fs::rename(&path, out.join(format!("{}.{ending}", job.id()))).await?;
        File::open(&out).await?.sync_all().await?;
        self.count_page();
        Ok(())
    }

    async fn print_into_thin_air(self, mut job: Job) -> Result<(), HandlerError> {
        let ticket = job.ticket().await?;
        let _printing = self.begin(&ticket);
        self.put_on_paper(&mut job, &mut tokio::io::sink(), 0).await?;
        self.count_page();
        Ok(())
    }

    async fn put_on_paper(
        &self,
        job: &mut Job,
        paper: &mut (impl tokio::io::AsyncWrite + Unpin + Send),
        had: u64,
    ) -> Result<(), HandlerError> {
        let mut printed = had;
        while let Some(bytes) = job.next().await? {
            for sheet in bytes.chunks(SHEET) {
                self.ready()?;
                paper.write_all(sheet).await?;
                printed += sheet.len() as u64;
                let speed = self.works().speed;
                if let Some(speed) = speed {
                    let takes = Duration::from_secs_f64(sheet.len() as f64 / speed.get() as f64);
                    tokio::select! {
                        () = tokio::time::sleep(takes) => {}
                        () = job.cancelled() => {}
                    }
                }
                job.progress(printed, "printing");
            }
        }
        paper.flush().await?;
        Ok(())
    }

    /// Shows what is printed for as long as it is.
    fn begin(&self, ticket: &PrintTicket) -> Printing {
        let name: String = ticket.job_name.as_deref().unwrap_or("a document").chars().take(64).collect();
        let mut works = self.works();
        works.printing += 1;
        works.display = format!("Printing {}", name.replace(char::is_control, "?"));
        Printing(self.clone())
    }

    fn count_page(&self) {
        let mut works = self.works();
        works.sheets = (works.sheets - 1).max(0);
        works.pages += 1;
    }
}

struct Printing(Printer);

impl Drop for Printing {
    fn drop(&mut self) {
        let mut works = self.0.works();
        works.printing -= 1;
        if !works.jammed && works.printing == 0 {
            works.display = "Ready".to_owned();
        }
    }
}

fn ending(content_type: &str) -> &'static str {
    let kind = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    ENDINGS.iter().find(|(known, _)| *known == kind).map_or("prn", |(_, ending)| ending)
}

/// The file of a job that was printed.
async fn finished(out: &Path, id: &RequestId) -> Option<PathBuf> {
    for (_, ending) in ENDINGS {
        let path = out.join(format!("{id}.{ending}"));
        if fs::try_exists(&path).await.unwrap_or(false) {
            return Some(path);
        }
    }
    None
}

/// Parts of jobs that were never gone on with.
async fn remove_stale(out: &Path) -> io::Result<()> {
    let mut entries = fs::read_dir(out).await?;
    while let Some(entry) = entries.next_entry().await? {
        let part = entry.path().extension().is_some_and(|ending| ending == "part");
        let age = entry.metadata().await.and_then(|known| known.modified()).map(|time| time.elapsed());
        if part && age.is_ok_and(|age| age.is_ok_and(|age| age > STALE)) {
            // Another job's handler may have been quicker.
            let _ = fs::remove_file(entry.path()).await;
        }
    }
    Ok(())
}
