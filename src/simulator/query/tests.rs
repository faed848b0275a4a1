//! Every rule of the query's grammar, and unusual bodies.

use proptest::prelude::*;

use super::*;

fn parse(body: &Json) -> Result<Query, ApiError> {
    Query::parse(body, &CustomMeasures::default())
}

fn refused(query: Json) -> bool {
    parse(&json!({ "query": query })).is_err()
}

fn filtered(op: &str, field: &str, values: Json) -> Json {
    json!({
        "measures": ["Conversation.Count"],
        "filters": [{"expressions": [{"op": op, "field": field, "values": values}]}],
    })
}

#[test]
fn reads_a_full_query() {
    let query = parse(&json!({
        "domain": "Conversations", "unknown": 1, "properties": {"timezone": "Europe/Zurich"},
        "query": {
            "measures": ["Conversation.Count", "Conversation.Count"],
            "dimensions": ["DateCreated.day", "Conversation.ConversationStatus"],
            "filters": [{"op": "OR", "expressions": [
                {"op": "EQ", "field": "Channels", "values": ["voice"]},
                {"op": "GT", "field": "Conversation.CreatedDate", "values": ["2026-04-02"]}]}],
            "orderBy": [{"field": "Conversation.Count", "direction": "DESC"}, {"field": "DateCreated"}],
        }
    }))
    .unwrap_or_else(|e| panic!("{e:?}"));
    assert_eq!(query.measures.len(), 1);
    assert_eq!(query.dimensions[0].0, "DateCreated.day");
    assert_eq!(query.dimensions[0].1.grain, Some(Grain::Day));
    assert!(query.filters[0].any);
    assert!(query.order[0].descending && !query.order[1].descending);
    match &query.filters[0].conditions[1].test {
        Test::After(moment) => assert_eq!(moment.to_string(), "2026-04-01T22:00:00Z"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn nulls_are_absent() {
    let body = json!({"domain": null, "properties": null, "query": {
        "measures": ["Conversation.Count"], "dimensions": null, "filters": null, "orderBy": null}});
    assert!(parse(&body).is_ok());
}

#[test]
fn refuses_invalid_queries() {
    for query in [
        json!(null),
        json!([]),
        json!({}),
        json!({"measures": [], "dimensions": []}),
        json!({"measures": "Conversation.Count"}),
        json!({"measures": [1]}),
        json!({"measures": ["Conversation.Nope"]}),
        json!({"measures": ["Conversation.ConversationStatus"]}),
        json!({"dimensions": ["Conversation.Count"]}),
        json!({"dimensions": ["Conversation.CreatedDate.Hour"]}),
        json!({"dimensions": ["Conversation.CreatedDate.second"]}),
        json!({"dimensions": ["Conversation.ConversationStatus.hour"]}),
        json!({"dimensions": ["Id"], "filters": {}}),
        json!({"dimensions": ["Id"], "filters": ["x"]}),
        json!({"dimensions": ["Id"], "filters": [{"op": "AND"}]}),
        json!({"dimensions": ["Id"], "filters": [{"op": "AND", "expressions": []}]}),
        json!({"dimensions": ["Id"], "filters": [{"op": "EQ", "expressions": [
            {"op": "EQ", "field": "Id", "values": ["x"]}]}]}),
        json!({"dimensions": ["Id"], "filters": [{"op": "OR", "expressions": [
            {"op": "AND", "expressions": [{"op": "EQ", "field": "Id", "values": ["x"]}]}]}]}),
        json!({"dimensions": ["Id"], "filters": [{"op": "OR", "expressions": [{"op": "AND"}]}]}),
        json!({"dimensions": ["Id"], "orderBy": [{}]}),
        json!({"dimensions": ["Id"], "orderBy": [{"field": "Id", "direction": "UP"}]}),
        json!({"dimensions": ["Id"], "orderBy": [{"field": "Nope"}]}),
    ] {
        assert!(refused(query.clone()), "{query}");
    }
    for body in [json!(null), json!(1), json!([]), json!({}), json!({"query": null})] {
        assert!(parse(&body).is_err(), "{body}");
    }
}

#[test]
fn refuses_values_of_the_wrong_kind() {
    for (op, field, values) in [
        ("GTE", "Conversation.CreatedDate", json!(["2026-04-01"])),
        ("eq", "Id", json!(["x"])),
        ("AND", "Id", json!(["x"])),
        ("EQ", "Nope", json!(["x"])),
        ("EQ", "Conversation.Count", json!(["1"])),
        ("EQ", "Id", json!([])),
        ("EQ", "Id", json!(null)),
        ("EQ", "Id", json!("x")),
        ("EQ", "Id", json!([1])),
        ("EQ", "Id", json!([null])),
        ("EQ", "Id", json!(["x", "y"])),
        ("IN", "Id", json!([])),
        ("GT", "Id", json!(["x"])),
        ("LT", "ConversationSummary.HandledByHuman", json!(["true"])),
        ("EQ", "ConversationSummary.HandledByHuman", json!(["yes"])),
        ("EQ", "ConversationSummary.MessageCount", json!(["many"])),
        ("GT", "ConversationSummary.MessageCount", json!(["NaN"])),
        ("GT", "Conversation.CreatedDate", json!(["yesterday"])),
        ("GT", "Conversation.CreatedDate", json!(["2026-02-30"])),
    ] {
        assert!(refused(filtered(op, field, values.clone())), "{op} {field} {values}");
    }
}

#[test]
fn limits_hold() {
    let names: Vec<_> = (0..60).map(|n| format!("x{n}")).collect();
    assert!(refused(json!({ "dimensions": names })));
    let group = json!({"expressions": vec![json!({"op": "EQ", "field": "Id", "values": ["x"]}); 101]});
    assert!(!refused(json!({"dimensions": ["Id"], "filters": [group]})));
    assert!(refused(json!({"dimensions": ["Id"], "filters": [group, group]})));
}

#[test]
fn zones_must_exist() {
    for (zone, fine) in [
        (json!("America/Los_Angeles"), true),
        (json!("UTC"), true),
        (json!("Mars/Olympus"), false),
        (json!(""), false),
        (json!("../../etc/passwd"), false),
        (json!(7), false),
    ] {
        let body = json!({"properties": {"timezone": zone}, "query": {"measures": ["Conversation.Count"]}});
        assert_eq!(parse(&body).is_ok(), fine, "{zone}");
    }
}

fn any_json() -> impl Strategy<Value = Json> {
    let word = prop_oneof![
        Just("Conversation.Count".to_owned()),
        Just("Conversation.CreatedDate.hour".to_owned()),
        Just("AND".to_owned()),
        Just("IN".to_owned()),
        Just("2026-04-02".to_owned()),
        ".*",
    ];
    let leaf = prop_oneof![
        Just(Json::Null),
        any::<bool>().prop_map(Json::from),
        any::<f64>().prop_map(Json::from),
        word.prop_map(Json::from),
    ];
    let keys = prop::sample::select(vec![
        "query",
        "measures",
        "dimensions",
        "filters",
        "expressions",
        "op",
        "field",
        "values",
        "orderBy",
        "direction",
        "properties",
        "timezone",
    ]);
    leaf.prop_recursive(6, 60, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Json::from),
            prop::collection::vec((keys.clone(), inner), 0..6)
                .prop_map(|pairs| pairs.into_iter().map(|(k, v)| (k.to_owned(), v)).collect()),
        ]
    })
}

proptest! {
    #[test]
    fn no_body_panics_and_the_essence_reads_the_same(body in any_json()) {
        let again: Json = serde_json::from_str(&essence(&body)).unwrap();
        if let Ok(query) = parse(&body) {
            let same = parse(&again);
            prop_assert!(same.is_ok_and(|same| same.dimensions.len() == query.dimensions.len()));
        }
    }
}
