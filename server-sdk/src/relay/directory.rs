//! Finding devices: what a key may see, page by page (P3).

use std::fmt;

use data_encoding::BASE64URL_NOPAD;
use hmac::{Hmac, KeyInit, Mac};
use relay_core::{
    auth::Principal,
    ids::{DeviceId, MAX_ID},
    store::{DeviceQuery, DeviceRecord, MAX_PAGE, StoreError, StoredSecret},
};
use sha2::Sha256;

use super::auth::{Action, Auth};

/// Pages of the store that one call looks through. A key that sees little of a large fleet gets short pages rather
/// than the relay's time.
const LOOKED_THROUGH: usize = 10;
/// Bytes of MAC in a cursor.
const MAC: usize = 16;
/// Bytes of a place in the list: the length of an ID, and the ID.
const PLAIN: usize = 1 + MAX_ID;

/// A place among all events: in the log of presence, and in that of what became of requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Position {
    pub(crate) presence: u64,
    pub(crate) outcomes: u64,
}

/// Finds devices for callers.
#[derive(Clone)]
pub(crate) struct Directory {
    auth: Auth,
    secret: StoredSecret,
}

impl fmt::Debug for Directory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Directory").finish_non_exhaustive()
    }
}

/// What was found.
#[derive(Debug)]
pub(crate) struct Found {
    /// At most as many as asked for; maybe fewer, or none, although there are more.
    pub(crate) devices: Vec<DeviceRecord>,
    /// How to ask on; `None` at the end of the list.
    pub(crate) next: Option<String>,
}

/// Why nothing was looked for.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FindError {
    /// A cursor that this relay did not give to this caller for this query (T6, T7).
    #[error("the cursor is not one that was given for this query")]
    Cursor,
    /// The store could not be asked.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Directory {
    /// Finds what `auth` lets its callers see.
    ///
    /// # Errors
    /// [`StoreError`] if the secret behind cursors cannot be had.
    pub(crate) async fn new(auth: Auth) -> Result<Self, StoreError> {
        let secret = auth.store().secret("cursors").await?;
        Ok(Self { auth, secret })
    }

    /// Devices that `principal` may list, which meet `query` and `also` (such as a state, which no store knows);
    /// `limit` is cut to 1 to 1,000. `also` is given to the cursor as `also_is`, so that it cannot change on the way.
    ///
    /// # Errors
    /// [`FindError`].
    pub(crate) async fn find(
        &self,
        principal: &Principal,
        query: &DeviceQuery,
        (also_is, also): (&str, impl Fn(&DeviceRecord) -> bool + Send),
        limit: usize,
        cursor: Option<&str>,
    ) -> Result<Found, FindError> {
        let limit = limit.clamp(1, MAX_PAGE);
        let bound_to = format!("{principal:?} {query:?} {also_is:?}");
        let mut after =
            cursor.map(|cursor| self.open_device(cursor, &bound_to).ok_or(FindError::Cursor)).transpose()?;
        let mut query = query.clone();
        if query.account.is_none() {
            query.account = self.auth.only_account(principal);
        }
        let mut devices = Vec::new();
        for _ in 0..LOOKED_THROUGH {
            // One more than is missing would do if nothing is passed over; a whole page if much is.
            let page = self.auth.store().devices(&query, after.as_ref(), MAX_PAGE.min(2 * limit)).await?;
            let mut items = page.items.into_iter().peekable();
            while let Some(record) = items.next() {
                let id = record.id.clone();
                if self.auth.allows(principal, &record, Action::List) && also(&record) {
                    devices.push(record);
                }
                if devices.len() == limit {
                    let more = items.peek().is_some() || page.next.is_some();
                    return Ok(Found { devices, next: more.then(|| self.seal_device(&id, &bound_to)) });
                }
            }
            match page.next {
                Some(next) => after = Some(next),
                None => return Ok(Found { devices, next: None }),
            }
        }
        let next = after.map(|after| self.seal_device(&after, &bound_to));
        Ok(Found { devices, next })
    }

    fn keyed(&self, purpose: &[u8]) -> Hmac<Sha256> {
        let mut mac =
            Hmac::<Sha256>::new_from_slice(self.secret.expose()).expect("HMAC takes a key of any length");
        mac.update(purpose);
        mac
    }

    fn mac(&self, plain: &[u8], bound_to: &str) -> Hmac<Sha256> {
        let mut mac = self.keyed(b"mac");
        mac.update(plain);
        mac.update(bound_to.as_bytes());
        mac
    }

    /// Turns plain into hidden, and back. The MAC of what is hidden is its nonce, so that the same stream hides the
    /// same place alone.
    fn hide(&self, mac: &[u8], bytes: &mut [u8]) {
        for (block, chunk) in (0u8..).zip(bytes.chunks_mut(32)) {
            let mut stream = self.keyed(b"stream");
            stream.update(&[block]);
            stream.update(mac);
            for (byte, mask) in chunk.iter_mut().zip(stream.finalize().into_bytes()) {
                *byte ^= mask;
            }
        }
    }

    /// A place as the caller may hold it: hidden, since it may tell of what the caller must not know of, and good for
    /// what it is bound to alone.
    fn seal<const N: usize>(&self, mut place: [u8; N], bound_to: &str) -> String {
        let mac = self.mac(&place, bound_to).finalize().into_bytes();
        let mac = &mac[..MAC];
        self.hide(mac, &mut place);
        BASE64URL_NOPAD.encode(&[mac, &place].concat())
    }

    fn open<const N: usize>(&self, cursor: &str, bound_to: &str) -> Option<[u8; N]> {
        // Longer than any that was given: not worth decoding.
        let bytes = BASE64URL_NOPAD.decode(cursor.get(..cursor.len().min(256))?.as_bytes()).ok()?;
        let (mac, hidden) = bytes.split_at_checked(MAC)?;
        let mut place: [u8; N] = hidden.try_into().ok()?;
        self.hide(mac, &mut place);
        self.mac(&place, bound_to).verify_truncated_left(mac).ok()?;
        Some(place)
    }

    /// The place in the list after `device`, which may be one that the caller must not know of; all are of one length.
    fn seal_device(&self, device: &DeviceId, bound_to: &str) -> String {
        let id = device.as_str().as_bytes();
        let mut place = [0; PLAIN];
        place[0] = u8::try_from(id.len()).unwrap_or(0);
        place[1..=id.len()].copy_from_slice(id);
        self.seal(place, bound_to)
    }

    fn open_device(&self, cursor: &str, bound_to: &str) -> Option<DeviceId> {
        let place: [u8; PLAIN] = self.open(cursor, bound_to)?;
        let id = place.get(1..=usize::from(place[0]))?;
        DeviceId::new(std::str::from_utf8(id).ok()?).ok()
    }

    /// A position among all events, as `principal` may hold it: the numbers themselves would tell how many events there
    /// were that it must not know of.
    pub(crate) fn seal_position(&self, position: Position, principal: &Principal) -> String {
        let mut place = [0; 16];
        place[..8].copy_from_slice(&position.presence.to_be_bytes());
        place[8..].copy_from_slice(&position.outcomes.to_be_bytes());
        self.seal(place, &format!("events {principal:?}"))
    }

    /// The position that was given to `principal` so; `None` if that is none of its own.
    pub(crate) fn open_position(&self, id: &str, principal: &Principal) -> Option<Position> {
        let place: [u8; 16] = self.open(id, &format!("events {principal:?}"))?;
        let both = u128::from_be_bytes(place);
        Some(Position { presence: (both >> 64) as u64, outcomes: both as u64 })
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::SystemTime};

    use relay_core::{
        ids::{AccountId, KeyId},
        store::{Membership, MemoryStore, Prepared, Store},
    };

    use super::*;

    async fn directory(devices: usize) -> (Directory, Principal) {
        let store = Arc::new(MemoryStore::new());
        let prepared: Vec<_> =
            (0..devices).map(|n| Prepared::new(DeviceId::new(&format!("dev-{n:05}")).unwrap())).collect();
        store.prepare(&prepared, SystemTime::now()).await.unwrap();
        let auth = Auth::load(store, 10, |_, _| {}).await.unwrap();
        let (id, _) = auth.new_key(vec!["device:*7".into()]).await.unwrap();
        (Directory::new(auth).await.unwrap(), Principal::Service(id))
    }

    #[tokio::test]
    async fn p3_pages_join_to_all_that_a_key_may_see_and_nothing_else() {
        let (directory, principal) = directory(2500).await;
        for limit in [1, 7, 100, 250, 5000] {
            let (mut ids, mut cursor, mut calls) = (Vec::new(), None, 0);
            loop {
                let query = DeviceQuery::new();
                let all = ("", |_: &DeviceRecord| true);
                let found = directory.find(&principal, &query, all, limit, cursor.as_deref()).await.unwrap();
                assert!(found.devices.len() <= limit);
                ids.extend(found.devices.into_iter().map(|record| record.id.as_str().to_owned()));
                cursor = found.next;
                calls += 1;
                if cursor.is_none() {
                    break;
                }
                assert!(calls < 2600, "pages do not end");
            }
            let expected: Vec<_> = (0..250).map(|n| format!("dev-{:05}", n * 10 + 7)).collect();
            assert_eq!(ids, expected, "at {limit} a page");
        }
    }

    #[tokio::test]
    async fn x2_a_key_of_one_account_gets_its_devices_at_once_however_many_others_there_are() {
        let (directory, _) = directory(2500).await;
        let (own, other) = (AccountId::new("acme").unwrap(), AccountId::new("b").unwrap());
        let last = DeviceId::new("dev-02499").unwrap();
        let store = directory.auth.store();
        assert!(store.agree(&last, &own, Membership::Administrator).await.unwrap());
        assert!(
            store
                .agree(&DeviceId::new("dev-00000").unwrap(), &other, Membership::Administrator)
                .await
                .unwrap()
        );
        let (id, _) = directory.auth.new_key(vec!["account:ACME".into()]).await.unwrap();
        let mut query = DeviceQuery::new();
        let all = ("", |_: &DeviceRecord| true);
        let found = directory.find(&Principal::Service(id.clone()), &query, all, 1, None).await.unwrap();
        assert_eq!(found.devices.iter().map(|record| &record.id).collect::<Vec<_>>(), [&last]);
        assert_eq!(found.next, None, "it says nothing of devices of others");
        query.account = Some(other);
        let found = directory.find(&Principal::Service(id), &query, all, 1, None).await.unwrap();
        assert!(found.devices.is_empty());
    }

    #[tokio::test]
    async fn t6_t7_a_cursor_is_good_for_its_caller_and_query_alone() {
        let (directory, principal) = directory(100).await;
        let query = DeviceQuery::new();
        let all = |_: &DeviceRecord| true;
        let found = directory.find(&principal, &query, ("", all), 1, None).await.unwrap();
        let cursor = found.next.unwrap();
        assert!(directory.find(&principal, &query, ("", all), 1, Some(&cursor)).await.is_ok());
        let other = Principal::Service(KeyId::new("other").unwrap());
        let mut named = DeviceQuery::new();
        named.name = Some("x".into());
        for (principal, query, state) in
            [(&other, &query, ""), (&principal, &named, ""), (&principal, &query, "online")]
        {
            let refused = directory.find(principal, query, (state, all), 1, Some(&cursor)).await;
            assert!(matches!(refused, Err(FindError::Cursor)));
        }
        for at in 0..cursor.len() {
            let mut bytes = cursor.clone().into_bytes();
            bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
            let changed = String::from_utf8(bytes).unwrap();
            let refused = directory.find(&principal, &query, ("", all), 1, Some(&changed)).await;
            assert!(matches!(refused, Err(FindError::Cursor)), "changed at {at}");
        }
        for odd in ["", "ü", "====", &"A".repeat(10_000), &"ä".repeat(200), &cursor[..cursor.len() - 1]] {
            let refused = directory.find(&principal, &query, ("", all), 1, Some(odd)).await;
            assert!(matches!(refused, Err(FindError::Cursor)), "{odd:?}");
        }
    }

    #[tokio::test]
    async fn t47_a_cursor_does_not_tell_of_devices_that_the_caller_may_not_see() {
        let (directory, principal) = directory(2500).await;
        let query = DeviceQuery::new();
        // None is wanted, so that the page ends where the store's work does: at a device of others.
        let none = ("none", |_: &DeviceRecord| false);
        let mut lengths = std::collections::HashSet::new();
        let mut cursor = None;
        for _ in 0..5 {
            let found = directory.find(&principal, &query, none, 1, cursor.as_deref()).await.unwrap();
            let next = found.next.unwrap();
            let bytes = BASE64URL_NOPAD.decode(next.as_bytes()).unwrap();
            assert!(!bytes.windows(4).any(|window| window == b"dev-"), "{next}");
            lengths.insert(next.len());
            assert_ne!(cursor.as_ref(), Some(&next));
            cursor = Some(next);
        }
        assert_eq!(lengths.len(), 1);
    }

    #[tokio::test]
    async fn t6_a_position_among_events_is_good_for_its_holder_alone() {
        let (directory, principal) = directory(0).await;
        let position = Position { presence: 1 << 40, outcomes: 7 };
        let id = directory.seal_position(position, &principal);
        assert_eq!(directory.open_position(&id, &principal), Some(position));
        for other in [Position { presence: (1 << 40) + 1, ..position }, Position { outcomes: 8, ..position }]
        {
            assert_ne!(id, directory.seal_position(other, &principal));
        }
        let other = Principal::Service(KeyId::new("other").unwrap());
        assert_eq!(directory.open_position(&id, &other), None);
        for odd in ["", "1", "ü", &id[1..], &format!("{id}A"), &id.to_lowercase()] {
            assert_eq!(directory.open_position(odd, &principal), None, "{odd:?}");
        }
    }
}
