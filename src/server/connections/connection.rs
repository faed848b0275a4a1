//! One connection: what other tasks know about it, and what they tell it to do.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::task::AtomicWaker;
use http::Request;
use hyper::body::Incoming;
use tokio::time::Instant;

#[cfg(test)]
use super::{Connections, Place};
use crate::core::peer::Peer;

/// How often a new connection that waits for a place looks for an idle connection to close.
pub(super) const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// Places beyond the limit, for requests that must be served when all other places are busy.
#[derive(Debug, Clone, Copy)]
pub struct Reserve {
    /// How many there are.
    pub connections: usize,
    /// Which requests are served there. All others are refused.
    pub serves: fn(&Request<Incoming>) -> bool,
}

/// What other tasks tell a connection to do. Each order includes those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::server) enum Order {
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
pub(in crate::server) struct Connection {
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
    pub(super) turn: AtomicU32,
    /// Heads that have become requests which have not begun.
    pub(super) waiting_heads: AtomicU32,
    /// Wakes the task that serves the connection.
    waker: AtomicWaker,
    /// Set once the peer is known.
    peer: OnceLock<Arc<Peer>>,
    pub(super) reserve: Option<Reserve>,
}

impl Connection {
    pub(super) fn new(reserve: Option<Reserve>) -> Self {
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
    pub(in crate::server) fn alone() -> Place {
        Arc::new(Connections::new(1)).try_enter().expect("it is the first")
    }

    /// The peer's name, as far as it is known.
    pub(in crate::server) fn peer_name(&self) -> &str {
        self.peer.get().map_or("", |peer| peer.as_str())
    }

    pub(in crate::server) fn is_of(&self, peer: &Arc<Peer>) {
        // Set once. A peer that is judged again shares what it has shown.
        let _ = self.peer.set(Arc::clone(peer));
    }

    pub(super) fn is_identified(&self) -> bool {
        self.peer.get().is_some_and(|peer| peer.is_identified())
    }

    /// Counts ciphertext that has come. `record` bytes of it belong to a record that is not complete.
    pub(in crate::server) fn has_sent_ciphertext(&self, bytes: usize, record: usize) {
        self.record.store(record, Ordering::Relaxed);
        // Only the connection's own task writes this.
        self.ciphertext.store(self.ciphertext.load(Ordering::Relaxed).saturating_add(bytes), Ordering::Relaxed);
    }

    /// Plaintext has come of all complete records.
    pub(in crate::server) fn has_sent_plaintext(&self) {
        self.ciphertext.store(self.record.load(Ordering::Relaxed), Ordering::Relaxed);
    }

    /// Bytes that came and of which no plaintext has come yet.
    pub(in crate::server) fn hidden(&self) -> usize {
        self.ciphertext.load(Ordering::Relaxed)
    }

    /// Counts one more poll of the connection's task.
    pub(in crate::server) fn next_turn(&self) {
        self.turn.fetch_add(1, Ordering::Relaxed);
    }

    /// Notes that the connection speaks HTTP/2.
    pub(in crate::server) fn speaks_http2(&self) {
        self.is_http2.store(true, Ordering::Relaxed);
    }

    pub(in crate::server) fn is_http2(&self) -> bool {
        self.is_http2.load(Ordering::Relaxed)
    }

    /// Whether this connection is in the reserve and the request is not one that the reserve serves.
    pub(in crate::server) fn refuses(&self, request: &Request<Incoming>) -> bool {
        self.reserve.is_some_and(|reserve| !(reserve.serves)(request))
    }

    /// Counts one more request, until the response's body has been handed over.
    pub(in crate::server) fn begin(self: &Arc<Self>) -> BusyGuard {
        self.requests.fetch_add(UNANSWERED | 1, Ordering::Relaxed);
        BusyGuard { connection: Arc::clone(self), is_answered: false }
    }

    pub(in crate::server) fn is_busy(&self) -> bool {
        self.requests.load(Ordering::Relaxed) & (UNANSWERED - 1) > 0
    }

    /// Since when there has been no request; `None` while there is one.
    pub(in crate::server) fn idle_since(&self) -> Option<Instant> {
        (!self.is_busy()).then(|| self.last_ended())
    }

    /// When the last request ended.
    fn last_ended(&self) -> Instant {
        self.opened + Duration::from_micros(self.idle_since.load(Ordering::Relaxed))
    }

    /// Since when it could be closed for another; `None` while it could not.
    pub(super) fn may_go_since(&self) -> Option<Instant> {
        let is_waited_for = match self.is_identified() {
            true => self.is_busy(),
            false => self.requests.load(Ordering::Relaxed) >= UNANSWERED,
        };
        (!is_waited_for).then(|| self.last_ended())
    }

    /// Whether a client waits for a response here or reads one. A refusal to an unidentified peer is short and is not
    /// waited for.
    pub(super) fn is_awaited(&self) -> bool {
        self.may_go_since().is_none() || (self.is_identified() && self.is_writing.load(Ordering::Relaxed))
    }

    /// Whether no client has waited here for as long as a response takes to reach the socket.
    pub(super) fn is_quiet(&self) -> bool {
        !self.is_awaited() && self.last_ended().elapsed() >= LOOK_AGAIN
    }

    /// Notes whether something that was to be written is not written yet.
    pub(in crate::server) fn writes(&self, is_writing: bool) {
        self.is_writing.store(is_writing, Ordering::Relaxed);
    }

    /// A count that changes when a service gives another response.
    pub(in crate::server) fn answers(&self) -> u32 {
        self.answers.load(Ordering::Relaxed)
    }

    /// Gives it an order, unless it has one that includes this one.
    pub(in crate::server) fn give(&self, order: Order) {
        self.order.fetch_max(order as u8, Ordering::AcqRel);
        self.waker.wake();
    }

    pub(super) fn order(&self) -> Order {
        match self.order.load(Ordering::Acquire) {
            0 => Order::Stay,
            1 => Order::Leave,
            2 => Order::Close,
            3 => Order::Yield,
            _ => Order::End,
        }
    }

    /// Whether no further request will be accepted.
    pub(in crate::server) fn is_leaving(&self) -> bool {
        self.order() >= Order::Leave
    }

    /// The order. Wakes this task when there is another one.
    pub(in crate::server) fn poll_order(&self, context: &Context<'_>) -> Order {
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
    pub(in crate::server) async fn told_to_leave(&self) {
        std::future::poll_fn(|context| match self.poll_order(context) {
            Order::Stay => Poll::Pending,
            _ => Poll::Ready(()),
        })
        .await;
    }
}

/// One request without a response, in [`Connection::requests`].
const UNANSWERED: u64 = 1 << 32;

/// A request under way.
#[derive(Debug)]
pub(in crate::server) struct BusyGuard {
    connection: Arc<Connection>,
    is_answered: bool,
}

impl BusyGuard {
    pub(in crate::server) fn connection(&self) -> &Connection {
        &self.connection
    }

    /// A service has given its response, which will be written now.
    pub(in crate::server) fn answered(&mut self) {
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
