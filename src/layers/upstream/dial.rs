//! From a name to a TCP connection: tries all addresses of the name in a race (RFC 8305, "Happy Eyeballs").
//!
//! When an address refuses, or does not answer for [`HEAD_START`], the next attempt begins as well. The first that
//! connects is used. So a dead address costs a quarter of a second and not the whole time for connecting, which the
//! caller limits.

use std::net::{IpAddr, SocketAddr};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use http::Uri;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::dns::{GaiResolver, Name};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tower::{BoxError, Service, ServiceExt};

/// Time for one address alone, before the next attempt begins (RFC 8305 section 5).
const HEAD_START: Duration = Duration::from_millis(250);

/// Why no connection was made.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// The resolver knows no address.
    #[error("{host}")]
    Resolve {
        /// The name.
        host: String,
        /// The resolver's error.
        source: BoxError,
    },
    /// The resolver answers with no address.
    #[error("{host}: the name has no address")]
    NoAddress {
        /// The name.
        host: String,
    },
    /// The connection to the last of the addresses failed.
    #[error("{address}")]
    Connect {
        /// The address.
        address: SocketAddr,
        /// The system's error.
        source: BoxError,
    },
}

/// Resolves names with `R`, and connects to an address with `C`.
#[derive(Debug, Clone)]
pub struct Dialer<R, C> {
    resolver: R,
    connect: C,
}

impl Dialer<GaiResolver, Tcp> {
    /// With the system's resolver, over TCP.
    pub fn of_the_system() -> Self {
        Self::new(GaiResolver::new(), Tcp::new())
    }
}

impl<R, C> Dialer<R, C> {
    /// With this resolver and this way to connect.
    pub fn new(resolver: R, connect: C) -> Self {
        Self { resolver, connect }
    }
}

impl<R, A, C> Service<Uri> for Dialer<R, C>
where
    R: Service<Name, Response = A, Error: Into<BoxError>, Future: Send> + Clone + Send + 'static,
    A: Iterator<Item = SocketAddr> + Send,
    C: Service<SocketAddr, Response: Send, Error = BoxError, Future: Send> + Clone + Send + 'static,
{
    type Response = C::Response;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<C::Response, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, url: Uri) -> Self::Future {
        let Self { resolver, connect } = self.clone();
        Box::pin(async move {
            let host = url.host().unwrap_or_default().trim_matches(['[', ']']);
            let port = port(&url);
            if let Ok(address) = host.parse::<IpAddr>() {
                return Ok(race(vec![SocketAddr::new(address, port)], connect, host).await?);
            }
            let unresolved = |source| DialError::Resolve { host: host.to_owned(), source };
            let name = host.parse::<Name>().map_err(|error| unresolved(error.into()))?;
            let resolved = resolver.oneshot(name).await.map_err(|error| unresolved(error.into()))?;
            let addresses = resolved.map(|mut address| {
                address.set_port(port);
                address
            });
            Ok(race(in_turns(addresses), connect, host).await?)
        })
    }
}

/// The port of a URL, or the default of its scheme.
pub(super) fn port(url: &Uri) -> u16 {
    url.port_u16().unwrap_or(if url.scheme_str() == Some("https") { 443 } else { 80 })
}

/// Alternates the addresses of both families, in the resolver's order (RFC 8305 section 4): where one family has no
/// route, only one of its addresses costs a wait.
fn in_turns(addresses: impl Iterator<Item = SocketAddr>) -> Vec<SocketAddr> {
    let addresses: Vec<_> = addresses.collect();
    let preferred = addresses.first().is_some_and(SocketAddr::is_ipv6);
    let (first, second): (Vec<_>, Vec<_>) = addresses.into_iter().partition(|address| address.is_ipv6() == preferred);
    let mut second = second.into_iter();
    let mut turns = Vec::with_capacity(first.len() + second.len());
    for address in first {
        turns.push(address);
        turns.extend(second.next());
    }
    turns.extend(second);
    turns
}

async fn race<C>(addresses: Vec<SocketAddr>, connect: C, host: &str) -> Result<C::Response, DialError>
where
    C: Service<SocketAddr, Error = BoxError> + Clone,
{
    let mut waiting = addresses.into_iter();
    let mut running = FuturesUnordered::new();
    let mut last = DialError::NoAddress { host: host.to_owned() };
    loop {
        let connect = |address| {
            let connecting = connect.clone().oneshot(address);
            async move { connecting.await.map_err(|source| DialError::Connect { address, source }) }
        };
        running.extend(waiting.next().map(connect));
        tokio::select! {
            biased;
            ended = running.next() => match ended {
                Some(Ok(connected)) => return Ok(connected),
                Some(Err(error)) => last = error,
                None => return Err(last),
            },
            () = tokio::time::sleep(HEAD_START), if waiting.len() > 0 => {}
        }
    }
}

/// Connects over TCP.
#[derive(Debug, Clone)]
pub struct Tcp(HttpConnector);

impl Tcp {
    fn new() -> Self {
        let mut http = HttpConnector::new();
        http.set_nodelay(true);
        http.set_keepalive(Some(Duration::from_secs(60)));
        Self(http)
    }
}

impl Default for Tcp {
    fn default() -> Self {
        Self::new()
    }
}

impl Service<SocketAddr> for Tcp {
    type Response = TokioIo<TcpStream>;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<TokioIo<TcpStream>, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, address: SocketAddr) -> Self::Future {
        // The URL has an address instead of a name, so that the connector resolves nothing and tries only this address.
        let url = Uri::try_from(format!("http://{address}"));
        let connector = self.0.clone();
        Box::pin(async move { Ok(connector.oneshot(url?).await?) })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::sync::{Arc, Mutex};

    use tokio::time::Instant;
    use tower::service_fn;

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// What an address does: it connects or refuses after a while, or never answers.
    #[derive(Clone, Copy)]
    enum ConnectScript {
        Connect(Duration),
        Refuse(Duration),
        Nothing,
    }

    /// Dials a name with these addresses. Returns which one was reached, the time it took, and all that were tried.
    async fn dial(addresses: &[(&str, ConnectScript)]) -> (Option<String>, Duration, Vec<String>) {
        let names: Vec<SocketAddr> = addresses.iter().map(|(ip, _)| SocketAddr::new(ip.parse().unwrap(), 0)).collect();
        let does: HashMap<SocketAddr, ConnectScript> =
            addresses.iter().map(|(ip, does)| (SocketAddr::new(ip.parse().unwrap(), 8443), *does)).collect();
        let tried = Arc::new(Mutex::new(Vec::new()));
        let connect = {
            let (tried, does) = (Arc::clone(&tried), Arc::new(does));
            service_fn(move |address: SocketAddr| {
                tried.lock().unwrap().push(address.ip().to_string());
                let does = does[&address];
                async move {
                    match does {
                        ConnectScript::Connect(after) => {
                            tokio::time::sleep(after).await;
                            Ok(address.ip().to_string())
                        }
                        ConnectScript::Refuse(after) => {
                            tokio::time::sleep(after).await;
                            Err(BoxError::from("refused"))
                        }
                        ConnectScript::Nothing => std::future::pending().await,
                    }
                }
            })
        };
        let resolver = service_fn(move |name: Name| {
            assert_eq!(name.as_str(), "upstream.example");
            let names = names.clone();
            async move { Ok::<_, BoxError>(names.into_iter()) }
        });
        let begun = Instant::now();
        let dialled = Dialer::new(resolver, connect).oneshot(Uri::from_static("https://upstream.example:8443"));
        let reached = tokio::time::timeout(Duration::from_secs(5), dialled).await;
        let tried = tried.lock().unwrap().clone();
        (reached.ok().and_then(Result::ok), begun.elapsed(), tried)
    }

    #[tokio::test(start_paused = true)]
    async fn a_dead_address_costs_a_quarter_of_a_second() {
        let alive = ConnectScript::Connect(10 * MS);
        let (reached, took, _) = dial(&[("192.0.2.1", ConnectScript::Nothing), ("192.0.2.2", alive)]).await;
        assert_eq!((reached.as_deref(), took), (Some("192.0.2.2"), 260 * MS));
        let dead = ["192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.4"].map(|ip| (ip, ConnectScript::Nothing));
        let (reached, took, _) = dial(&[&dead[..], &[("192.0.2.9", alive)]].concat()).await;
        assert_eq!((reached.as_deref(), took), (Some("192.0.2.9"), 1010 * MS));
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_that_refuses_costs_only_the_time_of_its_refusal() {
        let (refuses, alive) = (ConnectScript::Refuse(5 * MS), ConnectScript::Connect(10 * MS));
        let (reached, took, _) = dial(&[("192.0.2.1", refuses), ("192.0.2.2", refuses), ("192.0.2.3", alive)]).await;
        assert_eq!((reached.as_deref(), took), (Some("192.0.2.3"), 20 * MS));
        let (reached, took, tried) = dial(&[("192.0.2.1", refuses), ("192.0.2.2", refuses)]).await;
        assert_eq!((reached, took, tried.len()), (None, 10 * MS, 2));
        assert_eq!(dial(&[]).await.0, None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_attempt_is_not_given_up_when_the_next_begins() {
        let (slow, slower) = (ConnectScript::Connect(400 * MS), ConnectScript::Connect(900 * MS));
        let (reached, took, tried) = dial(&[("192.0.2.1", slow), ("192.0.2.2", slower)]).await;
        assert_eq!((reached.as_deref(), took, tried.len()), (Some("192.0.2.1"), 400 * MS, 2));
        let (_, _, tried) = dial(&[("192.0.2.1", ConnectScript::Connect(249 * MS)), ("192.0.2.2", slow)]).await;
        assert_eq!(tried, ["192.0.2.1"], "no other is tried while the first may still connect");
    }

    #[tokio::test(start_paused = true)]
    async fn families_take_turns_in_the_resolvers_order() {
        let addresses = ["2001:db8::1", "2001:db8::2", "2001:db8::3", "192.0.2.1", "192.0.2.2"];
        let (_, _, tried) = dial(&addresses.map(|ip| (ip, ConnectScript::Nothing))).await;
        assert_eq!(tried, ["2001:db8::1", "192.0.2.1", "2001:db8::2", "192.0.2.2", "2001:db8::3"]);
    }
}
