//! Bodies of requests to the admin plane: read completely, within limits of size and time.

use std::time::Duration;

use bytes::Bytes;
use http::{Response, StatusCode};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Incoming;

use super::answer::refuse;
use crate::request::body::ResponseBody;

const TIMEOUT: Duration = Duration::from_secs(10);

/// Reads the whole body.
///
/// # Errors
///
/// The response that says why the body was not read.
pub(super) async fn read(body: Incoming, most: usize) -> Result<Bytes, Response<ResponseBody>> {
    match tokio::time::timeout(TIMEOUT, Limited::new(body, most).collect()).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            let message = format!("the body is larger than {} KiB; no request here needs that much", most / 1024);
            Err(refuse(StatusCode::PAYLOAD_TOO_LARGE, &message))
        }
        Ok(Err(_)) => Err(refuse(StatusCode::BAD_REQUEST, "the body was cut short; send it completely")),
        Err(_) => Err(refuse(StatusCode::REQUEST_TIMEOUT, "the body took longer than 10 s to arrive")),
    }
}
