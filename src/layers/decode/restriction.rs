//! Applies policies to the accounts' current metadata.
//!
//! A team with a policy may name only members that the account's metadata has, so its queries are checked against a
//! view of that metadata. A view is made once for each page of metadata and policy. It has the members that exist, and
//! the page without those that the policy denies.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use http::StatusCode;

use super::tokens::{IssuedPageTokens, Scope};
use crate::accounts::Account;
use crate::core::clock::Instant;
use crate::core::error::{GatewayError, Reason};
use crate::core::prehashed::Prehashed;
use crate::request::key::Key;
use crate::request::query::Redact;
use crate::request::response::{LazyGzip, Redacted, Representation};
use crate::request::store_wait::StoreWork;
use crate::semantics::request_directives::{CacheDirectives, RequestDirectives};
use crate::twilio::catalog::Catalog;
use crate::twilio::parameters::Parameters;
use crate::twilio::policy::{Denied, Policy, Visible};
use crate::twilio::query::Query;

/// Looks up fresh pages without an upstream call.
#[derive(Clone)]
pub struct FreshPages {
    look_up: Arc<LookUp>,
    purges: Arc<dyn Fn() -> u64 + Send + Sync>,
}

type LookUp = dyn Fn(&Key) -> Option<Arc<Representation>> + Send + Sync;

impl FreshPages {
    /// `look_up` finds the fresh page under a key. `purges` tells how many purges there were.
    pub fn new(
        look_up: impl Fn(&Key) -> Option<Arc<Representation>> + Send + Sync + 'static,
        purges: impl Fn() -> u64 + Send + Sync + 'static,
    ) -> Self {
        Self { look_up: Arc::new(look_up), purges: Arc::new(purges) }
    }
}

impl fmt::Debug for FreshPages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FreshPages").finish_non_exhaustive()
    }
}

/// The restrictions of one configuration.
#[derive(Debug)]
pub(super) struct Restrictions {
    pages: FreshPages,
    tokens: IssuedPageTokens,
    /// By the policy's fingerprint; one for each account.
    known: RwLock<HashMap<[u8; 32], Vec<Arc<Restriction>>, Prehashed>>,
}

impl Restrictions {
    pub(super) fn new(pages: FreshPages, tokens: IssuedPageTokens) -> Self {
        Self { pages, tokens, known: RwLock::default() }
    }

    /// The restriction of `policy` for `account`.
    pub(super) fn of(&self, policy: &Arc<Policy>, account: &Arc<Account>) -> Arc<Restriction> {
        let find = |all: &[Arc<Restriction>]| all.iter().find(|restriction| restriction.account == *account).cloned();
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(restriction) = known.get(policy.fingerprint()).and_then(|all| find(all)) {
            return restriction;
        }
        drop(known);
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        let all = known.entry(*policy.fingerprint()).or_default();
        find(all).unwrap_or_else(|| {
            let restriction = Arc::new(Restriction::new(policy, account, self.tokens.clone()));
            all.push(Arc::clone(&restriction));
            restriction
        })
    }

    /// Whether replicas share the page tokens that they give out.
    pub(super) fn share_tokens(&self) -> bool {
        self.tokens.are_shared()
    }

    /// The fresh page under a key.
    pub(super) fn page(&self, key: &Key) -> Option<Arc<Representation>> {
        (self.pages.look_up)(key)
    }

    /// The view of the account's metadata, if the cache has a fresh page of it.
    pub(super) fn fresh(&self, restriction: &Restriction) -> Option<Result<Arc<MetadataView>, GatewayError>> {
        // Twilio's errors are stored for a while too. A client that asks for metadata gets them; they have no view.
        let page = self.page(&restriction.metadata).filter(|page| page.status == StatusCode::OK)?;
        Some(restriction.view(&page))
    }

    /// The number of purges so far.
    pub(super) fn purges(&self) -> u64 {
        (self.pages.purges)()
    }
}

/// A policy for one account.
#[derive(Debug)]
pub(super) struct Restriction {
    policy: Arc<Policy>,
    account: Arc<Account>,
    /// The key of the account's metadata.
    pub(super) metadata: Key,
    scope: Scope,
    tokens: IssuedPageTokens,
    newest: Mutex<Option<ParsedMetadata>>,
    /// The view of metadata that the cache may not store.
    unstored: Mutex<Option<UnstoredView>>,
}

/// A view of metadata that the cache does not store, when that metadata was requested, and how many purges there were
/// before.
#[derive(Debug)]
struct UnstoredView {
    view: Arc<MetadataView>,
    asked: Instant,
    purges: u64,
}

/// The last page of metadata, and what was read from it.
#[derive(Debug)]
struct ParsedMetadata {
    page: Arc<Representation>,
    /// `None` where the page does not have the documented form.
    view: Option<Arc<MetadataView>>,
}

impl Restriction {
    fn new(policy: &Arc<Policy>, account: &Arc<Account>, tokens: IssuedPageTokens) -> Self {
        Self {
            policy: Arc::clone(policy),
            account: Arc::clone(account),
            metadata: Key::of_metadata(account),
            scope: policy.scope(&account.sid, &account.origin),
            tokens,
            newest: Mutex::default(),
            unstored: Mutex::default(),
        }
    }

    /// What the teams of this policy may see of that metadata.
    ///
    /// # Errors
    ///
    /// When it does not have the documented form, so that nothing can be proven from it.
    pub(super) fn view(&self, page: &Arc<Representation>) -> Result<Arc<MetadataView>, GatewayError> {
        // Held while a view is made: other callers need the same view.
        let mut newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        let view = match &mut *newest {
            Some(known) if Arc::ptr_eq(&known.page, page) => known.view.clone(),
            Some(known) if known.page.status == page.status && known.page.body == page.body => {
                known.page = Arc::clone(page);
                known.view.clone()
            }
            _ => {
                let view = MetadataView::new(self, page).map(Arc::new);
                *newest = Some(ParsedMetadata { page: Arc::clone(page), view: view.clone() });
                view
            }
        };
        view.ok_or_else(|| {
            let message = "Twilio's metadata for this account cannot be read, so it cannot be checked what this team \
                           may see; tell the operator of the gateway";
            GatewayError::new(Reason::FieldNotAllowed, message)
        })
    }

    /// How long a view may be used where the cache may not store its metadata. Without this, every query would cost
    /// another call for metadata.
    const LEAST_VALIDITY: Duration = Duration::from_secs(10);

    /// Remembers the view of metadata that is not stored. It was requested at `asked`, after `purges` purges.
    pub(super) fn remember(&self, view: &Arc<MetadataView>, asked: Instant, purges: u64) {
        let unstored = UnstoredView { view: Arc::clone(view), asked, purges };
        *self.unstored.lock().unwrap_or_else(PoisonError::into_inner) = Some(unstored);
    }

    /// The view of metadata that is not stored, if it is at most ten seconds old and there was no purge since it was
    /// requested. After a purge or a write, older knowledge must not be used.
    pub(super) fn unstored(&self, now: Instant, purges: u64) -> Option<Arc<MetadataView>> {
        let mut unstored = self.unstored.lock().unwrap_or_else(PoisonError::into_inner);
        let is_good = |unstored: &UnstoredView| {
            now.saturating_duration_since(unstored.asked) < Self::LEAST_VALIDITY && unstored.purges == purges
        };
        *unstored = unstored.take().filter(is_good);
        unstored.as_ref().map(|unstored| Arc::clone(&unstored.view))
    }

    /// Whether metadata is different under this policy.
    pub(super) fn hides_members(&self) -> bool {
        self.policy.hides_members()
    }

    /// Refuses parameters other than `names`.
    pub(super) fn prove_parameters(&self, parameters: &Parameters, names: &[&str]) -> Result<(), Denied> {
        match parameters.are_at_most(names) {
            true => Ok(()),
            false => Err(Denied::Shape("the query string has parameters that this team may not send; leave them out")),
        }
    }

    /// Refuses the page under `key` unless its token was given out under this policy.
    pub(super) fn prove_token(&self, key: &Key) -> Result<(), GatewayError> {
        match self.tokens.has(&self.scope, key) {
            true => Ok(()),
            false => Err(GatewayError::new(
                Reason::FieldNotAllowed,
                "this page token was not given to this team under its policy, or too long ago: send the query again",
            )),
        }
    }

    /// Records the tokens in this page, which a team gets as the response to a query. What it returns ends when other
    /// replicas know them; `None` if there is nothing to wait for.
    pub(super) fn give_tokens_of(&self, page: &Representation) -> Option<StoreWork> {
        self.tokens.give_all_of(&self.scope, &self.account, page)
    }

    /// Finds out whether another replica gave out the token that names the page `key`; `None` if there is nothing to find
    /// out.
    pub(super) fn learn_token(&self, key: Key) -> Option<StoreWork> {
        self.tokens.learn(&self.scope, &self.account, key)
    }
}

impl Redact for Restriction {
    fn redact(&self, metadata: &Arc<Representation>) -> Result<Option<Arc<Redacted>>, GatewayError> {
        Ok(self.view(metadata)?.visible.clone())
    }
}

/// What the teams of one policy may see of one page of metadata.
#[derive(Debug)]
pub(super) struct MetadataView {
    policy: Arc<Policy>,
    /// All members, denied or not.
    pub(super) catalog: Catalog,
    /// Distinguishes queries that are read with different views: a hash of account, policy and metadata, which every hit
    /// compares.
    pub(super) reader: Box<[u8]>,
    /// The metadata without denied members; `None` where nothing is denied.
    visible: Option<Arc<Redacted>>,
}

impl MetadataView {
    fn new(restriction: &Restriction, page: &Representation) -> Option<Self> {
        let Restriction { policy, scope, .. } = restriction;
        let (catalog, visible) = policy.metadata(&page.body).filter(|_| page.status == StatusCode::OK)?;
        let hash = blake3::Hasher::new().update(scope).update(&page.body).finalize();
        // For teams without a policy the reader is the account's SID alone, and no SID contains this byte.
        let reader = [&[0xff], hash.as_slice()].concat();
        Some(Self {
            policy: Arc::clone(policy),
            catalog,
            reader: reader.into(),
            visible: match visible {
                Visible::All => None,
                Visible::Part(body) => {
                    let representation = Arc::new(page.with_body(body));
                    Some(Arc::new(Redacted { representation, gzip: LazyGzip::default() }))
                }
            },
        })
    }

    /// The query that is sent in place of this one. See [`Query::restrict`].
    pub(super) fn restrict(&self, query: &Query<'_>, limit: u64) -> Result<bytes::Bytes, Denied> {
        query.restrict(&self.policy, &self.catalog, limit)
    }
}

/// The directives for metadata that a query needs. However fresh the query has to be, metadata may be as old as its own
/// lifetimes allow.
pub(super) fn of_metadata(client: &RequestDirectives) -> RequestDirectives {
    let cache = CacheDirectives { only_if_cached: client.cache.only_if_cached, ..CacheDirectives::default() };
    RequestDirectives { cache, urgency: client.urgency, wait: client.wait, ..RequestDirectives::default() }
}
