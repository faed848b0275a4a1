//! Which page belongs to which result set, and which sets are alive.
//!
//! A page names the next one by a token, so the set of a further page is known before it is fetched: the page has a
//! place in the set. A set is alive while its first page is the newest response to its query. When the query is fetched
//! again and the new response uses the same tokens, the older set is dead: none of its pages may be served together
//! with the new first page. When the new response has other tokens, clients may continue to read the older pages,
//! because they cannot be confused with the new ones.
//!
//! Places are stored apart from the pages, in a small part of the cache's capacity. So a page that is evicted and
//! fetched again still belongs to its set.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use moka::notification::RemovalCause;
use moka::policy::EvictionPolicy;
use moka::sync::Cache;

use super::purge::Purge;
use crate::accounts::AccountId;
use crate::core::clock::Moment;
use crate::request::key::Key;
use crate::semantics::freshness::Lifetimes;
use crate::twilio::endpoint::Operation;

/// A result set: all its pages expire with the first, and are purged with it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct ResultSet {
    /// The key of its first page.
    pub(crate) first: Key,
    /// Distinguishes it from other sets of the same query; chosen at random.
    pub(crate) id: u64,
    /// When its first page was new.
    pub(crate) begun: Moment,
    pub(crate) lifetimes: Lifetimes,
}

impl ResultSet {
    /// A new set, whose first page was new then.
    pub(crate) fn begin(first: Key, begun: Moment, lifetimes: Lifetimes) -> Self {
        Self { first, id: fastrand::u64(..), begun, lifetimes }
    }

    pub(crate) fn is(&self, other: &Self) -> bool {
        self.first == other.first && self.id == other.id
    }

    fn end(&self) -> Moment {
        self.begun.after(self.lifetimes.usable())
    }
}

/// What is known of a further page that is requested.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Membership {
    /// It belongs to this set, which is alive.
    Of(ResultSet),
    /// It belongs to a set that is dead, or that may have been evicted.
    Lost,
    /// No known set names it: its token comes from somewhere else.
    Unknown,
}

impl Membership {
    pub(crate) fn result_set(&self) -> Option<ResultSet> {
        match self {
            Self::Of(result_set) => Some(*result_set),
            Self::Lost | Self::Unknown => None,
        }
    }
}

/// A page's place in a set. A first page has one too.
#[derive(Debug, Clone)]
struct Place {
    result_set: ResultSet,
    account: AccountId,
    /// For a first page: older sets of its query that stay alive, because their pages have other tokens.
    elders: Arc<[ResultSet]>,
}

/// The places. Cheap to clone; all clones share one table.
#[derive(Debug, Clone)]
pub(crate) struct ResultSets {
    places: Cache<Key, Place>,
    /// Until this moment, a page that no known set names may belong to a set whose place was evicted.
    doubtful_until: Arc<AtomicI64>,
}

impl ResultSets {
    /// Older sets of one query that stay alive in addition to the newest.
    const ELDERS: usize = 4;

    /// Bytes that moka takes for a place besides the place itself.
    const BOOKKEEPING: usize = 352 + size_of::<Key>() + size_of::<Place>();

    /// At most `capacity` bytes.
    pub(crate) fn new(capacity: u64) -> Self {
        let doubtful_until = Arc::new(AtomicI64::new(i64::MIN));
        let doubt = Arc::clone(&doubtful_until);
        let places = Cache::builder()
            .max_capacity(capacity)
            .weigher(|_, place: &Place| {
                let elders = size_of_val(&*place.elders);
                u32::try_from(Self::BOOKKEEPING + elders).unwrap_or(u32::MAX)
            })
            .eviction_policy(EvictionPolicy::lru())
            .eviction_listener(move |_, place: Place, cause| {
                if cause == RemovalCause::Size {
                    doubt.fetch_max(place.result_set.end().nanos(), Ordering::SeqCst);
                }
            })
            .build();
        Self { places, doubtful_until }
    }

    /// What is known of a further page.
    pub(crate) fn membership(&self, key: &Key, now: Moment) -> Membership {
        match self.places.get(key) {
            Some(place) if place.result_set.end() <= now => Membership::Unknown,
            Some(place) if self.lives(&place.result_set) => Membership::Of(place.result_set),
            Some(_) => Membership::Lost,
            None if now.nanos() < self.doubtful_until.load(Ordering::SeqCst) => Membership::Lost,
            None => Membership::Unknown,
        }
    }

    /// Whether pages of this set may be served.
    pub(crate) fn lives(&self, result_set: &ResultSet) -> bool {
        self.places.get(&result_set.first).is_some_and(|newest| {
            newest.result_set.is(result_set) || newest.elders.iter().any(|elder| elder.is(result_set))
        })
    }

    /// The set in which this key has a place, alive or not.
    pub(crate) fn of(&self, key: &Key) -> Option<ResultSet> {
        self.places.get(key).map(|place| place.result_set)
    }

    /// Whether this set is the newest known one of its query.
    pub(crate) fn is_known(&self, result_set: &ResultSet) -> bool {
        self.places.get(&result_set.first).is_some_and(|newest| newest.result_set.is(result_set))
    }

    /// Whether no set of the same query is known that began later.
    pub(crate) fn is_newest(&self, result_set: &ResultSet) -> bool {
        self.places
            .get(&result_set.first)
            .is_none_or(|newest| newest.result_set.is(result_set) || newest.result_set.begun < result_set.begun)
    }

    /// Whether a page of `result_set` may be served whose place is `place`. The place must belong to that set, and the
    /// set must be alive. A page of no set may be served while no set has that place.
    pub(crate) fn admits(&self, place: &Key, result_set: Option<&ResultSet>) -> bool {
        let expected = self.places.get(place);
        match result_set {
            Some(own) => expected.is_none_or(|place| place.result_set.is(own)) && self.lives(own),
            None => expected.is_none(),
        }
    }

    /// Removes a place: no set has a page here any more.
    pub(crate) fn vacate(&self, place: &Key) {
        self.places.invalidate(place);
    }

    /// Begins a set with its first page. It replaces the older set of the same query, which stays alive if `apart`,
    /// that is if the pages of the two cannot be confused.
    pub(crate) fn begin(&self, result_set: ResultSet, account: AccountId, apart: bool) {
        let elders = match self.places.get(&result_set.first).filter(|_| apart) {
            Some(older) => {
                let known = older.elders.iter().copied().filter(|elder| elder.end() > result_set.begun);
                std::iter::once(older.result_set).chain(known).take(Self::ELDERS).collect()
            }
            None => Arc::default(),
        };
        self.places.insert(result_set.first, Place { result_set, account, elders });
    }

    /// Gives the page of `key` a place in `result_set`. Returns whether that is new. An older set of the same query
    /// that has a page of that name is dead from now on.
    pub(crate) fn expect(&self, key: Key, result_set: ResultSet, account: AccountId) -> bool {
        let before = self.places.get(&key);
        if before.as_ref().is_some_and(|place| place.result_set.is(&result_set)) {
            return false;
        }
        self.places.insert(key, Place { result_set, account, elders: Arc::default() });
        if let Some(older) = before.map(|place| place.result_set)
            && let Some(newest) = self.places.get(&result_set.first)
            && newest.elders.iter().any(|elder| elder.is(&older))
        {
            let elders = newest.elders.iter().copied().filter(|elder| !elder.is(&older)).collect();
            self.places.insert(result_set.first, Place { elders, ..newest });
        }
        true
    }

    /// Restores the place of a page from another tier. Returns whether the page still belongs to that set.
    pub(crate) fn restore(&self, key: Key, result_set: Option<ResultSet>, account: AccountId) -> bool {
        match (self.places.get(&key), result_set) {
            (Some(known), result_set) => result_set.is_some_and(|result_set| result_set.is(&known.result_set)),
            (None, Some(result_set)) => {
                self.places.insert(key, Place { result_set, account, elders: Arc::default() });
                true
            }
            (None, None) => true,
        }
    }

    /// Gives the page of `key` a place in a set that survived a restart, unless it has one in a set that began later.
    /// Returns whether it has the place.
    pub(crate) fn restore_next(&self, key: Key, result_set: ResultSet, account: AccountId) -> bool {
        match self.places.get(&key) {
            Some(known) if known.result_set.is(&result_set) => true,
            Some(known) if known.result_set.begun >= result_set.begun => false,
            _ => {
                self.places.insert(key, Place { result_set, account, elders: Arc::default() });
                true
            }
        }
    }

    /// The keys of the first pages of the sets in which a purge matches a page.
    pub(crate) fn matching(&self, which: &Purge) -> impl Iterator<Item = Key> {
        self.places.iter().filter_map(move |(key, place)| {
            let operation = if *key == place.result_set.first { Operation::Query } else { Operation::Page };
            which.matches(&key, Some((place.account, operation))).then_some(place.result_set.first)
        })
    }

    /// Removes the sets whose first page `is_purged`, and the older sets of the same query.
    pub(crate) fn purge(&self, is_purged: impl Fn(&Key) -> bool) {
        for (key, place) in &self.places {
            if is_purged(&place.result_set.first) {
                self.places.invalidate(&*key);
            }
        }
    }

    pub(crate) fn run_evictions(&self) {
        self.places.run_pending_tasks();
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.places.weighted_size()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::request::query::ClientQuery;

    const S: Duration = Duration::from_secs(1);

    fn key(name: &'static str) -> Key {
        *ClientQuery::example(Operation::Page, name, "").key()
    }

    fn result_set(first: Key, begun: u32) -> ResultSet {
        ResultSet::begin(first, Moment::from_nanos(0).after(S * begun), Lifetimes::fresh_only(60 * S))
    }

    #[test]
    fn a_set_is_alive_until_a_newer_one_uses_its_tokens() {
        let (sets, account, now) = (ResultSets::new(1 << 20), AccountId::example(), Moment::from_nanos(0));
        let (first, second) = (key("1"), key("2"));
        let (one, two, three) = (result_set(first, 0), result_set(first, 1), result_set(first, 2));
        assert_eq!(sets.membership(&second, now), Membership::Unknown);
        sets.begin(one, account, true);
        assert!(sets.expect(second, one, account) && !sets.expect(second, one, account));
        assert_eq!(sets.membership(&second, now), Membership::Of(one));
        sets.begin(two, account, true);
        assert!(sets.lives(&one) && sets.lives(&two));
        assert_eq!(sets.membership(&second, now), Membership::Of(one), "other tokens");
        sets.begin(three, account, false);
        assert!(!sets.lives(&one) && !sets.lives(&two) && sets.lives(&three));
        assert_eq!(sets.membership(&second, now), Membership::Lost);
        assert!(sets.expect(second, three, account));
        assert_eq!(sets.membership(&second, now), Membership::Of(three));
        let four = result_set(first, 3);
        sets.begin(four, account, true);
        assert!(sets.lives(&three));
        assert!(sets.expect(second, four, account));
        assert!(!sets.lives(&three), "a page of the newer set has the same name as one of this set");
        sets.purge(|purged| *purged == first);
        assert_eq!(sets.membership(&second, now), Membership::Unknown);
    }

    #[test]
    fn a_page_whose_set_may_have_been_evicted_is_not_unknown() {
        let (sets, account) = (ResultSets::new(8192), AccountId::example());
        for n in 0..100u32 {
            sets.begin(result_set(*ClientQuery::example(Operation::Query, &n.to_string(), "").key(), n), account, true);
            sets.run_evictions();
        }
        assert!(sets.bytes() <= 8192);
        let at = |seconds| Moment::from_nanos(0).after(S * seconds);
        assert_eq!(sets.membership(&key("x"), at(100)), Membership::Lost);
        assert_eq!(sets.membership(&key("x"), at(160)), Membership::Unknown, "no such set is alive any more");
    }
}
