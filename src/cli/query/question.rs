//! The request in the form of Twilio's API: paths, and the body of a query.

use serde_json::{Value as Json, json};

use super::arguments::QueryArgs;
use super::filter::{Filter, Operator};

/// The prefix of all paths.
pub(super) const DOMAIN: &str = "/v3/InsightsDomains/Conversations";

/// The body of a query. Both ends of its time range are on the dimension `time`.
///
/// All conditions are in one group. It is not documented how several groups combine, and the gateway keeps a result
/// longer only if its range certainly holds for every row.
pub(super) fn body(args: &QueryArgs, time: Option<&str>) -> Json {
    let mut filters: Vec<Filter> = args.filter.clone();
    if let Some(time) = time {
        let ends = [(Operator::Gt, &args.since), (Operator::Lt, &args.until)];
        filters.extend(ends.into_iter().filter_map(|(op, end)| Some(Filter::new(time, op, end.as_ref()?))));
    }
    let mut query = serde_json::Map::new();
    let mut add = |name: &str, list: Vec<Json>| {
        if !list.is_empty() {
            query.insert(name.to_owned(), list.into());
        }
    };
    add("measures", args.measure.iter().map(|name| json!(name)).collect());
    add("dimensions", args.dimension.iter().map(|name| json!(name)).collect());
    if !filters.is_empty() {
        let expressions: Vec<Json> = filters.iter().map(Filter::to_json).collect();
        add("filters", vec![json!({"op": "AND", "expressions": expressions})]);
    }
    let order = args.order.iter().map(|order| {
        // The default direction is not documented.
        json!({"field": order.field, "direction": if order.descending { "DESC" } else { "ASC" }})
    });
    add("orderBy", order.collect());
    match &args.zone {
        None => json!({"query": query}),
        Some(zone) => json!({"query": query, "properties": {"timezone": zone}}),
    }
}

/// A path with its parameters encoded; those without a value are left out.
pub(super) fn path(path: &str, parameters: &[(&str, Option<&str>)]) -> String {
    let mut whole = format!("{DOMAIN}{path}");
    let present = parameters.iter().filter_map(|(name, value)| Some((name, value.as_ref()?)));
    for (i, (name, value)) in present.enumerate() {
        whole.push(if i == 0 { '?' } else { '&' });
        whole.push_str(name);
        whole.push('=');
        for byte in value.bytes() {
            match byte {
                b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => whole.push(char::from(byte)),
                byte => whole.push_str(&format!("%{byte:02X}")),
            }
        }
    }
    whole
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Command};

    fn asked(line: &str, time: Option<&str>) -> Json {
        let words = ["insights-gateway", "query"].into_iter().chain(line.split_whitespace());
        match Cli::try_parse_from(words) {
            Ok(Cli { command: Command::Query(args) }) => body(&args, time),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn flags_become_the_documented_body() {
        assert_eq!(asked("--measure C.Count", None), json!({"query": {"measures": ["C.Count"]}}));
        let line = "--measure C.Count --dimension C.Status --filter C.Status=A,B C.Type!=X --since 2026-04-01 \
                    --until 2026-05-01 --zone Europe/Zurich --order C.Count:desc C.Status";
        let expected = json!({
            "query": {
                "measures": ["C.Count"],
                "dimensions": ["C.Status"],
                "filters": [{"op": "AND", "expressions": [
                    {"op": "IN", "field": "C.Status", "values": ["A", "B"]},
                    {"op": "NE", "field": "C.Type", "values": ["X"]},
                    {"op": "GT", "field": "C.Created", "values": ["2026-04-01"]},
                    {"op": "LT", "field": "C.Created", "values": ["2026-05-01"]},
                ]}],
                "orderBy": [
                    {"field": "C.Count", "direction": "DESC"},
                    {"field": "C.Status", "direction": "ASC"},
                ],
            },
            "properties": {"timezone": "Europe/Zurich"},
        });
        assert_eq!(asked(line, Some("C.Created")), expected);
        let only_until = asked("--dimension C.Status --until 2026-05-01", Some("C.Created"));
        let expressions = &only_until["query"]["filters"][0]["expressions"];
        assert_eq!(*expressions, json!([{"op": "LT", "field": "C.Created", "values": ["2026-05-01"]}]));
    }

    #[test]
    fn tokens_are_encoded_whole() {
        let token = "a+b/c==&é%";
        assert_eq!(
            path("/Query", &[("pageSize", None), ("pageToken", Some(token))]),
            "/v3/InsightsDomains/Conversations/Query?pageToken=a%2Bb%2Fc%3D%3D%26%C3%A9%25"
        );
        let both = path("/Query", &[("pageSize", Some("5")), ("pageToken", Some("t"))]);
        assert!(both.ends_with("/Query?pageSize=5&pageToken=t"), "{both}");
    }
}
