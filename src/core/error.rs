//! Why the gateway itself could not answer or refused to.
//!
//! The reasons are a closed list, each with one status. An error carries its cause for the log, and whether another
//! attempt may help. One place decides how it becomes HTTP: `layers::rescue`.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use serde::Serialize;

use crate::core::cause::Cause as UpstreamCause;
use crate::core::outcome::Outcome;
use crate::core::set_once::Listed;

/// One word for each way in which the gateway refuses or fails. These are stable: clients and alerts match on them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// The body is not JSON, or ambiguous JSON.
    InvalidJson,
    /// Valid JSON, but not a query.
    InvalidQuery,
    /// Ambiguous framing, a missing `Host`, or a malformed target.
    BadRequest,
    /// No token, or an unknown one.
    Unauthenticated,
    /// The team may not use this operation.
    OperationNotAllowed,
    /// The team may not see a member that the query names.
    FieldNotAllowed,
    /// A web page of another site sent the request, and the gateway demands no token.
    OriginNotAllowed,
    /// The path is not one of Twilio Insights' paths.
    NotFound,
    /// The path exists, but not with this method.
    MethodNotAllowed,
    /// The request took too long to arrive.
    ClientTimeout,
    /// The body is larger than `server.max_body`.
    BodyTooLarge,
    /// The head is too large.
    HeadersTooLarge,
    /// The team sends more requests than its `requests` rate allows.
    TeamRateLimit,
    /// No upstream token is free before the caller's deadline.
    Deadline,
    /// No connection, or a connection that broke.
    UpstreamUnreachable,
    /// The response is not JSON, cut short, too large, or a redirect.
    UpstreamInvalid,
    /// Twilio does not accept the account's credentials.
    UpstreamRejectedCredentials,
    /// Twilio's own rate limit, in a response whose body cannot be passed on.
    UpstreamRateLimit,
    /// The account's queue is full.
    QueueFull,
    /// The account's circuit is open.
    CircuitOpen,
    /// The gateway has reached one of its own limits.
    Overloaded,
    /// The gateway is shutting down.
    Draining,
    /// The upstream did not answer in time.
    UpstreamTimeout,
    /// The client sent `only-if-cached`, and no stored response can be served.
    OnlyIfCached,
    /// A defect of the gateway itself.
    Internal,
}

impl Listed for Reason {
    const ALL: &'static [Self] = &Self::ALL;

    fn place(self) -> u8 {
        self as u8
    }
}

impl Reason {
    /// All reasons, in declaration order.
    pub const ALL: [Self; 25] = [
        Self::InvalidJson,
        Self::InvalidQuery,
        Self::BadRequest,
        Self::Unauthenticated,
        Self::OperationNotAllowed,
        Self::FieldNotAllowed,
        Self::OriginNotAllowed,
        Self::NotFound,
        Self::MethodNotAllowed,
        Self::ClientTimeout,
        Self::BodyTooLarge,
        Self::HeadersTooLarge,
        Self::TeamRateLimit,
        Self::Deadline,
        Self::UpstreamUnreachable,
        Self::UpstreamInvalid,
        Self::UpstreamRejectedCredentials,
        Self::UpstreamRateLimit,
        Self::QueueFull,
        Self::CircuitOpen,
        Self::Overloaded,
        Self::Draining,
        Self::UpstreamTimeout,
        Self::OnlyIfCached,
        Self::Internal,
    ];

    /// The word in `params.reason`, logs and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::InvalidJson => "invalid_json",
            Self::InvalidQuery => "invalid_query",
            Self::BadRequest => "bad_request",
            Self::Unauthenticated => "unauthenticated",
            Self::OperationNotAllowed => "operation_not_allowed",
            Self::FieldNotAllowed => "field_not_allowed",
            Self::OriginNotAllowed => "origin_not_allowed",
            Self::NotFound => "not_found",
            Self::MethodNotAllowed => "method_not_allowed",
            Self::ClientTimeout => "client_timeout",
            Self::BodyTooLarge => "body_too_large",
            Self::HeadersTooLarge => "headers_too_large",
            Self::TeamRateLimit => "team_rate_limit",
            Self::Deadline => "deadline",
            Self::UpstreamUnreachable => "upstream_unreachable",
            Self::UpstreamInvalid => "upstream_invalid",
            Self::UpstreamRejectedCredentials => "upstream_rejected_credentials",
            Self::UpstreamRateLimit => "upstream_rate_limit",
            Self::QueueFull => "queue_full",
            Self::CircuitOpen => "circuit_open",
            Self::Overloaded => "overloaded",
            Self::Draining => "draining",
            Self::UpstreamTimeout => "upstream_timeout",
            Self::OnlyIfCached => "only_if_cached",
            Self::Internal => "internal",
        }
    }

    /// The HTTP status.
    pub const fn status(self) -> StatusCode {
        match self {
            Self::InvalidJson | Self::InvalidQuery | Self::BadRequest => StatusCode::BAD_REQUEST,
            Self::Unauthenticated => StatusCode::UNAUTHORIZED,
            Self::OperationNotAllowed | Self::FieldNotAllowed | Self::OriginNotAllowed => StatusCode::FORBIDDEN,
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::ClientTimeout => StatusCode::REQUEST_TIMEOUT,
            Self::BodyTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::HeadersTooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::TeamRateLimit | Self::Deadline | Self::UpstreamRateLimit => StatusCode::TOO_MANY_REQUESTS,
            Self::UpstreamUnreachable | Self::UpstreamInvalid | Self::UpstreamRejectedCredentials => {
                StatusCode::BAD_GATEWAY
            }
            Self::QueueFull | Self::CircuitOpen | Self::Overloaded | Self::Draining => StatusCode::SERVICE_UNAVAILABLE,
            Self::UpstreamTimeout | Self::OnlyIfCached => StatusCode::GATEWAY_TIMEOUT,
            Self::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// Twilio's error code: 20000 + status, except for the two that Twilio numbers differently.
    pub const fn code(self) -> u32 {
        match self.status() {
            StatusCode::UNAUTHORIZED => 20003,
            StatusCode::METHOD_NOT_ALLOWED => 20004,
            status => 20000 + status.as_u16() as u32,
        }
    }

    /// Whether a call that failed for this reason was sent, or tried to be.
    pub fn is_of_an_attempt(self) -> bool {
        matches!(
            self,
            Self::UpstreamInvalid
                | Self::UpstreamRateLimit
                | Self::UpstreamRejectedCredentials
                | Self::UpstreamTimeout
                | Self::UpstreamUnreachable
        )
    }

    /// Whether a call that failed for this reason got no token of its account, and was not sent.
    pub fn is_of_the_budget(self) -> bool {
        matches!(self, Self::CircuitOpen | Self::Deadline | Self::QueueFull | Self::TeamRateLimit)
    }

    /// Whether the caller has to change something.
    pub fn is_callers(self) -> bool {
        self.status().is_client_error()
    }

    /// The outcome of a request that ends for this reason.
    pub fn outcome(self) -> Outcome {
        match self {
            Self::OnlyIfCached | Self::QueueFull | Self::Overloaded | Self::Draining => Outcome::Refused,
            reason if reason.is_callers() => Outcome::Refused,
            _ => Outcome::Failed,
        }
    }
}

/// Whether the same call may be sent again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    /// No: it would end the same way.
    Never,
    /// Yes, whatever the call is: nothing has reached the upstream.
    NothingSent,
    /// Yes, if the call is safe to repeat.
    IfRepeatable,
    /// Once, if the call is safe to repeat.
    OnceIfRepeatable,
}

/// A wait as `Retry-After` states it: rounded up, at least 1 s, so that a client that returns after it is not too
/// early.
pub fn whole_seconds(wait: Duration) -> Duration {
    Duration::from_secs((wait.as_secs() + u64::from(wait.subsec_nanos() > 0)).max(1))
}

type Cause = Arc<dyn std::error::Error + Send + Sync>;

/// A refusal or failure of the gateway itself. Cheap to clone: collapsed requests share one.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub struct GatewayError {
    reason: Reason,
    message: String,
    retry: Retry,
    retry_after: Option<Duration>,
    on_kept_connection: bool,
    abandoned: bool,
    allow: Option<Box<str>>,
    upstream: Option<Arc<UpstreamCause>>,
    #[source]
    cause: Option<Cause>,
}

impl GatewayError {
    /// An error with a message for the caller: what happened and what to do. Never a secret, never a query.
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self {
            reason,
            message: message.into(),
            retry: Retry::Never,
            retry_after: None,
            on_kept_connection: false,
            abandoned: false,
            allow: None,
            upstream: None,
            cause: None,
        }
    }

    /// The call was given up, because no client waited for it any more. A client that joins it at that moment has to
    /// start again.
    pub fn abandoned() -> Self {
        Self { abandoned: true, ..Self::new(Reason::Deadline, "no client waits for this call any more") }
    }

    /// The call's turn would come after its deadline.
    pub fn too_late(wait: Duration) -> Self {
        let wait = whole_seconds(wait);
        let message = format!(
            "the account's next free request is {} s away, later than this request may wait; come back then",
            wait.as_secs()
        );
        Self::new(Reason::Deadline, message).with_retry_after(wait)
    }

    /// The call has no time left to wait for anything. It would be sent after this `wait` if it had.
    pub fn without_time(wait: Duration) -> Self {
        let wait = whole_seconds(wait);
        let message = format!(
            "this request may not wait for Twilio, and no answer is stored; come back in {} s and let it wait longer",
            wait.as_secs()
        );
        Self::new(Reason::Deadline, message).with_retry_after(wait)
    }

    /// Adds to the message what this caller can do instead.
    pub fn with_advice(self, advice: &str) -> Self {
        Self { message: self.message + advice, ..self }
    }

    /// Sets whether another attempt may help.
    pub fn with_retry(self, retry: Retry) -> Self {
        Self { retry, ..self }
    }

    /// Sets the time after which the caller should return.
    pub fn with_retry_after(self, wait: Duration) -> Self {
        Self { retry_after: Some(wait), ..self }
    }

    /// Notes that it happened on a connection that had served earlier calls.
    pub fn on_kept_connection(self) -> Self {
        Self { on_kept_connection: true, ..self }
    }

    /// Sets the methods that the path supports.
    pub fn with_allow(self, methods: impl Into<Box<str>>) -> Self {
        Self { allow: Some(methods.into()), ..self }
    }

    /// Sets the cause. It appears only in the log.
    pub fn with_cause(self, cause: impl std::error::Error + Send + Sync + 'static) -> Self {
        Self { cause: Some(Arc::new(cause)), ..self }
    }

    /// Sets the cause of a failed upstream attempt. Only operators see it.
    pub fn with_upstream_cause(self, cause: UpstreamCause) -> Self {
        Self { upstream: Some(Arc::new(cause)), ..self }
    }

    /// Whether the call was given up because no client waited for it.
    pub fn is_abandoned(&self) -> bool {
        self.abandoned
    }

    /// Whether it happened on a connection that had served earlier calls. Such a connection may have been closed
    /// meanwhile, which says nothing of the upstream.
    pub fn is_on_kept_connection(&self) -> bool {
        self.on_kept_connection
    }

    /// The reason, of the closed list.
    pub fn reason(&self) -> Reason {
        self.reason
    }

    /// The text for the caller.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// Whether another attempt may help.
    pub fn retry(&self) -> Retry {
        self.retry
    }

    /// The methods that the path supports, for a 405.
    pub fn allow(&self) -> Option<&str> {
        self.allow.as_deref()
    }

    /// The cause, if it is known.
    pub fn cause(&self) -> Option<&(dyn std::error::Error + Send + Sync + 'static)> {
        self.cause.as_deref()
    }

    /// The cause of the failed upstream attempt, if there was one.
    pub fn upstream_cause(&self) -> Option<&UpstreamCause> {
        self.upstream.as_deref()
    }

    /// When to return, if that is known.
    pub fn retry_after(&self) -> Option<Duration> {
        self.retry_after
    }
}

impl GatewayError {
    /// The error in Twilio's format (the `Error` schema of Insights v3), so that Twilio's SDKs can parse it. Its
    /// `params` say that the gateway made it, and why.
    pub fn to_body(&self) -> Bytes {
        let body = ErrorBody {
            code: self.reason.code(),
            message: &self.message,
            http_status_code: self.reason.status().as_u16(),
            user_error: self.reason.is_callers(),
            params: Params { source: "gateway", reason: self.reason.as_str() },
        };
        // Strings and numbers always serialise.
        serde_json::to_vec(&body).unwrap_or_default().into()
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ErrorBody<'a> {
    code: u32,
    message: &'a str,
    http_status_code: u16,
    user_error: bool,
    params: Params,
}

#[derive(Serialize)]
struct Params {
    source: &'static str,
    reason: &'static str,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_the_contracts_status_and_code() {
        let of = |reason: Reason| (reason.status().as_u16(), reason.code());
        assert_eq!(of(Reason::Unauthenticated), (401, 20003));
        assert_eq!(of(Reason::MethodNotAllowed), (405, 20004));
        assert_eq!(of(Reason::TeamRateLimit), (429, 20429));
        assert_eq!(of(Reason::OnlyIfCached), (504, 20504));
        let words: std::collections::HashSet<_> = Reason::ALL.iter().map(|r| r.as_str()).collect();
        assert_eq!(words.len(), Reason::ALL.len());
    }
}
