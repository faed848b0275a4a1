//! The thread: opens the file, loads from it, and writes changes to it until the end.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use tokio::sync::{oneshot, watch};

use super::file::{self, DiskChange, DiskError, FileSize, PageFile, guarded};
use super::shared::{Message, OrderedSender, Shared, lock, weight};
use super::view::SavedCheckpoint;
use crate::cache::memory::Memory;
use crate::cache::purge::Purge;
use crate::cache::record::{Boot, ClockSnapshot};
use crate::core::clock::{Clock, Instant};
use crate::request::key::Key;

/// Changes or bytes that end a batch.
const BATCH: usize = 256;
const BATCH_BYTES: u64 = 8 * 1024 * 1024;

/// The longest time between commits, and so the most that a kill may lose.
const COMMIT_EVERY: Duration = Duration::from_secs(1);

/// How often expired records are removed.
const CLEAN_EVERY: Duration = Duration::from_secs(300);

/// How long after a failure the file is tried again.
const RETRY_EVERY: Duration = Duration::from_secs(10);

/// Pages that could not be removed and are remembered. If there are more, all pages are removed.
const MOST_UNWRITTEN: usize = 65_536;

/// How many damaged files one process replaces.
const MOST_REPLACED: u32 = 3;

/// The thread.
pub(super) struct Worker {
    pub(super) folder: PathBuf,
    pub(super) capacity: u64,
    pub(super) clock: Clock,
    pub(super) boot: Boot,
    pub(super) memory: Memory,
    pub(super) room: u64,
    /// Weak, because the handles hold the sender that keeps this thread alive.
    pub(super) order: Weak<Mutex<OrderedSender>>,
    pub(super) shared: Arc<Shared>,
    pub(super) receiver: Receiver<Message>,
    pub(super) loaded: watch::Sender<bool>,
    /// Set once, when the file is opened.
    pub(super) saved_checkpoint: watch::Sender<Option<SavedCheckpoint>>,
    /// Whether pages were loaded. It is done once: later the memory is newer than the file.
    pub(super) restored: bool,
    /// How long the load waits for a checkpoint, which says that what the pages had missed is applied.
    pub(super) checkpoint_patience: Duration,
    /// The last checkpoint. A new file needs it too.
    pub(super) checkpoint: Option<Vec<u8>>,
    /// Received and not yet written.
    pub(super) batch: Vec<DiskChange>,
    /// Callers that wait for the purges in `batch`.
    pub(super) purgers: Vec<SyncSender<Result<(), String>>>,
    /// The caller that waits for the end.
    pub(super) closing: Option<oneshot::Sender<()>>,
    /// A purge could neither be written nor replaced by removing the file. All pages are removed when the file can be
    /// opened again.
    pub(super) clear: bool,
    /// Pages whose change could not be written. They are removed from the file when it can be opened again.
    pub(super) unwritten: HashSet<Key>,
    pub(super) removals_only: RemovalsOnly,
    /// Another process has the file open.
    pub(super) locked: bool,
    /// The last warning, so that it is not repeated at every attempt.
    pub(super) last_warning: Option<String>,
}

/// Whether pages are only removed, because writing them has failed. A removal often can be written where a page cannot,
/// for example on a full disk. It must not wait, because a kill meanwhile would bring the page back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RemovalsOnly {
    No,
    Until(Instant),
}

/// Whether the thread goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum RunState {
    Running,
    Ended,
}

impl Worker {
    pub(super) fn run(mut self) {
        // A damaged file is replaced. If the new one is damaged too, the disk is at fault, and another file will not help.
        let mut replaced = 0;
        loop {
            let mut opened = false;
            let ended = self.work(&mut opened);
            self.locked = matches!(ended, Err(DiskError::Locked));
            let erased = self.abandon_batch();
            if let Err(error) = &ended {
                self.shared.fails(error.to_string(), self.clock.now());
            }
            self.shared.show(false, FileSize::default());
            let state = match ended {
                Ok(()) => RunState::Ended,
                Err(DiskError::Damaged(why)) if replaced < MOST_REPLACED => {
                    replaced += 1;
                    let is_gone = erased || self.move_aside(&why);
                    if is_gone {
                        self.unwritten.clear();
                    }
                    if is_gone && replaced == 1 { RunState::Running } else { self.pause() }
                }
                Err(error) => {
                    self.warn(&error);
                    match self.removals_only {
                        RemovalsOnly::No if opened && !self.unwritten.is_empty() => {
                            self.removals_only = RemovalsOnly::Until(self.clock.now() + RETRY_EVERY);
                            RunState::Running
                        }
                        RemovalsOnly::Until(_) if opened && !self.unwritten.is_empty() => {
                            let erased = self.erase("replaced pages could not be removed from the disk cache");
                            self.clear |= erased.is_err();
                            self.pause()
                        }
                        _ => self.pause(),
                    }
                }
            };
            if state == RunState::Ended {
                break;
            }
        }
        if let Some(closing) = self.closing.take() {
            // The receiver may have stopped waiting.
            let _ = closing.send(());
        }
    }

    /// Opens the file and works with it until the end, or until a fault of the file.
    ///
    /// redb answers most damage with an error, but its documentation names panics as well. A panic must cost only the
    /// file, not the tier.
    fn work(&mut self, opened: &mut bool) -> Result<(), DiskError> {
        let (folder, capacity) = (self.folder.clone(), self.capacity);
        let mut file = guarded(|| PageFile::open(&folder, capacity, self.clock, self.boot))?;
        *opened = true;
        let worked = guarded(|| self.work_with(&mut file));
        // Dropped here and not during unwinding, because a second panic then would abort the process.
        let closed = guarded(|| {
            drop(file);
            Ok(())
        });
        worked.and(closed)
    }

    pub(super) fn work_with(&mut self, file: &mut PageFile) -> Result<(), DiskError> {
        let saved_checkpoint = file.saved_checkpoint()?;
        self.clear |= self.shared.removals_lost.swap(false, Ordering::Relaxed);
        let mut changes = Vec::new();
        if self.clear {
            changes.push(DiskChange::Purge(Purge::All, HashSet::new()));
        } else if !self.unwritten.is_empty() {
            changes.push(DiskChange::Remove(self.unwritten.iter().copied().collect()));
        }
        // With these, all changes before the last checkpoint are made in this file too.
        let checkpoint = self
            .checkpoint
            .clone()
            .filter(|checkpoint| !matches!(&saved_checkpoint, SavedCheckpoint::Found(there) if there == checkpoint));
        changes.extend(checkpoint.map(DiskChange::Checkpoint));
        if !changes.is_empty() {
            file.apply(&changes)?;
        }
        self.clear = false;
        self.unwritten.clear();
        self.saved_checkpoint.send_if_modified(|known| {
            let is_first = known.is_none();
            known.get_or_insert(saved_checkpoint);
            is_first
        });
        if self.removals_only == RemovalsOnly::No {
            self.works_again();
        }
        self.shared.show(true, file.size());
        if !self.restored {
            if self.await_checkpoint(file)? == RunState::Ended || self.load(file)? == RunState::Ended {
                return self.write(file);
            }
            self.restored = true;
            *self.shared.removed() = None;
        }
        self.loaded.send_replace(true);
        self.follow(file)
    }

    /// Writes changes until it is known that they are all that the pages had missed, or for a short time.
    fn await_checkpoint(&mut self, file: &mut PageFile) -> Result<RunState, DiskError> {
        let until = self.clock.now() + self.checkpoint_patience;
        while self.checkpoint.is_none() {
            let state = match self.receiver.recv_timeout(until.saturating_duration_since(self.clock.now())) {
                Ok(message) => self.take(message),
                Err(RecvTimeoutError::Timeout) => break,
                Err(RecvTimeoutError::Disconnected) => RunState::Ended,
            };
            if state == RunState::Ended {
                return Ok(state);
            }
            if self.is_full() {
                self.write(file)?;
            }
        }
        Ok(RunState::Running)
    }

    /// Loads the newest usable records into memory.
    fn load(&mut self, file: &mut PageFile) -> Result<RunState, DiskError> {
        // Not part of a page's weight in the store: the index has the length of the record.
        const OVERHEAD: u64 = 1024;
        let begun = self.clock.now();
        loop {
            let purges = {
                // A change that is counted has also sent its message, because both happen under this lock.
                let order = self.order.upgrade();
                let _order = order.as_deref().map(lock);
                *self.shared.removed() = Some(HashSet::new());
                self.shared.purges.load(Ordering::Relaxed)
            };
            // Pages that have been purged or removed by now must be removed from the file before it is read.
            while let Ok(message) = self.receiver.try_recv() {
                if self.take(message) == RunState::Ended {
                    return Ok(RunState::Ended);
                }
            }
            self.write(file)?;
            file.clean()?;
            let keys = file.newest(self.room, OVERHEAD)?;
            let (mut restored, mut interrupted) = (0u64, false);
            let broken = file.read(&keys, |key, stored| {
                let Some(order) = self.order.upgrade() else { return false };
                let _order = lock(&order);
                interrupted = self.shared.purges.load(Ordering::Relaxed) != purges;
                let is_removed = self.shared.removed().as_ref().is_some_and(|removed| removed.contains(&key));
                if !interrupted && !is_removed && self.memory.restore(key, stored, self.clock) {
                    restored += 1;
                }
                !interrupted
            })?;
            if broken > 0 {
                tracing::warn!(broken, "pages on disk are damaged and will be fetched again");
            }
            // At first, restored pages count as used in the order of their age. moka applies that lazily.
            self.memory.run_evictions();
            if !interrupted {
                let seconds = self.clock.now().saturating_duration_since(begun).as_secs_f64();
                tracing::info!(restored, seconds, "pages loaded from disk");
                self.shared.show(true, file.size());
                return Ok(RunState::Running);
            }
        }
    }

    /// Writes the changes until the end.
    fn follow(&mut self, file: &mut PageFile) -> Result<(), DiskError> {
        let now = || self.clock.now();
        let mut clean_at = now() + CLEAN_EVERY;
        let mut commit_at = None;
        loop {
            let until = commit_at.unwrap_or(clean_at);
            let state = match self.receiver.recv_timeout(until.saturating_duration_since(self.clock.now())) {
                Ok(message) => self.take(message),
                Err(RecvTimeoutError::Timeout) => RunState::Running,
                Err(RecvTimeoutError::Disconnected) => RunState::Ended,
            };
            let now = self.clock.now();
            if commit_at.is_none() && !self.batch.is_empty() {
                commit_at = Some(now + COMMIT_EVERY);
            }
            if state == RunState::Ended || self.is_full() || commit_at.is_some_and(|at| at <= now) {
                self.write(file)?;
                commit_at = None;
            }
            if state == RunState::Ended {
                return Ok(());
            }
            if clean_at <= now {
                file.clean()?;
                self.shared.show(true, file.size());
                clean_at = now + CLEAN_EVERY;
            }
        }
    }

    fn take(&mut self, message: Message) -> RunState {
        match message {
            Message::Keep(key, stored) => {
                self.batch.push(DiskChange::Keep(key, stored));
                RunState::Running
            }
            Message::Remove(keys) => {
                self.shared.removals.fetch_sub(1, Ordering::Relaxed);
                self.batch.push(DiskChange::Remove(keys));
                RunState::Running
            }
            Message::Checkpoint(checkpoint) => {
                self.shared.removals.fetch_sub(1, Ordering::Relaxed);
                self.batch.push(DiskChange::Checkpoint(checkpoint.clone()));
                self.checkpoint = Some(checkpoint);
                RunState::Running
            }
            Message::Purge(which, firsts, purger) => {
                self.batch.push(DiskChange::Purge(which, firsts));
                self.purgers.push(purger);
                RunState::Running
            }
            Message::Close(closing) => {
                self.closing = Some(closing);
                RunState::Ended
            }
        }
    }

    /// Whether the batch is committed without waiting for more. That holds for a purge: its caller waits until it
    /// lasts.
    fn is_full(&self) -> bool {
        self.batch.len() >= BATCH
            || self.batch.iter().map(weight).sum::<u64>() >= BATCH_BYTES
            || matches!(self.batch.last(), Some(DiskChange::Purge(..)))
    }

    pub(super) fn write(&mut self, file: &mut PageFile) -> Result<(), DiskError> {
        if self.shared.removals_lost.swap(false, Ordering::Relaxed) {
            self.batch.push(DiskChange::Purge(Purge::All, HashSet::new()));
        }
        if self.batch.is_empty() {
            return Ok(());
        }
        match self.removals_only {
            RemovalsOnly::Until(then) if self.clock.now() < then => self.write_no_pages(),
            _ => self.removals_only = RemovalsOnly::No,
        }
        let written = file.apply(&self.batch)?;
        self.tell_purgers(&Ok(()));
        let pages = self.release_batch();
        self.shared.count("written", written);
        // A page may be larger than the whole capacity.
        self.shared.count("dropped", pages.saturating_sub(written));
        self.shared.show(true, file.size());
        if written > 0 {
            self.works_again();
        }
        Ok(())
    }

    /// Turns the batch's pages into removals.
    fn write_no_pages(&mut self) {
        let mut pages = 0;
        for change in &mut self.batch {
            if let DiskChange::Keep(key, _) = change {
                let removal = DiskChange::Remove(vec![*key]);
                self.shared.arrived(weight(change));
                *change = removal;
                pages += 1;
            }
        }
        self.shared.count("failed", pages);
    }

    /// Empties the batch. Returns how many pages were in it.
    fn release_batch(&mut self) -> u64 {
        let mut pages = 0;
        for change in self.batch.drain(..) {
            if matches!(change, DiskChange::Keep(..)) {
                pages += 1;
                self.shared.arrived(weight(&change));
            }
        }
        pages
    }

    /// Remembers which pages the batch would have replaced or removed.
    fn remember_batch(&mut self) {
        for change in &self.batch {
            match change {
                DiskChange::Keep(key, _) => self.unwritten.extend([*key]),
                DiskChange::Remove(keys) => self.unwritten.extend(keys),
                DiskChange::Purge(..) | DiskChange::Checkpoint(_) => {}
            }
        }
        if self.unwritten.len() > MOST_UNWRITTEN {
            self.unwritten.clear();
            self.clear = true;
        }
    }

    /// Removes the file, because something in it must not be read again. Returns whether that worked.
    fn erase(&mut self, why: &str) -> Result<(), String> {
        let erased = match self.locked {
            true => Err("another process has the file open, and its pages are that process's".to_owned()),
            false => file::erase(&self.folder).map_err(|error| error.to_string()),
        };
        match &erased {
            Ok(()) => {
                self.unwritten.clear();
                tracing::warn!(folder = %self.folder.display(), "{why}, so its file is removed");
            }
            Err(error) => tracing::error!(
                folder = %self.folder.display(),
                %error,
                "{why}, and its file could not be removed: remove it by hand, or those pages come back at the next start"
            ),
        }
        erased
    }

    /// Drops the changes that cannot be written. A purge cannot be dropped: the file is removed instead. Returns
    /// whether it was.
    pub(super) fn abandon_batch(&mut self) -> bool {
        let mut removed = false;
        self.remember_batch();
        if self.batch.iter().any(|change| matches!(change, DiskChange::Purge(..))) {
            let erased = self.erase("a purge could not be written to the disk cache");
            removed = erased.is_ok();
            self.clear |= !removed;
            self.tell_purgers(&erased);
        }
        let failed = self.release_batch();
        self.shared.count("failed", failed);
        removed
    }

    fn tell_purgers(&mut self, done: &Result<(), String>) {
        for purger in self.purgers.drain(..) {
            // The caller may have stopped waiting.
            let _ = purger.send(done.clone());
        }
    }

    /// Waits before the next attempt, and drops changes meanwhile.
    fn pause(&mut self) -> RunState {
        // No caller has to wait for the load now.
        self.loaded.send_replace(true);
        let until = self.clock.now() + RETRY_EVERY;
        loop {
            let state = match self.receiver.recv_timeout(until.saturating_duration_since(self.clock.now())) {
                Ok(message) => self.take(message),
                Err(RecvTimeoutError::Timeout) => return RunState::Running,
                Err(RecvTimeoutError::Disconnected) => RunState::Ended,
            };
            self.abandon_batch();
            if state == RunState::Ended {
                return RunState::Ended;
            }
        }
    }

    fn works_again(&mut self) {
        *self.shared.fault() = None;
        if self.last_warning.take().is_some() {
            tracing::info!(folder = %self.folder.display(), "the disk cache works again");
        }
    }

    /// Moves the file aside and makes place for a new one. Returns whether that worked.
    fn move_aside(&mut self, why: &str) -> bool {
        match file::move_aside(&self.folder, &ClockSnapshot::read(self.clock, self.boot)) {
            Ok(aside) => {
                tracing::warn!(
                    moved_to = %aside.display(),
                    "the disk cache cannot be read and begins empty ({why}); delete the old file if you do not need it"
                );
                true
            }
            Err(error) => {
                self.warn(&DiskError::Unusable(format!("{why}; and it cannot be moved out of the way: {error}")));
                false
            }
        }
    }

    fn warn(&mut self, error: &DiskError) {
        let last_warning = error.to_string();
        if self.last_warning.as_ref() != Some(&last_warning) {
            let file = self.folder.join(file::NAME);
            tracing::warn!(
                file = %file.display(),
                "the disk cache cannot be used, so pages will not survive a restart: {last_warning}. \
                 It is tried again every {} s",
                RETRY_EVERY.as_secs()
            );
            self.last_warning = Some(last_warning);
        }
    }
}
