//! Teams with a policy: what they may ask, which pages they may read, what metadata shows them, and how many calls that
//! takes.

use insights_gateway::config::Sources;
use serde_json::json;
use tempfile::TempDir;

use crate::support::*;

/// The teams `free`, `narrow` and `closed` of one account. Each has its name as its token.
fn config(upstream: &Upstream) -> TestConfig {
    let config = ["free", "narrow", "closed"].iter().fold(TestConfig::new(upstream.url()), |config, team| {
        config.set(&format!("teams.{team}.token_sha256"), sha256_hex(team))
    });
    config.set("teams.narrow.policy.deny", "Conversation.ParticipantId,Secret.*").set(
        "teams.closed.policy.require",
        "[{ op = 'EQ', field = 'Conversation.ConversationStatus', values = ['CLOSED'] }]",
    )
}

fn of(team: &str) -> String {
    format!("Authorization: Bearer {team}\r\n")
}

fn head(target: &str, headers: &str) -> Vec<u8> {
    format!("HEAD {target} HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n").into_bytes()
}

/// A query, and the pages after it, each with the token that the previous one names.
fn walked(seen: &Seen) -> Plan {
    let page = |next: &str| Plan::page(&format!(r#"{{"target":{:?},"meta":{{"nextToken":{next}}}}}"#, seen.target()));
    match (seen.target(), seen.text().contains("ConversationStatus")) {
        (METADATA, _) => Plan::page(MEMBERS),
        (target, _) if target.contains("pageToken") => page("null"),
        (_, true) => page(r#""closed/1==""#),
        (_, false) => page(r#""all+1==""#),
    }
}

fn queries(upstream: &Upstream) -> usize {
    upstream.seen().iter().filter(|seen| seen.target() != METADATA).count()
}

#[tokio::test]
async fn a_team_with_a_policy_sends_no_page_token_with_a_query() {
    let upstream = Upstream::script(walked).await;
    let gateway = config(&upstream).start().await;
    assert_eq!(gateway.ask(&post_to(QUERY, &of("free"), ASK)).await.status, 200);
    let before = upstream.count();
    let targets = [
        "pageToken=all%2B1%3D%3D",
        "PageToken=all+1==",
        "page%54oken=all+1==",
        "pagetoken=all+1==",
        "PAGETOKEN=all+1==",
        "pageToken=",
        "pageToken",
        "pageSize=3&pageToken=all+1==",
        "pageToken=a&PageToken=b",
        "pageSize=3&pageSize=4",
        "pageSize=3&PageSize=4",
        "pageSize=0",
        "pageSize=many",
        "pageSize=3.0",
        "pageSize",
        "page=2",
        "next=all+1==",
        "x",
    ];
    let bodies = [
        r#"{"query":{"measures":["Conversation.Count"]},"pageToken":"all+1=="}"#,
        r#"{"query":{"measures":["Conversation.Count"]},"PageToken":"all+1=="}"#,
        r#"{"query":{"measures":["Conversation.Count"]},"page\u0054oken":"all+1=="}"#,
        r#"{"query":{"measures":["Conversation.Count"]},"pageToken":null}"#,
        r#"{"query":{"measures":["Conversation.Count"]},"properties":{"pageToken":"all+1=="}}"#,
        r#"{"query":{"measures":["Conversation.Count"],"pageToken":"all+1=="}}"#,
        r#"{"query":{"measures":["Conversation.Count"],"orderBy":[{"field":"Conversation.Count","pageToken":"all+1=="}]}}"#,
        r#"{"query":{"measures":["Conversation.Count"]},"meta":{"nextToken":"all+1=="}}"#,
    ];
    for team in ["narrow", "closed"] {
        for target in targets {
            let answer = gateway.ask(&post_to(&format!("{QUERY}?{target}"), &of(team), ASK)).await;
            refusal(&answer, 403, "field_not_allowed").unwrap_or_else(|fault| panic!("{target}: {fault}"));
        }
        for body in bodies {
            let answer = gateway.ask(&post_to(QUERY, &of(team), body)).await;
            refusal(&answer, 403, "field_not_allowed").unwrap_or_else(|fault| panic!("{body}: {fault}"));
        }
        // Whatever it tried, the other team's token has not become its own.
        gateway
            .ask(&get(&format!("{QUERY}?pageToken=all%2B1%3D%3D"), &of(team)))
            .await
            .assert_refused(403, "field_not_allowed");
    }
    assert_eq!(upstream.count(), before, "none of these went upstream");
    for (target, body) in [("?pageSize=3", ASK), ("?PageSize=3&pageSize=3", ASK)] {
        assert_eq!(gateway.ask(&post_to(&format!("{QUERY}{target}"), &of("narrow"), body)).await.status, 200);
    }
    assert_eq!(upstream.seen().last().unwrap().target(), format!("{QUERY}?pageSize=3"));
    let node = r#"{"query":{"measures":["Conversation.Count"]},"pageSize":3}"#;
    assert_eq!(gateway.ask(&post_to(QUERY, &of("narrow"), node)).await.status, 200);
}

#[tokio::test]
async fn a_team_reads_its_own_pages_in_every_spelling_of_their_tokens() {
    let upstream = Upstream::script(walked).await;
    let gateway = config(&upstream).start().await;
    let page = async |team: &str, query: &str| gateway.ask(&get(&format!("{QUERY}?{query}"), &of(team))).await;
    page("closed", "pageToken=closed/1==").await.assert_refused(403, "field_not_allowed");
    assert_eq!(gateway.ask(&post_to(QUERY, &of("closed"), ASK)).await.status, 200);
    let first = page("closed", "pageToken=closed/1==").await;
    assert_eq!((first.status, first.detail()), (200, "miss"));
    for query in [
        "PageToken=closed/1==",
        "pageToken=closed%2F1%3D%3D",
        "%70ageToken=closed%2f1%3d=",
        "pageToken=closed/1==&PageToken=closed%2F1%3D%3D",
    ] {
        page("closed", query).await.assert_page(&first.text(), "hit");
        let answer = gateway.ask(&head(&format!("{QUERY}?{query}"), &of("closed"))).await;
        assert_eq!((answer.status, answer.detail()), (200, "hit"), "{query}");
    }
    let sized = page("closed", "pageToken=closed/1==&pageSize=3").await;
    assert_eq!((sized.status, sized.detail()), (200, "miss"));
    page("closed", "PageSize=3&PageToken=closed%2F1%3D%3D").await.assert_page(&sized.text(), "hit");
    let targets: Vec<_> = upstream.seen().iter().map(|seen| seen.target().to_owned()).collect();
    let expected = [
        METADATA.to_owned(),
        QUERY.to_owned(),
        format!("{QUERY}?pageToken=closed%2F1%3D%3D"),
        format!("{QUERY}?pageSize=3&pageToken=closed%2F1%3D%3D"),
    ];
    assert_eq!(targets, expected);
    for query in [
        "pageToken=closed/1==&pageSize=0",
        "pageToken=closed/1==&pageSize=3&PageSize=4",
        "pageToken=closed/1==&x=1",
        "pageToken=closed/1==&pagetoken=other",
        "pageToken=closed/1==&PageToken=other",
        "pageToken=CLOSED/1==",
        "pageToken=closed/1=",
        "pageToken=closed/1==%00",
    ] {
        page("closed", query).await.assert_refused(403, "field_not_allowed");
        let answer = gateway.ask(&head(&format!("{QUERY}?{query}"), &of("closed"))).await;
        assert_eq!(answer.status, 403, "{query}");
    }
    page("narrow", "pageToken=closed/1==").await.assert_refused(403, "field_not_allowed");
    assert_eq!(page("free", "pageToken=closed/1==").await.status, 200);
    assert_eq!(upstream.count(), 4);
}

#[tokio::test]
async fn queries_that_cannot_be_proven_safe_are_not_forwarded() {
    let upstream = Upstream::with_metadata().await;
    let gateway = config(&upstream).start().await;
    // Before metadata is known, a query that is refused in any case costs no call.
    let shapes = [
        json!({"query": {"measures": ["Conversation.Count"]}, "domain": "Other"}),
        json!({"query": {"measures": ["Conversation.Count"]}, "domain": {"sql": 1}}),
        json!({"query": {"measures": ["Conversation.Count"]}, "pageSize": "20"}),
        json!({"query": {"measures": ["Conversation.Count"]}, "pageSize": 1.5}),
        json!({"query": {"measures": ["Conversation.Count"]}, "properties": 7}),
        json!({"query": {"measures": ["Conversation.Count"]}, "properties": {"timezone": "Mars/Olympus"}}),
        json!({"query": {"measures": ["Conversation.Count"]}, "properties": {"timezone": ["UTC"]}}),
        json!({"query": {"orderBy": [{"field": "Conversation.Count", "direction": "asc"}]}}),
        json!({"query": {"orderBy": [{"field": "Conversation.Count", "direction": 1}]}}),
        json!({"query": {"filters": [{"op": "AND", "expressions": [
            {"op": "EQ", "field": "Conversation.Queue", "values": [1]}]}]}}),
        json!({"query": {"measures": [{"name": "Conversation.Count"}]}}),
    ];
    let names = [
        "Conversation.Count AS x",
        "Conversation.Count\u{0}",
        "Conversation.\u{a0}Count",
        "Conversation.Count\"",
        "Conversation.CreatedDate:x",
        "Conversation.\u{ff23}ount",
        "Conversation..Count",
        "Conversation.Count.",
        "",
    ];
    let dimension =
        |name: &str| json!({"query": {"measures": ["Conversation.Count"], "dimensions": [name]}}).to_string();
    let bodies: Vec<_> =
        shapes.iter().map(ToString::to_string).chain(names.iter().map(|name| dimension(name))).collect();
    let refuse_all = async || {
        for team in ["narrow", "closed"] {
            for body in &bodies {
                let answer = gateway.ask(&post_to(QUERY, &of(team), body)).await;
                refusal(&answer, 403, "field_not_allowed").unwrap_or_else(|fault| panic!("{team} {body}: {fault}"));
            }
        }
    };
    refuse_all().await;
    assert_eq!(upstream.count(), 0);
    assert_eq!(gateway.ask(&post_to(QUERY, &of("narrow"), ASK)).await.status, 200);
    assert_eq!(upstream.count(), 2);
    refuse_all().await;
    for _ in 0..3 {
        let answers = [dimension("Conversation.ParticipantId"), dimension("Conversation.Nothing")];
        let mut said = Vec::new();
        for body in answers {
            let answer = gateway.ask(&post_to(QUERY, &of("narrow"), &body)).await;
            answer.assert_refused(403, "field_not_allowed");
            said.push(answer.text().replace("ParticipantId", "X").replace("Nothing", "X"));
        }
        assert_eq!(said[0], said[1], "the error does not say which of them exists");
    }
    for (name, place) in [
        ("Conversation.Count", "dimensions"),
        ("Conversation.Queue", "measures"),
        ("conversation.Count", "measures"),
        ("Count", "measures"),
        ("Conversation.Queue.day", "dimensions"),
        ("Conversation.CreatedDate.day.hour", "dimensions"),
        ("Conversation.ParticipantId.day", "dimensions"),
        ("Secret.Count", "measures"),
    ] {
        let body = json!({"query": {place: [name]}}).to_string();
        gateway.ask(&post_to(QUERY, &of("narrow"), &body)).await.assert_refused(403, "field_not_allowed");
    }
    assert_eq!(upstream.count(), 2, "none of these went upstream");
    for body in [
        dimension("Conversation.CreatedDate.hour"),
        dimension("Conversation.Queue"),
        json!({"domain": "Conversations", "pageSize": 9, "properties": {"timezone": "Europe/Berlin"}, "query": {
            "measures": ["Conversation.Count"], "orderBy": [{"field": "Conversation.Count", "direction": "DESC"}]}})
        .to_string(),
    ] {
        assert_eq!(gateway.ask(&post_to(QUERY, &of("narrow"), &body)).await.status, 200, "{body}");
    }
}

#[tokio::test]
async fn metadata_is_fetched_once_for_all_who_need_it() {
    let gate = Gate::default();
    let held = Plan::page(MEMBERS).after(&gate);
    let upstream =
        Upstream::script(move |seen| if seen.target() == METADATA { held.clone() } else { Plan::page(PAGE) }).await;
    let gateway = config(&upstream).start().await;
    let mut clients = Vec::new();
    for n in 0..20 {
        let mut client = gateway.connect().await;
        client.send(&post_to(QUERY, &of(if n % 2 == 0 { "narrow" } else { "closed" }), ASK)).await;
        clients.push(client);
    }
    upstream.arrived(1).await;
    gateway.settle().await;
    assert_eq!(upstream.count(), 1);
    gate.open();
    for client in &mut clients {
        assert_eq!(client.answer().await.status, 200);
    }
    // Metadata, the query without the required filter, and the query with it.
    assert_eq!(upstream.count(), 3);
    gateway.ask(&get(METADATA, &of("free"))).await.assert_page(MEMBERS, "hit");
    assert_eq!(gateway.ask(&post_to(QUERY, &of("free"), ASK)).await.detail(), "hit", "equal queries share pages");
    let closed = r#"{"query":{"filters":[{"op":"AND","expressions":[{"op":"EQ","field":"Conversation.ConversationStatus","values":["CLOSED"]}]}],"measures":["Conversation.Count"]}}"#;
    assert_eq!(gateway.ask(&post_to(QUERY, &of("free"), closed)).await.detail(), "hit");
    assert_eq!(upstream.count(), 3);
}

#[tokio::test]
async fn if_metadata_cannot_be_fetched_the_client_gets_that_failure() {
    let upstream = Upstream::script(|_| Plan::with(503, "Content-Type: application/json\r\n", "{\"code\":1}")).await;
    let gateway = config(&upstream).set("retry.attempts", "1").start().await;
    let ask = async |headers: &str| gateway.ask(&post_to(QUERY, &format!("{}{headers}", of("narrow")), ASK)).await;
    let failed = ask("").await;
    assert_eq!((failed.status, failed.text().as_str()), (503, "{\"code\":1}"));
    assert!(failed.header("retry-after").parse::<u32>().is_ok());
    ask("Cache-Control: only-if-cached\r\n").await.assert_refused(504, "only_if_cached");
    upstream.set(|_| Plan::json(404, "{\"code\":4}"));
    for _ in 0..2 {
        let failed = ask("").await;
        assert_eq!((failed.status, failed.text().as_str()), (404, "{\"code\":4}"), "also while it is stored");
    }
    let kept = upstream.count();
    upstream.set(|_| Plan::close());
    let forget = "POST /cache/purge HTTP/1.1\r\nHost: localhost\r\nContent-Length: 12\r\n\r\n{\"all\":true}";
    assert_eq!(Client::connect(gateway.admin).await.ask(forget.as_bytes()).await.status, 200);
    assert_eq!(kept, 2);
    ask("").await.assert_refused(502, "upstream_unreachable");
    upstream.set(|_| Plan::page("<html>"));
    ask("").await.assert_refused(502, "upstream_invalid");
    for other in ["{}", "[]", r#"{"cubes":7}"#, r#"{"cubes":[{"measures":[{"type":"number"}]}]}"#] {
        upstream.set(move |_| Plan::page(other));
        let before = upstream.count();
        gateway.ask(&get(METADATA, &of("free"))).await.assert_refused(502, "upstream_invalid");
        ask("").await.assert_refused(502, "upstream_invalid");
        gateway.ask(&get(METADATA, &of("narrow"))).await.assert_refused(502, "upstream_invalid");
        assert_eq!(upstream.count(), before + 3, "{other}");
    }
    assert_eq!(queries(&upstream), 0);
}

#[tokio::test]
async fn metadata_leaves_out_what_a_team_may_not_name() {
    // Long enough that compression is useful.
    let members: &'static str = MEMBERS.replace("how it stands", &"how it stands, ".repeat(100)).leak();
    let upstream = Upstream::script(move |_| Plan::page(members)).await;
    let gateway = config(&upstream).start().await;
    let ask = async |team: &str, headers: &str| gateway.ask(&get(METADATA, &format!("{}{headers}", of(team)))).await;
    let seen = ask("narrow", "").await;
    assert_eq!((seen.status, seen.detail()), (200, "miss"));
    let expected = members
        .replace(r#""description":"conversations, see Conversation.ParticipantId","#, "")
        .replace(r#"{"name":"Conversation.ParticipantId","type":"string"},"#, "")
        .replace(r#",{"name":"Secret","measures":[{"name":"Secret.Count","type":"number"}],"dimensions":[]}"#, "");
    assert_eq!(seen.text(), expected);
    for team in ["free", "closed"] {
        ask(team, "").await.assert_page(members, "hit");
    }
    let (tag, whole) = (seen.header("etag").to_owned(), ask("free", "").await.header("etag").to_owned());
    assert_ne!(tag, whole);
    let again = ask("narrow", "").await;
    again.assert_page(&expected, "hit");
    assert_eq!(again.header("etag"), tag);
    assert!(again.find("age").is_some() && again.has_note("hit"));
    let unchanged = ask("narrow", &format!("If-None-Match: {tag}\r\n")).await;
    assert_eq!((unchanged.status, unchanged.detail(), unchanged.header("etag")), (304, "revalidated", tag.as_str()));
    assert_eq!(unchanged.find("content-type"), None);
    assert_eq!(ask("narrow", &format!("If-None-Match: {whole}\r\n")).await.status, 200, "another's tag");
    let head = gateway.ask(&head(METADATA, &of("narrow"))).await;
    assert_eq!((head.status, head.header("etag"), head.header("vary")), (200, tag.as_str(), "Accept-Encoding"));
    let gzip = poll("it is compressed", || async {
        let answer = ask("narrow", "Accept-Encoding: gzip\r\n").await;
        (answer.find("content-encoding") == Some("gzip")).then_some(answer)
    })
    .await;
    let mut text = String::new();
    std::io::Read::read_to_string(&mut flate2::read::GzDecoder::new(&gzip.body[..]), &mut text).unwrap();
    assert_eq!(text, expected);
    let coded_tag = gzip.header("etag").to_owned();
    assert_ne!(coded_tag, tag);
    let headers = format!("Accept-Encoding: gzip\r\nIf-None-Match: {coded_tag}\r\n");
    assert_eq!(ask("narrow", &headers).await.status, 304);
    assert_eq!(upstream.count(), 1, "one call serves all");
    gateway
        .ask(&get(&format!("{METADATA}?x=Conversation.ParticipantId"), &of("narrow")))
        .await
        .assert_refused(403, "field_not_allowed");
    assert_eq!(upstream.count(), 1);
}

#[tokio::test]
async fn a_member_that_metadata_no_longer_has_is_refused() {
    let upstream = Upstream::with_metadata().await;
    let gateway = config(&upstream).start().await;
    let body = json!({"query": {"dimensions": ["Conversation.Queue"]}}).to_string();
    let ask = async || gateway.ask(&post_to(QUERY, &of("narrow"), &body)).await;
    for _ in 0..4 {
        assert_eq!(ask().await.status, 200);
    }
    let without: &'static str = MEMBERS.replace(r#"{"name":"Conversation.Queue","type":"string"},"#, "").leak();
    upstream.set(move |seen| Plan::page(if seen.target() == METADATA { without } else { PAGE }));
    assert_eq!(gateway.ask(&get(METADATA, &format!("{}Cache-Control: no-cache\r\n", of("free")))).await.status, 200);
    ask().await.assert_refused(403, "field_not_allowed");
    // It is accepted again when it is back in metadata.
    upstream.set(|seen| Plan::page(if seen.target() == METADATA { MEMBERS } else { PAGE }));
    assert_eq!(gateway.ask(&get(METADATA, &format!("{}Cache-Control: no-cache\r\n", of("free")))).await.status, 200);
    assert_eq!(ask().await.detail(), "hit");
    // A purge of metadata costs one call, and changes nothing else.
    let purge =
        "POST /cache/purge HTTP/1.1\r\nHost: localhost\r\nContent-Length: 24\r\n\r\n{\"operation\":\"metadata\"}";
    assert_eq!(Client::connect(gateway.admin).await.ask(purge.as_bytes()).await.json(), json!({"purged": 1}));
    let before = upstream.count();
    assert_eq!((ask().await.detail().to_owned(), ask().await.detail().to_owned()), ("hit".into(), "hit".into()));
    assert_eq!(upstream.count(), before + 1);
}

#[tokio::test]
async fn a_changed_policy_makes_older_page_tokens_worthless() {
    let (upstream, folder) = (Upstream::script(walked).await, TempDir::new().unwrap());
    let path = folder.path().join("gateway.toml");
    let write = |deny: &str| {
        let text =
            format!("[teams.narrow]\ntoken_sha256 = '{}'\npolicy = {{ deny = [{deny}] }}\n", sha256_hex("narrow"));
        // In one step, because the gateway watches the file.
        let new = path.with_extension("new");
        std::fs::write(&new, text).unwrap();
        std::fs::rename(new, &path).unwrap();
    };
    write("'Secret.*'");
    let sources: Sources = TestConfig::new(upstream.url()).sources().with_file(&path);
    let gateway = Gateway::start(sources).await;
    let page = async || gateway.ask(&get(&format!("{QUERY}?pageToken=all%2B1%3D%3D"), &of("narrow"))).await;
    let ask = async |body: &str| gateway.ask(&post_to(QUERY, &of("narrow"), body)).await;
    let queue = json!({"query": {"dimensions": ["Conversation.Queue"]}}).to_string();
    for _ in 0..3 {
        assert_eq!(ask(&queue).await.status, 200);
    }
    assert_eq!(page().await.status, 200);
    write("'Conversation.Queue'");
    gateway.reload.notify_one();
    poll("the newer policy", || async { (ask(&queue).await.status == 403).then_some(()) }).await;
    page().await.assert_refused(403, "field_not_allowed");
    ask(&queue).await.assert_refused(403, "field_not_allowed");
    // Tokens that it gets under its newer policy are its own.
    let measure = r#"{"query":{"measures":["Conversation.Count"]}}"#;
    assert_eq!(ask(measure).await.status, 200);
    assert_eq!(page().await.status, 200);
    write("'Secret.*'");
    gateway.reload.notify_one();
    poll("the older policy", || async { (ask(&queue).await.status == 200).then_some(()) }).await;
    assert_eq!(page().await.status, 200, "it was given out under this policy");
}

#[tokio::test]
async fn teams_of_two_accounts_share_neither_metadata_nor_tokens() {
    let (upstream, folder) = (Upstream::script(walked).await, TempDir::new().unwrap());
    let path = folder.path().join("gateway.toml");
    let account = |name: &str| {
        format!("[accounts.{name}]\naccount_sid = 'AC{name}'\napi_key = 'SK{name}'\napi_secret = 's'\nrate = '0/s'\n")
    };
    let team = |name: &str, account: &str| {
        let hash = sha256_hex(name);
        format!("[teams.{name}]\naccount = '{account}'\ntoken_sha256 = '{hash}'\npolicy = {{ deny = ['Secret.*'] }}\n")
    };
    let text = [account("one"), account("two"), team("red", "one"), team("blue", "two")].concat();
    std::fs::write(&path, text).unwrap();
    let gateway = Gateway::start(TestConfig::new(upstream.url()).without_account().sources().with_file(&path)).await;
    let page = async |team: &str| gateway.ask(&get(&format!("{QUERY}?pageToken=all%2B1%3D%3D"), &of(team))).await;
    assert_eq!(gateway.ask(&post_to(QUERY, &of("red"), ASK)).await.detail(), "miss");
    assert_eq!(page("red").await.status, 200);
    page("blue").await.assert_refused(403, "field_not_allowed");
    assert_eq!(gateway.ask(&post_to(QUERY, &of("blue"), ASK)).await.detail(), "miss");
    assert_eq!(page("blue").await.detail(), "miss", "the same page, and the same policy, of another account");
    let metadata = upstream.seen().iter().filter(|seen| seen.target() == METADATA).count();
    assert_eq!((metadata, queries(&upstream)), (2, 4));
}
