//! `GET /_gateway/usage`: what the calling team has used, and what it may do. The answer has nothing about other teams,
//! and nothing that the team's policy denies.

use std::collections::BTreeMap;

use http::{HeaderValue, Response, header};
use jiff::Timestamp;
use serde::Serialize;

use super::caller::CallerLimits;
use crate::accounts::Allowance;
use crate::core::clock::Clock;
use crate::core::outcome::Outcome;
use crate::request::body::ResponseBody;
use crate::request::ended::{RequestEnded, RequestSubscriber};
use crate::semantics::cache_status::CACHE_STATUS;

#[derive(Debug, Serialize)]
struct Usage<'u> {
    team: &'u str,
    /// Answers by outcome.
    requests: BTreeMap<&'static str, u64>,
    upstream_attempts: u64,
    calls_saved: u64,
    /// The start of the process (RFC 3339).
    since: Option<String>,
    limits: Limits,
    operations: Vec<&'static str>,
    restricted: bool,
}

#[derive(Debug, Serialize)]
struct Limits {
    requests: Option<String>,
    upstream: Option<String>,
    /// What is left of the requests, or of the upstream calls if there is no limit on requests.
    remaining: Option<u64>,
}

/// The usage of a team. `requests` and `upstream` are what it has left.
pub(super) fn respond(
    known: &CallerLimits,
    requests: Option<Allowance>,
    upstream: Option<Allowance>,
    clock: Clock,
) -> Response<ResponseBody> {
    let team = &known.caller.team;
    let of = |outcome: Outcome| team.usage.answers(outcome);
    let remaining = requests.or(upstream.filter(|_| team.upstream.is_some()));
    let usage = Usage {
        team: &team.name,
        requests: Outcome::ALL.into_iter().map(|outcome| (outcome.as_str(), of(outcome))).collect(),
        upstream_attempts: team.usage.attempts(),
        calls_saved: team.usage.saved(),
        since: Timestamp::try_from(clock.started_at()).ok().map(|time| format!("{time:.0}")),
        limits: Limits {
            requests: known.caller.requests.as_ref().map(|requests| requests.rate.to_string()),
            upstream: team.upstream.map(|rate| rate.to_string()),
            remaining: remaining.map(|allowance| allowance.remaining),
        },
        operations: team.operations.iter().map(|permission| permission.as_str()).collect(),
        restricted: team.policy.is_some(),
    };
    // Texts and numbers always serialise.
    let mut response = Response::new(ResponseBody::full(serde_json::to_vec(&usage).unwrap_or_default()));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(CACHE_STATUS, HeaderValue::from_static("insights-gateway; detail=bypass"));
    response
}

/// Counts each team's requests by outcome.
#[derive(Debug)]
pub struct UsageCounter;

impl RequestSubscriber for UsageCounter {
    fn ended(&self, request: &RequestEnded) {
        // A request for the usage has no operation.
        if let (Some(team), Some(_)) = (request.team(), request.operation()) {
            team.usage.answered(request.outcome, request.context.was_tried());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::accounts::Team;
    use crate::request::context::{RequestContext, UpstreamEvent, UpstreamEventKind};
    use crate::twilio::endpoint::Operation;

    #[test]
    fn an_answer_saves_a_call_only_if_its_request_caused_no_attempt() {
        let (team, now) = (Arc::new(Team::example("a")), Clock::new().now());
        let answer = |outcome, kind: Option<UpstreamEventKind>| {
            let context = RequestContext::default();
            context.team.set(Arc::clone(&team)).unwrap();
            context.operation.set(Operation::JobSubmit).unwrap();
            if let Some(kind) = kind {
                context.add(UpstreamEvent { begun: now, ended: Some(now), kind });
            }
            let (status, bytes, is_traced) = (200, 0, false);
            let context = Arc::new(context);
            UsageCounter.ended(&RequestEnded { context, received: now, ended: now, outcome, status, bytes, is_traced });
            (team.usage.answers(outcome), team.usage.saved())
        };
        let attempt = || Some(UpstreamEventKind::Attempt { span: None, result: None });
        assert_eq!(answer(Outcome::Miss, attempt()), (1, 0));
        assert_eq!(answer(Outcome::Hit, attempt()), (1, 0), "the status of the job was polled before it was shared");
        assert_eq!(answer(Outcome::Hit, Some(UpstreamEventKind::Wait { granted: false })), (2, 1));
        assert_eq!(answer(Outcome::Hit, None), (3, 2));
    }
}
