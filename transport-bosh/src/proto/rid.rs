//! Request IDs, and the answers kept for those that may be asked again.

use std::{collections::VecDeque, fmt, time::Instant};

use bytes::Bytes;

use crate::wire::body::{self, AnswerTag};

/// A BOSH request ID: 53 bits, because JavaScript clients count in doubles (XEP-0124 §14.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rid(u64);

impl Rid {
    /// The largest.
    pub const MAX: Self = Self((1 << 53) - 1);

    /// `number`, if it is none too large.
    pub const fn new(number: u64) -> Option<Self> {
        if number <= Self::MAX.0 { Some(Self(number)) } else { None }
    }

    /// Reads plain decimal digits: no sign, no blanks, at most 2⁵³-1.
    pub fn parse(text: &str) -> Option<Self> {
        decimal(text).and_then(Self::new)
    }

    /// The number.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The one after it. Beyond [`Rid::MAX`] there is none that a client could send, which is what matters.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }

    /// The one `count` later.
    #[must_use]
    pub const fn plus(self, count: u64) -> Self {
        Self(self.0.saturating_add(count))
    }

    /// The one `count` earlier; 0 if there is none.
    #[must_use]
    pub const fn minus(self, count: u64) -> Self {
        Self(self.0.saturating_sub(count))
    }
}

impl fmt::Display for Rid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// Plain decimal digits as a number; more than fit are the largest there is, so that they clamp instead of wrapping.
pub(crate) fn decimal(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.len() <= 64 && text.bytes().all(|b| b.is_ascii_digit());
    digits.then(|| text.parse().unwrap_or(u64::MAX))
}

/// An answer that was given.
#[derive(Debug)]
pub(crate) struct Answered {
    pub(crate) rid: Rid,
    pub(crate) body: Bytes,
    pub(crate) at: Instant,
    /// How many pushes had left when it was given, it included.
    pub(crate) pushed: u64,
    /// How often it was asked for again.
    pub(crate) repeats: u8,
    /// Whether the client was told that it seems to have missed it.
    pub(crate) reported: bool,
    /// Whether the client said that it has it.
    pub(crate) acknowledged: bool,
}

/// The most recent answers, so that one lost on the way can be given again (XEP-0124 §14.3): the last few, and with
/// acknowledgements all that the client has not said it has, within bounds.
#[derive(Debug)]
pub(crate) struct Replay {
    answers: VecDeque<Answered>,
    depth: usize,
    acks: bool,
}

/// Answers kept for a client that acknowledges nothing although it said it would.
const MAX_UNACKNOWLEDGED: usize = 64;
/// Bytes of them, at which the older ones go.
const MAX_UNACKNOWLEDGED_BYTES: usize = 1024 * 1024;
/// An answer that the client has is kept no longer if it is larger than this: only a request that was repeated on the
/// way can still ask for it, and nobody reads what that gets.
const LARGE: usize = 512;

impl Replay {
    pub(crate) const fn new(depth: usize, acks: bool) -> Self {
        Self { answers: VecDeque::new(), depth, acks }
    }

    pub(crate) fn store(&mut self, answer: Answered) {
        if self.answers.capacity() == 0 {
            // Just what it takes, and no doubling: there are as many of these as there are devices.
            self.answers.reserve_exact(self.depth + 1);
        }
        self.answers.push_back(answer);
        while self.answers.len() > self.depth && self.may_drop_first() {
            self.answers.pop_front();
        }
    }

    fn may_drop_first(&self) -> bool {
        !self.acks
            || self.answers.front().is_some_and(|first| first.acknowledged)
            || self.answers.len() > MAX_UNACKNOWLEDGED
            || self.bytes() > MAX_UNACKNOWLEDGED_BYTES
    }

    pub(crate) fn find(&mut self, rid: Rid) -> Option<&mut Answered> {
        self.answers.iter_mut().find(|answer| answer.rid == rid)
    }

    /// How many pushes had left with the answers up to `rid`.
    pub(crate) fn pushed_up_to(&self, rid: Rid) -> Option<u64> {
        self.answers.iter().filter(|answer| answer.rid <= rid).map(|answer| answer.pushed).max()
    }

    /// The client has the answers up to `rid`.
    pub(crate) fn acknowledge(&mut self, rid: Rid) {
        for answer in self.answers.iter_mut().filter(|answer| answer.rid <= rid) {
            answer.acknowledged = true;
            if answer.body.len() > LARGE {
                answer.body = body::answer(&AnswerTag::default(), &[]);
            }
        }
        while self.answers.len() > self.depth && self.may_drop_first() {
            self.answers.pop_front();
        }
    }

    pub(crate) fn bytes(&self) -> usize {
        self.answers.iter().map(|answer| answer.body.len()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn i1_w7_a_rid_is_plain_digits_of_53_bits() {
        assert_eq!(Rid::parse("9007199254740991"), Some(Rid::MAX));
        assert_eq!(Rid::parse("0042").map(Rid::get), Some(42));
        for bad in
            ["", "9007199254740992", "18446744073709551616", "-1", "+1", " 1", "1 ", "1.0", "1e3", "0x1", "٣"]
        {
            assert_eq!(Rid::parse(bad), None, "{bad:?} was taken");
        }
    }

    #[test]
    fn w7_numbers_too_large_clamp_and_do_not_wrap() {
        assert_eq!(decimal("4294967297"), Some(4_294_967_297));
        assert_eq!(decimal("99999999999999999999"), Some(u64::MAX));
        assert_eq!(decimal(&"9".repeat(65)), None);
    }
}
