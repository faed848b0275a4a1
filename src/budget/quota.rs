//! Where the tokens of an account come from.
//!
//! A budget asks a [`QuotaSource`] before each upstream attempt whether this team may send one now. The answer is a
//! [`Grant`]. A token that was granted and not used is given back. The source is told about each response, because it
//! learns from 429s: it pauses the account, and lowers its rate and the number of attempts at once.
//!
//! [`LocalQuota`] is the token bucket of this process. The documentation of the trait says what a source has to do that
//! shares a bucket with other processes.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;

use super::adaptive_rate::AdaptiveRate;
use super::circuit::CommonCircuit;
use super::limits::Limits;
use crate::accounts::Team;
use crate::core::clock::Instant;
use crate::core::limiter::{Limiter, Quota};
use crate::request::key::Key;
use crate::semantics::upstream_headers::RateLimitHeaders;

/// The answer to a request for a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Grant {
    /// A token is granted.
    Now,
    /// No token is available; ask again at this time, which is later than now.
    NotBefore(Instant),
}

/// Calls of one team that wait for tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Demand {
    /// The team.
    pub team: Arc<Team>,
    /// They are refreshes that no client waits for.
    pub background: bool,
    /// How many of them could be sent now.
    pub calls: u32,
}

/// Whose call a token is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Turn {
    /// The name of the team.
    pub team: Arc<str>,
    /// It is for a refresh that no client waits for.
    pub background: bool,
}

/// How the own upstream limit of a team is divided among processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parts {
    /// Into how many parts, of which this process spends one.
    pub count: u32,
    /// When this process lost the others or found them again: each team's bucket was empty then.
    pub emptied: Option<Instant>,
}

/// What a process knows of a team's own upstream limit that processes share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CommonTokens {
    /// When the next token is expected.
    pub next: Instant,
    /// How many other processes there are.
    pub others: u32,
    /// How many calls of clients wait in their queues, of this team or of others.
    pub elsewhere: u32,
}

impl CommonTokens {
    /// When the `n`-th token is expected here, if there is one every `period`. Each process with as long a queue gets as
    /// many meanwhile.
    pub(super) fn nth_at(&self, n: u32, period: Duration) -> Instant {
        /// Short enough to be added to any instant.
        const LONGEST: Duration = Duration::from_secs(366 * 86_400);
        let before = n.saturating_sub(1);
        let others = before.saturating_mul(self.others).min(self.elsewhere);
        self.next + period.saturating_mul(before.saturating_add(others)).min(LONGEST)
    }
}

/// A view of a source's state.
#[derive(Debug, Clone, Copy)]
pub struct QuotaStatus {
    /// Tokens a second now; `None` without a limit.
    pub per_second: Option<f64>,
    /// Tokens now, negative while they are owed; `None` without a limit.
    pub tokens: Option<f64>,
    /// Time until the pause ends; zero without one.
    pub paused: Duration,
}

/// Grants the tokens of one account. The bucket of this process is one source; a bucket that processes share is another.
///
/// * Every method is called under the account's lock and must not block. A shared source answers from the tokens that it
///   has fetched ahead, and fetches more in a task of its own.
/// * Times are estimates. Others may take the token meanwhile, so [`take`](Self::take) may refuse at the very time that
///   was named; it then names a later one.
/// * The budget has its own fair queue, which decides who is next. Where processes share a bucket, no queue of one process
///   can: such a source learns who waits, with [`set_demand`](Self::set_demand), and its [`turn`](Self::turn) names the
///   team that its next token is for.
///
/// ```
/// use std::time::Duration;
///
/// use insights_gateway::accounts::Team;
/// use insights_gateway::budget::{Grant, Limits, QuotaSource, QuotaStatus};
/// use insights_gateway::core::clock::Instant;
/// use insights_gateway::semantics::upstream_headers::RateLimitHeaders;
///
/// /// Grants every token, except while the upstream asks for a pause.
/// #[derive(Debug)]
/// struct Unlimited {
///     paused_until: Instant,
/// }
///
/// impl QuotaSource for Unlimited {
///     fn set_limits(&mut self, _: &Limits, _: Instant) {}
///
///     fn update(&mut self, _: Instant) {}
///
///     fn ready(&self, now: Instant) -> Grant {
///         if self.paused_until <= now { Grant::Now } else { Grant::NotBefore(self.paused_until) }
///     }
///
///     fn take(&mut self, _: &Team, now: Instant) -> Grant {
///         self.ready(now)
///     }
///
///     fn refund(&mut self) {}
///
///     fn nth_at(&self, _: u32, now: Instant) -> Instant {
///         self.paused_until.max(now)
///     }
///
///     fn concurrency(&self, _: Instant) -> u32 {
///         100
///     }
///
///     fn accepted(&mut self, _: &RateLimitHeaders, _: Instant) {}
///
///     fn rate_limited(
///         &mut self,
///         asked: Option<Duration>,
///         _: &RateLimitHeaders,
///         _: Instant,
///         _: u32,
///         now: Instant,
///     ) -> Option<Duration> {
///         let pause = asked.unwrap_or(Duration::from_secs(1));
///         let is_longer = now + pause > self.paused_until;
///         self.paused_until = self.paused_until.max(now + pause);
///         is_longer.then_some(pause)
///     }
///
///     fn status(&self, now: Instant) -> QuotaStatus {
///         let paused = self.paused_until.saturating_duration_since(now);
///         QuotaStatus { per_second: None, tokens: None, paused }
///     }
/// }
///
/// let start = Instant::now();
/// let mut source = Unlimited { paused_until: start };
/// assert_eq!(source.ready(start), Grant::Now);
/// let pause = Duration::from_secs(9);
/// source.rate_limited(Some(pause), &RateLimitHeaders::default(), start, 1, start);
/// assert_eq!(source.ready(start), Grant::NotBefore(start + pause));
/// ```
pub trait QuotaSource: Debug + Send {
    /// Changes the limits. What is owed stays owed, and what was learnt stays learnt.
    fn set_limits(&mut self, limits: &Limits, now: Instant);

    /// No configuration has the account any more, until its limits are set again. Where processes share the bucket, this
    /// one must not limit the others from now on.
    fn retire(&mut self) {}

    /// Brings the source up to date: a learnt rate changes with time.
    fn update(&mut self, now: Instant);

    /// Whether a token would be granted now.
    fn ready(&self, now: Instant) -> Grant;

    /// Takes a token for an attempt of this team.
    fn take(&mut self, team: &Team, now: Instant) -> Grant;

    /// Gives back a token that was not used.
    fn refund(&mut self);

    /// Whose turn it is, if the source decides that.
    fn turn(&self) -> Option<Turn> {
        None
    }

    /// Gives back the token of this [`turn`](Self::turn): no call of that team waits any more.
    fn decline(&mut self) {}

    /// The calls that wait may have changed. `demand` lists those that could be sent; only a source that needs it calls it.
    /// `queue` is the number of all calls of clients that wait, and of those that are expected to come back.
    fn set_demand(&mut self, _demand: &dyn Fn() -> Vec<Demand>, _queue: u32, _now: Instant) {}

    /// A call is queued. Its request has already `waited` so long for what processes share.
    fn arrived(&mut self, _waited: Duration, _now: Instant) {}

    /// No call is queued.
    fn idle(&mut self) {}

    /// Notified when the source would answer otherwise than before, and no call was the cause.
    fn changes(&self) -> Option<Arc<Notify>> {
        None
    }

    /// What is known of a team's own upstream limit, where processes share it.
    fn team_tokens(&self, _team: &Team) -> Option<CommonTokens> {
        None
    }

    /// Into how many parts the own upstream limits of teams are divided now, if other processes spend the other parts.
    fn parts(&self) -> Parts {
        Parts { count: 1, emptied: None }
    }

    /// The circuit has opened until this time, because of what the upstream answered.
    fn circuit_opened(&mut self, _until: Instant) {}

    /// A probe has closed the circuit.
    fn circuit_closed(&mut self) {}

    /// A probe of this query failed, as the upstream's answer shows.
    fn probe_failed(&mut self, _query: Key) {}

    /// What processes that share the account know of its circuit. [`CommonCircuit::Closed`] is told once.
    fn common_circuit(&mut self) -> Option<CommonCircuit> {
        None
    }

    /// Until when estimates may be too early: many calls have come, and other processes do not know of them yet, or this
    /// one not of theirs.
    fn queues_known_at(&self) -> Option<Instant> {
        None
    }

    /// When the `n`-th token from now is expected, counted from 1.
    fn nth_at(&self, n: u32, now: Instant) -> Instant;

    /// Attempts at once, now; at least one.
    fn concurrency(&self, now: Instant) -> u32;

    /// The upstream answered something else than 429.
    fn accepted(&mut self, stated: &RateLimitHeaders, now: Instant);

    /// The upstream answered 429, and asked for a pause or not, to an attempt that was sent at `sent` with `in_flight`
    /// attempts under way, itself included. Returns the pause, unless a longer one is in force.
    fn rate_limited(
        &mut self,
        asked: Option<Duration>,
        stated: &RateLimitHeaders,
        sent: Instant,
        in_flight: u32,
        now: Instant,
    ) -> Option<Duration>;

    /// A view of the state now.
    fn status(&self, now: Instant) -> QuotaStatus;
}

/// The tokens of this process.
///
/// A pause is an instant beside the bucket. It does not push the bucket's TAT forward: the bucket fills during a pause,
/// so that its burst is available after it.
#[derive(Debug)]
pub(crate) struct LocalQuota {
    limits: Limits,
    /// With the quota of the last [`update`](QuotaSource::update); `None` without a limit.
    limiter: Option<Limiter>,
    adaptive_rate: AdaptiveRate,
    paused_until: Option<Instant>,
    /// 429s since the last other response.
    rate_limited_in_a_row: u32,
}

impl LocalQuota {
    /// A full bucket.
    pub(crate) fn new(limits: &Limits, now: Instant) -> Self {
        Self {
            limits: *limits,
            limiter: limits.quota().map(|quota| Limiter::full(quota, now)),
            adaptive_rate: AdaptiveRate::new(limits.per_second(), now),
            paused_until: None,
            rate_limited_in_a_row: 0,
        }
    }

    /// What it allows now; `None` without a limit.
    pub(crate) fn quota(&self) -> Option<Quota> {
        self.limiter.as_ref().map(Limiter::quota)
    }

    /// Empties the bucket.
    pub(crate) fn drain(&mut self, now: Instant) {
        self.limiter = self.quota().map(|quota| Limiter::empty(quota, now));
    }

    /// Other processes were granted so many tokens: what is learnt from a 429 is about all of them.
    pub(crate) fn others_took(&mut self, tokens: u32, now: Instant) {
        self.adaptive_rate.others_took(tokens, now);
    }

    fn is_rate_lowered(&self, now: Instant) -> bool {
        self.limits.adapt && self.adaptive_rate.is_learnt(now)
    }

    fn is_paused(&self, now: Instant) -> bool {
        self.paused_until.is_some_and(|until| until > now)
    }

    fn pause(&mut self, pause: Duration, now: Instant) -> Option<Duration> {
        let pause = pause.min(self.limits.max_pause);
        let until = now + pause;
        let is_longer = self.paused_until.is_none_or(|known| known < until);
        if is_longer {
            self.paused_until = Some(until);
        }
        is_longer.then_some(pause)
    }
}

impl QuotaSource for LocalQuota {
    fn set_limits(&mut self, limits: &Limits, now: Instant) {
        self.limits = *limits;
        self.adaptive_rate.set_ceiling(limits.per_second());
        self.update(now);
    }

    fn update(&mut self, now: Instant) {
        let lowered = self.is_rate_lowered(now);
        let quota = if lowered { self.adaptive_rate.rate(now).map(Quota::even) } else { self.limits.quota() };
        match (&mut self.limiter, quota) {
            (Some(limiter), Some(quota)) => limiter.set_quota(quota, now),
            (limiter, quota) => *limiter = quota.map(|quota| Limiter::full(quota, now)),
        }
    }

    fn ready(&self, now: Instant) -> Grant {
        /// If the rate is raised meanwhile, the next token may come earlier than expected now.
        const LONGEST: Duration = Duration::from_millis(500);
        let next = self.nth_at(1, now);
        if next <= now {
            return Grant::Now;
        }
        let may_come_sooner = self.is_rate_lowered(now) && !self.is_paused(now);
        Grant::NotBefore(if may_come_sooner { next.min(now + LONGEST) } else { next })
    }

    fn take(&mut self, _: &Team, now: Instant) -> Grant {
        let grant = self.ready(now);
        if let (Grant::Now, Some(limiter)) = (grant, &self.limiter) {
            // This cannot fail, because no other code takes tokens of this bucket.
            limiter.try_take(now);
        }
        grant
    }

    fn refund(&mut self) {
        if let Some(limiter) = &self.limiter {
            limiter.refund();
        }
    }

    fn nth_at(&self, n: u32, now: Instant) -> Instant {
        let from = self.paused_until.map_or(now, |until| until.max(now));
        self.limiter.as_ref().map_or(from, |limiter| limiter.nth_at(n, from))
    }

    fn concurrency(&self, now: Instant) -> u32 {
        let configured = self.limits.concurrency;
        if self.limits.adapt { self.adaptive_rate.concurrency(configured, now) } else { configured }
    }

    fn accepted(&mut self, stated: &RateLimitHeaders, now: Instant) {
        self.rate_limited_in_a_row = 0;
        if let Some(nothing_left) = self.adaptive_rate.accepted(stated, now).filter(|_| self.limits.adapt) {
            self.pause(nothing_left, now);
        }
    }

    fn rate_limited(
        &mut self,
        asked: Option<Duration>,
        stated: &RateLimitHeaders,
        sent: Instant,
        in_flight: u32,
        now: Instant,
    ) -> Option<Duration> {
        self.rate_limited_in_a_row = self.rate_limited_in_a_row.saturating_add(1);
        // At least half of the ceiling: without a pause the next attempt would be refused as well.
        let backoff = || self.limits.backoff.delay(self.rate_limited_in_a_row, 0.5 + fastrand::f64() / 2.0);
        let paused = self.pause(asked.unwrap_or_else(backoff), now);
        let resumes = self.paused_until.unwrap_or(now);
        self.adaptive_rate.rate_limited(stated, sent, in_flight, now, resumes);
        paused
    }

    fn status(&self, now: Instant) -> QuotaStatus {
        let limiter = self.limiter.as_ref();
        QuotaStatus {
            per_second: limiter.map(|limiter| limiter.quota().per_second()),
            tokens: limiter.map(|limiter| limiter.tokens(now)),
            paused: self.paused_until.map_or(Duration::ZERO, |until| until.saturating_duration_since(now)),
        }
    }
}
