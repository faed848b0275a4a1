//! What is known of query jobs apart from their stored answers.
//!
//! A stored answer expires, or is evicted, or is not stored at all because the configuration says so. What it told of
//! its job stays true: that the job has ended, when its results end, and when Twilio may be polled again. This table
//! keeps that in memory, for the jobs that answers were last about. It also keeps which pages of results Twilio has
//! named: if one of those is gone, so are the results; an unknown page may never have existed.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::purge::Purge;
use crate::core::clock::{Instant, Moment};
use crate::request::key::Key;
use crate::twilio::endpoint::Operation;
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
    /// It is lost only because a poll was answered 404, as can happen right after a submission. A later status shows that
    /// it exists.
    pub(crate) was_not_found: bool,
    /// When its results end.
    pub(crate) results_end: Option<Moment>,
    /// Its status must not be polled before this.
    pub(crate) next_poll: Option<Moment>,
    /// The `Retry-After` of its last status.
    pub(crate) wait: Option<Duration>,
    /// The key of the submission that made it.
    pub(crate) submission: Option<Key>,
}

/// The most jobs of a generation, and the most pages. There are two generations of each, which together take at most
/// 12 MiB.
const GENERATION: usize = 16_384;

/// The known jobs, under the keys of their statuses. Cheap to clone; all clones share one table.
#[derive(Debug, Clone, Default)]
pub(crate) struct KnownJobs {
    jobs: Arc<Mutex<Generations<KnownJob>>>,
    /// The pages that results have named as their next ones, under the keys of requests with their tokens alone.
    pages: Arc<Mutex<Generations<()>>>,
}

/// What was recorded last. It is forgotten when at least [`GENERATION`] others were recorded after it.
#[derive(Debug, Default)]
struct Generations<V> {
    young: HashMap<Key, V>,
    old: HashMap<Key, V>,
}

impl<V: Copy + Default> Generations<V> {
    fn get(&self, key: &Key) -> Option<V> {
        self.young.get(key).or_else(|| self.old.get(key)).copied()
    }

    fn update(&mut self, key: Key, change: impl FnOnce(&mut V)) {
        let Self { young, old } = self;
        let mut known = young.remove(&key).or_else(|| old.remove(&key)).unwrap_or_default();
        change(&mut known);
        if young.len() >= GENERATION {
            *old = std::mem::take(young);
        }
        young.insert(key, known);
    }
}

impl KnownJobs {
    /// What is known of a job; `None` if no answer was about it.
    pub(crate) fn get(&self, key: &Key) -> Option<KnownJob> {
        lock(&self.jobs).get(key)
    }

    /// Records what an answer tells of a job.
    pub(crate) fn update(&self, key: Key, change: impl FnOnce(&mut KnownJob)) {
        lock(&self.jobs).update(key, change);
    }

    /// Records that results have named this page of theirs.
    pub(crate) fn name_page(&self, page: Key) {
        lock(&self.pages).update(page, |()| {});
    }

    /// Whether results have named this page.
    pub(crate) fn is_named(&self, page: &Key) -> bool {
        lock(&self.pages).get(page).is_some()
    }

    /// Forgets what statuses said that are purged: how their jobs ended, until when results exist, and when to poll
    /// again. That a job is lost stays known, because it must not be shared.
    pub(super) fn purge(&self, which: &Purge) {
        let is_purged = |key: &Key| match which {
            Purge::All | Purge::Account(_) => true,
            Purge::Operation(operation) => *operation == Operation::JobStatus,
            Purge::Data(_) => false,
            Purge::Key(_) => which.matches(key, None),
        };
        let mut generations = lock(&self.jobs);
        let Generations { young, old } = &mut *generations;
        for (_, known) in young.iter_mut().chain(old).filter(|(key, _)| is_purged(key)) {
            let KnownJob { completed, lost, was_not_found, submission, .. } = *known;
            *known = KnownJob { completed, lost, was_not_found, submission, ..KnownJob::default() };
        }
    }
}

fn lock<V>(generations: &Mutex<Generations<V>>) -> MutexGuard<'_, Generations<V>> {
    // A panic can lose at most what was being recorded.
    generations.lock().unwrap_or_else(PoisonError::into_inner)
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
        let generations = lock(&jobs.jobs);
        assert!(generations.young.len() <= GENERATION && generations.old.len() <= GENERATION);
    }

    #[test]
    fn a_purge_of_statuses_forgets_what_they_said() {
        let lost = Some(Instant::now());
        for (which, is_forgotten) in [
            (Purge::All, [true, true]),
            (Purge::Account("a".to_owned()), [true, true]),
            (Purge::Operation(Operation::JobStatus), [true, true]),
            (Purge::Operation(Operation::JobSubmit), [false, false]),
            (Purge::Data("a".to_owned()), [false, false]),
            (Purge::Key(key(1).to_string()), [false, true]),
        ] {
            let jobs = KnownJobs::default();
            for n in 0..2 {
                jobs.update(key(n), |known| (known.ended, known.lost) = (Some(State::Failed), lost));
            }
            jobs.purge(&which);
            let known = [0, 1].map(|n| jobs.get(&key(n)).unwrap());
            assert_eq!(known.map(|known| known.ended.is_none()), is_forgotten, "{which:?}");
            assert!(known.iter().all(|known| known.lost == lost), "{which:?}");
        }
    }
}
