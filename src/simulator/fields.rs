//! Custom fields: the control plane that makes measures from operators' output.
//!
//! Two revisions of this API are published, with different bodies under the same path. Both are served. The form of a
//! request's `entityMetadata` shows its revision:
//!
//! * the newer one nests `intelligenceOperator`, and creates: a name in use gives 409;
//! * the older one is flat, and registers: 201 for a new name, 200 where the same operator already has it (field and
//!   description are then replaced), 409 where another operator has it.
//!
//! A field is always described in the form in which it was created, and can be read and patched by its id in both ways.
//! Lists have the newer revision's `meta`, without which Twilio's Node SDK fails; older clients ignore it. Published
//! material does not define the rest. Here a malformed id is 400, an unknown one 404, and a patch may repeat
//! `sourceType` but no other fixed member.
//!
//! Fields belong to the user that created them. They cannot be deleted, as in the published API.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use fastrand::Rng;
use jiff::Timestamp;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value as Json, json};

use super::catalog::CustomMeasures;
use super::data::{self, Operator};
use super::error::{ApiError, quoted};
use super::jobs::shown;
use super::members::Kind;
use super::outputs::{FIELDS, OutputField};

/// Custom measures of one account, as published.
pub const MOST_MEASURES: usize = 3;
/// Most accounts with fields. Other accounts have no slots then.
const MOST_ACCOUNTS: usize = 1000;
const LONGEST_NAME: usize = 128;
const LONGEST_OPERATOR_NAME: usize = 256;
/// Characters, as published.
const LONGEST_DESCRIPTION: usize = 150;
const SOURCE: &str = "INTELLIGENCE_OPERATOR";

/// The custom fields of all users.
#[derive(Default)]
pub struct Fields {
    accounts: Mutex<HashMap<String, Account>>,
}

#[derive(Default)]
struct Account {
    /// In the order in which they were created.
    mappings: Vec<Mapping>,
    measures: Arc<CustomMeasures>,
}

struct Mapping {
    id: String,
    name: String,
    description: Option<String>,
    operator_id: String,
    operator_name: Option<String>,
    field: &'static OutputField,
    shape: Shape,
    created: Timestamp,
    updated: Option<Timestamp>,
    version: u64,
}

/// The revision that a body is written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    Nested,
    Flat,
}

/// A custom field as it is returned.
#[derive(Debug)]
pub struct Described {
    /// Whether the request created it.
    pub is_new: bool,
    /// Changes with every patch.
    pub etag: String,
    /// Its body.
    pub body: Json,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Creation {
    category: String,
    name: String,
    description: Option<String>,
    entity_metadata: EntityMetadata,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Patch {
    entity_metadata: EntityMetadata,
}

/// Both forms, and mixtures of them.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct EntityMetadata {
    source_type: Option<String>,
    intelligence_operator: Option<Source>,
    operator_id: Option<String>,
    operator_name: Option<String>,
    field: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Source {
    operator_id: Option<String>,
    operator_name: Option<String>,
    field: Option<String>,
}

impl EntityMetadata {
    fn source(self) -> Result<(Shape, Source), ApiError> {
        let is_flat = self.operator_id.is_some() || self.operator_name.is_some() || self.field.is_some();
        match self.intelligence_operator {
            Some(_) if is_flat => Err(ApiError::bad_request(
                "entityMetadata may hold intelligenceOperator, or operatorId and field, but not both",
            )),
            Some(nested) => Ok((Shape::Nested, nested)),
            None => {
                let Self { operator_id, operator_name, field, .. } = self;
                Ok((Shape::Flat, Source { operator_id, operator_name, field }))
            }
        }
    }
}

impl Fields {
    /// Creates a field, or registers it again.
    pub fn create(
        &self,
        user: &str,
        body: &[u8],
        operators: &[Operator],
        now: Timestamp,
    ) -> Result<Described, ApiError> {
        let mapping = read_creation(body, operators, now)?;
        let accounts = &mut *self.accounts.lock().unwrap_or_else(PoisonError::into_inner);
        if accounts.len() >= MOST_ACCOUNTS && !accounts.contains_key(user) {
            return Err(ApiError::no_slots());
        }
        let account = accounts.entry(user.to_owned()).or_default();
        let described = account.register(mapping, now)?;
        account.refresh();
        Ok(described)
    }

    /// Changes which field of the operator's output is read. Without `If-Match` no tag is compared.
    pub fn patch(
        &self,
        user: &str,
        id: &str,
        if_match: Option<&str>,
        body: &[u8],
        operators: &[Operator],
        now: Timestamp,
    ) -> Result<Described, ApiError> {
        let mut accounts = self.accounts.lock().unwrap_or_else(PoisonError::into_inner);
        let account = accounts.get_mut(user).ok_or_else(|| absent(id))?;
        let mapping = account.mappings.iter_mut().find(|mapping| mapping.id == id).ok_or_else(|| absent(id))?;
        let field = read_patch(body, mapping, operators)?;
        if if_match.is_some_and(|wanted| !names_tag(wanted, &mapping.etag())) {
            return Err(ApiError::precondition_failed());
        }
        mapping.replace_field(field, now);
        let described = mapping.described(false);
        account.refresh();
        Ok(described)
    }

    /// One field.
    pub fn fetch(&self, user: &str, id: &str) -> Result<Described, ApiError> {
        let accounts = self.accounts.lock().unwrap_or_else(PoisonError::into_inner);
        let mappings = accounts.get(user).map_or(&[][..], |account| &account.mappings);
        let mapping = mappings.iter().find(|mapping| mapping.id == id);
        mapping.map(|mapping| mapping.described(false)).ok_or_else(|| absent(id))
    }

    /// All fields of this user, oldest first.
    pub fn list(&self, user: &str) -> Vec<Json> {
        let accounts = self.accounts.lock().unwrap_or_else(PoisonError::into_inner);
        let mappings = accounts.get(user).map_or(&[][..], |account| &account.mappings);
        mappings.iter().map(Mapping::describe).collect()
    }

    /// How many slots are used, and how many are left.
    pub fn capacity(&self, user: &str) -> Json {
        let consumed = self.list(user).len();
        json!({"measure": {"consumed": consumed, "remaining": MOST_MEASURES - consumed}})
    }

    /// The measures that this user's fields add to the catalog.
    pub fn measures(&self, user: &str) -> Arc<CustomMeasures> {
        let accounts = self.accounts.lock().unwrap_or_else(PoisonError::into_inner);
        accounts.get(user).map(|account| Arc::clone(&account.measures)).unwrap_or_default()
    }
}

impl Account {
    fn register(&mut self, new: Mapping, now: Timestamp) -> Result<Described, ApiError> {
        let is_full = self.mappings.len() >= MOST_MEASURES;
        match self.mappings.iter_mut().find(|mapping| mapping.name == new.name) {
            Some(known) if new.shape == Shape::Flat && known.operator_id == new.operator_id => {
                known.description = new.description;
                known.operator_name = new.operator_name;
                known.replace_field(new.field, now);
                Ok(known.described(false))
            }
            Some(known) => {
                Err(ApiError::name_taken(format!("There is a custom field named {} already", quoted(&known.name))))
            }
            None if is_full => Err(ApiError::no_slots()),
            None => {
                let described = new.described(true);
                self.mappings.push(new);
                Ok(described)
            }
        }
    }

    fn refresh(&mut self) {
        let mut measures = CustomMeasures::default();
        for mapping in &self.mappings {
            measures.add(&mapping.name, mapping.description.as_deref(), mapping.field);
        }
        self.measures = Arc::new(measures);
    }
}

impl Mapping {
    fn etag(&self) -> String {
        format!("\"v{}\"", self.version)
    }

    fn replace_field(&mut self, field: &'static OutputField, now: Timestamp) {
        self.field = field;
        self.updated = Some(now);
        self.version += 1;
    }

    fn described(&self, is_new: bool) -> Described {
        Described { is_new, etag: self.etag(), body: self.describe() }
    }

    fn describe(&self) -> Json {
        let mut source = json!({"operatorId": self.operator_id, "field": self.field.path});
        if let Some(name) = &self.operator_name {
            source["operatorName"] = name.as_str().into();
        }
        let entity = match self.shape {
            Shape::Nested => json!({"sourceType": SOURCE, "intelligenceOperator": source}),
            Shape::Flat => {
                source["sourceType"] = SOURCE.into();
                source
            }
        };
        let mut json = json!({
            "id": self.id,
            "category": "MEASURE",
            "name": self.name,
            "entityMetadata": entity,
            "createdAt": shown(self.created),
            "updatedAt": self.updated.map(shown),
        });
        if let Some(description) = &self.description {
            json["description"] = description.as_str().into();
        }
        json
    }
}

fn absent(id: &str) -> ApiError {
    match is_id(id, "convinsights_mapping_") {
        true => ApiError::not_found(),
        false => ApiError::bad_request(format!("{} is not the id of a custom field", quoted(id))),
    }
}

/// A prefix and 26 characters, the first from 0 to 7.
fn is_id(text: &str, prefix: &str) -> bool {
    text.strip_prefix(prefix).is_some_and(|rest| {
        rest.len() == 26
            && rest.starts_with(|first: char| ('0'..='7').contains(&first))
            && rest.bytes().all(|b| b.is_ascii_digit() || b.is_ascii_lowercase())
    })
}

fn is_word(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

/// Whether an `If-Match` names this strong tag (RFC 9110, section 13.1.1).
fn names_tag(if_match: &str, etag: &str) -> bool {
    if_match.trim() == "*" || if_match.split(',').any(|tag| tag.trim() == etag)
}

fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, ApiError> {
    serde_json::from_slice(body).map_err(|error| {
        // It may contain a name that the caller chose, which can be long.
        let reason: String = error.to_string().chars().take(200).collect();
        ApiError::bad_request(format!("The request body is not as documented: {reason}"))
    })
}

fn read_creation(body: &[u8], operators: &[Operator], now: Timestamp) -> Result<Mapping, ApiError> {
    let Creation { category, name, description, entity_metadata } = read(body)?;
    if category != "MEASURE" {
        return Err(ApiError::bad_request("The only category is MEASURE"));
    }
    if !is_word(&name) || name.len() > LONGEST_NAME {
        return Err(ApiError::bad_request(format!(
            "name must be letters, digits and underscores, at most {LONGEST_NAME}"
        )));
    }
    if description.as_ref().is_some_and(|text| text.chars().count() > LONGEST_DESCRIPTION) {
        return Err(ApiError::bad_request(format!("description may hold at most {LONGEST_DESCRIPTION} characters")));
    }
    is_source_type(entity_metadata.source_type.as_deref().unwrap_or_default())?;
    let (shape, source) = entity_metadata.source()?;
    let operator_id = source.operator_id.ok_or_else(|| ApiError::bad_request("operatorId is missing"))?;
    if source.operator_name.as_ref().is_some_and(|text| text.len() > LONGEST_OPERATOR_NAME) {
        return Err(ApiError::bad_request(format!("operatorName may hold at most {LONGEST_OPERATOR_NAME} bytes")));
    }
    let field = field_of(&operator_id, source.field.as_deref(), operators)?;
    Ok(Mapping {
        id: data::id(&mut Rng::new(), "convinsights_mapping_", now).to_string(),
        name,
        description,
        operator_id,
        operator_name: source.operator_name,
        field,
        shape,
        created: now,
        updated: None,
        version: 1,
    })
}

fn read_patch(body: &[u8], mapping: &Mapping, operators: &[Operator]) -> Result<&'static OutputField, ApiError> {
    let Patch { entity_metadata } = read(body)?;
    if let Some(source_type) = &entity_metadata.source_type {
        is_source_type(source_type)?;
    }
    let (shape, source) = entity_metadata.source()?;
    if shape != mapping.shape || source.operator_id.is_some() || source.operator_name.is_some() {
        return Err(ApiError::bad_request("Only the field of the operator's output can be changed"));
    }
    field_of(&mapping.operator_id, source.field.as_deref(), operators)
}

fn is_source_type(text: &str) -> Result<(), ApiError> {
    match text {
        SOURCE => Ok(()),
        _ => Err(ApiError::bad_request(format!("The only sourceType is {SOURCE}"))),
    }
}

/// The field with this path in the output of this operator.
fn field_of(operator_id: &str, path: Option<&str>, operators: &[Operator]) -> Result<&'static OutputField, ApiError> {
    if !is_id(operator_id, "intelligence_operator_") {
        return Err(ApiError::bad_request(format!("{} is not the id of an operator", quoted(operator_id))));
    }
    let operator = operators.iter().find(|operator| &*operator.id == operator_id);
    let operator = operator.ok_or_else(|| ApiError::bad_request(format!("There is no operator {operator_id}")))?;
    if &*operator.format != "JSON" {
        return Err(ApiError::bad_request(format!("The operator's output is {}, not JSON", operator.format)));
    }
    let path = path.ok_or_else(|| ApiError::bad_request("field is missing"))?;
    if !matches!(path.split('.').count(), 1 | 2) || !path.split('.').all(is_word) {
        return Err(ApiError::bad_request("field must be one or two names, joined by a dot"));
    }
    let field = FIELDS.iter().find(|field| field.path == path);
    let field = field.ok_or_else(|| ApiError::bad_request(format!("The operator has no field {}", quoted(path))))?;
    match field.kind {
        Kind::Number => Ok(field),
        kind => Err(ApiError::bad_request(format!("{} is a {}, not a number", quoted(path), kind.word()))),
    }
}

#[cfg(test)]
mod tests;
