//! Steps and what must follow.

use super::{frame::tests::Op, *};

const PING: &str = "<ping xmlns='urn:relay:1'/>";

#[test]
fn p2_l4_the_relay_pings_every_30_s_and_any_frame_is_life() {
    let mut rig = Rig::relay();
    rig.pass(Duration::from_millis(29_999));
    assert_eq!(rig.pings(), 0);
    rig.pass(Duration::from_millis(1));
    assert_eq!(rig.wrote, [Received::Ping(1u64.to_be_bytes().to_vec())]);
    // Anything at all answers it: a pong, a ping, a message.
    for answer in 0..3 {
        rig.pass(secs(9));
        match answer {
            0 => rig.frame(Op::PONG, b""),
            1 => rig.ping(),
            _ => rig.text(PING),
        }
        rig.pass(secs(21));
        assert_eq!((rig.pings(), rig.ended()), (answer + 2, None));
    }
}

#[test]
fn l3_f6_a_peer_that_answers_no_ping_is_lost_after_10_s() {
    let mut rig = Rig::relay();
    rig.pass(secs(39));
    assert_eq!(rig.ended(), None);
    rig.pass(secs(1));
    assert_eq!((rig.ended(), rig.ms()), (Some(EndReason::Lost), 40_000));
    assert_eq!(rig.closed_with(), None, "there is nobody to say goodbye to");
    assert_eq!(rig.machine.wake_at(), None);
}

#[test]
fn s4_a_device_keeps_alive_with_data_however_many_pings_come() {
    let mut rig = Rig::device();
    for _ in 0..49 {
        rig.pass(secs(1));
        rig.ping();
    }
    let texts = |rig: &Rig| rig.wrote.iter().filter(|wrote| matches!(wrote, Received::Text(_))).count();
    assert_eq!(texts(&rig), 0);
    rig.pass(secs(1));
    assert_eq!(rig.wrote.last(), Some(&Received::Text(PING.into())));
    // The answer is the owner's to hear: a push came through.
    rig.pass(secs(1));
    rig.text("<pong xmlns='urn:relay:1'/>");
    assert_eq!(rig.envelopes(), [&Envelope::Pong]);
    // Any message puts it off.
    rig.pass(secs(49));
    rig.text("<cancel xmlns='urn:relay:1' id='a'/>");
    rig.pass(secs(49));
    assert_eq!((texts(&rig), rig.ended()), (1, None));
    rig.pass(secs(1));
    assert_eq!(texts(&rig), 2);
    rig.pass(secs(10));
    assert_eq!(rig.ended(), Some(EndReason::Lost), "no answer in 10 s");
}

#[test]
fn s4_a_keep_alive_that_changes_counts_from_the_last_message() {
    let mut rig = Rig::device();
    let texts = |rig: &Rig| rig.wrote.iter().filter(|wrote| matches!(wrote, Received::Text(_))).count();
    rig.pass(secs(10));
    rig.text("<pong xmlns='urn:relay:1'/>");
    rig.pass(secs(5));
    rig.machine.set_keepalive(Some(secs(8)), rig.now);
    rig.pass(secs(2));
    assert_eq!(texts(&rig), 0);
    rig.pass(secs(1));
    assert_eq!(texts(&rig), 1);
    rig.text("<pong xmlns='urn:relay:1'/>");
    // Shorter than what has passed already: at once.
    rig.pass(secs(7));
    rig.machine.set_keepalive(Some(secs(3)), rig.now);
    rig.pass(Duration::ZERO);
    assert_eq!(texts(&rig), 2);
    rig.text("<pong xmlns='urn:relay:1'/>");
    rig.machine.set_keepalive(None, rig.now);
    rig.pass(secs(3_600));
    assert_eq!((texts(&rig), rig.ended()), (2, None));
}

#[test]
fn l9_a_connection_that_is_suspected_has_5_s_to_show_life() {
    for alive in [false, true] {
        let mut rig = Rig::device();
        rig.machine.suspect(rig.now);
        rig.settle();
        assert_eq!((rig.pings(), rig.wrote.len()), (1, 2));
        rig.pass(Duration::from_millis(4_999));
        if alive {
            rig.frame(Op::PONG, b"");
        }
        rig.pass(Duration::from_millis(1));
        assert_eq!(rig.ended(), (!alive).then_some(EndReason::Lost));
    }
}

#[test]
fn l1_a_ping_is_answered_with_its_payload() {
    let mut rig = Rig::relay();
    rig.frame(Op::PING, b"hello");
    assert_eq!(rig.wrote, [Received::Pong(b"hello".into())]);
    assert_eq!(rig.outputs, [Output::Alive]);
}

#[test]
fn l7_a_pong_that_nobody_asked_for_is_only_a_sign_of_life() {
    let mut rig = Rig::relay();
    rig.frame(Op::PONG, b"unasked");
    assert_eq!((rig.outputs.as_slice(), rig.wrote.len()), (&[Output::Alive][..], 0));
}

#[test]
fn t26_b1_a_peer_that_reads_nothing_is_lost_after_30_s_without_progress() {
    let mut rig = Rig::relay();
    rig.machine.push(&request(0, 50_000, rig.now + secs(60)), rig.now);
    rig.machine.written(0, rig.now);
    for _ in 0..3 {
        // A little progress is progress.
        rig.now += secs(29);
        rig.machine.received(&[0x89, 0x80, 1, 2, 3, 4], rig.now);
        rig.machine.timeout(rig.now);
        assert!(!rig.machine.is_over());
        rig.machine.chunk();
        rig.machine.written(10, rig.now);
    }
    rig.now += secs(29);
    rig.machine.received(&[0x89, 0x80, 1, 2, 3, 4], rig.now);
    rig.machine.timeout(rig.now);
    assert!(!rig.machine.is_over());
    rig.now += secs(1);
    rig.machine.timeout(rig.now);
    rig.hear();
    assert_eq!(rig.ended(), Some(EndReason::Lost));
}

#[test]
fn b3_no_more_is_taken_than_is_to_be_kept() {
    let mut rig = Rig::relay();
    let mut taken = 0;
    while rig.machine.has_room() {
        rig.machine.push(&request(taken, 16 * 1024, rig.now + secs(60)), rig.now);
        taken += 1;
    }
    assert_eq!(taken, 4);
    rig.settle();
    assert!(rig.machine.has_room());
    assert_eq!(rig.wrote.len(), 4);
}

#[test]
fn b3_more_than_100_messages_a_second_are_too_many() {
    let mut rig = Rig::relay();
    for _ in 0..500 {
        rig.text(PING);
    }
    assert_eq!((rig.envelopes().len(), rig.closed_with()), (500, None), "a burst of 500");
    for _ in 0..30 {
        rig.pass(Duration::from_millis(10));
        rig.text(PING);
    }
    assert_eq!((rig.envelopes().len(), rig.closed_with()), (530, None), "100 a second");
    rig.text(PING);
    assert_eq!((rig.envelopes().len(), rig.closed_with()), (530, Some(1008)));
    rig.close(1008);
    assert_eq!(rig.ended(), Some(EndReason::Misbehaved));
}

#[test]
fn x4_answers_to_what_the_relay_asked_do_not_count() {
    let mut rig = Rig::relay();
    let answer = "<response xmlns='urn:relay:1' id='a'/>";
    for n in 0..2_000 {
        rig.machine.push(&request(n, 10, rig.now + secs(60)), rig.now);
        rig.settle();
        rig.text("<received xmlns='urn:relay:1' id='a'/>");
        rig.text(answer);
    }
    assert_eq!((rig.envelopes().len(), rig.closed_with()), (4_000, None));
    for _ in 0..500 {
        rig.text(answer);
    }
    assert_eq!(rig.closed_with(), None);
    rig.text(answer);
    assert_eq!(rig.closed_with(), Some(1008), "answers to nothing count like anything else");
}

#[test]
fn t27_more_than_10_control_frames_a_second_are_too_many() {
    for op in [Op::PING, Op::PONG] {
        let mut rig = Rig::relay();
        for _ in 0..10 {
            rig.frame(op, b"");
        }
        assert_eq!(rig.closed_with(), None);
        rig.pass(Duration::from_millis(100));
        rig.frame(op, b"");
        assert_eq!(rig.closed_with(), None);
        rig.frame(op, b"");
        assert_eq!(rig.closed_with(), Some(1008), "{op:?}");
    }
}

#[test]
fn t27_pongs_that_were_asked_for_do_not_count() {
    let mut config = ControlConfig::relay();
    config.controls = (1, 1);
    let mut rig = Rig::with(End::Relay, config);
    for _ in 0..20 {
        rig.pass(secs(30));
        rig.frame(Op::PONG, b"");
    }
    assert_eq!((rig.pings(), rig.closed_with()), (20, None));
}

#[test]
fn f2_faults_are_said_before_the_connection_goes() {
    for (bytes, code) in [
        (vec![0xc1, 0x80, 1, 2, 3, 4], 1002),
        (vec![0x81, 0x00], 1002),
        (vec![0x82, 0x80, 1, 2, 3, 4], 1003),
        (vec![0x81, 0x81, 0, 0, 0, 0, 0xff], 1007),
        (vec![0x81, 0x81, 0, 0, 0, 0, b'x'], 1007),
        (vec![0x81, 0xff, 0, 0, 0, 0, 0, 1, 0, 1, 0, 0, 0, 0], 1009),
    ] {
        let mut rig = Rig::relay();
        rig.machine.push(&Envelope::Pong, rig.now);
        rig.bytes(&bytes);
        assert_eq!(rig.closed_with(), Some(code), "{bytes:x?}");
        assert_eq!(rig.wrote.last(), Some(&Received::Close(Some(code))));
        assert!(rig.machine.end().is_some(), "nothing is taken any more");
        rig.text(PING);
        assert!(rig.envelopes().is_empty(), "nothing is believed any more");
        rig.pass(secs(3));
        assert_eq!(rig.ended(), Some(EndReason::Misbehaved));
        let illegible = code == 1002 || code == 1009 || bytes[6..] == [0xff];
        let lingers = illegible || code == 1003;
        assert_eq!(rig.machine.lingers(), lingers.then_some(secs(3)), "the peer is given time to read it");
    }
}

#[test]
fn c2_the_close_that_answers_a_fault_is_found_where_frames_are_still_known() {
    let mut rig = Rig::relay();
    rig.text("no element");
    rig.text(PING);
    rig.ping();
    assert_eq!((rig.closed_with(), rig.ended(), rig.envelopes().len()), (Some(1007), None, 0));
    rig.close(1007);
    assert_eq!((rig.ended(), rig.machine.lingers()), (Some(EndReason::Misbehaved), None));
}

#[test]
fn t27_what_follows_a_fault_is_not_read_for_ever() {
    let mut rig = Rig::relay();
    rig.text("no element");
    for _ in 0..256 {
        assert!(rig.machine.wants_read());
        let mut some = Vec::new();
        frame::encode(&mut some, Op::TEXT.0, true, &[b' '; 4096 - 8], Some(KEY));
        rig.bytes(&some);
    }
    rig.text(PING);
    assert_eq!(rig.ended(), Some(EndReason::Misbehaved));
}

#[test]
fn c1_a_close_is_answered_and_the_relay_closes_first() {
    let mut relay = Rig::relay();
    relay.close(1000);
    assert_eq!(relay.closed_with(), Some(1000), "the code comes back");
    assert_eq!(relay.ended(), Some(EndReason::Goodbye), "at once");
    let mut device = Rig::device();
    device.close(4001);
    assert_eq!((device.closed_with(), device.ended()), (Some(4001), None));
    device.machine.end_of_stream();
    device.hear();
    assert_eq!(device.ended(), Some(EndReason::Replaced));
}

#[test]
fn c1_a_close_without_a_code_is_answered_without_one() {
    let mut rig = Rig::relay();
    rig.frame(Op::CLOSE, b"");
    assert_eq!((rig.wrote.as_slice(), rig.ended()), (&[Received::Close(None)][..], Some(EndReason::Goodbye)));
}

#[test]
fn c3_a_peer_that_answers_no_close_is_left_after_3_s() {
    for mut rig in [Rig::relay(), Rig::device()] {
        rig.machine.close(CloseReason::Shutdown, rig.now);
        rig.settle();
        assert_eq!(rig.ended(), None);
        rig.pass(Duration::from_millis(2_999));
        assert_eq!(rig.ended(), None);
        rig.pass(Duration::from_millis(1));
        assert_eq!(rig.ended(), Some(EndReason::Closed));
    }
}

#[test]
fn c1_what_still_came_before_the_peers_close_is_heard() {
    let mut rig = Rig::relay();
    rig.machine.push(&request(0, 10, rig.now + secs(60)), rig.now);
    rig.machine.close(CloseReason::Drain { retry_after: secs(5), to: None }, rig.now);
    rig.settle();
    let texts: Vec<_> = rig.wrote.iter().filter(|wrote| matches!(wrote, Received::Text(_))).collect();
    assert_eq!(texts.len(), 2, "the request, and when to come back");
    assert_eq!(rig.closed_with(), Some(1012));
    rig.text("<response xmlns='urn:relay:1' id='request-0'/>");
    rig.ping();
    assert_eq!(rig.envelopes().len(), 1);
    assert_eq!(
        rig.wrote.last(),
        Some(&Received::Close(Some(1012))),
        "and nothing follows a close, not even a pong"
    );
    rig.close(1012);
    assert_eq!(rig.ended(), Some(EndReason::Closed));
}

#[test]
fn l2_a_device_hears_when_to_come_back() {
    for (code, reason) in [
        (1012, EndReason::Drain { retry_after: Some(secs(7)) }),
        (1013, EndReason::Overloaded { retry_after: Some(secs(7)) }),
    ] {
        let mut rig = Rig::device();
        rig.text("<drain xmlns='urn:relay:1' retry-after='7'/>");
        rig.close(code);
        rig.machine.end_of_stream();
        rig.hear();
        assert_eq!(rig.ended(), Some(reason));
    }
}

#[test]
fn closes_that_cross_end_as_each_side_meant_it() {
    let (mut relay, mut device) = (Rig::relay(), Rig::device());
    relay.machine.close(CloseReason::Revoked, relay.now);
    device.machine.close(CloseReason::Shutdown, device.now);
    relay.settle();
    device.settle();
    assert_eq!((relay.closed_with(), device.closed_with()), (Some(4003), Some(1000)));
    relay.close(1000);
    device.close(4003);
    assert_eq!(relay.ended(), Some(EndReason::Closed));
    device.machine.end_of_stream();
    device.hear();
    assert_eq!(device.ended(), Some(EndReason::Closed));
}

#[test]
fn c4_a_connection_that_ends_without_a_close_is_lost() {
    let mut rig = Rig::relay();
    rig.text(PING);
    rig.machine.end_of_stream();
    rig.hear();
    assert_eq!(
        rig.outputs,
        [Output::Alive, Output::Envelope(Envelope::Ping), Output::Ended(EndReason::Lost)]
    );
    rig.machine.broken();
    rig.machine.received(b"x", rig.now);
    rig.hear();
    assert_eq!(rig.outputs.len(), 3, "nothing follows");
}

#[test]
fn b4_an_owner_without_room_is_asked_again_and_nothing_is_read_meanwhile() {
    let mut rig = Rig::relay();
    let mut bytes = Vec::new();
    for _ in 0..100 {
        frame::encode(&mut bytes, Op::TEXT.0, true, PING.as_bytes(), Some(KEY));
    }
    rig.machine.received(&bytes[..40], rig.now);
    assert_eq!(rig.machine.poll_output(rig.now), Some(Output::Alive));
    let Some(Output::Envelope(envelope)) = rig.machine.poll_output(rig.now) else { panic!("an envelope") };
    rig.machine.give_back(envelope, rig.now);
    rig.machine.received(&bytes[40..], rig.now);
    assert!(!rig.machine.wants_read());
    let mut waits = Vec::new();
    for _ in 0..10 {
        assert_eq!(rig.machine.poll_output(rig.now), None);
        let wake = rig.machine.wake_at().unwrap();
        waits.push((wake - rig.now).as_millis());
        rig.now = wake;
        rig.machine.timeout(rig.now);
        let Some(Output::Envelope(envelope)) = rig.machine.poll_output(rig.now) else {
            panic!("offered again")
        };
        rig.machine.give_back(envelope, rig.now);
    }
    assert_eq!(waits, [2, 4, 8, 16, 32, 64, 100, 100, 100, 100]);
    rig.pass(secs(1));
    assert_eq!(rig.envelopes().len(), 100, "all, once there is room");
    assert!(rig.machine.wants_read());
}

#[test]
fn b4_a_ping_is_answered_though_the_owner_has_no_room() {
    let mut rig = Rig::relay();
    rig.machine.received(
        &{
            let mut bytes = Vec::new();
            frame::encode(&mut bytes, Op::TEXT.0, true, PING.as_bytes(), Some(KEY));
            bytes
        },
        rig.now,
    );
    rig.machine.poll_output(rig.now);
    let Some(Output::Envelope(envelope)) = rig.machine.poll_output(rig.now) else { panic!("an envelope") };
    rig.machine.give_back(envelope, rig.now);
    rig.machine.received(&[0x89, 0x80, 1, 2, 3, 4], rig.now);
    assert_eq!(rig.machine.chunk(), [0x8a, 0]);
}

#[test]
fn l4_a_peer_whose_answer_stands_behind_what_the_owner_has_no_room_for_is_not_lost() {
    let mut rig = Rig::relay();
    rig.pass(secs(30));
    let mut bytes = Vec::new();
    for _ in 0..3 {
        frame::encode(&mut bytes, Op::TEXT.0, true, PING.as_bytes(), Some(KEY));
    }
    rig.machine.received(&bytes, rig.now);
    rig.machine.poll_output(rig.now);
    let Some(Output::Envelope(mut envelope)) = rig.machine.poll_output(rig.now) else {
        panic!("an envelope")
    };
    rig.machine.give_back(envelope, rig.now);
    rig.machine.received(&bytes, rig.now);
    while rig.ms() < 200_000 {
        rig.now = rig.machine.wake_at().unwrap();
        rig.machine.timeout(rig.now);
        while rig.machine.wants_write() {
            let length = rig.machine.chunk().len();
            rig.machine.written(length, rig.now);
        }
        if let Some(Output::Envelope(again)) = rig.machine.poll_output(rig.now) {
            envelope = again;
            rig.machine.give_back(envelope, rig.now);
        }
    }
    assert!(!rig.machine.is_over());
}

#[test]
fn t30_what_means_nothing_is_counted_and_the_session_goes_on() {
    let mut rig = Rig::relay();
    for nothing in [
        "<fancy xmlns='urn:relay:1'/>",
        "<cancel xmlns='urn:relay:1' id='a'/>",
        "<received xmlns='urn:relay:1'/>",
    ] {
        rig.text(nothing);
    }
    assert_eq!((rig.machine.stats().ignored, rig.envelopes().len(), rig.closed_with()), (3, 0, None));
}

fn verdict(number: usize) -> Envelope {
    Envelope::Ack { id: id(number), disposition: relay_core::outcome::Disposition::Accepted }
}

/// The names of the elements that it wrote.
fn names(rig: &Rig) -> Vec<String> {
    let name = |wrote: &Received| match wrote {
        Received::Text(text) => {
            Some(String::from_utf8_lossy(text).trim_start_matches('<').split(' ').next()?.to_owned())
        }
        _ => None,
    };
    rig.wrote.iter().filter_map(name).collect()
}

#[test]
fn a_verdict_waits_a_second_for_something_to_go_with() {
    let mut rig = Rig::relay();
    rig.machine.push(&verdict(0), rig.now);
    rig.pass(Duration::from_millis(999));
    assert_eq!(names(&rig), [""; 0]);
    rig.machine.push(&verdict(1), rig.now);
    rig.pass(Duration::from_millis(1));
    assert_eq!(names(&rig), ["ack", "ack"]);
    // Each one has its own second, whenever the last one went.
    rig.pass(secs(2));
    rig.machine.push(&verdict(2), rig.now);
    rig.pass(Duration::from_millis(900));
    rig.machine.push(&request(3, 10, rig.now + secs(60)), rig.now);
    rig.settle();
    assert_eq!(names(&rig)[2..], ["ack", "request"]);
    rig.machine.push(&verdict(3), rig.now);
    rig.pass(Duration::from_millis(999));
    assert_eq!(names(&rig).len(), 4);
    rig.pass(Duration::from_millis(1));
    assert_eq!(names(&rig).len(), 5);
}

#[test]
fn a_verdict_that_waits_goes_before_any_close() {
    let ends: [fn(&mut Rig); 3] = [
        |rig| rig.machine.close(CloseReason::Replaced, rig.now),
        |rig| rig.close(1000),
        |rig| rig.text("no element"),
    ];
    for end in ends {
        let mut rig = Rig::relay();
        rig.machine.push(&verdict(0), rig.now);
        end(&mut rig);
        rig.settle();
        assert!(matches!(rig.wrote[..], [Received::Text(_), Received::Close(_)]), "{:?}", rig.wrote);
    }
}

#[test]
fn verdicts_that_are_much_do_not_wait() {
    let mut rig = Rig::relay();
    let mut most = 0;
    for number in 0..100 {
        rig.machine.push(&verdict(number), rig.now);
        most = most.max(rig.machine.held());
        rig.settle();
    }
    assert!(names(&rig).len() > 80 && most < 2048, "{} written, {most} bytes kept", names(&rig).len());
}

#[test]
fn f1_a_machine_at_rest_keeps_no_buffer() {
    let mut rig = Rig::relay();
    rig.machine.push(&request(0, 100_000, rig.now + secs(60)), rig.now);
    rig.settle();
    let mut bytes = Vec::new();
    let text = "x".repeat(60_000);
    frame::encode(
        &mut bytes,
        Op::TEXT.0,
        true,
        format!("<ping xmlns='urn:relay:1'>{text}</ping>").as_bytes(),
        Some(KEY),
    );
    for some in bytes.chunks(4096) {
        rig.bytes(some);
    }
    assert_eq!(rig.envelopes().len(), 1);
    assert_eq!((rig.machine.unread.capacity(), rig.machine.inbox.capacity()), (0, 0));
    assert!(rig.machine.wants_read() && rig.machine.held.is_none());
    assert!(size_of::<Machine>() <= 1024, "{} bytes", size_of::<Machine>());
}
