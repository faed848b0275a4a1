//! Scripted outcomes of the next query jobs.
//!
//! This file parses and describes rules. [`jobs`](super::jobs) stores and applies them.

use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value as Json, json};

use crate::core::units::{Span, parse_duration};

use super::status::{OperationError, Status};

const MOST_JOBS: u32 = 1_000_000;
const LONGEST: Duration = Duration::from_secs(365 * 24 * 3600);
const LONGEST_TEXT: usize = 4096;

/// One rule. Everything but `next_jobs` is optional, and all that is given applies together.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct JobFault {
    /// The number of new jobs that it applies to; must not be zero.
    pub next_jobs: u32,
    /// How they end. With [`Status::Pending`] or [`Status::Running`] they reach that status and stay in it.
    pub status: Option<Status>,
    /// How long they take.
    pub takes: Option<Duration>,
    /// How long their results are kept.
    pub retention: Option<Duration>,
    /// Why they fail, if they do.
    pub error: Option<OperationError>,
    /// The status from which on they cannot be found. With [`Status::Pending`] they are accepted and then unknown.
    pub lose: Option<Status>,
    /// The status that they change to once a client has seen their end.
    pub then: Option<Status>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    next_jobs: u32,
    status: Option<Status>,
    takes: Option<String>,
    retention: Option<String>,
    error: Option<OperationError>,
    lose: Option<Status>,
    then: Option<Status>,
}

impl JobFault {
    /// Parses a posted rule, or says what is wrong with it.
    pub fn from_json(text: &[u8]) -> Result<Self, String> {
        let written: Written = serde_json::from_slice(text).map_err(|error| error.to_string())?;
        let next_jobs = written.next_jobs;
        if !(1..=MOST_JOBS).contains(&next_jobs) {
            return Err(format!("next_jobs must be from 1 to {MOST_JOBS}"));
        }
        if written.error.is_some() && written.status != Some(Status::Failed) {
            return Err("error needs the status FAILED".to_owned());
        }
        let length = |error: &OperationError| error.message.len() + error.detail.as_ref().map_or(0, String::len);
        if written.error.as_ref().is_some_and(|error| length(error) > LONGEST_TEXT) {
            return Err(format!("the texts of error may hold at most {LONGEST_TEXT} bytes"));
        }
        let rule = Self {
            next_jobs,
            status: written.status,
            takes: duration("takes", written.takes)?,
            retention: duration("retention", written.retention)?,
            error: written.error,
            lose: written.lose,
            then: written.then,
        };
        if rule == (Self { next_jobs, ..Self::default() }) {
            return Err("the rule changes nothing".to_owned());
        }
        Ok(rule)
    }

    /// The rule in the form in which it can be posted.
    pub fn describe(&self) -> Json {
        let mut json = json!({"next_jobs": self.next_jobs});
        let mut set = |key: &str, value: Option<Json>| {
            if let Some(value) = value {
                json[key] = value;
            }
        };
        let duration = |duration: Option<Duration>| duration.map(|duration| Span(duration).to_string().into());
        let status = |status: Option<Status>| status.map(|status| status.word().into());
        set("status", status(self.status));
        set("takes", duration(self.takes));
        set("retention", duration(self.retention));
        set("error", self.error.as_ref().map(|error| json!(error)));
        set("lose", status(self.lose));
        set("then", status(self.then));
        json
    }
}

fn duration(key: &str, text: Option<String>) -> Result<Option<Duration>, String> {
    match text.as_deref().map(parse_duration).transpose() {
        Ok(Some(duration)) if duration > LONGEST => Err(format!("{key} must be at most {}", Span(LONGEST))),
        Ok(duration) => Ok(duration),
        Err(expected) => Err(format!("{key}: {expected}")),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn rules_read_back_as_described() {
        for text in [
            r#"{"next_jobs":1,"status":"FAILED"}"#,
            r#"{"next_jobs":2,"status":"RUNNING","takes":"2s"}"#,
            r#"{"next_jobs":1,"retention":"1m","then":"PENDING"}"#,
            r#"{"next_jobs":1,"lose":"COMPLETED"}"#,
            r#"{"next_jobs":1,"status":"FAILED","error":{"code":1,"message":"no","httpStatusCode":500}}"#,
        ] {
            let rule = JobFault::from_json(text.as_bytes()).unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(rule.describe(), serde_json::from_str::<Json>(text).unwrap());
        }
    }

    #[test]
    fn the_rest_is_refused_with_a_reason() {
        for text in [
            "",
            "{}",
            r#"{"next_jobs":1}"#,
            r#"{"next_jobs":0,"status":"FAILED"}"#,
            r#"{"next_jobs":-1,"status":"FAILED"}"#,
            r#"{"next_jobs":1,"status":"failed"}"#,
            r#"{"next_jobs":1,"status":"GONE"}"#,
            r#"{"next_jobs":1,"takes":"2"}"#,
            r#"{"next_jobs":1,"retention":"9999d"}"#,
            r#"{"next_jobs":1,"status":"COMPLETED","error":{"code":1,"message":"no","httpStatusCode":500}}"#,
            r#"{"next_jobs":1,"status":"FAILED","error":{"code":1}}"#,
            r#"{"next_jobs":1,"status":"FAILED","next":1}"#,
        ] {
            let reason = JobFault::from_json(text.as_bytes()).expect_err(text);
            assert!(!reason.is_empty(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_text_does_not_panic(text in prop::collection::vec(any::<u8>(), 0..80)) {
            let _ = JobFault::from_json(&text);
        }
    }
}
