//! Whether the configuration in use is the newest one.

use std::sync::{Arc, Mutex, PoisonError};

use crate::core::clock::Instant;

/// The newest reload, if it was refused. Cheap to clone; all clones share one state.
#[derive(Debug, Clone, Default)]
pub struct Reloads(Arc<Mutex<Option<Refused>>>);

/// A configuration that was refused, so that an older one stays in use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// When the first was refused since the last accepted one.
    pub since: Instant,
    /// What is wrong with the newest, one fault per line. Never contains a secret.
    pub faults: String,
}

impl Reloads {
    /// A new configuration is in use.
    pub fn applied(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// A new configuration was refused at `now`.
    pub fn refused(&self, faults: &str, now: Instant) {
        let mut newest = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let since = newest.as_ref().map_or(now, |refused| refused.since);
        *newest = Some(Refused { since, faults: faults.to_owned() });
    }

    /// The newest configuration, if it was refused.
    pub fn newest_refused(&self) -> Option<Refused> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
