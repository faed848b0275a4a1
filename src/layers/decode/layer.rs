//! What the services of this layer share.

use std::sync::Arc;

use tokio::sync::Semaphore;

use super::bodies::Bodies;
use super::collect::Limits;
use super::parse_cache::ParseCache;
use super::restriction::{FreshPages, Restrictions};
use super::tokens::IssuedPageTokens;
use super::validation::Validator;
use crate::twilio::links::Links;
use crate::twilio::validate::Validation;

/// Large bodies that are parsed at the same time. They only compute, so more at a time would not be faster.
pub(super) const LARGE_AT_ONCE: usize = 2;

/// Makes [`Decode`](super::Decode) services.
#[derive(Debug, Clone)]
pub struct DecodeLayer {
    pub(super) limits: Limits,
    pub(super) bodies: Bodies,
    pub(super) parse_cache: Arc<ParseCache>,
    pub(super) restrictions: Arc<Restrictions>,
    pub(super) validator: Arc<Validator>,
    pub(super) links: Arc<Links>,
    /// Permits to parse a large body.
    pub(super) large: Arc<Semaphore>,
}

impl DecodeLayer {
    /// Reads within `limits`, and all requests together within those of `bodies`. `pages` has the metadata that policies
    /// and `validation` need. `tokens` remembers the page tokens that were given out under policies. The request decides
    /// where `links` in its response lead.
    pub fn new(
        limits: Limits,
        bodies: Bodies,
        pages: FreshPages,
        tokens: IssuedPageTokens,
        validation: Validation,
        links: Links,
    ) -> Self {
        let (parse_cache, large) = (Arc::new(ParseCache::new()), Arc::new(Semaphore::new(LARGE_AT_ONCE)));
        Self {
            limits,
            bodies,
            parse_cache,
            restrictions: Arc::new(Restrictions::new(pages, tokens)),
            validator: Arc::new(Validator::new(validation)),
            links: Arc::new(links),
            large,
        }
    }
}
