//! The memory for the heads of all connections of a plane: those that are not finished, and HTTP/2 heads that are
//! finished and whose requests have not begun.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use http::HeaderMap;

use super::connection::Connection;

/// Bytes of a head that the HTTP/2 library keeps, where each field counts 32 bytes more (RFC 9113 section 6.5.2). The
/// library refuses a larger list itself and without a body, so it is well above the accepted size.
pub(in crate::server) const LARGEST_LIST: u32 = 128 * 1024;

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

/// The bytes that the heads of all connections of a plane take.
#[derive(Debug, Default)]
pub(super) struct HeadMemory {
    unfinished: AtomicUsize,
    waiting: AtomicUsize,
}

impl HeadMemory {
    /// The counter of this connection's finished heads, at zero.
    pub(super) fn finished_heads(self: &Arc<Self>, connection: &Arc<Connection>) -> FinishedHeads {
        FinishedHeads { memory: Arc::clone(self), connection: Arc::clone(connection), turn: 0, count: 0, bytes: 0 }
    }

    /// Counts a head that has become a request, until the request has begun.
    pub(super) fn wait_to_begin(self: &Arc<Self>, connection: &Arc<Connection>, headers: &HeaderMap) -> WaitingHead {
        let fields = headers.iter().map(|(name, value)| FIELD_COST + name.as_str().len() + value.len());
        let bytes = HEAD_COST + fields.sum::<usize>();
        self.waiting.fetch_add(bytes, Ordering::Relaxed);
        connection.waiting_heads.fetch_add(1, Ordering::Relaxed);
        WaitingHead { memory: Arc::clone(self), connection: Arc::clone(connection), bytes }
    }

    /// A connection's share for unfinished heads, at zero.
    pub(super) fn head_share(self: &Arc<Self>) -> HeadShare {
        HeadShare { memory: Arc::clone(self), taken: 0 }
    }
}

/// Heads that one HTTP/2 connection has finished and of which the library may not have made requests yet. The library
/// decodes all bytes that it can read before it hands over the first request, so it is given few bytes at a time.
#[derive(Debug)]
pub(in crate::server) struct FinishedHeads {
    memory: Arc<HeadMemory>,
    connection: Arc<Connection>,
    /// The turn in which these heads were finished.
    turn: u32,
    count: u32,
    bytes: usize,
}

impl FinishedHeads {
    /// Counts the largest memory that a head of `sent` bytes can take: a field may take one byte on the wire (RFC 7541
    /// section 6.1), and a list has at most [`LARGEST_LIST`] bytes.
    pub(in crate::server) fn add(&mut self, sent: usize) {
        let most = LARGEST_LIST as usize / 32 * FIELD_COST;
        let bytes = HEAD_COST + (sent * FIELD_COST).min(most);
        self.memory.waiting.fetch_add(bytes, Ordering::Relaxed);
        (self.count, self.bytes) = (self.count + 1, self.bytes + bytes);
    }

    /// Whether other tasks have to run before more is read. That cannot block for ever: they wait for nothing but their
    /// turn.
    pub(in crate::server) fn must_wait(&mut self) -> bool {
        let turn = self.connection.turn.load(Ordering::Relaxed);
        if turn != self.turn {
            // The library has had time to make requests of them, or to refuse them.
            self.turn = turn;
            self.clear();
        }
        let others = self.connection.waiting_heads.load(Ordering::Relaxed);
        self.count + others >= MOST_WAITING
            || self.bytes >= OWN_WAITING_HEADS
            || self.memory.waiting.load(Ordering::Relaxed) >= WAITING_HEADS
    }

    fn clear(&mut self) {
        self.memory.waiting.fetch_sub(self.bytes, Ordering::Relaxed);
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
pub(in crate::server) struct WaitingHead {
    memory: Arc<HeadMemory>,
    connection: Arc<Connection>,
    bytes: usize,
}

impl Drop for WaitingHead {
    fn drop(&mut self) {
        self.memory.waiting.fetch_sub(self.bytes, Ordering::Relaxed);
        self.connection.waiting_heads.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Too many heads are unfinished at the same time, and this one is larger than [`FREE`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::server) struct TooManyHeads;

/// The bytes that one connection's unfinished head takes of the memory for all heads.
#[derive(Debug)]
pub(in crate::server) struct HeadShare {
    memory: Arc<HeadMemory>,
    taken: usize,
}

impl HeadShare {
    /// Replaces the bytes that were taken by those of a head of `bytes`.
    pub(in crate::server) fn set(&mut self, bytes: usize) -> Result<(), TooManyHeads> {
        let (heads, bytes) = (&self.memory.unfinished, bytes.saturating_sub(FREE));
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
        self.memory.unfinished.fetch_sub(self.taken, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::connections::Connections;

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
        assert_eq!(connections.heads.unfinished.load(Ordering::Relaxed), 0);
    }
}
