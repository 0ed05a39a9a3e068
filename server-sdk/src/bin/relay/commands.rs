//! The subcommands that talk to a running relay.

use std::{
    io::{self, IsTerminal, Read},
    net::IpAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use relay_core::ids::Method;
use serde_json::json;
use server_sdk::{
    Body, Client, DeviceFilter, Error, Request, State, client::TableFormat, relay::store::ADMINISTRATOR_KEY,
};

use crate::{
    arguments::{Command, Filter, Key, Reach},
    failure::Failure,
    output, print, watch,
};

const DEFAULT_URL: &str = "http://127.0.0.1:8080";
pub(crate) const DEFAULT_DATA: &str = "relay-data";

pub(crate) async fn run(command: Command, reach: &Reach, json: bool) -> Result<(), Failure> {
    let url = reach.url.as_deref().unwrap_or(DEFAULT_URL);
    let failed = |error: Error| Failure::call(url, error);
    let relay = client(url, reach)?;
    let administration = relay.administration();
    let printed = match command {
        Command::Serve(_) => Ok(()),
        Command::Enroll { device, accounts } => {
            let pin = administration.issue_pin(&device, &accounts).await.map_err(failed)?;
            let expires = pin.expires.map(output::rfc3339);
            if json {
                let pin = json!({"device_id": pin.device_id, "pin": pin.pin.expose(), "expires": expires});
                output::line(&pin.to_string())
            } else {
                output::line(&format!(
                    "{} can enrol once with PIN {}{}",
                    pin.device_id,
                    output::plain(pin.pin.expose()),
                    expires.map(|time| format!(" until {time}")).unwrap_or_default()
                ))
            }
        }
        Command::Import { file } => {
            let table = read(&file)
                .map_err(|error| Failure::own(format!("{} cannot be read", file.display())).because(error))?;
            let format = format_of(&file, &table);
            let imported = administration.import(table, format).await.map_err(failed)?;
            match json {
                true => output::line(&json!({"imported": imported}).to_string()),
                false => output::line(&format!(
                    "{imported} {} imported",
                    if imported == 1 { "device" } else { "devices" }
                )),
            }
        }
        Command::Key(Key::New { scopes }) => {
            let key = administration.new_key(&scopes).await.map_err(failed)?;
            if json {
                output::line(&json!({"id": key.id, "key": key.key.expose()}).to_string())
            } else {
                let key = format!(
                    "{}\n(its ID is {}; it is not shown again)",
                    output::plain(key.key.expose()),
                    key.id
                );
                output::line(&key)
            }
        }
        Command::Key(Key::List) => {
            let keys = administration.keys().await.map_err(failed)?;
            if json {
                let lines: String = keys.iter().map(|key| format!("{}\n", output::key_json(key))).collect();
                output::print(lines.as_bytes())
            } else {
                let rows: Vec<Vec<String>> = keys
                    .into_iter()
                    .map(|key| {
                        let scopes =
                            if key.scopes.is_empty() { "(any)".into() } else { key.scopes.join(" ") };
                        vec![
                            key.id.as_str().into(),
                            key.created.map(output::rfc3339).unwrap_or_default(),
                            key.expires.map_or_else(|| "never".into(), output::rfc3339),
                            scopes,
                        ]
                    })
                    .collect();
                output::table(&["ID", "CREATED", "EXPIRES", "SCOPES"], &rows)
            }
        }
        Command::Key(Key::Revoke { id }) => {
            administration.revoke_key(&id).await.map_err(failed)?;
            match json {
                true => output::line(&json!({"revoked": id}).to_string()),
                false => output::line(&format!("{id} no longer works")),
            }
        }
        Command::Devices(filter) => devices(&relay, filter, json).await.map_err(failed)?,
        Command::Get { device, objects, wait } => {
            let request = objects.into_iter().fold(Request::new(device, Method::get()), Request::with_object);
            let relay = relay.with_wait(Duration::from_secs(wait.wait));
            output::answer(&relay.request(&request).await.map_err(failed)?, json)
        }
        Command::Print(print) => {
            let relay = relay.with_wait(Duration::from_secs(print.wait.wait));
            return print::print(&relay, url, print, json).await;
        }
        Command::Watch(watch) => return watch::watch(&relay, url, watch, json).await,
        Command::Set { device, object, value, content_type, wait } => {
            let value = match value {
                Some(value) => value.into_bytes(),
                None => read(Path::new("-"))
                    .map_err(|error| Failure::own("the standard input cannot be read").because(error))?,
            };
            let request = Request::set(device, object, Body::new(&content_type, value));
            let relay = relay.with_wait(Duration::from_secs(wait.wait));
            output::answer(&relay.request(&request).await.map_err(failed)?, json)
        }
    };
    printed.map_err(|error| Failure::own("the standard output cannot be written").because(error))
}

async fn devices(relay: &Client, filter: Filter, json: bool) -> Result<io::Result<()>, Error> {
    let mut wanted = DeviceFilter::all().page(1000);
    wanted.account = filter.account;
    wanted.name = filter.name;
    wanted.model = filter.model;
    wanted.location = filter.location;
    wanted.capability = filter.capability;
    wanted.state = filter.state.and_then(|word| {
        [State::Online, State::Offline, State::Asleep].into_iter().find(|state| state.as_str() == word)
    });
    let mut devices = relay.devices(wanted);
    let mut rows = Vec::new();
    while let Some(device) = devices.next().await? {
        if json {
            if let Err(error) = output::line(&output::device_json(&device).to_string()) {
                return Ok(Err(error));
            }
            continue;
        }
        let accounts: Vec<&str> = device.accounts.iter().map(|account| account.as_str()).collect();
        rows.push(vec![
            device.id.as_str().into(),
            device.presence.state.as_str().into(),
            device.presence.last_heard.map(output::rfc3339).unwrap_or_default(),
            device.name.unwrap_or_default(),
            device.model.unwrap_or_default(),
            device.location.unwrap_or_default(),
            accounts.join(" "),
        ]);
    }
    Ok(match json {
        true => Ok(()),
        false => {
            output::table(&["ID", "STATE", "LAST HEARD", "NAME", "MODEL", "LOCATION", "ACCOUNTS"], &rows)
        }
    })
}

/// A client of the relay at `url`. Without a key it takes the administrator's from the data folder, but shows that to
/// this machine alone: another machine's relay has another key, and no business with this one.
fn client(url: &str, reach: &Reach) -> Result<Client, Failure> {
    let key = match &reach.key {
        Some(key) => key.trim().to_owned(),
        None if is_this_machine(url) => {
            let file =
                reach.data.clone().unwrap_or_else(|| PathBuf::from(DEFAULT_DATA)).join(ADMINISTRATOR_KEY);
            let key = std::fs::read_to_string(&file).map_err(|error| {
                Failure::own(format!("the administrator's key cannot be read from {}", file.display()))
                    .because(error)
                    .advise(
                        "run this where the relay was started, name its data folder with --data, or give a key in \
                         RELAY_KEY",
                    )
            })?;
            key.trim().to_owned()
        }
        None => {
            return Err(Failure::own(format!("a key is needed for the relay at {url}"))
                .advise("give it in RELAY_KEY; `relay key new` on the relay's own machine makes one"));
        }
    };
    let mut builder = Client::builder(url, &key);
    if reach.allow_plaintext {
        builder = builder.allow_plaintext();
    }
    builder.build().map_err(|error| Failure::call(url, error))
}

fn is_this_machine(url: &str) -> bool {
    let Ok(url) = reqwest::Url::parse(url) else { return false };
    let host = url.host_str().unwrap_or("");
    let literal = host.trim_start_matches('[').trim_end_matches(']');
    host.eq_ignore_ascii_case("localhost")
        || literal.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

fn read(file: &Path) -> io::Result<Vec<u8>> {
    if file != Path::new("-") {
        return std::fs::read(file);
    }
    if io::stdin().is_terminal() {
        eprintln!("(reading from the terminal; end with Ctrl-D)");
    }
    let mut bytes = Vec::new();
    io::stdin().lock().read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// By the file's name, else by how it begins.
fn format_of(file: &Path, table: &[u8]) -> TableFormat {
    let ending = file.extension().and_then(|ending| ending.to_str()).unwrap_or("").to_ascii_lowercase();
    match &*ending {
        "csv" => TableFormat::Csv,
        "ndjson" | "jsonl" | "json" => TableFormat::Ndjson,
        _ if table.trim_ascii_start().starts_with(b"{") => TableFormat::Ndjson,
        _ => TableFormat::Csv,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p5_a_table_is_told_by_its_name_or_its_beginning() {
        assert_eq!(format_of(Path::new("a.CSV"), b"{"), TableFormat::Csv);
        assert_eq!(format_of(Path::new("a.jsonl"), b"x"), TableFormat::Ndjson);
        assert_eq!(format_of(Path::new("-"), b" \n{\"device_id\":1}"), TableFormat::Ndjson);
        assert_eq!(format_of(Path::new("-"), b"device_id,name"), TableFormat::Csv);
    }

    #[test]
    fn t15_the_administrators_key_is_for_this_machine_alone() {
        for here in ["http://127.0.0.1:8080", "http://localhost", "https://[::1]:1/x"] {
            assert!(is_this_machine(here), "{here}");
        }
        for there in [
            "http://127.0.0.1.example",
            "https://relay.example",
            "http://10.0.0.1",
            "localhost",
            "http://0.0.0.0",
        ] {
            assert!(!is_this_machine(there), "{there}");
        }
    }
}
