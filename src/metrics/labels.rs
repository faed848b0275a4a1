//! The labels of metrics. Their values come from the configuration and from closed enums.

use std::fmt::Write;
use std::sync::Arc;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};

use crate::core::outcome::Outcome;
use crate::twilio::endpoint::Operation;

/// A label value from the configuration.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ConfigLabel(pub Arc<str>);

impl EncodeLabelValue for ConfigLabel {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> std::fmt::Result {
        encoder.write_str(&self.0)
    }
}

/// A label value from a closed list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct StaticLabel(pub &'static str);

impl EncodeLabelValue for StaticLabel {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> std::fmt::Result {
        encoder.write_str(self.0)
    }
}

/// The operation label of a request that was refused before its operation was known.
pub const NO_OPERATION: StaticLabel = StaticLabel("none");

impl From<Operation> for StaticLabel {
    fn from(operation: Operation) -> Self {
        Self(operation.as_str())
    }
}

impl From<Outcome> for StaticLabel {
    fn from(outcome: Outcome) -> Self {
        Self(outcome.as_str())
    }
}

/// Labels of `requests_total`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RequestLabels {
    /// Empty where the caller is not known.
    pub team: ConfigLabel,
    /// The operation.
    pub operation: StaticLabel,
    /// The outcome.
    pub outcome: StaticLabel,
    /// The HTTP status.
    pub status: u16,
}

/// Labels of `request_duration_seconds`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct OutcomeLabels {
    /// The operation.
    pub operation: StaticLabel,
    /// The outcome.
    pub outcome: StaticLabel,
}

/// Labels of `upstream_attempts_total`. `status` is an HTTP status, or the reason why there is none.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct AttemptLabels {
    /// The account whose token was spent.
    pub account: ConfigLabel,
    /// The operation.
    pub operation: StaticLabel,
    /// How the attempt ended.
    pub status: Ending,
}

/// How an attempt ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Ending {
    /// With an HTTP status.
    Status(u16),
    /// Without one, for this reason.
    Reason(&'static str),
}

impl EncodeLabelValue for Ending {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> std::fmt::Result {
        match self {
            Self::Status(status) => encoder.write_str(itoa::Buffer::new().format(*status)),
            Self::Reason(reason) => encoder.write_str(reason),
        }
    }
}

/// Labels of `upstream_duration_seconds`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct UpstreamLabels {
    /// The account whose token was spent.
    pub account: ConfigLabel,
    /// The operation.
    pub operation: StaticLabel,
}

/// The label of metrics that belong to an account.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct AccountLabels {
    /// Its name.
    pub account: ConfigLabel,
}

/// No labels. A metric that may be absent has to be a family.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct NoLabels {}

/// The label of metrics about a team.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct TeamLabels {
    /// Its name.
    pub team: ConfigLabel,
}

/// Labels of `retries_total`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RetryLabels {
    /// The account whose token the retry spends.
    pub account: ConfigLabel,
    /// How the previous attempt ended.
    pub reason: Ending,
}

/// The label of `errors_total`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ReasonLabels {
    /// Why the gateway refused or failed.
    pub reason: StaticLabel,
}

/// The label of `build_info`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct BuildLabels {
    /// The gateway's version.
    pub version: StaticLabel,
}

/// The label of `cache_evictions_total`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct CauseLabels {
    /// `expired`, `size`, `replaced` or `purged`.
    pub cause: StaticLabel,
}

/// The label of `cache_settled_total`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct SettledLabels {
    /// `settled`, or why not.
    pub reason: StaticLabel,
}

/// The label of `reloads_total`, `cache_disk_writes_total`, `spans_total` and `audit_records_total`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ResultLabels {
    /// `applied` or `refused`; `written`, `dropped` or `failed`; `exported`, `dropped` or `failed`.
    pub result: StaticLabel,
}

/// Labels of `shared_operations_total`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct SharedLabels {
    /// What was asked of the shared store.
    pub operation: StaticLabel,
    /// `ok`, `miss`, `timeout` or `error`.
    pub result: StaticLabel,
}

/// The label of `shared_duration_seconds`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct SharedOperationLabels {
    /// What was asked of the shared store.
    pub operation: StaticLabel,
}
