//! The requests that a team may send, and the headers that tell it what is left.

use http::HeaderValue;

use crate::accounts::Allowance;
use crate::core::clock::Instant;
use crate::core::error::whole_seconds;
use crate::core::limiter::{Limiter, Quota};
use crate::core::units::Rate;

/// The requests that a team may send. Clones share what has been spent.
#[derive(Debug, Clone)]
pub struct TeamRate {
    pub(super) rate: Rate,
    limiter: Limiter,
}

impl TeamRate {
    /// A full bucket, which holds what the rate allows in its window.
    pub fn full(rate: Rate, now: Instant) -> Self {
        Self { rate, limiter: Limiter::full(Quota::new(rate, rate.count()), now) }
    }

    /// Changes the rate of this clone. Requests that were already sent still count.
    pub fn set_rate(&mut self, rate: Rate, now: Instant) {
        self.rate = rate;
        self.limiter.set_quota(Quota::new(rate, rate.count()), now);
    }

    /// Takes one request. Returns the remaining allowance.
    ///
    /// # Errors
    ///
    /// If none is left: the allowance, with the time until there is one.
    pub fn take(&self, now: Instant) -> Result<Allowance, Allowance> {
        if self.limiter.try_take(now) {
            return Ok(Allowance { remaining: self.limiter.whole_tokens(now), reset: 0 });
        }
        Err(self.left(now))
    }

    /// The remaining allowance. Takes nothing.
    pub fn left(&self, now: Instant) -> Allowance {
        match self.limiter.whole_tokens(now) {
            0 => {
                let wait = self.limiter.nth_at(1, now).saturating_duration_since(now);
                Allowance { remaining: 0, reset: whole_seconds(wait).as_secs() }
            }
            remaining => Allowance { remaining, reset: 0 },
        }
    }
}

/// `RateLimit-Policy`, in the structured form of draft-ietf-httpapi-ratelimit-headers.
pub(super) fn policy(requests: Option<Rate>, upstream: Option<Rate>) -> HeaderValue {
    let item = |name: &str, rate: Rate| format!("\"{name}\";q={};w={}", rate.count(), rate.window().as_secs().max(1));
    let items = [requests.map(|rate| item("requests", rate)), upstream.map(|rate| item("upstream", rate))];
    value(items.into_iter().flatten().collect::<Vec<_>>().join(", "))
}

/// `RateLimit`, in the structured form of draft-ietf-httpapi-ratelimit-headers.
pub(super) fn rate_limit(requests: Option<Allowance>, upstream: Option<Allowance>) -> HeaderValue {
    let (mut digits, mut text) = (itoa::Buffer::new(), String::with_capacity(64));
    for (name, allowance) in [("requests", requests), ("upstream", upstream)] {
        let Some(allowance) = allowance else { continue };
        let separator = if text.is_empty() { "\"" } else { ", \"" };
        for part in [separator, name, "\";r=", digits.format(allowance.remaining), ";t="] {
            text.push_str(part);
        }
        text.push_str(digits.format(allowance.reset));
    }
    value(text)
}

/// These texts are always valid in a header.
fn value(text: String) -> HeaderValue {
    HeaderValue::try_from(text).unwrap_or_else(|_| HeaderValue::from_static(""))
}
