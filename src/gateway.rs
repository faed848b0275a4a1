//! A whole gateway: a checked configuration becomes open ports, and ports become answers.
//!
//! The life of the process is here: bind, serve, reload, drain. What happens to a request is in
//! [`stack`].

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use futures_util::FutureExt;
use tokio::sync::{Notify, Semaphore};

use crate::admin::{self, Admin};
use crate::config::{self, Config, Listen, Sources};
use crate::layers::upstream::TrustError;
use crate::metrics::{ResultLabels, Word};
use crate::server::tls::{Certificate, TlsAcceptor, TlsError};
use crate::server::{self, BindError, Bound, Limits};
use crate::stack::{self, Journey, Lasting};

/// How often the configuration and secret files are looked at. Their content counts, not their times: a
/// Kubernetes volume swaps links, and a bind mount may tell nothing at all.
const LOOK: Duration = Duration::from_secs(2);

/// Why a gateway does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A port is taken, or not ours.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The upstream's trust root cannot be used.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// The listener's certificate cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// A gateway whose ports are open and which does not serve yet.
pub struct Gateway {
    current: Arc<ArcSwap<Journey>>,
    config: Arc<ArcSwap<Config>>,
    lasting: Lasting,
    tls: Option<TlsAcceptor>,
    data: Vec<Bound>,
    admin: Bound,
}

impl Gateway {
    /// Builds the journey and opens the ports. Needs a tokio runtime.
    ///
    /// # Errors
    ///
    /// When a port cannot be opened, or a certificate or trust root cannot be used.
    pub fn bind(config: Config) -> Result<Self, StartError> {
        let lasting = Lasting::new(&config);
        let journey = stack::journey(&config, &lasting)?;
        let certificate = config.server.tls.as_ref().map(Certificate::read).transpose()?;
        let tls = certificate.map(TlsAcceptor::new);
        let data = config.server.listen.iter().map(server::bind).collect::<Result<_, _>>()?;
        let admin = server::bind(&Listen::Tcp(config.admin.listen))?;
        for warning in &config.warnings {
            tracing::warn!("{warning}");
        }
        Ok(Self {
            current: Arc::new(ArcSwap::from_pointee(journey)),
            config: Arc::new(ArcSwap::from_pointee(config)),
            lasting,
            tls,
            data,
            admin,
        })
    }

    /// Where the data plane listens, in the form of the configuration.
    pub fn data_addresses(&self) -> Vec<String> {
        self.data.iter().map(Bound::address).collect()
    }

    /// The first TCP address of the data plane.
    pub fn data_address(&self) -> Option<SocketAddr> {
        self.data.iter().find_map(Bound::tcp)
    }

    /// Where the admin plane listens.
    pub fn admin_address(&self) -> Option<SocketAddr> {
        self.admin.tcp()
    }

    /// Serves until `shutdown` ends, and then until what is under way has finished or `server.drain` is up.
    /// With `sources`, the configuration is read again when its files change or `reload` is notified.
    pub async fn run(
        self,
        sources: Option<Sources>,
        reload: Arc<Notify>,
        shutdown: impl Future<Output = ()> + Send + 'static,
    ) {
        let Self { current, config, lasting, tls, data, admin } = self;
        let settings = config.load_full();
        let draining = Arc::new(AtomicBool::new(false));
        let stop = {
            let draining = Arc::clone(&draining);
            async move {
                shutdown.await;
                draining.store(true, Ordering::Relaxed);
                tracing::info!("draining: no new connections, requests under way may finish");
            }
        };
        let stop = stop.boxed().shared();
        let limits = |connections: usize| Limits {
            connections: Arc::new(Semaphore::new(connections)),
            header_timeout: settings.server.header_timeout,
            drain: settings.server.drain,
        };
        let reloading = sources.map(|sources| {
            let reloader = Reloader {
                sources,
                current: Arc::clone(&current),
                config: Arc::clone(&config),
                lasting: lasting.clone(),
                tls: tls.clone(),
            };
            tokio::spawn(reloader.forever(reload))
        });
        // The admin plane outlives the data plane, so that a drain can be watched.
        let drained = Arc::new(Notify::new());
        let admin_stop = {
            let drained = Arc::clone(&drained);
            async move { drained.notified().await }.boxed().shared()
        };
        let store = lasting.store.clone();
        let admin_service = Admin::new(lasting, config, draining);
        let admin_limits = Limits { drain: Duration::from_secs(1), ..limits(admin::CONNECTIONS) };
        let admin =
            tokio::spawn(server::run(vec![admin], None, admin_limits, move || admin_service.clone(), admin_stop));

        let service = move || Journey::clone(&current.load());
        server::run(data, tls, limits(settings.server.max_connections as usize), service, stop).await;

        drained.notify_one();
        // A panic there has been reported by itself, and the data plane is done.
        let _ = admin.await;
        if let Some(task) = reloading {
            task.abort();
        }
        // Last, so that what came while draining is there after a restart.
        store.close().await;
    }
}

struct Reloader {
    sources: Sources,
    current: Arc<ArcSwap<Journey>>,
    config: Arc<ArcSwap<Config>>,
    lasting: Lasting,
    tls: Option<TlsAcceptor>,
}

impl Reloader {
    async fn forever(self, asked: Arc<Notify>) {
        // A configuration that was refused is not tried again until a file changes once more.
        let mut refused = None;
        loop {
            let by_hand = tokio::select! {
                () = asked.notified() => true,
                () = tokio::time::sleep(LOOK) => false,
            };
            let config = self.config.load_full();
            let now = config.fingerprint_of_files();
            if by_hand || (now != config.fingerprint && refused != Some(now)) {
                refused = (!self.reload()).then_some(now);
            }
        }
    }

    /// All or nothing: a configuration that is refused leaves the old one as it was.
    fn reload(&self) -> bool {
        let count = |result| self.lasting.metrics.reloads.get_or_create(&ResultLabels { result: Word(result) }).inc();
        let applied = self.apply();
        match &applied {
            Ok(()) => {
                count("applied");
                tracing::info!("configuration reloaded");
            }
            Err(fault) => {
                count("refused");
                tracing::error!("the new configuration is refused, the old one stays: {fault}");
            }
        }
        applied.is_ok()
    }

    fn apply(&self) -> Result<(), String> {
        let new = config::load(&self.sources).map_err(|faults| faults.to_string())?;
        let old = self.config.load_full();
        // All that can fail comes before anything that has an effect.
        let certificate =
            new.server.tls.as_ref().map(Certificate::read).transpose().map_err(|error| error.to_string())?;
        let journey = stack::journey(&new, &self.lasting).map_err(|error| error.to_string())?;
        if let (Some(acceptor), Some(certificate)) = (&self.tls, certificate) {
            acceptor.replace(certificate);
        }
        for key in fixed_keys_that_differ(&old, &new) {
            tracing::warn!(key, "this cannot change while the gateway runs; restart it");
        }
        for account in &new.accounts {
            // Perhaps it was replaced because it was rejected.
            self.lasting.rejections.clear(&account.name);
        }
        self.current.store(Arc::new(journey));
        self.config.store(Arc::new(new));
        Ok(())
    }
}

/// Keys whose new value waits for a restart.
fn fixed_keys_that_differ(old: &Config, new: &Config) -> Vec<&'static str> {
    let differs = [
        ("server.listen", old.server.listen != new.server.listen),
        ("server.max_connections", old.server.max_connections != new.server.max_connections),
        ("server.header_timeout", old.server.header_timeout != new.server.header_timeout),
        ("server.drain", old.server.drain != new.server.drain),
        ("server.tls", old.server.tls.is_some() != new.server.tls.is_some()),
        ("admin.listen", old.admin.listen != new.admin.listen),
        ("cache.capacity", old.cache.capacity != new.cache.capacity),
        ("cache.disk.path", old.cache.disk.path != new.cache.disk.path),
        ("cache.disk.capacity", old.cache.disk.capacity != new.cache.disk.capacity),
        ("log.format", old.log.format != new.log.format),
        ("log.filter", old.log.filter != new.log.filter),
    ];
    differs.into_iter().filter_map(|(key, differs)| differs.then_some(key)).collect()
}
