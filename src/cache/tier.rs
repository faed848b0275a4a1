//! The seam for tiers behind memory.
//!
//! Memory is not one of them: a hit reads it synchronously. A tier keeps [`StoredResponse`]s beyond this process, as
//! [`record`](super::record) encodes them. It is asked only when memory has nothing, and is told of every response that
//! memory keeps, of those that another one ended and of every purge, in the order in which memory changes.
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

    /// Calls `keep` once, which keeps the response in memory, or does not, and names those that went. The tier drops these
    /// too. It takes a response that was kept, or, when it is too busy, drops what it has under `key`: what was replaced
    /// must not come back. Returns whether the response was kept. Does not block on the tier's medium.
    ///
    /// `keep`, `remove` and the purges' `mark` exclude each other, so that the tier sees them in memory's order.
    fn put(&self, key: Key, stored: &StoredResponse, keep: &mut dyn FnMut() -> Kept) -> bool;

    /// Calls `remove` once, which drops responses from memory and names them. The tier drops them too. Does not block on
    /// its medium.
    fn remove(&self, remove: &mut dyn FnMut() -> Vec<Key>);

    /// Calls `mark` once, which marks in memory what is to go and names the first pages of the result sets that go too.
    /// Then drops these and all that `which` matches. Never refused: a purged response must not come back.
    ///
    /// What it returns blocks until the purge lasts, and says why where it does not.
    fn purge(&self, which: &Purge, mark: &mut dyn FnMut() -> HashSet<Key>) -> Lasting<'_>;

    /// Writes what still waits, and takes nothing more.
    fn close(&self) -> BoxFuture<'_, ()>;
}

/// What keeping a response changed in memory.
#[derive(Debug)]
pub(crate) struct Kept {
    /// Was it kept.
    pub(crate) kept: bool,
    /// The keys of others that went.
    pub(crate) gone: Vec<Key>,
}

/// Waits until a purge lasts.
pub(crate) type Lasting<'a> = Box<dyn FnOnce() -> Result<(), String> + 'a>;
