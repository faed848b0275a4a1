//! The simulator's query jobs as its clients use them: real sockets, documented requests, scripted failures.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use insights_gateway::simulator::Settings;
use insights_gateway::simulator::job_faults::JobFault;
use insights_gateway::simulator::jobs::JobSettings;
use serde_json::{Value as Json, json};

use crate::simulator::{Answer, METADATA, QUERY, Running, encoded, settings};

const JOBS: &str = "/v3/InsightsDomains/Conversations/QueryJobs";
const KEY: &str = "01890a5d-aa0f-7c80-b8e6-0242ac140004";

/// A query with as many rows as there are conversations.
fn by_conversation() -> Json {
    json!({"domain": "Conversations", "query": {
        "measures": ["Conversation.Count"], "dimensions": ["Conversation.ConversationId"]}})
}

async fn submit(running: &Running) -> Json {
    let answer = running.post(JOBS, &by_conversation().to_string()).await;
    assert_eq!(answer.status, 202, "{:?}", answer.body);
    answer.json()
}

async fn with_key(running: &Running, key: &str, body: &Json) -> Answer {
    let mut request = running.request("POST", JOBS, "secret", &body.to_string());
    request.headers_mut().insert("idempotency-key", key.parse().unwrap());
    running.send(request).await
}

fn path_of(job: &Json) -> String {
    format!("{JOBS}/{}", job["operationId"].as_str().unwrap())
}

async fn put(running: &Running, job: &Json, outcome: Json) -> Answer {
    let path = format!("/_simulator/jobs/{}", job["operationId"].as_str().unwrap());
    running.send(running.request("PUT", &path, "secret", &outcome.to_string())).await
}

/// All items of all pages, beginning with this path.
async fn walk(running: &Running, path: &str) -> Vec<Json> {
    let (mut items, mut token) = (Vec::new(), None);
    loop {
        let separator = if path.contains('?') { '&' } else { '?' };
        let place = token.map_or_else(String::new, |token: String| format!("{separator}pageToken={}", encoded(&token)));
        let answer = running.get(&format!("{path}{place}")).await;
        assert_eq!(answer.status, 200, "{:?}", answer.body);
        let page = answer.json();
        let found = page["items"].as_array().unwrap();
        assert_eq!(page["meta"]["pageSize"], found.len());
        assert_eq!(page["meta"]["key"], "items");
        items.extend(found.clone());
        match page["meta"]["nextToken"].as_str() {
            Some(next) => token = Some(next.to_owned()),
            None => return items,
        }
    }
}

#[tokio::test]
async fn a_job_is_accepted_polled_and_read() {
    let slow = JobSettings { takes: Duration::from_secs(3600), ..JobSettings::default() };
    let running = Running::with(Settings { jobs: slow, ..settings() }).await;
    let answer = running.post(JOBS, &by_conversation().to_string()).await;
    assert_eq!((answer.status.as_u16(), answer.header("retry-after")), (202, "5"));
    let job = answer.json();
    let url = format!("http://{}{}", running.address, path_of(&job));
    assert_eq!(answer.header("location"), url);
    assert_eq!((&job["status"], &job["statusUrl"]), (&json!("PENDING"), &json!(url)));
    assert!(job["createdAt"].as_str().unwrap().starts_with("2026-05-20T12:0"));

    let polled = running.get(&path_of(&job)).await;
    assert_eq!(polled.header("retry-after"), "10");
    assert_eq!((&polled.json()["status"], &polled.json()["completedAt"]), (&json!("PENDING"), &Json::Null));
    let results = format!("{}/Results", path_of(&job));
    running.get(&results).await.refused(404, 20404);

    assert_eq!(put(&running, &job, json!({"status": "RUNNING"})).await.status, 200);
    assert_eq!(running.get(&path_of(&job)).await.json()["status"], "RUNNING");
    running.get(&results).await.refused(404, 20404);

    assert_eq!(put(&running, &job, json!({"status": "COMPLETED"})).await.status, 200);
    let polled = running.get(&path_of(&job)).await;
    assert!(polled.headers.get("retry-after").is_none());
    let done = polled.json();
    assert_eq!((&done["status"], &done["resultId"]), (&json!("COMPLETED"), &job["operationId"]));
    assert_eq!(done["resultUrl"], format!("{url}/Results"));
    assert_eq!(done["resultRetentionPeriod"], "P7D");
    assert!(done["completedAt"].is_string() && done.get("error").is_none());

    put(&running, &job, json!({"status": "EXPIRED"})).await;
    running.get(&results).await.refused(404, 20404);
}

#[tokio::test]
async fn results_are_those_of_the_query_in_pages_of_any_size() {
    let running = Running::start("0/s").await;
    let path = format!("{}/Results", path_of(&submit(&running).await));
    let whole = running.post(&format!("{QUERY}?pageSize=1000"), &by_conversation().to_string()).await.json();
    let first = running.get(&path).await.json();
    assert_eq!((&first["meta"]["pageSize"], &first["domain"]), (&json!(50), &json!("Conversations")));
    for size in ["?pageSize=1000", "?pageSize=5000", "?PageSize=300", ""] {
        assert_eq!(json!(walk(&running, &format!("{path}{size}")).await), whole["items"], "{size}");
    }
    let token = encoded(first["meta"]["nextToken"].as_str().unwrap());
    let second = running.get(&format!("{path}?pageToken={token}&pageSize=2")).await.json();
    assert_eq!(json!(second["items"]), json!(whole["items"].as_array().unwrap()[50..52]));
    for size in ["0", "-1", "x", ""] {
        running.get(&format!("{path}?pageSize={size}")).await.refused(400, 20001);
    }
    let other = format!("{}/Results", path_of(&submit(&running).await));
    for path in [&other, QUERY, JOBS] {
        running.get(&format!("{path}?pageToken={token}")).await.refused(400, 20001);
    }
    running.get(&format!("{path}?pageToken=garbage")).await.refused(400, 20001);
}

#[tokio::test]
async fn jobs_are_listed_newest_first_by_status_and_page() {
    let running = Running::start("0/s").await;
    running.script(json!({"next_jobs": 2, "status": "FAILED"})).await;
    let mut ids = Vec::new();
    for _ in 0..7 {
        ids.insert(0, submit(&running).await["operationId"].clone());
    }
    let named = |items: Vec<Json>| items.into_iter().map(|job| job["operationId"].clone()).collect::<Vec<_>>();
    for size in [1, 3, 50] {
        assert_eq!(named(walk(&running, &format!("{JOBS}?pageSize={size}")).await), ids);
    }
    assert_eq!(named(walk(&running, &format!("{JOBS}?status=FAILED&pageSize=1")).await), ids[5..]);
    let running_ones = running.get(&format!("{JOBS}?status=RUNNING")).await.json();
    assert_eq!(running_ones, json!({"items": [], "meta": {"key": "items", "pageSize": 0}}));
    running.get(&format!("{JOBS}?status=running")).await.refused(400, 20001);
    let page = running.get(&format!("{JOBS}?status=FAILED&pageSize=1")).await.json();
    let token = encoded(page["meta"]["nextToken"].as_str().unwrap());
    running.get(&format!("{JOBS}?status=COMPLETED&pageToken={token}")).await.refused(400, 20001);
    let last = running.get(&format!("{JOBS}?pageToken={token}")).await.json();
    let back = encoded(last["meta"]["previousToken"].as_str().unwrap());
    assert_eq!(running.get(&format!("{JOBS}?pageToken={back}")).await.json()["items"], page["items"]);
    // In the form of the Python SDK's lower level.
    let both = running.get(&format!("{JOBS}?pageToken={token}&PageToken={token}&PageSize=5")).await;
    assert_eq!(both.status, 200);
}

#[tokio::test]
async fn a_key_is_kept_with_its_request() {
    let running = Running::start("0/s").await;
    let body = by_conversation();
    let first = with_key(&running, KEY, &body).await.json();
    // The same members in another order.
    let same: Json =
        serde_json::from_str(&format!(r#"{{"query":{},"domain":"Conversations"}}"#, body["query"])).unwrap();
    let again = with_key(&running, &KEY.to_uppercase(), &same).await;
    assert_eq!((again.status.as_u16(), &again.json()["operationId"]), (202, &first["operationId"]));
    let other = json!({"query": {"measures": ["Conversation.Count"]}});
    with_key(&running, KEY, &other).await.refused(422, 20422);
    for wrong in ["", "x", "01890a5daa0f7c80b8e60242ac140004"] {
        with_key(&running, wrong, &body).await.refused(400, 20001);
    }
    let mut twice = running.request("POST", JOBS, "secret", &body.to_string());
    for _ in 0..2 {
        twice.headers_mut().append("idempotency-key", KEY.parse().unwrap());
    }
    running.send(twice).await.refused(400, 20001);
    let nonsense = json!({"query": {"measures": ["Conversation.Nope"]}});
    let fresh = "01890a5d-aa0f-7c80-b8e6-0242ac140005";
    with_key(&running, fresh, &nonsense).await.refused(400, 20001);
    assert_eq!(with_key(&running, fresh, &body).await.status, 202, "a refused request does not use its key");
    assert_eq!(walk(&running, JOBS).await.len(), 2);
    let log = running.simulator.requests();
    assert_eq!(log[0].idempotency_key_hash, Some(blake3::hash(KEY.as_bytes()).to_string()));
    assert_eq!(log[log.len() - 1].idempotency_key_hash, None);
    // Resources without keys ignore it.
    let mut query = running.request("POST", QUERY, "secret", &body.to_string());
    query.headers_mut().insert("idempotency-key", "x".parse().unwrap());
    assert_eq!(running.send(query).await.status, 200);
}

#[tokio::test]
async fn links_can_name_another_host() {
    let url = Some("https://insights.twilio.com/".to_owned());
    let running = Running::with(Settings { public_url: url, ..settings() }).await;
    let answer = running.post(JOBS, &by_conversation().to_string()).await;
    let expected = format!("https://insights.twilio.com{}", path_of(&answer.json()));
    assert_eq!(answer.header("location"), expected);
    let listed = running.get(JOBS).await.json();
    assert_eq!(listed["items"][0]["statusUrl"], expected);
    assert_eq!(listed["items"][0]["resultUrl"], format!("{expected}/Results"));
}

#[tokio::test]
async fn invalid_jobs_are_refused_in_twilios_format() {
    let running = Running::start("0/s").await;
    for body in ["", "{", "null", r#"{"query":{}}"#, r#"{"query":{"measures":["Conversation.Nope"]}}"#] {
        running.post(JOBS, body).await.refused(400, 20001);
    }
    let mut form = running.request("POST", JOBS, "secret", "x=1");
    form.headers_mut().insert("content-type", "application/x-www-form-urlencoded".parse().unwrap());
    running.send(form).await.refused(415, 20422);
    let job = submit(&running).await;
    let path = path_of(&job);
    for missing in [
        format!("{JOBS}/proc_job_01h9d8r0vte3hz8tykdj329t7r"),
        format!("{JOBS}/x"),
        format!("{JOBS}/"),
        format!("{path}/"),
        format!("{path}/results"),
        format!("{path}/Results/1"),
    ] {
        running.get(&missing).await.refused(404, 20404);
    }
    for (method, path, allow) in [
        ("DELETE", path.clone(), "GET"),
        ("POST", format!("{path}/Results"), "GET"),
        ("PUT", JOBS.to_owned(), "GET, POST"),
    ] {
        let answer = running.send(running.request(method, &path, "secret", "")).await;
        answer.refused(405, 20004);
        assert_eq!(answer.header("allow"), allow);
    }
    running.send(running.request("GET", &path, "wrong", "")).await.refused(401, 20003);
    let foreign = |path: &str| {
        let mut request = running.request("GET", path, "secret", "");
        let other = format!("Basic {}", STANDARD.encode("AC2:secret"));
        request.headers_mut().insert("authorization", other.parse().unwrap());
        running.send(request)
    };
    foreign(&path).await.refused(404, 20404);
    foreign(&format!("{path}/Results")).await.refused(404, 20404);
    assert_eq!(foreign(JOBS).await.json()["items"], json!([]));
}

#[tokio::test]
async fn the_rate_counts_jobs_too() {
    // So slow that the bucket does not fill during the test.
    let running = Running::start("1/h").await;
    assert_eq!(running.post(JOBS, &by_conversation().to_string()).await.status, 202);
    let limited = running.get(JOBS).await;
    limited.refused(429, 20429);
    assert!(limited.headers.get("retry-after").is_none());
}

#[tokio::test]
async fn scripts_decide_the_outcome_of_jobs() {
    let running = Running::start("0/s").await;
    running.script(json!({"next_jobs": 1, "status": "FAILED"})).await;
    running.script(json!({"next_jobs": 1, "then": "RUNNING"})).await;
    running
        .simulator
        .script_jobs(JobFault { next_jobs: 1, retention: Some(Duration::ZERO), ..JobFault::default() })
        .unwrap();
    let pending = running.get("/_simulator/faults").await.json();
    assert_eq!(pending["faults"].as_array().unwrap().len(), 3);
    let status = async |job: &Json| running.get(&path_of(job)).await.json()["status"].clone();

    let failed = running.get(&path_of(&submit(&running).await)).await.json();
    assert_eq!((&failed["status"], &failed["error"]["code"]), (&json!("FAILED"), &json!(50001)));
    assert!(failed["error"]["detail"].as_str().unwrap().contains("120s execution limit"));

    let flipping = submit(&running).await;
    assert_eq!(status(&flipping).await, "COMPLETED");
    assert_eq!(status(&flipping).await, "RUNNING");

    let expired = submit(&running).await;
    assert_eq!(status(&expired).await, "EXPIRED");
    running.get(&format!("{}/Results", path_of(&expired))).await.refused(404, 20404);

    let lost = submit(&running).await;
    assert_eq!(status(&lost).await, "COMPLETED");
    let lose = format!("/_simulator/jobs/{}", lost["operationId"].as_str().unwrap());
    assert_eq!(running.send(running.request("DELETE", &lose, "secret", "")).await.status, 200);
    running.get(&path_of(&lost)).await.refused(404, 20404);
    assert_eq!(running.send(running.request("DELETE", &lose, "secret", "")).await.status, 404);
    assert_eq!(put(&running, &lost, json!({"status": "FAILED"})).await.status, 404);
    assert_eq!(put(&running, &expired, json!({"status": "GONE"})).await.status, 400);
    assert_eq!(running.get(&lose).await.status, 405);

    running.script(json!({"next_jobs": 1, "status": "CANCELLED"})).await;
    running.send(running.request("DELETE", "/_simulator/faults", "secret", "")).await;
    assert_eq!(running.get("/_simulator/faults").await.json()["faults"], json!([]));
    running.post("/_simulator/faults", r#"{"next_jobs":1,"next":1}"#).await.refused(400, 20001);
}

#[tokio::test]
async fn scripts_change_single_answers_of_chosen_requests() {
    let running = Running::start("0/s").await;
    running
        .script(json!({"path": JOBS, "method": "POST", "merge": {"operationId": null, "more": 1},
        "headers": {"Retry-After": null, "Location": "https://elsewhere.example/x"}}))
        .await;
    running.script(json!({"path": format!("{JOBS}/*"), "merge": {"status": "RUNNING"}})).await;
    running.script(json!({"path": format!("{JOBS}/*/Results"), "status": 410})).await;
    assert_eq!(running.get(METADATA).await.status, 200);
    assert_eq!(running.get(JOBS).await.status, 200);
    let nameless = running.post(JOBS, &by_conversation().to_string()).await;
    assert_eq!(nameless.status, 202);
    assert_eq!((nameless.json().get("operationId"), &nameless.json()["more"]), (None, &json!(1)));
    assert!(nameless.headers.get("retry-after").is_none());
    assert_eq!(nameless.header("location"), "https://elsewhere.example/x");
    let job = walk(&running, JOBS).await.remove(0);
    let results = format!("{}/Results", path_of(&job));
    running.get(&results).await.refused(410, 20410);
    assert_eq!(running.get(&results).await.status, 200);
    assert_eq!(running.get(&path_of(&job)).await.json()["status"], "RUNNING");
    assert_eq!(running.get(&path_of(&job)).await.json()["status"], "COMPLETED");
}

#[tokio::test]
async fn an_answer_can_be_lost_after_its_job_was_made() {
    let running = Running::start("0/s").await;
    running.script(json!({"path": JOBS, "method": "POST", "drop_answer": true})).await;
    let mut request = running.request("POST", JOBS, "secret", &by_conversation().to_string());
    request.headers_mut().insert("idempotency-key", KEY.parse().unwrap());
    assert!(running.client.request(request).await.is_err());
    assert_eq!(running.simulator.requests()[0].status, None);
    let job = walk(&running, JOBS).await.remove(0);
    let again = with_key(&running, KEY, &by_conversation()).await.json();
    assert_eq!(again["operationId"], job["operationId"]);

    running.script(json!({"reset": true})).await;
    assert!(
        running.client.request(running.request("POST", JOBS, "secret", &by_conversation().to_string())).await.is_err()
    );
    assert_eq!(walk(&running, JOBS).await.len(), 1, "a reset comes before the request is processed");
}
