//! A session with any XMPP server.

use std::{collections::VecDeque, fmt, sync::Arc, time::Duration};

use relay_core::{error::TransportError, xml::Element};
use tokio::sync::mpsc;

use super::driver::{self, Driver, Established, Receiver, Shared};
use crate::{
    exchange::Exchange,
    proto::client::{ClientSettings, ClientStats, End, Input, login::Account},
};

/// Stanzas received and not yet asked for.
const INBOX: usize = 64;
/// Stanzas kept beyond that, before the session is given up.
const MAX_PENDING: usize = 2_048;

/// Logs in to one XMPP server over BOSH.
#[derive(Debug, Clone)]
pub struct XmppClient {
    exchange: Arc<dyn Exchange>,
    settings: ClientSettings,
}

impl XmppClient {
    /// A client of the domain in `settings`, which it reaches over `exchange`.
    pub fn over(exchange: Arc<dyn Exchange>, settings: ClientSettings) -> Self {
        Self { exchange, settings }
    }

    /// A client of `domain`, whose connection manager is at `url`.
    ///
    /// # Errors
    /// As [`ReqwestExchange::new`](crate::http::ReqwestExchange::new).
    #[cfg(feature = "reqwest")]
    pub fn connecting_to(url: &str, domain: &str) -> Result<Self, TransportError> {
        let exchange = crate::http::ReqwestExchange::new(crate::http::HttpSettings::new(url))?;
        Ok(Self::over(Arc::new(exchange), ClientSettings::new(domain)))
    }

    /// Creates a session, logs `account` in and binds a resource, all `within` a time.
    ///
    /// # Errors
    /// As [`Connector::connect`](relay_core::transport::Connector::connect).
    ///
    /// # Cancel safety
    /// Dropped half-way, the server ends what there is after its log-in time-out.
    pub async fn log_in(&self, account: Account, within: Duration) -> Result<XmppSession, TransportError> {
        let deadline = driver::now() + within;
        let exchange = Arc::clone(&self.exchange);
        let established = Driver::log_in(exchange, self.settings.clone(), account, None, deadline).await?;
        let Established { driver, login, sid } = established;
        let (inbox, stanzas) = mpsc::channel(INBOX);
        let shared = Arc::clone(&driver.shared);
        tokio::spawn(driver.run(Inbox { inbox, pending: VecDeque::new() }));
        Ok(XmppSession { shared, stanzas, jid: login.jid, sid })
    }
}

/// A session of a logged-in client. Pings (XEP-0199) are answered for it; every other iq that asks is its owner's to
/// answer (RFC 6120 §8.2.3).
///
/// Dropped, the session says goodbye in the background.
pub struct XmppSession {
    shared: Arc<Shared>,
    stanzas: mpsc::Receiver<Element>,
    jid: Box<str>,
    sid: Box<str>,
}

impl fmt::Debug for XmppSession {
    // The SID is a secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("XmppSession").field("jid", &self.jid).finish_non_exhaustive()
    }
}

impl XmppSession {
    /// The full JID that the server bound.
    pub fn jid(&self) -> &str {
        &self.jid
    }

    /// The BOSH session's ID. Whoever knows it has the session.
    pub fn sid(&self) -> &str {
        &self.sid
    }

    /// How often things happened.
    pub fn stats(&self) -> ClientStats {
        self.shared.lock().machine.stats()
    }

    /// Why the session is over, once it is.
    pub fn end(&self) -> Option<End> {
        self.shared.lock().ended.clone()
    }

    /// Waits for room, then sends `stanza`: in the next request, together with whatever else is waiting.
    ///
    /// # Errors
    /// By how the session ended, once it is over.
    ///
    /// # Cancel safety
    /// Dropped before it returned, nothing was sent.
    pub async fn send(&self, stanza: Element) -> Result<(), TransportError> {
        let mut stanza = Some(stanza);
        let sent = self.shared.until(|state| {
            if let Some(end) = &state.ended {
                return Some(Err(end.error()));
            }
            if !state.machine.has_room() {
                return None;
            }
            if let Some(payload) = stanza.take() {
                state.machine.handle_input(driver::now(), Input::Send { payload, tag: None });
            }
            Some(Ok(()))
        });
        let sent = sent.await;
        self.shared.wake();
        sent
    }

    /// The next stanza; `None` once the session is over.
    ///
    /// # Cancel safety
    /// Dropped, no stanza is lost.
    pub async fn receive(&mut self) -> Option<Element> {
        let stanza = self.stanzas.recv().await;
        // Room in the inbox: what waits behind it can be handed on.
        self.shared.wake();
        stanza
    }

    /// The connections may be dead without a sign: asks again what is outstanding, over new ones.
    pub fn refresh(&self) {
        self.shared.input(Input::Refresh);
    }

    /// Says goodbye and waits until the server knows, for a bounded time.
    pub async fn close(self) {
        self.shared.close();
        self.shared.ended().await;
    }
}

impl Drop for XmppSession {
    fn drop(&mut self) {
        self.shared.close();
    }
}

struct Inbox {
    inbox: mpsc::Sender<Element>,
    pending: VecDeque<Element>,
}

impl Receiver for Inbox {
    fn stanza(&mut self, stanza: Element, shared: &Shared) {
        if driver::is_ping(&stanza) {
            shared.input(Input::Send { payload: driver::empty_result(&stanza), tag: None });
        } else {
            self.pending.push_back(stanza);
        }
    }

    fn flush(&mut self) -> bool {
        while let Some(stanza) = self.pending.pop_front() {
            if let Err(mpsc::error::TrySendError::Full(stanza)) = self.inbox.try_send(stanza) {
                self.pending.push_front(stanza);
                return false;
            }
        }
        true
    }

    fn overflows(&mut self) -> bool {
        self.pending.len() > MAX_PENDING
    }

    fn ended(&mut self, _: &End) {}
}
