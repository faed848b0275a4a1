//! Puts pages into the store in the background, one after the other. Large pages have a separate queue
//! ([`large`](super::large)).
//!
//! No request waits for this. If too many pages wait, or the store does not answer, a page is not written. Then the
//! older page that the store may still have is removed as soon as possible, because a page that was replaced must not
//! be served again.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::time::MissedTickBehavior;

use super::large::LargePages;
use super::page::{Page, Tell};
use super::scripts::Scripts;
use super::unwritten::Unwritten;
use crate::accounts::Account;
use crate::core::clock::{Clock, Moment};
use crate::core::work_queue::{Work, WorkQueue};
use crate::replicas::change_feed::ChangeFeed;
use crate::replicas::{LONGEST_BODY, SharedStore, Skipped};
use crate::request::key::Key;

/// Changes, and bytes of pages, that may wait.
const WAITING: usize = 1024;
const WAITING_BYTES: usize = 64 * 1024 * 1024;
/// How often the removal of replaced pages is tried again.
const RETRY: Duration = Duration::from_millis(100);

#[derive(Debug)]
enum Change {
    Put(Box<Page>),
    Remove { account: Arc<Account>, keys: Vec<Key>, asked: Moment, tell: Tell },
}

/// Where requests leave what is to be written.
#[derive(Debug)]
pub(super) struct Writer {
    queue: WorkQueue<Change>,
    large: Arc<LargePages>,
    waiting_bytes: Arc<AtomicUsize>,
    scripts: Scripts,
}

impl Writer {
    /// Starts to write. Needs a tokio runtime.
    pub(super) fn start(store: SharedStore, feed: ChangeFeed, clock: Clock) -> Self {
        let (queue, work) = WorkQueue::bounded(WAITING);
        let waiting_bytes = Arc::<AtomicUsize>::default();
        let scripts = Scripts { store, feed, clock, unwritten: Unwritten::default() };
        let large = Arc::new(LargePages::start(scripts.clone(), Arc::clone(&waiting_bytes)));
        let task = Task {
            scripts: scripts.clone(),
            large: Arc::clone(&large),
            work,
            waiting_bytes: Arc::clone(&waiting_bytes),
        };
        tokio::spawn(task.run());
        Self { queue, large, waiting_bytes, scripts }
    }

    /// Takes a page to be written.
    pub(super) fn put(&self, page: Page) {
        let (account, key, asked, tell) = (Arc::clone(&page.account), page.key, page.asked, page.tell());
        let bytes = page.weight();
        let waiting = self.waiting_bytes.fetch_add(bytes, Ordering::Relaxed);
        // One page alone may be larger than the limit.
        let has_room = waiting == 0 || waiting + bytes <= WAITING_BYTES;
        let skipped = match () {
            () if page.stored.representation.body.len() > LONGEST_BODY => Some(Some(Skipped::TooLarge)),
            // The store is not reached, which other metrics show.
            () if self.scripts.feed.generation().is_none() => Some(None),
            () if !has_room || self.queue.offer(Change::Put(Box::new(page))).is_err() => Some(Some(Skipped::Busy)),
            () => None,
        };
        if let Some(why) = skipped {
            self.waiting_bytes.fetch_sub(bytes, Ordering::Relaxed);
            why.into_iter().for_each(|why| self.scripts.store.skipped(why));
            self.scripts.postpone(&account, [key], asked, tell);
        }
    }

    /// Takes the keys of pages that are to be removed if they were requested no later than `asked`.
    pub(super) fn remove(&self, account: &Arc<Account>, keys: Vec<Key>, asked: Moment, tell: Tell) {
        let change = Change::Remove { account: Arc::clone(account), keys, asked, tell };
        if let Err(Change::Remove { account, keys, asked, tell }) = self.queue.offer(change) {
            self.scripts.postpone(&account, keys, asked, tell);
        }
    }

    /// Returns once all that was taken until now is written, or after a while.
    pub(super) async fn flush(&self, patience: Duration) {
        let flushed = async {
            // After this the large pages among them are in their own queue.
            self.queue.flush().await;
            self.large.flush().await;
        };
        if tokio::time::timeout(patience, flushed).await.is_err() {
            tracing::warn!("the shared store is slow: the last pages are not written");
        }
    }

    #[cfg(test)]
    pub(super) fn is_idle(&self) -> bool {
        self.waiting_bytes.load(Ordering::Relaxed) == 0 && self.scripts.unwritten.is_empty()
    }
}

struct Task {
    scripts: Scripts,
    large: Arc<LargePages>,
    work: Work<Change>,
    waiting_bytes: Arc<AtomicUsize>,
}

impl Task {
    async fn run(mut self) {
        let mut retry = tokio::time::interval(RETRY);
        retry.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let change = tokio::select! {
                change = self.work.next() => change,
                _ = retry.tick() => {
                    self.scripts.remove_unwritten().await;
                    continue;
                }
            };
            match change {
                None => return,
                Some(Change::Put(page)) => self.put(page).await,
                Some(Change::Remove { account, keys, asked, tell }) => {
                    for key in keys {
                        self.large.overtake(&key, asked);
                        self.scripts.remove_or_postpone(&account, &key, asked, tell).await;
                    }
                }
            }
        }
    }

    async fn put(&self, page: Box<Page>) {
        let bytes = page.weight();
        self.large.overtake(&page.key, page.asked);
        if page.is_large() {
            if let Err(page) = self.large.put(page) {
                self.scripts.store.skipped(Skipped::Busy);
                self.scripts.postpone(&page.account, [page.key], page.asked, page.tell());
                self.waiting_bytes.fetch_sub(bytes, Ordering::Relaxed);
            }
            return;
        }
        let tell = page.tell();
        self.scripts.put_or_postpone(*page, tell).await;
        self.waiting_bytes.fetch_sub(bytes, Ordering::Relaxed);
    }
}
