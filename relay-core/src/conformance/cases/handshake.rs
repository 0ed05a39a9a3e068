//! Who is let in, and how.

use std::{sync::Arc, time::Duration};

use super::{
    super::{
        Harness, Let, Owner, PATIENCE, connected,
        harness::{accept, options},
    },
    request,
};
use crate::{
    auth::Secret,
    error::ErrorKind,
    ids::SessionId,
    transport::{Incoming, Listener},
};

/// The device learns that its credential is not accepted, and the relay gets no session.
pub async fn a_wrong_token_is_not_let_in<H: Harness>(harness: &H) {
    let mut running = harness.start(Arc::new(Let)).await;
    let mut wrong = options("printer-1");
    wrong.token = Secret::new("something else");
    let listen = async {
        while let Some(Incoming::Session(knock)) = running.listener.accept().await {
            assert!(knock.handshake.await.is_err(), "a wrong token was let in");
        }
    };
    let error = tokio::select! {
        result = running.connector.connect(wrong) => result.expect_err("a wrong token was let in"),
        () = listen => panic!("the listener closed"),
    };
    assert_eq!(error.kind, ErrorKind::Unauthenticated, "{error}");
    assert!(!error.kind.is_retryable());
}

/// A peer whose handshake nobody awaits does not keep the next one out.
pub async fn a_silent_engine_does_not_block_accept<H: Harness>(harness: &H) {
    let mut running = harness.start(Arc::new(Let)).await;
    let first = tokio::spawn({
        let connector = Arc::clone(&running.connector);
        async move { connector.connect(options("printer-1")).await.map(drop) }
    });
    let ignored =
        tokio::time::timeout(PATIENCE, running.listener.accept()).await.expect("the first one knocks");
    let (device, mut relay) = connected(&mut running, "printer-2").await;
    relay.send([request(&device.device, 0, None)]).await.expect("the relay may push");
    device.receive(1).await;
    drop(ignored);
    first.abort();
}

/// Nobody lets the device in: it gives up at its deadline.
pub async fn the_deadline_holds<H: Harness>(harness: &H) {
    let running = harness.start(Arc::new(Let)).await;
    let mut options = options("printer-1");
    options.deadline = (tokio::time::Instant::now() + Duration::from_millis(700)).into_std();
    let connecting = running.connector.connect(options);
    let error = tokio::time::timeout(Duration::from_secs(10), connecting)
        .await
        .expect("connecting ends at its deadline")
        .expect_err("nobody let it in");
    assert!(matches!(error.kind, ErrorKind::TimedOut | ErrorKind::Unreachable), "{error:?}");
}

/// The engine decides under which ID a session runs. The device learns it: the ID asked for if it was granted.
pub async fn the_session_id_in_force_reaches_the_device<H: Harness>(harness: &H) {
    let mut running = harness.start(Arc::new(Let)).await;
    let (mut device, relay) = connected(&mut running, "printer-1").await;
    assert_eq!(device.id, relay.id);
    device.close(crate::transport::CloseReason::Shutdown).await;
    relay.ended().await;

    let wanted: SessionId = relay.id.clone();
    let again = options("printer-1").resuming(Some(wanted.clone()));
    let relay_side = async {
        let session = accept(&mut *running.listener as &mut dyn Listener).await;
        let asked_at_the_door = session.resume.clone();
        let granted = asked_at_the_door.clone();
        (Owner::start(session, granted), asked_at_the_door)
    };
    let (dialled, (relay, asked_at_the_door)) = tokio::join!(running.connector.connect(again), relay_side);
    let session = dialled.expect("the device is let in");
    assert!(session.resumed, "the relay went on with the session that was asked for");
    assert_eq!(session.id, wanted);
    match asked_at_the_door {
        Some(asked) => assert_eq!(asked, wanted),
        // Asked within the session instead.
        None => {
            let asked = relay
                .next(|event| match event {
                    super::super::Event::Resume(session) => Some(session),
                    _ => None,
                })
                .await;
            assert_eq!(asked, wanted);
        }
    }
}
