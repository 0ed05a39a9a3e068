//! Where the relay is now, for those who reach it beside the session: jobs, and pull services.

use std::sync::Arc;

use relay_core::{auth::Secret, transport::Connector};

use crate::{
    http::{RelayHttp, client::RelayUrl},
    relays::Ways,
};

/// The relay that the device is at, and how it is reached. Told anew with each session.
#[derive(Debug, Clone)]
pub(crate) struct Reach {
    pub(crate) ways: Ways,
    pub(crate) at: RelayUrl,
    pub(crate) token: Secret,
    /// Whether the session in force, or the last one, has channels beside it.
    pub(crate) channels: bool,
}

impl Reach {
    pub(crate) fn connector(&self) -> &Arc<dyn Connector> {
        &self.ways.connector
    }

    pub(crate) fn http(&self) -> &Arc<dyn RelayHttp> {
        &self.ways.http
    }
}
