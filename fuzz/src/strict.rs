//! Compares the gateway's JSON reader with serde_json. `tests/integration/json_suite.rs` uses it too.

use insights_gateway::core::json::{self, Fault, Value};
use serde_json::Value as Theirs;

/// Reads `text` with both. What ours accepts, theirs reads as the same value. What only ours refuses is what it
/// promises to refuse.
pub fn read(text: &[u8]) -> Option<Value<'_>> {
    let theirs = serde_json::from_slice::<Theirs>(text);
    match (json::parse(text), theirs) {
        (Ok(ours), Ok(theirs)) => {
            assert!(is_same(&ours, &theirs), "two readings of one text");
            Some(ours)
        }
        (Ok(ours), Err(error)) => {
            assert!(error.to_string().contains("number out of range"), "only ours takes it: {error}");
            Some(ours)
        }
        (Err(error), Ok(_)) => {
            assert!(
                matches!(error.fault, Fault::RepeatedName | Fault::TooDeep | Fault::TooManyValues),
                "only theirs takes it: {error}"
            );
            None
        }
        (Err(error), Err(_)) => {
            assert!(error.at <= text.len());
            None
        }
    }
}

/// Whether both values are equal.
fn is_same(ours: &Value<'_>, theirs: &Theirs) -> bool {
    match (ours, theirs) {
        (Value::Null, Theirs::Null) => true,
        (Value::Bool(ours), Theirs::Bool(theirs)) => ours == theirs,
        (Value::Number(digits), Theirs::Number(theirs)) => {
            serde_json::from_str::<serde_json::Number>(digits).is_ok_and(|ours| ours == *theirs)
        }
        (Value::String(ours), Theirs::String(theirs)) => ours.as_str() == theirs,
        (Value::Array(ours), Theirs::Array(theirs)) => {
            ours.len() == theirs.len() && ours.iter().zip(theirs).all(|(ours, theirs)| is_same(ours, theirs))
        }
        (Value::Object(ours), Theirs::Object(theirs)) => {
            ours.len() == theirs.len()
                && ours.iter().all(|m| theirs.get(m.name.as_str()).is_some_and(|theirs| is_same(&m.value, theirs)))
        }
        _ => false,
    }
}
