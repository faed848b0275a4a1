//! `GET /openapi.json`: both planes as an OpenAPI 3.1 document.
//!
//! `openapi.json` beside this file describes what is particular to a route: its parameters, its bodies and its
//! successful responses. What all routes of a plane have in common is added here, from the table of endpoints and the
//! list of reasons, so that neither is written twice.

use http::StatusCode;
use serde_json::{Map, Value, json};

use super::sessions::COOKIE;
use crate::core::error::Reason;
use crate::twilio::endpoint::{Body, CacheClass, ENDPOINTS, Endpoint, Operation, USAGE};

/// The reasons for which a request is refused before its operation is known.
const OF_HEADS: [Reason; 7] = [
    Reason::BadRequest,
    Reason::Unauthenticated,
    Reason::OriginNotAllowed,
    Reason::ClientTimeout,
    Reason::HeadersTooLarge,
    Reason::Overloaded,
    Reason::Draining,
];

/// The reasons that concern only requests with a body.
const OF_BODIES: [Reason; 2] = [Reason::InvalidJson, Reason::BodyTooLarge];

/// The document, for this version.
pub(super) fn document() -> Value {
    // A test parses the file. If it were invalid, the document would have only the common parts.
    let mut document: Value = serde_json::from_str(include_str!("openapi.json")).unwrap_or_else(|_| json!({}));
    document["info"]["version"] = json!(env!("CARGO_PKG_VERSION"));
    document["components"]["securitySchemes"]["adminSession"]["name"] = json!(COOKIE);
    let words = Reason::ALL.map(Reason::as_str);
    document["components"]["schemas"]["Reason"] = json!({"type": "string", "enum": words});
    for status in statuses(&Reason::ALL) {
        document["components"]["responses"][refused(status)] = refusal(status);
    }
    let (data, admin) = (document["servers"][0].clone(), document["servers"][1].clone());
    let components = document["components"]["headers"].clone();
    let Some(paths) = document["paths"].as_object_mut() else { return document };
    for (path, item) in paths.iter_mut() {
        let Some(item) = item.as_object_mut() else { continue };
        let is_data = path == USAGE || ENDPOINTS.iter().any(|endpoint| endpoint.path == path);
        if is_data {
            complete_data_plane(path, item);
        } else {
            complete_admin_plane(path, item, &components);
        }
        let asked_before = is_data.then(|| item.values().next().map(preflight)).flatten();
        if let Some(get) = item.get("get") {
            item.insert("head".to_owned(), without_bodies(get));
        }
        if let Some(preflight) = asked_before {
            item.insert("options".to_owned(), preflight);
        }
        item.insert("servers".to_owned(), json!([if is_data { &data } else { &admin }]));
    }
    document
}

/// Adds what all methods of the data plane have in common to the methods of a path.
fn complete_data_plane(path: &str, item: &mut Map<String, Value>) {
    let endpoint = |method: &str| {
        let is_it =
            |endpoint: &&Endpoint| endpoint.path == path && endpoint.method.as_str().eq_ignore_ascii_case(method);
        ENDPOINTS.iter().find(is_it)
    };
    for (method, operation) in item.iter_mut() {
        let endpoint = endpoint(method);
        let reasons: Vec<_> = Reason::ALL.into_iter().filter(|reason| meets(endpoint, *reason)).collect();
        for (status, response) in operation["responses"].as_object_mut().into_iter().flatten() {
            let of_twilio = endpoint.map(|_| of_twilio()).unwrap_or_default();
            add_headers(response, headers_of(status).into_iter().chain(of_twilio));
        }
        for status in statuses(&reasons) {
            operation["responses"][status.as_str()] = reference("responses", &refused(status));
        }
        operation["security"] = json!([{"teamToken": []}, {"teamBasic": []}, {"teamCertificate": []}, {}]);
        if let Some(endpoint) = endpoint {
            operation["responses"]["default"] = json!({
                "description": "Twilio's own error, unchanged.",
                "headers": headers_of("default").into_iter().chain(of_twilio()).collect::<Value>(),
                "content": {"application/json": {"schema": reference("schemas", "TwilioError")}},
            });
            operation["x-operation"] = json!(endpoint.operation.as_str());
            operation["x-permission"] = json!(endpoint.permission.as_str());
        }
    }
}

/// What a browser asks before a request that a page of another site wants to send. `operation` is one of the path's.
fn preflight(operation: &Value) -> Value {
    let id = operation["operationId"].as_str().unwrap_or_default();
    let is_in_path = |parameter: &&Value| {
        let name = parameter["$ref"].as_str().and_then(|path| path.rsplit('/').next());
        matches!(name, Some("OperationId" | "MappingId"))
    };
    let parameters: Vec<_> = operation["parameters"].as_array().into_iter().flatten().filter(is_in_path).collect();
    let of_answer = [
        ("Access-Control-Allow-Methods", "AllowMethods"),
        ("Access-Control-Allow-Headers", "AllowHeaders"),
        ("Access-Control-Max-Age", "MaxAge"),
    ];
    let headers = headers_of("204").into_iter().chain(named(&of_answer));
    let mut responses = json!({"204": {
        "description": "The page may send the request.",
        "headers": headers.collect::<Value>(),
    }});
    for status in statuses(&[&OF_HEADS[..], &[Reason::NotFound, Reason::MethodNotAllowed]].concat()) {
        responses[status.as_str()] = reference("responses", &refused(status));
    }
    json!({
        "operationId": format!("{id}Preflight"),
        "summary": "A browser's preflight, for origins in `server.cors` (Fetch, section 3.3.2). No token is needed.",
        "tags": operation["tags"],
        "parameters": parameters,
        "responses": responses,
        "security": [],
    })
}

/// Whether a request to this endpoint, or to the usage (`None`), can get this reason. A request with a wrong path or
/// method gets a reason of the routes that exist.
fn meets(endpoint: Option<&Endpoint>, reason: Reason) -> bool {
    let is_always = OF_HEADS.contains(&reason) || matches!(reason, Reason::NotFound | Reason::MethodNotAllowed);
    is_always
        || endpoint.is_some_and(|endpoint| match reason {
            Reason::OnlyIfCached => endpoint.cache != CacheClass::None,
            reason => endpoint.body != Body::None || !OF_BODIES.contains(&reason),
        })
}

/// Adds what all methods of the admin plane have in common to the methods of a path. `components` are the headers that
/// the document describes.
fn complete_admin_plane(path: &str, item: &mut Map<String, Value>, components: &Value) {
    let is_probe = matches!(path, "/livez" | "/readyz");
    let is_public = is_probe || matches!(path, "/login" | "/logout");
    let explored: &[Operation] = match path {
        "/explorer/query" => &[Operation::Query, Operation::Page],
        "/explorer/metadata" => &[Operation::Metadata],
        _ => &[],
    };
    for operation in item.values_mut() {
        let Some(responses) = operation["responses"].as_object_mut() else { continue };
        for (status, response) in responses.iter_mut().filter(|(_, response)| response.get("$ref").is_none()) {
            let of_data_plane = match explored.is_empty() {
                true => Vec::new(),
                false => headers_of_explored(status, components),
            };
            let of_page = response["content"].get("text/html").map(|_| OF_PAGES.as_slice()).unwrap_or_default();
            add_headers(response, of_data_plane.into_iter().chain(named(&OF_ADMIN)).chain(named(of_page)));
        }
        let reasons = Reason::ALL.into_iter().filter(|reason| {
            let passes = !matches!(reason, Reason::Unauthenticated | Reason::NotFound | Reason::MethodNotAllowed);
            passes && explored.iter().any(|operation| meets(Some(operation.endpoint()), *reason))
        });
        for status in statuses(&reasons.collect::<Vec<_>>()) {
            responses.insert(status.as_str().to_owned(), explored_refusal(status.as_str(), components));
        }
        if !explored.is_empty() {
            responses.insert("default".to_owned(), explored_refusal("default", components));
        }
        for (status, response) in [
            (StatusCode::BAD_REQUEST, Some("AdminError")),
            (StatusCode::UNAUTHORIZED, (!is_probe).then_some("AdminUnauthorized")),
            (StatusCode::FORBIDDEN, Some("AdminError")),
            (StatusCode::METHOD_NOT_ALLOWED, Some("AdminMethodNotAllowed")),
            (StatusCode::REQUEST_TIMEOUT, Some("AdminError")),
            (StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, Some("AdminError")),
            // There is a place for a probe, however many connections are busy.
            (StatusCode::SERVICE_UNAVAILABLE, (!is_probe).then_some("AdminError")),
        ] {
            if let Some(response) = response {
                responses.entry(status.as_str()).or_insert_with(|| reference("responses", response));
            }
        }
        operation["security"] =
            if is_public { json!([]) } else { json!([{"adminToken": []}, {"adminSession": []}, {}]) };
    }
}

/// A response of the data plane that the explorer passes on: Twilio's error, the gateway's, or one of the admin plane's
/// own.
fn explored_refusal(status: &str, components: &Value) -> Value {
    let forms = ["AdminError", "GatewayError", "TwilioError"].map(|form| reference("schemas", form));
    json!({
        "description": "As on the data plane; or what is wrong with the request to the explorer.",
        "headers": headers_of_explored(status, components).into_iter().chain(named(&OF_ADMIN)).collect::<Value>(),
        "content": {"application/json": {"schema": {"anyOf": forms}}},
    })
}

/// The headers of a response of the data plane with this status, as the explorer passes them on. An error of the admin
/// plane's own has none of them, so none is required.
fn headers_of_explored(status: &str, components: &Value) -> Vec<(&'static str, Value)> {
    let is_not_of_browsers = |(name, _): &(&str, Value)| *name != "Vary" && !name.starts_with("Access-Control-");
    let optional = |(name, reference): (&'static str, Value)| {
        let component = reference["$ref"].as_str().and_then(|path| path.rsplit('/').next()).unwrap_or_default();
        let mut header = components[component].clone();
        header["required"] = json!(false);
        (name, header)
    };
    let all = headers_of(status).into_iter().chain(of_twilio());
    all.filter(is_not_of_browsers).filter(|(name, _)| *name != "Cache-Control").map(optional).collect()
}

/// Adds headers to those that a response has of its own.
fn add_headers(response: &mut Value, common: impl Iterator<Item = (&'static str, Value)>) {
    let own = response["headers"].take();
    let own = own.as_object().into_iter().flatten().map(|(name, header)| (name.clone(), header.clone()));
    response["headers"] = common.map(|(name, header)| (name.to_owned(), header)).chain(own).collect();
}

/// The same operation for HEAD, whose responses have no body.
fn without_bodies(get: &Value) -> Value {
    let mut head = get.clone();
    let id = get["operationId"].as_str().unwrap_or_default();
    head["operationId"] = json!(format!("{id}Head"));
    head["summary"] = json!("The same, without a body.");
    for response in head["responses"].as_object_mut().into_iter().flat_map(Map::values_mut) {
        if let Some(response) = response.as_object_mut() {
            response.remove("content");
        }
    }
    head
}

/// The different statuses of these reasons, in their order.
fn statuses(reasons: &[Reason]) -> Vec<StatusCode> {
    let mut statuses: Vec<_> = reasons.iter().map(|reason| reason.status()).collect();
    statuses.sort_unstable();
    statuses.dedup();
    statuses
}

fn refused(status: StatusCode) -> String {
    format!("Refused{}", status.as_str())
}

/// The response of the data plane with a status that the gateway's reasons use: the gateway's own error, or Twilio's
/// with the same status.
fn refusal(status: StatusCode) -> Value {
    let reasons: Vec<_> = Reason::ALL.into_iter().filter(|reason| reason.status() == status).collect();
    let words: Vec<_> = reasons.iter().map(|reason| reason.as_str()).collect();
    let code = reasons.first().map(|reason| reason.code());
    let own = json!({"allOf": [reference("schemas", "GatewayError"), {"properties": {
        "code": {"const": code},
        "httpStatusCode": {"const": status.as_u16()},
        "userError": {"const": status.is_client_error()},
        "params": {"properties": {"reason": {"enum": words}}},
    }}]});
    json!({
        "description": format!("The gateway's own: `{}`. Or Twilio's, unchanged.", words.join("`, `")),
        "headers": headers_of(status.as_str()).into_iter().chain(of_twilio()).collect::<Value>(),
        "content": {"application/json": {"schema": {"anyOf": [own, reference("schemas", "TwilioError")]}}},
    })
}

/// The headers of the data plane's responses with this status.
fn headers_of(status: &str) -> Vec<(&'static str, Value)> {
    let mut headers = vec![
        ("X-Request-Id", "XRequestId"),
        ("Cache-Status", "CacheStatus"),
        ("RateLimit", "RateLimit"),
        ("RateLimit-Policy", "RateLimitPolicy"),
        ("Vary", "Vary"),
        ("Age", "Age"),
        ("X-Content-Type-Options", "NoSniff"),
        ("Access-Control-Allow-Origin", "AllowOrigin"),
        ("Access-Control-Expose-Headers", "ExposeHeaders"),
    ];
    headers.extend(match status {
        "200" | "201" | "304" => Some(("ETag", "ETag")),
        "400" => Some(("Insights-Gateway-Hint", "Hint")),
        "401" => Some(("WWW-Authenticate", "WwwAuthenticate")),
        "405" => Some(("Allow", "Allow")),
        "429" | "503" => Some(("Retry-After", "RetryAfter")),
        _ => None,
    });
    named(&headers).collect()
}

/// The headers of all responses of the admin plane.
const OF_ADMIN: [(&str, &str); 2] = [("Cache-Control", "NoStore"), ("X-Content-Type-Options", "NoSniff")];

/// The headers of its pages for people.
const OF_PAGES: [(&str, &str); 3] = [
    ("Content-Security-Policy", "ContentSecurityPolicy"),
    ("Referrer-Policy", "ReferrerPolicy"),
    ("X-Frame-Options", "FrameOptions"),
];

/// The headers of Twilio's that pass, where a response has them.
fn of_twilio() -> Vec<(&'static str, Value)> {
    const NAMES: [&str; 10] = [
        "Cache-Control",
        "Expires",
        "Twilio-Request-Id",
        "X-RateLimit-Limit",
        "X-RateLimit-Remaining",
        "X-RateLimit-Reset",
        "X-Rate-Limit-Limit",
        "X-Rate-Limit-Remaining",
        "X-Rate-Limit-Config",
        "Twilio-Concurrent-Requests",
    ];
    NAMES.into_iter().map(|name| (name, reference("headers", "TwilioHeader"))).collect()
}

fn named<'h>(headers: &'h [(&'static str, &str)]) -> impl Iterator<Item = (&'static str, Value)> + use<'h> {
    headers.iter().map(|(name, component)| (*name, reference("headers", component)))
}

fn reference(kind: &str, name: &str) -> Value {
    json!({"$ref": format!("#/components/{kind}/{name}")})
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use http::Method;

    use super::*;

    /// Calls `visit` with every value in a document.
    fn walk<'v>(value: &'v Value, visit: &mut impl FnMut(&'v Value)) {
        visit(value);
        match value {
            Value::Object(members) => members.values().for_each(|value| walk(value, visit)),
            Value::Array(elements) => elements.iter().for_each(|value| walk(value, visit)),
            _ => {}
        }
    }

    #[test]
    fn every_reference_leads_somewhere_and_every_component_is_used() {
        let document = document();
        let mut used = HashSet::new();
        walk(&document, &mut |value| {
            if let Some(target) = value.get("$ref") {
                let pointer = target.as_str().unwrap().strip_prefix('#').unwrap();
                assert!(document.pointer(pointer).is_some(), "{pointer}");
                used.insert(pointer.to_owned());
            }
        });
        for (kind, components) in document["components"].as_object().unwrap() {
            for name in components.as_object().unwrap().keys().filter(|_| kind != "securitySchemes") {
                assert!(used.contains(&format!("/components/{kind}/{name}")), "{kind}/{name}");
            }
        }
    }

    #[test]
    fn the_document_has_every_endpoint_and_no_other() {
        let written: Value = serde_json::from_str(include_str!("openapi.json")).unwrap();
        let of_endpoints: HashSet<_> = ENDPOINTS.iter().map(|endpoint| endpoint.path).collect();
        for (path, item) in written["paths"].as_object().unwrap() {
            assert!(of_endpoints.contains(path.as_str()) || !path.starts_with("/v3/"), "{path}");
            for method in item.as_object().unwrap().keys() {
                let is_it = |endpoint: &Endpoint| endpoint.method.as_str().eq_ignore_ascii_case(method);
                let is_known = ENDPOINTS.iter().any(|endpoint| endpoint.path == path && is_it(endpoint));
                assert!(is_known || !path.starts_with("/v3/"), "{method} {path}");
            }
        }
        let document = document();
        for endpoint in ENDPOINTS {
            let operation = |document: &Value, method: &Method| {
                document["paths"][endpoint.path].get(method.as_str().to_ascii_lowercase()).cloned()
            };
            assert!(operation(&written, &endpoint.method).is_some(), "{} {}", endpoint.method, endpoint.path);
            let shown = operation(&document, &endpoint.method).unwrap();
            assert_eq!(shown["x-permission"], endpoint.permission.as_str());
            assert_eq!(shown.get("requestBody").is_some(), endpoint.body != Body::None);
            let has_head = operation(&document, &Method::HEAD).is_some();
            assert_eq!(has_head, ENDPOINTS.iter().any(|e| e.path == endpoint.path && e.method == Method::GET));
        }
    }

    #[test]
    fn every_reason_is_described_at_its_status() {
        let document = document();
        for reason in Reason::ALL {
            let response = &document["components"]["responses"][refused(reason.status())];
            assert!(response["description"].as_str().unwrap().contains(reason.as_str()), "{}", reason.as_str());
        }
        let query = &document["paths"]["/v3/InsightsDomains/Conversations/Query"]["post"]["responses"];
        for status in statuses(&Reason::ALL) {
            assert!(query.get(status.as_str()).is_some(), "{status}");
        }
        assert!(
            document["paths"]["/v3/InsightsDomains/Conversations/Metadata"]["get"]["responses"].get("413").is_none()
        );
    }

    #[test]
    fn operations_have_different_ids_and_path_parameters_are_declared() {
        let document = document();
        let mut ids = HashSet::new();
        for (path, item) in document["paths"].as_object().unwrap() {
            for (method, operation) in item.as_object().unwrap().iter().filter(|(key, _)| *key != "servers") {
                let id = operation["operationId"].as_str().unwrap();
                assert!(ids.insert(id.to_owned()), "{id} is there twice");
                let parameters = operation["parameters"].as_array().cloned().unwrap_or_default();
                let resolved = parameters
                    .iter()
                    .map(|parameter| document.pointer(&parameter["$ref"].as_str().unwrap()[1..]).unwrap());
                let in_path = resolved.filter(|parameter| parameter["in"] == "path");
                let named: Vec<_> =
                    in_path.map(|parameter| format!("{{{}}}", parameter["name"].as_str().unwrap())).collect();
                assert!(named.iter().all(|name| path.contains(name)), "{method} {path}");
                assert_eq!(named.len(), path.matches('{').count(), "{method} {path}");
                assert!(operation["responses"].as_object().is_some_and(|all| !all.is_empty()), "{method} {path}");
            }
        }
    }
}
