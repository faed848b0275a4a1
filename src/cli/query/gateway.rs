//! The gateway's data plane, as a team uses it.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, header};
use http_body_util::Full;

use super::failure::Failure;
use super::refusal::{Refusal, RefusedResponse, SentCredential};
use crate::cli::client::{Answer, Client, Limits};

/// The gateway limits a request by its own deadline, which is far below this. A request that takes longer has failed.
pub(super) const LIMITS: Limits =
    Limits { connect: Duration::from_secs(10), answer: Duration::from_secs(300), body: 64 << 20 };

/// A gateway and the credential for it.
pub(super) struct Gateway {
    client: Client,
    authorization: Option<HeaderValue>,
    shown: SentCredential,
}

impl Gateway {
    pub(super) fn new(client: Client, authorization: Option<HeaderValue>, shown: SentCredential) -> Self {
        Self { client, authorization, shown }
    }

    /// # Errors
    ///
    /// When there is no response, or it is not a success.
    pub(super) async fn get(&mut self, path: &str) -> Result<Answer, Failure> {
        self.ask(Method::GET, path, Bytes::new()).await
    }

    /// # Errors
    ///
    /// When there is no response, or it is not a success.
    pub(super) async fn post(&mut self, path: &str, body: Bytes) -> Result<Answer, Failure> {
        self.ask(Method::POST, path, body).await
    }

    async fn ask(&mut self, method: Method, path: &str, body: Bytes) -> Result<Answer, Failure> {
        const JSON: HeaderValue = HeaderValue::from_static("application/json");
        let mut request = Request::new(Full::new(body));
        let target = path
            .parse()
            .map_err(|_| Failure::Strange("the gateway returned a token that cannot be part of a URL".to_owned()))?;
        *request.uri_mut() = target;
        let headers = request.headers_mut();
        headers.insert(header::ACCEPT, JSON);
        if method == Method::POST {
            headers.insert(header::CONTENT_TYPE, JSON);
        }
        if let Some(authorization) = &self.authorization {
            headers.insert(header::AUTHORIZATION, authorization.clone());
        }
        *request.method_mut() = method;
        let answer = self
            .client
            .send(request)
            .await
            .map_err(|failure| Failure::Unanswered { address: self.client.address().to_string(), failure })?;
        match answer.status.is_success() {
            true => Ok(answer),
            false => Err(Failure::RefusedResponse(Box::new(RefusedResponse {
                refusal: Refusal::read(&answer, self.shown),
                answer,
            }))),
        }
    }
}
