use proptest::prelude::*;
use relay_core::{
    ids::{DeviceId, Method, ObjectId},
    outcome::Disposition,
    request::{Body, Status},
};

use super::*;

fn id(n: usize) -> RequestId {
    RequestId::new(&format!("r{n}")).unwrap()
}

fn request() -> Arc<Request> {
    Arc::new(Request::get(DeviceId::new("printer-1").unwrap(), ObjectId::new("1.2").unwrap()))
}

fn text(text: &str) -> Response {
    Response::with_body(Body::text(text))
}

/// A ledger under a clock of its own.
struct Rig {
    now: Instant,
    ledger: Ledger,
    wake: Option<Instant>,
}

impl Rig {
    fn new(respond_by: RespondBy) -> Self {
        Self::with(LedgerConfig::new(respond_by))
    }

    fn with(config: LedgerConfig) -> Self {
        Self { now: crate::now(), ledger: Ledger::new(config, 1), wake: None }
    }

    fn input(&mut self, input: Input) -> Vec<Output> {
        self.ledger.handle_input(self.now, input);
        let mut outputs = Vec::new();
        while let Some(output) = self.ledger.poll_output() {
            match output {
                Output::Event(_) | Output::Withdraw(_) => {}
                other => outputs.push(other),
            }
        }
        self.wake = self.ledger.wake_at();
        outputs
    }

    fn request(&mut self, n: usize) -> Vec<Output> {
        let deadline = self.now + Duration::from_secs(30);
        self.input(Input::Request { id: id(n), request: request(), deadline })
    }

    fn finished(&mut self, n: usize, response: Response) -> Vec<Output> {
        self.input(Input::Finished { id: id(n), response })
    }

    fn delivered(&mut self, n: usize, result: Result<Verdict, Option<Duration>>) -> Vec<Output> {
        self.input(Input::Delivered { id: id(n), result })
    }

    /// Goes on to the next moment that the ledger asked for.
    fn wake(&mut self) -> Vec<Output> {
        self.now = self.wake.expect("the ledger waits for something");
        self.input(Input::Woken)
    }
}

fn runs(outputs: &[Output]) -> Vec<RequestId> {
    let run = |output: &Output| match output {
        Output::Run { id, .. } => Some(id.clone()),
        _ => None,
    };
    outputs.iter().filter_map(run).collect()
}

#[test]
fn s5_handlers_run_beside_one_another_up_to_the_bound_and_then_in_order() {
    let mut rig = Rig::new(RespondBy::Http);
    for n in 0..16 {
        assert_eq!(runs(&rig.request(n)), [id(n)]);
    }
    assert_eq!(runs(&rig.request(16)), []);
    assert_eq!(runs(&rig.request(17)), []);
    assert_eq!(runs(&rig.finished(3, Response::ok())), [id(16)]);
    assert_eq!(runs(&rig.finished(16, Response::ok())), [id(17)]);
}

#[test]
fn b6_beyond_64_in_flight_the_device_says_busy_and_never_runs_it() {
    let mut rig = Rig::new(RespondBy::Http);
    for n in 0..64 {
        rig.request(n);
    }
    let outputs = rig.request(64);
    let [Output::Deliver(refused, response)] = &outputs[..] else { panic!("{outputs:?}") };
    assert_eq!((refused, response.status.as_str()), (&id(64), "busy"));
    rig.delivered(64, Ok(Verdict::Accepted));
    for n in 0..64 {
        rig.finished(n, Response::ok());
        rig.delivered(n, Ok(Verdict::Accepted));
    }
    assert_eq!(runs(&rig.request(64)), [], "it was refused; it must not run now");
}

#[test]
fn b6_an_answer_on_its_way_takes_nobody_s_place() {
    let mut rig = Rig::new(RespondBy::Http);
    for n in 0..64 {
        rig.request(n);
    }
    for n in 0..16 {
        assert_eq!(runs(&rig.finished(n, Response::ok())), [id(n + 16)]);
    }
    for n in 64..80 {
        assert_eq!(rig.request(n), [], "it waits for a handler");
    }
    assert_eq!(runs(&rig.finished(16, Response::ok())), [id(32)]);
}

#[test]
fn b6_a_relay_that_minds_no_bound_is_no_longer_listened_to() {
    let mut rig = Rig::new(RespondBy::Http);
    for n in 0..1000 {
        rig.request(n);
    }
    assert_eq!(rig.ledger.open.len(), 128);
    assert_eq!(rig.ledger.entries.len(), 128);
}

#[test]
fn b13_a_request_that_was_seen_is_not_run_again_and_its_answer_is_sent_again() {
    let mut rig = Rig::new(RespondBy::Http);
    assert_eq!(runs(&rig.request(1)), [id(1)]);
    assert_eq!(rig.request(1), [], "it is still at work");
    assert_eq!(rig.finished(1, text("83")), [Output::Deliver(id(1), text("83"))]);
    assert_eq!(rig.delivered(1, Ok(Verdict::Accepted)), []);
    assert_eq!(rig.request(1), [Output::Deliver(id(1), text("83"))]);
}

#[test]
fn b13_memory_is_bounded_by_number_time_and_bytes() {
    let mut config = LedgerConfig::new(RespondBy::Http);
    (config.remembered, config.remembered_bytes) = (3, 10);
    let mut rig = Rig::with(config);
    let answer = |rig: &mut Rig, n: usize| {
        rig.request(n);
        rig.finished(n, text("1234567"));
        rig.delivered(n, Ok(Verdict::Accepted));
    };
    answer(&mut rig, 0);
    answer(&mut rig, 1);
    assert_eq!(rig.ledger.kept_bytes, 7);
    let again = rig.request(0);
    let [Output::Deliver(_, response)] = &again[..] else { panic!("{again:?}") };
    assert_eq!(response.status.as_str(), "already-handled", "its answer was too much to keep");
    rig.delivered(0, Ok(Verdict::AlreadyAnswered));
    for n in 2..9 {
        answer(&mut rig, n);
    }
    assert_eq!(rig.ledger.entries.len(), 3);
    assert!(rig.ledger.kept.len() <= 3);
    rig.now += Duration::from_secs(24 * 3600);
    rig.input(Input::Woken);
    assert_eq!(rig.ledger.entries.len(), 0);
    assert_eq!(rig.ledger.kept_bytes, 0);
}

#[test]
fn s6_an_answer_is_sent_again_until_the_relay_gives_a_verdict() {
    for verdict in
        [Verdict::Accepted, Verdict::AlreadyAnswered, Verdict::TooLate, Verdict::Unknown, Verdict::Forbidden]
    {
        let mut rig = Rig::new(RespondBy::Http);
        rig.request(1);
        rig.finished(1, text("83"));
        for _ in 0..50 {
            assert_eq!(rig.delivered(1, Err(None)), []);
            assert!(rig.wake.unwrap() - rig.now <= Duration::from_secs(60));
            assert_eq!(rig.wake(), [Output::Deliver(id(1), text("83"))]);
        }
        assert_eq!(rig.delivered(1, Ok(verdict)), []);
        assert!(rig.ledger.is_idle());
        assert_eq!(rig.wake, None, "nothing more is to be done");
    }
}

#[test]
fn s6_retry_after_is_honoured_up_to_an_hour() {
    let mut rig = Rig::new(RespondBy::Http);
    rig.request(1);
    rig.finished(1, text("83"));
    rig.delivered(1, Err(Some(Duration::from_secs(20))));
    assert!(rig.wake.unwrap() - rig.now >= Duration::from_secs(20));
    rig.wake();
    rig.delivered(1, Err(Some(Duration::from_secs(1_000_000_000))));
    assert!(rig.wake.unwrap() - rig.now <= Duration::from_secs(3600 + 60));
}

#[test]
fn s6_in_the_session_an_answer_is_settled_by_its_ack() {
    let mut rig = Rig::new(RespondBy::Session);
    rig.input(Input::SessionUp { max_body: MAX_INLINE_BODY, respond_by: rig.ledger.config.respond_by });
    rig.request(1);
    let envelope = Envelope::Response { id: id(1), response: text("83"), acknowledge: true };
    assert_eq!(rig.finished(1, text("83")), [Output::Push(envelope.clone())]);
    // No ack: after a while it goes again.
    assert_eq!(rig.wake(), []);
    assert_eq!(rig.wake(), [Output::Push(envelope)]);
    assert_eq!(rig.input(Input::Ack { id: id(1), disposition: Disposition::TooLate }), []);
    assert!(rig.ledger.is_idle());
}

#[test]
fn s6_an_answer_whose_session_was_lost_goes_by_http_at_once() {
    let mut rig = Rig::new(RespondBy::Session);
    rig.input(Input::SessionUp { max_body: MAX_INLINE_BODY, respond_by: rig.ledger.config.respond_by });
    rig.request(1);
    rig.finished(1, text("83"));
    assert_eq!(rig.input(Input::SessionDown), [Output::Deliver(id(1), text("83"))]);
    assert_eq!(rig.delivered(1, Ok(Verdict::AlreadyAnswered)), []);
    assert!(rig.ledger.is_idle());
}

#[test]
fn s6_bodies_above_128_kib_go_by_http_whatever_the_choice() {
    let mut rig = Rig::new(RespondBy::Session);
    rig.input(Input::SessionUp { max_body: usize::MAX, respond_by: rig.ledger.config.respond_by });
    let body = |size: usize| Response::with_body(Body::new("application/octet-stream", vec![0; size]));
    rig.request(1);
    assert!(matches!(&rig.finished(1, body(MAX_INLINE_BODY))[..], [Output::Push(_)]));
    rig.request(2);
    assert!(matches!(&rig.finished(2, body(MAX_INLINE_BODY + 1))[..], [Output::Deliver(..)]));
}

#[test]
fn s6_an_answer_too_large_for_the_relay_becomes_words_that_say_so() {
    let mut rig = Rig::new(RespondBy::Http);
    rig.request(1);
    rig.finished(1, text("far too much"));
    let outputs = rig.delivered(1, Ok(Verdict::TooLarge));
    let [Output::Deliver(_, response)] = &outputs[..] else { panic!("{outputs:?}") };
    assert_eq!(response.status.as_str(), "too-large");
    assert_eq!(rig.delivered(1, Ok(Verdict::TooLarge)), [], "said once");
    assert!(rig.ledger.is_idle());
}

#[test]
fn q8_cancelled_before_it_ran_it_never_runs() {
    let mut config = LedgerConfig::new(RespondBy::Http);
    config.concurrency = 1;
    let mut rig = Rig::with(config);
    rig.request(1);
    rig.request(2);
    assert_eq!(rig.input(Input::Cancel { id: id(2) }), []);
    assert_eq!(runs(&rig.finished(1, Response::ok())), []);
    assert_eq!(runs(&rig.request(2)), []);
}

#[test]
fn q8_cancelled_at_work_the_handler_is_told_and_nothing_is_sent() {
    let mut rig = Rig::new(RespondBy::Http);
    rig.request(1);
    assert_eq!(rig.input(Input::Cancel { id: id(1) }), [Output::Cancel(id(1))]);
    assert_eq!(rig.input(Input::Cancel { id: id(1) }), []);
    assert_eq!(rig.finished(1, text("83")), []);
    assert!(rig.ledger.is_idle());
}

#[test]
fn q3_at_the_deadline_the_handler_is_told_and_its_late_answer_still_meets_the_relay() {
    let mut rig = Rig::new(RespondBy::Http);
    rig.request(1);
    rig.now += Duration::from_secs(30);
    assert_eq!(rig.input(Input::Woken), [Output::Cancel(id(1))]);
    assert_eq!(rig.finished(1, text("83")), [Output::Deliver(id(1), text("83"))]);
}

#[test]
fn l1_received_is_said_when_a_handler_takes_longer_than_a_second() {
    let mut rig = Rig::new(RespondBy::Http);
    rig.input(Input::SessionUp { max_body: 0, respond_by: rig.ledger.config.respond_by });
    rig.request(1);
    assert_eq!(rig.wake.unwrap() - rig.now, Duration::from_secs(1));
    assert_eq!(rig.wake(), [Output::Push(Envelope::Received { id: id(1) })]);
    // Pushed again over a new session, the relay does not know: it is told at once.
    assert_eq!(rig.request(1), [Output::Push(Envelope::Received { id: id(1) })]);
}

#[test]
fn s6_at_most_so_many_deliveries_run_at_once() {
    let mut rig = Rig::new(RespondBy::Http);
    let mut delivering = 0;
    for n in 0..16 {
        rig.request(n);
    }
    for n in 0..16 {
        delivering += rig.finished(n, Response::ok()).len();
    }
    assert_eq!(delivering, 8);
    assert!(matches!(&rig.delivered(0, Ok(Verdict::Accepted))[..], [Output::Deliver(..)]));
}

#[derive(Debug, Clone)]
enum Step {
    Request(usize),
    Finish(usize),
    Deliver(usize, bool),
    Ack(usize),
    Cancel(usize),
    Session(bool),
    Pass(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let n = 0..12usize;
    prop_oneof![
        4 => n.clone().prop_map(Step::Request),
        4 => n.clone().prop_map(Step::Finish),
        3 => (n.clone(), any::<bool>()).prop_map(|(n, ok)| Step::Deliver(n, ok)),
        2 => n.clone().prop_map(Step::Ack),
        1 => n.prop_map(Step::Cancel),
        1 => any::<bool>().prop_map(Step::Session),
        2 => (0..40_000u64).prop_map(Step::Pass),
    ]
}

/// What a plain reader of the rows expects of one request.
#[derive(Debug, Default, Clone)]
struct Expected {
    runs: usize,
    at_work: bool,
    cancelled: bool,
    /// The HTTP call that carries its answer.
    delivering: bool,
    /// Its answer is in the session and was not acknowledged.
    pushed: bool,
}

proptest! {
    /// Any order of requests, repeats, answers, verdicts, failures and losses: nothing runs twice, nothing runs beyond
    /// the bound, and once the faults stop every answer meets its verdict.
    #[test]
    fn i3_i4_any_order_runs_once_and_ends_settled(
        steps in proptest::collection::vec(step(), 1..120),
        by_session in any::<bool>(),
        seed in any::<u64>(),
    ) {
        let mut config = LedgerConfig::new(if by_session { RespondBy::Session } else { RespondBy::Http });
        (config.concurrency, config.in_flight, config.deliveries) = (3, 8, 2);
        let mut rig = Rig { now: crate::now(), ledger: Ledger::new(config, seed), wake: None };
        let mut model = vec![Expected::default(); 12];
        let number = |id: &RequestId| id.as_str()[1..].parse::<usize>().unwrap();
        fn note(model: &mut [Expected], outputs: &[Output], number: impl Fn(&RequestId) -> usize) {
            for output in outputs {
                match output {
                    Output::Run { id, .. } => {
                        let expected = &mut model[number(id)];
                        expected.runs += 1;
                        expected.at_work = true;
                    }
                    Output::Deliver(id, response) => {
                        let expected = &mut model[number(id)];
                        assert!(!expected.delivering, "one call at a time for an answer");
                        assert!(!expected.at_work, "no answer before the handler's");
                        if response.status == Status::Ok {
                            assert_eq!(expected.runs, 1);
                        }
                        expected.delivering = true;
                    }
                    Output::Push(Envelope::Response { id, .. }) => model[number(id)].pushed = true,
                    _ => {}
                }
            }
            assert!(model.iter().all(|expected| expected.runs <= 1), "run twice: {model:?}");
            assert!(model.iter().filter(|expected| expected.at_work).count() <= 3, "{model:?}");
            assert!(model.iter().filter(|expected| expected.delivering).count() <= 2, "{model:?}");
        }
        for step in steps {
            let outputs = match step {
                Step::Request(n) => rig.request(n),
                Step::Finish(n) if model[n].at_work => {
                    model[n].at_work = false;
                    rig.finished(n, text("done"))
                }
                Step::Deliver(n, ok) if model[n].delivering => {
                    model[n].delivering = false;
                    rig.delivered(n, if ok { Ok(Verdict::Accepted) } else { Err(None) })
                }
                Step::Ack(n) if model[n].pushed => {
                    model[n].pushed = false;
                    rig.input(Input::Ack { id: id(n), disposition: Disposition::Accepted })
                }
                Step::Cancel(n) => {
                    model[n].cancelled = true;
                    rig.input(Input::Cancel { id: id(n) })
                }
                Step::Session(true) => rig.input(Input::SessionUp { max_body: MAX_INLINE_BODY, respond_by: rig.ledger.config.respond_by }),
                Step::Session(false) => rig.input(Input::SessionDown),
                Step::Pass(millis) => {
                    rig.now += Duration::from_millis(millis);
                    rig.input(Input::Woken)
                }
                _ => continue,
            };
            note(&mut model, &outputs, number);
        }
        for _ in 0..200 {
            if rig.ledger.is_idle() {
                break;
            }
            let outputs = if let Some(n) = model.iter().position(|expected| expected.at_work) {
                model[n].at_work = false;
                rig.finished(n, text("done"))
            } else if let Some(n) = model.iter().position(|expected| expected.delivering) {
                model[n].delivering = false;
                rig.delivered(n, Ok(Verdict::Accepted))
            } else if let Some(n) = model.iter().position(|expected| expected.pushed) {
                model[n].pushed = false;
                rig.input(Input::Ack { id: id(n), disposition: Disposition::Accepted })
            } else {
                rig.wake()
            };
            note(&mut model, &outputs, number);
        }
        prop_assert!(rig.ledger.is_idle(), "not settled: {:?}", rig.ledger);
    }
}

#[test]
fn other_methods_are_summed_up_for_logs() {
    let object = |n: usize| ObjectId::new(&format!("1.{n}")).unwrap();
    assert_eq!(summary(&Method::new("REBOOT").unwrap(), &[]), "REBOOT");
    assert_eq!(summary(&Method::get(), &[object(1)]), "GET 1.1");
    assert_eq!(summary(&Method::get(), &[object(1), object(2), object(3)]), "GET 1.1 and 2 more");
}

fn offer(rig: &mut Rig, n: usize) -> Vec<Output> {
    let app = relay_core::ids::AppName::new("print").unwrap();
    let offer = relay_core::app::Offer::new(app, None);
    let request = Arc::new(Request::job(DeviceId::new("printer-1").unwrap(), offer));
    let deadline = rig.now + Duration::from_secs(30);
    rig.input(Input::Request { id: id(n), request, deadline })
}

fn is_offer(outputs: &[Output]) -> bool {
    matches!(outputs, [Output::Offer { .. }])
}

#[test]
fn s5_jobs_run_at_once_and_take_no_handlers_place() {
    let mut config = LedgerConfig::new(RespondBy::Session);
    config.concurrency = 1;
    let mut rig = Rig::with(config);
    for n in 0..3 {
        assert!(is_offer(&offer(&mut rig, n)));
    }
    assert_eq!(runs(&rig.request(3)), [id(3)]);
    assert!(runs(&rig.request(4)).is_empty());
    rig.finished(0, Response::ok());
    assert_eq!(runs(&rig.finished(3, text("83"))), [id(4)], "a job that ends gives no place away");
}

#[test]
fn a3_a_jobs_time_is_its_apps() {
    let mut rig = Rig::new(RespondBy::Session);
    rig.input(Input::SessionUp { max_body: 1000, respond_by: RespondBy::Session });
    assert!(is_offer(&offer(&mut rig, 0)));
    assert_eq!(rig.wake(), [Output::Push(Envelope::Received { id: id(0) })]);
    assert_eq!(rig.wake, None, "no deadline");
    rig.now += Duration::from_secs(24 * 3600);
    let answered = rig.finished(0, Response::ok());
    assert!(matches!(&answered[..], [Output::Push(Envelope::Response { .. })]), "{answered:?}");
}

#[test]
fn f32_a_job_that_is_done_is_not_run_again_and_one_that_came_to_nothing_is() {
    let mut rig = Rig::new(RespondBy::Http);
    assert!(is_offer(&offer(&mut rig, 0)));
    assert!(matches!(&offer(&mut rig, 0)[..], [Output::OfferedAgain { .. }]), "it is at work");
    assert!(matches!(&rig.finished(0, Response::ok())[..], [Output::Deliver(..)]));
    rig.delivered(0, Ok(Verdict::Accepted));
    assert!(matches!(&offer(&mut rig, 0)[..], [Output::Deliver(..)]), "its answer again");
    // Nobody wanted it any more.
    assert!(is_offer(&offer(&mut rig, 1)));
    assert_eq!(rig.input(Input::Cancel { id: id(1) }), [Output::Cancel(id(1))]);
    assert!(rig.input(Input::Unwanted { id: id(1) }).is_empty());
    assert!(is_offer(&offer(&mut rig, 1)), "offered again, it runs again");
    // Cancelled too late: it was done.
    rig.input(Input::Cancel { id: id(1) });
    assert!(rig.finished(1, Response::ok()).is_empty(), "nobody waits for the answer");
    assert!(matches!(&offer(&mut rig, 1)[..], [Output::Deliver(..)]));
}

#[test]
fn a3_the_relay_says_stop_on_the_session() {
    let mut rig = Rig::new(RespondBy::Http);
    assert!(is_offer(&offer(&mut rig, 0)));
    assert_eq!(rig.input(Input::Close { id: id(0) }), [Output::Cancel(id(0))]);
    assert!(is_offer(&offer(&mut rig, 1)));
    rig.finished(1, Response::ok());
    assert!(rig.input(Input::Close { id: id(1) }).is_empty(), "its end is still owed");
    assert!(rig.ledger.owes());
    rig.request(2);
    assert!(rig.input(Input::Close { id: id(2) }).is_empty(), "no job");
}
