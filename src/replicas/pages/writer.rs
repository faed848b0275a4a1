//! Puts pages into the store in the background, one after the other.
//!
//! A request never waits for this. When too much waits, or the store is away, a page is not written. What the store may
//! still have in its place is then removed as soon as possible: a page that was replaced must not come back.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot};
use tokio::time::MissedTickBehavior;

use super::value::{self, Belonging, Value};
use crate::accounts::Account;
use crate::cache::record::Calendar;
use crate::cache::stored::StoredResponse;
use crate::core::clock::{Clock, Moment};
use crate::replicas::changes::{Changes, LONGEST};
use crate::replicas::{SharedStore, StoreTime};
use crate::request::key::Key;

/// Changes, and bytes of pages, that may wait.
const WAITING: usize = 1024;
const WAITING_BYTES: usize = 64 * 1024 * 1024;
/// Replaced pages that are remembered until they can be removed.
const MOST_UNWRITTEN: usize = 16_384;
/// How often their removal is tried.
const RETRY: Duration = Duration::from_millis(100);

/// Keeps a value until its windows end, unless there is one that was requested later. One from the future is none.
///
/// Keys: the page. Arguments: the stamp, the value, milliseconds to live. Returns whether there was an older value.
const PUT: &str = r"
local there = redis.call('GETRANGE', KEYS[1], 0, 15)
local time = redis.call('TIME')
if there > ARGV[1] and there <= time[1] .. string.format('%06d', time[2]) then return 0 end
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
return there == '' and 0 or 1
";

/// Removes a value, unless it was requested later.
///
/// Keys: the page. Arguments: the stamp.
const REMOVE: &str = r"
local there = redis.call('GETRANGE', KEYS[1], 0, 15)
local time = redis.call('TIME')
if there > ARGV[1] and there <= time[1] .. string.format('%06d', time[2]) then return 0 end
return redis.call('DEL', KEYS[1])
";

/// A page to be written.
#[derive(Debug)]
pub(super) struct Page {
    pub(super) account: Arc<Account>,
    pub(super) key: Key,
    pub(super) stored: StoredResponse,
    /// When it was requested.
    pub(super) asked: Moment,
    pub(super) is_forced: bool,
}

impl Page {
    /// When the others are told that the page was replaced. The further pages of a set that was replaced must not be read
    /// together with the new first page.
    fn tell(&self) -> Tell {
        match self.is_forced {
            true => Tell::Always,
            false if self.stored.next.is_some() => Tell::IfReplaced,
            false => Tell::Never,
        }
    }
}

/// Whether the other replicas are told that a page was replaced, so that they drop it from memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Tell {
    /// It ends there with its windows.
    Never,
    /// If the store had one.
    IfReplaced,
    Always,
}

#[derive(Debug)]
enum Change {
    Put(Box<Page>),
    Remove { account: Arc<Account>, keys: Vec<Key>, asked: Moment, tell: Tell },
    Flush(oneshot::Sender<()>),
}

/// Where requests leave what is to be written.
#[derive(Debug)]
pub(super) struct Writer {
    sender: mpsc::Sender<Change>,
    waiting_bytes: Arc<AtomicUsize>,
    unwritten: Unwritten,
    changes: Changes,
}

impl Writer {
    /// Starts to write. Needs a tokio runtime.
    pub(super) fn start(store: SharedStore, changes: Changes, clock: Clock) -> Self {
        let (sender, receiver) = mpsc::channel(WAITING);
        let (waiting_bytes, unwritten) = (Arc::<AtomicUsize>::default(), Unwritten::default());
        let task = Task {
            store,
            changes: changes.clone(),
            clock,
            receiver,
            waiting_bytes: Arc::clone(&waiting_bytes),
            unwritten: unwritten.clone(),
        };
        tokio::spawn(task.run());
        Self { sender, waiting_bytes, unwritten, changes }
    }

    /// Takes a page to be written.
    pub(super) fn put(&self, page: Page) {
        let (account, key, asked, tell) = (Arc::clone(&page.account), page.key, page.asked, page.tell());
        let bytes = page.stored.representation.weight();
        let waiting = self.waiting_bytes.fetch_add(bytes, Ordering::Relaxed);
        // One page alone may be larger than the limit.
        let has_room = waiting == 0 || waiting + bytes <= WAITING_BYTES;
        let is_sent = has_room && self.changes.generation().is_some() && {
            self.sender.try_send(Change::Put(Box::new(page))).is_ok()
        };
        if !is_sent {
            self.waiting_bytes.fetch_sub(bytes, Ordering::Relaxed);
            self.postpone(&account, [key], asked, tell);
        }
    }

    /// Takes the keys of pages to be removed, as far as they were requested no later than `asked`.
    pub(super) fn remove(&self, account: &Arc<Account>, keys: Vec<Key>, asked: Moment, tell: Tell) {
        let change = Change::Remove { account: Arc::clone(account), keys, asked, tell };
        if let Err(TrySendError::Full(Change::Remove { account, keys, asked, tell })) = self.sender.try_send(change) {
            self.postpone(&account, keys, asked, tell);
        }
    }

    /// Returns once all that was taken until now is written, or after a while.
    pub(super) async fn flush(&self, patience: Duration) {
        let flushed = async {
            let (done, flushed) = oneshot::channel();
            // It has ended, and nothing more is written.
            let Ok(()) = self.sender.send(Change::Flush(done)).await else { return };
            let _ = flushed.await;
        };
        if tokio::time::timeout(patience, flushed).await.is_err() {
            tracing::warn!("the shared store is slow: the last pages are not written");
        }
    }

    #[cfg(test)]
    pub(super) fn is_idle(&self) -> bool {
        self.waiting_bytes.load(Ordering::Relaxed) == 0 && self.unwritten.lock().is_empty()
    }

    fn postpone(&self, account: &Arc<Account>, keys: impl IntoIterator<Item = Key>, asked: Moment, tell: Tell) {
        self.unwritten.add(account, keys, asked, tell, &self.changes);
    }
}

/// Keys under which the store may have what was replaced.
#[derive(Debug, Clone, Default)]
struct Unwritten(Arc<Mutex<HashMap<Key, Removal>>>);

/// What has to be removed: what was requested no later than `asked`.
#[derive(Debug, Clone)]
struct Removal {
    account: Arc<Account>,
    asked: Moment,
    tell: Tell,
}

impl Unwritten {
    /// Adds keys. If there are too many to know them one by one, everything in the store is outdated.
    fn add(
        &self,
        account: &Arc<Account>,
        keys: impl IntoIterator<Item = Key>,
        asked: Moment,
        tell: Tell,
        changes: &Changes,
    ) {
        let mut unwritten = self.lock();
        for key in keys {
            let new = || Removal { account: Arc::clone(account), asked, tell };
            let removal = unwritten.entry(key).or_insert_with(new);
            (removal.asked, removal.tell) = (removal.asked.max(asked), removal.tell.max(tell));
        }
        if unwritten.len() > MOST_UNWRITTEN {
            unwritten.clear();
            drop(unwritten);
            changes.outdate_store();
        }
    }

    fn some(&self) -> Vec<(Key, Removal)> {
        const AT_ONCE: usize = 256;
        self.lock().iter().take(AT_ONCE).map(|(key, removal)| (*key, removal.clone())).collect()
    }

    /// It is removed, unless it was replaced once more meanwhile.
    fn done(&self, key: &Key, asked: Moment) {
        let mut unwritten = self.lock();
        if unwritten.get(key).is_some_and(|removal| removal.asked <= asked) {
            unwritten.remove(key);
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Removal>> {
        // Every change under this lock is one insertion or removal.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Task {
    store: SharedStore,
    changes: Changes,
    clock: Clock,
    receiver: mpsc::Receiver<Change>,
    waiting_bytes: Arc<AtomicUsize>,
    unwritten: Unwritten,
}

impl Task {
    async fn run(mut self) {
        let mut retry = tokio::time::interval(RETRY);
        retry.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let change = tokio::select! {
                change = self.receiver.recv() => change,
                _ = retry.tick() => {
                    self.remove_unwritten().await;
                    continue;
                }
            };
            match change {
                None => return,
                Some(Change::Put(page)) => {
                    let (account, key, asked, tell) = (Arc::clone(&page.account), page.key, page.asked, page.tell());
                    let bytes = page.stored.representation.weight();
                    if self.put(*page).await.is_none() {
                        self.unwritten.add(&account, [key], asked, tell, &self.changes);
                    }
                    self.waiting_bytes.fetch_sub(bytes, Ordering::Relaxed);
                }
                Some(Change::Remove { account, keys, asked, tell }) => {
                    for key in keys {
                        if self.remove(&account, &key, asked, tell).await.is_none() {
                            self.unwritten.add(&account, [key], asked, tell, &self.changes);
                        }
                    }
                }
                Some(Change::Flush(done)) => {
                    // The receiver may have stopped waiting.
                    let _ = done.send(());
                }
            }
        }
    }

    /// Writes a page, and what it says of the next one. `None` if the store may still have what was there before.
    async fn put(&self, page: Page) -> Option<()> {
        let tell = page.tell();
        let Page { account, key, stored, asked, .. } = page;
        let (result_set, next) = (stored.result_set, stored.next);
        let replaced = self.write(&account, key, Value::Page(stored), asked).await?;
        if let (Some(result_set), Some(next)) = (result_set, next)
            && self.write(&account, next, Value::Place(result_set), asked).await.is_none()
        {
            self.unwritten.add(&account, [next], asked, Tell::Never, &self.changes);
        }
        self.tell(&key, self.store.time_of(asked)?, tell, replaced).await;
        Some(())
    }

    async fn tell(&self, key: &Key, asked: StoreTime, tell: Tell, replaced: bool) {
        if tell == Tell::Always || (tell == Tell::IfReplaced && replaced) {
            self.changes.replaced(key, asked).await;
        }
    }

    /// Writes one value. Returns whether it replaced one; `None` if it is not written.
    async fn write(&self, account: &Arc<Account>, key: Key, value: Value, asked: Moment) -> Option<bool> {
        let generation = self.changes.generation()?;
        let stamp = self.store.time_of(asked)?;
        // The earlier of two readings, so that no page seems younger than it is.
        let calendar = Calendar::at(self.store.time()?.0.checked_mul(1000)?, self.clock.moment());
        let (store, account, name) =
            (self.store.clone(), Arc::clone(account), generation.name(self.store.names(), account, &key));
        let packed = tokio::task::spawn_blocking(move || {
            let belonging = Belonging { sealer: store.sealer(), account: &account.sid, name: &name, key: &key };
            let sealed = belonging.seal(&value, stamp, &calendar);
            sealed.map(|(bytes, expires)| (bytes, Duration::from_nanos(expires.saturating_sub(calendar.now())), name))
        });
        let (bytes, left, name) = packed.await.ok()??;
        let left = u64::try_from(left.min(LONGEST).as_millis()).ok().filter(|left| *left > 0)?;
        let mut command = redis::cmd("EVAL");
        command.arg(PUT).arg(1).arg(name).arg(value::stamp(stamp)).arg(bytes).arg(left);
        self.store.run::<bool>("page_put", &command).await.ok()
    }

    /// Removes what was requested no later than `asked`. `None` if that is not done.
    async fn remove(&self, account: &Account, key: &Key, asked: Moment, tell: Tell) -> Option<()> {
        let name = self.changes.generation()?.name(self.store.names(), account, key);
        let stamp = self.store.time_of(asked)?;
        let mut command = redis::cmd("EVAL");
        command.arg(REMOVE).arg(1).arg(name).arg(value::stamp(stamp));
        let removed = self.store.run::<bool>("page_remove", &command).await.ok()?;
        self.tell(key, stamp, tell, removed).await;
        Some(())
    }

    async fn remove_unwritten(&self) {
        for (key, Removal { account, asked, tell }) in self.unwritten.some() {
            if self.remove(&account, &key, asked, tell).await.is_none() {
                return;
            }
            self.unwritten.done(&key, asked);
        }
    }
}
