//! Both revisions of the control plane, as published and in other cases.

use proptest::prelude::*;

use super::super::data::{WELL_KNOWN_OPERATOR, generate};
use super::*;

const NOW: &str = "2026-08-13T14:30:00Z";

fn at(seconds: i64) -> Timestamp {
    NOW.parse::<Timestamp>().unwrap() + jiff::SignedDuration::from_secs(seconds)
}

fn operators() -> Vec<Operator> {
    generate(3, 10, at(0)).operators
}

fn nested(name: &str, field: &str) -> Json {
    json!({"category": "MEASURE", "name": name, "entityMetadata": {"sourceType": SOURCE,
        "intelligenceOperator": {"operatorId": WELL_KNOWN_OPERATOR, "field": field}}})
}

fn flat(name: &str, field: &str) -> Json {
    json!({"category": "MEASURE", "name": name, "entityMetadata": {"sourceType": SOURCE,
        "operatorId": WELL_KNOWN_OPERATOR, "operatorName": "Lead Score", "field": field}})
}

fn create(fields: &Fields, user: &str, body: &Json) -> Result<Described, ApiError> {
    fields.create(user, body.to_string().as_bytes(), &operators(), at(0))
}

fn patch(fields: &Fields, id: &str, if_match: Option<&str>, entity: Json) -> Result<Described, ApiError> {
    let body = json!({ "entityMetadata": entity }).to_string();
    fields.patch("AC1", id, if_match, body.as_bytes(), &operators(), at(60))
}

fn status(result: Result<Described, ApiError>) -> u16 {
    result.map_or_else(|error| error.status.as_u16(), |field| if field.is_new { 201 } else { 200 })
}

#[test]
fn a_field_is_created_fetched_listed_and_patched() {
    let fields = Fields::default();
    let created = create(&fields, "AC1", &nested("LeadScore", "leadScore")).unwrap();
    let id = created.body["id"].as_str().unwrap().to_owned();
    assert!(is_id(&id, "convinsights_mapping_"));
    assert_eq!((&created.body["createdAt"], &created.body["updatedAt"]), (&json!(NOW), &Json::Null));
    assert_eq!(created.body.get("description"), None);
    let fetched = fields.fetch("AC1", &id).unwrap();
    assert_eq!((&fetched.body, &*fetched.etag), (&created.body, "\"v1\""));
    assert_eq!(fields.list("AC1"), std::slice::from_ref(&created.body));
    assert_eq!(fields.list("AC2"), [] as [Json; 0]);

    let other = json!({"sourceType": SOURCE, "intelligenceOperator": {"field": "engagement.messages"}});
    assert_eq!(status(patch(&fields, &id, Some("\"v9\""), other.clone())), 412);
    assert_eq!(status(patch(&fields, &id, Some("W/\"v1\""), other.clone())), 412, "weak tags never match");
    let patched = patch(&fields, &id, Some("\"v0\", \"v1\""), other.clone()).unwrap();
    assert_eq!(patched.etag, "\"v2\"");
    assert_eq!(patched.body["entityMetadata"]["intelligenceOperator"]["field"], "engagement.messages");
    assert_eq!(patched.body["updatedAt"], "2026-08-13T14:31:00Z");
    assert_eq!(status(patch(&fields, &id, Some("\"v1\""), other.clone())), 412);
    assert_eq!(status(patch(&fields, &id, Some("*"), other.clone())), 200);
    assert_eq!(status(patch(&fields, &id, None, other)), 200);
    assert_eq!(fields.fetch("AC1", &id).unwrap().etag, "\"v4\"");
}

#[test]
fn a_name_is_taken_once_and_slots_run_out() {
    let fields = Fields::default();
    assert_eq!(status(create(&fields, "AC1", &nested("A", "leadScore"))), 201);
    let taken = create(&fields, "AC1", &nested("A", "leadScore")).unwrap_err();
    assert_eq!((taken.status.as_u16(), taken.code), (409, 20052));
    assert_eq!(fields.capacity("AC1"), json!({"measure": {"consumed": 1, "remaining": 2}}));
    assert_eq!(fields.capacity("AC2"), json!({"measure": {"consumed": 0, "remaining": 3}}));
    for name in ["B", "C"] {
        assert_eq!(status(create(&fields, "AC1", &nested(name, "leadScore"))), 201);
    }
    assert_eq!(status(create(&fields, "AC1", &nested("D", "leadScore"))), 403);
    assert_eq!(status(create(&fields, "AC1", &nested("A", "leadScore"))), 409, "a taken name comes first");
    assert_eq!(status(create(&fields, "AC2", &nested("A", "leadScore"))), 201, "names belong to accounts");
    for n in 0..MOST_ACCOUNTS + 5 {
        let _ = create(&fields, &n.to_string(), &nested("A", "leadScore"));
    }
    assert_eq!(fields.accounts.lock().unwrap().len(), MOST_ACCOUNTS);
}

#[test]
fn the_older_shape_registers_again() {
    let fields = Fields::default();
    assert_eq!(status(create(&fields, "AC1", &flat("A", "leadScore"))), 201);
    let mut again = flat("A", "engagement.messages");
    again["description"] = "as of today".into();
    let known = create(&fields, "AC1", &again).unwrap();
    assert!(!known.is_new);
    assert_eq!(
        known.body["entityMetadata"],
        json!({"sourceType": SOURCE, "operatorId": WELL_KNOWN_OPERATOR, "operatorName": "Lead Score",
            "field": "engagement.messages"})
    );
    assert_eq!(known.body["description"], "as of today");
    assert_eq!(fields.capacity("AC1")["measure"]["consumed"], 1);
    assert_eq!(status(create(&fields, "AC1", &nested("A", "leadScore"))), 409, "the newer one creates");
    let id = known.body["id"].as_str().unwrap();
    assert_eq!(status(patch(&fields, id, None, json!({"field": "leadScore"}))), 200);
    assert_eq!(status(patch(&fields, id, None, json!({"intelligenceOperator": {"field": "leadScore"}}))), 400);
}

#[test]
fn another_operators_name_is_taken_in_the_older_shape_too() {
    let fields = Fields::default();
    let mut operators = operators();
    let other = "intelligence_operator_00000000000000000000000000";
    (operators[0].id, operators[0].format) = (other.into(), "JSON".into());
    let mut body = flat("A", "leadScore");
    body["entityMetadata"]["operatorId"] = other.into();
    assert_eq!(status(fields.create("AC1", body.to_string().as_bytes(), &operators, at(0))), 201);
    assert_eq!(status(create(&fields, "AC1", &flat("A", "leadScore"))), 409);
}

#[test]
fn undocumented_bodies_are_refused() {
    let fields = Fields::default();
    let operators = operators();
    let classifier = operators.iter().find(|operator| &*operator.format != "JSON").unwrap().id.to_string();
    let with = |path: &str, value: Json| {
        let mut body = nested("A", "leadScore");
        *body.pointer_mut(path).unwrap() = value;
        body
    };
    let operator = "/entityMetadata/intelligenceOperator";
    let mut bodies = vec![
        json!(null),
        json!([]),
        json!({}),
        with("/category", json!("DIMENSION")),
        with("/category", json!(1)),
        with("/name", json!("")),
        with("/name", json!("a-b")),
        with("/name", json!("é")),
        with("/name", json!("a".repeat(LONGEST_NAME + 1))),
        with("/entityMetadata/sourceType", json!("OTHER")),
        with("/entityMetadata", json!({"intelligenceOperator": {}})),
        with(operator, json!({"operatorId": WELL_KNOWN_OPERATOR})),
        with(operator, json!({"field": "leadScore"})),
        with(operator, json!({"operatorId": "OPxxxx", "field": "leadScore"})),
        with(operator, json!({"operatorId": classifier, "field": "leadScore"})),
        with(operator, json!({"operatorId": format!("{}0", &WELL_KNOWN_OPERATOR[..47]), "field": "leadScore"})),
    ];
    for field in ["", "label", "nope", "a.b.c", "a..b", ".a", "a.", "leads[0]", "lead score"] {
        bodies.push(nested("A", field));
    }
    for (key, value) in [("unknown", json!(1)), ("description", json!("x".repeat(151)))] {
        let mut body = nested("A", "leadScore");
        body[key] = value;
        bodies.push(body);
    }
    let mut mixed = nested("A", "leadScore");
    mixed["entityMetadata"]["field"] = "leadScore".into();
    bodies.push(mixed);
    for body in bodies {
        let refused = create(&fields, "AC1", &body).expect_err(&body.to_string());
        assert_eq!(refused.status, 400, "{body}");
        assert!(refused.message.chars().count() < 400, "{body}");
    }
    assert_eq!(fields.capacity("AC1")["measure"]["consumed"], 0);
    let mut longest = nested("A", "leadScore");
    longest["description"] = "é".repeat(150).into();
    assert_eq!(status(create(&fields, "AC1", &longest)), 201);
}

#[test]
fn a_patch_changes_the_field_and_nothing_else() {
    let fields = Fields::default();
    let created = create(&fields, "AC1", &nested("A", "leadScore")).unwrap();
    let id = created.body["id"].as_str().unwrap();
    for body in [
        "",
        "{}",
        "[]",
        r#"{"name":"B"}"#,
        r#"{"description":"x"}"#,
        r#"{"entityMetadata":{}}"#,
        r#"{"entityMetadata":{"intelligenceOperator":{}}}"#,
        r#"{"entityMetadata":{"intelligenceOperator":{"field":"nope"}}}"#,
        r#"{"entityMetadata":{"intelligenceOperator":{"field":"leadScore","operatorName":"x"}}}"#,
        r#"{"entityMetadata":{"sourceType":"OTHER","intelligenceOperator":{"field":"leadScore"}}}"#,
        r#"{"entityMetadata":{"field":"leadScore"}}"#,
        r#"{"category":"MEASURE","entityMetadata":{"intelligenceOperator":{"field":"leadScore"}}}"#,
    ] {
        let refused = fields.patch("AC1", id, None, body.as_bytes(), &operators(), at(1)).expect_err(body);
        assert_eq!(refused.status, 400, "{body}");
    }
    assert_eq!(fields.fetch("AC1", id).unwrap().etag, "\"v1\"");
    let unknown = "convinsights_mapping_01m31967b7em08vh1pqgbam3mj";
    let fine = r#"{"entityMetadata":{"intelligenceOperator":{"field":"leadScore"}}}"#;
    for (user, id, expected) in [("AC1", unknown, 404), ("AC2", id, 404), ("AC1", "x", 400)] {
        assert_eq!(status(fields.patch(user, id, None, fine.as_bytes(), &operators(), at(1))), expected);
        assert_eq!(status(fields.fetch(user, id)), expected);
    }
}

proptest! {
    #[test]
    fn arbitrary_bodies_do_not_panic(text in prop::collection::vec(any::<u8>(), 0..80), if_match in ".{0,20}") {
        let fields = Fields::default();
        let _ = fields.create("AC1", &text, &operators(), at(0));
        let _ = fields.patch("AC1", "x", Some(&if_match), &text, &[], at(0));
        let _ = names_tag(&if_match, "\"v1\"");
    }
}
