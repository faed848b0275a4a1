//! A response that passes the cache and is not stored.

use crate::accounts::AccountId;
use crate::cache::entry::Entry;
use crate::cache::sets::ResultSet;
use crate::core::clock::{Instant, Moment};
use crate::request::key::Key;

/// A successful response that is not stored.
#[derive(Debug)]
pub(crate) struct UnstoredResponse {
    /// The account whose data it is.
    pub(crate) account: AccountId,
    pub(crate) asked: Instant,
    pub(crate) made: Moment,
    /// For a first page: its result set, whose further pages may be kept.
    pub(crate) begins: Option<ResultSet>,
    /// The key of the page after it.
    pub(crate) next: Option<Key>,
    /// Whether it is for all clients. A response for one client removes only pages that contradict it.
    pub(crate) is_shared: bool,
}

impl UnstoredResponse {
    pub(super) fn of(key: Key, entry: &Entry) -> Self {
        Self {
            account: entry.stored.account,
            asked: entry.asked,
            made: entry.stored.made,
            begins: entry.stored.result_set.filter(|result_set| result_set.first == key),
            next: entry.stored.next,
            is_shared: true,
        }
    }
}
