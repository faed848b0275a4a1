//! The connections of a plane: how many there are, which are idle, and which one is closed when there are too many.
//!
//! An idle connection must not keep out an active one. When all places are taken, the connection that has been idle for
//! longest is closed to make a place for the next one. Connections that have shown no valid token or certificate are
//! closed first: those still in a handshake, those that have sent nothing, and those that got nothing but refusals. A
//! connection with a request under way is never closed for another.
//!
//! A request costs a few atomic operations on its own connection. The list of all connections is locked only when a
//! connection begins or ends.

mod connection;
mod heads;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::HeaderMap;
use tokio::sync::Notify;
use tokio::time::Instant;

use self::connection::LOOK_AGAIN;
pub use self::connection::Reserve;
pub(super) use self::connection::{BusyGuard, Connection, Order};
use self::heads::HeadMemory;
pub(super) use self::heads::{FinishedHeads, HeadShare, LARGEST_LIST, TooManyHeads, WaitingHead};
use super::warning_limit::WarningLimit;

/// How long an identified connection must be idle before it may be closed for another: longer than a busy client's
/// pause between two requests.
const KNOWN_KEEPS: Duration = Duration::from_secs(1);

/// All connections of a plane, over all its listeners.
#[derive(Debug)]
pub struct Connections {
    limit: usize,
    reserve: Option<Reserve>,
    open: Mutex<Open>,
    /// Notified when a connection has ended.
    left: Notify,
    heads: Arc<HeadMemory>,
    /// Limits warnings about clients that use TLS on a listener without it.
    tls_warnings: Arc<WarningLimit>,
}

#[derive(Debug, Default)]
struct Open {
    next: u64,
    all: HashMap<u64, Arc<Connection>>,
    /// Unidentified connections that were idle for longest when all were last looked at, the longest last. Those that
    /// became idle later come after them.
    idle_strangers: Vec<(Instant, u64)>,
    /// The connection that is being closed to make a place.
    yielding: Option<Arc<Connection>>,
}

/// How many idle connections are remembered, so that not every new connection has to look at all of them.
const REMEMBERED: usize = 64;

impl Open {
    /// The connection to close first; the module's documentation says why.
    fn longest_idle(&mut self) -> Option<Arc<Connection>> {
        self.next_stranger()
            .or_else(|| {
                self.look_for_strangers();
                self.next_stranger()
            })
            .or_else(|| {
                let now = Instant::now();
                let idle = self.all.values().filter_map(|connection| Some((connection.may_go_since()?, connection)));
                let idle = idle.filter(|(since, _)| now - *since >= KNOWN_KEEPS).min_by_key(|(since, _)| *since);
                idle.map(|(_, connection)| Arc::clone(connection))
            })
    }

    fn next_stranger(&mut self) -> Option<Arc<Connection>> {
        while let Some((since, id)) = self.idle_strangers.pop() {
            let connection = self.all.get(&id);
            // It may have ended, begun a request or been identified since.
            let same = connection.filter(|other| other.may_go_since() == Some(since) && !other.is_identified());
            if let Some(connection) = same {
                return Some(Arc::clone(connection));
            }
        }
        None
    }

    fn look_for_strangers(&mut self) {
        let strangers = self.all.iter().filter(|(_, connection)| !connection.is_identified());
        let idle = strangers.filter_map(|(id, connection)| Some((connection.may_go_since()?, *id)));
        self.idle_strangers.extend(idle);
        if self.idle_strangers.len() > REMEMBERED {
            self.idle_strangers.select_nth_unstable(REMEMBERED);
            self.idle_strangers.truncate(REMEMBERED);
        }
        self.idle_strangers.sort_unstable_by(|one, other| other.cmp(one));
    }
}

impl Connections {
    /// At most `limit` at once.
    pub fn new(limit: usize) -> Self {
        Self {
            limit,
            reserve: None,
            open: Mutex::default(),
            left: Notify::new(),
            heads: Arc::default(),
            tls_warnings: Arc::default(),
        }
    }

    /// The same limit, with a reserve.
    #[must_use]
    pub fn with_reserve(self, reserve: Reserve) -> Self {
        Self { reserve: Some(reserve), ..self }
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a place. Closes an idle connection to make one, if there is one that may be closed.
    pub(super) async fn enter(self: &Arc<Self>) -> Place {
        loop {
            if let Some(place) = self.try_enter() {
                return place;
            }
            // Whether a connection ended or the time is up, the loop tries again.
            let _ = tokio::time::timeout(LOOK_AGAIN, self.left.notified()).await;
        }
    }

    fn try_enter(self: &Arc<Self>) -> Option<Place> {
        let mut open = self.lock();
        if open.all.len() < self.limit {
            return Some(self.take(&mut open, None));
        }
        // One is closed at a time: it counts as open until it has ended.
        if open.yielding.as_ref().is_some_and(|yielding| yielding.order() == Order::Yield) {
            return None;
        }
        open.yielding = open.longest_idle();
        if let Some(idle) = &open.yielding {
            idle.give(Order::Yield);
            return None;
        }
        let reserve = self.reserve.filter(|reserve| open.all.len() < self.limit + reserve.connections)?;
        Some(self.take(&mut open, Some(reserve)))
    }

    fn take(self: &Arc<Self>, open: &mut Open, reserve: Option<Reserve>) -> Place {
        let (id, connection) = (open.next, Arc::new(Connection::new(reserve)));
        open.next += 1;
        open.all.insert(id, Arc::clone(&connection));
        Place { connections: Arc::clone(self), id, connection }
    }

    /// Gives an order to every connection.
    pub(super) fn give_all(&self, order: Order) {
        self.lock().all.values().for_each(|connection| connection.give(order));
    }

    /// Whether any connection has a request under way.
    pub(super) fn are_busy(&self) -> bool {
        self.lock().all.values().any(|connection| connection.is_busy())
    }

    /// Whether any client waits for a response or is still reading one.
    pub(super) fn are_awaited(&self) -> bool {
        self.lock().all.values().any(|connection| connection.is_awaited())
    }

    /// Ends the connections on which no client waits.
    pub(super) fn end_quiet(&self) {
        let open = self.lock();
        open.all.values().filter(|connection| connection.is_quiet()).for_each(|connection| connection.give(Order::End));
    }

    /// Waits until all connections have ended.
    pub(super) async fn emptied(&self) {
        while !self.lock().all.is_empty() {
            let _ = tokio::time::timeout(LOOK_AGAIN, self.left.notified()).await;
        }
    }
}

/// A connection's place among the others. It is free again when this is dropped.
#[derive(Debug)]
pub(super) struct Place {
    connections: Arc<Connections>,
    id: u64,
    connection: Arc<Connection>,
}

impl Place {
    pub(super) fn connection(&self) -> &Arc<Connection> {
        &self.connection
    }

    /// The counter of this connection's finished heads, at zero.
    pub(super) fn finished_heads(&self) -> FinishedHeads {
        self.connections.heads.finished_heads(&self.connection)
    }

    /// Counts a head that has become a request, until the request has begun.
    pub(super) fn wait_to_begin(&self, headers: &HeaderMap) -> WaitingHead {
        self.connections.heads.wait_to_begin(&self.connection, headers)
    }

    /// This connection's share of the memory for unfinished heads, at zero.
    pub(super) fn head_share(&self) -> HeadShare {
        self.connections.heads.head_share()
    }

    pub(super) fn tls_warnings(&self) -> Arc<WarningLimit> {
        Arc::clone(&self.connections.tls_warnings)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.connections.lock();
        open.all.remove(&self.id);
        if open.yielding.as_ref().is_some_and(|yielding| Arc::ptr_eq(yielding, &self.connection)) {
            open.yielding = None;
        }
        drop(open);
        self.connections.left.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use tokio::task::JoinHandle;

    use super::*;
    use crate::core::peer::Peer;

    const S: Duration = Duration::from_secs(1);

    /// Serves until it is told to end.
    fn serve(place: Place) -> JoinHandle<()> {
        tokio::spawn(async move {
            std::future::poll_fn(|context| match place.connection().poll_order(context) {
                Order::Yield => std::task::Poll::Ready(()),
                _ => std::task::Poll::Pending,
            })
            .await;
        })
    }

    fn identified() -> Arc<Peer> {
        let peer = Arc::new(Peer::default());
        peer.identify();
        peer
    }

    #[tokio::test(start_paused = true)]
    async fn the_unidentified_connection_idle_for_longest_is_closed_first() {
        let connections = Arc::new(Connections::new(3));
        let known = connections.enter().await;
        known.connection().is_of(&identified());
        let known = serve(known);
        tokio::time::advance(S).await;
        let (asked, silent) = (connections.enter().await, connections.enter().await);
        tokio::time::advance(S).await;
        drop(asked.connection().begin());
        let (asked, silent) = (serve(asked), serve(silent));
        let newest = serve(connections.enter().await);
        silent.await.unwrap();
        assert!(!asked.is_finished() && !known.is_finished());
        let _second = connections.enter().await;
        asked.await.unwrap();
        assert!(!known.is_finished() && !newest.is_finished());
    }

    #[tokio::test(start_paused = true)]
    async fn an_identified_connection_is_closed_only_after_a_time_of_idleness() {
        let connections = Arc::new(Connections::new(1));
        let known = connections.enter().await;
        known.connection().is_of(&identified());
        tokio::time::advance(10 * S).await;
        drop(known.connection().begin());
        let known = serve(known);
        let begun = Instant::now();
        let _next = connections.enter().await;
        assert!(begun.elapsed() >= KNOWN_KEEPS && known.is_finished());
    }

    #[tokio::test(start_paused = true)]
    async fn many_are_closed_in_the_order_in_which_they_became_idle() {
        let connections = Arc::new(Connections::new(200));
        let mut first = Vec::new();
        for _ in 0..200 {
            first.push(serve(connections.enter().await));
            tokio::time::advance(S).await;
        }
        let mut second = Vec::new();
        for gone in 1..=200 {
            second.push(serve(connections.enter().await));
            tokio::time::advance(S).await;
            assert!(first.iter().take(gone).all(JoinHandle::is_finished), "{gone}");
            assert!(!first.iter().skip(gone).any(JoinHandle::is_finished), "{gone}");
        }
        assert!(!second.iter().any(JoinHandle::is_finished));
    }

    #[tokio::test(start_paused = true)]
    async fn a_busy_connection_is_never_closed_for_another() {
        let connections = Arc::new(Connections::new(1));
        let place = connections.enter().await;
        let busy = place.connection().begin();
        let served = serve(place);
        assert!(tokio::time::timeout(100 * S, connections.enter()).await.is_err());
        drop(busy);
        let _next = tokio::time::timeout(S, connections.enter()).await.expect("it is idle now");
        served.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_that_an_unidentified_client_does_not_read_keeps_no_place() {
        let connections = Arc::new(Connections::new(1));
        for is_known in [false, true] {
            let place = connections.enter().await;
            if is_known {
                place.connection().is_of(&identified());
            }
            let mut untaken = place.connection().begin();
            let served = serve(place);
            assert!(tokio::time::timeout(10 * S, connections.enter()).await.is_err());
            untaken.answered();
            let next = tokio::time::timeout(10 * S, connections.enter()).await;
            assert_eq!(next.is_err(), is_known);
            served.abort();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_reserve_is_there_when_all_are_busy() {
        let reserve = Reserve { connections: 1, serves: |_| true };
        let connections = Arc::new(Connections::new(1).with_reserve(reserve));
        let place = connections.enter().await;
        let _busy = place.connection().begin();
        let _served = serve(place);
        let reserved = connections.enter().await;
        assert!(reserved.connection().reserve.is_some());
        let reserved = serve(reserved);
        // An idle connection is closed for the next one.
        let _next = tokio::time::timeout(S, connections.enter()).await.expect("a place");
        reserved.await.unwrap();
    }
}
