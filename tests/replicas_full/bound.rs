//! How often the upstream may be called, and how often it was.

use jiff::Timestamp;

/// Tokens a second of all replicas together, and how many may be saved.
pub const RATE: f64 = 20.0;
pub const BURST: f64 = 6.0;
pub const REPLICAS: u32 = 3;

/// Calls that arrive later than they were sent can come together. A machine that does nothing else delays them by less than
/// this, in seconds; one that stands still now and then, by as much as it stands still.
const DELAY: Seconds = 0.25;

/// By how many calls the bound may seem exceeded on a machine that stood still for so long.
pub fn slack(stall: Seconds) -> f64 {
    RATE * DELAY.max(2.0 * stall)
}

/// Seconds since 1970.
pub type Seconds = f64;

pub fn seconds(time: Timestamp) -> Seconds {
    time.as_microsecond() as f64 / 1e6
}

pub fn now() -> Seconds {
    seconds(Timestamp::now())
}

/// What is allowed in addition to `burst + rate × T`.
#[derive(Debug, Clone, Copy)]
pub enum Extra {
    /// One burst: the store has lost what it knew, or was away.
    Burst { from: Seconds, until: Seconds },
    /// So many replicas may spend their part of the rate while the others share all of it.
    CutOff { replicas: u32, from: Seconds, until: Seconds },
}

/// Calls that are allowed between two times.
pub fn allowed(from: Seconds, until: Seconds, extras: &[Extra]) -> f64 {
    let extra = extras.iter().map(|extra| match *extra {
        Extra::Burst { from: begun, until: ended } if begun <= until && ended >= from => BURST,
        Extra::Burst { .. } => 0.0,
        Extra::CutOff { replicas, from: begun, until: ended } => {
            let together = (ended.min(until) - begun.max(from)).max(0.0);
            RATE * f64::from(replicas) / f64::from(REPLICAS) * together
        }
    });
    BURST + RATE * (until - from) + extra.sum::<f64>()
}

/// By how much the calls of the worst interval exceed what is allowed. Negative if they are fewer.
pub fn highest_excess(calls: &[Seconds], extras: &[Extra]) -> f64 {
    let mut calls = calls.to_vec();
    calls.sort_by(f64::total_cmp);
    let mut highest = f64::NEG_INFINITY;
    for (first, from) in calls.iter().enumerate() {
        for (count, until) in calls[first..].iter().enumerate() {
            let count = (count + 1) as f64;
            highest = highest.max(count - allowed(*from, *until, extras));
        }
    }
    highest
}

#[test]
fn the_worst_interval_is_found() {
    let steady = |from: f64, count: i32| (0..count).map(move |n| from + f64::from(n) / RATE);
    // A bucket that was full: the burst at once, and then the rate.
    let mut calls: Vec<_> = std::iter::repeat_n(0.0, 6).chain(steady(0.05, 100)).collect();
    assert!(highest_excess(&calls, &[]).abs() < 1e-6);
    // Ten more in the middle are ten too many, but for what is allowed.
    calls.extend([2.0; 10]);
    assert!((highest_excess(&calls, &[]) - 10.0).abs() < 1e-6);
    let burst = Extra::Burst { from: 1.9, until: 2.1 };
    assert!((highest_excess(&calls, &[burst]) - 4.0).abs() < 1e-6);
    let cut_off = Extra::CutOff { replicas: 1, from: 1.0, until: 1.9 };
    // It helps only the intervals that begin before its end.
    assert!((highest_excess(&calls, &[cut_off]) - 5.0).abs() < 1e-6);
}
