//! What waits to be written, frame by frame. A control frame goes before all data that is not being written.

use std::collections::VecDeque;

use tungstenite::protocol::frame::coding::{Control, Data, OpCode};

use super::frame::{close_payload, encode};

/// How much of a message goes into one frame: after each, a control frame may go.
const FRAME: usize = 16 * 1024;
/// How much is put into one write.
const WRITE: usize = 16 * 1024;
/// How much waits for something else to go with.
const PATIENT: usize = 1024;

/// Makes the mask of a frame (RFC 6455 §5.3): fresh and unpredictable each time.
pub type Masks = fn() -> [u8; 4];

#[derive(Debug, Default)]
pub(super) struct Outgoing {
    masks: Option<Masks>,
    /// What is being written, and how far that is.
    current: Vec<u8>,
    at: usize,
    ping: Vec<u8>,
    pong: Vec<u8>,
    /// The first frame of data, which in most cases is the only one, and the others.
    first: Vec<u8>,
    data: VecDeque<Vec<u8>>,
    /// What is first are whole messages that go with the next frame there is, and do not count until then: nothing else waits.
    patient: bool,
    close: Vec<u8>,
    /// Bytes in all that are not yet written.
    bytes: usize,
}

impl Outgoing {
    pub(super) fn new(masks: Option<Masks>) -> Self {
        Self { masks, ..Self::default() }
    }

    pub(super) fn len(&self) -> usize {
        self.bytes
    }

    /// The same, with what does not count yet.
    pub(super) fn held(&self) -> usize {
        self.bytes + if self.patient { self.first.len() } else { 0 }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Whether messages wait for something else to go with.
    pub(super) const fn is_patient(&self) -> bool {
        self.patient
    }

    fn frame(&self, opcode: OpCode, last: bool, payload: &[u8]) -> Vec<u8> {
        let mut frame = Vec::new();
        encode(&mut frame, opcode, last, payload, self.masks.map(|mask| mask()));
        frame
    }

    pub(super) fn text(&mut self, text: &str) {
        self.message(Data::Text, text.as_bytes());
    }

    /// A message that goes with the next frame there is: with what waits, if something does.
    pub(super) fn text_patiently(&mut self, text: &str) {
        if !self.is_empty() || self.first.len() + text.len() > PATIENT {
            return self.text(text);
        }
        let frame = self.frame(OpCode::Data(Data::Text), true, text.as_bytes());
        append(&mut self.first, frame);
        self.patient = true;
    }

    /// What waits for something else to go with waits no longer.
    pub(super) fn hurry(&mut self) {
        if std::mem::take(&mut self.patient) {
            self.bytes += self.first.len();
        }
    }

    pub(super) fn binary(&mut self, bytes: &[u8]) {
        self.message(Data::Binary, bytes);
    }

    fn enqueue(&mut self, frame: Vec<u8>) {
        self.bytes += frame.len();
        if self.first.is_empty() && self.data.is_empty() {
            self.first = frame;
        } else {
            self.data.push_back(frame);
        }
    }

    fn message(&mut self, kind: Data, bytes: &[u8]) {
        self.hurry();
        let mut opcode = kind;
        let mut rest = bytes;
        loop {
            let (chunk, after) = rest.split_at(rest.len().min(FRAME));
            let frame = self.frame(OpCode::Data(opcode), after.is_empty(), chunk);
            self.enqueue(frame);
            if after.is_empty() {
                break;
            }
            (opcode, rest) = (Data::Continue, after);
        }
    }

    pub(super) fn ping(&mut self, payload: &[u8]) {
        self.hurry();
        self.bytes -= self.ping.len();
        self.ping = self.frame(OpCode::Control(Control::Ping), true, payload);
        self.bytes += self.ping.len();
    }

    /// RFC 6455 §5.5.3: only the latest ping needs an answer.
    pub(super) fn pong(&mut self, payload: &[u8]) {
        self.hurry();
        self.bytes -= self.pong.len();
        self.pong = self.frame(OpCode::Control(Control::Pong), true, payload);
        self.bytes += self.pong.len();
    }

    /// The last frame: goes when all else has gone. Without a code it has no payload.
    pub(super) fn close(&mut self, code: Option<u16>, words: &str) {
        self.hurry();
        let payload = code.map(|code| close_payload(code, words)).unwrap_or_default();
        self.bytes -= self.close.len();
        self.close = self.frame(OpCode::Control(Control::Close), true, &payload);
        self.bytes += self.close.len();
    }

    /// Forgets data that is not being written.
    pub(super) fn drop_data(&mut self) {
        // A message whose first frames are gone can only be given up together with the connection, as here.
        if self.patient {
            return;
        }
        let dropped: usize = self.data.iter().map(Vec::len).sum();
        self.bytes -= dropped + self.first.len();
        (self.first, self.data) = (Vec::new(), VecDeque::new());
    }

    /// What is to be written next; empty if there is nothing.
    pub(super) fn chunk(&mut self) -> &[u8] {
        if self.at == self.current.len() {
            self.refill();
        }
        &self.current[self.at..]
    }

    pub(super) fn advance(&mut self, written: usize) {
        let written = written.min(self.current.len() - self.at);
        self.at += written;
        self.bytes -= written;
        if self.at == self.current.len() {
            // An idle session keeps no buffer.
            (self.current, self.at) = (Vec::new(), 0);
        }
    }

    fn refill(&mut self) {
        (self.current, self.at) = (Vec::new(), 0);
        for control in [&mut self.pong, &mut self.ping] {
            append(&mut self.current, std::mem::take(control));
        }
        if self.patient {
            return;
        }
        while !self.first.is_empty()
            && (self.current.is_empty() || self.current.len() + self.first.len() <= WRITE)
        {
            let next = self.data.pop_front().unwrap_or_default();
            append(&mut self.current, std::mem::replace(&mut self.first, next));
        }
        if self.first.is_empty() {
            self.data = VecDeque::new();
            append(&mut self.current, std::mem::take(&mut self.close));
        }
    }
}

/// Appends without copying where there is nothing to append to.
fn append(to: &mut Vec<u8>, some: Vec<u8>) {
    if to.is_empty() {
        *to = some;
    } else {
        to.extend_from_slice(&some);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::frame::{Decoder, FrameLimits, Received, Side};

    fn read(outgoing: &mut Outgoing, at_a_time: usize) -> Vec<Received> {
        let mut decoder = Decoder::new(Side::Client, FrameLimits::default());
        let mut received = Vec::new();
        while !outgoing.is_empty() {
            let mut bytes = outgoing.chunk();
            bytes = &bytes[..at_a_time.min(bytes.len())];
            let written = bytes.len();
            while let Some(one) = decoder.next(&mut bytes, true).unwrap() {
                received.push(one);
            }
            outgoing.advance(written);
        }
        received
    }

    #[test]
    fn b5_a_control_frame_waits_for_one_frame_of_a_message_and_not_for_the_message() {
        let mut outgoing = Outgoing::new(None);
        let long = "x".repeat(200_000);
        outgoing.text(&long);
        let first = outgoing.chunk().len();
        assert!(first <= FRAME + 14, "{first} bytes at once");
        outgoing.ping(b"1");
        outgoing.pong(b"2");
        let received = read(&mut outgoing, 1000);
        assert_eq!(
            received,
            [Received::Pong(b"2".into()), Received::Ping(b"1".into()), Received::Text(long.into_bytes())]
        );
    }

    #[test]
    fn l1_of_pings_that_wait_only_the_latest_is_answered() {
        let mut outgoing = Outgoing::new(None);
        for ping in 0..100u8 {
            outgoing.pong(&[ping]);
        }
        assert_eq!(read(&mut outgoing, 7), [Received::Pong(vec![99])]);
    }

    #[test]
    fn c1_the_close_frame_goes_last() {
        let mut outgoing = Outgoing::new(None);
        outgoing.text("a");
        outgoing.close(Some(1000), "");
        outgoing.text("b");
        let received = read(&mut outgoing, 1);
        assert_eq!(received.last(), Some(&Received::Close(Some(1000))));
        assert_eq!(received.len(), 3);
    }

    fn texts(received: &[Received]) -> Vec<&str> {
        let mut texts = Vec::new();
        for received in received {
            if let Received::Text(text) = received {
                texts.push(std::str::from_utf8(text).unwrap());
            }
        }
        texts
    }

    #[test]
    fn what_is_patient_goes_with_the_next_frame_in_one_write_and_in_order() {
        let company: [fn(&mut Outgoing); 5] = [
            |outgoing| outgoing.text("c"),
            |outgoing| outgoing.ping(b"1"),
            |outgoing| outgoing.pong(b"1"),
            |outgoing| outgoing.close(Some(1000), ""),
            Outgoing::hurry,
        ];
        for goes_with in company {
            let mut outgoing = Outgoing::new(None);
            outgoing.text_patiently("a");
            outgoing.text_patiently("b");
            assert!(outgoing.is_empty() && outgoing.is_patient() && outgoing.chunk().is_empty());
            goes_with(&mut outgoing);
            assert!(!outgoing.is_patient());
            assert_eq!(outgoing.chunk().len(), outgoing.len());
            let received = read(&mut outgoing, 1000);
            assert_eq!(texts(&received)[..2], ["a", "b"], "{received:?}");
        }
    }

    #[test]
    fn nothing_is_patient_that_has_company_or_is_much() {
        let mut outgoing = Outgoing::new(None);
        outgoing.text("a");
        outgoing.text_patiently("b");
        assert!(!outgoing.is_patient());
        assert_eq!(texts(&read(&mut outgoing, 1)), ["a", "b"]);
        let long = "x".repeat(PATIENT / 2);
        outgoing.text_patiently(&long);
        assert!(outgoing.is_empty());
        outgoing.text_patiently(&long);
        assert_eq!(texts(&read(&mut outgoing, 100)), [&*long, &*long]);
    }

    #[test]
    fn an_idle_queue_keeps_no_buffer() {
        let mut outgoing = Outgoing::new(None);
        outgoing.text(&"x".repeat(100_000));
        read(&mut outgoing, 4096);
        assert_eq!((outgoing.len(), outgoing.current.capacity(), outgoing.data.capacity()), (0, 0, 0));
    }
}
