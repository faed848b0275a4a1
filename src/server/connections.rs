//! The connections of a plane: how many there are, which are idle, and which one goes when there are too many.
//!
//! A connection that asks for nothing must not keep out one that does. When all places are taken, the connection that
//! has been idle for longest is closed for the next one: first of those on which nobody has shown a good token or
//! certificate, be it that they are still in a handshake, have said nothing at all or got nothing but refusals. A
//! connection with a request under way is never closed for another.
//!
//! A request costs a few atomic operations on its own connection. The list of all is locked only when a connection
//! comes or goes.

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

/// How soon it is looked again for a connection that has become idle, while a new one waits for its place.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// How long a connection on which somebody has shown who it is may be idle before it goes for another: longer than a
/// client that is busy takes between two requests.
const KNOWN_KEEPS: Duration = Duration::from_secs(1);

/// Bytes that the unfinished heads of all connections of a plane may take, beyond what each has for free.
const HEADS: usize = 32 * 1024 * 1024;

/// Bytes of an unfinished head that each connection has for free: the libraries have memory for them anyway, and nearly
/// all heads are smaller.
const FREE: usize = 8 * 1024;

/// Bytes that the finished heads of HTTP/2 may take whose requests have not begun, over all connections of a plane.
const WAITING_HEADS: usize = 16 * 1024 * 1024;

/// The same of one connection. What it sends beyond stays on the wire until some have begun.
const OWN_WAITING_HEADS: usize = 128 * 1024;

/// Finished heads of one connection that may wait.
const MOST_WAITING: u32 = 4;

/// What a head takes beside its fields, and each field beside its bytes. A map of headers grows by doubling.
const HEAD_COST: usize = 1024;
const FIELD_COST: usize = 208;

/// All connections of a plane, over all its listeners.
#[derive(Debug)]
pub struct Connections {
    limit: usize,
    reserve: Option<Reserve>,
    open: Mutex<Open>,
    /// Somebody has left.
    left: Notify,
    heads: AtomicUsize,
    waiting_heads: AtomicUsize,
}

/// Places beyond the limit, for what must get through when all others are busy.
#[derive(Debug, Clone, Copy)]
pub struct Reserve {
    /// How many there are.
    pub connections: usize,
    /// What is served there. Anything else is refused.
    pub serves: fn(&Request<Incoming>) -> bool,
}

#[derive(Debug, Default)]
struct Open {
    next: u64,
    all: HashMap<u64, Arc<Connection>>,
    /// Strangers that were idle for longest when all were last looked at, the longest last. Those that have come to be
    /// idle since are behind them.
    idle_strangers: Vec<(Instant, u64)>,
    /// Who goes for the next one.
    yielding: Option<Arc<Connection>>,
}

/// How many of the idle are remembered, so that not all connections are looked at for each new one.
const REMEMBERED: usize = 64;

impl Open {
    /// Who is to go first: see the module.
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
            // It may have left, asked for something or shown who it is.
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

    /// The same, with a reserve.
    #[must_use]
    pub fn with_reserve(self, reserve: Reserve) -> Self {
        Self { reserve: Some(reserve), ..self }
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a place, and makes one if an idle connection can go.
    pub(super) async fn enter(self: &Arc<Self>) -> Place {
        loop {
            if let Some(place) = self.try_enter() {
                return place;
            }
            // However this ends, it is tried again.
            let _ = tokio::time::timeout(LOOK_AGAIN, self.left.notified()).await;
        }
    }

    fn try_enter(self: &Arc<Self>) -> Option<Place> {
        let mut open = self.lock();
        if open.all.len() < self.limit {
            return Some(self.take(&mut open, None));
        }
        // One goes at a time: it is counted until it is gone.
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

    /// Has any a request under way.
    pub(super) fn are_busy(&self) -> bool {
        self.lock().all.values().any(|connection| connection.is_busy())
    }

    /// Is anybody waiting for an answer, or still taking one.
    pub(super) fn are_awaited(&self) -> bool {
        self.lock().all.values().any(|connection| connection.is_awaited())
    }

    /// Ends those on which nobody is.
    pub(super) fn end_quiet(&self) {
        let open = self.lock();
        open.all.values().filter(|connection| connection.is_quiet()).for_each(|connection| connection.give(Order::End));
    }

    /// Waits until all have left.
    pub(super) async fn emptied(&self) {
        while !self.lock().all.is_empty() {
            let _ = tokio::time::timeout(LOOK_AGAIN, self.left.notified()).await;
        }
    }
}

/// A connection's place among the others, until it is dropped.
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

    /// This connection's finished heads, of which there are none yet.
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

    /// A share of the memory for unfinished heads, of nothing yet.
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

/// Heads that one HTTP/2 connection has finished and the library may not have made requests of. It unpacks all that it
/// can read before it hands over the first request, so it is given little at a time.
#[derive(Debug)]
pub(super) struct FinishedHeads {
    connections: Arc<Connections>,
    connection: Arc<Connection>,
    /// The turn in which they were finished.
    turn: u32,
    count: u32,
    bytes: usize,
}

impl FinishedHeads {
    /// What a head costs at most that was sent in so many bytes: a field may take one byte (RFC 7541 section 6.1), and
    /// a list has [`LARGEST_LIST`] bytes.
    pub(super) fn add(&mut self, sent: usize) {
        let most = super::LARGEST_LIST as usize / 32 * FIELD_COST;
        let bytes = HEAD_COST + (sent * FIELD_COST).min(most);
        self.connections.waiting_heads.fetch_add(bytes, Ordering::Relaxed);
        (self.count, self.bytes) = (self.count + 1, self.bytes + bytes);
    }

    /// Have others to go on before any more is read. They can: none of them waits for anything but its turn.
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

/// Too many heads are unfinished at once, and this one is larger than most are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TooManyHeads;

/// What one connection's unfinished head takes of the memory for all.
#[derive(Debug)]
pub(super) struct HeadShare {
    connections: Arc<Connections>,
    taken: usize,
}

impl HeadShare {
    /// Takes what a head of so many bytes takes, instead of what it had.
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

/// What a connection is told to do. Later ones include earlier ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Order {
    /// Nothing.
    Stay,
    /// Tell the client to make a new one: `Connection: close` with the next answer, or GOAWAY.
    Leave,
    /// The same, and end if nothing is under way.
    Close,
    /// End now for another connection, unless something is under way.
    Yield,
    /// End now.
    End,
}

/// What others know of a connection.
#[derive(Debug)]
pub(super) struct Connection {
    opened: Instant,
    /// Requests under way in the lower half, and those of them without an answer in the upper: one number, so that
    /// each step of a request costs one operation.
    requests: AtomicU64,
    /// Answers that a service has given.
    answers: AtomicU32,
    /// Microseconds after `opened` at which the last request ended.
    idle_since: AtomicU64,
    order: AtomicU8,
    is_http2: AtomicBool,
    /// Ciphertext that has come since the last plaintext, and what of it is in a record that is not whole.
    ciphertext: AtomicUsize,
    record: AtomicUsize,
    /// Has the other end not taken yet what it is sent.
    is_writing: AtomicBool,
    /// How often its task has been polled.
    turn: AtomicU32,
    /// Heads that have become requests and have not begun.
    waiting_heads: AtomicU32,
    /// Of the task that serves it.
    waker: AtomicWaker,
    /// Once it is known.
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

    /// A place of a table of its own, for tests that need one.
    #[cfg(test)]
    pub(super) fn alone() -> Place {
        Arc::new(Connections::new(1)).try_enter().expect("it is the first")
    }

    pub(super) fn is_of(&self, peer: &Arc<Peer>) {
        // Set once; a peer that is judged anew shares what it has shown.
        let _ = self.peer.set(Arc::clone(peer));
    }

    fn is_identified(&self) -> bool {
        self.peer.get().is_some_and(|peer| peer.is_identified())
    }

    /// So much ciphertext has come, so that the last record lacks its end behind `record` bytes.
    pub(super) fn has_sent_ciphertext(&self, bytes: usize, record: usize) {
        self.record.store(record, Ordering::Relaxed);
        // Its task alone writes this.
        self.ciphertext.store(self.ciphertext.load(Ordering::Relaxed).saturating_add(bytes), Ordering::Relaxed);
    }

    /// Plaintext has come of all records that are whole.
    pub(super) fn has_sent_plaintext(&self) {
        self.ciphertext.store(self.record.load(Ordering::Relaxed), Ordering::Relaxed);
    }

    /// Bytes that came and of which no plaintext has come yet.
    pub(super) fn hidden(&self) -> usize {
        self.ciphertext.load(Ordering::Relaxed)
    }

    /// Its task is polled again.
    pub(super) fn next_turn(&self) {
        self.turn.fetch_add(1, Ordering::Relaxed);
    }

    /// It speaks HTTP/2.
    pub(super) fn speaks_http2(&self) {
        self.is_http2.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_http2(&self) -> bool {
        self.is_http2.load(Ordering::Relaxed)
    }

    /// Is there something that this connection is not kept for.
    pub(super) fn refuses(&self, request: &Request<Incoming>) -> bool {
        self.reserve.is_some_and(|reserve| !(reserve.serves)(request))
    }

    /// One more request, until the answer's body has been handed over.
    pub(super) fn begin(self: &Arc<Self>) -> BusyGuard {
        self.requests.fetch_add(UNANSWERED | 1, Ordering::Relaxed);
        BusyGuard { connection: Arc::clone(self), is_answered: false }
    }

    pub(super) fn is_busy(&self) -> bool {
        self.requests.load(Ordering::Relaxed) & (UNANSWERED - 1) > 0
    }

    /// Since when there is no request; none while there is one.
    pub(super) fn idle_since(&self) -> Option<Instant> {
        (!self.is_busy()).then(|| self.last_ended())
    }

    /// When the last request ended.
    fn last_ended(&self) -> Instant {
        self.opened + Duration::from_micros(self.idle_since.load(Ordering::Relaxed))
    }

    /// Since when it could go for another; none while it cannot.
    fn may_go_since(&self) -> Option<Instant> {
        let is_waited_for = match self.is_identified() {
            true => self.is_busy(),
            false => self.requests.load(Ordering::Relaxed) >= UNANSWERED,
        };
        (!is_waited_for).then(|| self.last_ended())
    }

    /// Does somebody wait for an answer there, or take one: a stranger's refusal is short, and not waited for.
    fn is_awaited(&self) -> bool {
        self.may_go_since().is_none() || (self.is_identified() && self.is_writing.load(Ordering::Relaxed))
    }

    /// Has nobody waited there for as long as an answer is on its way to the socket.
    fn is_quiet(&self) -> bool {
        !self.is_awaited() && self.last_ended().elapsed() >= LOOK_AGAIN
    }

    /// Whether something that was to be written is not yet.
    pub(super) fn writes(&self, is_writing: bool) {
        self.is_writing.store(is_writing, Ordering::Relaxed);
    }

    /// Tells whether a service has given another answer since.
    pub(super) fn answers(&self) -> u32 {
        self.answers.load(Ordering::Relaxed)
    }

    /// Gives it an order, unless it has one that includes it.
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

    /// Will there be no further request.
    pub(super) fn is_leaving(&self) -> bool {
        self.order() >= Order::Leave
    }

    /// The order, and wakes this task when there is another.
    pub(super) fn poll_order(&self, context: &Context<'_>) -> Order {
        self.waker.register(context.waker());
        let order = self.order();
        if order == Order::Yield && self.may_go_since().is_none() {
            // A request came before the order did: another connection has to go. If it is a failure, there is another
            // order.
            let (from, to) = (Order::Yield as u8, Order::Stay as u8);
            let _ = self.order.compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire);
            return self.order();
        }
        order
    }

    /// Waits for an order to leave or more.
    pub(super) async fn told_to_leave(&self) {
        std::future::poll_fn(|context| match self.poll_order(context) {
            Order::Stay => std::task::Poll::Pending,
            _ => std::task::Poll::Ready(()),
        })
        .await;
    }
}

/// In [`Connection::requests`].
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

    /// A service has given its answer, which is going to be written.
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
    async fn the_stranger_that_was_idle_for_longest_goes_first() {
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
    async fn one_that_is_known_goes_only_when_it_has_been_idle_for_a_while() {
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
    async fn many_go_in_the_order_in_which_they_became_idle() {
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
    async fn a_refusal_that_a_stranger_does_not_take_keeps_no_place() {
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
        // One that is idle goes for the next one.
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
