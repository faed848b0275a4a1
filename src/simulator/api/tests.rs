//! Paging with any page size, paths, and unusual requests.

use proptest::prelude::*;

use super::super::Simulator;
use super::super::catalog::CustomMeasures;
use super::*;

fn first(query: &Json, size: usize) -> Page {
    Page { query: essence(query).into(), offset: 0, size }
}

fn json_of(api: &Api, page: &Page) -> Json {
    let query = Query::parse(&serde_json::from_str(&page.query).unwrap(), &CustomMeasures::default());
    let query = query.unwrap_or_else(|error| panic!("{error:?}"));
    let bytes = rows(api, &query, page, &["AC1"]).unwrap_or_else(|error| panic!("{error:?}"));
    serde_json::from_slice(&bytes).unwrap()
}

#[test]
fn paths_are_resources_exactly() {
    let allow = |path: &str| Resource::of(path).map(Resource::allow);
    let fields = "/v3/ControlPlane/ConversationInsights/CustomFieldMappings";
    for (path, expected) in [
        (METADATA.to_owned(), Some("GET")),
        (QUERY.to_owned(), Some("GET, POST")),
        (format!("{QUERY}/"), None),
        (format!("{QUERY}Jobs"), Some("GET, POST")),
        (format!("{QUERY}Jobs/"), None),
        (format!("{QUERY}Jobs/x"), Some("GET")),
        (format!("{QUERY}Jobs/x/"), None),
        (format!("{QUERY}Jobs//Results"), None),
        (format!("{QUERY}Jobs/x/Results"), Some("GET")),
        (format!("{QUERY}Jobs/x/Results/"), None),
        (format!("{QUERY}Jobs/x/results"), None),
        (fields.to_owned(), Some("GET, POST")),
        (format!("{fields}/x"), Some("GET, PATCH")),
        (format!("{fields}/x/y"), None),
        (format!("{fields}/"), None),
        (format!("{fields}/Capacity"), Some("GET")),
        (format!("{fields}Capacity"), Some("GET")),
    ] {
        assert_eq!(allow(&path), expected, "{path}");
    }
}

#[test]
fn parameters_are_decoded_without_touching_plus() {
    let value = |query: &str| parameter(query, &["pageToken", "PageToken"]);
    assert_eq!(value("a=1&pageToken=x%2By%2f%3D&b").as_deref(), Some("x+y/="));
    assert_eq!(value("PageToken=x+y/=").as_deref(), Some("x+y/="));
    assert_eq!(value("pageToken=%zz%4").as_deref(), Some("%zz%4"));
    assert_eq!(value("pageToken").as_deref(), Some(""));
    assert_eq!(value("pagetoken=x"), None);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn pages_of_any_size_join_to_the_same_rows(
        size in 1usize..200,
        dimensions in prop::sample::subsequence(vec![
            "Conversation.CreatedDate.hour", "Conversation.ParticipantId", "Channels", "OperatorResults",
        ], 1..3),
        order in prop::sample::select(vec![json!([]), json!([{"field": "Conversation.Count", "direction": "DESC"}])]),
    ) {
        let simulator = Simulator::example(120);
        let api = &simulator.service.api;
        let query = json!({"query": {
            "measures": ["Conversation.Count"], "dimensions": dimensions, "orderBy": order}});
        let whole = json_of(api, &first(&query, 100_000));
        let mut page = first(&query, size);
        let mut walked = Vec::new();
        loop {
            let answer = json_of(api, &page);
            let items = answer["items"].as_array().unwrap();
            prop_assert_eq!(&answer["meta"]["pageSize"], &json!(items.len()));
            walked.extend(items.clone());
            let Some(token) = answer["meta"]["nextToken"].as_str() else { break };
            prop_assert_eq!(items.len(), size);
            page = api.tokens.open(token, &["AC1"]).unwrap();
        }
        prop_assert_eq!(&json!(walked), &whole["items"]);
    }

    #[test]
    fn no_request_panics(query in ".*", body in prop::collection::vec(any::<u8>(), 0..60)) {
        let _ = parameter(&query, &["pageToken"]);
        if let Ok(body) = serde_json::from_slice(&body) {
                let _ = Query::parse(&body, &CustomMeasures::default());
            }
            let _ = Resource::of(&query);
    }
}
