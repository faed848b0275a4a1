//! Whether the configuration in use is the newest one.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::core::clock::Instant;

/// What reloads have come to. Cheap to clone; all clones share one state.
#[derive(Debug, Clone, Default)]
pub struct Reloads(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    refused: Mutex<Option<Refused>>,
    admin_tokens: AtomicU64,
}

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
        *self.lock() = None;
    }

    /// A new configuration was refused at `now`.
    pub fn refused(&self, faults: &str, now: Instant) {
        let mut newest = self.lock();
        let since = newest.as_ref().map_or(now, |refused| refused.since);
        *newest = Some(Refused { since, faults: faults.to_owned() });
    }

    /// The newest configuration, if it was refused.
    pub fn newest_refused(&self) -> Option<Refused> {
        self.lock().clone()
    }

    /// The admin plane gets another token.
    pub fn admin_token_changes(&self) {
        self.0.admin_tokens.fetch_add(1, Ordering::AcqRel);
    }

    /// How often the admin plane's token has changed.
    pub fn admin_tokens(&self) -> u64 {
        self.0.admin_tokens.load(Ordering::Acquire)
    }

    fn lock(&self) -> MutexGuard<'_, Option<Refused>> {
        // Each critical section is one assignment.
        self.0.refused.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
