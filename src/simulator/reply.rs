//! A response before it is sent.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use serde_json::Value as Json;

use super::error::ApiError;

/// Status, body and headers, without the headers that every response has.
pub struct Reply {
    /// The HTTP status.
    pub status: StatusCode,
    /// The whole body.
    pub body: Bytes,
    /// At least the content type.
    pub headers: HeaderMap,
}

impl Reply {
    /// A body of this type.
    pub fn new(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Self {
        let content_type = HeaderValue::from_static(content_type);
        Self { status, body: body.into(), headers: HeaderMap::from_iter([(header::CONTENT_TYPE, content_type)]) }
    }

    /// 200 with JSON that is already serialised.
    pub fn json(body: impl Into<Bytes>) -> Self {
        Self::new(StatusCode::OK, "application/json", body)
    }

    /// JSON with this status.
    pub fn value(status: StatusCode, body: &Json) -> Self {
        Self::new(status, "application/json", body.to_string())
    }

    /// Sets a header; a value that is not valid is left out.
    pub fn set(&mut self, name: HeaderName, value: String) {
        if let Ok(value) = HeaderValue::try_from(value) {
            self.headers.insert(name, value);
        }
    }
}

impl From<ApiError> for Reply {
    fn from(error: ApiError) -> Self {
        let mut reply = Self::value(error.status, &error.body());
        reply.headers.extend(error.headers);
        reply
    }
}
