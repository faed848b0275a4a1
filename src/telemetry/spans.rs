//! A request that has ended, as spans: the request, its stages, and below the cache stage every wait and attempt.
//!
//! Names of attributes follow OpenTelemetry's semantic conventions for HTTP where those have one; the others begin
//! with `insights_gateway.`.

use std::borrow::Cow;

use http::Method;

use crate::core::clock::Instant;
use crate::request::context::{Stage, UpstreamEvent, UpstreamEventKind};
use crate::request::ended::RequestEnded;
use crate::semantics::trace::{SpanId, TraceId};

/// A span of a trace, before it is encoded.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Span<'a> {
    pub(super) trace: TraceId,
    pub(super) id: SpanId,
    pub(super) parent: Option<SpanId>,
    /// Whether the parent is another program's span.
    pub(super) is_remote: bool,
    /// The `tracestate` of the request, as it came.
    pub(super) state: &'a str,
    pub(super) name: Cow<'static, str>,
    pub(super) kind: Kind,
    pub(super) begun: Instant,
    pub(super) ended: Instant,
    pub(super) attributes: Vec<(&'static str, Value<'a>)>,
    pub(super) failed: bool,
}

/// The kind of a span, with OTLP's numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Internal = 1,
    Server = 2,
    Client = 3,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Value<'a> {
    Text(&'a str),
    Number(u64),
}

/// The spans of a request, its own first; none if it belongs to no trace.
pub(super) fn of(request: &RequestEnded) -> Vec<Span<'_>> {
    let Some(trace) = request.context.trace.as_deref() else { return Vec::new() };
    let span = |parent, name, (begun, ended)| Span {
        trace: trace.trace,
        id: SpanId::random(),
        parent,
        is_remote: false,
        state: trace.state.as_ref().and_then(|state| state.to_str().ok()).unwrap_or_default(),
        name,
        kind: Kind::Internal,
        begun,
        ended,
        attributes: Vec::new(),
        failed: false,
    };
    let whole = Span {
        is_remote: trace.parent.is_some(),
        kind: Kind::Server,
        attributes: attributes(request),
        failed: request.status >= 500,
        ..span(trace.parent, name(request).into(), (request.received, request.ended))
    };
    let root = whole.id;
    let mut spans = vec![whole];
    let (mut begun, mut last) = (request.received, root);
    for stage in Stage::ALL {
        // When a client leaves, the stage that it was in ends.
        let left = || (request.status == RequestEnded::CLIENT_LEFT).then_some(request.ended);
        let Some(ended) = request.context.ended(stage).or_else(left) else { break };
        let stage = span(Some(root), stage.as_str().into(), (begun, ended));
        (begun, last) = (ended, stage.id);
        spans.push(stage);
    }
    // Waits and attempts are below the last stage, which is the cache's.
    let (mut waits, mut attempts) = (0, 0);
    for UpstreamEvent { begun, ended, kind } in request.context.upstream_events() {
        // What is under way goes on for the clients that still wait, or to fill the cache.
        let ended = ended.unwrap_or(request.ended).max(begun);
        let event = |name: String| span(Some(last), name.into(), (begun, ended));
        spans.push(match kind {
            UpstreamEventKind::Wait { granted } => {
                waits += 1;
                Span { failed: !granted, ..event(format!("queue wait {waits}")) }
            }
            UpstreamEventKind::Attempt { span: named, result } => {
                attempts += 1;
                let event = event(format!("attempt {attempts}"));
                let result = result.map(|result| match result {
                    Ok(status) => ("http.response.status_code", Value::Number(status.into())),
                    Err(reason) => ("error.type", Value::Text(reason.as_str())),
                });
                let failed = result.as_ref().is_some_and(|(_, value)| !matches!(value, Value::Number(..400)));
                let resent = ("http.request.resend_count", Value::Number(attempts - 1));
                Span {
                    id: named.unwrap_or(event.id),
                    kind: Kind::Client,
                    attributes: result.into_iter().chain([resent]).collect(),
                    failed,
                    ..event
                }
            }
        });
    }
    spans
}

/// The method and the operation, which are few, whatever clients send.
fn name(request: &RequestEnded) -> String {
    let method = known(&request.context.head.method).unwrap_or("HTTP");
    match request.operation() {
        Some(operation) => format!("{method} {}", operation.as_str()),
        None => method.to_owned(),
    }
}

fn known(method: &Method) -> Option<&'static str> {
    ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "CONNECT", "TRACE"]
        .into_iter()
        .find(|known| method == known)
}

fn attributes(request: &RequestEnded) -> Vec<(&'static str, Value<'_>)> {
    use Value::{Number, Text};
    let RequestEnded { context, outcome, status, bytes, .. } = request;
    let head = &context.head;
    let mut attributes = vec![
        ("http.request.method", Text(known(&head.method).unwrap_or("_OTHER"))),
        ("url.path", Text(head.path())),
        ("insights_gateway.request_id", Text(head.id())),
        ("insights_gateway.outcome", Text(outcome.as_str())),
    ];
    if let Some(team) = context.team.get() {
        attributes.push(("insights_gateway.team", Text(&team.name)));
        attributes.push(("insights_gateway.account", Text(&team.account.name)));
    }
    if let Some(operation) = context.operation.get() {
        attributes.push(("insights_gateway.operation", Text(operation.as_str())));
    }
    if *status == RequestEnded::CLIENT_LEFT {
        attributes.push(("error.type", Text("client_left")));
        return attributes;
    }
    attributes.push(("http.response.status_code", Number((*status).into())));
    attributes.push(("http.response.body.size", Number(*bytes)));
    if let Some(reason) = context.reason.get() {
        attributes.push(("error.type", Text(reason.as_str())));
    }
    attributes
}
