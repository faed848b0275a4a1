//! The key of a page in the cache: a hash of everything that could change the response.

use std::fmt;
use std::hash::{Hash, Hasher};

use crate::accounts::Account;
use crate::twilio::endpoint::{Endpoint, Operation};
use crate::twilio::parameters::Parameters;

/// BLAKE3 over upstream, account, operation, parameters and body. It has 256 bits, because callers choose the bodies:
/// with a short hash a caller could construct a collision and read another query's page.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Key([u8; 32]);

/// The key is already a hash, so its first bytes are enough for a hash table.
impl Hash for Key {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        hasher.write(&self.0[..8]);
    }
}

impl Key {
    /// Part of every hash. When the hashed fields change, this changes, so that no old page is found.
    const VERSION: &'static str = "insights-gateway key 2";

    /// The key of a request. Only the origin and the SID of the account are part of it, because they identify the data.
    /// The account's name in the configuration is not.
    pub fn new(account: &Account, operation: Operation, parameters: &str, body: &[u8]) -> Self {
        Self::hash(account, operation.as_str(), parameters, body)
    }

    /// The key of a request to an `endpoint` whose operation has several paths; `path` is the path of this request.
    pub fn of_path(account: &Account, endpoint: &Endpoint, path: &str, parameters: &str, body: &[u8]) -> Self {
        if path == endpoint.operation.endpoint().path && endpoint.method == endpoint.operation.endpoint().method {
            return Self::new(account, endpoint.operation, parameters, body);
        }
        // Neither names of operations nor paths contain spaces.
        let name = [endpoint.operation.as_str(), endpoint.method.as_str(), path].join(" ");
        Self::hash(account, &name, parameters, body)
    }

    fn hash(account: &Account, operation: &str, parameters: &str, body: &[u8]) -> Self {
        // Each part follows its length, so that no two lists of parts are the same bytes. One buffer and one
        // update: BLAKE3 is fastest on contiguous input.
        let parts = [Self::VERSION, &account.origin, &account.sid, operation, parameters];
        let mut input = Vec::with_capacity(parts.iter().map(|p| p.len() + 8).sum::<usize>() + body.len());
        for part in parts {
            input.extend_from_slice(&(part.len() as u64).to_le_bytes());
            input.extend_from_slice(part.as_bytes());
        }
        input.extend_from_slice(body);
        Self(blake3::hash(&input).into())
    }

    /// The key of the page that is named by the token in `parameters`.
    pub fn of_page(account: &Account, parameters: &Parameters) -> Self {
        Self::new(account, Operation::Page, parameters.as_str(), b"")
    }

    /// The key of a query job's status.
    pub fn of_job(account: &Account, id: &str) -> Self {
        let endpoint = Operation::JobStatus.endpoint();
        Self::of_path(account, endpoint, &endpoint.path_of(id), "", b"")
    }

    /// The key of an account's metadata.
    pub fn of_metadata(account: &Account) -> Self {
        Self::new(account, Operation::Metadata, "", b"")
    }

    /// The whole hash.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// From a hash that was stored.
    pub fn from_bytes(hash: [u8; 32]) -> Self {
        Self(hash)
    }

    /// The first 16 hexadecimal digits: enough to distinguish pages in a header or log, but not to look a page up.
    pub fn short(&self) -> impl fmt::Display + use<> {
        Hex::<8>(self.0[..8].try_into().unwrap_or_default())
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Hex(self.0).fmt(f)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({self})")
    }
}

/// Bytes in lower-case hexadecimal.
struct Hex<const N: usize>([u8; N]);

impl<const N: usize> fmt::Display for Hex<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        // Written in one piece: writing each digit would be many calls through a pointer.
        let mut text = [[0; 2]; N];
        for (digits, byte) in text.iter_mut().zip(self.0) {
            *digits = [byte >> 4, byte & 15].map(|half| DIGITS[usize::from(half)]);
        }
        f.write_str(std::str::from_utf8(text.as_flattened()).map_err(|_| fmt::Error)?)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn account(origin: &str, sid: &str) -> Account {
        Account { name: "main".into(), sid: sid.to_owned(), origin: origin.to_owned(), ordinal: 0 }
    }

    #[test]
    fn every_part_changes_the_key() {
        let (one, two) = (account("https://a", "AC1"), account("https://a", "AC2"));
        let key = Key::new(&one, Operation::Query, "pageSize=1", b"{}");
        assert_eq!(key, Key::new(&one, Operation::Query, "pageSize=1", b"{}"));
        assert_ne!(key, Key::new(&two, Operation::Query, "pageSize=1", b"{}"));
        assert_ne!(key, Key::new(&one, Operation::JobSubmit, "pageSize=1", b"{}"));
        assert_ne!(key, Key::new(&one, Operation::Query, "pageSize=2", b"{}"));
        assert_ne!(key, Key::new(&one, Operation::Query, "pageSize=1", b"{ }"));
        assert_ne!(key, Key::new(&account("https://b", "AC1"), Operation::Query, "pageSize=1", b"{}"));
        let renamed = Account { name: "other".into(), ..one };
        assert_eq!(key, Key::new(&renamed, Operation::Query, "pageSize=1", b"{}"));
        assert_eq!(key.short().to_string(), key.to_string()[..16]);
    }

    #[test]
    fn paths_of_one_operation_have_different_keys() {
        let account = account("https://a", "AC1");
        let status = Operation::JobStatus.endpoint();
        let of = |id: &str, parameters: &str| Key::of_path(&account, status, &status.path_of(id), parameters, b"");
        assert_eq!(of("a", ""), of("a", ""));
        assert_ne!(of("a", ""), of("b", ""));
        assert_ne!(of("a", ""), of("a", "x=1"));
        let results = Operation::JobResults.endpoint();
        assert_ne!(of("a", ""), Key::of_path(&account, results, &results.path_of("a"), "", b""));
        let list = Operation::JobList.endpoint();
        let listed = Key::of_path(&account, list, list.path, "status=FAILED", b"");
        assert_eq!(listed, Key::new(&account, Operation::JobList, "status=FAILED", b""));
    }

    fn parts() -> impl Strategy<Value = (String, String, String, String)> {
        ("[a-c]{0,3}", "[a-c]{0,3}", "[a-c]{0,3}", "[a-c]{0,3}")
    }

    proptest! {
        /// Moving a byte from one part to the next changes the key.
        #[test]
        fn the_boundary_between_parts_counts(one in parts(), two in parts()) {
            let same = one == two;
            let key = |(origin, sid, parameters, body): (String, String, String, String)| {
                Key::new(&account(&origin, &sid), Operation::Page, &parameters, body.as_bytes())
            };
            let (one, two) = (key(one), key(two));
            prop_assert_eq!(one == two, same);
        }
    }
}
