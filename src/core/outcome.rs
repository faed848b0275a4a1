//! What became of a request, in one word.

/// The same word in the metric, the access log and the `detail` of `Cache-Status`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Outcome {
    /// Answered from a fresh page.
    Hit,
    /// Answered from a stale page within its window, while a refresh runs.
    Stale,
    /// Answered from a stale page since the upstream failed.
    StaleError,
    /// The client's own copy is still right: 304.
    Revalidated,
    /// Answered by an upstream call that another request had begun.
    Collapsed,
    /// Answered by an upstream call of its own.
    Miss,
    /// Went upstream without touching the cache.
    Bypass,
    /// Refused by the gateway: the client's fault, or a limit.
    Refused,
    /// Could not be answered.
    Failed,
}

impl Outcome {
    /// All, in declaration order.
    pub const ALL: [Self; 9] = [
        Self::Hit,
        Self::Stale,
        Self::StaleError,
        Self::Revalidated,
        Self::Collapsed,
        Self::Miss,
        Self::Bypass,
        Self::Refused,
        Self::Failed,
    ];

    /// The word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Hit => "hit",
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
