//! What is known of query jobs apart from their stored answers.
//!
//! A stored answer expires, or is evicted, or is not stored at all because the configuration says so. What it told of
//! its job stays true: that the job has ended, when its results end, and when Twilio may be polled again. This table
//! keeps that in memory, for the jobs that answers were last about.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::core::clock::{Instant, Moment};
use crate::request::key::Key;
use crate::twilio::job::State;

/// What is known of one job.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct KnownJob {
    /// The state in which it ended, from its status.
    pub(crate) ended: Option<State>,
    /// When the newest answer that says that it has completed was requested.
    pub(crate) completed: Option<Instant>,
    /// When the newest answer was requested that says that it failed or was cancelled, or that it or its results no
    /// longer exist.
    pub(crate) lost: Option<Instant>,
    /// When its results end.
    pub(crate) results_end: Option<Moment>,
    /// Its status must not be polled before this.
    pub(crate) next_poll: Option<Moment>,
    /// The `Retry-After` of its last status.
    pub(crate) wait: Option<Duration>,
}

/// The most jobs of a generation. There are two, which together take at most 8 MiB.
const GENERATION: usize = 16_384;

/// The known jobs, under the keys of their statuses. Cheap to clone; all clones share one table.
#[derive(Debug, Clone, Default)]
pub(crate) struct KnownJobs(Arc<Mutex<Generations>>);

/// A job is forgotten when at least [`GENERATION`] other jobs were recorded after it.
#[derive(Debug, Default)]
struct Generations {
    young: HashMap<Key, KnownJob>,
    old: HashMap<Key, KnownJob>,
}

impl KnownJobs {
    /// What is known of a job; `None` if no answer was about it.
    pub(crate) fn get(&self, key: &Key) -> Option<KnownJob> {
        let generations = self.lock();
        generations.young.get(key).or_else(|| generations.old.get(key)).copied()
    }

    /// Records what an answer tells of a job.
    pub(crate) fn update(&self, key: Key, change: impl FnOnce(&mut KnownJob)) {
        let mut generations = self.lock();
        let Generations { young, old } = &mut *generations;
        let mut known = young.remove(&key).or_else(|| old.remove(&key)).unwrap_or_default();
        change(&mut known);
        if young.len() >= GENERATION {
            *old = std::mem::take(young);
        }
        young.insert(key, known);
    }

    fn lock(&self) -> MutexGuard<'_, Generations> {
        // A panic can lose at most the job that was being recorded.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: usize) -> Key {
        Key::from_bytes(*blake3::hash(&n.to_le_bytes()).as_bytes())
    }

    #[test]
    fn the_jobs_of_the_last_answers_are_known() {
        let jobs = KnownJobs::default();
        assert!(jobs.get(&key(0)).is_none());
        jobs.update(key(0), |known| known.ended = Some(State::Failed));
        for n in 1..=GENERATION {
            jobs.update(key(n), |_| {});
        }
        assert_eq!(jobs.get(&key(0)).unwrap().ended, Some(State::Failed));
        // An update keeps what was known, and the job with it.
        jobs.update(key(0), |known| known.wait = Some(Duration::from_secs(1)));
        for n in 1..3 * GENERATION {
            jobs.update(key(n), |_| {});
            if n == GENERATION / 2 {
                assert_eq!(jobs.get(&key(0)).unwrap().ended, Some(State::Failed));
            }
        }
        assert!(jobs.get(&key(0)).is_none());
        let generations = jobs.lock();
        assert!(generations.young.len() <= GENERATION && generations.old.len() <= GENERATION);
    }
}
