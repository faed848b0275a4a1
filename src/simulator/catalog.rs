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
//! This file finds a member by its name and describes all of them. What a member is stands in
//! [`members`](super::members), and the members themselves are in [`cubes`](super::cubes). It neither groups nor filters.

use std::collections::BTreeMap;

use serde_json::{Value as Json, json};

use super::cubes::CUBES;
use super::members::{Cube, Dimension, Measure, Member};
use super::outputs::{NAME, OutputField};

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
