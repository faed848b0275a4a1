//! Why there is no response, and what to do about it.

use std::error::Error as _;
use std::io;
use std::time::Duration;

use rustls::CertificateError;

/// What prevents a response. Messages end with a next step where there is one.
#[derive(Debug, thiserror::Error)]
pub(in crate::cli) enum Failure {
    /// The name cannot be resolved.
    #[error("no answer: the name cannot be resolved: {0}")]
    Resolve(#[source] io::Error),
    /// No process listens there, or the address cannot be reached.
    #[error("no answer: {0}{hint}", hint = connect_hint(.0))]
    Connect(#[source] io::Error),
    /// The handshake failed.
    #[error("no answer: TLS: {0}{hint}", hint = tls_hint(.0))]
    Tls(#[source] rustls::Error),
    /// The handshake was not finished.
    #[error("no answer: the TLS handshake broke off: {0}")]
    Handshake(#[source] io::Error),
    /// The response was not HTTP.
    #[error("the answer is not HTTP/1.1; is this the right address, and does it need https://?")]
    NotHttp(#[source] hyper::Error),
    /// The connection ended before the response.
    #[error("no answer: the connection was closed; does it need https://?")]
    Closed(#[source] hyper::Error),
    /// The connection broke.
    #[error("no answer: {0}{cause}", cause = cause(.0))]
    Exchange(#[source] hyper::Error),
    /// The response ended in the middle.
    #[error("the answer was cut: {0}{cause}", cause = cause(.0))]
    Cut(#[source] hyper::Error),
    /// The response is larger than this many bytes.
    #[error("the answer is larger than {mib} MiB", mib = .0 >> 20)]
    TooLarge(usize),
    /// No response within this time.
    #[error("no answer within {} s", .0.as_secs())]
    Silent(Duration),
    /// Address and path do not form a URL.
    #[error("no request can be sent to this address; is it a URL?")]
    Target,
}

impl Failure {
    /// The error of a handshake. rustls' own errors come wrapped.
    pub(super) fn tls(error: io::Error) -> Self {
        match error.downcast::<rustls::Error>() {
            Ok(error) => Self::Tls(error),
            Err(error) => Self::Handshake(error),
        }
    }

    /// The error of a request.
    pub(super) fn exchange(error: hyper::Error) -> Self {
        match () {
            () if error.is_parse() => Self::NotHttp(error),
            () if error.is_incomplete_message() || error.is_closed() || error.is_canceled() => Self::Closed(error),
            () => Self::Exchange(error),
        }
    }
}

fn connect_hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "; does the gateway run there? --url names another address",
        io::ErrorKind::NotFound => "; is this the path of its socket? --url names another",
        io::ErrorKind::PermissionDenied => "; this user may not open the socket (server.unix_mode)",
        _ => "",
    }
}

fn tls_hint(error: &rustls::Error) -> &'static str {
    match error {
        rustls::Error::InvalidMessage(_) => "; if it does not use TLS, use http://",
        // The second one: a trusted root has the issuer's name but another key.
        rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature) => {
            "; --ca-file names a certificate to trust besides the machine's own"
        }
        rustls::Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        ) => "; use a name that the certificate has",
        rustls::Error::InvalidCertificate(CertificateError::Expired | CertificateError::ExpiredContext { .. }) => {
            "; the gateway needs a new certificate"
        }
        _ => "",
    }
}

fn cause(error: &hyper::Error) -> String {
    error.source().map_or_else(String::new, |source| format!(": {source}"))
}
