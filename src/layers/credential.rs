//! The account's secret goes in here, and nowhere above is it held.
//!
//! What the client sent as its own credentials never came this far: a [`Call`] has no headers. A 401 or 403
//! from Twilio is about the account's credentials and not the client's, so it ends here too: as a failure
//! that no caller can mend, remembered until the account is accepted again.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use futures_util::future::BoxFuture;
use http::{HeaderValue, StatusCode};
use secrecy::{ExposeSecret, SecretString};
use tower::{Layer, Service};
use zeroize::Zeroizing;

use crate::model::call::{Answer, Call, SignedCall};
use crate::model::clock::{Clock, Instant};
use crate::model::error::{GatewayError, Reason};

/// The `Authorization` of every account.
#[derive(Debug, Clone, Default)]
pub struct Credentials(HashMap<Arc<str>, HeaderValue>);

impl Credentials {
    /// Adds an account's user and secret.
    pub fn insert(&mut self, account: Arc<str>, username: &str, secret: &SecretString) {
        let pair = Zeroizing::new(format!("{username}:{}", secret.expose_secret()));
        let basic = Zeroizing::new(format!("Basic {}", BASE64_STANDARD.encode(pair.as_bytes())));
        // Base64 is always a header value.
        if let Ok(mut value) = HeaderValue::from_str(&basic) {
            value.set_sensitive(true);
            self.0.insert(account, value);
        }
    }
}

/// Which accounts Twilio refuses, and since when.
#[derive(Debug, Clone, Default)]
pub struct Rejections(Arc<Mutex<HashMap<Arc<str>, Instant>>>);

impl Rejections {
    /// When `account` was first refused, unless it has been accepted since.
    pub fn since(&self, account: &str) -> Option<Instant> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(account).copied()
    }

    /// Forgets what was known of an account: it has new credentials.
    pub fn clear(&self, account: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(account);
    }

    fn record(&self, account: &Arc<str>, rejected: bool, now: Instant) {
        let mut rejections = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known = rejections.contains_key(account);
        match (rejected, known) {
            (true, false) => {
                rejections.insert(Arc::clone(account), now);
                tracing::error!(%account, "Twilio rejects the account's credentials: check its key and secret");
            }
            (false, true) => {
                rejections.remove(account);
                tracing::info!(%account, "Twilio accepts the account's credentials again");
            }
            _ => {}
        }
    }
}

/// Makes [`Credential`] services.
#[derive(Debug, Clone)]
pub struct CredentialLayer {
    credentials: Arc<Credentials>,
    rejections: Rejections,
    clock: Clock,
}

impl CredentialLayer {
    /// Signs with `credentials`, and writes refusals to `rejections`.
    pub fn new(credentials: Credentials, rejections: Rejections, clock: Clock) -> Self {
        Self { credentials: Arc::new(credentials), rejections, clock }
    }
}

impl<S> Layer<S> for CredentialLayer {
    type Service = Credential<S>;

    fn layer(&self, inner: S) -> Credential<S> {
        Credential { inner, layer: self.clone() }
    }
}

/// Signs calls. See the module.
#[derive(Debug, Clone)]
pub struct Credential<S> {
    inner: S,
    layer: CredentialLayer,
}

impl<S> Service<Call> for Credential<S>
where
    S: Service<SignedCall, Response = Answer, Error = GatewayError>,
    S::Future: Send + 'static,
{
    type Response = Answer;
    type Error = GatewayError;
    type Future = BoxFuture<'static, Result<Answer, GatewayError>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), GatewayError>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, call: Call) -> Self::Future {
        let account = Arc::clone(&call.team.account.name);
        let Some(authorization) = self.layer.credentials.0.get(&account).cloned() else {
            let error = GatewayError::new(Reason::Internal, "the account has no credentials");
            return Box::pin(std::future::ready(Err(error)));
        };
        let answer = self.inner.call(SignedCall { call, authorization });
        let CredentialLayer { rejections, clock, .. } = self.layer.clone();
        Box::pin(async move {
            let answer = answer.await?;
            let rejected = matches!(answer.status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN);
            if rejected || answer.status.is_success() {
                rejections.record(&account, rejected, clock.now());
            }
            if rejected {
                return Err(GatewayError::new(
                    Reason::UpstreamRejectedCredentials,
                    "Twilio rejects the gateway's credentials for this account; tell whoever operates the gateway",
                ));
            }
            Ok(answer)
        })
    }
}
