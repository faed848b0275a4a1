//! A page on its way to the store.

use std::sync::Arc;

use crate::accounts::Account;
use crate::cache::stored::StoredResponse;
use crate::core::clock::Moment;
use crate::replicas::LARGE;
use crate::request::key::Key;

/// A page to be written.
#[derive(Debug)]
pub(super) struct Page {
    pub(super) account: Arc<Account>,
    pub(super) key: Key,
    pub(super) stored: StoredResponse,
    /// When it was requested.
    pub(super) asked: Moment,
    pub(super) is_forced: bool,
}

impl Page {
    /// When the others are told that the page was replaced. The further pages of a set that was replaced must not be read
    /// together with the new first page.
    pub(super) fn tell(&self) -> Tell {
        match self.is_forced {
            true => Tell::Always,
            false if self.stored.next.is_some() => Tell::IfReplaced,
            false => Tell::Never,
        }
    }

    /// Whether it takes long to pack and to cross.
    pub(super) fn is_large(&self) -> bool {
        self.stored.representation.body.len() > LARGE
    }

    /// The bytes of memory that it takes while it waits.
    pub(super) fn weight(&self) -> usize {
        self.stored.representation.weight()
    }
}

/// Whether the other replicas are told that a page was replaced, so that they drop it from memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Tell {
    /// It ends there with its windows.
    Never,
    /// If the store had one.
    IfReplaced,
    Always,
}
