//! What a request asks for: the closed list of operations and the paths that reach them.
//!
//! An allow-list: a path is compared byte by byte with the ones Twilio documents and never normalised,
//! so dot segments, doubled or encoded slashes and other spellings match nothing and are refused here.

use http::Method;

/// One thing a client may ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Operation {
    /// `GET …/Metadata`: the cubes, measures and dimensions of the domain.
    Metadata,
    /// `POST …/Query`: the first page of a query.
    Query,
    /// `GET …/Query?pageToken=`: a further page.
    Page,
    /// `POST …/QueryJobs`
    JobSubmit,
    /// `GET …/QueryJobs`
    JobList,
    /// `GET …/QueryJobs/{operationId}`
    JobStatus,
    /// `GET …/QueryJobs/{operationId}/Results`
    JobResults,
    /// Reading custom field mappings.
    FieldsRead,
    /// Writing custom field mappings.
    FieldsWrite,
}

impl Operation {
    /// All, in the order of the contract.
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

    /// The word in logs, metrics and keys.
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

    /// The permission that covers it, as `teams.*.operations` lists it.
    pub const fn permission(self) -> Permission {
        match self {
            Self::Metadata => Permission::Metadata,
            Self::Query | Self::Page => Permission::Query,
            Self::JobSubmit | Self::JobList | Self::JobStatus | Self::JobResults => Permission::Jobs,
            Self::FieldsRead => Permission::FieldsRead,
            Self::FieldsWrite => Permission::FieldsWrite,
        }
    }
}

/// Where a method and a path lead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route {
    /// To an operation.
    Found(Operation),
    /// To an operation of Twilio's that this version does not serve.
    NotServed,
    /// The path exists, for these methods.
    MethodNotAllowed(&'static str),
    /// Nowhere.
    NotFound,
}

/// Finds the operation of a method and a path.
pub fn route(method: &Method, path: &str) -> Route {
    const DOMAIN: &str = "/v3/InsightsDomains/Conversations/";
    const FIELDS: &str = "/v3/ControlPlane/ConversationInsights/CustomFieldMappings";
    let read = matches!(*method, Method::GET | Method::HEAD);
    match path.strip_prefix(DOMAIN) {
        Some("Metadata") if read => Route::Found(Operation::Metadata),
        Some("Metadata") => Route::MethodNotAllowed("GET, HEAD"),
        Some("Query") if read => Route::Found(Operation::Page),
        Some("Query") if method == Method::POST => Route::Found(Operation::Query),
        Some("Query") => Route::MethodNotAllowed("GET, HEAD, POST"),
        Some(rest) if rest == "QueryJobs" || rest.starts_with("QueryJobs/") => Route::NotServed,
        None if path.starts_with(FIELDS) => Route::NotServed,
        _ => Route::NotFound,
    }
}

/// A word of `teams.*.operations`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Permission {
    /// `metadata`
    Metadata,
    /// `query`: queries and their pages.
    Query,
    /// `jobs`
    Jobs,
    /// `fields-read`
    FieldsRead,
    /// `fields-write`
    FieldsWrite,
}

impl Permission {
    /// All, in the order of the contract.
    pub const ALL: [Self; 5] = [Self::Metadata, Self::Query, Self::Jobs, Self::FieldsRead, Self::FieldsWrite];

    /// The word in the configuration.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Metadata => "metadata",
            Self::Query => "query",
            Self::Jobs => "jobs",
            Self::FieldsRead => "fields-read",
            Self::FieldsWrite => "fields-write",
        }
    }

    /// The permission of that name.
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|p| p.as_str() == word)
    }
}

/// What a team may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OperationSet(u8);

impl OperationSet {
    /// Nothing.
    pub const NONE: Self = Self(0);

    /// `metadata`, `query` and `jobs`: all that reads data.
    pub fn standard() -> Self {
        [Permission::Metadata, Permission::Query, Permission::Jobs].into_iter().collect()
    }

    /// Is `operation` allowed.
    pub const fn allows(self, operation: Operation) -> bool {
        self.0 & (1 << operation.permission() as u8) != 0
    }

    /// The permissions in it, in the contract's order.
    pub fn iter(self) -> impl Iterator<Item = Permission> {
        Permission::ALL.into_iter().filter(move |p| self.0 & (1 << *p as u8) != 0)
    }
}

impl FromIterator<Permission> for OperationSet {
    fn from_iter<I: IntoIterator<Item = Permission>>(permissions: I) -> Self {
        Self(permissions.into_iter().fold(0, |set, p| set | 1 << p as u8))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUERY: &str = "/v3/InsightsDomains/Conversations/Query";
    const METADATA: &str = "/v3/InsightsDomains/Conversations/Metadata";

    #[test]
    fn knows_its_paths_and_methods() {
        assert_eq!(route(&Method::GET, METADATA), Route::Found(Operation::Metadata));
        assert_eq!(route(&Method::HEAD, METADATA), Route::Found(Operation::Metadata));
        assert_eq!(route(&Method::POST, QUERY), Route::Found(Operation::Query));
        assert_eq!(route(&Method::GET, QUERY), Route::Found(Operation::Page));
        assert_eq!(route(&Method::PUT, QUERY), Route::MethodNotAllowed("GET, HEAD, POST"));
        assert_eq!(route(&Method::POST, METADATA), Route::MethodNotAllowed("GET, HEAD"));
        assert_eq!(route(&Method::POST, "/v3/InsightsDomains/Conversations/QueryJobs"), Route::NotServed);
    }

    #[test]
    fn other_spellings_are_nowhere() {
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
    fn a_set_allows_what_is_in_it() {
        let set = OperationSet::standard();
        assert!(set.allows(Operation::Page) && set.allows(Operation::JobResults));
        assert!(!set.allows(Operation::FieldsRead) && !OperationSet::NONE.allows(Operation::Metadata));
        let words: Vec<_> = set.iter().map(Permission::as_str).collect();
        assert_eq!(words, ["metadata", "query", "jobs"]);
    }
}
