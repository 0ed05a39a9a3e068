//! The client's rules, one by one, in virtual time.

use std::time::Duration;

use relay_core::{error::ErrorKind, transport::EndReason, xml::Limits};

use super::*;
use crate::wire::{TerminalCondition, ns};

mod answers;
mod idle;
mod login;
mod model;
mod requests;

/// A POST that is under way.
#[derive(Debug)]
struct Posted {
    exchange: ExchangeId,
    post: Post,
    body: Element,
}

impl Posted {
    fn rid(&self) -> u64 {
        self.body.attr("rid").unwrap().parse().unwrap()
    }

    /// The texts of the messages in it.
    fn texts(&self) -> Vec<String> {
        self.body.children().map(|payload| payload.text().into_owned()).collect()
    }
}

/// What became of a connection that was idle for so long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Idle {
    Survived(Duration),
    Cut(Duration, bool),
}

/// A machine with its clock and everything that came out of it.
struct Rig {
    machine: ClientMachine,
    now: Instant,
    posts: Vec<Posted>,
    abandoned: Vec<ExchangeId>,
    payloads: Vec<Element>,
    confirmed: u64,
    reachable: Vec<bool>,
    idle: Vec<Idle>,
    ended: Option<End>,
    wake: Option<Instant>,
}

#[expect(clippy::disallowed_methods, reason = "any instant will do as the beginning of virtual time")]
fn beginning() -> Instant {
    Instant::now()
}

fn settings() -> ClientSettings {
    let mut settings = ClientSettings::new("example.net");
    settings.gather = Duration::ZERO;
    settings
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

const SESSION: &str =
    "sid='s1' wait='50' hold='1' requests='2' inactivity='60' polling='3' maxpause='120' ver='1.11'";

fn body(attributes: &str, payloads: &str) -> String {
    format!("<body {attributes} xmlns='{}' xmlns:stream='{}'>{payloads}</body>", ns::BOSH, ns::STREAMS)
}

fn message(text: &str) -> String {
    format!("<message xmlns='jabber:client'>{text}</message>")
}

fn stanza(text: impl Into<String>) -> Element {
    Element::new(ns::CLIENT, "message").with_text(text)
}

impl Rig {
    fn new(settings: ClientSettings) -> Self {
        let now = beginning();
        let machine = ClientMachine::new(settings, 1_000, 7, now);
        let mut rig = Self {
            machine,
            now,
            posts: Vec::new(),
            abandoned: Vec::new(),
            payloads: Vec::new(),
            confirmed: 0,
            reachable: Vec::new(),
            idle: Vec::new(),
            ended: None,
            wake: None,
        };
        rig.input(Input::Open);
        rig
    }

    /// A session that exists, with its first empty request (RID 1002) under way.
    fn open() -> Self {
        Self::open_as(settings(), SESSION)
    }

    fn open_as(settings: ClientSettings, granted: &str) -> Self {
        let mut rig = Self::new(settings);
        rig.reply(1_001, &body(granted, "<stream:features/>"));
        rig.payloads.clear();
        rig
    }

    fn input(&mut self, input: Input) {
        self.machine.handle_input(self.now, input);
        loop {
            match self.machine.poll_output() {
                Output::Post { exchange, post } => {
                    let body = Element::parse(&post.body, &Limits::default()).unwrap();
                    assert!(body.is(ns::BOSH, "body"));
                    self.posts.push(Posted { exchange, post, body });
                }
                Output::Abandon(exchange) => {
                    self.posts.retain(|posted| posted.exchange != exchange);
                    self.abandoned.push(exchange);
                }
                Output::Payload(payload) => self.payloads.push(payload),
                Output::Confirmed(tag) => self.confirmed = tag,
                Output::Reachable(reachable) => self.reachable.push(reachable),
                Output::Survived { idle } => self.idle.push(Idle::Survived(idle)),
                Output::Cut { idle, seen } => self.idle.push(Idle::Cut(idle, seen)),
                Output::Created { .. } | Output::Alive => {}
                Output::Ended(end) => assert!(self.ended.replace(end).is_none(), "ended twice"),
                Output::WakeAt(wake) => {
                    self.wake = wake;
                    return;
                }
            }
        }
    }

    /// Lets time pass, waking the machine whenever it asks for it.
    fn pass(&mut self, duration: Duration) {
        let until = self.now + duration;
        let mut wakes = 0;
        while let Some(wake) = self.wake.filter(|wake| *wake <= until) {
            assert!(wake >= self.now || wakes < 3, "the machine spins");
            wakes = if wake > self.now { 0 } else { wakes + 1 };
            self.now = self.now.max(wake);
            self.input(Input::Woken);
        }
        self.now = until;
        self.input(Input::Woken);
    }

    fn send(&mut self, text: &str) {
        self.input(Input::Send { payload: stanza(text), tag: None });
    }

    fn tagged(&mut self, text: &str, tag: u64) {
        self.input(Input::Send { payload: stanza(text), tag: Some(tag) });
    }

    fn take(&mut self, rid: u64) -> Posted {
        let rids: Vec<u64> = self.posts.iter().map(Posted::rid).collect();
        let at =
            rids.iter().rposition(|posted| *posted == rid).unwrap_or_else(|| panic!("{rid} not in {rids:?}"));
        self.posts.remove(at)
    }

    /// Answers the POST of `rid` that is under way.
    fn reply(&mut self, rid: u64, document: &str) {
        self.reply_status(rid, 200, document);
    }

    fn reply_status(&mut self, rid: u64, status: u16, document: &str) {
        let exchange = self.take(rid).exchange;
        let reply = Reply::new(status, document.to_owned());
        self.input(Input::Replied { exchange, reply });
    }

    fn empty(&mut self, rid: u64) {
        self.reply(rid, &body("", ""));
    }

    fn fail(&mut self, rid: u64) {
        let exchange = self.take(rid).exchange;
        self.input(Input::Failed { exchange, kind: ExchangeErrorKind::Interrupted });
    }

    fn rids(&self) -> Vec<u64> {
        self.posts.iter().map(Posted::rid).collect()
    }

    fn texts(&self) -> Vec<String> {
        self.payloads.iter().map(|payload| payload.text().into_owned()).collect()
    }
}
