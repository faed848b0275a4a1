//! Query jobs: accepted at once, run a few at a time, and kept until their results expire.
//!
//! All of a job's future is computed when it is submitted: when it begins, when it ends and how. Its current status
//! follows from the time that the caller passes in, so nothing runs in the background. If fewer than
//! [`JobSettings::at_once`] jobs of its account are unfinished, a job takes exactly [`JobSettings::takes`], the first
//! fifth of it as `PENDING`. Otherwise it is `PENDING` until one of them ends.
//!
//! Where published material contradicts itself or is silent, the simulator behaves as follows:
//!
//! * A status never contains rows; they are only under `resultUrl`, whatever the text about statuses says.
//! * `resultUrl`, `resultId` and `resultRetentionPeriod` are present when a job is `COMPLETED`, and `error` when it is
//!   `FAILED`; otherwise they are absent. `completedAt` is `null` until it has a value, because Twilio's Node SDK reads
//!   an absent one as the present time.
//! * Times are whole seconds, because Twilio's Python SDK returns others as text.
//! * A job with expired results has the status `EXPIRED`, which is not in the published list, and stays in lists. No
//!   call cancels a job; only a [script](JobFault) or an [outcome](Jobs::settle) does.
//! * Lists show the newest first. A job, its results and its key belong to the user that submitted it.
//! * Requests are equal when their bodies are the same JSON, whatever the order and the white space. A key is any UUID,
//!   in upper or lower case, and is remembered for 24 hours, or until its job is removed.
//! * `Retry-After` is the time that the job still needs, within 1 to 5 seconds at submission and 1 to 10 afterwards,
//!   which are the published examples.
//!
//! Apart from its errors, this file does not depend on HTTP.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use fastrand::Rng;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value as Json, json};

use super::data;
use super::error::ApiError;
use super::job_faults::JobFault;
use super::query::Query;
use super::status::{OperationError, Status};

/// The path for submitting and listing jobs.
pub const PATH: &str = "/v3/InsightsDomains/Conversations/QueryJobs";

/// Most stored jobs, of all users together. The oldest are removed, finished or not.
const MOST_JOBS: usize = 2000;
/// Bytes of the bodies of all stored jobs.
const MOST_BYTES: usize = 64 << 20;
const MOST_RULES: usize = 1000;
const KEYS_LAST: SignedDuration = SignedDuration::from_hours(24);
const LONGEST_FIRST_WAIT: u64 = 5;
const LONGEST_WAIT: u64 = 10;

/// How jobs run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobSettings {
    /// From submission to end, if no other job delays it.
    pub takes: Duration,
    /// Jobs of one user that run at the same time.
    pub at_once: usize,
    /// How long results are kept.
    pub retention: Duration,
}

impl Default for JobSettings {
    fn default() -> Self {
        Self { takes: Duration::from_secs(10), at_once: 3, retention: Duration::from_secs(7 * 24 * 3600) }
    }
}

/// A request for a job.
pub struct Submission {
    /// The user.
    pub user: String,
    /// The idempotency key, as [`key`] reads it.
    pub key: Option<String>,
    /// The query to answer.
    pub query: Query,
    /// Equal for equal bodies.
    pub fingerprint: blake3::Hash,
    /// Length of the body.
    pub bytes: usize,
}

/// A job at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// `proc_job_…`
    pub id: Arc<str>,
    /// Its current status.
    pub status: Status,
    /// Seconds until it is useful to ask again; only while it is unfinished.
    pub wait: Option<u64>,
    created: Timestamp,
    completed: Option<Timestamp>,
    error: Option<OperationError>,
    retention: Duration,
}

/// One page of a user's jobs.
#[derive(Debug, PartialEq, Eq)]
pub struct Listing {
    /// Newest first.
    pub jobs: Vec<Snapshot>,
    /// Where the previous page begins.
    pub previous: Option<usize>,
    /// Where the next page begins.
    pub next: Option<usize>,
}

/// All jobs.
pub struct Jobs {
    settings: JobSettings,
    state: Mutex<State>,
}

struct State {
    /// By number, which counts up, so the oldest come first.
    jobs: BTreeMap<usize, Job>,
    numbers: HashMap<Arc<str>, usize>,
    /// User and key.
    keys: HashMap<(String, String), usize>,
    last: usize,
    bytes: usize,
    rules: VecDeque<JobFault>,
    rng: Rng,
}

struct Job {
    id: Arc<str>,
    user: String,
    key: Option<String>,
    fingerprint: blake3::Hash,
    query: Arc<Query>,
    bytes: usize,
    created: Timestamp,
    /// Never, if a script says so.
    begins: Option<Timestamp>,
    ends: Option<Timestamp>,
    end: Status,
    error: Option<OperationError>,
    retention: Duration,
    /// The status from which on it cannot be found.
    lose: Option<Status>,
    /// The status that it changes to once a client has seen its end.
    then: Option<Status>,
}

impl Jobs {
    /// No jobs yet.
    pub fn new(settings: JobSettings) -> Self {
        let state = State {
            jobs: BTreeMap::new(),
            numbers: HashMap::new(),
            keys: HashMap::new(),
            last: 0,
            bytes: 0,
            rules: VecDeque::new(),
            rng: Rng::new(),
        };
        Self { settings, state: Mutex::new(state) }
    }

    /// Accepts a job, or returns the one that was accepted with the same key. An error if that one was for another
    /// request.
    pub fn submit(&self, submission: Submission, now: Timestamp) -> Result<Snapshot, ApiError> {
        let state = &mut *self.lock();
        let key = submission.key.clone().map(|key| (submission.user.clone(), key));
        let known = key.as_ref().and_then(|key| state.jobs.get(state.keys.get(key)?));
        if let Some(known) = known.filter(|job| now < later(job.created, KEYS_LAST) && !job.is_lost(now)) {
            if known.fingerprint != submission.fingerprint {
                return Err(ApiError::key_reused());
            }
            return Ok(known.snapshot(now));
        }
        let rule = state.take_rule();
        let job = self.plan(state, submission, rule, now);
        let wait = Some(job.wait(now, LONGEST_FIRST_WAIT));
        let accepted = Snapshot { status: Status::Pending, wait, completed: None, error: None, ..job.snapshot(now) };
        state.last += 1;
        state.bytes += job.bytes;
        state.numbers.insert(Arc::clone(&job.id), state.last);
        if let Some(key) = key {
            state.keys.insert(key, state.last);
        }
        state.jobs.insert(state.last, job);
        state.make_room();
        Ok(accepted)
    }

    fn plan(&self, state: &mut State, submission: Submission, rule: JobFault, now: Timestamp) -> Job {
        let takes = rule.takes.unwrap_or(self.settings.takes);
        let pending = takes / 5;
        let in_the_way = state.jobs.values().filter(|job| job.user == submission.user && !job.status(now).is_final());
        let mut ends: Vec<Timestamp> = in_the_way.filter_map(|job| job.ends).collect();
        ends.sort_unstable();
        let free = ends.len().checked_sub(self.settings.at_once.max(1)).and_then(|position| ends.get(position));
        let earliest = later(now, signed(pending));
        let begins = free.map_or(earliest, |free| earliest.max(*free));
        let end = rule.status.unwrap_or(Status::Completed);
        Job {
            id: Arc::from(&*data::id(&mut state.rng, "proc_job_", now)),
            user: submission.user,
            key: submission.key,
            fingerprint: submission.fingerprint,
            query: Arc::new(submission.query),
            bytes: submission.bytes,
            created: now,
            begins: (end != Status::Pending).then_some(begins),
            ends: end.is_final().then(|| later(begins, signed(takes - pending))),
            end,
            error: (end == Status::Failed).then(|| rule.error.unwrap_or_default()),
            retention: rule.retention.unwrap_or(self.settings.retention),
            lose: rule.lose,
            then: rule.then,
        }
    }

    /// The job of this user and id. If a script has an end that does not last, this call changes it.
    pub fn fetch(&self, user: &str, id: &str, now: Timestamp) -> Result<Snapshot, ApiError> {
        let mut state = self.lock();
        let job = state.find(id, now).filter(|job| job.user == user).ok_or_else(ApiError::not_found)?;
        let snapshot = job.snapshot(now);
        if snapshot.status.is_final()
            && let Some(then) = job.then.take()
        {
            job.settle(then, None, now);
        }
        Ok(snapshot)
    }

    /// The query of a completed job. An error before it is completed, and after its results have expired.
    pub fn results(&self, user: &str, id: &str, now: Timestamp) -> Result<Arc<Query>, ApiError> {
        let mut state = self.lock();
        let job = state.find(id, now).filter(|job| job.user == user && job.status(now) == Status::Completed);
        job.map(|job| Arc::clone(&job.query)).ok_or_else(ApiError::not_found)
    }

    /// At most `size` jobs of this user, of one status or all, older than `before`.
    pub fn list(&self, user: &str, status: Option<Status>, before: usize, size: usize, now: Timestamp) -> Listing {
        let state = self.lock();
        let wanted =
            |job: &Job| job.user == user && !job.is_lost(now) && status.is_none_or(|status| job.status(now) == status);
        let jobs: Vec<_> = state.jobs.iter().rev().filter(|(_, job)| wanted(job)).collect();
        let start = jobs.iter().take_while(|(number, _)| **number >= before).count();
        let end = jobs.len().min(start.saturating_add(size));
        Listing {
            previous: (start > 0).then(|| *jobs[start.saturating_sub(size)].0 + 1),
            next: (end > start && end < jobs.len()).then(|| *jobs[end - 1].0),
            jobs: jobs[start..end].iter().map(|(_, job)| job.snapshot(now)).collect(),
        }
    }

    /// Sets the status of a job from now on, whatever was planned. `false` if there is no such job.
    pub fn settle(&self, id: &str, status: Status, error: Option<OperationError>, now: Timestamp) -> bool {
        let mut state = self.lock();
        state.find(id, now).map(|job| job.settle(status, error, now)).is_some()
    }

    /// Removes a job that clients have been told of. `false` if there is no such job.
    pub fn lose(&self, id: &str) -> bool {
        let state = &mut *self.lock();
        let number = state.numbers.get(id).copied();
        number.is_some_and(|number| state.remove(number))
    }

    /// Adds a rule for future jobs, after the other rules.
    pub fn script(&self, rule: JobFault) -> Result<(), String> {
        let mut state = self.lock();
        if state.rules.len() >= MOST_RULES {
            return Err(format!("at most {MOST_RULES} rules can be pending"));
        }
        if rule.next_jobs > 0 {
            state.rules.push_back(rule);
        }
        Ok(())
    }

    /// Removes all rules. Jobs that they were applied to do not change.
    pub fn clear_rules(&self) {
        self.lock().rules.clear();
    }

    /// The pending rules as JSON.
    pub fn describe_rules(&self) -> Vec<Json> {
        self.lock().rules.iter().map(JobFault::describe).collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn find(&mut self, id: &str, now: Timestamp) -> Option<&mut Job> {
        let number = self.numbers.get(id)?;
        self.jobs.get_mut(number).filter(|job| !job.is_lost(now))
    }

    fn take_rule(&mut self) -> JobFault {
        let Some(first) = self.rules.front_mut() else { return JobFault::default() };
        first.next_jobs = first.next_jobs.saturating_sub(1);
        let rule = first.clone();
        if rule.next_jobs == 0 {
            self.rules.pop_front();
        }
        rule
    }

    fn make_room(&mut self) {
        while self.jobs.len() > MOST_JOBS || (self.bytes > MOST_BYTES && self.jobs.len() > 1) {
            let Some(oldest) = self.jobs.keys().next().copied() else { return };
            self.remove(oldest);
        }
    }

    fn remove(&mut self, number: usize) -> bool {
        let Some(job) = self.jobs.remove(&number) else { return false };
        self.bytes -= job.bytes;
        self.numbers.remove(&job.id);
        // The key may belong to a newer job by now.
        if let Some(key) = job.key.map(|key| (job.user, key))
            && self.keys.get(&key) == Some(&number)
        {
            self.keys.remove(&key);
        }
        true
    }
}

impl Job {
    fn status(&self, now: Timestamp) -> Status {
        match (self.begins, self.ends) {
            (None, _) => Status::Pending,
            (Some(begins), _) if now < begins => Status::Pending,
            (_, None) => Status::Running,
            (_, Some(ends)) if now < ends => Status::Running,
            (_, Some(ends)) if self.end == Status::Completed && now >= later(ends, signed(self.retention)) => {
                Status::Expired
            }
            _ => self.end,
        }
    }

    fn is_lost(&self, now: Timestamp) -> bool {
        self.lose.is_some_and(|from| self.status(now) >= from)
    }

    fn settle(&mut self, status: Status, error: Option<OperationError>, now: Timestamp) {
        self.end = status;
        self.begins = (status != Status::Pending).then(|| self.begins.unwrap_or(now).min(now));
        self.ends = status.is_final().then(|| self.ends.unwrap_or(now).min(now));
        self.error = (status == Status::Failed).then(|| error.unwrap_or_default());
    }

    fn snapshot(&self, now: Timestamp) -> Snapshot {
        let status = self.status(now);
        Snapshot {
            id: Arc::clone(&self.id),
            status,
            wait: (!status.is_final()).then(|| self.wait(now, LONGEST_WAIT)),
            created: self.created,
            completed: self.ends.filter(|_| status.is_final()),
            error: self.error.clone().filter(|_| status == Status::Failed),
            retention: self.retention,
        }
    }

    fn wait(&self, now: Timestamp, longest: u64) -> u64 {
        let Some(ends) = self.ends else { return longest };
        let rest = now.duration_until(ends).as_millis().max(0);
        u64::try_from(rest).map_or(longest, |rest| rest.div_ceil(1000).clamp(1, longest))
    }
}

impl Snapshot {
    /// The URL of its status, below this base.
    pub fn status_url(&self, base: &str) -> String {
        format!("{base}{PATH}/{}", self.id)
    }

    /// The body of the response that accepts it.
    pub fn accepted(&self, base: &str) -> Json {
        json!({
            "operationId": &*self.id,
            "status": self.status.word(),
            "statusUrl": self.status_url(base),
            "createdAt": shown(self.created),
        })
    }

    /// Its status.
    pub fn describe(&self, base: &str) -> Json {
        let mut json = self.accepted(base);
        json["completedAt"] = self.completed.map_or(Json::Null, |moment| shown(moment).into());
        if let Some(error) = &self.error {
            json["error"] = json!(error);
        }
        if self.status == Status::Completed {
            json["resultUrl"] = format!("{}/Results", self.status_url(base)).into();
            json["resultId"] = (*self.id).into();
            json["resultRetentionPeriod"] = period(self.retention).into();
        }
        json
    }
}

/// An idempotency key in one spelling. It must be a UUID of any version.
pub fn key(text: &str) -> Result<String, ApiError> {
    let hexadecimal = |part: &str, length: usize| part.len() == length && part.bytes().all(|b| b.is_ascii_hexdigit());
    let parts: Vec<&str> = text.splitn(6, '-').collect();
    let is_uuid =
        parts.len() == 5 && parts.iter().zip([8, 4, 4, 4, 12]).all(|(part, length)| hexadecimal(part, length));
    match is_uuid {
        true => Ok(text.to_ascii_lowercase()),
        false => Err(ApiError::bad_request("Idempotency-Key must be a UUID, such as a UUIDv7")),
    }
}

/// RFC 3339 in UTC, to the second.
pub fn shown(moment: Timestamp) -> String {
    moment.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// An ISO 8601 duration: in days where it is whole days, else in seconds.
fn period(duration: Duration) -> String {
    const DAY: u64 = 24 * 3600;
    match duration.as_secs() {
        seconds if seconds >= DAY && seconds % DAY == 0 => format!("P{}D", seconds / DAY),
        seconds => format!("PT{seconds}S"),
    }
}

fn signed(duration: Duration) -> SignedDuration {
    SignedDuration::try_from(duration).unwrap_or(SignedDuration::MAX)
}

fn later(moment: Timestamp, by: SignedDuration) -> Timestamp {
    moment.checked_add(by).unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
mod tests;
