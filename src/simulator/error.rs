//! Error responses in Twilio's format.
//!
//! An [`ApiError`] is a complete response: status, code, message and its headers. This file decides nothing: the caller
//! chooses the constructor that fits.

use http::{HeaderName, HeaderValue, StatusCode};
use serde_json::{Value, json};

/// The code of every 400. Twilio publishes none for this API; 20001 is its general code for invalid parameters.
pub const BAD_REQUEST: u32 = 20001;

/// An error response: the caller's mistake, or a scripted error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiError {
    /// The HTTP status.
    pub status: StatusCode,
    /// Twilio's code for it.
    pub code: u32,
    /// One sentence for people.
    pub message: String,
    /// The headers of this kind of error.
    pub headers: Vec<(HeaderName, HeaderValue)>,
}

impl ApiError {
    fn new(status: StatusCode, code: u32, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into(), headers: Vec::new() }
    }

    /// 400: the request is wrong, and `message` says how.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, BAD_REQUEST, message)
    }

    /// 401: no credentials, or not those of the simulator.
    pub fn unauthorized() -> Self {
        let error = Self::new(
            StatusCode::UNAUTHORIZED,
            20003,
            "Authentication failed: use HTTP Basic with any user name and the password \"secret\"",
        );
        error
            .with_header(http::header::WWW_AUTHENTICATE, HeaderValue::from_static("Basic realm=\"Insights simulator\""))
    }

    /// 404: no such resource.
    pub fn not_found() -> Self {
        Self::new(StatusCode::NOT_FOUND, 20404, "The requested resource was not found")
    }

    /// 403: all slots for custom fields are in use.
    pub fn no_slots() -> Self {
        Self::new(StatusCode::FORBIDDEN, 20403, "The account has no slots left for custom fields of this category")
    }

    /// 409: the name of a custom field is in use.
    pub fn name_taken(message: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, 20052, message)
    }

    /// 412: the custom field has changed since the caller read it.
    pub fn precondition_failed() -> Self {
        Self::new(StatusCode::PRECONDITION_FAILED, 20412, "If-Match does not name the current ETag: fetch it again")
    }

    /// 422: an idempotency key that was used for another request.
    pub fn key_reused() -> Self {
        let message = "This Idempotency-Key was used with another request: send a new key";
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, 20422, message)
    }

    /// 405: the resource exists, with the methods in `allow`.
    pub fn method_not_allowed(allow: &'static str) -> Self {
        let error = Self::new(StatusCode::METHOD_NOT_ALLOWED, 20004, "This resource does not know the method");
        error.with_header(http::header::ALLOW, HeaderValue::from_static(allow))
    }

    /// 408: the body did not arrive in time.
    pub fn slow_body() -> Self {
        Self::new(StatusCode::REQUEST_TIMEOUT, 20408, "The request body took too long")
    }

    /// 415: a form where JSON was expected.
    pub fn unsupported_media_type() -> Self {
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, 20422, "The request body must be application/json")
    }

    /// 429, to which the limiter adds its headers.
    pub fn too_many_requests() -> Self {
        Self::new(StatusCode::TOO_MANY_REQUESTS, 20429, "Too Many Requests")
    }

    /// 500: the simulator itself failed.
    pub fn internal() -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, 20500, "The simulator could not finish this request")
    }

    /// The status that a script asks for, with the code of Twilio's general errors.
    pub fn scripted(status: StatusCode) -> Self {
        let code = match status.as_u16() {
            401 => 20003,
            405 => 20004,
            other => 20000 + u32::from(other),
        };
        Self::new(status, code, status.canonical_reason().unwrap_or("Scripted answer"))
    }

    /// The same error with one more header.
    pub fn with_header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.push((name, value));
        self
    }

    /// The JSON body.
    pub fn body(&self) -> Value {
        json!({
            "code": self.code,
            "message": self.message,
            "httpStatusCode": self.status.as_u16(),
            "userError": self.status.is_client_error(),
            "params": {},
        })
    }
}

/// A part of the caller's own text that is safe to quote in a message: it is never longer than a line.
pub fn quoted(text: &str) -> String {
    const LONGEST: usize = 60;
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{:?}…", &text[..end]),
        None => format!("{text:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_have_the_documented_members() {
        let body = ApiError::bad_request("no").body();
        assert_eq!(
            body,
            json!({"code": 20001, "message": "no", "httpStatusCode": 400, "userError": true, "params": {}})
        );
        assert_eq!(ApiError::scripted(StatusCode::BAD_GATEWAY).body()["code"], 20502);
        assert_eq!(ApiError::scripted(StatusCode::BAD_GATEWAY).body()["userError"], false);
        assert_eq!(ApiError::scripted(StatusCode::UNAUTHORIZED).code, 20003);
    }

    #[test]
    fn quotes_are_short_whatever_the_text() {
        assert_eq!(quoted("a\"b"), "\"a\\\"b\"");
        assert!(quoted(&"é".repeat(10_000)).chars().count() < 70);
    }
}
