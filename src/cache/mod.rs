//! The cache's storage: stored responses in memory and on disk, and the upstream calls under way.
//!
//! `layers::cache` decides what may be served, and when to fetch. This module stores and finds.
//!
//! These are its parts, bottom up. Each imports only parts above it in this table:
//!
//! | file | what it is |
//! | --- | --- |
//! | `purge` | which stored responses a purge drops |
//! | `sets` | which pages belong to which result set, and which sets are alive |
//! | `stored` | a stored response, as every tier keeps it |
//! | `record` | a stored response as bytes, versioned, with its moments on the wall clock and on the boot clock |
//! | `entry` | a stored response in memory, with what this process alone knows of it |
//! | `response` | what the cache answers: a response and how it came about |
//! | `flight` | single flight: identical calls share one upstream call |
//! | `fill_lock` | the interface of the lock that replicas share, behind the flights |
//! | `flight_record` | how a flight ended, as bytes for other replicas |
//! | `job_notes` | the interface of the notes about query jobs that replicas share |
//! | `tier` | the interface of tiers behind memory |
//! | `tiers` | two tiers, one behind the other |
//! | `memory` | moka, on the synchronous path of a hit |
//! | `known_jobs` | what is known of query jobs apart from stored responses |
//! | `disk` | the disk tier: survives a restart |
//! | `store` | all of these behind one handle |

mod disk;
pub(crate) mod entry;
pub(crate) mod fill_lock;
pub(crate) mod flight;
pub(crate) mod flight_record;
pub(crate) mod job_notes;
pub(crate) mod known_jobs;
mod memory;
mod purge;
pub(crate) mod record;
pub(crate) mod response;
pub(crate) mod sets;
mod store;
pub(crate) mod stored;
mod tier;
mod tiers;

pub(crate) use self::disk::SavedCheckpoint;
pub use self::disk::{DiskFault, DiskSettings, DiskView};
pub use self::purge::{Purge, PurgeReport};
pub use self::response::CacheResponse;
pub(crate) use self::store::UnstoredResponse;
pub use self::store::listing::EntryView;
pub use self::store::{Freshness, Store};
pub use self::stored::StoredResponse;
pub use self::tier::{Candidate, InsertOutcome, PurgeCompletion, PurgeOutcome, Replacement, Tier};
