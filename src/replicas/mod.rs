//! What replicas of the gateway share, in one Redis or Valkey.
//!
//! [`SharedStore`] is the connection. It knows nothing of pages, tokens and flights. The other files of this module put
//! these into the store. `seal` protects the values, and `key_names` hides what a key is for.

mod accounts;
mod bounded_get;
mod budget;
mod cause;
mod change_feed;
mod clock;
mod connection;
mod error;
mod flights;
mod grants;
mod job_notes;
pub(crate) mod key_names;
mod pages;
mod purge_log;
mod retry_pause;
mod retry_queue;
mod script;
pub(crate) mod seal;
mod store;
#[cfg(test)]
pub(crate) mod test_server;

pub(crate) use self::accounts::KnownAccounts;
pub(crate) use self::budget::SharedQuota;
pub(crate) use self::clock::StoreTime;
use self::error::{SkipReason, StoreError};
pub(crate) use self::flights::SharedFlights;
pub(crate) use self::grants::StoredGrants;
pub use self::pages::SharedPages;
use self::store::{LARGE, LONGEST_BODY, Part};
pub use self::store::{SharedStore, StoreUse, StoreView};
