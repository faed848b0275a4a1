//! One account's budget: its bucket, its concurrency, its pause, and who waits.
//!
//! Clients wait in the order of their arrival, background refreshes behind all of them. Whoever could not be
//! served before its deadline is told so when it arrives, or as soon as a pause makes it certain; whoever
//! leaves gives its place back at once. A permit that was granted and never used gives its token back.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;

use super::bucket::{Bucket, Quota};
use crate::model::backoff::Backoff;
use crate::model::clock::{Clock, Instant};
use crate::model::error::{GatewayError, Reason};
use crate::model::interest::Interest;
use crate::model::tenancy::Allowance;
use crate::model::units::Rate;

/// What an account may spend.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Limits {
    /// Tokens; `None` is without limit.
    pub rate: Option<Rate>,
    /// Tokens that may be spent at once.
    pub burst: u32,
    /// Attempts at once.
    pub concurrency: u32,
    /// Waiting calls at most.
    pub queue: u32,
    /// Longest pause that a 429's headers can impose.
    pub max_pause: Duration,
    /// The pause after a 429 that names none.
    pub backoff: Backoff,
}

/// A moment's view of a budget.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Standing {
    /// What may be spent.
    pub limits: Limits,
    /// Tokens now; `None` without a rate.
    pub tokens: Option<f64>,
    /// Time until the pause ends.
    pub paused: Duration,
    /// Attempts under way.
    pub in_flight: u32,
    /// Calls waiting.
    pub waiting: usize,
}

/// An account's budget. Cheap to clone; all clones are one.
#[derive(Debug, Clone)]
pub struct AccountBudget(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    name: Arc<str>,
    clock: Clock,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    limits: Limits,
    bucket: Bucket,
    in_flight: u32,
    paused_until: Option<Instant>,
    refusals_in_a_row: u32,
    clients: VecDeque<Waiting>,
    refreshes: VecDeque<Waiting>,
    next_id: u64,
    alarm: Option<Instant>,
}

#[derive(Debug)]
struct Waiting {
    id: u64,
    deadline: Instant,
    grant: oneshot::Sender<Result<Permit, GatewayError>>,
}

impl AccountBudget {
    /// A full budget.
    pub(super) fn new(name: Arc<str>, limits: Limits, clock: Clock) -> Self {
        let state = State {
            limits,
            bucket: Bucket::full(clock.now()),
            in_flight: 0,
            paused_until: None,
            refusals_in_a_row: 0,
            clients: VecDeque::new(),
            refreshes: VecDeque::new(),
            next_id: 0,
            alarm: None,
        };
        Self(Arc::new(Shared { name, clock, state: Mutex::new(state) }))
    }

    /// New limits. What is owed stays owed, and who waits keeps waiting.
    pub(super) fn set_limits(&self, limits: Limits) {
        let mut state = self.0.lock();
        let old = state.quota();
        state.limits = limits;
        if let (Some(old), Some(new)) = (old, state.quota()) {
            state.bucket.requote(&old, &new, self.0.clock.now());
        }
        drop(state);
        self.0.advance();
    }

    /// Waits for a token and a place.
    ///
    /// # Errors
    ///
    /// [`Reason::Deadline`] when no token can be had before `deadline`, as soon as that is certain;
    /// [`Reason::QueueFull`]. Both say when to come back.
    pub(super) async fn acquire(&self, deadline: Instant, interest: &Interest) -> Result<Permit, GatewayError> {
        loop {
            let background = interest.is_refresh() && interest.sponsors().0.is_empty();
            let (mut place, granted) = match self.0.enqueue(deadline, background)? {
                Arrival::Granted(permit) => return Ok(permit),
                Arrival::Waits(place, granted) => (place, granted),
            };
            tokio::select! {
                biased;
                granted = granted => {
                    place.left = true;
                    return granted.unwrap_or_else(|_| Err(GatewayError::new(Reason::Internal, "the budget lost a waiting call")));
                }
                // A client has joined a refresh: it now waits among the clients.
                () = interest.wanted(), if background => {}
                () = interest.abandoned() => return Err(GatewayError::abandoned()),
                () = tokio::time::sleep_until(deadline) => {
                    let wait = self.0.lock().wait_of_newcomer(self.0.clock.now(), background);
                    return Err(too_late(wait));
                }
            }
        }
    }

    /// Twilio said 429: nothing is sent until `asked` has passed, or what the backoff says without it.
    pub(super) fn pause(&self, asked: Option<Duration>) {
        let now = self.0.clock.now();
        let mut state = self.0.lock();
        state.refusals_in_a_row = state.refusals_in_a_row.saturating_add(1);
        let backoff = state.limits.backoff;
        // Not less than half: a pause of nothing would send the next call into the same wall.
        let unasked = || backoff.delay(state.refusals_in_a_row, 0.5 + fastrand::f64() / 2.0);
        let pause = asked.unwrap_or_else(unasked).min(state.limits.max_pause);
        let until = now + pause;
        if state.paused_until.is_none_or(|known| known < until) {
            state.paused_until = Some(until);
            tracing::warn!(account = %self.0.name, pause_ms = pause.as_millis(), "Twilio limits the account: pausing");
        }
        let hopeless = state.remove_hopeless(now);
        drop(state);
        for (waiting, wait) in hopeless {
            // A receiver that is gone has left by itself.
            let _ = waiting.grant.send(Err(too_late(wait)));
        }
        self.0.advance();
    }

    /// Twilio answered something else than 429.
    pub(super) fn accepted(&self) {
        self.0.lock().refusals_in_a_row = 0;
    }

    /// A moment's view.
    pub fn standing(&self) -> Standing {
        let now = self.0.clock.now();
        let state = self.0.lock();
        Standing {
            limits: state.limits,
            tokens: state.quota().map(|quota| state.bucket.tokens(&quota, now)),
            paused: state.paused_until.map_or(Duration::ZERO, |until| until.saturating_duration_since(now)),
            in_flight: state.in_flight,
            waiting: state.clients.len() + state.refreshes.len(),
        }
    }

    /// The account's rate.
    pub fn rate(&self) -> Option<Rate> {
        self.0.lock().limits.rate
    }

    /// What a caller without a rate of its own has left.
    pub fn allowance(&self) -> Option<Allowance> {
        let now = self.0.clock.now();
        let state = self.0.lock();
        let tokens = state.bucket.tokens(&state.quota()?, now);
        let reset = match state.ready_at(now) {
            at if at <= now => 0,
            at => whole_seconds(at - now),
        };
        let remaining = if reset > 0 { 0 } else { tokens.max(0.0) as u64 };
        Some(Allowance { remaining, reset })
    }
}

enum Arrival {
    Granted(Permit),
    Waits(Place, oneshot::Receiver<Result<Permit, GatewayError>>),
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change under this lock is complete before anything that could panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enqueue(self: &Arc<Self>, deadline: Instant, background: bool) -> Result<Arrival, GatewayError> {
        let now = self.clock.now();
        let mut state = self.lock();
        if state.waiting_before(background) == 0 && state.try_spend(now) {
            return Ok(Arrival::Granted(Permit { account: Arc::clone(self), used: false }));
        }
        let wait = state.wait_of_newcomer(now, background);
        if now + wait > deadline {
            return Err(too_late(wait));
        }
        if state.clients.len() + state.refreshes.len() >= state.limits.queue as usize {
            let message = format!("{} calls already wait for this account; come back later", state.limits.queue);
            let wait = wait.max(Duration::from_secs(1));
            return Err(GatewayError::new(Reason::QueueFull, message).with_retry_after(wait));
        }
        let (grant, granted) = oneshot::channel();
        let id = state.next_id;
        state.next_id += 1;
        state.queue(background).push_back(Waiting { id, deadline, grant });
        drop(state);
        self.advance();
        let place = Place { account: Arc::clone(self), id, background, left: false };
        Ok(Arrival::Waits(place, granted))
    }

    /// Serves whoever can be served, and sets an alarm for the next.
    fn advance(self: &Arc<Self>) {
        let now = self.clock.now();
        let mut unclaimed = Vec::new();
        let mut state = self.lock();
        state.forget_those_who_left();
        while !(state.clients.is_empty() && state.refreshes.is_empty()) && state.try_spend(now) {
            let next = state.clients.pop_front().or_else(|| state.refreshes.pop_front());
            if let Some(waiting) = next {
                let permit = Permit { account: Arc::clone(self), used: false };
                unclaimed.extend(waiting.grant.send(Ok(permit)).err());
            }
        }
        let blocked_by_time =
            !(state.clients.is_empty() && state.refreshes.is_empty()) && state.in_flight < state.limits.concurrency;
        let at = state.ready_at(now);
        let sooner = state.alarm.is_none_or(|alarm| at < alarm || alarm <= now);
        if blocked_by_time && sooner {
            state.alarm = Some(at);
            let account = Arc::downgrade(self);
            tokio::spawn(async move {
                tokio::time::sleep_until(at).await;
                if let Some(account) = account.upgrade() {
                    let mut state = account.lock();
                    if state.alarm == Some(at) {
                        state.alarm = None;
                    }
                    drop(state);
                    account.advance();
                }
            });
        }
        drop(state);
        // A permit that nobody took gives back what it holds; that needs the lock.
        drop(unclaimed);
    }

    fn leave(self: &Arc<Self>, id: u64, background: bool) {
        self.lock().queue(background).retain(|waiting| waiting.id != id);
    }

    fn give_back(self: &Arc<Self>, used: bool) {
        let mut state = self.lock();
        state.in_flight -= 1;
        if let (false, Some(quota)) = (used, state.quota()) {
            state.bucket.put_back(&quota);
        }
        drop(state);
        self.advance();
    }
}

impl State {
    fn quota(&self) -> Option<Quota> {
        self.limits.rate.map(|rate| Quota::new(rate, self.limits.burst))
    }

    fn queue(&mut self, background: bool) -> &mut VecDeque<Waiting> {
        if background { &mut self.refreshes } else { &mut self.clients }
    }

    /// Calls that would be served before one that arrives now.
    fn waiting_before(&self, background: bool) -> usize {
        self.clients.len() + if background { self.refreshes.len() } else { 0 }
    }

    fn try_spend(&mut self, now: Instant) -> bool {
        let free = self.in_flight < self.limits.concurrency && self.paused_until.is_none_or(|until| until <= now);
        let spent = free && self.quota().is_none_or(|quota| self.bucket.take(&quota, now));
        self.in_flight += u32::from(spent);
        spent
    }

    /// When the next token could be spent.
    fn ready_at(&self, now: Instant) -> Instant {
        self.nth_ready_at(1, now)
    }

    fn nth_ready_at(&self, n: u32, now: Instant) -> Instant {
        let from = self.paused_until.map_or(now, |until| until.max(now));
        self.quota().map_or(from, |quota| self.bucket.nth(&quota, n, from))
    }

    /// How long one that arrives now has to wait at least. Places are freed at unknown times, so a full
    /// house counts for nothing here.
    fn wait_of_newcomer(&self, now: Instant, background: bool) -> Duration {
        let n = u32::try_from(self.waiting_before(background)).unwrap_or(u32::MAX).saturating_add(1);
        self.nth_ready_at(n, now).saturating_duration_since(now)
    }

    /// Takes out those who cannot be served before their deadline, with how long they would have to wait.
    fn remove_hopeless(&mut self, now: Instant) -> Vec<(Waiting, Duration)> {
        let mut hopeless = Vec::new();
        for background in [false, true] {
            let before = if background { self.clients.len() } else { 0 };
            let mut kept = VecDeque::new();
            for waiting in std::mem::take(self.queue(background)) {
                let n = u32::try_from(before + kept.len() + 1).unwrap_or(u32::MAX);
                let at = self.nth_ready_at(n, now);
                if at > waiting.deadline {
                    hopeless.push((waiting, at.saturating_duration_since(now)));
                } else {
                    kept.push_back(waiting);
                }
            }
            *self.queue(background) = kept;
        }
        hopeless
    }

    fn forget_those_who_left(&mut self) {
        self.clients.retain(|waiting| !waiting.grant.is_closed());
        self.refreshes.retain(|waiting| !waiting.grant.is_closed());
    }
}

/// A place in the queue; dropping it is leaving.
struct Place {
    account: Arc<Shared>,
    id: u64,
    background: bool,
    left: bool,
}

impl Drop for Place {
    fn drop(&mut self) {
        if !self.left {
            self.account.leave(self.id, self.background);
        }
    }
}

/// The right to one attempt; dropping it frees the place. Unused, it gives its token back too.
#[derive(Debug)]
pub(super) struct Permit {
    account: Arc<Shared>,
    used: bool,
}

impl Permit {
    /// The attempt begins: the token is spent.
    pub(super) fn spend(&mut self) {
        self.used = true;
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.account.give_back(self.used);
    }
}

fn too_late(wait: Duration) -> GatewayError {
    let seconds = whole_seconds(wait);
    GatewayError::new(
        Reason::Deadline,
        format!(
            "the account's next free request is {seconds} s away, later than this request may wait; come back then"
        ),
    )
    .with_retry_after(Duration::from_secs(seconds))
}

/// Rounded up, at least 1: what a client that comes back after it finds is not too early.
fn whole_seconds(wait: Duration) -> u64 {
    (wait.as_secs() + u64::from(wait.subsec_nanos() > 0)).max(1)
}

#[cfg(test)]
mod tests {
    use tokio::task::JoinHandle;
    use tokio::time::{advance, timeout};

    use super::*;
    use crate::model::tenancy::Team;
    use crate::model::wishes::Urgency;

    const MS: Duration = Duration::from_millis(1);

    fn limits(per_second: u32, burst: u32, concurrency: u32) -> Limits {
        Limits {
            rate: Rate::new(per_second, Duration::from_secs(1)),
            burst,
            concurrency,
            queue: 1000,
            max_pause: Duration::from_secs(300),
            backoff: Backoff { base: 250 * MS, max: Duration::from_secs(20) },
        }
    }

    fn budget(limits: Limits) -> AccountBudget {
        AccountBudget::new("main".into(), limits, Clock::new())
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    /// Acquires, spends and gives back at once.
    fn spend(
        budget: &AccountBudget,
        deadline: Instant,
        interest: Arc<Interest>,
    ) -> JoinHandle<Result<Instant, Reason>> {
        let budget = budget.clone();
        tokio::spawn(async move {
            let mut permit = budget.acquire(deadline, &interest).await.map_err(|error| error.reason())?;
            permit.spend();
            Ok(Instant::now())
        })
    }

    fn client() -> Arc<Interest> {
        let interest = Interest::of_clients();
        std::mem::forget(interest.join(&Arc::new(Team::example("local")), Urgency::default()));
        interest
    }

    #[tokio::test(start_paused = true)]
    async fn tokens_come_at_the_rate_in_order_of_arrival() {
        let (budget, start) = (budget(limits(5, 2, 10)), Instant::now());
        let calls: Vec<_> = (0..5).map(|_| spend(&budget, soon(), client())).collect();
        let mut times = Vec::new();
        for call in calls {
            times.push((call.await.unwrap().unwrap() - start).as_millis());
        }
        assert_eq!(times, [0, 0, 200, 400, 600]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_cannot_be_in_time_is_refused_on_arrival() {
        let (budget, start) = (budget(limits(1, 1, 10)), Instant::now());
        spend(&budget, soon(), client()).await.unwrap().unwrap();
        let error = budget.acquire(start + 500 * MS, &client()).await.unwrap_err();
        assert_eq!((error.reason(), error.retry_after()), (Reason::Deadline, Some(Duration::from_secs(1))));
        assert_eq!(Instant::now(), start);
    }

    #[tokio::test(start_paused = true)]
    async fn a_pause_holds_everybody_and_refuses_the_hopeless_at_once() {
        let (budget, start) = (budget(limits(100, 1, 10)), Instant::now());
        spend(&budget, soon(), client()).await.unwrap().unwrap();
        let patient = spend(&budget, soon(), client());
        let hasty = spend(&budget, start + Duration::from_secs(2), client());
        tokio::task::yield_now().await;
        budget.pause(Some(Duration::from_secs(7)));
        assert_eq!(hasty.await.unwrap(), Err(Reason::Deadline));
        assert_eq!(Instant::now(), start);
        assert_eq!(patient.await.unwrap().unwrap() - start, Duration::from_secs(7));
    }

    #[tokio::test(start_paused = true)]
    async fn a_pause_without_a_length_grows_and_is_capped() {
        let budget = budget(limits(100, 100, 10));
        let mut last = Duration::ZERO;
        for n in 1..12 {
            budget.pause(None);
            let paused = budget.standing().paused;
            let ceiling = Backoff { base: 250 * MS, max: Duration::from_secs(20) }.ceiling(n);
            assert!(paused <= ceiling && paused >= (ceiling / 2).min(last), "{n}: {paused:?} of {ceiling:?}");
            last = paused;
        }
        budget.pause(Some(Duration::from_secs(100_000)));
        assert_eq!(budget.standing().paused, Duration::from_secs(300));
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_leaves_gives_its_place_back() {
        let (budget, start) = (budget(limits(1, 1, 10)), Instant::now());
        spend(&budget, soon(), client()).await.unwrap().unwrap();
        let leaving = spend(&budget, soon(), client());
        let staying = spend(&budget, soon(), client());
        tokio::task::yield_now().await;
        leaving.abort();
        assert_eq!(staying.await.unwrap().unwrap() - start, Duration::from_secs(1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_that_nobody_wants_any_more_is_not_sent() {
        let budget = budget(limits(1, 1, 10));
        spend(&budget, soon(), client()).await.unwrap().unwrap();
        let interest = Interest::of_clients();
        let waiter = interest.join(&Arc::new(Team::example("local")), Urgency::default());
        let call = spend(&budget, soon(), Arc::clone(&interest));
        tokio::task::yield_now().await;
        assert_eq!(budget.standing().waiting, 1);
        drop(waiter);
        assert_eq!(call.await.unwrap(), Err(Reason::Deadline));
        assert_eq!(budget.standing().waiting, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn an_unused_permit_gives_its_token_back() {
        let budget = budget(limits(1, 1, 10));
        drop(budget.acquire(soon(), &client()).await.unwrap());
        let again = timeout(MS, budget.acquire(soon(), &client())).await;
        assert!(again.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn refreshes_come_behind_clients_until_somebody_wants_them() {
        let (budget, start) = (budget(limits(1, 1, 10)), Instant::now());
        spend(&budget, soon(), client()).await.unwrap().unwrap();
        let (quiet, wanted) = (Interest::of_refresh(), Interest::of_refresh());
        let quiet_refresh = spend(&budget, soon(), quiet);
        let wanted_refresh = spend(&budget, soon(), Arc::clone(&wanted));
        tokio::task::yield_now().await;
        let later_client = spend(&budget, soon(), client());
        tokio::task::yield_now().await;
        let _waiter = wanted.join(&Arc::new(Team::example("local")), Urgency::default());
        assert_eq!(later_client.await.unwrap().unwrap() - start, Duration::from_secs(1));
        assert_eq!(wanted_refresh.await.unwrap().unwrap() - start, Duration::from_secs(2));
        assert_eq!(quiet_refresh.await.unwrap().unwrap() - start, Duration::from_secs(3));
    }

    #[tokio::test(start_paused = true)]
    async fn concurrency_is_a_limit_of_its_own() {
        let budget = budget(limits(1000, 1000, 2));
        let (one, _two) =
            (budget.acquire(soon(), &client()).await.unwrap(), budget.acquire(soon(), &client()).await.unwrap());
        let interest = client();
        let mut third = Box::pin(budget.acquire(soon(), &interest));
        assert!(timeout(Duration::from_secs(1), &mut third).await.is_err());
        drop(one);
        assert!(timeout(MS, third).await.unwrap().is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn the_queue_is_bounded() {
        let budget = budget(Limits { queue: 1, ..limits(1, 1, 10) });
        spend(&budget, soon(), client()).await.unwrap().unwrap();
        let waiting = spend(&budget, soon(), client());
        tokio::task::yield_now().await;
        let error = budget.acquire(soon(), &client()).await.unwrap_err();
        assert_eq!(error.reason(), Reason::QueueFull);
        assert!(error.retry_after().is_some());
        waiting.await.unwrap().unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_faster_rate_is_felt_by_those_who_wait() {
        let (budget, start) = (budget(limits(1, 1, 10)), Instant::now());
        spend(&budget, soon(), client()).await.unwrap().unwrap();
        let waiting = spend(&budget, soon(), client());
        tokio::task::yield_now().await;
        advance(100 * MS).await;
        budget.set_limits(limits(1000, 10, 10));
        assert!(waiting.await.unwrap().unwrap() - start <= 101 * MS);
    }
}
