//! TLS for the data plane: rustls, TLS 1.2 and 1.3, HTTP/2 and HTTP/1.1 by ALPN.

use std::io;
use std::path::Path;
use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::server::TlsStream;

use super::names;
use crate::config::Tls;

/// Why TLS cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read, or holds something else.
    #[error("cannot use {path}: {source}")]
    File {
        /// Which file.
        path: String,
        /// Why.
        source: rustls::pki_types::pem::Error,
    },
    /// The files do not fit each other.
    #[error("the certificate, key or client CA cannot be used: {0}")]
    Unusable(#[from] rustls::Error),
    /// The client CA is none.
    #[error("the client CA cannot be used: {0}")]
    ClientCa(#[from] rustls::server::VerifierBuilderError),
}

/// Accepts TLS with whatever certificate is current: a new one reaches new connections and disturbs no old one.
#[derive(Clone)]
pub struct TlsAcceptor(Arc<ArcSwap<ServerConfig>>);

impl TlsAcceptor {
    /// Begins with this certificate.
    pub fn new(certificate: Certificate) -> Self {
        Self(Arc::new(ArcSwap::new(certificate.0)))
    }

    /// Takes what [`Certificate::read`] has read.
    pub fn replace(&self, certificate: Certificate) {
        self.0.store(certificate.0);
    }

    pub(super) async fn accept<T>(&self, stream: T) -> io::Result<TlsStream<T>>
    where
        T: AsyncRead + AsyncWrite + Unpin,
    {
        tokio_rustls::TlsAcceptor::from(self.0.load_full()).accept(stream).await
    }
}

/// The names of the client's certificate, which the handshake has verified; none without one.
pub(super) fn names<T>(stream: &TlsStream<T>) -> Vec<String> {
    let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
    chain.first().map(names::of).unwrap_or_default()
}

/// Has a client to show a certificate, where there is a client CA. One that is shown has to be good either way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientCertificates {
    /// It may: there are other ways to say who it is.
    Accepted,
    /// It must.
    Required,
}

/// What a listener shows and asks for, read and found usable.
pub struct Certificate(Arc<ServerConfig>);

impl Certificate {
    /// Reads the files.
    ///
    /// # Errors
    ///
    /// When one cannot be read or they do not fit each other.
    pub fn read(tls: &Tls, clients: ClientCertificates) -> Result<Self, TlsError> {
        server_config(tls, clients).map(|config| Self(Arc::new(config)))
    }
}

fn server_config(tls: &Tls, clients: ClientCertificates) -> Result<ServerConfig, TlsError> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let key = PrivateKeyDer::from_pem_file(&tls.key).map_err(|source| file_error(&tls.key, source))?;
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions()?;
    let builder = match &tls.client_ca {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let mut roots = RootCertStore::empty();
            roots.add_parsable_certificates(certificates(path)?);
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            let verifier = match clients {
                ClientCertificates::Accepted => verifier.allow_unauthenticated(),
                ClientCertificates::Required => verifier,
            };
            builder.with_client_cert_verifier(verifier.build()?)
        }
    };
    let mut config = builder.with_single_cert(certificates(&tls.cert)?, key)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    CertificateDer::pem_file_iter(path).and_then(Iterator::collect).map_err(|source| file_error(path, source))
}

fn file_error(path: &Path, source: rustls::pki_types::pem::Error) -> TlsError {
    TlsError::File { path: path.display().to_string(), source }
}
