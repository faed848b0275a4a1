//! What the parts of the admin plane share.

use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwap;
use tokio::sync::Semaphore;

use super::health;
use super::history::History;
use super::pages::Pages;
use super::sessions::Sessions;
use crate::config::Config;
use crate::core::clock::Instant;
use crate::health::Health;
use crate::stack::{Assembly, SharedState};

/// The shared state that the admin plane shows, and its own.
pub(super) struct AdminState {
    pub(super) shared: SharedState,
    pub(super) config: Arc<ArcSwap<Config>>,
    pub(super) current: Arc<ArcSwap<Assembly>>,
    pub(super) draining: Arc<OnceLock<Instant>>,
    pub(super) data: Option<String>,
    pub(super) beyond_loopback: bool,
    pub(super) sessions: Sessions,
    pub(super) history: History,
    pub(super) pages: Pages,
    /// A permit for each stream of events.
    pub(super) streams: Arc<Semaphore>,
}

impl AdminState {
    /// The gateway's health now.
    pub(super) fn health(&self) -> Health {
        health::now(&self.shared, &self.config.load(), self.draining.get().copied())
    }
}
