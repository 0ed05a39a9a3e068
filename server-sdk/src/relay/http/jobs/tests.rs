use std::{future::poll_fn, pin::Pin};

use hyper::body::Body as _;
use relay_core::{Response, app::JobUpdate};
use tokio::time::timeout;

use super::*;

async fn next(body: &mut ReplyBody) -> Option<Value> {
    let frame = poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await?;
    Some(serde_json::from_slice(&frame.unwrap().into_data().unwrap()).unwrap())
}

fn at(bytes: u64) -> JobUpdate {
    JobUpdate { state: JobState::Sending, bytes, note: None }
}

#[tokio::test(start_paused = true)]
async fn a4_lines_come_no_faster_than_eyes_and_no_slower_than_proxies() {
    let (tracked, _writer) = Tracked::alone().await;
    let (pieces, mut body) = ReplyBody::stream();
    let (done, uploaded) = oneshot::channel();
    tokio::spawn(tell(tracked.clone(), pieces, uploaded, || true));
    let mut lines_in = async |seconds: u64, updates: bool| {
        let end = Instant::now() + Duration::from_secs(seconds);
        let mut lines = 0;
        while Instant::now() < end {
            if updates {
                let bytes = tracked.report().borrow().update.bytes + 1;
                tracked.tell(at(bytes), None);
            }
            if timeout(Duration::from_millis(10), next(&mut body)).await.is_ok() {
                lines += 1;
            }
        }
        lines
    };
    assert_eq!(lines_in(1, false).await, 1, "the first comes at once");
    assert_eq!(lines_in(60, false).await, 4, "one in 15 s, though nothing is new");
    let lines = lines_in(10, true).await;
    assert!((4..=6).contains(&lines), "one in 2 s during the upload, not {lines} in 10 s");
    assert!(done.send(Ok(())).is_ok());
    let lines = lines_in(10, true).await;
    assert!((40..=51).contains(&lines), "five a second after it, not {lines} in 10 s");
    tracked.tell(at(7), Some(End::Answered(Response::ok())));
    let mut last = None;
    while let Some(line) = next(&mut body).await {
        last = Some(line);
    }
    let last = last.unwrap();
    assert_eq!((&last["bytes"], &last["outcome"]), (&7.into(), &"answered".into()));
}

#[tokio::test(start_paused = true)]
async fn t17_a_revoked_key_sends_and_hears_no_more() {
    let (tracked, _writer) = Tracked::alone().await;
    let (pieces, mut body) = ReplyBody::stream();
    let (_done, uploaded) = oneshot::channel();
    let start = Instant::now();
    tokio::spawn(tell(tracked, pieces, uploaded, move || start.elapsed() < Duration::from_secs(12)));
    while next(&mut body).await.is_some() {}
    assert!(start.elapsed() <= Duration::from_secs(17), "{:?}", start.elapsed());
}

fn app(name: &str) -> DeviceApp {
    DeviceApp {
        name: AppName::new(name).unwrap(),
        path: format!("/{name}"),
        port: None,
        protocol: name.into(),
    }
}

#[test]
fn a4_a_format_is_compared_by_its_essence() {
    for (format, media_type, taken) in [
        ("application/pdf", "Application/PDF; version=1.7", true),
        ("application/pdf", "application/postscript", false),
        ("image/*", "image/pwg-raster", true),
        ("image/*", "imagex/png", false),
        ("*/*", "a/b", true),
        ("application/pdf", "", false),
    ] {
        assert_eq!(takes(format, media_type), taken, "{format} {media_type}");
    }
}

#[test]
fn a4_the_query_is_the_ticket() {
    let header = |name, query: &str, kind: Option<&str>| {
        header_of(&app(name), Query::read(Some(query)).unwrap(), kind.map(str::to_owned))
    };
    let ticket = header("print", "user=Ann+B&job_name=Min%26utes&copies=2", Some("application/pdf")).unwrap();
    let ticket = PrintTicket::from_header(&ticket).unwrap();
    assert_eq!(ticket.user.as_deref(), Some("Ann B"));
    assert_eq!(ticket.job_name.as_deref(), Some("Min&utes"));
    assert_eq!(ticket.content_type.as_deref(), Some("application/pdf"));
    assert_eq!(ticket.attribute("copies"), Some("2"));
    let scan = header("scan", "dpi=300&user=Ann", None).unwrap();
    assert_eq!(&*scan, "<Job><User>Ann</User><dpi>300</dpi></Job>");
    for bad in ["a%20b=1", "a=1&a=2", "User=x", "%3Ca%3E=1", "user=a%0Ab", "user=%00", "x=%1b[2J"] {
        assert!(header("print", bad, None).is_err(), "{bad}");
    }
}
