//! Carrying out the agent's operations, and what their errors mean to it.

use relay_core::{
    auth::Secret,
    error::{ErrorKind, TransportError},
    ids::DeviceId,
    transport::{BoxFuture, ConnectOptions, EndReason, Session},
};

use super::Shell;
use crate::{
    agent::{Failure, FailureKind, Op},
    http::{HttpError, HttpErrorKind},
    state::State,
};

/// An operation's result: what the agent hears of it, and what comes with it.
pub(super) enum Outcome {
    Enrolled(Secret),
    Registered,
    Connected(Session),
    Alive(bool),
}

impl Shell {
    pub(super) fn start(&self, op: Op) -> BoxFuture<Result<Outcome, Failure>> {
        let (http, state, device) = (self.ways.http.clone(), self.state.clone(), self.device.clone());
        let token = self.token.clone().unwrap_or_else(|| Secret::new(""));
        match op {
            Op::Enroll => {
                let pin = self.pin.clone().unwrap_or_else(|| Secret::new(""));
                Box::pin(async move {
                    let token = http.enroll(&device, &pin).await.map_err(Failure::from)?;
                    let kept = token.clone();
                    // A credential that cannot be kept still serves until the device is switched off.
                    if let Err(error) = state.store(move |stored| stored.set_token(&kept)).await {
                        tracing::error!(%device, %error, "the credential could not be stored");
                    }
                    Ok(Outcome::Enrolled(token))
                })
            }
            Op::Register => {
                let registration = self.registration.clone();
                Box::pin(async move {
                    http.register(&device, &token, &registration).await.map_err(Failure::from)?;
                    Ok(Outcome::Registered)
                })
            }
            Op::Connect { resume, deadline } => {
                let connector = self.ways.connector.clone();
                Box::pin(async move {
                    let options = ConnectOptions::new(device.clone(), token, deadline).resuming(resume);
                    let session = connector.connect(options).await.map_err(Failure::from)?;
                    Ok(connected(&device, &state, session).await)
                })
            }
            Op::Better { session, deadline } => {
                let better = self.ways.better.clone();
                Box::pin(async move {
                    let Some(better) = better else { return Err(Failure::passing("there is none")) };
                    let options =
                        ConnectOptions::new(device.clone(), token, deadline).resuming(Some(session));
                    let session = better.connect_better(options).await.map_err(Failure::from)?;
                    Ok(connected(&device, &state, session).await)
                })
            }
            Op::AskAlive { session } => Box::pin(async move {
                http.alive(&device, &token, &session).await.map(Outcome::Alive).map_err(Failure::from)
            }),
        }
    }
}

async fn connected(device: &DeviceId, state: &State, session: Session) -> Outcome {
    let id = session.id.clone();
    if let Err(error) = state.store(move |stored| stored.set_session(Some(&id))).await {
        tracing::warn!(%device, %error, "the session's ID could not be stored");
    }
    Outcome::Connected(session)
}

pub(super) fn end_reason(error: &TransportError) -> EndReason {
    match error.kind {
        ErrorKind::Closed => EndReason::Goodbye,
        ErrorKind::Expired => EndReason::Expired,
        ErrorKind::Replaced => EndReason::Replaced,
        ErrorKind::Unauthenticated => EndReason::Revoked,
        ErrorKind::Overloaded => EndReason::Overloaded { retry_after: error.retry_after },
        _ => EndReason::Lost,
    }
}

impl From<HttpError> for Failure {
    fn from(error: HttpError) -> Self {
        let kind = match error.kind {
            HttpErrorKind::Unauthenticated => FailureKind::Refused,
            HttpErrorKind::UnknownDevice => FailureKind::UnknownDevice,
            HttpErrorKind::Rejected => FailureKind::Rejected,
            _ => FailureKind::Passing,
        };
        Self { kind, words: chain(&error).into(), retry_after: error.retry_after }
    }
}

impl From<TransportError> for Failure {
    fn from(error: TransportError) -> Self {
        let kind = match error.kind {
            ErrorKind::Unauthenticated => FailureKind::Refused,
            ErrorKind::Replaced => FailureKind::Replaced,
            _ => FailureKind::Passing,
        };
        Self { kind, words: chain(&error).into(), retry_after: error.retry_after }
    }
}

/// An error and its causes, for people.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
