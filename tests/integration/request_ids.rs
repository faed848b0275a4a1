//! Log lines of the binary: each belongs to a request, and has the `request_id` of its access line.

use std::collections::HashMap;
use std::io::{BufRead, BufReader};

use crate::support::gateway::SECRET;
use crate::support::process::{Process, command, set};
use crate::support::*;
use serde_json::Value as Json;

const ACCESS: &str = "insights_gateway::access";

/// A different query for every word.
fn ask(id: &str, word: &str) -> Vec<u8> {
    let body = format!(r#"{{"query":{{"measures":["Conversation.{word}"]}}}}"#);
    post_to(QUERY, &format!("X-Request-Id: {id}\r\nConnection: close\r\n"), &body)
}

/// Acts by the word in the query. A query that is retried fails the first time.
fn script(gate: &Gate) -> impl FnMut(&Seen) -> Plan + Send + use<> {
    let (mut tries, gate) = (HashMap::<String, u32>::new(), gate.clone());
    move |seen| {
        let text = seen.text();
        let word = text.split("Conversation.").nth(1).and_then(|rest| rest.split('"').next()).unwrap_or_default();
        let tried = tries.entry(word.to_owned()).or_default();
        *tried += 1;
        match (word, *tried) {
            ("Tried" | "Text", 1) => Plan::json(503, "{}"),
            ("Limited", 1) => Plan::with(429, "Retry-After: 1\r\n", "{}"),
            ("Rejected", _) => Plan::json(401, "{}"),
            ("Echoed", _) => Plan::page(&PAGE.replace("{}", &format!(r#"{{"echo":"{SECRET}"}}"#))),
            ("Shared", _) => Plan::page(PAGE).after(&gate),
            ("Failing1" | "Failing2" | "Failing3", _) => Plan::json(503, "{}"),
            _ => Plan::page(PAGE),
        }
    }
}

fn flags(upstream: &Upstream, more: &[(&str, &str)]) -> Vec<String> {
    let url = upstream.url();
    let common = [("upstream.url", &*url), ("retry.base", "1ms"), ("retry.budget", "10"), ("retry.attempts", "2")];
    common.iter().chain(more).map(|(key, value)| set(key, value)).collect()
}

#[tokio::test]
async fn every_line_about_a_request_has_the_id_of_its_access_line() {
    let gate = Gate::default();
    let upstream = Upstream::script(script(&gate)).await;
    let more = [("log.filter", "info,insights_gateway=debug"), ("circuit.consecutive", "5")];
    let process = Process::start(flags(&upstream, &more)).await;
    for (id, word, status) in [
        ("tried", "Tried", 200),
        ("hit", "Tried", 200),
        ("limited", "Limited", 200),
        ("rejected", "Rejected", 502),
        ("accepted", "Accepted", 200),
        ("echoed", "Echoed", 502),
    ] {
        assert_eq!(process.ask(&ask(id, word)).await.status, status, "{id}");
    }
    let before = upstream.count();
    let mut leader = Client::connect(process.data).await;
    leader.send(&ask("leader", "Shared")).await;
    upstream.arrived(before + 1).await;
    let mut follower = Client::connect(process.data).await;
    follower.send(&ask("follower", "Shared")).await;
    gate.open();
    assert_eq!((leader.answer().await.status, follower.answer().await.status), (200, 200));
    for n in 1..=3 {
        process.ask(&ask(&format!("failing-{n}"), &format!("Failing{n}"))).await;
    }
    process.signal("TERM");
    let (_, said) = process.ended().await;

    let lines: Vec<Json> = said.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let access: HashMap<&str, &Json> = lines
        .iter()
        .filter(|line| line["target"] == ACCESS)
        .map(|line| (line["request_id"].as_str().unwrap(), line))
        .collect();
    let about: Vec<&Json> = lines
        .iter()
        .filter(|line| {
            let modules = ["insights_gateway::layers", "insights_gateway::budget"];
            line["target"].as_str().is_some_and(|target| modules.iter().any(|module| target.starts_with(module)))
        })
        .collect();
    for line in &about {
        let access = access[line["request_id"].as_str().unwrap_or_else(|| panic!("no id: {line}"))];
        assert_eq!((&line["team"], &line["account"]), (&access["team"], &access["account"]), "{line}");
    }
    let said_of = |id: &str, message: &str| {
        let says = |line: &&&Json| {
            line["request_id"] == id && line["message"].as_str().is_some_and(|text| text.contains(message))
        };
        about.iter().filter(says).count()
    };
    for id in ["tried", "limited", "leader", "failing-1"] {
        let attempts = if id == "leader" { 1 } else { 2 };
        assert_eq!(said_of(id, "upstream attempt"), attempts, "{id}: {said}");
        assert_eq!(access[id]["attempts"], attempts, "{id}");
    }
    for id in ["hit", "follower"] {
        assert_eq!(access[id]["attempts"], 0);
        assert_eq!(said_of(id, ""), 0, "{id}");
    }
    for (id, message) in [
        ("limited", "pausing"),
        ("rejected", "rejects the account's credentials"),
        ("accepted", "accepts the account's credentials again"),
        ("echoed", "repeated the account's credentials"),
        ("failing-3", "the circuit is open"),
    ] {
        assert_eq!(said_of(id, message), 1, "{id} {message}: {said}");
    }
    for line in said.lines() {
        let names = ["request_id", "team", "account"].map(|name| line.matches(&format!("\"{name}\":")).count());
        assert!(names.iter().all(|count| *count <= 1), "a name twice: {line}");
    }
}

#[tokio::test]
async fn lines_of_a_log_in_text_have_the_id_too() {
    let upstream = Upstream::script(script(&Gate::default())).await;
    let more = [
        ("server.listen", "127.0.0.1:0"),
        ("admin.listen", "127.0.0.1:0"),
        ("log.format", "text"),
        // No other target of the gateway's is enabled, and the id is still there.
        ("log.filter", "info,insights_gateway::layers::upstream=debug"),
    ];
    let mut child = command(&flags(&upstream, &more)).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
    let serving = lines.find(|line| line.contains("serving")).unwrap();
    let address = serving.split("data=").nth(1).unwrap().split([' ', ',']).next().unwrap().trim_matches('"');
    let answer = Client::connect(address.parse().unwrap()).await.ask(&ask("in-text", "Text")).await;
    let stopped = std::process::Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap();
    let said: Vec<String> = lines.collect();
    child.wait().unwrap();
    assert!(stopped.success() && answer.status == 200);
    let with_id: Vec<_> = said.iter().filter(|line| line.contains("request_id=\"in-text\"")).collect();
    assert_eq!(with_id.iter().filter(|line| line.contains("upstream attempt")).count(), 2, "{said:#?}");
    let access: Vec<_> = said.iter().filter(|line| line.ends_with(" in-text")).collect();
    assert!(access.len() == 1 && access[0].contains(" 200 miss query local "), "{said:#?}");
    assert!(with_id.iter().all(|line| line.contains("team=\"local\"")), "{said:#?}");
}
