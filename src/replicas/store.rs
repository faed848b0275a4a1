//! The connection to the store, for the other files of this module.
//!
//! [`SharedStore`] guarantees three things. No operation waits longer than `shared.timeout`. After three operations in
//! a row without an answer, no operation waits until the store has answered again. A refusal is an answer, but a store
//! that refuses its heartbeats is not used either. And no restart is needed: the gateway connects again when the store
//! answers.
//!
//! What fails alone, such as one node of a cluster or one kind of operation, is not used either ([`faults`]), until a
//! trial works ([`trial`]).
//!
//! Long values are an exception. They have more time, and a second connection, where they delay no other operation. If
//! they fail, the store has not failed.

mod episode;
mod faults;
mod heartbeat;
mod link;
#[cfg(test)]
mod tests;
mod trial;

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use redis::{Cmd, ErrorKind, FromRedisValue, RedisError, RedisResult, ServerErrorKind, Value};
use secrecy::SecretString;
use tokio::sync::{Notify, watch};
use tokio::time::error::Elapsed;

use self::faults::FAILURES;
pub(crate) use self::faults::Part;
use self::link::Link;
pub use self::link::{StoreUse, StoreView};
use super::cause;
use super::clock::{Reading, StoreTime};
use super::connection::{self, SecondConnection};
use super::error::{SkipReason, StoreError};
use super::key_names::KeyNames;
use super::seal::Sealer;
use crate::config::Shared;
use crate::core::clock::{Clock, Instant, Moment};
use crate::metrics::{Metrics, NoLabels, ReasonLabels, SharedLabels, SharedOperationLabels, StaticLabel};

/// The key of the replicas that live. It shares a hash slot with the clock.
const REPLICAS: &str = "{changes}:replicas";
/// A longer value is large: it is sent over the second connection.
pub(super) const LARGE: usize = 1024 * 1024;
/// The longest body of a response that is shared, as it came from upstream.
pub(super) const LONGEST_BODY: usize = 16 * 1024 * 1024;

/// What is wrong with the connection after an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    /// The store refused the operation.
    Refusal,
    /// No node of the cluster serves the key.
    Unserved,
    NoAnswer,
    /// The connection can no longer be used.
    Broken,
}

/// The store that replicas share. Clones share one connection.
#[derive(Clone)]
pub struct SharedStore(Arc<Inner>);

impl std::fmt::Debug for SharedStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SharedStore").field("is_up", &self.is_up()).finish_non_exhaustive()
    }
}

struct Inner {
    settings: Shared,
    access: ArcSwap<Access>,
    names: KeyNames,
    metrics: Arc<Metrics>,
    clock: Clock,
    /// This replica among all, at random.
    id: String,
    /// A key of the heartbeats.
    home: String,
    link: Mutex<Link>,
    second: SecondConnection,
    failures: AtomicU32,
    /// A part of the store has to be tried.
    to_try: Arc<Notify>,
    is_up: watch::Sender<bool>,
    /// How often the store has been reached.
    episodes: AtomicU64,
    /// Replicas that live, of those last seen.
    replicas: AtomicU32,
    /// Whether this replica no longer counts as one of them.
    has_left: AtomicBool,
}

/// What a reload can change.
struct Access {
    username: Option<String>,
    password: Option<SecretString>,
    sealer: Arc<Sealer>,
}

impl Access {
    fn of(settings: &Shared) -> Self {
        let Shared { username, password, seal, .. } = settings.clone();
        Self { username, password, sealer: Arc::new(Sealer::new(&seal)) }
    }
}

impl SharedStore {
    fn new(settings: Shared, metrics: Arc<Metrics>, clock: Clock) -> Self {
        let (names, access) = (KeyNames::new(&settings.prefix), ArcSwap::from_pointee(Access::of(&settings)));
        let link = Link::new(clock.now());
        let home = names.of_deployment(REPLICAS);
        metrics.shared_up.get_or_create(&NoLabels {}).set(0);
        metrics.replicas.get_or_create(&NoLabels {}).set(1);
        Self(Arc::new(Inner {
            replicas: AtomicU32::new(1),
            has_left: AtomicBool::new(false),
            id: format!("{:032x}", fastrand::u128(..)),
            home,
            settings,
            access,
            names,
            metrics,
            clock,
            link: Mutex::new(link),
            second: SecondConnection::default(),
            failures: AtomicU32::new(0),
            to_try: Arc::default(),
            is_up: watch::Sender::new(false),
            episodes: AtomicU64::new(0),
        }))
    }

    /// Uses another user and password for the next connection, and another seal for all values from now on. Nothing
    /// changes if they are for a store at another address: only a process that starts connects to that one, and the old
    /// store must not get its secrets.
    pub fn reload(&self, settings: &Shared) {
        if settings.url == self.0.settings.url {
            self.0.access.store(Arc::new(Access::of(settings)));
        }
    }

    /// Whether the store is reached now.
    pub(crate) fn is_up(&self) -> bool {
        *self.0.is_up.borrow()
    }

    /// How often the store has been reached, while it is reached. A caller that saw another number has missed
    /// something.
    pub(crate) fn episode(&self) -> Option<u64> {
        self.is_up().then(|| self.0.episodes.load(Ordering::SeqCst))
    }

    /// Tells when the store is reached and when it is no longer.
    pub(crate) fn watch_up(&self) -> watch::Receiver<bool> {
        self.0.is_up.subscribe()
    }

    /// The names of keys.
    pub(crate) fn key_names(&self) -> &KeyNames {
        &self.0.names
    }

    /// Seals and opens values.
    pub(crate) fn sealer(&self) -> Arc<Sealer> {
        Arc::clone(&self.0.access.load().sealer)
    }

    /// How long one request may wait for the store, over all operations that look for a response or for who fetches it.
    pub(crate) fn patience(&self) -> Duration {
        self.0.settings.timeout * 2
    }

    /// How long a large value may take.
    pub(crate) fn large_patience(&self) -> Duration {
        (self.0.settings.timeout * 10).clamp(Duration::from_secs(1), Duration::from_secs(10))
    }

    /// The configuration of the store, as it was when the process started.
    pub(crate) fn settings(&self) -> &Shared {
        &self.0.settings
    }

    /// The clock of this process.
    pub(super) fn clock(&self) -> Clock {
        self.0.clock
    }

    /// This replica's id, which no other has.
    pub(crate) fn id(&self) -> &str {
        &self.0.id
    }

    /// Counts a value that could not be opened.
    pub(crate) fn unsealed(&self) {
        self.0.metrics.shared_unsealed.inc();
    }

    /// Counts a page that is not shared.
    pub(super) fn skipped(&self, why: SkipReason) {
        let reason = StaticLabel(match why {
            SkipReason::TooLarge => "too_large",
            SkipReason::Busy => "busy",
        });
        self.0.metrics.shared_skipped.get_or_create(&ReasonLabels { reason }).inc();
    }

    /// Replicas that live. While the store is not reached, those last seen.
    pub(crate) fn replicas(&self) -> u32 {
        self.0.replicas.load(Ordering::Relaxed).max(1)
    }

    /// Runs one command, and waits no longer than `shared.timeout` for its reply. `operation` is the label in the
    /// metrics. An empty reply counts as a miss there.
    ///
    /// # Errors
    ///
    /// At once if the store is not reached, or while this operation or the node with its key is known to fail; else if
    /// it does not answer in time, refuses, or answers something of another type.
    pub(crate) async fn run<T: FromRedisValue>(&self, operation: &'static str, command: &Cmd) -> Result<T, StoreError> {
        let place = self.place(operation, command)?;
        let (fault, value) = self.send(operation, command).await;
        self.note(place, operation, fault, &value);
        value
    }

    /// As [`run`](Self::run), also while it is known to fail: for callers that wait between their attempts.
    ///
    /// # Errors
    ///
    /// As [`run`](Self::run).
    pub(super) async fn run_always<T: FromRedisValue>(
        &self,
        operation: &'static str,
        command: &Cmd,
    ) -> Result<T, StoreError> {
        self.send(operation, command).await.1
    }

    async fn send<T: FromRedisValue>(&self, operation: &'static str, command: &Cmd) -> (Fault, Result<T, StoreError>) {
        let (connection, episode) = (self.link().connection.clone(), self.episode());
        let Some(mut connection) = connection else { return (Fault::NoAnswer, Err(StoreError::Down)) };
        let begun = self.0.clock.now();
        let replied = tokio::time::timeout(self.0.settings.timeout, connection.run(command)).await;
        let (fault, value) = self.judge(operation, begun, replied);
        let other = connection::key(command)
            .map(|key| (connection.node(key), key))
            .filter(|(node, _)| *node != connection.node(self.0.home.as_bytes()));
        match (&value, other) {
            (Ok(_), None) => self.0.failures.store(0, Ordering::Relaxed),
            (Ok(_), Some((node, _))) => self.heard(node),
            (Err(_), None) if matches!(fault, Fault::Refusal | Fault::Unserved) => {}
            (Err(_), Some((node, _))) if fault == Fault::Refusal => self.heard(node),
            // A failure of an earlier connection does not mean that this one has failed.
            _ if self.episode() != episode => {}
            (Err(error), Some((node, key))) => self.not_heard(node, key, error),
            // Without the node that has the heartbeats, nothing can be shared.
            (Err(error), None) => {
                let failures = self.0.failures.fetch_add(1, Ordering::Relaxed) + 1;
                if fault == Fault::Broken || failures >= FAILURES {
                    self.lost(error, fault);
                }
            }
        }
        (fault, value)
    }

    /// As [`run`](Self::run), for a command or a reply that may be large. It takes
    /// [`large_patience`](Self::large_patience) at most, and less if the store is lost meanwhile. If it fails, the
    /// store is not lost.
    ///
    /// # Errors
    ///
    /// As [`run`](Self::run).
    pub(crate) async fn run_large<T: FromRedisValue>(
        &self,
        operation: &'static str,
        command: &Cmd,
    ) -> Result<T, StoreError> {
        let place = self.place(operation, command)?;
        let (episode, mut is_up) = (self.episode().ok_or(StoreError::Down)?, self.watch_up());
        let begun = self.0.clock.now();
        let patience = self.large_patience();
        let running = self.0.second.run(episode, || self.login(), patience, command);
        let replied = tokio::select! {
            replied = tokio::time::timeout(patience, running) => replied,
            () = async { drop(is_up.wait_for(|is_up| !is_up).await) } => {
                self.0.second.close();
                return Err(StoreError::Down);
            }
        };
        let (fault, value) = self.judge(operation, begun, replied);
        if value.is_err() && fault != Fault::Refusal {
            self.0.second.close();
        }
        self.note(place, operation, fault, &value);
        value
    }

    /// Counts how an operation ended, and reads its reply.
    fn judge<T: FromRedisValue>(
        &self,
        operation: &'static str,
        begun: Instant,
        replied: Result<RedisResult<Value>, Elapsed>,
    ) -> (Fault, Result<T, StoreError>) {
        let (metrics, operation) = (&self.0.metrics, StaticLabel(operation));
        let took = self.0.clock.now().saturating_duration_since(begun);
        metrics.shared_duration.get_or_create(&SharedOperationLabels { operation }).observe(took.as_secs_f64());
        let (result, fault, value) = read(replied);
        metrics.shared_operations.get_or_create(&SharedLabels { operation, result: StaticLabel(result) }).inc();
        (fault, value)
    }

    /// The settings for a new connection.
    fn login(&self) -> Shared {
        let access = self.0.access.load();
        let (username, password) = (access.username.clone(), access.password.clone());
        Shared { username, password, ..self.0.settings.clone() }
    }

    fn link(&self) -> MutexGuard<'_, Link> {
        // Every change under this lock is an assignment.
        self.0.link.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl SharedStore {
    /// The time on the shared clock, never later than it really is. `None` until the store has been reached.
    pub(crate) fn time(&self) -> Option<StoreTime> {
        self.time_of(self.0.clock.moment())
    }

    /// The time at this moment, never later than it really was. `None` until the store has been reached.
    pub(crate) fn time_of(&self, moment: Moment) -> Option<StoreTime> {
        self.link().clock.earliest(moment)
    }

    /// The time at this moment, never earlier than it really was. `None` until the store has been reached.
    pub(super) fn latest_time_of(&self, moment: Moment) -> Option<StoreTime> {
        self.link().clock.latest(moment)
    }

    /// The moment at which the shared clock shows this time, never earlier than it really does. `None` until the store
    /// has been reached.
    pub(super) fn moment_of(&self, time: StoreTime) -> Option<Moment> {
        self.link().clock.moment_of(time)
    }

    /// The time now on the clock of the server that has the shared clock. Other servers of a cluster may have others.
    pub(super) fn server_time(&self) -> Option<u64> {
        self.link().clock.server(self.0.clock.moment())
    }

    /// The earliest time that the shared clock may show now, as far as this replica knows.
    pub(super) fn least_time(&self) -> u64 {
        self.time().map_or(0, |StoreTime(now)| now)
    }

    /// The store has told its clocks, asked at the moment `sent`.
    pub(super) fn learn_time(&self, (time, server): (u64, u64), sent: Moment) {
        let reading = Reading { time: StoreTime(time), server, sent, came: self.0.clock.moment() };
        self.link().clock.record(reading);
    }
}

/// Reads a reply: its label in the metrics, what it says of the connection, and the value.
fn read<T: FromRedisValue>(
    replied: Result<RedisResult<Value>, Elapsed>,
) -> (&'static str, Fault, Result<T, StoreError>) {
    let failed = |fault, cause: String| ("error", fault, Err(StoreError::Failed(cause)));
    // A refusal is an answer: the store is reached. Only the heartbeat finds out whether it refuses everything, so that
    // one damaged value does not end all sharing.
    match replied {
        Err(_) => ("timeout", Fault::NoAnswer, Err(StoreError::Timeout)),
        Ok(Ok(Value::ServerError(error))) => {
            let error = RedisError::from(error);
            failed(refusal(error.kind()), cause::of(&error))
        }
        Ok(Err(error)) => {
            let fault = match error.kind() {
                _ if error.is_unrecoverable_error() => Fault::Broken,
                kind @ (ErrorKind::Server(_) | ErrorKind::Extension) => refusal(kind),
                _ => Fault::NoAnswer,
            };
            failed(fault, cause::of(&error))
        }
        Ok(Ok(value)) => {
            let result = if value == Value::Nil { "miss" } else { "ok" };
            match T::from_redis_value(value) {
                Ok(value) => (result, Fault::None, Ok(value)),
                Err(_) => failed(Fault::NoAnswer, cause::NOT_A_STORE.to_owned()),
            }
        }
    }
}

/// What a server means that answers with an error.
fn refusal(kind: ErrorKind) -> Fault {
    use ServerErrorKind::{Ask, ClusterDown, Moved, TryAgain};
    match kind {
        ErrorKind::Server(Ask | ClusterDown | Moved | TryAgain) => Fault::Unserved,
        _ => Fault::Refusal,
    }
}
