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
/// Shows a SID to be ours, whether or not its session is still there.
type Mark = [u8; 12];

/// Lower-case base32: case carries no meaning in session IDs.
static BASE32: LazyLock<Encoding> = LazyLock::new(|| {
    let mut specification = Specification::new();
    specification.symbols.push_str("abcdefghijklmnopqrstuvwxyz234567");
    specification.encoding().expect("32 distinct symbols are a base")
});

/// A SID. One that a client shows may be anybody's making.
#[derive(Clone, Copy)]
pub(super) struct Sid {
    pub(super) key: Key,
    mark: Mark,
}

impl Sid {
    /// Reads what looks like a SID.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut bytes = [0; size_of::<Key>() + size_of::<Mark>()];
        if BASE32.decode_len(text.len()).ok()? != bytes.len() {
            return None;
        }
        BASE32.decode_mut(text.as_bytes(), &mut bytes).ok()?;
        let (key, mark) = bytes.split_first_chunk()?;
        Some(Self { key: *key, mark: mark.try_into().ok()? })
    }

    /// Whether it is that of a session which is there: no secret needs to be asked then.
    pub(super) fn is(&self, other: &Self) -> bool {
        bool::from(self.key.ct_eq(&other.key) & self.mark.ct_eq(&other.mark))
    }

    /// It as text: 45 characters.
    pub(super) fn text(&self) -> String {
        BASE32.encode(&[&self.key[..], &self.mark[..]].concat())
    }
}

impl fmt::Debug for Sid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sid(…)")
    }
}

/// Makes SIDs and knows its own.
pub(super) struct Sids {
    /// With the secret and what the marks are for taken in already.
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
    pub(super) fn issue(&self) -> Sid {
        let mut key = Key::default();
        relay_core::random::fill(&mut key);
        Sid { key, mark: self.mark(&key) }
    }

    /// Whether `sid` was ours at some time.
    pub(super) fn issued(&self, sid: &Sid) -> bool {
        sid.mark.ct_eq(&self.mark(&sid.key)).into()
    }

    fn mark(&self, key: &Key) -> Mark {
        let mut mac = self.keyed.clone();
        mac.update(key);
        let mut mark = Mark::default();
        let length = mark.len();
        mark.copy_from_slice(&mac.finalize().into_bytes()[..length]);
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
        let ours = |sids: &Sids, text: &str| Sid::parse(text).is_some_and(|sid| sids.issued(&sid));
        let issued: HashSet<_> = (0..10_000).map(|_| sids.issue().text()).collect();
        assert_eq!(issued.len(), 10_000);
        let other = Sids::new(None);
        for sid in issued.iter().take(100) {
            assert!(SessionId::new(sid).is_ok() && sid.len() == 45, "{sid}");
            assert!(ours(&sids, sid));
            assert!(!ours(&other, sid), "another relay's");
            for at in [0, 10, 30, 44] {
                let mut forged = sid.clone().into_bytes();
                forged[at] = if forged[at] == b'a' { b'b' } else { b'a' };
                let forged = String::from_utf8(forged).unwrap();
                assert!(!ours(&sids, &forged), "{forged}");
                let one = Sid::parse(sid).unwrap();
                assert!(
                    one.is(&one) && Sid::parse(&forged).is_none_or(|forged| !forged.is(&one)),
                    "{forged}"
                );
            }
        }
        for junk in ["", "a", &"a".repeat(45), &"a".repeat(64), "ä", "A2345678"] {
            assert!(!ours(&sids, junk), "{junk:?}");
        }
    }

    #[test]
    fn t1_a_kept_key_knows_sids_from_before_a_restart() {
        let before = Sids::new(Some([7; 32]));
        let sid = before.issue();
        assert!(Sids::new(Some([7; 32])).issued(&sid));
        assert!(!Sids::new(Some([8; 32])).issued(&sid));
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
