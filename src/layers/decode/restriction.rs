//! What policies make of the accounts' metadata as it is now.
//!
//! A team with a policy may name only what the account's metadata has, so its queries are read with a view of that
//! metadata. A view is made once of each page of metadata and policy: the members there are, and the page without those
//! that the policy denies.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use foldhash::fast::RandomState;
use http::StatusCode;

use super::tokens::{IssuedPageTokens, Scope};
use crate::accounts::Account;
use crate::core::clock::Instant;
use crate::core::error::{GatewayError, Reason};
use crate::request::key::Key;
use crate::request::query::Redact;
use crate::request::response::{LazyGzip, Redacted, Representation};
use crate::twilio::catalog::Catalog;
use crate::twilio::parameters::Parameters;
use crate::twilio::policy::{Denied, Policy, Visible};
use crate::twilio::query::Query;

/// Looks up the fresh page under a key, without asking anybody else.
#[derive(Clone)]
pub struct FreshPages(Arc<LookUp>);

type LookUp = dyn Fn(&Key) -> Option<Arc<Representation>> + Send + Sync;

impl FreshPages {
    /// As `look_up` has it.
    pub fn new(look_up: impl Fn(&Key) -> Option<Arc<Representation>> + Send + Sync + 'static) -> Self {
        Self(Arc::new(look_up))
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
    /// By the policy's fingerprint; of each account one.
    known: RwLock<HashMap<[u8; 32], Vec<Arc<Restriction>>, RandomState>>,
}

impl Restrictions {
    pub(super) fn new(pages: FreshPages, tokens: IssuedPageTokens) -> Self {
        Self { pages, tokens, known: RwLock::default() }
    }

    /// What `policy` is for `account`.
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

    /// The view of the account's metadata, where a fresh page of that is at hand.
    pub(super) fn fresh(&self, restriction: &Restriction) -> Option<Result<Arc<View>, GatewayError>> {
        // An error of Twilio's is kept for a while too; whoever asks for metadata gets it.
        let page = (self.pages.0)(&restriction.metadata).filter(|page| page.status == StatusCode::OK)?;
        Some(restriction.view(&page))
    }
}

/// A policy, of one account.
#[derive(Debug)]
pub(super) struct Restriction {
    policy: Arc<Policy>,
    account: Arc<Account>,
    /// The key of the account's metadata.
    pub(super) metadata: Key,
    scope: Scope,
    tokens: IssuedPageTokens,
    newest: Mutex<Option<Viewed>>,
    /// The view of metadata that the cache has not kept, and when it was asked for.
    unkept: Mutex<Option<(Arc<View>, Instant)>>,
}

/// A page of metadata that has been looked at.
#[derive(Debug)]
struct Viewed {
    page: Arc<Representation>,
    /// `None` where the page is of another shape than documented.
    view: Option<Arc<View>>,
}

impl Restriction {
    fn new(policy: &Arc<Policy>, account: &Arc<Account>, tokens: IssuedPageTokens) -> Self {
        let mut scope = blake3::Hasher::new();
        // A policy, an account, and where its data comes from; none of the texts can hold what parts them.
        scope.update(policy.fingerprint()).update(account.sid.as_bytes()).update(&[0xff]);
        scope.update(account.origin.as_bytes());
        Self {
            policy: Arc::clone(policy),
            account: Arc::clone(account),
            metadata: Key::of_metadata(account),
            scope: scope.finalize().into(),
            tokens,
            newest: Mutex::default(),
            unkept: Mutex::default(),
        }
    }

    /// What the teams of this policy may see of that metadata.
    ///
    /// # Errors
    ///
    /// When it is of another shape than documented, so that nothing can be proven from it.
    pub(super) fn view(&self, page: &Arc<Representation>) -> Result<Arc<View>, GatewayError> {
        // Held while a view is made: whoever else comes needs that very one.
        let mut newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        let view = match &mut *newest {
            Some(known) if Arc::ptr_eq(&known.page, page) => known.view.clone(),
            Some(known) if known.page.status == page.status && known.page.body == page.body => {
                known.page = Arc::clone(page);
                known.view.clone()
            }
            _ => {
                let view = View::new(self, page).map(Arc::new);
                *newest = Some(Viewed { page: Arc::clone(page), view: view.clone() });
                view
            }
        };
        view.ok_or_else(|| {
            let message = "Twilio's metadata for this account cannot be read, so nothing can be proven of what this team \
                           may see; tell whoever operates the gateway";
            GatewayError::new(Reason::FieldNotAllowed, message)
        })
    }

    /// For so long a view is good for proofs where the cache may not keep its metadata: otherwise every query would cost
    /// a call for metadata, too.
    const LEAST_VALIDITY: Duration = Duration::from_secs(10);

    /// This is the view of metadata that was asked for at `asked` and is not kept.
    pub(super) fn remember(&self, view: &Arc<View>, asked: Instant) {
        *self.unkept.lock().unwrap_or_else(PoisonError::into_inner) = Some((Arc::clone(view), asked));
    }

    /// The view of metadata that is not kept, if it is of the last ten seconds.
    pub(super) fn unkept(&self, now: Instant) -> Option<Arc<View>> {
        let mut unkept = self.unkept.lock().unwrap_or_else(PoisonError::into_inner);
        *unkept = unkept.take().filter(|(_, asked)| now.saturating_duration_since(*asked) < Self::LEAST_VALIDITY);
        unkept.as_ref().map(|(view, _)| Arc::clone(view))
    }

    /// Does metadata look different under this policy.
    pub(super) fn hides_members(&self) -> bool {
        self.policy.hides_members()
    }

    /// Refuses parameters other than `names`.
    pub(super) fn prove_parameters(&self, parameters: &Parameters, names: &[&str]) -> Result<(), Denied> {
        match parameters.are_at_most(names) {
            true => Ok(()),
            false => {
                Err(Denied::Shape("the query string says more than this team may say; leave out what is not needed"))
            }
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

    /// A team is given this page of a query's answer, and so the tokens in it.
    pub(super) fn give_tokens_of(&self, page: &Representation) {
        self.tokens.give_all_of(&self.scope, &self.account, page);
    }
}

impl Redact for Restriction {
    fn redact(&self, metadata: &Arc<Representation>) -> Result<Option<Arc<Redacted>>, GatewayError> {
        Ok(self.view(metadata)?.visible.clone())
    }
}

/// What the teams of one policy may see of one page of metadata.
#[derive(Debug)]
pub(super) struct View {
    policy: Arc<Policy>,
    catalog: Catalog,
    /// Tells apart what is read by different views: account, policy and metadata.
    pub(super) reader: Box<[u8]>,
    /// The metadata without what is denied; `None` where nothing is.
    visible: Option<Arc<Redacted>>,
}

impl View {
    fn new(restriction: &Restriction, page: &Representation) -> Option<Self> {
        let Restriction { policy, scope, account, .. } = restriction;
        let (catalog, visible) = policy.metadata(&page.body).filter(|_| page.status == StatusCode::OK)?;
        // No account's SID, which stands here by itself for teams without a policy, has this byte in it.
        let reader = [account.sid.as_bytes(), &[0xff], scope, blake3::hash(&page.body).as_bytes()].concat();
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

    /// The query that the team may ask in place of this one. See [`Query::restrict`].
    pub(super) fn restrict(&self, query: &Query<'_>, limit: u64) -> Result<bytes::Bytes, Denied> {
        query.restrict(&self.policy, &self.catalog, limit)
    }
}
