//! Which stored responses a purge drops, and what it did.

use crate::accounts::AccountId;
use crate::request::key::Key;
use crate::twilio::endpoint::Operation;

/// Which pages to drop.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Purge {
    /// All.
    All,
    /// Those of one account, whatever its name was when they were stored.
    Account(AccountId),
    /// The responses of one account that a change of its data makes wrong: metadata, queries and their pages, and job
    /// submissions that other clients would share. The results of a job do not change.
    Data(AccountId),
    /// Those of one operation.
    Operation(Operation),
    /// One, by its whole key or the short form that `Cache-Status` shows.
    Key(String),
}

impl Purge {
    /// Whether to drop this page. `page` is its account and operation.
    pub(crate) fn matches(&self, key: &Key, page: Option<(AccountId, Operation)>) -> bool {
        match self {
            Self::All => true,
            Self::Account(id) => page.is_some_and(|(account, _)| account == *id),
            Self::Data(id) => page.is_some_and(|(account, operation)| account == *id && is_data(operation)),
            Self::Operation(one) => page.is_some_and(|(_, operation)| operation == *one),
            Self::Key(text) => {
                // Nearly all other keys differ in the first byte, which costs least to compare.
                let first = text.get(..2).and_then(|digits| u8::from_str_radix(digits, 16).ok());
                first == Some(key.as_bytes()[0]) && (key.to_string() == *text || key.short().to_string() == *text)
            }
        }
    }
}

fn is_data(operation: Operation) -> bool {
    matches!(operation, Operation::Metadata | Operation::Query | Operation::Page | Operation::JobSubmit)
}

/// What a purge did, in memory and beyond it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PurgeReport {
    /// Pages that were dropped.
    pub pages: u64,
    /// Why the purge may not survive a restart: the disk tier's file could neither be changed nor removed.
    pub not_durable: Option<String>,
    /// Whether other replicas have been told; `None` if there is no store that they share. If it is `false`, they are
    /// told when the store is back.
    pub shared: Option<bool>,
}
