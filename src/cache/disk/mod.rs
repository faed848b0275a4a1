//! The disk tier: stored responses that survive a restart.
//!
//! Requests are answered from memory, and changes of memory are written to the disk later. One thread does all blocking
//! work. It gets every response that was kept or dropped and every purge, in the order in which they happened. It
//! commits them in batches, and a kill loses only the changes of the last second. If a response cannot be written, the
//! older one under its key is removed. A purge is complete when it is on the disk. If a purge, or the removal of
//! replaced responses, cannot be written, the whole file is removed. A checkpoint in the file says which changes of
//! other replicas its pages have. At the start the same thread loads the usable responses while the gateway already
//! serves. Misses wait a short time for that: a response that is about to be loaded should cost no upstream token.
//!
//! No fault of the disk stops the gateway. The tier turns itself off, logs the cause, and tries again.

mod file;
mod shared;
mod view;
mod worker;

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::sync::{oneshot, watch};

use self::shared::{Message, OrderedSender, Shared, WAITING_REMOVALS, lock, page_weight};
pub(crate) use self::view::SavedCheckpoint;
pub use self::view::{DiskFault, DiskView};
use self::worker::{RemovalsOnly, Worker};
use super::memory::Memory;
use super::purge::Purge;
use super::record::Boot;
use super::tier::{Candidate, InsertOutcome, PurgeCompletion, PurgeOutcome, Replacement, Tier};
use crate::accounts::Account;
use crate::core::clock::{Clock, Instant};
use crate::metrics::Metrics;
use crate::request::context::RequestContext;
use crate::request::key::Key;

/// Misses wait for the disk until this long after the start.
const LOADING_PATIENCE: Duration = Duration::from_secs(2);

/// How long pages are not loaded because it is not known what they have missed. Misses wait longer than that for them.
const CHECKPOINT_PATIENCE: Duration = Duration::from_secs(1);

/// How long closing may take.
const CLOSING_PATIENCE: Duration = Duration::from_secs(5);

/// How long a purge waits for the disk.
const PURGE_PATIENCE: Duration = Duration::from_secs(30);

/// Where the tier keeps its file, and how large that may be.
#[derive(Debug, Clone)]
pub struct DiskSettings {
    /// The folder, made if absent.
    pub folder: PathBuf,
    /// Bytes that the file may hold.
    pub capacity: u64,
    /// Whether a store of replicas tells what its pages have missed. Then they are loaded only after that was applied
    /// to them, or after a second.
    pub is_shared: bool,
}

/// The handle. Cheap to clone. When the last one is dropped, the thread writes what it has and ends.
#[derive(Debug, Clone)]
pub(super) struct Disk {
    folder: PathBuf,
    order: Arc<Mutex<OrderedSender>>,
    shared: Arc<Shared>,
    loaded: watch::Receiver<bool>,
    saved_checkpoint: watch::Receiver<Option<SavedCheckpoint>>,
    patience: Instant,
}

impl Disk {
    /// Starts the tier over `memory`, into which `room` bytes may be loaded. `None` when no thread can be started.
    pub(super) fn start(
        settings: DiskSettings,
        memory: Memory,
        room: u64,
        metrics: &Arc<Metrics>,
        clock: Clock,
    ) -> Option<Self> {
        let (sender, receiver) = mpsc::channel();
        let (loaded, wait) = watch::channel(false);
        let (saved_checkpoint, checkpoint) = watch::channel(None);
        let order = Arc::new(Mutex::new(OrderedSender { sender: Some(sender) }));
        let shared = Arc::new(Shared::new(Arc::clone(metrics)));
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
            saved_checkpoint,
            restored: false,
            checkpoint_patience: if settings.is_shared { CHECKPOINT_PATIENCE } else { Duration::ZERO },
            checkpoint: None,
            batch: Vec::new(),
            closing: None,
            purgers: Vec::new(),
            clear: false,
            unwritten: HashSet::new(),
            removals_only: RemovalsOnly::No,
            locked: false,
            last_warning: None,
        };
        match thread::Builder::new().name("cache-disk".to_owned()).spawn(move || worker.run()) {
            Ok(_) => {
                let patience = clock.now() + LOADING_PATIENCE;
                Some(Self { folder, order, shared, loaded: wait, saved_checkpoint: checkpoint, patience })
            }
            Err(error) => {
                tracing::warn!(%error, "the disk cache has no thread: pages will not survive a restart");
                None
            }
        }
    }

    pub(super) fn view(&self) -> DiskView {
        DiskView {
            enabled: self.shared.enabled.load(Ordering::Relaxed),
            entries: self.shared.entries.load(Ordering::Relaxed),
            bytes: self.shared.bytes.load(Ordering::Relaxed),
            fault: self.shared.fault().clone(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, OrderedSender> {
        lock(&self.order)
    }

    #[cfg(test)]
    pub(super) fn is_loaded(&self) -> bool {
        *self.loaded.borrow()
    }

    /// The checkpoint of an earlier process, once that is known.
    pub(super) async fn saved_checkpoint(&self) -> SavedCheckpoint {
        let mut saved_checkpoint = self.saved_checkpoint.clone();
        let known = saved_checkpoint.wait_for(Option::is_some).await;
        // If the thread has ended before, nothing of the file is read any more.
        known.ok().and_then(|saved_checkpoint| saved_checkpoint.clone()).unwrap_or(SavedCheckpoint::NoPages)
    }

    /// Saves a checkpoint with the pages, in place of the last one. It is written together with all changes before it,
    /// or after them.
    pub(super) fn save_checkpoint(&self, checkpoint: Vec<u8>) {
        // If the disk is that far behind, the last checkpoint stays.
        if self.shared.removals.load(Ordering::Relaxed) < WAITING_REMOVALS {
            self.shared.removals.fetch_add(1, Ordering::Relaxed);
            if !self.lock().send(Message::Checkpoint(checkpoint)) {
                self.shared.removals.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }

    fn send_removal(&self, order: &OrderedSender, keys: Vec<Key>) {
        if keys.is_empty() {
            return;
        }
        if let Some(removed) = &mut *self.shared.removed() {
            removed.extend(&keys);
            if removed.len() as u64 > WAITING_REMOVALS {
                // As after a purge, the load begins again when all of them are written.
                removed.clear();
                self.shared.purges.fetch_add(1, Ordering::Relaxed);
            }
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
}

impl Tier for Disk {
    /// What is on the disk is in memory once the file is loaded.
    fn get(&self, _: &Arc<Account>, _: &Key, _: &Arc<RequestContext>, now: Instant) -> Option<BoxFuture<'static, ()>> {
        if now >= self.patience || *self.loaded.borrow() {
            return None;
        }
        let (mut loaded, patience) = (self.loaded.clone(), self.patience);
        Some(Box::pin(async move {
            // If the time is up, or the thread has ended, the caller has nothing to wait for.
            let _ = tokio::time::timeout_at(patience, loaded.wait_for(|loaded| *loaded)).await;
        }))
    }

    fn put(&self, candidate: &Candidate<'_>, keep: &mut dyn FnMut() -> InsertOutcome) -> bool {
        let Candidate { key, stored, .. } = *candidate;
        let bytes = page_weight(stored);
        let order = self.lock();
        let InsertOutcome { kept, removed } = keep();
        self.send_removal(&order, removed);
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
        if !order.send(Message::Keep(key, Box::new(stored.clone()))) {
            self.shared.arrived(bytes);
            self.shared.count("dropped", 1);
        }
        true
    }

    fn remove(&self, _: &Replacement, remove: &mut dyn FnMut() -> Vec<Key>) {
        let order = self.lock();
        let removed = remove();
        self.send_removal(&order, removed);
    }

    fn purge(&self, which: &Purge, mark: &mut dyn FnMut() -> HashSet<Key>) -> PurgeCompletion<'_> {
        let (done, purged) = mpsc::sync_channel(1);
        let order = self.lock();
        self.shared.purges.fetch_add(1, Ordering::Relaxed);
        let firsts = mark();
        order.send(Message::Purge(which.clone(), firsts, done));
        drop(order);
        Box::new(move || {
            let lasting = match purged.recv_timeout(PURGE_PATIENCE) {
                Ok(lasting) => lasting,
                Err(mpsc::RecvTimeoutError::Timeout) => {
                    Err(format!("the disk has not answered for {} s", PURGE_PATIENCE.as_secs()))
                }
                // The thread has ended.
                Err(mpsc::RecvTimeoutError::Disconnected) => {
                    file::erase(&self.folder).map_err(|error| error.to_string())
                }
            };
            PurgeOutcome { not_durable: lasting.err(), shared: None }
        })
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            let (sender, closed) = oneshot::channel();
            let Some(to_thread) = self.lock().sender.take() else { return };
            // A thread that has ended has closed the file.
            if to_thread.send(Message::Close(sender)).is_ok()
                && tokio::time::timeout(CLOSING_PATIENCE, closed).await.is_err()
            {
                tracing::warn!("the disk is slow: the last pages are not written");
            }
        })
    }
}

/// The machine's id of this boot, where the system has one.
fn boot() -> Boot {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    u128::from_str_radix(&text.trim().replace('-', ""), 16).unwrap_or(0)
}

#[cfg(test)]
mod tests;
