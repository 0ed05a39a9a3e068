//! `relay watch`: what it says on its standard output and standard error, and how it ends.
#![cfg(feature = "relay")]
#![allow(clippy::unwrap_used, reason = "tests")]

mod cli_support;
mod http_support;

use std::{
    io::{BufRead, BufReader, Read},
    process::{Child, Command, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, sync_channel},
    thread,
    time::Duration,
};

use cli_support::{Process, program, text};
use http_support::{PATIENCE, Rig, device_id, eventually};
use relay_core::relay::State;
use serde_json::Value;

/// `relay watch` in a process of its own.
struct Watch {
    child: Child,
    out: Receiver<String>,
    err: Receiver<String>,
}

fn lines(from: impl Read + Send + 'static) -> Receiver<String> {
    let (tell, told) = sync_channel(1000);
    thread::spawn(move || BufReader::new(from).lines().map_while(Result::ok).try_for_each(|l| tell.send(l)));
    told
}

impl Watch {
    fn start(url: &str, key: &str, arguments: &[&str]) -> Self {
        let mut command = program();
        command.env("RELAY_URL", url).env("RELAY_KEY", key).arg("watch").args(arguments);
        let mut child =
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let (out, err) = (lines(child.stdout.take().unwrap()), lines(child.stderr.take().unwrap()));
        Self { child, out, err }
    }

    fn said(&self) -> String {
        self.out.recv_timeout(PATIENCE).expect("a line in time")
    }

    fn json(&self) -> Value {
        serde_json::from_str(&self.said()).unwrap()
    }

    /// Waits for words on its standard error.
    fn complained(&self, words: &str) {
        while !self.err.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("no {words:?}")).contains(words) {}
    }

    /// Does something until it is told of.
    fn first(&self, mut happens: impl FnMut()) -> String {
        for _ in 0..400 {
            happens();
            match self.out.recv_timeout(Duration::from_millis(50)) {
                Ok(line) => return line,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        panic!("it tells of nothing: {:?}", self.err.try_iter().collect::<Vec<_>>());
    }

    /// How it ends when it is told to.
    fn end(mut self) -> Option<i32> {
        let told = Command::new("kill").arg(self.child.id().to_string()).status().unwrap();
        assert!(told.success());
        self.child.wait().unwrap().code()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn p4_what_happens_is_a_line_each_for_people_and_for_programs() {
    let rig = Rig::start().await;
    let url = format!("http://{}", rig.address);
    let token = rig.enrol("d").await;
    let people = Watch::start(&url, &rig.admin, &[]);
    let programs = Watch::start(&url, &rig.admin, &["--json", "--type", "presence", "--device", "D"]);
    while metric(&rig, "http_watchers").await < 2 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    rig.connect("d", &token).await.close().await;
    let offline =
        || rig.relay.presence(&device_id("d")).is_some_and(|presence| presence.state == State::Offline);
    eventually(offline).await;
    rig.get("/v1/devices/d/objects/x", &rig.admin).await.expect(503, "device-offline");
    let expected =
        ["  d  online, session 1", "  d  offline, session 1", "  d  GET failed: device-offline (offline)"];
    for expected in expected {
        let said = people.said();
        assert!(said.ends_with(expected), "{said:?}");
        // The time of the event, in UTC.
        assert_eq!((said.len(), &said[10..11], &said[19..20]), (20 + expected.len(), "T", "Z"), "{said:?}");
    }
    for state in ["online", "offline"] {
        let event = programs.json();
        assert_eq!((&event["event"], &event["device"]), (&"presence".into(), &"d".into()));
        assert_eq!((&event["state"], &event["epoch"]), (&state.into(), &1.into()));
        assert!(event["time"].as_str().unwrap().ends_with('Z'), "{event}");
    }
    assert_eq!((people.end(), programs.end()), (Some(0), Some(0)));
}

async fn metric(rig: &Rig, name: &str) -> u64 {
    let text = String::from_utf8(rig.get("/metrics", &rig.admin).await.body).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(&format!("{name} "))).expect("the metric");
    line.parse().unwrap()
}

#[test]
fn p4_it_outlives_its_relay_and_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let relay = Process::start(&data);
    assert!(relay.run(&["enroll", "d"]).status.success());
    let (url, admin) = (relay.url.clone(), relay.admin());
    let watch = Watch::start(&url, &admin, &["--json"]);
    let people = Watch::start(&url, &admin, &[]);
    let ask = |relay: &Process| assert_eq!(relay.run(&["get", "d", "x"]).status.code(), Some(4));
    for watch in [&watch, &people] {
        let line = watch.first(|| ask(&relay));
        assert!(line.contains("device-offline"), "{line}");
    }
    relay.kill();
    watch.complained("\"event\":\"interrupted\"");
    people.complained("trying again");
    let mut command = Process::command(&data);
    command.args(["--listen", url.strip_prefix("http://").unwrap()]);
    let relay = Process::of(command, &data);
    watch.complained("\"event\":\"resumed\"");
    people.complained("connected again");
    // What happened before the relay was killed is told first, then that something may be missing.
    loop {
        if watch.json()["event"] == "reset" {
            break;
        }
    }
    let line = watch.first(|| ask(&relay));
    assert_eq!(serde_json::from_str::<Value>(&line).unwrap()["code"], "device-offline");
    assert_eq!(watch.end(), Some(0));
    assert!(people.out.try_iter().any(|line| line.contains("not known")));
}

#[test]
fn it_ends_as_the_other_subcommands_do_if_there_is_nothing_to_watch() {
    let folder = tempfile::tempdir().unwrap();
    let relay = Process::start(&folder.path().join("data"));
    let nobody = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        format!("http://{}", listener.local_addr().unwrap())
    };
    for (arguments, code, words) in [
        (&["watch", "--relay", &nobody][..], 3, "relay serve"),
        (&["watch", "--key", "wrong"], 1, "RELAY_KEY"),
        (&["watch", "--device", "none"], 1, "relay devices"),
        (&["watch", "--type", "weather"], 2, "presence, request or job"),
        (&["watch", "--device", "a b"], 2, "a b"),
    ] {
        let ended = relay.run(arguments);
        let said = text(&ended.stderr);
        assert_eq!(ended.status.code(), Some(code), "{arguments:?}: {said}");
        assert!(said.contains(words) && ended.stdout.is_empty(), "{arguments:?}: {said}");
    }
}
