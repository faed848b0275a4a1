//! The accounts by their names in the configuration.
//!
//! Replicas may give an account different names. In the store an account is known by its SID and origin alone.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::accounts::{Account, AccountId};

/// The accounts of the configuration in use, and of earlier ones: memory may still have their responses. Clones share
/// them.
#[derive(Debug, Clone, Default)]
pub(crate) struct KnownAccounts(Arc<Mutex<Known>>);

#[derive(Debug, Default)]
struct Known {
    current: Vec<Arc<Account>>,
    former: Vec<Arc<Account>>,
}

impl KnownAccounts {
    /// Earlier accounts that are remembered.
    const FORMER: usize = 1024;

    /// Puts the accounts of a configuration into use.
    pub(crate) fn set(&self, accounts: &[Arc<Account>]) {
        let mut known = self.lock();
        let before = std::mem::replace(&mut known.current, accounts.to_vec());
        for account in before.into_iter().filter(|account| !accounts.iter().any(|new| is_same_name(new, account))) {
            if !known.former.iter().any(|former| is_same_name(former, &account)) {
                known.former.push(account);
            }
        }
        let excess = known.former.len().saturating_sub(Self::FORMER);
        known.former.drain(..excess);
    }

    /// The account of this name in the configuration in use.
    pub(crate) fn named(&self, name: &str) -> Option<Arc<Account>> {
        self.lock().current.iter().find(|account| *account.name == *name).cloned()
    }

    /// All names that an account with this SID and origin has had.
    pub(crate) fn names(&self, id: &AccountId) -> Vec<Arc<str>> {
        let known = self.lock();
        let mut names: Vec<_> = known
            .current
            .iter()
            .chain(&known.former)
            .filter(|account| account.id() == *id)
            .map(|account| Arc::clone(&account.name))
            .collect();
        names.sort();
        names.dedup();
        names
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        // A panic leaves at most an account in neither list, which is then unknown.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_same_name(one: &Account, other: &Account) -> bool {
    one.name == other.name && one.sid == other.sid && one.origin == other.origin
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account(name: &str, sid: &str) -> Arc<Account> {
        Arc::new(Account { name: name.into(), sid: sid.to_owned(), origin: "https://a:443".to_owned(), ordinal: 0 })
    }

    #[test]
    fn names_of_earlier_configurations_are_remembered() {
        let known = KnownAccounts::default();
        let (one, other) = (account("x", "AC1").id(), account("x", "AC2").id());
        assert_ne!(one, other);
        known.set(&[account("main", "AC1"), account("second", "AC1"), account("other", "AC2")]);
        let names = |id: &AccountId| known.names(id).iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(names(&one), ["main", "second"]);
        known.set(&[account("renamed", "AC1"), account("main", "AC2")]);
        assert_eq!(names(&one), ["main", "renamed", "second"]);
        assert_eq!(names(&other), ["main", "other"]);
        assert_eq!(known.named("main").unwrap().sid, "AC2");
        assert!(known.named("second").is_none());
    }
}
