//! What a success must be, for the operations whose answers others rely on.

use std::time::SystemTime;

use http::{HeaderValue, StatusCode, header};

use super::{invalid, retry_of};
use crate::core::error::GatewayError;
use crate::core::json;
use crate::request::call::{UpstreamCall, UpstreamResponse};
use crate::request::key::Key;
use crate::twilio::catalog::{Catalog, MAX_METADATA_VALUES};
use crate::twilio::endpoint::Operation;
use crate::twilio::job::{self, Job, State};

/// Lets an answer pass. Of an unfinished job it then says when to ask again, and of one that has ended it does not.
///
/// # Errors
///
/// When it is a success that does not say what it has to say.
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

/// Is a successful answer to a request for metadata nothing that members can be read from. As long as it was kept, nothing
/// could be proven of what teams with a policy ask.
fn is_no_metadata(answer: &UpstreamResponse) -> bool {
    let value = || json::parse_within(&answer.body, MAX_METADATA_VALUES).ok();
    answer.status == StatusCode::OK && value().and_then(|value| Catalog::read(&value)).is_none()
}
