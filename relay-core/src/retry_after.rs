//! When to come back, as an HTTP peer says it: `Retry-After`, read once for all who meet one.

use std::time::{Duration, SystemTime};

/// T52: nobody makes this end stay away longer.
pub const LONGEST: Duration = Duration::from_secs(3_600);

/// How long `field`, a `Retry-After` (RFC 9110 §10.2.3), says to wait: seconds, or a date less the answer's own `Date`.
/// Where there is no `Date` that can be read, the date is measured against `now`; the clock of a device may be wrong
/// by years. A date that has passed is no wait, and no wait is longer than [`LONGEST`]. `None` if `field` is neither.
pub fn read(field: &str, date: Option<&str>, now: SystemTime) -> Option<Duration> {
    let field = field.trim();
    let wait = if !field.is_empty() && field.bytes().all(|b| b.is_ascii_digit()) {
        // More digits than a number takes are still a number of seconds.
        Duration::from_secs(field.parse().unwrap_or(u64::MAX))
    } else {
        let at = httpdate::parse_http_date(field).ok()?;
        let said_at = date.and_then(|date| httpdate::parse_http_date(date.trim()).ok()).unwrap_or(now);
        at.duration_since(said_at).unwrap_or_default()
    };
    Some(wait.min(LONGEST))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Sun, 06 Nov 1994 08:49:37 GMT, RFC 9110's example.
    fn now() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777)
    }

    fn seconds(field: &str, date: Option<&str>) -> Option<u64> {
        read(field, date, now()).map(|wait| wait.as_secs())
    }

    #[test]
    fn s10_seconds_and_all_three_forms_of_a_date_are_read() {
        for field in [
            "120",
            " 120 ",
            "0120",
            "Sun, 06 Nov 1994 08:51:37 GMT",
            "Sunday, 06-Nov-94 08:51:37 GMT",
            "Sun Nov  6 08:51:37 1994",
        ] {
            assert_eq!(seconds(field, None), Some(120), "{field:?}");
        }
        assert_eq!(seconds("0", None), Some(0));
        for none in ["", " ", "-1", "+5", "1.5", "12s", "soon", "Sun, 06 Nov 1994 08:51:37", "1e3"] {
            assert_eq!(seconds(none, None), None, "{none:?}");
        }
    }

    #[test]
    fn s10_a_date_is_measured_by_the_clock_of_who_said_it() {
        let field = "Sun, 06 Nov 2050 08:51:37 GMT";
        assert_eq!(seconds(field, Some("Sun, 06 Nov 2050 08:51:00 GMT")), Some(37));
        assert_eq!(seconds(field, Some("Sun, 06 Nov 2050 08:52:00 GMT")), Some(0), "it has passed");
        assert_eq!(seconds("Sun, 06 Nov 1994 08:49:36 GMT", None), Some(0), "it has passed");
        assert_eq!(seconds("Sun, 06 Nov 1994 08:50:00 GMT", Some("yesterday")), Some(23));
        assert_eq!(seconds("7", Some("Sun, 06 Nov 2050 08:51:00 GMT")), Some(7));
    }

    #[test]
    fn t52_no_peer_makes_this_end_wait_longer_than_an_hour() {
        for field in ["3601", "1000000000", "99999999999999999999999999", "Fri, 31 Dec 9999 23:59:59 GMT"] {
            assert_eq!(read(field, None, now()), Some(LONGEST), "{field}");
        }
    }

    proptest! {
        #[test]
        fn t52_nothing_that_is_said_makes_it_panic(field in ".{0,40}", date in proptest::option::of(".{0,40}")) {
            let wait = read(&field, date.as_deref(), now());
            prop_assert!(wait.is_none_or(|wait| wait <= LONGEST));
        }
    }
}
