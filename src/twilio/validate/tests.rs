use proptest::prelude::*;

use super::*;
use crate::core::json;
use crate::twilio::query;

const METADATA: &str = r#"{"cubes":[
    {"name":"Conversation","measures":[{"name":"Conversation.Count","type":"number"}],"dimensions":[
        {"name":"Conversation.ConversationStatus","type":"string"},{"name":"Conversation.Queue","type":"string"},
        {"name":"Conversation.CreatedDate","type":"time"},{"name":"Conversation.ClosedDate.hour","type":"time"}]},
    {"name":"OperatorResult","measures":[{"name":"OperatorResult.Count","type":"number"}],
        "dimensions":[{"name":"Channels","type":"string"}]}]}"#;

fn catalog(metadata: &str) -> Catalog {
    Catalog::read(&json::parse(metadata.as_bytes()).unwrap()).unwrap()
}

fn find(body: &str) -> Option<UnknownNames> {
    let value = query::parse(body.as_bytes()).unwrap();
    UnknownNames::find(&Query::read(&value).unwrap(), &catalog(METADATA), true)
}

fn words(body: &str) -> String {
    find(body).map_or_else(String::new, |unknown| unknown.to_string())
}

fn of_measure(name: &str) -> String {
    words(&serde_json::json!({"query": {"measures": [name]}}).to_string())
}

fn of_dimension(name: &str) -> String {
    words(&serde_json::json!({"query": {"dimensions": [name]}}).to_string())
}

#[test]
fn each_place_in_a_query_is_named() {
    let body = r#"{"query":{"measures":["Conversation.Cout"],"dimensions":["Conversation.Queu"],
        "filters":[{"op":"AND","expressions":[{"op":"EQ","field":"Conversation.Staus","values":["Conversation.X"]}]}]}}"#;
    let expected = "unknown measure \"Conversation.Cout\"; did you mean \"Conversation.Count\"?, unknown dimension \
                    \"Conversation.Queu\"; did you mean \"Conversation.Queue\"?, unknown filter field \"Conversation.Staus\"";
    assert_eq!(words(body), expected);
    let order = r#"{"query":{"measures":["Conversation.Count"],"orderBy":[{"field":"Conversation.Cuont"}]}}"#;
    assert_eq!(words(order), "unknown order field \"Conversation.Cuont\"; did you mean \"Conversation.Count\"?");
}

#[test]
fn at_most_three_names_are_listed_and_each_once() {
    let names: Vec<_> = (0..100).flat_map(|n| [format!("Zz.A{n}"), format!("Zz.A{n}")]).collect();
    let body = serde_json::json!({"query": {"measures": names}}).to_string();
    assert_eq!(words(&body), "unknown measure \"Zz.A0\", unknown measure \"Zz.A1\", unknown measure \"Zz.A2\"");
}

#[test]
fn the_nearest_name_is_suggested() {
    for (written, meant) in [
        ("conversation.count", Some("Conversation.Count")),
        ("CONVERSATION.COUT", Some("Conversation.Count")),
        ("Count", Some("Conversation.Count")),
        ("cuont", Some("Conversation.Count")),
        ("Converstion.Count", Some("Conversation.Count")),
        ("OperatorResults.Count", Some("OperatorResult.Count")),
        ("Conversation.Cost", None),
        ("Conversation.Sum", None),
        ("x", None),
        // A dimension, which is not allowed in this place.
        ("Conversation.Queu", None),
    ] {
        let question = meant.map_or_else(String::new, |meant| format!("; did you mean \"{meant}\"?"));
        assert_eq!(of_measure(written), format!("unknown measure \"{written}\"{question}"));
    }
    for (written, meant) in [
        ("Conversation.CreatdDate.hour", "Conversation.CreatedDate.hour"),
        ("conversation.createddate.day", "Conversation.CreatedDate.day"),
        ("CreatedDate", "Conversation.CreatedDate"),
        ("Chanels", "Channels"),
    ] {
        assert_eq!(of_dimension(written), format!("unknown dimension \"{written}\"; did you mean \"{meant}\"?"));
    }
}

#[test]
fn a_name_in_doubt_counts_as_known() {
    for name in [
        "Conversation.CreatedDate.hour",
        "Conversation.CreatedDate.fortnight",
        "Conversation.CreatedDate.hour.x",
        "Conversation.Queue.hour",
        "Conversation.ClosedDate",
        "Conversation.ClosedDate.day",
        "OperatorResult.Channels",
        "OperatorResult.Channels.hour",
        // Names that metadata has for something else.
        "Conversation.Count",
        "Conversation.Count.p95",
    ] {
        assert_eq!(of_dimension(name), "", "{name}");
    }
    assert_eq!(of_measure("Conversation.Queue"), "");
    for body in [
        r#"{"query":{"measures":["Conversation.Cout"],"limit":3}}"#,
        r#"{"query":{"measures":["Conversation.Cout"]},"aliases":{}}"#,
        r#"{"query":{"measures":["Conversation.Cout"]},"properties":{"locale":"de"}}"#,
        r#"{"query":{"measures":["Conversation.Cout"]},"domain":"Voice"}"#,
        r#"{"query":{"measures":["Conversation.Cout",{"sum":"x"}]}}"#,
        r#"{"query":{"measures":["Conversation.Cout"],"dimensions":"Conversation.Queue"}}"#,
        r#"{"query":{"measures":["Conversation.Cout"],"filters":[{"op":"XOR","expressions":[]}]}}"#,
        r#"{"query":{"measures":["Conversation.Cout"],"filters":[{"op":"AND","expressions":[{"op":"LIKE","field":"x"}]}]}}"#,
        r#"{"query":{"measures":["Conversation.Cout"],"orderBy":[{"field":7}]}}"#,
    ] {
        assert_eq!(find(body), None, "{body}");
    }
    let value = query::parse(br#"{"query":{"measures":["Conversation.Cout"]}}"#).unwrap();
    let empty = catalog(r#"{"cubes":[]}"#);
    assert_eq!(UnknownNames::find(&Query::read(&value).unwrap(), &empty, true), None);
}

#[test]
fn text_without_the_form_of_a_name_is_listed_but_not_certain() {
    for (name, told) in
        [("Conversation.Cout AS x", "Conversation.CoutASx"), ("\r\nX: \u{e9}\"\\", "X"), ("\u{65e5}\u{672c}", "")]
    {
        let body = serde_json::json!({"query": {"measures": [name]}}).to_string();
        let unknown = find(&body).unwrap();
        assert!(unknown.to_string().starts_with(&format!("unknown measure \"{told}\"")), "{unknown}");
        assert!(!unknown.are_certain(), "{name}");
    }
    assert!(find(r#"{"query":{"measures":["Conversation.Cout","a b"]}}"#).unwrap().are_certain());
    let long = "L".repeat(4000);
    assert_eq!(of_measure(&long), format!("unknown measure \"{}\"", &long[..64]));
}

#[test]
fn a_team_that_may_not_read_metadata_gets_no_suggestion() {
    let value = query::parse(br#"{"query":{"measures":["Conversation.Cout"]}}"#).unwrap();
    let unknown = UnknownNames::find(&Query::read(&value).unwrap(), &catalog(METADATA), false).unwrap();
    assert_eq!(unknown.to_string(), "unknown measure \"Conversation.Cout\"");
}

/// Members of two cubes, each with whether it is a measure and whether it is a time.
fn members() -> impl Strategy<Value = Vec<(String, bool, bool)>> {
    prop::collection::vec(("(Conv|Oper)\\.[A-Z][a-z]{3,9}", any::<bool>(), any::<bool>()), 1..12)
}

fn of(members: &[(String, bool, bool)]) -> Catalog {
    let cubes: Vec<_> = ["Conv", "Oper"]
        .map(|cube| {
            let list = |measures: bool| {
                let of_cube = members.iter().filter(|(name, is_measure, _)| name.starts_with(cube) && *is_measure == measures);
                let member = |(name, _, is_time): &(String, bool, bool)| {
                    serde_json::json!({"name": name, "type": if *is_time && !measures { "time" } else { "string" }})
                };
                of_cube.map(member).collect::<Vec<_>>()
            };
            serde_json::json!({"name": cube, "measures": list(true), "dimensions": list(false)})
        })
        .into();
    catalog(&serde_json::json!({"cubes": cubes}).to_string())
}

fn found(catalog: &Catalog, names: &[String]) -> Option<UnknownNames> {
    let body = serde_json::json!({"query": {"measures": names, "dimensions": names}}).to_string();
    let value = query::parse(body.as_bytes()).unwrap();
    UnknownNames::find(&Query::read(&value).unwrap(), catalog, true)
}

proptest! {
    #[test]
    fn no_member_and_no_grain_is_ever_unknown(members in members(), grain in "[a-z_0-9]{1,9}") {
        let names = members.iter().flat_map(|(name, ..)| [name.clone(), format!("{name}.{grain}")]);
        prop_assert_eq!(found(&of(&members), &names.collect::<Vec<_>>()), None);
    }

    #[test]
    fn the_words_fit_a_header_whatever_a_client_writes(members in members(), names in prop::collection::vec(".{0,90}", 1..6)) {
        if let Some(unknown) = found(&of(&members), &names) {
            let words = unknown.to_string();
            prop_assert!(words.len() < 600, "{words}");
            prop_assert!(words.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic()), "{words:?}");
            prop_assert!(http::HeaderValue::from_str(&words).is_ok());
        }
    }

    #[test]
    fn what_is_meant_exists_and_one_slip_is_understood(members in members(), at in 0..12usize, letter in "[a-z]") {
        let catalog = of(&members);
        let name = &members[at % members.len()].0;
        let slip = format!("{name}{letter}");
        let UnknownNames(unknown) = match found(&catalog, &[slip]) {
            Some(unknown) => unknown,
            None => return Ok(()),
        };
        for unknown in &unknown {
            if let Some(meant) = &unknown.meant {
                prop_assert!(catalog.knows(unknown.place, meant), "{meant}");
            }
        }
        prop_assert!(unknown.iter().any(|unknown| unknown.meant.is_some()), "{unknown:?}");
    }
}
