//! Pages that replicas share: memory, then the store, then upstream.
//!
//! A page that is not in memory is looked up in the store. One look-up serves all requests that ask for the page at the
//! same time. The page is put into memory by the same rules as a page that has just been fetched. A page that memory
//! keeps is written to the store in the background. There it is sealed, and expires when it may no longer be served. No
//! request fails because of the store. A page that cannot be read, unsealed or written is a miss.
//!
//! The name of a page's key depends on the account's SID and origin, not on the account's name. A page's times are on
//! the shared clock, and are rounded so that no page seems younger than it is. A further page of a result set is used
//! only together with its first page. If the first page is a newer one, the older further page is not used.
//!
//! A large page is sent over a second connection, so that it delays no other operation, and may take longer.

mod large;
mod page_store;
mod pending_page;
mod pending_removals;
mod value;
mod writer;

use std::collections::{HashMap, HashSet, hash_map};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::sync::watch;

use self::pending_page::{Announce, PendingPage};
use self::value::{PageSealer, PageValue};
use self::writer::PageWriter;
use super::accounts::KnownAccounts;
use super::change_feed::{ChangeFeed, Generation};
use super::job_notes::StoredJobNotes;
use super::script::LuaScript;
use super::{LARGE, SharedStore, StoreTime};
use crate::accounts::Account;
use crate::cache::entry::Entry;
use crate::cache::record::ClockSnapshot;
use crate::cache::sets::ResultSet;
use crate::cache::stored::StoredResponse;
use crate::cache::{Candidate, InsertOutcome, Purge, PurgeCompletion, PurgeOutcome, Replacement, Store, Tier};
use crate::core::clock::{Clock, Instant};
use crate::request::context::RequestContext;
use crate::request::key::Key;

/// Longer values are unsealed on a separate thread, where that delays no request.
const SLOW_TO_OPEN: usize = 64 * 1024;
/// How long closing may take, for the pages and again for the purges.
const CLOSING_PATIENCE: Duration = Duration::from_secs(1);

/// Finds a value.
///
/// Keys: the page. Arguments: the longest value that is wanted. Returns the value and its length, or nothing. A value
/// that is longer is empty, and so is one of another type.
static GET: LuaScript = LuaScript::of(&[r"
local value = ''
local length = redis.pcall('STRLEN', KEYS[1])
if type(length) == 'table' and string.sub(length.err, 1, 9) ~= 'WRONGTYPE' then return length end
if length == 0 and redis.call('EXISTS', KEYS[1]) == 0 then return false end
if type(length) ~= 'number' then
  length = 0
elseif length <= tonumber(ARGV[1]) then
  value = redis.call('GET', KEYS[1])
end
return {value, length}
"]);

/// The tier of pages that replicas share. Clones share it.
#[derive(Debug, Clone)]
pub struct SharedPages(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    store: SharedStore,
    /// Memory and the disk, without this tier.
    local: Store,
    accounts: KnownAccounts,
    feed: ChangeFeed,
    writer: PageWriter,
    clock: Clock,
    /// The look-ups under way. The sender is gone when one has ended.
    lookups: Mutex<HashMap<Key, watch::Receiver<()>>>,
}

impl SharedPages {
    /// Puts the shared pages behind memory and disk of `local`. Notes about jobs are shared too, and the same purges
    /// end them. `accounts` are those of the configuration in use. Needs a tokio runtime.
    pub(crate) fn behind(local: Store, store: SharedStore, accounts: KnownAccounts, clock: Clock) -> Store {
        let pages = Self::new(local.clone(), store.clone(), accounts, clock);
        let notes = StoredJobNotes::new(store, pages.0.feed.clone());
        local.with_job_notes(Arc::new(notes)).with_replicas(|_| Arc::new(pages))
    }

    fn new(local: Store, store: SharedStore, accounts: KnownAccounts, clock: Clock) -> Self {
        let feed = ChangeFeed::start(store.clone(), local.clone(), clock);
        let writer = PageWriter::start(store.clone(), feed.clone(), clock);
        Self(Arc::new(Inner { store, local, accounts, feed, writer, clock, lookups: Mutex::default() }))
    }

    /// Brings what the store has under `key` into memory.
    async fn look_up(&self, generation: Generation, account: &Account, key: &Key) {
        let Inner { local, .. } = &*self.0;
        let snapshot = local.lookup_snapshot();
        let Some(found) = self.find(generation, account, key).await else { return };
        let result_set = match &found {
            LookupResult::Page(entry) => entry.stored.result_set,
            LookupResult::Place(result_set) => Some(*result_set),
        };
        // Only its first page shows that a set is the newest of its query. That page is the next to be asked for anyway, or
        // has just been.
        if let Some(result_set) = result_set.filter(|set| set.first != *key && !local.has_set(set))
            && let Some(LookupResult::Page(first)) = self.find(generation, account, &result_set.first).await
        {
            local.adopt(result_set.first, *first, snapshot);
        }
        match found {
            LookupResult::Page(entry) => {
                local.adopt(*key, *entry, snapshot);
            }
            LookupResult::Place(result_set) => local.adopt_place(*key, result_set, account.id(), snapshot),
        }
    }

    /// What the store has under `key`, if it may be served.
    async fn find(&self, generation: Generation, account: &Account, key: &Key) -> Option<LookupResult> {
        let Inner { store, feed, clock, .. } = &*self.0;
        let name = generation.name(store.key_names(), account, value::KIND, key);
        let reply = store.run::<Option<Reply>>("page_get", &get(&name, LARGE)).await.ok()?;
        let (mut bytes, length) = reply?;
        if bytes.is_empty() && (LARGE..=value::MOST_BYTES).contains(&length) {
            let reply =
                store.run_large::<Option<Reply>>("page_get_large", &get(&name, value::MOST_BYTES)).await.ok()?;
            (bytes, _) = reply?;
        }
        // The later of two readings, so that no page seems younger than it is. Whoever wrote it had written it before.
        let came = clock.moment();
        let StoreTime(time) = store.latest_time_of(came)?;
        let clocks = ClockSnapshot::at(time.checked_mul(1000)?, came);
        let Some((value, asked)) = self.open(account, name, *key, bytes, clocks).await else {
            store.unsealed();
            return None;
        };
        match value {
            PageValue::Place(result_set) => Some(LookupResult::Place(result_set)),
            PageValue::Page(stored) => {
                let stored = StoredResponse { account: account.id(), ..stored };
                let (now, age) = (clock.now(), stored.age(clock.moment()));
                let is_usable = age <= stored.lifetimes.usable() && feed.admit(account, key, &stored, asked);
                let ago = clock.moment().since(came) + Duration::from_micros(time.saturating_sub(asked.0));
                // Another replica may have asked before this process began.
                let asked = now.checked_sub(ago).unwrap_or_else(|| clock.start());
                // When it arrived there is not known.
                let mut entry = Entry::new(key, stored, asked, asked, age);
                entry.by_another = true;
                is_usable.then(|| LookupResult::Page(Box::new(entry)))
            }
        }
    }

    async fn open(
        &self,
        account: &Account,
        name: String,
        key: Key,
        bytes: Vec<u8>,
        clocks: ClockSnapshot,
    ) -> Option<(PageValue, StoreTime)> {
        let (store, sid) = (self.0.store.clone(), account.sid.clone());
        let is_slow = bytes.len() > SLOW_TO_OPEN;
        let open = move || {
            let page_sealer = PageSealer { sealer: &store.sealer(), account: &sid, name: &name, key: &key };
            page_sealer.open(&bytes, &clocks)
        };
        if is_slow { tokio::task::spawn_blocking(open).await.ok().flatten() } else { open() }
    }

    /// Ends when the look-up of `key` that is under way has ended, or this one, which begins if there is none.
    fn join(&self, key: Key, look_up: impl Future<Output = ()> + Send + 'static) -> watch::Receiver<()> {
        let (sender, lookup) = watch::channel(());
        match self.lookups().entry(key) {
            hash_map::Entry::Occupied(under_way) => return under_way.get().clone(),
            hash_map::Entry::Vacant(place) => place.insert(lookup.clone()),
        };
        let under_way = LookupGuard { pages: self.clone(), key, _sender: sender };
        // In its own task, so that it ends even if nobody waits for it any more.
        tokio::spawn(async move {
            let _under_way = under_way;
            look_up.await;
        });
        lookup
    }

    fn lookups(&self) -> MutexGuard<'_, HashMap<Key, watch::Receiver<()>>> {
        // Every change under this lock is one insertion or removal.
        self.0.lookups.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A look-up that has not ended. It ends also by a panic.
struct LookupGuard {
    pages: SharedPages,
    key: Key,
    /// Dropped last, so that those who wait for its end find no look-up any more.
    _sender: watch::Sender<()>,
}

impl Drop for LookupGuard {
    fn drop(&mut self) {
        self.pages.lookups().remove(&self.key);
    }
}

/// A value and its length.
type Reply = (Vec<u8>, usize);

/// Asks for a value of this length at most.
fn get(name: &str, longest: usize) -> redis::Cmd {
    let mut command = GET.call(&[name]);
    command.arg(longest);
    command
}

/// What a look-up found, for memory.
enum LookupResult {
    Page(Box<Entry>),
    Place(ResultSet),
}

impl Tier for SharedPages {
    fn get(
        &self,
        account: &Arc<Account>,
        key: &Key,
        context: &Arc<RequestContext>,
        _: Instant,
    ) -> Option<BoxFuture<'static, ()>> {
        let generation = self.0.feed.generation()?;
        let patience = self.0.store.patience();
        context.store_wait.left(patience)?;
        let (pages, account, key) = (self.clone(), Arc::clone(account), *key);
        let mut lookup = self.join(key, async move { pages.look_up(generation, &account, &key).await });
        let (context, clock) = (Arc::clone(context), self.0.clock);
        let waiting = async move {
            // A large page may take longer. Then it is in memory for those who ask later.
            let ended = async { while lookup.changed().await.is_ok() {} };
            context.store_wait.within(patience, clock, ended).await;
        };
        Some(waiting.boxed())
    }

    fn put(&self, candidate: &Candidate<'_>, keep: &mut dyn FnMut() -> InsertOutcome) -> bool {
        let InsertOutcome { kept, mut removed } = keep();
        let Candidate { key, stored, asked, is_forced } = *candidate;
        let Some(account) = self.0.accounts.get(stored.account) else { return kept };
        let asked = self.0.clock.earliest_moment(asked);
        if kept {
            // The next page's place in the new set is written over what there was.
            removed.retain(|removed| Some(*removed) != stored.next);
        }
        if !removed.is_empty() {
            self.0.writer.remove(&account, removed, asked, if kept { Announce::Never } else { Announce::Always });
        }
        if kept {
            self.0.writer.put(PendingPage { account, key, stored: stored.clone(), asked, is_forced });
        }
        kept
    }

    fn remove(&self, replaced: &Replacement, remove: &mut dyn FnMut() -> Vec<Key>) {
        let removed = remove();
        let account = replaced.account.and_then(|account| self.0.accounts.get(account));
        if let Some(account) = account.filter(|_| !removed.is_empty()) {
            self.0.writer.remove(&account, removed, self.0.clock.earliest_moment(replaced.asked), Announce::Always);
        }
    }

    fn purge(&self, which: &Purge, mark: &mut dyn FnMut() -> HashSet<Key>) -> PurgeCompletion<'_> {
        // It counts before memory changes, so that no purged page is taken from the store in between.
        let told = self.0.feed.publish_purge(which, mark);
        Box::new(move || PurgeOutcome { not_durable: None, shared: Some(told()) })
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        let (writer, feed) = (&self.0.writer, &self.0.feed);
        let closed = async move {
            writer.flush(CLOSING_PATIENCE).await;
            // Pages that could not be written are purged on the other replicas.
            feed.flush(CLOSING_PATIENCE).await;
        };
        closed.boxed()
    }
}

#[cfg(test)]
impl SharedPages {
    pub(super) fn feed(&self) -> &ChangeFeed {
        &self.0.feed
    }
}

#[cfg(test)]
pub(super) mod tests;
