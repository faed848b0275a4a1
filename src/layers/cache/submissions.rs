//! The `Idempotency-Key` of a submission. If the end of one is unknown, the next identical one is sent with the same key:
//! if Twilio has made a job of the first, it answers with that job.
//!
//! The key is remembered here, and noted for the other replicas. It is noted before the submission is sent, because a
//! replica that ends in the middle of it can tell nobody afterwards. To note a key and to find one that another replica has
//! noted is one operation, so all replicas that submit the same have one key.
//!
//! * The note says since when the end is unknown: until the call ends that is its deadline. Then, if the end is still
//!   unknown, the note is renewed, and otherwise removed.
//! * A client's own key never comes here, because its submission is for that client alone. Nor does any key without
//!   `cache.jobs.dedup`.
//! * `no-cache` asks for a new job. Its key takes the place of any other.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderValue, StatusCode};

use super::layer::CacheLayer;
use crate::cache::flight::FlightResult;
use crate::cache::job_notes::{JobNotes, Note, NoteClaim, NoteSubject};
use crate::cache::known_jobs::UncertainSubmission;
use crate::core::clock::Moment;
use crate::request::call::UpstreamCall;
use crate::semantics::request_directives::CacheDirectives;
use crate::twilio::endpoint::{IDEMPOTENCY_KEY, Operation};

/// The length of a key that the gateway makes: a UUID.
const LENGTH: usize = 36;

/// The key with which a submission is sent.
#[derive(Debug, Clone)]
pub(super) struct SubmissionKey {
    key: HeaderValue,
    made: Moment,
    /// Since when the end of an earlier submission with this key is unknown. It is in the future while another replica may
    /// still learn the end.
    since: Option<Moment>,
    /// Other replicas may find it.
    is_noted: bool,
}

impl SubmissionKey {
    fn new(key: HeaderValue, made: Moment) -> Self {
        Self { key, made, since: None, is_noted: false }
    }

    fn of(UncertainSubmission { key, made, since, .. }: UncertainSubmission) -> Self {
        Self { key, made, since: Some(since), is_noted: false }
    }

    /// A key that another replica has noted; `None` if the note is no key.
    fn noted(Note { made, at, text }: &Note) -> Option<Self> {
        let is_key = text.len() == LENGTH && text.iter().all(|c| c.is_ascii_hexdigit() || *c == b'-');
        let key = HeaderValue::from_bytes(text).ok().filter(|_| is_key)?;
        Some(Self { key, made: *made, since: Some(*at), is_noted: true })
    }

    fn note(&self, at: Moment) -> Note {
        Note { made: self.made, at, text: self.key.as_bytes().to_vec() }
    }
}

impl CacheLayer {
    /// Gives a submission the key of an earlier identical one whose end is unknown, if there is one that `directives`
    /// accept. `None` if the call is no submission.
    pub(super) async fn choose_key(
        &self,
        call: &mut UpstreamCall,
        directives: &CacheDirectives,
    ) -> Option<SubmissionKey> {
        let mut headers = HeaderMap::clone(call.headers.as_ref()?);
        let new = headers.get(IDEMPOTENCY_KEY).filter(|_| call.endpoint.operation == Operation::JobSubmit)?.clone();
        let new = SubmissionKey::new(new, self.clock.moment());
        let chosen = match self.store.jobs.notes() {
            Some(notes) => self.agreed_key(call, directives, new, notes).await,
            None => self.known_key(call, directives).map_or(new, SubmissionKey::of),
        };
        headers.insert(IDEMPOTENCY_KEY, chosen.key.clone());
        call.headers = Some(Arc::new(headers));
        Some(chosen)
    }

    /// The same with the notes of all replicas.
    async fn agreed_key(
        &self,
        call: &UpstreamCall,
        directives: &CacheDirectives,
        new: SubmissionKey,
        notes: &Arc<dyn JobNotes>,
    ) -> SubmissionKey {
        let known = self.known_key(call, directives);
        // One that the others have known has to be found with them. They may have learnt the end.
        let own = known.clone().filter(|known| !known.is_shared).map_or_else(|| new.clone(), SubmissionKey::of);
        if directives.no_cache {
            return self.replace_key(call, own, notes).await;
        }
        let at = own.since.unwrap_or_else(|| self.ends(call));
        let claim = notes.claim(&NoteSubject::of(call), own.note(at), self.kept(at));
        let claimed = self.in_time(call, notes, claim).await.unwrap_or(NoteClaim::Unknown);
        match claimed {
            NoteClaim::Own => {
                if own.since.is_none() {
                    self.store.jobs.submitted(call.key, None);
                }
                SubmissionKey { is_noted: true, ..own }
            }
            NoteClaim::Other(note) => match SubmissionKey::noted(&note).filter(|_| self.accepts(note.at, directives)) {
                Some(noted) => noted,
                None => self.replace_key(call, new, notes).await,
            },
            NoteClaim::Unknown | NoteClaim::Unsent => {
                let alone = known.map_or(new, SubmissionKey::of);
                SubmissionKey { is_noted: claimed == NoteClaim::Unknown, ..alone }
            }
        }
    }

    /// Notes this key in place of any other.
    async fn replace_key(&self, call: &UpstreamCall, key: SubmissionKey, notes: &Arc<dyn JobNotes>) -> SubmissionKey {
        let at = self.ends(call);
        let replacing = notes.replace(&NoteSubject::of(call), key.note(at), self.kept(at));
        let is_noted = self.in_time(call, notes, replacing).await.unwrap_or(true);
        SubmissionKey { is_noted, ..key }
    }

    /// Records the key of a submission whose end is unknown, and that it is known again.
    pub(super) fn remember_key(&self, call: &UpstreamCall, finished: &FlightResult, used: Option<SubmissionKey>) {
        let Some(SubmissionKey { key, made, since, is_noted }) = used else { return };
        let (jobs, now, about) = (self.store.jobs.clone(), self.clock.moment(), NoteSubject::of(call));
        let text = key.as_bytes().to_vec();
        if is_end(finished) {
            jobs.submitted(call.key, None);
            if let Some(notes) = jobs.notes().filter(|_| is_noted) {
                tokio::spawn(notes.forget(&about, text, self.kept(self.ends(call))));
            }
            return;
        }
        // Sent again with the same key, it is as old as before.
        let since = since.map_or(now, |since| since.min(now));
        jobs.submitted(call.key, Some(UncertainSubmission { key: key.clone(), made, since, is_shared: false }));
        let kept = self.kept(since);
        if let Some(notes) = jobs.notes().filter(|_| !kept.is_zero()) {
            let keeping = notes.keep(&about, Note { made, at: since, text }, kept);
            tokio::spawn(async move {
                if keeping.await {
                    jobs.shared_key(&about.key, &key);
                }
            });
        }
    }

    /// What this replica knows of an earlier submission whose end is unknown.
    fn known_key(&self, call: &UpstreamCall, directives: &CacheDirectives) -> Option<UncertainSubmission> {
        let known = self.store.jobs.uncertain(&call.key)?;
        (!directives.no_cache && self.accepts(known.since, directives)).then_some(known)
    }

    /// Whether a client with these directives accepts the job of a submission whose end is unknown since then.
    fn accepts(&self, since: Moment, directives: &CacheDirectives) -> bool {
        let oldest = self.policy.jobs.dedup.min(directives.max_age.unwrap_or(Duration::MAX));
        self.clock.moment().since(since) < oldest
    }

    /// How long from now on a key is of use if the end is unknown since then.
    fn kept(&self, since: Moment) -> Duration {
        let now = self.clock.moment();
        self.policy.jobs.dedup.saturating_add(since.since(now)).saturating_sub(now.since(since))
    }

    /// When this call ends at the latest.
    fn ends(&self, call: &UpstreamCall) -> Moment {
        self.clock.moment().after(call.deadline.saturating_duration_since(self.clock.now()))
    }

    /// What an operation on notes brings, if the request may wait for it. It is done to its end in any case.
    pub(super) async fn in_time<T: Send + 'static>(
        &self,
        call: &UpstreamCall,
        notes: &Arc<dyn JobNotes>,
        operation: impl Future<Output = T> + Send + 'static,
    ) -> Option<T> {
        let done = async { tokio::spawn(operation).await.ok() };
        call.context.store_wait.within(notes.patience(), self.clock, done).await?
    }
}

/// Whether it is known if Twilio has made a job.
fn is_end(finished: &FlightResult) -> bool {
    finished.result.as_ref().is_ok_and(|answer| {
        // An attempt before this answer may have made a job.
        let is_doubtful = [StatusCode::REQUEST_TIMEOUT, StatusCode::TOO_MANY_REQUESTS].contains(&answer.status);
        !is_doubtful && !answer.status.is_server_error()
    })
}
