//! What the programs in `src/bin` share. Each of them is there to be read and copied from; the README says which does
//! what.

pub mod printer;

/// The code in the front page compiles.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
mod front_page {}

/// Ctrl-C, or SIGTERM.
///
/// # Errors
/// The system does not tell of signals.
pub async fn asked_to_stop() -> std::io::Result<()> {
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    tokio::select! {
        interrupted = tokio::signal::ctrl_c() => interrupted,
        _ = terminate.recv() => Ok(()),
    }
}

/// What a program ends with when it cannot go on: told in words, with what caused it, not as a debugging aid.
pub struct Failure(Box<dyn std::error::Error + Send + Sync>);

impl<E: Into<Box<dyn std::error::Error + Send + Sync>>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self(error.into())
    }
}

// `main` shows its error by `Debug`.
impl std::fmt::Debug for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}
