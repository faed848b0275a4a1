//! From HTTP requests to responses, with scripted rules applied.
//!
//! The order is: the body is read, the request is recorded, a scripted rule is taken, the configured latency passes,
//! and then the [`api`] processes the request. So a script applies to every API request, whatever it asks.
//! `/_simulator/…` needs no credentials, and neither scripts nor rates apply to it.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderName, Method, Request, Response, StatusCode, header};
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::Deserialize;
use serde_json::{Value as Json, json};
use tokio::time::Instant;

use super::api::{self, Api};
use super::error::ApiError;
use super::faults::{self, Fault, Faults};
use super::job_faults::JobFault;
use super::journal::Journal;
use super::reply::Reply;
use super::status::{OperationError, Status};

const LARGEST_BODY: usize = 1 << 20;
const BODY_TIMEOUT: Duration = Duration::from_secs(30);

/// The state that all requests share.
pub struct Service {
    /// Answers API requests.
    pub api: Arc<Api>,
    /// Added to every API response.
    pub latency: Duration,
    /// Scripted responses.
    pub faults: Faults,
    /// The received requests.
    pub journal: Journal,
    /// API requests in progress.
    pub in_flight: AtomicUsize,
}

/// The connection is to be closed without a response.
#[derive(Debug)]
pub struct HangUp;

impl std::fmt::Display for HangUp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a script closes this connection")
    }
}

impl std::error::Error for HangUp {}

/// Answers one request, or asks to close its connection.
pub async fn answer<B>(service: Arc<Service>, request: Request<B>) -> Result<Response<AnswerBody>, HangUp>
where
    B: Body<Data = Bytes>,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let started = Instant::now();
    let (head, body) = request.into_parts();
    let _busy = Busy::new(&service);
    let body = collect(body).await;
    let (reply, cut) = if head.uri.path().starts_with("/_simulator/") {
        (control(&service, &head, body).unwrap_or_else(Reply::from), None)
    } else {
        scripted(&service, &head, body).await?
    };
    Ok(frame(&service, reply, cut, started))
}

/// Counts this request as in progress until it is dropped.
struct Busy<'a>(&'a AtomicUsize);

impl<'a> Busy<'a> {
    fn new(service: &'a Service) -> Self {
        service.in_flight.fetch_add(1, Ordering::Relaxed);
        Self(&service.in_flight)
    }
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

async fn collect<B>(body: B) -> Result<Bytes, ApiError>
where
    B: Body<Data = Bytes>,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    match tokio::time::timeout(BODY_TIMEOUT, Limited::new(body, LARGEST_BODY).collect()).await {
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            Err(ApiError::bad_request(format!("The request body is larger than {LARGEST_BODY} bytes")))
        }
        Ok(Err(_)) => Err(ApiError::bad_request("The request body could not be read")),
        Err(_) => Err(ApiError::slow_body()),
    }
}

/// An API request with the scripted rule applied. The number says where its body is to be cut.
async fn scripted(
    service: &Service,
    head: &Parts,
    body: Result<Bytes, ApiError>,
) -> Result<(Reply, Option<usize>), HangUp> {
    let received = body.as_ref().map_or(&[][..], |bytes| bytes);
    let entry = service.journal.record(head, received);
    let path = head.uri.path();
    let fault = path.starts_with("/v3/").then(|| service.faults.take(&head.method, path));
    let fault = fault.flatten().unwrap_or_default();
    let delay = service.latency + fault.delay.unwrap_or_default();
    // Even a sleep of zero waits for the timer's next tick.
    if !delay.is_zero() {
        tokio::time::sleep(delay).await;
    }
    if fault.reset {
        return Err(HangUp);
    }
    let mut reply = match &fault {
        Fault { body: Some(text), .. } => Reply::new(StatusCode::OK, "text/plain", text.clone()),
        Fault { status: Some(StatusCode::TOO_MANY_REQUESTS), .. } => {
            service.api.limiter.refusal(Duration::from_secs(1)).into()
        }
        Fault { status: Some(status), .. } if status.as_u16() >= 400 => ApiError::scripted(*status).into(),
        Fault { status: Some(status), .. } if status.as_u16() >= 300 => Reply::new(*status, "text/plain", Bytes::new()),
        _ => api::answer(&service.api, head, body).await.unwrap_or_else(Reply::from),
    };
    if let Some(delay) = fault.delay_answer {
        tokio::time::sleep(delay).await;
    }
    if fault.drop_answer {
        return Err(HangUp);
    }
    reply.status = fault.status.unwrap_or(reply.status);
    if let Some(content_type) = fault.content_type {
        reply.headers.insert(header::CONTENT_TYPE, content_type);
    }
    for (name, value) in fault.headers {
        reply.headers.insert(name, value);
    }
    for name in fault.without_headers {
        reply.headers.remove(name);
    }
    if let Some(patch) = &fault.merge
        && let Ok(mut json) = serde_json::from_slice::<Json>(&reply.body)
    {
        faults::merge(&mut json, patch);
        reply.body = json.to_string().into();
    }
    service.journal.answered(entry, reply.status.as_u16());
    Ok((reply, fault.cut_body_at))
}

/// The simulator's own resources.
fn control(service: &Service, head: &Parts, body: Result<Bytes, ApiError>) -> Result<Reply, ApiError> {
    let requests = || Reply::json(service.journal.describe().to_string());
    match (head.uri.path(), &head.method) {
        ("/_simulator/requests", &Method::GET) => Ok(requests()),
        ("/_simulator/requests", &Method::DELETE) => {
            service.journal.clear();
            Ok(requests())
        }
        ("/_simulator/requests", _) => Err(ApiError::method_not_allowed("GET, DELETE")),
        ("/_simulator/faults", &Method::GET) => Ok(pending(service)),
        ("/_simulator/faults", &Method::POST) => {
            script(service, &body?).map_err(ApiError::bad_request)?;
            Ok(pending(service))
        }
        ("/_simulator/faults", &Method::DELETE) => {
            service.faults.clear();
            service.api.jobs.clear_rules();
            Ok(pending(service))
        }
        ("/_simulator/faults", _) => Err(ApiError::method_not_allowed("GET, POST, DELETE")),
        (path, method) => match path.strip_prefix("/_simulator/jobs/") {
            Some(id) => settle(service, id, method, body),
            None => Err(ApiError::not_found()),
        },
    }
}

/// All pending rules, those for jobs last.
fn pending(service: &Service) -> Reply {
    let mut rules = service.faults.describe();
    rules.extend(service.api.jobs.describe_rules());
    Reply::value(StatusCode::OK, &json!({ "faults": rules }))
}

/// A rule with a number of jobs is for jobs, any other for requests.
fn script(service: &Service, text: &[u8]) -> Result<(), String> {
    let counts_jobs = serde_json::from_slice(text).is_ok_and(|rule: Json| rule.get("next_jobs").is_some());
    match counts_jobs {
        true => service.api.jobs.script(JobFault::from_json(text)?),
        false => service.faults.push(Fault::from_json(text)?),
    }
}

/// Sets the outcome of an existing job.
fn settle(service: &Service, id: &str, method: &Method, body: Result<Bytes, ApiError>) -> Result<Reply, ApiError> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Outcome {
        status: Status,
        error: Option<OperationError>,
    }
    let jobs = &service.api.jobs;
    let found = match *method {
        Method::PUT => {
            let outcome: Result<Outcome, _> = serde_json::from_slice(&body?);
            let Outcome { status, error } = outcome.map_err(|error| ApiError::bad_request(error.to_string()))?;
            jobs.settle(id, status, error, service.api.clock.now())
        }
        Method::DELETE => jobs.lose(id),
        _ => return Err(ApiError::method_not_allowed("PUT, DELETE")),
    };
    found.then(|| Reply::value(StatusCode::OK, &json!({}))).ok_or_else(ApiError::not_found)
}

fn frame(service: &Service, mut reply: Reply, cut: Option<usize>, started: Instant) -> Response<AnswerBody> {
    reply.set(HeaderName::from_static("twilio-request-id"), format!("RQ{:032x}", fastrand::u128(..)));
    let in_flight = service.in_flight.load(Ordering::Relaxed);
    reply.set(HeaderName::from_static("twilio-concurrent-requests"), in_flight.to_string());
    reply.set(HeaderName::from_static("twilio-request-duration"), format!("{:.3}", started.elapsed().as_secs_f64()));
    let mut response = Response::new(AnswerBody::new(reply.body, cut));
    *response.status_mut() = reply.status;
    *response.headers_mut() = reply.headers;
    response
}

/// A body that announces its full length and may end early.
pub struct AnswerBody {
    announced: u64,
    rest: Bytes,
    breaks: Break,
}

enum Break {
    Never,
    AtEnd,
    /// The server has had time to send what it has; without that time, it would drop it.
    Now,
}

impl AnswerBody {
    fn new(whole: Bytes, cut: Option<usize>) -> Self {
        let announced = whole.len() as u64;
        match cut {
            Some(cut) if cut < whole.len() => Self { announced, rest: whole.slice(..cut), breaks: Break::AtEnd },
            _ => Self { announced, rest: whole, breaks: Break::Never },
        }
    }
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        if !self.rest.is_empty() {
            let rest = std::mem::take(&mut self.rest);
            return Poll::Ready(Some(Ok(Frame::data(rest))));
        }
        match self.breaks {
            Break::Never => Poll::Ready(None),
            Break::AtEnd => {
                self.breaks = Break::Now;
                context.waker().wake_by_ref();
                Poll::Pending
            }
            Break::Now => Poll::Ready(Some(Err(io::Error::other("a script cuts this body")))),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && matches!(self.breaks, Break::Never)
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.announced)
    }
}

#[cfg(test)]
mod tests;
