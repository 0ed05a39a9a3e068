//! SCRAM (RFC 5802, RFC 7677), the client's side, without channel binding: requests of one BOSH session travel over
//! several connections, so there is no one channel to bind to.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use hmac::{Hmac, KeyInit, Mac};
use relay_core::auth::{ScramHash, Secret};
use sha1::Sha1;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq as _;

/// Fewer rounds make a stolen verifier cheap; more are an attack on this end.
const ITERATIONS: std::ops::RangeInclusive<u32> = 4_096..=1_000_000;
/// Salts and nonces beyond this are nobody's.
const MAX_FIELD: usize = 1_024;

/// What was wrong with the server's side of the exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum ScramError {
    #[error("the server's SCRAM message cannot be read")]
    Malformed,
    #[error("the server's SCRAM nonce does not begin with ours")]
    Nonce,
    #[error("the server asks for too few or too many SCRAM iterations")]
    Iterations,
    #[error("the server requires a SCRAM extension")]
    Extension,
    #[error("the server turned the proof down")]
    Rejected,
    #[error("the server did not prove that it knows the account")]
    ServerSignature,
}

/// One exchange.
#[derive(Debug)]
pub(super) struct Scram {
    hash: ScramHash,
    password: Secret,
    nonce: String,
    first_bare: String,
    server_signature: Option<Vec<u8>>,
}

impl Scram {
    /// An exchange for `user`, both prepared, with a random `nonce` of printable characters without a comma.
    pub(super) fn new(hash: ScramHash, user: &str, password: Secret, nonce: String) -> Self {
        let user = user.replace('=', "=3D").replace(',', "=2C");
        let first_bare = format!("n={user},r={nonce}");
        Self { hash, password, nonce, first_bare, server_signature: None }
    }

    pub(super) fn client_first(&self) -> String {
        format!("n,,{}", self.first_bare)
    }

    /// The answer to the server's first message.
    pub(super) fn client_final(&mut self, server_first: &str) -> Result<String, ScramError> {
        let mut fields = server_first.split(',');
        let mut field =
            |name: &str| fields.next()?.strip_prefix(name).filter(|value| value.len() <= MAX_FIELD);
        if server_first.starts_with("m=") {
            return Err(ScramError::Extension);
        }
        let nonce = field("r=").ok_or(ScramError::Malformed)?;
        let salt = field("s=").ok_or(ScramError::Malformed)?;
        let iterations = field("i=").ok_or(ScramError::Malformed)?;
        // RFC 5802 §5: the server's part must add something to ours.
        if nonce.len() <= self.nonce.len() || !nonce.starts_with(&self.nonce) {
            return Err(ScramError::Nonce);
        }
        let salt = STANDARD.decode(salt).map_err(|_| ScramError::Malformed)?;
        let digits = (1..=10).contains(&iterations.len()) && iterations.bytes().all(|b| b.is_ascii_digit());
        if salt.is_empty() || !digits {
            return Err(ScramError::Malformed);
        }
        let iterations = iterations.parse().unwrap_or(u32::MAX);
        if !ITERATIONS.contains(&iterations) {
            return Err(ScramError::Iterations);
        }
        let without_proof = format!("c=biws,r={nonce}");
        let auth_message = format!("{},{server_first},{without_proof}", self.first_bare);
        let password = self.password.expose().as_bytes();
        let (proof, signature) = match self.hash {
            ScramHash::Sha1 => {
                let mut salted = [0; 20];
                pbkdf2::pbkdf2_hmac::<Sha1>(password, &salt, iterations, &mut salted);
                prove(hmac::<Hmac<Sha1>>, |key| Sha1::digest(key).to_vec(), &salted, &auth_message)
            }
            ScramHash::Sha256 => {
                let mut salted = [0; 32];
                pbkdf2::pbkdf2_hmac::<Sha256>(password, &salt, iterations, &mut salted);
                prove(hmac::<Hmac<Sha256>>, |key| Sha256::digest(key).to_vec(), &salted, &auth_message)
            }
            _ => return Err(ScramError::Extension),
        };
        self.server_signature = Some(signature);
        Ok(format!("{without_proof},p={}", STANDARD.encode(proof)))
    }

    /// Whether the server's last message proves that it knows the account (RFC 5802 §3).
    pub(super) fn verify(&mut self, server_final: &str) -> Result<(), ScramError> {
        if server_final.starts_with("e=") {
            return Err(ScramError::Rejected);
        }
        let expected = self.server_signature.take().ok_or(ScramError::Malformed)?;
        let shown = server_final.split(',').next().and_then(|field| field.strip_prefix("v="));
        let shown =
            STANDARD.decode(shown.ok_or(ScramError::Malformed)?).map_err(|_| ScramError::Malformed)?;
        if bool::from(shown.ct_eq(&expected)) { Ok(()) } else { Err(ScramError::ServerSignature) }
    }
}

/// The client's proof and the signature that the server must show.
fn prove(
    hmac: impl Fn(&[u8], &[u8]) -> Vec<u8>,
    hash: impl Fn(&[u8]) -> Vec<u8>,
    salted: &[u8],
    auth_message: &str,
) -> (Vec<u8>, Vec<u8>) {
    let client_key = hmac(salted, b"Client Key");
    let client_signature = hmac(&hash(&client_key), auth_message.as_bytes());
    let proof = client_key.iter().zip(&client_signature).map(|(a, b)| a ^ b).collect();
    let server_signature = hmac(&hmac(salted, b"Server Key"), auth_message.as_bytes());
    (proof, server_signature)
}

fn hmac<M: Mac + KeyInit>(key: &[u8], text: &[u8]) -> Vec<u8> {
    let mut mac = <M as KeyInit>::new_from_slice(key).expect("HMAC takes a key of any length");
    mac.update(text);
    mac.finalize().into_bytes().to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scram(hash: ScramHash, nonce: &str) -> Scram {
        Scram::new(hash, "user", Secret::new("pencil"), nonce.into())
    }

    #[test]
    fn x6_the_exchange_of_rfc_5802() {
        let mut scram = scram(ScramHash::Sha1, "fyko+d2lbbFgONRv9qkxdawL");
        assert_eq!(scram.client_first(), "n,,n=user,r=fyko+d2lbbFgONRv9qkxdawL");
        let server_first = "r=fyko+d2lbbFgONRv9qkxdawL3rfcNHYJY1ZVvWVs7j,s=QSXCR+Q6sek8bf92,i=4096";
        assert_eq!(
            scram.client_final(server_first).unwrap(),
            "c=biws,r=fyko+d2lbbFgONRv9qkxdawL3rfcNHYJY1ZVvWVs7j,p=v0X8v3Bz2T0CJGbJQyF0X+HI4Ts="
        );
        assert_eq!(scram.verify("v=rmF9pqV8S7suAoZWja4dJRkFsKQ="), Ok(()));
    }

    #[test]
    fn x6_the_exchange_of_rfc_7677() {
        let mut scram = scram(ScramHash::Sha256, "rOprNGfwEbeRWgbNEkqO");
        let server_first =
            "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096";
        assert_eq!(
            scram.client_final(server_first).unwrap(),
            "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="
        );
        assert_eq!(scram.verify("v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="), Ok(()));
    }

    #[test]
    fn x6_the_servers_proof_is_checked() {
        let server_first = "r=fyko+d2lbbFgONRv9qkxdawL3rfcNHYJY1ZVvWVs7j,s=QSXCR+Q6sek8bf92,i=4096";
        for (last, error) in [
            ("v=rmF9pqV8S7suAoZWja4dJRkFsKR=", ScramError::Malformed),
            ("v=AAAAAAAAAAAAAAAAAAAAAAAAAAA=", ScramError::ServerSignature),
            ("v=", ScramError::ServerSignature),
            ("", ScramError::Malformed),
            ("e=invalid-proof", ScramError::Rejected),
        ] {
            let mut scram = scram(ScramHash::Sha1, "fyko+d2lbbFgONRv9qkxdawL");
            scram.client_final(server_first).unwrap();
            assert_eq!(scram.verify(last), Err(error), "{last}");
        }
        let mut early = scram(ScramHash::Sha1, "fyko+d2lbbFgONRv9qkxdawL");
        assert_eq!(early.verify("v=rmF9pqV8S7suAoZWja4dJRkFsKQ="), Err(ScramError::Malformed));
    }

    #[test]
    fn x6_nonce_iterations_and_form_of_the_servers_first_are_checked() {
        for (first, error) in [
            ("r=abcd,s=QSXCR+Q6sek8bf92,i=2147483648", ScramError::Iterations),
            ("r=abcd,s=QSXCR+Q6sek8bf92,i=1000001", ScramError::Iterations),
            ("r=abcd,s=QSXCR+Q6sek8bf92,i=4095", ScramError::Iterations),
            ("r=abcd,s=QSXCR+Q6sek8bf92,i=99999999999", ScramError::Malformed),
            ("r=abcd,s=QSXCR+Q6sek8bf92,i=-4096", ScramError::Malformed),
            ("r=abcd,s=QSXCR+Q6sek8bf92,i=", ScramError::Malformed),
            ("r=abcd,s=QSXCR+Q6sek8bf92", ScramError::Malformed),
            ("r=abcd,s=,i=4096", ScramError::Malformed),
            ("r=abcd,s=*,i=4096", ScramError::Malformed),
            ("r=abc,s=QSXCR+Q6sek8bf92,i=4096", ScramError::Nonce),
            ("r=xabcd,s=QSXCR+Q6sek8bf92,i=4096", ScramError::Nonce),
            ("m=x,r=abcd,s=QSXCR+Q6sek8bf92,i=4096", ScramError::Extension),
            ("", ScramError::Malformed),
        ] {
            assert_eq!(scram(ScramHash::Sha1, "abc").client_final(first), Err(error), "{first}");
        }
    }

    #[test]
    fn names_with_commas_are_escaped() {
        let scram = Scram::new(ScramHash::Sha1, "a=b,c", Secret::new(""), "n".into());
        assert_eq!(scram.client_first(), "n,,n=a=3Db=2Cc,r=n");
    }
}
