//! The admin plane for one connection. A valid token identifies the connection's peer, which matters when there are too
//! many connections.

use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::future::BoxFuture;
use http::{Request, Response, StatusCode, header};
use hyper::body::Incoming;
use tower::Service;

use super::probes::is_probe;
use super::state::AdminState;
use crate::core::peer::Peer;
use crate::request::body::ResponseBody;

/// The admin plane for the requests of one peer.
pub struct PeerAdmin {
    state: Arc<AdminState>,
    peer: Arc<Peer>,
}

impl PeerAdmin {
    pub(super) fn new(state: Arc<AdminState>, peer: Arc<Peer>) -> Self {
        Self { state, peer }
    }
}

impl Service<Request<Incoming>> for PeerAdmin {
    type Response = Response<ResponseBody>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<ResponseBody>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Incoming>) -> Self::Future {
        // A probe's token is ignored.
        let shows_token = request.headers().contains_key(header::AUTHORIZATION) && !is_probe(&request);
        let (state, peer) = (Arc::clone(&self.state), Arc::clone(&self.peer));
        Box::pin(async move {
            let response = state.answer(request, &peer).await;
            if shows_token && response.status() != StatusCode::UNAUTHORIZED {
                peer.identify();
            }
            Ok(response)
        })
    }
}
