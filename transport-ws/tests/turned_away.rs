//! Whoever knocks and finds no room is told the truth: that it may come back, and not that there is nothing for it.

mod support;

use std::{
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use http::request::Parts;
use relay_core::{
    auth::{AuthError, Authenticator, Credentials, Principal, ScramHash, ScramVerifier},
    ids::DeviceId,
    transport::{Incoming, Listener},
};
use support::{
    ByName, PATIENCE,
    channel::{PATH, app},
};
use transport_ws::{Refusal, WsListener, WsManager, WsServerConfig};

const PEER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);
const BUSY: Refusal = Refusal::Busy { retry_after: Duration::from_secs(2) };

fn manager(knocks: usize) -> (WsManager, WsListener) {
    let mut config = WsServerConfig::default();
    config.knocks = knocks;
    WsManager::new(config, Arc::new(ByName))
}

fn head(path: &str, protocol: &str) -> Parts {
    let request = http::Request::builder()
        .uri(path)
        .header("upgrade", "websocket")
        .header("connection", "upgrade")
        .header("sec-websocket-version", "13")
        .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==")
        .header("sec-websocket-protocol", protocol)
        .header("authorization", "Bearer printer-1");
    request.body(()).unwrap().into_parts().0
}

fn heads() -> [Parts; 2] {
    [head("/ws", "control"), head(PATH, "print")]
}

async fn next(listener: &mut WsListener) -> Incoming {
    tokio::time::timeout(PATIENCE, listener.accept()).await.expect("in time").expect("somebody")
}

#[tokio::test]
async fn x4_a_knock_that_the_owner_drops_may_come_back() {
    for head in heads() {
        let (manager, mut listener) = manager(8);
        let (refused, ()) =
            tokio::join!(manager.upgrade(&head, PEER), async { drop(next(&mut listener).await) });
        assert_eq!(refused.unwrap_err(), BUSY, "{}", head.uri);
        assert_eq!(manager.channels(), 0, "its place is free again");
    }
}

#[tokio::test]
async fn x4_beyond_those_who_wait_for_the_owner_one_may_come_back() {
    for head in heads() {
        let (manager, mut listener) = manager(1);
        let waiting = manager.upgrade(&head, PEER);
        tokio::pin!(waiting);
        tokio::select! {
            biased;
            decided = &mut waiting => panic!("nobody looked at it: {decided:?}"),
            () = tokio::task::yield_now() => {}
        }
        assert_eq!(manager.upgrade(&head, PEER).await.unwrap_err(), BUSY, "{}", head.uri);
        // The one that waits has lost nothing.
        let (_, ()) =
            tokio::join!(async { tokio::time::timeout(PATIENCE, waiting).await.expect("in time") }, async {
                match next(&mut listener).await {
                    Incoming::Channel(knock) => drop((knock.handshake)(None).await),
                    other => drop(other),
                }
            });
    }
}

#[tokio::test]
async fn l2_an_owner_that_goes_takes_nobody_in_and_says_so() {
    for head in heads() {
        let (manager, listener) = manager(8);
        let (refused, ()) = tokio::join!(manager.upgrade(&head, PEER), async {
            tokio::task::yield_now().await;
            drop(listener);
        });
        assert_eq!(refused.unwrap_err(), Refusal::Closed, "{}", head.uri);
        assert_eq!(manager.upgrade(&head, PEER).await.unwrap_err(), Refusal::Closed);
    }
}

/// Lets in the device `printer-1` until it is told not to.
#[derive(Debug)]
struct Revocable(AtomicBool);

#[async_trait]
impl Authenticator for Revocable {
    async fn authenticate(&self, _: &Credentials) -> Result<Principal, AuthError> {
        if self.0.load(Ordering::SeqCst) {
            return Err(AuthError::Rejected);
        }
        Ok(Principal::Device(DeviceId::new("printer-1").unwrap()))
    }

    async fn verifier(&self, _: &DeviceId, _: ScramHash) -> Result<ScramVerifier, AuthError> {
        Err(AuthError::Unavailable)
    }
}

#[tokio::test]
async fn t17_a_credential_that_is_revoked_while_the_owner_makes_up_its_mind_opens_no_channel() {
    let revoked = Arc::new(Revocable(AtomicBool::new(false)));
    let (manager, mut listener) = WsManager::new(WsServerConfig::default(), revoked.clone());
    let [_, head] = heads();
    let (refused, ()) = tokio::join!(manager.upgrade(&head, PEER), async {
        let Incoming::Channel(knock) = next(&mut listener).await else { panic!("a channel") };
        revoked.0.store(true, Ordering::SeqCst);
        (knock.handshake)(Some(app())).await.expect_err("it is opened for nobody");
    });
    assert_eq!(refused.unwrap_err(), Refusal::Unauthenticated);
}

#[tokio::test]
async fn a3_that_there_is_no_such_job_is_said_by_the_owner_alone() {
    let (manager, mut listener) = manager(8);
    let [_, head] = heads();
    let (refused, ()) = tokio::join!(manager.upgrade(&head, PEER), async {
        let Incoming::Channel(knock) = next(&mut listener).await else { panic!("a channel") };
        (knock.handshake)(None).await.expect_err("there is none");
    });
    assert_eq!(refused.unwrap_err(), Refusal::UnknownJob);
    // An app's name is not looked at here, its protocol is said as it was offered.
    let (accepted, ()) = tokio::join!(manager.upgrade(&head, PEER), async {
        let Incoming::Channel(knock) = next(&mut listener).await else { panic!("a channel") };
        tokio::spawn((knock.handshake)(Some(app())));
    });
    let accepted = accepted.unwrap();
    assert!(accepted.fields().any(|field| field == ("sec-websocket-protocol", "print")));
}
