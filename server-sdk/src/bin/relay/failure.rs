//! What went wrong, for people and for programs: which relay, what happened, what to do.

use std::{error::Error as StdError, process::ExitCode};

use serde_json::json;
use server_sdk::{Error, ErrorKind};

use crate::output::plain;

/// Why the program ends without having done it.
#[derive(Debug)]
pub(crate) struct Failure {
    words: String,
    cause: Option<Box<dyn StdError + Send + Sync>>,
    relay: Option<String>,
    advice: Option<String>,
    error: Option<Error>,
    code: u8,
}

impl Failure {
    /// Something that is no relay's fault.
    pub(crate) fn own(words: impl Into<String>) -> Self {
        Self { words: words.into(), cause: None, relay: None, advice: None, error: None, code: 2 }
    }

    pub(crate) fn because(mut self, cause: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.cause = Some(cause.into());
        self
    }

    pub(crate) fn advise(mut self, advice: impl Into<String>) -> Self {
        self.advice = Some(advice.into());
        self
    }

    /// A call to `relay` that did not succeed.
    pub(crate) fn call(relay: &str, error: Error) -> Self {
        use ErrorKind as K;
        let (code, advice) = match error.kind() {
            K::Invalid => (2, None),
            K::Unreachable => {
                (3, Some("is the relay running there? `relay serve` starts one; --relay names another"))
            }
            K::Interrupted => (3, Some("it is not known whether it was done; look before you repeat it")),
            K::NotTheRelay => {
                (3, Some("check the address: it must be a relay's, and nothing on the way may answer for it"))
            }
            K::Unauthenticated => {
                (1, Some("check the key (RELAY_KEY, --key, or administrator.key in the data folder, --data)"))
            }
            K::Forbidden => {
                (1, Some("the key's scopes do not allow it; `relay key new --scope …` makes another"))
            }
            K::UnknownDevice => {
                (1, Some("`relay devices` lists those that the key may see; `relay enroll` adds one"))
            }
            K::DeviceOffline | K::DeviceAsleep => (4, Some("try again once `relay devices` shows it online")),
            K::TooManyRequests | K::Unavailable => (1, Some("try again later")),
            K::DeviceTimeout => (
                1,
                Some("it may have been done; look before you repeat it, or give it more time with --wait"),
            ),
            _ => (1, None),
        };
        let advice = match error.retry_after() {
            Some(after) => Some(format!("try again in {} s", after.as_secs())),
            None => advice.map(str::to_owned),
        };
        Self {
            words: error.to_string(),
            cause: None,
            relay: Some(relay.to_owned()),
            advice,
            error: Some(error),
            code,
        }
    }

    /// Says so on the standard error.
    pub(crate) fn report(self, json: bool) -> ExitCode {
        let mut causes = Vec::new();
        let mut cause = match (&self.cause, &self.error) {
            (Some(cause), _) => Some(&**cause as &(dyn StdError + 'static)),
            (None, Some(error)) => error.source(),
            (None, None) => None,
        };
        while let Some(error) = cause {
            let words = error.to_string();
            // Some errors repeat what is below them.
            if causes.last() != Some(&words) {
                causes.push(words);
            }
            cause = error.source();
        }
        let error = self.error.as_ref();
        if json {
            let error = json!({"error": {
                "detail": self.words,
                "causes": causes,
                "relay": self.relay,
                "code": error.and_then(Error::code),
                "status": error.and_then(Error::status),
                "outcome": error.and_then(Error::outcome).map(|outcome| outcome.as_str()),
                "safe_to_retry": error.map(Error::is_safe_to_retry),
                "request_id": error.and_then(Error::request_id),
                "device_status": error.and_then(Error::device_status),
                "advice": self.advice,
            }});
            eprintln!("{error}");
        } else {
            eprintln!("error: {}", plain(&self.words));
            for cause in causes {
                eprintln!("  because: {}", plain(&cause));
            }
            if let Some(relay) = &self.relay {
                eprintln!("  relay:   {}", plain(relay));
            }
            if let Some((error, outcome)) = error.and_then(|error| Some((error, error.outcome()?))) {
                let acted = if error.is_safe_to_retry() { "has not acted" } else { "may have acted" };
                eprintln!("  outcome: {outcome}: the device {acted}");
            }
            if let Some(status) = error.and_then(Error::device_status) {
                eprintln!("  device:  {}", plain(status));
            }
            if let Some(advice) = &self.advice {
                eprintln!("  to do:   {}", plain(advice));
            }
        }
        ExitCode::from(self.code)
    }
}
