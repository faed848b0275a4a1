//! `/livez` and `/readyz`: the two probes.

use http::{Method, Request, Response, StatusCode};

use super::answer::text;
use super::health;
use super::state::AdminState;
use crate::core::escape;
use crate::health::State;
use crate::request::body::ResponseBody;

/// Whether this is one of the two probes, which are answered however many connections are busy.
pub fn is_probe<B>(request: &Request<B>) -> bool {
    matches!(*request.method(), Method::GET | Method::HEAD) && matches!(request.uri().path(), "/livez" | "/readyz")
}

impl AdminState {
    /// `exclude=NAME` in the query leaves out a check of the verdict, or all checks of a kind: `exclude=credentials`.
    /// Causes and names are shown only if the caller `is_known`.
    pub(super) fn ready(&self, query: &str, is_known: bool) -> Response<ResponseBody> {
        let health = self.health();
        // Whoever shows no token excludes kinds of checks alone: the answer to a name would confirm that it exists.
        let verdict = health.without(|name| (is_known || !name.contains('/')) && is_excluded(name, query)).state();
        let status = if verdict == State::Failing { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK };
        let told = if is_known { health } else { health.anonymous() };
        text(status, "application/json", escape::text(&health::ready_page(verdict, &told), false).into_owned())
    }

    pub(super) fn live(&self) -> Response<ResponseBody> {
        text(StatusCode::OK, "application/json", health::live_page(self.shared.clock.started_at()))
    }
}

/// Whether an `exclude` in the query names this check.
fn is_excluded(name: &str, query: &str) -> bool {
    query.split('&').filter_map(|pair| pair.strip_prefix("exclude=")).any(|excluded| excluded == name)
}
