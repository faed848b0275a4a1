//! The stored responses as the admin plane shows them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::Store;
use crate::accounts::AccountId;
use crate::cache::entry::Entry;
use crate::core::clock::Moment;
use crate::request::key::Key;
use crate::semantics::freshness::Lifetimes;
use crate::twilio::endpoint::Operation;
use crate::twilio::settled::Verdict;

/// A stored response as the admin plane shows it.
#[derive(Debug, Clone)]
pub struct EntryView {
    /// Its key.
    pub key: Key,
    /// The account whose data it is.
    pub account: AccountId,
    /// The operation that it answers.
    pub operation: Operation,
    /// How long ago it was fetched.
    pub age: Duration,
    /// Its lifetimes.
    pub lifetimes: Lifetimes,
    /// How often it was served.
    pub hits: u64,
    /// The bytes that count against the capacity.
    pub bytes: u64,
    /// For a query: whether its data no longer changes, or why that is not known.
    pub settled: Option<Verdict>,
    /// The canonical body, or a page's parameters. `None` where there is neither, or where the configuration does not
    /// allow to keep it.
    pub query: Option<Arc<str>>,
}

impl Store {
    /// The stored responses in the order of their keys, at most `limit`, those after `after`. Visits every page once
    /// and holds no more than `limit`. It takes milliseconds where there are many: do not call it on an async worker
    /// thread.
    pub fn entries(&self, after: Option<&str>, limit: usize, now: Moment) -> Vec<EntryView> {
        let mut least: BTreeMap<[u8; 32], Arc<Entry>> = BTreeMap::new();
        for (key, entry) in &self.memory.pages {
            let is_before_all = || least.last_key_value().is_none_or(|(last, _)| key.as_bytes() < last);
            let is_listed = (least.len() < limit || is_before_all())
                && after.is_none_or(|after| key.to_string().as_str() > after)
                && self.memory.is_current(&entry);
            if is_listed {
                least.insert(*key.as_bytes(), entry);
                if least.len() > limit {
                    least.pop_last();
                }
            }
        }
        let view = |(key, entry): ([u8; 32], Arc<Entry>)| EntryView {
            key: Key::from_bytes(key),
            account: entry.stored.account,
            operation: entry.stored.operation,
            age: entry.stored.age(now),
            lifetimes: entry.stored.lifetimes,
            hits: entry.hits.load(Ordering::Relaxed),
            bytes: entry.weight().into(),
            settled: entry.stored.settled,
            query: entry.query.clone(),
        };
        least.into_iter().map(view).collect()
    }
}
