//! A connection to a gateway: TCP, TLS over TCP, or a unix socket; with HTTP/1.1 over it.

use std::io;

use bytes::Bytes;
use http_body_util::Full;
use hyper::client::conn::http1::{Builder, SendRequest};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;

use super::address::{Address, Transport};
use super::failure::Failure;

pub(super) async fn open(address: &Address, tls: Option<&TlsConnector>) -> Result<SendRequest<Full<Bytes>>, Failure> {
    match &address.transport {
        Transport::Unix(path) => converse(UnixStream::connect(path).await.map_err(Failure::Connect)?).await,
        Transport::Tcp { host, port, .. } => {
            let addresses = tokio::net::lookup_host((host.as_str(), *port)).await.map_err(Failure::Resolve)?;
            let stream = connect(addresses).await.map_err(Failure::Connect)?;
            // Optional: the connection works without it.
            let _ = stream.set_nodelay(true);
            match tls {
                None => converse(stream).await,
                Some(tls) => {
                    let name = ServerName::try_from(host.clone()).map_err(|_| Failure::Target)?;
                    converse(tls.connect(name, stream).await.map_err(Failure::tls)?).await
                }
            }
        }
    }
}

/// The first address that connects, as with `TcpStream::connect`.
async fn connect(addresses: impl Iterator<Item = std::net::SocketAddr>) -> io::Result<TcpStream> {
    let mut last = None;
    for address in addresses {
        match TcpStream::connect(address).await {
            Ok(stream) => return Ok(stream),
            Err(error) => last = Some(error),
        }
    }
    Err(last.unwrap_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the name has no address")))
}

async fn converse<S>(stream: S) -> Result<SendRequest<Full<Bytes>>, Failure>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    // Header names in their usual capitals, for people who read the traffic.
    let handshake = Builder::new().title_case_headers(true).handshake(TokioIo::new(stream)).await;
    let (sender, connection) = handshake.map_err(Failure::exchange)?;
    // If the connection fails, the request that uses it gets the error.
    tokio::spawn(async move { drop(connection.await) });
    Ok(sender)
}
