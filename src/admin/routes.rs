//! The paths of the admin plane, and who may use them.

use std::sync::Arc;

use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use hyper::body::Incoming;

use super::access::Access;
use super::answer::{foreign, json_answer, not_allowed, refuse, see};
use super::openapi;
use super::probes::is_probe;
use super::state::AdminState;
use crate::core::peer::Peer;
use crate::request::body::ResponseBody;
use crate::semantics::host;

impl AdminState {
    pub(super) async fn answer(self: &Arc<Self>, request: Request<Incoming>, peer: &Peer) -> Response<ResponseBody> {
        if let Err(message) = host::named(&request) {
            return refuse(StatusCode::BAD_REQUEST, message);
        }
        let path = request.uri().path().to_owned();
        let read = matches!(*request.method(), Method::GET | Method::HEAD);
        let is_probe = is_probe(&request);
        let access = self.access(&request);
        if let Access::Session(_) = access {
            peer.identify();
        }
        // Login and logout check the credentials themselves.
        match path.as_str() {
            "/login" if access != Access::Open => return self.login(request, access).await,
            "/logout" if access != Access::Open => return self.logout(&request),
            _ if is_probe || access.is_granted() => {}
            "/" if read && access == Access::Nothing && accepts_html(&request) => return see("/login"),
            _ => return unauthorized(access, &path),
        }
        if let Err(message) = self.check_site(&request, is_probe, access) {
            return foreign(message);
        }
        match (path.as_str(), read) {
            ("/livez", true) => self.live(),
            ("/readyz", true) => self.ready(request.uri().query().unwrap_or_default(), access.is_granted()),
            ("/", true) => self.pages.status(),
            ("/runbook", true) => self.pages.runbook(),
            ("/login", true) => see("/"),
            ("/login" | "/logout", false) if request.method() == Method::POST => see("/"),
            ("/metrics", true) => self.metrics(),
            ("/status", true) => json_answer(StatusCode::OK, &self.status()),
            ("/openapi.json", true) => json_answer(StatusCode::OK, &openapi::document()),
            ("/events", true) => self.events(access),
            ("/cache/entries", true) => self.entries(request.uri().query().unwrap_or_default()).await,
            ("/cache/purge", false) if request.method() == Method::POST => self.purge(request).await,
            (
                "/" | "/runbook" | "/metrics" | "/status" | "/openapi.json" | "/events" | "/cache/entries" | "/livez"
                | "/readyz",
                false,
            ) => not_allowed("GET, HEAD"),
            ("/login", _) => not_allowed("GET, HEAD, POST"),
            ("/cache/purge" | "/logout", _) => not_allowed("POST"),
            _ => match self.explore(&path, request, peer).await {
                Some(response) => response,
                None if is_of_data_plane(&path) => {
                    let url = self.data.as_deref().unwrap_or("server.listen in the configuration");
                    let message = format!("this is the admin plane's port; Twilio's API is on the data plane's: {url}");
                    refuse(StatusCode::NOT_FOUND, &message)
                }
                None => refuse(
                    StatusCode::NOT_FOUND,
                    "the admin plane has /, /runbook, /login, /logout, /livez, /readyz, /metrics, /status, /events, \
                     /openapi.json, /cache/entries, /cache/purge and, where it is on, /explorer/query, /explorer/metadata and \
                     /explorer/cost",
                ),
            },
        }
    }
}

fn accepts_html<B>(request: &Request<B>) -> bool {
    let accepted = request.headers().get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    accepted.flat_map(|list| list.split(',')).any(|range| range.trim_start().starts_with("text/html"))
}

/// Whether a client that asks for this path has taken the admin plane's port for the data plane's.
fn is_of_data_plane(path: &str) -> bool {
    ["/v3", "/_gateway"]
        .iter()
        .any(|base| path.strip_prefix(base).is_some_and(|rest| rest.is_empty() || rest.starts_with('/')))
}

fn unauthorized(access: Access, path: &str) -> Response<ResponseBody> {
    let message = match access {
        // A team's token is right on the other port. Its address is told only to those who show the admin plane's.
        _ if is_of_data_plane(path) => {
            "this is the admin plane's port, which wants its own token; Twilio's API is on the data plane's port, which is \
             server.listen in the configuration"
        }
        Access::Wrong => {
            "this is not the admin plane's token, whose SHA-256 is admin.token_sha256; a team's token does not work here"
        }
        _ => "the admin plane needs its token: Authorization: Bearer TOKEN; browsers log in at /login",
    };
    let mut response = refuse(StatusCode::UNAUTHORIZED, message);
    response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    response
}
