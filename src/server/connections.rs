//! The connections of a plane: how many there are, which are idle, and which one is closed when there are too many.
//!
//! An idle connection must not keep out an active one. When all places are taken, the connection that has been idle for
//! longest is closed to make a place for the next one. Connections that have shown no valid token or certificate are
//! closed first: those still in a handshake, those that have sent nothing, and those that got nothing but refusals. A
//! connection with a request under way is never closed for another.
//!
//! A request costs a few atomic operations on its own connection. The list of all connections is locked only when a
//! connection begins or ends.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::Context;
use std::time::Duration;

use futures_util::task::AtomicWaker;
use http::{HeaderMap, Request};
use hyper::body::Incoming;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::core::peer::Peer;

/// How often a new connection that waits for a place looks for an idle connection to close.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// How long an identified connection must be idle before it may be closed for another: longer than a busy client's
/// pause between two requests.
const KNOWN_KEEPS: Duration = Duration::from_secs(1);

/// Bytes that the unfinished heads of all connections of a plane may take together, without [`FREE`] of each.
const HEADS: usize = 32 * 1024 * 1024;

/// Bytes of an unfinished head that are not counted: the libraries allocate them for each connection anyway, and nearly
/// all heads are smaller.
const FREE: usize = 8 * 1024;

/// Bytes that finished HTTP/2 heads whose requests have not begun may take, over all connections of a plane.
const WAITING_HEADS: usize = 16 * 1024 * 1024;

/// The same for one connection. What it sends beyond this is not read until some of its requests have begun.
const OWN_WAITING_HEADS: usize = 128 * 1024;

/// Finished heads of one connection that may wait for their requests to begin.
const MOST_WAITING: u32 = 4;

/// Memory of a head in addition to its fields, and of each field in addition to its bytes. A header map grows by
/// doubling.
const HEAD_COST: usize = 1024;
const FIELD_COST: usize = 208;

/// All connections of a plane, over all its listeners.
#[derive(Debug)]
pub struct Connections {
    limit: usize,
    reserve: Option<Reserve>,
    open: Mutex<Open>,
    /// Notified when a connection has ended.
    left: Notify,
    heads: AtomicUsize,
    waiting_heads: AtomicUsize,
}

/// Places beyond the limit, for requests that must be served when all other places are busy.
#[derive(Debug, Clone, Copy)]
pub struct Reserve {
    /// How many there are.
    pub connections: usize,
    /// Which requests are served there. All others are refused.
    pub serves: fn(&Request<Incoming>) -> bool,
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
            heads: AtomicUsize::new(0),
            waiting_heads: AtomicUsize::new(0),
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
            // Whether somebody left or the time is up, the loop tries again.
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
        FinishedHeads {
            connections: Arc::clone(&self.connections),
            connection: Arc::clone(&self.connection),
            turn: 0,
            count: 0,
            bytes: 0,
        }
    }

    /// Counts a head that has become a request, until the request has begun.
    pub(super) fn wait_to_begin(&self, headers: &HeaderMap) -> WaitingHead {
        let fields = headers.iter().map(|(name, value)| FIELD_COST + name.as_str().len() + value.len());
        let bytes = HEAD_COST + fields.sum::<usize>();
        self.connections.waiting_heads.fetch_add(bytes, Ordering::Relaxed);
        self.connection.waiting_heads.fetch_add(1, Ordering::Relaxed);
        WaitingHead { connections: Arc::clone(&self.connections), connection: Arc::clone(&self.connection), bytes }
    }

    /// This connection's share of the memory for unfinished heads, at zero.
    pub(super) fn head_share(&self) -> HeadShare {
        HeadShare { connections: Arc::clone(&self.connections), taken: 0 }
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

/// Heads that one HTTP/2 connection has finished and of which the library may not have made requests yet. The library
/// decodes all bytes that it can read before it hands over the first request, so it is given few bytes at a time.
#[derive(Debug)]
pub(super) struct FinishedHeads {
    connections: Arc<Connections>,
    connection: Arc<Connection>,
    /// The turn in which these heads were finished.
    turn: u32,
    count: u32,
    bytes: usize,
}

impl FinishedHeads {
    /// Counts the largest memory that a head of `sent` bytes can take: a field may take one byte on the wire (RFC 7541
    /// section 6.1), and a list has at most [`LARGEST_LIST`] bytes.
    pub(super) fn add(&mut self, sent: usize) {
        let most = super::LARGEST_LIST as usize / 32 * FIELD_COST;
        let bytes = HEAD_COST + (sent * FIELD_COST).min(most);
        self.connections.waiting_heads.fetch_add(bytes, Ordering::Relaxed);
        (self.count, self.bytes) = (self.count + 1, self.bytes + bytes);
    }

    /// Whether other tasks have to run before more is read. That cannot block for ever: they wait for nothing but their
    /// turn.
    pub(super) fn must_wait(&mut self) -> bool {
        let turn = self.connection.turn.load(Ordering::Relaxed);
        if turn != self.turn {
            // The library has had time to make requests of them, or to refuse them.
            self.turn = turn;
            self.clear();
        }
        let others = self.connection.waiting_heads.load(Ordering::Relaxed);
        self.count + others >= MOST_WAITING
            || self.bytes >= OWN_WAITING_HEADS
            || self.connections.waiting_heads.load(Ordering::Relaxed) >= WAITING_HEADS
    }

    fn clear(&mut self) {
        self.connections.waiting_heads.fetch_sub(self.bytes, Ordering::Relaxed);
        (self.count, self.bytes) = (0, 0);
    }
}

impl Drop for FinishedHeads {
    fn drop(&mut self) {
        self.clear();
    }
}

/// The head of a request that has not begun.
#[derive(Debug)]
pub(super) struct WaitingHead {
    connections: Arc<Connections>,
    connection: Arc<Connection>,
    bytes: usize,
}

impl Drop for WaitingHead {
    fn drop(&mut self) {
        self.connections.waiting_heads.fetch_sub(self.bytes, Ordering::Relaxed);
        self.connection.waiting_heads.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Too many heads are unfinished at the same time, and this one is larger than [`FREE`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TooManyHeads;

/// The bytes that one connection's unfinished head takes of the memory for all heads.
#[derive(Debug)]
pub(super) struct HeadShare {
    connections: Arc<Connections>,
    taken: usize,
}

impl HeadShare {
    /// Replaces the bytes that were taken by those of a head of `bytes`.
    pub(super) fn set(&mut self, bytes: usize) -> Result<(), TooManyHeads> {
        let (heads, bytes) = (&self.connections.heads, bytes.saturating_sub(FREE));
        if bytes <= self.taken {
            if bytes < self.taken {
                heads.fetch_sub(self.taken - bytes, Ordering::Relaxed);
                self.taken = bytes;
            }
            return Ok(());
        }
        let more = bytes - self.taken;
        if heads.fetch_add(more, Ordering::Relaxed) + more > HEADS {
            heads.fetch_sub(more, Ordering::Relaxed);
            return Err(TooManyHeads);
        }
        self.taken = bytes;
        Ok(())
    }
}

impl Drop for HeadShare {
    fn drop(&mut self) {
        self.connections.heads.fetch_sub(self.taken, Ordering::Relaxed);
    }
}

/// What a connection is told to do. Each order includes those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Order {
    /// Go on.
    Stay,
    /// Tell the client to open a new connection: `Connection: close` with the next response, or GOAWAY.
    Leave,
    /// The same, and end if no request is under way.
    Close,
    /// End now to make a place for another connection, unless a request is under way.
    Yield,
    /// End now.
    End,
}

/// What other tasks know of a connection.
#[derive(Debug)]
pub(super) struct Connection {
    opened: Instant,
    /// Requests under way in the lower half, and those of them without a response in the upper half: one number, so
    /// that each step of a request costs one atomic operation.
    requests: AtomicU64,
    /// Responses that a service has given.
    answers: AtomicU32,
    /// Microseconds after `opened` at which the last request ended.
    idle_since: AtomicU64,
    order: AtomicU8,
    is_http2: AtomicBool,
    /// Ciphertext that has come since the last plaintext, and how many bytes of it belong to an incomplete TLS record.
    ciphertext: AtomicUsize,
    record: AtomicUsize,
    /// Whether the peer has not yet taken all that was sent.
    is_writing: AtomicBool,
    /// How often its task has been polled.
    turn: AtomicU32,
    /// Heads that have become requests which have not begun.
    waiting_heads: AtomicU32,
    /// Wakes the task that serves the connection.
    waker: AtomicWaker,
    /// Set once the peer is known.
    peer: OnceLock<Arc<Peer>>,
    reserve: Option<Reserve>,
}

impl Connection {
    fn new(reserve: Option<Reserve>) -> Self {
        Self {
            opened: Instant::now(),
            requests: AtomicU64::new(0),
            answers: AtomicU32::new(0),
            idle_since: AtomicU64::new(0),
            order: AtomicU8::new(Order::Stay as u8),
            is_http2: AtomicBool::new(false),
            ciphertext: AtomicUsize::new(0),
            record: AtomicUsize::new(0),
            is_writing: AtomicBool::new(false),
            turn: AtomicU32::new(0),
            waiting_heads: AtomicU32::new(0),
            waker: AtomicWaker::new(),
            peer: OnceLock::new(),
            reserve,
        }
    }

    /// A connection in a table of its own, for tests that need one.
    #[cfg(test)]
    pub(super) fn alone() -> Place {
        Arc::new(Connections::new(1)).try_enter().expect("it is the first")
    }

    pub(super) fn is_of(&self, peer: &Arc<Peer>) {
        // Set once. A peer that is judged again shares what it has shown.
        let _ = self.peer.set(Arc::clone(peer));
    }

    fn is_identified(&self) -> bool {
        self.peer.get().is_some_and(|peer| peer.is_identified())
    }

    /// Counts ciphertext that has come. `record` bytes of it belong to a record that is not complete.
    pub(super) fn has_sent_ciphertext(&self, bytes: usize, record: usize) {
        self.record.store(record, Ordering::Relaxed);
        // Only the connection's own task writes this.
        self.ciphertext.store(self.ciphertext.load(Ordering::Relaxed).saturating_add(bytes), Ordering::Relaxed);
    }

    /// Plaintext has come of all complete records.
    pub(super) fn has_sent_plaintext(&self) {
        self.ciphertext.store(self.record.load(Ordering::Relaxed), Ordering::Relaxed);
    }

    /// Bytes that came and of which no plaintext has come yet.
    pub(super) fn hidden(&self) -> usize {
        self.ciphertext.load(Ordering::Relaxed)
    }

    /// Counts one more poll of the connection's task.
    pub(super) fn next_turn(&self) {
        self.turn.fetch_add(1, Ordering::Relaxed);
    }

    /// Notes that the connection speaks HTTP/2.
    pub(super) fn speaks_http2(&self) {
        self.is_http2.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_http2(&self) -> bool {
        self.is_http2.load(Ordering::Relaxed)
    }

    /// Whether this connection is in the reserve and the request is not one that the reserve serves.
    pub(super) fn refuses(&self, request: &Request<Incoming>) -> bool {
        self.reserve.is_some_and(|reserve| !(reserve.serves)(request))
    }

    /// Counts one more request, until the response's body has been handed over.
    pub(super) fn begin(self: &Arc<Self>) -> BusyGuard {
        self.requests.fetch_add(UNANSWERED | 1, Ordering::Relaxed);
        BusyGuard { connection: Arc::clone(self), is_answered: false }
    }

    pub(super) fn is_busy(&self) -> bool {
        self.requests.load(Ordering::Relaxed) & (UNANSWERED - 1) > 0
    }

    /// Since when there has been no request; `None` while there is one.
    pub(super) fn idle_since(&self) -> Option<Instant> {
        (!self.is_busy()).then(|| self.last_ended())
    }

    /// When the last request ended.
    fn last_ended(&self) -> Instant {
        self.opened + Duration::from_micros(self.idle_since.load(Ordering::Relaxed))
    }

    /// Since when it could be closed for another; `None` while it could not.
    fn may_go_since(&self) -> Option<Instant> {
        let is_waited_for = match self.is_identified() {
            true => self.is_busy(),
            false => self.requests.load(Ordering::Relaxed) >= UNANSWERED,
        };
        (!is_waited_for).then(|| self.last_ended())
    }

    /// Whether a client waits for a response here or reads one. A refusal to an unidentified peer is short and is not
    /// waited for.
    fn is_awaited(&self) -> bool {
        self.may_go_since().is_none() || (self.is_identified() && self.is_writing.load(Ordering::Relaxed))
    }

    /// Whether no client has waited here for as long as a response takes to reach the socket.
    fn is_quiet(&self) -> bool {
        !self.is_awaited() && self.last_ended().elapsed() >= LOOK_AGAIN
    }

    /// Notes whether something that was to be written is not written yet.
    pub(super) fn writes(&self, is_writing: bool) {
        self.is_writing.store(is_writing, Ordering::Relaxed);
    }

    /// A count that changes when a service gives another response.
    pub(super) fn answers(&self) -> u32 {
        self.answers.load(Ordering::Relaxed)
    }

    /// Gives it an order, unless it has one that includes this one.
    pub(super) fn give(&self, order: Order) {
        self.order.fetch_max(order as u8, Ordering::AcqRel);
        self.waker.wake();
    }

    fn order(&self) -> Order {
        match self.order.load(Ordering::Acquire) {
            0 => Order::Stay,
            1 => Order::Leave,
            2 => Order::Close,
            3 => Order::Yield,
            _ => Order::End,
        }
    }

    /// Whether no further request will be accepted.
    pub(super) fn is_leaving(&self) -> bool {
        self.order() >= Order::Leave
    }

    /// The order. Wakes this task when there is another one.
    pub(super) fn poll_order(&self, context: &Context<'_>) -> Order {
        self.waker.register(context.waker());
        let order = self.order();
        if order == Order::Yield && self.may_go_since().is_none() {
            // A request came before the order: another connection has to be closed. If the exchange fails, there is a
            // newer order.
            let (from, to) = (Order::Yield as u8, Order::Stay as u8);
            let _ = self.order.compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire);
            return self.order();
        }
        order
    }

    /// Waits for an order of [`Order::Leave`] or above.
    pub(super) async fn told_to_leave(&self) {
        std::future::poll_fn(|context| match self.poll_order(context) {
            Order::Stay => std::task::Poll::Pending,
            _ => std::task::Poll::Ready(()),
        })
        .await;
    }
}

/// One request without a response, in [`Connection::requests`].
const UNANSWERED: u64 = 1 << 32;

/// A request under way.
#[derive(Debug)]
pub(super) struct BusyGuard {
    connection: Arc<Connection>,
    is_answered: bool,
}

impl BusyGuard {
    pub(super) fn connection(&self) -> &Connection {
        &self.connection
    }

    /// A service has given its response, which will be written now.
    pub(super) fn answered(&mut self) {
        if !std::mem::replace(&mut self.is_answered, true) {
            self.connection.requests.fetch_sub(UNANSWERED, Ordering::Relaxed);
            self.connection.answers.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Drop for BusyGuard {
    fn drop(&mut self) {
        let idle = self.connection.opened.elapsed().as_micros();
        self.connection.idle_since.store(idle.try_into().unwrap_or(u64::MAX), Ordering::Relaxed);
        let unanswered = if self.is_answered { 0 } else { UNANSWERED };
        self.connection.requests.fetch_sub(unanswered | 1, Ordering::Relaxed);
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

    #[test]
    fn heads_share_one_memory_and_give_it_back() {
        let connections = Arc::new(Connections::new(2));
        let (one, other) = (connections.try_enter().unwrap(), connections.try_enter().unwrap());
        let (mut first, mut second) = (one.head_share(), other.head_share());
        first.set(FREE + HEADS - 100).unwrap();
        assert_eq!(second.set(FREE + 101), Err(TooManyHeads));
        second.set(FREE).unwrap();
        second.set(FREE + 100).unwrap();
        first.set(0).unwrap();
        second.set(FREE + HEADS).unwrap();
        drop(second);
        first.set(FREE + HEADS).unwrap();
        drop(first);
        assert_eq!(connections.heads.load(Ordering::Relaxed), 0);
    }
}
