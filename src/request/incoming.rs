//! A request at the edge, still HTTP, with what is known of it from the first moment on.

use std::sync::Arc;

use http::Request;

use crate::accounts::Team;
use crate::core::clock::Instant;
use crate::core::peer::Peer;
use crate::request::context::RequestContext;
use crate::twilio::endpoint::Endpoint;

/// A request that has arrived. `B` is its body, not read yet.
#[derive(Debug)]
pub struct IncomingRequest<B> {
    /// The request.
    pub request: Request<B>,
    /// Who sent it.
    pub peer: Arc<Peer>,
    /// When its head was complete.
    pub received: Instant,
    /// What happens to it.
    pub context: Arc<RequestContext>,
}

/// A visit that may go on: routed, its caller known.
#[derive(Debug)]
pub struct AuthorizedRequest<B> {
    /// The request.
    pub incoming: IncomingRequest<B>,
    /// What it asks for.
    pub endpoint: &'static Endpoint,
    /// Who asks.
    pub team: Arc<Team>,
}
