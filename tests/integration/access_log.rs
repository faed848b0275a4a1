//! The access log: which requests get a line, and what it contains.

use std::fmt::Debug;
use std::sync::{Mutex, OnceLock};

use crate::support::*;
use serde_json::{Map, Value as Json, json};
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::layer::Context;
use tracing_subscriber::prelude::*;
use tracing_subscriber::{Layer, filter};

/// A level and the fields.
type Line = (tracing::Level, Map<String, Json>);

/// The lines of all gateways in this process. The request id says which request a line belongs to.
static LINES: OnceLock<Mutex<Vec<Line>>> = OnceLock::new();

struct Reader;

impl<S: Subscriber> Layer<S> for Reader {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut fields = Fields(Map::new());
        event.record(&mut fields);
        LINES.get().unwrap().lock().unwrap().push((*event.metadata().level(), fields.0));
    }
}

struct Fields(Map<String, Json>);

impl Fields {
    fn add(&mut self, field: &Field, value: impl Into<Json>) {
        self.0.insert(field.name().to_owned(), value.into());
    }
}

impl Visit for Fields {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.add(field, value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.add(field, value);
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.add(field, value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.add(field, format!("{value:?}"));
    }
}

fn listen() {
    LINES.get_or_init(|| {
        let access = filter::filter_fn(|metadata| metadata.target() == "insights_gateway::access");
        tracing::subscriber::set_global_default(tracing_subscriber::registry().with(Reader.with_filter(access)))
            .unwrap();
        Mutex::default()
    });
}

fn lines(id: &str) -> Vec<Line> {
    let lines = LINES.get().unwrap().lock().unwrap();
    lines.iter().filter(|(_, line)| line["request_id"] == id).cloned().collect()
}

fn with_id(id: &str) -> String {
    format!("X-Request-Id: {id}\r\n")
}

/// The fields in the table of docs/logs.md, in its order.
fn documented() -> Vec<String> {
    let page = include_str!("../../docs/logs.md");
    let table = page.split("## The access line").nth(1).unwrap().split("\n## ").next().unwrap();
    table.lines().filter_map(|line| Some(line.strip_prefix("| `")?.split('`').next()?.to_owned())).collect()
}

#[tokio::test]
async fn every_request_has_a_line_with_the_documented_fields() {
    listen();
    let upstream = Upstream::script(|seen| match seen.number {
        1 => Plan::json(503, "{}"),
        2 => Plan::page(PAGE),
        _ => Plan::silence(),
    })
    .await;
    let gateway = TestConfig::new(upstream.url()).start().await;
    gateway.ask(&post_to(QUERY, &with_id("miss"), ASK)).await.assert_page(PAGE, "miss");
    let parent = "Traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00\r\n";
    gateway.ask(&post_to(&format!("{QUERY}?"), &(with_id("hit") + parent), ASK)).await.assert_page(PAGE, "hit");
    let slow = with_id("slow") + "Prefer: wait=1\r\n";
    gateway.ask(&get(METADATA, &slow)).await.assert_refused(504, "upstream_timeout");
    gateway.ask(&get("/nowhere?token=secret", &with_id("lost"))).await.assert_refused(404, "not_found");

    let [(level, miss)] = &lines("miss")[..] else { panic!("one line") };
    assert_eq!(*level, tracing::Level::INFO);
    let expected = json!({
        "request_id": "miss", "team": "local", "account": "default", "operation": "query", "method": "POST",
        "path": QUERY, "status": 200, "outcome": "miss", "reason": "", "bytes": PAGE.len(), "attempts": 2,
    });
    for (field, value) in expected.as_object().unwrap() {
        assert_eq!(&miss[field], value, "{field}");
    }
    let millis = |field: &str| miss[field].as_f64().unwrap();
    assert!(millis("upstream_ms") > 0.0 && millis("duration_ms") >= millis("upstream_ms") + millis("wait_ms"));

    let [(_, hit)] = &lines("hit")[..] else { panic!("one line") };
    assert_eq!((&hit["outcome"], &hit["attempts"], &hit["upstream_ms"]), (&"hit".into(), &0.into(), &0.0.into()));
    assert_eq!(hit["trace_id"], "0af7651916cd43dd8448eb211c80319c");
    let [(_, slow)] = &lines("slow")[..] else { panic!("one line") };
    assert_eq!(
        (&slow["status"], &slow["attempts"]),
        (&504.into(), &1.into()),
        "sent, and not answered in time: {slow:?}"
    );
    assert!(slow["upstream_ms"].as_f64().unwrap() > 0.0, "{slow:?}");
    let [(_, lost)] = &lines("lost")[..] else { panic!("one line") };
    let said = ["status", "outcome", "reason", "operation", "path"].map(|field| lost[field].to_string());
    assert_eq!(said, ["404", "\"refused\"", "\"not_found\"", "\"none\"", "\"/nowhere\""]);

    let documented = documented();
    let names = |line: &Map<String, Json>| line.keys().cloned().collect::<std::collections::BTreeSet<_>>();
    assert_eq!(names(hit), documented.iter().cloned().collect());
    assert_eq!(names(miss), documented.into_iter().filter(|field| field != "trace_id").collect());
}

#[tokio::test]
async fn only_hits_are_sampled() {
    listen();
    let upstream = Upstream::start().await;
    let gateway = TestConfig::new(upstream.url()).set("log.hits", "0").start().await;
    for id in ["first", "second", "third"] {
        gateway.ask(&post_to(QUERY, &with_id(&format!("sampled-{id}")), ASK)).await;
    }
    gateway.ask(&get("/nowhere", &with_id("sampled-fourth"))).await;
    let seen = ["first", "second", "third", "fourth"].map(|id| lines(&format!("sampled-{id}")).len());
    assert_eq!(seen, [1, 0, 0, 1]);
}

#[tokio::test]
async fn a_slow_request_has_its_line_as_a_warning_even_if_it_is_a_hit() {
    listen();
    let upstream = Upstream::start().await;
    let gateway = TestConfig::new(upstream.url()).set("log.hits", "0").set("log.slow", "0s").start().await;
    for id in ["slow-miss", "slow-hit"] {
        gateway.ask(&post_to(QUERY, &with_id(id), ASK)).await;
        let [(level, _)] = &lines(id)[..] else { panic!("one line") };
        assert_eq!(*level, tracing::Level::WARN);
    }
}

#[tokio::test]
async fn a_client_that_leaves_has_a_line_too() {
    listen();
    let upstream = Upstream::script(|_| Plan::silence()).await;
    let gateway = TestConfig::new(upstream.url()).start().await;
    let mut client = gateway.connect().await;
    client.send(&post_to(QUERY, &with_id("left"), ASK)).await;
    upstream.arrived(1).await;
    drop(client);
    let line = poll("a line", || async { lines("left").pop() }).await.1;
    assert_eq!(
        (&line["status"], &line["outcome"], &line["reason"]),
        (&499.into(), &"failed".into(), &"client_left".into())
    );
}

#[tokio::test]
async fn without_the_access_log_there_are_no_lines() {
    listen();
    let upstream = Upstream::start().await;
    let gateway = TestConfig::new(upstream.url()).set("log.access", "false").set("log.slow", "0s").start().await;
    gateway.ask(&post_to(QUERY, &with_id("silent"), ASK)).await.assert_page(PAGE, "miss");
    assert!(lines("silent").is_empty());
}
