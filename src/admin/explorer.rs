//! The explorer: an operator sends a request as one of the teams, through the whole stack.
//!
//! It is a request of that team like any other. The team's policy, rates and share apply, it is counted as the team's,
//! and the audit log records it with `via: admin`. What a request would cost is computed before, from memory only.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use tower::ServiceExt;

use super::answer::{json_answer, not_allowed, refuse};
use super::body;
use super::state::AdminState;
use crate::accounts::Team;
use crate::cache::Freshness;
use crate::config::Config;
use crate::core::error::GatewayError;
use crate::core::json;
use crate::core::peer::Peer;
use crate::request::body::ResponseBody;
use crate::stack::{self, Assembly};
use crate::twilio::endpoint::Operation;

/// The largest body, in bytes.
const MAX_BODY: usize = 256 * 1024;

/// The form of a body, for messages.
const FORM: &str = "send {\"team\":NAME,\"query\":{\"measures\":[…]}}";

/// The page size if the operator chooses none, in rows.
const PAGE_SIZE: u32 = 50;

/// Headers of the data plane's response that are removed, because they apply only to the data plane's origin.
const NOT_OURS: [HeaderName; 3] =
    [header::ACCESS_CONTROL_ALLOW_ORIGIN, header::ACCESS_CONTROL_EXPOSE_HEADERS, header::VARY];

/// What the operator asks: `{"team":…,"query":{…}}`, and options.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Question<'a> {
    /// The team as which the request is sent.
    team: String,
    /// The member `query` of a query's body, unchanged.
    #[serde(borrow, default)]
    query: Option<&'a RawValue>,
    /// The member `properties` of a query's body, unchanged: the time zone.
    #[serde(borrow, default)]
    properties: Option<&'a RawValue>,
    /// Asks for a further page instead.
    #[serde(default)]
    page_token: Option<String>,
    #[serde(default)]
    page_size: Option<u32>,
    /// Ask Twilio even if a fresh page is stored.
    #[serde(default)]
    refresh: bool,
}

/// The request that a question stands for.
struct ResolvedRequest {
    operation: Operation,
    parameters: String,
    body: Bytes,
    refresh: bool,
}

impl Question<'_> {
    fn request(&self) -> Result<ResolvedRequest, &'static str> {
        let refresh = self.refresh;
        match (self.query, &self.page_token) {
            (Some(query), None) => {
                let size = self.page_size.unwrap_or(PAGE_SIZE);
                let properties = self.properties.map(|properties| format!(",\"properties\":{}", properties.get()));
                let body = format!("{{\"query\":{}{}}}", query.get(), properties.unwrap_or_default()).into();
                Ok(ResolvedRequest {
                    operation: Operation::Query,
                    parameters: format!("pageSize={size}"),
                    body,
                    refresh,
                })
            }
            (None, Some(token)) => {
                let parameters = format!("pageToken={}", encoded(token));
                Ok(ResolvedRequest { operation: Operation::Page, parameters, body: Bytes::new(), refresh })
            }
            (None, None) => {
                let parameters = String::new();
                Ok(ResolvedRequest { operation: Operation::Metadata, parameters, body: Bytes::new(), refresh })
            }
            (Some(_), Some(_)) => Err("send query or pageToken, not both"),
        }
    }
}

impl AdminState {
    pub(super) async fn explore(
        &self,
        path: &str,
        request: Request<Incoming>,
        peer: &Peer,
    ) -> Option<Response<ResponseBody>> {
        let config = self.config.load_full();
        if !is_on(&config) {
            return None;
        }
        if !matches!(path, "/explorer/query" | "/explorer/metadata" | "/explorer/cost") {
            return None;
        }
        if *request.method() != Method::POST {
            return Some(not_allowed("POST"));
        }
        let body = match body::read(request.into_body(), MAX_BODY).await {
            Ok(body) => body,
            Err(refusal) => return Some(refusal),
        };
        let bad = |message: &str| Some(refuse(StatusCode::BAD_REQUEST, message));
        if !body.trim_ascii_start().starts_with(b"{") {
            return bad(&format!("the body must be a JSON object; {FORM}"));
        }
        // The whole body is read as strictly as the data plane reads a query, so that the place of a fault is one in
        // this body, and not in the one that is made of it.
        if let Err(error) = json::parse(&body) {
            return bad(&format!("the body is not JSON: {} ({}); {FORM}", error.fault, error.place(&body)));
        }
        let question: Question<'_> = match serde_json::from_slice(&body) {
            Ok(question) => question,
            Err(error) => {
                return bad(&format!("{error}; {FORM}"));
            }
        };
        let current = self.current.load_full();
        let Some(team) = current.teams.iter().find(|team| *team.name == *question.team) else {
            return bad(&format!("there is no such team; the teams are {}", stack::team_names(&config).join(", ")));
        };
        let asked = match question.request() {
            Ok(asked) => asked,
            Err(message) => return bad(message),
        };
        let is_metadata = asked.operation == Operation::Metadata;
        Some(match path {
            "/explorer/cost" => self.cost(&current, team, asked),
            "/explorer/query" if is_metadata => return bad("send query, or the pageToken of a further page"),
            "/explorer/metadata" if !is_metadata => return bad("for metadata, send only the team"),
            _ => ask(&current, team, asked, peer).await,
        })
    }

    /// What the request would cost. It is found from memory, so this itself costs nothing.
    fn cost(&self, current: &Assembly, team: &Arc<Team>, asked: ResolvedRequest) -> Response<ResponseBody> {
        let shared = &self.shared;
        let (cost, calls, message) = if !team.operations.allows(asked.operation.endpoint().permission) {
            let message = format!("team {} may not use {}", team.name, asked.operation.as_str());
            ("refused", 0, message)
        } else {
            let refresh = asked.refresh;
            let key = current.decode.key_of(team, asked.operation, &asked.parameters, asked.body, shared.clock.now());
            let freshness = key.map(|key| key.map(|key| shared.store.freshness(&key, shared.clock.moment())));
            describe(freshness, refresh)
        };
        let budget = shared.registry.account(&team.account.name).map(|state| state.budget);
        let status = budget.as_ref().map(|budget| budget.status());
        let allowance = budget.as_ref().and_then(|budget| budget.allowance(team));
        json_answer(
            StatusCode::OK,
            &json!({
                "cost": cost,
                "calls": calls,
                "message": message,
                "calls_left": allowance.map(|allowance| allowance.remaining),
                "next_call_seconds": allowance.map(|allowance| allowance.reset),
                "paused_seconds": status.map(|status| status.paused.as_secs_f64().ceil()),
                "circuit": status.map(|status| status.circuit.as_str()),
            }),
        )
    }
}

/// Sends the request through the stack, and returns the data plane's response.
async fn ask(current: &Assembly, team: &Team, asked: ResolvedRequest, peer: &Peer) -> Response<ResponseBody> {
    let endpoint = asked.operation.endpoint();
    let target = match asked.parameters.as_str() {
        "" => endpoint.path.to_owned(),
        parameters => format!("{}?{parameters}", endpoint.path),
    };
    let mut request = Request::new(Full::new(asked.body));
    *request.method_mut() = endpoint.method.clone();
    let Ok(target) = target.parse() else {
        return refuse(StatusCode::BAD_REQUEST, "pageToken is too long");
    };
    *request.uri_mut() = target;
    let headers = request.headers_mut();
    headers.insert(header::HOST, HeaderValue::from_static("localhost"));
    if asked.refresh {
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    }
    let stack = current.stack.clone().of(Arc::new(peer.acting_as(&team.name)));
    let mut response = match stack.oneshot(request).await {
        Ok(response) => response,
        Err(never) => match never {},
    };
    let headers = response.headers_mut();
    for name in NOT_OURS {
        headers.remove(name);
    }
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// Whether the explorer is available: it is switched on, and either the admin plane requires a token or there are no
/// teams.
pub(super) fn is_on(config: &Config) -> bool {
    config.admin.explorer && (config.teams.is_empty() || config.admin.token_sha256.is_some())
}

/// What the status page needs to know about the explorer. `data` is the URL of the data plane, if it is known.
pub(super) fn to_json(config: &Config, data: Option<&str>) -> Value {
    let public = config.server.public_url.as_ref().map(ToString::to_string);
    let url = public.as_deref().or(data).map(|url| url.trim_end_matches('/'));
    json!({
        "enabled": is_on(config),
        "teams": stack::team_names(config),
        "url": url,
        "needs_token": !config.teams.is_empty(),
    })
}

fn describe(freshness: Result<Option<Freshness>, GatewayError>, refresh: bool) -> (&'static str, u32, String) {
    let said = |cost, calls, message: &str| (cost, calls, message.to_owned());
    match freshness {
        Err(error) => said("refused", 0, error.message()),
        Ok(None) => said("call", 2, "one call to Twilio, and one for the metadata that the team's policy needs"),
        Ok(Some(_)) if refresh => said("call", 1, "one call to Twilio, because a fresh answer is requested"),
        Ok(Some(Freshness::Fresh)) => said("hit", 0, "nothing: a fresh answer is stored"),
        Ok(Some(Freshness::Stale)) => said("stale", 1, "a stale answer at once, and one call that refreshes it"),
        Ok(Some(Freshness::Absent)) => {
            said("call", 1, "one call to Twilio, unless another request is asking the same already")
        }
    }
}

/// A page token, encoded for a query string.
fn encoded(token: &str) -> String {
    let byte = |byte: u8| match byte {
        b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => char::from(byte).to_string(),
        other => format!("%{other:02X}"),
    };
    token.bytes().map(byte).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<(Operation, String, Bytes), String> {
        let question: Question<'_> = serde_json::from_str(text).map_err(|error| error.to_string())?;
        let asked = question.request()?;
        Ok((asked.operation, asked.parameters, asked.body))
    }

    #[test]
    fn a_question_becomes_one_request_with_the_query_unchanged() {
        let query = r#"{"team":"a","query":{"measures":["C.Count"], "x":1.0e2},"pageSize":7}"#;
        let body = Bytes::from_static(br#"{"query":{"measures":["C.Count"], "x":1.0e2}}"#);
        assert_eq!(read(query).unwrap(), (Operation::Query, "pageSize=7".to_owned(), body));
        let zoned = r#"{"team":"a","query":{},"properties":{"timezone":"UTC"}}"#;
        assert_eq!(read(zoned).unwrap().2, Bytes::from_static(br#"{"query":{},"properties":{"timezone":"UTC"}}"#));
        let page = (Operation::Page, "pageToken=a%2Bb%2F%3D".to_owned(), Bytes::new());
        assert_eq!(read(r#"{"team":"a","pageToken":"a+b/="}"#).unwrap(), page);
        assert_eq!(read(r#"{"team":"a"}"#).unwrap().0, Operation::Metadata);
        for wrong in [
            "{}",
            "[]",
            r#"{"team":"a","query":{},"pageToken":"x"}"#,
            r#"{"team":"a","queri":{}}"#,
            r#"{"team":"a","team":"b","query":{}}"#,
            r#"{"team":1,"query":{}}"#,
            r#"{"team":"a","query":{}"#,
        ] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }
}
