//! What happened to one request on its way, for the access line and the metrics.
//!
//! Written by the layers that know, read once by the outermost. Collapsed requests each have their own: the
//! upstream's share is counted for the one that began the call.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use http::HeaderValue;

use super::error::Reason;
use super::operation::Operation;
use super::outcome::Outcome;
use super::tenancy::Team;

/// The facts of one request, filled in as they become known.
#[derive(Debug, Default)]
pub struct Journey {
    /// What it asks for, once routed.
    pub operation: OnceLock<Operation>,
    /// Who asks, once known.
    pub team: OnceLock<Arc<Team>>,
    /// What became of it.
    pub outcome: OnceLock<Outcome>,
    /// Why the gateway refused or failed.
    pub reason: OnceLock<Reason>,
    /// `RateLimit-Policy` and `RateLimit`, once the caller is known.
    pub rate_limit: OnceLock<(HeaderValue, HeaderValue)>,
    attempts: AtomicU32,
    wait_us: AtomicU64,
    upstream_us: AtomicU64,
}

impl Journey {
    /// One attempt went upstream and took so long.
    pub fn attempted(&self, took: Duration) {
        self.attempts.fetch_add(1, Relaxed);
        self.upstream_us.fetch_add(micros(took), Relaxed);
    }

    /// It waited so long for a token.
    pub fn waited(&self, took: Duration) {
        self.wait_us.fetch_add(micros(took), Relaxed);
    }

    /// Attempts that went upstream.
    pub fn attempts(&self) -> u32 {
        self.attempts.load(Relaxed)
    }

    /// Time spent waiting for tokens.
    pub fn wait(&self) -> Duration {
        Duration::from_micros(self.wait_us.load(Relaxed))
    }

    /// Time spent upstream.
    pub fn upstream(&self) -> Duration {
        Duration::from_micros(self.upstream_us.load(Relaxed))
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
