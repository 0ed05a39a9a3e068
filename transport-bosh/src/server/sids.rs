//! SIDs: unguessable, and known as ours without a look-up.

use std::{
    collections::HashMap,
    fmt,
    net::IpAddr,
    sync::LazyLock,
    time::{Duration, Instant},
};

use data_encoding::{Encoding, Specification};
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use subtle::ConstantTimeEq;

use super::source::source;

/// The random part, by which sessions are found.
pub(super) type Key = [u8; 16];
/// Bytes of the mark that shows a SID to be ours.
const MARK: usize = 12;

/// Lower-case base32: case carries no meaning in session IDs.
static BASE32: LazyLock<Encoding> = LazyLock::new(|| {
    let mut specification = Specification::new();
    specification.symbols.push_str("abcdefghijklmnopqrstuvwxyz234567");
    specification.encoding().expect("32 distinct symbols are a base")
});

/// Makes SIDs and knows its own.
pub(super) struct Sids {
    /// With the secret and what the marks are for taken in already: every request has its SID checked.
    keyed: Hmac<Sha256>,
}

impl fmt::Debug for Sids {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sids(…)")
    }
}

impl Sids {
    pub(super) fn new(secret: Option<[u8; 32]>) -> Self {
        let secret = secret.unwrap_or_else(|| {
            let mut random = [0; 32];
            relay_core::random::fill(&mut random);
            random
        });
        let mut keyed = Hmac::<Sha256>::new_from_slice(&secret).expect("HMAC takes keys of any length");
        keyed.update(b"bosh sid");
        Self { keyed }
    }

    /// A new one.
    pub(super) fn issue(&self) -> Key {
        let mut key = Key::default();
        relay_core::random::fill(&mut key);
        key
    }

    /// The SID of `key` as text: 45 characters.
    pub(super) fn text(&self, key: &Key) -> String {
        let mut bytes = [0; size_of::<Key>() + MARK];
        bytes[..key.len()].copy_from_slice(key);
        bytes[key.len()..].copy_from_slice(&self.mark(key));
        BASE32.encode(&bytes)
    }

    /// The key of a SID that was ours at some time; `None` if it never was.
    pub(super) fn read(&self, text: &str) -> Option<Key> {
        let mut bytes = [0; size_of::<Key>() + MARK];
        if BASE32.decode_len(text.len()).ok()? != bytes.len() {
            return None;
        }
        BASE32.decode_mut(text.as_bytes(), &mut bytes).ok()?;
        let (key, mark) = bytes.split_first_chunk::<{ size_of::<Key>() }>()?;
        bool::from(mark.ct_eq(&self.mark(key))).then_some(*key)
    }

    fn mark(&self, key: &Key) -> [u8; MARK] {
        let mut mac = self.keyed.clone();
        mac.update(key);
        let mut mark = [0; MARK];
        mark.copy_from_slice(&mac.finalize().into_bytes()[..MARK]);
        mark
    }
}

/// Counts SIDs that were never ours, by who shows them.
#[derive(Debug)]
pub(super) struct Guesses {
    by_source: HashMap<IpAddr, Count>,
    per_minute: u32,
}

#[derive(Debug)]
struct Count {
    since: Instant,
    number: u32,
}

const MINUTE: Duration = Duration::from_secs(60);
/// Sources that are remembered. When there are more, those whose minute is over go first, and then all: guessing 128
/// bits from so many addresses is as hopeless as from one.
const MAX_SOURCES: usize = 10_000;

impl Guesses {
    pub(super) fn new(per_minute: u32) -> Self {
        Self { by_source: HashMap::new(), per_minute }
    }

    /// Counts one of `peer`; the time to wait, if it was one too many.
    pub(super) fn count(&mut self, peer: IpAddr, now: Instant) -> Option<Duration> {
        let source = source(peer);
        if self.by_source.len() >= MAX_SOURCES && !self.by_source.contains_key(&source) {
            self.by_source.retain(|_, count| now.saturating_duration_since(count.since) < MINUTE);
            if self.by_source.len() >= MAX_SOURCES {
                self.by_source.clear();
            }
        }
        let count = self.by_source.entry(source).or_insert(Count { since: now, number: 0 });
        let elapsed = now.saturating_duration_since(count.since);
        if elapsed >= MINUTE {
            *count = Count { since: now, number: 0 };
        }
        count.number = count.number.saturating_add(1);
        (count.number > self.per_minute).then(|| MINUTE.saturating_sub(elapsed))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use relay_core::ids::SessionId;

    use super::*;

    #[test]
    fn t1_sids_are_distinct_unguessable_and_known_as_ours() {
        let sids = Sids::new(None);
        let issued: HashSet<_> = (0..10_000).map(|_| sids.text(&sids.issue())).collect();
        assert_eq!(issued.len(), 10_000);
        let other = Sids::new(None);
        for sid in issued.iter().take(100) {
            assert!(SessionId::new(sid).is_ok() && sid.len() == 45, "{sid}");
            assert!(sids.read(sid).is_some());
            assert!(other.read(sid).is_none(), "another relay's");
            for at in [0, 10, 30, 44] {
                let mut forged = sid.clone().into_bytes();
                forged[at] = if forged[at] == b'a' { b'b' } else { b'a' };
                let forged = String::from_utf8(forged).unwrap();
                assert!(sids.read(&forged).is_none(), "{forged}");
            }
        }
        for junk in ["", "a", &"a".repeat(45), &"a".repeat(64), "ä", "A2345678"] {
            assert!(sids.read(junk).is_none(), "{junk:?}");
        }
    }

    #[test]
    fn t1_a_kept_key_knows_sids_from_before_a_restart() {
        let before = Sids::new(Some([7; 32]));
        let sid = before.text(&before.issue());
        assert!(Sids::new(Some([7; 32])).read(&sid).is_some());
        assert!(Sids::new(Some([8; 32])).read(&sid).is_none());
    }

    #[test]
    fn t1_more_than_twenty_forged_sids_a_minute_are_too_many() {
        let start = tokio::time::Instant::now().into_std();
        let mut guesses = Guesses::new(20);
        let source = IpAddr::from([192, 0, 2, 1]);
        for _ in 0..20 {
            assert_eq!(guesses.count(source, start), None);
        }
        assert!(
            guesses.count(source, start + Duration::from_secs(10)).is_some_and(|wait| wait.as_secs() == 50)
        );
        assert_eq!(guesses.count(IpAddr::from([192, 0, 2, 2]), start), None, "sources are counted apart");
        assert_eq!(guesses.count(source, start + MINUTE), None, "and forgiven after a minute");
    }

    #[test]
    fn t1_b8_a_host_guesses_no_more_from_many_addresses() {
        let start = tokio::time::Instant::now().into_std();
        let mut guesses = Guesses::new(1);
        let mut count = |peer: &str| guesses.count(peer.parse().unwrap(), start);
        assert_eq!(count("2001:db8::1"), None);
        assert!(count("2001:db8::ffff:2").is_some(), "the same /64");
        assert_eq!(count("2001:db8:0:1::1"), None, "another /64");
        assert_eq!(count("192.0.2.1"), None);
        assert!(count("::ffff:192.0.2.1").is_some(), "the same IPv4 address, mapped");
    }

    #[test]
    fn sources_that_are_remembered_are_bounded() {
        let start = tokio::time::Instant::now().into_std();
        let mut guesses = Guesses::new(20);
        for i in 0..=u32::try_from(MAX_SOURCES).unwrap() {
            guesses.count(IpAddr::from(i.to_be_bytes()), start);
        }
        assert!(guesses.by_source.len() <= MAX_SOURCES);
    }
}
