//! Query jobs through the gateway: the upstream requests, and the responses to clients.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use tempfile::TempDir;

use crate::http2;
use crate::support::*;

pub const JOBS: &str = "/v3/InsightsDomains/Conversations/QueryJobs";
pub const ACCEPTED: &str = r#"{"operationId":"op_1","status":"PENDING","statusUrl":"https://insights.twilio.com/v3/InsightsDomains/Conversations/QueryJobs/op_1","createdAt":"2026-11-22T10:00:00Z"}"#;
pub const RUNNING: &str = r#"{"operationId":"op_1","status":"RUNNING","createdAt":"2026-11-22T10:00:00Z"}"#;

/// Accepts jobs as `op_1`, which keeps running.
pub fn accepts(seen: &Seen) -> Plan {
    match seen.head.starts_with("POST ") {
        true => Plan::with(202, "Location: /x\r\nRetry-After: 5\r\nX-Other: 1\r\n", ACCEPTED),
        false => Plan::with(200, "Retry-After: 7\r\nX-Other: 1\r\n", RUNNING),
    }
}

#[tokio::test]
async fn jobs_go_upstream_by_their_own_paths() {
    let upstream = Upstream::script(accepts).await;
    let gateway = TestConfig::new(upstream.url()).start().await;
    let submitted = gateway.ask(&post_to(JOBS, "Idempotency-Key: mine\r\nX-Mine: 1\r\n", ASK)).await;
    assert_eq!((submitted.status, submitted.header("retry-after")), (202, "5"));
    assert!(submitted.find("location").is_some() && submitted.find("x-other").is_none());
    let status = gateway.ask(&get(&format!("{JOBS}/op_1"), "Idempotency-Key: mine\r\n")).await;
    assert_eq!((status.status, status.header("retry-after")), (200, "7"));
    gateway.ask(&get(&format!("{JOBS}/op_1/Results?PageSize=3"), "")).await;
    gateway.ask(&get(&format!("{JOBS}?status=RUNNING"), "")).await;
    let seen = upstream.seen();
    let lines: Vec<_> = seen.iter().map(|seen| seen.head.lines().next().unwrap().to_owned()).collect();
    let expected = [
        format!("POST {JOBS} HTTP/1.1"),
        format!("GET {JOBS}/op_1 HTTP/1.1"),
        format!("GET {JOBS}/op_1/Results?pageSize=3 HTTP/1.1"),
        format!("GET {JOBS}?status=RUNNING HTTP/1.1"),
    ];
    assert_eq!(lines, expected);
    assert_eq!((seen[0].header("idempotency-key"), seen[0].header("x-mine")), (Some("mine"), None));
    assert_eq!((seen[0].text().as_str(), seen[1].header("idempotency-key")), (ASK, None));
}

#[tokio::test]
async fn a_wait_that_cannot_be_read_counts_as_five_seconds() {
    for (wait, told) in [
        ("1.5", "5"),
        ("5, 7", "5"),
        ("3, 3", "5"),
        ("3\r\nRetry-After: 3", "5"),
        ("soon", "5"),
        (" 4 ", "4"),
        ("100", "60"),
        ("99999999999999999999999", "60"),
    ] {
        let head = format!("Retry-After: {wait}\r\n");
        let upstream = Upstream::script(move |seen| match seen.head.starts_with("POST ") {
            true => Plan::with(202, &head, ACCEPTED),
            false => Plan::with(200, &head, RUNNING),
        })
        .await;
        let gateway = TestConfig::new(upstream.url()).start().await;
        for request in [post_to(JOBS, "", ASK), get(&format!("{JOBS}/op_1"), "")] {
            let answer = gateway.ask(&request).await;
            assert_eq!(answer.header("retry-after"), told, "{wait} {answer:?}");
        }
    }
}

#[tokio::test]
async fn a_head_is_answered_like_its_get() {
    let upstream = Upstream::script(accepts).await;
    let gateway = TestConfig::new(upstream.url()).start().await;
    let head = String::from_utf8(get(&format!("{JOBS}/op_1"), "")).unwrap().replacen("GET", "HEAD", 1);
    let answer = gateway.ask(head.as_bytes()).await;
    assert_eq!((answer.status, answer.header("retry-after"), answer.body.len()), (200, "7", 0));
    assert!(upstream.seen()[0].head.starts_with("GET "));
}

#[tokio::test]
async fn malformed_ids_are_not_found() {
    let upstream = Upstream::script(accepts).await;
    let gateway = TestConfig::new(upstream.url()).start().await;
    for id in ["a.b", "..", "a%2Fb", "a/b", "", &"x".repeat(129)] {
        for path in [format!("{JOBS}/{id}"), format!("{JOBS}/{id}/Results")] {
            gateway.ask(&get(&path, "")).await.assert_refused(404, "not_found");
        }
    }
    gateway.ask(&post_to(&format!("{JOBS}/op_1"), "", ASK)).await.assert_refused(405, "method_not_allowed");
    assert_eq!(upstream.count(), 0);
}

/// A Twilio that makes one job for each key, however often the submission comes.
fn one_job_a_key(jobs: &Arc<Mutex<HashMap<String, usize>>>) -> impl FnMut(&Seen) -> String + Send + 'static {
    let jobs = Arc::clone(jobs);
    move |seen| {
        let mut jobs = jobs.lock().unwrap();
        let next = jobs.len() + 1;
        let id = *jobs.entry(seen.header("idempotency-key").unwrap().to_owned()).or_insert(next);
        format!(r#"{{"operationId":"op_{id}","status":"PENDING","createdAt":"2026-11-22T10:00:00Z"}}"#)
    }
}

#[tokio::test]
async fn a_submission_that_breaks_after_it_was_written_makes_one_job() {
    let jobs = Arc::default();
    let mut accept = one_job_a_key(&jobs);
    let upstream = Upstream::script(move |seen| {
        let accepted = accept(seen);
        match seen.number {
            1 => Plan::reset(),
            2 => Plan::close(),
            3 => Plan::json(503, "{}"),
            _ => Plan::with(202, "Retry-After: 5\r\n", &accepted),
        }
    })
    .await;
    let gateway = TestConfig::new(upstream.url()).set("retry.base", "1ms").start().await;
    let submitted = gateway.ask(&post_to(JOBS, "", ASK)).await;
    assert_eq!((submitted.status, submitted.json()["operationId"].as_str()), (202, Some("op_1")));
    assert_eq!((upstream.count(), jobs.lock().unwrap().len()), (4, 1));
    let key = jobs.lock().unwrap().keys().next().unwrap().clone();
    assert_eq!((key.len(), &key[14..15]), (36, "7"));
}

#[tokio::test]
async fn twilios_own_refusal_of_a_key_passes() {
    const REUSED: &str = r#"{"code":20422,"message":"used for another request","httpStatusCode":422}"#;
    let upstream = Upstream::script(|_| Plan::json(422, REUSED)).await;
    let gateway = TestConfig::new(upstream.url()).start().await;
    for _ in 0..2 {
        let answer = gateway.ask(&post_to(JOBS, "Idempotency-Key: mine\r\n", ASK)).await;
        assert_eq!((answer.status, answer.text().as_str(), answer.detail()), (422, REUSED, "bypass"));
    }
    assert_eq!(upstream.count(), 2);
    let two = post_to(JOBS, "Idempotency-Key: a\r\nIdempotency-Key: b\r\n", ASK);
    gateway.ask(&two).await.assert_refused(400, "bad_request");
}

#[tokio::test]
async fn links_lead_back_to_the_gateway() {
    let twilio = format!("https://insights.twilio.com{JOBS}/op_1");
    let answers = move |seen: &Seen| {
        let job = format!(
            r#"{{ "operationId":"op_1","status":"COMPLETED", "statusUrl":"{twilio}","resultUrl":"{twilio}/Results" }}"#
        );
        match seen.target() {
            JOBS if seen.head.starts_with("GET ") => Plan::page(&format!(r#"{{"items":[{job}],"meta":{{}}}}"#)),
            JOBS => Plan::with(202, &format!("Location: {twilio}\r\n"), &job),
            target if target.ends_with("/Results") => Plan::page(&job),
            _ => Plan::page(&job),
        }
    };
    for (public, base) in [(None, "http://localhost"), (Some("https://gw.example/api"), "https://gw.example/api")] {
        let upstream = Upstream::script(answers.clone()).await;
        let config = TestConfig::new(upstream.url());
        let gateway = public.iter().fold(config, |config, url| config.set("server.public_url", *url)).start().await;
        let (job, twilio) = (format!("{base}{JOBS}/op_1"), format!("https://insights.twilio.com{JOBS}/op_1"));
        let expected = format!(
            r#"{{ "operationId":"op_1","status":"COMPLETED", "statusUrl":"{job}","resultUrl":"{job}/Results" }}"#
        );
        for _ in 0..2 {
            let submitted = gateway.ask(&post_to(JOBS, "", ASK)).await;
            assert_eq!((submitted.header("location"), submitted.text()), (job.as_str(), expected.clone()));
            let status = gateway.ask(&get(&format!("{JOBS}/op_1"), "")).await;
            assert_eq!(status.text(), expected);
            let seen = format!("If-None-Match: {}\r\n", status.header("etag"));
            assert_eq!(gateway.ask(&get(&format!("{JOBS}/op_1"), &seen)).await.status, 304);
            let list = gateway.ask(&get(JOBS, "")).await;
            assert_eq!(list.text(), format!(r#"{{"items":[{expected}],"meta":{{}}}}"#));
        }
        // Rows are data and are not changed, whatever their names are.
        assert!(gateway.ask(&get(&format!("{JOBS}/op_1/Results"), "")).await.text().contains(&twilio));
    }
}

#[tokio::test]
async fn answers_without_an_id_or_a_status_are_invalid_and_not_kept() {
    for bad in [
        r#"{"status":"PENDING"}"#,
        r#"{"operationId":null,"status":"PENDING"}"#,
        r#"{"operationId":"../x","status":"PENDING"}"#,
        r#"{"operationId":"op_1"}"#,
        "[]",
    ] {
        let upstream = Upstream::script(move |seen| match seen.number {
            1 | 3 => Plan::json(if seen.head.starts_with("POST ") { 202 } else { 200 }, bad),
            2 => Plan::json(202, ACCEPTED),
            _ => Plan::json(200, RUNNING),
        })
        .await;
        let gateway = TestConfig::new(upstream.url()).start().await;
        gateway.ask(&post_to(JOBS, "", ASK)).await.assert_refused(502, "upstream_invalid");
        assert_eq!(gateway.ask(&post_to(JOBS, "", ASK)).await.status, 202);
        let status = gateway.ask(&get(&format!("{JOBS}/op_1"), "")).await;
        // A status may lack the id.
        if bad != r#"{"status":"PENDING"}"# && !bad.contains("null") && !bad.contains("..") {
            status.assert_refused(502, "upstream_invalid");
        }
    }
    // A status of another job, and a job that Twilio has lost.
    let upstream = Upstream::script(|seen| match seen.number {
        1 => Plan::json(200, &RUNNING.replace("op_1", "op_2")),
        _ => Plan::json(404, r#"{"code":20404}"#),
    })
    .await;
    let gateway = TestConfig::new(upstream.url()).start().await;
    gateway.ask(&get(&format!("{JOBS}/op_1"), "")).await.assert_refused(502, "upstream_invalid");
    // The invalid answer holds until the next poll of the same job.
    gateway.ask(&get(&format!("{JOBS}/op_1"), "")).await.assert_refused(502, "upstream_invalid");
    let lost = gateway.ask(&get(&format!("{JOBS}/op_3"), "")).await;
    assert_eq!((lost.status, lost.text().as_str(), upstream.count()), (404, r#"{"code":20404}"#, 2));
}

#[tokio::test]
async fn identical_submissions_share_a_job_over_both_versions_of_http() {
    let gate = Gate::default();
    let held = Plan::with(202, "Retry-After: 5\r\n", ACCEPTED).after(&gate);
    let upstream = Upstream::script(move |_| held.clone()).await;
    let gateway = TestConfig::new(upstream.url()).start().await;
    let mut clients = Vec::new();
    for _ in 0..20 {
        let mut client = gateway.connect().await;
        client.send(&post_to(JOBS, "", ASK)).await;
        clients.push(client);
    }
    gateway.settle().await;
    upstream.arrived(1).await;
    gate.open();
    let mut collapsed = 0;
    for mut client in clients {
        let answer = client.answer().await;
        assert_eq!((answer.status, answer.find("etag")), (202, None));
        collapsed += usize::from(answer.detail() == "collapsed");
    }
    assert_eq!((collapsed, upstream.count()), (19, 1));
    let mut sender = http2::connect(&gateway).await;
    let request =
        Request::post(format!("http://localhost:8080{JOBS}")).body(Full::new(Bytes::from_static(ASK.as_bytes())));
    let answer = http2::ask(&mut sender, request.unwrap()).await;
    assert_eq!((answer.status, answer.detail()), (202, "hit"));
    assert!(
        answer.text().contains(&format!("\"statusUrl\":\"http://localhost:8080{JOBS}/op_1\"")),
        "{}",
        answer.text()
    );
}

/// The teams `free`, `narrow` and `closed` of one account. Each shows its name as its token.
fn teams(upstream: &Upstream, disk: &TempDir) -> TestConfig {
    let config = ["free", "narrow", "closed"].iter().fold(TestConfig::new(upstream.url()), |config, team| {
        config.set(&format!("teams.{team}.token_sha256"), sha256_hex(team))
    });
    config
        .set("cache.disk.path", disk.path().to_str().unwrap())
        .set("teams.narrow.policy.deny", "Conversation.ParticipantId")
        .set(
            "teams.closed.policy.require",
            "[{ op = 'EQ', field = 'Conversation.ConversationStatus', values = ['CLOSED'] }]",
        )
}

#[tokio::test]
async fn jobs_belong_to_their_policy_and_are_shared_after_a_restart() {
    let jobs = Arc::default();
    let mut accept = one_job_a_key(&jobs);
    let upstream = Upstream::script(move |seen| match seen.target() {
        METADATA => Plan::page(MEMBERS),
        JOBS if seen.head.starts_with("POST ") => Plan::with(202, "Retry-After: 60\r\n", &accept(seen)),
        JOBS => Plan::page(
            r#"{"items":[{"operationId":"op_1","status":"RUNNING"},{"operationId":"op_2","status":"RUNNING"}],"meta":{"key":"items","pageSize":2}}"#,
        ),
        target => Plan::page(&format!(
            r#"{{"operationId":"{}","status":"RUNNING"}}"#,
            target.rsplit('/').next().unwrap()
        )),
    })
    .await;
    let disk = TempDir::new().unwrap();
    let of = |team: &str| format!("Authorization: Bearer {team}\r\n");
    let status = |id: &str, team: &str| get(&format!("{JOBS}/{id}"), &of(team));
    let mut gateway = teams(&upstream, &disk).start().await;
    let denied = r#"{"query":{"dimensions":["Conversation.ParticipantId"]}}"#;
    let with_key = post_to(JOBS, &(of("narrow") + "Idempotency-Key: mine\r\n"), denied);
    gateway.ask(&with_key).await.assert_refused(403, "field_not_allowed");
    let seen = upstream.seen();
    assert_eq!((seen.len(), seen[0].target(), seen[0].header("idempotency-key")), (1, METADATA, None));
    for restarted in [false, true] {
        for (team, id) in [("free", "op_1"), ("narrow", "op_1"), ("closed", "op_2")] {
            let submitted = gateway.ask(&post_to(JOBS, &of(team), ASK)).await;
            assert_eq!(submitted.json()["operationId"], id, "{team} {restarted}");
            assert!(!restarted || submitted.detail() == "hit", "{submitted:?}");
        }
        for (id, team) in [("op_2", "narrow"), ("op_1", "closed"), ("op_9", "narrow")] {
            gateway.ask(&status(id, team)).await.assert_refused(403, "field_not_allowed");
            let results = get(&format!("{JOBS}/{id}/Results"), &of(team));
            gateway.ask(&results).await.assert_refused(403, "field_not_allowed");
        }
        for (id, team) in [("op_1", "narrow"), ("op_2", "closed"), ("op_1", "free"), ("op_2", "free")] {
            assert_eq!(gateway.ask(&status(id, team)).await.status, 200, "{id} {team} {restarted}");
        }
        let list = gateway.ask(&get(JOBS, &of("closed"))).await;
        assert_eq!(
            list.text(),
            r#"{"items":[{"operationId":"op_2","status":"RUNNING"}],"meta":{"key":"items","pageSize":1}}"#
        );
        let token = get(&format!("{JOBS}?pageToken=x"), &of("closed"));
        gateway.ask(&token).await.assert_refused(403, "field_not_allowed");
        gateway.stop().await;
        gateway = teams(&upstream, &disk).start().await;
    }
    assert_eq!(jobs.lock().unwrap().len(), 2);
    // Grants are restored before anything is submitted again.
    assert_eq!(gateway.ask(&status("op_2", "closed")).await.status, 200);
    gateway.ask(&status("op_2", "narrow")).await.assert_refused(403, "field_not_allowed");
    gateway.stop().await;
}

#[tokio::test]
async fn a_job_that_is_lost_is_not_shared_after_a_restart() {
    for case in ["status", "not found", "list", "list after the restart"] {
        let jobs = Arc::default();
        let mut accept = one_job_a_key(&jobs);
        let upstream = Upstream::script(move |seen| match seen.target() {
            JOBS if seen.head.starts_with("POST ") => Plan::with(202, "Retry-After: 60\r\n", &accept(seen)),
            JOBS => Plan::page(r#"{"items":[{"operationId":"op_1","status":"FAILED"}],"meta":{"key":"items"}}"#),
            _ if case == "not found" => Plan::json(404, r#"{"code":20404}"#),
            _ => Plan::page(r#"{"operationId":"op_1","status":"FAILED"}"#),
        })
        .await;
        let disk = TempDir::new().unwrap();
        let start = async || {
            TestConfig::new(upstream.url()).set("cache.disk.path", disk.path().to_str().unwrap()).start().await
        };
        let gateway = start().await;
        assert_eq!(gateway.ask(&post_to(JOBS, "", ASK)).await.json()["operationId"], "op_1", "{case}");
        let learn = if case.starts_with("list") { JOBS.to_owned() } else { format!("{JOBS}/op_1") };
        if case != "list after the restart" {
            gateway.ask(&get(&learn, "")).await;
        }
        gateway.stop().await;
        let gateway = start().await;
        if case == "list after the restart" {
            gateway.ask(&get(&learn, "")).await;
        }
        assert_eq!(gateway.ask(&post_to(JOBS, "", ASK)).await.json()["operationId"], "op_2", "{case}");
        gateway.stop().await;
    }
}

#[tokio::test]
async fn a_slow_query_becomes_a_job_if_the_client_prefers_that() {
    let upstream = Upstream::script(|seen| match seen.target() {
        target if target.starts_with(QUERY) && !target.starts_with(JOBS) => Plan::silence(),
        _ => accepts(seen),
    })
    .await;
    let gateway = TestConfig::new(upstream.url())
        .set("upstream.attempt_timeout", "50ms")
        .set("retry.attempts", "1")
        .start()
        .await;
    let accepted = gateway.ask(&post_to(QUERY, "Prefer: respond-async\r\n", ASK)).await;
    assert_eq!((accepted.status, accepted.header("preference-applied")), (202, "respond-async"));
    assert!(accepted.text().contains(&format!("\"http://localhost{JOBS}/op_1\"")), "{}", accepted.text());
    let late = gateway.ask(&post(ASK)).await;
    late.assert_refused(504, "upstream_timeout");
    assert!(late.text().contains("Prefer: respond-async"), "{}", late.text());
    // It does not ask Twilio, and could have a job as well.
    let hurried = gateway.ask(&post_to(QUERY, "Prefer: wait=0\r\n", ASK)).await;
    hurried.assert_refused(429, "deadline");
    assert!(hurried.text().contains("Prefer: respond-async"), "{}", hurried.text());
}

#[tokio::test]
async fn a_query_whose_job_ends_in_time_names_the_address_of_its_results() {
    let base = "https://gw.example/api";
    let upstream = Upstream::script(|seen| match seen.target() {
        JOBS => Plan::with(202, "Retry-After: 1\r\n", ACCEPTED),
        target if target.contains("pageToken=second") => Plan::page(r#"{"items":[2],"meta":{}}"#),
        target if target.contains("/Results") => Plan::page(r#"{"items":[1],"meta":{"nextToken":"second"}}"#),
        _ => Plan::page(r#"{"operationId":"op_1","status":"COMPLETED"}"#),
    })
    .await;
    for (public, query, results) in [
        (None, QUERY.to_owned(), format!("http://localhost{JOBS}/op_1/Results")),
        (Some(base), format!("{QUERY}?pageSize=3"), format!("{base}{JOBS}/op_1/Results?pageSize=3")),
    ] {
        let config = TestConfig::new(upstream.url());
        let gateway = public.iter().fold(config, |config, url| config.set("server.public_url", *url)).start().await;
        let page = gateway.ask(&post_to(&query, "Prefer: respond-async, wait=15\r\n", ASK)).await;
        assert_eq!((page.status, page.header("content-location")), (200, results.as_str()), "{page:?}");
        assert_eq!((page.json()["items"][0].as_u64(), page.find("preference-applied")), (Some(1), None));
        // The address leads to the same page, and with its token to the next one.
        let path = results.trim_start_matches(base).trim_start_matches("http://localhost");
        assert_eq!(gateway.ask(&get(path, "")).await.text(), page.text());
        let separator = if path.contains('?') { '&' } else { '?' };
        let next = gateway.ask(&get(&format!("{path}{separator}pageToken=second"), "")).await;
        assert_eq!((next.status, next.json()["items"][0].as_u64()), (200, Some(2)), "{next:?}");
    }
}

#[tokio::test]
async fn a_purge_of_an_operation_drops_its_answers() {
    let upstream = Upstream::script(accepts).await;
    let gateway = TestConfig::new(upstream.url()).start().await;
    gateway.ask(&post_to(JOBS, "", ASK)).await;
    assert_eq!(gateway.ask(&post_to(JOBS, "", ASK)).await.detail(), "hit");
    let purged = gateway.ask_admin(&post_to("/cache/purge", "", r#"{"operation":"job-submit"}"#)).await;
    assert_eq!(purged.json()["purged"], 1);
    assert_eq!(gateway.ask(&post_to(JOBS, "", ASK)).await.detail(), "miss");
}
