//! `relay serve`.

use std::io::{self, IsTerminal};

use serde_json::json;
use server_sdk::relay::{Server, ServerConfig};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing_subscriber::EnvFilter;

use crate::{
    arguments::{Reach, Serve},
    failure::Failure,
    output,
};

pub(crate) async fn serve(serve: Serve, reach: Reach, json: bool) -> Result<(), Failure> {
    log()?;
    // What is not UTF-8 is no setting of ours.
    let environment = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    let mut config = ServerConfig::load(serve.config.as_deref(), environment)
        .map_err(|error| Failure::own("the settings cannot be used").because(error))?;
    if !serve.listen.is_empty() {
        config.listen = serve.listen;
    }
    if let Some(domain) = serve.domain {
        config.domain = domain;
    }
    if let Some(data) = reach.data {
        config.data = data;
    }
    config.allow_plaintext |= reach.allow_plaintext;
    let data = config.data.clone();
    raise_descriptors();

    // Before anything listens: a signal that comes while the relay starts is not to be lost.
    let signals = Signals::new()
        .map_err(|error| Failure::own("signals of the system cannot be heard").because(error))?;
    let server = Server::bind(config)
        .await
        .map_err(|error| Failure::own("the relay does not start").because(error))?;

    let urls: Vec<String> = server.addresses().iter().map(|address| format!("http://{address}")).collect();
    let key_file = server.administrator_key_file();
    let told = if json {
        let told = json!({"listening": urls, "data": data, "administrator_key_file": key_file});
        output::line(&told.to_string())
    } else {
        let url = urls.first().map_or("", String::as_str);
        output::line(&format!(
            "The relay listens on {}\n\
             \x20 data folder         {}\n\
             \x20 administrator's key {}\n\
             To connect a device:  relay enroll DEVICE\n\
             \x20                     virtual-printer --relay {url} --id DEVICE --pin PIN\n\
             To call it:           relay get DEVICE OBJECT\n\
             For a service:        relay key new\n\
             To print by hand:     {url}/ in a browser, with such a key",
            urls.join(" and "),
            data.display(),
            key_file.map(|file| file.display().to_string()).unwrap_or_default(),
        ))
    };
    // A relay whose standard output nobody reads serves all the same.
    if let Err(error) = told {
        tracing::warn!(%error, "the addresses could not be printed");
    }
    server.run(signals.first()).await;
    Ok(())
}

fn log() -> Result<(), Failure> {
    let set = ["RELAY_LOG", "RUST_LOG"].into_iter().find_map(|name| Some((name, std::env::var(name).ok()?)));
    let filter = match set {
        Some((name, filter)) => EnvFilter::try_new(&filter).map_err(|error| {
            Failure::own(format!("{name} is {filter:?}, which is no filter")).because(error)
        })?,
        None => EnvFilter::new("info"),
    };
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(io::stderr().is_terminal())
        .with_writer(io::stderr);
    subscriber.try_init().map_err(|error| Failure::own("nothing can be logged").because(error))
}

/// Every device costs a descriptor or two; what the system allows is taken.
fn raise_descriptors() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
        if let Err(error) = setrlimit(Resource::Nofile, raised) {
            tracing::warn!(%error, "the number of descriptors stays as it is");
        }
    }
}

/// SIGTERM and SIGINT: the first drains, the second ends it.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }

    async fn first(mut self) {
        self.next().await;
        tokio::spawn(async move {
            self.next().await;
            tracing::warn!("told twice to stop: not draining any longer");
            std::process::exit(1);
        });
    }
}
