//! What an account may be asked, learnt from what it answers. Pure arithmetic: time is passed in.
//!
//! Without any refusal the configured rate holds. A 429 puts up a *wall*: an estimate of the rate that Twilio
//! grants. From then on the rate stays a little below the wall and creeps up to it; once it has held for a while it
//! is raised ever faster, to see whether the wall still stands, and within a minute of the last 429 it is the
//! configured one again. Where another 429 comes first, the wall is moved:
//!
//! * soon after the wall was passed: it stands about where it stood;
//! * well beyond it: to the rate at which answers came of late;
//! * before it was reached: to the rate between two 429s. Whatever the upstream's bucket or window holds, it
//!   was empty at both, so that is the rate at which it fills. A little at first, more while 429s follow each other.
//!
//! The times and factors were found by simulation (see the tests), over upstreams with buckets and with windows.
//!
//! What Twilio states of its limits (headers of 429s, and of other answers if they have them) bounds all this.
//! A 429 that speaks of concurrent requests and not of a rate lowers the number of calls at once instead.

use std::time::Duration;

use crate::core::clock::Instant;
use crate::core::window::Window;
use crate::semantics::upstream_headers::RateLimitHeaders;

/// Below the wall at first, by so much.
const MARGIN: f64 = 0.96;
/// For so long the rate does not pass the wall.
const HOLD: Duration = Duration::from_secs(38);
/// For so long where the wall was put up in a hurry.
const SHORT_HOLD: Duration = Duration::from_secs(20);
/// So long after that the wall is forgotten.
const RISE: Duration = Duration::from_secs(17);
/// A 429 within so much of passing the wall says that the wall still stands.
const CLOSE: Duration = Duration::from_millis(2500);
/// What is refused within so much of a 429 is refused for the same reason.
const SAME: Duration = Duration::from_secs(1);
/// A wall that stands about where it stood is moved by so much at most.
const STEP: f64 = 1.04;
/// "Soon after each other".
const QUICK: Duration = Duration::from_secs(3);
/// "Of late".
const RECENT: Duration = Duration::from_millis(2500);
const RECENT_SLOTS: usize = 5;
/// What Twilio states in passing holds for so long.
const STATED_HOLDS: Duration = Duration::from_secs(60);
/// The rate never falls below this many a second: it would never be found out that things are better.
const LEAST: f64 = 1.0 / 60.0;
/// So few a second of late say nothing of what is granted: little may have been asked.
const LITTLE: f64 = 2.0;
/// Growth a second beyond the wall where no configured rate says where it leads.
const GROWTH: f64 = 1.3;
/// Growth a second beyond the wall at least.
const LEAST_GROWTH: f64 = 1.02;

/// The pace of one account.
#[derive(Debug, Clone)]
pub(super) struct AdaptiveRate {
    /// The configured rate per second.
    ceiling: Option<f64>,
    estimate: Option<RateEstimate>,
    /// From answers other than 429s.
    stated: Option<(f64, Instant)>,
    /// The longest window that Twilio has shown, for the limit it has stated.
    window: Option<(u64, Duration)>,
    /// Of late accepted.
    recent: Window<RECENT_SLOTS, 1>,
    /// Accepted since the last 429 that moved the wall.
    accepted: u32,
    concurrency_limit: Option<ConcurrencyLimit>,
}

#[derive(Debug, Clone, Copy)]
struct RateEstimate {
    /// Per second.
    rate: f64,
    /// When it was put up.
    at: Instant,
    /// When the pause ended that the 429 brought.
    since: Instant,
    /// How many 429s have moved it soon after each other.
    quick: u32,
    /// The first one: where it stands at most once all that was under way is answered.
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

/// Fewer calls at once, after a 429 that spoke of those.
#[derive(Debug, Clone, Copy)]
struct ConcurrencyLimit {
    most: u32,
    at: Instant,
}

impl AdaptiveRate {
    /// The configured rate, per second; `None` is without limit.
    pub(super) fn new(ceiling: Option<f64>, now: Instant) -> Self {
        let recent = Window::new(RECENT / RECENT_SLOTS as u32, now);
        Self { ceiling, estimate: None, stated: None, window: None, recent, accepted: 0, concurrency_limit: None }
    }

    /// Another configured rate. What was learnt stays.
    pub(super) fn set_ceiling(&mut self, ceiling: Option<f64>) {
        self.ceiling = ceiling;
    }

    /// How many a second may be sent now; `None` is without limit.
    pub(super) fn rate(&self, now: Instant) -> Option<f64> {
        let learnt = self.estimate.and_then(|estimate| self.after(estimate, now));
        let stated = self.stated.filter(|(_, until)| now < *until).map(|(rate, _)| rate);
        let least = [self.ceiling, learnt, stated].into_iter().flatten().reduce(f64::min);
        // A configured rate may be lower than the least that is ever learnt.
        least.map(|rate| rate.max(LEAST.min(self.ceiling.unwrap_or(LEAST))))
    }

    /// Is the rate learnt rather than the configured one. It is so too where Twilio states just the configured rate: its
    /// windows have no room for bursts beside that.
    pub(super) fn is_learnt(&self, now: Instant) -> bool {
        let stated = self.stated.filter(|(_, until)| now < *until);
        let binds = stated.is_some_and(|(rate, _)| self.ceiling.is_none_or(|ceiling| rate <= ceiling));
        binds || self.rate(now) != self.ceiling
    }

    /// How many calls at once may be sent now, of the configured number.
    pub(super) fn concurrency(&self, configured: u32, now: Instant) -> u32 {
        let Some(concurrency_limit) = self.concurrency_limit else { return configured };
        let share = now.saturating_duration_since(concurrency_limit.at).as_secs_f64() / (HOLD + RISE).as_secs_f64();
        let regained = f64::from(configured.saturating_sub(concurrency_limit.most)) * share;
        concurrency_limit.most.saturating_add(regained as u32).min(configured)
    }

    /// The rate after a wall was put up; `None` once it is forgotten.
    fn after(&self, estimate: RateEstimate, now: Instant) -> Option<f64> {
        let since = now.saturating_duration_since(estimate.since);
        if estimate.is_forgotten(now) {
            return None;
        }
        let Some(beyond) = since.checked_sub(estimate.hold()) else {
            let crept = since.as_secs_f64() / estimate.hold().as_secs_f64();
            return Some(estimate.rate * (MARGIN + (1.0 - MARGIN) * crept));
        };
        let growth = match self.ceiling {
            Some(ceiling) => (ceiling / estimate.rate).powf(1.0 / RISE.as_secs_f64()).max(LEAST_GROWTH),
            None => GROWTH,
        };
        Some(estimate.rate * growth.powf(beyond.as_secs_f64()))
    }

    /// Twilio answered something else than 429. Until when nothing should be sent, if it says that nothing is left.
    pub(super) fn accepted(&mut self, stated: &RateLimitHeaders, now: Instant) -> Option<Duration> {
        self.accepted = self.accepted.saturating_add(1);
        self.recent.count(0, now);
        if let Some(rate) = self.stated_rate(stated) {
            self.stated = Some((rate, now + STATED_HOLDS));
        }
        let recent = self.accepted_of_late(now);
        if let Some(estimate) = self.estimate.as_mut().filter(|estimate| now < estimate.since)
            && let Some(most) = estimate.first
        {
            // Nothing is sent before then: this was under way with what was refused.
            estimate.rate = estimate.rate.max(recent.min(most));
        }
        // Whole seconds, rounded up: the last of them may be almost over.
        let certain = stated.reset.filter(|_| stated.remaining == Some(0))?.saturating_sub(Duration::from_secs(1));
        (!certain.is_zero()).then_some(certain)
    }

    /// Twilio answered 429 to a call that was sent at `sent`, with `in_flight` calls under way, itself included;
    /// nothing will be sent until `resumes`.
    pub(super) fn refused(
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
        if let Some(estimate) = self.estimate.as_mut().filter(|estimate| sent <= estimate.at + SAME) {
            // Sent before the wall was put up, or into the same empty window: no news but of when to go on.
            estimate.since = estimate.since.max(resumes);
            return;
        }
        let current = self.rate(now);
        let mut quick = 0;
        let recent = self.accepted_of_late(now);
        let rate = match (self.estimate.filter(|estimate| !estimate.is_forgotten(now)), current) {
            (Some(estimate), Some(current)) => {
                match now.saturating_duration_since(estimate.since).checked_sub(estimate.hold()) {
                    Some(beyond) if beyond <= CLOSE && estimate.quick <= 1 => current.min(estimate.rate * STEP),
                    Some(_) => (recent * GROWTH).clamp(estimate.rate.min(current), current),
                    None => {
                        let between = now.saturating_duration_since(estimate.at);
                        let filled = f64::from(self.accepted) / between.as_secs_f64().max(0.001);
                        quick = if between < QUICK { estimate.quick + 1 } else { 1 };
                        // Ever more at once while refusals follow each other.
                        let lowered = current / STEP.powi(1 << (quick - 1).min(4));
                        // The pause counts too, so Twilio grants this at least.
                        filled.clamp(lowered, current)
                    }
                }
            }
            // The first: nothing is known but what came of late. Nothing at all, and others may be using the account.
            (_, Some(current)) if recent == 0.0 => current / 2.0,
            (_, Some(current)) => recent.max(LITTLE).min(current),
            (_, None) => recent.max(1.0),
        };
        let stated_most = stated_rate.unwrap_or(f64::INFINITY);
        let is_first = self.estimate.is_none_or(|estimate| estimate.is_forgotten(now));
        let first = is_first.then(|| current.unwrap_or(f64::INFINITY).min(stated_most));
        let rate = rate.min(stated_most).max(LEAST);
        self.estimate = Some(RateEstimate { rate, at: now, since: resumes.max(now), quick, first });
        self.accepted = 0;
    }

    /// Per second, over the time since the first of them but a second at least.
    fn accepted_of_late(&self, now: Instant) -> f64 {
        let [accepted] = self.recent.counts(now);
        f64::from(accepted) / self.recent.span(now).as_secs_f64().max(1.0)
    }

    /// The rate that a stated limit makes, with the longest window that was ever shown for it; a second at least.
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
