use bytes::Bytes;
use proptest::prelude::*;

use super::*;

fn form(body: &[u8]) -> Result<Bytes, QueryError> {
    Ok(Query::read(&parse(body)?)?.canonical())
}

fn canonical(body: &str) -> String {
    let form = form(body.as_bytes()).unwrap_or_else(|error| panic!("{body}: {error}"));
    String::from_utf8(form.to_vec()).expect("UTF-8")
}

#[track_caller]
fn same(a: &str, b: &str) {
    assert_eq!(canonical(a), canonical(b));
}

#[track_caller]
fn different(a: &str, b: &str) {
    assert_ne!(canonical(a), canonical(b));
}

fn filtered(group: &str) -> String {
    format!(r#"{{"query":{{"measures":["C.Count"],"filters":[{group}]}}}}"#)
}

const A: &str = r#"{"op":"EQ","field":"a","values":["1"]}"#;
const B: &str = r#"{"op":"GT","field":"b","values":["2"]}"#;

#[test]
fn requests_of_python_and_node_have_one_form() {
    let python = r#"{"domain": "Conversations", "query": {"measures": ["Conversation.Count"], "orderBy": [{"field": "Conversation.Count", "direction": "DESC"}]}}"#;
    let node = r#"{"query":{"orderBy":[{"direction":"DESC","field":"Conversation.Count"}],"measures":["Conversation.Count"],"filters":null},"domain":"Conversations","properties":null}"#;
    same(python, node);
    assert_eq!(
        canonical(python),
        r#"{"domain":"Conversations","query":{"measures":["Conversation.Count"],"orderBy":[{"direction":"DESC","field":"Conversation.Count"}]}}"#
    );
}

#[test]
fn order_and_repetition_do_not_matter_in_a_set() {
    for op in ["AND", "OR"] {
        let group = |inside: &str| filtered(&format!(r#"{{"op":"{op}","expressions":[{inside}]}}"#));
        same(&group(&format!("{A},{B}")), &group(&format!("{B},{A},{B}")));
        same(&group(A), &group(r#"{"values":["1"],"field":"a","op":"EQ"}"#));
    }
    let within = |values: &str| {
        filtered(&format!(r#"{{"op":"AND","expressions":[{{"op":"IN","field":"a","values":[{values}]}}]}}"#))
    };
    same(&within(r#""x","y""#), &within(r#""y","x","y""#));
    different(&within(r#""x","y""#), &within(r#""x""#));
}

#[test]
fn order_matters_where_the_response_may_depend_on_it() {
    different(r#"{"query":{"measures":["a","b"]}}"#, r#"{"query":{"measures":["b","a"]}}"#);
    different(r#"{"query":{"dimensions":["a","b"]}}"#, r#"{"query":{"dimensions":["b","a"]}}"#);
    different(
        r#"{"query":{"orderBy":[{"field":"a"},{"field":"b"}]}}"#,
        r#"{"query":{"orderBy":[{"field":"b"},{"field":"a"}]}}"#,
    );
    let eq = |values: &str| {
        filtered(&format!(r#"{{"op":"AND","expressions":[{{"op":"EQ","field":"a","values":[{values}]}}]}}"#))
    };
    different(&eq(r#""x","y""#), &eq(r#""y","x""#));
}

#[test]
fn a_group_without_op_keeps_its_expressions() {
    let group = |inside: &str| filtered(&format!(r#"{{"expressions":[{inside}]}}"#));
    different(&group(&format!("{A},{B}")), &group(&format!("{B},{A}")));
    different(&group(A), &group(&format!("{A},{A}")));
    different(&group(A), &filtered(&format!(r#"{{"op":"AND","expressions":[{A}]}}"#)));
    different(&group(r#"{"op":"EQ","field":"a","values":null}"#), &group(r#"{"op":"EQ","field":"a"}"#));
    same(&group(A), &group(r#"{ "values" : ["1"], "field":"a","op":"EQ"}"#));
    same(&group(A), &filtered(&format!(r#"{{"op":null,"expressions":[{A}]}}"#)));
}

#[test]
fn unknown_shapes_keep_order_spelling_and_nulls() {
    let unknown = [
        r#"{"op":"XOR","expressions":[{"b":1,"a":null}]}"#,
        r#"{"op":"AND","expressions":[{"op":"EQ","field":"a","values":["1"],"not":null}]}"#,
        r#"{"op":"AND","expressions":[{"op":"GTE","field":"a","values":["\u0041"]}]}"#,
        r#"{"op":"AND","expressions":[{"values":[1],"op":"EQ","field":"a"}]}"#,
        r#"{"op":"AND","extra":null,"expressions":[]}"#,
        r#"{"op":"OR","expressions":[{"op":"AND","expressions":[]}]}"#,
        r#""text""#,
        "null",
    ];
    for group in unknown {
        let body = filtered(group);
        assert!(canonical(&body).contains(group), "{group} became {}", canonical(&body));
    }
    let body = r#"{"insights":{"b":null,"a":[ 1.50 ]},"query":{}}"#;
    assert_eq!(canonical(body), r#"{"insights":{"b":null,"a":[1.50]},"query":{}}"#);
    different(r#"{"query":{},"x":null}"#, r#"{"query":{}}"#);
    different(r#"{"query":{"limit":1}}"#, r#"{"query":{"limit":1.0}}"#);
    different(r#"{"query":{},"pageSize":9007199254740992}"#, r#"{"query":{},"pageSize":9007199254740993}"#);
}

#[test]
fn known_strings_have_one_spelling() {
    same(r#"{"query":{"measures":["\u0043\/\"\\\n"]}}"#, "{\"query\":{\"measures\":[\"C/\\\"\\\\\\u000a\"]}}");
    different(r#"{"query":{"measures":["a"]}}"#, r#"{"query":{"measures":["A"]}}"#);
}

#[test]
fn errors_say_what_is_wrong() {
    let error = |body: &str| form(body.as_bytes()).expect_err(body);
    assert_eq!(error("[]"), QueryError::NotAnObject);
    assert_eq!(error("{}"), QueryError::NoQuery);
    assert_eq!(error(r#"{"query":null}"#), QueryError::NoQuery);
    assert_eq!(error(r#"{"query":[]}"#), QueryError::QueryNotAnObject);
    assert!(matches!(error(r#"{"query":{},"query":{}}"#), QueryError::Json(..)));
    assert!(matches!(error(r#"{"query":{"x":{"a":1,"a":1}}}"#), QueryError::Json(..)));
    let large = format!(r#"{{"query":{{"x":[{}]}}}}"#, vec!["0"; json::MAX_VALUES].join(","));
    assert_eq!(error(&large), QueryError::TooManyValues);
}

#[test]
fn names_are_found_in_all_their_places() {
    let body = r#"{"query":{"measures":["a",1],"dimensions":["b"],
        "filters":[{"op":"AND","expressions":[{"op":"EQ","field":"c","values":["v"]},{"op":"XX","field":"d"}]},
            {"not":{"field":"e"}},{"op":"AND","expressions":[{"op":"IN","field":"f","values":[{"field":"g"}]}]}],
        "orderBy":[{"field":"h","direction":{"field":"i"},"x":[{"field":"j"}]},[{"field":"k"}]]}}"#;
    let value = parse(body.as_bytes()).unwrap();
    let mut found = Vec::new();
    Query::read(&value).unwrap().visit_names(|place, name| found.push((place, name.to_owned())));
    let at =
        |place| found.iter().filter(|(at, _)| *at == place).map(|(_, name)| name.as_str()).collect::<Vec<_>>().concat();
    let places = [Place::Measure, Place::Dimension, Place::Filter, Place::Order].map(at);
    assert_eq!(places, ["a", "b", "cdf", "h"]);
}

/// Operator, field, values.
type Comparison = (&'static str, String, Vec<String>);

/// A query as a value, so that it can be written in many equal ways.
#[derive(Debug, Clone)]
struct Spec {
    measures: Vec<String>,
    groups: Vec<(Option<&'static str>, Vec<Comparison>)>,
    order: Vec<(String, Option<&'static str>)>,
    timezone: Option<String>,
}

fn spec() -> impl Strategy<Value = Spec> {
    let name = "[A-C]\\.[a-c\"\\\\\u{e9}]{1,3}";
    let op = prop::sample::select(vec!["EQ", "NE", "GT", "LT", "IN"]);
    let leaf = (op, name, prop::collection::vec("[a-c]{1,2}", 0..4));
    let group_op = prop::sample::select(vec![Some("AND"), Some("OR"), None]);
    let group = (group_op, prop::collection::vec(leaf, 0..4));
    let direction = prop::option::of(prop::sample::select(vec!["ASC", "DESC"]));
    (
        prop::collection::vec(name, 0..3),
        prop::collection::vec(group, 0..3),
        prop::collection::vec((name, direction), 0..3),
        prop::option::of("[A-Z]{3}"),
    )
        .prop_map(|(measures, groups, order, timezone)| Spec { measures, groups, order, timezone })
}

/// Writes a spec in one of many equal ways, chosen by `rng`.
fn spell(spec: &Spec, rng: &mut fastrand::Rng) -> String {
    let mut members = vec![("query", object(query_members(spec, rng), rng))];
    match &spec.timezone {
        Some(zone) => members.push(("properties", object(vec![("timezone", string(zone, rng))], rng))),
        None if rng.bool() => members.push(("properties", "null".into())),
        None => {}
    }
    object(members, rng)
}

fn query_members(spec: &Spec, rng: &mut fastrand::Rng) -> Vec<(&'static str, String)> {
    let measures = spec.measures.iter().map(|m| string(m, rng)).collect();
    let mut members = vec![("measures", array(measures, rng))];
    let mut groups = Vec::new();
    for (op, leaves) in &spec.groups {
        let mut leaves = leaves.clone();
        if op.is_some() && !leaves.is_empty() {
            leaves.push(leaves[rng.usize(..leaves.len())].clone());
            rng.shuffle(&mut leaves);
        }
        let mut written = Vec::new();
        for (comparison, field, values) in &leaves {
            let mut values = values.clone();
            if op.is_some() && *comparison == "IN" && !values.is_empty() {
                values.push(values[rng.usize(..values.len())].clone());
                rng.shuffle(&mut values);
            }
            // Inside a group without `op` the spelling matters, so it has to be the same in both.
            let mut plain = fastrand::Rng::with_seed(0);
            let escape = if op.is_some() { &mut *rng } else { &mut plain };
            let values = values.iter().map(|v| string(v, escape)).collect();
            let (comparison, field) = (string(comparison, escape), string(field, escape));
            let leaf = vec![("op", comparison), ("field", field), ("values", array(values, rng))];
            written.push(object(leaf, rng));
        }
        let mut group = vec![("expressions", array(written, rng))];
        match op {
            Some(op) => group.push(("op", string(op, rng))),
            None if rng.bool() => group.push(("op", "null".into())),
            None => {}
        }
        groups.push(object(group, rng));
    }
    members.push(("filters", array(groups, rng)));
    let mut order = Vec::new();
    for (field, direction) in &spec.order {
        let mut entry = vec![("field", string(field, rng))];
        match direction {
            Some(direction) => entry.push(("direction", string(direction, rng))),
            None if rng.bool() => entry.push(("direction", "null".into())),
            None => {}
        }
        order.push(object(entry, rng));
    }
    members.push(("orderBy", array(order, rng)));
    members
}

fn space(rng: &mut fastrand::Rng) -> &'static str {
    ["", "", " ", "\n\t"][rng.usize(..4)]
}

fn object(mut members: Vec<(&'static str, String)>, rng: &mut fastrand::Rng) -> String {
    rng.shuffle(&mut members);
    let members: Vec<_> = members
        .into_iter()
        .map(|(name, value)| format!("{}\"{name}\"{}:{}{value}{}", space(rng), space(rng), space(rng), space(rng)))
        .collect();
    format!("{{{}}}", members.join(","))
}

fn array(elements: Vec<String>, rng: &mut fastrand::Rng) -> String {
    format!("[{}{}{}]", space(rng), elements.join(","), space(rng))
}

fn string(text: &str, rng: &mut fastrand::Rng) -> String {
    let spelled: String = text
        .chars()
        .map(|c| match c {
            '"' | '\\' if rng.bool() => format!("\\{c}"),
            '"' | '\\' => format!("\\u{:04x}", u32::from(c)),
            c if rng.u8(..8) == 0 => format!("\\u{:04X}", u32::from(c)),
            c => c.to_string(),
        })
        .collect();
    format!("\"{spelled}\"")
}

proptest! {
    #[test]
    fn equal_queries_give_equal_bytes(spec in spec(), seeds: (u64, u64)) {
        let one = spell(&spec, &mut fastrand::Rng::with_seed(seeds.0));
        let other = spell(&spec, &mut fastrand::Rng::with_seed(seeds.1));
        prop_assert_eq!(canonical(&one), canonical(&other), "{} against {}", one, other);
    }

    #[test]
    fn the_canonical_form_is_a_fixed_point(spec in spec(), seed: u64) {
        let once = canonical(&spell(&spec, &mut fastrand::Rng::with_seed(seed)));
        prop_assert_eq!(canonical(&once), once);
    }

    /// Queries with different measures, order or time zone have different forms: what may matter is kept.
    #[test]
    fn different_lists_stay_different(a in spec(), b in spec()) {
        prop_assume!(a.measures != b.measures || a.order != b.order || a.timezone != b.timezone);
        let mut rng = fastrand::Rng::with_seed(1);
        prop_assert_ne!(canonical(&spell(&a, &mut rng)), canonical(&spell(&b, &mut rng)));
    }

    #[test]
    fn arbitrary_bodies_do_not_panic(body in r#"\{"query":\{[\[\]{}:,"a-f\\0-9 ]{0,60}\}\}"#) {
        if let Ok(form) = form(body.as_bytes()) {
            prop_assert_eq!(super::tests::form(&form), Ok(form.clone()));
        }
    }
}
