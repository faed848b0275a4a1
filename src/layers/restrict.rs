//! Holds teams to their policies.
//!
//! Before the cache, so that what a team may not see is not looked up either, and so that teams whose effective
//! queries are equal share pages. A page token says nothing of the query that it belongs to, so a team with a
//! policy may only use tokens that it was given under that very policy; they are remembered, the newest so many. A
//! team without a policy passes untouched.

use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use futures_util::future::{BoxFuture, Either};
use serde::Deserialize;
use tower::{Layer, Service};

use crate::model::call::{Call, Page, Reply};
use crate::model::error::{GatewayError, Reason};
use crate::model::key::Key;
use crate::model::operation::Operation;
use crate::model::parameters::Parameters;
use crate::model::policy::{Denied, Policy};

/// Tokens that were given out under policies. They outlive reloads, and not the process: after a restart a team
/// with a policy begins its walk anew.
#[derive(Debug, Clone, Default)]
pub struct Grants(Arc<Mutex<Granted>>);

#[derive(Debug, Default)]
struct Granted {
    known: HashSet<[u8; 32]>,
    oldest_first: VecDeque<[u8; 32]>,
}

impl Grants {
    /// About 8 MiB.
    const MOST: usize = 65_536;

    fn give(&self, grant: [u8; 32]) {
        let mut granted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if granted.known.insert(grant) {
            granted.oldest_first.push_back(grant);
            if granted.oldest_first.len() > Self::MOST
                && let Some(oldest) = granted.oldest_first.pop_front()
            {
                granted.known.remove(&oldest);
            }
        }
    }

    fn has(&self, grant: &[u8; 32]) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).known.contains(grant)
    }
}

/// Of one page, under one policy.
fn grant(policy: &Policy, page: &Key) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(policy.fingerprint()).update(page.as_bytes());
    hasher.finalize().into()
}

/// Makes [`Restrict`] services.
#[derive(Debug, Clone)]
pub struct RestrictLayer(Grants);

impl RestrictLayer {
    /// Remembers tokens in `grants`.
    pub fn new(grants: Grants) -> Self {
        Self(grants)
    }
}

impl<S> Layer<S> for RestrictLayer {
    type Service = Restrict<S>;

    fn layer(&self, inner: S) -> Restrict<S> {
        Restrict { inner, grants: self.0.clone() }
    }
}

/// Holds teams to their policies. See the module.
#[derive(Debug, Clone)]
pub struct Restrict<S> {
    inner: S,
    grants: Grants,
}

impl<S> Service<Call> for Restrict<S>
where
    S: Service<Call, Response = Reply, Error = GatewayError>,
    S::Future: Send + 'static,
{
    type Response = Reply;
    type Error = GatewayError;
    /// A team without a policy costs nothing here.
    type Future = Either<S::Future, BoxFuture<'static, Result<Reply, GatewayError>>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), GatewayError>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, call: Call) -> Self::Future {
        let Some(policy) = call.team.policy.clone() else { return Either::Left(self.inner.call(call)) };
        let account = Arc::clone(&call.team.account);
        let call = match self.restrict(call, &policy) {
            Ok(call) => call,
            Err(error) => return Either::Right(Box::pin(std::future::ready(Err(error)))),
        };
        let (answer, grants) = (self.inner.call(call), self.grants.clone());
        Either::Right(Box::pin(async move {
            let reply = answer.await?;
            for token in tokens(&reply.page) {
                let parameters = Parameters::of_page(&token);
                grants.give(grant(&policy, &Key::new(&account, Operation::Page, parameters.as_str(), b"")));
            }
            Ok(reply)
        }))
    }
}

impl<S> Restrict<S> {
    fn restrict(&self, call: Call, policy: &Policy) -> Result<Call, GatewayError> {
        let refused = |message: String| GatewayError::new(Reason::FieldNotAllowed, message);
        match call.operation {
            Operation::Metadata => Ok(call),
            Operation::Query => {
                let body = policy.apply(&call.body).map_err(|denied: Denied| refused(denied.to_string()))?;
                let key = Key::new(&call.team.account, call.operation, &call.parameters, &body);
                Ok(Call { body, key, ..call })
            }
            Operation::Page if self.grants.has(&grant(policy, &call.key)) => Ok(call),
            Operation::Page => Err(refused(
                "this page token was not given to this team under its policy, or too long ago: send the query again"
                    .to_owned(),
            )),
            _ => Err(refused("a team with a policy may only read metadata, queries and their pages".to_owned())),
        }
    }
}

/// The names of the pages before and after.
fn tokens(page: &Page) -> Vec<String> {
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
    match serde_json::from_slice::<Body>(&page.body) {
        Ok(Body { meta }) => meta.next_token.into_iter().chain(meta.previous_token).collect(),
        Err(_) => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http::{HeaderMap, HeaderValue, StatusCode};
    use tower::{ServiceExt, service_fn};

    use super::*;
    use crate::model::call::Answer;
    use crate::model::outcome::Outcome;
    use crate::model::tenancy::Team;

    const QUERY: &str = r#"{"query":{"measures":["C.Count"]}}"#;

    fn call(policy: Option<&Arc<Policy>>, operation: Operation, parameters: &str, body: &'static str) -> Call {
        let team = Team { policy: policy.cloned(), ..Team::example("a") };
        let parameters = Parameters::parse(parameters).unwrap();
        Call { team: Arc::new(team), ..Call::example(operation, parameters.as_str(), body) }
    }

    /// What arrives behind the layer, or why nothing does. Every page names `a+b` as the next.
    async fn pass(grants: &Grants, call: Call) -> Result<String, Reason> {
        let inner = service_fn(|call: Call| {
            let body = Bytes::from_static(br#"{"meta":{"nextToken":"a+b"}}"#);
            let page = Page::new(Answer { status: StatusCode::OK, headers: HeaderMap::new(), body, next_token: None });
            let sent = HeaderValue::from_bytes(&call.body).unwrap();
            std::future::ready(Ok(Reply {
                page: Arc::new(page),
                coded: None,
                etag: None,
                outcome: Outcome::Miss,
                cache_status: sent,
                age: None,
                not_modified: false,
            }))
        });
        let reply = RestrictLayer::new(grants.clone()).layer(inner).oneshot(call).await;
        reply.map(|reply| reply.cache_status.to_str().unwrap().to_owned()).map_err(|error: GatewayError| error.reason())
    }

    #[tokio::test]
    async fn a_token_is_good_under_its_own_policy_alone() {
        let (grants, one, other) = (
            Grants::default(),
            Arc::new(Policy::new(&["X.y".into()], &[])),
            Arc::new(Policy::new(&["X.z".into()], &[])),
        );
        let page = |policy| call(policy, Operation::Page, "pageToken=a%2Bb", "");
        assert_eq!(pass(&grants, page(Some(&one))).await, Err(Reason::FieldNotAllowed));
        assert_eq!(pass(&grants, call(Some(&one), Operation::Query, "", QUERY)).await.unwrap(), QUERY);
        assert!(pass(&grants, page(Some(&one))).await.is_ok());
        assert_eq!(pass(&grants, page(Some(&other))).await, Err(Reason::FieldNotAllowed));
        assert!(pass(&grants, page(None)).await.is_ok());
    }

    #[tokio::test]
    async fn denied_members_do_not_pass_and_metadata_does() {
        let policy = Arc::new(Policy::new(&["C.*".into()], &[]));
        let grants = Grants::default();
        assert_eq!(pass(&grants, call(Some(&policy), Operation::Query, "", QUERY)).await, Err(Reason::FieldNotAllowed));
        assert!(pass(&grants, call(None, Operation::Query, "", QUERY)).await.is_ok());
        assert!(pass(&grants, call(Some(&policy), Operation::Metadata, "", "")).await.is_ok());
        assert_eq!(pass(&grants, call(Some(&policy), Operation::JobList, "", "")).await, Err(Reason::FieldNotAllowed));
    }

    #[test]
    fn grants_are_bounded() {
        let grants = Grants::default();
        let nth = |n: usize| *blake3::hash(&n.to_le_bytes()).as_bytes();
        (0..=Grants::MOST).for_each(|n| grants.give(nth(n)));
        assert!(!grants.has(&nth(0)) && grants.has(&nth(1)) && grants.has(&nth(Grants::MOST)));
    }
}
