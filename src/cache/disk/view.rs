//! The state of the disk tier, as health and the admin plane see it.

use crate::core::clock::Instant;

/// The state of the disk tier.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskView {
    /// Whether it has its file open.
    pub enabled: bool,
    /// Pages in it.
    pub entries: u64,
    /// The bytes that count against the capacity.
    pub bytes: u64,
    /// What is wrong, if pages cannot be written.
    pub fault: Option<DiskFault>,
}

/// Why pages cannot be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskFault {
    /// When the first attempt failed.
    pub since: Instant,
    /// Why the last attempt failed.
    pub cause: String,
}

/// The checkpoint that an earlier process saved with its pages: which changes of other replicas they have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum SavedCheckpoint {
    /// It left no pages.
    NoPages,
    /// It left pages, and no checkpoint.
    Missing,
    /// Its last checkpoint.
    Found(Vec<u8>),
}
