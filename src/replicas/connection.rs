//! One connection to the store: to a single server, to the primary of a sentinel, or to a cluster.
//!
//! The client library speaks the protocol. A connection carries many operations at once, so no operation waits for a
//! free connection. A connection that broke is not repaired: [`super::SharedStore`] opens another.

mod nodes;
#[cfg(test)]
mod tests;

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::select_ok;
use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::cluster::{ClusterClient, ClusterClientBuilder};
use redis::cluster_async::ClusterConnection;
use redis::io::tcp::TcpSettings;
use redis::sentinel::{SentinelClientBuilder, SentinelServerType};
use redis::{
    Arg, AsyncConnectionConfig, Client, Cmd, ConnectionAddr, IntoConnectionInfo, RedisConnectionInfo, RedisError,
    RedisResult, TlsCertificates, TlsMode, Value,
};
use secrecy::ExposeSecret;
use tokio::sync::{Mutex, Semaphore};

use self::nodes::Nodes;
pub(crate) use self::nodes::{NodeId, neighbour};
use super::cause;
use crate::config::{HostPort, Servers, Shared};

/// Why there is no connection. The text has no secret in it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectError {
    /// The extra trust root cannot be read.
    #[error("cannot read shared.ca_file: {0}")]
    CaFile(#[source] std::io::Error),
    /// The store refused, or could not be reached.
    #[error("{}", cause::of(.0))]
    Store(#[from] RedisError),
    /// No answer in time.
    #[error("{}", cause::NO_ANSWER)]
    Timeout,
}

/// A connection. Clones share it.
#[derive(Clone)]
pub(crate) enum Connection {
    /// To one server.
    Single(MultiplexedConnection),
    /// To the nodes of a cluster. Each operation goes to the node that has its key.
    Cluster(ClusterConnection, Arc<Nodes>),
    /// To a store that a test simulates.
    #[cfg(test)]
    Scripted(Arc<Script>),
    /// The same with several nodes.
    #[cfg(test)]
    ScriptedCluster(Arc<Script>),
}

/// Answers a command.
#[cfg(test)]
pub(crate) type Script = dyn Fn(&Cmd) -> futures_util::future::BoxFuture<'static, RedisResult<Value>> + Send + Sync;

impl Connection {
    /// Opens a connection, within `timeout`.
    ///
    /// # Errors
    ///
    /// If the store is not reached or refuses.
    pub(crate) async fn open(settings: &Shared, timeout: Duration) -> Result<Self, ConnectError> {
        match tokio::time::timeout(timeout, open(settings, timeout)).await {
            Ok(opened) => opened,
            Err(_) => Err(ConnectError::Timeout),
        }
    }

    /// Runs one command.
    pub(crate) async fn run(&mut self, command: &Cmd) -> RedisResult<Value> {
        match self {
            Self::Single(connection) => connection.req_packed_command(command).await,
            Self::Cluster(connection, _) => connection.req_packed_command(command).await,
            #[cfg(test)]
            Self::Scripted(script) | Self::ScriptedCluster(script) => script(command).await,
        }
    }

    /// The node that has `key`.
    pub(crate) fn node(&self, key: &[u8]) -> NodeId {
        match self {
            Self::Cluster(_, nodes) => nodes.of(key),
            #[cfg(test)]
            Self::ScriptedCluster(_) => Nodes::default().of(key),
            _ => NodeId::SINGLE,
        }
    }
}

/// A connection for large values, opened when the first one has to be sent.
pub(crate) struct SecondConnection {
    /// With the episode of the first connection that it belongs to: the next one may reach another server.
    opened: Mutex<Option<(u64, Connection)>>,
    /// Bounds the memory that replies take.
    at_once: Semaphore,
}

impl Default for SecondConnection {
    fn default() -> Self {
        const AT_ONCE: usize = 4;
        Self { opened: Mutex::default(), at_once: Semaphore::new(AT_ONCE) }
    }
}

impl SecondConnection {
    /// Runs one command, after a wait while several others run. The caller waits for `patience` at most.
    pub(crate) async fn run(
        &self,
        episode: u64,
        settings: impl FnOnce() -> Shared,
        patience: Duration,
        command: &Cmd,
    ) -> RedisResult<Value> {
        // It is never closed.
        let _permit = self.at_once.acquire().await;
        let mut connection = {
            let mut opened = self.opened.lock().await;
            match &*opened {
                Some((of, connection)) if *of == episode => connection.clone(),
                _ => {
                    let connection = Connection::open(&settings(), patience).await.map_err(io::Error::other)?;
                    opened.insert((episode, connection)).1.clone()
                }
            }
        };
        connection.run(command).await
    }

    /// The next command opens another connection.
    pub(crate) fn close(&self) {
        // Else another one is being opened.
        if let Ok(mut opened) = self.opened.try_lock() {
            opened.take();
        }
    }
}

async fn open(settings: &Shared, timeout: Duration) -> Result<Connection, ConnectError> {
    let certificates = match &settings.ca_file {
        Some(file) if settings.url.tls => Some(certificates(file).await?),
        _ => None,
    };
    // The deadline of an operation is the caller's. The library's own would differ.
    let config = AsyncConnectionConfig::new().set_connection_timeout(Some(timeout)).set_response_timeout(None);
    let client = match &settings.url.servers {
        Servers::Unix(path) => Client::open(information(settings, ConnectionAddr::Unix(path.clone()))?)?,
        Servers::Single(host) => client(settings, host, certificates)?,
        Servers::Sentinel { hosts, service } => {
            // All are asked at once. The library would wait for the first ones, even if they never answer.
            let asked = hosts.iter().map(|host| primary(settings, host, service, certificates.clone()).boxed());
            select_ok(asked).await?.0
        }
        Servers::Cluster(hosts) => {
            let mut connection = cluster(settings, hosts, certificates, timeout).await?;
            let nodes = slots(&mut connection).await.unwrap_or_default();
            return Ok(Connection::Cluster(connection, Arc::new(nodes)));
        }
    };
    Ok(Connection::Single(client.get_multiplexed_async_connection_with_config(&config).await?))
}

fn client(settings: &Shared, host: &HostPort, certificates: Option<TlsCertificates>) -> RedisResult<Client> {
    let information = information(settings, address(settings, host))?;
    match certificates {
        Some(certificates) => Client::build_with_tls(information, certificates),
        None => Client::open(information),
    }
}

/// The primary that this sentinel names.
async fn primary(
    settings: &Shared,
    sentinel: &HostPort,
    service: &str,
    certificates: Option<TlsCertificates>,
) -> RedisResult<Client> {
    let mut builder = SentinelClientBuilder::new([address(settings, sentinel)], service, SentinelServerType::Master)?
        .set_client_to_redis_db(settings.url.database)
        .set_client_to_redis_tcp_settings(tcp())
        .set_client_to_sentinel_tcp_settings(tcp());
    if settings.url.tls {
        builder = builder.set_client_to_redis_tls_mode(TlsMode::Secure);
        builder = builder.set_client_to_sentinel_tls_mode(TlsMode::Secure);
    }
    if let Some(certificates) = certificates {
        builder = builder.set_client_to_redis_certificates(certificates.clone());
        builder = builder.set_client_to_sentinel_certificates(certificates);
    }
    if let Some(username) = &settings.username {
        builder = builder.set_client_to_redis_username(username);
    }
    if let Some(password) = &settings.password {
        builder = builder.set_client_to_redis_password(password.expose_secret());
    }
    builder.build()?.async_get_client().await
}

async fn cluster(
    settings: &Shared,
    hosts: &[HostPort],
    certificates: Option<TlsCertificates>,
    timeout: Duration,
) -> RedisResult<ClusterConnection> {
    let nodes = hosts.iter().map(|host| information(settings, address(settings, host)));
    let nodes = nodes.collect::<RedisResult<Vec<_>>>()?;
    // The library must not repeat an operation that failed, because a token would be taken twice. A redirection to
    // another node is not a repetition.
    let mut builder: ClusterClientBuilder = ClusterClient::builder(nodes)
        .retries(1)
        // The library waits for all nodes of the list, then for all that these name. Nodes of either list that never
        // answer must leave time for the others.
        .connection_timeout(timeout.mul_f64(0.4))
        .overall_response_timeout(Some(timeout))
        .tcp_settings(tcp());
    if settings.url.tls {
        builder = builder.tls(TlsMode::Secure);
    }
    if let Some(certificates) = certificates {
        builder = builder.certs(certificates);
    }
    builder.build()?.get_async_connection().await
}

/// The slots of each node, from whichever node answers.
async fn slots(connection: &mut ClusterConnection) -> Option<Nodes> {
    const ATTEMPTS: usize = 3;
    let mut command = redis::cmd("CLUSTER");
    command.arg("SLOTS");
    for _ in 0..ATTEMPTS {
        if let Ok(slots) = connection.req_packed_command(&command).await {
            return Nodes::read(slots);
        }
    }
    None
}

/// The key of a command: of a script its first one. `None` if it has none.
pub(crate) fn key(command: &Cmd) -> Option<&[u8]> {
    let mut words = command.args_iter();
    let first = words.next()?;
    let at = if matches!(first, Arg::Simple(name) if name == b"EVAL") { 2 } else { 0 };
    match words.nth(at)? {
        Arg::Simple(key) => Some(key),
        _ => None,
    }
}

fn address(settings: &Shared, HostPort { host, port }: &HostPort) -> ConnectionAddr {
    match settings.url.tls {
        true => ConnectionAddr::TcpTls { host: host.clone(), port: *port, insecure: false, tls_params: None },
        false => ConnectionAddr::Tcp(host.clone(), *port),
    }
}

fn information(settings: &Shared, address: ConnectionAddr) -> RedisResult<redis::ConnectionInfo> {
    let mut login = RedisConnectionInfo::default().set_db(settings.url.database);
    if let Some(username) = &settings.username {
        login = login.set_username(username);
    }
    if let Some(password) = &settings.password {
        login = login.set_password(password.expose_secret());
    }
    Ok(address.into_connection_info()?.set_redis_settings(login).set_tcp_settings(tcp()))
}

/// The library leaves Nagle's algorithm on, which would delay small operations by a round trip.
fn tcp() -> TcpSettings {
    TcpSettings::default().set_nodelay(true)
}

async fn certificates(file: &Path) -> Result<TlsCertificates, ConnectError> {
    let root = tokio::fs::read(file).await.map_err(ConnectError::CaFile)?;
    Ok(TlsCertificates { client_tls: None, root_cert: Some(root) })
}
