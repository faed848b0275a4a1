//! What a client is told that it can do instead.

use crate::core::error::{GatewayError, Reason};
use crate::request::query::ClientQuery;
use crate::twilio::endpoint::Operation;
use crate::twilio::permission::Permission;

/// The error as this client gets it. A query that took too long, or that may not wait at all, could be a job, if the
/// client may submit one: the call may be shared with teams that may not.
pub(super) fn advised(error: GatewayError, query: &ClientQuery) -> GatewayError {
    let may_not_wait = error.reason() == Reason::Deadline && query.deadline <= query.received;
    let could_be_a_job = (may_not_wait || error.reason() == Reason::UpstreamTimeout)
        && query.endpoint.operation == Operation::Query
        && query.team.operations.allows(Permission::Jobs);
    match could_be_a_job {
        true => {
            error.with_advice("; ask with `Prefer: respond-async`, or submit it as a query job, and do not wait for it")
        }
        false => error,
    }
}
