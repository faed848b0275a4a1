//! The clients that wait for an upstream call, by team.
//!
//! Identical requests of several teams can share one call, and clients disconnect. A call that is queued for a token
//! reads here whether any client still waits, for which teams it is queued, with which urgency, and with how many
//! clients.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use crate::accounts::Team;
use crate::core::clock::Instant;
use crate::semantics::request_directives::Urgency;

/// The clients that wait for one upstream call.
#[derive(Debug)]
pub struct Waiters {
    /// One entry for each team and urgency of the clients that wait.
    clients: Mutex<Vec<TeamWaiters>>,
    /// Grows with each change that a queued call has to see.
    version: AtomicU64,
    changed: Notify,
    refresh: bool,
    /// When the call is expected to be sent, while it is queued.
    estimated_start: Mutex<Option<Instant>>,
    /// The deadlines of the clients; `None` before the first.
    needed: Mutex<Option<ClientDeadlines>>,
}

/// The deadlines of the clients, including those that have left.
#[derive(Debug, Clone, Copy)]
struct ClientDeadlines {
    earliest: Instant,
    latest: Instant,
    /// The latest deadline that the queued call was notified of.
    announced: Instant,
}

/// The clients of one team that wait for a call.
#[derive(Debug, Clone)]
pub struct TeamWaiters {
    /// The team for which the call is queued, and which may be charged for it.
    pub team: Arc<Team>,
    /// The most urgent of the team's clients.
    pub urgency: Urgency,
    /// How many of the team's clients have this urgency.
    pub waiter_count: WaiterCount,
}

/// A number of waiting clients. Clones share the number, which changes as clients come and leave.
#[derive(Debug, Clone, Default)]
pub struct WaiterCount(Arc<AtomicUsize>);

impl WaiterCount {
    /// The number now.
    pub fn size(&self) -> usize {
        self.0.load(SeqCst)
    }

    /// Adds one; returns the number before.
    fn grow(&self) -> usize {
        self.0.fetch_add(1, SeqCst)
    }

    /// Removes one; returns the number before.
    fn shrink(&self) -> usize {
        self.0.fetch_sub(1, SeqCst)
    }
}

impl Waiters {
    /// The waiters of a call for clients; it is abandoned when the last of them leaves.
    pub fn of_clients() -> Arc<Self> {
        Self::new(false)
    }

    /// The waiters of a background refresh; it goes on without any.
    pub fn of_refresh() -> Arc<Self> {
        Self::new(true)
    }

    fn new(refresh: bool) -> Arc<Self> {
        let (clients, version, changed) = (Mutex::default(), AtomicU64::default(), Notify::new());
        Arc::new(Self {
            clients,
            version,
            changed,
            refresh,
            estimated_start: Mutex::default(),
            needed: Mutex::default(),
        })
    }

    /// Adds a client, until the guard is dropped.
    pub fn join(self: &Arc<Self>, team: &Arc<Team>, urgency: Urgency) -> Waiter {
        let mut clients = self.lock();
        let place = match clients.iter().position(|known| known.is(team, urgency)) {
            Some(place) => place,
            None => {
                clients.push(TeamWaiters { team: Arc::clone(team), urgency, waiter_count: WaiterCount::default() });
                clients.len() - 1
            }
        };
        let first = clients[place].waiter_count.grow() == 0;
        drop(clients);
        if first {
            self.announce();
        }
        Waiter { waiters: Arc::clone(self), team: Arc::clone(team), urgency }
    }

    fn leave(&self, team: &Arc<Team>, urgency: Urgency) {
        let mut clients = self.lock();
        let Some(place) = clients.iter().position(|known| known.is(team, urgency)) else { return };
        let last = clients[place].waiter_count.shrink() == 1;
        if last {
            clients.swap_remove(place);
        }
        drop(clients);
        if last {
            self.announce();
        }
    }

    fn announce(&self) {
        self.version.fetch_add(1, SeqCst);
        self.changed.notify_waiters();
    }

    /// The teams that wait, each once with its most urgent clients; and the version to pass to
    /// [`changed`](Self::changed).
    pub fn waiting_teams(&self) -> (Vec<TeamWaiters>, u64) {
        let clients = self.lock();
        let mut waiting_teams: Vec<TeamWaiters> = Vec::with_capacity(clients.len());
        for team_waiters in clients.iter() {
            match waiting_teams.iter_mut().find(|known| known.team.name == team_waiters.team.name) {
                Some(known) if known.urgency <= team_waiters.urgency => {}
                Some(known) => *known = team_waiters.clone(),
                None => waiting_teams.push(team_waiters.clone()),
            }
        }
        // Read under the lock: a later change has a later version.
        (waiting_teams, self.version.load(SeqCst))
    }

    /// Sets when the queued call is expected to be sent; `None` when it is not queued.
    pub fn set_estimated_start(&self, estimated_start: Option<Instant>) {
        *self.estimated_start.lock().unwrap_or_else(PoisonError::into_inner) = estimated_start;
    }

    /// When the queued call is expected to be sent; `None` when it is not queued.
    pub fn estimated_start(&self) -> Option<Instant> {
        *self.estimated_start.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds the deadline of a client. It still counts after that client has left.
    pub fn need_by(&self, deadline: Instant) {
        /// Among many clients each has a slightly later deadline than the one before; the queued call is not notified of
        /// each.
        const MUCH_LATER: Duration = Duration::from_secs(1);
        let mut needed = self.needed.lock().unwrap_or_else(PoisonError::into_inner);
        let is_news = match needed.as_mut() {
            None => {
                *needed = Some(ClientDeadlines { earliest: deadline, latest: deadline, announced: deadline });
                true
            }
            Some(ClientDeadlines { earliest, latest, announced }) => {
                let (is_earlier, is_much_later) = (deadline < *earliest, deadline > *announced + MUCH_LATER);
                (*earliest, *latest) = ((*earliest).min(deadline), (*latest).max(deadline));
                if is_much_later {
                    *announced = deadline;
                }
                is_earlier || is_much_later
            }
        };
        drop(needed);
        if is_news {
            self.announce();
        }
    }

    /// The earliest deadline of a client.
    pub fn needed_by(&self) -> Option<Instant> {
        self.needed().map(|needed| needed.earliest)
    }

    /// The latest deadline of a client: a call that is sent later is of no use. `None` for a refresh, which is of use
    /// without clients.
    pub fn useful_until(&self) -> Option<Instant> {
        self.needed().map(|needed| needed.latest).filter(|_| !self.refresh)
    }

    fn needed(&self) -> Option<ClientDeadlines> {
        *self.needed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether this is a background refresh, with or without clients that wait for it.
    pub fn is_refresh(&self) -> bool {
        self.refresh
    }

    /// Completes when no client waits any more; never for a refresh.
    pub async fn abandoned(&self) {
        if self.refresh {
            return std::future::pending().await;
        }
        self.until(|| !self.is_wanted()).await;
    }

    /// Completes when a client waits.
    pub async fn wanted(&self) {
        self.until(|| self.is_wanted()).await;
    }

    /// Whether a client waits.
    pub fn is_wanted(&self) -> bool {
        !self.lock().is_empty()
    }

    /// Completes when the teams or the deadlines have changed since the version `seen`.
    pub async fn changed(&self, seen: u64) {
        self.until(|| self.version.load(SeqCst) != seen).await;
    }

    async fn until(&self, reached: impl Fn() -> bool) {
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            // Registered before the check: a change between the check and the wait must not be missed.
            changed.as_mut().enable();
            if reached() {
                return;
            }
            changed.await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<TeamWaiters>> {
        // Every change under this lock is complete before anything that could panic.
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl TeamWaiters {
    fn is(&self, team: &Arc<Team>, urgency: Urgency) -> bool {
        self.urgency == urgency && self.team.name == team.name
    }
}

/// A client that waits, until this is dropped.
#[derive(Debug)]
pub struct Waiter {
    waiters: Arc<Waiters>,
    team: Arc<Team>,
    urgency: Urgency,
}

impl Waiter {
    /// See [`Waiters::estimated_start`].
    pub fn estimated_start(&self) -> Option<Instant> {
        self.waiters.estimated_start()
    }

    /// See [`Waiters::need_by`].
    pub fn need_by(&self, deadline: Instant) {
        self.waiters.need_by(deadline);
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        self.waiters.leave(&self.team, self.urgency);
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::*;

    fn team(name: &str) -> Arc<Team> {
        Arc::new(Team::example(name))
    }

    fn join(waiters: &Arc<Waiters>) -> Waiter {
        waiters.join(&team("one"), Urgency::default())
    }

    #[tokio::test(start_paused = true)]
    async fn the_last_to_leave_abandons() {
        let waiters = Waiters::of_clients();
        let (one, two) = (join(&waiters), join(&waiters));
        drop(one);
        assert!(timeout(Duration::from_secs(1), waiters.abandoned()).await.is_err());
        drop(two);
        waiters.abandoned().await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_refresh_is_never_abandoned_but_may_become_wanted() {
        let waiters = Waiters::of_refresh();
        assert!(timeout(Duration::from_secs(1), waiters.abandoned()).await.is_err());
        assert!(timeout(Duration::from_secs(1), waiters.wanted()).await.is_err());
        let _client = join(&waiters);
        waiters.wanted().await;
    }

    #[tokio::test(start_paused = true)]
    async fn each_team_is_named_once_with_its_most_urgent_client() {
        let waiters = Waiters::of_clients();
        let (calm, urgent) = (Urgency::default(), Urgency::new(1));
        let _one = waiters.join(&team("one"), calm);
        let two = waiters.join(&team("two"), calm);
        let (_, seen) = waiters.waiting_teams();
        let more = waiters.join(&team("two"), calm);
        assert!(timeout(Duration::from_secs(1), waiters.changed(seen)).await.is_err(), "nothing new");
        let hurried = waiters.join(&team("two"), urgent);
        waiters.changed(seen).await;
        let named = |waiters: &Arc<Waiters>| {
            let mut named: Vec<_> =
                waiters.waiting_teams().0.iter().map(|s| (s.team.name.to_string(), s.urgency.level())).collect();
            named.sort();
            named
        };
        assert_eq!(named(&waiters), [("one".to_owned(), 3), ("two".to_owned(), 1)]);
        drop((two, more, hurried));
        assert_eq!(named(&waiters), [("one".to_owned(), 3)]);
    }

    #[tokio::test(start_paused = true)]
    async fn clients_are_counted_without_a_notification() {
        let waiters = Waiters::of_clients();
        let _calm = waiters.join(&team("one"), Urgency::new(7));
        let one = join(&waiters);
        let (waiting_teams, seen) = waiters.waiting_teams();
        let more = [(); 3].map(|()| join(&waiters));
        assert_eq!(waiting_teams[0].waiter_count.size(), 4, "of those that are as urgent");
        drop((one, more));
        assert_eq!(waiting_teams[0].waiter_count.size(), 0);
        waiters.changed(seen).await;
        assert_eq!(waiters.waiting_teams().0[0].waiter_count.size(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn an_earlier_or_much_later_deadline_notifies() {
        let (waiters, now) = (Waiters::of_clients(), Instant::now());
        let client = join(&waiters);
        client.need_by(now + Duration::from_secs(9));
        let (_, seen) = waiters.waiting_teams();
        client.need_by(now + Duration::from_secs(9));
        assert!(timeout(Duration::from_secs(1), waiters.changed(seen)).await.is_err(), "nothing new");
        client.need_by(now + Duration::from_secs(8));
        waiters.changed(seen).await;
        let (_, seen) = waiters.waiting_teams();
        client.need_by(now + Duration::from_millis(9500));
        assert!(timeout(Duration::from_secs(1), waiters.changed(seen)).await.is_err(), "not much later");
        client.need_by(now + Duration::from_secs(11));
        waiters.changed(seen).await;
        assert_eq!(waiters.needed_by(), Some(now + Duration::from_secs(8)));
        assert_eq!(waiters.useful_until(), Some(now + Duration::from_secs(11)));
        let refresh = Waiters::of_refresh();
        join(&refresh).need_by(now);
        assert_eq!((refresh.needed_by(), refresh.useful_until()), (Some(now), None));
    }
}
