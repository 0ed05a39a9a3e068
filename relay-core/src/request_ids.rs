//! How request IDs are made and recognised.

use std::{fmt, sync::Mutex};

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use subtle::ConstantTimeEq;

use crate::{
    ids::RequestId,
    random::{self, BASE32},
};

/// Where a request's entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Place {
    /// Which relay of a cluster; 0 alone.
    pub node: u16,
    /// Which of that relay's shards, by the hash of the device's ID.
    pub slot: u32,
}

/// Issues request IDs and says where a genuine one's entry is.
///
/// # Implementing
/// An ID is unguessable: at least 128 random bits. A forged one is known as such without a look-up.
pub trait RequestIds: fmt::Debug + Send + Sync + 'static {
    /// A new ID for an entry at `place`.
    fn issue(&self, place: Place) -> RequestId;

    /// Where the entry of `id` is; `None` if it was not issued here.
    fn place_of(&self, id: &RequestId) -> Option<Place>;
}

const PLACE: usize = 6;
const NONCE: usize = 16;
const MAC: usize = 10;
const LENGTH: usize = PLACE + NONCE + MAC;

/// The default: place, 128 random bits and an 80-bit MAC (HMAC-SHA-256), as 52 characters of lower-case base32.
pub struct MacRequestIds {
    keyed: Hmac<Sha256>,
    pool: Mutex<Pool>,
}

impl fmt::Debug for MacRequestIds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MacRequestIds")
    }
}

impl MacRequestIds {
    /// IDs under `key`. A relay that is to recognise its IDs after a restart keeps the key.
    pub fn new(key: &[u8; 32]) -> Self {
        let keyed = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes a key of any length");
        Self { keyed, pool: Mutex::new(Pool { bytes: [0; POOL], used: POOL }) }
    }

    /// IDs under a key that nobody else has.
    pub fn random() -> Self {
        let mut key = [0; 32];
        random::fill(&mut key);
        Self::new(&key)
    }

    fn mac(&self, message: &[u8]) -> [u8; MAC] {
        let mut keyed = self.keyed.clone();
        keyed.update(b"request-id");
        keyed.update(message);
        let mut mac = [0; MAC];
        mac.copy_from_slice(&keyed.finalize().into_bytes()[..MAC]);
        mac
    }
}

impl RequestIds for MacRequestIds {
    fn issue(&self, place: Place) -> RequestId {
        let mut bytes = [0; LENGTH];
        bytes[..2].copy_from_slice(&place.node.to_be_bytes());
        bytes[2..PLACE].copy_from_slice(&place.slot.to_be_bytes());
        self.pool.lock().unwrap_or_else(|e| e.into_inner()).take(&mut bytes[PLACE..PLACE + NONCE]);
        let mac = self.mac(&bytes[..PLACE + NONCE]);
        bytes[PLACE + NONCE..].copy_from_slice(&mac);
        let mut text = [0; 64];
        let length = BASE32.encode_len(LENGTH);
        BASE32.encode_mut(&bytes, &mut text[..length]);
        let text = std::str::from_utf8(&text[..length]).expect("base32 is ASCII");
        RequestId::new(text).expect("base32 of 32 bytes is an ID")
    }

    fn place_of(&self, id: &RequestId) -> Option<Place> {
        let mut folded = [0; 64];
        let folded = &mut folded[..id.as_str().len()];
        folded.copy_from_slice(id.as_str().as_bytes());
        folded.make_ascii_lowercase();
        if BASE32.decode_len(folded.len()).ok()? != LENGTH {
            return None;
        }
        let mut bytes = [0; LENGTH];
        BASE32.decode_mut(folded, &mut bytes).ok()?;
        let (message, mac) = bytes.split_at(PLACE + NONCE);
        if !bool::from(self.mac(message).ct_eq(mac)) {
            return None;
        }
        Some(Place {
            node: u16::from_be_bytes([bytes[0], bytes[1]]),
            slot: u32::from_be_bytes([bytes[2], bytes[3], bytes[4], bytes[5]]),
        })
    }
}

const POOL: usize = 1024;

/// Random bytes fetched in bulk: one system call for 64 IDs.
struct Pool {
    bytes: [u8; POOL],
    used: usize,
}

impl Pool {
    fn take(&mut self, into: &mut [u8]) {
        if self.used + into.len() > POOL {
            random::fill(&mut self.bytes);
            self.used = 0;
        }
        let taken = &mut self.bytes[self.used..self.used + into.len()];
        into.copy_from_slice(taken);
        taken.fill(0);
        self.used += into.len();
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn t1_request_ids_are_distinct() {
        let ids = MacRequestIds::random();
        let place = Place { node: 0, slot: 7 };
        let seen: HashSet<_> = (0..100_000).map(|_| ids.issue(place)).collect();
        assert_eq!(seen.len(), 100_000);
    }

    #[test]
    fn an_id_says_its_place_whatever_its_case() {
        let ids = MacRequestIds::random();
        let place = Place { node: 3, slot: 0xdead_beef };
        let id = ids.issue(place);
        assert_eq!(ids.place_of(&id), Some(place));
        assert_eq!(ids.place_of(&RequestId::new(&id.as_str().to_uppercase()).unwrap()), Some(place));
        assert_eq!(MacRequestIds::random().place_of(&id), None, "another relay's ID");
    }

    proptest! {
        #[test]
        fn t7_a_tampered_id_has_no_place(position in 0usize..52, replacement in "[a-z2-7]") {
            let ids = MacRequestIds::new(&[1; 32]);
            let id = ids.issue(Place { node: 0, slot: 1 });
            let mut text = id.as_str().to_owned();
            prop_assume!(text[position..=position] != replacement);
            text.replace_range(position..=position, &replacement);
            prop_assert_eq!(ids.place_of(&RequestId::new(&text).unwrap()), None);
        }

        #[test]
        fn t7_any_text_is_taken_without_panic(text in "[A-Za-z0-9._-]{1,64}") {
            if let Ok(id) = RequestId::new(&text) {
                prop_assert_eq!(MacRequestIds::new(&[1; 32]).place_of(&id), None);
            }
        }
    }
}
