//! The account's secret goes in here, and nowhere above is it held.
//!
//! What the client sent as its own credentials never came this far: an [`UpstreamCall`] has no headers. A 401 or 403
//! from Twilio is about the account's credentials and not the client's, so it ends here too: as a failure
//! that no caller can mend, remembered until the account is accepted again. A call that was under way when the
//! secret was replaced is signed with the new one, and tried again where only the old one was refused. And an answer that repeats the
//! credential ends here, since this is the last room that could recognise it.

mod echo;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use arc_swap::ArcSwap;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{HeaderValue, StatusCode, Uri, header};
use secrecy::{ExposeSecret, SecretString};
use tower::{Layer, Service};
use zeroize::Zeroizing;

use self::echo::{Echo, Echoes};
use crate::accounts::Account;
use crate::core::clock::{Clock, Instant};
use crate::core::error::{GatewayError, Reason, Retry};
use crate::metrics::{AccountLabels, ConfigLabel, Metrics};
use crate::request::call::{SignedCall, UpstreamCall, UpstreamResponse};
use crate::semantics::upstream_headers;

/// What every account signs with. Wiped once it is replaced and the last call that was signed with it has ended; what it
/// is recognised by is kept for a few replacements more.
#[derive(Clone, Default)]
pub struct Credentials {
    signatures: HashMap<Arc<str>, Arc<Signature>>,
    /// Secrets that nothing is signed with, or no more: they must not come down either.
    others: Vec<Arc<Echo>>,
    replaced: Vec<Arc<Echo>>,
}

struct Signature {
    authorization: HeaderValue,
    echo: Arc<Echo>,
    bounds: Bounds,
}

/// Whose data a signature opens, and where it may be sent: a call that began under an older configuration must not
/// carry a newer secret elsewhere, nor read somebody else's data with it.
#[derive(PartialEq, Eq)]
struct Bounds {
    sid: String,
    upstream: Uri,
}

impl Credentials {
    /// Adds an account's user and secret, which may be sent to `upstream`.
    pub fn insert(&mut self, account: &Account, upstream: &Uri, username: &str, secret: &SecretString) {
        let secret = secret.expose_secret();
        let pair = Zeroizing::new(format!("{username}:{secret}"));
        let basic = Zeroizing::new(BASE64_STANDARD.encode(pair.as_bytes()));
        // Shared by every request that is signed, and wiped behind the last of them.
        let header = Bytes::from_owner(Zeroizing::new(format!("Basic {}", *basic).into_bytes()));
        // Base64 is always a header value.
        if let Ok(mut authorization) = HeaderValue::from_maybe_shared(header) {
            authorization.set_sensitive(true);
            let bounds = Bounds { sid: account.sid.clone(), upstream: upstream.clone() };
            let echo = Arc::new(Echo::new(secret, &basic));
            self.signatures.insert(Arc::clone(&account.name), Arc::new(Signature { authorization, echo, bounds }));
        }
    }

    /// Adds the `Basic` that a proxy on the way is shown.
    pub fn insert_proxy(&mut self, authorization: &HeaderValue) {
        let Some(basic) = authorization.as_bytes().strip_prefix(b"Basic ") else { return };
        let pair = BASE64_STANDARD.decode(basic).map(Zeroizing::new);
        let Some((pair, basic)) = pair.ok().zip(std::str::from_utf8(basic).ok()) else { return };
        let password = std::str::from_utf8(&pair).ok().and_then(|pair| pair.split_once(':'));
        self.others.extend(password.map(|(_, password)| Arc::new(Echo::of_password(password, basic))));
    }

    fn echoes(&self) -> impl Iterator<Item = &Echo> {
        let signatures = self.signatures.values().map(|signature| &*signature.echo);
        signatures.chain(self.others.iter().chain(&self.replaced).map(|echo| &**echo))
    }
}

/// The credentials of the newest configuration, for calls that began under an older one.
#[derive(Clone, Default)]
pub struct Newest(Arc<ArcSwap<Credentials>>);

impl Newest {
    /// So many secrets are still recognised after they were replaced: they may be good at Twilio for a while.
    const MOST_REPLACED: usize = 8;

    /// Takes the place of what was the newest.
    pub fn set(&self, mut credentials: Credentials) {
        let old = self.0.load();
        let is_known =
            |old: &Signature| credentials.signatures.values().any(|new| new.authorization == old.authorization);
        let replaced = old.signatures.values().filter(|old| !is_known(old)).map(|old| Arc::clone(&old.echo));
        credentials.replaced = replaced.chain(old.replaced.iter().cloned()).take(Self::MOST_REPLACED).collect();
        self.0.store(Arc::new(credentials));
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

/// Makes [`Sign`] services.
#[derive(Clone)]
pub struct SignLayer {
    credentials: Arc<Credentials>,
    newest: Newest,
    rejections: Rejections,
    metrics: Arc<Metrics>,
    clock: Clock,
}

impl SignLayer {
    /// Signs with `credentials`, or with the newest of the same account and upstream. Writes refusals to
    /// `rejections`, and counts echoes in `metrics`.
    pub fn new(
        credentials: Credentials,
        newest: Newest,
        rejections: Rejections,
        metrics: Arc<Metrics>,
        clock: Clock,
    ) -> Self {
        Self { credentials: Arc::new(credentials), newest, rejections, metrics, clock }
    }

    fn signature(&self, account: &str) -> Option<Arc<Signature>> {
        let own = self.credentials.signatures.get(account)?;
        let newest = self.newest.0.load();
        let newest =
            newest.signatures.get(account).filter(|newest| Arc::ptr_eq(newest, own) || newest.bounds == own.bounds);
        Some(Arc::clone(newest.unwrap_or(own)))
    }

    /// What a 401 or 403 means: the credentials are wrong, unless they are outdated.
    fn rejected(&self, signature: &Signature, account: &Arc<str>) -> GatewayError {
        let message = "Twilio rejects the gateway's credentials for this account; tell whoever operates the gateway";
        let error = GatewayError::new(Reason::UpstreamRejectedCredentials, message);
        let is_replaced = |now: Arc<Signature>| now.authorization != signature.authorization;
        if self.signature(account).is_some_and(is_replaced) {
            return error.with_retry(Retry::NothingSent);
        }
        self.rejections.record(account, true, self.clock.now());
        error
    }

    /// Refuses an answer that repeats what it was asked with, or any other secret of the gateway's towards Twilio. One that asks to stay away still does, without its body
    /// and whatever else could hold the credential: otherwise nothing would hold the account's calls back.
    fn withhold_echo(
        &self,
        answer: UpstreamResponse,
        signature: &Signature,
        account: &Arc<str>,
    ) -> Result<UpstreamResponse, GatewayError> {
        let newest = self.newest.0.load();
        let echoes = Echoes(newest.echoes().chain([&*signature.echo]).collect());
        if !echoes.are_in(&answer.headers, &answer.body) {
            return Ok(answer);
        }
        let labels = AccountLabels { account: ConfigLabel(Arc::clone(account)) };
        self.metrics.credential_echoes.get_or_create(&labels).inc();
        tracing::error!(
            %account,
            status = answer.status.as_u16(),
            "an answer repeated the account's credentials and was withheld: find out who answers at upstream.url, and replace them"
        );
        let asks_to_wait = |status| match status {
            StatusCode::TOO_MANY_REQUESTS => true,
            StatusCode::SERVICE_UNAVAILABLE => answer.headers.contains_key(header::RETRY_AFTER),
            _ => false,
        };
        if asks_to_wait(answer.status) {
            return Ok(without_the_credential(&answer, &echoes));
        }
        Err(GatewayError::new(
            Reason::UpstreamInvalid,
            "Twilio's answer repeated the gateway's credentials and was withheld; tell whoever operates the gateway",
        ))
    }
}

/// What is left of an answer that asks to stay away: its status, and those of its numbers and dates that are not part of
/// a credential.
fn without_the_credential(answer: &UpstreamResponse, echoes: &Echoes<'_>) -> UpstreamResponse {
    let reason = match answer.status {
        StatusCode::TOO_MANY_REQUESTS => Reason::UpstreamRateLimit,
        _ => Reason::Overloaded,
    };
    let message = "Twilio asks for fewer requests, in an answer that is withheld; come back when Retry-After says";
    let mut headers = upstream_headers::limits_alone(&answer.headers, |value| !echoes.are_in_value(value));
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    let body = GatewayError::new(reason, message).to_body();
    UpstreamResponse { status: answer.status, headers, body, next_token: None }
}

impl<S> Layer<S> for SignLayer {
    type Service = Sign<S>;

    fn layer(&self, inner: S) -> Sign<S> {
        Sign { inner, layer: self.clone() }
    }
}

/// Signs calls. See the module.
#[derive(Clone)]
pub struct Sign<S> {
    inner: S,
    layer: SignLayer,
}

impl<S> Service<UpstreamCall> for Sign<S>
where
    S: Service<SignedCall, Response = UpstreamResponse, Error = GatewayError>,
    S::Future: Send + 'static,
{
    type Response = UpstreamResponse;
    type Error = GatewayError;
    type Future = BoxFuture<'static, Result<UpstreamResponse, GatewayError>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), GatewayError>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, call: UpstreamCall) -> Self::Future {
        let account = Arc::clone(&call.team.account.name);
        let Some(signature) = self.layer.signature(&account) else {
            let error = GatewayError::new(Reason::Internal, "the account has no credentials");
            return Box::pin(std::future::ready(Err(error)));
        };
        let answer = self.inner.call(SignedCall { call, authorization: signature.authorization.clone() });
        let layer = self.layer.clone();
        Box::pin(async move {
            let answer = answer.await?;
            if matches!(answer.status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
                return Err(layer.rejected(&signature, &account));
            }
            if answer.status.is_success() {
                layer.rejections.record(&account, false, layer.clock.now());
            }
            layer.withhold_echo(answer, &signature, &account)
        })
    }
}

#[cfg(test)]
mod tests;
