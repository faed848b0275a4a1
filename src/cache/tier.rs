//! The interface of tiers behind memory.
//!
//! Memory is not a tier: a hit reads it synchronously. A tier keeps [`StoredResponse`]s beyond this process, as
//! [`record`](super::record) encodes them. It is asked only when memory has nothing. It is told, in the order in which
//! memory changes, of every response that memory keeps or drops, and of every purge.
//!
//! The disk is the first tier. It loads what it has when the process starts, so its [`get`](Tier::get) waits for that.
//! A store that replicas share would look up the one key, and put what it finds into memory.

use std::collections::HashSet;
use std::fmt::Debug;

use futures_util::future::BoxFuture;

use super::purge::Purge;
use super::stored::StoredResponse;
use crate::core::clock::Instant;
use crate::request::key::Key;

/// A tier behind memory, whose stored responses outlive this process.
pub trait Tier: Debug + Send + Sync {
    /// Brings what the tier has under `key` into memory. Ends when it is there, or when it is not worth waiting for.
    /// `None` when the tier can have nothing that memory lacks. It must not take longer than a fetch from upstream
    /// would.
    fn get(&self, key: &Key, now: Instant) -> Option<BoxFuture<'static, ()>>;

    /// Calls `keep` once. `keep` keeps the response in memory or not, and returns the keys that were dropped. The tier
    /// drops these too. It takes a response that was kept; if it is too busy for that, it drops what it has under
    /// `key`, because a replaced response must not come back. Returns whether the response was kept. Does not block on
    /// the tier's medium.
    ///
    /// `keep`, `remove` and the purges' `mark` exclude each other, so that the tier sees them in memory's order.
    fn put(&self, key: Key, stored: &StoredResponse, keep: &mut dyn FnMut() -> Kept) -> bool;

    /// Calls `remove` once, which drops responses from memory and returns their keys. The tier drops them too. Does not
    /// block on its medium.
    fn remove(&self, remove: &mut dyn FnMut() -> Vec<Key>);

    /// Calls `mark` once, which marks in memory the responses to drop and returns the first pages of the result sets to
    /// drop. Then drops these and all that `which` matches. Never refused: a purged response must not come back.
    ///
    /// The returned function blocks until the purge lasts, and returns the cause where it does not.
    fn purge(&self, which: &Purge, mark: &mut dyn FnMut() -> HashSet<Key>) -> Lasting<'_>;

    /// Writes the changes that still wait, and accepts no further changes.
    fn close(&self) -> BoxFuture<'_, ()>;
}

/// What keeping a response changed in memory.
#[derive(Debug)]
pub struct Kept {
    /// Whether it was kept.
    pub kept: bool,
    /// The keys of other responses that were dropped.
    pub gone: Vec<Key>,
}

/// Waits until a purge lasts.
pub type Lasting<'a> = Box<dyn FnOnce() -> Result<(), String> + 'a>;
