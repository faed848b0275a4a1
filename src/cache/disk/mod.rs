//! The disk tier: pages that survive a restart.
//!
//! Memory stays what is asked; the disk only follows it. One thread of its own does all that blocks. It is told
//! of every page kept, every page that another one ended and every purge, in the order in which they happened, and commits
//! in batches, so that a kill loses what the last second changed and nothing else. A page that cannot be written takes the
//! older one with it. A purge has happened once it is on the disk; where it cannot be written, the file is removed, and so
//! it is where not even the removal of a page can. On start the same thread loads what is still of use
//! while the gateway already answers; misses wait for it a moment, since a page that is about to appear should
//! cost no token.
//!
//! Nothing that is wrong with the disk stops the gateway: the tier then goes without, says why, and tries again.

mod file;
mod worker;

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, Sender, SyncSender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use tokio::sync::{oneshot, watch};

use self::file::Size;
use self::worker::{RemovalsOnly, Worker};
use super::entry::Entry;
use super::memory::Memory;
use super::purge::Purge;
use super::record::Boot;
use crate::core::clock::{Clock, Instant};
use crate::metrics::{Metrics, ResultLabels, StaticLabel};
use crate::request::key::Key;

/// What may wait for the thread. Beyond, pages are not written: memory must not fill up behind a slow disk.
const WAITING: u64 = 4096;
const WAITING_BYTES: u64 = 64 * 1024 * 1024;

/// So many removals may wait. Beyond, everything on the disk is removed instead.
const WAITING_REMOVALS: u64 = 65_536;

/// Misses wait for the pages on disk until so long after the start.
const LOADING_PATIENCE: Duration = Duration::from_secs(2);

/// How long closing may take.
const CLOSING_PATIENCE: Duration = Duration::from_secs(5);

/// How long a purge may take to reach the disk.
const PURGE_PATIENCE: Duration = Duration::from_secs(30);

/// Where and how much.
#[derive(Debug, Clone)]
pub struct DiskSettings {
    /// The folder, made if absent.
    pub folder: PathBuf,
    /// Bytes that the pages may take there.
    pub capacity: u64,
}

/// The disk tier at a glance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskView {
    /// Does it have its file.
    pub enabled: bool,
    /// Pages in it.
    pub entries: u64,
    /// What they count against the capacity.
    pub bytes: u64,
}

/// The handle. Cheap to clone; when the last one goes, the thread writes what it has and ends.
#[derive(Debug, Clone)]
pub(super) struct Disk {
    folder: PathBuf,
    order: Arc<Mutex<Order>>,
    shared: Arc<Shared>,
    loaded: watch::Receiver<bool>,
    patience: Instant,
}

/// What must not be overtaken: a change of memory, and telling the thread of it, are one step. So is the
/// restoring of one page, which therefore never overwrites a newer page or brings back a purged one.
#[derive(Debug)]
struct Order {
    /// `None` once closed.
    sender: Option<Sender<Message>>,
}

/// What the handles and the thread both know.
#[derive(Debug)]
struct Shared {
    metrics: Arc<Metrics>,
    enabled: AtomicBool,
    entries: AtomicU64,
    bytes: AtomicU64,
    /// Records and bytes under way to the thread.
    waiting: AtomicU64,
    waiting_bytes: AtomicU64,
    /// Removals under way to the thread.
    removals: AtomicU64,
    /// There were too many.
    removals_lost: AtomicBool,
    /// Counts the purges, so that a load notices one.
    purges: AtomicU64,
}

#[derive(Debug)]
enum Message {
    Keep(Key, Arc<Entry>),
    Remove(Vec<Key>),
    /// Drop pages, and the result sets that begin with these; tell when they are gone for good, or why that is not so.
    Purge(Purge, HashSet<Key>, SyncSender<Result<(), String>>),
    /// Write everything, close the file, tell.
    Close(oneshot::Sender<()>),
}

/// What happened in memory.
#[derive(Debug)]
pub(super) struct Change {
    /// Was the page kept.
    pub(super) kept: bool,
    /// Pages that went.
    pub(super) gone: Vec<Key>,
}

fn weight(change: &file::Change) -> u64 {
    match change {
        file::Change::Keep(_, entry) => page_weight(entry),
        file::Change::Remove(_) | file::Change::Purge(..) => 0,
    }
}

fn page_weight(entry: &Entry) -> u64 {
    entry.page.weight() as u64
}

impl Shared {
    fn count(&self, result: &'static str, pages: u64) {
        if pages > 0 {
            self.metrics.cache_disk_writes.get_or_create(&ResultLabels { result: StaticLabel(result) }).inc_by(pages);
        }
    }

    fn show(&self, enabled: bool, size: Size) {
        self.enabled.store(enabled, Ordering::Relaxed);
        self.entries.store(size.entries, Ordering::Relaxed);
        self.bytes.store(size.bytes, Ordering::Relaxed);
        self.metrics.cache_disk_entries.set(size.entries.try_into().unwrap_or(i64::MAX));
        self.metrics.cache_disk_bytes.set(size.bytes.try_into().unwrap_or(i64::MAX));
    }

    /// A page no longer waits.
    fn arrived(&self, bytes: u64) {
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        self.waiting_bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    fn has_room(&self, bytes: u64) -> bool {
        let waiting = self.waiting.load(Ordering::Relaxed);
        let waiting_bytes = self.waiting_bytes.load(Ordering::Relaxed);
        // A single page may be larger than what otherwise may wait.
        waiting < WAITING && (waiting == 0 || waiting_bytes + bytes <= WAITING_BYTES)
    }
}

impl Disk {
    /// Starts the tier over `memory`, into which `room` bytes may be loaded. Without a thread there is none.
    pub(super) fn start(
        settings: DiskSettings,
        memory: Memory,
        room: u64,
        metrics: &Arc<Metrics>,
        clock: Clock,
    ) -> Option<Self> {
        let (sender, receiver) = mpsc::channel();
        let (loaded, wait) = watch::channel(false);
        let order = Arc::new(Mutex::new(Order { sender: Some(sender) }));
        let shared = Arc::new(Shared {
            metrics: Arc::clone(metrics),
            enabled: AtomicBool::new(false),
            entries: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            waiting: AtomicU64::new(0),
            waiting_bytes: AtomicU64::new(0),
            removals: AtomicU64::new(0),
            removals_lost: AtomicBool::new(false),
            purges: AtomicU64::new(0),
        });
        let folder = settings.folder.clone();
        let worker = Worker {
            folder: settings.folder,
            capacity: settings.capacity,
            clock,
            boot: boot(),
            memory,
            room,
            order: Arc::downgrade(&order),
            shared: Arc::clone(&shared),
            receiver,
            loaded,
            restored: false,
            batch: Vec::new(),
            closing: None,
            purgers: Vec::new(),
            clear: false,
            unwritten: HashSet::new(),
            removals_only: RemovalsOnly::No,
            locked: false,
            said: None,
        };
        match thread::Builder::new().name("cache-disk".to_owned()).spawn(move || worker.run()) {
            Ok(_) => Some(Self { folder, order, shared, loaded: wait, patience: clock.now() + LOADING_PATIENCE }),
            Err(error) => {
                tracing::warn!(%error, "the disk cache has no thread: pages will not survive a restart");
                None
            }
        }
    }

    /// See [`Store::loading`](super::Store::loading).
    pub(super) fn loading(&self, now: Instant) -> Option<impl Future<Output = ()> + use<>> {
        if now >= self.patience || *self.loaded.borrow() {
            return None;
        }
        let (mut loaded, patience) = (self.loaded.clone(), self.patience);
        Some(async move {
            // Too late, or without a thread, there is nothing to wait for any longer.
            let _ = tokio::time::timeout_at(patience, loaded.wait_for(|loaded| *loaded)).await;
        })
    }

    /// Does `keep`, which keeps the page in memory or says that it does not, and has that written: the page, and that others
    /// went. A page that cannot be written must at least not leave there what it replaces.
    pub(super) fn keep(&self, key: Key, entry: &Arc<Entry>, keep: impl FnOnce() -> Change) -> bool {
        let bytes = page_weight(entry);
        let order = self.lock();
        let Change { kept, gone } = keep();
        self.send_removal(&order, gone);
        if !kept {
            return false;
        }
        if !self.shared.has_room(bytes) {
            self.send_removal(&order, vec![key]);
            drop(order);
            self.shared.count("dropped", 1);
            return true;
        }
        self.shared.waiting.fetch_add(1, Ordering::Relaxed);
        self.shared.waiting_bytes.fetch_add(bytes, Ordering::Relaxed);
        if !order.send(Message::Keep(key, Arc::clone(entry))) {
            self.shared.arrived(bytes);
            self.shared.count("dropped", 1);
        }
        true
    }

    /// Does `remove`, which drops pages from memory and names them, and has them removed here.
    pub(super) fn remove(&self, remove: impl FnOnce() -> Vec<Key>) {
        let order = self.lock();
        let gone = remove();
        self.send_removal(&order, gone);
    }

    fn send_removal(&self, order: &Order, keys: Vec<Key>) {
        if keys.is_empty() {
            return;
        }
        if self.shared.removals.load(Ordering::Relaxed) >= WAITING_REMOVALS {
            self.shared.removals_lost.store(true, Ordering::Relaxed);
            return;
        }
        self.shared.removals.fetch_add(1, Ordering::Relaxed);
        if !order.send(Message::Remove(keys)) {
            self.shared.removals.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Marks what is to be purged in memory, and names the result sets that go; has the disk purged, and removes what is
    /// marked meanwhile. Blocks until the purge is on the disk for good, or says why it is not.
    pub(super) fn purge<T>(
        &self,
        which: &Purge,
        mark: impl FnOnce() -> (T, HashSet<Key>),
        remove: impl FnOnce(T) -> u64,
    ) -> (u64, Result<(), String>) {
        let (done, purged) = mpsc::sync_channel(1);
        let order = self.lock();
        self.shared.purges.fetch_add(1, Ordering::Relaxed);
        let (marked, firsts) = mark();
        // Never refused: a purged page must not come back.
        order.send(Message::Purge(which.clone(), firsts, done));
        drop(order);
        let pages = remove(marked);
        let shared = match purged.recv_timeout(PURGE_PATIENCE) {
            Ok(shared) => shared,
            Err(mpsc::RecvTimeoutError::Timeout) => {
                Err(format!("the disk has not answered for {} s", PURGE_PATIENCE.as_secs()))
            }
            // The thread has ended.
            Err(mpsc::RecvTimeoutError::Disconnected) => file::erase(&self.folder).map_err(|error| error.to_string()),
        };
        (pages, shared)
    }

    /// Writes what waits, and ends the thread. Takes a few seconds at most.
    pub(super) async fn close(&self) {
        let (sender, closed) = oneshot::channel();
        let Some(to_thread) = self.lock().sender.take() else { return };
        // A thread that is gone has closed.
        if to_thread.send(Message::Close(sender)).is_ok()
            && tokio::time::timeout(CLOSING_PATIENCE, closed).await.is_err()
        {
            tracing::warn!("the disk is slow: the last pages are not written");
        }
    }

    pub(super) fn view(&self) -> DiskView {
        DiskView {
            enabled: self.shared.enabled.load(Ordering::Relaxed),
            entries: self.shared.entries.load(Ordering::Relaxed),
            bytes: self.shared.bytes.load(Ordering::Relaxed),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Order> {
        lock(&self.order)
    }
}

impl Order {
    /// Says whether there is still somebody to tell: a process that is about to end writes nothing more.
    fn send(&self, message: Message) -> bool {
        self.sender.as_ref().is_some_and(|sender| sender.send(message).is_ok())
    }
}

/// The machine's name for this boot, where the system has one.
fn boot() -> Boot {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    u128::from_str_radix(&text.trim().replace('-', ""), 16).unwrap_or(0)
}

fn lock(order: &Mutex<Order>) -> MutexGuard<'_, Order> {
    // It guards no data that a panic could leave half done.
    order.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
