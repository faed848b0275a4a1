//! What a member is: a dimension or a measure of a cube, how its values are read, and how Metadata describes it.

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Value as Json, json};

use super::data::{Conversation, Data, OperatorResult, Participant, Text};

/// One combination of a conversation with one of its participants, configurations and results. Parts that a query does
/// not use are absent, and so are those that a conversation does not have.
#[derive(Clone, Copy)]
pub struct Row<'a> {
    /// All data.
    pub data: &'a Data,
    /// Always present.
    pub conversation: &'a Conversation,
    /// One of its participants.
    pub participant: Option<&'a Participant>,
    /// One of its configurations.
    pub configuration: Option<&'a Text>,
    /// One of its results.
    pub result: Option<&'a OperatorResult>,
}

/// The value of a member in one row.
#[derive(Clone, Copy)]
pub enum Value<'a> {
    /// No value.
    Absent,
    /// One text.
    Text(&'a Text),
    /// Several texts in one cell.
    List(&'a Arc<[Text]>),
    /// A number.
    Number(f64),
    /// True or false.
    Flag(bool),
    /// A time.
    Moment(Timestamp),
}

/// The types in Metadata.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Text, or several texts.
    String,
    /// A number.
    Number,
    /// True or false.
    Boolean,
    /// A time, to which a grain may be added.
    Time,
}

impl Kind {
    /// The word in Metadata.
    pub fn word(self) -> &'static str {
        match self {
            Self::String => "string",
            Self::Number => "number",
            Self::Boolean => "boolean",
            Self::Time => "time",
        }
    }
}

/// The part of a conversation that a member belongs to, and so how often it occurs in one conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// It occurs once.
    Conversation,
    /// It occurs once for each participant.
    Participant,
    /// It occurs once for each configuration.
    Configuration,
    /// It occurs once for each operator result.
    Result,
}

/// How a measure computes one number from many rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Aggregation {
    /// The number of conversations or results.
    Count,
    /// The number of different values.
    CountDistinct,
    /// The sum.
    Sum,
    /// The mean of the values that are present.
    Average,
    /// The smallest.
    Min,
    /// The largest.
    Max,
}

impl Aggregation {
    fn word(self) -> &'static str {
        match self {
            Self::Count => "count",
            Self::CountDistinct => "countDistinct",
            Self::Sum => "sum",
            Self::Average => "average",
            Self::Min => "min",
            Self::Max => "max",
        }
    }
}

/// How a member reads its value.
pub type Read = for<'a> fn(Row<'a>) -> Value<'a>;

/// A member that rows can be grouped, filtered and ordered by.
pub struct Dimension {
    /// `Cube.Member`
    pub name: &'static str,
    /// Its type.
    pub kind: Kind,
    /// What it belongs to.
    pub level: Level,
    /// Its value in one row.
    pub read: Read,
    pub(super) description: &'static str,
}

/// A number computed over many rows.
#[derive(Debug)]
pub struct Measure {
    /// `Cube.Member`
    pub name: &'static str,
    /// How it is computed.
    pub aggregation: Aggregation,
    /// The part that it belongs to. Each part counts once, in however many rows it occurs.
    pub level: Level,
    /// The value that is aggregated; not used by a plain count.
    pub read: Read,
    pub(super) description: &'static str,
}

/// A member, found by name.
#[derive(Clone, Copy)]
pub enum Member {
    /// A dimension.
    Dimension(&'static Dimension),
    /// A measure.
    Measure(&'static Measure),
}

/// A cube: a table of members.
pub struct Cube {
    /// The first half of its members' names.
    pub name: &'static str,
    /// For people.
    pub description: &'static str,
    /// Its measures.
    pub measures: &'static [Measure],
    /// Its dimensions.
    pub dimensions: &'static [Dimension],
}

impl Measure {
    /// One entry of the table.
    pub const fn new(
        name: &'static str,
        aggregation: Aggregation,
        level: Level,
        description: &'static str,
        read: Read,
    ) -> Self {
        Self { name, aggregation, level, read, description }
    }

    pub(super) fn describe(&self, name: &str, description: Option<&str>) -> Json {
        json!({
            "name": name,
            "description": description.unwrap_or(self.description),
            "type": "number",
            "aggregation": self.aggregation.word(),
        })
    }
}

impl Dimension {
    /// One entry of the table.
    pub const fn new(name: &'static str, kind: Kind, level: Level, description: &'static str, read: Read) -> Self {
        Self { name, kind, level, read, description }
    }

    /// A time is listed twice, plain and with the one grain that is published. The other grains work too.
    pub(super) fn describe(&self) -> Vec<Json> {
        let entry =
            |name: &str, description: &str| json!({"name": name, "description": description, "type": self.kind.word()});
        let mut entries = vec![entry(self.name, self.description)];
        if self.kind == Kind::Time {
            let name = format!("{}.hour", self.name);
            entries.push(entry(&name, &format!("{}, by the hour", self.description)));
        }
        entries
    }
}
