//! Terminal binding conditions (XEP-0124 §17.2).

/// Why a connection manager ended a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum TerminalCondition {
    /// The request could not be understood.
    BadRequest,
    /// `to` or `route` is no longer served.
    HostGone,
    /// `to` or `route` is not served here.
    HostUnknown,
    /// `to` is missing or empty.
    ImproperAddressing,
    /// The connection manager failed.
    InternalServerError,
    /// SID or stream unknown, RID outside the window, answer no longer buffered, key wrong: one answer for all.
    ItemNotFound,
    /// Another request of the session ended it.
    OtherRequest,
    /// Too many, too often, too large.
    PolicyViolation,
    /// The XMPP server was lost.
    RemoteConnectionFailed,
    /// A stream error, which is inside.
    RemoteStreamError,
    /// Somewhere else; `<uri/>` says where.
    SeeOtherUri,
    /// The connection manager stops.
    SystemShutdown,
    /// Something else, said inside.
    UndefinedCondition,
}

impl TerminalCondition {
    const ALL: [Self; 13] = [
        Self::BadRequest,
        Self::HostGone,
        Self::HostUnknown,
        Self::ImproperAddressing,
        Self::InternalServerError,
        Self::ItemNotFound,
        Self::OtherRequest,
        Self::PolicyViolation,
        Self::RemoteConnectionFailed,
        Self::RemoteStreamError,
        Self::SeeOtherUri,
        Self::SystemShutdown,
        Self::UndefinedCondition,
    ];

    /// The value of `condition`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::BadRequest => "bad-request",
            Self::HostGone => "host-gone",
            Self::HostUnknown => "host-unknown",
            Self::ImproperAddressing => "improper-addressing",
            Self::InternalServerError => "internal-server-error",
            Self::ItemNotFound => "item-not-found",
            Self::OtherRequest => "other-request",
            Self::PolicyViolation => "policy-violation",
            Self::RemoteConnectionFailed => "remote-connection-failed",
            Self::RemoteStreamError => "remote-stream-error",
            Self::SeeOtherUri => "see-other-uri",
            Self::SystemShutdown => "system-shutdown",
            Self::UndefinedCondition => "undefined-condition",
        }
    }

    /// Reads a value of `condition`; one that nobody defined is [`TerminalCondition::UndefinedCondition`], since an
    /// unknown condition is as terminal as the others.
    pub fn parse(value: &str) -> Self {
        Self::ALL
            .into_iter()
            .find(|condition| condition.as_str() == value)
            .unwrap_or(Self::UndefinedCondition)
    }

    /// The HTTP status: 200, but for clients of old that sent no `ver` and read the status instead (XEP-0124 §17.1).
    pub const fn http_status(self, legacy: bool) -> u16 {
        match self {
            Self::BadRequest if legacy => 400,
            Self::PolicyViolation if legacy => 403,
            Self::ItemNotFound if legacy => 404,
            _ => 200,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_read_back_as_they_are_written() {
        for condition in TerminalCondition::ALL {
            assert_eq!(TerminalCondition::parse(condition.as_str()), condition);
        }
        assert_eq!(TerminalCondition::parse("gone-fishing"), TerminalCondition::UndefinedCondition);
    }

    #[test]
    fn h11_only_clients_without_ver_get_a_status_other_than_200() {
        for condition in TerminalCondition::ALL {
            assert_eq!(condition.http_status(false), 200);
        }
        assert_eq!(TerminalCondition::BadRequest.http_status(true), 400);
        assert_eq!(TerminalCondition::PolicyViolation.http_status(true), 403);
        assert_eq!(TerminalCondition::ItemNotFound.http_status(true), 404);
        assert_eq!(TerminalCondition::SystemShutdown.http_status(true), 200);
    }
}
