//! All of it in one command: a relay, a printer behind it, and a service that reads the printer's toner level.
//!
//! ```sh
//! cargo run --release --bin quickstart
//! ```
//!
//! No set-up, nothing left behind. On a real network the three run on three machines: the relay on a server of yours,
//! the printer behind its NAT (see `virtual-printer`), the service anywhere (see `maintenance-service`). The code of each
//! is the same.

use std::{future::pending, net::Ipv4Addr, path::Path};

use clap::Parser;
use device_sdk::Device;
use examples::{
    Failure, asked_to_stop,
    printer::{Printer, mib},
};
use server_sdk::{
    Body, Client,
    relay::{Server, ServerConfig},
};

#[derive(Debug, Parser)]
#[command(about = "A relay, a printer and a service in one command")]
struct Options {
    /// Show it once and end, instead of staying up.
    #[arg(long)]
    once: bool,
    /// Where the relay listens. A free port if left out.
    #[arg(long, env = "RELAY_LISTEN", default_value = "127.0.0.1:0")]
    listen: std::net::SocketAddr,
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let options = Options::parse();

    // The relay, with its database in a folder that goes when this program does.
    let folder = tempfile::tempdir()?;
    let mut config = ServerConfig::default();
    config.listen = vec![options.listen];
    config.data = folder.path().to_owned();
    let server = Server::bind(config).await?;
    let url = format!("http://{}", server.addresses()[0]);
    let administrator = Client::new(&url, &administrator_key(&server)?)?;
    tokio::spawn(server.run(pending()));
    println!("relay     {url}");

    // A printer. The administrator makes it known; the PIN is what somebody would type in at its panel.
    let issued = administrator.administration().issue_pin("printer-1", &[]).await?;
    let printer = Printer::new("printer-1", Ipv4Addr::LOCALHOST.into());
    let device = Device::builder(&url, "printer-1")
        .pin(issued.pin.expose())
        .registration(printer.registration())
        .router(printer.router())
        .start()
        .await?;
    device.online().await?;
    println!("printer   printer-1 traded its PIN for a credential, registered, and is online over BOSH");

    // A service. It has a key of its own and knows the printer's name, nothing else.
    let key = administrator.administration().new_key(&[]).await?;
    let service = Client::new(&url, key.key.expose())?;
    let before = service.get("printer-1", mib::SYS_LOCATION).await?;
    let now = service.set("printer-1", mib::SYS_LOCATION, Body::text("copy room, 2nd floor")).await?;
    println!("setting   printer-1's location was {:?} and now is {:?}", before.text()?, now.text()?);

    // printer-2 is known, and was never switched on. Who asks it hears so at once.
    administrator.administration().issue_pin("printer-2", &[]).await?;
    let asked = std::time::SystemTime::now();
    match service.get("printer-2", mib::BLACK_TONER).await {
        Ok(answer) => println!("offline   printer-2 answered {answer:?}, which nobody expected"),
        Err(error) => {
            let outcome =
                error.outcome().map_or_else(|| "not told".to_owned(), |outcome| outcome.to_string());
            let took = asked.elapsed().unwrap_or_default();
            println!("offline   printer-2: {error} (Relay-Outcome: {outcome}), told after {took:.1?}");
        }
    }

    if !options.once {
        how_to_go_on(&url, key.key.expose(), folder.path());
    }
    let toner = service.get("printer-1", mib::BLACK_TONER).await?;
    println!("toner     printer-1 has {} % of its black toner left, read through the relay", toner.text()?);

    if !options.once {
        asked_to_stop().await?;
    }
    device.shutdown(std::time::Duration::from_secs(1)).await;
    Ok(())
}

/// The relay wrote it into its data folder, where the program `relay` finds it, too.
fn administrator_key(server: &Server) -> Result<String, Failure> {
    let file =
        server.administrator_key_file().ok_or("a relay on a folder keeps its administrator's key there")?;
    Ok(std::fs::read_to_string(file)?.trim().to_owned())
}

fn how_to_go_on(url: &str, key: &str, data: &Path) {
    let (toner, display) = (mib::BLACK_TONER, mib::PRT_CONSOLE_DISPLAY_BUFFER_TEXT);
    let data = data.display();
    println!(
        "
It stays up until Ctrl-C. In another terminal, with a service's key:

  curl -i -H 'Authorization: Bearer {key}' {url}/v1/devices/printer-1/objects/{toner}
  curl -i -H 'Authorization: Bearer {key}' {url}/v1/devices/printer-2/objects/{toner}
  curl -X PUT -H 'Authorization: Bearer {key}' -H 'Content-Type: text/plain' -d 'Hello' {url}/v1/devices/printer-1/objects/{display}

or with the program `relay`, and the administrator's key that it finds in the relay's folder:

  cargo run --release -p server-sdk --features relay --bin relay -- get printer-1 {toner} --relay {url} --key {key}
  cargo run --release -p server-sdk --features relay --bin relay -- enroll printer-2 --relay {url} --data {data}
  cargo run --release --bin virtual-printer -- --relay {url} --id printer-2 --pin THE_PIN_JUST_PRINTED
"
    );
}
