//! The circuit breaker: an upstream that fails repeatedly gets no attempts for a while. Pure: time is passed in.
//!
//! While *closed*, every call passes. A number of failures in a row, or a share of the attempts of the last half minute,
//! *opens* it: no call passes. After a while it is *half open*: one attempt at a time passes as a probe. A probe that
//! succeeds closes the circuit. A query whose probe failed is refused for as long again. Once the probes of several queries
//! have failed, the circuit is open again. The caller decides what counts as a failure.
//!
//! It opens only on failures of several queries, and only several keep it open. A query that always fails, as a heavy one
//! may, says nothing about the others.

use std::time::Duration;

use crate::core::clock::Instant;
use crate::core::window::Window;
use crate::request::key::Key;

/// A share counts from this number of attempts.
const LEAST_ATTEMPTS: u32 = 20;
/// The least number of different queries that have to fail before it opens.
const LEAST_QUERIES: usize = 3;
/// The time over which a share of attempts is counted.
const SHARE_OF: Duration = Duration::from_secs(30);
const SUCCESS: usize = 0;
const FAILURE: usize = 1;

/// When the circuit opens, and for how long.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CircuitPolicy {
    /// Failures in a row.
    pub consecutive: u32,
    /// Or this share of failures, of at least 20 attempts within 30 s.
    pub ratio: f64,
    /// The time until a probe may pass.
    pub open: Duration,
}

/// The state of a circuit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CircuitState {
    /// Every call passes.
    Closed,
    /// One probe at a time may pass.
    HalfOpen,
    /// No call passes.
    Open,
}

impl CircuitState {
    /// The word in `/status`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::HalfOpen => "half_open",
            Self::Open => "open",
        }
    }

    /// The value of the metric.
    pub const fn level(self) -> i64 {
        match self {
            Self::Closed => 0,
            Self::HalfOpen => 1,
            Self::Open => 2,
        }
    }
}

/// One account's circuit.
#[derive(Debug, Clone)]
pub(super) struct Circuit {
    policy: CircuitPolicy,
    /// `None` while it is closed.
    broken: Option<Broken>,
    in_a_row: u32,
    /// Since the last success, an attempt failed on its way to the upstream.
    failed_on_the_way: bool,
    /// Queries that failed since the last success.
    failed_in_a_row: RecentFailures,
    /// Queries that failed, successes between them or not.
    failed: RecentFailures,
    /// Queries whose probes failed since the circuit opened.
    failed_probes: RecentFailures,
    /// Attempts of the last half minute.
    window: Window<30, 2>,
}

#[derive(Debug, Clone, Copy)]
struct Broken {
    /// Since when it is not closed.
    since: Instant,
    /// No call passes before this.
    until: Instant,
    /// Probes under way.
    probes: usize,
    /// When the last of them began.
    probed: Instant,
}

/// Whether a call may pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Decision {
    /// The call may pass.
    Allow,
    /// The call may pass as the probe: how it ended, or that it was not sent, has to be reported.
    Probe,
    /// The call may not pass; after this time it may try again.
    Reject(Duration),
}

impl Circuit {
    /// How long other calls wait for a probe's end. After that another query may be a probe too, because one that takes
    /// long says little.
    const PROBE: Duration = Duration::from_secs(1);

    /// A closed circuit.
    pub(super) fn new(policy: CircuitPolicy, now: Instant) -> Self {
        let failures = RecentFailures::default;
        Self {
            policy,
            broken: None,
            in_a_row: 0,
            failed_on_the_way: false,
            failed_in_a_row: failures(),
            failed: failures(),
            failed_probes: failures(),
            window: window(now),
        }
    }

    /// Changes the policy. What was counted stays.
    pub(super) fn set_policy(&mut self, policy: CircuitPolicy) {
        self.policy = policy;
    }

    /// Decides whether a call of this query may pass.
    pub(super) fn pass(&mut self, query: Key, now: Instant) -> Decision {
        let Some(broken) = &mut self.broken else { return Decision::Allow };
        let refused_until = self.failed_probes.when(query).map(|failed| failed + self.policy.open);
        let until = refused_until.map_or(broken.until, |until| until.max(broken.until));
        let is_awaited = broken.probes > 0 && now < broken.probed + Self::PROBE;
        match () {
            () if now < until => Decision::Reject(until - now),
            () if is_awaited || broken.probes >= LEAST_QUERIES => Decision::Reject(Self::PROBE),
            () => {
                (broken.probes, broken.probed) = (broken.probes + 1, now);
                Decision::Probe
            }
        }
    }

    /// The probe was not sent, or its end says nothing about the upstream.
    pub(super) fn probe_lost(&mut self) {
        if let Some(broken) = &mut self.broken {
            broken.probes = broken.probes.saturating_sub(1);
        }
    }

    /// An attempt succeeded.
    pub(super) fn succeeded(&mut self, is_probe: bool, now: Instant) {
        if is_probe && self.broken.is_some() {
            self.broken = None;
            self.window = window(now);
            (self.failed, self.failed_probes) = (RecentFailures::default(), RecentFailures::default());
        }
        self.in_a_row = 0;
        self.failed_on_the_way = false;
        self.failed_in_a_row = RecentFailures::default();
        self.window.count(SUCCESS, now);
    }

    /// An attempt at a query failed, as the upstream's answer shows or on its way there. Returns whether that opened the
    /// circuit.
    pub(super) fn failed(&mut self, query: Key, is_probe: bool, is_answer: bool, now: Instant) -> bool {
        self.failed_on_the_way |= !is_answer;
        self.in_a_row = self.in_a_row.saturating_add(1);
        self.failed_in_a_row.add(query, now);
        self.failed.add(query, now);
        self.window.count(FAILURE, now);
        match self.broken {
            Some(broken) if is_probe => {
                self.probe_lost();
                self.failed_probes.add(query, now);
                let reopens = self.failed_probes.are_several(|at| now < at + self.policy.open);
                if reopens {
                    self.failed_probes = RecentFailures::default();
                    self.broken = Some(Broken { until: now + self.policy.open, probes: 0, ..broken });
                }
                reopens
            }
            // It was sent before the circuit opened.
            Some(_) => false,
            None => {
                let opens = self.has_failed_in_a_row() || self.has_failed_too_often(now);
                if opens {
                    self.broken = Some(Broken { since: now, until: now + self.policy.open, probes: 0, probed: now });
                }
                opens
            }
        }
    }

    /// Until when it is open, if what the upstream answered has opened it: that concerns other processes, too.
    pub(super) fn opened_by_answers(&self) -> Option<Instant> {
        self.broken.filter(|_| !self.failed_on_the_way).map(|broken| broken.until)
    }

    /// Another process has opened its circuit. Returns whether that opened this one.
    pub(super) fn open_until(&mut self, until: Instant, now: Instant) -> bool {
        /// What is left of an opening that has just ended here comes back with the time that the way took.
        const REST: Duration = Duration::from_millis(100);
        if until <= now + REST {
            return false;
        }
        if let Some(broken) = &mut self.broken {
            // A probe of another process failed.
            broken.until = broken.until.max(until);
            return false;
        }
        self.broken = Some(Broken { since: now, until, probes: 0, probed: now });
        true
    }

    fn has_failed_in_a_row(&self) -> bool {
        self.in_a_row >= self.policy.consecutive && self.failed_in_a_row.are_several(|_| true)
    }

    fn has_failed_too_often(&self, now: Instant) -> bool {
        let [successes, failures] = self.window.counts(now);
        let attempts = successes.saturating_add(failures);
        let is_share = attempts >= LEAST_ATTEMPTS && f64::from(failures) >= self.policy.ratio * f64::from(attempts);
        is_share && self.failed.are_several(|at| now < at + SHARE_OF)
    }

    /// The state, and since when the circuit is not closed.
    pub(super) fn state(&self, now: Instant) -> (CircuitState, Option<Instant>) {
        match self.broken {
            None => (CircuitState::Closed, None),
            Some(broken) if now < broken.until || self.failed_probes.any(|at| now < at + self.policy.open) => {
                (CircuitState::Open, Some(broken.since))
            }
            Some(broken) => (CircuitState::HalfOpen, Some(broken.since)),
        }
    }
}

/// The [`LEAST_QUERIES`] different queries that failed last, and when. That is enough to tell whether so many have failed
/// since any given time.
#[derive(Debug, Clone, Copy, Default)]
struct RecentFailures([Option<(Key, Instant)>; LEAST_QUERIES]);

impl RecentFailures {
    fn add(&mut self, query: Key, now: Instant) {
        let known = self.0.iter().position(|known| known.is_some_and(|(key, _)| key == query));
        // An empty entry, or else the oldest.
        let oldest = || (0..LEAST_QUERIES).min_by_key(|at| self.0[*at].map(|(_, at)| at));
        if let Some(place) = known.or_else(oldest) {
            self.0[place] = Some((query, now));
        }
    }

    /// When this query last failed, if it is one of them.
    fn when(&self, query: Key) -> Option<Instant> {
        self.0.iter().flatten().find(|(key, _)| *key == query).map(|(_, at)| *at)
    }

    /// Whether any query failed at a time that `counts`.
    fn any(&self, counts: impl Fn(Instant) -> bool) -> bool {
        self.0.iter().flatten().any(|(_, at)| counts(*at))
    }

    /// Whether [`LEAST_QUERIES`] different queries failed at a time that `counts`.
    fn are_several(&self, counts: impl Fn(Instant) -> bool) -> bool {
        self.0.iter().flatten().filter(|(_, at)| counts(*at)).count() >= LEAST_QUERIES
    }
}

fn window(now: Instant) -> Window<30, 2> {
    Window::new(Duration::from_secs(1), now)
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    /// One of several queries.
    fn query(n: u32) -> Key {
        Key::from_bytes([n as u8; 32])
    }

    fn circuit(start: Instant) -> Circuit {
        Circuit::new(CircuitPolicy { consecutive: 10, ratio: 0.5, open: 5 * S }, start)
    }

    fn open_circuit(now: Instant) -> Circuit {
        let mut circuit = circuit(now);
        let opened: Vec<_> = (0..10).map(|n| circuit.failed(query(n), false, true, now)).collect();
        assert_eq!(opened.iter().position(|opened| *opened), Some(9));
        circuit
    }

    #[test]
    fn another_process_opens_it_and_keeps_it_open() {
        let start = Instant::now();
        let mut circuit = circuit(start);
        assert!(!circuit.open_until(start + S / 20, start), "it has as good as ended");
        assert!(circuit.open_until(start + 5 * S, start));
        assert_eq!(circuit.pass(query(1), start + S), Decision::Reject(4 * S));
        assert!(!circuit.open_until(start + 9 * S, start + 6 * S), "it is open already");
        assert_eq!(circuit.pass(query(1), start + 6 * S), Decision::Reject(3 * S));
        assert_eq!(circuit.pass(query(1), start + 9 * S), Decision::Probe);
    }

    #[test]
    fn a_failure_on_the_way_makes_an_opening_its_own() {
        let start = Instant::now();
        for on_the_way in [None, Some(4)] {
            let mut circuit = circuit(start);
            for n in 0..10 {
                circuit.failed(query(n), false, Some(n) != on_the_way, start);
            }
            assert_eq!(circuit.state(start).0, CircuitState::Open);
            assert_eq!(circuit.opened_by_answers(), on_the_way.is_none().then_some(start + 5 * S));
        }
    }

    #[test]
    fn failures_in_a_row_open_it_and_a_probe_closes_it() {
        let start = Instant::now();
        let mut circuit = circuit(start);
        for n in 1..=10 {
            assert_eq!(circuit.pass(query(99), start), Decision::Allow);
            assert_eq!(circuit.failed(query(n), false, true, start), n == 10);
        }
        assert_eq!(circuit.pass(query(99), start + S), Decision::Reject(4 * S));
        assert_eq!(circuit.state(start + S), (CircuitState::Open, Some(start)));
        assert_eq!(circuit.pass(query(99), start + 5 * S), Decision::Probe);
        assert_eq!(circuit.state(start + 5 * S).0, CircuitState::HalfOpen);
        assert_eq!(circuit.pass(query(99), start + 5 * S), Decision::Reject(S), "one probe at a time");
        circuit.succeeded(true, start + 6 * S);
        assert_eq!(circuit.pass(query(99), start + 6 * S), Decision::Allow);
        assert!(!circuit.failed(query(0), false, true, start + 6 * S), "what was before is forgotten");
    }

    #[test]
    fn one_query_that_goes_on_failing_does_not_keep_it_open_for_others() {
        let start = Instant::now();
        let mut circuit = open_circuit(start);
        let later = start + 5 * S;
        assert_eq!(circuit.pass(query(1), later), Decision::Probe);
        assert!(!circuit.failed(query(1), true, true, later));
        assert_eq!(circuit.state(later).0, CircuitState::Open);
        assert_eq!(circuit.pass(query(1), later), Decision::Reject(5 * S), "not this one again so soon");
        assert_eq!(circuit.pass(query(2), later), Decision::Probe);
        circuit.succeeded(true, later);
        assert_eq!(circuit.pass(query(1), later), Decision::Allow);
    }

    #[test]
    fn probes_of_several_queries_that_fail_keep_it_open() {
        let start = Instant::now();
        let mut circuit = open_circuit(start);
        let later = start + 5 * S;
        let reopened: Vec<_> = (1..=3)
            .map(|n| {
                assert_eq!(circuit.pass(query(n), later), Decision::Probe);
                circuit.failed(query(n), true, true, later)
            })
            .collect();
        assert_eq!(reopened, [false, false, true]);
        assert_eq!(circuit.pass(query(9), later), Decision::Reject(5 * S));
        assert_eq!(circuit.pass(query(9), later + 5 * S), Decision::Probe);
    }

    #[test]
    fn a_probe_that_hangs_lets_others_try() {
        let start = Instant::now();
        let mut circuit = open_circuit(start);
        let later = start + 5 * S;
        assert_eq!(circuit.pass(query(1), later), Decision::Probe);
        assert_eq!(circuit.pass(query(2), later), Decision::Reject(S));
        assert_eq!(circuit.pass(query(2), later + S), Decision::Probe);
        circuit.probe_lost();
        assert_eq!(circuit.pass(query(3), later + 2 * S), Decision::Probe);
    }

    #[test]
    fn a_success_between_starts_the_count_anew() {
        let start = Instant::now();
        let mut circuit = circuit(start);
        for n in 0..9 {
            assert!(!circuit.failed(query(n), false, true, start));
        }
        circuit.succeeded(false, start);
        assert!(!circuit.failed(query(9), false, true, start));
    }

    #[test]
    fn a_share_of_failures_opens_it_once_there_are_enough() {
        let start = Instant::now();
        let mut circuit = circuit(start);
        let mut opened_after = None;
        for n in 1..=40 {
            let now = start + n * S / 2;
            let opened = if n % 2 == 0 {
                circuit.failed(query(n), false, true, now)
            } else {
                circuit.succeeded(false, now);
                false
            };
            opened_after = opened_after.or(opened.then_some(n));
        }
        assert_eq!(opened_after, Some(20));
    }

    #[test]
    fn old_failures_do_not_count() {
        let start = Instant::now();
        let mut circuit = circuit(start);
        for n in 0..9 {
            assert!(!circuit.failed(query(n), false, true, start + n * S));
        }
        circuit.succeeded(false, start + 9 * S);
        for n in 0..9 {
            assert!(!circuit.failed(query(n), false, true, start + (60 + n) * S));
        }
        for _ in 0..11 {
            circuit.succeeded(false, start + 69 * S);
        }
        assert!(!circuit.failed(query(9), false, true, start + 69 * S), "10 failures of 21");
    }

    #[test]
    fn a_probe_that_fails_or_is_lost_lets_another_try() {
        let start = Instant::now();
        let mut circuit = open_circuit(start);
        assert_eq!(circuit.pass(query(99), start + 5 * S), Decision::Probe);
        assert!(!circuit.failed(query(99), true, true, start + 7 * S));
        assert_eq!(circuit.pass(query(99), start + 8 * S), Decision::Reject(4 * S));
        assert_eq!(circuit.state(start + 8 * S), (CircuitState::Open, Some(start)), "it has been broken all the time");
        assert_eq!(circuit.pass(query(99), start + 12 * S), Decision::Probe);
        circuit.probe_lost();
        assert_eq!(circuit.pass(query(99), start + 12 * S), Decision::Probe);
        circuit.failed(query(0), false, true, start + 13 * S);
        assert_eq!(circuit.state(start + 13 * S).0, CircuitState::HalfOpen, "what was sent before says nothing new");
    }

    #[test]
    fn a_query_that_always_fails_does_not_open_it_alone() {
        let start = Instant::now();
        let mut circuit = circuit(start);
        for n in 0..1000 {
            // Not even together with another.
            assert!(!circuit.failed(query(n % 2), false, true, start + n * S / 100));
        }
        assert!(circuit.failed(query(2), false, true, start + 10 * S), "the third is one too many");
    }

    #[test]
    fn a_share_of_failures_must_be_several_queries_too() {
        let start = Instant::now();
        let mut circuit = circuit(start);
        for n in 0..700 {
            let now = start + n * S / 10;
            circuit.succeeded(false, now);
            assert!(!circuit.failed(query(0), false, true, now), "{n}");
            // Others fail as well, but not within the same half minute.
            if n % 350 == 0 {
                circuit.succeeded(false, now);
                assert!(!circuit.failed(query(1 + n / 350), false, true, now), "{n}");
            }
        }
        let end = start + 70 * S;
        let opened: Vec<_> = (7..10)
            .map(|n| {
                circuit.succeeded(false, end);
                circuit.failed(query(n), false, true, end)
            })
            .collect();
        assert_eq!(opened.iter().filter(|opened| **opened).count(), 1, "{opened:?}");
    }

    #[test]
    fn successes_between_make_the_queries_that_fail_in_a_row_be_counted_anew() {
        let start = Instant::now();
        let mut circuit = circuit(start);
        for _ in 0..30 {
            circuit.succeeded(false, start);
        }
        for n in 0..3 {
            assert!(!circuit.failed(query(n), false, true, start));
        }
        circuit.succeeded(false, start);
        for _ in 0..15 {
            assert!(!circuit.failed(query(0), false, true, start), "of one query alone");
        }
    }
}
