//! Page tokens that were given out under policies.
//!
//! A page token does not show the query that it belongs to, so a team with a policy may use only tokens that it was
//! given under that policy.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;

use crate::accounts::Account;
use crate::core::clock::Clock;
use crate::core::prehashed::Prehashed;
pub(super) use crate::request::grants::Scope;
use crate::request::grants::SharedGrants;
use crate::request::key::Key;
use crate::request::response::Representation;
use crate::request::store_wait::StoreWork;
use crate::twilio::page;
use crate::twilio::parameters::Parameters;

/// Remembers at least the newest 32,768 tokens and at most 65,536, about 8 MiB. Each scope has an equal share, but at
/// least 1,024 tokens, so that no scope evicts the tokens of another. They outlive reloads, but not the process: after
/// a restart a team with a policy has to begin with the first page again, unless replicas share what they gave out.
#[derive(Debug, Clone, Default)]
pub struct IssuedPageTokens {
    scopes: Arc<Mutex<HashMap<Scope, Issued, Prehashed>>>,
    shared: Option<Shared>,
}

/// The tokens of all replicas.
#[derive(Debug, Clone)]
struct Shared {
    grants: Arc<dyn SharedGrants>,
    kept: Duration,
    clock: Clock,
}

/// Two generations: when the younger one is full, the older one is dropped.
#[derive(Debug, Default)]
struct Issued {
    young: HashSet<[u8; 32], Prehashed>,
    old: HashSet<[u8; 32], Prehashed>,
    /// Entity tags, without their quotes, of pages whose tokens are in the younger generation, so that those pages are not
    /// parsed again.
    read: HashSet<[u8; 32], Prehashed>,
    /// The number of the most recent use.
    used: u64,
}

impl IssuedPageTokens {
    const GENERATION: usize = 32_768;
    const LEAST: usize = 1024;

    /// Most scopes. When policies change, the scope is dropped whose tokens were given out the longest time ago.
    const SCOPES: usize = 256;

    /// Shares what is given out with other replicas. There each token is `kept` for that long: twice as long as a page is
    /// served, because its token may be followed long after the page was read.
    #[must_use]
    pub fn shared_by(self, grants: Arc<dyn SharedGrants>, kept: Duration, clock: Clock) -> Self {
        Self { shared: Some(Shared { grants, kept, clock }), ..self }
    }

    /// Whether other replicas know them too.
    pub(super) fn are_shared(&self) -> bool {
        self.shared.is_some()
    }

    /// Records the tokens in the page `given` of `account`, which the teams of that scope get. What it returns ends when
    /// other replicas know them too; `None` if there is nothing to wait for.
    pub(super) fn give_all_of(&self, scope: &Scope, account: &Account, given: &Representation) -> Option<StoreWork> {
        // Half a hash in hexadecimal.
        let [b'"', read @ .., b'"'] = given.etag.as_ref()?.as_bytes() else { return None };
        let read: [u8; 32] = read.try_into().ok()?;
        if self.lock().get(scope).is_some_and(|issued| issued.read.contains(&read)) {
            return None;
        }
        let keys = page::tokens(&given.body).map(|token| Key::of_page(account, &Parameters::of_page(&token)));
        let keys: Vec<_> = keys.collect();
        self.record(scope, &keys, Some(read));
        let Shared { grants, kept, clock } = self.shared.as_ref()?;
        let given: Vec<_> = keys.iter().map(|key| grants.give(account, scope, key, *kept)).collect();
        let giving = async { drop(join_all(given).await) };
        (!keys.is_empty()).then(|| StoreWork::new(grants.patience(), *clock, giving))
    }

    /// Finds out whether another replica gave out the token that names `page` in that scope, if this one does not know it.
    /// `None` if there is nothing to find out.
    pub(super) fn learn(&self, scope: &Scope, account: &Account, page: Key) -> Option<StoreWork> {
        let Shared { grants, clock, .. } = self.shared.as_ref().filter(|_| !self.has(scope, &page))?;
        let (found, issued, scope) = (grants.find(account, scope, &page), self.clone(), *scope);
        let learning = async move {
            if found.await.is_some() {
                issued.record(&scope, &[page], None);
            }
        };
        Some(StoreWork::new(grants.patience(), *clock, learning))
    }

    /// Records tokens of a scope, and that the page with this entity tag has been read for them.
    fn record(&self, scope: &Scope, tokens: &[Key], read: Option<[u8; 32]>) {
        let mut scopes = self.lock();
        let used = scopes.values().map(|issued| issued.used).max().unwrap_or_default() + 1;
        let is_new = !scopes.contains_key(scope);
        if is_new
            && scopes.len() >= Self::SCOPES
            && let Some(oldest) = scopes.iter().min_by_key(|(_, issued)| issued.used).map(|(scope, _)| *scope)
        {
            scopes.remove(&oldest);
        }
        let generation = Self::generation(scopes.len() + usize::from(is_new));
        let issued = scopes.entry(*scope).or_default();
        issued.used = used;
        tokens.iter().for_each(|token| issued.give(*token.as_bytes(), generation));
        if issued.read.len() >= generation {
            issued.read.clear();
        }
        issued.read.extend(read);
    }

    /// Whether the token that names `page` was given out in that scope.
    pub(super) fn has(&self, scope: &Scope, page: &Key) -> bool {
        let scopes = self.lock();
        let has = |issued: &Issued| issued.young.contains(page.as_bytes()) || issued.old.contains(page.as_bytes());
        scopes.get(scope).is_some_and(has)
    }

    /// The size of one scope's generation, where there are this many scopes.
    fn generation(scopes: usize) -> usize {
        (Self::GENERATION / scopes.max(1)).max(Self::LEAST)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Scope, Issued, Prehashed>> {
        // A panic cannot leave a change under this lock in a harmful state.
        self.scopes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Issued {
    fn give(&mut self, token: [u8; 32], generation: usize) {
        if self.young.len() >= generation && !self.young.contains(&token) {
            self.old = std::mem::take(&mut self.young);
            // The tokens of these pages are now in the older generation.
            self.read.clear();
        }
        self.young.insert(token);
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, StatusCode};

    use super::*;
    use crate::accounts::Team;
    use crate::request::call::UpstreamResponse;
    use crate::request::store_wait::StoreWait;

    fn page(next: &str) -> Representation {
        let body = format!(r#"{{"data":[],"meta":{{"nextToken":"{next}","previousToken":null}}}}"#).into();
        Representation::new(
            UpstreamResponse { status: StatusCode::OK, headers: HeaderMap::new(), body, next_token: None },
            &[],
        )
    }

    fn owner(sid: &str) -> Account {
        Account { sid: sid.to_owned(), ..Account::clone(&Team::example("a").account) }
    }

    fn key(account: &str, token: &str) -> Key {
        Key::of_page(&owner(account), &Parameters::of_page(token))
    }

    #[test]
    fn a_token_is_valid_only_under_its_own_policy_and_account() {
        let issued = IssuedPageTokens::default();
        issued.give_all_of(&[1; 32], &owner("AC1"), &page("a+b"));
        assert!(issued.has(&[1; 32], &key("AC1", "a+b")));
        assert!(!issued.has(&[2; 32], &key("AC1", "a+b")));
        assert!(!issued.has(&[1; 32], &key("AC2", "a+b")));
        assert!(!issued.has(&[1; 32], &key("AC1", "a")));
        issued.give_all_of(&[1; 32], &owner("AC1"), &page(""));
        assert!(!issued.has(&[1; 32], &key("AC1", "")));
    }

    #[tokio::test]
    async fn replicas_know_each_others_tokens() {
        let grants = Arc::new(crate::request::grants::MemoryGrants::default());
        let (kept, wait) = (Duration::from_secs(60), StoreWait::default());
        let replica = || IssuedPageTokens::default().shared_by(Arc::clone(&grants) as _, kept, Clock::new());
        let (one, two, key) = (replica(), replica(), key("AC1", "a"));
        let given = one.give_all_of(&[1; 32], &owner("AC1"), &page("a"));
        given.expect("the other replica has to know").wait(&wait).await;
        assert!(one.give_all_of(&[1; 32], &owner("AC1"), &page("a")).is_none(), "once");
        assert!(one.learn(&[1; 32], &owner("AC1"), key).is_none(), "its own");
        for (scope, account) in [([2; 32], "AC1"), ([1; 32], "AC2")] {
            two.learn(&scope, &owner(account), key).unwrap().wait(&wait).await;
            assert!(!two.has(&scope, &key));
        }
        two.learn(&[1; 32], &owner("AC1"), key).unwrap().wait(&wait).await;
        assert!(two.has(&[1; 32], &key) && grants.count() == 1);
        assert!(IssuedPageTokens::default().learn(&[1; 32], &owner("AC1"), key).is_none(), "nothing is shared");
    }

    #[test]
    fn tokens_are_bounded_and_stay_while_their_page_is_served() {
        const GENERATION: usize = IssuedPageTokens::GENERATION;
        let (issued, often) = (IssuedPageTokens::default(), page("often"));
        let has = |token: &str| issued.has(&[1; 32], &key("AC1", token));
        for n in 0..3 * GENERATION {
            let token = *blake3::hash(&n.to_le_bytes()).as_bytes();
            issued.lock().entry([1; 32]).or_default().give(token, GENERATION);
            if n % 1000 == 0 {
                issued.give_all_of(&[1; 32], &owner("AC1"), &often);
            }
            if n == 0 {
                issued.give_all_of(&[1; 32], &owner("AC1"), &page("once"));
            }
        }
        assert!(has("often") && !has("once"));
        let known = issued.lock().values().map(|issued| issued.young.len() + issued.old.len()).sum();
        assert!((GENERATION..=2 * GENERATION).contains(&known));
    }

    #[test]
    fn no_team_evicts_the_tokens_of_another() {
        let issued = IssuedPageTokens::default();
        issued.give_all_of(&[1; 32], &owner("AC1"), &page("calm"));
        for n in 0..3 * IssuedPageTokens::GENERATION {
            let token = *blake3::hash(&n.to_le_bytes()).as_bytes();
            let mut scopes = issued.lock();
            let generation = IssuedPageTokens::generation(scopes.len());
            scopes.entry([2; 32]).or_default().give(token, generation);
        }
        assert!(issued.has(&[1; 32], &key("AC1", "calm")));
        assert!(issued.lock()[&[2; 32]].young.len() <= IssuedPageTokens::GENERATION / 2);
        for n in 0..2 * IssuedPageTokens::SCOPES {
            issued.give_all_of(blake3::hash(&n.to_le_bytes()).as_bytes(), &owner("AC1"), &page("calm"));
        }
        assert_eq!(issued.lock().len(), IssuedPageTokens::SCOPES);
        assert!(!issued.has(&[1; 32], &key("AC1", "calm")), "of a policy that was removed long ago");
    }
}
