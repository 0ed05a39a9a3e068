//! Who is calling: tokens, SCRAM verifiers, principals.

use std::fmt;

use async_trait::async_trait;
use hmac::{Hmac, KeyInit, Mac};
use sha1::Sha1;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use crate::ids::{DeviceId, KeyId};

/// A token, key or PIN: shown by nothing, wiped when dropped.
#[derive(Clone)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// Keeps `text`.
    pub fn new(text: impl Into<String>) -> Self {
        Self(Zeroizing::new(text.into()))
    }

    /// A new token: 256 random bits, 52 characters of `[a-z2-7]`.
    pub fn random() -> Self {
        Self::new(crate::random::base32::<32>())
    }

    /// The secret itself. Never log it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

impl PartialEq for Secret {
    fn eq(&self, other: &Self) -> bool {
        use subtle::ConstantTimeEq;
        self.0.as_bytes().ct_eq(other.0.as_bytes()).into()
    }
}
impl Eq for Secret {}

/// What somebody shows to be let in.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Credentials {
    /// A bearer token, which also says who it belongs to.
    Bearer(Secret),
    /// A device's own name with its token (SASL PLAIN).
    Device {
        /// Who it claims to be.
        device: DeviceId,
        /// Its token.
        token: Secret,
    },
}

/// Who was let in.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Principal {
    /// A device, by its own credential.
    Device(DeviceId),
    /// A service, by its key.
    Service(KeyId),
    /// The administrator, by theirs.
    Administrator(KeyId),
}

/// Which hash a SCRAM exchange runs on (RFC 5802, RFC 7677).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ScramHash {
    /// SCRAM-SHA-1
    Sha1,
    /// SCRAM-SHA-256
    Sha256,
}

/// What the relay keeps instead of a password (RFC 5802 §3): enough to check a proof, not enough to make one.
#[derive(Clone, PartialEq, Eq)]
pub struct ScramVerifier {
    /// Rounds of PBKDF2.
    pub iterations: u32,
    /// The salt.
    pub salt: Box<[u8]>,
    /// H(ClientKey).
    pub stored_key: Box<[u8]>,
    /// ServerKey.
    pub server_key: Box<[u8]>,
}

impl ScramVerifier {
    /// Derives the verifier of `password` (RFC 5802 §3): `iterations` rounds of PBKDF2 over `salt`. Costs about a
    /// millisecond for 4096 rounds.
    pub fn derive(hash: ScramHash, password: &Secret, salt: &[u8], iterations: u32) -> Self {
        let password = password.expose().as_bytes();
        let (stored_key, server_key) = match hash {
            ScramHash::Sha1 => keys::<Hmac<Sha1>, Sha1>(password, salt, iterations),
            ScramHash::Sha256 => keys::<Hmac<Sha256>, Sha256>(password, salt, iterations),
        };
        Self { iterations, salt: salt.into(), stored_key, server_key }
    }
}

fn keys<M, D>(password: &[u8], salt: &[u8], iterations: u32) -> (Box<[u8]>, Box<[u8]>)
where
    M: Mac + KeyInit + Clone + hmac::digest::FixedOutput,
    D: Digest,
{
    let mut salted = Zeroizing::new(vec![0; <D as Digest>::output_size()]);
    pbkdf2::pbkdf2::<M>(password, salt, iterations, &mut salted).expect("HMAC takes a key of any length");
    let mac = |label: &[u8]| {
        let mut mac = <M as KeyInit>::new_from_slice(&salted).expect("HMAC takes a key of any length");
        Mac::update(&mut mac, label);
        Zeroizing::new(mac.finalize().into_bytes().to_vec())
    };
    let stored_key = D::digest(&*mac(b"Client Key"));
    (stored_key.as_slice().into(), mac(b"Server Key").as_slice().into())
}

impl fmt::Debug for ScramVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ScramVerifier({} iterations)", self.iterations)
    }
}

/// Why nobody was let in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AuthError {
    /// Wrong, unknown, revoked: deliberately one and the same.
    #[error("credentials were not accepted")]
    Rejected,
    /// They could not be checked now.
    #[error("credentials cannot be checked now")]
    Unavailable,
}

/// Checks credentials. Given to a transport at construction.
///
/// # Implementing
/// Unknown devices must cost and look the same as known ones with a wrong credential (threat T10).
#[async_trait]
pub trait Authenticator: fmt::Debug + Send + Sync + 'static {
    /// Says who shows `credentials`.
    async fn authenticate(&self, credentials: &Credentials) -> Result<Principal, AuthError>;

    /// What to check a SCRAM proof of `device` against: the same each time it is asked for, as long as the credential
    /// holds. For an unknown device: a verifier that no proof meets, and always the same one.
    async fn verifier(&self, device: &DeviceId, hash: ScramHash) -> Result<ScramVerifier, AuthError>;
}

#[cfg(test)]
mod tests {
    use base64::{Engine, prelude::BASE64_STANDARD as BASE64};

    use super::*;

    // RFC 5802 §5 and RFC 7677 §3: user "user", password "pencil".
    #[test]
    fn verifiers_are_those_of_the_rfcs() {
        let salt = BASE64.decode("QSXCR+Q6sek8bf92").unwrap();
        let sha1 = ScramVerifier::derive(ScramHash::Sha1, &Secret::new("pencil"), &salt, 4096);
        assert_eq!(BASE64.encode(&sha1.stored_key), "6dlGYMOdZcOPutkcNY8U2g7vK9Y=");
        assert_eq!(BASE64.encode(&sha1.server_key), "D+CSWLOshSulAsxiupA+qs2/fTE=");
        let salt = BASE64.decode("W22ZaJ0SNY7soEsUEjb6gQ==").unwrap();
        let sha256 = ScramVerifier::derive(ScramHash::Sha256, &Secret::new("pencil"), &salt, 4096);
        assert_eq!(BASE64.encode(&sha256.stored_key), "WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=");
        assert_eq!(BASE64.encode(&sha256.server_key), "wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU=");
    }

    #[test]
    fn t44_secrets_do_not_show() {
        let shown = format!("{:?}", Credentials::Bearer(Secret::new("hunter2")));
        assert!(!shown.contains("hunter2"), "{shown}");
    }
}
