//! A whole gateway: opens the listeners of a checked configuration, and serves requests on them.
//!
//! This module controls the process: bind, serve, reload, drain. [`stack`] handles requests.

mod prepare;
mod reload;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use arc_swap::ArcSwap;
use futures_util::FutureExt;
use tokio::sync::Notify;

pub use self::prepare::Milestone;
use self::prepare::{OnReload, OnStateChange, audit_file, certificate, check_exposure, has_client_ca};
use self::reload::Reloader;
use crate::admin::{self, Admin};
use crate::audit::AuditError;
use crate::config::{BoundListeners, Config, Listen, Reach, Sources};
use crate::core::peer::Peer;
use crate::server::tls::{Certificate, TlsAcceptor, TlsError};
use crate::server::{self, BindError, Bound, Connections, Inherited, Limits, Reserve};
use crate::stack::{self, Assembly, SharedState};
use crate::trust::TrustError;

/// The least time for which kept-alive connections stay open after the gateway is told to stop, so that a client that
/// is sending a request gets a refusal.
const LINGER: Duration = Duration::from_millis(500);

/// Why a gateway does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// An address is in use, or not an address of this host.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The upstream's trust root cannot be used.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// A listener is open to everyone. This can be a socket that was handed over, because others are checked with the
    /// configuration.
    #[error("{0}")]
    Exposed(String),
    /// The audit log cannot be opened.
    #[error(transparent)]
    Audit(#[from] AuditError),
    /// The listener's certificate cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// A gateway whose listeners are open, and which does not serve yet.
pub struct Gateway {
    current: Arc<ArcSwap<Assembly>>,
    config: Arc<ArcSwap<Config>>,
    shared: SharedState,
    tls: Option<TlsAcceptor>,
    data: Vec<Bound>,
    admin: Vec<Bound>,
    held: BoundListeners,
    on_state_change: OnStateChange,
    on_reload: OnReload,
    most_connections: usize,
}

impl Gateway {
    /// Builds the stack and opens the listeners. Needs a tokio runtime.
    ///
    /// # Errors
    ///
    /// When a listener or the audit log cannot be opened, or a certificate or trust root cannot be used.
    pub fn bind(config: Config) -> Result<Self, StartError> {
        Self::bind_with(config, Inherited::default())
    }

    /// The same, with sockets that another process has opened.
    ///
    /// # Errors
    ///
    /// As [`Gateway::bind`]; and when a socket that the configuration names is missing, or can be reached from farther
    /// away than a gateway without teams allows.
    pub fn bind_with(config: Config, mut inherited: Inherited) -> Result<Self, StartError> {
        let shared = SharedState::new(&config)?;
        let assembly = stack::assemble(&config, &shared)?;
        shared.audit.switch(audit_file(&config)?);
        let certificate = certificate(&config)?;
        shared.certificate.set(certificate.as_ref().and_then(Certificate::validity), shared.clock.now());
        let tls = certificate.map(TlsAcceptor::new);
        let mut data = Vec::new();
        for listen in &config.server.listen {
            let bound = server::bind(listen, &config.server.listen, config.server.unix_mode, &mut inherited);
            data.extend(bound.map_err(|error| error.set_by("--listen (server.listen)"))?);
        }
        for name in inherited.names() {
            tracing::warn!(name, "a socket was handed over that server.listen does not name; it is not served");
        }
        let admin = server::bind(&Listen::Tcp(config.admin.listen), &[], config.server.unix_mode, &mut inherited)
            .map_err(|error| error.set_by("--admin-listen (admin.listen)"))?;
        let held = BoundListeners {
            data: data.iter().map(Bound::listener).collect(),
            admin: admin.iter().map(Bound::listener).collect(),
            tls: tls.is_some(),
            client_ca: has_client_ca(&config),
        };
        check_exposure(&config, &held).map_err(StartError::Exposed)?;
        for warning in &config.warnings {
            tracing::warn!("{warning}");
        }
        Ok(Self {
            current: Arc::new(ArcSwap::from_pointee(assembly)),
            config: Arc::new(ArcSwap::from_pointee(config)),
            shared,
            tls,
            data,
            admin,
            held,
            on_state_change: Arc::new(|_| ()),
            on_reload: Arc::new(|_| ()),
            most_connections: usize::MAX,
        })
    }

    /// The same gateway; `on_state_change` is called with each milestone.
    #[must_use]
    pub fn on_state_change(self, on_state_change: impl Fn(Milestone) + Send + Sync + 'static) -> Self {
        Self { on_state_change: Arc::new(on_state_change), ..self }
    }

    /// Sets a function that is called with every new configuration that is applied.
    #[must_use]
    pub fn on_reload(self, on_reload: impl Fn(&Config) + Send + Sync + 'static) -> Self {
        Self { on_reload: Arc::new(on_reload), ..self }
    }

    /// The same gateway with a limit on open connections that holds whatever `server.max_connections` says. Each
    /// connection takes a file descriptor, and without a free one nothing else can be opened either.
    #[must_use]
    pub fn at_most(self, connections: usize) -> Self {
        let wanted = self.config.load().server.max_connections;
        if connections < wanted as usize {
            tracing::warn!(
                connections,
                "server.max_connections is {wanted}, and the limit of open files allows fewer; raise that \
                 (LimitNOFILE= in a systemd unit, --ulimit nofile= for a container)"
            );
        }
        Self { most_connections: connections, ..self }
    }

    /// The data plane's addresses, as the configuration writes them.
    pub fn data_addresses(&self) -> Vec<String> {
        self.data.iter().map(Bound::address).collect()
    }

    /// The first TCP address of the data plane.
    pub fn data_address(&self) -> Option<SocketAddr> {
        self.data.iter().find_map(Bound::tcp)
    }

    /// The admin plane's address.
    pub fn admin_address(&self) -> Option<SocketAddr> {
        self.admin.iter().find_map(Bound::tcp)
    }

    /// Serves until `shutdown` ends, and then until requests in progress have finished or `server.drain` is up. With
    /// `sources`, the configuration is read again when its files change or `reload` is notified.
    pub async fn run(
        self,
        sources: Option<Sources>,
        reload: Arc<Notify>,
        shutdown: impl Future<Output = ()> + Send + 'static,
    ) {
        let Self { current, config, shared, tls, data, admin, held, on_state_change, on_reload, most_connections } =
            self;
        let settings = config.load_full();
        let data_url = data.iter().find_map(Bound::tcp).map(|address| url(address, tls.is_some()));
        let draining = Arc::new(OnceLock::new());
        let stop = {
            let (draining, on_state_change, clock) =
                (Arc::clone(&draining), Arc::clone(&on_state_change), shared.clock);
            let (requests, drain) = (shared.draining.clone(), settings.server.drain);
            async move {
                shutdown.await;
                on_state_change(Milestone::Stopping);
                // It is set only once: a drain does not begin twice.
                let _ = draining.set(clock.now());
                requests.begin();
                tokio::spawn(async move {
                    tokio::time::sleep(drain).await;
                    requests.end();
                });
                tracing::info!("draining: no new connections, requests in progress may finish");
            }
        };
        let stop = stop.boxed().shared();
        let limits = |connections: Connections| Limits {
            connections: Arc::new(connections),
            header_timeout: settings.server.header_timeout,
            write_timeout: settings.server.write_timeout,
            proxies: Arc::new(settings.server.proxy_protocol.clone()),
            drain: settings.server.drain,
            linger: LINGER.min(settings.server.drain),
        };
        let beyond_loopback = held.admin.iter().any(|listener| listener.reach == Reach::Network);
        let reloading = sources.map(|sources| {
            let reloader = Reloader {
                sources,
                current: Arc::clone(&current),
                config: Arc::clone(&config),
                shared: shared.clone(),
                tls: tls.clone(),
                held,
                on_state_change: Arc::clone(&on_state_change),
                on_reload,
            };
            tokio::spawn(reloader.forever(reload))
        });
        let (drains, replicas) = (shared.draining.clone(), shared.replicas.clone());
        // At once, so that the other replicas need not divide with one that takes no new requests.
        let left = async move {
            if let Some(replicas) = replicas {
                drains.begun().await;
                replicas.leave().await;
            }
        };
        // The admin plane ends after the data plane, so that a drain can be observed.
        let drained = Arc::new(Notify::new());
        let admin_stop = {
            let drained = Arc::clone(&drained);
            async move { drained.notified().await }.boxed().shared()
        };
        let (store, audit, traces) = (shared.store.clone(), shared.audit.clone(), shared.traces.clone());
        let (writes, clock, begun) = (shared.writes.clone(), shared.clock, Arc::clone(&draining));
        let job_owners = shared.job_owners.clone();
        let admin_service = Admin::new(shared, config, Arc::clone(&current), draining, data_url, beyond_loopback);
        let for_probes = Reserve { connections: admin::CONNECTIONS_FOR_PROBES, serves: admin::is_probe };
        let admin_limits = Limits {
            drain: Duration::from_secs(1),
            linger: Duration::ZERO,
            proxies: Arc::default(),
            ..limits(Connections::new(admin::CONNECTIONS).with_reserve(for_probes))
        };
        let admin = tokio::spawn(server::run(
            admin,
            None,
            admin_limits,
            move |peer: &Arc<Peer>| admin_service.of(Arc::clone(peer)),
            admin_stop,
        ));

        let service = move |peer: &Arc<Peer>| current.load().stack.clone().of(Arc::clone(peer));
        // The listeners are open, so every connection from now on is served.
        on_state_change(Milestone::Ready);
        let connections = most_connections.min(settings.server.max_connections as usize);
        tokio::join!(server::run(data, tls, limits(Connections::new(connections)), service, stop), left);

        // Writes go on without their clients, and the responses that they make wrong must not be restored from the disk.
        let drained_for = begun.get().map_or(Duration::ZERO, |begun| clock.now().saturating_duration_since(*begun));
        writes.finish(settings.server.drain.saturating_sub(drained_for)).await;

        drained.notify_one();
        // A panic there has been reported already, and the data plane has ended.
        let _ = admin.await;
        if let Some(task) = reloading {
            task.abort();
        }
        // Last, so that the events of the drain are on the disk and exported.
        let traces = async {
            if let Some(traces) = &traces {
                traces.close().await;
            }
        };
        tokio::join!(store.close(), job_owners.close(), audit.close(), traces);
    }
}

/// The URL at which a client on this machine reaches a listener.
fn url(mut address: SocketAddr, secure: bool) -> String {
    match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => address.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(ip) if ip.is_unspecified() => address.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    format!("{}://{address}", if secure { "https" } else { "http" })
}
