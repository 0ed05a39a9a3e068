use std::collections::VecDeque;

use relay_core::{
    auth::Secret,
    envelope::Envelope,
    ids::{DeviceId, SessionId},
    transport::{CloseReason, Full, Inbound, Push, Queue, Started},
};

use super::*;

/// What a connector is to do next; the last one for ever.
#[derive(Debug, Clone, Copy)]
enum Does {
    Opens,
    Fails(ErrorKind),
    Hangs,
}

#[derive(Debug)]
struct Fake {
    name: &'static str,
    does: Mutex<VecDeque<Does>>,
    calls: Mutex<Vec<Option<String>>>,
    owners: Mutex<Vec<Arc<dyn Inbound>>>,
}

#[derive(Debug)]
struct Line(Arc<Fake>);

#[async_trait]
impl Push for Line {
    fn start(&mut self, started: Started) {
        self.0.owners.lock().unwrap().push(started.inbound);
    }
    async fn push(&mut self, _: &mut dyn Queue) -> Result<(), TransportError> {
        Ok(())
    }
    fn refresh(&mut self) {}
    async fn close(&mut self, _: CloseReason) {}
}

#[derive(Debug)]
struct Deaf;

impl Inbound for Deaf {
    fn envelope(&self, _: Envelope) -> Result<(), Full> {
        Ok(())
    }
    fn ended(&self, _: EndReason) {}
}

#[derive(Debug, Clone)]
struct Handle(Arc<Fake>);

#[async_trait]
impl Connector for Handle {
    fn info(&self) -> TransportInfo {
        TransportInfo::new(self.0.name)
    }

    async fn connect(&self, options: ConnectOptions) -> Result<Session, TransportError> {
        self.0.calls.lock().unwrap().push(options.resume.map(|id| id.as_str().to_owned()));
        let does = {
            let mut does = self.0.does.lock().unwrap();
            if does.len() > 1 { does.pop_front().unwrap() } else { does[0] }
        };
        match does {
            Opens => {
                let push = Box::new(Line(self.0.clone()));
                Ok(Session::new(options.device, SessionId::new("s1").unwrap(), self.info(), push))
            }
            Fails(kind) => Err(TransportError::new(self.0.name, kind, "no")),
            Hangs => std::future::pending().await,
        }
    }
}

struct Rig {
    auto: Auto,
    better: Arc<Fake>,
    other: Arc<Fake>,
    state: State,
}

/// As the relay's own words are told from others'.
fn is_final(error: &TransportError) -> bool {
    error.kind == ErrorKind::Internal
}

impl Rig {
    fn new(better: &[Does], other: &[Does]) -> Self {
        let device = DeviceId::new("printer-1").unwrap();
        Self::with(better, other, State::in_memory(&device))
    }

    fn with(better: &[Does], other: &[Does], state: State) -> Self {
        let fake = |name, does: &[Does]| {
            Arc::new(Fake {
                name,
                does: Mutex::new(does.iter().copied().collect()),
                calls: Mutex::default(),
                owners: Mutex::default(),
            })
        };
        let (better, other) = (fake("ws", better), fake("bosh", other));
        let handles = (Arc::new(Handle(better.clone())), Arc::new(Handle(other.clone())));
        Self { auto: Auto::new(handles.0, handles.1, is_final, state.clone(), 1), better, other, state }
    }

    fn options(&self) -> ConnectOptions {
        let device = DeviceId::new("printer-1").unwrap();
        let deadline = crate::now() + Duration::from_secs(30);
        ConnectOptions::new(device, Secret::new("token"), deadline)
            .resuming(Some(SessionId::new("s1").unwrap()))
    }

    async fn connect(&self) -> Result<&'static str, ErrorKind> {
        let mut session = self.auto.connect(self.options()).await.map_err(|error| error.kind)?;
        session.push.start(Started::new(session.id.clone(), true, Arc::new(Deaf)));
        Ok(session.info.name)
    }

    /// How often each was asked.
    fn calls(&self) -> (usize, usize) {
        (self.better.calls.lock().unwrap().len(), self.other.calls.lock().unwrap().len())
    }
}

use Does::{Fails, Hangs, Opens};

#[tokio::test(start_paused = true)]
async fn s8_the_other_transport_goes_on_with_the_same_session_where_the_better_does_not_get_through() {
    let rig = Rig::new(&[Fails(ErrorKind::Unreachable)], &[Opens]);
    assert_eq!(rig.connect().await, Ok("bosh"));
    assert_eq!(rig.other.calls.lock().unwrap()[..], [Some("s1".to_owned())]);
    // It is begun with from now on, also by the next run.
    assert_eq!(rig.connect().await, Ok("bosh"));
    assert_eq!(rig.calls(), (1, 2));
    let next = Rig::with(&[Opens], &[Opens], rig.state.clone());
    assert_eq!(next.connect().await, Ok("bosh"));
    assert_eq!(next.calls(), (0, 1));
}

#[tokio::test(start_paused = true)]
async fn s8_what_the_relay_says_itself_is_no_reason_to_go_elsewhere() {
    for kind in [ErrorKind::Unauthenticated, ErrorKind::Overloaded, ErrorKind::Replaced, ErrorKind::Internal]
    {
        let rig = Rig::new(&[Fails(kind)], &[Opens]);
        assert_eq!(rig.connect().await, Err(kind));
        assert_eq!(rig.calls(), (1, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn s8_a_network_that_swallows_one_transport_leaves_time_for_the_other() {
    let rig = Rig::new(&[Hangs], &[Opens]);
    let before = tokio::time::Instant::now();
    assert_eq!(rig.connect().await, Ok("bosh"));
    assert_eq!(before.elapsed().as_secs(), FIRST_WITHIN.as_secs());
}

#[tokio::test(start_paused = true)]
async fn s8_the_better_one_is_tried_again_beside_the_session_and_not_at_once_after() {
    let rig = Rig::new(&[Fails(ErrorKind::Unreachable), Fails(ErrorKind::Unreachable), Opens], &[Opens]);
    assert_eq!(rig.connect().await, Ok("bosh"));
    for works in [false, true] {
        let again = rig.auto.again_at().expect("it is tried again");
        tokio::time::sleep_until(again.into()).await;
        let session = rig.auto.connect_better(rig.options()).await;
        assert_eq!(session.is_ok(), works);
        assert_eq!(rig.auto.again_at().is_some_and(|at| at > again), !works);
    }
    assert_eq!(rig.connect().await, Ok("ws"));
    assert_eq!(rig.state.read().transport.as_deref(), Some("ws"));
}

#[tokio::test(start_paused = true)]
async fn f10_a_transport_that_opens_and_brings_nothing_is_left() {
    let rig = Rig::new(&[Opens], &[Opens]);
    for _ in 0..2 {
        assert_eq!(rig.connect().await, Ok("ws"));
        let owner = rig.better.owners.lock().unwrap().pop().unwrap();
        owner.ended(EndReason::Lost);
    }
    assert_eq!(rig.connect().await, Ok("bosh"));
}

#[tokio::test(start_paused = true)]
async fn s8_a_session_that_breaks_after_it_spoke_is_opened_again_over_the_same() {
    let rig = Rig::new(&[Opens], &[Opens]);
    for _ in 0..5 {
        assert_eq!(rig.connect().await, Ok("ws"));
        let owner = rig.better.owners.lock().unwrap().pop().unwrap();
        owner.envelope(Envelope::Pong).unwrap();
        owner.ended(EndReason::Lost);
    }
    assert_eq!(rig.calls(), (5, 0));
}

#[tokio::test(start_paused = true)]
async fn s8_when_nothing_gets_through_nothing_is_learned() {
    let rig = Rig::new(&[Fails(ErrorKind::Unreachable)], &[Fails(ErrorKind::Unreachable)]);
    for round in 1..4 {
        assert_eq!(rig.connect().await, Err(ErrorKind::Unreachable));
        assert_eq!(rig.calls(), (round, round));
    }
    assert_eq!(rig.state.read().transport, None);
}
