//! Custom fields through the gateway: what is passed on, what is sent again, and what a write removes from the cache.

use tempfile::TempDir;

use super::http2;
use crate::support::gateway::with_teams;
use crate::support::upstream::DeadPort;
use crate::support::*;

const FIELDS: &str = "/v3/ControlPlane/ConversationInsights/CustomFieldMappings";
const FIELD: &str = "/v3/ControlPlane/ConversationInsights/CustomFieldMappings/convinsights_mapping_01";
const BODY: &str = "{ \"category\" : \"MEASURE\",\r\n\t\"name\":\"\\u0048eat\",\"n\":1.0e+2, \"more\":[ null ] }";
const MADE: &str = r#"{"id":"convinsights_mapping_01","name":"Heat","updatedAt":null}"#;
const OTHER: &str = r#"{"domain":"Conversations","cubes":[{"name":"Conversation","measures":[{"name":"Conversation.Count","type":"number"},{"name":"Conversation.HeatSum","type":"number"}],"dimensions":[]}]}"#;

/// Teams of one account: `all` lists everything, `reader` reads fields, `plain` lists nothing, `narrow` has a policy.
async fn start(upstream: &Upstream) -> (Gateway, TempDir) {
    start_with(upstream, &[]).await
}

async fn start_with(upstream: &Upstream, keys: &[(&str, &str)]) -> (Gateway, TempDir) {
    let teams = [
        ("all", "operations = ['metadata', 'query', 'fields-read', 'fields-write']"),
        ("reader", "operations = ['fields-read']"),
        ("plain", ""),
        ("narrow", "policy = { deny = ['Secret.*'] }"),
    ];
    let keys: Vec<_> = [("retry.base", "1ms"), ("retry.max", "5ms"), ("retry.budget", "10")]
        .into_iter()
        .chain(keys.iter().copied())
        .collect();
    with_teams(upstream, "rate = '0/s'", &teams, &keys).await
}

fn of(team: &str) -> String {
    format!("Authorization: Bearer token-of-{team}\r\n")
}

fn write(method: &str, target: &str, headers: &str, body: &str) -> Vec<u8> {
    let post = String::from_utf8(post_to(target, &format!("{}{headers}", of("all")), body)).unwrap();
    post.replacen("POST", method, 1).into_bytes()
}

fn read(target: &str) -> Vec<u8> {
    get(target, &of("all"))
}

/// Answers metadata and queries as usual, and writes with `plan`.
fn with_writes(plan: Plan) -> impl FnMut(&Seen) -> Plan + Send + 'static {
    move |seen| match (seen.target(), seen.target().starts_with(FIELDS)) {
        (METADATA, _) => Plan::page(MEMBERS),
        (_, true) => plan.clone(),
        _ => Plan::page(PAGE),
    }
}

fn made() -> Plan {
    Plan::with(201, "Content-Type: application/json\r\nETag: \"v1\"\r\n", MADE)
}

fn lines(upstream: &Upstream) -> Vec<String> {
    upstream.seen().iter().map(|seen| seen.head.lines().next().unwrap().replace(" HTTP/1.1", "")).collect()
}

fn writes(upstream: &Upstream) -> usize {
    let is_write = |seen: &&Seen| !seen.head.starts_with("GET") && seen.target().starts_with(FIELDS);
    upstream.seen().iter().filter(is_write).count()
}

#[tokio::test]
async fn all_paths_of_both_revisions_pass_and_nothing_is_stored() {
    let upstream = Upstream::script(with_writes(made())).await;
    let (gateway, _folder) = start(&upstream).await;
    let capacities = [format!("{FIELDS}Capacity"), format!("{FIELDS}/Capacity")];
    let list = format!("{FIELDS}?pageSize=2&pageToken=a%2Bb");
    for target in [FIELDS, &list, FIELD, &capacities[0], &capacities[1]] {
        for _ in 0..2 {
            let answer = gateway.ask(&read(target)).await;
            assert_eq!((answer.status, answer.text().as_str(), answer.detail()), (201, MADE, "bypass"), "{target}");
            assert_eq!(answer.find("age"), None);
        }
    }
    let posted = gateway.ask(&write("POST", FIELDS, "If-Match: \"x\"\r\nX-Mine: 1\r\n", BODY)).await;
    assert_eq!(
        (posted.status, posted.text().as_str(), posted.header("etag"), posted.detail()),
        (201, MADE, "\"v1\"", "bypass")
    );
    assert!(posted.find("x-request-id").is_some());
    upstream.set(with_writes(Plan::with(200, "ETag: \"v2\"\r\n", MADE)));
    let form = "If-Match: \"v1\"\r\nContent-Type: application/x-www-form-urlencoded\r\nCookie: a\r\n";
    let patched = gateway.ask(&write("PATCH", FIELD, form, BODY)).await;
    assert_eq!((patched.status, patched.header("etag")), (200, "\"v2\""));

    let twice = |target: &str| [format!("GET {target}"), format!("GET {target}")];
    let mut expected: Vec<_> =
        [FIELDS, &list, FIELD, &capacities[0], &capacities[1]].into_iter().flat_map(twice).collect();
    expected.extend([format!("POST {FIELDS}"), format!("PATCH {FIELD}")]);
    assert_eq!(lines(&upstream), expected);
    let seen = upstream.seen();
    for write in &seen[10..] {
        assert_eq!((write.text().as_str(), write.header("content-type")), (BODY, Some("application/json")));
        assert!(write.header("authorization").unwrap().starts_with("Basic ") && write.header("x-mine").is_none());
        assert!(write.header("cookie").is_none());
    }
    assert_eq!((seen[10].header("if-match"), seen[11].header("if-match")), (None, Some("\"v1\"")));
}

#[tokio::test]
async fn twilios_refusals_pass_unchanged_and_keep_stored_responses() {
    let upstream = Upstream::script(with_writes(made())).await;
    let (gateway, _folder) = start(&upstream).await;
    gateway.ask(&read(METADATA)).await.assert_page(MEMBERS, "miss");
    let error = r#"{"code":20052,"message":"taken","httpStatusCode":409,"userError":true}"#;
    for status in [400, 403, 404, 409, 412, 422] {
        upstream.set(with_writes(Plan::json(status, error)));
        for request in [write("POST", FIELDS, "", BODY), write("PATCH", FIELD, "If-Match: \"old\"\r\n", BODY)] {
            let before = writes(&upstream);
            let answer = gateway.ask(&request).await;
            assert_eq!((answer.status, answer.text().as_str(), answer.detail()), (status, error, "bypass"));
            assert_eq!(writes(&upstream), before + 1);
        }
    }
    gateway.ask(&read(METADATA)).await.assert_page(MEMBERS, "hit");
    assert_eq!(gateway.admin("/readyz").await.status, 200, "the credentials are good");
    // A 403 without Twilio's JSON, and a 403 for a read, concern the credentials.
    upstream.set(with_writes(Plan::with(403, "", "")));
    gateway.ask(&write("POST", FIELDS, "", BODY)).await.assert_refused(502, "upstream_rejected_credentials");
    assert_eq!(gateway.admin("/readyz").await.status, 503);
    upstream.set(with_writes(Plan::json(200, MADE)));
    assert_eq!(gateway.ask(&read(FIELD)).await.status, 200);
    assert_eq!(gateway.admin("/readyz").await.status, 200);
    for (status, request) in [(403, read(FIELD)), (401, write("POST", FIELDS, "", BODY))] {
        upstream.set(with_writes(Plan::json(status, error)));
        gateway.ask(&request).await.assert_refused(502, "upstream_rejected_credentials");
    }
}

#[tokio::test]
async fn only_teams_that_list_the_operations_may_use_them() {
    let upstream = Upstream::script(with_writes(Plan::json(200, MADE))).await;
    let (gateway, _folder) = start(&upstream).await;
    for team in ["plain", "narrow"] {
        for target in [FIELDS, FIELD] {
            gateway.ask(&get(target, &of(team))).await.assert_refused(403, "operation_not_allowed");
        }
        gateway.ask(&post_to(FIELDS, &of(team), BODY)).await.assert_refused(403, "operation_not_allowed");
    }
    assert_eq!(gateway.ask(&get(FIELD, &of("reader"))).await.status, 200);
    gateway.ask(&post_to(FIELDS, &of("reader"), BODY)).await.assert_refused(403, "operation_not_allowed");
    gateway.ask(&get(FIELDS, "")).await.assert_refused(401, "unauthenticated");
    let alone = TestConfig::new(upstream.url()).start().await;
    for request in [get(FIELDS, ""), get(FIELD, ""), post_to(FIELDS, "", BODY)] {
        alone.ask(&request).await.assert_refused(403, "operation_not_allowed");
    }
    assert_eq!(upstream.count(), 1);
}

#[tokio::test]
async fn a_body_that_is_not_a_field_or_not_json_is_not_sent() {
    let upstream = Upstream::script(with_writes(made())).await;
    let (gateway, _folder) = start_with(&upstream, &[("server.max_body", "1KiB")]).await;
    for body in ["", "{", "{} x", r#"{"a":1,"a":2}"#, r#"{"a":1,"\u0061":2}"#, "name=Heat"] {
        gateway.ask(&write("POST", FIELDS, "", body)).await.assert_refused(400, "invalid_json");
        gateway.ask(&write("PATCH", FIELD, "", body)).await.assert_refused(400, "invalid_json");
    }
    let large = format!("{{\"a\":\"{}\"}}", "x".repeat(1024));
    gateway.ask(&write("PATCH", FIELD, "", &large)).await.assert_refused(413, "body_too_large");
    gateway.ask(&write("POST", FIELDS, "Content-Encoding: gzip\r\n", BODY)).await.assert_refused(400, "bad_request");
    for id in ["a.b", "..", "a%2Fb", "a/b", "", &"x".repeat(129), "a%20b"] {
        let path = format!("{FIELDS}/{id}");
        gateway.ask(&read(&path)).await.assert_refused(404, "not_found");
        gateway.ask(&write("PATCH", &path, "", BODY)).await.assert_refused(404, "not_found");
    }
    for (method, path, allowed) in [
        ("DELETE", FIELD.to_owned(), "GET, HEAD, PATCH"),
        ("PUT", FIELD.to_owned(), "GET, HEAD, PATCH"),
        ("PATCH", FIELDS.to_owned(), "GET, HEAD, POST"),
        ("PATCH", format!("{FIELDS}/Capacity"), "GET, HEAD"),
        ("POST", format!("{FIELDS}Capacity"), "GET, HEAD"),
    ] {
        let answer = gateway.ask(&write(method, &path, "", BODY)).await;
        answer.assert_refused(405, "method_not_allowed");
        assert_eq!(answer.header("allow"), allowed, "{method} {path}");
    }
    let cached = "Cache-Control: only-if-cached\r\n";
    gateway.ask(&write("POST", FIELDS, cached, BODY)).await.assert_refused(504, "only_if_cached");
    assert_eq!(upstream.count(), 0);
    assert_eq!(gateway.ask(&write("PATCH", &format!("{FIELDS}/{}", "x".repeat(128)), "", BODY)).await.status, 201);
}

#[tokio::test]
async fn a_write_that_may_have_been_done_is_sent_once() {
    let busy = Plan::json(503, "{}");
    for (plan, status, reason) in [
        (Plan::reset(), 502, "upstream_unreachable"),
        (Plan::close(), 502, "upstream_unreachable"),
        (Plan::raw("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{").then_reset(), 502, "upstream_invalid"),
        (Plan::raw("nonsense\r\n\r\n").then_close(), 502, "upstream_invalid"),
        (Plan::page("<html>"), 502, "upstream_invalid"),
        (Plan::with(307, "Location: /x\r\n", "{}"), 502, "upstream_invalid"),
        (Plan::silence(), 504, "upstream_timeout"),
    ] {
        for warm in [false, true] {
            let upstream = Upstream::script(with_writes(made())).await;
            let (gateway, _folder) = start_with(&upstream, &[("upstream.attempt_timeout", "200ms")]).await;
            if warm {
                assert_eq!(gateway.ask(&read(FIELD)).await.status, 201);
            }
            upstream.set(with_writes(plan.clone()));
            gateway.ask(&write("PATCH", FIELD, "", BODY)).await.assert_refused(status, reason);
            assert_eq!(writes(&upstream), 1, "{plan:?}, on a connection that was kept: {warm}");
        }
    }
    let upstream = Upstream::script(with_writes(busy)).await;
    let (gateway, _folder) = start(&upstream).await;
    assert_eq!(gateway.ask(&write("POST", FIELDS, "", BODY)).await.status, 503);
    assert_eq!(writes(&upstream), 1);
}

#[tokio::test]
async fn a_write_that_was_not_processed_is_sent_again() {
    let upstream = Upstream::script(|seen| match seen.number {
        1 => Plan::with(429, "Retry-After: 1\r\n", "{}"),
        _ => made(),
    })
    .await;
    let (gateway, _folder) = start(&upstream).await;
    assert_eq!(gateway.ask(&write("POST", FIELDS, "", BODY)).await.status, 201);
    assert_eq!(writes(&upstream), 2);

    let dead = DeadPort::new();
    let teams = [("all", "operations = ['fields-write']")];
    let nobody = Upstream::start().await;
    let keys = [("upstream.url", &*dead.url()), ("retry.base", "1ms"), ("retry.max", "5ms"), ("retry.attempts", "3")];
    let (gateway, _folder) = with_teams(&nobody, "rate = '0/s'", &teams, &keys).await;
    gateway.ask(&write("POST", FIELDS, "", BODY)).await.assert_refused(502, "upstream_unreachable");
    assert!(gateway.metric("retries_total", &[]).await >= 1.0);
}

#[tokio::test]
async fn a_write_removes_the_stored_responses_of_its_account() {
    let settled = r#"{"query":{"measures":["Conversation.Count"],"filters":[{"op":"AND","expressions":[{"op":"LT","field":"Conversation.CreatedDate","values":["2020-01-01"]}]}]}}"#;
    for (plan, status) in [
        (made(), 201),
        (Plan::json(200, MADE), 200),
        (Plan::json(500, "{}"), 500),
        (Plan::reset(), 502),
        (Plan::page("<html>"), 502),
        (Plan::silence(), 504),
    ] {
        let upstream = Upstream::script(with_writes(plan.clone())).await;
        let (gateway, _folder) = start_with(&upstream, &[("upstream.attempt_timeout", "300ms")]).await;
        for detail in ["miss", "hit"] {
            gateway.ask(&read(METADATA)).await.assert_page(MEMBERS, detail);
            gateway.ask(&post_to(QUERY, &of("all"), settled)).await.assert_page(PAGE, detail);
        }
        assert_eq!(gateway.metric("cache_settled_total", &["settled"]).await, 1.0);
        assert_eq!(gateway.ask(&write("POST", FIELDS, "", BODY)).await.status, status, "{plan:?}");
        upstream.set(|seen| Plan::page(if seen.target() == METADATA { OTHER } else { PAGE }));
        gateway.ask(&post_to(QUERY, &of("all"), settled)).await.assert_page(PAGE, "miss");
        gateway.ask(&read(METADATA)).await.assert_page(OTHER, "miss");
        gateway.ask(&read(METADATA)).await.assert_page(OTHER, "hit");
        assert_eq!(writes(&upstream), 1, "{plan:?}");
    }
}

#[tokio::test]
async fn metadata_that_was_being_fetched_during_a_write_is_not_stored() {
    let (before, written) = (Gate::default(), Gate::default());
    let (held, holding) = (before.clone(), written.clone());
    let upstream = Upstream::script(move |seen| match seen.target().starts_with(METADATA) {
        true => Plan::page(MEMBERS).after(&held),
        false => made().after(&holding),
    })
    .await;
    let (gateway, _folder) = start(&upstream).await;
    let (mut reader, mut writer, mut late) =
        (gateway.connect().await, gateway.connect().await, gateway.connect().await);
    reader.send(&read(METADATA)).await;
    upstream.arrived(1).await;
    writer.send(&write("PATCH", FIELD, "", BODY)).await;
    upstream.arrived(2).await;
    // The same, requested while the write is in progress.
    late.send(&get(&format!("{METADATA}?x=1"), &of("all"))).await;
    upstream.arrived(3).await;
    written.open();
    assert_eq!(writer.answer().await.status, 201);
    before.open();
    // A client that asked before the write may get the old response.
    assert_eq!((reader.answer().await.text(), late.answer().await.text()), (MEMBERS.to_owned(), MEMBERS.to_owned()));
    upstream.set(|_| Plan::page(OTHER));
    gateway.ask(&read(METADATA)).await.assert_page(OTHER, "miss");
    gateway.ask(&get(&format!("{METADATA}?x=1"), &of("all"))).await.assert_page(OTHER, "miss");
}

#[tokio::test]
async fn a_write_continues_without_its_client_and_removes_stored_responses() {
    let gate = Gate::default();
    let upstream = Upstream::script(with_writes(made().after(&gate))).await;
    let (gateway, _folder) = start(&upstream).await;
    gateway.ask(&read(METADATA)).await.assert_page(MEMBERS, "miss");
    let mut client = gateway.connect().await;
    client.send(&write("POST", FIELDS, "", BODY)).await;
    upstream.arrived(2).await;
    drop(client);
    gateway.ask(&read(METADATA)).await.assert_page(MEMBERS, "hit");
    gate.open();
    poll("metadata is fetched again", || async {
        (gateway.ask(&read(METADATA)).await.detail() == "miss").then_some(())
    })
    .await;
    assert_eq!(writes(&upstream), 1);
}

#[tokio::test]
async fn a_write_without_a_waiting_client_is_not_started() {
    let upstream = Upstream::script(with_writes(made())).await;
    let teams = [("all", "operations = ['metadata', 'query', 'fields-write']")];
    let (gateway, _folder) = with_teams(&upstream, "rate = '1/min'\nburst = 1", &teams, &[]).await;
    gateway.ask(&read(METADATA)).await.assert_page(MEMBERS, "miss");
    let mut client = gateway.connect().await;
    client.send(&write("POST", FIELDS, "", BODY)).await;
    gateway.metric_reaches("queue_length", &[], 1.0).await;
    drop(client);
    gateway.metric_reaches("queue_length", &[], 0.0).await;
    gateway.ask(&read(METADATA)).await.assert_page(MEMBERS, "hit");
    assert_eq!(writes(&upstream), 0);
}

#[tokio::test]
async fn a_policy_sees_what_a_write_has_changed() {
    let ask = r#"{"query":{"measures":["Conversation.HeatSum"]}}"#;
    for headers in ["", "Cache-Control: no-store\r\n"] {
        let metadata = |body: &'static str| {
            move |seen: &Seen| match (seen.target(), seen.target().starts_with(FIELDS)) {
                (METADATA, _) => Plan::with(200, headers, body),
                (_, true) => made(),
                _ => Plan::page(PAGE),
            }
        };
        let upstream = Upstream::script(metadata(MEMBERS)).await;
        let (gateway, _folder) = start(&upstream).await;
        let asked = async || gateway.ask(&post_to(QUERY, &of("narrow"), ask)).await;
        asked().await.assert_refused(403, "field_not_allowed");
        upstream.set(metadata(OTHER));
        asked().await.assert_refused(403, "field_not_allowed");
        assert_eq!(gateway.ask(&write("POST", FIELDS, "", BODY)).await.status, 201);
        assert_eq!(asked().await.status, 200, "{headers}");
    }
}

#[tokio::test]
async fn a_write_affects_all_names_of_its_account_and_no_other_account() {
    let upstream = Upstream::script(with_writes(made())).await;
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("gateway.toml");
    let account = |name, sid| {
        format!("[accounts.{name}]\naccount_sid = '{sid}'\napi_key = 'SK1'\napi_secret = 's'\nrate = '0/s'\n")
    };
    let team = |name: &str, account| {
        let hash = sha256_hex(&format!("token-of-{name}"));
        format!(
            "[teams.{name}]\naccount = '{account}'\ntoken_sha256 = ['{hash}']\noperations = ['metadata', 'fields-write']\n"
        )
    };
    let text = [account("one", "AC1"), account("same", "AC1"), account("other", "AC2")].concat()
        + &[team("one", "one"), team("all", "same"), team("other", "other")].concat();
    std::fs::write(&file, text).unwrap();
    let gateway = Gateway::start(TestConfig::new(upstream.url()).without_account().sources().with_file(&file)).await;
    for team in ["one", "other"] {
        gateway.ask(&get(METADATA, &of(team))).await.assert_page(MEMBERS, "miss");
    }
    gateway.ask(&get(METADATA, &of("all"))).await.assert_page(MEMBERS, "hit");
    assert_eq!(gateway.ask(&write("POST", FIELDS, "", BODY)).await.status, 201);
    gateway.ask(&get(METADATA, &of("other"))).await.assert_page(MEMBERS, "hit");
    gateway.ask(&get(METADATA, &of("one"))).await.assert_page(MEMBERS, "miss");
}

#[tokio::test]
async fn a_restart_does_not_restore_responses_that_a_write_removed() {
    let (upstream, disk) = (Upstream::script(with_writes(made())).await, TempDir::new().unwrap());
    let path = disk.path().to_str().unwrap();
    let keys = [("cache.disk.path", path)];
    let (gateway, _one) = start_with(&upstream, &keys).await;
    gateway.ask(&read(METADATA)).await.assert_page(MEMBERS, "miss");
    gateway.stop().await;
    let (gateway, _two) = start_with(&upstream, &keys).await;
    gateway.ask(&read(METADATA)).await.assert_page(MEMBERS, "hit");
    assert_eq!(gateway.ask(&write("POST", FIELDS, "", BODY)).await.status, 201);
    gateway.stop().await;
    upstream.set(|_| Plan::page(OTHER));
    let (gateway, _three) = start_with(&upstream, &keys).await;
    gateway.ask(&read(METADATA)).await.assert_page(OTHER, "miss");
}

#[tokio::test]
async fn a_restart_does_not_restore_what_a_write_without_an_answer_may_have_made_wrong() {
    // With its client, and without: either Twilio answers during the drain, or never.
    for (client_stays, answers) in [(true, false), (false, false), (false, true)] {
        let gate = Gate::default();
        let (upstream, disk) = (Upstream::script(with_writes(made().after(&gate))).await, TempDir::new().unwrap());
        let drain = if answers { "30s" } else { "300ms" };
        let keys = [("cache.disk.path", disk.path().to_str().unwrap()), ("server.drain", drain)];
        let (mut gateway, _one) = start_with(&upstream, &keys).await;
        gateway.ask(&read(METADATA)).await.assert_page(MEMBERS, "miss");
        let mut client = Some(gateway.connect().await);
        client.as_mut().unwrap().send(&write("PATCH", FIELD, "", BODY)).await;
        upstream.arrived(2).await;
        client = client.filter(|_| client_stays);
        gateway.tell_to_stop();
        if answers {
            gate.open();
        }
        if let Some(client) = &mut client {
            client.answer().await.assert_refused(503, "draining");
        }
        gateway.stop().await;
        upstream.set(|_| Plan::page(OTHER));
        let (gateway, _two) = start_with(&upstream, &keys).await;
        gateway.ask(&read(METADATA)).await.assert_page(OTHER, "miss");
    }
}

#[tokio::test]
async fn equal_writes_are_never_merged() {
    let gate = Gate::default();
    let upstream = Upstream::script(with_writes(made().after(&gate))).await;
    let (gateway, _folder) = start(&upstream).await;
    let mut clients = [gateway.connect().await, gateway.connect().await, gateway.connect().await];
    for client in &mut clients {
        client.send(&write("POST", FIELDS, "", BODY)).await;
    }
    upstream.arrived(3).await;
    gate.open();
    for client in &mut clients {
        assert_eq!((client.answer().await.status, writes(&upstream)), (201, 3));
    }
}

#[tokio::test]
async fn a_read_may_be_answered_with_304_and_a_write_may_not() {
    let upstream = Upstream::script(with_writes(Plan::with(200, "ETag: \"v1\"\r\n", MADE))).await;
    let (gateway, _folder) = start(&upstream).await;
    for known in ["\"v1\"", "*", "\"x\", W/\"v1\""] {
        let header = format!("If-None-Match: {known}\r\n");
        let unchanged = gateway.ask(&get(FIELD, &format!("{}{header}", of("all")))).await;
        assert_eq!((unchanged.status, unchanged.header("etag"), unchanged.body.len()), (304, "\"v1\"", 0));
        let patched = gateway.ask(&write("PATCH", FIELD, &header, BODY)).await;
        assert_eq!((patched.status, patched.text().as_str()), (200, MADE), "{known}");
    }
    let head = String::from_utf8(read(FIELD)).unwrap().replacen("GET", "HEAD", 1);
    let head = gateway.ask(head.as_bytes()).await;
    assert_eq!((head.status, head.header("etag"), head.body.len()), (200, "\"v1\"", 0));
    assert_eq!(head.header("content-length"), MADE.len().to_string());
    // A list is not one field: it has the gateway's own tag.
    assert_ne!(gateway.ask(&read(FIELDS)).await.header("etag"), "\"v1\"");
}

#[tokio::test]
async fn custom_fields_work_over_http_2() {
    let upstream = Upstream::script(with_writes(made())).await;
    let (gateway, _folder) = start(&upstream).await;
    let mut sender = http2::connect(&gateway).await;
    let mut ask = async |method: &str, target: &str, body: &str, team: &str| {
        let mut request = http2::request(method, &gateway, target, body);
        let bearer = format!("Bearer token-of-{team}").parse().unwrap();
        request.headers_mut().insert("authorization", bearer);
        request.headers_mut().insert("if-match", "\"v0\"".parse().unwrap());
        http2::ask(&mut sender, request).await
    };
    for (method, target, body) in
        [("POST", FIELDS, BODY), ("PATCH", FIELD, BODY), ("GET", FIELD, ""), ("HEAD", FIELD, "")]
    {
        let answer = ask(method, target, body, "all").await;
        let sent = if method == "HEAD" { "" } else { MADE };
        assert_eq!((answer.status, answer.text().as_str(), answer.detail()), (201, sent, "bypass"), "{method}");
        let seen = upstream.seen().pop().unwrap();
        assert_eq!((seen.text().as_str(), seen.header("if-match").is_some()), (body, method == "PATCH"), "{method}");
    }
    ask("POST", FIELDS, r#"{"a":1,"a":2}"#, "all").await.assert_refused(400, "invalid_json");
    ask("PATCH", FIELD, BODY, "reader").await.assert_refused(403, "operation_not_allowed");
    ask("PATCH", &format!("{FIELDS}/a.b"), BODY, "all").await.assert_refused(404, "not_found");
}

#[tokio::test]
async fn a_write_removes_stored_errors_and_further_pages_too() {
    let upstream = Upstream::script(|seen| match seen.target() {
        METADATA => Plan::json(404, "{}"),
        target if target.starts_with(FIELDS) => made(),
        _ => Plan::page(PAGE),
    })
    .await;
    let (gateway, _folder) = start(&upstream).await;
    // Twilio's stored errors about metadata are removed as well.
    for detail in ["miss", "hit"] {
        assert_eq!(gateway.ask(&read(METADATA)).await.detail(), detail);
    }
    let further = format!("{QUERY}?pageToken=a");
    assert_eq!(gateway.ask(&read(&further)).await.detail(), "miss");
    assert_eq!(gateway.ask(&write("PATCH", FIELD, "", BODY)).await.status, 201);
    assert_eq!(gateway.ask(&read(METADATA)).await.detail(), "miss");
    assert_eq!(gateway.ask(&read(&further)).await.detail(), "miss");
}
