//! The path of a request through the layers, on one screen.
//!
//! Above the decode layer a request is HTTP. Between decode and the cache it is a `ClientQuery`, and below the cache an
//! [`UpstreamCall`](crate::request::call::UpstreamCall). Read [`assemble`] from the top: that is the order in which a
//! request passes the layers.

mod registry;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tower::ServiceBuilder;

use self::registry::Resolved;
pub use self::registry::{AccountState, Registry};
use crate::accounts::{Account, PerAccount, Team};
use crate::audit::AuditLog;
use crate::budget::AccountBudget;
use crate::cache::{DiskSettings, Store};
use crate::config::Config;
use crate::core::clock::{Clock, Instant};
use crate::core::draining::Draining;
use crate::core::reloads::Reloads;
use crate::core::validity::CertificateInUse;
use crate::layers::authenticate::{
    AcceptedToken, AuthFailureDelay, Authenticate, AuthenticateLayer, Caller, Callers, UpstreamRate, UsageCounter,
};
use crate::layers::budget::{Budget, BudgetLayer};
use crate::layers::cache::{self, CacheLayer, Caching, PendingWrites};
use crate::layers::cors::{Cors, CorsLayer};
use crate::layers::decode::{self, Bodies, Decode, DecodeLayer, FreshPages, IssuedPageTokens};
use crate::layers::drain::{Drain, DrainLayer};
use crate::layers::jobs::{self, JobOwners, Jobs, JobsLayer};
use crate::layers::observe::{AccessLog, Observe, ObserveLayer};
use crate::layers::represent::{Represent, RepresentLayer};
use crate::layers::rescue::{Rescue, RescueLayer};
use crate::layers::retry::{self, Retry, RetryLayer};
use crate::layers::shed::{Shed, ShedLayer};
use crate::layers::sign::{Sign, SignLayer};
use crate::layers::upstream::{Proxy, Target, Upstream};
use crate::layers::watch::{Watch, WatchLayer};
use crate::live::Live;
use crate::metrics::Metrics;
use crate::metrics::hot_requests::HotRequests;
use crate::replicas::{KnownAccounts, SharedFlights, SharedPages, SharedStore, StoredGrants};
use crate::request::ended::RequestSubscriber;
use crate::semantics::host;
use crate::telemetry::Exporter;
use crate::trust::TrustError;
use crate::twilio::links::Links;
use crate::twilio::permission::OperationSet;
use crate::twilio::policy::{Policy, Required};

/// The layers as a type: each around the next.
pub type Stack = Observe<
    Cors<Rescue<Drain<Shed<Authenticate<Decode<Represent<Jobs<Caching<Retry<Budget<Watch<Sign<Upstream>>>>>>>>>>>>>,
>;

/// The state that outlives a reload, because stored pages, debts and counts belong to the process and not to a
/// configuration. The admin plane reads it.
#[derive(Clone)]
pub struct SharedState {
    /// The clock that all layers share.
    pub clock: Clock,
    /// The metrics.
    pub metrics: Arc<Metrics>,
    /// The stored pages.
    pub store: Store,
    /// The store that replicas share, if one is configured.
    pub replicas: Option<SharedStore>,
    /// The accounts, for what replicas share.
    known_accounts: KnownAccounts,
    /// The state of accounts and teams.
    pub registry: Registry,
    /// The validity of the data plane's certificate, if there is one.
    pub certificate: CertificateInUse,
    /// Delays after failed authentication.
    pub failure_delay: AuthFailureDelay,
    /// Page tokens given out under policies.
    pub page_tokens: IssuedPageTokens,
    /// Query jobs given out under policies.
    pub job_owners: JobOwners,
    /// The writes to accounts that have not ended.
    pub writes: PendingWrites,
    /// Whether the newest configuration is in use.
    pub reloads: Reloads,
    /// The memory of request bodies that are being received.
    pub bodies: Bodies,
    /// The shutdown of the process.
    pub draining: Draining,
    /// The limit of concurrent requests.
    pub shed: ShedLayer,
    /// The audit log.
    pub audit: AuditLog,
    /// Live data for the admin plane.
    pub live: Live,
    /// The exporter of traces, if there is one.
    pub traces: Option<Exporter>,
}

impl SharedState {
    /// Empty state, with the capacities of `config`. Needs a tokio runtime.
    ///
    /// # Errors
    ///
    /// If traces are sent over TLS, and TLS cannot be set up.
    pub fn new(config: &Config) -> Result<Self, TrustError> {
        let (metrics, clock) = (Metrics::new(), Clock::new());
        let store = Store::new(config.cache.capacity, &metrics);
        let store = match disk(config) {
            Some(disk) => store.with_disk(disk, &metrics, clock),
            None => store,
        };
        let shared = config.shared.clone();
        let replicas = shared.map(|shared| SharedStore::start(shared, Arc::clone(&metrics), clock));
        let known_accounts = KnownAccounts::default();
        let grants = replicas.as_ref().map(|replicas| Arc::new(StoredGrants::new(replicas.clone())));
        let store = match replicas.as_ref().zip(grants.as_ref()) {
            Some((replicas, grants)) => {
                let flights = Arc::new(SharedFlights::new(replicas.clone(), clock));
                let local = store.with_fill_lock(flights).with_lost_jobs(Arc::clone(grants) as _);
                SharedPages::behind(local, replicas.clone(), known_accounts.clone(), clock)
            }
            None => store,
        };
        let (mut page_tokens, mut job_owners) = (IssuedPageTokens::default(), JobOwners::default());
        if let Some(disk) = disk(config) {
            job_owners = JobOwners::in_folder(&disk.folder, clock);
        }
        if let Some(grants) = grants {
            let longest = config.cache.query.usable().max(config.cache.settled.lifetimes.usable());
            page_tokens = page_tokens.shared_by(Arc::clone(&grants) as _, longest.saturating_mul(2), clock);
            job_owners = job_owners.shared_by(grants);
        }
        let traces = config.telemetry.otlp.as_ref().map(|url| Exporter::start(url, Arc::clone(&metrics), clock));
        Ok(Self {
            audit: AuditLog::new(Arc::clone(&metrics), clock),
            live: Live::new(clock),
            clock,
            store,
            replicas,
            known_accounts,
            metrics,
            registry: Registry::default(),
            certificate: CertificateInUse::default(),
            // A quarter of all requests, so that three quarters remain for authenticated callers.
            failure_delay: AuthFailureDelay::new((config.server.max_connections as usize / 4).min(1000)),
            page_tokens,
            job_owners,
            writes: PendingWrites::default(),
            reloads: Reloads::default(),
            bodies: Bodies::new(config.server.body_memory),
            draining: Draining::default(),
            shed: ShedLayer::new(config.server.max_connections as usize),
            traces: traces.transpose()?,
        })
    }
}

/// A stack, and the parts of it that the admin plane uses too.
pub struct Assembly {
    /// The layers.
    pub stack: Stack,
    /// The teams that it serves; only `local` if none are configured.
    pub teams: Vec<Arc<Team>>,
    /// Its layer that decodes queries. It finds the cache key of a query.
    pub decode: DecodeLayer,
}

/// Builds the layers that `config` describes, around the shared state.
///
/// # Errors
///
/// If an extra trust root cannot be used.
pub fn build(config: &Config, shared: &SharedState) -> Result<Stack, TrustError> {
    assemble(config, shared).map(|assembly| assembly.stack)
}

/// The same, with the parts that the admin plane uses too.
///
/// # Errors
///
/// As [`build`].
pub fn assemble(config: &Config, shared: &SharedState) -> Result<Assembly, TrustError> {
    let SharedState { clock, metrics, store, registry, failure_delay, page_tokens, .. } = shared.clone();
    let SharedState { job_owners, writes, bodies, draining, shed, audit, live, traces, .. } = shared.clone();
    let accounts = accounts(config);
    let upstream = Upstream::new(target(config), Arc::clone(&metrics), clock)?;
    // Last, because a configuration that fails must change nothing.
    shared.known_accounts.set(&accounts);
    if let (Some(replicas), Some(settings)) = (&shared.replicas, &config.shared) {
        replicas.reload(settings);
    }
    let Resolved { budgets, retries, attempts, signers, secrets } =
        registry.resolve(config, &accounts, shared.replicas.as_ref(), clock);

    let sample = traces.is_some().then_some(config.telemetry.sample);
    let subscribers = subscribers(config, &metrics, traces, audit, &live);
    let callers = callers(config, &accounts, &registry, clock.now());
    let teams = callers.teams();
    let decode = DecodeLayer::new(
        limits(config),
        bodies,
        fresh_pages(&store, clock),
        page_tokens,
        config.validate,
        links(config),
    );

    let stack = ServiceBuilder::new()
        // Outermost, so that it sees the final status of every request, also of clients that leave.
        .layer(ObserveLayer::new(subscribers, sample, clock))
        // Outside all layers that answer, so that web pages can read errors too.
        .layer(CorsLayer::new(&config.server.cors))
        // The only place where an error becomes a status.
        .layer(RescueLayer)
        // Refuses requests that come too late during a shutdown, and ends those that take too long.
        .layer(DrainLayer::new(draining.clone()))
        // Before anything expensive: refuses requests beyond a number of concurrent ones.
        .layer(shed)
        // Route, caller, permission and request rate, from the head alone, before a body is read.
        .layer(AuthenticateLayer::new(
            callers,
            &config.server.cors,
            config.server.tls.as_ref().is_some_and(|tls| tls.client_ca.is_some()),
            &upstream_rates(&budgets),
            failure_delay,
            links(config),
            clock,
        ))
        // HTTP -> ClientQuery: the body, collected and canonical, with a team's policy. Response -> HTTP.
        .layer(decode.clone())
        // Links, 304, gzip, `Age` and `Cache-Status`, for responses of every origin.
        .layer(RepresentLayer::new(store.clone(), links(config), clock))
        // Query jobs: shared submissions, polls that wait, and queries that become jobs.
        .layer(JobsLayer::new(store.clone(), job_owners, jobs_settings(config), draining, clock))
        // Hits end here. Each miss becomes one call.
        .layer(CacheLayer::new(store, cache_policy(config), Arc::clone(&metrics), clock).with_writes(writes))
        // Inside the cache, so that all clients that wait for a call share its attempts.
        .layer(RetryLayer::new(retry_policy(config), retries, Arc::clone(&metrics), clock))
        // Inside retry, so that every attempt pays.
        .layer(BudgetLayer::new(budgets, Arc::clone(&metrics), clock))
        // Outside the signature, because an answer that `sign` withholds is a failure too.
        .layer(WatchLayer::new(attempts, config.upstream.deadline.min(config.upstream.attempt_timeout), clock))
        // Innermost, so that no layer above ever has a secret, and no response that repeats one passes.
        .layer(SignLayer::new(signers, secrets, metrics, clock))
        .service(upstream);
    Ok(Assembly { stack, teams, decode })
}

/// The names of all teams; only `local` if none are configured.
pub fn team_names(config: &Config) -> Vec<String> {
    match config.teams.is_empty() {
        true => vec![LOCAL.to_owned()],
        false => config.teams.iter().map(|team| team.name.clone()).collect(),
    }
}

/// The team of all clients if no teams are configured.
const LOCAL: &str = "local";

/// The accounts of a configuration, in its order.
pub fn accounts(config: &Config) -> Vec<Arc<Account>> {
    let origin = host::origin(&config.upstream.url);
    let account = |(ordinal, account): (usize, &crate::config::Account)| Account {
        name: account.name.as_str().into(),
        sid: account.account_sid.clone(),
        origin: origin.clone(),
        ordinal,
    };
    config.accounts.iter().enumerate().map(account).map(Arc::new).collect()
}

fn callers(config: &Config, accounts: &[Arc<Account>], registry: &Registry, now: Instant) -> Callers {
    if config.teams.is_empty() {
        // The configuration has an account, and without teams exactly one.
        let local = accounts.first().map(|account| Team {
            name: LOCAL.into(),
            account: Arc::clone(account),
            operations: OperationSet::standard(),
            weight: 1,
            upstream: None,
            policy: None,
            ordinal: 0,
            usage: registry.usage(LOCAL),
        });
        let Some(team) = local.map(Arc::new) else { return Callers::Teams(Vec::new()) };
        let caller = Caller { team, tokens: Vec::new(), requests: None };
        let names = [config.server.public_url.as_ref(), Some(&config.upstream.url)];
        let names = names.into_iter().flatten().filter_map(|url| url.host().map(str::to_owned)).collect();
        return Callers::Everybody(caller, (!config.server.open).then_some(names));
    }
    let caller = |(ordinal, team): (usize, &crate::config::Team)| {
        let account = accounts.iter().find(|account| *account.name == *team.account)?;
        let name: Arc<str> = team.name.as_str().into();
        Some(Caller {
            requests: team.requests.map(|rate| registry.team_rate(&name, rate, now)),
            team: Arc::new(Team {
                usage: registry.usage(&name),
                name,
                account: Arc::clone(account),
                operations: team.operations,
                weight: team.weight,
                upstream: team.upstream,
                policy: policy(&team.policy),
                ordinal,
            }),
            tokens: team.tokens.iter().map(accepted).collect(),
        })
    };
    Callers::Teams(config.teams.iter().enumerate().filter_map(caller).collect())
}

fn accepted(token: &crate::config::Token) -> AcceptedToken {
    AcceptedToken { sha256: token.sha256, expires: token.expires.map(SystemTime::from) }
}

fn policy(policy: &crate::config::Policy) -> Option<Arc<Policy>> {
    let require =
        |r: &crate::config::RequiredFilter| Required { op: r.op, field: r.field.clone(), values: r.values.clone() };
    let require: Vec<_> = policy.require.iter().map(require).collect();
    let restricts = !policy.deny.is_empty() || !require.is_empty();
    restricts.then(|| Arc::new(Policy::new(&policy.deny, &require)))
}

fn fresh_pages(store: &Store, clock: Clock) -> FreshPages {
    let (pages, purges) = (store.clone(), store.clone());
    FreshPages::new(move |key| pages.fresh(key, clock.moment()), move || purges.purges())
}

fn upstream_rates(budgets: &PerAccount<AccountBudget>) -> impl Fn(&Arc<Team>) -> Option<UpstreamRate> + use<> {
    let budgets = budgets.clone();
    move |team| {
        let budget = budgets.of(&team.account).clone();
        let (rate, team) = (team.upstream.or(budget.status().limits.rate)?, Arc::clone(team));
        Some(UpstreamRate { rate, allowance: Arc::new(move || budget.allowance(&team)) })
    }
}

/// The subscribers to the end of every request, in the order in which they are notified.
fn subscribers(
    config: &Config,
    metrics: &Arc<Metrics>,
    traces: Option<Exporter>,
    audit: AuditLog,
    live: &Live,
) -> Vec<Box<dyn RequestSubscriber>> {
    let mut subscribers: Vec<Box<dyn RequestSubscriber>> =
        vec![Box::new(HotRequests::new(Arc::clone(metrics), config.teams.len().max(1))), Box::new(UsageCounter)];
    subscribers.push(Box::new(live.subscriber(config.admin.show_queries)));
    if config.log.access {
        subscribers.push(Box::new(AccessLog { hits: config.log.hits, slow: config.log.slow }));
    }
    if let Some(exporter) = traces {
        subscribers.push(Box::new(exporter));
    }
    if config.log.audit.is_some() {
        subscribers.push(Box::new(audit));
    }
    subscribers
}

fn limits(config: &Config) -> decode::Limits {
    decode::Limits {
        max_body: config.server.max_body,
        body_timeout: config.server.body_timeout,
        deadline: config.upstream.deadline,
    }
}

fn links(config: &Config) -> Links {
    Links::new(&config.upstream.url, config.server.public_url.as_ref())
}

fn jobs_settings(config: &Config) -> jobs::Settings {
    jobs::Settings { dedup: config.cache.jobs.dedup, deadline: config.upstream.deadline }
}

fn cache_policy(config: &Config) -> cache::Policy {
    cache::Policy {
        metadata: config.cache.metadata,
        query: config.cache.query,
        settled: config.cache.settled.lifetimes,
        settled_after: config.cache.settled.after,
        jobs: cache::JobLifetimes { dedup: config.cache.jobs.dedup, results: config.cache.jobs.results },
        errors: config.cache.errors,
        deadline: config.upstream.deadline,
        // Long enough to spread the expiry of pages that were stored together, too short to matter as age.
        refresh_jitter: (config.cache.query.fresh / 20).min(Duration::from_secs(1)),
        keep_queries: config.admin.show_queries,
    }
}

fn disk(config: &Config) -> Option<DiskSettings> {
    let disk = &config.cache.disk;
    disk.path.clone().map(|folder| DiskSettings { folder, capacity: disk.capacity, is_shared: config.shared.is_some() })
}

fn retry_policy(config: &Config) -> retry::Policy {
    retry::Policy { attempts: config.retry.attempts, backoff: registry::backoff(config), budget: config.retry.budget }
}

fn target(config: &Config) -> Target {
    Target {
        url: config.upstream.url.clone(),
        connect_timeout: config.upstream.connect_timeout,
        attempt_timeout: config.upstream.attempt_timeout,
        max_response: config.upstream.max_response,
        ca_file: config.upstream.ca_file.clone(),
        proxy: config
            .upstream
            .proxy
            .as_ref()
            .map(|proxy| Proxy { address: proxy.address.clone(), authorization: proxy.authorization.clone() }),
    }
}
