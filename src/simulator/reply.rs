//! An answer before it is framed.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use serde_json::Value as Json;

use super::error::ApiError;

/// Status, body and headers, but those that every answer has.
pub struct Reply {
    /// The HTTP status.
    pub status: StatusCode,
    /// The whole body.
    pub body: Bytes,
    /// At least its type.
    pub headers: HeaderMap,
}

impl Reply {
    /// A body of this type.
    pub fn new(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Self {
        let content_type = HeaderValue::from_static(content_type);
        Self { status, body: body.into(), headers: HeaderMap::from_iter([(header::CONTENT_TYPE, content_type)]) }
    }

    /// 200 with JSON that is bytes already.
    pub fn json(body: impl Into<Bytes>) -> Self {
        Self::new(StatusCode::OK, "application/json", body)
    }

    /// JSON with this status.
    pub fn value(status: StatusCode, body: &Json) -> Self {
        Self::new(status, "application/json", body.to_string())
    }

    /// Sets a header; a value that cannot be one is left out.
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
