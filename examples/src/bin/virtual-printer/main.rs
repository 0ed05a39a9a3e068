//! A device made with `device-sdk` alone: the printer that a newcomer meets first, and that tests drive.
//!
//! ```sh
//! virtual-printer --relay http://127.0.0.1:8080 --id printer-1 --pin 12345678 --state ./printer-1
//! ```
//!
//! Lines on its standard input are its operation panel: `on`, `off`, `activate`, `jam`, `clear`, `book FILE`, `pull URL`. What
//! happens to it is told on its standard output, a line each.

mod book;
mod panel;

use std::{net::IpAddr, num::NonZeroU64, path::PathBuf, time::Duration};

use clap::{Parser, ValueEnum};
use device_sdk::{AccountId, AddressBooks, Device, Event, Events, JobEnd};
use examples::{Failure, asked_to_stop, printer::Printer};

#[derive(Debug, Parser)]
#[command(about = "A virtual printer that a relay can reach")]
struct Options {
    /// The relay's URL.
    #[arg(long, env = "RELAY_URL", default_value = "http://127.0.0.1:8080")]
    relay: String,
    /// The printer's ID, such as a serial number.
    #[arg(long, env = "RELAY_ID")]
    id: String,
    /// The PIN that it enrolls with; spent on use.
    #[arg(long, env = "RELAY_PIN", conflicts_with = "token", hide_env_values = true)]
    pin: Option<String>,
    /// Its credential, if it was enrolled in some other way.
    #[arg(long, env = "RELAY_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// How it keeps its session.
    #[arg(long, env = "RELAY_TRANSPORT", value_enum, default_value_t = Transport::Auto)]
    transport: Transport,
    /// The HTTP proxy that it goes through, such as `http://user:password@proxy:3128`. What the environment says without it.
    #[arg(long, env = "RELAY_PROXY", value_name = "URL", hide_env_values = true)]
    proxy: Option<String>,
    /// Where it keeps its credential, its settings and its address books. In memory alone without it.
    #[arg(long, env = "RELAY_STATE", value_name = "DIR")]
    state: Option<PathBuf>,
    /// Where what it prints goes: a file a job, as it came. Into thin air without it.
    #[arg(long, env = "RELAY_OUT", value_name = "DIR")]
    out: Option<PathBuf>,
    /// To whose address books its changes go, if it counts for several accounts.
    #[arg(long, env = "RELAY_ACCOUNT")]
    account: Option<AccountId>,
    /// Session maintenance as it leaves the factory; what the panel said last holds.
    #[arg(long, env = "RELAY_MAINTENANCE", value_enum, default_value_t = Switch::On)]
    maintenance: Switch,
    /// Seconds without a push after which it makes sure that its session lives.
    #[arg(long, env = "RELAY_KEEPALIVE", default_value_t = 60)]
    keepalive: u64,
    /// The relay's XMPP domain.
    #[arg(long, env = "RELAY_DOMAIN", default_value = "localhost")]
    domain: String,
    /// Let the credential travel unencrypted to another machine.
    #[arg(long, env = "RELAY_ALLOW_PLAINTEXT")]
    allow_plaintext: bool,
    /// Start with paper stuck in it.
    #[arg(long)]
    jam: bool,
    /// How many bytes a second it prints. As fast as they come without it.
    #[arg(long, env = "RELAY_SPEED", value_name = "BYTES")]
    speed: Option<NonZeroU64>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Transport {
    /// WebSocket where the network lets it through, else BOSH.
    Auto,
    /// XMPP over BOSH.
    Bosh,
    /// WebSocket.
    Ws,
}

impl From<Transport> for device_sdk::Transport {
    fn from(transport: Transport) -> Self {
        match transport {
            Transport::Auto => Self::Auto,
            Transport::Bosh => Self::Bosh,
            Transport::Ws => Self::Ws,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Switch {
    On,
    Off,
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let options = Options::parse();
    tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "warn".into()),
        )
        .with_writer(std::io::stderr)
        .init();

    let printer = Printer::new(&options.id, own_address(&options.relay));
    printer.set_jam(options.jam);
    printer.set_speed(options.speed);
    if let Some(folder) = options.out {
        printer.print_into(folder);
    }

    let mut books = AddressBooks::new();
    if let Some(account) = options.account {
        books = books.account(account);
    }
    tokio::spawn(book::tell(books.clone(), books.events()));
    let mut device = Device::builder(&options.relay, &options.id)
        .router(printer.router())
        .app(printer.print_app())
        .address_books(&books)
        .registration(printer.registration())
        .maintenance(options.maintenance == Switch::On)
        .keepalive(Duration::from_secs(options.keepalive))
        .transport(options.transport.into())
        .domain(&options.domain);
    if let Some(pin) = options.pin {
        device = device.pin(pin);
    }
    if let Some(token) = options.token {
        device = device.token(token);
    }
    if let Some(folder) = options.state {
        device = device.state_folder(folder);
    }
    if let Some(proxy) = options.proxy {
        device = device.proxy(proxy);
    }
    if options.allow_plaintext {
        device = device.allow_plaintext();
    }
    let device = device.start().await?;

    tokio::spawn(tell(device.events()));
    tokio::spawn(panel::operate(device.clone(), printer, books));
    asked_to_stop().await?;
    device.shutdown(Duration::from_secs(5)).await;
    Ok(())
}

/// Says what happens, a line each.
async fn tell(mut events: Events) {
    while let Some(event) = events.next().await {
        match event {
            Event::Enrolled => println!("enrolled"),
            Event::Registered => println!("registered"),
            Event::Online { resumed: true } => println!("online, session resumed"),
            Event::Online { resumed: false } => println!("online"),
            Event::Transport { name } => println!("session over {name}"),
            Event::Offline { reason, retry_in } => println!("offline ({reason:?}), back in {retry_in:.1?}"),
            Event::Failed { step, words, retry_in } => println!("{step:?}: {words}; again in {retry_in:.1?}"),
            Event::CredentialRefused { words, retry_in: None, .. } => {
                println!("credential refused ({words}): a new PIN is needed");
            }
            Event::CredentialRefused { words, retry_in: Some(retry_in), .. } => {
                println!("credential refused ({words}); again in {retry_in:.0?}");
            }
            Event::RegistrationRefused { words } => println!("registration refused: {words}"),
            Event::Maintenance { on } => println!("session maintenance {}", if on { "on" } else { "off" }),
            Event::Survival { known } => println!(
                "survival: session {}",
                match known {
                    Some(true) => "known",
                    Some(false) => "unknown",
                    None => "in doubt, no answer",
                }
            ),
            Event::Requested { id, method, objects } => {
                let objects: Vec<_> = objects.iter().map(ToString::to_string).collect();
                println!("asked {id}: {method} {}", objects.join(" "));
            }
            Event::Settled { id, verdict } => println!("answered {id}: {verdict:?}"),
            Event::JobStarted { id, app } => println!("{app} {id}: begun"),
            Event::JobProgress { id, progress } => println!(
                "job {id}: {} bytes{}",
                progress.bytes,
                progress.note.map(|note| format!(", {note}")).unwrap_or_default()
            ),
            Event::JobEnded { id, app, end: JobEnd::Done } => println!("{app} {id}: done"),
            Event::JobEnded { id, app, end: JobEnd::Failed { status, words } } => {
                println!("{app} {id}: not done, {} ({words})", status.as_str());
            }
            Event::JobEnded { id, app, end: JobEnd::Cancelled } => println!("{app} {id}: cancelled"),
            Event::StateDamaged { recovered: true } => println!("state damaged: the one before is used"),
            Event::StateDamaged { recovered: false } => println!("state damaged: nothing is left of it"),
            Event::Lagged { missed } => println!("({missed} events not shown)"),
            other => println!("{other:?}"),
        }
    }
}

/// The address by which this machine would reach the relay. Nothing is sent.
fn own_address(relay: &str) -> IpAddr {
    let loopback = IpAddr::from([127, 0, 0, 1]);
    let host = relay.split("://").nth(1).and_then(|rest| rest.split('/').next()).unwrap_or_default();
    let target = if host.contains(':') { host.to_owned() } else { format!("{host}:443") };
    std::net::UdpSocket::bind("0.0.0.0:0")
        .and_then(|socket| {
            socket.connect(target)?;
            socket.local_addr()
        })
        .map_or(loopback, |address| address.ip())
}
