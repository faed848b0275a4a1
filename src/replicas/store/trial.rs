//! Tries again what the store has refused or not answered, until it works.
//!
//! A trial runs the commands of replicas on a key next to the one that failed. So it changes nothing that replicas
//! store, and a damaged value under the key does not matter to it.

use std::sync::Arc;

use futures_util::future::join_all;
use redis::{Cmd, Value};

use super::faults::Part;
use super::heartbeat::{HEARTBEAT, RIGHTS};
use super::{Fault, SharedStore};
use crate::replicas::connection::{self, NodeId, neighbour};
use crate::replicas::error::StoreError;
use crate::replicas::script::LuaScript;
use crate::replicas::{cause, retry_pause};

static TRIAL: LuaScript = LuaScript::of(&[RIGHTS, "return refusal(KEYS[1]) or 1"]);

impl SharedStore {
    /// Tries in the background, as long as the store is used. Needs a tokio runtime.
    pub(super) fn start_trials(&self) {
        let (weak, to_try) = (Arc::downgrade(&self.0), Arc::clone(&self.0.to_try));
        tokio::spawn(async move {
            while let Some(inner) = weak.upgrade() {
                if Self(inner).try_failed().await {
                    tokio::time::sleep(retry_pause::random()).await;
                } else {
                    // Not for ever, so that this ends when nobody uses the store any more.
                    let _ = tokio::time::timeout(HEARTBEAT, to_try.notified()).await;
                }
            }
        });
    }

    /// Tries each part that has failed. Returns whether there was one.
    async fn try_failed(self) -> bool {
        let failed = self.link().faults.to_try();
        join_all(failed.iter().map(|(part, key)| self.try_part(part, key))).await;
        !failed.is_empty()
    }

    async fn try_part(&self, part: &Part, key: &[u8]) {
        let failed = match (self.attempt(key).await, part) {
            // Nothing was sent.
            ((_, Err(StoreError::Down)), _) => return,
            // It answers.
            ((Fault::Refusal, _), Part::Node(_)) | ((_, Ok(())), _) => None,
            // The node fails, which is another part.
            ((Fault::NoAnswer | Fault::Broken, _), Part::Operation(..)) => return,
            ((_, Err(error)), _) => Some(error.to_string()),
        };
        self.change_link(|link| {
            link.faults.tried(part, failed);
            true
        });
    }

    /// Runs all commands next to this key.
    async fn attempt(&self, key: &[u8]) -> (Fault, Result<(), StoreError>) {
        let Some(mut connection) = self.link().connection.clone() else {
            return (Fault::NoAnswer, Err(StoreError::Down));
        };
        let begun = self.0.clock.now();
        let trial = trial(key);
        let replied = tokio::time::timeout(self.0.settings.timeout, connection.run(&trial)).await;
        let (fault, value) = self.judge::<Value>("trial", begun, replied);
        (fault, value.map(drop))
    }

    /// The error with the right that is missing, if the server did not name it.
    pub(in crate::replicas) async fn explain(&self, key: &str, error: StoreError) -> StoreError {
        match &error {
            StoreError::Failed(told) if told == cause::UNNAMED_RIGHT => match self.attempt(key.as_bytes()).await {
                (Fault::Refusal, Err(named)) => named,
                _ => error,
            },
            _ => error,
        }
    }

    /// The node and the key of a command; `None` if it has no key.
    ///
    /// # Errors
    ///
    /// If this operation, or the node, is known to fail.
    pub(super) fn place<'c>(
        &self,
        operation: &'static str,
        command: &'c Cmd,
    ) -> Result<Option<(NodeId, &'c [u8])>, StoreError> {
        let link = self.link();
        let place = link.connection.as_ref().zip(connection::key(command));
        let place = place.map(|(connection, key)| (connection.node(key), key));
        let is_forbidden = place.is_some_and(|(node, _)| link.faults.forbid(node, operation));
        if is_forbidden { Err(StoreError::Down) } else { Ok(place) }
    }

    /// Counts how an operation ended that was sent there.
    pub(super) fn note<T>(
        &self,
        place: Option<(NodeId, &[u8])>,
        operation: &'static str,
        fault: Fault,
        value: &Result<T, StoreError>,
    ) {
        let Some((node, key)) = place else { return };
        match value {
            Ok(_) => self.link().faults.succeeded(node, operation),
            Err(error) if fault == Fault::Refusal => {
                if self.link().faults.refused(node, operation, key, error.to_string()) {
                    self.0.to_try.notify_one();
                }
            }
            Err(_) => {}
        }
    }

    /// A node has answered.
    pub(super) fn heard(&self, node: NodeId) {
        self.link().faults.answered(node);
    }

    /// A node has not answered when it was asked for this key.
    pub(super) fn not_heard(&self, node: NodeId, key: &[u8], error: &StoreError) {
        if self.change_link(|link| link.faults.silent(node, key, error.to_string())) {
            self.0.to_try.notify_one();
        }
    }
}

fn trial(key: &[u8]) -> Cmd {
    TRIAL.call(&[neighbour(key)])
}
