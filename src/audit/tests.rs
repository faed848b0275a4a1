use std::io::{self, Write};
use std::sync::Mutex;

use bytes::Bytes;
use http::{HeaderValue, Method};
use serde_json::{Value as Json, json};

use super::fair_shares::CAPACITY;
use super::record::Fields;
use super::*;
use crate::accounts::Team;
use crate::core::outcome::Outcome;
use crate::metrics::{ResultLabels, StaticLabel};
use crate::twilio::endpoint::Operation;

fn record(query: &str) -> Record {
    Record {
        received: std::time::UNIX_EPOCH,
        request_id: HeaderValue::from_static("r-1"),
        peer: Arc::default(),
        team: Some(Arc::new(Team::example("dashboards"))),
        operation: Some(Operation::Query),
        method: Method::POST,
        query: Some(Bytes::copy_from_slice(query.as_bytes())),
        outcome: Outcome::Hit,
        status: 200,
        reason: "",
        bytes: 17,
        took: Duration::from_micros(1500),
    }
}

/// Accepts a number of bytes, then none until it has more space.
#[derive(Clone, Default)]
struct Disk(Arc<Mutex<(Vec<u8>, usize)>>);

impl Disk {
    fn new(room: usize) -> Self {
        let disk = Self::default();
        disk.0.lock().unwrap().1 = room;
        disk
    }

    fn make_room(&self, bytes: usize) {
        self.0.lock().unwrap().1 += bytes;
    }

    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().0.clone()).unwrap()
    }

    fn file(&self) -> AuditFile {
        AuditFile(Box::new(self.clone()))
    }
}

impl Write for Disk {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let (written, room) = &mut *self.0.lock().unwrap();
        let fits = bytes.len().min(*room);
        if fits == 0 {
            return Err(io::ErrorKind::StorageFull.into());
        }
        written.extend_from_slice(&bytes[..fits]);
        *room -= fits;
        Ok(fits)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn counted(metrics: &Metrics, result: &'static str) -> u64 {
    metrics.audit_records.get_or_create(&ResultLabels { result: StaticLabel(result) }).get()
}

#[test]
fn a_line_names_members_and_holds_no_values() {
    let query = r#"{"query":{"measures":["C.Count","C.Count"],"dimensions":["C.Day"],"orderBy":[{"field":"C.Day","direction":"ASC"}],"filters":[{"op":"AND","expressions":[{"field":"C.Agent","op":"EQ","values":["a-value"]},{"op":"OR","expressions":[{"field":"C.Queue","op":"IN","values":["another"]}]}]}]},"properties":{"timezone":"a-zone"}}"#;
    let mut lines = Vec::new();
    record(query).write(&mut lines, false);
    assert_eq!(lines.last(), Some(&b'\n'));
    let line: Json = serde_json::from_slice(&lines).unwrap();
    assert_eq!(
        line,
        json!({
            "timestamp": "1970-01-01T00:00:00.000000Z",
            "request_id": "r-1",
            "peer": "",
            "team": "dashboards",
            "account": "main",
            "operation": "query",
            "method": "POST",
            "fields": {
                "measures": ["C.Count"],
                "dimensions": ["C.Day"],
                "filters": ["C.Agent", "C.Queue"],
                "orderBy": ["C.Day"],
            },
            "outcome": "hit",
            "status": 200,
            "reason": "",
            "bytes": 17,
            "duration_ms": 1.5,
        })
    );
    let text = String::from_utf8(lines).unwrap();
    assert!(!["a-value", "another", "a-zone"].iter().any(|value| text.contains(value)), "{text}");
}

#[test]
fn names_are_bounded_and_strange_queries_have_none() {
    let many: Vec<String> = (0..1000).map(|n| format!("C.M{n}")).collect();
    let fields = Fields::of(json!({"query": {"measures": many}}).to_string().as_bytes());
    assert_eq!((fields.measures.len(), fields.cut), (100, true));
    let long = "\u{e4}".repeat(1000);
    let fields = Fields::of(json!({"query": {"orderBy": [{"field": long}]}}).to_string().as_bytes());
    assert_eq!((fields.order_by[0].chars().count(), fields.cut), (128, true));
    for strange in
        ["", "[]", r#"{"query":1}"#, r#"{"query":{"measures":{"field":1},"filters":"field","orderBy":[[1]]}}"#]
    {
        assert_eq!(Fields::of(strange.as_bytes()), Fields::default(), "{strange}");
    }
}

#[test]
fn a_full_disk_loses_records_and_never_joins_two_lines() {
    let metrics = Metrics::new();
    let mut writer = Writer::new(Arc::default(), Arc::clone(&metrics));
    let mut one = Vec::new();
    record("{}").write(&mut one, false);
    let disk = Disk::new(one.len() + 20);
    writer.take(Message::File(Some(disk.file())));
    let mut write = || {
        writer.take(Message::Record { record: Box::new(record("{}")), is_cut: false });
        writer.flush();
    };
    write();
    write();
    write();
    assert_eq!((counted(&metrics, "written"), counted(&metrics, "dropped")), (1, 2));
    disk.make_room(10_000);
    write();
    write();
    assert_eq!((counted(&metrics, "written"), counted(&metrics, "dropped")), (3, 2));
    let text = disk.text();
    let whole = text.lines().filter(|line| serde_json::from_str::<Json>(line).is_ok()).count();
    assert_eq!((whole, text.lines().count()), (3, 4), "{text}");
}

#[tokio::test]
async fn no_request_waits_for_the_disk_and_dropped_records_are_counted() {
    /// Writes nothing until the test lets it.
    struct Stuck(std::sync::mpsc::Receiver<()>);
    impl Write for Stuck {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.recv().map_err(io::Error::other)?;
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let metrics = Metrics::new();
    let log = AuditLog::new(Arc::clone(&metrics), Clock::new());
    let (let_on, gate) = std::sync::mpsc::channel();
    log.switch(Some(AuditFile(Box::new(Stuck(gate)))));
    let large = " ".repeat(1 << 20);
    // The writer may have taken the first ones. There is no space for all the queries, but for all the lines.
    for _ in 0..20 {
        log.record(record(&large));
    }
    assert_eq!(counted(&metrics, "dropped"), 0);
    assert!(log.0.shares.bytes() <= CAPACITY / 2 + (20 << 10), "{}", log.0.shares.bytes());
    // Other teams find space even when one team uses all that it may.
    for _ in 0..2 * CAPACITY / record("").weight() {
        log.record(record(&large));
    }
    let dropped = counted(&metrics, "dropped");
    assert!(dropped > 0);
    let other = Record { team: Some(Arc::new(Team::example("other"))), ..record(&large) };
    log.record(other);
    log.record(Record { team: None, ..record("{}") });
    assert_eq!(counted(&metrics, "dropped"), dropped);
    drop(let_on);
    // A busy machine needs longer for so many lines than a shutdown waits.
    for _ in 0..15 {
        log.close().await;
        if log.0.shares.bytes() == 0 {
            break;
        }
    }
    assert_eq!(counted(&metrics, "written"), 0, "those that waited failed");
    assert_eq!(log.0.shares.bytes(), 0);
}

#[test]
fn a_line_without_its_names_says_so() {
    let mut lines = Vec::new();
    Record { query: None, ..record("") }.write(&mut lines, true);
    let line: Json = serde_json::from_slice(&lines).unwrap();
    let none: [&str; 0] = [];
    let expected = json!({"measures": none, "dimensions": none, "filters": none, "orderBy": none, "cut": true});
    assert_eq!(line["fields"], expected);
}

#[tokio::test]
async fn a_switch_separates_earlier_records_from_later_ones() {
    let metrics = Metrics::new();
    let log = AuditLog::new(Arc::clone(&metrics), Clock::new());
    log.record(record("{}"));
    assert_eq!(counted(&metrics, "dropped"), 1, "there is no file yet");
    let (one, two) = (Disk::new(10_000), Disk::new(10_000));
    log.switch(Some(one.file()));
    log.record(record("{}"));
    log.switch(Some(two.file()));
    log.record(record("{}"));
    log.record(record("{}"));
    log.switch(None);
    log.record(record("{}"));
    log.close().await;
    assert_eq!((one.text().lines().count(), two.text().lines().count()), (1, 2));
    assert_eq!((counted(&metrics, "written"), counted(&metrics, "dropped")), (3, 2));
}
