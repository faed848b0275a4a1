//! The data model: cubes, their measures and dimensions, and what Metadata says about them.
//!
//! Two generations are served, because published material describes both: the older `Conversation` and
//! `OperatorResult`, and the newer `ConversationSummary` with one row per conversation.
//! Only these member names are published: `Conversation.Count`, `ConversationId`, `ConversationName`,
//! `ConversationStatus`, `IntelligenceConfigurationIds`, `ParticipantId`, `ParticipantType`,
//! `ParticipantProfileId`, `CreatedDate` with its `.hour`, `AccountSid`, `Channels` and `Languages`,
//! `OperatorResult.Count`, `.Value` and `.CreatedDate`, and the pattern `<Name><Aggregation>` of custom measures.
//! **Every other name here is invented**, as are the aggregation words: programs must read the live
//! account's names from its own Metadata.
//!
//! Custom fields add measures to an account's catalog: [`CustomMeasures`].
//!
//! This file defines what a member is, finds it by name and describes it. The members themselves are in
//! [`cubes`](super::cubes). It neither groups nor filters.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Value as Json, json};

use super::cubes::CUBES;
use super::data::{Conversation, Data, OperatorResult, Participant, Text};
use super::outputs::{NAME, OutputField};

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
    description: &'static str,
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
    description: &'static str,
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

/// The measures that an account's custom fields have added, by their full names.
#[derive(Debug, Default)]
pub struct CustomMeasures(BTreeMap<String, CustomMeasure>);

#[derive(Debug)]
struct CustomMeasure {
    measure: &'static Measure,
    description: Option<String>,
}

impl CustomMeasures {
    /// Adds the measures of a custom field `name`.
    pub fn add(&mut self, name: &str, description: Option<&str>, field: &OutputField) {
        for measure in field.measures {
            let description = description.map(str::to_owned);
            self.0.insert(measure.name.replace(NAME, name), CustomMeasure { measure, description });
        }
    }
}

/// The member with this full name, or with a shorter one that published examples use. A custom measure hides a member
/// of the same name. Grains are not handled here.
pub fn member(name: &str, custom: &CustomMeasures) -> Option<Member> {
    if let Some(custom) = custom.0.get(name) {
        return Some(Member::Measure(custom.measure));
    }
    let plural;
    let name = match name {
        "Id" => "Conversation.ConversationId",
        "DateCreated" => "Conversation.CreatedDate",
        "Channels" => "Conversation.Channels",
        "Languages" => "Conversation.Languages",
        "OperatorResults" => "OperatorResult.Value",
        _ => match name.strip_prefix("OperatorResults.") {
            Some(rest) => {
                plural = format!("OperatorResult.{rest}");
                &plural
            }
            None => name,
        },
    };
    CUBES.iter().find_map(|cube| {
        let dimension = cube.dimensions.iter().find(|d| d.name == name);
        let measure = cube.measures.iter().find(|m| m.name == name);
        dimension.map(Member::Dimension).or(measure.map(Member::Measure))
    })
}

/// The body of the Metadata response.
pub fn metadata(custom: &CustomMeasures) -> Json {
    let cubes: Vec<Json> = CUBES.iter().map(|cube| cube.describe(custom)).collect();
    json!({"domain": "Conversations", "cubes": cubes})
}

impl Cube {
    fn describe(&self, custom: &CustomMeasures) -> Json {
        let own = self.measures.iter().filter(|measure| !custom.0.contains_key(measure.name));
        let own = own.map(|measure| measure.describe(measure.name, None));
        let added = custom.0.iter().filter(|(name, _)| name.split_once('.').is_some_and(|(cube, _)| cube == self.name));
        let added = added.map(|(name, added)| added.measure.describe(name, added.description.as_deref()));
        let measures: Vec<Json> = own.chain(added).collect();
        let dimensions: Vec<Json> = self.dimensions.iter().flat_map(Dimension::describe).collect();
        json!({
            "name": self.name,
            "description": self.description,
            "measures": measures,
            "dimensions": dimensions,
        })
    }
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

    fn describe(&self, name: &str, description: Option<&str>) -> Json {
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
    fn describe(&self) -> Vec<Json> {
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

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::super::outputs::FIELDS;
    use super::*;

    #[test]
    fn names_are_unique_and_belong_to_their_cube() {
        let mut seen = HashSet::new();
        for cube in &CUBES {
            let names = cube.measures.iter().map(|m| m.name);
            for name in names.chain(cube.dimensions.iter().map(|d| d.name)) {
                assert!(seen.insert(name), "{name} twice");
                assert_eq!(name.split_once('.').map(|(c, _)| c), Some(cube.name));
                assert!(member(name, &CustomMeasures::default()).is_some());
            }
        }
    }

    #[test]
    fn loose_names_are_understood() {
        let dimension = |name| match member(name, &CustomMeasures::default()) {
            Some(Member::Dimension(found)) => found.name,
            _ => "",
        };
        assert_eq!(dimension("Id"), "Conversation.ConversationId");
        assert_eq!(dimension("DateCreated"), "Conversation.CreatedDate");
        assert_eq!(dimension("OperatorResults"), "OperatorResult.Value");
        assert_eq!(dimension("OperatorResults.CreatedDate"), "OperatorResult.CreatedDate");
        for unknown in ["", "Count", "conversation.count", "Conversation.", "OperatorResults."] {
            assert!(member(unknown, &CustomMeasures::default()).is_none(), "{unknown:?}");
        }
    }

    #[test]
    fn custom_measures_are_found_and_listed_once_in_their_cubes() {
        let mut custom = CustomMeasures::default();
        custom.add("LeadScore", Some("How hot"), &FIELDS[0]);
        let metadata = metadata(&custom);
        let names = |cube: usize| -> Vec<&str> {
            let measures = metadata["cubes"][cube]["measures"].as_array().unwrap();
            measures.iter().map(|measure| measure["name"].as_str().unwrap()).collect()
        };
        assert!(names(1).contains(&"OperatorResult.LeadScoreMax"));
        let same = names(2).into_iter().filter(|name| *name == "ConversationSummary.LeadScoreAverage").count();
        assert_eq!(same, 1, "it replaces the generated measure of this name");
        assert!(names(0).iter().all(|name| !name.contains("LeadScore")));
        assert!(metadata.to_string().contains("How hot"));
        let found = |name: &str| matches!(member(name, &custom), Some(Member::Measure(_)));
        assert!(found("ConversationSummary.LeadScoreSum") && !found("ConversationSummary.<Name>Sum"));
    }

    #[test]
    fn metadata_lists_both_generations_with_types() {
        let metadata = metadata(&CustomMeasures::default());
        let cubes = metadata["cubes"].as_array().unwrap();
        let names: Vec<_> = cubes.iter().map(|cube| cube["name"].as_str().unwrap()).collect();
        assert_eq!(names, ["Conversation", "OperatorResult", "ConversationSummary"]);
        let kinds: HashSet<_> = cubes
            .iter()
            .flat_map(|cube| cube["dimensions"].as_array().unwrap())
            .map(|dimension| dimension["type"].as_str().unwrap())
            .collect();
        assert_eq!(kinds, HashSet::from(["string", "number", "time", "boolean"]));
    }
}
