//! Twilio's API in one table: its endpoints, and how the gateway treats each of them.
//!
//! Routing, permissions, the request body, the cache, retries and the upstream request all read [`ENDPOINTS`]. A new
//! endpoint that behaves like another one needs only an entry.
//!
//! The table is an allow-list. A path is compared byte by byte and never normalised, so dot segments, doubled or encoded
//! slashes and other spellings match nothing.

use std::borrow::Cow;

use http::Method;

use super::permission::Permission;
use crate::core::set_once::Listed;

/// The operation that a client requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Operation {
    /// The cubes, measures and dimensions of the domain.
    Metadata,
    /// The first page of a query.
    Query,
    /// A further page of a query.
    Page,
    /// Submission of a query job.
    JobSubmit,
    /// The list of query jobs.
    JobList,
    /// The status of a query job.
    JobStatus,
    /// A page of a query job's results.
    JobResults,
    /// Reading custom field mappings.
    FieldsRead,
    /// Writing a custom field mapping.
    FieldsWrite,
}

impl Listed for Operation {
    const ALL: &'static [Self] = &Self::ALL;

    fn place(self) -> u8 {
        self as u8
    }
}

impl Operation {
    /// All operations, in the order of the contract.
    pub const ALL: [Self; 9] = [
        Self::Metadata,
        Self::Query,
        Self::Page,
        Self::JobSubmit,
        Self::JobList,
        Self::JobStatus,
        Self::JobResults,
        Self::FieldsRead,
        Self::FieldsWrite,
    ];

    /// The name in logs, metrics and keys.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Metadata => "metadata",
            Self::Query => "query",
            Self::Page => "page",
            Self::JobSubmit => "job-submit",
            Self::JobList => "job-list",
            Self::JobStatus => "job-status",
            Self::JobResults => "job-results",
            Self::FieldsRead => "fields-read",
            Self::FieldsWrite => "fields-write",
        }
    }

    /// Its first entry. The entries of one operation differ only in method, path and headers.
    pub fn endpoint(self) -> &'static Endpoint {
        &ENDPOINTS[FIRST[self as usize]]
    }
}

/// One method of one path.
#[derive(Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// The method, here and upstream. Where it is GET, clients may also send HEAD.
    pub method: Method,
    /// The path, here and upstream. It has at most one parameter, written `{name}`, which matches an id.
    pub path: &'static str,
    /// The operation.
    pub operation: Operation,
    /// The permission that a team needs for it.
    pub permission: Permission,
    /// The body of a request.
    pub body: Body,
    /// How long its responses are stored.
    pub cache: CacheClass,
    /// When a request may be sent again.
    pub repeat: Repeatability,
    /// The client's headers that go upstream, in lower case. All others do not.
    pub sends: &'static [&'static str],
    /// Twilio's headers that a client gets with a success, in addition to those that every response may have. In lower
    /// case.
    pub returns: &'static [&'static str],
}

/// The body of a request. The body of any other request is not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Body {
    /// No body.
    None,
    /// A query.
    Query,
    /// A custom field mapping, which is passed on unchanged.
    Field,
}

/// How long responses are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CacheClass {
    /// Not stored.
    None,
    /// For the time in `cache.metadata`.
    Metadata,
    /// For the time in `cache.query`, or in `cache.settled` for a settled query. The response begins a result set.
    Query,
    /// As long as the first page of its result set.
    Page,
    /// The answer to a submission: reused for identical submissions within `cache.jobs.dedup`.
    Job,
    /// The status of a job: until its `Retry-After` has passed. Once the job has ended, for as long as its results.
    Status,
    /// The results of a job: for as long as Twilio keeps them, and at most for `cache.jobs.results`.
    Results,
}

/// When a request that failed may be sent again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Repeatability {
    /// Always, because it only reads.
    Safe,
    /// Always, because it has an idempotency key.
    WithKey,
    /// Only where Twilio has not processed it: nothing was sent, or the response is a 429.
    OnlyUnsent,
    /// Only where nothing was sent. It is a poll, and Twilio says how long to wait before the next one.
    Poll,
}

macro_rules! endpoints {
    ($($base:literal {$(
        $method:ident $path:literal $operation:ident $permission:ident $body:ident $cache:ident $repeat:ident
            $sends:tt $returns:tt;
    )+})+) => {
        &[$($(Endpoint {
            method: Method::$method,
            path: concat!($base, $path),
            operation: Operation::$operation,
            permission: Permission::$permission,
            body: Body::$body,
            cache: CacheClass::$cache,
            repeat: Repeatability::$repeat,
            sends: &$sends,
            returns: &$returns,
        },)+)+]
    };
}

/// What makes a submission safe to repeat: Twilio runs one job for all requests with the same key.
pub const IDEMPOTENCY_KEY: &str = "idempotency-key";

/// Twilio's API, in the order of its documentation. Of the entries with the same method, the first whose path matches
/// is used.
pub static ENDPOINTS: &[Endpoint] = endpoints! {
    "/v3/InsightsDomains/Conversations" {
        //     path                                 operation   permission  body  stored   repeated   sends             returns
        GET    "/Metadata"                          Metadata    Metadata    None  Metadata Safe       []                [];
        POST   "/Query"                             Query       Query       Query Query    Safe       []                [];
        GET    "/Query"                             Page        Query       None  Page     Safe       []                [];
        POST   "/QueryJobs"                         JobSubmit   Jobs        Query Job      WithKey    [IDEMPOTENCY_KEY] ["location", "retry-after"];
        GET    "/QueryJobs"                         JobList     Jobs        None  None     Safe       []                [];
        GET    "/QueryJobs/{operationId}"           JobStatus   Jobs        None  Status   Poll       []                ["retry-after"];
        GET    "/QueryJobs/{operationId}/Results"   JobResults  Jobs        None  Results  Safe       []                [];
    }
    "/v3/ControlPlane/ConversationInsights" {
        GET    "/CustomFieldMappings"               FieldsRead  FieldsRead  None  None     Safe       []                [];
        GET    "/CustomFieldMappingsCapacity"       FieldsRead  FieldsRead  None  None     Safe       []                [];
        GET    "/CustomFieldMappings/Capacity"      FieldsRead  FieldsRead  None  None     Safe       []                [];
        GET    "/CustomFieldMappings/{mappingId}"   FieldsRead  FieldsRead  None  None     Safe       []                ["etag"];
        POST   "/CustomFieldMappings"               FieldsWrite FieldsWrite Field None     OnlyUnsent []                ["etag"];
        PATCH  "/CustomFieldMappings/{mappingId}"   FieldsWrite FieldsWrite Field None     OnlyUnsent ["if-match"]      ["etag"];
    }
};

/// The index of each operation's first entry.
const FIRST: [usize; Operation::ALL.len()] = {
    let mut first = [usize::MAX; Operation::ALL.len()];
    let mut at = ENDPOINTS.len();
    while at > 0 {
        at -= 1;
        first[ENDPOINTS[at].operation as usize] = at;
    }
    first
};

impl Endpoint {
    fn is_at(&self, path: &str) -> bool {
        self.is_literally(path) || self.id(path).is_some()
    }

    /// Whether `path` is its path. A template in braces is no path.
    fn is_literally(&self, path: &str) -> bool {
        self.path == path && !path.contains('{')
    }

    /// The parts of its path before and after the id; `None` where there is no id.
    fn around_id(&self) -> Option<(&'static str, &'static str)> {
        let (before, rest) = self.path.split_once('{')?;
        let (_, after) = rest.split_once('}')?;
        Some((before, after))
    }

    /// The id in a path of this endpoint; `None` where its paths have none, or `path` is not one of them.
    pub fn id<'p>(&self, path: &'p str) -> Option<&'p str> {
        let (before, after) = self.around_id()?;
        path.strip_prefix(before)?.strip_suffix(after).filter(|id| is_id(id))
    }

    /// Its path with this id, if it has one.
    pub fn path_of(&self, id: &str) -> Cow<'static, str> {
        match self.around_id() {
            Some((before, after)) => [before, id, after].concat().into(),
            None => self.path.into(),
        }
    }
}

/// Twilio's ids are opaque. A text that could be read as more than one path segment is not accepted as an id.
pub fn is_id(text: &str) -> bool {
    (1..=128).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'))
}

/// The result of routing a method and a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Route {
    /// An endpoint.
    Found(&'static Endpoint),
    /// [`USAGE`].
    Usage,
    /// The path exists, but only with these methods: the value of `Allow`.
    MethodNotAllowed(String),
    /// No endpoint.
    NotFound,
}

/// The gateway's own path beside Twilio's. It answers what the calling team has used.
pub const USAGE: &str = "/_gateway/usage";

/// Finds the endpoint of a method and a path.
pub fn route(method: &Method, path: &str) -> Route {
    let method = if *method == Method::HEAD { &Method::GET } else { method };
    // A path that is in the table literally must not also match a path with an id.
    let here = || {
        let is_literal = ENDPOINTS.iter().any(|endpoint| endpoint.is_literally(path));
        ENDPOINTS
            .iter()
            .filter(move |endpoint| if is_literal { endpoint.is_literally(path) } else { endpoint.is_at(path) })
    };
    // Paths without a parameter first, because nearly all requests have one of these.
    let exact = ENDPOINTS.iter().find(|endpoint| endpoint.method == *method && endpoint.is_literally(path));
    match exact.or_else(|| here().find(|endpoint| endpoint.method == *method)).or_else(|| here().next()) {
        None if path == USAGE && *method == Method::GET => Route::Usage,
        None if path == USAGE => Route::MethodNotAllowed("GET, HEAD".to_owned()),
        None => Route::NotFound,
        Some(endpoint) if endpoint.method == *method => Route::Found(endpoint),
        Some(_) => {
            let mut allowed = [(Method::GET, "GET, HEAD"), (Method::POST, "POST"), (Method::PATCH, "PATCH")].to_vec();
            allowed.retain(|(method, _)| here().any(|endpoint| endpoint.method == *method));
            Route::MethodNotAllowed(allowed.into_iter().map(|(_, words)| words).collect::<Vec<_>>().join(", "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUERY: &str = "/v3/InsightsDomains/Conversations/Query";
    const METADATA: &str = "/v3/InsightsDomains/Conversations/Metadata";
    const JOBS: &str = "/v3/InsightsDomains/Conversations/QueryJobs";
    const FIELDS: &str = "/v3/ControlPlane/ConversationInsights/CustomFieldMappings";

    #[test]
    fn every_operation_has_entries_that_differ_only_in_method_and_path() {
        for operation in Operation::ALL {
            assert_eq!(operation.endpoint().operation, operation);
        }
        for one in ENDPOINTS {
            let Endpoint { method, path, sends, returns, .. } = one;
            let Endpoint { operation, permission, body, cache, repeat, .. } = *one.operation.endpoint();
            let method = method.clone();
            let same = Endpoint { method, path, operation, permission, body, cache, repeat, sends, returns };
            assert_eq!(*one, same);
        }
    }

    #[test]
    fn every_entry_is_found_by_its_method_and_path() {
        for endpoint in ENDPOINTS {
            let path = endpoint.path.replace(['{', '}'], "");
            let found = Route::Found(endpoint);
            assert_eq!(route(&endpoint.method, &path), found, "{path}");
            if endpoint.method == Method::GET {
                assert_eq!(route(&Method::HEAD, &path), found, "{path}");
            }
        }
        assert_eq!(route(&Method::POST, QUERY), Route::Found(Operation::Query.endpoint()));
        assert_eq!(route(&Method::GET, QUERY), Route::Found(Operation::Page.endpoint()));
    }

    #[test]
    fn a_path_says_which_methods_it_has() {
        let allowed = |methods: &str| Route::MethodNotAllowed(methods.to_owned());
        assert_eq!(route(&Method::PUT, QUERY), allowed("GET, HEAD, POST"));
        assert_eq!(route(&Method::POST, METADATA), allowed("GET, HEAD"));
        for method in [Method::GET, Method::POST, Method::DELETE, Method::OPTIONS] {
            assert_ne!(route(&method, &format!("{FIELDS}/x")), Route::NotFound);
        }
        assert_eq!(route(&Method::DELETE, FIELDS), allowed("GET, HEAD, POST"));
        assert_eq!(route(&Method::POST, &format!("{FIELDS}/x")), allowed("GET, HEAD, PATCH"));
        // "Capacity" is a fixed path here, not the id of a field.
        for path in [format!("{FIELDS}Capacity"), format!("{FIELDS}/Capacity")] {
            assert_eq!(route(&Method::PATCH, &path), allowed("GET, HEAD"));
        }
        assert_eq!(route(&Method::DELETE, JOBS), allowed("GET, HEAD, POST"));
        assert_eq!(route(&Method::POST, &format!("{JOBS}/a")), allowed("GET, HEAD"));
        assert_eq!(route(&Method::DELETE, &format!("{JOBS}/a-1_B/Results")), allowed("GET, HEAD"));
    }

    #[test]
    fn the_gateways_own_path_is_read_only() {
        assert_eq!([Method::GET, Method::HEAD].map(|method| route(&method, USAGE)), [Route::Usage, Route::Usage]);
        for method in [Method::POST, Method::OPTIONS, Method::DELETE] {
            assert_eq!(route(&method, USAGE), Route::MethodNotAllowed("GET, HEAD".to_owned()));
        }
        for path in ["/_gateway", "/_gateway/", "/_gateway/usage/", "/_gateway/Usage", "//_gateway/usage"] {
            assert_eq!(route(&Method::GET, path), Route::NotFound, "{path}");
        }
    }

    #[test]
    fn an_id_is_one_segment() {
        let long = "x".repeat(128);
        for id in ["a", "insights_operation_01", "A-b_9", long.as_str()] {
            for (operation, behind) in [(Operation::JobStatus, ""), (Operation::JobResults, "/Results")] {
                let (endpoint, path) = (operation.endpoint(), format!("{JOBS}/{id}{behind}"));
                assert_eq!(route(&Method::GET, &path), Route::Found(endpoint));
                assert_eq!((endpoint.id(&path), &*endpoint.path_of(id)), (Some(id), &*path));
            }
        }
        let longer = "x".repeat(129);
        for id in ["", "{operationId}", ".", "..", "a/b", "a%2Fb", "a b", "a.b", "a;b", "\u{e9}", longer.as_str()] {
            assert_eq!(route(&Method::GET, &format!("{JOBS}/{id}")), Route::NotFound, "{id}");
            assert_eq!(route(&Method::GET, &format!("{JOBS}/{id}/Results")), Route::NotFound, "{id}");
        }
    }

    #[test]
    fn other_spellings_are_not_found() {
        let others = [
            "",
            "/",
            "*",
            "//v3/InsightsDomains/Conversations/Query",
            "/v3/InsightsDomains/Conversations/Query/",
            "/v3/InsightsDomains/Conversations/query",
            "/v3/./InsightsDomains/Conversations/Query",
            "/v3/x/../InsightsDomains/Conversations/Query",
            "/v3/InsightsDomains/Conversations%2FQuery",
            "/v3/InsightsDomains/Conversations/Query;a=b",
            "/v3/InsightsDomains/Conversations/Query%00",
            "/v3/InsightsDomains/Voice/Query",
            "/2010-04-01/Accounts.json",
            "/v3/InsightsDomains/Conversations/QueryJobsX",
        ];
        for path in others {
            assert_eq!(route(&Method::GET, path), Route::NotFound, "{path}");
        }
    }

    #[test]
    fn an_operation_knows_its_place_in_the_list() {
        assert!(Operation::ALL.iter().enumerate().all(|(at, operation)| usize::from(operation.place()) == at));
    }
}
