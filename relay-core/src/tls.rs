//! TLS as every client end here speaks it: 1.2 and 1.3 on ring, chosen here so that no process-wide default is needed.

use std::sync::Arc;

use rustls::{
    ClientConfig, Error, RootCertStore,
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, pem::PemObject},
};

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

/// A text that has no certificate, or a broken one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a list of certificates in PEM: {0}")]
pub struct InvalidPem(String);

impl Trust {
    /// Nobody: for a client that meets no TLS. It needs no certificates of the system's.
    pub const fn nobody() -> Self {
        Self::Only(Vec::new())
    }

    /// The authority of this certificate, too, given in DER.
    #[must_use]
    pub fn and(mut self, certificate: impl Into<Vec<u8>>) -> Self {
        self.push(CertificateDer::from(certificate.into()));
        self
    }

    /// The authorities of these certificates, too, given in PEM, one after the other.
    ///
    /// # Errors
    /// [`InvalidPem`] if there is none, or one cannot be read.
    pub fn and_pem(mut self, certificates: &[u8]) -> Result<Self, InvalidPem> {
        let mut none = true;
        for certificate in CertificateDer::pem_slice_iter(certificates) {
            self.push(certificate.map_err(|error| InvalidPem(error.to_string()))?);
            none = false;
        }
        if none { Err(InvalidPem("there is none".into())) } else { Ok(self) }
    }

    fn push(&mut self, certificate: CertificateDer<'static>) {
        match self {
            Self::System => *self = Self::SystemAnd(vec![certificate]),
            Self::SystemAnd(all) | Self::Only(all) => all.push(certificate),
        }
    }

    /// What a client that trusts these uses. One configuration for all of its connections lets them resume each
    /// other's TLS sessions.
    ///
    /// # Errors
    /// A certificate that is none, or a system whose certificates cannot be read.
    pub fn client_config(&self) -> Result<ClientConfig, Error> {
        let provider: Arc<CryptoProvider> = Arc::new(ring::default_provider());
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()?;
        let extra = match self {
            Self::System => &[][..],
            Self::SystemAnd(roots) | Self::Only(roots) => roots,
        };
        let mut config = if matches!(self, Self::Only(_)) {
            let mut store = RootCertStore::empty();
            for root in extra {
                store.add(root.clone())?;
            }
            builder.with_root_certificates(store).with_no_client_auth()
        } else {
            let extra = extra.iter().cloned();
            let verifier = rustls_platform_verifier::Verifier::new_with_extra_roots(extra, provider)?;
            builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier)).with_no_client_auth()
        };
        // A server or proxy that would rather speak HTTP/2 is told that it must not: an upgrade is an affair of 1.1.
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn t15_what_is_no_certificate_is_not_trusted() {
        for bad in ["", "no certificate", "-----BEGIN CERTIFICATE-----\n@@@\n-----END CERTIFICATE-----\n"] {
            Trust::System.and_pem(bad.as_bytes()).unwrap_err();
        }
        Trust::nobody().and("no certificate").client_config().unwrap_err();
        Trust::nobody().client_config().unwrap();
    }
}
