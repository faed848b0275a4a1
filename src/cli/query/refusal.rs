//! A response that is not a page: who refused, why, and what to do about it.

use std::fmt;

use http::StatusCode;
use serde_json::Value as Json;

use super::question;
use crate::cli::client::Answer;
use crate::cli::text::{error_message, plain};

/// The credential that a refused client sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SentCredential {
    /// None.
    NoToken,
    /// The token from the variable.
    FromVariable,
    /// The token from a file.
    FromFile,
}

/// A refusal, in the words of its sender.
#[derive(Debug)]
pub(super) struct Refusal {
    status: StatusCode,
    /// It has Twilio's error format; otherwise some other server answered.
    is_api: bool,
    /// It has the admin plane's error format, whose message says what to do.
    is_of_admin_plane: bool,
    by_gateway: bool,
    reason: Option<String>,
    code: Option<i64>,
    message: String,
    request: Option<String>,
    retry_after: Option<String>,
    hint: Option<String>,
    shown: SentCredential,
}

/// A response that is not a success, and what it says.
#[derive(Debug)]
pub(super) struct RefusedResponse {
    pub(super) refusal: Refusal,
    pub(super) answer: Answer,
}

impl Refusal {
    pub(super) fn read(answer: &Answer, shown: SentCredential) -> Self {
        const MOST: usize = 400;
        let body: Json = serde_json::from_slice(&answer.body).unwrap_or_default();
        let is_api = body["message"].is_string() && body["code"].is_number();
        let header = |name| answer.header(name).map(plain);
        Self {
            status: answer.status,
            is_api,
            is_of_admin_plane: body["error"].is_string(),
            by_gateway: body["params"]["source"] == "gateway",
            reason: body["params"]["reason"].as_str().map(plain),
            code: body["code"].as_i64(),
            message: error_message(&answer.body).chars().take(MOST).collect(),
            request: header("x-request-id"),
            retry_after: header("retry-after"),
            hint: header("insights-gateway-hint"),
            shown,
        }
    }

    /// Whether waiting is enough.
    pub(super) fn passes(&self) -> bool {
        matches!(self.status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE)
    }

    /// Seconds to wait, where the response says them.
    pub(super) fn seconds(&self) -> Option<u64> {
        self.retry_after.as_ref()?.parse().ok()
    }

    fn next_step(&self) -> Option<String> {
        match self.status {
            _ if self.is_of_admin_plane => None,
            StatusCode::UNAUTHORIZED => Some(
                match self.shown {
                    SentCredential::NoToken => "set INSIGHTS_GATEWAY_TOKEN to the team's token, or give --token-file",
                    SentCredential::FromVariable => {
                        "the token in INSIGHTS_GATEWAY_TOKEN is not (or no longer) a team's"
                    }
                    SentCredential::FromFile => "the token in --token-file is not (or no longer) a team's",
                }
                .to_owned(),
            ),
            status if status.is_redirection() => Some(
                "redirects are not followed, because the token would be sent there; give the right --url".to_owned(),
            ),
            _ if self.hint.as_ref().is_some_and(|hint| !hint.contains("did you mean")) => {
                Some(format!("the metadata has all names: {}", question::path("/Metadata", &[])))
            }
            _ if !self.is_api => {
                Some("this is not an answer of a gateway; is --url its data address, without a path?".to_owned())
            }
            _ => None,
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let who = match (self.is_api, self.by_gateway) {
            (true, true) => "the gateway refused",
            (true, false) => "Twilio refused",
            (false, _) => "refused",
        };
        write!(f, "{who}: {}", self.status.as_u16())?;
        if let Some(reason) = &self.reason {
            write!(f, " {reason}")?;
        } else if let Some(code) = self.code {
            write!(f, " (code {code})")?;
        }
        if !self.message.is_empty() {
            write!(f, ": {}", self.message)?;
        }
        let retry = match (&self.retry_after, self.seconds()) {
            // The gateway's own messages say it.
            _ if self.message.contains("come back") => None,
            (_, Some(seconds)) => Some(format!("come back in {seconds} s")),
            (Some(date), None) => Some(format!("come back after {date}")),
            (None, None) => None,
        };
        let hint = self.hint.as_ref().map(|hint| format!("hint: {hint}"));
        for line in [retry, hint, self.next_step()].into_iter().flatten() {
            write!(f, "\n  {line}")?;
        }
        if let Some(request) = &self.request {
            write!(f, "\n  request id: {request}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http::{HeaderMap, HeaderValue};

    use super::*;

    fn said(
        status: u16,
        headers: &[(&'static str, &'static str)],
        body: &'static str,
        shown: SentCredential,
    ) -> String {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.insert(*name, HeaderValue::from_static(value));
        }
        let answer = Answer {
            status: StatusCode::from_u16(status).unwrap(),
            headers: map,
            body: body.into(),
            took: Duration::ZERO,
        };
        Refusal::read(&answer, shown).to_string()
    }

    #[test]
    fn a_refusal_says_who_why_and_when_to_come_back() {
        let limited = r#"{"code":20429,"message":"this team may ask 5 times a second","httpStatusCode":429,"userError":true,"params":{"source":"gateway","reason":"team_rate_limit"}}"#;
        assert_eq!(
            said(429, &[("retry-after", "3"), ("x-request-id", "r1")], limited, SentCredential::FromVariable),
            "the gateway refused: 429 team_rate_limit: this team may ask 5 times a second\n  \
             come back in 3 s\n  request id: r1"
        );
        let twilio = r#"{"code":20001,"message":"Unknown field \"C.Cout\"","httpStatusCode":400,"params":{}}"#;
        assert_eq!(
            said(400, &[("insights-gateway-hint", "unknown measure \"C.Cout\"")], twilio, SentCredential::NoToken),
            "Twilio refused: 400 (code 20001): Unknown field \"C.Cout\"\n  hint: unknown measure \"C.Cout\"\n  \
             the metadata has all names: /v3/InsightsDomains/Conversations/Metadata"
        );
        let similar = "unknown measure \"C.Cout\"; did you mean \"C.Count\"?";
        assert!(
            said(400, &[("insights-gateway-hint", similar)], twilio, SentCredential::NoToken).ends_with("\"C.Count\"?")
        );
        let open = r#"{"code":20503,"message":"it is left alone; come back in 3 s","params":{"source":"gateway","reason":"circuit_open"}}"#;
        assert!(said(503, &[("retry-after", "3")], open, SentCredential::NoToken).ends_with("alone; come back in 3 s"));
        let draining = r#"{"code":20503,"message":"draining","params":{"source":"gateway","reason":"draining"}}"#;
        let said = said(503, &[("retry-after", "Sat, 28 Nov 2026 10:00:00 GMT")], draining, SentCredential::NoToken);
        assert!(said.ends_with("come back after Sat, 28 Nov 2026 10:00:00 GMT"), "{said}");
    }

    #[test]
    fn clients_without_a_valid_token_are_told_how_to_sign_in() {
        let body = r#"{"code":20003,"message":"no token","params":{"source":"gateway","reason":"unauthenticated"}}"#;
        assert!(said(401, &[], body, SentCredential::NoToken).contains("set INSIGHTS_GATEWAY_TOKEN"));
        assert!(said(401, &[], body, SentCredential::FromFile).contains("token in --token-file is not"));
        assert!(said(401, &[], body, SentCredential::FromVariable).contains("token in INSIGHTS_GATEWAY_TOKEN is not"));
    }

    #[test]
    fn other_servers_are_recognised_and_their_text_is_escaped() {
        let said = said(404, &[], "<html>\u{1b}[2J\nnot here", SentCredential::NoToken);
        assert_eq!(
            said,
            "refused: 404: <html> [2J not here\n  \
             this is not an answer of a gateway; is --url its data address, without a path?"
        );
        let admin = r#"{"error":"this is the admin plane's port"}"#;
        assert_eq!(
            super::tests::said(401, &[], admin, SentCredential::FromFile),
            "refused: 401: this is the admin plane's port"
        );
        assert!(super::tests::said(301, &[], "", SentCredential::NoToken).contains("redirects are not followed"));
    }
}
