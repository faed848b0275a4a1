//! Requests without sockets, under a paused clock.

use http_body_util::Full;

use super::super::Simulator;
use super::*;

const METADATA: &str = "/v3/InsightsDomains/Conversations/Metadata";

/// Sends a request as `AC1`. Returns the response's status, headers and JSON.
async fn ask(service: &Arc<Service>, method: &str, path: &str, body: &str) -> (StatusCode, http::HeaderMap, Json) {
    let request = Request::builder().method(method).uri(path).header("host", "insights.example");
    let request = request.header("authorization", "Basic QUMxOnNlY3JldA==").body(Full::from(body.to_owned())).unwrap();
    let (head, body) = answer(Arc::clone(service), request).await.unwrap().into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    (head.status, head.headers, serde_json::from_slice(&body).unwrap())
}

#[tokio::test(start_paused = true)]
async fn a_jobs_status_follows_the_clock() {
    let service = Simulator::example(10).service;
    let query = r#"{"query":{"measures":["Conversation.Count"]}}"#;
    let jobs = super::super::jobs::PATH;
    let (status, headers, job) = ask(&service, "POST", jobs, query).await;
    assert_eq!(status, 202);
    assert_eq!(headers["retry-after"], "5");
    assert_eq!(job["createdAt"], "2026-05-20T12:00:00Z");
    let path = format!("{jobs}/{}", job["operationId"].as_str().unwrap());
    assert_eq!(headers["location"], format!("http://insights.example{path}"));
    assert_eq!(job["statusUrl"], format!("http://insights.example{path}"));
    for (seconds, status, retry_after) in
        [(0, "PENDING", Some("10")), (2, "RUNNING", Some("8")), (7, "RUNNING", Some("1")), (1, "COMPLETED", None)]
    {
        tokio::time::advance(Duration::from_secs(seconds)).await;
        let (_, headers, job) = ask(&service, "GET", &path, "").await;
        assert_eq!(job["status"], status);
        assert_eq!(headers.get("retry-after").map(|value| value.to_str().unwrap()), retry_after);
        let (results, ..) = ask(&service, "GET", &format!("{path}/Results"), "").await;
        assert_eq!(results, if status == "COMPLETED" { 200 } else { 404 });
    }
    let (.., done) = ask(&service, "GET", &path, "").await;
    assert_eq!(done["completedAt"], "2026-05-20T12:00:10Z");
    assert_eq!(done["resultUrl"], format!("http://insights.example{path}/Results"));
    assert_eq!(done["resultRetentionPeriod"], "P7D");
    tokio::time::advance(Duration::from_secs(7 * 24 * 3600)).await;
    assert_eq!(ask(&service, "GET", &path, "").await.2["status"], "EXPIRED");
    assert_eq!(ask(&service, "GET", &format!("{path}/Results"), "").await.0, 404);
}

#[tokio::test(start_paused = true)]
async fn scripted_delays_and_latency_pass_before_the_answer() {
    let mut service = Arc::into_inner(Simulator::example(1).service).unwrap();
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

#[tokio::test(start_paused = true)]
async fn a_client_that_gives_up_on_a_late_response_has_its_job_anyway() {
    let service = Simulator::example(10).service;
    let query = r#"{"query":{"measures":["Conversation.Count"]}}"#;
    let jobs = super::super::jobs::PATH;
    for (fault, expected) in [
        (Fault { delay: Some(Duration::from_secs(60)), ..Fault::default() }, 0),
        (Fault { delay_answer: Some(Duration::from_secs(60)), ..Fault::default() }, 1),
    ] {
        service.faults.push(Fault { next: 1, ..fault }).unwrap();
        let impatient = tokio::time::timeout(Duration::from_secs(5), ask(&service, "POST", jobs, query)).await;
        assert!(impatient.is_err());
        let (.., list) = ask(&service, "GET", jobs, "").await;
        assert_eq!(list["items"].as_array().unwrap().len(), expected);
    }
}
