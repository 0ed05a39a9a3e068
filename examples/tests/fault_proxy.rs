//! The fault proxy does what it says, seen with plain sockets.

#[path = "support/proxy.rs"]
mod proxy;

use std::{
    io::ErrorKind,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use proxy::{Counts, Cut, FaultProxy, Meddling};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::timeout,
};

const SOON: Duration = Duration::from_secs(5);

/// Gives back what it gets.
async fn echo() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut read, mut write) = stream.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
            });
        }
    });
    address
}

/// Answers each POST with its own body, and writes down the bodies in the order in which they came.
async fn posts() -> (SocketAddr, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let seen = Arc::<Mutex<Vec<String>>>::default();
    let seeing = seen.clone();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let seen = seeing.clone();
            tokio::spawn(async move {
                let mut buffer = Vec::new();
                while stream.read_buf(&mut buffer).await.is_ok_and(|read| read > 0) {
                    let text = String::from_utf8_lossy(&buffer).into_owned();
                    if let Some((_, body)) = text.split_once("\r\n\r\n")
                        && body.ends_with('.')
                    {
                        seen.lock().unwrap().push(body.to_owned());
                        let answer =
                            format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
                        let _ = stream.write_all(answer.as_bytes()).await;
                        buffer.clear();
                    }
                }
            });
        }
    });
    (address, seen)
}

async fn post(stream: &mut TcpStream, body: &str) -> String {
    let request = format!("POST / HTTP/1.1\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b".") {
        let read = timeout(SOON, stream.read_buf(&mut answer)).await.expect("answered soon").unwrap();
        assert!(read > 0, "answered before the end");
    }
    String::from_utf8(answer).unwrap().split_once("\r\n\r\n").unwrap().1.to_owned()
}

async fn cut_by(cut: &'static [Cut]) -> (Result<usize, ErrorKind>, FaultProxy) {
    let proxy = FaultProxy::cutting(echo().await, 1, 30..40, cut).await;
    let mut stream = TcpStream::connect(proxy.address).await.unwrap();
    stream.write_all(b"hello").await.unwrap();
    let mut word = [0; 5];
    timeout(SOON, stream.read_exact(&mut word)).await.unwrap().unwrap();
    assert_eq!(&word, b"hello");
    let end = match timeout(Duration::from_millis(400), stream.read(&mut word)).await {
        Ok(read) => read.map_err(|error| error.kind()),
        Err(_) => Err(ErrorKind::TimedOut),
    };
    (end, proxy)
}

#[tokio::test]
async fn an_idle_connection_is_cut_by_fin() {
    let (end, proxy) = cut_by(&[Cut::Fin]).await;
    assert_eq!(end, Ok(0));
    assert_eq!(Counts::of(&proxy.counts.fin), 1);
}

#[tokio::test]
async fn an_idle_connection_is_cut_by_rst() {
    let (end, proxy) = cut_by(&[Cut::Rst]).await;
    assert_eq!(end, Err(ErrorKind::ConnectionReset));
    assert_eq!(Counts::of(&proxy.counts.rst), 1);
}

#[tokio::test]
async fn an_idle_connection_falls_silent_and_stays_open() {
    let (end, proxy) = cut_by(&[Cut::Silence]).await;
    assert_eq!(end, Err(ErrorKind::TimedOut));
    assert_eq!(Counts::of(&proxy.counts.silence), 1);
}

#[tokio::test]
async fn a_busy_connection_is_left_alone() {
    let proxy = FaultProxy::cutting(echo().await, 1, 300..301, &[Cut::Rst]).await;
    let mut stream = TcpStream::connect(proxy.address).await.unwrap();
    let mut byte = [0];
    for _ in 0..20 {
        stream.write_all(b"x").await.unwrap();
        timeout(SOON, stream.read_exact(&mut byte)).await.unwrap().unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(Counts::of(&proxy.counts.rst), 0);
}

#[tokio::test]
async fn the_cuts_are_drawn_from_all_that_are_given() {
    let proxy = FaultProxy::cutting(echo().await, 7, 1..20, &[Cut::Fin, Cut::Rst, Cut::Silence]).await;
    let mut streams = Vec::new();
    for _ in 0..40 {
        streams.push(TcpStream::connect(proxy.address).await.unwrap());
    }
    let all = async {
        let Counts { fin, rst, silence, .. } = &*proxy.counts;
        while [fin, rst, silence].map(Counts::of).iter().sum::<u64>() < 40 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        [fin, rst, silence].map(Counts::of)
    };
    let cuts = timeout(SOON, all).await.unwrap();
    assert!(cuts.iter().all(|&cuts| cuts > 5), "{cuts:?}");
}

#[tokio::test]
async fn a_repeated_post_arrives_twice_and_is_answered_once() {
    let (upstream, seen) = posts().await;
    let proxy = FaultProxy::meddling(upstream, 1, Meddling { repeat: 100, reorder: 0 }).await;
    let mut stream = TcpStream::connect(proxy.address).await.unwrap();
    assert_eq!(post(&mut stream, "one.").await, "one.");
    assert_eq!(post(&mut stream, "two.").await, "two.");
    assert_eq!(*seen.lock().unwrap(), ["one.", "one.", "two.", "two."]);
    assert_eq!((Counts::of(&proxy.counts.posts), Counts::of(&proxy.counts.repeated)), (2, 2));
}

#[tokio::test]
async fn a_post_held_back_is_overtaken_by_a_later_one() {
    let (upstream, seen) = posts().await;
    let proxy = FaultProxy::meddling(upstream, 3, Meddling { repeat: 0, reorder: 50 }).await;
    let mut streams =
        [TcpStream::connect(proxy.address).await.unwrap(), TcpStream::connect(proxy.address).await.unwrap()];
    let mut sent = Vec::new();
    for round in 0..20 {
        let (early, late) = (format!("{round} early."), format!("{round} late."));
        let [first, second] = &mut streams;
        let (one, two) = tokio::join!(post(first, &early), async {
            tokio::time::sleep(Duration::from_millis(5)).await;
            post(second, &late).await
        });
        assert_eq!((&one, &two), (&early, &late));
        sent.extend([early, late]);
    }
    let reordered = Counts::of(&proxy.counts.reordered);
    let seen = seen.lock().unwrap();
    let overtaken = seen.chunks(2).filter(|pair| pair[0].contains("late")).count();
    assert!(reordered > 3 && overtaken > 3, "{reordered} reordered, {overtaken} overtaken");
    let mut sorted = seen.clone();
    sorted.sort();
    sent.sort();
    assert_eq!(sorted, sent, "nothing lost, nothing doubled");
}

#[tokio::test]
async fn without_a_fault_to_draw_it_is_a_plain_proxy() {
    let (upstream, seen) = posts().await;
    let proxy = FaultProxy::meddling(upstream, 1, Meddling { repeat: 0, reorder: 0 }).await;
    let mut stream = TcpStream::connect(proxy.address).await.unwrap();
    for _ in 0..10 {
        assert_eq!(post(&mut stream, "x.").await, "x.");
    }
    assert_eq!(seen.lock().unwrap().len(), 10);
    assert_eq!(Counts::of(&proxy.counts.connections), 1);
}
