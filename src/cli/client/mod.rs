//! A small HTTP/1.1 client for the commands that ask a running gateway: `health`, `status` and `query`.
//!
//! It uses one connection at a time, and keeps it for the next request. It follows no redirects, keeps no cookies and
//! uses no proxy, so that a token is sent only to the gateway.

mod address;
mod connection;
mod failure;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::client::conn::http1::SendRequest;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;

pub(super) use self::address::Address;
pub(super) use self::failure::Failure;
use crate::trust::{self, TrustError};

/// How long a request may take, and how large a response may be.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// For resolving and connecting, with the TLS handshake.
    pub(super) connect: Duration,
    /// For one request and its complete response.
    pub(super) answer: Duration,
    /// Bytes in a response's body.
    pub(super) body: usize,
}

/// One complete response.
#[derive(Debug, Clone)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
    /// From sending the request to the end of the response, without connecting.
    pub(super) took: Duration,
}

impl Answer {
    /// The value of a header, if it is there and is text.
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
}

/// Sends requests to one gateway.
pub(super) struct Client {
    address: Address,
    limits: Limits,
    tls: Option<TlsConnector>,
    connection: Option<SendRequest<Full<Bytes>>>,
}

impl Client {
    /// A client for the gateway at `address`. `ca_file` is trusted in addition to the machine's own roots.
    ///
    /// # Errors
    ///
    /// When `ca_file` cannot be used. It is read for an `https` address only.
    pub(super) fn new(address: Address, ca_file: Option<&Path>, limits: Limits) -> Result<Self, TrustError> {
        let tls = match address.speaks_tls() {
            true => {
                let mut config = trust::client_config(true, ca_file)?;
                config.alpn_protocols = vec![b"http/1.1".to_vec()];
                Some(TlsConnector::from(Arc::new(config)))
            }
            false => None,
        };
        Ok(Self { address, limits, tls, connection: None })
    }

    pub(super) fn address(&self) -> &Address {
        &self.address
    }

    /// Sends `request`, whose URI is a path below the address, and reads the response.
    ///
    /// # Errors
    ///
    /// When there is no response. A response with any status is not an error.
    pub(super) async fn send(&mut self, mut request: Request<Full<Bytes>>) -> Result<Answer, Failure> {
        const AGENT: HeaderValue = HeaderValue::from_static(concat!("insights-gateway/", env!("CARGO_PKG_VERSION")));
        let target = format!("{}{}", self.address.base(), request.uri());
        *request.uri_mut() = Uri::try_from(target).map_err(|_| Failure::Target)?;
        let host = HeaderValue::try_from(self.address.host()).map_err(|_| Failure::Target)?;
        request.headers_mut().insert(header::HOST, host);
        request.headers_mut().insert(header::USER_AGENT, AGENT);
        loop {
            // Lets the connection's task notice that the gateway has closed it.
            tokio::task::yield_now().await;
            let kept = match self.connection.take() {
                Some(mut kept) => kept.ready().await.is_ok().then_some(kept),
                None => None,
            };
            let used = kept.is_some();
            let mut sender = match kept {
                Some(kept) => kept,
                None => self.connect().await?,
            };
            // A kept connection may be closed at the moment when it is used. A request that only reads is sent again
            // (RFC 9110, section 9.2.2), and so is any request of which nothing was sent.
            let again = (used && request.method() == Method::GET).then(|| request.clone());
            let begun = Instant::now();
            let exchanged = tokio::time::timeout(self.limits.answer, exchange(&mut sender, request, self.limits.body));
            match exchanged.await {
                Err(_) => return Err(Failure::Silent(self.limits.answer)),
                Ok(Ok((status, headers, body))) => {
                    self.connection = Some(sender);
                    return Ok(Answer { status, headers, body, took: begun.elapsed() });
                }
                Ok(Err(Broken::Unsent(unsent, _))) if used => request = *unsent,
                Ok(Err(Broken::Unsent(_, error))) => return Err(Failure::exchange(error)),
                Ok(Err(Broken::Exchange(error))) => match again {
                    Some(again) if !error.is_parse() => request = again,
                    _ => return Err(Failure::exchange(error)),
                },
                Ok(Err(Broken::Body(error))) => return Err(body_failure(error, self.limits.body)),
            }
        }
    }

    async fn connect(&self) -> Result<SendRequest<Full<Bytes>>, Failure> {
        let opened = connection::open(&self.address, self.tls.as_ref());
        tokio::time::timeout(self.limits.connect, opened).await.map_err(|_| Failure::Silent(self.limits.connect))?
    }
}

enum Broken {
    /// Nothing of the request was sent.
    Unsent(Box<Request<Full<Bytes>>>, hyper::Error),
    Exchange(hyper::Error),
    Body(Box<dyn std::error::Error + Send + Sync>),
}

async fn exchange(
    sender: &mut SendRequest<Full<Bytes>>,
    request: Request<Full<Bytes>>,
    largest: usize,
) -> Result<(StatusCode, HeaderMap, Bytes), Broken> {
    let response = sender.try_send_request(request).await.map_err(|mut error| match error.take_message() {
        Some(request) => Broken::Unsent(Box::new(request), error.into_error()),
        None => Broken::Exchange(error.into_error()),
    })?;
    let (head, body) = response.into_parts();
    let body = Limited::new(body, largest).collect().await.map_err(Broken::Body)?;
    Ok((head.status, head.headers, body.to_bytes()))
}

fn body_failure(error: Box<dyn std::error::Error + Send + Sync>, largest: usize) -> Failure {
    if error.is::<LengthLimitError>() {
        return Failure::TooLarge(largest);
    }
    match error.downcast::<hyper::Error>() {
        Ok(error) => Failure::Cut(*error),
        Err(_) => Failure::TooLarge(largest),
    }
}
