//! Jobs over raw HTTP: the caller's side byte by byte, and a device that reads its data beside its session.
#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]

use std::{net::SocketAddr, time::Duration};

use relay_core::{
    Response,
    app::{Offer, Progress},
    envelope::Envelope,
    ids::RequestId,
    request::Status,
};
use serde_json::Value;
use tokio::time::timeout;

use crate::http_support::{Device, Got, PATIENCE, Rig, Wire, head};

/// Bytes of which no two stretches look alike.
pub fn document(length: usize) -> Vec<u8> {
    (0..length).map(|n| (n * 31 % 251) as u8 ^ (n >> 8) as u8).collect()
}

/// A device with a print app and what else is said.
pub async fn printer(rig: &Rig, id: &str, formats: &str) -> Device {
    let device = rig.device(id).await;
    let json = format!(
        r#"{{"formats":[{formats}],"apps":[{{"name":"Print","path":"/print","protocol":"print"}},
            {{"name":"scan","path":"/scan","protocol":"scan"}}]}}"#
    );
    let got = rig.put_json(&format!("/v1/devices/{id}"), &device.token, &json).await;
    assert_eq!(got.status, 201, "{got:?}");
    device
}

/// The next offer that a device gets.
pub async fn offered(device: &mut Device) -> (RequestId, Offer) {
    loop {
        if let Envelope::Request { id, request, .. } = device.envelope().await {
            let offer = request.offer.as_deref().expect("an offer").clone();
            return (id, offer);
        }
    }
}

/// Waits until a device hears that nobody wants the job any more.
pub async fn cancelled(device: &mut Device, job: &RequestId) {
    loop {
        if let Envelope::Cancel { id } = device.envelope().await
            && id == *job
        {
            return;
        }
    }
}

pub async fn done(device: &mut Device, id: &RequestId) {
    device.answer(id.clone(), Response::ok()).await;
}

pub async fn error(device: &mut Device, id: &RequestId, code: &str, words: &str) {
    device.answer(id.clone(), Response::error(Status::parse(code).unwrap(), words)).await;
}

pub async fn progress(device: &mut Device, id: &RequestId, bytes: u64, note: &str) {
    let progress = Progress::new(bytes).with_note(note);
    device.push(Envelope::Progress { id: id.clone(), progress }).await;
}

/// Where a relay is.
pub trait Place: Sync {
    fn address(&self) -> SocketAddr;
}

impl Place for Rig {
    fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Place for SocketAddr {
    fn address(&self) -> SocketAddr {
        *self
    }
}

/// One part of a job's data.
pub async fn part(rig: &impl Place, token: &str, id: &RequestId, range: &str) -> Got {
    let mut wire = Wire::connect(rig.address()).await;
    let path = format!("/v1/requests/{id}/body");
    wire.send(&head("GET", &path, token, &[("range", range), ("connection", "close")], None)).await;
    wire.read().await.expect("an answer")
}

/// All of a job's data, part by part, up to its end. What is there of a part, if it breaks off, is gone on with.
pub async fn read_all(rig: &impl Place, token: &str, id: &RequestId) -> Vec<u8> {
    read_on(rig, token, id, Vec::new()).await
}

/// The same, of which some was read before.
pub async fn read_on(rig: &impl Place, token: &str, id: &RequestId, mut all: Vec<u8>) -> Vec<u8> {
    timeout(PATIENCE * 3, async {
        loop {
            let got = part(rig, token, id, &format!("bytes={}-", all.len())).await;
            match got.status {
                206 => {
                    let range = got.field("content-range").unwrap().to_owned();
                    let from = format!("bytes {}-{}/", all.len(), all.len() + got.body.len() - 1);
                    assert!(range.starts_with(&from), "{range} for {from}");
                    all.extend_from_slice(&got.body);
                }
                416 => {
                    assert_eq!(got.field("content-range"), Some(&*format!("bytes */{}", all.len())));
                    return;
                }
                503 => assert_eq!(got.code(), "no-data-yet"),
                _ => panic!("{got:?}"),
            }
        }
    })
    .await
    .expect("the data comes to its end");
    all
}

/// A call whose answer is read line by line while its body may still be sent.
pub struct Caller {
    pub wire: Wire,
    chunked: bool,
    ended: bool,
}

impl Caller {
    /// Sends the head.
    pub async fn start(
        rig: &impl Place,
        method: &str,
        path: &str,
        key: &str,
        fields: &[(&str, &str)],
        length: Option<usize>,
    ) -> Self {
        let mut wire = Wire::connect(rig.address()).await;
        wire.send(&head(method, path, key, fields, length)).await;
        Self { wire, chunked: false, ended: false }
    }

    /// Prints: announces `length` bytes and waits for `100 Continue` with them.
    pub async fn print(rig: &impl Place, device: &str, query: &str, key: &str, length: usize) -> Self {
        let path = format!("/v1/devices/{device}/apps/print?{query}");
        let fields = [("expect", "100-continue"), ("content-type", "application/pdf")];
        Self::start(rig, "POST", &path, key, &fields, Some(length)).await
    }

    /// Goes on with the upload of `id`.
    pub async fn resume(rig: &impl Place, id: &str, key: &str, offset: usize, length: usize) -> Self {
        let offset = offset.to_string();
        let fields = [("upload-offset", &*offset), ("content-type", "application/partial-upload")];
        Self::start(rig, "PATCH", &format!("/v1/requests/{id}"), key, &fields, Some(length)).await
    }

    async fn text(&mut self, end: &str) -> String {
        timeout(PATIENCE, async {
            loop {
                let at = self.wire.read.windows(end.len()).position(|bytes| bytes == end.as_bytes());
                if let Some(at) = at {
                    let text: Vec<u8> = self.wire.read.drain(..at + end.len()).collect();
                    return String::from_utf8(text).unwrap();
                }
                assert!(self.wire.more().await, "the answer broke off: {:?}", self.wire.read);
            }
        })
        .await
        .expect("an answer in time")
    }

    /// The next head: its status and fields. The body is to be read after it.
    pub async fn status(&mut self) -> Got {
        let text = self.text("\r\n\r\n").await;
        let mut lines = text.split("\r\n");
        let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
        let fields: Vec<(String, String)> = lines
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
            .collect();
        let mut got = Got { status, fields, body: Vec::new() };
        self.chunked = got.field("transfer-encoding") == Some("chunked");
        if let Some(length) = got.field("content-length").map(|length| length.parse::<usize>().unwrap()) {
            while self.wire.read.len() < length {
                assert!(self.wire.more().await, "the body broke off");
            }
            got.body = self.wire.read.drain(..length).collect();
        }
        got
    }

    /// Expects `100 Continue`.
    pub async fn go_on(&mut self) {
        let got = self.status().await;
        assert_eq!(got.status, 100, "{got:?}");
    }

    /// Expects 200, and gives the job's ID.
    pub async fn accepted(&mut self) -> String {
        let got = self.status().await;
        assert_eq!(got.status, 200, "{got:?}");
        assert_eq!(got.field("content-type"), Some("application/x-ndjson"));
        assert!(self.chunked);
        got.field("relay-request-id").unwrap().to_owned()
    }

    /// The next line of progress; `None` at the end of an answer that is whole.
    pub async fn line(&mut self) -> Option<Value> {
        if self.ended {
            return None;
        }
        let size = self.text("\r\n").await;
        let size = usize::from_str_radix(size.trim(), 16).unwrap();
        if size == 0 {
            self.ended = true;
            return None;
        }
        while self.wire.read.len() < size + 2 {
            assert!(self.wire.more().await, "the answer broke off");
        }
        let line: Vec<u8> = self.wire.read.drain(..size + 2).collect();
        Some(serde_json::from_slice(line.trim_ascii_end()).unwrap())
    }

    /// Reads lines until the job is in `state`.
    #[track_caller]
    pub fn until(&mut self, state: &'static str) -> impl Future<Output = Value> + '_ {
        let place = std::panic::Location::caller();
        async move {
            let mut lines = Vec::new();
            while let Some(line) = self.line().await {
                if line["state"] == state {
                    return line;
                }
                lines.push(line);
            }
            panic!("never {state}, but {lines:?} ({place})")
        }
    }

    /// The last line, once the answer is whole.
    pub async fn last(&mut self) -> Value {
        let mut last = Value::Null;
        while let Some(line) = self.line().await {
            last = line;
        }
        last
    }

    /// Whether nothing comes for a while.
    pub async fn is_silent(&mut self) -> bool {
        self.wire.is_open_after(Duration::from_millis(200)).await
    }
}
