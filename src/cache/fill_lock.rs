//! The interface of the lock that replicas share. With it one of them fills the cache for all.
//!
//! The table of [`flight`](super::flight) is in front of it, so each process sends one claim for a key over the
//! network. The task that leads a flight of this process claims it here before it calls upstream.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::sync::oneshot;

use super::flight::FlightResult;
use super::purge::Purge;
use crate::accounts::Team;
use crate::core::clock::Moment;
use crate::request::context::RequestContext;
use crate::request::key::Key;
use crate::request::waiters::Waiters;
use crate::twilio::endpoint::Operation;

/// A lock that replicas share.
pub(crate) trait FillLock: Debug + Send + Sync {
    /// Claims a flight. Ends within the time that one operation of the lock may take, and is not to be dropped before:
    /// a claim that was granted to nobody costs the others a lease.
    fn claim(&self, request: &ClaimRequest) -> BoxFuture<'static, ClaimOutcome>;

    /// How long one request may wait for the lock and for what is stored with it, over all operations.
    fn patience(&self) -> Duration;

    /// From now on no caller joins a flight that began before `at`, or before now, if `which` matches it.
    fn purge(&self, which: &Purge, at: Option<Moment>);

    /// From now on no caller joins a flight for one of these pages, or for a further page of its set, that began before
    /// this moment.
    fn outdate(&self, outdated: Vec<(Key, Moment)>);
}

/// A claim: the flight that a caller wants.
#[derive(Debug, Clone)]
pub(crate) struct ClaimRequest {
    /// The team that the call is for, with its account.
    pub(crate) team: Arc<Team>,
    /// The clients that wait for it here. The replica that leads has to know whether any do, because a refresh that
    /// nobody waits for is queued behind the calls of clients. While clients of other replicas wait for what it leads,
    /// one of `team` is among these.
    pub(crate) waiters: Arc<Waiters>,
    pub(crate) operation: Operation,
    pub(crate) key: Key,
    /// For a further page: the first page of its result set.
    pub(crate) first: Option<Key>,
    /// Whether it is for clients that demand a new response. Such flights are apart from others, and as in one process,
    /// whoever demands one joins one that is under way.
    pub(crate) is_forced: bool,
    /// One that began earlier does not do. `None`: any does.
    pub(crate) not_before: Option<Moment>,
    /// What a flight has just stored was looked for and is of no use.
    pub(crate) is_new: bool,
    /// The request that wants it. Waiting for the lock costs it time that it has for all that replicas share.
    pub(crate) context: Arc<RequestContext>,
}

/// What the caller has to do after a claim.
pub(crate) enum ClaimOutcome {
    /// Call upstream for all replicas.
    Lead(FillLease),
    /// Wait for the flight of another replica. Safe to drop.
    Wait(BoxFuture<'static, WaitOutcome>),
    /// A flight, which began then, has just stored a response: look for it.
    Stored(StoredSize, Moment),
    /// Go on without the lock, which does not answer.
    Unavailable,
}

/// The size of a stored response, which says how long it is on its way to the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StoredSize {
    Usual,
    Large,
}

/// How a wait for the flight of another replica ended.
#[derive(Debug)]
pub(crate) enum WaitOutcome {
    /// The flight has ended.
    Ended(FlightResult),
    /// The flight, which began then, has stored a response that is too long to be sent: look for it.
    Stored(Option<Moment>),
    /// Nobody knows how it ended: claim it again.
    Lost,
    /// The lock does not answer any more: continue without it.
    Unavailable,
}

/// Held by the caller that leads. Dropping it means that the flight was lost; the others claim it again.
#[derive(Debug)]
pub(crate) struct FillLease(oneshot::Sender<FlightResult>);

impl FillLease {
    /// A lease, and the receiver of its end. An error there means that the flight was lost.
    pub(crate) fn new() -> (Self, oneshot::Receiver<FlightResult>) {
        let (sender, receiver) = oneshot::channel();
        (Self(sender), receiver)
    }

    /// Reports the end to the others. A refusal of this replica means nothing to them: each has its own queue, its own
    /// clients with their deadlines, and its own circuit.
    pub(crate) fn finish(self, finished: &FlightResult) {
        if finished.result.as_ref().err().is_none_or(|error| error.reason().is_of_an_attempt()) {
            // Nobody receives it while the process ends.
            let _ = self.0.send(finished.clone());
        }
    }
}
