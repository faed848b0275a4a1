//! Writes a [`ClientResponse`] as HTTP.

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};

use crate::request::body::ResponseBody;
use crate::request::response::ClientResponse;
use crate::semantics::cache_status::CACHE_STATUS;
use crate::semantics::upstream_headers;

/// A year. A longer wait is a mistake.
const LONGEST_RETRY_AFTER: u32 = 366 * 86_400;

/// The response that goes to the client.
pub(super) fn write(reply: ClientResponse) -> Response<ResponseBody> {
    let ClientResponse { page, coded, etag, cache_status, age, not_modified, headers: own, .. } = reply;
    let is_coded = coded.is_some();
    let body = if not_modified { Bytes::new() } else { coded.unwrap_or_else(|| page.body.clone()) };
    let mut response = Response::new(ResponseBody::full(body));
    *response.status_mut() = if not_modified { StatusCode::NOT_MODIFIED } else { page.status };
    let headers = response.headers_mut();
    headers.reserve(12);
    for (name, value) in &page.headers {
        headers.insert(name.clone(), value.clone());
    }
    if not_modified {
        headers.remove(header::CONTENT_TYPE);
    }
    // The gateway's own errors and Twilio's data have other types, so these are Twilio's errors.
    if !page.status.is_success() {
        headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    }
    headers.insert(CACHE_STATUS, cache_status);
    if let Some(etag) = etag {
        headers.insert(header::ETAG, etag);
    }
    if page.may_be_coded() {
        headers.insert(header::VARY, HeaderValue::from_static("Accept-Encoding"));
    }
    if is_coded && !not_modified {
        headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    }
    for (name, value) in own {
        headers.insert(name, value);
    }
    // `HeaderValue::from` a number allocates twice.
    if let Some(Ok(age)) = age.map(|age| HeaderValue::from_str(itoa::Buffer::new().format(age.as_secs()))) {
        headers.insert(header::AGE, age);
    }
    let wants_retry_after = matches!(page.status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE);
    if wants_retry_after && !headers.get(header::RETRY_AFTER).is_some_and(upstream_headers::is_retry_after) {
        // Twilio documents only its own header for the reset, which clients that read Retry-After do not know.
        let reset = headers.get("x-ratelimit-reset").and_then(|reset| reset.to_str().ok()?.parse::<u32>().ok());
        let seconds = reset.filter(|seconds| (1..=LONGEST_RETRY_AFTER).contains(seconds)).unwrap_or(1);
        headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}
