//! How a request ended, in one word.

use crate::core::set_once::Listed;

/// The same word in the metric, the access log and the `detail` of `Cache-Status`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Outcome {
    /// Answered from a fresh page.
    Hit,
    /// Answered from a fresh page that another replica had stored.
    Shared,
    /// Answered from a stale page within its window, while a refresh runs.
    Stale,
    /// Answered from a stale page, because the upstream failed.
    StaleError,
    /// The client's own copy is still valid: 304.
    Revalidated,
    /// Answered by an upstream call that another request had begun.
    Collapsed,
    /// Answered by its own upstream call.
    Miss,
    /// Went upstream without using the cache.
    Bypass,
    /// Refused by the gateway: the client's mistake, or a limit.
    Refused,
    /// Could not be answered.
    Failed,
}

impl Listed for Outcome {
    const ALL: &'static [Self] = &Self::ALL;

    fn place(self) -> u8 {
        self as u8
    }
}

impl Outcome {
    /// All outcomes, in declaration order.
    pub const ALL: [Self; 10] = [
        Self::Hit,
        Self::Shared,
        Self::Stale,
        Self::StaleError,
        Self::Revalidated,
        Self::Collapsed,
        Self::Miss,
        Self::Bypass,
        Self::Refused,
        Self::Failed,
    ];

    /// Whether the answer needed no upstream call of its own.
    pub const fn saves_a_call(self) -> bool {
        match self {
            Self::Hit | Self::Shared | Self::Stale | Self::StaleError | Self::Revalidated | Self::Collapsed => true,
            Self::Miss | Self::Bypass | Self::Refused | Self::Failed => false,
        }
    }

    /// The word in metrics, logs and headers.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Hit => "hit",
            Self::Shared => "shared",
            Self::Stale => "stale",
            Self::StaleError => "stale_error",
            Self::Revalidated => "revalidated",
            Self::Collapsed => "collapsed",
            Self::Miss => "miss",
            Self::Bypass => "bypass",
            Self::Refused => "refused",
            Self::Failed => "failed",
        }
    }
}
