//! All of it in one command: a relay, two printers behind it, one over WebSocket and one over BOSH, and a service that
//! prints on one of them and reads their toner levels.
//!
//! ```sh
//! cargo run --release --bin quickstart
//! ```
//!
//! No set-up, nothing left behind. On a real network each runs on a machine of its own: the relay on a server of yours,
//! each printer behind its NAT (see `virtual-printer`), the service anywhere (see `maintenance-service`). The code of each
//! is the same.

use std::{
    future::pending,
    net::Ipv4Addr,
    path::{Path, PathBuf},
};

use clap::Parser;
use device_sdk::{Device, Transport};
use examples::{
    Failure, asked_to_stop,
    printer::{Printer, mib},
};
use server_sdk::{
    Body, Client, JobState, PrintJob,
    relay::{Server, ServerConfig},
};

/// What is printed.
const DOCUMENT: &str = "This came through the relay, to a printer that no service can reach.\n";

#[derive(Debug, Parser)]
#[command(about = "A relay, two printers and a service in one command")]
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

    // Two printers. The administrator makes each known; the PIN is what somebody would type in at its panel.
    let (over_ws, out) = printer(&administrator, &url, "printer-1", Transport::Ws, folder.path()).await?;
    let (over_bosh, _) = printer(&administrator, &url, "printer-2", Transport::Bosh, folder.path()).await?;

    // A service. It has a key of its own and knows the printer's name, nothing else.
    let key = administrator.administration().new_key(&[]).await?;
    let service = Client::new(&url, key.key.expose())?;
    let before = service.get("printer-1", mib::SYS_LOCATION).await?;
    let now = service.set("printer-1", mib::SYS_LOCATION, Body::text("copy room, 2nd floor")).await?;
    println!("setting   printer-1's location was {:?} and now is {:?}", before.text()?, now.text()?);

    print(&service, "printer-1", &out).await?;

    // printer-3 is known, and was never switched on. Who asks it hears so at once.
    administrator.administration().issue_pin("printer-3", &[]).await?;
    let asked = std::time::SystemTime::now();
    match service.get("printer-3", mib::BLACK_TONER).await {
        Ok(answer) => println!("offline   printer-3 answered {answer:?}, which nobody expected"),
        Err(error) => {
            let outcome =
                error.outcome().map_or_else(|| "not told".to_owned(), |outcome| outcome.to_string());
            let took = asked.elapsed().unwrap_or_default();
            println!("offline   printer-3: {error} (Relay-Outcome: {outcome}), told after {took:.1?}");
        }
    }

    if !options.once {
        how_to_go_on(&url, key.key.expose(), folder.path());
    }
    for id in ["printer-2", "printer-1"] {
        let toner = service.get(id, mib::BLACK_TONER).await?;
        println!("toner     {id} has {} % of its black toner left, read through the relay", toner.text()?);
    }

    if !options.once {
        asked_to_stop().await?;
    }
    for device in [over_ws, over_bosh] {
        device.shutdown(std::time::Duration::from_secs(1)).await;
    }
    Ok(())
}

/// A printer that keeps its session over `transport`. Left alone, a device takes whichever the network lets through.
async fn printer(
    administrator: &Client,
    url: &str,
    id: &str,
    transport: Transport,
    folder: &Path,
) -> Result<(Device, PathBuf), Failure> {
    let issued = administrator.administration().issue_pin(id, &[]).await?;
    let printer = Printer::new(id, Ipv4Addr::LOCALHOST.into());
    let out = folder.join(id);
    printer.print_into(out.clone());
    let device = Device::builder(url, id)
        .pin(issued.pin.expose())
        .registration(printer.registration())
        .router(printer.router())
        .app(printer.print_app())
        .transport(transport)
        .start()
        .await?;
    device.online().await?;
    let over = if transport == Transport::Bosh { "BOSH" } else { "WebSocket" };
    println!("printer   {id} traded its PIN for a credential, registered, and is online over {over}");
    Ok((device, out))
}

/// Prints a document, and looks at what came out of the printer.
async fn print(service: &Client, id: &str, out: &Path) -> Result<(), Failure> {
    let job = PrintJob::new().user("you").job_name("Hello").content_type("text/plain");
    let mut printing = service.print(id, job)?.bytes(DOCUMENT).await?;
    println!("print     {id} took the job, and was sent nothing before it did");
    let mut state = JobState::Offered;
    while let Some(update) = printing.next().await? {
        if update.state != state {
            state = update.state;
            println!("print     {id} says: {}, {} bytes", state.as_str(), update.bytes);
        }
    }
    let paper = std::fs::read_to_string(out.join(format!("{}.txt", printing.id())))?;
    let same = if paper == DOCUMENT { "is what was sent" } else { "is not what was sent" };
    println!("print     what came out of {id} {same}: {paper:?}");
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
  curl -i -H 'Authorization: Bearer {key}' {url}/v1/devices/printer-3/objects/{toner}
  curl -X PUT -H 'Authorization: Bearer {key}' -H 'Content-Type: text/plain' -d 'Hello' {url}/v1/devices/printer-1/objects/{display}
  curl -X POST -H 'Authorization: Bearer {key}' -H 'Content-Type: text/plain' -d 'Hello' {url}/v1/devices/printer-2/apps/print

in a browser, at {url}/ with that key, or with the program `relay`, and the administrator's key that it finds in the relay's folder:

  cargo run --release -p server-sdk --features relay --bin relay -- get printer-1 {toner} --relay {url} --key {key}
  cargo run --release -p server-sdk --features relay --bin relay -- watch --relay {url} --data {data}
  cargo run --release -p server-sdk --features relay --bin relay -- enroll printer-3 --relay {url} --data {data}
  cargo run --release --bin virtual-printer -- --relay {url} --id printer-3 --pin THE_PIN_JUST_PRINTED
"
    );
}
