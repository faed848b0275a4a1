//! The log of purges. It decides whether a page that another replica has stored may be served.

use std::collections::HashMap;

use crate::accounts::AccountId;
use crate::cache::Purge;
use crate::cache::stored::StoredResponse;
use crate::request::key::Key;
use crate::twilio::endpoint::Operation;

/// The target of a purge, in terms that all replicas share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum PurgeTarget {
    /// All pages, of all accounts or of one.
    Everything(Option<AccountId>),
    /// What a change of an account's data makes wrong.
    Data(AccountId),
    /// One operation, of all accounts.
    Operation(Operation),
    /// One page, by the first digits of its key.
    Short([u8; 8]),
    /// One page.
    Page([u8; 32]),
    /// What is in the store, and nothing in memory.
    Stored,
}

impl PurgeTarget {
    /// What `which` names. `None` if it names nothing.
    pub(super) fn of(which: &Purge) -> Option<Self> {
        Some(match which {
            Purge::All => Self::Everything(None),
            Purge::Account(id) => Self::Everything(Some(*id)),
            Purge::Data(id) => Self::Data(*id),
            Purge::Operation(operation) => Self::Operation(*operation),
            Purge::Key(text) => match text.len() {
                16 => Self::Short(bytes(text)?),
                _ => Self::Page(bytes(text)?),
            },
        })
    }

    /// The purge of this replica that drops the same, if memory may have any of that.
    pub(super) fn purge(&self) -> Option<Purge> {
        Some(match self {
            Self::Everything(None) => Purge::All,
            Self::Everything(Some(id)) => Purge::Account(*id),
            Self::Data(id) => Purge::Data(*id),
            Self::Operation(operation) => Purge::Operation(*operation),
            Self::Short(digits) => Purge::Key(digits.iter().map(|byte| format!("{byte:02x}")).collect()),
            Self::Page(key) => Purge::Key(Key::from_bytes(*key).to_string()),
            Self::Stored => return None,
        })
    }

    /// For the purge of one page: the first pages of the result sets that it drops too, which others may know only by
    /// these.
    pub(super) fn others(self, firsts: impl IntoIterator<Item = Key>) -> Vec<Self> {
        let is_covered = |first: &Key| match self {
            Self::Short(digits) => first.as_bytes().starts_with(&digits),
            Self::Page(key) => *first.as_bytes() == key,
            Self::Everything(_) | Self::Data(_) | Self::Operation(_) | Self::Stored => true,
        };
        let others = firsts.into_iter().filter(|first| !is_covered(first));
        others.map(|first| Self::Page(*first.as_bytes())).collect()
    }

    /// The form in which other replicas read it.
    pub(super) fn write(&self) -> Vec<u8> {
        let (kind, rest): (u8, &[u8]) = match self {
            Self::Everything(None) => (0, &[]),
            Self::Everything(Some(AccountId(id))) => (1, id),
            Self::Data(AccountId(id)) => (2, id),
            Self::Operation(operation) => (3, operation.as_str().as_bytes()),
            Self::Short(digits) => (4, digits),
            Self::Page(key) => (5, key),
            Self::Stored => (6, &[]),
        };
        [&[kind], rest].concat()
    }

    pub(super) fn read(bytes: &[u8]) -> Option<Self> {
        let (kind, rest) = bytes.split_first()?;
        Some(match kind {
            0 if rest.is_empty() => Self::Everything(None),
            1 => Self::Everything(Some(AccountId(rest.try_into().ok()?))),
            2 => Self::Data(AccountId(rest.try_into().ok()?)),
            3 => {
                let named = |operation: &Operation| operation.as_str().as_bytes() == rest;
                Self::Operation(Operation::ALL.into_iter().find(named)?)
            }
            4 => Self::Short(rest.try_into().ok()?),
            5 => Self::Page(rest.try_into().ok()?),
            6 if rest.is_empty() => Self::Stored,
            _ => return None,
        })
    }
}

/// Bytes from hexadecimal digits.
fn bytes<const N: usize>(text: &str) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    for (at, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(text.get(2 * at..2 * at + 2)?, 16).ok()?;
    }
    (text.len() == 2 * N).then_some(bytes)
}

/// When something was requested or purged, in milliseconds of the store's clock.
pub(super) type Millis = u64;

/// The last purge of each target, with its time.
#[derive(Debug, Clone, Default)]
pub(super) struct PurgeLog(HashMap<PurgeTarget, Millis>);

impl PurgeLog {
    /// Targets that are remembered one by one. If there are more, all pages from before the last purge count as purged.
    pub(super) const MOST: usize = 16_384;

    /// Remembers a purge.
    pub(super) fn add(&mut self, target: PurgeTarget, at: Millis) {
        let last = self.0.entry(target).or_insert(at);
        *last = at.max(*last);
        if self.0.len() > Self::MOST {
            let last = self.0.values().copied().max().unwrap_or(at);
            self.0.clear();
            self.0.insert(PurgeTarget::Everything(None), last);
        }
    }

    /// Forgets the purges before this time. No page is that old.
    pub(super) fn forget(&mut self, before: Millis) {
        self.0.retain(|_, at| *at >= before);
    }

    /// Whether this target was not purged since `asked`. Two times in the same millisecond have no order.
    pub(super) fn admit(&self, target: &PurgeTarget, asked: Millis) -> bool {
        self.0.get(target).is_none_or(|at| *at < asked)
    }
}

/// All targets whose purge ends a note under this key, which belongs to no result set. What changes the data of its
/// account does not.
pub(super) fn targets_of_note(
    account: AccountId,
    operation: Operation,
    key: &Key,
) -> impl Iterator<Item = PurgeTarget> + use<> {
    let of_account =
        [PurgeTarget::Everything(None), PurgeTarget::Everything(Some(account)), PurgeTarget::Operation(operation)];
    let short = key.as_bytes().first_chunk().copied().map(PurgeTarget::Short);
    of_account.into_iter().chain([PurgeTarget::Page(*key.as_bytes())]).chain(short)
}

/// All targets whose purge drops this page. All pages of a result set are purged together, so they name each other as
/// far as a page knows the others.
pub(super) fn targets(
    account: &AccountId,
    key: &Key,
    stored: &StoredResponse,
) -> impl Iterator<Item = PurgeTarget> + use<> {
    let StoredResponse { operation, result_set, place, next, .. } = stored;
    let (set, next) = (result_set.as_ref(), next.filter(|_| result_set.is_some()));
    let is_data = Purge::Data(*account).matches(key, Some((*account, *operation)));
    let of_operation = [
        Some(*operation),
        // A further page of a set belongs to a query, and a page with a next one has further pages.
        set.filter(|_| *operation == Operation::Page).map(|_| Operation::Query),
        next.map(|_| Operation::Page),
    ];
    let keys = [Some(*key), Some(*place), set.map(|set| set.first), next];
    [
        Some(PurgeTarget::Stored),
        Some(PurgeTarget::Everything(None)),
        Some(PurgeTarget::Everything(Some(*account))),
        is_data.then_some(PurgeTarget::Data(*account)),
    ]
    .into_iter()
    .chain(of_operation.map(|operation| operation.map(PurgeTarget::Operation)))
    .chain(keys.map(|key| key.map(|key| PurgeTarget::Page(*key.as_bytes()))))
    .chain(keys.map(|key| key.and_then(|key| key.as_bytes().first_chunk().copied()).map(PurgeTarget::Short)))
    .flatten()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::cache::sets::ResultSet;
    use crate::core::clock::Moment;

    fn id(n: u8) -> AccountId {
        AccountId([n; 16])
    }

    /// Some keys begin with the same digits as others.
    fn key(n: u8) -> Key {
        let mut key = [n / 2; 32];
        key[31] = n;
        Key::from_bytes(key)
    }

    fn target() -> impl Strategy<Value = PurgeTarget> {
        prop_oneof![
            Just(PurgeTarget::Everything(None)),
            (0u8..2).prop_map(|n| PurgeTarget::Everything(Some(id(n)))),
            (0u8..2).prop_map(|n| PurgeTarget::Data(id(n))),
            prop::sample::select(Operation::ALL.to_vec()).prop_map(PurgeTarget::Operation),
            (0u8..6).prop_map(|n| PurgeTarget::Page(*key(n).as_bytes())),
            (0u8..6).prop_map(|n| PurgeTarget::Short(*key(n).as_bytes().first_chunk().unwrap())),
        ]
    }

    /// A page under `own`; of a set that begins with `first`, if there is one, and has a page `next` after this one.
    fn page(operation: Operation, own: u8, first: Option<u8>, next: Option<u8>) -> StoredResponse {
        let stored = StoredResponse::example(key(own), Moment::from_nanos(0), Duration::from_secs(60));
        let first = match operation {
            Operation::Query => Some(own),
            Operation::Page => first,
            _ => None,
        };
        let result_set = first.map(|first| ResultSet::begin(key(first), stored.made, stored.lifetimes));
        StoredResponse { operation, result_set, next: next.map(key), ..stored }
    }

    proptest! {
        /// As in memory: a purge drops a page that it matches, and each page of a set of which it matches one.
        #[test]
        fn a_page_is_admitted_unless_a_purge_since_its_request_drops_it(
            account in 0u8..2,
            operation in prop::sample::select(Operation::ALL.to_vec()),
            own in 0u8..6,
            first in prop::option::of(0u8..6),
            next in prop::option::of(0u8..6),
            asked in 1u64..10,
            purged in prop::collection::vec((prop_oneof![9 => target(), 1 => Just(PurgeTarget::Stored)], 0u64..10), 0..6),
        ) {
            let stored = page(operation, own, first, next);
            let mut purges = PurgeLog::default();
            for (target, at) in &purged {
                purges.add(*target, *at);
            }
            let mut members = vec![(key(own), operation)];
            if let Some(result_set) = stored.result_set {
                members.push((result_set.first, Operation::Query));
                members.extend(stored.next.map(|next| (next, Operation::Page)));
            }
            let drops = |target: &PurgeTarget| *target == PurgeTarget::Stored || {
                let which = target.purge().unwrap();
                let matches = |(key, operation): &(Key, Operation)| which.matches(key, Some((id(account), *operation)));
                members.iter().any(matches)
            };
            let expected = !purged.iter().any(|(target, at)| *at >= asked && drops(target));
            let admitted = targets(&id(account), &key(own), &stored).all(|target| purges.admit(&target, asked));
            prop_assert_eq!(admitted, expected);
        }

        #[test]
        fn targets_are_read_as_they_were_written(target in prop_oneof![target(), Just(PurgeTarget::Stored)], junk in prop::collection::vec(any::<u8>(), 0..40)) {
            prop_assert_eq!(PurgeTarget::read(&target.write()), Some(target));
            // Whatever it is, it is read as what it says or not at all.
            if let Some(read) = PurgeTarget::read(&junk) {
                prop_assert_eq!(read.write(), junk);
            }
        }

        #[test]
        fn a_purge_becomes_a_target_and_the_same_purge_again(target in target()) {
            prop_assert_eq!(PurgeTarget::of(&target.purge().unwrap()), Some(target));
        }
    }

    #[test]
    fn too_many_purges_become_one_of_everything() {
        let mut purges = PurgeLog::default();
        for n in 0..=PurgeLog::MOST as u64 {
            purges.add(PurgeTarget::Short(n.to_le_bytes()), n);
        }
        assert_eq!(purges.0.len(), 1);
        assert!(!purges.admit(&PurgeTarget::Everything(None), PurgeLog::MOST as u64));
        assert!(purges.admit(&PurgeTarget::Everything(None), PurgeLog::MOST as u64 + 1));
        purges.forget(PurgeLog::MOST as u64 + 1);
        assert!(purges.admit(&PurgeTarget::Everything(None), 0));
    }
}
