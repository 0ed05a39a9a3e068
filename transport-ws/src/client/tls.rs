//! TLS with the relay.

use std::sync::Arc;

use relay_core::error::{ErrorKind, TransportError};
use rustls::{
    ClientConfig, RootCertStore,
    crypto::{CryptoProvider, ring},
    pki_types::CertificateDer,
};

use crate::NAME;

/// Which certificate authorities are trusted.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub enum Trust {
    /// Those of the system.
    #[default]
    System,
    /// Those of the system and these.
    SystemAnd(Vec<CertificateDer<'static>>),
    /// These alone.
    Only(Vec<CertificateDer<'static>>),
}

/// TLS 1.2 and 1.3 on ring, chosen here so that no process-wide default is needed. One configuration serves all of a
/// connector's connections, which resume each other's TLS sessions.
pub(super) fn config(trust: &Trust) -> Result<Arc<ClientConfig>, TransportError> {
    let internal = |error: rustls::Error| {
        TransportError::new(NAME, ErrorKind::Internal, "TLS cannot be set up").with_source(error)
    };
    let provider: Arc<CryptoProvider> = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(internal)?;
    let mut config = match trust {
        Trust::Only(roots) => {
            let mut store = RootCertStore::empty();
            for root in roots {
                store.add(root.clone()).map_err(internal)?;
            }
            builder.with_root_certificates(store).with_no_client_auth()
        }
        Trust::System | Trust::SystemAnd(_) => {
            let extra = match trust {
                Trust::SystemAnd(roots) => &roots[..],
                _ => &[],
            };
            let verifier =
                rustls_platform_verifier::Verifier::new_with_extra_roots(extra.iter().cloned(), provider)
                    .map_err(internal)?;
            builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier)).with_no_client_auth()
        }
    };
    // A server or proxy that would rather speak HTTP/2 is told that an upgrade is wanted, which that has not.
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}
