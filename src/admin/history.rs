//! The last fifteen minutes, kept in memory, for the charts of the status page and for scripts that read `/status`.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use serde_json::{Map, Value, json};

use crate::core::outcome::Outcome;
use crate::live::{Counts, Spread, millis, time};

/// The length of the interval of one point.
pub(super) const INTERVAL: Duration = Duration::from_secs(5);

/// The number of points that are kept.
const POINTS: usize = 180;

/// The number of samples in a minute.
const LOOKS_A_MINUTE: usize = 60;

/// The last points, and the counts of the last minute.
#[derive(Debug, Default)]
pub(super) struct History {
    points: Mutex<VecDeque<Point>>,
    /// What had been counted at each sample of the last minute.
    minute: Mutex<VecDeque<Counts>>,
}

/// What happened in one interval.
#[derive(Debug)]
pub(super) struct Point {
    /// Its end.
    pub(super) at: SystemTime,
    pub(super) requests: Spread,
    pub(super) accounts: Vec<(Arc<str>, AccountPoint)>,
    pub(super) waiting: Vec<(Arc<str>, usize)>,
}

/// What happened to one account.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct AccountPoint {
    /// Upstream attempts.
    pub(super) calls: u64,
    /// Tokens a second at the end, if there is a rate.
    pub(super) rate: Option<f64>,
    /// The number of samples in which it was paused.
    pub(super) paused: u32,
    /// The number of samples in which its circuit was not closed.
    pub(super) broken: u32,
}

impl History {
    fn points(&self) -> MutexGuard<'_, VecDeque<Point>> {
        // Each critical section is one complete change.
        self.points.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn push(&self, point: Point) {
        let mut points = self.points();
        if points.len() == POINTS {
            points.pop_front();
        }
        points.push_back(point);
    }

    /// Adds what has been counted by now, once a second.
    pub(super) fn sample(&self, counts: Counts) {
        let mut minute = self.minute.lock().unwrap_or_else(PoisonError::into_inner);
        if minute.len() == LOOKS_A_MINUTE {
            minute.pop_front();
        }
        minute.push_back(counts);
    }

    /// What was counted in the last minute, or since the start if that is not as long ago. `now` is all that has been
    /// counted by now.
    pub(super) fn last_minute(&self, now: &Counts) -> Counts {
        let minute = self.minute.lock().unwrap_or_else(PoisonError::into_inner);
        match minute.front() {
            Some(first) if minute.len() == LOOKS_A_MINUTE => now.since(first),
            _ => now.clone(),
        }
    }

    /// The history as `/status` shows it. Zero counts are left out of a point.
    pub(super) fn to_json(&self) -> Value {
        let points: Vec<_> = self.points().iter().map(Point::to_json).collect();
        json!({"interval_seconds": INTERVAL.as_secs(), "points": points})
    }
}

impl Point {
    fn to_json(&self) -> Value {
        let by_outcome = |value: &dyn Fn(Outcome) -> Option<Value>| {
            let named = |outcome: Outcome| Some((outcome.as_str().to_owned(), value(outcome)?));
            Value::from(Outcome::ALL.into_iter().filter_map(named).collect::<Map<_, _>>())
        };
        let quantile = |share| move |outcome| Some(json!(millis(self.requests.quantile(outcome, share)?)));
        let count = |outcome| Some(self.requests.count(outcome)).filter(|count| *count > 0).map(|count| json!(count));
        let accounts = self.accounts.iter().map(|(name, account)| (name.to_string(), account.to_json()));
        let waiting = self.waiting.iter().map(|(team, calls)| (team.to_string(), json!(calls)));
        json!({
            "at": time(self.at),
            "requests": by_outcome(&count),
            "p50_ms": by_outcome(&quantile(0.5)),
            "p95_ms": by_outcome(&quantile(0.95)),
            "accounts": accounts.collect::<Map<_, _>>(),
            "waiting": waiting.collect::<Map<_, _>>(),
        })
    }
}

impl AccountPoint {
    fn to_json(self) -> Value {
        json!({
            "calls": self.calls,
            "rate_per_second": self.rate.map(|rate| (rate * 1000.0).round() / 1000.0),
            "paused_seconds": self.paused,
            "circuit_broken_seconds": self.broken,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::clock::Clock;
    use crate::core::error::Reason;
    use crate::live::{Latencies, Live};
    use crate::request::context::RequestContext;
    use crate::request::ended::{RequestEnded, RequestSubscriber};

    #[tokio::test(start_paused = true)]
    async fn the_last_minute_is_complete_at_once_and_ends_after_a_minute() {
        let (clock, history) = (Clock::new(), History::default());
        let live = Live::new(clock);
        let subscriber = live.subscriber(false);
        let refuse = || {
            let context = RequestContext::default();
            context.reason.set(Reason::QueueFull).unwrap();
            let (outcome, now) = (Outcome::Refused, clock.now());
            let context = Arc::new(context);
            subscriber.ended(&RequestEnded {
                context,
                received: now,
                ended: now,
                outcome,
                status: 503,
                bytes: 0,
                is_traced: false,
            });
        };
        let told = || {
            let minute = history.last_minute(&live.counts());
            (minute.requests(Outcome::Refused), minute.reasons().first().map_or(0, |(_, count)| *count))
        };
        refuse();
        assert_eq!(told(), (1, 1), "before the first sample");
        for second in 1..=90 {
            history.sample(live.counts());
            let expected = if second < 60 { 1 } else { 0 };
            assert_eq!(told(), (expected, expected), "after {second} s");
        }
        refuse();
        assert_eq!(told(), (1, 1));
    }

    #[test]
    fn a_point_leaves_out_zero_counts_and_old_points_are_dropped() {
        let (latencies, history) = (Latencies::default(), History::default());
        latencies.count(Outcome::Hit, Duration::from_millis(1));
        for second in 0..=POINTS as u64 {
            history.push(Point {
                at: SystemTime::UNIX_EPOCH + Duration::from_secs(second),
                requests: latencies.read(),
                accounts: vec![("main".into(), AccountPoint { calls: 2, rate: Some(5.0), paused: 1, broken: 0 })],
                waiting: vec![("dashboards".into(), 3)],
            });
        }
        let json = history.to_json();
        let points = json["points"].as_array().unwrap();
        assert_eq!((points.len(), &points[0]["at"]), (POINTS, &json!("1970-01-01T00:00:01.000Z")));
        assert_eq!(points[0]["requests"], json!({"hit": 1}));
        assert_eq!(points[0]["p95_ms"].as_object().unwrap().len(), 1);
        let account = json!({"calls": 2, "rate_per_second": 5.0, "paused_seconds": 1, "circuit_broken_seconds": 0});
        assert_eq!((&points[0]["accounts"]["main"], &points[0]["waiting"]["dashboards"]), (&account, &json!(3)));
    }
}
