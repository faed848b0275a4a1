//! The interface of tiers behind memory.
//!
//! Memory is not a tier: a hit reads it synchronously. A tier keeps [`StoredResponse`]s beyond this process, in the
//! encoding of [`record`](super::record). It is asked only when memory has nothing. It gets every response that memory
//! keeps or drops, and every purge, in the order in which memory changes.
//!
//! There are two. The disk loads what it has when the process starts, so its [`get`](Tier::get) waits for that. The
//! store that replicas share looks up the one key, and puts what it finds into memory. [`Tiers`](super::tiers::Tiers)
//! puts one behind the other.

use std::collections::HashSet;
use std::fmt::Debug;
use std::sync::Arc;

use futures_util::future::BoxFuture;

use super::purge::Purge;
use super::stored::StoredResponse;
use crate::accounts::{Account, AccountId};
use crate::core::clock::Instant;
use crate::request::context::RequestContext;
use crate::request::key::Key;

/// A tier behind memory, whose stored responses outlive this process.
pub trait Tier: Debug + Send + Sync {
    /// Brings what the tier has under `key`, for this `account`, into memory. Ends when it is there, or when it is not
    /// worth waiting for. `None` when the tier can have nothing that memory lacks. It must not take longer than a fetch
    /// from upstream would. `context` is that of the request that asks, which waits only so long for all its operations
    /// on a store of replicas.
    fn get(
        &self,
        account: &Arc<Account>,
        key: &Key,
        context: &Arc<RequestContext>,
        now: Instant,
    ) -> Option<BoxFuture<'static, ()>>;

    /// Calls `keep` once. `keep` keeps the response in memory or not, and returns the keys that were dropped. The tier
    /// drops these too. It takes a response that was kept; if it is too busy for that, it drops what it has under the
    /// key, because a replaced response must not come back. Returns whether the response was kept. Does not block on
    /// the tier's medium.
    ///
    /// `keep`, `remove` and the purges' `mark` exclude each other in a tier that needs memory's order.
    fn put(&self, candidate: &Candidate<'_>, keep: &mut dyn FnMut() -> InsertOutcome) -> bool;

    /// Calls `remove` once, which drops responses from memory and returns their keys. The tier drops them too, as far
    /// as they are older than what `replaced` them. Does not block on its medium.
    fn remove(&self, replaced: &Replacement, remove: &mut dyn FnMut() -> Vec<Key>);

    /// Calls `mark` once, which marks in memory the responses to drop and returns the first pages of the result sets to
    /// drop. Then drops these and all that `which` matches. Never refused: a purged response must not come back.
    ///
    /// The returned function blocks until the purge is durable, or until it is known that it is not.
    fn purge(&self, which: &Purge, mark: &mut dyn FnMut() -> HashSet<Key>) -> PurgeCompletion<'_>;

    /// Writes the changes that still wait, and accepts no further changes.
    fn close(&self) -> BoxFuture<'_, ()>;
}

/// A response that memory may keep.
#[derive(Debug, Clone, Copy)]
pub struct Candidate<'a> {
    /// Its key.
    pub key: Key,
    /// The response.
    pub stored: &'a StoredResponse,
    /// When it was requested: of two responses the one requested later is the newer.
    pub asked: Instant,
    /// Whether a client demanded a new response. Then everybody gets this one from now on.
    pub is_forced: bool,
}

/// A response that is not kept. Others are dropped because of it.
#[derive(Debug, Clone, Copy)]
pub struct Replacement {
    /// Its account. `None` if they are of several: another replica has newer ones, which the store that replicas share
    /// knows.
    pub account: Option<AccountId>,
    /// When it was requested.
    pub asked: Instant,
}

/// How memory took a response.
#[derive(Debug, Clone)]
pub struct InsertOutcome {
    /// Whether it was kept.
    pub kept: bool,
    /// The keys of other responses that were dropped.
    pub removed: Vec<Key>,
}

/// Blocks until a purge is durable, or until it is known that it is not.
pub type PurgeCompletion<'a> = Box<dyn FnOnce() -> PurgeOutcome + 'a>;

/// How a purge of a tier ended.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PurgeOutcome {
    /// Why it may not survive a restart.
    pub not_durable: Option<String>,
    /// Whether the store that replicas share has it; `None` without such a store.
    pub shared: Option<bool>,
}
