//! The simulator's control plane as its clients use it: both revisions of the custom fields.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use insights_gateway::simulator::Settings;
use serde_json::{Value as Json, json};

use crate::simulator::{Answer, METADATA, QUERY, Running, encoded, settings};

const FIELDS: &str = "/v3/ControlPlane/ConversationInsights/CustomFieldMappings";
const OPERATOR: &str = "intelligence_operator_01h9d8r0vte3hz8tykdj329t7r";

/// In the form of Twilio's SDKs.
fn nested(name: &str) -> String {
    json!({"category": "MEASURE", "name": name, "entityMetadata": {"sourceType": "INTELLIGENCE_OPERATOR",
        "intelligenceOperator": {"operatorId": OPERATOR, "field": "leadScore"}}})
    .to_string()
}

/// In the form of the older revision.
fn flat(name: &str, field: &str) -> String {
    json!({"category": "MEASURE", "name": name, "entityMetadata": {"sourceType": "INTELLIGENCE_OPERATOR",
        "operatorId": OPERATOR, "field": field}})
    .to_string()
}

async fn patch(running: &Running, id: &Json, if_match: Option<&str>, field: &str) -> Answer {
    let body =
        json!({"entityMetadata": {"sourceType": "INTELLIGENCE_OPERATOR", "intelligenceOperator": {"field": field}}});
    let path = format!("{FIELDS}/{}", id.as_str().unwrap());
    let mut request = running.request("PATCH", &path, "secret", &body.to_string());
    if let Some(tag) = if_match {
        request.headers_mut().insert("if-match", tag.parse().unwrap());
    }
    running.send(request).await
}

async fn capacity(running: &Running) -> Json {
    let newer = running.get(&format!("{FIELDS}Capacity")).await;
    let older = running.get(&format!("{FIELDS}/Capacity")).await;
    assert_eq!((newer.status.as_u16(), older.status.as_u16()), (200, 200));
    assert_eq!(newer.json(), older.json());
    newer.json()["measure"].clone()
}

#[tokio::test]
async fn a_field_becomes_measures_that_can_be_queried() {
    let running = Running::start("0/s").await;
    let query = |name: &str| json!({"query": {"measures": [name]}}).to_string();
    let names = ["ConversationSummary.HeatAverage", "OperatorResult.HeatAverage"];
    let plain = running.get(METADATA).await.json();
    for name in names {
        running.post(QUERY, &query(name)).await.refused(400, 20001);
        assert!(!plain.to_string().contains(name));
    }
    let answer = running.post(FIELDS, &nested("Heat")).await;
    assert_eq!(answer.status, 201, "{:?}", answer.body);
    let metadata = running.get(METADATA).await.json().to_string();
    for name in names {
        assert!(metadata.contains(&format!("\"{name}\"")));
        let answer = running.post(QUERY, &query(name)).await;
        assert_eq!(answer.status, 200, "{:?}", answer.body);
        let mean = answer.json()["items"][0][name].as_f64().unwrap();
        assert!((30.0..70.0).contains(&mean), "{name}: {mean}");
    }
    // The operator's score is the field's value.
    let compare = json!({"query": {"measures": ["OperatorResult.AverageScore", "OperatorResult.HeatAverage"],
        "dimensions": ["OperatorResult.OperatorId"], "orderBy": [{"field": "OperatorResult.HeatAverage"}],
        "filters": [{"expressions": [{"op": "EQ", "field": "OperatorResult.OperatorId", "values": [OPERATOR]}]}]}});
    let row = running.post(QUERY, &compare.to_string()).await.json()["items"][0].clone();
    assert_eq!(row["OperatorResult.AverageScore"], row["OperatorResult.HeatAverage"]);
    let jobs = "/v3/InsightsDomains/Conversations/QueryJobs";
    assert_eq!(running.post(jobs, &query(names[0])).await.status, 202);

    let foreign = |method: &str, path: &str, body: &str| {
        let mut request = running.request(method, path, "secret", body);
        let other = format!("Basic {}", STANDARD.encode("AC2:secret"));
        request.headers_mut().insert("authorization", other.parse().unwrap());
        running.send(request)
    };
    assert_eq!(foreign("GET", METADATA, "").await.json(), plain, "fields belong to accounts");
    foreign("POST", QUERY, &query(names[0])).await.refused(400, 20001);
}

#[tokio::test]
async fn fields_are_listed_fetched_and_patched_with_their_tags() {
    let running = Running::start("0/s").await;
    assert_eq!(capacity(&running).await, json!({"consumed": 0, "remaining": 3}));
    let empty = running.get(FIELDS).await.json();
    assert_eq!(empty, json!({"mappings": [], "meta": {"key": "mappings", "pageSize": 0}}));
    let created = running.post(FIELDS, &nested("LeadScore")).await.json();
    running.post(FIELDS, &nested("LeadScore")).await.refused(409, 20052);
    for name in ["B", "C"] {
        assert_eq!(running.post(FIELDS, &nested(name)).await.status, 201);
    }
    running.post(FIELDS, &nested("D")).await.refused(403, 20403);
    assert_eq!(capacity(&running).await, json!({"consumed": 3, "remaining": 0}));

    let first = running.get(&format!("{FIELDS}?pageSize=2")).await.json();
    assert_eq!((&first["mappings"][0], first["mappings"].as_array().unwrap().len()), (&created, 2));
    let token = encoded(first["meta"]["nextToken"].as_str().unwrap());
    let second = running.get(&format!("{FIELDS}?pageSize=2&pageToken={token}")).await.json();
    assert_eq!(second["mappings"][0]["name"], "C");
    assert!(second["meta"].get("nextToken").is_none() && second["meta"]["previousToken"].is_string());
    running.get(&format!("{FIELDS}?pageToken=x")).await.refused(400, 20001);

    let id = &created["id"];
    let fetched = running.get(&format!("{FIELDS}/{}", id.as_str().unwrap())).await;
    assert_eq!(fetched.json(), created);
    let tag = fetched.header("etag").to_owned();
    let patched = patch(&running, id, Some(&tag), "engagement.messages").await;
    assert_eq!(patched.status, 200, "{:?}", patched.body);
    assert_eq!(patched.json()["entityMetadata"]["intelligenceOperator"]["field"], "engagement.messages");
    assert!(patched.json()["updatedAt"].is_string());
    patch(&running, id, Some(&tag), "leadScore").await.refused(412, 20412);
    assert_eq!(patch(&running, id, None, "leadScore").await.status, 200);
    patch(&running, id, None, "label").await.refused(400, 20001);
    running.get(&format!("{FIELDS}/convinsights_mapping_01m31967b7em08vh1pqgbam3mj")).await.refused(404, 20404);
    running.get(&format!("{FIELDS}/x")).await.refused(400, 20001);
}

#[tokio::test]
async fn the_older_revision_registers() {
    let running = Running::start("0/s").await;
    assert_eq!(running.post(FIELDS, &flat("LeadScore", "leadScore")).await.status, 201);
    let again = running.post(FIELDS, &flat("LeadScore", "engagement.messages")).await;
    assert_eq!((again.status.as_u16(), &again.json()["entityMetadata"]["field"]), (200, &json!("engagement.messages")));
    assert_eq!(capacity(&running).await["consumed"], 1);
    running.post(FIELDS, &nested("LeadScore")).await.refused(409, 20052);
}

#[tokio::test]
async fn invalid_fields_are_refused_in_twilios_format() {
    let running = Running::start("0/s").await;
    for body in ["", "{", "{}", "[]", &nested(""), &nested("a b"), &flat("A", "nope"), &flat("A", "a.b.c")] {
        running.post(FIELDS, body).await.refused(400, 20001);
    }
    let mut form = running.request("POST", FIELDS, "secret", "x=1");
    form.headers_mut().insert("content-type", "application/x-www-form-urlencoded".parse().unwrap());
    running.send(form).await.refused(415, 20422);
    for (method, path, allow) in [
        ("DELETE", format!("{FIELDS}/convinsights_mapping_01m31967b7em08vh1pqgbam3mj"), "GET, PATCH"),
        ("PATCH", FIELDS.to_owned(), "GET, POST"),
        ("POST", format!("{FIELDS}Capacity"), "GET"),
        ("POST", format!("{FIELDS}/Capacity"), "GET"),
    ] {
        let answer = running.send(running.request(method, &path, "secret", "")).await;
        answer.refused(405, 20004);
        assert_eq!(answer.header("allow"), allow);
    }
    running.send(running.request("GET", FIELDS, "wrong", "")).await.refused(401, 20003);
    assert_eq!(running.get(&format!("{FIELDS}/x/y")).await.status, 404);

    let limited = Running::with(Settings { rows: 1, ..settings() }).await;
    limited.script(json!({"path": FIELDS, "method": "POST", "drop_answer": true})).await;
    assert!(limited.client.request(limited.request("POST", FIELDS, "secret", &nested("A"))).await.is_err());
    assert_eq!(capacity(&limited).await["consumed"], 1, "a client may not know the result of its write");
}
