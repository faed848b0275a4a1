//! The queue of large pages. They are written one after the other, and apart from all other changes, because they take
//! longer to compress and to send.
//!
//! So a later change of the same page can be made while a large page still waits. Then the large page is not written,
//! or it is removed again after it was written.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::page_store::PageStore;
use super::pending_page::{Announce, PendingPage};
use crate::core::clock::Moment;
use crate::core::work_queue::{Work, WorkQueue};
use crate::request::key::Key;

/// Pages that may wait. Their bytes are limited too.
const CAPACITY: usize = 64;

/// The queue of large pages.
#[derive(Debug)]
pub(super) struct LargePageQueue {
    /// Pages, and whether another change has overtaken each.
    queue: WorkQueue<(Box<PendingPage>, Arc<AtomicBool>)>,
    waiting: QueuedPages,
}

impl LargePageQueue {
    /// Starts to write. When a page is written or dropped, its weight is subtracted from `waiting_bytes`. Needs a tokio
    /// runtime.
    pub(super) fn start(page_store: PageStore, waiting_bytes: Arc<AtomicUsize>) -> Self {
        let ((queue, work), waiting) = (WorkQueue::bounded(CAPACITY), QueuedPages::default());
        let task = LargePageTask { page_store, work, waiting: waiting.clone(), waiting_bytes };
        tokio::spawn(task.run());
        Self { queue, waiting }
    }

    /// Takes a page.
    ///
    /// # Errors
    ///
    /// The page, if too many wait.
    pub(super) fn put(&self, page: Box<PendingPage>) -> Result<(), Box<PendingPage>> {
        let is_overtaken = self.waiting.enter(page.key, page.asked);
        self.queue.offer((page, is_overtaken)).map_err(|(page, is_overtaken)| {
            self.waiting.leave(&is_overtaken);
            page
        })
    }

    /// A change of the page that was requested at `asked` is about to be made.
    pub(super) fn overtake(&self, key: &Key, asked: Moment) {
        self.waiting.overtake(key, asked);
    }

    /// Returns once all pages that were taken until now are written.
    pub(super) async fn flush(&self) {
        self.queue.flush().await;
    }
}

/// The pages that wait or are being written.
#[derive(Debug, Clone, Default)]
struct QueuedPages(Arc<Mutex<Vec<QueuedPage>>>);

#[derive(Debug)]
struct QueuedPage {
    key: Key,
    asked: Moment,
    is_overtaken: Arc<AtomicBool>,
}

impl QueuedPages {
    fn enter(&self, key: Key, asked: Moment) -> Arc<AtomicBool> {
        let is_overtaken = Arc::<AtomicBool>::default();
        self.lock().push(QueuedPage { key, asked, is_overtaken: Arc::clone(&is_overtaken) });
        is_overtaken
    }

    fn overtake(&self, key: &Key, asked: Moment) {
        for page in self.lock().iter().filter(|page| page.key == *key && page.asked <= asked) {
            page.is_overtaken.store(true, Ordering::SeqCst);
        }
    }

    /// From here on a change of the page comes after this one.
    fn leave(&self, is_overtaken: &Arc<AtomicBool>) {
        self.lock().retain(|page| !Arc::ptr_eq(&page.is_overtaken, is_overtaken));
    }

    fn lock(&self) -> MutexGuard<'_, Vec<QueuedPage>> {
        // Every change under this lock is one insertion or removal.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct LargePageTask {
    page_store: PageStore,
    work: Work<(Box<PendingPage>, Arc<AtomicBool>)>,
    waiting: QueuedPages,
    waiting_bytes: Arc<AtomicUsize>,
}

impl LargePageTask {
    async fn run(mut self) {
        while let Some((page, is_overtaken)) = self.work.next().await {
            let (bytes, account, key, asked) = (page.weight(), Arc::clone(&page.account), page.key, page.asked);
            if !is_overtaken.load(Ordering::SeqCst) {
                self.put(*page).await;
            }
            self.waiting.leave(&is_overtaken);
            if is_overtaken.load(Ordering::SeqCst) {
                self.page_store.remove_or_postpone(&account, &key, asked, Announce::Never).await;
            }
            self.waiting_bytes.fetch_sub(bytes, Ordering::Relaxed);
        }
    }

    /// Writing the page takes long, so the other replicas are told of it before that. The older page is removed first,
    /// so that no replica takes it from the store after that.
    async fn put(&self, page: PendingPage) {
        let (account, key, asked, announce) = (Arc::clone(&page.account), page.key, page.asked, page.announce());
        if announce == Announce::Never || self.page_store.remove_or_postpone(&account, &key, asked, announce).await {
            self.page_store.put_or_postpone(page, Announce::Never).await;
        }
    }
}
