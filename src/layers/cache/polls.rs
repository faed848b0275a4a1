//! Polls of a job's status that failed. Each replica remembers them, and notes them for the others. So all replicas
//! together send one poll when it is due.
//!
//! A poll that succeeded needs no note: the others find the status where pages are stored.

use super::layer::CacheLayer;
use crate::cache::flight::FlightResult;
use crate::cache::flight_record::{self, FlightRecord};
use crate::cache::job_notes::{Note, NoteSubject};
use crate::core::error::Reason;
use crate::request::call::UpstreamCall;
use crate::twilio::endpoint::Operation;
use crate::twilio::job;

impl CacheLayer {
    /// Records how a poll ended, of this replica or of another one.
    pub(super) fn remember_poll(&self, call: &UpstreamCall, finished: &FlightResult) {
        if call.endpoint.operation == Operation::JobStatus {
            self.store.jobs.polled(call.key, &finished.result, self.clock.moment());
        }
    }

    /// Tells the other replicas how a poll failed, and when the next one is due. Ends when they can know it, or when the
    /// request has waited for the store as long as it may: they must know it before they may claim the next poll.
    pub(super) async fn tell_failed_poll(&self, call: &UpstreamCall, finished: &FlightResult) {
        let notes = self.store.jobs.notes().filter(|_| is_failure_for_all(call, finished));
        let next = || self.store.jobs.get(&call.key)?.next_poll;
        let (Some(notes), Some(next), Some(text)) = (notes, next(), flight_record::encode(finished)) else { return };
        let made = self.clock.moment();
        let left = next.since(made);
        if !left.is_zero() {
            let telling = notes.replace(&NoteSubject::of(call), Note { made, at: next, text }, left);
            self.in_time(call, notes, telling).await;
        }
    }

    /// How the last poll of another replica failed, if the next one is not due yet. It counts as a poll of this replica.
    pub(super) async fn failed_poll(&self, call: &UpstreamCall) -> Option<FlightResult> {
        let notes = self.store.jobs.notes().filter(|_| call.endpoint.operation == Operation::JobStatus)?;
        let Note { at, text, .. } = self.in_time(call, notes, notes.find(&NoteSubject::of(call))).await??;
        let Some(FlightRecord::Ended(finished)) = flight_record::decode(&text) else { return None };
        let is_due = at.since(self.clock.moment()).is_zero();
        if is_due || !is_failure_for_all(call, &finished) {
            return None;
        }
        self.store.jobs.update(call.key, |known| known.next_poll = Some(at));
        self.remember_poll(call, &finished);
        Some(finished)
    }
}

/// Whether a poll has failed, and would have failed for every replica. The way to Twilio and the account's credentials are
/// each replica's own.
fn is_failure_for_all(call: &UpstreamCall, finished: &FlightResult) -> bool {
    let has_failed = match &finished.result {
        Ok(answer) => job::is_failed_poll(answer.status),
        Err(error) => matches!(error.reason(), Reason::UpstreamInvalid | Reason::UpstreamTimeout),
    };
    has_failed && call.endpoint.operation == Operation::JobStatus
}
