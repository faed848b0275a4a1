//! Your own cache tier behind memory: `cargo run --example tier`.
//!
//! This one stores nothing. It writes a journal of what memory stores and drops, as a tier that feeds another system
//! would. The program asks the same query twice, purges the cache, and prints the journal.

use std::collections::HashSet;
use std::error::Error;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures_util::future::{BoxFuture, FutureExt, ready};
use http_body_util::Full;
use insights_gateway::accounts::Account;
use insights_gateway::cache::{Candidate, InsertOutcome, Purge, PurgeCompletion, PurgeOutcome, Replacement, Tier};
use insights_gateway::core::clock::Instant;
use insights_gateway::request::context::RequestContext;
use insights_gateway::request::key::Key;
use insights_gateway::stack::{self, SharedState};
use tower::ServiceExt;

mod simulated;

/// A tier that records changes. The lock keeps them in the order in which memory makes them.
#[derive(Debug, Default)]
struct Journal(Mutex<Vec<String>>);

impl Journal {
    /// Calls `change`, and records what `describe` returns for its result.
    fn write<T>(&self, change: impl FnOnce() -> T, describe: impl FnOnce(&T) -> Option<String>) -> T {
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = change();
        lines.extend(describe(&changed));
        changed
    }

    fn lines(&self) -> Vec<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Tier for Journal {
    /// It stores nothing, so it never has a response.
    fn get(&self, _: &Arc<Account>, _: &Key, _: &Arc<RequestContext>, _: Instant) -> Option<BoxFuture<'static, ()>> {
        None
    }

    fn put(&self, candidate: &Candidate<'_>, keep: &mut dyn FnMut() -> InsertOutcome) -> bool {
        self.write(keep, |kept| kept.kept.then(|| format!("kept {}", candidate.key))).kept
    }

    fn remove(&self, _: &Replacement, remove: &mut dyn FnMut() -> Vec<Key>) {
        self.write(remove, |keys| (!keys.is_empty()).then(|| format!("removed {} pages", keys.len())));
    }

    fn purge(&self, which: &Purge, mark: &mut dyn FnMut() -> HashSet<Key>) -> PurgeCompletion<'_> {
        self.write(mark, |_| Some(format!("purged {which:?}")));
        // There is nothing to write.
        Box::new(PurgeOutcome::default)
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        ready(()).boxed()
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let config = simulated::start().await?;
    let journal = Arc::new(Journal::default());
    let mut shared = SharedState::new(&config)?;
    shared.store = shared.store.with_tier(Arc::<Journal>::clone(&journal));
    let stack = stack::build(&config, &shared)?;

    for _ in 0..2 {
        let request = simulated::query::<Full<Bytes>>("localhost")?;
        let response = stack.clone().oneshot(request).await?;
        println!("{} {:?}", response.status(), response.headers().get("cache-status"));
    }
    tokio::task::spawn_blocking(move || shared.store.purge(&Purge::All)).await?;
    println!("{}", journal.lines().join("\n"));
    Ok(())
}
