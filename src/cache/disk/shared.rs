//! What the handles of the disk tier and its thread share.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Sender, SyncSender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use super::file::{DiskChange, FileSize};
use super::view::DiskFault;
use crate::cache::purge::Purge;
use crate::cache::stored::StoredResponse;
use crate::core::clock::Instant;
use crate::metrics::{Metrics, ResultLabels, StaticLabel};
use crate::request::key::Key;

/// Responses and bytes that may wait for the thread. Further responses are not written, so that a slow disk does not
/// fill the memory.
pub(super) const WAITING: u64 = 4096;
const WAITING_BYTES: u64 = 64 * 1024 * 1024;

/// Removals that may wait. Beyond these, everything on the disk is removed instead.
pub(super) const WAITING_REMOVALS: u64 = 65_536;

/// Keeps messages in memory's order: changing memory and telling the thread are one step under this lock. Restoring one
/// response is one step too, so it never overwrites a newer response or brings back a purged one.
#[derive(Debug)]
pub(super) struct OrderedSender {
    /// `None` once closed.
    pub(super) sender: Option<Sender<Message>>,
}

/// What the handles and the thread share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) metrics: Arc<Metrics>,
    pub(super) enabled: AtomicBool,
    pub(super) entries: AtomicU64,
    pub(super) bytes: AtomicU64,
    /// Records and bytes under way to the thread.
    pub(super) waiting: AtomicU64,
    pub(super) waiting_bytes: AtomicU64,
    /// Removals under way to the thread.
    pub(super) removals: AtomicU64,
    /// There were too many.
    pub(super) removals_lost: AtomicBool,
    /// Counts the purges, so that a load notices one.
    pub(super) purges: AtomicU64,
    /// What was removed since the load began that is under way. The load does not bring it back.
    pub(super) removed: Mutex<Option<HashSet<Key>>>,
    /// What is wrong, from the first failure until a page can be written again.
    pub(super) fault: Mutex<Option<DiskFault>>,
}

#[derive(Debug)]
pub(super) enum Message {
    Keep(Key, Box<StoredResponse>),
    /// Drop responses that a newer one replaced.
    Remove(Vec<Key>),
    /// Drop these responses, and the result sets that begin with these keys. Then tell whether they are gone for good,
    /// or why not.
    Purge(Purge, HashSet<Key>, SyncSender<Result<(), String>>),
    /// Save this with the pages, as soon as all changes before it are written.
    Checkpoint(Vec<u8>),
    /// Write everything, close the file, tell.
    Close(oneshot::Sender<()>),
}

pub(super) fn weight(change: &DiskChange) -> u64 {
    match change {
        DiskChange::Keep(_, stored) => page_weight(stored),
        DiskChange::Remove(_) | DiskChange::Purge(..) | DiskChange::Checkpoint(_) => 0,
    }
}

pub(super) fn page_weight(stored: &StoredResponse) -> u64 {
    stored.representation.weight() as u64
}

impl Shared {
    /// Of a tier that has not opened its file yet.
    pub(super) fn new(metrics: Arc<Metrics>) -> Self {
        Self {
            metrics,
            enabled: AtomicBool::new(false),
            entries: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            waiting: AtomicU64::new(0),
            waiting_bytes: AtomicU64::new(0),
            removals: AtomicU64::new(0),
            removals_lost: AtomicBool::new(false),
            purges: AtomicU64::new(0),
            removed: Mutex::default(),
            fault: Mutex::default(),
        }
    }

    pub(super) fn count(&self, result: &'static str, pages: u64) {
        if pages > 0 {
            self.metrics.cache_disk_writes.get_or_create(&ResultLabels { result: StaticLabel(result) }).inc_by(pages);
        }
    }

    pub(super) fn show(&self, enabled: bool, size: FileSize) {
        self.enabled.store(enabled, Ordering::Relaxed);
        self.entries.store(size.entries, Ordering::Relaxed);
        self.bytes.store(size.bytes, Ordering::Relaxed);
        self.metrics.cache_disk_entries.set(size.entries.try_into().unwrap_or(i64::MAX));
        self.metrics.cache_disk_bytes.set(size.bytes.try_into().unwrap_or(i64::MAX));
    }

    pub(super) fn removed(&self) -> MutexGuard<'_, Option<HashSet<Key>>> {
        // Each change of it is one insertion or assignment.
        self.removed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn fault(&self) -> MutexGuard<'_, Option<DiskFault>> {
        // Each change of it is one assignment.
        self.fault.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An attempt to use the file has failed at `now`.
    pub(super) fn fails(&self, cause: String, now: Instant) {
        let mut fault = self.fault();
        let since = fault.as_ref().map_or(now, |fault| fault.since);
        *fault = Some(DiskFault { since, cause });
    }

    /// A response that waited has been received.
    pub(super) fn arrived(&self, bytes: u64) {
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        self.waiting_bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    pub(super) fn has_room(&self, bytes: u64) -> bool {
        let waiting = self.waiting.load(Ordering::Relaxed);
        let waiting_bytes = self.waiting_bytes.load(Ordering::Relaxed);
        // A single response may be larger than the limit.
        waiting < WAITING && (waiting == 0 || waiting_bytes + bytes <= WAITING_BYTES)
    }
}

impl OrderedSender {
    /// Sends a message. `false` if the thread no longer takes any. A process that is about to end writes nothing more.
    pub(super) fn send(&self, message: Message) -> bool {
        self.sender.as_ref().is_some_and(|sender| sender.send(message).is_ok())
    }
}

pub(super) fn lock(order: &Mutex<OrderedSender>) -> MutexGuard<'_, OrderedSender> {
    // It guards no data that a panic could leave half done.
    order.lock().unwrap_or_else(PoisonError::into_inner)
}
