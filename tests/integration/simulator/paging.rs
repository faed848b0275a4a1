//! Pages of results, and the tokens that lead from one to the next.

use std::collections::HashSet;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

use super::{QUERY, Running, encoded};

#[tokio::test]
async fn paging_gives_every_row_once_forwards_and_backwards() {
    let running = Running::start("0/s").await;
    let body = json!({"query": {"measures": ["Conversation.Count"], "dimensions": ["Conversation.ConversationId"]}})
        .to_string();
    let whole = running.post(&format!("{QUERY}?pageSize=5000"), &body).await.json();
    assert_eq!(whole["meta"]["pageSize"], 800);
    assert_eq!(whole["meta"].get("nextToken"), None);
    for size in [1000, 799, 90, 37] {
        let mut answer = running.post(&format!("{QUERY}?pageSize={size}"), &body).await.json();
        assert_eq!(answer["meta"].get("previousToken"), None);
        let mut walked = Vec::new();
        let mut pages = Vec::new();
        loop {
            walked.extend(answer["items"].as_array().unwrap().clone());
            pages.push(answer.clone());
            let Some(token) = answer["meta"].get("nextToken") else {
                break;
            };
            answer = running.page(token).await.json();
        }
        assert_eq!(json!(walked), whole["items"], "{size}");
        for earlier in pages.iter().rev().skip(1) {
            answer = running.page(&answer["meta"]["previousToken"]).await.json();
            assert_eq!(answer, *earlier);
        }
    }
}

#[tokio::test]
async fn a_query_too_long_for_a_url_can_be_paged_too() {
    let running = Running::start("0/s").await;
    let ids: Vec<String> = (0..5000).map(|n| format!("nobody-{n}")).collect();
    let body = json!({"pageSize": 300, "query": {"dimensions": ["Id"], "filters": [
        {"op": "OR", "expressions": [
            {"op": "IN", "field": "Id", "values": ids}, {"op": "NE", "field": "Id", "values": [""]}]}]}});
    let mut answer = running.post(QUERY, &body.to_string()).await.json();
    let mut rows = HashSet::new();
    loop {
        for item in answer["items"].as_array().unwrap() {
            assert!(rows.insert(item["Id"].as_str().unwrap().to_owned()));
        }
        let Some(token) = answer["meta"].get("nextToken") else {
            break;
        };
        assert!(token.as_str().unwrap().len() < 4096);
        answer = running.page(token).await.json();
    }
    assert_eq!(rows.len(), 800);
}

#[tokio::test]
async fn tokens_work_in_either_encoding_and_spelling_but_for_one_user() {
    let running = Running::start("0/s").await;
    let body = json!({"query": {"dimensions": ["Id"]}}).to_string();
    let first = running.post(&format!("{QUERY}?PageSize=10"), &body).await.json();
    assert_eq!(first["meta"]["pageSize"], 10);
    let token = first["meta"]["nextToken"].as_str().unwrap();
    let second = running.page(&first["meta"]["nextToken"]).await.json();
    assert_eq!(second["meta"]["pageSize"], 10);
    for path in
        [format!("{QUERY}?pageToken={token}"), format!("{QUERY}?PageSize=5&unknown=1&PageToken={}", encoded(token))]
    {
        assert_eq!(running.get(&path).await.json(), second);
    }
    let mut foreign = running.request("GET", &format!("{QUERY}?pageToken={}", encoded(token)), "secret", "");
    let other = format!("Basic {}", STANDARD.encode("AC2:secret"));
    foreign.headers_mut().insert("authorization", other.parse().unwrap());
    running.send(foreign).await.refused(400, 20001);
    for path in [
        QUERY.to_owned(),
        format!("{QUERY}?pageToken="),
        format!("{QUERY}?pageToken=%"),
        format!("{QUERY}?pageToken=A{}", encoded(token)),
    ] {
        running.get(&path).await.refused(400, 20001);
    }
}
