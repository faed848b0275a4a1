//! Signs calls with their account's credentials. Only this layer holds them.
//!
//! The client's own credentials are not in an [`UpstreamCall`], which has no headers. A 401 or 403 from Twilio concerns
//! the account's credentials and not the client's. It becomes an error that no client can correct, and is remembered until
//! Twilio accepts the account again. A call that is under way when a secret is replaced is signed with the new one, and
//! tried again if only the old one was rejected. A response that repeats credentials is withheld here, because no layer
//! above could recognise them.

mod echo;

use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Weak};
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
use crate::accounts::{Account, PerAccount};
use crate::core::cause::{Cause, CauseKind};
use crate::core::clock::{Clock, Instant};
use crate::core::episode::Episode;
use crate::core::error::{GatewayError, Reason, Retry};
use crate::metrics::{AccountLabels, ConfigLabel, Metrics};
use crate::request::call::{SignedCall, UpstreamCall, UpstreamResponse};
use crate::semantics::upstream_headers;
use crate::twilio::endpoint::Operation;

/// The credentials that the calls of an account are signed with: the newest that a configuration had for the same SID and
/// upstream. Clones share them.
#[derive(Clone)]
pub struct Credential(Arc<Slot>);

impl Credential {
    fn signature(&self) -> Arc<Signature> {
        self.0.newest.load_full()
    }
}

struct Slot {
    bounds: Bounds,
    newest: ArcSwap<Signature>,
}

/// The account that credentials belong to, and the upstream that they may be sent to. A call that began under an older
/// configuration must not send newer credentials elsewhere, or read another account's data with them.
#[derive(PartialEq, Eq)]
struct Bounds {
    name: Arc<str>,
    sid: String,
    upstream: Uri,
}

/// A value of `Authorization`. It is wiped when it has been replaced and the last call signed with it has ended. The
/// part by which it is recognised is kept for a few more replacements.
struct Signature {
    authorization: HeaderValue,
    echo: Arc<Echo>,
}

impl Signature {
    fn new(username: &str, secret: &SecretString) -> Self {
        let secret = secret.expose_secret();
        let pair = Zeroizing::new(format!("{username}:{secret}"));
        let basic = Zeroizing::new(BASE64_STANDARD.encode(pair.as_bytes()));
        // Every signed request shares these bytes. They are wiped after the last one.
        let header = Bytes::from_owner(Zeroizing::new(format!("Basic {}", *basic).into_bytes()));
        // Base64 is always valid in a header.
        let mut authorization =
            HeaderValue::from_maybe_shared(header).unwrap_or_else(|_| HeaderValue::from_static("Basic"));
        authorization.set_sensitive(true);
        Self { authorization, echo: Arc::new(Echo::new(secret, &basic)) }
    }
}

/// An account with the user and secret that its calls are signed with.
pub struct Login<'c> {
    /// The account.
    pub account: &'c Account,
    /// An API key, or the account's SID.
    pub username: &'c str,
    /// The key's secret, or the auth token.
    pub secret: &'c SecretString,
}

/// The credentials of an account in a new configuration.
pub struct Configured {
    /// What its calls are signed with.
    pub credential: Credential,
    /// Whether the configuration before had the same login for the same SID and upstream, so that what Twilio said of it
    /// still holds.
    pub is_unchanged: bool,
}

/// The credentials of this and of earlier configurations.
#[derive(Default)]
pub struct Credentials {
    /// Weak, so that credentials are wiped when no stack can sign with them any more.
    slots: Vec<Weak<Slot>>,
    secrets: Secrets,
}

impl Credentials {
    /// Sets the credentials of a new configuration: the logins of its accounts, which may be sent to `upstream`, and
    /// the `Basic` credentials of a proxy on the way. Calls in progress of the same account to the same upstream use
    /// the new login from now on. Returns the credentials in the order of `logins`.
    pub fn set(&mut self, logins: &[Login<'_>], upstream: &Uri, proxy: Option<&HeaderValue>) -> Vec<Configured> {
        let signatures: Vec<_> =
            logins.iter().map(|login| Arc::new(Signature::new(login.username, login.secret))).collect();
        // Before anything is signed with them, so that every response that repeats them is recognised.
        self.secrets.replace(signatures.clone(), proxy.and_then(echo_of_proxy).map(Arc::new));
        self.slots.retain(|slot| slot.strong_count() > 0);
        let slot = |(login, signature): (&Login<'_>, Arc<Signature>)| {
            let Account { name, sid, .. } = login.account;
            let bounds = Bounds { name: Arc::clone(name), sid: sid.clone(), upstream: upstream.clone() };
            if let Some(slot) = self.slots.iter().filter_map(Weak::upgrade).find(|slot| slot.bounds == bounds) {
                let old = slot.newest.swap(Arc::clone(&signature));
                let is_unchanged = old.authorization == signature.authorization;
                return Configured { credential: Credential(slot), is_unchanged };
            }
            let slot = Arc::new(Slot { bounds, newest: ArcSwap::new(signature) });
            self.slots.push(Arc::downgrade(&slot));
            Configured { credential: Credential(slot), is_unchanged: false }
        };
        logins.iter().zip(signatures).map(slot).collect()
    }

    /// All secrets that a response must not repeat.
    pub fn secrets(&self) -> Secrets {
        self.secrets.clone()
    }
}

fn echo_of_proxy(authorization: &HeaderValue) -> Option<Echo> {
    let basic = authorization.as_bytes().strip_prefix(b"Basic ")?;
    let pair = Zeroizing::new(BASE64_STANDARD.decode(basic).ok()?);
    let (_, password) = std::str::from_utf8(&pair).ok()?.split_once(':')?;
    Some(Echo::of_password(password, std::str::from_utf8(basic).ok()?))
}

/// The secrets that a response is searched for: those of all accounts, of the proxy, and the last that were replaced.
/// Clones share them.
#[derive(Clone, Default)]
pub struct Secrets(Arc<ArcSwap<Recognised>>);

#[derive(Default)]
struct Recognised {
    in_use: Vec<Arc<Signature>>,
    replaced: Vec<Arc<Echo>>,
    /// Those of all, and of the proxy.
    echoes: Echoes,
}

impl Secrets {
    /// The number of replaced secrets that are still recognised, because Twilio may accept them for a while.
    const MOST_REPLACED: usize = 8;

    fn replace(&self, in_use: Vec<Arc<Signature>>, proxy: Option<Arc<Echo>>) {
        let old = self.0.load();
        let is_known = |old: &Signature| in_use.iter().any(|new| new.authorization == old.authorization);
        let replaced = old.in_use.iter().filter(|old| !is_known(old)).map(|old| Arc::clone(&old.echo));
        let replaced: Vec<_> = replaced.chain(old.replaced.iter().cloned()).take(Self::MOST_REPLACED).collect();
        let echoes = in_use.iter().map(|signature| &signature.echo).chain(&proxy).chain(&replaced);
        let echoes = Echoes::new(echoes.cloned().collect());
        self.0.store(Arc::new(Recognised { in_use, replaced, echoes }));
    }
}

/// Whether Twilio rejects an account's credentials, since when, and with which status. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Rejection {
    episode: Episode,
    status: Arc<AtomicU16>,
}

impl Rejection {
    /// When the account was first rejected, unless it has been accepted since.
    pub fn since(&self) -> Option<Instant> {
        self.episode.since()
    }

    /// The status of Twilio's last rejection, 401 or 403; 0 if there was none.
    pub fn status(&self) -> u16 {
        self.status.load(Ordering::Relaxed)
    }

    /// Forgets a rejection at `now`, because the account has new credentials.
    pub fn clear(&self, now: Instant) {
        let _ = self.episode.is_over(now);
    }

    fn begins_or_goes_on(&self, account: &str, status: StatusCode, now: Instant) {
        let status = status.as_u16();
        // First, so that whoever sees the episode sees its status.
        self.status.store(status, Ordering::Relaxed);
        if self.episode.goes_on(now) {
            tracing::error!(
                %account,
                status,
                "Twilio rejects the account's credentials with {status}: check its key and secret"
            );
        }
    }

    fn is_over(&self, account: &str, now: Instant) {
        if let Some(took) = self.episode.is_over(now) {
            let rejected_for_ms = took.as_millis();
            tracing::info!(%account, rejected_for_ms, "Twilio accepts the account's credentials again");
        }
    }
}

/// What signing needs of an account.
#[derive(Clone)]
pub struct Signer {
    /// The credentials of its calls.
    pub credential: Credential,
    /// Whether Twilio rejects them.
    pub rejection: Rejection,
    /// Whether answers repeat them.
    pub echoes: Episode,
}

/// Makes [`Sign`] services.
#[derive(Clone)]
pub struct SignLayer {
    signers: PerAccount<Signer>,
    secrets: Secrets,
    metrics: Arc<Metrics>,
    clock: Clock,
}

impl SignLayer {
    /// Signs with each account's credential and records whether it is rejected. Withholds responses that repeat one of
    /// `secrets`, and counts them in `metrics`.
    pub fn new(signers: PerAccount<Signer>, secrets: Secrets, metrics: Arc<Metrics>, clock: Clock) -> Self {
        Self { signers, secrets, metrics, clock }
    }

    /// What a 401 or 403 means: the credentials are wrong, unless they are outdated.
    fn rejected(&self, status: StatusCode, signature: &Signature, account: &Account) -> GatewayError {
        let message = "Twilio rejects the gateway's credentials for this account; tell whoever operates the gateway";
        let cause = Cause::new(CauseKind::Status, status.as_u16().to_string());
        let error = GatewayError::new(Reason::UpstreamRejectedCredentials, message).with_upstream_cause(cause);
        let Signer { credential, rejection, .. } = self.signers.of(account);
        if credential.signature().authorization != signature.authorization {
            return error.with_retry(Retry::NothingSent);
        }
        rejection.begins_or_goes_on(&account.name, status, self.clock.now());
        error
    }

    /// Withholds a response that repeats what it was asked with, or any other secret of the gateway's towards Twilio. If
    /// it asks for fewer requests, it still does so, but without its body and whatever else could hold the secret.
    /// Otherwise nothing would limit the account's calls.
    fn withhold_echo(
        &self,
        answer: UpstreamResponse,
        signature: &Signature,
        account: &Account,
    ) -> Result<UpstreamResponse, GatewayError> {
        let secrets = self.secrets.0.load();
        // Unless it was replaced so long ago that it is no longer among them, which is rare.
        let with_its_own = (!secrets.echoes.contain(&signature.echo)).then(|| secrets.echoes.with(&signature.echo));
        let echoes = with_its_own.as_ref().unwrap_or(&secrets.echoes);
        let (name, episode, now) = (&*account.name, &self.signers.of(account).echoes, self.clock.now());
        if !echoes.are_in(&answer.headers, &answer.body) {
            if let Some(took) = episode.is_over(now) {
                let repeated_for_ms = took.as_millis();
                tracing::info!(account = name, repeated_for_ms, "answers no longer repeat the account's credentials");
            }
            return Ok(answer);
        }
        let labels = AccountLabels { account: ConfigLabel(Arc::clone(&account.name)) };
        self.metrics.credential_echoes.get_or_create(&labels).inc();
        if episode.goes_on(now) {
            tracing::error!(
                account = name,
                status = answer.status.as_u16(),
                "an answer repeated the account's credentials and was withheld: find out who answers at upstream.url, and replace them; said once until answers no longer do"
            );
        }
        let asks_to_wait = |status| match status {
            StatusCode::TOO_MANY_REQUESTS => true,
            StatusCode::SERVICE_UNAVAILABLE => answer.headers.contains_key(header::RETRY_AFTER),
            _ => false,
        };
        if asks_to_wait(answer.status) {
            return Ok(without_the_credential(&answer, echoes));
        }
        Err(GatewayError::new(
            Reason::UpstreamInvalid,
            "Twilio's answer repeated the gateway's credentials and was withheld; tell whoever operates the gateway",
        ))
    }
}

/// Whether an answer says that the credentials are bad. Twilio also answers 403 when an account may have no more custom
/// fields. That concerns the write, and the credentials are good.
fn rejects_credentials(operation: Operation, answer: &UpstreamResponse) -> bool {
    match answer.status {
        StatusCode::UNAUTHORIZED => true,
        // A body that is not Twilio's JSON has been removed.
        StatusCode::FORBIDDEN => operation != Operation::FieldsWrite || answer.body.is_empty(),
        _ => false,
    }
}

/// What remains of a withheld answer that asks to stop sending: its status, and those of its numbers and dates that are
/// not part of a credential.
fn without_the_credential(answer: &UpstreamResponse, echoes: &Echoes) -> UpstreamResponse {
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
        let (account, operation) = (Arc::clone(&call.team.account), call.endpoint.operation);
        let signature = self.layer.signers.of(&account).credential.signature();
        let answer = self.inner.call(SignedCall { call, authorization: signature.authorization.clone() });
        let layer = self.layer.clone();
        Box::pin(async move {
            let answer = answer.await?;
            if rejects_credentials(operation, &answer) {
                return Err(layer.rejected(answer.status, &signature, &account));
            }
            if answer.status.is_success() {
                layer.signers.of(&account).rejection.is_over(&account.name, layer.clock.now());
            }
            layer.withhold_echo(answer, &signature, &account)
        })
    }
}

#[cfg(test)]
mod tests;
