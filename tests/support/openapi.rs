//! The gateway's OpenAPI document, and checks of answers against it.

use serde_json::{Map, Value as Json};

use super::client::Answer;
use super::gateway::Gateway;
use super::requests::get;

/// Headers of every HTTP message, which the document does not list for each answer.
const NOT_LISTED: [&str; 6] =
    ["content-type", "content-length", "content-encoding", "transfer-encoding", "connection", "date"];

pub struct Document(Json);

impl Document {
    /// Fetches the document from the admin plane, with these header lines in the request.
    pub async fn of(gateway: &Gateway, headers: &str) -> Self {
        let answer = gateway.ask_admin(&get("/openapi.json", headers)).await;
        assert_eq!((answer.status, answer.header("content-type")), (200, "application/json"), "{answer:?}");
        Self(answer.json())
    }

    pub fn json(&self) -> &Json {
        &self.0
    }

    /// Fails unless the document describes this answer to a request of this method and path, whose parameters are in braces.
    #[track_caller]
    pub fn assert_describes(&self, method: &str, path: &str, answer: &Answer) {
        if let Err(fault) = self.check(method, path, answer) {
            panic!("{method} {path}: {fault}\n{answer:?}\n{}", answer.text());
        }
    }

    fn check(&self, method: &str, path: &str, answer: &Answer) -> Result<(), String> {
        let operation = self.0["paths"].get(path).and_then(|item| item.get(method.to_ascii_lowercase()));
        let responses = &operation.ok_or("no such operation")?["responses"];
        let status = answer.status.to_string();
        let response = responses.get(&status).or_else(|| responses.get("default"));
        let response = self.resolved(response.ok_or_else(|| format!("{status} is not described"))?);
        let headers = response["headers"].as_object().cloned().unwrap_or_default();
        for (name, header) in &headers {
            let is_required = self.resolved(header)["required"] == true;
            if is_required && answer.find(&name.to_ascii_lowercase()).is_none() {
                return Err(format!("{name} is missing"));
            }
        }
        for (name, value) in &answer.headers {
            let listed = headers.iter().find(|(listed, _)| listed.eq_ignore_ascii_case(name));
            match listed {
                Some((_, header)) => self.fits_header(value, self.resolved(header))?,
                None if NOT_LISTED.contains(&name.as_str()) => {}
                None => return Err(format!("the header {name} is not described")),
            }
        }
        match response.get("content") {
            _ if method == "HEAD" && answer.body.is_empty() => Ok(()),
            None if answer.body.is_empty() => Ok(()),
            // A text for people, beside the redirect.
            None if answer.status == 303 => Ok(()),
            None => Err("there is a body, and none is described".to_owned()),
            Some(content) => {
                let kind = answer.header("content-type").split(';').next().unwrap_or_default();
                let schema = &content.get(kind).ok_or_else(|| format!("{kind} is not described"))?["schema"];
                match kind {
                    "application/json" => self.fits(&answer.json(), schema),
                    _ => self.fits(&Json::String(answer.text()), schema),
                }
            }
        }
    }

    /// A header's value is a text, or a number in digits.
    fn fits_header(&self, value: &str, header: &Json) -> Result<(), String> {
        let number = value.parse::<u64>().map(Json::from);
        let text = self.fits(&Json::from(value), &header["schema"]);
        text.or_else(|fault| number.map_err(|_| fault).and_then(|number| self.fits(&number, &header["schema"])))
    }

    fn resolved<'d>(&'d self, value: &'d Json) -> &'d Json {
        match value.get("$ref").and_then(Json::as_str) {
            Some(pointer) => self.0.pointer(&pointer[1..]).unwrap_or_else(|| panic!("{pointer} leads nowhere")),
            None => value,
        }
    }

    /// Whether a value matches a schema (JSON Schema 2020-12, as far as the document uses it). The error says what is
    /// wrong.
    pub fn fits(&self, value: &Json, schema: &Json) -> Result<(), String> {
        let wrong = |what: &str, expected: &Json| Err(format!("{value} is not {what} {expected}"));
        for (keyword, expected) in schema.as_object().expect("a schema is an object") {
            match keyword.as_str() {
                "$ref" => self.fits(value, self.resolved(schema))?,
                "type" => {
                    let is_one = match expected {
                        Json::Array(types) => types.iter().any(|name| is_type(value, name)),
                        name => is_type(value, name),
                    };
                    if !is_one {
                        return wrong("of type", expected);
                    }
                }
                "const" if value != expected => return wrong("", expected),
                "enum" if !expected.as_array().unwrap().contains(value) => return wrong("one of", expected),
                "minimum" if value.as_f64() < expected.as_f64() => return wrong("at least", expected),
                "maximum" if value.as_f64() > expected.as_f64() => return wrong("at most", expected),
                "required" => {
                    let missing = |name: &&Json| value.is_object() && value.get(name.as_str().unwrap()).is_none();
                    if let Some(name) = expected.as_array().unwrap().iter().find(missing) {
                        return Err(format!("{name} is missing in {value}"));
                    }
                }
                "properties" => {
                    for (name, schema) in expected.as_object().unwrap() {
                        value.get(name).map_or(Ok(()), |member| self.fits(member, schema))?;
                    }
                }
                "additionalProperties" => {
                    let listed = schema.get("properties").and_then(Json::as_object);
                    let is_other = |name: &str| !listed.is_some_and(|listed| listed.contains_key(name));
                    for (name, member) in value.as_object().unwrap_or(&Map::new()).iter().filter(|(n, _)| is_other(n)) {
                        match expected {
                            Json::Bool(true) => {}
                            Json::Bool(false) => return Err(format!("{name} is not described")),
                            schema => self.fits(member, schema)?,
                        }
                    }
                }
                "items" => value.as_array().into_iter().flatten().try_for_each(|value| self.fits(value, expected))?,
                "allOf" => expected.as_array().unwrap().iter().try_for_each(|schema| self.fits(value, schema))?,
                "anyOf" | "oneOf" => {
                    let results = expected.as_array().unwrap().iter().map(|schema| self.fits(value, schema));
                    let (fits, faults): (Vec<_>, Vec<_>) = results.partition(Result::is_ok);
                    if fits.is_empty() || (keyword == "oneOf" && fits.len() > 1) {
                        return Err(format!("{} forms fit: {faults:?}", fits.len()));
                    }
                }
                "const" | "enum" | "minimum" | "maximum" => {}
                "description" | "examples" | "default" | "format" | "maxLength" => {}
                other => panic!("the document uses {other}, which is not checked here"),
            }
        }
        Ok(())
    }
}

fn is_type(value: &Json, name: &Json) -> bool {
    match name.as_str().expect("a type is a word") {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "boolean" => value.is_boolean(),
        "null" => value.is_null(),
        other => panic!("no type {other}"),
    }
}
