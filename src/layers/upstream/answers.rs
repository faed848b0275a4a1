//! Checks of successful answers, for the operations whose content other layers use.

use std::time::SystemTime;

use http::{HeaderValue, StatusCode, header};

use super::invalid::{invalid, retry_of};
use crate::core::error::GatewayError;
use crate::core::json;
use crate::request::call::{UpstreamCall, UpstreamResponse};
use crate::request::key::Key;
use crate::twilio::catalog::{Catalog, MAX_METADATA_VALUES};
use crate::twilio::endpoint::Operation;
use crate::twilio::job::{self, Job, State};

/// Checks an answer. Gives the answer about an unfinished job a valid `Retry-After`, and removes it from the answer
/// about a job that has ended.
///
/// # Errors
///
/// If a successful answer lacks what it must contain.
pub(super) fn check(call: &UpstreamCall, answer: &mut UpstreamResponse, now: SystemTime) -> Result<(), GatewayError> {
    if !answer.status.is_success() {
        return Ok(());
    }
    match call.endpoint.operation {
        Operation::Metadata if call.key == Key::of_metadata(&call.team.account) && is_no_metadata(answer) => {
            let message = "Twilio answered 200 with something that is not metadata";
            Err(invalid(message).with_retry(retry_of(StatusCode::OK)))
        }
        Operation::JobSubmit | Operation::JobStatus => {
            let asked_for = call.endpoint.id(&call.path);
            let job = Job::read(&answer.body).filter(|job| match asked_for {
                None => job.id.is_some(),
                asked_for => job.id.is_none() || job.id.as_deref() == asked_for,
            });
            let job = job.ok_or_else(|| {
                let status = answer.status.as_u16();
                invalid(format!("Twilio answered {status} without the id and the status of the query job"))
            })?;
            if job.state == State::Unfinished {
                let wait = job::poll_after(&answer.headers, now);
                answer.headers.insert(header::RETRY_AFTER, HeaderValue::from(wait.as_secs()));
            } else {
                answer.headers.remove(header::RETRY_AFTER);
            }
            Ok(())
        }
        _ => Ok(()),
    }
}

/// Whether a successful answer to a request for metadata has no readable members. If such an answer were stored, no
/// query of a team with a policy could be checked while it is.
fn is_no_metadata(answer: &UpstreamResponse) -> bool {
    let value = || json::parse_within(&answer.body, MAX_METADATA_VALUES).ok();
    answer.status == StatusCode::OK && value().and_then(|value| Catalog::read(&value)).is_none()
}
