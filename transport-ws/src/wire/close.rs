//! Close codes (RFC 6455 §7.4, the registry of IANA, and ours), and what they mean at either end.

use relay_core::transport::{CloseReason, EndReason};

/// All is said.
pub const NORMAL: u16 = 1000;
/// This end goes away.
pub const GOING_AWAY: u16 = 1001;
/// A rule of RFC 6455 was broken.
pub const PROTOCOL: u16 = 1002;
/// A kind of message that is not taken here.
pub const UNSUPPORTED: u16 = 1003;
/// A message is not what it says it is.
pub const INVALID: u16 = 1007;
/// A bound or a rule of ours was broken.
pub const POLICY: u16 = 1008;
/// Too big.
pub const TOO_BIG: u16 = 1009;
/// An extension is missing.
const EXTENSION: u16 = 1010;
/// The relay restarts.
pub const RESTART: u16 = 1012;
/// Too many; later.
pub const TRY_LATER: u16 = 1013;
/// A newer session of the device took over.
pub const REPLACED: u16 = 4001;
/// The credential was revoked.
pub const REVOKED: u16 = 4003;

/// Whether `code` may stand in a close frame: 1005, 1006 and 1015 are for one's own log, and most are nobody's.
pub const fn may_travel(code: u16) -> bool {
    matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999)
}

/// The code and words with which the relay (or, if not `relay`, a device) closes for `reason`.
pub const fn of_reason(reason: &CloseReason, relay: bool) -> (u16, &'static str) {
    match reason {
        CloseReason::Drain { .. } => (RESTART, "the relay restarts"),
        CloseReason::Replaced => (REPLACED, "a newer session of this device took over"),
        CloseReason::Revoked => (REVOKED, "the credential was revoked"),
        CloseReason::Overloaded { .. } => (TRY_LATER, "too many sessions"),
        CloseReason::Misbehaved => (POLICY, "a rule of the session was broken"),
        _ if relay => (GOING_AWAY, "the relay ends the session"),
        _ => (NORMAL, ""),
    }
}

/// What a close frame of the relay means to a device; `later` is when the relay said that it may come back.
pub(crate) fn end_at_device(code: Option<u16>, later: Option<std::time::Duration>) -> EndReason {
    match code {
        None | Some(NORMAL | GOING_AWAY) => EndReason::Goodbye,
        Some(RESTART) => EndReason::Drain { retry_after: later },
        Some(TRY_LATER) => EndReason::Overloaded { retry_after: later },
        Some(REPLACED) => EndReason::Replaced,
        Some(REVOKED) => EndReason::Revoked,
        Some(code) if is_fault(code) => EndReason::Misbehaved,
        Some(_) => EndReason::Lost,
    }
}

/// What a close frame of a device means to the relay: it took its leave, or thinks that a rule was broken.
pub(crate) const fn end_at_relay(code: Option<u16>) -> EndReason {
    match code {
        Some(code) if is_fault(code) => EndReason::Misbehaved,
        _ => EndReason::Goodbye,
    }
}

const fn is_fault(code: u16) -> bool {
    matches!(code, PROTOCOL | UNSUPPORTED | INVALID | POLICY | TOO_BIG | EXTENSION)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn c5_only_codes_that_somebody_defined_may_travel() {
        let taken: Vec<u16> = (0..=u16::MAX).filter(|code| may_travel(*code)).collect();
        assert_eq!(taken.len(), 4 + 8 + 2000);
        for never in [0, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, u16::MAX] {
            assert!(!may_travel(never), "{never}");
        }
    }

    #[test]
    fn what_the_relay_closes_with_is_what_the_device_hears() {
        let later = Duration::from_secs(7);
        for (reason, heard) in [
            (CloseReason::Shutdown, EndReason::Goodbye),
            (
                CloseReason::Drain { retry_after: later, to: None },
                EndReason::Drain { retry_after: Some(later) },
            ),
            (CloseReason::Replaced, EndReason::Replaced),
            (CloseReason::Revoked, EndReason::Revoked),
            (
                CloseReason::Overloaded { retry_after: later },
                EndReason::Overloaded { retry_after: Some(later) },
            ),
            (CloseReason::Misbehaved, EndReason::Misbehaved),
        ] {
            let (code, _) = of_reason(&reason, true);
            assert!(may_travel(code));
            assert_eq!(end_at_device(Some(code), Some(later)), heard);
        }
        assert_eq!(end_at_relay(Some(of_reason(&CloseReason::Shutdown, false).0)), EndReason::Goodbye);
        assert_eq!(end_at_relay(None), EndReason::Goodbye);
        assert_eq!(end_at_relay(Some(PROTOCOL)), EndReason::Misbehaved);
    }
}
