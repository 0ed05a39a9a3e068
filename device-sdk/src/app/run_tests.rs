use proptest::prelude::*;
use relay_core::app::Sending;

use super::*;

fn start() -> (Instant, Run) {
    let now = crate::now();
    (now, Run::new(now, Limits::default(), None, 1))
}

fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

const WINDOW: u64 = 256 * 1024;

#[test]
fn a3_a_channel_is_told_from_where_once_the_handler_wants_something() {
    let (now, mut run) = start();
    assert_eq!(run.step(now), Step::Open { from: 0 });
    run.opening();
    assert_eq!(run.step(now), Step::Wait(None));
    run.opened(now, true, 0).unwrap();
    assert_eq!(run.say(now), None, "the handler has not said where it begins");
    assert!(run.begin_at(now, 40, Some(Sha256::new())));
    assert_eq!(run.header(), None);
    assert_eq!(run.say(now), Some(ToRelay::Credit { from: Some(40), bytes: WINDOW }));
    assert_eq!(run.say(now), None);
    run.header_came("<Job/>".into());
    assert_eq!(run.header().as_deref(), Some("<Job/>"));
}

#[test]
fn a4_credit_is_given_back_in_halves_as_the_handler_takes() {
    let (now, mut run) = start();
    run.opened(now, true, 0).unwrap();
    assert_eq!(run.take(), Taken::Wait);
    assert!(matches!(run.say(now), Some(ToRelay::Credit { from: Some(0), bytes: WINDOW })));
    for _ in 0..16 {
        run.data(Bytes::from(vec![0; 16 * 1024])).unwrap();
    }
    assert_eq!(run.say(now), None, "nothing was taken");
    assert_eq!(run.data(Bytes::from_static(b"x")), Err(Misbehaved::BeyondCredit));
    for taken in 1..=16 {
        assert!(matches!(run.take(), Taken::Data(_)));
        let credit = run.say(now);
        assert_eq!(credit.is_some(), taken % 8 == 0, "{taken}");
        assert!(credit.is_none_or(|c| c == ToRelay::Credit { from: None, bytes: WINDOW / 2 }));
    }
}

#[test]
fn f32_a_link_that_breaks_is_opened_from_where_the_data_is_and_the_whole_is_checked() {
    let (mut now, mut run) = start();
    let whole = b"the whole document";
    for piece in whole.chunks(5) {
        let Step::Open { from } = run.step(now) else { panic!() };
        assert_eq!(from, run.position());
        run.opened(now, false, from).unwrap();
        run.data(Bytes::copy_from_slice(piece)).unwrap();
        run.broke(now, None);
        if let Step::Wait(Some(until)) = run.step(now) {
            assert!(until <= now + secs(1), "what brought something is tried again soon");
            now = until;
        }
    }
    run.opened(now, false, whole.len() as u64).unwrap();
    assert_eq!(run.part_ended(Some(18), Some(Digest::of(whole).sha256)), Ok(true));
    run.done_reading(now);
    assert_eq!(run.step(now), Step::Wait(None), "nothing more to be had");
    let mut got = Vec::new();
    while let Taken::Data(bytes) = run.take() {
        got.extend_from_slice(&bytes);
    }
    assert_eq!((&got[..], run.take()), (&whole[..], Taken::End));
}

#[test]
fn f32_what_is_not_what_was_sent_is_no_end() {
    let failed = |run: &mut Run| match run.take() {
        Taken::Failed(error) => error.status().as_str().to_owned(),
        other => panic!("{other:?}"),
    };
    for end in [Digest::of(b"abd"), Digest::of(b"abcd"), Digest::of(b"ab")] {
        let (now, mut run) = start();
        run.opened(now, false, 0).unwrap();
        run.data(Bytes::from_static(b"abc")).unwrap();
        run.ended(end);
        assert_eq!(run.take(), Taken::Data(Bytes::from_static(b"abc")));
        assert_eq!(failed(&mut run), "bad-data");
    }
    // What was there already counts.
    for (had, end) in [("ab", true), ("xb", false)] {
        let (now, mut run) = start();
        let mut hasher = Sha256::new();
        hasher.update(had);
        assert!(run.begin_at(now, 2, Some(hasher)));
        run.opened(now, false, 2).unwrap();
        run.data(Bytes::from_static(b"c")).unwrap();
        run.ended(Digest::of(b"abc"));
        assert!(matches!(run.take(), Taken::Data(_)));
        assert_eq!(run.take() == Taken::End, end);
    }
    // Of what nobody has any more there is the length alone.
    let (now, mut run) = start();
    assert!(run.begin_at(now, 2, None));
    run.opened(now, false, 2).unwrap();
    run.data(Bytes::from_static(b"c")).unwrap();
    run.ended(Digest::of(b"abc"));
    assert!(matches!(run.take(), Taken::Data(_)));
    assert_eq!(run.take(), Taken::End);
}

#[test]
fn f32_a_handler_that_begins_elsewhere_gets_a_link_from_there() {
    // A stream that begins where nobody wants it.
    let (now, mut run) = start();
    let number = run.opened(now, false, 0).unwrap();
    assert!(run.begin_at(now, 7, None));
    assert!(!run.is_current(number));
    assert_eq!(run.step(now), Step::Open { from: 7 });
    run.opening();
    assert!(run.begin_at(now, 9, None));
    assert_eq!(run.opened(now, false, 7), None, "opened for an offset that was taken back");
    assert_eq!(run.step(now), Step::Open { from: 9 });
    // A channel that was told already.
    let (now, mut run) = start();
    let number = run.opened(now, true, 0).unwrap();
    run.header();
    assert!(run.say(now).is_some());
    assert!(run.begin_at(now, 7, None));
    assert!(!run.is_current(number));
    run.opened(now, true, 7).unwrap();
    assert_eq!(run.say(now), Some(ToRelay::Credit { from: Some(7), bytes: WINDOW }));
    // Too late.
    run.data(Bytes::from_static(b"x")).unwrap();
    assert!(matches!(run.take(), Taken::Data(_)));
    assert!(!run.begin_at(now, 0, None));
}

#[test]
fn a3_a_job_at_work_is_called_alive_and_one_whose_data_is_out_of_reach_is_not() {
    let (now, mut run) = start();
    run.opened(now, true, 0).unwrap();
    assert_eq!((run.say(now + secs(19)), run.say_at()), (None, Some(now + secs(20))));
    assert_eq!(run.say(now + secs(20)), Some(ToRelay::Progress(Progress::new(0))));
    assert_eq!(run.note(now + secs(60)), None, "there is a channel for it");
    run.broke(now + secs(60), None);
    assert_eq!((run.say(now + secs(90)), run.note(now + secs(90)), run.note_at()), (None, None, None));
    run.opened(now + secs(90), false, 0).unwrap();
    assert_eq!(run.note(now + secs(110)), Some(Progress::new(0)), "no channel: in the session");
    run.ended(Digest::of(b""));
    run.broke(now + secs(110), None);
    assert!(run.note(now + secs(130)).is_some(), "all is here");
    run.handler_ended(None);
    assert_eq!((run.note(now + secs(150)), run.note_at(), run.say_at()), (None, None, None));
}

#[test]
fn a4_progress_is_said_at_most_once_a_second_whatever_else_is_said() {
    let (now, mut run) = start();
    run.opened(now, true, 0).unwrap();
    let mut said = 0;
    for tenth in 0..100 {
        let now = now + Duration::from_millis(tenth * 100);
        run.take();
        assert!(run.progress(Progress::new(tenth + 1)));
        while let Some(word) = run.say(now) {
            match word {
                ToRelay::Progress(_) => said += 1,
                ToRelay::Credit { bytes, .. } => {
                    for _ in 0..bytes / Sending::PIECE as u64 {
                        run.data(Bytes::from(vec![0; Sending::PIECE])).unwrap();
                    }
                }
                other => panic!("{other:?}"),
            }
        }
    }
    assert_eq!(said, 9);
    assert!(!run.progress(Progress::new(100)), "no news");
}

#[test]
fn s10_a_link_is_tried_again_later_and_later_and_given_up_in_the_end() {
    let (start_at, mut run) = start();
    let mut now = start_at;
    let mut tries = 0;
    loop {
        match run.step(now) {
            Step::Open { .. } => {
                tries += 1;
                run.broke(now, Some(Duration::MAX));
            }
            Step::Wait(Some(until)) => {
                assert!(until <= now + secs(20), "the relay's patience is 60 s");
                now = until;
            }
            Step::GiveUp => break,
            step => panic!("{step:?}"),
        }
    }
    assert!((secs(600)..secs(620)).contains(&(now - start_at)), "{:?}", now - start_at);
    assert!((30..100).contains(&tries), "{tries}");
    let (now, mut run) = start();
    run.broke(now, None);
    run.offered_again(now, Some("<Again/>".into()));
    assert_eq!(run.step(now), Step::Open { from: 0 }, "the relay has it still");
    assert_eq!(run.header().as_deref(), Some("<Again/>"));
}

#[test]
fn a3_the_last_word_is_said_once_and_on_a_channel_alone() {
    let (now, mut run) = start();
    run.opened(now, true, 0).unwrap();
    run.progress(Progress::new(7));
    run.handler_ended(Some(ToRelay::Done { version: None }));
    assert!(!run.has_said_all());
    assert_eq!(run.say(now), Some(ToRelay::Progress(Progress::new(7))), "what nobody was told yet");
    assert_eq!(run.say(now), Some(ToRelay::Done { version: None }));
    assert!(run.has_said_all() && run.had_word());
    assert_eq!((run.say(now + secs(60)), run.step(now)), (None, Step::Over));
    let (now, mut run) = start();
    run.opened(now, false, 0).unwrap();
    run.handler_ended(Some(ToRelay::Done { version: None }));
    assert!(run.has_said_all());
}

proptest! {
    /// However it is cut, taken and told of, the handler gets the document, in order and once, and no more is here than
    /// the window.
    #[test]
    fn b4_f32_whatever_happens_on_the_way_the_document_arrives_within_the_window(
        size in 0usize..600_000,
        happenings in proptest::collection::vec((0u8..4, 1usize..40_000), 1..400),
    ) {
        let document: Vec<u8> = (0..size).map(|n| (n * 7 % 251) as u8).collect();
        let (mut now, mut run) = start();
        let mut sending = Sending::new();
        let mut got = Vec::new();
        let mut linked = false;
        let mut happenings = happenings.into_iter().chain(std::iter::repeat((0, 16_384)));
        let mut steps = 0;
        loop {
            steps += 1;
            prop_assert!(steps < 5_000);
            if !linked && run.end.is_none() {
                while let Step::Wait(Some(until)) = run.step(now) {
                    now = until;
                }
                run.opened(now, true, run.position()).unwrap();
                (sending, linked) = (Sending::new(), true);
                sending.header_sent();
            }
            while let Some(word) = run.say(now) {
                if let ToRelay::Credit { from, bytes } = word {
                    prop_assert_eq!(sending.credit(from, bytes), Ok(()));
                }
            }
            match happenings.next().unwrap() {
                (0 | 1, bytes) if linked => {
                    if let relay_core::app::Step::Data { from, max } = sending.next() {
                        let from = usize::try_from(from).unwrap();
                        let until = (from + max.min(bytes)).min(size);
                        if from == size {
                            run.ended(Digest::of(&document));
                            linked = false;
                        } else {
                            run.data(Bytes::copy_from_slice(&document[from..until])).unwrap();
                            sending.data_sent(until - from);
                        }
                    }
                }
                (2, _) if linked => {
                    run.broke(now, None);
                    linked = false;
                }
                _ => {}
            }
            prop_assert!(run.buffered <= WINDOW);
            match run.take() {
                Taken::Data(bytes) => got.extend_from_slice(&bytes),
                Taken::End => break,
                Taken::Wait => {}
                Taken::Failed(error) => prop_assert!(false, "{}", error),
            }
        }
        prop_assert_eq!(got, document);
    }
}
