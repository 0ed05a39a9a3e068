//! What the program understands.

use std::{net::SocketAddr, path::PathBuf};

use clap::{Args, Parser, Subcommand};
use relay_core::ids::{AccountId, DeviceId, DocumentId, KeyId, ObjectId};
use server_sdk::client::EventKind;

const EXIT_CODES: &str = "\
Exit codes: 0 done · 1 the relay or the device said no · 2 wrong arguments or settings · 3 the relay was not reached, \
or its answer did not come, so that it is not known what was done · 4 the device is offline or asleep.

Every option has a variable RELAY_…, such as RELAY_URL and RELAY_KEY. A key is better given by its variable or left \
in the relay's data folder than written on the command line, where other users of the machine can read it.";

/// Reaches devices behind firewalls and NATs: runs a relay, and talks to one that runs.
#[derive(Debug, Parser)]
#[command(name = "relay", version, about, after_help = EXIT_CODES, propagate_version = true)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Command,
    #[command(flatten)]
    pub(crate) reach: Reach,
    /// Print JSON, errors included
    #[arg(long, global = true)]
    pub(crate) json: bool,
}

/// Where the relay is, and who calls.
#[derive(Debug, Args)]
pub(crate) struct Reach {
    /// The relay to talk to [default: http://127.0.0.1:8080]
    #[arg(long = "relay", value_name = "URL", env = "RELAY_URL", global = true)]
    pub(crate) url: Option<String>,
    /// The key to show it [default: the administrator's, from the data folder]
    #[arg(long, value_name = "KEY", env = "RELAY_KEY", hide_env_values = true, global = true)]
    pub(crate) key: Option<String>,
    /// The relay's data folder [default: relay-data]
    #[arg(long, value_name = "DIR", env = "RELAY_DATA", global = true)]
    pub(crate) data: Option<PathBuf>,
    /// Allow plain HTTP beyond this machine: keys and data can then be read on the way
    #[arg(
        long,
        env = "RELAY_ALLOW_PLAINTEXT",
        global = true,
        value_parser = clap::builder::FalseyValueParser::new(),
        action = clap::ArgAction::SetTrue
    )]
    pub(crate) allow_plaintext: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a relay
    Serve(Serve),
    /// Make a PIN with which a device can enrol once, within a day
    Enroll {
        /// The device's ID
        device: DeviceId,
        /// The account that it belongs to; may be repeated
        #[arg(long = "account", value_name = "ACCOUNT")]
        accounts: Vec<AccountId>,
    },
    /// Import a table of devices: CSV with a line of names, or a JSON object a line
    Import {
        /// The file; - is the standard input
        file: PathBuf,
    },
    /// Make, list and revoke keys of services
    #[command(subcommand)]
    Key(Key),
    /// List devices; with --json, one a line
    Devices(Filter),
    /// Read objects of a device
    Get {
        /// The device's ID
        device: DeviceId,
        /// The object; with several, the answer is a JSON object by their names
        #[arg(required = true, value_name = "OBJECT")]
        objects: Vec<ObjectId>,
        #[command(flatten)]
        wait: Wait,
    },
    /// Print a document on a device, and tell how it goes; with --json, an update a line
    Print(Print),
    /// Write an object of a device, and print the value now in force
    Set {
        /// The device's ID
        device: DeviceId,
        /// The object
        object: ObjectId,
        /// The value; without it, the standard input
        value: Option<String>,
        /// The value's media type
        #[arg(long, value_name = "TYPE", default_value = "text/plain; charset=utf-8")]
        content_type: String,
        #[command(flatten)]
        wait: Wait,
    },
    /// Tell what happens, as it does: devices that come and go, requests, jobs; with --json, an object a line
    Watch(Watch),
}

/// Goes on until Ctrl-C. A relay that goes away is waited for, which is said on the standard error; what happened
/// meanwhile is told after. Requests and jobs are those of the key; with an administrator's key, those of all.
#[derive(Debug, Args)]
pub(crate) struct Watch {
    /// Only what happens to this device; may be repeated
    #[arg(long = "device", value_name = "DEVICE")]
    pub(crate) devices: Vec<DeviceId>,
    /// Only events of this type: presence, request or job; may be repeated
    #[arg(long = "type", value_name = "TYPE", value_parser = kind)]
    pub(crate) kinds: Vec<EventKind>,
}

fn kind(text: &str) -> Result<EventKind, String> {
    let kinds = [EventKind::Presence, EventKind::Request, EventKind::Job];
    kinds
        .into_iter()
        .find(|kind| kind.as_str() == text)
        .ok_or_else(|| "presence, request or job is needed".to_owned())
}

/// Ctrl-C cancels the job.
#[derive(Debug, Args)]
pub(crate) struct Print {
    /// The device's ID
    pub(crate) device: DeviceId,
    /// The document; - is the standard input, which cannot be sent again if the connection breaks
    #[arg(required_unless_present = "document")]
    pub(crate) file: Option<PathBuf>,
    /// Print a document that is kept on the relay instead
    #[arg(long, value_name = "NAME", conflicts_with = "file")]
    pub(crate) document: Option<DocumentId>,
    /// Who prints
    #[arg(long)]
    pub(crate) user: Option<String>,
    /// What the job is called [default: the file's name]
    #[arg(long, value_name = "NAME")]
    pub(crate) job_name: Option<String>,
    /// The document's media type [default: by the file's name]
    #[arg(long = "type", value_name = "TYPE")]
    pub(crate) content_type: Option<String>,
    /// What else the ticket says, such as copies=2; may be repeated
    #[arg(long = "set", value_name = "NAME=VALUE", value_parser = pair)]
    pub(crate) ticket: Vec<(String, String)>,
    #[command(flatten)]
    pub(crate) wait: Wait,
}

fn pair(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("NAME=VALUE is needed")?;
    Ok((name.to_owned(), value.to_owned()))
}

#[derive(Debug, Subcommand)]
pub(crate) enum Key {
    /// Make a key, and print it this once
    New {
        /// What it may do; may be repeated. Without one: all that a service can, on every device
        ///
        /// `device:GLOB`, `account:ID` or `admin`; the first two may go on with a colon and what is allowed there,
        /// divided by commas: methods, `app/NAME`, `list`. Everything, if nothing is said.
        #[arg(long = "scope", value_name = "SCOPE")]
        scopes: Vec<String>,
    },
    /// List keys; with --json, one a line
    List,
    /// Revoke a key
    Revoke {
        /// The key's ID
        id: KeyId,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Wait {
    /// How long to wait for the device, in seconds (1 to 600)
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=600))]
    pub(crate) wait: u64,
}

/// Text is equal whatever its case.
#[derive(Debug, Args)]
pub(crate) struct Filter {
    /// Those of this account
    #[arg(long)]
    pub(crate) account: Option<AccountId>,
    /// Those in this state
    #[arg(long, value_parser = ["online", "offline", "asleep"])]
    pub(crate) state: Option<String>,
    /// Those of this name
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// Those of this model
    #[arg(long)]
    pub(crate) model: Option<String>,
    /// Those that stand here
    #[arg(long)]
    pub(crate) location: Option<String>,
    /// Those that can do this, such as color or paper:A4
    #[arg(long)]
    pub(crate) capability: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Serve {
    /// An address to listen on; may be repeated [default: 127.0.0.1:8080]
    #[arg(long, value_name = "ADDR")]
    pub(crate) listen: Vec<SocketAddr>,
    /// A file of settings, in TOML
    #[arg(long, value_name = "FILE", env = "RELAY_CONFIG")]
    pub(crate) config: Option<PathBuf>,
    /// The XMPP domain of the devices' addresses [default: localhost]
    #[arg(long)]
    pub(crate) domain: Option<String>,
    /// How many threads do the work; one is the cheapest a request, more do more of them [default: one a core]
    #[arg(long, value_name = "N", env = "RELAY_WORKERS", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(crate) workers: Option<u16>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_arguments_do_not_contradict_each_other() {
        <Arguments as clap::CommandFactory>::command().debug_assert();
    }
}
