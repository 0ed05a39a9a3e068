//! What is pushed arrives: in order, once, whole.

use std::{sync::Arc, time::Duration};

use super::{super::Harness, contents, id, pair, request, response};
use crate::{
    app::{Offer, Progress},
    envelope::Envelope,
    ids::AppName,
    outcome::Disposition,
    request::{Body, Request},
};

/// Requests arrive in the order in which they were taken, each once.
pub async fn in_order_from_the_relay<H: Harness>(harness: &H) {
    let (device, mut relay, _running) = pair(harness).await;
    let sent: Vec<_> =
        (0..50).map(|n| request(&device.device, n, Some(Body::text(format!("<{n}&>"))))).collect();
    relay.send(sent.clone()).await.expect("the relay may push");
    assert_eq!(contents(device.receive(50).await), contents(sent));
    assert_eq!(device.unread(), 0, "something arrived twice");
}

/// Responses arrive in the order in which they were taken, each once.
pub async fn in_order_from_the_device<H: Harness>(harness: &H) {
    let (mut device, relay, _running) = pair(harness).await;
    let sent: Vec<_> = (0..50).map(|n| response(n, Some(Body::text(format!("\"{n}'"))))).collect();
    device.send(sent.clone()).await.expect("the device may push");
    assert_eq!(contents(relay.receive(50).await), contents(sent));
    assert_eq!(relay.unread(), 0, "something arrived twice");
}

/// Bodies come out as they went in: none, empty, text with every awkward character, all byte values, the largest.
pub async fn empty_and_largest_bodies<H: Harness>(harness: &H) {
    let (mut device, mut relay, _running) = pair(harness).await;
    let every_byte: Vec<u8> = (0..=255).collect();
    let bodies = [
        None,
        Some(Body::new("application/octet-stream", Vec::new())),
        Some(Body::text("")),
        Some(Body::text("  \r\n\t ]]> <![CDATA[ & &amp; \u{1f5a8} \u{fffd} ")),
        Some(Body::new("text/plain", vec![0xff, 0x00, 0xfe])),
        Some(Body::new("application/pdf", every_byte)),
        Some(Body::new("application/octet-stream", super::bytes(harness.info().max_body))),
    ];
    for (n, body) in bodies.iter().enumerate() {
        let sent = vec![request(&device.device, n, body.clone())];
        relay.send(sent.clone()).await.expect("the relay may push");
        assert_eq!(contents(device.receive(1).await), contents(sent), "request body {n}");
        let sent = vec![response(n, body.clone())];
        device.send(sent.clone()).await.expect("the device may push");
        assert_eq!(contents(relay.receive(1).await), contents(sent), "response body {n}");
    }
}

/// Everything that may travel on a session does.
pub async fn every_kind_of_envelope<H: Harness>(harness: &H) {
    let (mut device, mut relay, _running) = pair(harness).await;
    let verdicts = [
        Disposition::Accepted,
        Disposition::AlreadyAnswered,
        Disposition::TooLate,
        Disposition::Unknown,
        Disposition::Forbidden,
    ];
    let mut to_device: Vec<_> = verdicts
        .iter()
        .enumerate()
        .map(|(n, &disposition)| Envelope::Ack { id: id(n), disposition })
        .collect();
    let app = AppName::new("print").expect("the kit's app names are valid");
    let close = Envelope::Close { id: id(8), app };
    to_device.extend([Envelope::Cancel { id: id(9) }, close.clone(), Envelope::Ping, Envelope::Pong]);
    to_device.push(Envelope::Drain {
        retry_after: Duration::from_secs(7),
        to: Some("https://relay.example/".into()),
    });
    relay.send(to_device.clone()).await.expect("the relay may push");
    assert_eq!(device.receive(to_device.len()).await, to_device);
    let progress = Progress::new(u64::MAX).with_note("page <1> & 'two'");
    let progress = Envelope::Progress { id: id(7), progress };
    let to_relay = vec![Envelope::Received { id: id(1) }, progress, close, Envelope::Ping, Envelope::Pong];
    device.send(to_relay.clone()).await.expect("the device may push");
    assert_eq!(relay.receive(to_relay.len()).await, to_relay);
}

/// A job is offered. Where channels are, the header may come there.
pub async fn a_job_is_offered<H: Harness>(harness: &H) {
    let (device, mut relay, _running) = pair(harness).await;
    let app = AppName::new("print").expect("the kit's app names are valid");
    let header: Box<str> = "<PrintJobRequest><Job><User>a&amp;b</User></Job></PrintJobRequest>".into();
    let mut request = Request::job(relay.device.clone(), Offer::new(app.clone(), Some(header.clone())));
    request.traceparent = Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into());
    let deadline = (tokio::time::Instant::now() + Duration::from_secs(60)).into_std();
    let sent = Envelope::Request { id: id(1), request: Arc::new(request.clone()), deadline };
    relay.send(vec![sent]).await.expect("the relay may push");
    let got = device.receive(1).await.pop();
    let Some(Envelope::Request { id: got_id, request: got, .. }) = got else { panic!("no request: {got:?}") };
    let offer = got.offer.as_ref().expect("a job has an offer");
    assert_eq!((got_id, &offer.app, &got.traceparent), (id(1), &app, &request.traceparent));
    assert!(offer.header == Some(header) || (harness.info().channels && offer.header.is_none()), "{offer:?}");
}
