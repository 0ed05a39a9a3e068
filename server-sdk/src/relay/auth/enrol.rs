//! Enrolment: a PIN, once, for a token (X1).

use std::{
    hash::{BuildHasher, RandomState},
    net::IpAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use hmac::{Hmac, KeyInit, Mac};
use relay_core::{
    auth::{ScramVerifier, Secret},
    ids::{AccountId, DeviceId},
    store::{Credential, Enrolment as Outcome, Pin, PinAttempt, PinParameters, Prepared, StoreError},
};
use sha1::Sha1;
use sha2::{Digest, Sha256};
use tokio::sync::{Mutex, Semaphore};

use super::{ITERATIONS, Inner, completes, rate::NotNow, sha256};

/// Bytes of salt.
pub(super) const SALT: usize = 16;
/// Digits of a PIN (B11).
const DIGITS: usize = 8;
/// How long a PIN is good (B11).
const PIN_LIFE: Duration = Duration::from_secs(24 * 60 * 60);
/// Hashings at once (T13).
const HASHINGS: usize = 2;
/// Who may wait to be hashed, and how long.
const WAITING: usize = 256;
const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// Devices that enrol at once and share a lock wait for each other, no more.
const STRIPES: usize = 64;

/// A PIN as it is told to people, once.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct IssuedPin {
    /// Which device it enrols.
    pub device: DeviceId,
    /// The PIN.
    pub pin: Secret,
    /// When it stops being good.
    pub expires: SystemTime,
}

/// Why a device did not enrol.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum EnrolError {
    /// Unknown device, no PIN, a wrong, spent, expired or void one: deliberately one and the same.
    #[error("device or PIN was not accepted")]
    Refused,
    /// Too many failures from that address.
    #[error("too many tries from this address")]
    TooMany {
        /// When to come back.
        retry_after: Duration,
    },
    /// Too many enrol at once.
    #[error("too many devices enrol at once")]
    Busy {
        /// When to come back.
        retry_after: Duration,
    },
    /// The store could not be asked; the PIN may be spent or not.
    #[error("the store is unavailable")]
    Store(#[from] StoreError),
}

/// What keeps enrolment from taking the relay's time.
#[derive(Debug)]
pub(super) struct Enrolment {
    hashing: Arc<Semaphore>,
    waiting: Semaphore,
    stripes: [Mutex<()>; STRIPES],
    hasher: RandomState,
}

impl Default for Enrolment {
    fn default() -> Self {
        Self {
            hashing: Arc::new(Semaphore::new(HASHINGS)),
            waiting: Semaphore::new(WAITING),
            stripes: std::array::from_fn(|_| Mutex::default()),
            hasher: RandomState::new(),
        }
    }
}

impl Enrolment {
    /// Runs `work` on a thread that may block, at most [`HASHINGS`] at once.
    pub(super) async fn hash<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, EnrolError> {
        let busy = || EnrolError::Busy { retry_after: LONGEST_WAIT };
        let _place = self.waiting.try_acquire().map_err(|_| busy())?;
        let permit = tokio::time::timeout(LONGEST_WAIT, self.hashing.clone().acquire_owned())
            .await
            .map_err(|_| busy())?
            .map_err(|_| busy())?;
        // The permit goes with the work: a caller that leaves does not make room for a third hashing.
        let done = tokio::task::spawn_blocking(move || (work(), permit)).await;
        done.map(|(done, _permit)| done).map_err(|_| StoreError::unavailable("the relay is stopping").into())
    }

    async fn alone(&self, device: &DeviceId) -> tokio::sync::MutexGuard<'_, ()> {
        let at = self.hasher.hash_one(device) % STRIPES as u64;
        self.stripes[usize::try_from(at).unwrap_or(0)].lock().await
    }
}

pub(super) async fn issue_pin(
    inner: &Arc<Inner>,
    device: &DeviceId,
    accounts: &[AccountId],
) -> Result<IssuedPin, EnrolError> {
    let pin = Secret::new(relay_core::random::digits(DIGITS));
    let mut salt = [0; SALT];
    relay_core::random::fill(&mut salt);
    let parameters = PinParameters { salt, iterations: ITERATIONS };
    let hash = {
        let (pin, parameters) = (pin.clone(), parameters.clone());
        inner.enrolment.hash(move || hash_pin(&pin, &parameters)).await?
    };
    let now = SystemTime::now();
    let expires = now + PIN_LIFE;
    if !accounts.is_empty() {
        let prepared = accounts.iter().cloned().fold(Prepared::new(device.clone()), Prepared::with_account);
        inner.store.prepare(&[prepared], now).await?;
    }
    inner.store.put_pin(&Pin { device: device.clone(), parameters, hash, expires }, now).await?;
    Ok(IssuedPin { device: device.clone(), pin, expires })
}

pub(super) async fn enrol(
    inner: &Arc<Inner>,
    device: &DeviceId,
    pin: &Secret,
    source: IpAddr,
) -> Result<Secret, EnrolError> {
    let one = inner.rate.begin(source).await.map_err(|not_now| match not_now {
        NotNow::Failed(retry_after) => EnrolError::TooMany { retry_after },
        NotNow::Busy(retry_after) => EnrolError::Busy { retry_after },
    })?;
    let done = spend(inner, device, pin).await;
    if !matches!(done, Err(EnrolError::Refused)) {
        one.succeeded();
    }
    done
}

/// The same for every device and PIN (T10): one look-up, three hashings, one write.
async fn spend(inner: &Arc<Inner>, device: &DeviceId, pin: &Secret) -> Result<Secret, EnrolError> {
    let parameters = inner.store.pin_parameters(device).await?.unwrap_or_else(|| {
        let mut salt = [0; SALT];
        salt.copy_from_slice(&inner.derived("pin", device, SALT));
        PinParameters { salt, iterations: ITERATIONS }
    });
    let token = Secret::random();
    let (hash, credential) = {
        let (pin, token, parameters) = (pin.clone(), token.clone(), parameters.clone());
        inner.enrolment.hash(move || (hash_pin(&pin, &parameters), credential(&token))).await?
    };
    let attempt = PinAttempt { device: device.clone(), salt: parameters.salt, hash };
    let inner = inner.clone();
    let spent = completes(async move {
        // Alone, so that of two enrolments of one device the later one's token is the one in the table, too.
        let _alone = inner.enrolment.alone(&attempt.device).await;
        let outcome = inner.store.enrol(&attempt, &credential, SystemTime::now()).await?;
        if outcome == Outcome::Enrolled {
            inner.write().put_device(attempt.device, credential.token_hash);
        }
        Ok::<_, StoreError>(outcome)
    });
    match spent.await {
        Some(Ok(Outcome::Enrolled)) => Ok(token),
        Some(Ok(_)) => Err(EnrolError::Refused),
        Some(Err(error)) => Err(error.into()),
        None => Err(StoreError::unavailable("the relay is stopping").into()),
    }
}

/// A PIN has too few digits for any hash to hide it from somebody who has the database and time; what protects it is
/// that the database is the relay's alone, and that it is good once and for a day. Hashed, it cannot be read there in
/// passing.
fn hash_pin(pin: &Secret, parameters: &PinParameters) -> [u8; 32] {
    let mut hash = [0; 32];
    pbkdf2::pbkdf2_hmac::<Sha256>(
        pin.expose().as_bytes(),
        &parameters.salt,
        parameters.iterations,
        &mut hash,
    );
    hash
}

/// What is kept of `token`.
fn credential(token: &Secret) -> Credential {
    let salt = || {
        let mut salt = [0; SALT];
        relay_core::random::fill(&mut salt);
        salt
    };
    Credential {
        token_hash: sha256(token),
        sha256: scram_sha256(token, &salt()),
        sha1: scram_sha1(token, &salt()),
    }
}

/// RFC 5802 §3 for one hash: SaltedPassword, then StoredKey and ServerKey.
macro_rules! scram {
    ($name:ident, $hash:ty, $length:literal) => {
        fn $name(token: &Secret, salt: &[u8]) -> ScramVerifier {
            let mut salted = [0; $length];
            pbkdf2::pbkdf2_hmac::<$hash>(token.expose().as_bytes(), salt, ITERATIONS, &mut salted);
            let keyed = |words: &[u8]| {
                let mut mac = Hmac::<$hash>::new_from_slice(&salted).expect("HMAC takes a key of any length");
                mac.update(words);
                mac.finalize().into_bytes()
            };
            ScramVerifier {
                iterations: ITERATIONS,
                salt: salt.into(),
                stored_key: <$hash>::digest(keyed(b"Client Key")).as_slice().into(),
                server_key: keyed(b"Server Key").as_slice().into(),
            }
        }
    };
}
scram!(scram_sha256, Sha256, 32);
scram!(scram_sha1, Sha1, 20);

#[cfg(test)]
mod tests {
    use data_encoding::BASE64;

    use super::*;

    /// Checks a verifier against an exchange that an RFC gives: it must accept that proof and make that signature.
    macro_rules! holds {
        ($made:expr, $hash:ty, $exchange:expr, $proof:expr, $signature:expr) => {
            let hmac = |key: &[u8], words: &[u8]| {
                let mut mac = Hmac::<$hash>::new_from_slice(key).unwrap();
                mac.update(words);
                mac.finalize().into_bytes()
            };
            assert_eq!(BASE64.encode(&hmac(&$made.server_key, $exchange)), $signature);
            let proof = BASE64.decode($proof).unwrap();
            let client_key: Vec<u8> = proof
                .iter()
                .zip(hmac(&$made.stored_key, $exchange))
                .map(|(proof, mask)| proof ^ mask)
                .collect();
            assert_eq!(<$hash>::digest(client_key).as_slice(), &*$made.stored_key);
        };
    }

    #[test]
    fn x1_a_verifier_is_what_rfc_5802_and_rfc_7677_say() {
        let password = Secret::new("pencil");
        let made = scram_sha256(&password, &BASE64.decode(b"W22ZaJ0SNY7soEsUEjb6gQ==").unwrap());
        let exchange = b"n=user,r=rOprNGfwEbeRWgbNEkqO,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,\
            s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096,c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0";
        let (proof, signature) =
            (b"dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=", "6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=");
        holds!(made, Sha256, exchange, proof, signature);

        let made = scram_sha1(&password, &BASE64.decode(b"QSXCR+Q6sek8bf92").unwrap());
        let exchange = b"n=user,r=fyko+d2lbbFgONRv9qkxdawL,r=fyko+d2lbbFgONRv9qkxdawL3rfcNHYJY1ZVvWVs7j,\
            s=QSXCR+Q6sek8bf92,i=4096,c=biws,r=fyko+d2lbbFgONRv9qkxdawL3rfcNHYJY1ZVvWVs7j";
        holds!(made, Sha1, exchange, b"v0X8v3Bz2T0CJGbJQyF0X+HI4Ts=", "rmF9pqV8S7suAoZWja4dJRkFsKQ=");
    }

    #[test]
    fn t12_two_credentials_of_one_token_share_nothing_but_its_hash() {
        let token = Secret::random();
        let (one, other) = (credential(&token), credential(&token));
        assert_eq!(one.token_hash, other.token_hash);
        assert!(one.sha256 != other.sha256 && one.sha1 != other.sha1 && one.sha256.salt != one.sha1.salt);
    }
}
