//! Questions that become query jobs.

use super::*;

const JOB: &str = "/v3/InsightsDomains/Conversations/QueryJobs/proc_job_01";

fn job(status: &str, more: &Json) -> String {
    let mut job = json!({"operationId": "proc_job_01", "status": status, "createdAt": "2026-05-25T14:30:00Z"});
    if let (Json::Object(job), Json::Object(more)) = (&mut job, more) {
        job.extend(more.clone());
    }
    job.to_string()
}

#[tokio::test]
async fn a_job_is_submitted_polled_and_read() {
    let server = Upstream::script(|seen| match (seen.number, seen.target()) {
        (1, _) => Plan::with(202, "Retry-After: 1\r\n", &job("PENDING", &json!({"statusUrl": "http://127.0.0.1:1/"}))),
        (2, JOB) => Plan::with(200, "Retry-After: 1\r\n", &job("RUNNING", &json!({}))),
        // A refused poll does not affect the job.
        (3, JOB) => refused(429, "team_rate_limit", "Retry-After: 1\r\n"),
        (4, JOB) => Plan::json(200, &job("COMPLETED", &json!({"completedAt": "2026-05-25T14:30:09Z"}))),
        (5, _) => page(&json!([{"N": 1}]), Some("t=")),
        (6, _) => page(&json!([{"N": 2}]), None),
        _ => Plan::reset(),
    })
    .await;
    let said = query(&server.url(), "--measure N --job --all --page-size 1 --format csv", &[], &[]).await;
    assert_eq!((said.code, said.output.as_str(), said.errors.as_str()), (Some(0), "N\n1\n2\n", ""));
    let seen = server.seen();
    let line = |n: usize| seen[n].head.lines().next().unwrap_or_default().to_owned();
    assert_eq!(line(0), "POST /v3/InsightsDomains/Conversations/QueryJobs HTTP/1.1");
    assert_eq!(seen[0].text(), r#"{"query":{"measures":["N"]}}"#);
    assert_eq!(seen[0].header("idempotency-key"), None, "without a key the gateway may join equal jobs");
    assert_eq!(line(4), format!("GET {JOB}/Results?pageSize=1 HTTP/1.1"));
    assert_eq!(line(5), format!("GET {JOB}/Results?pageSize=1&pageToken=t%3D HTTP/1.1"));
}

#[tokio::test]
async fn a_job_that_ends_without_results_says_why() {
    let fault = json!({"error": {"code": 50001, "message": "took too long", "httpStatusCode": 504, "detail": "120 s"}});
    for (answer, words) in [
        (Plan::json(202, &job("FAILED", &fault)), "job proc_job_01 failed: took too long (120 s) (code 50001)"),
        (Plan::json(202, &job("CANCELLED", &json!({}))), "job proc_job_01 was cancelled"),
        (Plan::json(202, &job("ODD\u{1b}", &json!({}))), "unknown state: ODD"),
        (Plan::json(202, &job("COMPLETED", &json!({"operationId": "../x"}))), "cannot be part of a path"),
        (Plan::json(202, "{}"), "is not a job"),
        (refused(404, "not_found", ""), "404 not_found"),
    ] {
        let server = Upstream::script(move |_| answer.clone()).await;
        let said = query(&server.url(), "--measure N --job", &[], &[]).await;
        assert_eq!((said.code, said.output.as_str()), (Some(1), ""), "{said:?}");
        assert!(said.errors.contains(words), "{words}: {}", said.errors);
        assert_eq!(server.count(), 1);
    }
}
