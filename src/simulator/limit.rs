//! The rate limit: how many requests each user may make.
//!
//! A token bucket for each user name. It fills at the configured rate and holds one second's worth. The published
//! headers of a 429 are made here too: the limit, what is left of it, and after how many whole seconds the next request
//! can succeed. Published material names a second family of headers without saying what they contain; here they repeat
//! the first family, and the configuration is the rate as written. There is no `Retry-After`, because none is
//! documented on a 429.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use http::{HeaderName, HeaderValue};
use tokio::time::Instant;

use crate::core::units::Rate;

use super::error::ApiError;

/// Users with their own bucket. Further users share one.
const MOST_USERS: usize = 1000;

/// The buckets of all users.
pub struct Limiter {
    rate: Option<Rate>,
    /// For each user: the time at which a bucket without a limit would have paid for all requests so far.
    paid_until: Mutex<HashMap<String, Instant>>,
}

impl Limiter {
    /// Without a rate there is no limit.
    pub fn new(rate: Option<Rate>) -> Self {
        Self { rate, paid_until: Mutex::default() }
    }

    /// Takes one request from `user`'s bucket, or refuses it.
    pub fn take(&self, user: &str, now: Instant) -> Result<(), ApiError> {
        let Some(rate) = self.rate else { return Ok(()) };
        let mut everyone = self.paid_until.lock().unwrap_or_else(PoisonError::into_inner);
        let mut user = user;
        if everyone.len() >= MOST_USERS && !everyone.contains_key(user) {
            everyone.retain(|_, paid_until| *paid_until > now);
            if everyone.len() >= MOST_USERS {
                user = "";
            }
        }
        let paid_until = everyone.get(user).map_or(now, |paid_until| (*paid_until).max(now));
        let slack = rate.period() * (burst(rate) - 1);
        let ahead = paid_until.duration_since(now);
        if ahead > slack {
            return Err(self.refusal(ahead - slack));
        }
        everyone.insert(user.to_owned(), paid_until + rate.period());
        Ok(())
    }

    /// A 429 that says that a request can succeed after `wait`.
    pub fn refusal(&self, wait: Duration) -> ApiError {
        let limit = self.rate.map_or(1, burst);
        let seconds = wait.as_nanos().div_ceil(1_000_000_000).max(1);
        let config = self.rate.map_or_else(|| "unlimited".to_owned(), |rate| rate.to_string());
        let headers = [
            ("x-ratelimit-limit", limit.to_string()),
            ("x-ratelimit-remaining", "0".to_owned()),
            ("x-ratelimit-reset", seconds.to_string()),
            ("x-rate-limit-limit", limit.to_string()),
            ("x-rate-limit-remaining", "0".to_owned()),
            ("x-rate-limit-config", config),
        ];
        headers.into_iter().fold(ApiError::too_many_requests(), |error, (name, value)| {
            match HeaderValue::try_from(value) {
                Ok(value) => error.with_header(HeaderName::from_static(name), value),
                Err(_) => error,
            }
        })
    }
}

/// One second's worth, but at least one.
fn burst(rate: Rate) -> u32 {
    let burst = Duration::from_secs(1).as_nanos() / rate.period().as_nanos().max(1);
    u32::try_from(burst).unwrap_or(u32::MAX).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::units::parse_rate;

    fn limiter(rate: &str) -> Limiter {
        Limiter::new(parse_rate(rate).unwrap())
    }

    fn header(error: &ApiError, name: &str) -> String {
        let found = error.headers.iter().find(|(n, _)| n.as_str() == name);
        found.unwrap().1.to_str().unwrap().to_owned()
    }

    #[tokio::test(start_paused = true)]
    async fn a_burst_passes_and_then_the_rate_holds() {
        let limiter = limiter("5/s");
        for _ in 0..5 {
            assert_eq!(limiter.take("AC1", Instant::now()), Ok(()));
        }
        let refused = limiter.take("AC1", Instant::now()).unwrap_err();
        assert_eq!(refused.code, 20429);
        for (name, value) in [
            ("x-ratelimit-limit", "5"),
            ("x-ratelimit-remaining", "0"),
            ("x-ratelimit-reset", "1"),
            ("x-rate-limit-limit", "5"),
            ("x-rate-limit-remaining", "0"),
            ("x-rate-limit-config", "5/s"),
        ] {
            assert_eq!(header(&refused, name), value, "{name}");
        }
        assert_eq!(limiter.take("AC2", Instant::now()), Ok(()), "another user is not affected");
        tokio::time::advance(Duration::from_millis(199)).await;
        assert!(limiter.take("AC1", Instant::now()).is_err());
        tokio::time::advance(Duration::from_millis(1)).await;
        assert_eq!(limiter.take("AC1", Instant::now()), Ok(()));
        assert!(limiter.take("AC1", Instant::now()).is_err());
        tokio::time::advance(Duration::from_secs(10)).await;
        for _ in 0..5 {
            assert_eq!(limiter.take("AC1", Instant::now()), Ok(()));
        }
        assert!(limiter.take("AC1", Instant::now()).is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn slow_rates_say_how_long_to_wait() {
        let limiter = limiter("2/min");
        assert_eq!(limiter.take("AC1", Instant::now()), Ok(()));
        tokio::time::advance(Duration::from_millis(500)).await;
        let refused = limiter.take("AC1", Instant::now()).unwrap_err();
        assert_eq!(header(&refused, "x-ratelimit-reset"), "30");
        assert_eq!(header(&refused, "x-ratelimit-limit"), "1");
        tokio::time::advance(Duration::from_secs(30)).await;
        assert_eq!(limiter.take("AC1", Instant::now()), Ok(()));
    }

    #[tokio::test(start_paused = true)]
    async fn users_are_bounded_and_no_rate_is_no_limit() {
        let limited = limiter("1/h");
        for user in 0..5000 {
            let _ = limited.take(&user.to_string(), Instant::now());
        }
        assert!(limited.paid_until.lock().unwrap().len() <= MOST_USERS + 1);
        let free = limiter("0/s");
        for _ in 0..1000 {
            assert_eq!(free.take("AC1", Instant::now()), Ok(()));
        }
    }
}
