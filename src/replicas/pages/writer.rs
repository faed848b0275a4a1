//! Write-behind: puts pages into the store in the background, one after the other. Large pages have a separate queue
//! ([`large`](super::large)).
//!
//! No request waits for this. If too many pages wait, or if the store does not answer, a page is not written. A page
//! that was replaced must not be served again. So the older page that the store may still have is removed as soon as
//! possible.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::time::MissedTickBehavior;

use super::large::LargePageQueue;
use super::page_store::PageStore;
use super::pending_page::{Announce, PendingPage};
use super::pending_removals::PendingRemovals;
use crate::accounts::Account;
use crate::core::clock::{Clock, Moment};
use crate::core::work_queue::{Work, WorkQueue};
use crate::replicas::change_feed::ChangeFeed;
use crate::replicas::{LONGEST_BODY, SharedStore, SkipReason, retry_pause};
use crate::request::key::Key;

/// Changes, and bytes of pages, that may wait.
const WAITING: usize = 1024;
const WAITING_BYTES: usize = 64 * 1024 * 1024;
/// How often the removal of replaced pages is tried again, while the store removes some.
const RETRY: Duration = Duration::from_millis(100);

#[derive(Debug)]
enum QueuedChange {
    Put(Box<PendingPage>),
    Remove { account: Arc<Account>, keys: Vec<Key>, asked: Moment, announce: Announce },
}

/// The queue of pages to write and to remove.
#[derive(Debug)]
pub(super) struct PageWriter {
    queue: WorkQueue<QueuedChange>,
    large: Arc<LargePageQueue>,
    waiting_bytes: Arc<AtomicUsize>,
    page_store: PageStore,
}

impl PageWriter {
    /// Starts to write. Needs a tokio runtime.
    pub(super) fn start(store: SharedStore, feed: ChangeFeed, clock: Clock) -> Self {
        let (queue, work) = WorkQueue::bounded(WAITING);
        let waiting_bytes = Arc::<AtomicUsize>::default();
        let page_store = PageStore { store, feed, clock, pending_removals: PendingRemovals::default() };
        let large = Arc::new(LargePageQueue::start(page_store.clone(), Arc::clone(&waiting_bytes)));
        let task = WriterTask {
            page_store: page_store.clone(),
            large: Arc::clone(&large),
            work,
            waiting_bytes: Arc::clone(&waiting_bytes),
        };
        tokio::spawn(task.run());
        Self { queue, large, waiting_bytes, page_store }
    }

    /// Takes a page to be written.
    pub(super) fn put(&self, page: PendingPage) {
        let (account, key, asked, announce) = (Arc::clone(&page.account), page.key, page.asked, page.announce());
        let bytes = page.weight();
        let waiting = self.waiting_bytes.fetch_add(bytes, Ordering::Relaxed);
        // One page alone may be larger than the limit.
        let has_room = waiting == 0 || waiting + bytes <= WAITING_BYTES;
        let skipped = match () {
            () if page.stored.representation.body.len() > LONGEST_BODY => Some(Some(SkipReason::TooLarge)),
            // The store is not reached, which other metrics show.
            () if self.page_store.feed.generation().is_none() => Some(None),
            () if !has_room || self.queue.offer(QueuedChange::Put(Box::new(page))).is_err() => {
                Some(Some(SkipReason::Busy))
            }
            () => None,
        };
        if let Some(why) = skipped {
            self.waiting_bytes.fetch_sub(bytes, Ordering::Relaxed);
            why.into_iter().for_each(|why| self.page_store.store.skipped(why));
            self.page_store.postpone(&account, [key], asked, announce);
        }
    }

    /// Takes the keys of pages that are to be removed if they were requested no later than `asked`.
    pub(super) fn remove(&self, account: &Arc<Account>, keys: Vec<Key>, asked: Moment, announce: Announce) {
        let change = QueuedChange::Remove { account: Arc::clone(account), keys, asked, announce };
        if let Err(QueuedChange::Remove { account, keys, asked, announce }) = self.queue.offer(change) {
            self.page_store.postpone(&account, keys, asked, announce);
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
        self.waiting_bytes.load(Ordering::Relaxed) == 0 && self.page_store.pending_removals.is_empty()
    }
}

struct WriterTask {
    page_store: PageStore,
    large: Arc<LargePageQueue>,
    work: Work<QueuedChange>,
    waiting_bytes: Arc<AtomicUsize>,
}

impl WriterTask {
    async fn run(mut self) {
        let mut retry = tokio::time::interval(RETRY);
        retry.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let change = tokio::select! {
                change = self.work.next() => change,
                _ = retry.tick() => {
                    if !self.page_store.retry_removals().await {
                        retry.reset_after(retry_pause::random());
                    }
                    continue;
                }
            };
            match change {
                None => return,
                Some(QueuedChange::Put(page)) => self.put(page).await,
                Some(QueuedChange::Remove { account, keys, asked, announce }) => {
                    for key in keys {
                        self.large.overtake(&key, asked);
                        self.page_store.remove_or_postpone(&account, &key, asked, announce).await;
                    }
                }
            }
        }
    }

    async fn put(&self, page: Box<PendingPage>) {
        let bytes = page.weight();
        self.large.overtake(&page.key, page.asked);
        if page.is_large() {
            if let Err(page) = self.large.put(page) {
                self.page_store.store.skipped(SkipReason::Busy);
                self.page_store.postpone(&page.account, [page.key], page.asked, page.announce());
                self.waiting_bytes.fetch_sub(bytes, Ordering::Relaxed);
            }
            return;
        }
        let announce = page.announce();
        self.page_store.put_or_postpone(*page, announce).await;
        self.waiting_bytes.fetch_sub(bytes, Ordering::Relaxed);
    }
}
