//! An upstream that fails in many ways: each has its documented reason after the allowed attempts, stores nothing, and
//! ends as soon as the upstream works again.

use std::time::Duration;

use crate::jobs::JOBS;
use crate::support::faults::{HEALED, ends_as_documented, fault};
use crate::support::upstream::DeadPort;
use crate::support::*;
use tokio::time::Instant;

pub async fn gateway(upstream: &Upstream) -> Gateway {
    TestConfig::new(upstream.url()).start().await
}

fn page_cut_at(offset: usize) -> Vec<u8> {
    let whole =
        format!("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{PAGE}", PAGE.len());
    whole.as_bytes()[..offset].to_vec()
}

fn head_length() -> usize {
    page_cut_at(20).len() + "Content-Type: application/json\r\nContent-Length: 46\r\n\r\n".len() - 3
}

fn in_chunks(body: &str) -> String {
    let mut text =
        String::from("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n");
    for chunk in body.as_bytes().chunks(10.max(body.len() / 20)) {
        text.push_str(&format!("{:x}\r\n{}\r\n", chunk.len(), str::from_utf8(chunk).unwrap()));
    }
    text + "0\r\n\r\n"
}

#[tokio::test]
async fn connections_that_break_before_an_answer_are_unreachable() {
    let unreachable = |name, plan| fault(name, plan, 4, 502, "upstream_unreachable");
    ends_as_documented(vec![
        unreachable("a reset at once", Plan::reset()),
        unreachable("a close at once", Plan::close()),
        unreachable("a reset in the status line", Plan::raw("HTTP/1.1 2").then_reset()),
        unreachable("a close in the status line", Plan::raw("HTTP/1.1 2").then_close()),
        unreachable("a reset in the head", Plan::raw("HTTP/1.1 200 OK\r\nContent-Ty").then_reset()),
        unreachable("a close in the head", Plan::raw("HTTP/1.1 200 OK\r\nContent-Ty").then_close()),
    ])
    .await;
}

#[tokio::test]
async fn bodies_that_are_cut_are_invalid_and_tried_again() {
    let cut = |name, plan| fault(name, plan, 4, 502, "upstream_invalid");
    let chunked = in_chunks(PAGE);
    let cut_chunks = |keep: usize| Plan::raw(&chunked.as_bytes()[..keep]);
    let head = chunked.find("\r\n\r\n").unwrap() + 4;
    ends_as_documented(vec![
        cut("closed before the body", Plan::raw(page_cut_at(head_length())).then_close()),
        cut("closed in the body", Plan::raw(page_cut_at(head_length() + 20)).then_close()),
        cut("closed at the last byte", Plan::raw(page_cut_at(head_length() + PAGE.len() - 1)).then_close()),
        cut("reset in the body", Plan::raw(page_cut_at(head_length() + 20)).then_reset()),
        cut("closed before the chunks", cut_chunks(head).then_close()),
        cut("closed in a chunk", cut_chunks(head + 20).then_close()),
        cut("closed before the last chunk", cut_chunks(chunked.len() - 5).then_close()),
        cut("closed in the last chunk", cut_chunks(chunked.len() - 2).then_close()),
        cut("reset between chunks", cut_chunks(chunked.len() - 5).then_reset()),
        cut("a chunk size that is none", Plan::raw(chunked.replace("\r\n0\r\n", "\r\nxyz\r\n")).then_close()),
    ])
    .await;
}

#[tokio::test]
async fn responses_that_are_not_json_are_invalid_and_not_retried() {
    let invalid = |name, plan| fault(name, plan, 1, 502, "upstream_invalid");
    let until_close = |body: &str| Plan::raw(format!("HTTP/1.1 200 OK\r\n\r\n{body}")).then_close();
    ends_as_documented(vec![
        invalid("text", Plan::page("all is well")),
        invalid("HTML", Plan::with(200, "Content-Type: text/html\r\n", "<html><body>hello</body></html>")),
        invalid("nothing", Plan::page("")),
        invalid("white space", Plan::page("  \r\n")),
        invalid("half of it, as if whole", Plan::page(&PAGE[..20])),
        invalid("half of it, until the connection closes", until_close(&PAGE[..20])),
        invalid("nothing, until the connection closes", until_close("")),
        invalid("twice", Plan::page(&PAGE.repeat(2))),
        invalid("with a byte order mark", Plan::page(&format!("\u{feff}{PAGE}"))),
        invalid("204", Plan::raw("HTTP/1.1 204 No Content\r\n\r\n")),
        invalid("compressed", Plan::with(200, "Content-Encoding: gzip\r\n", PAGE)),
        invalid("compressed with something new", Plan::with(200, "Content-Encoding: zstd, br\r\n", PAGE)),
    ])
    .await;
}

#[tokio::test]
async fn html_from_a_failing_proxy_is_invalid_and_tried_again() {
    let page = "<html><title>502 Bad Gateway</title></html>";
    let html = |status| Plan::with(status, "Content-Type: text/html\r\n", page);
    ends_as_documented(vec![
        fault("HTML 502", html(502), 4, 502, "upstream_invalid"),
        fault("HTML 503", html(503), 4, 502, "upstream_invalid"),
        fault("HTML 504", html(504), 4, 502, "upstream_invalid"),
    ])
    .await;
}

#[tokio::test]
async fn answers_beyond_max_response_are_invalid() {
    let large = format!("\"{}\"", "a".repeat(100_000));
    let too_large = |name, plan| fault(name, plan, 1, 502, "upstream_invalid");
    ends_as_documented(vec![
        too_large("declared", Plan::page(&large)),
        too_large("chunked", Plan::raw(in_chunks(&large))),
        too_large("until the connection closes", Plan::raw(format!("HTTP/1.1 200 OK\r\n\r\n{large}")).then_close()),
    ])
    .await;
    let upstream = Upstream::start().await;
    let gateway = TestConfig::new(upstream.url()).set("upstream.max_response", "64KiB").start().await;
    let just = format!("\"{}\"", "a".repeat((64 << 10) - 2));
    let whole = just.clone();
    upstream.set(move |_| Plan::page(&just));
    gateway.ask(&post(ASK)).await.assert_page(&whole, "miss");
}

#[tokio::test]
async fn silence_and_slowness_are_timeouts_and_tried_again() {
    let slow = |name, plan| fault(name, plan, 4, 504, "upstream_timeout");
    let half = page_cut_at(head_length() + 20);
    let whole = page_cut_at(head_length() + PAGE.len());
    ends_as_documented(vec![
        slow("nothing", Plan::silence()),
        slow("half a head", Plan::raw("HTTP/1.1 200 OK\r\nConte").then_silence()),
        slow("half a body", Plan::raw(half).then_silence()),
        slow("a drip", Plan::drip(whole, Duration::from_millis(30))),
        slow(
            "interim answers without end",
            Plan::drip("HTTP/1.1 100 Continue\r\n\r\n".repeat(50), Duration::from_millis(5)),
        ),
    ])
    .await;
}

#[tokio::test]
async fn redirects_are_not_followed() {
    let elsewhere = Upstream::start().await;
    for status in [301, 302, 303, 307, 308, 300, 304] {
        let location = format!("Location: {}/\r\nContent-Type: application/json\r\n", elsewhere.url());
        let body = if status == 304 { "" } else { PAGE };
        let redirect = Plan::with(status, &location, body);
        ends_as_documented(vec![fault("a redirect", redirect, 1, 502, "upstream_invalid")]).await;
    }
    assert_eq!((elsewhere.connections(), elsewhere.count()), (0, 0));
}

#[tokio::test]
async fn a_304_that_nobody_asked_for_is_not_called_a_redirect() {
    let upstream = Upstream::script(|_| Plan::with(304, "ETag: \"a\"\r\n", "")).await;
    let gateway = gateway(&upstream).await;
    // The client's condition is compared with what the gateway has, and does not go further.
    let answer = gateway.ask(&post_to(QUERY, "If-None-Match: \"a\"\r\n", ASK)).await;
    answer.assert_refused(502, "upstream_invalid");
    assert!(answer.text().contains("Twilio answered 304 (Not Modified) to a request without"), "{}", answer.text());
    assert_eq!(upstream.seen()[0].header("if-none-match"), None);
}

#[tokio::test]
async fn interim_answers_before_the_real_one_are_skipped() {
    let storm = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n".repeat(20);
    let upstream = Upstream::script(move |_| {
        let length = PAGE.len();
        Plan::raw(format!("{storm}HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{PAGE}"))
    })
    .await;
    let gateway = gateway(&upstream).await;
    gateway.ask(&post(ASK)).await.assert_page(PAGE, "miss");
    assert_eq!(upstream.count(), 1);
}

#[tokio::test]
async fn chunked_and_close_delimited_responses_are_accepted() {
    let upstream = Upstream::script(|seen| match seen.number {
        1 => Plan::raw(in_chunks(PAGE)),
        _ => Plan::raw(format!("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n{PAGE}")).then_close(),
    })
    .await;
    let gateway = gateway(&upstream).await;
    for n in 0..2 {
        gateway.ask(&get(&format!("{METADATA}?n={n}"), "")).await.assert_page(PAGE, "miss");
    }
}

#[tokio::test]
async fn very_deeply_nested_json_does_no_harm() {
    let deep = format!("{}{}", "[".repeat(200_000), "]".repeat(200_000));
    let upstream = Upstream::script(move |_| Plan::page(&deep)).await;
    let gateway = gateway(&upstream).await;
    let answer = gateway.ask(&post(ASK)).await;
    // It is valid JSON, so passing it on and refusing it are both right; a crash is not.
    assert!(matches!(answer.status, 200 | 502), "{}", answer.status);
    upstream.heal(HEALED);
    assert_eq!(gateway.ask(&get(METADATA, "")).await.status, 200);
}

#[tokio::test]
async fn an_upstream_that_is_down_is_unreachable_until_it_is_up() {
    let port = DeadPort::new();
    let gateway = TestConfig::new(port.url()).start().await;
    gateway.ask(&post(ASK)).await.assert_refused(502, "upstream_unreachable");
    let labels = ["account=\"default\"", "operation=\"query\"", "status=\"upstream_unreachable\""];
    assert_eq!(gateway.metric("upstream_attempts_total", &labels).await, 4.0);
    let upstream = port.heal(|_| Plan::page(HEALED));
    gateway.ask(&post(ASK)).await.assert_page(HEALED, "miss");
    assert_eq!(upstream.count(), 1);
}

#[tokio::test]
async fn a_kept_connection_that_died_meanwhile_costs_no_answer() {
    let upstream = Upstream::script(|_| Plan::page(PAGE).then_close()).await;
    let gateway = TestConfig::new(upstream.url()).set("retry.attempts", "1").start().await;
    for n in 0..10 {
        let answer = gateway.ask(&get(&format!("{METADATA}?n={n}"), "")).await;
        assert_eq!(answer.status, 200, "request {n}: {answer:?}");
        gateway.settle().await;
    }
}

#[tokio::test]
async fn an_answer_that_is_not_accepted_costs_no_connection() {
    let html = "<html>down for maintenance</html>";
    let upstream = Upstream::script(move |_| Plan::with(502, "Content-Type: text/html\r\n", html)).await;
    let gateway = TestConfig::new(upstream.url()).set("retry.attempts", "1").start().await;
    for n in 1..4 {
        gateway.ask(&get(&format!("{METADATA}?n={n}"), "")).await.assert_refused(502, "upstream_invalid");
        assert_eq!((upstream.count(), upstream.connections()), (n, 1));
    }
}

#[tokio::test]
async fn failures_that_pass_are_hidden_by_the_next_try() {
    let failures: [(&str, Plan); 7] = [
        ("500", Plan::json(500, "{}")),
        ("502", Plan::json(502, "{}")),
        ("503", Plan::json(503, "{}")),
        ("504", Plan::json(504, "{}")),
        ("429", Plan::json(429, "{}")),
        ("a reset", Plan::reset()),
        ("a cut body", Plan::raw(page_cut_at(head_length() + 5)).then_close()),
    ];
    for (name, failure) in failures {
        let upstream =
            Upstream::script(move |seen| if seen.number == 1 { failure.clone() } else { Plan::page(PAGE) }).await;
        let gateway = gateway(&upstream).await;
        let answer = gateway.ask(&post(ASK)).await;
        assert_eq!((answer.status, answer.text().as_str()), (200, PAGE), "{name}");
        assert_eq!(upstream.count(), 2, "{name}");
        let (first, second) = (&upstream.seen()[0], &upstream.seen()[1]);
        assert_eq!((&first.head, &first.body), (&second.head, &second.body), "{name}: a retry is the same request");
    }
}

#[tokio::test]
async fn retries_end_with_the_deadline_of_the_request() {
    let upstream = Upstream::script(|_| Plan::silence()).await;
    let gateway = TestConfig::new(upstream.url()).set("upstream.deadline", "500ms").start().await;
    let begun = Instant::now();
    gateway.ask(&post(ASK)).await.assert_refused(504, "upstream_timeout");
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    assert!(upstream.count() <= 2, "{} tries", upstream.count());
}

#[tokio::test]
async fn a_request_without_time_is_served_from_memory_or_refused_and_never_sent() {
    let upstream = Upstream::start().await;
    let gateway = gateway(&upstream).await;
    let at_once = "Prefer: wait=0\r\n";
    let with = |wish: &str| format!("{at_once}Cache-Control: {wish}\r\n");
    let requests = [
        post_to(QUERY, at_once, ASK),
        post_to(QUERY, &with("no-store"), ASK),
        post_to(QUERY, &with("no-cache"), ASK),
        get(METADATA, at_once),
        get(JOBS, at_once),
        get(&format!("{JOBS}/op_1"), at_once),
        get(&format!("{JOBS}/op_1/Results"), at_once),
        post_to(JOBS, at_once, ASK),
    ];
    for request in &requests {
        let answer = gateway.ask(request).await;
        answer.assert_refused(429, "deadline");
        assert_eq!(answer.header("retry-after"), "1", "there is a token at once");
        assert!(answer.text().contains("may not wait for Twilio"), "{}", answer.text());
    }
    assert_eq!(upstream.count(), 0);

    upstream.heal(PAGE);
    gateway.ask(&post(ASK)).await.assert_page(PAGE, "miss");
    gateway.ask(&post_to(QUERY, at_once, ASK)).await.assert_page(PAGE, "hit");
    // A new one is demanded, for which there is no time: as with any other refusal, the stored one is the answer.
    gateway.ask(&post_to(QUERY, &with("no-cache"), ASK)).await.assert_page(PAGE, "stale_error");
    assert_eq!(upstream.count(), 1);

    // It joins no call either.
    upstream.set(|_| Plan::silence());
    let mut patient = gateway.connect().await;
    patient.send(&get(METADATA, "")).await;
    upstream.arrived(2).await;
    gateway.ask(&get(METADATA, at_once)).await.assert_refused(429, "deadline");
    drop(patient);

    upstream.set(|_| Plan::with(429, "Content-Type: application/json\r\nRetry-After: 60\r\n", "{}"));
    assert_eq!(gateway.ask(&get(&format!("{METADATA}?n=1"), "Prefer: wait=5\r\n")).await.status, 429);
    let answer = gateway.ask(&get(&format!("{METADATA}?n=2"), at_once)).await;
    answer.assert_refused(429, "deadline");
    let wait: u32 = answer.header("retry-after").parse().unwrap();
    assert!(wait >= 30, "the account is paused for a minute: {wait}");
}

#[tokio::test]
async fn an_outage_is_not_multiplied() {
    let upstream = Upstream::script(|_| Plan::json(503, "{}")).await;
    let gateway = TestConfig::new(upstream.url()).set("retry.budget", "0.2").start().await;
    for n in 0..16 {
        assert_eq!(gateway.ask(&get(&format!("{METADATA}?n={n}"), "")).await.status, 503);
    }
    assert_eq!(upstream.count(), 16 + 3, "a fifth of the first attempts, and at least three");
}

#[tokio::test]
async fn a_dead_upstream_gets_no_calls_until_it_works_again() {
    let upstream = Upstream::script(|_| Plan::json(503, "{}")).await;
    let gateway = TestConfig::new(upstream.url())
        .set("retry.budget", "0.2")
        .set("circuit.consecutive", "10")
        .set("circuit.open", "1s")
        .start()
        .await;
    let mut refused = None;
    for n in 0..100 {
        let answer = gateway.ask(&get(&format!("{METADATA}?n={n}"), "")).await;
        assert_eq!(answer.status, 503);
        if refused.is_none() && answer.text().contains("circuit_open") {
            answer.assert_refused(503, "circuit_open");
            assert_eq!(answer.header("retry-after"), "1");
            refused = Some(upstream.count());
        }
    }
    assert!(refused.is_some_and(|count| count <= 12), "{refused:?} attempts before it was left alone");
    assert!(upstream.count() <= 125, "{} attempts for 100 requests", upstream.count());
    let ready = gateway.admin("/readyz").await;
    assert_eq!(ready.status, 200, "its cache can still be served");
    assert!(ready.text().contains("only probes are sent"), "{}", ready.text());
    assert!(gateway.metric("circuit_state", &["default"]).await >= 1.0);

    upstream.heal(PAGE);
    let answer = poll("a probe", || async {
        let answer = gateway.ask(&get(METADATA, "")).await;
        (answer.status == 200).then_some(answer)
    })
    .await;
    answer.assert_page(PAGE, "miss");
    assert_eq!(gateway.metric("circuit_state", &["default"]).await, 0.0);
}

#[tokio::test]
async fn a_response_that_is_not_http_is_invalid() {
    let no_http = |name, plan| fault(name, plan, 4, 502, "upstream_invalid");
    let giant = format!("HTTP/1.1 200 OK\r\nX-Giant: {}\r\nContent-Length: 2\r\n\r\n{{}}", "a".repeat(1 << 20));
    let many = format!("HTTP/1.1 200 OK\r\n{}Content-Length: 2\r\n\r\n{{}}", "X-Many: a\r\n".repeat(500));
    ends_as_documented(vec![
        no_http("garbage", Plan::raw("\0\x01\x02garbage\r\n\r\n").then_close()),
        no_http("another protocol", Plan::raw("SSH-2.0-OpenSSH_9.6\r\n").then_close()),
        no_http("a status of letters", Plan::raw("HTTP/1.1 abc OK\r\nContent-Length: 2\r\n\r\n{}")),
        no_http("a giant header", Plan::raw(giant)),
        no_http("500 headers", Plan::raw(many)),
        no_http("two lengths", Plan::raw("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}")),
    ])
    .await;
}

#[tokio::test]
async fn json_in_another_encoding_is_refused() {
    let latin = |body: &[u8]| {
        let mut answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len()).into_bytes();
        answer.extend_from_slice(body);
        Plan::raw(answer)
    };
    ends_as_documented(vec![fault("Latin-1", latin(b"{\"data\":\"caf\xe9\"}"), 1, 502, "upstream_invalid")]).await;
}

#[tokio::test]
async fn an_answer_that_declares_too_much_is_not_waited_for() {
    let declared = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n[", 1u64 << 40);
    let stalls = Plan::raw(declared).then_silence();
    // The declared length decides, so neither time nor a retry matters.
    ends_as_documented(vec![fault("a terabyte", stalls, 1, 502, "upstream_invalid")]).await;
}
