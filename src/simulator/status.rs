//! What a query job can be, and why it failed.

use serde::{Deserialize, Serialize};

/// What a job says it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Status {
    /// Not begun.
    Pending,
    /// Begun.
    Running,
    /// Its results can be read.
    Completed,
    /// It ended with an error.
    Failed,
    /// It was given up.
    Cancelled,
    /// Its results were kept for as long as promised.
    Expired,
}

impl Status {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Pending, Self::Running, Self::Completed, Self::Failed, Self::Cancelled, Self::Expired];

    /// As the API writes it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Pending => "PENDING",
            Self::Running => "RUNNING",
            Self::Completed => "COMPLETED",
            Self::Failed => "FAILED",
            Self::Cancelled => "CANCELLED",
            Self::Expired => "EXPIRED",
        }
    }

    /// Reads what [`word`](Self::word) writes.
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|status| status.word() == word)
    }

    /// Does a job stay in it, but for expiry?
    pub fn is_final(self) -> bool {
        self >= Self::Completed
    }
}

/// Why a job failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct OperationError {
    /// Twilio's number for it.
    pub code: u32,
    /// One sentence for a person.
    pub message: String,
    /// The status that a synchronous query would have got.
    pub http_status_code: u16,
    /// More about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

/// The published example.
impl Default for OperationError {
    fn default() -> Self {
        Self {
            code: 50001,
            message: "Query execution timeout exceeded".to_owned(),
            http_status_code: 504,
            detail: Some("ClickHouse query exceeded the 120s execution limit for this account.".to_owned()),
        }
    }
}
