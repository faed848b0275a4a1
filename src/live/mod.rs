//! Live data for the admin plane: events as requests end, counts of requests and their durations, and recent failures.
//!
//! It is notified at the end of every request, and knows no HTTP. The admin plane reads it. Without listeners an event
//! costs one atomic read. Listeners that are too slow lose events, so that no request waits for them.

mod latency;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::sync::broadcast;

pub use self::latency::{Latencies, Spread};
use crate::core::chain::chain;
use crate::core::clock::Clock;
use crate::core::error::GatewayError;
use crate::core::escape;
use crate::core::outcome::Outcome;
use crate::request::ended::{RequestEnded, RequestSubscriber};

/// How many events a listener may be behind before it loses the oldest.
const BACKLOG: usize = 1024;

/// The number of recent failures and refusals that are kept.
const RECENT: usize = 50;

/// The most pairs of team and reason for which refusals are counted. Teams come from the configuration and reasons from
/// a closed list. Teams that a reload removed stay counted until this limit.
const MOST_REFUSALS: usize = 4096;

/// Live data. Cheap to clone; clones share it. It outlives reloads.
#[derive(Debug, Clone)]
pub struct Live(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    clock: Clock,
    listeners: AtomicUsize,
    events: broadcast::Sender<Bytes>,
    latencies: Latencies,
    slow: Mutex<SlowCounts>,
}

/// Counts of requests that are not hits. Such requests are slow enough for a lock.
#[derive(Debug, Default)]
struct SlowCounts {
    recent: VecDeque<Failure>,
    refusals: HashMap<(Arc<str>, &'static str), u64>,
    reasons: BTreeMap<&'static str, u64>,
    attempts: u64,
    upstream: Duration,
}

/// A request that was refused or failed.
#[derive(Debug, Clone)]
pub struct Failure {
    /// When it ended.
    pub at: SystemTime,
    /// Its request id, as the client got it.
    pub request_id: Box<str>,
    /// The team, if it is known.
    pub team: Option<Arc<str>>,
    /// The operation, if it is known.
    pub operation: Option<&'static str>,
    /// The HTTP status.
    pub status: u16,
    /// The reason, of the closed list.
    pub reason: &'static str,
    /// The message for the client.
    pub message: Box<str>,
    /// The cause behind it, if it is known.
    pub cause: Option<Box<str>>,
}

/// The number and the total time of upstream attempts.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct UpstreamTime {
    /// Attempts that were measured.
    pub attempts: u64,
    /// The sum of their durations.
    pub total: Duration,
}

/// Counts of requests since the start. The difference of two is what was counted between them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Counts {
    requests: [u64; Outcome::ALL.len()],
    reasons: BTreeMap<&'static str, u64>,
}

impl Counts {
    /// What was counted after `earlier`.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let before = |reason| earlier.reasons.get(reason).copied().unwrap_or_default();
        let reasons = self.reasons.iter().map(|(reason, count)| (*reason, count.saturating_sub(before(reason))));
        Self {
            requests: std::array::from_fn(|at| self.requests[at].saturating_sub(earlier.requests[at])),
            reasons: reasons.filter(|(_, count)| *count > 0).collect(),
        }
    }

    /// Requests with this outcome.
    pub fn requests(&self, outcome: Outcome) -> u64 {
        self.requests[outcome as usize]
    }

    /// How many requests were refused or failed for each reason, most frequent first.
    pub fn reasons(&self) -> Vec<(&'static str, u64)> {
        most_frequent_first(self.reasons.iter().map(|(reason, count)| (*reason, *count)))
    }
}

/// Receives an event for each request that ends, until it is dropped.
#[derive(Debug)]
pub struct Listener {
    receiver: broadcast::Receiver<Bytes>,
    live: Live,
}

/// What a [`Listener`] receives.
#[derive(Debug, PartialEq, Eq)]
pub enum LiveEvent {
    /// One complete server-sent event.
    Event(Bytes),
    /// This many events were lost, because this listener was too slow.
    Lost(u64),
}

impl Live {
    /// The data of a gateway that has just started.
    pub fn new(clock: Clock) -> Self {
        Self(Arc::new(Inner {
            clock,
            listeners: AtomicUsize::new(0),
            events: broadcast::Sender::new(BACKLOG),
            latencies: Latencies::default(),
            slow: Mutex::default(),
        }))
    }

    /// A subscriber that records the end of each request. With `shows_queries`, events contain the query.
    pub fn subscriber(&self, shows_queries: bool) -> impl RequestSubscriber + use<> {
        Subscriber { live: self.clone(), shows_queries }
    }

    /// A listener for events from now on.
    pub fn listen(&self) -> Listener {
        self.0.listeners.fetch_add(1, Relaxed);
        Listener { receiver: self.0.events.subscribe(), live: self.clone() }
    }

    /// All requests since the start, by outcome and time.
    pub fn latencies(&self) -> &Latencies {
        &self.0.latencies
    }

    /// All requests since the start, by outcome, and those that were refused or failed, by reason.
    pub fn counts(&self) -> Counts {
        // Only hits are counted without this lock, so a request with a reason is in both or in neither.
        let slow = self.slow();
        let spread = self.0.latencies.read();
        Counts { requests: Outcome::ALL.map(|outcome| spread.count(outcome)), reasons: slow.reasons.clone() }
    }

    /// The latest requests that were refused or failed, newest first.
    pub fn failures(&self) -> Vec<Failure> {
        self.slow().recent.iter().rev().cloned().collect()
    }

    /// How often this team was refused or failed since the start, by reason.
    pub fn refusals(&self, team: &str) -> Vec<(&'static str, u64)> {
        let slow = self.slow();
        let own = slow.refusals.iter().filter(|((name, _), _)| **name == *team);
        most_frequent_first(own.map(|((_, reason), count)| (*reason, *count)))
    }

    /// How long upstream attempts took, since the start.
    pub fn upstream_time(&self) -> UpstreamTime {
        let slow = self.slow();
        UpstreamTime { attempts: slow.attempts, total: slow.upstream }
    }

    fn slow(&self) -> MutexGuard<'_, SlowCounts> {
        // Each critical section leaves it as a whole.
        self.0.slow.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a request that is not a hit.
    fn count(&self, request: &RequestEnded) {
        let totals = request.context.totals(request.ended);
        let reason = request.reason();
        let failure = (!reason.is_empty()).then(|| self.failure(request, reason));
        let mut slow = self.slow();
        self.0.latencies.count(request.outcome, request.took());
        slow.attempts += u64::from(totals.attempts);
        slow.upstream += totals.upstream;
        let Some(failure) = failure else { return };
        *slow.reasons.entry(reason).or_default() += 1;
        if let Some(team) = &failure.team {
            let key = (Arc::clone(team), reason);
            if slow.refusals.len() < MOST_REFUSALS || slow.refusals.contains_key(&key) {
                *slow.refusals.entry(key).or_default() += 1;
            }
        }
        if slow.recent.len() == RECENT {
            slow.recent.pop_front();
        }
        slow.recent.push_back(failure);
    }

    fn failure(&self, request: &RequestEnded, reason: &'static str) -> Failure {
        let error = request.context.error.get();
        Failure {
            at: self.0.clock.wall(request.ended),
            request_id: request.context.head.id().into(),
            team: request.team().map(|team| Arc::clone(&team.name)),
            operation: request.operation().map(|operation| operation.as_str()),
            status: request.status,
            reason,
            message: error.map_or("the client left before it was answered", |error| error.message()).into(),
            cause: error.and_then(cause).map(Into::into),
        }
    }

    fn tell(&self, request: &RequestEnded, shows_queries: bool) {
        let (totals, team) = (request.context.totals(request.ended), request.team());
        let mut event = json!({
            "at": time(self.0.clock.wall(request.ended)),
            "request_id": request.context.head.id(),
            "team": team.map(|team| &*team.name),
            "account": team.map(|team| &*team.account.name),
            "operation": request.operation().map(|operation| operation.as_str()),
            "method": request.context.head.method.as_str(),
            "status": request.status,
            "outcome": request.outcome.as_str(),
            "reason": request.reason(),
            "bytes": request.bytes,
            "duration_ms": millis(request.took()),
            "wait_ms": millis(totals.wait),
            "upstream_ms": millis(totals.upstream),
            "attempts": totals.attempts,
            "via": request.context.head.peer.via(),
        });
        if shows_queries {
            let query = request.context.query().map(|query| String::from_utf8_lossy(query));
            event["query"] = json!(query);
        }
        // This fails if the last listener has just left.
        let _ = self.0.events.send(frame("request", &event));
    }
}

#[derive(Debug)]
struct Subscriber {
    live: Live,
    shows_queries: bool,
}

impl RequestSubscriber for Subscriber {
    fn ended(&self, request: &RequestEnded) {
        match request.outcome {
            Outcome::Hit => self.live.0.latencies.count(request.outcome, request.took()),
            _ => self.live.count(request),
        }
        if self.live.0.listeners.load(Relaxed) > 0 {
            self.live.tell(request, self.shows_queries);
        }
    }

    fn reads_query(&self) -> bool {
        self.shows_queries
    }
}

impl Listener {
    /// The next event, or the number of events that were lost. Waits until there is one.
    pub async fn hear(&mut self) -> LiveEvent {
        match self.receiver.recv().await {
            Ok(event) => LiveEvent::Event(event),
            Err(broadcast::error::RecvError::Lagged(lost)) => LiveEvent::Lost(lost),
            // Does not happen: `live` holds the sender.
            Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
        }
    }

    /// The next event, if there already is one.
    pub fn heard(&mut self) -> Option<Bytes> {
        self.receiver.try_recv().ok()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.live.0.listeners.fetch_sub(1, Relaxed);
    }
}

/// A server-sent event (HTML, section 9.2).
pub fn frame(name: &str, data: &Value) -> Bytes {
    // JSON contains no raw line feed. Characters that control a terminal are escaped.
    let data = data.to_string();
    Bytes::from(format!("event: {name}\ndata: {}\n\n", escape::text(&data, false)))
}

fn most_frequent_first(counts: impl Iterator<Item = (&'static str, u64)>) -> Vec<(&'static str, u64)> {
    let mut counts: Vec<_> = counts.collect();
    counts.sort_unstable_by_key(|(reason, count)| (std::cmp::Reverse(*count), *reason));
    counts
}

/// What is behind an error, for operators; `None` if the error itself says all.
fn cause(error: &GatewayError) -> Option<String> {
    error.cause().map(|cause| chain(cause)).or_else(|| error.upstream_cause().map(ToString::to_string))
}

/// RFC 3339, in UTC, to the millisecond.
pub fn time(time: SystemTime) -> Option<String> {
    Timestamp::try_from(time).ok().map(|time| format!("{time:.3}"))
}

/// Milliseconds with three decimals.
pub fn millis(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;
    use crate::accounts::Team;
    use crate::core::error::Reason;
    use crate::request::context::RequestContext;
    use crate::twilio::endpoint::Operation;

    fn request(clock: Clock, outcome: Outcome, error: Option<GatewayError>) -> RequestEnded {
        let context = RequestContext::default();
        context.team.set(Arc::new(Team::example("dashboards"))).unwrap();
        context.operation.set(Operation::Query).unwrap();
        context.keep_query();
        context.asks(&Bytes::from_static(b"{\"query\":{}}"));
        let status = error.as_ref().map_or(200, |error| error.reason().status().as_u16());
        if let Some(error) = error {
            context.reason.set(error.reason()).unwrap();
            context.error.set(error).unwrap();
        }
        let (received, ended) = (clock.now(), clock.now() + Duration::from_millis(2));
        RequestEnded { context: Arc::new(context), received, ended, outcome, status, bytes: 7, is_traced: false }
    }

    fn event(heard: LiveEvent) -> Value {
        let LiveEvent::Event(frame) = heard else { panic!("{heard:?}") };
        let text = String::from_utf8(frame.to_vec()).unwrap();
        let data = text.strip_prefix("event: request\ndata: ").unwrap().strip_suffix("\n\n").unwrap();
        serde_json::from_str(data).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn events_contain_queries_only_if_that_is_configured() {
        let (clock, live) = (Clock::new(), Live::new(Clock::new()));
        let (quiet, open) = (live.subscriber(false), live.subscriber(true));
        assert!(!quiet.reads_query() && open.reads_query());
        quiet.ended(&request(clock, Outcome::Hit, None));
        let mut listener = live.listen();
        assert_eq!(listener.hear().now_or_never(), None, "earlier events are not received");
        quiet.ended(&request(clock, Outcome::Miss, None));
        let heard = event(listener.hear().await);
        assert_eq!(
            (&heard["outcome"], &heard["team"], &heard["duration_ms"]),
            (&json!("miss"), &json!("dashboards"), &json!(2.0))
        );
        assert_eq!(heard.get("query"), None);
        open.ended(&request(clock, Outcome::Hit, None));
        assert_eq!(event(listener.hear().await)["query"], "{\"query\":{}}");
        drop(listener);
        assert_eq!(live.0.listeners.load(Relaxed), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_listener_gets_the_number_of_lost_events() {
        let (clock, live) = (Clock::new(), Live::new(Clock::new()));
        let subscriber = live.subscriber(false);
        let mut listener = live.listen();
        for _ in 0..BACKLOG + 3 {
            subscriber.ended(&request(clock, Outcome::Hit, None));
        }
        assert_eq!(listener.hear().await, LiveEvent::Lost(3));
        assert!(matches!(listener.hear().await, LiveEvent::Event(_)));
    }

    #[tokio::test(start_paused = true)]
    async fn failures_are_remembered_with_their_causes_and_counted_by_team() {
        let (clock, live) = (Clock::new(), Live::new(Clock::new()));
        let subscriber = live.subscriber(false);
        for n in 0..RECENT + 2 {
            let error = GatewayError::new(Reason::UpstreamUnreachable, format!("number {n}"));
            let error = error.with_cause(std::io::Error::other("connection refused"));
            subscriber.ended(&request(clock, Outcome::Failed, Some(error)));
        }
        subscriber.ended(&request(
            clock,
            Outcome::Refused,
            Some(GatewayError::new(Reason::TeamRateLimit, "slow down")),
        ));
        let failures = live.failures();
        assert_eq!(failures.len(), RECENT);
        assert_eq!(
            (&*failures[0].message, failures[0].reason, failures[0].status),
            ("slow down", "team_rate_limit", 429)
        );
        assert_eq!((&*failures[1].message, failures[1].cause.as_deref()), ("number 51", Some("connection refused")));
        let expected = [("upstream_unreachable", RECENT as u64 + 2), ("team_rate_limit", 1)];
        assert_eq!(live.refusals("dashboards"), expected);
        assert_eq!(live.refusals("other"), []);
        let counts = live.counts();
        assert_eq!((counts.requests(Outcome::Failed), counts.requests(Outcome::Refused)), (RECENT as u64 + 2, 1));
        assert_eq!(counts.reasons(), expected, "of all requests, not only of those that are remembered");
    }

    #[tokio::test(start_paused = true)]
    async fn counts_between_two_times_leave_out_what_was_before() {
        let (clock, live) = (Clock::new(), Live::new(Clock::new()));
        let subscriber = live.subscriber(false);
        let refuse = |reason| {
            subscriber.ended(&request(clock, Outcome::Refused, Some(GatewayError::new(reason, "refused"))));
        };
        refuse(Reason::TeamRateLimit);
        subscriber.ended(&request(clock, Outcome::Hit, None));
        let before = live.counts();
        assert_eq!(before.since(&before), Counts::default());
        refuse(Reason::QueueFull);
        refuse(Reason::Deadline);
        refuse(Reason::Deadline);
        let between = live.counts().since(&before);
        assert_eq!((between.requests(Outcome::Refused), between.requests(Outcome::Hit)), (3, 0));
        assert_eq!(between.reasons(), [("deadline", 2), ("queue_full", 1)]);
    }
}
