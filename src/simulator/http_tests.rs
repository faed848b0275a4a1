//! Requests without sockets: walks with any page size, and requests that nobody would send.

use http_body_util::Full;
use proptest::prelude::*;
use serde_json::json;

use super::super::{Settings, Simulator};
use super::*;

fn simulator(rows: usize) -> Simulator {
    Simulator::new(Settings {
        rate: None,
        latency: Duration::ZERO,
        seed: 5,
        rows,
        now: "2026-05-20T12:00:00Z".parse().unwrap(),
    })
}

fn first(query: &Json, size: usize) -> Page {
    Page { query: essence(query).into(), offset: 0, size }
}

fn json_of(service: &Service, page: &Page) -> Json {
    let bytes = rows(service, page, "AC1").unwrap_or_else(|error| panic!("{error:?}"));
    serde_json::from_slice(&bytes).unwrap()
}

#[tokio::test(start_paused = true)]
async fn scripted_delays_and_latency_pass_before_the_answer() {
    let mut service = Arc::into_inner(simulator(1).service).unwrap();
    service.latency = Duration::from_millis(250);
    let fault = Fault { next: 1, delay: Some(Duration::from_secs(60)), ..Fault::default() };
    service.faults.push(fault).unwrap();
    let service = Arc::new(service);
    for expected in [60_250, 250] {
        let started = Instant::now();
        let request = Request::get(METADATA).body(Full::from("")).unwrap();
        let answer = answer(Arc::clone(&service), request).await.unwrap();
        assert_eq!(answer.status(), 401);
        assert_eq!(started.elapsed().as_millis(), expected);
        let duration = answer.headers()["twilio-request-duration"].to_str().unwrap();
        assert_eq!(duration, format!("{:.3}", expected as f64 / 1000.0));
    }
    assert_eq!(service.in_flight.load(Ordering::Relaxed), 0);
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
        let simulator = simulator(120);
        let service = &simulator.service;
        let query = json!({"query": {
            "measures": ["Conversation.Count"], "dimensions": dimensions, "orderBy": order}});
        let whole = json_of(service, &first(&query, 100_000));
        let mut page = first(&query, size);
        let mut walked = Vec::new();
        loop {
            let answer = json_of(service, &page);
            let items = answer["items"].as_array().unwrap();
            prop_assert_eq!(&answer["meta"]["pageSize"], &json!(items.len()));
            walked.extend(items.clone());
            let Some(token) = answer["meta"]["nextToken"].as_str() else { break };
            prop_assert_eq!(items.len(), size);
            page = service.tokens.open(token, "AC1").unwrap();
        }
        prop_assert_eq!(&json!(walked), &whole["items"]);
    }

    #[test]
    fn no_request_panics(query in ".*", body in prop::collection::vec(any::<u8>(), 0..60)) {
        let _ = parameter(&query, &["pageToken"]);
        let _ = first_page(&query, &body);
    }
}
