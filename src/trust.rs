//! Trust roots for outgoing connections: the machine's, Mozilla's where the machine has none, and optionally one more
//! file.

use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};

/// Why the TLS client cannot be created.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// The extra trust root cannot be read.
    #[error("cannot read the trust root {path}: {source}")]
    File {
        /// The file.
        path: String,
        /// Why.
        source: rustls::pki_types::pem::Error,
    },
    /// It contains no certificate, or one that is not a root.
    #[error("no usable certificate in the trust root {path}")]
    NoCertificate {
        /// Which file.
        path: String,
    },
    /// The TLS library refuses its own defaults.
    #[error("cannot set TLS up: {0}")]
    Tls(#[from] rustls::Error),
}

/// The TLS client configuration. Containers without a certificate store use the built-in roots. Reading the store is
/// most of the work of a reload, so it is done only if the client `speaks_tls`.
///
/// # Errors
///
/// When the extra trust root cannot be used.
pub fn client_config(speaks_tls: bool, ca_file: Option<&Path>) -> Result<ClientConfig, TrustError> {
    let mut roots = RootCertStore::empty();
    if speaks_tls {
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        if roots.is_empty() {
            roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
            tracing::info!(roots = roots.len(), "this machine has no certificate store: trusting the built-in roots");
        }
    }
    if let Some(path) = ca_file {
        let shown = || path.display().to_string();
        let file_error = |source| TrustError::File { path: shown(), source };
        let certificates = CertificateDer::pem_file_iter(path).map_err(file_error)?;
        let certificates = certificates.collect::<Result<Vec<_>, _>>().map_err(file_error)?;
        let (added, _) = roots.add_parsable_certificates(certificates);
        if added == 0 {
            return Err(TrustError::NoCertificate { path: shown() });
        }
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(config)
}
