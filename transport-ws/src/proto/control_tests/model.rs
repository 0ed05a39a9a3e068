//! Two machines back to back, against a plain model: two queues. Whatever the order of events, what one end pushes comes
//! out at the other, in order and once, and what one end closes with is what the other ends with.

use std::collections::VecDeque;

use proptest::prelude::*;

use super::*;

#[derive(Debug, Clone)]
enum Step {
    /// An end pushes: which, and how large a body.
    Push(bool, usize),
    /// Bytes move from an end to the other, so many at most.
    Carry(bool, usize),
    /// An end's owner has room or not.
    Room(bool, bool),
    Suspect,
    Pass(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (any::<bool>(), prop_oneof![0usize..50, 0usize..40_000]).prop_map(|(end, size)| Step::Push(end, size)),
        8 => (any::<bool>(), prop_oneof![1usize..40, 1usize..20_000]).prop_map(|(end, bytes)| Step::Carry(end, bytes)),
        1 => (any::<bool>(), any::<bool>()).prop_map(|(end, room)| Step::Room(end, room)),
        1 => Just(Step::Suspect),
        2 => (0u64..3_000).prop_map(Step::Pass),
    ]
}

struct Side {
    machine: Machine,
    /// Bytes on the way to it.
    wire: VecDeque<u8>,
    room: bool,
    got: Vec<RequestId>,
    ended: Option<EndReason>,
}

struct Pair {
    sides: [Side; 2],
    sent: [Vec<RequestId>; 2],
    now: Instant,
}

impl Pair {
    fn new() -> Self {
        let now = start();
        let side = |end, config| Side {
            machine: Machine::new(end, device(), config, now),
            wire: VecDeque::new(),
            room: true,
            got: Vec::new(),
            ended: None,
        };
        let mut relay = ControlConfig::relay();
        // What a model's steps do in no time at all, a peer does not.
        relay.messages = None;
        relay.controls = (1000, 1000);
        let mut device = ControlConfig::device();
        device.controls = (1000, 1000);
        Self {
            sides: [side(End::Relay, relay), side(End::Device(key), device)],
            sent: Default::default(),
            now,
        }
    }

    fn push(&mut self, at: usize, size: usize) {
        if !self.sides[at].machine.has_room() {
            return;
        }
        let number = self.sent[at].len();
        let envelope =
            if at == 0 { request(number, size, self.now + secs(60)) } else { response(number, size) };
        self.sides[at].machine.push(&envelope, self.now);
        self.sent[at].push(id(number));
    }

    fn carry(&mut self, from: usize, bytes: usize) {
        let (now, to) = (self.now, 1 - from);
        let side = &mut self.sides[from].machine;
        let some: Vec<u8> = side.chunk().iter().copied().take(bytes).collect();
        if side.wants_write() {
            side.written(some.len(), now);
        }
        self.sides[to].wire.extend(some);
        let side = &mut self.sides[to];
        if side.machine.wants_read() {
            let some: Vec<u8> = side.wire.drain(..bytes.min(side.wire.len())).collect();
            side.machine.received(&some, now);
        }
        self.hear(to);
        self.hear(from);
    }

    fn hear(&mut self, at: usize) {
        let (side, now) = (&mut self.sides[at], self.now);
        while let Some(output) = side.machine.poll_output(now) {
            assert_eq!(side.ended, None, "{output:?} after the end");
            match output {
                Output::Envelope(envelope) if !side.room => side.machine.give_back(envelope, now),
                Output::Envelope(Envelope::Request { id, .. } | Envelope::Response { id, .. }) => {
                    side.got.push(id)
                }
                Output::Ended(reason) => side.ended = Some(reason),
                _ => {}
            }
        }
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        for at in [0, 1] {
            self.sides[at].machine.timeout(self.now);
            self.hear(at);
        }
    }

    fn check(&self) -> Result<(), TestCaseError> {
        for at in [0, 1] {
            let (sent, got) = (&self.sent[at], &self.sides[1 - at].got);
            prop_assert!(got.len() <= sent.len() && *got == sent[..got.len()], "out of order, or not sent");
        }
        Ok(())
    }

    /// Everything moves until nothing does.
    fn drain(&mut self) {
        for side in &mut self.sides {
            side.room = true;
        }
        for _ in 0..20_000 {
            self.carry(0, 64 * 1024);
            self.carry(1, 64 * 1024);
            let quiet = |side: &Side| {
                !side.machine.wants_write() && side.wire.is_empty() && side.machine.held.is_none()
            };
            if self.sides.iter().all(quiet) {
                return;
            }
            self.pass(Duration::from_millis(1));
        }
        panic!("it never comes to rest");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn what_is_pushed_comes_out_in_order_and_once(steps in proptest::collection::vec(step(), 0..120)) {
        let mut pair = Pair::new();
        for step in steps {
            match step {
                Step::Push(end, size) => pair.push(usize::from(end), size),
                Step::Carry(end, bytes) => pair.carry(usize::from(end), bytes),
                Step::Room(end, room) => pair.sides[usize::from(end)].room = room,
                Step::Suspect => pair.sides[1].machine.suspect(pair.now),
                Step::Pass(ms) => pair.pass(Duration::from_millis(ms)),
            }
            pair.check()?;
        }
        if pair.sides.iter().all(|side| !side.machine.is_over()) {
            pair.drain();
            pair.check()?;
            for at in [0, 1] {
                prop_assert_eq!(&pair.sides[1 - at].got, &pair.sent[at], "something was lost");
            }
        }
    }

    #[test]
    fn whatever_one_end_closes_with_is_what_the_other_ends_with(
        before in proptest::collection::vec(step(), 0..30),
        reason in prop_oneof![
            Just(CloseReason::Shutdown),
            Just(CloseReason::Drain { retry_after: Duration::from_secs(9), to: None }),
            Just(CloseReason::Replaced),
            Just(CloseReason::Revoked),
            Just(CloseReason::Overloaded { retry_after: Duration::from_secs(9) }),
        ],
    ) {
        let mut pair = Pair::new();
        for step in before {
            match step {
                Step::Push(end, size) => pair.push(usize::from(end), size),
                Step::Carry(end, bytes) => pair.carry(usize::from(end), bytes),
                _ => {}
            }
        }
        pair.sides[0].machine.close(reason.clone(), pair.now);
        pair.drain();
        prop_assert_eq!(pair.sides[0].ended, Some(EndReason::Closed));
        pair.sides[1].machine.end_of_stream();
        pair.hear(1);
        let later = Some(Duration::from_secs(9));
        prop_assert_eq!(pair.sides[1].ended, Some(match reason {
            CloseReason::Drain { .. } => EndReason::Drain { retry_after: later },
            CloseReason::Overloaded { .. } => EndReason::Overloaded { retry_after: later },
            CloseReason::Replaced => EndReason::Replaced,
            CloseReason::Revoked => EndReason::Revoked,
            _ => EndReason::Goodbye,
        }));
        prop_assert_eq!(&pair.sides[1].got, &pair.sent[0], "what was pushed before the close is heard");
    }
}
