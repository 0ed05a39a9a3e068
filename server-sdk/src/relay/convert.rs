//! A hook that turns documents into what a device takes (Q6, A4).

use std::{fmt, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;
use relay_core::app::{Source, SourceError};

use super::{
    jobs::{End, Tracked},
    spool::{Spooled, Writer},
};

/// Turns documents that a device does not take into such that it takes.
///
/// # Implementing
/// Documents are larger than memory: read and write them piece by piece. The relay keeps what is written, so that a
/// device whose connection breaks gets it again from any place.
#[async_trait]
pub trait Convert: fmt::Debug + Send + Sync + 'static {
    /// What a document of media type `from` can be made into, of what the device takes; `None`: nothing, and the caller
    /// is refused before any byte moves. Must not block.
    fn converts(&self, from: &str, formats: &[String]) -> Option<String>;

    /// Makes `document` into one of media type `to`, which [`converts`](Self::converts) said.
    ///
    /// # Errors
    /// [`ConvertError`], with words for the caller: the job fails.
    ///
    /// # Cancel safety
    /// It is dropped when nobody wants the job any more.
    async fn convert(
        &self,
        document: Arc<dyn Source>,
        to: &str,
        output: &mut Converted<'_>,
    ) -> Result<(), ConvertError>;
}

/// Where a converted document goes.
#[derive(Debug)]
pub struct Converted<'a>(&'a mut Writer);

impl Converted<'_> {
    /// Takes more of it.
    ///
    /// # Errors
    /// [`ConvertError`]: there is no room for it.
    pub async fn write(&mut self, bytes: impl Into<Bytes> + Send) -> Result<(), ConvertError> {
        self.0.write(bytes.into()).await.map_err(|error| ConvertError(error.to_string()))
    }
}

/// Why a document was not converted, in words for its sender.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ConvertError(String);

impl ConvertError {
    /// Says why.
    pub fn new(words: impl Into<String>) -> Self {
        Self(words.into())
    }
}

impl From<SourceError> for ConvertError {
    fn from(error: SourceError) -> Self {
        Self(error.to_string())
    }
}

/// A conversion under way.
#[derive(Debug)]
pub(crate) struct Conversion {
    hook: Arc<dyn Convert>,
    to: String,
    document: Arc<Spooled>,
    output: Writer,
}

impl Conversion {
    pub(crate) const fn new(
        hook: Arc<dyn Convert>,
        to: String,
        document: Arc<Spooled>,
        output: Writer,
    ) -> Self {
        Self { hook, to, document, output }
    }

    /// Converts, unless the job of `tracked` is over before.
    pub(crate) async fn run(self, tracked: &Tracked) {
        let Self { hook, to, document, mut output } = self;
        let converted = async {
            hook.convert(document, &to, &mut Converted(&mut output)).await?;
            output.finish().await.map_err(|error| ConvertError(error.to_string()))
        };
        tokio::select! {
            _ = tracked.over() => {}
            converted = converted => if let Err(error) = converted {
                tracked.give_up(End::NoDocument("not-converted", error.0));
            },
        }
    }
}
