//! The statuses of a query job, and why one fails.

use serde::{Deserialize, Serialize};

/// The status of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Status {
    /// It has not begun.
    Pending,
    /// It is running.
    Running,
    /// Its results can be read.
    Completed,
    /// It ended with an error.
    Failed,
    /// It was cancelled.
    Cancelled,
    /// Its results have been removed after the promised time.
    Expired,
}

impl Status {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Pending, Self::Running, Self::Completed, Self::Failed, Self::Cancelled, Self::Expired];

    /// The word in the API.
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

    /// Whether a job stays in it, apart from expiry.
    pub fn is_final(self) -> bool {
        self >= Self::Completed
    }
}

/// Why a job failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct OperationError {
    /// Twilio's code for it.
    pub code: u32,
    /// One sentence for people.
    pub message: String,
    /// The status that a synchronous query would have had.
    pub http_status_code: u16,
    /// Details.
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
