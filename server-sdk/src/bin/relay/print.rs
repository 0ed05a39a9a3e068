//! `relay print`: a document goes to a device, and how it goes is told.

use std::{
    fs::File,
    io::{self, IsTerminal, Write},
    os::fd::AsFd,
    path::Path,
};

use serde_json::json;
use server_sdk::{
    Client, Error, JobState, JobUpdate,
    client::{JobStream, PrintJob},
};

use crate::{arguments::Print, failure::Failure, output};

pub(crate) async fn print(relay: &Client, url: &str, print: Print, json: bool) -> Result<(), Failure> {
    let failed = |error: Error| Failure::call(url, error);
    let job = relay.print(&print.device, ticket(&print)).map_err(failed)?;
    let size = print.file.as_deref().and_then(|file| std::fs::metadata(file).ok()).map(|about| about.len());
    let mut printing = match (&print.document, print.file.as_deref()) {
        (Some(document), _) => job.kept(document).await,
        (None, Some(file)) if file != Path::new("-") => job.file(file).await,
        (None, _) => {
            let input = io::stdin().as_fd().try_clone_to_owned().map(File::from);
            let input =
                input.map_err(|error| Failure::own("the standard input cannot be read").because(error))?;
            job.stream(tokio::fs::File::from_std(input)).await
        }
    }
    .map_err(failed)?;
    let mut shown = Shown { json, size, terminal: !json && io::stderr().is_terminal(), state: None };
    let update = follow(&mut printing, &mut shown).await;
    shown.clear();
    let update = update?.map_err(failed)?;
    match update.state {
        JobState::Cancelled => Err(Failure::own("the job was cancelled")),
        _ if json => Ok(()),
        _ => {
            let words = format!("printed on {}: {} bytes", print.device, update.bytes);
            output::line(&words).map_err(unwritten)
        }
    }
}

fn unwritten(error: io::Error) -> Failure {
    Failure::own("the standard output cannot be written").because(error)
}

async fn follow(printing: &mut JobStream, shown: &mut Shown) -> Result<Result<JobUpdate, Error>, Failure> {
    let mut last = JobUpdate::default();
    loop {
        let next = tokio::select! {
            next = printing.next() => next,
            _ = tokio::signal::ctrl_c() => {
                shown.clear();
                // Its end is told like any other.
                if let Err(error) = printing.cancel().await {
                    return Ok(Err(error));
                }
                continue;
            }
        };
        match next {
            Ok(Some(update)) => {
                shown.update(printing, &update).map_err(unwritten)?;
                last = update;
            }
            Ok(None) => return Ok(Ok(last)),
            Err(error) => return Ok(Err(error)),
        }
    }
}

fn ticket(print: &Print) -> PrintJob {
    let mut job = PrintJob::new();
    if let Some(user) = &print.user {
        job = job.user(user);
    }
    let file = print.file.as_deref().filter(|file| *file != Path::new("-"));
    let own_name = || file.and_then(Path::file_name).map(|name| output::plain(&name.to_string_lossy()));
    if let Some(name) = print.job_name.clone().or_else(own_name) {
        job = job.job_name(name);
    }
    if let Some(content_type) = print.content_type.as_deref().or_else(|| file.and_then(type_of)) {
        job = job.content_type(content_type);
    }
    print.ticket.iter().fold(job, |job, (name, value)| job.attribute(name, value))
}

/// The media type that a file's name tells of.
fn type_of(file: &Path) -> Option<&'static str> {
    let ending = file.extension()?.to_str()?.to_ascii_lowercase();
    Some(match &*ending {
        "pdf" => "application/pdf",
        "ps" => "application/postscript",
        "pcl" => "application/vnd.hp-pcl",
        "pwg" => "image/pwg-raster",
        "urf" => "image/urf",
        "jpg" | "jpeg" => "image/jpeg",
        "png" => "image/png",
        "tif" | "tiff" => "image/tiff",
        "txt" => "text/plain; charset=utf-8",
        _ => return None,
    })
}

/// How the job is shown while it goes on.
struct Shown {
    json: bool,
    terminal: bool,
    size: Option<u64>,
    state: Option<JobState>,
}

impl Shown {
    fn update(&mut self, printing: &JobStream, update: &JobUpdate) -> io::Result<()> {
        let news = self.state.replace(update.state) != Some(update.state);
        if self.json {
            let line = json!({
                "id": printing.id(),
                "state": update.state.as_str(),
                "bytes": update.bytes,
                "note": update.note,
            });
            return output::line(&line.to_string());
        }
        if !self.terminal && !news {
            return Ok(());
        }
        let mut line = format!("{}, {}", update.state.as_str(), update.bytes);
        if let Some(size) = self.size {
            line += &format!(" of {size}");
        }
        line += " bytes";
        if let Some(note) = &update.note {
            line += &format!(", {}", output::plain(note));
        }
        let mut err = io::stderr().lock();
        // Who looks at it is not who decides whether it goes on.
        let _ = match self.terminal {
            true => write!(err, "\r\x1b[K{line}").and_then(|()| err.flush()),
            false => writeln!(err, "{line}"),
        };
        Ok(())
    }

    /// Makes room for other words.
    fn clear(&self) {
        if self.terminal && self.state.is_some() {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}
