//! The device's side of BOSH and SCRAM as bytes in and bytes out, with nothing else: no recovery, no time-outs, no XML
//! parser. Lean enough that the server is what is measured.

use data_encoding::BASE64;
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};

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
    pub(crate) fn new(id: &str, token: &str, domain: &str) -> Self {
        Self {
            id: id.into(),
            token: token.into(),
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

/// The value of the first attribute `name` in `xml`.
pub(crate) fn attribute<'a>(xml: &'a str, name: &str) -> Option<&'a str> {
    let mut rest = xml;
    loop {
        let at = rest.find(name)?;
        let before = rest[..at].chars().next_back();
        rest = &rest[at + name.len()..];
        if before.is_some_and(char::is_whitespace)
            && let Some(value) = rest.strip_prefix('=')
        {
            let quote = value.chars().next().filter(|quote| matches!(quote, '\'' | '"'))?;
            return value[1..].split(quote).next();
        }
    }
}

/// The text of the first element `name` in `xml`.
pub(crate) fn text<'a>(xml: &'a str, name: &str) -> Option<&'a str> {
    let begin = xml.find(&format!("<{name}"))?;
    let rest = &xml[begin..];
    let rest = &rest[rest.find('>')? + 1..];
    Some(&rest[..rest.find('<')?])
}

/// The iq stanzas of a `<body/>`, each from behind its name up to the next one.
pub(crate) fn iqs(xml: &str) -> impl Iterator<Item = &str> {
    xml.split("<iq").skip(1)
}

/// An HTTP/1.1 request with a length.
pub(crate) fn request(head: &str, body: &str) -> String {
    format!("{head}\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

/// An answer that is whole in a buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: usize,
    pub(crate) whole: usize,
}

/// The answer at the beginning of `buffer`; `None` if more bytes are needed.
pub(crate) fn answer(buffer: &[u8]) -> Result<Option<Answer>, String> {
    let Some(end) = buffer.windows(4).position(|window| window == b"\r\n\r\n") else { return Ok(None) };
    let head = std::str::from_utf8(&buffer[..end]).map_err(|error| error.to_string())?;
    let status = head
        .get(9..12)
        .and_then(|status| status.parse().ok())
        .ok_or_else(|| format!("not HTTP/1.1: {head}"))?;
    let length = head
        .lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .map_or(Ok(0), |(_, length)| length.trim().parse::<usize>())
        .map_err(|error| format!("{error}: {head}"))?;
    let whole = end + 4 + length;
    Ok((buffer.len() >= whole).then_some(Answer { status, head: end + 4, whole }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scram_proof_is_that_of_rfc_7677() {
        let mut device = Device::new("user", "pencil", "localhost");
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
    fn attributes_are_found_by_whole_name_in_either_quote() {
        let xml = r#"<body grid='1' id="a" sid='b'><iq id='c'/></body>"#;
        assert_eq!(attribute(xml, "id"), Some("a"));
        assert_eq!(attribute(xml, "sid"), Some("b"));
        assert_eq!(attribute(xml, "rid"), None);
        assert_eq!(iqs(xml).map(|iq| attribute(iq, "id")).collect::<Vec<_>>(), [Some("c")]);
    }

    #[test]
    fn an_answer_is_taken_when_it_is_whole() {
        let bytes = b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nabcHTTP";
        assert_eq!(answer(&bytes[..20]), Ok(None));
        assert_eq!(answer(&bytes[..40]), Ok(None));
        assert_eq!(answer(bytes), Ok(Some(Answer { status: 200, head: 38, whole: 41 })));
        assert_eq!(
            answer(b"HTTP/1.1 204 No Content\r\n\r\n"),
            Ok(Some(Answer { status: 204, head: 27, whole: 27 }))
        );
    }
}
