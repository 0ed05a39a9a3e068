//! Key sequencing (XEP-0124 §15): each request shows the preimage of the key before it.

use std::fmt;

use sha1::{Digest, Sha1};

/// Checks the keys of one session, in the order of its RIDs.
#[derive(Clone)]
pub(crate) struct KeySequence {
    /// What the next key hashes to. `None`: nothing does, since the last key was none itself.
    expected: Option<[u8; 20]>,
}

impl fmt::Debug for KeySequence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeySequence(…)")
    }
}

impl KeySequence {
    /// A session that was created with `newkey`.
    pub(crate) fn new(newkey: &str) -> Self {
        Self { expected: digest_of_hex(newkey) }
    }

    /// Whether a request with `key` and `newkey` is the next one; if so, the sequence goes on.
    pub(crate) fn advance(&mut self, key: Option<&str>, newkey: Option<&str>) -> bool {
        let Some(key) = key else { return false };
        // XEP-0124 §15.4 hashes the key's text as received; only the outcome is compared without case.
        let hash: [u8; 20] = Sha1::digest(key.as_bytes()).into();
        if self.expected != Some(hash) {
            return false;
        }
        self.expected = digest_of_hex(newkey.unwrap_or(key));
        true
    }
}

fn digest_of_hex(text: &str) -> Option<[u8; 20]> {
    let mut digest = [0u8; 20];
    let decoded = data_encoding::HEXLOWER_PERMISSIVE.decode(text.as_bytes()).ok()?;
    (decoded.len() == digest.len()).then(|| digest.copy_from_slice(&decoded))?;
    Some(digest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chain(seed: &str, length: usize) -> Vec<String> {
        let hash = |text: &str| data_encoding::HEXLOWER.encode(&Sha1::digest(text.as_bytes()));
        let mut keys = vec![hash(seed)];
        while keys.len() < length {
            keys.push(hash(keys.last().unwrap()));
        }
        keys
    }

    #[test]
    fn x15_the_example_chain_is_checked_link_by_link() {
        let mut keys = KeySequence::new("6757b18b27134d15bc709c7f22689a73acb3f00c");
        let next = chain("another", 3);
        assert!(keys.advance(Some("7b797403693795befaa10e0117384927c22dccf3"), None));
        assert!(keys.advance(Some("03dce970eb5c1f231aa3f7bf84c4ee5ec8cda71c"), None));
        // Y3: the last key of a chain brings the first of the next.
        assert!(keys.advance(Some("88efbc7d9d36334d1bb767c5b8efc7bd7012612c"), Some(&next[2])));
        assert!(keys.advance(Some(&next[1]), None));
        assert!(keys.advance(Some(&next[0]), None));
    }

    #[test]
    fn y2_a_missing_wrong_or_repeated_key_is_refused() {
        let keys = chain("seed", 4);
        assert!(!KeySequence::new(&keys[3]).advance(None, None));
        assert!(!KeySequence::new(&keys[3]).advance(Some(&keys[1]), None));
        assert!(!KeySequence::new(&keys[3]).advance(Some(&keys[3]), None));
        let mut sequence = KeySequence::new(&keys[3]);
        assert!(sequence.advance(Some(&keys[2]), None));
        assert!(!sequence.advance(Some(&keys[2]), None), "a key is good once");
        assert!(!KeySequence::new("not hex").advance(Some(&keys[0]), None));
    }

    #[test]
    fn y4_digests_compare_without_case_and_keys_hash_as_received() {
        let hash = |text: &str| data_encoding::HEXUPPER.encode(&Sha1::digest(text.as_bytes()));
        let first = hash("seed");
        let mut sequence = KeySequence::new(&hash(&first));
        assert!(sequence.advance(Some(&first), None), "a chain over upper-case text");
        assert!(!KeySequence::new(&hash(&first)).advance(Some(&first.to_lowercase()), None));
    }

    #[test]
    fn y4_chains_of_ten_switch_without_a_gap() {
        let chains = [chain("one", 10), chain("two", 10), chain("three", 10)];
        let mut sequence = KeySequence::new(&chains[0][9]);
        for (at, keys) in chains.iter().enumerate() {
            for i in (1..9).rev() {
                assert!(sequence.advance(Some(&keys[i]), None));
            }
            assert!(sequence.advance(Some(&keys[0]), chains.get(at + 1).map(|next| &*next[9])));
        }
    }
}
