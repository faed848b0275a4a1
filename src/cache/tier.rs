//! The seam for tiers behind memory.
//!
//! Memory is not one of them: a hit reads it synchronously. A tier keeps [`StoredResponse`]s beyond this process, as
//! [`record`](super::record) encodes them. It is asked only when memory has nothing, and is told of every response that
//! memory keeps and of every purge, in the order in which memory changes.
//!
//! The disk is the first. It loads what it has when the process starts, so its [`get`](Tier::get) waits for that. A store that
//! replicas share would look the one key up there, and put what it finds into memory.

use std::collections::HashSet;
use std::fmt::Debug;

use futures_util::future::BoxFuture;

use super::purge::Purge;
use super::stored::StoredResponse;
use crate::core::clock::Instant;
use crate::request::key::Key;

/// A place behind memory where stored responses outlive this process.
pub(crate) trait Tier: Debug + Send + Sync {
    /// Brings what the tier has under `key` into memory, and ends when it is there, or when it is not worth waiting for it.
    /// `None` when the tier can have nothing that memory has not. It must not take longer than a fetch from upstream is
    /// worth.
    fn get(&self, key: &Key, now: Instant) -> Option<BoxFuture<'static, ()>>;

    /// Calls `keep` once, which keeps the response in memory and says whether it did. If so, the tier takes it too, or drops
    /// it when it is too busy. Returns what `keep` said. Does not block on the tier's medium.
    ///
    /// `keep` and the purges' `mark` exclude each other, so that the tier sees them in memory's order.
    fn put(&self, key: Key, stored: &StoredResponse, keep: &mut dyn FnMut() -> bool) -> bool;

    /// Calls `mark` once, which marks in memory what is to go and names the first pages of the result sets that go too.
    /// Then drops these and all that `which` matches. Never refused: a purged response must not come back.
    ///
    /// What it returns blocks until the purge lasts, and says why where it does not.
    fn purge(&self, which: &Purge, mark: &mut dyn FnMut() -> HashSet<Key>) -> Lasting<'_>;

    /// Writes what still waits, and takes nothing more.
    fn close(&self) -> BoxFuture<'_, ()>;
}

/// Waits until a purge lasts.
pub(crate) type Lasting<'a> = Box<dyn FnOnce() -> Result<(), String> + 'a>;
