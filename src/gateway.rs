//! A whole gateway: opens the listeners of a checked configuration, and serves requests on them.
//!
//! This module controls the process: bind, serve, reload, drain. [`stack`] handles requests.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use arc_swap::ArcSwap;
use futures_util::FutureExt;
use tokio::sync::Notify;

use crate::admin::{self, Admin};
use crate::audit::{AuditError, AuditFile};
use crate::config::{self, Config, Files, Fingerprint, Held, Listen, Reach, Sources};
use crate::core::peer::Peer;
use crate::metrics::{ResultLabels, StaticLabel};
use crate::server::tls::{Certificate, ClientCertificates, TlsAcceptor, TlsError};
use crate::server::{self, BindError, Bound, Connections, Inherited, Limits, Reserve};
use crate::stack::{self, SharedState, Stack};
use crate::trust::TrustError;

/// How often the configuration and secret files are checked. Their content counts, not their times: a Kubernetes volume
/// replaces links, and a bind mount may report no change at all.
const POLL_INTERVAL: Duration = Duration::from_secs(2);

/// How long changed files must stay unchanged before they are read, so that a key and its secret that are replaced one
/// after the other are read together. The wait is limited.
const DEBOUNCE: Duration = Duration::from_millis(400);
const MAX_DEBOUNCES: u32 = 5;

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

/// The state of a gateway, for its supervisor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Milestone {
    /// It serves. Also sent after [`Milestone::Reloading`].
    Ready,
    /// It reads its configuration again. It serves meanwhile, and also if the new configuration is refused.
    Reloading,
    /// It has been told to stop.
    Stopping,
}

type OnStateChange = Arc<dyn Fn(Milestone) + Send + Sync>;
type OnReload = Arc<dyn Fn(&Config) + Send + Sync>;

/// A gateway whose listeners are open, and which does not serve yet.
pub struct Gateway {
    current: Arc<ArcSwap<Stack>>,
    config: Arc<ArcSwap<Config>>,
    shared: SharedState,
    tls: Option<TlsAcceptor>,
    data: Vec<Bound>,
    admin: Vec<Bound>,
    held: Held,
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
        let stack = stack::build(&config, &shared)?;
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
        let held = Held {
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
            current: Arc::new(ArcSwap::from_pointee(stack)),
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
                tracing::info!("draining: no new connections, requests under way may finish");
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

        let service = move |peer: &Arc<Peer>| Stack::clone(&current.load()).of(Arc::clone(peer));
        // The listeners are open, so every connection from now on is served.
        on_state_change(Milestone::Ready);
        let connections = most_connections.min(settings.server.max_connections as usize);
        tokio::join!(server::run(data, tls, limits(Connections::new(connections)), service, stop), left);

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
        tokio::join!(store.close(), audit.close(), traces);
    }
}

struct Reloader {
    sources: Sources,
    current: Arc<ArcSwap<Stack>>,
    config: Arc<ArcSwap<Config>>,
    shared: SharedState,
    tls: Option<TlsAcceptor>,
    held: Held,
    on_state_change: OnStateChange,
    on_reload: OnReload,
}

/// Why a new configuration is not applied, and the files whose change may correct it.
struct Refused {
    why: String,
    files: Files,
}

impl Reloader {
    async fn forever(mut self, asked: Arc<Notify>) {
        // The files of the newest configuration, used or refused. A refused one is read again when one of its files
        // changes, also if that file was missing before.
        let mut files = self.config.load().files.clone();
        loop {
            let by_hand = tokio::select! {
                () = asked.notified() => true,
                () = tokio::time::sleep(POLL_INTERVAL) => false,
            };
            if !by_hand {
                let now = files.fingerprint_now();
                if now == files.fingerprint() {
                    continue;
                }
                debounced(&files, now).await;
            }
            let read = self.reload();
            // There are no files when the configuration could not be read at all.
            files = if read.paths().is_empty() { files.again() } else { read };
        }
    }

    /// Applies all or nothing: a refused configuration changes nothing. Returns the files that were read.
    fn reload(&mut self) -> Files {
        (self.on_state_change)(Milestone::Reloading);
        let applied = self.apply();
        (self.on_state_change)(Milestone::Ready);
        let count =
            |result| self.shared.metrics.reloads.get_or_create(&ResultLabels { result: StaticLabel(result) }).inc();
        // Applied first, then counted, then logged: when the log line is written, the metric and the configuration
        // are already new.
        match applied {
            Ok(files) => {
                self.shared.reloads.applied();
                count("applied");
                tracing::info!("configuration reloaded");
                files
            }
            Err(Refused { why, files }) => {
                self.shared.reloads.refused(&why, self.shared.clock.now());
                self.reopen_audit_log();
                count("refused");
                tracing::error!("the new configuration is refused, the old one stays: {why}");
                files
            }
        }
    }

    /// A reload may have been requested because the log was rotated, so this is done even if the configuration is
    /// refused.
    fn reopen_audit_log(&self) {
        match audit_file(&self.config.load()) {
            Ok(file) => self.shared.audit.switch(file),
            Err(error) => tracing::error!("the old audit log stays: {error}"),
        }
    }

    fn apply(&mut self) -> Result<Files, Refused> {
        let new = config::reload(&self.sources)
            .map_err(|faults| Refused { why: faults.to_string(), files: faults.files().clone() })?;
        let files = new.files.clone();
        self.take(new).map_err(|why| Refused { why, files: files.clone() })?;
        Ok(files)
    }

    fn take(&mut self, new: Config) -> Result<(), String> {
        let old = self.config.load_full();
        // All steps that can fail come before any step with an effect.
        check_exposure(&new, &self.held)?;
        let certificate = certificate(&new).map_err(|error| error.to_string())?;
        let audit = audit_file(&new).map_err(|error| error.to_string())?;
        let stack = stack::build(&new, &self.shared).map_err(|error| error.to_string())?;
        if let (Some(acceptor), Some(certificate)) = (&self.tls, certificate) {
            self.shared.certificate.set(certificate.validity(), self.shared.clock.now());
            acceptor.replace(certificate);
            self.held.client_ca = has_client_ca(&new);
        }
        self.shared.audit.switch(audit);
        if new.admin.token_sha256 != old.admin.token_sha256 {
            // Before the token is in use, so that no session of an older one meets it.
            self.shared.reloads.admin_token_changes();
        }
        for key in new.waiting_for_restart(&old) {
            tracing::warn!(key, "this cannot change while the gateway runs; restart it");
        }
        (self.on_reload)(&new);
        self.current.store(Arc::new(stack));
        self.config.store(Arc::new(new));
        Ok(())
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

fn audit_file(config: &Config) -> Result<Option<AuditFile>, AuditError> {
    config.log.audit.as_deref().map(AuditFile::open).transpose()
}

/// With teams, a client may show a token instead of a certificate. Without teams it must show a certificate.
fn certificate(config: &Config) -> Result<Option<Certificate>, TlsError> {
    let clients = match config.teams.is_empty() {
        true => ClientCertificates::Required,
        false => ClientCertificates::Accepted,
    };
    config.server.tls.as_ref().map(|tls| Certificate::read(tls, clients)).transpose()
}

fn has_client_ca(config: &Config) -> bool {
    config.server.tls.as_ref().is_some_and(|tls| tls.client_ca.is_some())
}

/// Whether everyone could use the open listeners if `config` were used. The error lists them, one per line.
fn check_exposure(config: &Config, held: &Held) -> Result<(), String> {
    let exposures = config::exposures(config, held);
    let lines: Vec<_> = exposures.iter().map(ToString::to_string).collect();
    if lines.is_empty() { Ok(()) } else { Err(lines.join("\n")) }
}

/// Waits until the files stay unchanged.
async fn debounced(files: &Files, mut now: Fingerprint) {
    for _ in 0..MAX_DEBOUNCES {
        tokio::time::sleep(DEBOUNCE).await;
        let before = std::mem::replace(&mut now, files.fingerprint_now());
        if now == before {
            break;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// The files of a configuration with a secret, and the path of the secret.
    fn files(folder: &tempfile::TempDir) -> (Files, std::path::PathBuf) {
        let secret = folder.path().join("secret");
        fs::write(&secret, "secret-of-0").unwrap();
        let sources = Sources::default()
            .with_flag("accounts.main.account_sid", "AC00000000000000000000000000000001")
            .with_flag("accounts.main.api_key", "SK1")
            .with_flag("accounts.main.api_secret.file", secret.display().to_string());
        (config::load(&sources).unwrap().files, secret)
    }

    async fn write(secret: &std::path::Path, times: u32, pause: Duration) {
        for n in 1..=times {
            tokio::time::sleep(pause).await;
            fs::write(secret, format!("secret-of-{n}")).unwrap();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn changed_files_are_read_once_they_stay_unchanged() {
        let folder = tempfile::TempDir::new().unwrap();
        let (files, secret) = files(&folder);
        let mut writing = std::pin::pin!(write(&secret, 4, DEBOUNCE * 3 / 4));
        tokio::select! {
            biased;
            () = &mut writing => {}
            () = debounced(&files, files.fingerprint()) => panic!("it did not wait"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn files_that_keep_changing_are_read_within_five_seconds() {
        let folder = tempfile::TempDir::new().unwrap();
        let (files, secret) = files(&folder);
        let begun = tokio::time::Instant::now();
        tokio::select! {
            () = debounced(&files, files.fingerprint()) => {}
            () = write(&secret, 1000, DEBOUNCE / 2) => panic!("it waited for the end"),
        }
        // The remaining time is for reading and building.
        assert!(POLL_INTERVAL + begun.elapsed() <= Duration::from_millis(4500), "{:?}", begun.elapsed());
    }
}
