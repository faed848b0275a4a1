//! The feed of changes: replicas publish purges and replaced pages in the store, and each applies those of the others.
//!
//! The feed has two streams. Purges are kept for as long as any page may be served. Replaced pages matter only to
//! replicas that may have them in memory or on a disk. Every replica reads new entries several times a second. A
//! replica that was cut off first reads everything that it missed, and shares nothing before that. The ids of the
//! streams are times of the shared clock. So a page's time shows whether the page was requested before a purge,
//! whichever replica requested it.
//!
//! Both streams belong to one **generation**, a random number that is part of the name of every page's key. A store
//! that was flushed, or that returned to an older state, gets a new generation. Then its old pages are not found any
//! more. Each replica drops the pages in its memory, because it cannot know which purges were lost.
//!
//! A replica with a disk saves a **checkpoint** there: the generation, and the ids of the last changes that it has
//! applied. From it the next process with this disk knows what its pages have missed: all later changes, or everything
//! if the generation is another one. The checkpoint can be read only when the disk has opened its file. Until then
//! changes are applied to memory alone, which has no page of the disk yet. After that, all changes that the disk's
//! pages have missed are read again.
//!
//! A purge that cannot be published yet is kept until it can be. It applies in this process at once. There is no index
//! of pages anywhere.

mod change;
mod generation;
mod reader;
mod scripts;

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::Duration;

use tokio::sync::Notify;

use self::change::Change;
pub(super) use self::change::HEAD;
pub(super) use self::generation::Generation;
use self::reader::{ChangeBatch, FeedReader};
pub(super) use self::scripts::LONGEST;
use super::purge_log::{self, Millis, PurgeLog, PurgeTarget};
use super::{Part, SharedStore, StoreError, StoreTime, retry_pause};
use crate::accounts::Account;
use crate::cache::job_notes::NoteSubject;
use crate::cache::stored::StoredResponse;
use crate::cache::{Purge, Store};
use crate::core::clock::{Clock, Moment};
use crate::request::key::Key;

/// How often changes are read.
const POLL_INTERVAL: Duration = Duration::from_millis(400);
/// How often the end of the process checks whether they are published.
const FLUSH_POLL_INTERVAL: Duration = Duration::from_millis(10);
/// After this time without reading them nothing is shared.
const OVERDUE: Duration = Duration::from_secs(2);
/// Purges that wait for the store. If there are more, all pages count as purged.
const MOST_UNSENT: usize = 256;
/// If more changes were missed, all of memory is dropped instead.
const MOST_MISSED: usize = 64;

/// The feed of changes. Clones share it.
#[derive(Clone)]
pub(super) struct ChangeFeed(Arc<Inner>);

impl fmt::Debug for ChangeFeed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChangeFeed").field("generation", &self.generation()).finish_non_exhaustive()
    }
}

struct Inner {
    store: SharedStore,
    /// Memory and the disk: changes of other replicas are applied here, and not published again.
    local: Store,
    /// Memory alone.
    memory: Store,
    clock: Clock,
    state: Mutex<State>,
    /// A purge waits to be published.
    wake: Notify,
    /// Held while changes are read and applied.
    following: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct State {
    read: Option<LastRead>,
    purges: PurgeLog,
    /// Purges that are not published yet, and those that are being published. They count without a time.
    unsent: UnsentPurges,
    sending: UnsentPurges,
    /// The process ends: nothing is applied any more.
    is_closed: bool,
}

/// Each with the callers that wait until it is published.
type UnsentPurges = HashMap<PurgeTarget, Vec<mpsc::SyncSender<bool>>>;

/// When changes were last read and applied.
#[derive(Debug, Clone, Copy)]
struct LastRead {
    generation: Generation,
    /// When the reading began.
    at: Moment,
    /// How often the store had been reached then.
    episode: u64,
}

impl ChangeFeed {
    /// Reads and publishes changes in the background. Needs a tokio runtime.
    pub(super) fn start(store: SharedStore, local: Store, clock: Clock) -> Self {
        let mut reader = FeedReader::new(local.disk().is_some());
        let memory = local.clone().without_tier();
        let (state, wake, following) = (Mutex::default(), Notify::new(), tokio::sync::Mutex::default());
        let changes = Self(Arc::new(Inner { store, local, memory, clock, state, wake, following }));
        let weak = Arc::downgrade(&changes.0);
        tokio::spawn(async move {
            let mut failing_since = None;
            while let Some(inner) = weak.upgrade() {
                Self(inner).follow(&mut reader, &mut failing_since).await;
            }
        });
        changes
    }

    /// The generation in which pages are shared now. `None` while the store is away, and until what was missed
    /// meanwhile has been applied.
    pub(super) fn generation(&self) -> Option<Generation> {
        let read = self.state().read?;
        let is_current = self.0.store.episode() == Some(read.episode)
            // The process may have been stopped for a while.
            && self.0.clock.moment().since(read.at) < OVERDUE;
        is_current.then_some(read.generation)
    }

    /// Whether a page that a replica requested then may be served.
    pub(super) fn admit(&self, account: &Account, key: &Key, stored: &StoredResponse, asked: StoreTime) -> bool {
        self.is_purged_by_none(purge_log::targets(&account.id(), key, stored), asked)
    }

    /// Whether a note of a job that was made then still counts.
    pub(super) fn admit_note(&self, about: &NoteSubject, made: StoreTime) -> bool {
        let id = about.account.id();
        self.is_purged_by_none(purge_log::targets_of_note(id, about.operation, &about.key), made)
    }

    fn is_purged_by_none(&self, mut targets: impl Iterator<Item = PurgeTarget>, since: StoreTime) -> bool {
        let (state, since) = (self.state(), since.0 / 1000);
        targets.all(|target| {
            let is_unsent = state.unsent.contains_key(&target) || state.sending.contains_key(&target);
            !is_unsent && state.purges.admit(&target, since)
        })
    }

    /// Publishes a purge. It counts here before `mark` marks pages in memory and returns the first pages of the sets
    /// that it drops. The returned function blocks until the others can know of it. It returns `false` if that takes
    /// longer, or the store is away; it is then published later.
    pub(super) fn publish_purge(
        &self,
        which: &Purge,
        mark: &mut dyn FnMut() -> HashSet<Key>,
    ) -> impl FnOnce() -> bool + use<> {
        let target = PurgeTarget::of(which);
        let (sender, published) = mpsc::sync_channel(1);
        let is_waited_for = target.is_some() && self.generation().is_some();
        self.add_unsent(target, None);
        let firsts = mark();
        if let Some(target) = target {
            self.add_unsent(target.others(firsts), None);
            self.add_unsent([target], is_waited_for.then_some(sender));
        }
        self.0.wake.notify_one();
        let patience = self.0.store.settings().timeout * 4;
        move || is_waited_for && published.recv_timeout(patience).unwrap_or(false)
    }

    /// Publishes, soon, that no page that is in the store now may be read from there.
    pub(super) fn outdate_store(&self) {
        self.add_unsent([PurgeTarget::Stored], None);
    }

    /// Publishes that what others have under `key` was replaced, if they requested it before `asked`.
    pub(super) async fn publish_replacement(&self, key: &Key, asked: StoreTime) {
        let change = Change::Replaced { key: *key.as_bytes(), asked };
        let published = match self.generation() {
            Some(generation) => scripts::append(&self.0.store, generation, &change).await,
            None => Err(StoreError::Down),
        };
        if published.is_err() {
            // A purge can be published later.
            self.add_unsent([PurgeTarget::Page(*key.as_bytes())], None);
        }
    }

    /// Returns once all purges are published that can be, or after a while. From then on no change of another replica
    /// is applied here: the next process on this disk applies it.
    pub(super) async fn flush(&self, patience: Duration) {
        let published = async {
            while self.has_unsent() && self.0.store.is_up() {
                self.0.wake.notify_one();
                tokio::time::sleep(FLUSH_POLL_INTERVAL).await;
            }
        };
        let _ = tokio::time::timeout(patience, published).await;
        if self.has_unsent() {
            tracing::warn!(
                "the shared store is not reached or slow: the other replicas are not told of the last purges"
            );
        }
        self.state().is_closed = true;
        // What is being applied now may wait for a slow disk.
        let _ = tokio::time::timeout(patience, self.0.following.lock()).await;
    }

    /// Whether a purge is not published yet.
    fn has_unsent(&self) -> bool {
        let state = self.state();
        !state.unsent.is_empty() || !state.sending.is_empty()
    }

    fn add_unsent(&self, targets: impl IntoIterator<Item = PurgeTarget>, waiting: Option<mpsc::SyncSender<bool>>) {
        let mut state = self.state();
        for target in targets {
            state.unsent.entry(target).or_default().extend(waiting.clone());
        }
        if state.unsent.len() > MOST_UNSENT {
            let waiting = state.unsent.drain().flat_map(|(_, waiting)| waiting).collect();
            state.unsent.insert(PurgeTarget::Everything(None), waiting);
        }
    }

    /// Waits for the next time to read, until the store is back, or until the disk is open, and reads. If that fails it
    /// is tried again soon, and nothing is shared meanwhile.
    async fn follow(self, reader: &mut FeedReader, failing_since: &mut Option<Moment>) {
        let mut is_up = self.0.store.watch_up();
        let due = async {
            if *is_up.borrow_and_update() {
                if failing_since.is_some() {
                    return tokio::time::sleep(retry_pause::random()).await;
                }
                tokio::select! {
                    () = tokio::time::sleep(POLL_INTERVAL) => {}
                    () = self.0.wake.notified() => {}
                    _ = is_up.changed() => {}
                }
            } else {
                // Not for ever, so that this ends when nobody uses it any more.
                let _ = tokio::time::timeout(POLL_INTERVAL, is_up.wait_for(|is_up| *is_up)).await;
            }
        };
        tokio::select! {
            saved_checkpoint = self.0.local.saved_checkpoint(), if reader.awaits_disk => {
                let start = self.0.clock.earliest_moment(self.0.clock.start());
                reader.resume(&saved_checkpoint, self.0.store.time_of(start).map_or(0, |StoreTime(start)| start / 1000));
            }
            () = due => {}
        }
        match self.catch_up(reader).await {
            Ok(()) => {
                *failing_since = None;
                self.0.store.set_fault(Part::Changes, None);
            }
            Err(StoreError::Down) => *failing_since = None,
            Err(error) => {
                let now = self.0.clock.moment();
                if now.since(*failing_since.get_or_insert(now)) >= OVERDUE {
                    self.0.store.set_fault(Part::Changes, Some(&error));
                }
            }
        }
    }

    /// Reads and applies what is new, and publishes what waits. Then pages may be shared.
    async fn catch_up(&self, reader: &mut FeedReader) -> Result<(), StoreError> {
        let _following = self.0.following.lock().await;
        let (episode, at) = (self.0.store.episode().ok_or(StoreError::Down)?, self.0.clock.moment());
        let (generation, time) = reader.read(&self.0.store).await?;
        self.record_purges(&reader.batch, time);
        // First, because publishing many purges can take longer than a purge may.
        let local = if reader.awaits_disk { &self.0.memory } else { &self.0.local };
        self.apply(std::mem::take(&mut reader.batch), local).await;
        if self.state().is_closed {
            // What is read may not be applied.
            return Err(StoreError::Down);
        }
        if let Some(checkpoint) = reader.new_checkpoint() {
            // The next process need not apply them again.
            self.0.local.save_checkpoint(checkpoint);
        }
        self.publish_purges(generation).await?;
        self.state().read = Some(LastRead { generation, at, episode });
        Ok(())
    }

    /// From here on no page that was purged is taken from the store.
    fn record_purges(&self, batch: &ChangeBatch, time: StoreTime) {
        let mut state = self.state();
        if batch.is_new_generation {
            state.purges = PurgeLog::default();
        }
        for (target, at) in &batch.purged {
            state.purges.add(*target, *at);
        }
        state.purges.forget((time.0 / 1000).saturating_sub(LONGEST.as_millis() as u64));
    }

    /// Publishes the purges that wait. One that cannot be published waits on.
    async fn publish_purges(&self, generation: Generation) -> Result<(), StoreError> {
        {
            let mut state = self.state();
            state.sending = std::mem::take(&mut state.unsent);
        }
        let targets: Vec<PurgeTarget> = self.state().sending.keys().copied().collect();
        let mut waiting = Vec::new();
        for target in targets {
            let published = scripts::append(&self.0.store, generation, &Change::Purged(target)).await;
            let mut state = self.state();
            let at = match published {
                Ok(at) => at,
                Err(error) => {
                    let sending = std::mem::take(&mut state.sending);
                    for (target, waiting) in sending {
                        state.unsent.entry(target).or_default().extend(waiting);
                    }
                    return Err(error);
                }
            };
            state.purges.add(target, at);
            waiting.extend(state.sending.remove(&target).into_iter().flatten());
        }
        for caller in waiting {
            // It may have stopped waiting.
            let _ = caller.try_send(true);
        }
        Ok(())
    }

    /// Drops from `local` what other replicas purged or replaced.
    async fn apply(&self, ChangeBatch { is_lost, foreign, .. }: ChangeBatch, local: &Store) {
        let purged = foreign.iter().filter(|(change, _)| matches!(change, Change::Purged(_))).count();
        let is_empty = local.disk().is_none() && local.size().0 == 0;
        if foreign.is_empty() && !is_lost {
            return;
        }
        let (this, to) = (self.clone(), local.clone());
        // It reads all pages, and waits for the disk.
        let applied = tokio::task::spawn_blocking(move || {
            if this.state().is_closed {
                return;
            }
            if is_lost || (purged > MOST_MISSED && !is_empty) {
                tracing::warn!("changes of other replicas were missed: all stored pages are dropped");
                to.purge(&Purge::All);
                return;
            }
            let mut replaced = HashMap::new();
            for (change, _) in &foreign {
                if let Change::Replaced { key, asked } = change {
                    let last = replaced.entry(Key::from_bytes(*key)).or_insert(*asked);
                    *last = (*last).max(*asked);
                }
            }
            // First, because purges wait for the disk.
            this.replace_here(replaced, &to);
            if purged > 1 && to.disk().is_some() {
                // No page is served for longer because the disk is slow.
                foreign.iter().for_each(|(change, at)| this.purge_here(change, *at, &this.0.memory));
            }
            for (change, at) in &foreign {
                if this.state().is_closed {
                    return;
                }
                this.purge_here(change, *at, &to);
            }
        });
        // A panic in there is a defect that is reported elsewhere; the pages must go nevertheless.
        if applied.await.is_err() {
            let local = local.clone();
            let _ = tokio::task::spawn_blocking(move || local.purge(&Purge::All)).await;
        }
    }

    /// Applies a change to `local`, if it is a purge. `published` is its time on the store's clock.
    fn purge_here(&self, change: &Change, published: Millis, local: &Store) {
        let Change::Purged(target) = change else { return };
        // Every request in that millisecond may have come before it.
        let end = StoreTime(published.saturating_add(1).saturating_mul(1000));
        let now = self.0.clock.moment();
        let at = self.0.store.moment_of(end).map_or(now, |end| end.min(now));
        if let Some(which) = target.purge() {
            // Who purged a page need not know the first page of its result set.
            self.add_unsent(target.others(local.first_pages(&which)), None);
            local.purge_before(&which, at);
        }
    }

    /// Drops from `local` what other replicas have replaced, however many pages these are: each costs little, and
    /// nothing waits for the disk.
    fn replace_here(&self, replaced: HashMap<Key, StoreTime>, local: &Store) {
        let now = self.0.clock.moment();
        let moment = |asked| self.0.store.moment_of(asked).unwrap_or(now);
        let replaced: HashMap<_, _> = replaced.into_iter().map(|(key, asked)| (key, moment(asked))).collect();
        if !replaced.is_empty() {
            local.outdate(&replaced, self.0.clock);
        }
    }

    /// Drops what this replica has under `key`, because the store has a page that was requested later.
    pub(super) fn outdate_here(&self, key: Key) {
        self.0.local.outdate(&HashMap::from([(key, self.0.clock.moment())]), self.0.clock);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic leaves at most a purge that waits in both places, which is then published twice.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
impl ChangeFeed {
    /// Whether a purge was read, or published.
    fn knows(&self, target: &PurgeTarget) -> bool {
        !self.state().purges.admit(target, 0)
    }

    /// Whether all that was published before this moment is read and applied.
    pub(super) fn is_applied(&self, until: Moment) -> bool {
        self.state().read.is_some_and(|read| read.at > until)
    }
}

#[cfg(test)]
mod tests;
