//! The output of the operator that writes JSON: the fields that custom measures can be made from, and the measures that
//! each of them gives.
//!
//! Published material names one custom member, `ConversationSummary.<Name>Average`, and says that there is one
//! in the other cube as well. The other aggregation words are invented, and so is this operator's output.
//!
//! This module is only a table.

use super::data::{OperatorResult, WELL_KNOWN_OPERATOR};
use super::members::Aggregation::{Average, Max, Min, Sum};
use super::members::Level::{Conversation as Whole, Result as Finding};
use super::members::{Kind, Measure, Row, Value};

/// A placeholder for the custom field's name in the names of these measures.
pub const NAME: &str = "<Name>";

/// One field of the operator's output schema.
pub struct OutputField {
    /// One or two segments, joined by a dot.
    pub path: &'static str,
    /// Custom measures can be made only from numbers.
    pub kind: Kind,
    /// Their names contain [`NAME`].
    pub measures: &'static [Measure],
}

macro_rules! measures {
    ($cube:literal, $level:expr, $read:expr) => {
        [
            Measure::new(concat!($cube, ".<Name>Average"), Average, $level, "Custom measure, mean", $read),
            Measure::new(concat!($cube, ".<Name>Sum"), Sum, $level, "Custom measure, all added up", $read),
            Measure::new(concat!($cube, ".<Name>Min"), Min, $level, "Custom measure, smallest", $read),
            Measure::new(concat!($cube, ".<Name>Max"), Max, $level, "Custom measure, largest", $read),
        ]
    };
}

static LEAD_SCORE: [[Measure; 4]; 2] = [
    measures!("ConversationSummary", Whole, |r| number(of_conversation(r).and_then(|o| o.score))),
    measures!("OperatorResult", Finding, |r| number(of_result(r).and_then(|o| o.score))),
];
static MESSAGES: [[Measure; 4]; 2] = [
    measures!("ConversationSummary", Whole, |r| number(of_conversation(r).map(|_| r.conversation.messages.into()))),
    measures!("OperatorResult", Finding, |r| number(of_result(r).map(|_| r.conversation.messages.into()))),
];

/// The whole schema.
pub static FIELDS: [OutputField; 3] = [
    OutputField { path: "leadScore", kind: Kind::Number, measures: LEAD_SCORE.as_flattened() },
    OutputField { path: "engagement.messages", kind: Kind::Number, measures: MESSAGES.as_flattened() },
    OutputField { path: "label", kind: Kind::String, measures: &[] },
];

fn is_json(result: &OperatorResult) -> bool {
    &*result.operator_id == WELL_KNOWN_OPERATOR
}

fn of_conversation(row: Row<'_>) -> Option<&OperatorResult> {
    row.conversation.results.iter().find(|result| is_json(result))
}

fn of_result(row: Row<'_>) -> Option<&OperatorResult> {
    row.result.filter(|result| is_json(result))
}

fn number(value: Option<f64>) -> Value<'static> {
    value.map_or(Value::Absent, Value::Number)
}
