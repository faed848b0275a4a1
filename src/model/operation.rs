//! What a request asks for: the closed list of operations and the paths that reach them.
//!
//! An allow-list: a path is compared byte by byte with the ones Twilio documents and never normalised,
//! so dot segments, doubled or encoded slashes and other spellings match nothing and are refused here.

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
    pub const ALL: [Self; 5] = [
        Self::Metadata,
        Self::Query,
        Self::Jobs,
        Self::FieldsRead,
        Self::FieldsWrite,
    ];

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
        [Permission::Metadata, Permission::Query, Permission::Jobs]
            .into_iter()
            .collect()
    }

    /// Is `operation` allowed.
    pub const fn allows(self, operation: Operation) -> bool {
        self.0 & (1 << operation.permission() as u8) != 0
    }

    /// The permissions in it, in the contract's order.
    pub fn iter(self) -> impl Iterator<Item = Permission> {
        Permission::ALL
            .into_iter()
            .filter(move |p| self.0 & (1 << *p as u8) != 0)
    }
}

impl FromIterator<Permission> for OperationSet {
    fn from_iter<I: IntoIterator<Item = Permission>>(permissions: I) -> Self {
        Self(permissions.into_iter().fold(0, |set, p| set | 1 << p as u8))
    }
}
