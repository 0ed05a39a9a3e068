//! The operation panel: words on standard input.

use std::path::{Path, PathBuf};

use device_sdk::{AddressBooks, ControlError, Device};
use examples::{Failure, printer::Printer};
use tokio::{fs, io::AsyncWriteExt as _, sync::mpsc};

use crate::book;

/// Does what the lines on standard input say, until there are no more. The printer goes on without its panel.
pub(crate) async fn operate(device: Device, printer: Printer, books: AddressBooks) {
    let (typed, mut lines) = mpsc::channel(1);
    // A thread of its own, which nobody waits for: a line that is never typed must not hold up the program's end.
    std::thread::spawn(move || {
        for line in std::io::stdin().lines().map_while(Result::ok) {
            if typed.blocking_send(line).is_err() {
                return;
            }
        }
    });
    // In the order in which they were typed, and beside all else.
    let (files, replaced) = mpsc::channel(16);
    tokio::spawn(book::replace(books, replaced));
    while let Some(line) = lines.recv().await {
        if let Some(file) = line.trim().strip_prefix("book ") {
            let _ = files.send(PathBuf::from(file.trim())).await;
        } else if let Err(error) = press(&device, &printer, line.trim()).await {
            println!("panel: {error}");
        }
    }
}

async fn press(device: &Device, printer: &Printer, line: &str) -> Result<(), ControlError> {
    if let Some(url) = line.strip_prefix("pull ") {
        // The panel is there for more while this goes on.
        tokio::spawn(pull(device.clone(), printer.folder(), url.trim().to_owned()));
        return Ok(());
    }
    match line {
        "" => {}
        "on" => device.set_maintenance(true).await?,
        "off" => device.set_maintenance(false).await?,
        "activate" => device.activate().await?,
        "jam" => {
            printer.set_jam(true);
            println!("paper jam");
        }
        "clear" => {
            printer.set_jam(false);
            println!("ready");
        }
        other => println!(
            "panel: {other:?} is not on it; there are on, off, activate, jam, clear, book FILE, pull URL"
        ),
    }
    Ok(())
}

/// Fetches what the printer's user asks for, and prints it.
async fn pull(device: Device, out: Option<PathBuf>, url: String) {
    match fetch(&device, out.as_deref(), &url).await {
        Ok((bytes, Some(file))) => println!("pulled {bytes} bytes: printed as {}", file.display()),
        Ok((bytes, None)) => println!("pulled {bytes} bytes: printed into thin air"),
        Err(error) => println!("pull: {error:?}"),
    }
}

async fn fetch(device: &Device, out: Option<&Path>, url: &str) -> Result<(u64, Option<PathBuf>), Failure> {
    let mut download = device.pull(url).start().await?;
    let Some(out) = out else {
        while download.next().await?.is_some() {}
        return Ok((download.position(), None));
    };
    fs::create_dir_all(out).await?;
    let part = out.join("pulled.part");
    let mut file = fs::File::create(&part).await?;
    while let Some(bytes) = download.next().await? {
        file.write_all(&bytes).await?;
    }
    file.sync_all().await?;
    let name = (1..).map(|n| out.join(format!("pulled-{n}"))).find(|name| !name.exists());
    let name = name.unwrap_or_else(|| out.join("pulled"));
    fs::rename(&part, &name).await?;
    Ok((download.position(), Some(name)))
}
