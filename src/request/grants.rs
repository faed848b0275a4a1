//! Page tokens and query jobs that were given out under policies, as replicas share them.
//!
//! Each replica remembers what it has given out itself. The client's next request may reach another replica, which asks
//! here before it refuses.

use std::fmt::Debug;
use std::time::Duration;

use futures_util::future::BoxFuture;

use crate::accounts::Account;
use crate::core::outcome::Outcome;
use crate::request::key::Key;
use crate::request::store_wait::{StoreWait, StoreWork};

/// A hash of a policy, the account whose data it restricts, and the upstream that the data comes from.
pub type Scope = [u8; 32];

/// What all replicas have given out. It may forget: a client is refused then, and never let in by mistake.
pub trait SharedGrants: Debug + Send + Sync {
    /// Records that `key` was given out in this scope, for as long as it is to be `kept`. Ends when other replicas find it,
    /// or when that is not worth waiting for.
    fn give(&self, account: &Account, scope: &Scope, key: &Key, kept: Duration) -> BoxFuture<'static, ()>;

    /// How long what was given out in this scope is still kept; `None` if it was not given out, or if that cannot be found
    /// out now.
    fn find(&self, account: &Account, scope: &Scope, key: &Key) -> BoxFuture<'static, Option<Duration>>;

    /// How long one request may wait for what it asks and tells here, and for all else that spends from the same time.
    fn patience(&self) -> Duration;
}

/// Waits until other replicas know what was given out, before the client can follow a link at one of them. Not for a hit
/// in memory, which never waits for another machine, and not if the request has waited for the store for too long: then
/// the others know it a little later.
pub async fn share_before_answer(giving: StoreWork, outcome: Outcome, wait: &StoreWait) {
    match outcome {
        Outcome::Hit | Outcome::Stale | Outcome::Revalidated => giving.leave(),
        _ => giving.wait(wait).await,
    }
}

/// Grants in the memory of a test.
#[cfg(test)]
#[derive(Debug, Default)]
pub struct MemoryGrants(std::sync::Mutex<std::collections::HashMap<(String, Scope, Key), Duration>>);

#[cfg(test)]
impl MemoryGrants {
    /// How many there are.
    pub fn count(&self) -> usize {
        self.0.lock().unwrap().len()
    }
}

#[cfg(test)]
impl SharedGrants for MemoryGrants {
    fn give(&self, account: &Account, scope: &Scope, key: &Key, kept: Duration) -> BoxFuture<'static, ()> {
        self.0.lock().unwrap().insert((account.sid.clone(), *scope, *key), kept);
        Box::pin(std::future::ready(()))
    }

    fn find(&self, account: &Account, scope: &Scope, key: &Key) -> BoxFuture<'static, Option<Duration>> {
        let found = self.0.lock().unwrap().get(&(account.sid.clone(), *scope, *key)).copied();
        Box::pin(std::future::ready(found))
    }

    fn patience(&self) -> Duration {
        Duration::from_secs(1)
    }
}
