//! The rate and the concurrency that an account allows, learnt from its responses. Pure arithmetic: time is passed in.
//!
//! Without a 429 the configured rate holds. A 429 makes an *estimate* of the rate that Twilio allows. From then on the
//! rate starts a little below the estimate and approaches it. When it has held for a while it is raised faster and faster,
//! to find out whether the limit is still there. Within a minute of the last 429 it is the configured rate again. Where
//! another 429 comes first, the new estimate depends on when it came:
//!
//! * soon after the rate passed the estimate: the limit is about where it was, so the estimate changes little;
//! * well after that: the estimate is the rate at which calls were recently accepted;
//! * before the rate reached the estimate: the estimate is the rate of accepted calls between the two 429s. Whatever the
//!   upstream's bucket or window holds, it was empty at both, so that is the rate at which it fills. The rate is lowered
//!   a little at first, and more when 429s follow each other.
//!
//! The times and factors were found by simulation (see the tests), of upstreams with buckets and with windows.
//!
//! The limits that Twilio states (in headers of 429s, and of other responses if they have them) bound all this. A 429
//! that names concurrent requests and no rate lowers the number of attempts at once instead.

use std::time::Duration;

use crate::core::clock::Instant;
use crate::core::window::Window;
use crate::semantics::upstream_headers::RateLimitHeaders;

/// The part of the estimate that the rate starts with.
const MARGIN: f64 = 0.96;
/// For how long the rate stays below the estimate.
const HOLD: Duration = Duration::from_secs(38);
/// The same after 429s that followed each other quickly.
const SHORT_HOLD: Duration = Duration::from_secs(20);
/// How long after that the estimate is forgotten.
const RISE: Duration = Duration::from_secs(17);
/// A 429 so soon after the rate passed the estimate confirms the estimate.
const CONFIRMS: Duration = Duration::from_millis(2500);
/// Attempts that were sent so soon after a 429 may be refused for the same reason.
const SAME_CAUSE: Duration = Duration::from_secs(1);
/// The factor by which a confirmed estimate changes at most.
const STEP: f64 = 1.04;
/// 429s within this time follow each other quickly.
const QUICK: Duration = Duration::from_secs(3);
/// How far back accepted calls are recent.
const RECENT: Duration = Duration::from_millis(2500);
const RECENT_SLOTS: usize = 5;
/// For how long a limit holds that a response other than a 429 stated.
const STATED_HOLDS: Duration = Duration::from_secs(60);
/// The least rate, per second: at a lower one it would take too long to find out that the limit is gone.
const MIN_RATE: f64 = 1.0 / 60.0;
/// Fewer recently accepted calls a second say nothing about the limit: there may have been few calls.
const LEAST_RECENT: f64 = 2.0;
/// Growth a second beyond the estimate where no rate is configured.
const GROWTH: f64 = 1.3;
/// The least growth a second beyond the estimate.
const LEAST_GROWTH: f64 = 1.02;

/// The learnt rate of one account.
#[derive(Debug, Clone)]
pub(super) struct AdaptiveRate {
    /// The configured rate per second.
    ceiling: Option<f64>,
    estimate: Option<RateEstimate>,
    /// The rate that responses other than 429s stated, and until when it holds.
    stated: Option<(f64, Instant)>,
    /// The limit that Twilio stated last, and the longest window that it showed for it.
    window: Option<(u64, Duration)>,
    /// Recently accepted calls.
    recent: Window<RECENT_SLOTS, 1>,
    /// Calls accepted since the 429 that made the estimate.
    accepted: u32,
    concurrency_limit: Option<ConcurrencyLimit>,
}

#[derive(Debug, Clone, Copy)]
struct RateEstimate {
    /// Per second.
    rate: f64,
    /// When the 429 came.
    at: Instant,
    /// When the pause ended that it brought.
    since: Instant,
    /// How many 429s have changed it, each quickly after the other.
    quick: u32,
    /// For a first estimate: the most that it is raised to by responses to what was under way.
    first: Option<f64>,
}

impl RateEstimate {
    fn hold(&self) -> Duration {
        if self.quick > 1 { SHORT_HOLD } else { HOLD }
    }

    fn is_forgotten(&self, now: Instant) -> bool {
        now >= self.since + self.hold() + RISE
    }
}

/// Fewer attempts at once, after a 429 that named concurrent requests.
#[derive(Debug, Clone, Copy)]
struct ConcurrencyLimit {
    most: u32,
    at: Instant,
}

impl AdaptiveRate {
    /// Starts with the configured rate, per second; `None` is no limit.
    pub(super) fn new(ceiling: Option<f64>, now: Instant) -> Self {
        let recent = Window::new(RECENT / RECENT_SLOTS as u32, now);
        Self { ceiling, estimate: None, stated: None, window: None, recent, accepted: 0, concurrency_limit: None }
    }

    /// Changes the configured rate. What was learnt stays.
    pub(super) fn set_ceiling(&mut self, ceiling: Option<f64>) {
        self.ceiling = ceiling;
    }

    /// The rate per second now; `None` is no limit.
    pub(super) fn rate(&self, now: Instant) -> Option<f64> {
        let learnt = self.estimate.and_then(|estimate| self.after(estimate, now));
        let stated = self.stated.filter(|(_, until)| now < *until).map(|(rate, _)| rate);
        let least = [self.ceiling, learnt, stated].into_iter().flatten().reduce(f64::min);
        // A configured rate may be lower than the least that is ever learnt.
        least.map(|rate| rate.max(MIN_RATE.min(self.ceiling.unwrap_or(MIN_RATE))))
    }

    /// Whether the rate is learnt rather than configured. It is also learnt where Twilio states exactly the configured
    /// rate: a window of Twilio's that is full at that rate allows no bursts.
    pub(super) fn is_learnt(&self, now: Instant) -> bool {
        let stated = self.stated.filter(|(_, until)| now < *until);
        let binds = stated.is_some_and(|(rate, _)| self.ceiling.is_none_or(|ceiling| rate <= ceiling));
        binds || self.rate(now) != self.ceiling
    }

    /// Attempts at once now, of the configured number.
    pub(super) fn concurrency(&self, configured: u32, now: Instant) -> u32 {
        let Some(concurrency_limit) = self.concurrency_limit else { return configured };
        let share = now.saturating_duration_since(concurrency_limit.at).as_secs_f64() / (HOLD + RISE).as_secs_f64();
        let regained = f64::from(configured.saturating_sub(concurrency_limit.most)) * share;
        concurrency_limit.most.saturating_add(regained as u32).min(configured)
    }

    /// The rate that an estimate allows now; `None` once it is forgotten.
    fn after(&self, estimate: RateEstimate, now: Instant) -> Option<f64> {
        let since = now.saturating_duration_since(estimate.since);
        if estimate.is_forgotten(now) {
            return None;
        }
        let Some(beyond) = since.checked_sub(estimate.hold()) else {
            let progress = since.as_secs_f64() / estimate.hold().as_secs_f64();
            return Some(estimate.rate * (MARGIN + (1.0 - MARGIN) * progress));
        };
        let growth = match self.ceiling {
            Some(ceiling) => (ceiling / estimate.rate).powf(1.0 / RISE.as_secs_f64()).max(LEAST_GROWTH),
            None => GROWTH,
        };
        Some(estimate.rate * growth.powf(beyond.as_secs_f64()))
    }

    /// Twilio answered something else than 429. Returns for how long nothing should be sent, if it states that nothing
    /// is left.
    pub(super) fn accepted(&mut self, stated: &RateLimitHeaders, now: Instant) -> Option<Duration> {
        self.accepted = self.accepted.saturating_add(1);
        self.recent.count(0, now);
        if let Some(rate) = self.stated_rate(stated) {
            self.stated = Some((rate, now + STATED_HOLDS));
        }
        let recent = self.recently_accepted(now);
        if let Some(estimate) = self.estimate.as_mut().filter(|estimate| now < estimate.since)
            && let Some(most) = estimate.first
        {
            // Nothing was sent since the 429: this call was under way together with the refused one.
            estimate.rate = estimate.rate.max(recent.min(most));
        }
        // Twilio rounds up to whole seconds: the last one may be almost over.
        let certain = stated.reset.filter(|_| stated.remaining == Some(0))?.saturating_sub(Duration::from_secs(1));
        (!certain.is_zero()).then_some(certain)
    }

    /// Other processes sent so many calls. Those that were refused tell it themselves.
    pub(super) fn others_took(&mut self, calls: u32, now: Instant) {
        self.accepted = self.accepted.saturating_add(calls);
        for _ in 0..calls {
            self.recent.count(0, now);
        }
    }

    /// Twilio answered 429 to a call that was sent at `sent`, with `in_flight` calls under way, itself included;
    /// nothing is sent until `resumes`.
    pub(super) fn rate_limited(
        &mut self,
        stated: &RateLimitHeaders,
        sent: Instant,
        in_flight: u32,
        now: Instant,
        resumes: Instant,
    ) {
        if !stated.speaks_of_a_rate() && stated.concurrent.is_some() {
            self.concurrency_limit = Some(ConcurrencyLimit { most: in_flight.saturating_sub(1).max(1), at: now });
            return;
        }
        let stated_rate = self.stated_rate(stated);
        if let Some(estimate) = self.estimate.as_mut().filter(|estimate| sent <= estimate.at + SAME_CAUSE) {
            // Sent before the estimate was made, or into the same empty window: only the end of the pause is new.
            estimate.since = estimate.since.max(resumes);
            return;
        }
        let current = self.rate(now);
        let mut quick = 0;
        let recent = self.recently_accepted(now);
        let rate = match (self.estimate.filter(|estimate| !estimate.is_forgotten(now)), current) {
            (Some(estimate), Some(current)) => {
                match now.saturating_duration_since(estimate.since).checked_sub(estimate.hold()) {
                    Some(beyond) if beyond <= CONFIRMS && estimate.quick <= 1 => current.min(estimate.rate * STEP),
                    Some(_) => (recent * GROWTH).clamp(estimate.rate.min(current), current),
                    None => {
                        let between = now.saturating_duration_since(estimate.at);
                        let filled = f64::from(self.accepted) / between.as_secs_f64().max(0.001);
                        quick = if between < QUICK { estimate.quick + 1 } else { 1 };
                        // The steps grow while 429s follow each other.
                        let lowered = current / STEP.powi(1 << (quick - 1).min(4));
                        // The time includes the pause, so Twilio allows at least this.
                        filled.clamp(lowered, current)
                    }
                }
            }
            // The first estimate: only recently accepted calls are known. Where there are none, others may be using the
            // account.
            (_, Some(current)) if recent == 0.0 => current / 2.0,
            (_, Some(current)) => recent.max(LEAST_RECENT).min(current),
            (_, None) => recent.max(1.0),
        };
        let stated_most = stated_rate.unwrap_or(f64::INFINITY);
        let is_first = self.estimate.is_none_or(|estimate| estimate.is_forgotten(now));
        let first = is_first.then(|| current.unwrap_or(f64::INFINITY).min(stated_most));
        let rate = rate.min(stated_most).max(MIN_RATE);
        self.estimate = Some(RateEstimate { rate, at: now, since: resumes.max(now), quick, first });
        self.accepted = 0;
    }

    /// Recently accepted calls per second, over the time since the first of them and at least a second.
    fn recently_accepted(&self, now: Instant) -> f64 {
        let [accepted] = self.recent.counts(now);
        f64::from(accepted) / self.recent.span(now).as_secs_f64().max(1.0)
    }

    /// The rate of a stated limit, over the longest window that was shown for it, at least a second.
    fn stated_rate(&mut self, stated: &RateLimitHeaders) -> Option<f64> {
        let limit = stated.limit.filter(|limit| *limit > 0)?;
        let shown = stated.reset.unwrap_or_default().max(Duration::from_secs(1));
        let window = match self.window {
            Some((known, window)) if known == limit => window.max(shown),
            _ => shown,
        };
        self.window = Some((limit, window));
        Some(limit as f64 / window.as_secs_f64())
    }
}

#[cfg(test)]
mod tests;
