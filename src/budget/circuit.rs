//! The circuit breaker: an upstream that fails repeatedly gets no attempts for a while. Pure: time is passed in.
//!
//! While *closed*, every call passes. A number of failures in a row, or a share of the attempts of the last half minute,
//! *opens* it: no call passes. After a while it is *half open*: one attempt at a time passes as a probe. A probe that
//! succeeds closes the circuit. A query whose probe failed is refused for as long again. Once the probes of several queries
//! have failed, the circuit is open again. The caller decides what counts as a failure.
//!
//! Several processes can share a circuit: [`Circuit::hear`] tells one of them what the others know.
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
pub(crate) const LEAST_QUERIES: usize = 3;
/// How long other calls wait for a probe's end. After that another query may be a probe too, because one that takes long
/// says little.
pub(crate) const PROBE: Duration = Duration::from_secs(1);
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

/// The circuit of all processes that share an account.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CommonCircuit {
    /// No call passes before this.
    Open(Instant),
    /// Tokens are for probes, one at a time.
    HalfOpen,
    /// A probe of another process has closed it.
    Closed,
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
        let is_awaited = broken.probes > 0 && now < broken.probed + PROBE;
        match () {
            () if now < until => Decision::Reject(until - now),
            () if is_awaited || broken.probes >= LEAST_QUERIES => Decision::Reject(PROBE),
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
            self.close(now);
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

    fn close(&mut self, now: Instant) {
        self.broken = None;
        self.window = window(now);
        (self.failed, self.failed_probes) = (RecentFailures::default(), RecentFailures::default());
        (self.in_a_row, self.failed_in_a_row) = (0, RecentFailures::default());
    }

    /// Takes what other processes know of the common circuit. Returns whether calls that wait have to be refused.
    pub(super) fn hear(&mut self, common: CommonCircuit, now: Instant) -> bool {
        /// What is left of an opening that has just ended here comes back with the time that the way took.
        const REST: Duration = Duration::from_millis(100);
        let until = match common {
            CommonCircuit::Open(until) if until > now + REST => until,
            CommonCircuit::HalfOpen if self.broken.is_none() => now,
            CommonCircuit::Open(_) | CommonCircuit::HalfOpen => return false,
            CommonCircuit::Closed => {
                // What fails on the way fails only here.
                if !self.failed_on_the_way {
                    self.close(now);
                }
                return false;
            }
        };
        match &mut self.broken {
            None => {
                self.broken = Some(Broken { since: now, until, probes: 0, probed: now });
                true
            }
            Some(broken) => {
                // Probes of other processes failed.
                let reopens = until > broken.until.max(now) + REST;
                broken.until = broken.until.max(until);
                reopens
            }
        }
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
mod tests;
