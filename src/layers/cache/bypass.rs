//! Calls upstream for one client only, and stores nothing.

use std::sync::Arc;

use tower::{Service, ServiceExt};

use super::advice::advised;
use super::age::rounded_up;
use super::keep::cached_as;
use super::layer::{Answered, CacheLayer};
use super::writes;
use crate::cache::response::{Content, Source};
use crate::cache::{CacheResponse, UnstoredResponse};
use crate::core::error::GatewayError;
use crate::core::outcome::Outcome;
use crate::request::call::{UpstreamCall, UpstreamResponse};
use crate::request::key::Key;
use crate::request::query::ClientQuery;
use crate::request::response::Representation;
use crate::request::waiters::Waiters;
use crate::semantics::cache_control;
use crate::semantics::cache_status::{Forward, KeyParam};
use crate::twilio::endpoint::{CacheClass, Operation};
use crate::twilio::parameters::Parameters;

/// Calls upstream for one client only, and stores nothing. Stored responses that this response contradicts are removed.
pub(super) async fn bypass<S>(inner: S, query: ClientQuery, layer: Arc<CacheLayer>) -> Answered
where
    S: Service<UpstreamCall, Response = UpstreamResponse, Error = GatewayError> + Send + 'static,
    S::Future: Send,
{
    call_alone(inner, &query, &layer).await.map_err(|error| advised(error, &query))
}

/// The same, with the error as it came.
pub(super) async fn call_alone<S>(inner: S, query: &ClientQuery, layer: &Arc<CacheLayer>) -> Answered
where
    S: Service<UpstreamCall, Response = UpstreamResponse, Error = GatewayError> + Send + 'static,
    S::Future: Send,
{
    let waiters = Waiters::of_clients();
    let _waiter = waiters.join(&query.team, query.directives.urgency);
    let key = KeyParam::new(&query.key().short());
    let begins_a_set = cached_as(query.endpoint.operation, query.key(), &query.canonical.place()).endpoint().cache
        == CacheClass::Query;
    let asked = layer.clock.now();
    let call = query.upstream_call(waiters, query.deadline, Arc::clone(&query.context));
    let answered = match call.endpoint.operation {
        Operation::FieldsWrite => writes::send(inner, call.clone(), Arc::clone(layer)).await,
        _ => inner.oneshot(call.clone()).await,
    };
    layer.learn(&call, &answered, asked);
    let mut answer = answered?;
    let age = layer.initial_age(&answer.headers, asked);
    let made = layer.clock.moment().before(age.unwrap_or_default());
    if answer.status.is_success()
        && begins_a_set
        && let Some(token) = answer.next_token.take()
    {
        let next = Some(Key::of_page(&call.team.account, &Parameters::of_page(&token)));
        let account = call.team.account.id();
        let unstored = UnstoredResponse {
            account,
            asked,
            made,
            begins: Some(layer.unstored_set(call.key, made)),
            next,
            is_shared: false,
        };
        layer.store.supersede(call.key, &unstored);
    }
    cache_control::normalise(&mut answer.headers, layer.clock.wall_now());
    let content = Content::Forwarded(Arc::new(Representation::new(answer, call.endpoint.returns)), key);
    let source = Source::Forwarded { why: Forward::Bypass, stored: false, collapsed: false };
    Ok(CacheResponse::new(content, source, Outcome::Bypass, age.map(rounded_up)))
}
