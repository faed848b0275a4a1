use proptest::prelude::*;

use super::*;
use crate::core::limiter::{Limiter, Quota};

const S: Duration = Duration::from_secs(1);
const MS: Duration = Duration::from_millis(1);

fn limited(limit: u64, reset: u64) -> RateLimitHeaders {
    RateLimitHeaders {
        limit: Some(limit),
        remaining: Some(0),
        reset: Some(Duration::from_secs(reset)),
        concurrent: None,
    }
}

fn refuse(adaptive_rate: &mut AdaptiveRate, now: Instant) {
    adaptive_rate.rate_limited(&RateLimitHeaders::default(), now, 1, now, now + S);
}

#[test]
fn without_a_refusal_the_configured_rate_holds() {
    let start = Instant::now();
    let mut adaptive_rate = AdaptiveRate::new(Some(5.0), start);
    for n in 0..1000 {
        adaptive_rate.accepted(&RateLimitHeaders::default(), start + n * MS);
    }
    assert_eq!(adaptive_rate.rate(start + S), Some(5.0));
    assert!(!adaptive_rate.is_learnt(start + S));
    assert_eq!(AdaptiveRate::new(None, start).rate(start), None);
}

#[test]
fn is_back_at_the_configured_rate_within_a_minute_of_the_last_429() {
    let start = Instant::now();
    let mut adaptive_rate = AdaptiveRate::new(Some(100.0), start);
    for n in 0..10 {
        refuse(&mut adaptive_rate, start + n * 2 * S);
    }
    let last = start + 18 * S;
    assert!(adaptive_rate.rate(last + S).unwrap() < 10.0);
    assert_eq!(adaptive_rate.rate(last + 60 * S), Some(100.0));
}

#[test]
fn refusals_of_what_was_sent_before_lower_the_rate_once() {
    let start = Instant::now();
    let mut adaptive_rate = AdaptiveRate::new(Some(100.0), start);
    for _ in 0..100 {
        adaptive_rate.accepted(&RateLimitHeaders::default(), start);
    }
    refuse(&mut adaptive_rate, start + S);
    let once = adaptive_rate.rate(start + 2 * S);
    for n in 0..8 {
        adaptive_rate.rate_limited(&RateLimitHeaders::default(), start + S / 2, 8, start + S + n * MS, start + 2 * S);
    }
    assert_eq!(adaptive_rate.rate(start + 2 * S), once);
}

#[test]
fn responses_to_what_was_under_way_raise_the_first_estimate() {
    let start = Instant::now();
    // Of the first six calls one is refused: before the others are answered, or after some of them.
    let first_six = |before: u32, after: u32, stated: &RateLimitHeaders| {
        let mut adaptive_rate = AdaptiveRate::new(Some(5.0), start);
        for _ in 0..before {
            adaptive_rate.accepted(&RateLimitHeaders::default(), start);
        }
        adaptive_rate.rate_limited(stated, start, 6, start, start + S);
        for _ in 0..after {
            adaptive_rate.accepted(&RateLimitHeaders::default(), start + 50 * MS);
        }
        adaptive_rate.rate(start + S).unwrap()
    };
    assert!(
        (2.3..=2.5).contains(&first_six(0, 0, &RateLimitHeaders::default())),
        "nothing is known, and others may use the account"
    );
    assert!((4.7..=5.0).contains(&first_six(0, 5, &RateLimitHeaders::default())));
    assert!((4.7..=5.0).contains(&first_six(1, 4, &RateLimitHeaders::default())));
    assert!((2.8..=3.0).contains(&first_six(2, 1, &RateLimitHeaders::default())));
    assert!(first_six(0, 5, &limited(4, 1)) <= 4.0, "more than is stated is not granted");
    // Responses to calls that were sent later do not raise it.
    let mut adaptive_rate = AdaptiveRate::new(Some(5.0), start);
    refuse(&mut adaptive_rate, start);
    for _ in 0..5 {
        adaptive_rate.accepted(&RateLimitHeaders::default(), start + S);
    }
    assert!(adaptive_rate.rate(start + S).unwrap() <= 2.5);
}

#[test]
fn follows_the_limit_that_twilio_states() {
    let start = Instant::now();
    let mut adaptive_rate = AdaptiveRate::new(Some(100.0), start);
    adaptive_rate.rate_limited(&limited(5, 1), start, 1, start, start + S);
    let rate = adaptive_rate.rate(start + S).unwrap();
    assert!((4.5..=5.0).contains(&rate), "{rate}");
    // Five in a window of which 45 s are left are no more than one in nine seconds.
    let mut adaptive_rate = AdaptiveRate::new(Some(100.0), start);
    adaptive_rate.rate_limited(&limited(5, 45), start, 1, start, start + 45 * S);
    assert!(adaptive_rate.rate(start + 45 * S).unwrap() <= 5.0 / 45.0);
    // Stated by a response other than a 429: a bound, but no estimate.
    let mut adaptive_rate = AdaptiveRate::new(Some(100.0), start);
    let stated = RateLimitHeaders { limit: Some(20), remaining: Some(7), ..RateLimitHeaders::default() };
    assert_eq!(adaptive_rate.accepted(&stated, start), None);
    assert_eq!((adaptive_rate.rate(start), adaptive_rate.rate(start + 61 * S)), (Some(20.0), Some(100.0)));
    assert_eq!(
        adaptive_rate.accepted(&limited(20, 3), start),
        Some(2 * S),
        "nothing is left for two seconds and a part of one"
    );
    assert_eq!(adaptive_rate.accepted(&limited(20, 1), start), None, "the next may begin at any moment");
}

#[test]
fn a_stated_limit_never_lifts_the_configured_rate() {
    let start = Instant::now();
    let mut adaptive_rate = AdaptiveRate::new(Some(5.0), start);
    adaptive_rate.accepted(&RateLimitHeaders { limit: Some(500), ..RateLimitHeaders::default() }, start);
    assert_eq!(adaptive_rate.rate(start), Some(5.0));
}

#[test]
fn a_429_about_concurrency_lowers_the_concurrency_alone() {
    let start = Instant::now();
    let mut adaptive_rate = AdaptiveRate::new(Some(50.0), start);
    let stated = RateLimitHeaders { concurrent: Some(100), ..RateLimitHeaders::default() };
    adaptive_rate.rate_limited(&stated, start, 8, start, start + S);
    assert_eq!((adaptive_rate.rate(start), adaptive_rate.concurrency(10, start)), (Some(50.0), 7));
    assert!(adaptive_rate.concurrency(10, start + 30 * S) > 7);
    assert_eq!(adaptive_rate.concurrency(10, start + 60 * S), 10);
    adaptive_rate.rate_limited(&stated, start, 1, start, start + S);
    assert_eq!(adaptive_rate.concurrency(10, start), 1, "never none");
}

proptest! {
    /// Whatever Twilio answers, the rate is never above the configured rate and never zero, and returns to the
    /// configured rate after a while.
    #[test]
    fn stays_within_bounds(
        ceiling in proptest::option::of(0.01f64..1000.0),
        events in proptest::collection::vec((0u64..5000, 0u8..4, 0u64..1000, 0u64..100), 1..200),
    ) {
        let start = Instant::now();
        let (mut adaptive_rate, mut now) = (AdaptiveRate::new(ceiling, start), start);
        for (step, kind, limit, reset) in events {
            now += Duration::from_millis(step);
            let stated = limited(limit, reset.max(1));
            match kind {
                0 => refuse(&mut adaptive_rate, now),
                1 => adaptive_rate.rate_limited(&stated, now, 3, now, now + Duration::from_secs(reset)),
                2 => drop(adaptive_rate.accepted(&stated, now)),
                _ => drop(adaptive_rate.accepted(&RateLimitHeaders::default(), now)),
            }
            let rate = adaptive_rate.rate(now);
            prop_assert!(rate.is_some() || ceiling.is_none());
            if let Some(rate) = rate {
                prop_assert!(rate.is_finite() && rate >= MIN_RATE.min(ceiling.unwrap_or(MIN_RATE)), "{rate}");
                prop_assert!(ceiling.is_none_or(|ceiling| rate <= ceiling), "{rate} above {ceiling:?}");
            }
            prop_assert!((1..=10).contains(&adaptive_rate.concurrency(10, now)));
        }
        prop_assert_eq!(adaptive_rate.rate(now + Duration::from_secs(400)), ceiling);
    }
}

/// An upstream with a limit that the gateway does not know.
#[derive(Debug, Clone, Copy)]
enum Kind {
    /// A bucket that fills at the limit and holds a second's worth.
    Bucket,
    /// A fixed number in each whole second.
    Window,
}

struct Hidden {
    kind: Kind,
    limit: f64,
    tokens: f64,
    at: f64,
}

impl Hidden {
    /// Time until it would accept again, if it does not now.
    fn ask(&mut self, seconds: f64) -> Result<(), f64> {
        match self.kind {
            Kind::Bucket => self.tokens = (self.tokens + (seconds - self.at) * self.limit).min(self.limit),
            Kind::Window if seconds.floor() > self.at.floor() => self.tokens = self.limit,
            Kind::Window => {}
        }
        self.at = seconds;
        if self.tokens >= 1.0 {
            self.tokens -= 1.0;
            return Ok(());
        }
        Err(match self.kind {
            Kind::Bucket => (1.0 - self.tokens) / self.limit,
            Kind::Window => seconds.floor() + 1.0 - seconds,
        })
    }
}

/// What became of the attempts of one simulated second.
#[derive(Debug, Clone, Copy, Default)]
struct Second {
    accepted: u32,
    refused: u32,
}

/// Endless demand against a hidden limit that changes, each answer 80 ms away, at most 10 calls at once. `states` says
/// whether a 429 tells how long to stay away.
fn simulate(kind: Kind, ceiling: Option<f64>, limits: &[(u64, f64)], seconds: u64, states: bool) -> Vec<Second> {
    const LATENCY: u64 = 80;
    let start = Instant::now();
    let at = |ms: u64| start + Duration::from_millis(ms);
    let mut hidden = Hidden { kind, limit: limits[0].1, tokens: limits[0].1, at: 0.0 };
    let mut adaptive_rate = AdaptiveRate::new(ceiling, start);
    let mut limiter = ceiling.map(|ceiling| Limiter::full(Quota::even(ceiling), start));
    let mut in_flight: Vec<(u64, Result<(), f64>)> = Vec::new();
    let (mut paused_until, mut in_a_row) = (0u64, 0u32);
    let mut done = vec![Second::default(); seconds as usize];
    for ms in 0..seconds * 1000 {
        if let Some((_, limit)) = limits.iter().find(|(from, _)| from * 1000 == ms) {
            hidden.limit = *limit;
        }
        let ended: Vec<_> = in_flight.extract_if(.., |(sent, _)| *sent + LATENCY == ms).collect();
        let at_once = in_flight.len() as u32 + ended.len() as u32;
        for (sent, answer) in ended {
            match answer {
                Ok(()) => {
                    in_a_row = 0;
                    done[(ms / 1000) as usize].accepted += 1;
                    adaptive_rate.accepted(&RateLimitHeaders::default(), at(ms));
                }
                Err(wait) => {
                    in_a_row += 1;
                    done[(ms / 1000) as usize].refused += 1;
                    let backoff = (250 << in_a_row.min(6)) / 2 * 3 / 4;
                    let pause = if states { (wait.ceil() * 1000.0) as u64 } else { backoff };
                    paused_until = paused_until.max(ms + pause);
                    adaptive_rate.rate_limited(
                        &RateLimitHeaders::default(),
                        at(sent),
                        at_once,
                        at(ms),
                        at(paused_until),
                    );
                }
            }
        }
        let now = at(ms);
        match (&mut limiter, adaptive_rate.rate(now).map(Quota::even)) {
            (Some(limiter), Some(quota)) => limiter.set_quota(quota, now),
            (limiter, quota) => *limiter = quota.map(|quota| Limiter::full(quota, now)),
        }
        while ms >= paused_until && in_flight.len() < 10 && limiter.as_ref().is_none_or(|limiter| limiter.try_take(now))
        {
            in_flight.push((ms, hidden.ask(ms as f64 / 1000.0)));
        }
    }
    done
}

/// The share of the limit that was used, and of attempts that were refused.
fn measured(seconds: &[Second], limit: f64) -> (f64, f64) {
    let (accepted, refused) =
        seconds.iter().fold((0, 0), |sum, second| (sum.0 + second.accepted, sum.1 + second.refused));
    let used = f64::from(accepted) / (limit * seconds.len() as f64);
    (used, f64::from(refused) / f64::from((accepted + refused).max(1)))
}

/// Upstreams of both kinds, their limits changing midway; measured from a minute after the start and after the change.
fn follow(states: bool, least_used: f64, most_refused: f64) {
    for kind in [Kind::Bucket, Kind::Window] {
        for ceiling in [None, Some(1000.0)] {
            for (before, after) in [(2.0, 20.0), (20.0, 2.0), (5.0, 100.0), (100.0, 5.0)] {
                let run = simulate(kind, ceiling, &[(0, before), (240, after)], 480, states);
                for (from, limit) in [(60, before), (300, after)] {
                    let (used, refused) = measured(&run[from..from + 180], limit);
                    let case = format!("{kind:?}, configured {ceiling:?}, {before} and then {after}: at {limit}");
                    assert!(used >= least_used, "{case}, {used:.3} of it was used");
                    assert!(refused <= most_refused, "{case}, {refused:.4} of the attempts were refused");
                }
            }
        }
    }
}

/// As Twilio documents it: a 429 says when to come back.
#[test]
fn finds_and_follows_an_unknown_limit() {
    follow(true, 0.9, 0.02);
}

#[test]
fn finds_and_follows_an_unknown_limit_where_429s_name_no_pause() {
    follow(false, 0.8, 0.04);
}

#[test]
fn a_configured_rate_that_twilio_grants_is_used_up() {
    let run = simulate(Kind::Bucket, Some(5.0), &[(0, 50.0)], 60, true);
    let (used, refused) = measured(&run, 5.0);
    assert!(used >= 0.98 && refused == 0.0, "{used} {refused}");
}
