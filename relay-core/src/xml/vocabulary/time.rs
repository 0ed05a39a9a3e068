//! Durations, as seconds.

use std::time::Duration;

/// No peer makes this end wait longer.
const MAX: Duration = Duration::from_secs(3_600);

/// Whole seconds, rounded up.
pub(super) fn write(duration: Duration) -> String {
    let duration = duration.min(MAX);
    (duration.as_secs() + u64::from(duration.subsec_nanos() > 0)).to_string()
}

/// `digits`, or `digits.digits`.
pub(super) fn read(text: &str) -> Option<Duration> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let digits =
        |part: &str| !part.is_empty() && part.len() <= 32 && part.bytes().all(|b| b.is_ascii_digit());
    if !digits(whole) || !digits(fraction) {
        return None;
    }
    // Too large for 64 bits is more than an hour.
    let seconds = whole.parse().unwrap_or(u64::MAX);
    let millis = format!("{fraction:0<3.3}").parse().unwrap_or(0);
    Some(Duration::from_secs(seconds).saturating_add(Duration::from_millis(millis)).min(MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_rounded_up_to_whole_seconds() {
        assert_eq!(write(Duration::ZERO), "0");
        assert_eq!(write(Duration::from_millis(1)), "1");
        assert_eq!(write(Duration::from_secs(30)), "30");
        assert_eq!(write(Duration::from_millis(29_001)), "30");
        assert_eq!(write(Duration::MAX), "3600");
    }

    #[test]
    fn t52_no_peer_makes_us_wait_for_more_than_an_hour() {
        for long in ["3601", "1000000000", "99999999999999999999999999"] {
            assert_eq!(read(long), Some(MAX), "{long}");
        }
    }

    #[test]
    fn times_are_plain_decimals() {
        assert_eq!(read("2.5"), Some(Duration::from_millis(2_500)));
        assert_eq!(read("0.0019"), Some(Duration::from_millis(1)));
        for bad in ["", "-1", "+1", " 1", "1 ", "1e3", ".5", "1.", "1.2.3", "٣", &"1".repeat(33)] {
            assert_eq!(read(bad), None, "{bad:?} was taken");
        }
    }
}
