//! The body of a query by teams with a policy. A query that passes names nothing that the team may not see and has the
//! required filters; all else is unchanged.

#![no_main]

use std::collections::{BTreeSet, HashMap};
use std::sync::LazyLock;

use insights_gateway::core::json;
use insights_gateway::twilio::catalog::Catalog;
use insights_gateway::twilio::policy::{Policy, Required};
use insights_gateway::twilio::query::{self, Comparison, Query};
use insights_gateway_fuzz::canonical;
use insights_gateway_fuzz::query::{Meaning, Place, meaning};
use libfuzzer_sys::fuzz_target;
use serde_json::{Value, json};

const DENIED: [&str; 3] = ["Conversation.ParticipantId", "Conversation.Profile*", "Secret.*"];

struct Case {
    policy: Policy,
    denies: bool,
    requires: bool,
}

static CASES: LazyLock<[Case; 3]> = LazyLock::new(|| {
    [(true, false), (false, true), (true, true)].map(|(denies, requires)| {
        let closed = Required {
            op: Comparison::Eq,
            field: "Conversation.ConversationStatus".into(),
            values: vec!["CLOSED".into()],
        };
        let deny = if denies { DENIED.map(str::to_owned).to_vec() } else { Vec::new() };
        let require = if requires { vec![closed] } else { Vec::new() };
        Case { policy: Policy::new(&deny, &require), denies, requires }
    })
});

/// The account's members, and whether they are times.
const MEMBERS: [(&str, bool); 7] = [
    ("Conversation.Count", false),
    ("Conversation.ParticipantId", false),
    ("Conversation.ParticipantIdentity", false),
    ("Conversation.ProfileName", false),
    ("Conversation.ConversationStatus", false),
    ("Conversation.CreatedDate", true),
    ("Secret.Value", false),
];

static CATALOG: LazyLock<Catalog> = LazyLock::new(|| {
    let member =
        |(name, is_time): &(&str, bool)| json!({"name": name, "type": if *is_time { "time" } else { "string" }});
    let all: Vec<_> = MEMBERS.iter().map(member).collect();
    let metadata = json!({"cubes": [{"name": "All", "measures": all, "dimensions": all}]}).to_string();
    Catalog::read(&json::parse(metadata.as_bytes()).expect("JSON")).expect("metadata")
});

fn is_known(name: &str) -> bool {
    let members: HashMap<_, _> = MEMBERS.into_iter().collect();
    let is_time = |base: &str| members.get(base) == Some(&true);
    let is_grain = |grain: &str| !grain.is_empty() && grain.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    members.contains_key(name) || name.rsplit_once('.').is_some_and(|(base, grain)| is_time(base) && is_grain(grain))
}

/// The query that is sent in place of a team's query.
fn apply(policy: &Policy, body: &[u8]) -> Option<bytes::Bytes> {
    Query::read(&query::parse(body).ok()?).ok()?.restrict(policy, &CATALOG, 1 << 20).ok()
}

/// Every string of a query that could be a name: all but the values of filters.
fn names<'v>(query: &'v Value, found: &mut Vec<&'v str>) {
    match query {
        Value::String(text) => found.push(text),
        Value::Array(elements) => elements.iter().for_each(|element| names(element, found)),
        Value::Object(members) => {
            for (name, value) in members {
                found.push(name);
                if name != "values" {
                    names(value, found);
                }
            }
        }
        _ => {}
    }
}

fn is_denied(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    DENIED.iter().any(|denied| {
        let denied = denied.to_ascii_lowercase();
        let exact = denied.trim_end_matches('*');
        let unqualified = exact.split_once('.').map_or("", |(_, member)| member);
        denied.ends_with('*') && name.starts_with(exact)
            || name == exact
            || name.starts_with(&format!("{exact}."))
            || !unqualified.is_empty() && name == unqualified
    })
}

fn expressions(group: &Value) -> Vec<Meaning> {
    let all = group["expressions"].as_array().map_or(&[][..], Vec::as_slice);
    all.iter().map(|e| meaning(&json::parse(e.to_string().as_bytes()).expect("JSON"), Place::Leaf)).collect()
}

fn check(case: &Case, asked: &[u8], passed: &[u8]) {
    // A number that does not fit into an f64 is passed on, but cannot be checked here.
    let Ok(before) = serde_json::from_slice::<Value>(asked) else { return };
    let after: Value = serde_json::from_slice(passed).expect("JSON");
    if case.denies {
        let mut found = Vec::new();
        names(&after["query"], &mut found);
        let strange = found.iter().find(|name| name.contains('.') && !is_known(name));
        assert!(strange.is_none(), "{strange:?} in {after}");
        let denied = found.iter().find(|name| is_denied(name));
        assert!(denied.is_none(), "{denied:?} in {after}");
    }
    if !case.requires {
        return assert_eq!(passed, asked, "nothing is to be added");
    }
    let closed = json!({"op": "EQ", "field": "Conversation.ConversationStatus", "values": ["CLOSED"]});
    let groups = after["query"]["filters"].as_array().expect("filters");
    assert!(!groups.is_empty());
    for group in groups {
        assert_eq!(group["op"], "AND");
        let all = group["expressions"].as_array().expect("expressions");
        assert_eq!(all.iter().filter(|expression| **expression == closed).count(), 1, "{group}");
    }
    assert_eq!(canonical(passed).as_deref(), Ok(passed), "not canonical");
    // A permitted query passes again unchanged.
    assert_eq!(apply(&case.policy, passed).as_deref(), Some(passed));
    for member in ["measures", "dimensions", "orderBy"] {
        assert_eq!(before["query"][member], after["query"][member]);
    }
    for member in ["domain", "pageSize", "properties"] {
        assert_eq!(before[member], after[member]);
    }
    // Groups that say the same become one. What the policy requires says nothing more in a group that has it already.
    let required = meaning(&json::parse(closed.to_string().as_bytes()).expect("JSON"), Place::Leaf);
    let own = |group: &Value| -> BTreeSet<Meaning> {
        expressions(group).into_iter().filter(|expression| *expression != required).collect()
    };
    let asked = before["query"]["filters"].as_array().map_or(&[][..], Vec::as_slice);
    let mut distinct = Vec::new();
    for group in asked.iter().map(own) {
        if !distinct.contains(&group) {
            distinct.push(group);
        }
    }
    if distinct.is_empty() {
        distinct.push(BTreeSet::new());
    }
    assert_eq!(groups.iter().map(own).collect::<Vec<_>>(), distinct);
}

fuzz_target!(|body: &[u8]| {
    let Ok(asked) = canonical(body) else { return };
    for case in &*CASES {
        let passed = apply(&case.policy, body);
        assert_eq!(apply(&case.policy, &asked), passed, "the canonical form is another query");
        if let Some(passed) = passed {
            check(case, &asked, &passed);
        }
    }
});
