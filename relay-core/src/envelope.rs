//! What travels on a session, whatever carries it. [`crate::xml::vocabulary`] is its form on the wire.

use std::{sync::Arc, time::Duration, time::Instant};

use crate::{
    app::Progress,
    ids::{AppName, RequestId},
    outcome::Disposition,
    request::{Request, Response},
};

/// The largest body that rides on a session, in bytes; larger ones go by HTTP beside it.
pub const MAX_INLINE_BODY: usize = 128 * 1024;

/// One message on a session.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Envelope {
    /// To the device: a request. `deadline` travels as the seconds left, so that no clocks are compared.
    Request {
        /// The request's ID.
        id: RequestId,
        /// What is asked.
        request: Arc<Request>,
        /// When nobody waits any more.
        deadline: Instant,
    },
    /// From the device: the answer to a request.
    Response {
        /// The request's ID.
        id: RequestId,
        /// The answer.
        response: Response,
        /// Whether the sender expects an [`Envelope::Ack`]. A foreign client that answers with a bare iq does not.
        acknowledge: bool,
    },
    /// From the device: it has the request, the answer will take longer.
    Received {
        /// The request's ID.
        id: RequestId,
    },
    /// To the device: the verdict on its response.
    Ack {
        /// The request's ID.
        id: RequestId,
        /// The verdict.
        disposition: Disposition,
    },
    /// To the device: nobody wants the answer any more.
    Cancel {
        /// The request's ID.
        id: RequestId,
    },
    /// Either way: the channel of that job is to be closed.
    Close {
        /// The job's ID.
        id: RequestId,
        /// Its app.
        app: AppName,
    },
    /// From the device: how far it is with a job.
    Progress {
        /// The job's ID.
        id: RequestId,
        /// How far.
        progress: Progress,
    },
    /// To the device: the relay goes; come back then.
    Drain {
        /// When to come back.
        retry_after: Duration,
        /// Where to, if known: a URL.
        to: Option<Box<str>>,
    },
    /// Keep-alive as data; answered by [`Envelope::Pong`].
    Ping,
    /// The answer to [`Envelope::Ping`].
    Pong,
}

impl Envelope {
    /// Bytes of payload plus a flat cost for the frame around it: what counts against bounds in bytes.
    pub fn cost(&self) -> usize {
        const FRAME: usize = 256;
        FRAME
            + match self {
                Self::Request { request, .. } => request.payload_len(),
                Self::Response { response, .. } => response.body.as_ref().map_or(0, |body| body.bytes.len()),
                _ => 0,
            }
    }
}
