//! From HTTP to answers: who is asking, for what, what a script has in store, and the bytes sent back.
//!
//! The order is: the body is read, the request is noted, a scripted rule is taken, the configured latency
//! passes, and only then is the request looked at: credentials, path, method, rate, content. So a script
//! reaches every API request, whatever it asks. `/_simulator/…` knows neither credentials nor scripts nor
//! rates.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde_json::Value as Json;
use tokio::time::Instant;

use super::cell::Item;
use super::data::Data;
use super::error::ApiError;
use super::evaluate::evaluate;
use super::faults::{Fault, Faults};
use super::journal::{Journal, basic};
use super::limit::Limiter;
use super::page::{self, Page, Tokens};
use super::query::{Query, essence};

const LARGEST_BODY: usize = 1 << 20;
const BODY_TIMEOUT: Duration = Duration::from_secs(30);
const PASSWORD: &str = "secret";
const METADATA: &str = "/v3/InsightsDomains/Conversations/Metadata";
const QUERY: &str = "/v3/InsightsDomains/Conversations/Query";

/// Everything that requests share.
pub struct Service {
    /// What is queried.
    pub data: Data,
    /// The Metadata answer, which never changes.
    pub metadata: Bytes,
    /// Makes and reads page tokens.
    pub tokens: Tokens,
    /// How many requests each user may make.
    pub limiter: Limiter,
    /// Added to every API answer.
    pub latency: Duration,
    /// Scripted answers.
    pub faults: Faults,
    /// What was received.
    pub journal: Journal,
    /// API requests being answered right now.
    pub in_flight: AtomicUsize,
}

/// The connection is to be closed without an answer.
#[derive(Debug)]
pub struct HangUp;

impl std::fmt::Display for HangUp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a script closes this connection")
    }
}

impl std::error::Error for HangUp {}

/// An answer before it is framed.
struct Reply {
    status: StatusCode,
    body: Bytes,
    headers: HeaderMap,
}

impl Reply {
    fn new(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Self {
        let content_type = HeaderValue::from_static(content_type);
        Self { status, body: body.into(), headers: HeaderMap::from_iter([(header::CONTENT_TYPE, content_type)]) }
    }

    fn json(body: impl Into<Bytes>) -> Self {
        Self::new(StatusCode::OK, "application/json", body)
    }

    fn set(&mut self, name: &'static str, value: String) {
        if let Ok(value) = HeaderValue::try_from(value) {
            self.headers.insert(HeaderName::from_static(name), value);
        }
    }
}

impl From<ApiError> for Reply {
    fn from(error: ApiError) -> Self {
        let mut reply = Self::new(error.status, "application/json", error.body().to_string());
        reply.headers.extend(error.headers);
        reply
    }
}

/// Answers one request, or asks for its connection to be closed.
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
        api(&service, &head, body).await?
    };
    Ok(frame(&service, reply, cut, started))
}

/// Counts this request among those in flight until it is dropped.
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

/// An API request with everything around it; the number is where its body is to be cut.
async fn api(
    service: &Arc<Service>,
    head: &Parts,
    body: Result<Bytes, ApiError>,
) -> Result<(Reply, Option<usize>), HangUp> {
    let received = body.as_ref().map_or(&[][..], |bytes| bytes);
    let entry = service.journal.record(head, received);
    let scripted = head.uri.path().starts_with("/v3/");
    let fault = scripted.then(|| service.faults.take()).flatten().unwrap_or_default();
    let delay = service.latency + fault.delay.unwrap_or_default();
    // Even a sleep of no length waits for the timer's next tick.
    if !delay.is_zero() {
        tokio::time::sleep(delay).await;
    }
    if fault.reset {
        return Err(HangUp);
    }
    let mut reply = match &fault {
        Fault { body: Some(text), .. } => Reply::new(StatusCode::OK, "text/plain", text.clone()),
        Fault { status: Some(StatusCode::TOO_MANY_REQUESTS), .. } => {
            service.limiter.refusal(Duration::from_secs(1)).into()
        }
        Fault { status: Some(status), .. } if status.as_u16() >= 400 => ApiError::scripted(*status).into(),
        Fault { status: Some(status), .. } if status.as_u16() >= 300 => Reply::new(*status, "text/plain", Bytes::new()),
        _ => ordinary(service, head, body).await.unwrap_or_else(Reply::from),
    };
    reply.status = fault.status.unwrap_or(reply.status);
    if let Some(content_type) = fault.content_type {
        reply.headers.insert(header::CONTENT_TYPE, content_type);
    }
    for (name, value) in fault.headers {
        reply.headers.insert(name, value);
    }
    service.journal.answered(entry, reply.status.as_u16());
    Ok((reply, fault.cut_body_at))
}

/// What the API itself says.
async fn ordinary(service: &Arc<Service>, head: &Parts, body: Result<Bytes, ApiError>) -> Result<Reply, ApiError> {
    let user = match basic(&head.headers) {
        Some((user, password)) if !user.is_empty() && password == PASSWORD => user,
        _ => return Err(ApiError::unauthorized()),
    };
    let query = head.uri.query().unwrap_or_default();
    let page = match (head.uri.path(), &head.method) {
        (METADATA, &Method::GET) => {
            service.limiter.take(&user, Instant::now())?;
            return Ok(Reply::json(service.metadata.clone()));
        }
        (METADATA, _) => return Err(ApiError::method_not_allowed("GET")),
        (QUERY, &Method::GET) => {
            service.limiter.take(&user, Instant::now())?;
            let token = parameter(query, &["pageToken", "PageToken"])
                .ok_or_else(|| ApiError::bad_request("pageToken is required"))?;
            service.tokens.open(&token, &user)?
        }
        (QUERY, &Method::POST) => {
            service.limiter.take(&user, Instant::now())?;
            if is_form(&head.headers) {
                return Err(ApiError::unsupported_media_type());
            }
            first_page(query, &body?)?
        }
        (QUERY, _) => return Err(ApiError::method_not_allowed("GET, POST")),
        _ => return Err(ApiError::not_found()),
    };
    // Evaluation is pure computation, and a hostile query may take a while.
    let service = Arc::clone(service);
    let rows = tokio::task::spawn_blocking(move || rows(&service, &page, &user));
    Ok(Reply::json(rows.await.map_err(|_| ApiError::internal())??))
}

fn first_page(query: &str, body: &[u8]) -> Result<Page, ApiError> {
    let body: Json = serde_json::from_slice(body)
        .map_err(|error| ApiError::bad_request(format!("The request body is not JSON: {error}")))?;
    let in_url = parameter(query, &["pageSize", "PageSize"]);
    // The whole body is checked here, since its essence leaves out what does not decide the rows.
    Query::parse(&body)?;
    Ok(Page { size: page::size(in_url.as_deref(), body.as_object())?, query: essence(&body).into(), offset: 0 })
}

/// One page of a query, as bytes.
fn rows(service: &Service, page: &Page, user: &str) -> Result<Vec<u8>, ApiError> {
    #[derive(serde::Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Meta {
        key: &'static str,
        page_size: usize,
        #[serde(skip_serializing_if = "Option::is_none")]
        previous_token: Option<String>,
        #[serde(skip_serializing_if = "Option::is_none")]
        next_token: Option<String>,
    }
    #[derive(serde::Serialize)]
    struct Answer<'a> {
        domain: &'static str,
        items: Vec<Item<'a>>,
        meta: Meta,
    }
    let body: Json = serde_json::from_str(&page.query).map_err(|_| ApiError::internal())?;
    let table = evaluate(&service.data, &Query::parse(&body)?);
    let shown = table.rows.iter().skip(page.offset).take(page.size);
    let items: Vec<_> = shown.map(|cells| Item { names: &table.names, cells }).collect();
    let seal = |page: Page| service.tokens.seal(&page, user);
    let answer = Answer {
        domain: "Conversations",
        meta: Meta {
            key: "items",
            page_size: items.len(),
            previous_token: page.previous().map(seal),
            next_token: page.next(table.rows.len()).map(seal),
        },
        items,
    };
    serde_json::to_vec(&answer).map_err(|_| ApiError::internal())
}

/// The simulator's own resources.
fn control(service: &Service, head: &Parts, body: Result<Bytes, ApiError>) -> Result<Reply, ApiError> {
    let faults = || Reply::json(service.faults.describe().to_string());
    let requests = || Reply::json(service.journal.describe().to_string());
    match (head.uri.path(), &head.method) {
        ("/_simulator/requests", &Method::GET) => Ok(requests()),
        ("/_simulator/requests", &Method::DELETE) => {
            service.journal.clear();
            Ok(requests())
        }
        ("/_simulator/requests", _) => Err(ApiError::method_not_allowed("GET, DELETE")),
        ("/_simulator/faults", &Method::GET) => Ok(faults()),
        ("/_simulator/faults", &Method::POST) => {
            let fault = Fault::from_json(&body?).and_then(|fault| service.faults.push(fault));
            fault.map_err(ApiError::bad_request)?;
            Ok(faults())
        }
        ("/_simulator/faults", &Method::DELETE) => {
            service.faults.clear();
            Ok(faults())
        }
        ("/_simulator/faults", _) => Err(ApiError::method_not_allowed("GET, POST, DELETE")),
        _ => Err(ApiError::not_found()),
    }
}

fn is_form(headers: &HeaderMap) -> bool {
    let content_type = headers.get(header::CONTENT_TYPE).map(HeaderValue::as_bytes);
    let starts_with = |kind: &[u8]| {
        content_type.and_then(|text| text.get(..kind.len())).is_some_and(|start| start.eq_ignore_ascii_case(kind))
    };
    starts_with(b"application/x-www-form-urlencoded") || starts_with(b"multipart/form-data")
}

/// The first parameter of one of these names. A `+` stays a `+`, since tokens hold it and never a space.
fn parameter(query: &str, names: &[&str]) -> Option<String> {
    query.split('&').find_map(|pair| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        names.contains(&percent_decoded(name).as_str()).then(|| percent_decoded(value))
    })
}

fn percent_decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        let hex = |digit: u8| char::from(digit).to_digit(16);
        match after {
            [high, low, after @ ..] if *first == b'%' => {
                if let (Some(high), Some(low)) = (hex(*high), hex(*low)) {
                    bytes.push((high * 16 + low) as u8);
                    rest = after;
                    continue;
                }
            }
            _ => {}
        }
        bytes.push(*first);
        rest = after;
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn frame(service: &Service, mut reply: Reply, cut: Option<usize>, started: Instant) -> Response<AnswerBody> {
    reply.set("twilio-request-id", format!("RQ{:032x}", fastrand::u128(..)));
    let in_flight = service.in_flight.load(Ordering::Relaxed);
    reply.set("twilio-concurrent-requests", in_flight.to_string());
    reply.set("twilio-request-duration", format!("{:.3}", started.elapsed().as_secs_f64()));
    let mut response = Response::new(AnswerBody::new(reply.body, cut));
    *response.status_mut() = reply.status;
    *response.headers_mut() = reply.headers;
    response
}

/// A body that announces its whole length and may break off before its end.
pub struct AnswerBody {
    announced: u64,
    rest: Bytes,
    breaks: Break,
}

enum Break {
    Never,
    AtEnd,
    /// The server has been given time to send what it has; without that, it would drop it.
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
#[path = "http_tests.rs"]
mod tests;
