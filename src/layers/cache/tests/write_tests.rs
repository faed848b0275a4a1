//! Writes, and the removal of what they make wrong.

use std::collections::HashSet;
use std::sync::mpsc;

use futures_util::FutureExt;
use tokio::task::JoinHandle;

use super::*;
use crate::accounts::Account;
use crate::cache::{Candidate, InsertOutcome, PurgeCompletion, PurgeOutcome, Replacement, Tier};
use crate::request::context::RequestContext;

/// A disk that fails at a purge, when the test lets it.
#[derive(Debug)]
struct SlowTier(Mutex<mpsc::Receiver<()>>);

impl Tier for SlowTier {
    fn get(&self, _: &Arc<Account>, _: &Key, _: &Arc<RequestContext>, _: Instant) -> Option<BoxFuture<'static, ()>> {
        None
    }

    fn put(&self, _: &Candidate<'_>, keep: &mut dyn FnMut() -> InsertOutcome) -> bool {
        keep().kept
    }

    fn remove(&self, _: &Replacement, remove: &mut dyn FnMut() -> Vec<Key>) {
        remove();
    }

    fn purge(&self, _: &Purge, mark: &mut dyn FnMut() -> HashSet<Key>) -> PurgeCompletion<'_> {
        mark();
        Box::new(|| {
            // An error says that the test has let it.
            let _ = self.0.lock().unwrap().recv();
            PurgeOutcome { not_durable: Some("the disk is full".to_owned()), shared: None }
        })
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        ready(()).boxed()
    }
}

fn write() -> ClientQuery {
    ClientQuery::example(Operation::FieldsWrite, "", "{}")
}

/// Waits until memory has no page, which a thread changes.
async fn until_empty(store: &Store) {
    while store.size().0 > 0 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn the_answer_waits_for_memory_and_a_late_fault_of_the_disk_is_reported() {
    let log = tempfile::NamedTempFile::new().unwrap();
    let subscriber = tracing_subscriber::fmt().with_writer(Arc::new(log.reopen().unwrap())).finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    let reported = || std::fs::read_to_string(log.path()).unwrap().contains("the disk is full");
    let upstream = Upstream::new(&[Next::Page("1"), Next::Page("written")]);
    let plain = cache(&upstream);
    let (release, released) = mpsc::channel::<()>();
    let store = plain.layer.store.clone().with_replicas(|_| Arc::new(SlowTier(Mutex::new(released))));
    let cache = Cache::new(CacheLayer { store, ..plain.layer }, &upstream);
    ask(&cache, call("q")).await.unwrap();

    let asked = tokio::spawn(cache.clone().oneshot(write()));
    until_empty(&cache.layer.store).await;
    settle().await;
    advance(2 * S).await;
    assert_eq!(asked.await.unwrap().unwrap().page.body, "written", "it does not wait for the disk");
    assert_eq!((cache.layer.writes.finish(Duration::MAX).now_or_never(), reported()), (None, false));
    drop(release);
    cache.layer.writes.finish(Duration::MAX).await;
    assert!(reported());
}

#[tokio::test(start_paused = true)]
async fn a_write_without_an_answer_at_the_end_removes_what_it_may_have_made_wrong() {
    for client_stays in [true, false] {
        let upstream = Upstream::gated(&[Next::Page("1")]);
        let cache = cache(&upstream);
        upstream.open(1);
        ask(&cache, call("q")).await.unwrap();
        let asked: JoinHandle<_> = tokio::spawn(cache.clone().oneshot(write()));
        settle().await;
        assert_eq!((upstream.calls(), cache.layer.store.size().0), (2, 1));
        if !client_stays {
            asked.abort();
        }
        cache.layer.writes.finish(30 * S).await;
        assert_eq!(cache.layer.store.size().0, 0);
        if client_stays {
            assert_eq!(asked.await.unwrap().unwrap_err().reason(), Reason::Draining);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn the_end_waits_for_the_answer_to_a_write() {
    let upstream = Upstream::gated(&[Next::Page("1"), Next::Status(409)]);
    let cache = cache(&upstream);
    upstream.open(1);
    ask(&cache, call("q")).await.unwrap();
    tokio::spawn(cache.clone().oneshot(write()));
    settle().await;
    let mut end = std::pin::pin!(cache.layer.writes.finish(30 * S));
    assert_eq!((&mut end).now_or_never(), None);
    upstream.open(1);
    end.await;
    assert_eq!(cache.layer.store.size().0, 1, "nothing was written");
}
