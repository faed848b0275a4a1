//! What of the store fails although it is reached.
//!
//! One node of a cluster can be gone, or a server can refuse some operations and run others. What has failed three
//! times in a row is not used until it works again. Nothing else changes: the other operations are run as before.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::replicas::connection::NodeId;

/// After this many operations without an answer, refusals, or refused heartbeats, in a row no operation waits for what
/// failed.
pub(super) const FAILURES: u32 = 3;

/// What can fail alone.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Part {
    /// The budget of the account with this key.
    Budget(Arc<str>),
    /// What other replicas changed.
    Changes,
    /// All operations of one node.
    Node(NodeId),
    /// This operation on one node.
    Operation(NodeId, &'static str),
}

/// How much of the store is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Level {
    All,
    /// Not all pages, flights, grants and purges are shared.
    Part,
    /// A budget is not shared: this replica spends its own part of the rate.
    Alone,
}

#[derive(Debug)]
struct Fault {
    failures: u32,
    /// The part is not used.
    is_certain: bool,
    /// `None` if that is only because the store is not reached.
    cause: Option<String>,
    /// What failed, to be tried again; empty if its user does that.
    key: Vec<u8>,
}

/// The parts that have failed and have not worked since then.
#[derive(Debug, Default)]
pub(super) struct Faults(BTreeMap<Part, Fault>);

impl Faults {
    /// Whether this operation is not sent to the node.
    pub(super) fn forbid(&self, node: NodeId, operation: &'static str) -> bool {
        let is_certain = |part| self.0.get(&part).is_some_and(|fault| fault.is_certain);
        !self.0.is_empty() && (is_certain(Part::Node(node)) || is_certain(Part::Operation(node, operation)))
    }

    /// An operation has worked.
    pub(super) fn succeeded(&mut self, node: NodeId, operation: &'static str) {
        self.forget(&Part::Operation(node, operation));
    }

    /// A node has answered.
    pub(super) fn answered(&mut self, node: NodeId) {
        self.forget(&Part::Node(node));
    }

    /// A node has refused an operation. Returns whether that has to be tried: it may be because of one damaged value.
    pub(super) fn refused(&mut self, node: NodeId, operation: &'static str, key: &[u8], cause: String) -> bool {
        self.failed(Part::Operation(node, operation), key, cause) >= FAILURES
    }

    /// A node has not answered. Returns whether it is not used from now on.
    pub(super) fn silent(&mut self, node: NodeId, key: &[u8], cause: String) -> bool {
        let is_over = self.failed(Part::Node(node), key, cause) >= FAILURES;
        if let Some(fault) = self.0.get_mut(&Part::Node(node)).filter(|_| is_over) {
            fault.is_certain = true;
        }
        is_over
    }

    /// A part fails, or works again, whose user tries it again. Returns whether it fails, or has failed until now.
    pub(super) fn set(&mut self, part: Part, fails: Option<Option<String>>) -> bool {
        let Some(cause) = fails else { return self.0.remove(&part).is_some() };
        self.0.insert(part, Fault { failures: FAILURES, is_certain: true, cause, key: Vec::new() });
        true
    }

    /// What has to be tried: a key of each part.
    pub(super) fn to_try(&self) -> Vec<(Part, Vec<u8>)> {
        let tried = self.0.iter().filter(|(_, fault)| fault.failures >= FAILURES && !fault.key.is_empty());
        tried.map(|(part, fault)| (part.clone(), fault.key.clone())).collect()
    }

    /// A part was tried: it works, or fails for this cause.
    pub(super) fn tried(&mut self, part: &Part, failed: Option<String>) {
        match (failed, self.0.get_mut(part)) {
            (None, _) => drop(self.0.remove(part)),
            (Some(cause), Some(fault)) => (fault.cause, fault.is_certain) = (Some(cause), true),
            (Some(_), None) => {}
        }
    }

    /// How much of the store is used while it is reached.
    pub(super) fn level(&self) -> Level {
        let levels = self.certain().map(|(part, _)| match part {
            Part::Budget(_) => Level::Alone,
            _ => Level::Part,
        });
        levels.max().unwrap_or(Level::All)
    }

    /// Why not all of it is used, as far as that is known.
    pub(super) fn cause(&self) -> Option<&str> {
        self.certain().find_map(|(_, fault)| fault.cause.as_deref())
    }

    /// The part that fails, for the log.
    pub(super) fn name(&self) -> &'static str {
        self.certain().next().map_or("", |(part, _)| match part {
            Part::Budget(_) => "budget",
            Part::Changes => "changes",
            Part::Node(_) => "node",
            Part::Operation(_, operation) => operation,
        })
    }

    fn certain(&self) -> impl Iterator<Item = (&Part, &Fault)> {
        self.0.iter().filter(|(_, fault)| fault.is_certain)
    }

    fn failed(&mut self, part: Part, key: &[u8], cause: String) -> u32 {
        let new = || Fault { failures: 0, is_certain: false, cause: None, key: key.to_vec() };
        let fault = self.0.entry(part).or_insert_with(new);
        fault.failures = fault.failures.saturating_add(1);
        fault.cause = Some(cause);
        fault.failures
    }

    /// A part works, unless it is known to fail: only a trial ends that.
    fn forget(&mut self, part: &Part) {
        if self.0.get(part).is_some_and(|fault| !fault.is_certain) {
            self.0.remove(part);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: NodeId = NodeId::SINGLE;

    fn refuse(faults: &mut Faults, operation: &'static str) -> bool {
        faults.refused(NODE, operation, b"key", "refused".to_owned())
    }

    #[test]
    fn an_operation_that_is_refused_is_not_used_once_the_trial_is_refused_too() {
        let mut faults = Faults::default();
        assert_eq!([(); 3].map(|()| refuse(&mut faults, "put")), [false, false, true]);
        assert_eq!((faults.level(), faults.forbid(NODE, "put")), (Level::All, false), "it may be one value");
        let part = Part::Operation(NODE, "put");
        assert_eq!(faults.to_try(), [(part.clone(), b"key".to_vec())]);
        faults.tried(&part, Some("why".to_owned()));
        assert_eq!((faults.level(), faults.cause()), (Level::Part, Some("why")));
        assert!(faults.forbid(NODE, "put") && !faults.forbid(NODE, "get"));
        faults.succeeded(NODE, "put");
        assert!(faults.forbid(NODE, "put"), "only a trial ends it");
        faults.tried(&part, None);
        assert_eq!((faults.level(), faults.cause(), faults.to_try()), (Level::All, None, Vec::new()));
    }

    #[test]
    fn refusals_with_successes_in_between_do_not_count() {
        let mut faults = Faults::default();
        for _ in 0..9 {
            assert!(!refuse(&mut faults, "put") && !refuse(&mut faults, "put"));
            faults.succeeded(NODE, "put");
        }
        assert!(faults.to_try().is_empty());
    }

    #[test]
    fn a_node_that_is_silent_runs_nothing_until_it_answers_a_trial() {
        let mut faults = Faults::default();
        let silent = |faults: &mut Faults| faults.silent(NODE, b"key", "silent".to_owned());
        assert!(!silent(&mut faults) && !silent(&mut faults));
        faults.answered(NODE);
        assert_eq!([(); 3].map(|()| silent(&mut faults)), [false, false, true]);
        faults.answered(NODE);
        assert!(faults.forbid(NODE, "put") && faults.forbid(NODE, "get"), "only a trial ends it");
        faults.tried(&Part::Node(NODE), None);
        assert!(!faults.forbid(NODE, "get"));
    }

    #[test]
    fn a_budget_that_fails_leaves_the_replica_alone() {
        let (mut faults, part) = (Faults::default(), Part::Budget("key".into()));
        assert!(faults.set(part.clone(), Some(None)));
        assert_eq!((faults.level(), faults.cause()), (Level::Alone, None), "the store is not reached");
        assert!(faults.set(part.clone(), Some(Some("full".to_owned()))));
        assert_eq!((faults.cause(), faults.to_try()), (Some("full"), Vec::new()));
        assert!(faults.set(part.clone(), None));
        assert!(!faults.set(part, None), "it works already");
        assert_eq!(faults.level(), Level::All);
    }
}
