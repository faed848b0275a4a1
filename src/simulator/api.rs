//! The API itself: which resources exist, who may use them, and what they answer.
//!
//! The order of the checks is: credentials, path, method, rate, content. Page sizes above the largest are reduced to it
//! everywhere, although published material calls it a maximum, because Twilio's SDKs send the limit of a whole list as
//! the page size. A token determines what is paged. Another page size may be given with it, and a status only if it is
//! the same. Parameters and `Idempotency-Key`s that a resource does not use are ignored.

use std::sync::Arc;

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value as Json, json};
use tokio::time::Instant;

use super::catalog;
use super::cell::Item;
use super::data::Data;
use super::error::{ApiError, quoted};
use super::evaluate::evaluate;
use super::fields::{Described, Fields};
use super::jobs::{self, Jobs, Submission};
use super::journal::basic;
use super::limit::Limiter;
use super::page::{self, Page, Tokens};
use super::query::{Query, essence};
use super::reply::Reply;
use super::status::Status;

const PASSWORD: &str = "secret";
const METADATA: &str = "/v3/InsightsDomains/Conversations/Metadata";
const QUERY: &str = "/v3/InsightsDomains/Conversations/Query";
const FIELDS: &str = "/v3/ControlPlane/ConversationInsights/CustomFieldMappings";
/// The path of the newer revision, and of the older one.
const CAPACITY: [&str; 2] = [
    "/v3/ControlPlane/ConversationInsights/CustomFieldMappingsCapacity",
    "/v3/ControlPlane/ConversationInsights/CustomFieldMappings/Capacity",
];

/// The state from which answers are made.
pub struct Api {
    /// The data for queries.
    pub data: Data,
    /// Makes and reads page tokens.
    pub tokens: Tokens,
    /// How many requests each user may make.
    pub limiter: Limiter,
    /// Query jobs.
    pub jobs: Jobs,
    /// Custom fields.
    pub fields: Fields,
    /// The time.
    pub clock: Clock,
    /// Scheme, host and optional path before the API's own path in every link; without it, those of the request.
    pub public_url: Option<String>,
}

/// A clock that starts where the data ends and runs with the runtime's time.
pub struct Clock {
    began: Instant,
    epoch: Timestamp,
}

impl Clock {
    /// A clock that shows `epoch` now.
    pub fn starting(epoch: Timestamp) -> Self {
        Self { began: Instant::now(), epoch }
    }

    /// The time now.
    pub fn now(&self) -> Timestamp {
        let elapsed = SignedDuration::try_from(self.began.elapsed()).unwrap_or(SignedDuration::MAX);
        self.epoch.checked_add(elapsed).unwrap_or(Timestamp::MAX)
    }
}

/// The resource of a path.
#[derive(Clone, Copy)]
enum Resource<'a> {
    Metadata,
    Query,
    Jobs,
    Job(&'a str),
    Results(&'a str),
    Fields,
    Field(&'a str),
    Capacity,
}

impl<'a> Resource<'a> {
    fn of(path: &'a str) -> Option<Self> {
        let below = |root: &str| path.strip_prefix(root)?.strip_prefix('/').filter(|rest| !rest.is_empty());
        match path {
            METADATA => return Some(Self::Metadata),
            QUERY => return Some(Self::Query),
            jobs::PATH => return Some(Self::Jobs),
            FIELDS => return Some(Self::Fields),
            _ if CAPACITY.contains(&path) => return Some(Self::Capacity),
            _ => {}
        }
        if let Some(rest) = below(jobs::PATH) {
            return match rest.split_once('/') {
                None => Some(Self::Job(rest)),
                Some((id, "Results")) if !id.is_empty() => Some(Self::Results(id)),
                Some(_) => None,
            };
        }
        below(FIELDS).filter(|id| !id.contains('/')).map(Self::Field)
    }

    fn allow(self) -> &'static str {
        match self {
            Self::Metadata | Self::Job(_) | Self::Results(_) | Self::Capacity => "GET",
            Self::Query | Self::Jobs | Self::Fields => "GET, POST",
            Self::Field(_) => "GET, PATCH",
        }
    }
}

/// A request with a known sender.
struct Asked<'a> {
    head: &'a Parts,
    body: Result<Bytes, ApiError>,
    user: String,
}

impl Asked<'_> {
    fn parameter(&self, name: &str) -> Option<String> {
        // Twilio's SDKs write some parameters with a capital.
        let capital = format!("{}{}", name[..1].to_ascii_uppercase(), &name[1..]);
        parameter(self.head.uri.query().unwrap_or_default(), &[name, &capital])
    }

    fn json_bytes(&self) -> Result<&Bytes, ApiError> {
        if is_form(&self.head.headers) {
            return Err(ApiError::unsupported_media_type());
        }
        self.body.as_ref().map_err(Clone::clone)
    }

    fn json(&self) -> Result<Json, ApiError> {
        serde_json::from_slice(self.json_bytes()?)
            .map_err(|error| ApiError::bad_request(format!("The request body is not JSON: {error}")))
    }

    fn idempotency_key(&self) -> Result<Option<String>, ApiError> {
        let mut keys = self.head.headers.get_all("idempotency-key").iter();
        match (keys.next(), keys.next()) {
            (None, _) => Ok(None),
            (Some(key), None) => jobs::key(key.to_str().unwrap_or_default()).map(Some),
            (Some(_), Some(_)) => Err(ApiError::bad_request("There may be one Idempotency-Key")),
        }
    }

    fn if_match(&self) -> Option<String> {
        let values = self.head.headers.get_all(header::IF_MATCH).iter();
        let values: Vec<&str> = values.map(|value| value.to_str().unwrap_or_default()).collect();
        (!values.is_empty()).then(|| values.join(","))
    }

    /// The requested page, from its token, else the first one.
    fn page(&self, tokens: &Tokens, scope: &[&str], first: impl FnOnce() -> Page) -> Result<Page, ApiError> {
        let in_url = self.parameter("pageSize");
        let size = page::size(in_url.as_deref(), None)?;
        let page = match self.parameter("pageToken") {
            Some(token) => tokens.open(&token, scope)?,
            None => Page { size, ..first() },
        };
        Ok(if in_url.is_some() { Page { size, ..page } } else { page })
    }
}

/// Answers a request.
pub async fn answer(api: &Arc<Api>, head: &Parts, body: Result<Bytes, ApiError>) -> Result<Reply, ApiError> {
    let user = match basic(&head.headers) {
        Some((user, password)) if !user.is_empty() && password == PASSWORD => user,
        _ => return Err(ApiError::unauthorized()),
    };
    let resource = Resource::of(head.uri.path()).ok_or_else(ApiError::not_found)?;
    if !resource.allow().split(", ").any(|method| method == head.method.as_str()) {
        return Err(ApiError::method_not_allowed(resource.allow()));
    }
    api.limiter.take(&user, Instant::now())?;
    let asked = Asked { head, body, user };
    let reads = head.method == Method::GET;
    match resource {
        Resource::Metadata => Ok(Reply::value(StatusCode::OK, &catalog::metadata(&api.fields.measures(&asked.user)))),
        Resource::Query if reads => api.later_page(asked).await,
        Resource::Query => api.first_page(asked).await,
        Resource::Jobs if reads => api.list_jobs(&asked),
        Resource::Jobs => api.submit_job(&asked),
        Resource::Job(id) => api.job_status(&asked, id),
        Resource::Results(id) => api.job_results(asked, id).await,
        Resource::Fields if reads => api.list_fields(&asked),
        Resource::Fields => api.create_field(&asked),
        Resource::Field(id) if reads => api.fields.fetch(&asked.user, id).map(|field| with_etag(&field)),
        Resource::Field(id) => api.patch_field(&asked, id),
        Resource::Capacity => Ok(Reply::value(StatusCode::OK, &api.fields.capacity(&asked.user))),
    }
}

impl Api {
    async fn first_page(self: &Arc<Self>, asked: Asked<'_>) -> Result<Reply, ApiError> {
        let body = asked.json()?;
        let query = Query::parse(&body, &self.fields.measures(&asked.user))?;
        let size = page::size(asked.parameter("pageSize").as_deref(), body.as_object())?;
        let page = Page { size, query: essence(&body).into(), offset: 0 };
        self.rows(Arc::new(query), page, vec![asked.user]).await
    }

    async fn later_page(self: &Arc<Self>, asked: Asked<'_>) -> Result<Reply, ApiError> {
        let token = asked.parameter("pageToken").ok_or_else(|| ApiError::bad_request("pageToken is required"))?;
        let page = self.tokens.open(&token, &[&asked.user])?;
        let body: Json = serde_json::from_str(&page.query).map_err(|_| ApiError::internal())?;
        let query = Query::parse(&body, &self.fields.measures(&asked.user))?;
        self.rows(Arc::new(query), page, vec![asked.user]).await
    }

    /// Evaluates on a blocking thread, because a large query may take a while.
    async fn rows(self: &Arc<Self>, query: Arc<Query>, page: Page, scope: Vec<String>) -> Result<Reply, ApiError> {
        let api = Arc::clone(self);
        let rows = tokio::task::spawn_blocking(move || {
            let scope: Vec<&str> = scope.iter().map(String::as_str).collect();
            rows(&api, &query, &page, &scope)
        });
        Ok(Reply::json(rows.await.map_err(|_| ApiError::internal())??))
    }

    fn submit_job(&self, asked: &Asked<'_>) -> Result<Reply, ApiError> {
        let body = asked.json()?;
        let submission = Submission {
            user: asked.user.clone(),
            key: asked.idempotency_key()?,
            query: Query::parse(&body, &self.fields.measures(&asked.user))?,
            fingerprint: blake3::hash(body.to_string().as_bytes()),
            bytes: asked.json_bytes()?.len(),
        };
        let job = self.jobs.submit(submission, self.clock.now())?;
        let base = self.base(asked.head);
        let mut reply = Reply::value(StatusCode::ACCEPTED, &job.accepted(&base));
        reply.set(header::LOCATION, job.status_url(&base));
        set_wait(&mut reply, job.wait);
        Ok(reply)
    }

    fn job_status(&self, asked: &Asked<'_>, id: &str) -> Result<Reply, ApiError> {
        let job = self.jobs.fetch(&asked.user, id, self.clock.now())?;
        let mut reply = Reply::value(StatusCode::OK, &job.describe(&self.base(asked.head)));
        set_wait(&mut reply, job.wait);
        Ok(reply)
    }

    async fn job_results(self: &Arc<Self>, asked: Asked<'_>, id: &str) -> Result<Reply, ApiError> {
        let query = self.jobs.results(&asked.user, id, self.clock.now())?;
        let first = || Page { query: Arc::from(""), offset: 0, size: 0 };
        let page = asked.page(&self.tokens, &[&asked.user, id], first)?;
        self.rows(query, page, vec![asked.user, id.to_owned()]).await
    }

    fn list_jobs(&self, asked: &Asked<'_>) -> Result<Reply, ApiError> {
        let wanted = asked.parameter("status");
        let unknown = |word: &str| ApiError::bad_request(format!("{} is not a status of a job", quoted(word)));
        if let Some(word) = &wanted
            && Status::from_word(word).is_none()
        {
            return Err(unknown(word));
        }
        let scope = [&*asked.user, "QueryJobs"];
        let first = || Page { query: wanted.clone().unwrap_or_default().into(), offset: usize::MAX, size: 0 };
        let page = asked.page(&self.tokens, &scope, first)?;
        if wanted.is_some_and(|wanted| wanted != *page.query) {
            return Err(ApiError::bad_request("The pageToken belongs to a list of another status"));
        }
        let listing =
            self.jobs.list(&asked.user, Status::from_word(&page.query), page.offset, page.size, self.clock.now());
        let base = self.base(asked.head);
        let seal = |offset| self.tokens.seal(&Page { offset, ..page.clone() }, &scope);
        let items: Vec<Json> = listing.jobs.iter().map(|job| job.describe(&base)).collect();
        let meta = meta("items", items.len(), listing.previous.map(seal), listing.next.map(seal));
        Ok(Reply::value(StatusCode::OK, &json!({"items": items, "meta": meta})))
    }

    fn list_fields(&self, asked: &Asked<'_>) -> Result<Reply, ApiError> {
        let scope = [&*asked.user, "CustomFieldMappings"];
        let first = || Page { query: Arc::from(""), offset: 0, size: 0 };
        let page = asked.page(&self.tokens, &scope, first)?;
        let fields = self.fields.list(&asked.user);
        let shown: Vec<&Json> = fields.iter().skip(page.offset).take(page.size).collect();
        let seal = |page: Page| self.tokens.seal(&page, &scope);
        let meta = meta("mappings", shown.len(), page.previous().map(seal), page.next(fields.len()).map(seal));
        Ok(Reply::value(StatusCode::OK, &json!({"mappings": shown, "meta": meta})))
    }

    fn create_field(&self, asked: &Asked<'_>) -> Result<Reply, ApiError> {
        let now = self.clock.now();
        let field = self.fields.create(&asked.user, asked.json_bytes()?, &self.data.operators, now)?;
        let status = if field.is_new { StatusCode::CREATED } else { StatusCode::OK };
        Ok(Reply::value(status, &field.body))
    }

    fn patch_field(&self, asked: &Asked<'_>, id: &str) -> Result<Reply, ApiError> {
        let (body, if_match, now) = (asked.json_bytes()?, asked.if_match(), self.clock.now());
        let field = self.fields.patch(&asked.user, id, if_match.as_deref(), body, &self.data.operators, now)?;
        Ok(with_etag(&field))
    }

    /// The beginning of links.
    fn base(&self, head: &Parts) -> String {
        let host = || head.headers.get(header::HOST).and_then(|host| host.to_str().ok());
        match &self.public_url {
            Some(url) => url.trim_end_matches('/').to_owned(),
            None => format!("http://{}", head.uri.authority().map(|a| a.as_str()).or_else(host).unwrap_or("localhost")),
        }
    }
}

fn with_etag(field: &Described) -> Reply {
    let mut reply = Reply::value(StatusCode::OK, &field.body);
    reply.set(header::ETAG, field.etag.clone());
    reply
}

fn set_wait(reply: &mut Reply, wait: Option<u64>) {
    if let Some(seconds) = wait {
        reply.set(header::RETRY_AFTER, seconds.to_string());
    }
}

/// The `meta` of a page. Tokens that do not exist are left out.
fn meta(key: &str, count: usize, previous: Option<String>, next: Option<String>) -> Json {
    let mut meta = json!({"key": key, "pageSize": count});
    for (name, token) in [("previousToken", previous), ("nextToken", next)] {
        if let Some(token) = token {
            meta[name] = token.into();
        }
    }
    meta
}

/// One page of a query, as bytes.
fn rows(api: &Api, query: &Query, page: &Page, scope: &[&str]) -> Result<Vec<u8>, ApiError> {
    #[derive(serde::Serialize)]
    struct Answer<'a> {
        domain: &'static str,
        items: Vec<Item<'a>>,
        meta: Json,
    }
    let table = evaluate(&api.data, query);
    let shown = table.rows.iter().skip(page.offset).take(page.size);
    let items: Vec<_> = shown.map(|cells| Item { names: &table.names, cells }).collect();
    let seal = |page: Page| api.tokens.seal(&page, scope);
    let answer = Answer {
        domain: "Conversations",
        meta: meta("items", items.len(), page.previous().map(seal), page.next(table.rows.len()).map(seal)),
        items,
    };
    serde_json::to_vec(&answer).map_err(|_| ApiError::internal())
}

fn is_form(headers: &HeaderMap) -> bool {
    let content_type = headers.get(header::CONTENT_TYPE).map(HeaderValue::as_bytes);
    let starts_with = |kind: &[u8]| {
        content_type.and_then(|text| text.get(..kind.len())).is_some_and(|start| start.eq_ignore_ascii_case(kind))
    };
    starts_with(b"application/x-www-form-urlencoded") || starts_with(b"multipart/form-data")
}

/// The first parameter with one of these names. A `+` stays a `+`, because tokens contain it and never a space.
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

#[cfg(test)]
mod tests;
