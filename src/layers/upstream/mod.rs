//! The last layer: one attempt over HTTP/1.1, with a time limit and a size limit.
//!
//! It builds its own request, and passes on only the response headers that a layer above reads or a client may see. It
//! follows no redirect, keeps no cookie, and repeats no request that may have been sent. The only secret that it knows
//! is the header value in the call.
//!
//! It accepts bodies in gzip or without coding; what it passes on is always decoded.
//!
//! HTTP/2 is not offered to the upstream: hyper would keep a single connection to a host, and would use a dead one
//! until a ping times out. HTTP/1.1 connections are pooled.
//!
//! | file | what happens there |
//! | --- | --- |
//! | `dial` | a name becomes a TCP connection, to the first of its addresses that connects |
//! | `egress` | directly, or through a forward proxy |
//! | `pool` | connections, kept from one call to the next |
//! | `coding` | gzip |
//! | `answers` | what a success must say |
//! | `invalid` | the error of a response that cannot be used |
//! | `cause` | what an attempt failed for |

mod answers;
mod cause;
mod coding;
mod dial;
mod egress;
mod invalid;
mod pool;

use std::borrow::Cow;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, Uri, header};
use http_body::Body;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::TrySendError;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::dns::GaiResolver;
use tower::Service;

use self::coding::{Coding, CodingError};
pub use self::dial::{Dialer, Tcp};
pub use self::egress::Proxy;
use self::egress::{Egress, ProxyError};
use self::invalid::{invalid, retry_of};
use self::pool::{ConnectError, Pool};
use crate::core::cause::{Cause, CauseKind};
use crate::core::clock::{Clock, Instant};
use crate::core::error::{GatewayError, Reason, Retry, whole_seconds};
use crate::metrics::{Ending, Metrics};
use crate::request::call::{SignedCall, UpstreamCall, UpstreamResponse};
use crate::semantics::trace::{SpanId, TRACEPARENT, TRACESTATE, TraceContext};
use crate::semantics::upstream_headers;
use crate::trust::{self, TrustError};
use crate::twilio::endpoint::{self, CacheClass, Endpoint};
use crate::twilio::page::Envelope;

type Connector = HttpsConnector<Egress<Dialer<GaiResolver, Tcp>>>;

/// Response headers that this layer passes on, in addition to those about the rate limit.
const FORWARDED_RESPONSE_HEADERS: [HeaderName; 9] = [
    header::CONTENT_TYPE,
    header::CACHE_CONTROL,
    header::AGE,
    header::DATE,
    header::EXPIRES,
    header::VARY,
    header::RETRY_AFTER,
    HeaderName::from_static("twilio-request-id"),
    HeaderName::from_static("twilio-concurrent-requests"),
];

/// Time limit for the body of a 401, 403 or 429.
const LONGEST_REFUSAL: Duration = Duration::from_secs(5);

/// The upstream, and the limits of calls to it.
#[derive(Debug, Clone)]
pub struct Target {
    /// Scheme, host and port.
    pub url: Uri,
    /// For DNS, TCP, a proxy and TLS together.
    pub connect_timeout: Duration,
    /// For one attempt, connecting included.
    pub attempt_timeout: Duration,
    /// Largest body in bytes, coded or decoded.
    pub max_response: u64,
    /// The forward proxy, if there is one.
    pub proxy: Option<Proxy>,
    /// An extra trust root.
    pub ca_file: Option<std::path::PathBuf>,
}

/// Sends signed calls.
#[derive(Debug, Clone)]
pub struct Upstream {
    // Shared, because every layer above clones the layers below it.
    pool: Arc<Pool<Connector, <Connector as Service<Uri>>::Response>>,
    target: Arc<Target>,
    host: HeaderValue,
    metrics: Arc<Metrics>,
    clock: Clock,
}

impl Upstream {
    /// A client with its own connection pool.
    ///
    /// # Errors
    ///
    /// When the extra trust root cannot be used.
    pub fn new(target: Target, metrics: Arc<Metrics>, clock: Clock) -> Result<Self, TrustError> {
        let egress = Egress::new(Dialer::of_the_system(), target.proxy.clone());
        let speaks_tls = target.url.scheme_str() == Some("https");
        let https = HttpsConnectorBuilder::new()
            .with_tls_config(trust::client_config(speaks_tls, target.ca_file.as_deref())?)
            .https_or_http()
            .enable_http1()
            .wrap_connector(egress);
        let pool = Pool::new(https, target.url.clone(), target.connect_timeout, clock);
        Ok(Self { pool: Arc::new(pool), host: host(&target.url), target: Arc::new(target), metrics, clock })
    }

    async fn attempt(self, signed: SignedCall) -> Result<UpstreamResponse, GatewayError> {
        let SignedCall { call, authorization } = signed;
        let mut request = self.request(&call, authorization)?;
        let span = call.context.trace.as_deref().map(|trace| hand_on(trace, request.headers_mut()));
        let begun = self.clock.now();
        // Before its end, which the client may not wait for.
        let number = call.attempt_begins(begun, span);
        call.team.usage.attempted();
        let mut result = self.exchange(request, begun, &call).await;
        if let Ok(answer) = &mut result
            && let Err(error) = answers::check(&call, answer, self.clock.wall_now())
        {
            result = Err(error);
        }
        let ended = self.clock.now();
        let took = ended - begun;
        let outcome = result.as_ref().map(|answer| answer.status.as_u16()).map_err(GatewayError::reason);
        let ending = outcome.map_or_else(|reason| Ending::Reason(reason.as_str()), Ending::Status);
        call.context.attempt_ended(number, ended, outcome);
        self.metrics.attempted(&call.team.account.name, call.endpoint.operation, ending, took);
        tracing::debug!(
            account = %call.team.account.name,
            operation = call.endpoint.operation.as_str(),
            key = %call.key.short(),
            ending = ?ending,
            took_ms = took.as_millis(),
            "upstream attempt"
        );
        result
    }

    fn request(&self, call: &UpstreamCall, authorization: HeaderValue) -> Result<Request<Full<Bytes>>, GatewayError> {
        const JSON: HeaderValue = HeaderValue::from_static("application/json");
        const AGENT: HeaderValue = HeaderValue::from_static(concat!("insights-gateway/", env!("CARGO_PKG_VERSION")));
        let UpstreamCall { endpoint, path, parameters, .. } = call;
        let target = match (path, &**parameters) {
            (Cow::Borrowed(path), "") => Ok(PathAndQuery::from_static(path)),
            (path, "") => PathAndQuery::try_from(&**path),
            (path, parameters) => PathAndQuery::try_from(format!("{path}?{parameters}")),
        };
        let target = target.map_err(|error| {
            GatewayError::new(Reason::BadRequest, "the query string is too long or malformed").with_cause(error)
        })?;
        let mut request = Request::new(Full::new(call.body.clone()));
        *request.uri_mut() = Uri::from(target);
        let headers = request.headers_mut();
        headers.insert(header::HOST, self.host.clone());
        headers.insert(header::AUTHORIZATION, authorization);
        headers.insert(header::ACCEPT, JSON);
        headers.insert(header::ACCEPT_ENCODING, coding::ACCEPTED);
        headers.insert(header::USER_AGENT, AGENT);
        if endpoint.body != endpoint::Body::None {
            headers.insert(header::CONTENT_TYPE, JSON);
        }
        for (name, value) in call.headers.iter().flat_map(|sent| sent.iter()) {
            headers.append(name, value.clone());
        }
        *request.method_mut() = endpoint.method.clone();
        Ok(request)
    }

    async fn exchange(
        &self,
        mut request: Request<Full<Bytes>>,
        begun: Instant,
        call: &UpstreamCall,
    ) -> Result<UpstreamResponse, GatewayError> {
        let limit = self.target.attempt_timeout.min(call.deadline.saturating_duration_since(begun));
        let until = begun + limit;
        let too_late = || {
            let message = format!("Twilio did not answer within {} ms", limit.as_millis());
            let cause = Cause::new(CauseKind::Timeout, format!("no answer within {} ms", limit.as_millis()));
            let error = GatewayError::new(Reason::UpstreamTimeout, message).with_retry(Retry::IfRepeatable);
            error.with_upstream_cause(cause)
        };
        loop {
            let taken = tokio::time::timeout_at(until, self.pool.take()).await.map_err(|_| too_late())?;
            let (mut link, used) = taken.map_err(|error| unreachable(error, &self.target))?;
            let exchanged = link.drive(async |sender| {
                let response = sender.try_send_request(request).await?;
                Ok(self.receive(response, call.endpoint).await)
            });
            let failed = match tokio::time::timeout_at(until, exchanged).await {
                Ok(Ok(Err(error))) if used && is_cut(&error) => error,
                Ok(Ok(answer)) => {
                    self.pool.put_back(link);
                    return answer;
                }
                Ok(Err(error)) => match unsent(error, used, &self.target.url) {
                    Ok(same) => {
                        request = same;
                        continue;
                    }
                    Err(error) => error,
                },
                Err(_) => too_late(),
            };
            if !used {
                return Err(failed);
            }
            // The connection has most likely ended while it was idle, and so have the others.
            self.pool.discard_idle();
            return Err(failed.on_kept_connection());
        }
    }

    async fn receive(
        &self,
        response: Response<Incoming>,
        endpoint: &Endpoint,
    ) -> Result<UpstreamResponse, GatewayError> {
        let (head, body) = response.into_parts();
        let (status, mut headers) = (head.status, forwarded_headers(&head.headers, endpoint));
        if status == StatusCode::NOT_MODIFIED {
            // No call has a condition, and a 304 has no body.
            return Err(invalid("Twilio answered 304 (Not Modified) to a request without a condition"));
        }
        if status.is_redirection() {
            return Err(invalid(format!("Twilio answered {} with a redirect, which is not followed", status.as_u16())));
        }
        let wall = self.clock.wall(self.clock.now());
        let retry_after = upstream_headers::retry_after(&head.headers, wall);
        let told = match status {
            // The account is paused for the same time.
            StatusCode::TOO_MANY_REQUESTS => upstream_headers::pause(&head.headers, wall),
            // `answers` reads it, more strictly.
            status if status.is_success() && matches!(endpoint.cache, CacheClass::Job | CacheClass::Status) => None,
            _ => retry_after.filter(|_| headers.contains_key(header::RETRY_AFTER)),
        };
        if let Some(wait) = told {
            // In a form that every client understands: one line, whole seconds, independent of the upstream's clock.
            headers.insert(header::RETRY_AFTER, whole_seconds(wait).as_secs().into());
        }
        let reading = self.read(status, &head.headers, body);
        let read = match status {
            // Their status alone is enough, so their bodies get less time than others.
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::TOO_MANY_REQUESTS => {
                let limit = (self.target.attempt_timeout / 4).min(LONGEST_REFUSAL);
                let too_late = || Err(invalid("Twilio's refusal did not end in time"));
                tokio::time::timeout(limit, reading).await.unwrap_or_else(|_| too_late())
            }
            _ => reading.await,
        };
        match read {
            Ok((body, Envelope { next_token })) => Ok(UpstreamResponse { status, headers, body, next_token }),
            Err(_) if status == StatusCode::TOO_MANY_REQUESTS => {
                headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
                let message = "Twilio limits the account's requests; come back when Retry-After says";
                let body = GatewayError::new(Reason::UpstreamRateLimit, message).to_body();
                Ok(UpstreamResponse { status, headers, body, next_token: None })
            }
            Err(_) if matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) => {
                Ok(UpstreamResponse { status, headers, body: Bytes::new(), next_token: None })
            }
            Err(error) => Err(match retry_after.filter(|_| status.is_server_error()) {
                Some(wait) => error.with_retry_after(wait),
                None => error,
            }),
        }
    }

    /// A complete body, decoded, and what its content says.
    async fn read(
        &self,
        status: StatusCode,
        headers: &HeaderMap,
        body: Incoming,
    ) -> Result<(Bytes, Envelope), GatewayError> {
        let undecodable = |error: CodingError| {
            let retry = if matches!(error, CodingError::TooLarge) { Retry::Never } else { retry_of(status) };
            let message = format!("Twilio answered {} with something that cannot be decoded: {error}", status.as_u16());
            invalid(message).with_retry(retry).with_cause(error)
        };
        let coding = Coding::of(headers).map_err(undecodable)?;
        let coded = self.collect(body).await?;
        let body = coding.decode(coded, self.target.max_response).await.map_err(undecodable)?;
        match Envelope::read(&body) {
            Some(envelope) => Ok((body, envelope)),
            None => {
                let message = format!("Twilio answered {} with something that is not JSON", status.as_u16());
                Err(invalid(message).with_retry(retry_of(status)))
            }
        }
    }
}

/// Whether the connection ended, or stopped to speak HTTP, in the middle of a response.
fn is_cut(error: &GatewayError) -> bool {
    error.cause().is_some_and(|cause| cause.is::<hyper::Error>())
}

fn unreachable(error: ConnectError, target: &Target) -> GatewayError {
    let cause = cause::of_connecting(&error, &target.url, target.connect_timeout);
    let message = match &error {
        ConnectError::Failed(error) => error.downcast_ref().map(ProxyError::for_clients),
        ConnectError::TooSlow => None,
    };
    let message =
        message.map_or_else(|| "cannot connect to Twilio".to_owned(), |why| format!("cannot connect to Twilio: {why}"));
    let unreachable = GatewayError::new(Reason::UpstreamUnreachable, message).with_retry(Retry::NothingSent);
    unreachable.with_upstream_cause(cause).with_cause(error)
}

/// The request, if nothing of it was sent because the connection had ended while it was idle.
fn unsent(
    mut error: TrySendError<Request<Full<Bytes>>>,
    used: bool,
    upstream: &Uri,
) -> Result<Request<Full<Bytes>>, GatewayError> {
    let request = error.take_message();
    let was_sent = request.is_none();
    request.filter(|_| used).ok_or_else(|| {
        let error = error.into_error();
        let (reason, message) = match error.is_parse() {
            true => (Reason::UpstreamInvalid, "Twilio's answer is not HTTP"),
            false => (Reason::UpstreamUnreachable, "the connection to Twilio broke before an answer came"),
        };
        // The upstream may have received what was sent.
        let retry = if was_sent { Retry::IfRepeatable } else { Retry::NothingSent };
        let cause = cause::of_exchange(&error, upstream, "the connection broke before an answer came");
        GatewayError::new(reason, message).with_retry(retry).with_upstream_cause(cause).with_cause(error)
    })
}

/// The value of `Host`, without the scheme's default port (RFC 9110 section 4.2).
fn host(url: &Uri) -> HeaderValue {
    let default = if url.scheme_str() == Some("https") { 443 } else { 80 };
    let host = url.host().unwrap_or_default();
    let host = match url.port_u16().filter(|port| *port != default) {
        Some(port) => HeaderValue::try_from(format!("{host}:{port}")),
        None => HeaderValue::try_from(host),
    };
    // The host of a URI is always a valid header value.
    host.unwrap_or_else(|_| HeaderValue::from_static(""))
}

/// Passes the trace on to Twilio, with a new span id for this attempt, which is returned.
fn hand_on(trace: &TraceContext, headers: &mut HeaderMap) -> SpanId {
    let span = SpanId::random();
    if let Some(parent) = trace.traceparent(span) {
        headers.insert(TRACEPARENT, parent);
    }
    if let Some(state) = &trace.state {
        headers.insert(TRACESTATE, state.clone());
    }
    span
}

/// The headers that go further. Those that `Connection` nominates were for this hop (RFC 9110 section 7.6.1).
fn forwarded_headers(received: &HeaderMap, endpoint: &Endpoint) -> HeaderMap {
    let nominated = |name: &HeaderName| {
        let lists = received.get_all(header::CONNECTION).into_iter().filter_map(|value| value.to_str().ok());
        lists.flat_map(|list| list.split(',')).any(|word| word.trim().eq_ignore_ascii_case(name.as_str()))
    };
    let is_forwarded = |name: &HeaderName| {
        FORWARDED_RESPONSE_HEADERS.contains(name)
            || upstream_headers::RATE_LIMIT.contains(name)
            || endpoint.returns.contains(&name.as_str())
    };
    let mut headers = HeaderMap::with_capacity(FORWARDED_RESPONSE_HEADERS.len());
    // Every line, because the strictest of several directives may be in the last.
    for (name, value) in received {
        if is_forwarded(name) && !nominated(name) {
            headers.append(name.clone(), value.clone());
        }
    }
    headers
}

impl Upstream {
    /// A complete body in a buffer of its own size: it is kept for long, so it must not keep a larger buffer in memory.
    async fn collect(&self, mut body: Incoming) -> Result<Bytes, GatewayError> {
        let limit = self.target.max_response;
        let too_large = || invalid(format!("Twilio's answer is larger than upstream.max_response, {limit} bytes"));
        let declared = body.size_hint().lower();
        if declared > limit {
            return Err(too_large());
        }
        let mut whole = Vec::with_capacity(usize::try_from(declared).unwrap_or_default());
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| {
                invalid("Twilio's answer was cut").with_retry(Retry::IfRepeatable).with_cause(error)
            })?;
            // Trailers are not used.
            let Ok(data) = frame.into_data() else { continue };
            if (whole.len() + data.len()) as u64 > limit {
                return Err(too_large());
            }
            whole.extend_from_slice(&data);
        }
        whole.shrink_to_fit();
        Ok(whole.into())
    }
}

impl Service<SignedCall> for Upstream {
    type Response = UpstreamResponse;
    type Error = GatewayError;
    type Future = BoxFuture<'static, Result<UpstreamResponse, GatewayError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), GatewayError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, signed: SignedCall) -> Self::Future {
        Box::pin(self.clone().attempt(signed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_has_a_port_unless_it_is_the_schemes_default() {
        for (url, named) in [
            ("https://insights.twilio.com", "insights.twilio.com"),
            ("https://insights.twilio.com:443/", "insights.twilio.com"),
            ("https://insights.twilio.com:80", "insights.twilio.com:80"),
            ("http://127.0.0.1:80", "127.0.0.1"),
            ("http://127.0.0.1:443", "127.0.0.1:443"),
            ("http://[::1]:4010", "[::1]:4010"),
        ] {
            assert_eq!(host(&Uri::from_static(url)), named, "{url}");
        }
    }
}
