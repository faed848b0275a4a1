//! TLS for the data plane: rustls, TLS 1.2 and 1.3, HTTP/2 and HTTP/1.1 by ALPN.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use rustls::pki_types::UnixTime;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::{HandshakeKind, RootCertStore, ServerConfig};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;
use tokio_rustls::server::TlsStream;

use super::names;
use crate::config::Tls;
use crate::core::peer::Peer;
use crate::core::validity::Validity;

/// Why TLS cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read, or holds something else.
    #[error("cannot use {path}: {source}")]
    File {
        /// The file.
        path: String,
        /// Why.
        source: rustls::pki_types::pem::Error,
    },
    /// The files do not fit each other.
    #[error("the certificate, key or client CA cannot be used: {0}")]
    Unusable(#[from] rustls::Error),
    /// The client CA cannot be used.
    #[error("the client CA cannot be used: {0}")]
    ClientCa(#[from] rustls::server::VerifierBuilderError),
}

/// How often a client's certificate is checked again while its connection lasts: it may expire meanwhile.
const LOOK_AGAIN: Duration = Duration::from_secs(60);

/// Accepts TLS with the current certificate: a new one applies to new connections and disturbs no open one. Client
/// certificates are judged by the current rules, on open connections as well.
#[derive(Clone)]
pub struct TlsAcceptor(Arc<ArcSwap<Certificate>>);

impl TlsAcceptor {
    /// Begins with this certificate.
    pub fn new(certificate: Certificate) -> Self {
        Self(Arc::new(ArcSwap::from_pointee(certificate)))
    }

    /// Replaces the certificate by one that [`Certificate::read`] has read.
    pub fn replace(&self, mut certificate: Certificate) {
        let old = self.0.load();
        if old.clients == certificate.clients {
            // Connections compare the pointer to learn whether the rules have changed.
            certificate.clients = Arc::clone(&old.clients);
        }
        self.0.store(Arc::new(certificate));
    }

    /// The stream and its peer: `peer`, with the names in the client's certificate.
    pub(super) async fn accept<T>(&self, stream: T, peer: Peer) -> io::Result<(TlsStream<T>, CertifiedPeer)>
    where
        T: AsyncRead + AsyncWrite + Unpin,
    {
        let Certificate { config, clients, .. } = Certificate::clone(&self.0.load());
        let stream = tokio_rustls::TlsAcceptor::from(config).accept(stream).await?;
        let session = stream.get_ref().1;
        let chain = session.peer_certificates().unwrap_or_default();
        // A resumed session brings its certificate along, and that has not been verified today.
        let chain = chain.iter().map(|certificate| certificate.clone().into_owned()).collect::<Vec<_>>();
        let peer = peer.over_tls();
        let peer = match session.handshake_kind() {
            Some(HandshakeKind::Resumed) => clients.judge(&chain, &peer),
            _ => peer.with_names(chain.first().map(names::of).unwrap_or_default()),
        };
        let judged = CertificateVerdict { clients, at: Instant::now(), peer: Arc::new(peer) };
        let certified = CertifiedPeer { acceptor: self.clone(), chain, judged: ArcSwap::from_pointee(judged) };
        Ok((stream, certified))
    }
}

/// The peer of a TLS connection, judged by the current rules.
pub(super) struct CertifiedPeer {
    acceptor: TlsAcceptor,
    chain: Vec<CertificateDer<'static>>,
    judged: ArcSwap<CertificateVerdict>,
}

struct CertificateVerdict {
    clients: Arc<Clients>,
    at: Instant,
    peer: Arc<Peer>,
}

impl CertifiedPeer {
    /// Who the peer is, and whether the rules for client certificates have changed since the handshake, so that the
    /// client should open a new connection.
    pub(super) fn peer(&self) -> (Arc<Peer>, bool) {
        let (judged, current) = (self.judged.load(), self.acceptor.0.load());
        let is_changed = !Arc::ptr_eq(&judged.clients, &current.clients);
        if !is_changed && (self.chain.is_empty() || judged.at.elapsed() < LOOK_AGAIN) {
            return (Arc::clone(&judged.peer), false);
        }
        let peer = Arc::new(current.clients.judge(&self.chain, &judged.peer));
        let is_worse = !judged.peer.names().is_empty() && peer.names().is_empty();
        if is_worse {
            tracing::info!(
                peer = peer.as_str(),
                "a client certificate is no longer valid: its connection belongs to no team"
            );
        }
        let (clients, at) = (Arc::clone(&current.clients), Instant::now());
        self.judged.store(Arc::new(CertificateVerdict { clients, at, peer: Arc::clone(&peer) }));
        (peer, is_changed || is_worse)
    }
}

/// Whether a client has to show a certificate, where there is a client CA. A certificate that is shown has to be valid
/// in both cases.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientCertificates {
    /// It may: a token is another way to identify itself.
    Accepted,
    /// It must.
    Required,
}

/// What a listener shows and demands, read and found usable.
#[derive(Clone)]
pub struct Certificate {
    config: Arc<ServerConfig>,
    validity: Option<Validity>,
    clients: Arc<Clients>,
}

impl Certificate {
    /// Reads the certificate, the key and the client CA.
    ///
    /// # Errors
    ///
    /// When a file cannot be read or the files do not fit each other.
    pub fn read(tls: &Tls, clients: ClientCertificates) -> Result<Self, TlsError> {
        let clients = Arc::new(Clients::read(tls.client_ca.as_deref(), clients)?);
        let chain = certificates(&tls.cert)?;
        let validity = chain.first().and_then(|certificate| Validity::of(certificate));
        let config = Arc::new(server_config(tls, chain, clients.verifier.clone())?);
        Ok(Self { config, validity, clients })
    }

    /// The time in which clients accept the certificate.
    pub fn validity(&self) -> Option<Validity> {
        self.validity
    }
}

/// What is demanded of clients.
struct Clients {
    authority: Vec<CertificateDer<'static>>,
    are_required: bool,
    /// `None` where there is no client CA.
    verifier: Option<Arc<dyn ClientCertVerifier>>,
}

impl PartialEq for Clients {
    fn eq(&self, other: &Self) -> bool {
        (&self.authority, self.are_required) == (&other.authority, other.are_required)
    }
}

impl Clients {
    fn read(authority: Option<&Path>, clients: ClientCertificates) -> Result<Self, TlsError> {
        let Some(path) = authority else {
            return Ok(Self { authority: Vec::new(), are_required: false, verifier: None });
        };
        let are_required = clients == ClientCertificates::Required;
        let authority = certificates(path)?;
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(authority.iter().cloned());
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
        let verifier = if are_required { verifier } else { verifier.allow_unauthenticated() };
        Ok(Self { authority, are_required, verifier: Some(verifier.build()?) })
    }

    /// The peer with the names that its certificate has, if the certificate is valid now.
    fn judge(&self, chain: &[CertificateDer<'static>], peer: &Peer) -> Peer {
        let is_good =
            self.verifier.as_ref().zip(chain.split_first()).is_some_and(|(verifier, (leaf, rest))| {
                verifier.verify_client_cert(leaf, rest, UnixTime::now()).is_ok()
            });
        let names = chain.first().filter(|_| is_good).map(names::of).unwrap_or_default();
        let peer = peer.clone().with_names(names);
        if self.are_required && !is_good { peer.that_lacks_a_certificate() } else { peer }
    }
}

fn server_config(
    tls: &Tls,
    chain: Vec<CertificateDer<'static>>,
    clients: Option<Arc<dyn ClientCertVerifier>>,
) -> Result<ServerConfig, TlsError> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let key = PrivateKeyDer::from_pem_file(&tls.key).map_err(|source| file_error(&tls.key, source))?;
    let builder = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    let builder = match clients {
        None => builder.with_no_client_auth(),
        Some(verifier) => builder.with_client_cert_verifier(verifier),
    };
    // Sessions are kept with the configuration, so that none is resumed under another configuration.
    let mut config = builder.with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    CertificateDer::pem_file_iter(path).and_then(Iterator::collect).map_err(|source| file_error(path, source))
}

fn file_error(path: &Path, source: rustls::pki_types::pem::Error) -> TlsError {
    TlsError::File { path: path.display().to_string(), source }
}
