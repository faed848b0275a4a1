//! What is known of the store now.

use std::time::{Duration, SystemTime};

use super::faults::{Faults, Level};
use crate::core::clock::Instant;
use crate::replicas::clock::StoreClock;
use crate::replicas::connection::Connection;

/// A replica that starts logs that the store is away when it has been away for so long: both may start at once. Parts
/// of the store that fail are logged when they have failed for so long.
pub(super) const GRACE: Duration = Duration::from_secs(2);

/// How much of the store is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoreUse {
    /// All of it.
    All,
    /// Not all pages, flights, grants and purges are shared.
    Part,
    /// This replica is alone: it does not reach the store, or the store grants no tokens.
    None,
}

/// The state of the store as the admin plane shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreView {
    /// How much of it is used.
    pub usage: StoreUse,
    /// Why not all of it is used; `None` if all is.
    pub cause: Option<String>,
    /// Since when it has been used completely, or not.
    pub since: SystemTime,
    /// Replicas that live, this one included; 1 while the store is not reached.
    pub replicas: u32,
    /// Replicas that are configured.
    pub configured: u32,
}

pub(super) struct Link {
    pub(super) connection: Option<Connection>,
    /// Why there is no connection.
    pub(super) cause: String,
    /// What fails although there is one.
    pub(super) faults: Faults,
    /// Since when all is used, or not.
    pub(super) since: Instant,
    /// What the log says of this.
    pub(super) logged: Level,
    /// From then on a failed attempt to reach the store is logged as the beginning of an episode. `None` if that is
    /// logged, and while the store is reached.
    pub(super) logged_from: Option<Instant>,
    /// Why this replica is alone, if that was not logged because the store was reached before.
    pub(super) unlogged: Option<String>,
    /// The clock that all replicas share.
    pub(super) clock: StoreClock,
}

impl Link {
    pub(super) fn new(since: Instant) -> Self {
        Self {
            connection: None,
            cause: "not reached yet".to_owned(),
            faults: Faults::default(),
            since,
            logged: Level::All,
            logged_from: Some(since + GRACE),
            unlogged: None,
            clock: StoreClock::default(),
        }
    }

    pub(super) fn level(&self) -> Level {
        if self.connection.is_some() { self.faults.level() } else { Level::Alone }
    }

    /// Why not all of the store is used.
    pub(super) fn cause(&self) -> Option<String> {
        match self.level() {
            Level::All => None,
            _ if self.connection.is_none() => Some(self.cause.clone()),
            // A budget that has not been asked yet since the store is reached again.
            _ => Some(self.faults.cause().unwrap_or(&self.cause).to_owned()),
        }
    }
}
