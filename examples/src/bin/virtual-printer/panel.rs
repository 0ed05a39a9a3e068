//! The operation panel: words on standard input.

use device_sdk::{ControlError, Device};
use examples::printer::Printer;
use tokio::sync::mpsc;

/// Does what the lines on standard input say, until there are no more. The printer goes on without its panel.
pub(crate) async fn operate(device: Device, printer: Printer) {
    let (typed, mut lines) = mpsc::channel(1);
    // A thread of its own, which nobody waits for: a line that is never typed must not hold up the program's end.
    std::thread::spawn(move || {
        for line in std::io::stdin().lines().map_while(Result::ok) {
            if typed.blocking_send(line).is_err() {
                return;
            }
        }
    });
    while let Some(line) = lines.recv().await {
        if let Err(error) = press(&device, &printer, line.trim()).await {
            println!("panel: {error}");
        }
    }
}

async fn press(device: &Device, printer: &Printer, word: &str) -> Result<(), ControlError> {
    match word {
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
        other => println!("panel: {other:?} is not on it; there are on, off, activate, jam, clear"),
    }
    Ok(())
}
