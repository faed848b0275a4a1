//! A page that waits to be written to the store.

use std::sync::Arc;

use crate::accounts::Account;
use crate::cache::stored::StoredResponse;
use crate::core::clock::Moment;
use crate::replicas::LARGE;
use crate::request::key::Key;

/// A page that waits to be written.
#[derive(Debug)]
pub(super) struct PendingPage {
    pub(super) account: Arc<Account>,
    pub(super) key: Key,
    pub(super) stored: StoredResponse,
    /// When it was requested.
    pub(super) asked: Moment,
    pub(super) is_forced: bool,
}

impl PendingPage {
    /// Whether it is announced to the others that the page was replaced. The further pages of a set that was replaced
    /// must not be read together with the new first page.
    pub(super) fn announce(&self) -> Announce {
        match self.is_forced {
            true => Announce::Always,
            false if self.stored.next.is_some() => Announce::IfReplaced,
            false => Announce::Never,
        }
    }

    /// Whether it takes long to compress and to send.
    pub(super) fn is_large(&self) -> bool {
        self.stored.representation.body.len() > LARGE
    }

    /// The bytes of memory that it takes while it waits.
    pub(super) fn weight(&self) -> usize {
        self.stored.representation.weight()
    }
}

/// Whether it is announced to the other replicas that a page was replaced, so that they drop it from memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Announce {
    /// It expires there by itself.
    Never,
    /// If the store had one.
    IfReplaced,
    Always,
}
