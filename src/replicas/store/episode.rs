//! When the store is not used, or not all of it: what the log and the metrics say.
//!
//! An episode begins when something fails that worked, and ends when all works again. It has one line in the log for
//! its beginning and one for its end. If this replica does without parts of the store for a while and is alone later,
//! that is one more line.

use std::sync::atomic::Ordering;

use super::faults::{Level, Part};
use super::link::{GRACE, Link, StoreUse, StoreView};
use super::{Fault, SharedStore};
use crate::metrics::NoLabels;
use crate::replicas::connection::Connection;
use crate::replicas::error::StoreError;

impl SharedStore {
    /// A view of the state now.
    pub fn view(&self) -> StoreView {
        let link = self.link();
        StoreView {
            usage: match link.level() {
                Level::All => StoreUse::All,
                Level::Part => StoreUse::Part,
                Level::Alone => StoreUse::None,
            },
            cause: link.cause(),
            since: self.0.clock.wall(link.since),
            replicas: if link.connection.is_some() { self.replicas() } else { 1 },
            configured: self.0.settings.replicas,
        }
    }

    /// Records that a part of the store fails, or works again, which its user tries again itself.
    pub(crate) fn set_fault(&self, part: Part, fault: Option<&StoreError>) {
        let cause = fault.map(|error| (*error != StoreError::Down).then(|| error.to_string()));
        self.change_link(|link| link.faults.set(part, cause));
    }

    /// The store is no longer reached. It is logged now, unless a connection broke. Why it did so is known when the
    /// store has been tried again.
    pub(super) fn lost(&self, cause: &StoreError, fault: Fault) {
        let now = self.0.clock.now();
        let is_lost = self.change_link(|link| {
            let is_lost = link.connection.take().is_some();
            if is_lost {
                link.cause = cause.to_string();
                link.logged_from = (fault == Fault::Broken && link.logged != Level::Alone).then_some(now);
            }
            is_lost
        });
        if is_lost {
            self.0.metrics.replicas.get_or_create(&NoLabels {}).set(1);
            self.0.is_up.send_replace(false);
        }
    }

    /// An attempt to reach the store failed.
    pub(super) fn not_reached(&self, cause: String) {
        let now = self.0.clock.now();
        self.change_link(|link| {
            link.cause = cause;
            if link.logged_from.is_some_and(|from| from <= now) {
                link.logged_from = None;
            }
            true
        });
    }

    /// The store is reached over this connection.
    pub(super) fn reached(&self, connection: Connection) {
        let is_first = self.0.episodes.fetch_add(1, Ordering::SeqCst) == 0;
        self.0.failures.store(0, Ordering::Relaxed);
        self.change_link(|link| {
            if link.logged_from.take().is_some() && !is_first {
                link.unlogged = Some(link.cause.clone());
            }
            link.connection = Some(connection);
            true
        });
        self.0.is_up.send_replace(true);
        // What failed before may work on this connection.
        self.0.to_try.notify_one();
    }

    /// Changes the state of the store. If that returns `true`, the log and the metrics say what is new.
    pub(super) fn change_link(&self, change: impl FnOnce(&mut Link) -> bool) -> bool {
        let mut link = self.link();
        let before = link.level();
        let is_changed = change(&mut link);
        if is_changed {
            self.report(&mut link, before);
        }
        is_changed
    }

    /// Logs what is new, while `link` is locked: lines must be in the order of what happened.
    fn report(&self, link: &mut Link, before: Level) {
        let (now, level) = (self.0.clock.now(), link.level());
        let away_ms = now.saturating_duration_since(link.since).as_millis();
        if (level == Level::All) != (before == Level::All) {
            link.since = now;
        }
        self.0.metrics.shared_up.get_or_create(&NoLabels {}).set(i64::from(level != Level::Alone));
        if let Some(cause) = link.unlogged.take()
            && link.logged != Level::Alone
        {
            link.logged = Level::Alone;
            log_lost(&cause);
        }
        // A budget that has only not been asked yet since the store is reached is no new reason.
        let is_known = link.connection.is_none() || link.faults.cause().is_some();
        match level {
            Level::All if before != Level::All => {
                if link.logged == Level::Part {
                    tracing::info!(away_ms, "all of the shared store works again");
                } else if link.logged == Level::Alone || before == Level::Alone {
                    tracing::info!(away_ms, replicas = self.replicas(), "the shared store is reached");
                }
                link.logged = Level::All;
            }
            // The replica may be alone soon for the same reason, which is one line then.
            Level::Part if link.logged == Level::All && now.saturating_duration_since(link.since) >= GRACE => {
                link.logged = Level::Part;
                let cause = link.cause().unwrap_or_default();
                tracing::warn!(cause, part = link.faults.name(), "a part of the shared store is not used");
            }
            Level::Alone if link.logged != Level::Alone && link.logged_from.is_none() && is_known => {
                link.logged = Level::Alone;
                log_lost(&link.cause().unwrap_or_default());
            }
            _ => {}
        }
    }
}

/// The line that begins an episode.
fn log_lost(cause: &str) {
    tracing::warn!(cause, "the shared store is not reached: this replica goes on alone");
}
