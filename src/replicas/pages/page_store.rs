//! The pages in the store: the scripts that write and remove them.

use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{self, StreamExt};

use super::pending_page::{Announce, PendingPage};
use super::pending_removals::{PendingRemovals, Removal};
use super::value::{self, PageSealer, PageValue};
use crate::accounts::Account;
use crate::cache::record::ClockSnapshot;
use crate::core::clock::{Clock, Moment};
use crate::replicas::change_feed::{ChangeFeed, LONGEST};
use crate::replicas::clock::{self, Due};
use crate::replicas::script::LuaScript;
use crate::replicas::{LARGE, SharedStore, StoreTime};
use crate::request::key::Key;

/// Removals that are on their way to the store at the same time.
const REMOVED_AT_ONCE: usize = 16;

/// Keeps a value until its windows end, unless there is one that was requested later. A value from the future does not
/// count, and a key of another type is replaced.
///
/// Keys: the page. Arguments: the stamp, the last stamp that is not from the future, the value, milliseconds to live,
/// and from and until when it is due on the server's own clock, in microseconds. Returns 0 if there was no value, 1 if
/// there was an older one, and 2 if there is a later one. Returns the server's time with a minus sign if it is not due:
/// its caller has given up, and what it did then would otherwise be undone.
static PUT: LuaScript = LuaScript::of(&[r"
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
if now < tonumber(ARGV[5]) or now > tonumber(ARGV[6]) then return -now end
local there = redis.pcall('GETRANGE', KEYS[1], 0, 15)
if type(there) == 'string' and there > ARGV[1] and there <= ARGV[2] then return 2 end
redis.call('SET', KEYS[1], ARGV[3], 'PX', ARGV[4])
return there == '' and 0 or 1
"]);

/// Removes a value, unless it was requested later.
///
/// Keys: the page. Arguments: the stamp, the last stamp that is not from the future.
static REMOVE: LuaScript = LuaScript::of(&[r"
local there = redis.pcall('GETRANGE', KEYS[1], 0, 15)
if type(there) == 'string' and there > ARGV[1] and there <= ARGV[2] then return 0 end
return redis.call('DEL', KEYS[1])
"]);

/// What the store had where a value was to be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Found {
    Nothing,
    /// It was requested earlier, and is replaced.
    Older,
    /// It was requested later, and stays.
    Later,
}

/// Writes and removes pages, and remembers the removals that failed. Clones share these.
#[derive(Debug, Clone)]
pub(super) struct PageStore {
    pub(super) store: SharedStore,
    pub(super) feed: ChangeFeed,
    pub(super) clock: Clock,
    pub(super) pending_removals: PendingRemovals,
}

impl PageStore {
    /// Removes these pages as soon as possible if they were requested no later than `asked`.
    pub(super) fn postpone(
        &self,
        account: &Arc<Account>,
        keys: impl IntoIterator<Item = Key>,
        asked: Moment,
        announce: Announce,
    ) {
        self.pending_removals.add(account, keys, asked, announce, &self.feed);
    }

    /// Writes a page. If that fails, what is there instead is removed as soon as possible.
    pub(super) async fn put_or_postpone(&self, page: PendingPage, announce: Announce) {
        let (account, key, asked) = (Arc::clone(&page.account), page.key, page.asked);
        if self.put(page, announce).await.is_none() {
            self.postpone(&account, [key], asked, announce);
        }
    }

    /// Removes a page, now or as soon as possible. Returns whether it is done.
    pub(super) async fn remove_or_postpone(
        &self,
        account: &Arc<Account>,
        key: &Key,
        asked: Moment,
        announce: Announce,
    ) -> bool {
        let is_removed = self.remove(account, key, asked, announce).await.is_some();
        if !is_removed {
            self.postpone(account, [*key], asked, announce);
        }
        is_removed
    }

    /// Writes a page, and what it says of the next one. `None` if the store may still have what was there before.
    async fn put(&self, page: PendingPage, announce: Announce) -> Option<()> {
        let PendingPage { account, key, stored, asked, .. } = page;
        let (result_set, next) = (stored.result_set, stored.next);
        let there = self.write(&account, key, PageValue::Page(stored), asked).await?;
        if there == Found::Later {
            self.feed.outdate_here(key);
        }
        if let (Some(result_set), Some(next)) = (result_set, next)
            && self.write(&account, next, PageValue::Place(result_set), asked).await.is_none()
        {
            self.postpone(&account, [next], asked, Announce::Never);
        }
        self.announce(&key, self.store.time_of(asked)?, announce, there == Found::Older).await;
        Some(())
    }

    async fn announce(&self, key: &Key, asked: StoreTime, announce: Announce, replaced: bool) {
        if announce == Announce::Always || (announce == Announce::IfReplaced && replaced) {
            self.feed.publish_replacement(key, asked).await;
        }
    }

    /// Writes one value, unless there is a later one. Returns what was there; `None` if the store did not take it.
    async fn write(&self, account: &Arc<Account>, key: Key, value: PageValue, asked: Moment) -> Option<Found> {
        let generation = self.feed.generation()?;
        let stamp = self.store.time_of(asked)?;
        // The earlier of two readings, so that no page seems younger than it is.
        let clocks = ClockSnapshot::at(self.store.time()?.0.checked_mul(1000)?, self.clock.moment());
        let (store, account, name) = (
            self.store.clone(),
            Arc::clone(account),
            generation.name(self.store.key_names(), account, value::KIND, &key),
        );
        let packed = tokio::task::spawn_blocking(move || {
            let page_sealer = PageSealer { sealer: &store.sealer(), account: &account.sid, name: &name, key: &key };
            let sealed = page_sealer.seal(&value, stamp, &clocks);
            sealed.map(|(bytes, expires)| (bytes, Duration::from_nanos(expires.saturating_sub(clocks.now())), name))
        });
        let (bytes, left, name) = packed.await.ok()??;
        let left = u64::try_from(left.min(LONGEST).as_millis()).ok().filter(|left| *left > 0)?;
        let is_large = bytes.len() > LARGE;
        let patience = if is_large { self.store.large_patience() } else { self.store.settings().timeout * 4 };
        let (last, server) = (self.last_stamp()?, self.store.server_time()?);
        let put = |due: Due| {
            let mut command = PUT.call(&[&name]);
            command.arg(value::stamp(stamp)).arg(&last).arg(&bytes).arg(left);
            command.arg(due.from).arg(due.until);
            async move {
                match is_large {
                    true => self.store.run_large::<i64>("page_put_large", &command).await,
                    false => self.store.run("page_put", &command).await,
                }
            }
        };
        let replied = clock::run_in_time(server, patience, clock::negative, put).await;
        match replied.ok()? {
            0 => Some(Found::Nothing),
            1 => Some(Found::Older),
            2 => Some(Found::Later),
            _ => None,
        }
    }

    /// The last stamp that a replica can have written until now, even if the shared clock was just set forward.
    fn last_stamp(&self) -> Option<String> {
        let StoreTime(now) = self.store.latest_time_of(self.clock.moment())?;
        Some(value::stamp(StoreTime(now.saturating_add(clock::AHEAD.as_micros() as u64))))
    }

    /// Removes what was requested no later than `asked`. `None` if that is not done.
    async fn remove(&self, account: &Account, key: &Key, asked: Moment, announce: Announce) -> Option<()> {
        let name = self.feed.generation()?.name(self.store.key_names(), account, value::KIND, key);
        // The later of two readings, so that what was requested then is removed, whichever reading its stamp is from.
        let stamp = self.store.latest_time_of(asked)?;
        let mut command = REMOVE.call(&[name]);
        command.arg(value::stamp(stamp)).arg(self.last_stamp()?);
        let removed = self.store.run::<bool>("page_remove", &command).await.ok()?;
        self.announce(key, stamp, announce, removed).await;
        Some(())
    }

    /// Tries again to remove what could not be removed: several at once, because new pages wait meanwhile. Returns
    /// whether the store did that for any of them, or there is none.
    pub(super) async fn retry_removals(&self) -> bool {
        let remove = |(key, Removal { account, asked, announce }): (Key, Removal)| async move {
            let is_removed = self.remove(&account, &key, asked, announce).await.is_some();
            if is_removed {
                self.pending_removals.done(&key, asked);
            }
            is_removed
        };
        let removing = stream::iter(self.pending_removals.some()).map(remove).buffer_unordered(REMOVED_AT_ONCE);
        let (tried, removed) =
            removing.fold((0, 0), async |(tried, removed), is| (tried + 1, removed + u32::from(is))).await;
        tried == 0 || removed > 0
    }
}
