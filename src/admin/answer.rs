//! Responses of the admin plane: JSON, text, HTML, or a redirect.

use std::fmt::Write;

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use serde_json::{Value, json};

use crate::core::error::Reason;
use crate::core::escape;
use crate::request::body::ResponseBody;

const JSON: HeaderValue = HeaderValue::from_static("application/json");

pub(super) fn text(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Response<ResponseBody> {
    of(status, HeaderValue::from_static(content_type), ResponseBody::full(body.into()))
}

/// A response that is never cached, and whose content type browsers do not guess.
pub(super) fn of(status: StatusCode, content_type: HeaderValue, body: ResponseBody) -> Response<ResponseBody> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, content_type);
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

pub(super) fn json_answer(status: StatusCode, value: &Value) -> Response<ResponseBody> {
    // Queries contain text of clients, and operators read this in terminals. So characters that control a terminal are
    // escaped, as JSON allows.
    let mut body = escape::text(&value.to_string(), false).into_owned();
    // Ends the line in a terminal. Writing to a string does not fail.
    let _ = writeln!(body);
    of(status, JSON, ResponseBody::full(body))
}

pub(super) fn refuse(status: StatusCode, message: &str) -> Response<ResponseBody> {
    json_answer(status, &json!({"error": message}))
}

pub(super) fn not_allowed(methods: &'static str) -> Response<ResponseBody> {
    let mut response =
        refuse(StatusCode::METHOD_NOT_ALLOWED, "this path does not have this method; Allow lists those that it has");
    response.headers_mut().insert(header::ALLOW, HeaderValue::from_static(methods));
    response
}

/// Redirects a browser to another page, which it requests with GET.
pub(super) fn see(location: &'static str) -> Response<ResponseBody> {
    let mut response = text(StatusCode::SEE_OTHER, "text/plain; charset=utf-8", format!("see {location}\n"));
    response.headers_mut().insert(header::LOCATION, HeaderValue::from_static(location));
    response
}

/// Refuses a request that another site's page has caused.
pub(super) fn foreign(message: &str) -> Response<ResponseBody> {
    let reason = Reason::OriginNotAllowed;
    json_answer(reason.status(), &json!({"error": message, "reason": reason.as_str()}))
}
