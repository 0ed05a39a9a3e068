//! Responses that are not the one: another device's, a second one, a late one, one to nothing. What each is met with,
//! and that the call goes on or ends as it should.

#[path = "support/credential.rs"]
mod enrol;
#[path = "support/host.rs"]
mod host;
#[path = "support/http.rs"]
mod http;
#[path = "support/raw_device.rs"]
mod raw_device;
#[allow(dead_code, reason = "the part that a device by hand needs")]
#[path = "../src/bin/fleet/bosh/wire.rs"]
mod wire;
#[path = "../src/bin/fleet/xml.rs"]
mod xml;

use std::{net::SocketAddr, thread, time::Duration};

use host::Host;
use http::{Answer, ask};
use raw_device::RawDevice;

/// The relay, two devices that are logged in by hand, and a service.
struct Scene {
    relay: SocketAddr,
    key: String,
    tokens: [String; 2],
    devices: [RawDevice; 2],
}

impl Scene {
    /// Plays `act` beside a relay.
    async fn play(act: impl FnOnce(Self) + Send + 'static) {
        let host = Host::start().await;
        let (relay, key) = (host.address, host.key().await);
        let tokens = [host.enrol("a").await, host.enrol("b").await];
        let play = tokio::task::spawn_blocking(move || {
            let devices =
                [RawDevice::log_in(relay, "a", &tokens[0]), RawDevice::log_in(relay, "b", &tokens[1])];
            devices.iter().for_each(|device| device.wait_at_most(Duration::from_secs(10)));
            act(Self { relay, key, tokens, devices });
        });
        play.await.unwrap();
    }

    /// A service's call to device a, which waits for its answer on a thread of its own.
    fn call(&self, wait: u32) -> thread::JoinHandle<Answer> {
        let fields = [format!("Authorization: Bearer {}", self.key), format!("Prefer: wait={wait}")];
        let relay = self.relay;
        thread::spawn(move || {
            let fields: Vec<_> = fields.iter().map(String::as_str).collect();
            ask(relay, "GET /v1/devices/a/objects/x", &fields, b"").unwrap()
        })
    }

    /// Device number `device` answers by HTTP.
    fn respond(&self, device: usize, request: &str, body: &[u8]) -> (u16, String) {
        let bearer = format!("Authorization: Bearer {}", self.tokens[device]);
        let line = format!("POST /v1/requests/{request}/response");
        let answer = ask(self.relay, &line, &[&bearer, "Content-Type: text/plain"], body).unwrap();
        let kind = if answer.body.is_empty() {
            String::new()
        } else {
            answer.json()["type"].as_str().unwrap().into()
        };
        (answer.status, kind.trim_start_matches("urn:relay:error:").to_owned())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t4_q4_each_wrong_response_is_met_with_its_own_status_and_the_call_goes_on() {
    Scene::play(|mut scene| {
        let call = scene.call(10);
        let request = scene.devices[0].pushed().unwrap().request;

        assert_eq!(scene.respond(1, &request, b"of b"), (403, "forbidden".into()));
        let nothing = format!("{}x", &request[..request.len() - 1]);
        assert_eq!(scene.respond(0, &nothing, b"to nothing"), (404, "unknown-request".into()));
        assert!(!call.is_finished(), "the call goes on");

        assert_eq!(scene.respond(0, &request, b"of a"), (204, String::new()));
        let answer = call.join().unwrap();
        assert_eq!((answer.status, answer.text().as_str()), (200, "of a"));
        assert_eq!(answer.field("relay-request-id"), Some(request.as_str()));

        assert_eq!(scene.respond(0, &request, b"again"), (409, "already-answered".into()));
        assert_eq!(scene.respond(1, &request, b"of b again"), (403, "forbidden".into()));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn q3_a_late_response_is_too_late_for_good() {
    Scene::play(|mut scene| {
        let call = scene.call(1);
        let request = scene.devices[0].pushed().unwrap().request;
        let answer = call.join().unwrap();
        assert_eq!((answer.status, answer.field("relay-outcome")), (504, Some("sent")));
        assert_eq!(answer.json()["type"], "urn:relay:error:device-timeout");
        for _ in 0..2 {
            assert_eq!(scene.respond(0, &request, b"late"), (410, "too-late".into()));
        }
        assert_eq!(scene.respond(1, &request, b"late and of b"), (403, "forbidden".into()));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t4_q4_the_same_in_the_session_is_acknowledged_with_its_word() {
    fn answer_in_session(device: &mut RawDevice, request: &str, words: &str) -> String {
        device.send(&format!(
            "<iq type='result' id='{request}' xmlns='jabber:client'><response xmlns='urn:relay:1' id='{request}'>\
             <body type='text/plain'>{words}</body></response></iq>"
        ));
        loop {
            let body = device.receive().unwrap();
            if let Some(ack) = body.split("<ack").nth(1) {
                assert_eq!(xml::attribute(ack, "id"), Some(request));
                return xml::attribute(ack, "outcome").unwrap().to_owned();
            }
        }
    }

    Scene::play(|mut scene| {
        let call = scene.call(10);
        let request = scene.devices[0].pushed().unwrap().request;
        let [a, b] = &mut scene.devices;
        assert_eq!(answer_in_session(b, &request, "of b"), "forbidden");
        assert!(!call.is_finished(), "the call goes on");
        assert_eq!(answer_in_session(a, &request, "of a"), "accepted");
        let answer = call.join().unwrap();
        assert_eq!((answer.status, answer.text().as_str()), (200, "of a"));
        assert_eq!(answer_in_session(a, &request, "again"), "already-answered");

        let late = scene.call(1);
        let [a, _] = &mut scene.devices;
        let request = a.pushed().unwrap().request;
        assert_eq!(late.join().unwrap().status, 504);
        assert_eq!(answer_in_session(a, &request, "late"), "too-late");
        let nothing = format!("{}x", &request[..request.len() - 1]);
        assert_eq!(answer_in_session(a, &nothing, "to nothing"), "unknown");
    })
    .await;
}
