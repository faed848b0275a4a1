//! Page tokens and query jobs that were given out under policies, as all replicas know them.
//!
//! One key for each, whose name is a hash of account, policy and token. The value is the time at which it ends, on the
//! store's clock. It is sealed, so that nobody who can write to the store can get access to a page, or keep it for
//! longer.

use std::time::Duration;

use futures_util::future::{BoxFuture, FutureExt};

use super::clock::micros;
use super::retry_queue::RetryQueue;
use super::seal::Context;
use super::{SharedStore, StoreError, StoreTime, bounded_get};
use crate::accounts::Account;
use crate::core::clock::Instant;
use crate::request::grants::{Scope, SharedGrants};
use crate::request::key::Key;

/// How long after a grant was given out it may reach the store.
const ON_ITS_WAY: Duration = Duration::from_millis(20);
/// The longest value that is read, in bytes: a time, sealed, is shorter.
const LONGEST: usize = 64;
/// No grant is kept for longer.
const LONGEST_KEPT: Duration = Duration::from_secs(366 * 86_400);

/// What all replicas have given out. Clones share one store.
#[derive(Debug, Clone)]
pub(crate) struct StoredGrants {
    store: SharedStore,
    retry_queue: RetryQueue,
}

impl StoredGrants {
    /// Grants in this store.
    pub(crate) fn new(store: SharedStore) -> Self {
        Self { retry_queue: RetryQueue::new(store.clone()), store }
    }

    fn name(&self, account: &Account, scope: &Scope, key: &Key) -> String {
        self.store.key_names().of_account(account, "grant", &[scope.as_slice(), key.as_bytes()].concat())
    }
}

/// A grant for the store.
#[derive(Clone)]
struct Grant {
    store: SharedStore,
    sid: String,
    name: String,
    /// When it ends.
    ends: Instant,
}

impl Grant {
    /// Writes it into the store.
    async fn write(&self) -> Result<(), StoreError> {
        let kept = micros(self.ends.saturating_duration_since(self.store.clock().now()));
        let StoreTime(now) = self.store.time().ok_or(StoreError::Down)?;
        let ends = now.saturating_add(kept).to_le_bytes();
        let sealed = self.store.sealer().seal(&context(&self.sid, &self.name), &ends);
        let sealed = sealed.map_err(|error| StoreError::Failed(error.to_string()))?;
        let mut command = redis::cmd("SET");
        command.arg(&self.name).arg(sealed).arg("PX").arg((kept / 1000).max(1));
        self.store.run("grant_give", &command).await
    }
}

impl SharedGrants for StoredGrants {
    fn give(&self, account: &Account, scope: &Scope, key: &Key, kept: Duration) -> BoxFuture<'static, ()> {
        let (store, retry_queue, name) = (self.store.clone(), self.retry_queue.clone(), self.name(account, scope, key));
        let grant = Grant { ends: store.clock().now() + kept.min(LONGEST_KEPT), sid: account.sid.clone(), store, name };
        async move {
            if grant.write().await.is_err() {
                retry_queue.add(grant.ends, move || {
                    let grant = grant.clone();
                    async move { grant.write().await }
                });
            }
        }
        .boxed()
    }

    fn find(&self, account: &Account, scope: &Scope, key: &Key) -> BoxFuture<'static, Option<Duration>> {
        let (store, name, sid) = (self.store.clone(), self.name(account, scope, key), account.sid.clone());
        let command = bounded_get::command(&name, LONGEST);
        async move {
            let look = || store.run::<Option<Vec<u8>>>("grant_find", &command);
            let sealed = match look().await.ok()? {
                Some(sealed) => sealed,
                None => {
                    // A hit does not wait for the store, so what it gave out may still be on its way there.
                    tokio::time::sleep(ON_ITS_WAY).await;
                    look().await.ok()??
                }
            };
            let opened = store.sealer().open(&context(&sid, &name), &sealed);
            let Some(ends) = opened.and_then(|ends| ends.try_into().ok()) else {
                store.unsealed();
                return None;
            };
            let StoreTime(now) = store.time()?;
            u64::from_le_bytes(ends).checked_sub(now).map(Duration::from_micros)
        }
        .boxed()
    }

    fn patience(&self) -> Duration {
        self.store.patience()
    }
}

fn context<'c>(sid: &'c str, name: &'c str) -> Context<'c> {
    Context { kind: "grant", account: sid, key: name, bound: b"" }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::accounts::Team;
    use crate::replicas::retry_queue;
    use crate::replicas::test_server::{TestServer, until};

    const S: Duration = Duration::from_secs(1);

    fn account() -> std::sync::Arc<Account> {
        Team::example("local").account
    }

    #[tokio::test]
    async fn what_one_replica_gave_out_another_finds_while_it_lasts() {
        let Some(server) = TestServer::start() else { return };
        let (one, two) = (StoredGrants::new(server.replica().await), StoredGrants::new(server.replica().await));
        let (account, key) = (account(), Key::from_bytes([7; 32]));
        assert_eq!(two.find(&account, &[1; 32], &key).await, None);
        one.give(&account, &[1; 32], &key, 100 * S).await;
        let left = two.find(&account, &[1; 32], &key).await.unwrap();
        assert!((90 * S..=101 * S).contains(&left), "{left:?}");
        let other = Account { sid: "AC2".to_owned(), ..Account::clone(&account) };
        for (account, scope, key) in
            [(&*account, [2; 32], key), (&*account, [1; 32], Key::from_bytes([8; 32])), (&other, [1; 32], key)]
        {
            assert_eq!(two.find(account, &scope, &key).await, None);
        }
        one.give(&account, &[1; 32], &key, Duration::from_millis(50)).await;
        ends(&two, &key).await;
    }

    /// Returns once this grant is not found any more.
    async fn ends(grants: &StoredGrants, key: &Key) {
        let ended = async { while grants.find(&account(), &[1; 32], key).await.is_some() {} };
        tokio::time::timeout(10 * S, ended).await.expect("it ends");
    }

    #[tokio::test]
    async fn a_grant_cannot_be_forged_moved_or_kept_for_longer() {
        let Some(server) = TestServer::start() else { return };
        let grants = StoredGrants::new(server.replica().await);
        let (account, short, long) = (account(), Key::from_bytes([1; 32]), Key::from_bytes([2; 32]));
        let store = &grants.store;
        let [from, to] = [&short, &long].map(|key| grants.name(&account, &[1; 32], key));
        grants.give(&account, &[1; 32], &short, 100 * S).await;
        assert!(store.run::<bool>("test", redis::cmd("COPY").arg(&from).arg(&to)).await.unwrap());
        assert_eq!(grants.find(&account, &[1; 32], &long).await, None, "moved");
        let begun = grants.store.clock().now();
        loop {
            grants.give(&account, &[1; 32], &short, S / 2).await;
            if store.run::<bool>("test", redis::cmd("PERSIST").arg(&from)).await.unwrap() {
                break;
            }
            // It ended before it could be kept.
            assert!(grants.store.clock().now() < begun + 10 * S);
        }
        ends(&grants, &short).await;
        assert!(store.run::<bool>("test", redis::cmd("EXISTS").arg(&from)).await.unwrap(), "kept");
        store.run::<()>("test", redis::cmd("SET").arg(&from).arg(u64::MAX.to_le_bytes().as_slice())).await.unwrap();
        assert_eq!(grants.find(&account, &[1; 32], &short).await, None, "forged");
    }

    #[tokio::test]
    async fn what_was_given_out_without_the_store_is_told_once_it_is_back() {
        let Some(mut server) = TestServer::start() else { return };
        let (one, two) = (StoredGrants::new(server.replica().await), StoredGrants::new(server.replica().await));
        server.kill();
        until("it is lost", || !one.store.is_up()).await;
        let (account, key) = (account(), Key::from_bytes([1; 32]));
        one.give(&account, &[1; 32], &key, 100 * S).await;
        one.give(&account, &[2; 32], &key, Duration::from_millis(1)).await;
        assert_eq!(one.retry_queue.permits.available_permits(), retry_queue::CAPACITY - 2);
        server.run();
        let found = async || {
            // While the store is away this does not wait, so others have to be let run.
            while two.find(&account, &[1; 32], &key).await.is_none() {
                tokio::time::sleep(S / 100).await;
            }
        };
        tokio::time::timeout(10 * S, found()).await.expect("it is found");
        assert_eq!(two.find(&account, &[2; 32], &key).await, None, "it has ended");
        until("nothing is late", || one.retry_queue.permits.available_permits() == retry_queue::CAPACITY).await;
        // No more than that are remembered.
        let all = one.retry_queue.permits.try_acquire_many(retry_queue::CAPACITY as u32).unwrap();
        server.kill();
        until("it is lost", || !one.store.is_up()).await;
        one.give(&account, &[3; 32], &key, 100 * S).await;
        drop(all);
        one.give(&account, &[1; 32], &key, 100 * S).await;
        server.run();
        tokio::time::timeout(10 * S, found()).await.expect("it is found");
        until("nothing is late", || one.retry_queue.permits.available_permits() == retry_queue::CAPACITY).await;
        assert_eq!(two.find(&account, &[3; 32], &key).await, None, "it is not remembered");
    }

    #[tokio::test]
    async fn a_value_that_is_too_long_does_not_cross() {
        let Some(server) = TestServer::start() else { return };
        let grants = StoredGrants::new(server.replica().await);
        let (account, key, store) = (account(), Key::from_bytes([1; 32]), &grants.store);
        let name = grants.name(&account, &[1; 32], &key);
        store.run::<()>("test", redis::cmd("SET").arg(&name).arg(vec![7_u8; 8 << 20])).await.unwrap();
        let before = server.sent();
        assert_eq!(grants.find(&account, &[1; 32], &key).await, None);
        assert!(server.sent() - before < 1 << 20);
        grants.give(&account, &[1; 32], &key, 100 * S).await;
        assert!(grants.find(&account, &[1; 32], &key).await.is_some(), "a newer one replaces it");
    }

    #[tokio::test]
    async fn without_the_store_nothing_is_found_and_nobody_waits() {
        let Some(mut server) = TestServer::start() else { return };
        let grants = StoredGrants::new(server.replica().await);
        server.kill();
        until("it is lost", || !grants.store.is_up()).await;
        let key = Key::from_bytes([1; 32]);
        let giving = grants.give(&account(), &[1; 32], &key, S);
        assert_eq!(giving.now_or_never(), Some(()));
        assert_eq!(grants.find(&account(), &[1; 32], &key).now_or_never(), Some(None));
    }
}
