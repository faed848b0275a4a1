//! Page tokens that were given out under policies.
//!
//! A page token says nothing of the query that it belongs to, so a team with a policy may only use tokens that it was
//! given under that very policy.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::Deserialize;

use crate::accounts::Account;
use crate::request::key::Key;
use crate::request::response::Representation;
use crate::twilio::parameters::Parameters;

/// Remembers the newest 32,768 at least and 65,536 at most, about 8 MiB. They outlive reloads, and not the process:
/// after a restart a team with a policy begins its walk anew.
#[derive(Debug, Clone, Default)]
pub struct IssuedPageTokens(Arc<Mutex<Issued>>);

/// Two generations: when the younger is full, the older is forgotten.
#[derive(Debug, Default)]
struct Issued {
    young: HashSet<[u8; 32]>,
    old: HashSet<[u8; 32]>,
    /// Pages, by who was given them and entity tag, whose tokens are in the younger generation, so that they are not
    /// read again.
    read: HashSet<(Scope, [u8; 34])>,
}

/// A policy, the account whose data it restricts, and the upstream that this comes from, as a hash.
pub(super) type Scope = [u8; 32];

impl IssuedPageTokens {
    const GENERATION: usize = 32_768;

    /// The teams of that scope are given `page` of `account`, and so the tokens in it.
    pub(super) fn give_all_of(&self, scope: &Scope, account: &Account, page: &Representation) {
        // Two quotes, and half a hash in hexadecimal between them.
        let Some(etag) = page.etag.as_ref().and_then(|etag| etag.as_bytes().try_into().ok()) else { return };
        let read = (*scope, etag);
        if self.lock().read.contains(&read) {
            return;
        }
        let keys = tokens(page).map(|token| Key::of_page(account, &Parameters::of_page(&token)));
        let tokens: Vec<_> = keys.map(|page| issued(scope, &page)).collect();
        let mut issued = self.lock();
        tokens.into_iter().for_each(|token| issued.give(token));
        if issued.read.len() >= Self::GENERATION {
            issued.read.clear();
        }
        issued.read.insert(read);
    }

    /// Was the token that names `page` given out in that scope.
    pub(super) fn has(&self, scope: &Scope, page: &Key) -> bool {
        let (token, issued) = (issued(scope, page), self.lock());
        issued.young.contains(&token) || issued.old.contains(&token)
    }

    fn lock(&self) -> MutexGuard<'_, Issued> {
        // Every change under this lock is whole or does no harm.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Issued {
    fn give(&mut self, token: [u8; 32]) {
        if self.young.len() >= IssuedPageTokens::GENERATION && !self.young.contains(&token) {
            self.old = std::mem::take(&mut self.young);
            // The tokens of these are a generation nearer to being forgotten.
            self.read.clear();
        }
        self.young.insert(token);
    }
}

fn issued(scope: &Scope, page: &Key) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(scope).update(page.as_bytes());
    hasher.finalize().into()
}

/// The names of the pages before and after.
fn tokens(page: &Representation) -> impl Iterator<Item = String> + use<> {
    #[derive(Deserialize)]
    struct Body {
        meta: Meta,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Meta {
        next_token: Option<String>,
        previous_token: Option<String>,
    }
    let meta = serde_json::from_slice::<Body>(&page.body).ok().map(|body| body.meta);
    meta.into_iter().flat_map(|meta| [meta.next_token, meta.previous_token]).flatten().filter(|token| !token.is_empty())
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, StatusCode};

    use super::*;
    use crate::accounts::Team;
    use crate::request::call::UpstreamResponse;

    fn page(next: &str) -> Representation {
        let body = format!(r#"{{"data":[],"meta":{{"nextToken":"{next}","previousToken":null}}}}"#).into();
        Representation::new(UpstreamResponse {
            status: StatusCode::OK,
            headers: HeaderMap::new(),
            body,
            next_token: None,
        })
    }

    fn owner(sid: &str) -> Account {
        Account { sid: sid.to_owned(), ..Account::clone(&Team::example("a").account) }
    }

    fn key(account: &str, token: &str) -> Key {
        Key::of_page(&owner(account), &Parameters::of_page(token))
    }

    #[test]
    fn a_token_is_good_under_its_own_policy_and_account_alone() {
        let issued = IssuedPageTokens::default();
        issued.give_all_of(&[1; 32], &owner("AC1"), &page("a+b"));
        assert!(issued.has(&[1; 32], &key("AC1", "a+b")));
        assert!(!issued.has(&[2; 32], &key("AC1", "a+b")));
        assert!(!issued.has(&[1; 32], &key("AC2", "a+b")));
        assert!(!issued.has(&[1; 32], &key("AC1", "a")));
        issued.give_all_of(&[1; 32], &owner("AC1"), &page(""));
        assert!(!issued.has(&[1; 32], &key("AC1", "")));
    }

    #[test]
    fn tokens_are_bounded_and_stay_while_their_page_is_given() {
        const MANY: usize = 3 * IssuedPageTokens::GENERATION;
        let (issued, often) = (IssuedPageTokens::default(), page("often"));
        let has = |token: &str| issued.has(&[1; 32], &key("AC1", token));
        for n in 0..MANY {
            let token = *blake3::hash(&n.to_le_bytes()).as_bytes();
            issued.lock().give(token);
            if n % 1000 == 0 {
                issued.give_all_of(&[1; 32], &owner("AC1"), &often);
            }
            if n == 0 {
                issued.give_all_of(&[1; 32], &owner("AC1"), &page("once"));
            }
        }
        assert!(has("often") && !has("once"));
        let known = {
            let issued = issued.lock();
            issued.young.len() + issued.old.len()
        };
        assert!((IssuedPageTokens::GENERATION..=2 * IssuedPageTokens::GENERATION).contains(&known));
    }
}
