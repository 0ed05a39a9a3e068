//! The relay's side of one channel: what to send next, within the credit that the device gave. No I/O, no clock.

use super::Digest;

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Nothing until the device says something.
    Wait,
    /// Send the header.
    Header,
    /// Read from `from` on, at most `max` bytes, and send them. If there are none left, the data ends here.
    Data {
        /// The offset.
        from: u64,
        /// How many bytes at most.
        max: usize,
    },
    /// Say that this was all.
    End,
    /// All was said; what is left is the device's.
    Rest,
}

/// The device broke the rules of credit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CreditError {
    /// The first credit on a channel does not say from where.
    #[error("the first credit says no offset")]
    NoOffset,
    /// A later one does.
    #[error("a credit after the first one says an offset")]
    SecondOffset,
    /// The offset is beyond the end of the data.
    #[error("the offset {from} is beyond the end, which is at {end}")]
    BeyondEnd {
        /// The offset.
        from: u64,
        /// Where the data ends.
        end: u64,
    },
}

/// The sending side of one channel.
#[derive(Debug, Clone, Default)]
pub struct Sending {
    /// The offset of the next byte; unknown before the first credit.
    position: Option<u64>,
    /// The offset up to which the device can take data.
    limit: u64,
    header: bool,
    /// Set once the source has no more.
    end: Option<Digest>,
    ended: bool,
}

impl Sending {
    /// The most bytes in one piece: a word on the same link never waits behind more.
    pub const PIECE: usize = 16 * 1024;

    /// A channel on which nothing was said yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// The device gives credit.
    ///
    /// # Errors
    /// [`CreditError`]: the channel is to be closed.
    pub fn credit(&mut self, from: Option<u64>, bytes: u64) -> Result<(), CreditError> {
        match (self.position, from) {
            (None, None) => return Err(CreditError::NoOffset),
            (Some(_), Some(_)) => return Err(CreditError::SecondOffset),
            (None, Some(from)) => {
                self.position = Some(from);
                self.limit = from;
            }
            (Some(_), None) => {}
        }
        self.limit = self.limit.saturating_add(bytes);
        Ok(())
    }

    /// What to do next.
    pub fn next(&self) -> Step {
        let Some(position) = self.position else { return Step::Wait };
        if !self.header {
            return Step::Header;
        }
        match self.end {
            Some(_) if self.ended => Step::Rest,
            Some(_) => Step::End,
            // Whether there is more is asked even without credit: a device that has all is told so at once.
            None => {
                let credit = usize::try_from(self.limit - position).unwrap_or(usize::MAX);
                Step::Data { from: position, max: credit.min(Self::PIECE) }
            }
        }
    }

    /// The header was sent.
    pub const fn header_sent(&mut self) {
        self.header = true;
    }

    /// So many bytes were sent.
    pub fn data_sent(&mut self, bytes: usize) {
        if let Some(position) = &mut self.position {
            *position = (*position + bytes as u64).min(self.limit);
        }
    }

    /// The source has no more than this.
    ///
    /// # Errors
    /// [`CreditError::BeyondEnd`] if the device asked for more.
    pub fn source_ended(&mut self, end: Digest) -> Result<(), CreditError> {
        if let Some(from) = self.position
            && from > end.bytes
        {
            return Err(CreditError::BeyondEnd { from, end: end.bytes });
        }
        self.end = Some(end);
        Ok(())
    }

    /// The end was said.
    pub const fn end_sent(&mut self) {
        self.ended = true;
    }

    /// The offset of the next byte, once the device said from where.
    pub const fn position(&self) -> Option<u64> {
        self.position
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const END: Digest = Digest { bytes: 100, sha256: [7; 32] };

    #[test]
    fn nothing_is_said_before_the_device_says_from_where() {
        let mut sending = Sending::new();
        assert_eq!(sending.next(), Step::Wait);
        assert_eq!(sending.credit(None, 10), Err(CreditError::NoOffset));
        sending.credit(Some(40), 10).unwrap();
        assert_eq!(sending.next(), Step::Header);
        sending.header_sent();
        assert_eq!(sending.next(), Step::Data { from: 40, max: 10 });
        assert_eq!(sending.credit(Some(41), 10), Err(CreditError::SecondOffset));
    }

    #[test]
    fn a_device_that_has_all_is_told_the_end_without_credit() {
        let mut sending = Sending::new();
        sending.credit(Some(100), 0).unwrap();
        sending.header_sent();
        assert_eq!(sending.next(), Step::Data { from: 100, max: 0 });
        sending.source_ended(END).unwrap();
        assert_eq!(sending.next(), Step::End);
        sending.end_sent();
        assert_eq!(sending.next(), Step::Rest);
    }

    #[test]
    fn an_offset_beyond_the_end_is_an_error() {
        let mut sending = Sending::new();
        sending.credit(Some(101), 10).unwrap();
        assert_eq!(sending.source_ended(END), Err(CreditError::BeyondEnd { from: 101, end: 100 }));
    }

    proptest! {
        #[test]
        fn no_byte_goes_beyond_the_credit(from in 0u64..1_000, credits in proptest::collection::vec(0u64..50_000, 1..20)) {
            let mut sending = Sending::new();
            let (mut given, mut sent) = (0, 0);
            for (n, credit) in credits.into_iter().enumerate() {
                sending.credit((n == 0).then_some(from), credit).unwrap();
                sending.header_sent();
                given += credit;
                while let Step::Data { from: at, max } = sending.next() {
                    prop_assert_eq!(at, from + sent);
                    prop_assert!(max <= Sending::PIECE);
                    if max == 0 {
                        break;
                    }
                    sending.data_sent(max);
                    sent += max as u64;
                }
                prop_assert_eq!(sent, given);
            }
        }
    }
}
