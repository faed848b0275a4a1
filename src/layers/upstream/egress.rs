//! Connects to the upstream, directly or through a forward proxy.
//!
//! A proxy is asked for a tunnel by CONNECT (RFC 9110 section 9.3.6), whether the upstream's scheme is `https` or
//! `http`. So it cannot read the gateway's requests or answer one itself. The proxy resolves the upstream's name. Of a
//! proxy's response only the status is used.

use std::task::{Context, Poll};

use futures_util::future::BoxFuture;
use http::uri::Authority;
use http::{HeaderValue, Uri};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tower::{BoxError, Service, ServiceExt};

use super::dial::port;

/// The largest head with which a proxy may answer.
const LARGEST_HEAD: usize = 16 << 10;

/// A forward proxy.
#[derive(Debug, Clone)]
pub struct Proxy {
    /// Its host and port.
    pub address: Authority,
    /// The value of `Proxy-Authorization`, marked sensitive so that nothing prints it.
    pub authorization: Option<HeaderValue>,
}

/// Why there is no tunnel. Nothing was sent to the upstream then.
#[derive(Debug, thiserror::Error)]
pub(super) enum ProxyError {
    #[error("no connection to the proxy {proxy}")]
    Unreachable { proxy: Authority, source: BoxError },
    #[error("the proxy {proxy} answers CONNECT with {status}")]
    Refused { proxy: Authority, status: u16 },
    #[error("the proxy {proxy} does not answer CONNECT as HTTP does")]
    Malformed { proxy: Authority },
    #[error("the proxy {proxy} ended the connection instead of answering CONNECT")]
    Ended { proxy: Authority, source: std::io::Error },
}

impl ProxyError {
    /// The message for a client, without the proxy's address.
    pub(super) fn for_clients(&self) -> String {
        match self {
            Self::Unreachable { .. } => "there is no connection to the proxy of upstream.proxy".to_owned(),
            Self::Refused { status, .. } => format!("the proxy of upstream.proxy answers CONNECT with {status}"),
            Self::Malformed { .. } => "the proxy of upstream.proxy does not answer CONNECT as HTTP does".to_owned(),
            Self::Ended { .. } => "the proxy of upstream.proxy ends the connection without an answer".to_owned(),
        }
    }
}

/// Connects to an upstream, with connections that `D` dials.
#[derive(Debug, Clone)]
pub(super) struct Egress<D> {
    dialer: D,
    proxy: Option<Proxy>,
}

impl<D> Egress<D> {
    pub(super) fn new(dialer: D, proxy: Option<Proxy>) -> Self {
        Self { dialer, proxy }
    }
}

impl<D> Service<Uri> for Egress<D>
where
    D: Service<Uri, Response = TokioIo<TcpStream>, Error = BoxError, Future: Send> + Clone + Send + 'static,
{
    type Response = TokioIo<TcpStream>;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<TokioIo<TcpStream>, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, upstream: Uri) -> Self::Future {
        let dialer = self.dialer.clone();
        let Some(proxy) = self.proxy.clone() else { return Box::pin(dialer.oneshot(upstream)) };
        Box::pin(async move {
            let unreachable = |source| ProxyError::Unreachable { proxy: proxy.address.clone(), source };
            let url = Uri::builder().scheme("http").authority(proxy.address.clone()).path_and_query("/").build()?;
            let mut stream = dialer.oneshot(url).await.map_err(unreachable)?.into_inner();
            tunnel(&mut stream, &upstream, &proxy).await?;
            Ok(TokioIo::new(stream))
        })
    }
}

/// Asks for a tunnel. After success, written bytes go to the upstream.
async fn tunnel<T>(stream: &mut T, upstream: &Uri, proxy: &Proxy) -> Result<(), ProxyError>
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    let ended = |source| ProxyError::Ended { proxy: proxy.address.clone(), source };
    let malformed = || ProxyError::Malformed { proxy: proxy.address.clone() };
    let target = format!("{}:{}", upstream.host().unwrap_or_default(), port(upstream));
    let mut request = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n").into_bytes();
    if let Some(authorization) = &proxy.authorization {
        request.extend_from_slice(b"Proxy-Authorization: ");
        request.extend_from_slice(authorization.as_bytes());
        request.extend_from_slice(b"\r\n");
    }
    request.extend_from_slice(b"\r\n");
    stream.write_all(&request).await.map_err(ended)?;
    // In neither TLS nor HTTP does the upstream speak first, so a byte after the head is the proxy's mistake.
    let mut head = Vec::with_capacity(512);
    loop {
        let end = loop {
            let end = memchr::memmem::find(&head, b"\r\n\r\n").map(|at| at + 4);
            if end.unwrap_or(head.len()) > LARGEST_HEAD {
                return Err(malformed());
            }
            if let Some(end) = end {
                break end;
            }
            if stream.read_buf(&mut head).await.map_err(ended)? == 0 {
                return Err(ended(std::io::ErrorKind::UnexpectedEof.into()));
            }
        };
        match status(&head[..end]) {
            Some(200..=299) if end == head.len() => return Ok(()),
            Some(200..=299) => return Err(malformed()),
            // An interim response (RFC 9110 section 15.2).
            Some(100..=199) => drop(head.drain(..end)),
            Some(status) => return Err(ProxyError::Refused { proxy: proxy.address.clone(), status }),
            None => return Err(malformed()),
        }
    }
}

/// The status code of an HTTP/1 response's head.
fn status(head: &[u8]) -> Option<u16> {
    let rest = head.strip_prefix(b"HTTP/1.1 ").or_else(|| head.strip_prefix(b"HTTP/1.0 "))?;
    let digits = rest.get(..3).filter(|digits| digits.iter().all(u8::is_ascii_digit))?;
    let ends = matches!(rest.get(3), Some(b' ' | b'\r'));
    std::str::from_utf8(digits).ok()?.parse().ok().filter(|code| ends && (100..600).contains(code))
}

#[cfg(test)]
mod tests {
    use tokio::io::duplex;

    use super::*;

    fn proxy(authorization: Option<&'static str>) -> Proxy {
        let authorization = authorization.map(HeaderValue::from_static);
        Proxy { address: Authority::from_static("proxy.example:3128"), authorization }
    }

    /// What a proxy that answers like this is asked, and the result.
    async fn asked(upstream: &'static str, proxy: Proxy, answer: &[u8]) -> (String, Result<(), ProxyError>) {
        let (mut ours, mut theirs) = duplex(1 << 16);
        theirs.write_all(answer).await.unwrap();
        theirs.shutdown().await.unwrap();
        let opened = tunnel(&mut ours, &Uri::from_static(upstream), &proxy).await;
        drop(ours);
        let mut request = String::new();
        theirs.read_to_string(&mut request).await.unwrap();
        (request, opened)
    }

    #[tokio::test]
    async fn a_tunnel_is_asked_for_by_host_and_port() {
        let ok = b"HTTP/1.1 200 Connection established\r\n\r\n";
        for (upstream, target) in [
            ("https://insights.twilio.com", "insights.twilio.com:443"),
            ("http://insights.example", "insights.example:80"),
            ("https://insights.example:8443/", "insights.example:8443"),
            ("https://[2001:db8::1]", "[2001:db8::1]:443"),
        ] {
            let (request, opened) = asked(upstream, proxy(None), ok).await;
            assert_eq!(request, format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n"));
            assert!(opened.is_ok(), "{opened:?}");
        }
        let (request, _) = asked("https://a.example", proxy(Some("Basic dTpw")), ok).await;
        assert!(request.ends_with("\r\nProxy-Authorization: Basic dTpw\r\n\r\n"), "{request}");
    }

    #[tokio::test]
    async fn every_2xx_opens_it_and_interim_responses_are_skipped() {
        for answer in [
            "HTTP/1.0 200 OK\r\nVia: x\r\n\r\n",
            "HTTP/1.1 204\r\n\r\n",
            "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
        ] {
            let opened = asked("https://a.example", proxy(None), answer.as_bytes()).await.1;
            assert!(opened.is_ok(), "{answer}: {opened:?}");
        }
    }

    #[tokio::test]
    async fn every_other_answer_is_an_error_that_names_the_proxy() {
        let long = format!("HTTP/1.1 200 OK\r\nX: {}\r\n\r\n", "a".repeat(LARGEST_HEAD));
        for (answer, said) in [
            ("HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 2\r\n\r\nno", "answers CONNECT with 407"),
            ("HTTP/1.1 503 x\r\n\r\n", "answers CONNECT with 503"),
            ("HTTP/1.1 302 Found\r\nLocation: http://elsewhere/\r\n\r\n", "answers CONNECT with 302"),
            ("HTTP/1.1 200 OK\r\n\r\nmore", "does not answer CONNECT as HTTP does"),
            ("HTTP/1.1 2000 OK\r\n\r\n", "does not answer"),
            ("HTTP/2 200\r\n\r\n", "does not answer"),
            ("SSH-2.0-x\r\n\r\n", "does not answer"),
            (&long, "does not answer"),
            ("HTTP/1.1 200 OK\r\n", "ended the connection"),
            ("", "ended the connection"),
        ] {
            let error = asked("https://a.example", proxy(None), answer.as_bytes()).await.1.unwrap_err();
            let text = error.to_string();
            assert!(text.contains("proxy.example:3128") && text.contains(said), "{answer}: {text}");
            assert!(!error.for_clients().contains("proxy.example"), "{}", error.for_clients());
        }
    }
}
