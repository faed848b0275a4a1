//! Why an operation of the store failed, or was not sent to it.

/// Why an operation has no result. All causes mean the same to the caller: continue without the store.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum StoreError {
    /// The store, or the part of it that is needed, is not used now; nothing was sent.
    #[error("the shared store is not reached")]
    Down,
    /// No answer in time. The store may have done what was asked.
    #[error("{}", super::cause::NO_ANSWER)]
    Timeout,
    /// The store refused or answered something unexpected, for this cause.
    #[error("{0}")]
    Failed(String),
}

/// Why a page is not put into the store, although the store is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SkipReason {
    /// Its body is longer than [`LONGEST_BODY`](super::LONGEST_BODY).
    TooLarge,
    /// Too many others wait.
    Busy,
}
