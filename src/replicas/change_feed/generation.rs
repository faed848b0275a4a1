//! The number that is part of the name of every page's key.

use std::fmt;

use crate::accounts::Account;
use crate::replicas::key_names::KeyNames;
use crate::request::key::Key;

/// One generation of everything that replicas share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::replicas) struct Generation(pub(super) [u8; 16]);

impl Generation {
    pub(super) fn random() -> Self {
        Self(fastrand::u128(..).to_be_bytes())
    }

    pub(super) fn read(text: &str) -> Option<Self> {
        let digits = text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        digits.then(|| u128::from_str_radix(text, 16).ok()).flatten().map(|number| Self(number.to_be_bytes()))
    }

    /// The name of a key for this kind of value, which belongs to a page.
    pub(in crate::replicas) fn name(
        &self,
        names: &KeyNames,
        account: &Account,
        kind: &'static str,
        page: &Key,
    ) -> String {
        names.of_account(account, kind, &[&self.0[..], page.as_bytes()].concat())
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}
