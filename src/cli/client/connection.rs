//! A connection to a gateway: TCP, TLS on top of it, or a unix socket; and HTTP/1.1 on either.

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
            // Only a hint: the connection works without it.
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

/// The first address that answers, as `TcpStream::connect` has it for names.
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
    // Names as people write them, for those who look at what goes over the wire.
    let handshake = Builder::new().title_case_headers(true).handshake(TokioIo::new(stream)).await;
    let (sender, connection) = handshake.map_err(Failure::exchange)?;
    // Whatever ends it is told to the request that is under way.
    tokio::spawn(async move { drop(connection.await) });
    Ok(sender)
}
