//! What two sides of many calls wrote down, and whether it fits together.
#![allow(dead_code, reason = "each test uses a part of it")]

use std::{
    collections::HashMap,
    hash::{DefaultHasher, Hash, Hasher},
};

/// One call: who asks whom, under a number of its own, and how many bytes go each way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Call {
    pub(crate) caller: u32,
    pub(crate) device: u32,
    pub(crate) nonce: u32,
    pub(crate) asking: usize,
    pub(crate) answering: usize,
}

/// Which way a body goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    Asking,
    Answering,
}

impl Call {
    /// The object that it names: the call itself, also where a body is too small to carry it.
    pub(crate) fn object(&self) -> String {
        format!("{}/{}/{}/{}/{}", self.caller, self.device, self.nonce, self.asking, self.answering)
    }

    /// The call that an object names.
    pub(crate) fn parse(object: &str) -> Option<Self> {
        let mut parts = object.split('/').map(|part| part.parse::<usize>().ok());
        let mut next = || parts.next().flatten();
        let (caller, device, nonce) = (next()? as u32, next()? as u32, next()? as u32);
        Some(Self { caller, device, nonce, asking: next()?, answering: next()? })
    }

    /// Its body: caller, device and number, then all 256 byte values, then more of them in an order of its own, cut
    /// to size.
    pub(crate) fn body(&self, way: Way) -> Vec<u8> {
        let size = if way == Way::Asking { self.asking } else { self.answering };
        let mut body = format!("{way:?} {} {} {}\n", self.caller, self.device, self.nonce).into_bytes();
        body.extend(0..=u8::MAX);
        let mut state =
            (u64::from(self.caller) << 40) ^ (u64::from(self.device) << 32) ^ u64::from(self.nonce);
        state = state.wrapping_mul(2) | 1;
        while body.len() < size {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            body.extend(state.to_le_bytes());
        }
        body.truncate(size);
        body
    }
}

/// A body in a log: its size and a hash of its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Seen {
    size: usize,
    hash: u64,
}

impl Seen {
    pub(crate) fn of(body: &[u8]) -> Self {
        let mut hasher = DefaultHasher::new();
        body.hash(&mut hasher);
        Self { size: body.len(), hash: hasher.finish() }
    }
}

/// A line of a service's log.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) call: Call,
    pub(crate) sent: Seen,
    pub(crate) status: u16,
    pub(crate) outcome: String,
    pub(crate) got: Seen,
}

/// A line of a device's log. `device` is who wrote it, whatever the call says.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Handled {
    pub(crate) device: u32,
    pub(crate) call: Call,
    pub(crate) got: Seen,
    pub(crate) gave: Seen,
}

/// Joins both logs. What is wrong, if anything is.
pub(crate) fn check(asked: &[Asked], handled: &[Handled]) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut at_device: HashMap<Call, Vec<&Handled>> = HashMap::new();
    for line in handled {
        at_device.entry(line.call).or_default().push(line);
    }
    let mut seen = HashMap::new();
    for line in asked {
        let Asked { call, sent, status, outcome, got } = line;
        if seen.insert(*call, ()).is_some() {
            wrong.push(format!("{call:?} was asked twice"));
        }
        if (*status, outcome.as_str()) != (200, "answered") {
            wrong.push(format!("{call:?} ended in {status} {outcome}"));
            continue;
        }
        match at_device.get(call).map(Vec::as_slice) {
            None => wrong.push(format!("{call:?} was answered by nobody")),
            Some([handled]) => {
                if handled.device != call.device {
                    wrong.push(format!("{call:?} was handled by device {}", handled.device));
                }
                if handled.got != *sent {
                    wrong.push(format!("{call:?} reached the device changed"));
                }
                if handled.gave != *got {
                    wrong.push(format!("{call:?} got another answer than the device gave"));
                }
                if *sent != Seen::of(&call.body(Way::Asking)) || *got != Seen::of(&call.body(Way::Answering))
                {
                    wrong.push(format!("{call:?} carried another call's body"));
                }
            }
            Some(more) => wrong.push(format!("{call:?} was handled {} times", more.len())),
        }
    }
    wrong.extend(
        at_device
            .keys()
            .filter(|call| !seen.contains_key(*call))
            .map(|call| format!("{call:?}: nobody asked")),
    );
    wrong
}

#[cfg(test)]
mod tests {
    use super::*;

    fn logs() -> (Vec<Asked>, Vec<Handled>) {
        (0..6)
            .map(|n| {
                let call = Call { caller: n, device: n % 2, nonce: n, asking: 300, answering: 4096 };
                let (sent, gave) = (Seen::of(&call.body(Way::Asking)), Seen::of(&call.body(Way::Answering)));
                let asked = Asked { call, sent, status: 200, outcome: "answered".into(), got: gave };
                (asked, Handled { device: call.device, call, got: sent, gave })
            })
            .unzip()
    }

    fn found(change: impl FnOnce(&mut Vec<Asked>, &mut Vec<Handled>)) -> String {
        let (mut asked, mut handled) = logs();
        change(&mut asked, &mut handled);
        check(&asked, &handled).join("; ")
    }

    #[test]
    fn the_checker_finds_each_fault_that_it_is_there_for() {
        assert_eq!(found(|_, _| {}), "");
        let crossed = found(|asked, _| {
            let got = asked[0].got;
            asked[0].got = asked[1].got;
            asked[1].got = got;
        });
        assert_eq!(crossed.matches("another answer").count(), 2, "{crossed}");
        assert!(found(|_, handled| handled.truncate(5)).contains("answered by nobody"));
        assert!(found(|_, handled| handled.push(handled[0])).contains("handled 2 times"));
        assert!(found(|asked, _| asked.truncate(5)).contains("nobody asked"));
        assert!(found(|_, handled| handled[0].device = 1).contains("handled by device 1"));
        assert!(found(|_, handled| handled[0].got = Seen::of(b"")).contains("changed"));
        assert!(found(|asked, _| asked[0].status = 504).contains("ended in 504"));
        let mixed = found(|asked, handled| {
            asked[0].got = asked[1].got;
            handled[0].gave = asked[1].got;
        });
        assert!(mixed.contains("another call's body"), "{mixed}");
    }

    #[test]
    fn a_body_carries_its_call_and_every_byte_value() {
        let call = Call { caller: 49, device: 19, nonce: 19_999, asking: 4096, answering: 1 };
        let body = call.body(Way::Asking);
        assert_eq!(body.len(), 4096);
        assert!(body.starts_with(b"Asking 49 19 19999\n"));
        assert!((0..=u8::MAX).all(|byte| body.contains(&byte)));
        assert_eq!(call.body(Way::Answering).len(), 1);
        assert_eq!(Call::parse(&call.object()), Some(call));
        assert_eq!(Call::parse("1/2"), None);
    }
}
