//! A maintenance service: reads the toner levels of all printers of an account, again and again.
//!
//! ```sh
//! maintenance-service --relay https://relay.example --key KEY --account acme --every 300
//! ```

use std::time::Duration;

use clap::Parser;
use examples::{Failure, printer::mib};
use futures_util::{StreamExt, stream};
use serde_json::Value;
use server_sdk::{
    Client, Device, DeviceFilter, Request,
    ids::{AccountId, Method, ObjectId},
};

/// Printers asked at the same time.
const AT_ONCE: usize = 16;

#[derive(Debug, Parser)]
#[command(about = "Polls the toner levels of all printers of an account")]
struct Options {
    /// The relay's URL.
    #[arg(long, env = "RELAY_URL", default_value = "http://127.0.0.1:8080")]
    relay: String,
    /// The service's key.
    #[arg(long, env = "RELAY_KEY", hide_env_values = true)]
    key: String,
    /// The account whose printers are asked; all that the key may see if left out.
    #[arg(long, env = "RELAY_ACCOUNT")]
    account: Option<AccountId>,
    /// Seconds from one round to the next.
    #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    every: u64,
    /// One round, and end.
    #[arg(long)]
    once: bool,
    /// Let the key travel unencrypted to another machine.
    #[arg(long, env = "RELAY_ALLOW_PLAINTEXT")]
    allow_plaintext: bool,
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let options = Options::parse();
    let mut builder = Client::builder(&options.relay, &options.key).wait(Duration::from_secs(10));
    if options.allow_plaintext {
        builder = builder.allow_plaintext();
    }
    let relay = builder.build()?;

    let mut rounds = tokio::time::interval(Duration::from_secs(options.every));
    loop {
        rounds.tick().await;
        match round(&relay, options.account.as_ref()).await {
            Err(error) if options.once => return Err(error.into()),
            // The next round asks again: the relay may be restarting.
            Err(error) => eprintln!("no round: {error}"),
            Ok(()) if options.once => return Ok(()),
            Ok(()) => {}
        }
    }
}

async fn round(relay: &Client, account: Option<&AccountId>) -> Result<(), server_sdk::Error> {
    let filter =
        account.cloned().map_or_else(DeviceFilter::all, |account| DeviceFilter::all().account(account));
    let printers = relay.devices(filter).collect().await?;
    let mut lines = stream::iter(&printers).map(|printer| line(relay, printer)).buffered(AT_ONCE);
    while let Some(line) = lines.next().await {
        println!("{line}");
    }
    Ok(())
}

/// A printer and its levels. An offline one costs one round trip, not a time-out.
async fn line(relay: &Client, printer: &Device) -> String {
    let name = printer.name.as_deref().unwrap_or("");
    let levels = match levels(relay, printer).await {
        Ok(levels) => levels.join("  "),
        Err(error) => format!("{error:?}"),
    };
    format!("{:<20} {name:<20} {levels}", printer.id.as_str())
}

/// All four levels in one request: the answer is a JSON object by object name, each with its value or its error.
async fn levels(relay: &Client, printer: &Device) -> Result<Vec<String>, Failure> {
    let mut request = Request::new(printer.id.clone(), Method::get());
    for supply in 1..=4 {
        for column in [mib::PRT_MARKER_SUPPLIES_DESCRIPTION, mib::PRT_MARKER_SUPPLIES_LEVEL] {
            request = request.with_object(ObjectId::new(&format!("{column}{supply}"))?);
        }
    }
    let answer = relay.request(&request).await?;
    let objects: Value = serde_json::from_slice(&answer.bytes)?;
    let value =
        |column: &str, supply: u8| objects[format!("{column}{supply}")]["value"].as_str().map(str::to_owned);
    let level = |supply| {
        let name = value(mib::PRT_MARKER_SUPPLIES_DESCRIPTION, supply)?;
        let level = value(mib::PRT_MARKER_SUPPLIES_LEVEL, supply)?;
        Some(format!("{name} {level} %"))
    };
    Ok((1..=4).filter_map(level).collect())
}
