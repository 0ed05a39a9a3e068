//! SCRAM, the server's side (RFC 5802, RFC 7677), without channel binding.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use hmac::{Hmac, KeyInit, Mac};
use relay_core::auth::{ScramHash, ScramVerifier};
use sha1::Sha1;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

/// Why an exchange cannot go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ScramError {
    /// A message is not of the form that RFC 5802 §7 gives.
    Malformed,
    /// The proof is wrong.
    Rejected,
}

/// The client's first message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ClientFirst {
    /// The header in front, as it must come back in `c=`.
    gs2: Box<str>,
    bare: Box<str>,
    nonce: Box<str>,
    /// Who the client is.
    pub(super) name: String,
    /// Who it wants to act as.
    pub(super) authzid: Option<String>,
}

impl ClientFirst {
    pub(super) fn parse(message: &str) -> Result<Self, ScramError> {
        let mut parts = message.splitn(3, ',');
        let (flag, authzid) = (part(&mut parts)?, part(&mut parts)?);
        let bare = part(&mut parts)?;
        // `y`: the client could bind to a channel and believes that we cannot, which is so. `p` binds, and we offered
        // no mechanism that does.
        if flag != "n" && flag != "y" {
            return Err(ScramError::Malformed);
        }
        let authzid = match authzid {
            "" => None,
            other => Some(saslname(other.strip_prefix("a=").ok_or(ScramError::Malformed)?)?),
        };
        let mut fields = bare.split(',');
        // An `m=` in front is an extension that must be understood: it is refused here like any other text.
        let name = saslname(part(&mut fields)?.strip_prefix("n=").ok_or(ScramError::Malformed)?)?;
        let nonce = part(&mut fields)?.strip_prefix("r=").filter(|nonce| printable(nonce));
        let nonce = nonce.ok_or(ScramError::Malformed)?;
        let gs2 = &message[..message.len() - bare.len()];
        Ok(Self { gs2: gs2.into(), bare: bare.into(), nonce: nonce.into(), name, authzid })
    }
}

/// An exchange that waits for the client's proof.
#[derive(Debug)]
pub(super) struct Challenge {
    hash: ScramHash,
    verifier: ScramVerifier,
    /// What `c=` must be.
    binding: Box<str>,
    nonce: Box<str>,
    /// The first two parts of what is signed.
    opening: Box<str>,
}

impl Challenge {
    /// The challenge to `first`, and the server's first message. `nonce` is ours: printable, without commas.
    pub(super) fn new(
        first: &ClientFirst,
        hash: ScramHash,
        verifier: ScramVerifier,
        nonce: &str,
    ) -> (Self, String) {
        let nonce = format!("{}{nonce}", first.nonce);
        let message = format!("r={nonce},s={},i={}", STANDARD.encode(&verifier.salt), verifier.iterations);
        let opening = format!("{},{message}", first.bare);
        let challenge = Self {
            hash,
            verifier,
            binding: STANDARD.encode(first.gs2.as_bytes()).into(),
            nonce: nonce.into(),
            opening: opening.into(),
        };
        (challenge, message)
    }

    /// What the proof was checked against.
    pub(super) fn into_verifier(self) -> (ScramHash, ScramVerifier) {
        (self.hash, self.verifier)
    }

    /// Checks the client's final message; the server's final one, if the proof is right.
    pub(super) fn finish(&self, message: &str) -> Result<String, ScramError> {
        let (signed, proof) = message.rsplit_once(",p=").ok_or(ScramError::Malformed)?;
        let proof = STANDARD.decode(proof).map_err(|_| ScramError::Malformed)?;
        let mut fields = signed.split(',');
        let binding = part(&mut fields)?.strip_prefix("c=").ok_or(ScramError::Malformed)?;
        let nonce = part(&mut fields)?.strip_prefix("r=").ok_or(ScramError::Malformed)?;
        if *binding != *self.binding || *nonce != *self.nonce {
            return Err(ScramError::Rejected);
        }
        let signed = format!("{},{signed}", self.opening);
        let signature = match self.hash {
            ScramHash::Sha1 => check::<HmacSha1, Sha1>(&self.verifier, &signed, &proof),
            ScramHash::Sha256 => check::<HmacSha256, Sha256>(&self.verifier, &signed, &proof),
            // A hash that this crate does not know yet: no mechanism of it was offered.
            _ => None,
        };
        signature.map(|signature| format!("v={}", STANDARD.encode(signature))).ok_or(ScramError::Rejected)
    }
}

type HmacSha1 = Hmac<Sha1>;
type HmacSha256 = Hmac<Sha256>;

/// RFC 5802 §3: the ServerSignature, if `proof` is that of the key whose hash is stored.
fn check<M: Mac + KeyInit, D: Digest>(
    verifier: &ScramVerifier,
    signed: &str,
    proof: &[u8],
) -> Option<Vec<u8>> {
    let signature = sign::<M>(&verifier.stored_key, signed)?;
    if signature.len() != proof.len() {
        return None;
    }
    let client_key: Vec<u8> = signature.iter().zip(proof).map(|(a, b)| a ^ b).collect();
    let stored_key = D::digest(&client_key);
    bool::from(stored_key.as_slice().ct_eq(&verifier.stored_key))
        .then(|| sign::<M>(&verifier.server_key, signed))
        .flatten()
}

fn sign<M: Mac + KeyInit>(key: &[u8], text: &str) -> Option<Vec<u8>> {
    let mut mac = <M as KeyInit>::new_from_slice(key).ok()?;
    mac.update(text.as_bytes());
    Some(mac.finalize().into_bytes().to_vec())
}

fn part<'m>(parts: &mut impl Iterator<Item = &'m str>) -> Result<&'m str, ScramError> {
    parts.next().ok_or(ScramError::Malformed)
}

fn printable(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic() && b != b',')
}

/// RFC 5802 §5.1: `=2C` is a comma, `=3D` an equals sign, any other `=` an error.
fn saslname(text: &str) -> Result<String, ScramError> {
    let mut name = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('=') {
        name.push_str(before);
        let (character, after) = if let Some(after) = after.strip_prefix("2C") {
            (',', after)
        } else if let Some(after) = after.strip_prefix("3D") {
            ('=', after)
        } else {
            return Err(ScramError::Malformed);
        };
        name.push(character);
        rest = after;
    }
    name.push_str(rest);
    if name.is_empty() { Err(ScramError::Malformed) } else { Ok(name) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verifier<M: Mac + KeyInit, D: Digest>(password: &str, salt: &[u8], iterations: u32) -> ScramVerifier {
        let mac = |key: &[u8], text: &[u8]| {
            let mut mac = <M as KeyInit>::new_from_slice(key).unwrap();
            mac.update(text);
            mac.finalize().into_bytes().to_vec()
        };
        let mut block = mac(password.as_bytes(), &[salt, &[0, 0, 0, 1]].concat());
        let mut salted = block.clone();
        for _ in 1..iterations {
            block = mac(password.as_bytes(), &block);
            salted.iter_mut().zip(&block).for_each(|(a, b)| *a ^= b);
        }
        ScramVerifier {
            iterations,
            salt: salt.into(),
            stored_key: D::digest(mac(&salted, b"Client Key")).as_slice().into(),
            server_key: mac(&salted, b"Server Key").into(),
        }
    }

    #[test]
    fn rfc_5802_section_5_sha_1() {
        let salt = STANDARD.decode("QSXCR+Q6sek8bf92").unwrap();
        let verifier = verifier::<HmacSha1, Sha1>("pencil", &salt, 4096);
        let first = ClientFirst::parse("n,,n=user,r=fyko+d2lbbFgONRv9qkxdawL").unwrap();
        assert_eq!((&*first.name, &first.authzid), ("user", &None));
        let (challenge, message) = Challenge::new(&first, ScramHash::Sha1, verifier, "3rfcNHYJY1ZVvWVs7j");
        assert_eq!(message, "r=fyko+d2lbbFgONRv9qkxdawL3rfcNHYJY1ZVvWVs7j,s=QSXCR+Q6sek8bf92,i=4096");
        let last = "c=biws,r=fyko+d2lbbFgONRv9qkxdawL3rfcNHYJY1ZVvWVs7j,p=v0X8v3Bz2T0CJGbJQyF0X+HI4Ts=";
        assert_eq!(challenge.finish(last).as_deref(), Ok("v=rmF9pqV8S7suAoZWja4dJRkFsKQ="));
    }

    #[test]
    fn rfc_7677_section_3_sha_256() {
        let salt = STANDARD.decode("W22ZaJ0SNY7soEsUEjb6gQ==").unwrap();
        let verifier = verifier::<HmacSha256, Sha256>("pencil", &salt, 4096);
        let first = ClientFirst::parse("n,,n=user,r=rOprNGfwEbeRWgbNEkqO").unwrap();
        let nonce = "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0";
        let (challenge, message) = Challenge::new(&first, ScramHash::Sha256, verifier, nonce);
        assert_eq!(message, format!("r=rOprNGfwEbeRWgbNEkqO{nonce},s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"));
        let last = "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=";
        let expected = "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=";
        assert_eq!(challenge.finish(last).as_deref(), Ok(expected));
        for wrong in [
            last.replace("p=dHzb", "p=eHzb"),
            last.replace("c=biws", "c=eSws"),
            last.replace("r=rOpr", "r=sOpr"),
            last.replace("p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=", "p=AAAA"),
        ] {
            assert_eq!(challenge.finish(&wrong), Err(ScramError::Rejected), "{wrong}");
        }
    }

    #[test]
    fn x2b_the_example_exchange() {
        let salt: Vec<u8> = (0x30..=0x3f).collect();
        let verifier = verifier::<HmacSha256, Sha256>("s3cret-1", &salt, 4096);
        let first = ClientFirst::parse("n,,n=dev1,r=q8Zt1mCwR0vJ7xYb").unwrap();
        let (challenge, message) = Challenge::new(&first, ScramHash::Sha256, verifier, "S4kPd2LhUo9eNfTg");
        assert_eq!(message, "r=q8Zt1mCwR0vJ7xYbS4kPd2LhUo9eNfTg,s=MDEyMzQ1Njc4OTo7PD0+Pw==,i=4096");
        let last = "c=biws,r=q8Zt1mCwR0vJ7xYbS4kPd2LhUo9eNfTg,p=akL7CPC96jLyV/dfxAqHoqk5gCXxoLvYkdekAlP4qkM=";
        let expected = "v=YBnQSZVWfy0mRpblwF7YHwEwDvQ6VbUB7eNt8XAirv0=";
        assert_eq!(challenge.finish(last).as_deref(), Ok(expected));
    }

    #[test]
    fn names_are_unescaped_and_malformed_messages_are_refused() {
        let first = ClientFirst::parse("y,a=a=2Cb,n=c=3Dd,r=x,ext=1").unwrap();
        assert_eq!((&*first.name, first.authzid.as_deref()), ("c=d", Some("a,b")));
        for bad in [
            "",
            "n",
            "n,,",
            "n,,n=",
            "n,,n=u",
            "n,,n=u,r=",
            "n,,r=x,n=u",
            "p=tls-unique,,n=u,r=x",
            "n,x,n=u,r=x",
            "n,,n=u=2c,r=x",
            "n,,m=1,n=u,r=x",
            "n,,n=u,r=a b",
            "n,,n=u=,r=x",
        ] {
            assert_eq!(ClientFirst::parse(bad), Err(ScramError::Malformed), "{bad:?}");
        }
    }
}
