//! The responses to requests that are refused before any service sees them, as bytes.

use bytes::Bytes;
use http::StatusCode;

use crate::core::error::{GatewayError, Reason};
use crate::core::request_id;

/// Our own response in place of hyper's, whose status says what was wrong.
pub(super) fn replacement(words: &[u8]) -> Bytes {
    match words.get(9..12) {
        Some(b"431" | b"414") => answer(Reason::HeadersTooLarge, "the request's head is too large"),
        _ => answer(Reason::BadRequest, "the request's head is malformed or its framing ambiguous"),
    }
}

/// A complete HTTP/1.1 response that ends the connection.
pub(super) fn answer(reason: Reason, message: &str) -> Bytes {
    let body = GatewayError::new(reason, message).to_body();
    let id = request_id::fresh();
    let retry_after = if reason.status() == StatusCode::SERVICE_UNAVAILABLE { "retry-after: 1\r\n" } else { "" };
    let mut answer = format!(
        "HTTP/1.1 {}\r\ncontent-type: application/json\r\ncache-status: insights-gateway; detail={}\r\n\
         x-request-id: {}\r\n{retry_after}content-length: {}\r\nconnection: close\r\n\r\n",
        reason.status(),
        reason.outcome().as_str(),
        id.to_str().unwrap_or_default(),
        body.len()
    )
    .into_bytes();
    answer.extend_from_slice(&body);
    answer.into()
}

/// A GOAWAY frame with the code ENHANCE_YOUR_CALM (RFC 9113 section 6.8).
pub(super) fn go_away(last_stream: u32) -> [u8; 17] {
    let mut frame = [0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 11];
    frame[9..13].copy_from_slice(&last_stream.to_be_bytes());
    frame
}
