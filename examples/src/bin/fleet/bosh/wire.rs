//! The device's side of BOSH and SCRAM as bytes in and bytes out, with nothing else: no recovery, no time-outs, no XML
//! parser. Lean enough that the server is what is measured.

use data_encoding::BASE64;
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};

use crate::{
    enrol::Credential,
    xml::{attribute, text},
};

const BODY: &str = "xmlns='http://jabber.org/protocol/httpbind'";
const SASL: &str = "xmlns='urn:ietf:params:xml:ns:xmpp-sasl'";

/// Salted passwords cost two milliseconds each; a device that logs in again has the same salt.
#[derive(Debug, Clone, Default)]
struct Salted {
    salt: Vec<u8>,
    rounds: u32,
    password: [u8; 32],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Create,
    Challenge,
    Success,
    Restart,
    Bind,
    Ready,
}

/// A device's session, from log-in to the answers that it gives.
#[derive(Debug, Clone)]
pub(crate) struct Device {
    id: String,
    token: String,
    domain: String,
    rid: u64,
    sid: String,
    stage: Stage,
    client_first: String,
    server_signature: String,
    salted: Salted,
}

impl Device {
    pub(crate) fn new(credential: &Credential, domain: &str) -> Self {
        let Credential { id, token } = credential.clone();
        Self {
            id,
            token,
            domain: domain.into(),
            rid: 0,
            sid: String::new(),
            stage: Stage::Create,
            client_first: String::new(),
            server_signature: String::new(),
            salted: Salted::default(),
        }
    }

    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    pub(crate) fn token(&self) -> &str {
        &self.token
    }

    /// The first `<body/>` of a new session; `random` makes its RID and nonce.
    pub(crate) fn create(&mut self, random: [u8; 16]) -> String {
        let [a, b, c, d, e, f, ..] = random;
        self.rid = u64::from_be_bytes([0, 0, a, b, c, d, e, f]);
        self.stage = Stage::Create;
        self.client_first = format!("n={},r={}", self.id, BASE64.encode(&random));
        format!(
            "<body rid='{}' to='{}' wait='60' hold='1' ver='1.11' xml:lang='en' xmpp:version='1.0' {BODY} \
             xmlns:xmpp='urn:xmpp:xbosh'/>",
            self.rid, self.domain
        )
    }

    /// A further `<body/>` with `payload`.
    pub(crate) fn body(&mut self, payload: &str) -> String {
        self.rid += 1;
        if payload.is_empty() {
            return format!("<body rid='{}' sid='{}' {BODY}/>", self.rid, self.sid);
        }
        format!("<body rid='{}' sid='{}' {BODY}>{payload}</body>", self.rid, self.sid)
    }

    /// Takes the answer to the last `<body/>` of the log-in and gives the next one; `None` once logged in.
    pub(crate) fn advance(&mut self, answer: &str) -> Result<Option<String>, String> {
        let (id, stage) = (self.id.clone(), self.stage);
        let unexpected = || format!("{id} in {stage:?}: unexpected {answer}");
        let next = match self.stage {
            Stage::Create => {
                self.sid = attribute(answer, "sid").ok_or_else(unexpected)?.into();
                self.stage = Stage::Challenge;
                let first = BASE64.encode(format!("n,,{}", self.client_first).as_bytes());
                self.body(&format!("<auth {SASL} mechanism='SCRAM-SHA-256'>{first}</auth>"))
            }
            Stage::Challenge => {
                let challenge = text(answer, "challenge").ok_or_else(unexpected)?;
                let challenge = decode(challenge).ok_or_else(unexpected)?;
                let proof = self.proof(&challenge).ok_or_else(unexpected)?;
                self.stage = Stage::Success;
                self.body(&format!("<response {SASL}>{proof}</response>"))
            }
            Stage::Success => {
                let success = text(answer, "success").and_then(decode).ok_or_else(unexpected)?;
                if success != self.server_signature {
                    return Err(format!("{}: the relay does not know the token either", self.id));
                }
                self.stage = Stage::Restart;
                self.rid += 1;
                format!(
                    "<body rid='{}' sid='{}' to='{}' xml:lang='en' xmpp:restart='true' {BODY} \
                     xmlns:xmpp='urn:xmpp:xbosh'/>",
                    self.rid, self.sid, self.domain
                )
            }
            Stage::Restart => {
                if !answer.contains("urn:ietf:params:xml:ns:xmpp-bind") {
                    return Err(unexpected());
                }
                self.stage = Stage::Bind;
                self.body(
                    "<iq id='bind' type='set' xmlns='jabber:client'>\
                     <bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'/></iq>",
                )
            }
            Stage::Bind => {
                text(answer, "jid").ok_or_else(unexpected)?;
                self.stage = Stage::Ready;
                return Ok(None);
            }
            Stage::Ready => return Ok(None),
        };
        Ok(Some(next))
    }

    /// RFC 5802 §3, with SHA-256.
    fn proof(&mut self, challenge: &str) -> Option<String> {
        let field = |name: &str| challenge.split(',').find_map(|field| field.strip_prefix(name));
        let (nonce, salt, rounds) =
            (field("r=")?, BASE64.decode(field("s=")?.as_bytes()).ok()?, field("i=")?.parse::<u32>().ok()?);
        if self.salted.salt != salt || self.salted.rounds != rounds {
            let mut password = [0; 32];
            pbkdf2::pbkdf2_hmac::<Sha256>(self.token.as_bytes(), &salt, rounds, &mut password);
            self.salted = Salted { salt, rounds, password };
        }
        let client_key = mac(&self.salted.password, b"Client Key");
        let stored_key: [u8; 32] = Sha256::digest(client_key).into();
        let last = format!("c=biws,r={nonce}");
        let message = format!("{},{challenge},{last}", self.client_first);
        let signature = mac(&stored_key, message.as_bytes());
        let proof: Vec<u8> =
            client_key.iter().zip(signature).map(|(key, signature)| key ^ signature).collect();
        let server_key = mac(&self.salted.password, b"Server Key");
        self.server_signature = format!("v={}", BASE64.encode(&mac(&server_key, message.as_bytes())));
        Some(BASE64.encode(format!("{last},p={}", BASE64.encode(&proof)).as_bytes()))
    }
}

fn mac(key: &[u8; 32], message: &[u8]) -> [u8; 32] {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of any length");
    mac.update(message);
    mac.finalize().into_bytes().into()
}

fn decode(base64: &str) -> Option<String> {
    String::from_utf8(BASE64.decode(base64.as_bytes()).ok()?).ok()
}

/// The iq stanzas of a `<body/>`, each from behind its name up to the next one.
pub(crate) fn iqs(xml: &str) -> impl Iterator<Item = &str> {
    xml.split("<iq").skip(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::enrol::Credential;

    #[test]
    fn scram_proof_is_that_of_rfc_7677() {
        let credential = Credential { id: "user".into(), token: "pencil".into() };
        let mut device = Device::new(&credential, "localhost");
        device.client_first = "n=user,r=rOprNGfwEbeRWgbNEkqO".into();
        let proof = device
            .proof("r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096")
            .unwrap();
        assert_eq!(
            decode(&proof).unwrap(),
            "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="
        );
        assert_eq!(device.server_signature, "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=");
    }

    #[test]
    fn each_stanza_of_a_body_is_found() {
        let xml = "<body sid='b'><iq id='c'><x/></iq><iq id='d'/></body>";
        assert_eq!(iqs(xml).map(|iq| attribute(iq, "id")).collect::<Vec<_>>(), [Some("c"), Some("d")]);
    }
}
