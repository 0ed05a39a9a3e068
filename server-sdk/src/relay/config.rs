//! The relay's settings: defaults, a TOML file, the environment, and what the program was told, each over the one
//! before it.

use std::{
    fmt::Display,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use relay_core::{relay::RelayConfig, xml::vocabulary::MAX_URL};
use serde::Deserialize;
use transport_bosh::BoshServerConfig;
use transport_ws::WsServerConfig;

/// Settings of a relay. Every field has a working default.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ServerConfig {
    /// Addresses to listen on (`127.0.0.1:8080`). Port 0 picks a free one.
    pub listen: Vec<SocketAddr>,
    /// Where the relay keeps its database and the administrator's key (`relay-data`); made if it is not there.
    pub data: PathBuf,
    /// The XMPP domain of the devices' addresses, `<device>@<domain>` (`localhost`).
    pub domain: String,
    /// Whether to serve plain HTTP on addresses other than loopback (no). Tokens and data then cross the network
    /// readable by all on the way, unless something in front of the relay does TLS.
    pub allow_plaintext: bool,
    /// Proxies in front of the relay (none). Of a connection from one of these addresses, `X-Forwarded-For` says who the
    /// peer is and `X-Forwarded-Proto` whether it came over TLS; of any other, both are ignored.
    pub trusted_proxies: Vec<IpAddr>,
    /// Bounds of the HTTP side.
    pub http: HttpLimits,
    /// Bounds of documents: those of jobs, and those that are kept.
    pub spool: SpoolLimits,
    /// Bounds and times of the engine.
    pub relay: RelayConfig,
    /// Bounds and times of BOSH. Its `domain` is taken from the field above.
    pub bosh: BoshServerConfig,
    /// Bounds and times of WebSocket.
    pub ws: WsServerConfig,
    /// How long calls in flight may take to finish once the relay is told to stop (30 s).
    pub drain_grace: Duration,
    /// When devices that are told to go are to come back (5 s).
    pub drain_retry_after: Duration,
    /// Where devices that are told to go are to go (nowhere else): the URL of another relay that knows them. A device
    /// follows only if its vendor allowed that address, and comes back here if it did not.
    pub drain_to: Option<Box<str>>,
}

/// Bounds of the HTTP side. Each ends in a refusal that names it.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct HttpLimits {
    /// A request's head, in bytes (16 KiB); more is 431. At least 8 KiB.
    pub max_head: usize,
    /// A request's target, in bytes (8 KiB); more is 414.
    pub max_target: usize,
    /// A body posted to `/http-bind`, in bytes (256 KiB); more is 413.
    pub max_bosh_body: usize,
    /// A body of a request or response, in bytes (1 MiB); more is 413.
    pub max_body: usize,
    /// A JSON body of any other call, in bytes (64 KiB); more is 413.
    pub max_json: usize,
    /// A device table to import, in bytes (8 MiB); more is 413.
    pub max_import: usize,
    /// Bodies that are being read, all together, in bytes (256 MiB); one more is 503. It keeps many who each send a
    /// little of a large body from filling the memory.
    pub max_reading: usize,
    /// How long a request's head may take (10 s), and how long somebody without a credential may stay idle.
    pub head_timeout: Duration,
    /// How long a connection may rest between two requests (90 s). Shorter than a client's own pool keeps
    /// connections, and the client meets closing ones.
    pub idle_timeout: Duration,
    /// How long a body may pause (10 s); after that time it also has to be as fast as
    /// [`body_min_rate`](Self::body_min_rate).
    pub body_idle_timeout: Duration,
    /// Bytes a second that a body has to come at, on the whole (1,024).
    pub body_min_rate: u32,
    /// How long a body may take (60 s).
    pub body_timeout: Duration,
    /// How long a peer may leave its answer unread (30 s).
    pub write_timeout: Duration,
    /// Connections at once. By default the descriptors that the process may have, minus 256 for all else.
    pub max_connections: Option<usize>,
    /// Connections at once on which no credential was shown yet (10,000).
    pub max_strangers: usize,
    /// Calls in flight of one service key (1,000); more is 429.
    pub service_in_flight: usize,
    /// Enrolment tries a minute from one source address (10); more is 429.
    pub enrolments_per_minute: u32,
}

/// Bounds of documents: those of jobs, and those that are kept.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct SpoolLimits {
    /// One document, in bytes (16 GiB); more is 413.
    pub max_document: u64,
    /// All documents together, in bytes (64 GiB); more is 503.
    pub max_spool: u64,
    /// What documents leave free on their disk, in bytes (256 MiB), since the database may be on the same one; beyond
    /// it is 503.
    pub spool_reserve: u64,
    /// Documents that one key may keep (1,000); more is 429.
    pub max_documents: usize,
    /// How long an upload that broke off may be gone on with (60 s). The device holds the job open meanwhile.
    pub upload_resume: Duration,
}

impl Default for SpoolLimits {
    fn default() -> Self {
        Self {
            max_document: 16 << 30,
            max_spool: 64 << 30,
            spool_reserve: 256 << 20,
            max_documents: 1_000,
            upload_resume: Duration::from_secs(60),
        }
    }
}

impl Default for HttpLimits {
    fn default() -> Self {
        Self {
            max_head: 16 * 1024,
            max_target: 8 * 1024,
            max_bosh_body: 256 * 1024,
            max_body: 1024 * 1024,
            max_json: 64 * 1024,
            max_import: 8 * 1024 * 1024,
            max_reading: 256 * 1024 * 1024,
            head_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(90),
            body_idle_timeout: Duration::from_secs(10),
            body_min_rate: 1024,
            body_timeout: Duration::from_secs(60),
            write_timeout: Duration::from_secs(30),
            max_connections: None,
            max_strangers: 10_000,
            service_in_flight: 1_000,
            enrolments_per_minute: 10,
        }
    }
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            listen: vec![SocketAddr::from(([127, 0, 0, 1], 8080))],
            data: PathBuf::from("relay-data"),
            domain: "localhost".into(),
            allow_plaintext: false,
            trusted_proxies: Vec::new(),
            http: HttpLimits::default(),
            spool: SpoolLimits::default(),
            relay: RelayConfig::default(),
            bosh: BoshServerConfig::default(),
            ws: WsServerConfig::default(),
            drain_grace: Duration::from_secs(30),
            drain_retry_after: Duration::from_secs(5),
            drain_to: None,
        }
    }
}

/// What is wrong with the settings, and where they came from.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {}", path.display())]
    File {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file has something that is no setting, or no value for it.
    #[error("{}: {words}", path.display())]
    Toml {
        /// Which file.
        path: PathBuf,
        /// What, with line, column and key.
        words: String,
    },
    /// A variable of the environment has no value for its setting.
    #[error("{variable}: {words}")]
    Variable {
        /// Which variable.
        variable: String,
        /// What is wrong with it.
        words: String,
    },
    /// A value that is outside its bounds.
    #[error("{key} is {value}; {rule}")]
    Value {
        /// Which setting.
        key: &'static str,
        /// What it is.
        value: String,
        /// What it has to be.
        rule: &'static str,
    },
}

impl ServerConfig {
    /// The defaults, with `file` over them, and the variables `RELAY_…` of `environment` over both. What the program's
    /// own arguments say is to be set on the result.
    ///
    /// Variables that name no setting are left alone: others use the prefix too.
    ///
    /// # Errors
    /// [`ConfigError`] says which key or variable is wrong, and why. A key that is no setting is an error.
    pub fn load(
        file: Option<&Path>,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, ConfigError> {
        let mut config = Self::default();
        if let Some(path) = file {
            let text = std::fs::read_to_string(path)
                .map_err(|source| ConfigError::File { path: path.into(), source })?;
            let settings = toml::from_str::<Settings>(&text)
                .map_err(|error| ConfigError::Toml { path: path.into(), words: error.to_string() })?;
            settings.put_into(&mut config);
        }
        for (variable, value) in environment {
            let Some(key) = variable.strip_prefix("RELAY_").map(str::to_ascii_lowercase) else { continue };
            if !Settings::KEYS.contains(&&*key) {
                continue;
            }
            Settings::of(&key, &value)
                .map_err(|words| ConfigError::Variable { variable, words })?
                .put_into(&mut config);
        }
        config.check()?;
        Ok(config)
    }

    /// Checks what types cannot.
    ///
    /// # Errors
    /// [`ConfigError::Value`] names the first setting that is out of its bounds.
    pub fn check(&self) -> Result<(), ConfigError> {
        fn ensure(
            holds: bool,
            key: &'static str,
            value: impl Display,
            rule: &'static str,
        ) -> Result<(), ConfigError> {
            if holds { Ok(()) } else { Err(ConfigError::Value { key, value: value.to_string(), rule }) }
        }
        let http = &self.http;
        ensure(!self.listen.is_empty(), "listen", "empty", "at least one address is needed")?;
        ensure(
            (8192..=1 << 20).contains(&http.max_head),
            "max_head",
            http.max_head,
            "8 KiB to 1 MiB are possible",
        )?;
        ensure(
            (64..=http.max_head).contains(&http.max_target),
            "max_target",
            http.max_target,
            "it is part of the head, so at most max_head",
        )?;
        let domain_ok = !self.domain.is_empty()
            && self.domain.len() <= 255
            && self.domain.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-'));
        ensure(domain_ok, "domain", format_args!("{:?}", self.domain), "a host name is needed")?;
        if let Some(url) = &self.drain_to {
            ensure(
                is_relay_url(url),
                "drain_to",
                format_args!("{url:?}"),
                "the http or https URL of a relay is needed",
            )?;
        }
        for (key, time) in [
            ("head_timeout", http.head_timeout),
            ("idle_timeout", http.idle_timeout),
            ("body_idle_timeout", http.body_idle_timeout),
            ("body_timeout", http.body_timeout),
            ("write_timeout", http.write_timeout),
        ] {
            ensure(!time.is_zero(), key, "0", "nothing happens in no time")?;
        }
        for (key, count) in [
            ("max_connections", http.max_connections.unwrap_or(1)),
            ("max_strangers", http.max_strangers),
            ("service_in_flight", http.service_in_flight),
        ] {
            ensure(count > 0, key, 0, "at least 1 is needed")?;
        }
        Ok(())
    }
}

/// Whether a device could take `url` for a relay's.
fn is_relay_url(url: &str) -> bool {
    let fits = url.len() <= MAX_URL && url.bytes().all(|byte| byte.is_ascii_graphic());
    reqwest::Url::parse(url).is_ok_and(|url| {
        let alone = url.username().is_empty() && url.password().is_none();
        let whole = url.query().is_none() && url.fragment().is_none();
        fits && alone && whole && matches!(url.scheme(), "http" | "https") && url.has_host()
    })
}

/// Defines the settings by their keys: type on the wire, and where each goes.
macro_rules! settings {
    ($($key:ident: $type:ty => |$config:ident, $value:ident| $put:expr;)*) => {
        #[derive(Debug, Default, Deserialize)]
        #[serde(deny_unknown_fields, default)]
        struct Settings {
            $($key: Option<$type>,)*
        }

        impl Settings {
            const KEYS: &[&str] = &[$(stringify!($key)),*];

            fn put_into(self, config: &mut ServerConfig) {
                $(if let Some($value) = self.$key {
                    let $config = &mut *config;
                    $put;
                })*
            }
        }
    };
}

settings! {
    listen: OneOrMany<SocketAddr> => |config, value| config.listen = value.0;
    data: PathBuf => |config, value| config.data = value;
    domain: String => |config, value| config.domain = value;
    allow_plaintext: bool => |config, value| config.allow_plaintext = value;
    trusted_proxies: OneOrMany<IpAddr> => |config, value| config.trusted_proxies = value.0;
    drain_grace: Seconds => |config, value| config.drain_grace = value.0;
    drain_retry_after: Seconds => |config, value| config.drain_retry_after = value.0;
    drain_to: Box<str> => |config, value| config.drain_to = Some(value).filter(|url| !url.is_empty());

    max_head: usize => |config, value| config.http.max_head = value;
    max_target: usize => |config, value| config.http.max_target = value;
    max_bosh_body: usize => |config, value| config.http.max_bosh_body = value;
    max_body: usize => |config, value| config.http.max_body = value;
    max_json: usize => |config, value| config.http.max_json = value;
    max_import: usize => |config, value| config.http.max_import = value;
    max_reading: usize => |config, value| config.http.max_reading = value;
    head_timeout: Seconds => |config, value| config.http.head_timeout = value.0;
    idle_timeout: Seconds => |config, value| config.http.idle_timeout = value.0;
    body_idle_timeout: Seconds => |config, value| config.http.body_idle_timeout = value.0;
    body_min_rate: u32 => |config, value| config.http.body_min_rate = value;
    body_timeout: Seconds => |config, value| config.http.body_timeout = value.0;
    write_timeout: Seconds => |config, value| config.http.write_timeout = value.0;
    max_connections: usize => |config, value| config.http.max_connections = Some(value);
    max_strangers: usize => |config, value| config.http.max_strangers = value;
    service_in_flight: usize => |config, value| config.http.service_in_flight = value;
    enrolments_per_minute: u32 => |config, value| config.http.enrolments_per_minute = value;

    max_document: u64 => |config, value| config.spool.max_document = value;
    max_spool: u64 => |config, value| config.spool.max_spool = value;
    spool_reserve: u64 => |config, value| config.spool.spool_reserve = value;
    max_documents: usize => |config, value| config.spool.max_documents = value;
    upload_resume: Seconds => |config, value| config.spool.upload_resume = value.0;

    device_in_flight: usize => |config, value| config.relay.device_in_flight = value;
    job_silence: Seconds => |config, value| config.relay.job_silence = value.0;
    relay_in_flight: usize => |config, value| config.relay.relay_in_flight = value;
    outbox_envelopes: usize => |config, value| config.relay.outbox_envelopes = value;
    outbox_bytes: usize => |config, value| config.relay.outbox_bytes = value;
    resume_window: Seconds => |config, value| config.relay.resume_window = value.0;
    presence_timer: Seconds => |config, value| config.relay.presence_timer = value.0;
    finished_for: Seconds => |config, value| config.relay.finished_for = value.0;
    finished_max: usize => |config, value| config.relay.finished_max = value;
    sessions_per_minute: u32 => |config, value| config.relay.sessions_per_minute = value;
    session_burst: u32 => |config, value| config.relay.session_burst = value;
    sessions: usize => |config, value| config.relay.sessions = value;
    presence_log: usize => |config, value| config.relay.presence_log = value;
    watcher_behind: usize => |config, value| config.relay.watcher_behind = value;

    bosh_wait: Seconds => |config, value| config.bosh.max_wait = value.0;
    bosh_inactivity: Seconds => |config, value| config.bosh.inactivity = value.0;
    bosh_polling: Seconds => |config, value| config.bosh.polling = value.0;
    bosh_polling_inactivity: Seconds => |config, value| config.bosh.polling_inactivity = value.0;
    bosh_max_pause: Seconds => |config, value| config.bosh.max_pause = value.0;
    bosh_authentication: Seconds => |config, value| config.bosh.authentication = value.0;
    bosh_pending: usize => |config, value| config.bosh.pending = value;

    ws_ping: Seconds => |config, value| config.ws.control.ping_every = Some(value.0);
    ws_answer: Seconds => |config, value| config.ws.control.answer_within = value.0;
    ws_write_timeout: Seconds => |config, value| config.ws.control.write_within = value.0;
    ws_close: Seconds => |config, value| config.ws.control.close_within = value.0;
    ws_handshake: Seconds => |config, value| config.ws.handshake = value.0;
    ws_frame: usize => |config, value| config.ws.control.frames.frame = value;
    ws_message: usize => |config, value| config.ws.control.frames.message = value;
    ws_fragments: usize => |config, value| config.ws.control.frames.fragments = value;
    ws_messages_per_second: u32 => |config, value| config.ws.control.messages.get_or_insert((value, 500)).0 = value;
    ws_message_burst: u32 => |config, value| config.ws.control.messages.get_or_insert((100, value)).1 = value;
    ws_controls_per_second: u32 => |config, value| config.ws.control.controls = (value, value);
    ws_channels: usize => |config, value| config.ws.channels_per_device = value;
}

impl Settings {
    /// One setting from a variable's text: as TOML would read it, else as plain text.
    fn of(key: &str, text: &str) -> Result<Self, String> {
        let one = |value: toml::Value| {
            toml::Table::from_iter([(key.to_owned(), value)])
                .try_into::<Self>()
                .map_err(|error| error.to_string())
        };
        let text = text.trim();
        match toml::from_str::<toml::Table>(&format!("value = {text}"))
            .ok()
            .and_then(|mut t| t.remove("value"))
        {
            // A domain of digits is a number to TOML.
            Some(value) => one(value).or_else(|_| one(toml::Value::String(text.to_owned()))),
            None => one(toml::Value::String(text.to_owned())),
        }
    }
}

/// Seconds, whole or not.
#[derive(Debug, Clone, Copy)]
struct Seconds(Duration);

impl<'de> Deserialize<'de> for Seconds {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "a number of seconds is needed")]
        enum Number {
            Whole(u64),
            Part(f64),
        }
        let duration = match Number::deserialize(deserializer)? {
            Number::Whole(seconds) => Duration::from_secs(seconds),
            Number::Part(seconds) => Duration::try_from_secs_f64(seconds)
                .map_err(|error| serde::de::Error::custom(error.to_string()))?,
        };
        // A year is for ever, and keeps sums of times from overflowing.
        Ok(Self(duration.min(Duration::from_secs(365 * 86_400))))
    }
}

/// An address, or several: a list, or divided by commas.
#[derive(Debug)]
struct OneOrMany<T>(Vec<T>);

/// What an address looks like.
trait Example: FromStr {
    const EXAMPLE: &str;
}

impl Example for SocketAddr {
    const EXAMPLE: &str = "an address with a port, like 127.0.0.1:8080";
}

impl Example for IpAddr {
    const EXAMPLE: &str = "an address, like 127.0.0.1";
}

impl<'de, T: Example> Deserialize<'de> for OneOrMany<T> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "a string or a list of strings is needed")]
        enum Texts {
            One(String),
            Many(Vec<String>),
        }
        let texts = match Texts::deserialize(deserializer)? {
            Texts::One(text) => text.split(',').map(str::to_owned).collect(),
            Texts::Many(texts) => texts,
        };
        let parse = |text: String| {
            let text = text.trim();
            text.parse().map_err(|_| serde::de::Error::custom(format!("{text:?} is not {}", T::EXAMPLE)))
        };
        texts.into_iter().map(parse).collect::<Result<_, _>>().map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str, environment: &[(&str, &str)]) -> Result<ServerConfig, ConfigError> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        let environment = environment.iter().map(|&(key, value)| (key.to_owned(), value.to_owned()));
        ServerConfig::load(Some(file.path()), environment)
    }

    #[test]
    fn the_environment_goes_over_the_file_and_the_file_over_the_defaults() {
        let config = load(
            "listen = ['127.0.0.1:1', '[::1]:2']\nmax_head = 9000\nhead_timeout = 1.5\nmax_body = 7",
            &[("RELAY_MAX_HEAD", "10000"), ("RELAY_DOMAIN", "127"), ("RELAY_PORT", "tcp://x"), ("HOME", "/")],
        )
        .unwrap();
        assert_eq!(config.listen.len(), 2);
        assert_eq!(config.http.max_head, 10_000);
        assert_eq!(config.http.head_timeout, Duration::from_millis(1500));
        assert_eq!(config.http.max_body, 7);
        assert_eq!(config.domain, "127");
        assert_eq!(config.http.body_timeout, Duration::from_secs(60));
        let config = load("", &[("RELAY_LISTEN", "127.0.0.1:1, 127.0.0.1:2")]).unwrap();
        assert_eq!(config.listen.len(), 2);
    }

    #[test]
    fn an_unknown_key_is_refused_by_name() {
        let error = load("max_haed = 1", &[]).unwrap_err().to_string();
        assert!(error.contains("max_haed"), "{error}");
    }

    #[test]
    fn a_wrong_value_is_refused_with_its_place() {
        let error = load("\nmax_head = 'much'", &[]).unwrap_err().to_string();
        assert!(error.contains("line 2"), "{error}");
        let error = load("", &[("RELAY_LISTEN", "8080")]).unwrap_err().to_string();
        assert!(error.contains("RELAY_LISTEN") && error.contains("127.0.0.1:8080"), "{error}");
        let error = load("max_head = 100", &[]).unwrap_err().to_string();
        assert!(error.contains("max_head is 100"), "{error}");
        assert!(load("idle_timeout = 0", &[]).is_err());
        assert!(load("idle_timeout = -1", &[]).is_err());
        assert!(load("domain = 'a b'", &[]).is_err());
        let refuses =
            ["relay.example", "ftp://relay.example", "https://u@relay.example", "https://a/?b", "https:// a"];
        for url in refuses {
            assert!(load(&format!("drain_to = '{url}'"), &[]).is_err(), "{url}");
        }
        let config = load("", &[("RELAY_DRAIN_TO", "https://next.example/relay")]).unwrap();
        assert_eq!(config.drain_to.as_deref(), Some("https://next.example/relay"));
    }

    #[test]
    fn every_setting_is_in_the_manual_and_every_setting_there_is_one() {
        let manual = include_str!("../../../docs/configuration.md");
        let named: Vec<&str> = manual
            .lines()
            .filter_map(|line| line.strip_prefix("| `"))
            .filter_map(|line| line.split('`').next())
            .collect();
        for key in Settings::KEYS {
            assert_eq!(named.iter().filter(|name| *name == key).count(), 1, "{key}");
        }
        for name in named {
            assert!(Settings::KEYS.contains(&name), "{name} is no setting");
        }
    }

    #[test]
    fn the_defaults_in_the_manual_are_the_defaults() {
        let manual = include_str!("../../../docs/configuration.md");
        let rows = manual.lines().filter_map(|line| line.strip_prefix("| `"));
        let settings: String = rows
            .filter(|row| !row.starts_with("max_connections"))
            .map(|row| {
                let mut cells = row.split('|').map(|cell| cell.trim().trim_matches('`'));
                format!("{} = {}\n", cells.next().unwrap(), cells.next().unwrap())
            })
            .collect();
        let (told, own) = (load(&settings, &[]).unwrap(), ServerConfig::default());
        assert_eq!(format!("{told:#?}"), format!("{own:#?}"));
        let bosh = |config: &ServerConfig| {
            let bosh = &config.bosh;
            let times =
                [bosh.max_wait, bosh.inactivity, bosh.polling, bosh.polling_inactivity, bosh.max_pause];
            (times, bosh.authentication, bosh.pending)
        };
        assert_eq!(bosh(&told), bosh(&own));
    }
}
