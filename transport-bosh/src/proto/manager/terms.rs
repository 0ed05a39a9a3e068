//! What client and connection manager agree on when a session is created (XEP-0124 §7).

use std::{fmt::Write as _, time::Duration};

use crate::{
    config::BoshServerConfig,
    proto::rid::Rid,
    wire::{
        TerminalCondition,
        body::{RequestBody, Version},
    },
};

/// The terms of one session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Terms {
    /// The longest a request is held.
    pub wait: Duration,
    /// How many are held at once.
    pub hold: u8,
    /// How many a client may have unanswered.
    pub requests: u8,
    /// How long the session lives with none pending.
    pub inactivity: Duration,
    /// The interval between polls that is always allowed.
    pub polling: Duration,
    /// The longest pause.
    pub max_pause: Duration,
    /// How long a gap in the RIDs may stay open.
    pub gap: Duration,
    /// Whether both ends tell which answers and requests arrived.
    pub acks: bool,
    /// Whether the client sent no `ver` and thus reads HTTP statuses.
    pub legacy: bool,
    /// The version spoken.
    pub ver: Version,
    /// Bytes of one answer, at most (more only if a single payload is larger).
    pub max_body: usize,
    /// Bytes of requests that wait for an earlier one, at most.
    pub max_early: usize,
}

/// Why a session is not created.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Refusal {
    /// The condition to answer with.
    pub condition: TerminalCondition,
    /// Whether the client reads HTTP statuses.
    pub legacy: bool,
}

impl Terms {
    /// Grants `request` what `config` allows: never refusing a wish, only giving less.
    ///
    /// # Errors
    /// [`Refusal`] if it is no creation request, or one for another domain.
    pub fn negotiate(request: &RequestBody, config: &BoshServerConfig) -> Result<Self, Refusal> {
        let legacy = request.ver.is_none();
        let refuse = |condition| Err(Refusal { condition, legacy });
        // XEP-0124 §7.1 has no payloads here; taken for a creation, a client that lost its SID would make session after
        // session.
        if !request.payloads.is_empty() || request.terminate || request.pause.is_some() {
            return refuse(TerminalCondition::BadRequest);
        }
        match request.to.as_deref() {
            None | Some("") => return refuse(TerminalCondition::ImproperAddressing),
            Some(to) if !to.eq_ignore_ascii_case(&config.domain) => {
                return refuse(TerminalCondition::HostUnknown);
            }
            Some(_) => {}
        }
        let wait = match request.wait {
            Some(seconds) => Duration::from_secs(seconds.into()).min(config.max_wait),
            None => config.max_wait,
        };
        let hold = request.hold.unwrap_or(1).min(config.hold);
        let polls = wait.is_zero() || hold == 0;
        Ok(Self {
            wait,
            hold,
            // One more than is held, so that there is always one to send with; two at least, so that one may be late.
            requests: (hold + 1).max(2),
            inactivity: if polls { config.polling_inactivity } else { config.inactivity },
            polling: config.polling,
            max_pause: config.max_pause,
            gap: wait.max(Duration::from_secs(30)),
            acks: request.ack == Some(1),
            legacy,
            ver: request.ver.map_or(Version::OURS, |ver| ver.min(Version::OURS)),
            max_body: config.max_body,
            max_early: 2 * config.max_body,
        })
    }

    /// Whether the client asks again and again instead of having requests held.
    pub const fn polls(&self) -> bool {
        self.wait.is_zero() || self.hold == 0
    }

    /// The attributes of the answer to the creation request `rid`.
    pub fn opening(&self, sid: &str, rid: Rid, domain: &str) -> String {
        let mut out = format!(
            "sid='{sid}' wait='{}' hold='{}' requests='{}' inactivity='{}' polling='{}' maxpause='{}'",
            self.wait.as_secs(),
            self.hold,
            self.requests,
            self.inactivity.as_secs(),
            self.polling.as_secs(),
            self.max_pause.as_secs(),
        );
        if self.acks {
            // Writing to a String cannot fail.
            let _ = write!(out, " ack='{rid}'");
        }
        let Version(major, minor) = self.ver;
        let _ =
            write!(out, " ver='{major}.{minor}' from='{domain}' xmpp:version='1.0' xmpp:restartlogic='true'");
        out
    }
}

#[cfg(test)]
mod tests {
    use relay_core::xml::Limits;

    use super::*;

    fn negotiate(attributes: &str) -> Result<Terms, TerminalCondition> {
        let message = format!("<body rid='1' {attributes} xmlns='http://jabber.org/protocol/httpbind'/>");
        let body = RequestBody::parse(message.as_bytes(), &Limits::default()).unwrap();
        Terms::negotiate(&body, &BoshServerConfig::new("example.net")).map_err(|refusal| refusal.condition)
    }

    #[test]
    fn wait_and_hold_are_granted_up_to_ours_and_never_refused() {
        let terms = negotiate("to='example.net' wait='50' hold='1' ver='1.11'").unwrap();
        assert_eq!((terms.wait.as_secs(), terms.hold, terms.requests), (50, 1, 2));
        // F15: a client that wants two held gets one.
        let terms = negotiate("to='EXAMPLE.net' wait='3600' hold='2' ver='1.6'").unwrap();
        assert_eq!((terms.wait.as_secs(), terms.hold, terms.requests), (60, 1, 2));
        assert_eq!(terms.ver, Version(1, 6));
        assert!(!terms.legacy);
        assert!(negotiate("to='example.net'").unwrap().legacy);
        assert_eq!(negotiate("to='example.net' ver='2.0'").unwrap().ver, Version::OURS);
    }

    #[test]
    fn c3_polling_sessions_are_granted_and_live_longer_without_requests() {
        for polling in ["wait='0' hold='1'", "wait='50' hold='0'", "wait='0' hold='0'"] {
            let terms = negotiate(&format!("to='example.net' ver='1.11' {polling}")).unwrap();
            assert!(terms.polls(), "{polling}");
            assert_eq!(terms.inactivity.as_secs(), 120);
            assert!(terms.requests > terms.hold);
        }
    }

    #[test]
    fn a_creation_must_name_the_domain_served() {
        assert_eq!(negotiate("ver='1.11'"), Err(TerminalCondition::ImproperAddressing));
        assert_eq!(negotiate("to='' ver='1.11'"), Err(TerminalCondition::ImproperAddressing));
        assert_eq!(negotiate("to='other.example' ver='1.11'"), Err(TerminalCondition::HostUnknown));
        // `route` is never followed.
        assert!(negotiate("to='example.net' route='xmpp:10.0.0.1:22' ver='1.11'").is_ok());
    }

    #[test]
    fn c1_a_creation_with_payloads_is_an_error_and_not_a_session() {
        let message = "<body rid='1' to='example.net' ver='1.11' xmlns='http://jabber.org/protocol/httpbind'><a xmlns='x'/></body>";
        let body = RequestBody::parse(message.as_bytes(), &Limits::default()).unwrap();
        let refusal = Terms::negotiate(&body, &BoshServerConfig::new("example.net")).unwrap_err();
        assert_eq!(refusal.condition, TerminalCondition::BadRequest);
    }

    #[test]
    fn a1_acks_are_used_only_if_the_client_said_exactly_one() {
        assert!(negotiate("to='example.net' ack='1'").unwrap().acks);
        assert!(!negotiate("to='example.net' ack='0'").unwrap().acks);
        assert!(!negotiate("to='example.net'").unwrap().acks);
        let rid = Rid::new(1).unwrap();
        let terms = negotiate("to='example.net' ack='1'").unwrap();
        assert!(terms.opening("s", rid, "example.net").contains(" ack='1' "));
    }
}
