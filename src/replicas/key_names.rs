//! The names of the keys in the store.
//!
//! A name tells nothing about the account or the query: it is a BLAKE3 hash of the upstream's origin and of what the
//! key is for, keyed by the account's SID. A person who knows the SID can test a guess.

use crate::accounts::Account;

/// The version of what is under the keys. Replicas of another version use other keys, and never meet.
const VERSION: u8 = 1;

/// Makes the names of the keys of one deployment.
#[derive(Debug, Clone)]
pub(crate) struct KeyNames {
    prefix: String,
}

impl KeyNames {
    /// Names that begin with `prefix`.
    pub(crate) fn new(prefix: &str) -> Self {
        Self { prefix: prefix.to_owned() }
    }

    /// A key of an account, for this kind of value. `part` tells keys of one kind apart.
    pub(crate) fn of_account(&self, account: &Account, kind: &'static str, part: &[u8]) -> String {
        format!("{}:{VERSION}:{kind}:{}", self.prefix, hash(account, kind, part).to_hex())
    }

    /// A key of an account that shares a hash slot with all other such keys of the account, so that one script can use
    /// several of them in a cluster.
    pub(crate) fn in_account_slot(&self, account: &Account, kind: &'static str) -> String {
        let tag = hash(account, "tag", b"").to_hex();
        format!("{}:{VERSION}:{{{}}}:{kind}", self.prefix, &tag[..32])
    }

    /// The pseudonym of `part`, for a value that is not sealed. It tells as little as the name of a key.
    pub(crate) fn pseudonym(&self, account: &Account, kind: &'static str, part: &[u8]) -> String {
        hash(account, kind, part).to_hex()[..32].to_owned()
    }

    /// A key of the whole deployment.
    pub(crate) fn of_deployment(&self, kind: &'static str) -> String {
        format!("{}:{VERSION}:{kind}", self.prefix)
    }
}

fn hash(account: &Account, kind: &str, part: &[u8]) -> blake3::Hash {
    let key = blake3::derive_key("insights-gateway 2026 shared store: names", account.sid.as_bytes());
    let mut hasher = blake3::Hasher::new_keyed(&key);
    for part in [account.origin.as_bytes(), kind.as_bytes(), part] {
        hasher.update(&(part.len() as u64).to_le_bytes()).update(part);
    }
    hasher.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::accounts::Team;

    fn account(sid: &str, origin: &str) -> Account {
        Account { sid: sid.to_owned(), origin: origin.to_owned(), ..Account::clone(&Team::example("a").account) }
    }

    #[test]
    fn names_differ_in_every_part_and_tell_nothing() {
        let names = KeyNames::new("prefix");
        let one = account("AC1", "https://a:443");
        let all = [
            names.of_account(&one, "page", b"1"),
            names.of_account(&one, "page", b"2"),
            names.of_account(&one, "flight", b"1"),
            names.of_account(&account("AC2", "https://a:443"), "page", b"1"),
            names.of_account(&account("AC1", "https://b:443"), "page", b"1"),
            KeyNames::new("other").of_account(&one, "page", b"1"),
        ];
        let different: std::collections::HashSet<_> = all.iter().collect();
        assert_eq!(different.len(), all.len(), "{all:?}");
        assert!(all.iter().all(|name| !name.contains("AC1") && !name.contains("https")), "{all:?}");
    }

    #[test]
    fn tagged_keys_of_an_account_share_a_slot() {
        let names = KeyNames::new("prefix");
        let tag = |name: String| name[name.find('{').unwrap()..=name.find('}').unwrap()].to_owned();
        let (one, other) = (account("AC1", "https://a:443"), account("AC2", "https://a:443"));
        assert_eq!(tag(names.in_account_slot(&one, "budget")), tag(names.in_account_slot(&one, "demand")));
        assert_ne!(tag(names.in_account_slot(&one, "budget")), tag(names.in_account_slot(&other, "budget")));
    }
}
