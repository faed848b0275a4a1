//! The error of a response that cannot be used.

use http::StatusCode;

use crate::core::error::{GatewayError, Reason, Retry};

pub(super) fn invalid(message: impl Into<String>) -> GatewayError {
    GatewayError::new(Reason::UpstreamInvalid, message)
}

/// Whether a call may be repeated whose response had this status and an unreadable body.
pub(super) fn retry_of(status: StatusCode) -> Retry {
    match status {
        StatusCode::INTERNAL_SERVER_ERROR => Retry::OnceIfRepeatable,
        status if status.is_server_error() => Retry::IfRepeatable,
        _ => Retry::Never,
    }
}
