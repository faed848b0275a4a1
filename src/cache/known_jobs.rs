//! What is known of query jobs apart from their stored answers.
//!
//! A stored answer expires, or is evicted, or is not stored at all because the configuration says so. What it told of
//! its job stays true: that the job has ended, when its results end, and when Twilio may be polled again. This table
//! keeps that in memory, for the jobs of the last answers. It also keeps which pages of results Twilio has
//! named: if Twilio no longer has one of those, the results have expired. An unknown page may never have existed.
//!
//! Where replicas share a store, they tell each other there which jobs are lost for good, and [notes](super::job_notes)
//! of submissions and polls.
//!
//! For fewer jobs it keeps what their last polls brought. So the wait before the next poll holds without a stored
//! status. For submissions whose end is unknown it keeps their `Idempotency-Key`.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::{HeaderValue, StatusCode};

use super::job_notes::JobNotes;
use super::purge::Purge;
use super::stored::StoredResponse;
use crate::accounts::Account;
use crate::core::clock::{Clock, Instant, Moment};
use crate::core::error::GatewayError;
use crate::request::grants::{Scope, SharedGrants};
use crate::request::key::Key;
use crate::request::response::Representation;
use crate::twilio::endpoint::Operation;
use crate::twilio::job::{self, Job, State};

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
    /// It is lost only because a poll was answered 404, as can happen right after a submission. A later status shows
    /// that it exists.
    pub(crate) was_not_found: bool,
    /// When its results end.
    pub(crate) results_end: Option<Moment>,
    /// Its status must not be polled before this.
    pub(crate) next_poll: Option<Moment>,
    /// The `Retry-After` of its last status.
    pub(crate) wait: Option<Duration>,
    /// The key of the submission that made it.
    pub(crate) submission: Option<Key>,
    /// When other replicas were last asked whether it is lost.
    pub(crate) asked: Option<Instant>,
}

impl KnownJob {
    /// Whether it is lost, and no later status can show that it exists.
    pub(crate) fn is_lost_for_good(&self) -> bool {
        self.lost.is_some() && !self.was_not_found
    }
}

/// When the results of a job end, as the `stored` answer to a poll says.
pub(crate) fn results_end(stored: &StoredResponse, clock: Clock) -> Option<Moment> {
    let Representation { status, body, .. } = &*stored.representation;
    let job = Job::read(body).filter(|job| *status == StatusCode::OK && job.state == State::Completed)?;
    let made = clock.wall_now().checked_sub(stored.age(clock.moment()))?;
    Some(stored.made.after(job.retained(made)?))
}

/// Whether this status of a completed job is no answer any more. It is kept because it says when the results have
/// ended, also after a restart.
pub(crate) fn is_over(status: &StoredResponse, now: Moment) -> bool {
    let job = || Job::read(&status.representation.body);
    status.age(now) > status.lifetimes.fresh && job().is_some_and(|job| job.state == State::Completed)
}

/// What replicas tell each other is lost has a scope of its own. Those of policies are hashes.
const LOST: Scope = *b"insights-gateway/lost-query-jobs";

/// How often a replica asks at most whether others know that a job is lost.
const ASK_AGAIN: Duration = Duration::from_millis(500);

/// The most jobs of a generation, and the most pages. There are two generations of each, which together take at most
/// 12 MiB.
const GENERATION: usize = 16_384;

/// The known jobs, under the keys of their statuses. Cheap to clone; all clones share one table.
#[derive(Debug, Clone, Default)]
pub(crate) struct KnownJobs {
    jobs: Arc<Mutex<RecentEntries<KnownJob, GENERATION>>>,
    /// The pages that results have named as their next ones, under the keys of requests with their tokens alone.
    pages: Arc<Mutex<RecentEntries<(), GENERATION>>>,
    /// What the last polls brought, under the same keys as the jobs.
    polls: Arc<Mutex<RecentEntries<LastPolls, FEW_ENTRIES>>>,
    /// Under the keys of submissions: the last one, if its end is unknown.
    uncertain: Arc<Mutex<RecentEntries<Option<UncertainSubmission>, FEW_ENTRIES>>>,
    /// Which jobs are lost, as the replicas tell each other.
    shared: Option<Arc<dyn SharedGrants>>,
    /// The notes of all replicas.
    notes: Option<Arc<dyn JobNotes>>,
}

/// A submission whose end is unknown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct UncertainSubmission {
    /// Its `Idempotency-Key`.
    pub(crate) key: HeaderValue,
    /// When that key was made.
    pub(crate) made: Moment,
    /// Since when its end is unknown.
    pub(crate) since: Moment,
    /// The other replicas have known it. If they know none any more, one of them has learnt the end.
    pub(crate) is_shared: bool,
}

/// What the last polls of a job brought, for the time in which it must not be polled and its status is not stored.
#[derive(Debug, Clone, Default)]
pub(crate) struct LastPolls {
    /// The last answer that says something about the job, and when it arrived.
    pub(crate) answer: Option<(Arc<Representation>, Moment)>,
    /// How the last poll failed, if it did.
    pub(crate) failure: Option<Result<Arc<Representation>, GatewayError>>,
}

/// The most jobs of a generation whose last polls are kept, and the most submissions.
const FEW_ENTRIES: usize = 1024;

/// The largest body of a poll's answer that is kept, in bytes. All of them together take at most 8 MiB.
const LARGEST_KEPT: usize = 4096;

/// A map of what was recorded last. An entry is forgotten when at least `MOST` others were recorded after it.
#[derive(Debug, Default)]
struct RecentEntries<V, const MOST: usize> {
    newer: HashMap<Key, V>,
    older: HashMap<Key, V>,
}

impl<V: Clone + Default, const MOST: usize> RecentEntries<V, MOST> {
    fn get(&self, key: &Key) -> Option<V> {
        self.newer.get(key).or_else(|| self.older.get(key)).cloned()
    }

    fn forget(&mut self, is_forgotten: impl Fn(&Key) -> bool) {
        self.newer.retain(|key, _| !is_forgotten(key));
        self.older.retain(|key, _| !is_forgotten(key));
    }

    fn update(&mut self, key: Key, change: impl FnOnce(&mut V)) {
        let Self { newer, older } = self;
        let mut known = newer.remove(&key).or_else(|| older.remove(&key)).unwrap_or_default();
        change(&mut known);
        if newer.len() >= MOST {
            *older = std::mem::take(newer);
        }
        newer.insert(key, known);
    }
}

impl KnownJobs {
    /// The same, and other replicas are told which jobs are lost for good.
    pub(super) fn shared_by(self, grants: Arc<dyn SharedGrants>) -> Self {
        Self { shared: Some(grants), ..self }
    }

    /// The same, and replicas share these notes.
    pub(super) fn with_notes(self, notes: Arc<dyn JobNotes>) -> Self {
        Self { notes: Some(notes), ..self }
    }

    /// The notes of all replicas, if they share any.
    pub(crate) fn notes(&self) -> Option<&Arc<dyn JobNotes>> {
        self.notes.as_ref()
    }

    /// Tells other replicas that a job is lost for good. They can forget it after the time for which it is `shared`
    /// with identical submissions. Needs a tokio runtime.
    pub(crate) fn tell_lost(&self, account: &Account, job: &Key, shared: Duration) {
        if let Some(grants) = self.shared.as_ref().filter(|_| !shared.is_zero()) {
            tokio::spawn(grants.give(account, &LOST, job, shared));
        }
    }

    /// Finds out in the background, once in [`ASK_AGAIN`], whether another replica knows that a job is lost for good.
    /// Needs a tokio runtime.
    pub(crate) fn ask_lost(&self, account: &Account, job: Key, clock: Clock) {
        let Some(grants) = &self.shared else { return };
        let (now, mut is_due) = (clock.now(), false);
        self.update(job, |known| {
            is_due = known.asked.is_none_or(|asked| now >= asked + ASK_AGAIN);
            known.asked = if is_due { Some(now) } else { known.asked };
        });
        if is_due {
            let (jobs, found) = (self.clone(), grants.find(account, &LOST, &job));
            tokio::spawn(async move {
                if found.await.is_some() {
                    jobs.update(job, |known| (known.lost, known.was_not_found) = (Some(clock.now()), false));
                }
            });
        }
    }

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

    /// Records how a poll ended.
    pub(crate) fn polled(&self, key: Key, ending: &Result<Arc<Representation>, GatewayError>, now: Moment) {
        let is_small = |answer: &Representation| answer.body.len() <= LARGEST_KEPT;
        match ending {
            Ok(answer) if !job::is_failed_poll(answer.status) => {
                let answer = Some((Arc::clone(answer), now)).filter(|(answer, _)| is_small(answer));
                lock(&self.polls).update(key, |polls| *polls = LastPolls { answer, failure: None });
            }
            Ok(answer) if !is_small(answer) => {}
            Err(error) if !error.reason().is_of_an_attempt() => {}
            failed => lock(&self.polls).update(key, |polls| polls.failure = Some(failed.clone())),
        }
    }

    /// What the last polls of a job brought.
    pub(crate) fn last_polls(&self, key: &Key) -> LastPolls {
        lock(&self.polls).get(key).unwrap_or_default()
    }

    /// Records that the last submission has had an unknown end; `None` if its end is known.
    pub(crate) fn submitted(&self, submission: Key, uncertain: Option<UncertainSubmission>) {
        let mut keys = lock(&self.uncertain);
        if uncertain.is_some() || keys.get(&submission).flatten().is_some() {
            keys.update(submission, |kept| *kept = uncertain);
        }
    }

    /// Records that the other replicas know this `Idempotency-Key` of the last submission.
    pub(crate) fn shared_key(&self, submission: &Key, key: &HeaderValue) {
        let mut keys = lock(&self.uncertain);
        if let Some(uncertain) = keys.get(submission).flatten().filter(|uncertain| uncertain.key == *key) {
            keys.update(*submission, |kept| *kept = Some(UncertainSubmission { is_shared: true, ..uncertain }));
        }
    }

    /// The last submission, if its end is unknown.
    pub(crate) fn uncertain(&self, submission: &Key) -> Option<UncertainSubmission> {
        lock(&self.uncertain).get(submission).flatten()
    }

    /// Forgets what statuses said that are purged: how their jobs ended, until when results exist, and when to poll
    /// again. That a job is lost stays known, because it must not be shared.
    pub(super) fn purge(&self, which: &Purge) {
        let is_of = |key: &Key, of: Operation| match which {
            Purge::All | Purge::Account(_) => true,
            Purge::Operation(operation) => *operation == of,
            Purge::Data(_) => false,
            Purge::Key(_) => which.matches(key, None),
        };
        self.forget_where(|key| is_of(key, Operation::JobSubmit), |key| is_of(key, Operation::JobStatus));
    }

    /// The same for these keys, of submissions and of statuses.
    pub(super) fn forget(&self, is_purged: impl Fn(&Key) -> bool) {
        self.forget_where(&is_purged, &is_purged);
    }

    fn forget_where(&self, is_submission: impl Fn(&Key) -> bool, is_status: impl Fn(&Key) -> bool) {
        lock(&self.uncertain).forget(is_submission);
        lock(&self.polls).forget(&is_status);
        let mut generations = lock(&self.jobs);
        let RecentEntries { newer, older } = &mut *generations;
        for (_, known) in newer.iter_mut().chain(older).filter(|(key, _)| is_status(key)) {
            let KnownJob { completed, lost, was_not_found, submission, .. } = *known;
            *known = KnownJob { completed, lost, was_not_found, submission, ..KnownJob::default() };
        }
    }
}

fn lock<V, const MOST: usize>(generations: &Mutex<RecentEntries<V, MOST>>) -> MutexGuard<'_, RecentEntries<V, MOST>> {
    // A panic can lose at most what was being recorded.
    generations.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::accounts::AccountId;

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
        assert!(generations.newer.len() <= GENERATION && generations.older.len() <= GENERATION);
    }

    #[test]
    fn a_purge_of_statuses_forgets_what_they_said() {
        let lost = Some(Instant::now());
        for (which, is_forgotten) in [
            (Purge::All, [true, true]),
            (Purge::Account(AccountId::other()), [true, true]),
            (Purge::Operation(Operation::JobStatus), [true, true]),
            (Purge::Operation(Operation::JobSubmit), [false, false]),
            (Purge::Data(AccountId::other()), [false, false]),
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
