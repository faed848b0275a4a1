//! The admin plane for one connection. A valid token identifies the connection's peer, which matters when there are too
//! many connections.

use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::future::BoxFuture;
use http::{Method, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use tower::Service;

use super::Admin;
use crate::core::peer::Peer;
use crate::request::body::ResponseBody;

/// Whether this is one of the two probes, which are answered however many connections are busy.
pub fn is_probe<B>(request: &Request<B>) -> bool {
    matches!(*request.method(), Method::GET | Method::HEAD) && matches!(request.uri().path(), "/livez" | "/readyz")
}

/// The admin plane for the requests of one peer.
pub struct OfPeer {
    admin: Admin,
    peer: Arc<Peer>,
}

impl Admin {
    /// The admin plane for the requests of this peer.
    pub fn of(&self, peer: Arc<Peer>) -> OfPeer {
        OfPeer { admin: self.clone(), peer }
    }
}

impl Service<Request<Incoming>> for OfPeer {
    type Response = Response<ResponseBody>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<ResponseBody>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Incoming>) -> Self::Future {
        // A probe's token is ignored.
        let shows_token = request.headers().contains_key(header::AUTHORIZATION) && !is_probe(&request);
        let (inner, peer) = (Arc::clone(&self.admin.0), Arc::clone(&self.peer));
        Box::pin(async move {
            let response = inner.answer(request, &peer).await;
            if shows_token && response.status() != StatusCode::UNAUTHORIZED {
                peer.identify();
            }
            Ok(response)
        })
    }
}
