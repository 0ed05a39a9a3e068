//! One HTTP exchange that waits for its answer.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use super::{http::Reply, session::Session};
use crate::proto::manager::ExchangeId;

/// One HTTP exchange that waits for its answer: small, and without the request. Dropping it says that the client has
/// gone; the session keeps what it was to be answered.
#[must_use = "an exchange that is dropped counts as broken off by the client"]
pub struct Exchange(State);

enum State {
    Answered(Box<Reply>),
    Waiting { session: Arc<Session>, id: ExchangeId },
    Finished,
}

impl Exchange {
    pub(super) fn answered(reply: Reply) -> Self {
        Self(State::Answered(Box::new(reply)))
    }

    pub(super) const fn waiting(session: Arc<Session>, id: ExchangeId) -> Self {
        Self(State::Waiting { session, id })
    }

    /// Whether it belongs to a session that a device bound and that lives: whoever sent it has shown a SID that only that
    /// device knows. Not so what was answered without a session, or what a session is asked before anybody logged in.
    pub fn is_bound(&self) -> bool {
        match &self.0 {
            State::Waiting { session, .. } => session.is_bound(),
            State::Answered(_) | State::Finished => false,
        }
    }
}

impl fmt::Debug for Exchange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match &self.0 {
            State::Answered(_) => "Exchange(answered)",
            State::Waiting { .. } => "Exchange(waiting)",
            State::Finished => "Exchange(finished)",
        })
    }
}

impl Future for Exchange {
    type Output = Reply;

    /// # Panics
    /// If polled again after it gave its answer.
    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Reply> {
        match std::mem::replace(&mut self.0, State::Finished) {
            State::Answered(reply) => Poll::Ready(*reply),
            State::Waiting { session, id } => match session.poll_reply(id, context) {
                Poll::Ready(reply) => Poll::Ready(reply),
                Poll::Pending => {
                    self.0 = State::Waiting { session, id };
                    Poll::Pending
                }
            },
            State::Finished => panic!("an exchange is answered once"),
        }
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        if let State::Waiting { session, id } = &self.0 {
            session.exchange_gone(*id);
        }
    }
}
