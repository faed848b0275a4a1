//! The admin plane: health, metrics, cache contents and purges for programs, and a status page for people.
//!
//! It has its own listener, never the data plane's. If a token is configured, everything except the two probes and the
//! login requires it, or the session of a browser that has logged in with it. The admin plane reads the shared state.
//! It changes only the cache, on request. The explorer sends requests through the stack as any client does. The admin
//! plane shows no secret, and shows queries only as hashes unless `admin.show_queries` is on.

mod access;
mod answer;
mod body;
mod cache;
mod caller;
mod events;
mod explorer;
mod health;
mod history;
mod login;
mod metrics;
mod openapi;
mod pages;
mod probes;
mod recorder;
mod requests;
mod routes;
mod runbook;
mod sessions;
mod state;
mod status;

use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwap;
use tokio::sync::Semaphore;

use self::history::History;
use self::pages::Pages;
use self::sessions::Sessions;
use self::state::AdminState;
use crate::config::Config;
use crate::core::clock::Instant;
use crate::core::peer::Peer;
use crate::stack::{Assembly, SharedState};

pub use self::caller::PeerAdmin;
pub use self::probes::is_probe;

/// The most connections: enough for probes, a scraper and some browsers.
pub const CONNECTIONS: usize = 64;

/// Additional connections, for probes only.
pub const CONNECTIONS_FOR_PROBES: usize = 8;

/// Answers on the admin listener. Cheap to clone.
#[derive(Clone)]
pub struct Admin(Arc<AdminState>);

impl Admin {
    /// Serves the shared state and the current configuration. Not ready once `draining` is set. The explorer uses the
    /// `current` stack, and the status page names `data` as the URL of the data plane. `beyond_loopback` says whether
    /// other machines reach the admin listener. The configuration cannot say it, because a reload may change its
    /// address but moves no listener. Needs a tokio runtime.
    pub fn new(
        shared: SharedState,
        config: Arc<ArcSwap<Config>>,
        current: Arc<ArcSwap<Assembly>>,
        draining: Arc<OnceLock<Instant>>,
        data: Option<String>,
        beyond_loopback: bool,
    ) -> Self {
        let state = Arc::new(AdminState {
            shared,
            config,
            current,
            draining,
            data,
            beyond_loopback,
            sessions: Sessions::default(),
            history: History::default(),
            pages: Pages::new(),
            streams: Arc::new(Semaphore::new(events::STREAMS)),
        });
        tokio::spawn(recorder::record(Arc::downgrade(&state)));
        Self(state)
    }

    /// The admin plane for the requests of this peer.
    pub fn of(&self, peer: Arc<Peer>) -> PeerAdmin {
        PeerAdmin::new(Arc::clone(&self.0), peer)
    }
}
