//! A request as it arrives, still HTTP, with what is known of it from the start.

use std::sync::Arc;

use http::Request;

use crate::accounts::Team;
use crate::core::clock::Instant;
use crate::core::peer::Peer;
use crate::request::context::RequestContext;
use crate::twilio::endpoint::Endpoint;

/// A request that has arrived. Its body, of type `B`, is not read yet.
#[derive(Debug)]
pub struct IncomingRequest<B> {
    /// The request. Boxed, because each layer moves it on: one allocation costs less than these copies.
    pub request: Box<Request<B>>,
    /// Who sent it.
    pub peer: Arc<Peer>,
    /// When its head was complete.
    pub received: Instant,
    /// Records what happens to it.
    pub context: Arc<RequestContext>,
}

/// A request that may go on: it is routed, and its caller is known and permitted.
#[derive(Debug)]
pub struct AuthorizedRequest<B> {
    /// The request.
    pub incoming: IncomingRequest<B>,
    /// The endpoint.
    pub endpoint: &'static Endpoint,
    /// The team that sent it.
    pub team: Arc<Team>,
}
