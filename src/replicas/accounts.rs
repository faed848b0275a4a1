//! The accounts by what replicas know them by.
//!
//! Replicas may give an account different names. In the store an account is known by its SID and origin alone.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::accounts::{Account, AccountId};

/// The accounts of the configuration in use, and of earlier ones: memory may still have their responses. Clones share
/// them.
#[derive(Debug, Clone, Default)]
pub(crate) struct KnownAccounts(Arc<Mutex<HashMap<AccountId, Arc<Account>>>>);

impl KnownAccounts {
    /// If more are known, those of earlier configurations are forgotten.
    const MOST: usize = 1024;

    /// Puts the accounts of a configuration into use.
    pub(crate) fn set(&self, accounts: &[Arc<Account>]) {
        let mut known = self.lock();
        known.extend(accounts.iter().map(|account| (account.id(), Arc::clone(account))));
        if known.len() > Self::MOST {
            known.retain(|_, known| accounts.contains(known));
        }
    }

    /// The account with this id.
    pub(crate) fn get(&self, id: AccountId) -> Option<Arc<Account>> {
        self.lock().get(&id).cloned()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<AccountId, Arc<Account>>> {
        // A panic leaves at most an account out, which is then unknown.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account(name: &str, n: usize) -> Arc<Account> {
        let (sid, origin) = (format!("AC{n}"), "https://a:443".to_owned());
        Arc::new(Account { name: name.into(), sid, origin, ordinal: 0 })
    }

    #[test]
    fn accounts_are_known_whatever_their_names_and_not_without_limit() {
        let known = KnownAccounts::default();
        known.set(&[account("main", 1), account("other", 2)]);
        known.set(&[account("renamed", 1), account("main", 3)]);
        let name = |n| known.get(account("", n).id()).map(|account| account.name.to_string());
        assert_eq!(
            [1, 2, 3, 4].map(name),
            [Some("renamed"), Some("other"), Some("main"), None].map(|n| n.map(str::to_owned))
        );
        for n in 1..=KnownAccounts::MOST {
            known.set(&[account("main", n)]);
        }
        assert!(known.lock().len() <= KnownAccounts::MOST);
        assert!(name(KnownAccounts::MOST).is_some());
    }
}
