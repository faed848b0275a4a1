use proptest::prelude::*;

use super::super::query;
use super::*;

const METADATA: &str = r#"{"domain":"Conversations","cubes":[
    {"name":"Conversation","description":"All, but see Conversation.ParticipantId","measures":[
        {"name":"Conversation.Count","type":"number","aggregation":"count","format":"%d"}],
     "dimensions":[
        {"name":"Conversation.ParticipantId","type":"string"},
        {"name":"Conversation.ParticipantIdentity","type":"string","description":"like Conversation.participantid"},
        {"name":"Conversation.ProfileName","type":"string"},
        {"name":"Conversation.Status","type":"string","description":"a \u0073tatus"},
        {"name":"Conversation.CreatedDate","type":"time"}],
     "joins":["Conversation.ParticipantId"]},
    {"name":"Secret","measures":[{"name":"Secret.Count","type":"number"}],"dimensions":[]}],"etag":7}"#;

fn catalog() -> Catalog {
    Catalog::read(&json::parse(METADATA.as_bytes()).unwrap()).unwrap()
}

fn policy(deny: &[&str], require: &[(Comparison, &str, &[&str])]) -> Policy {
    let deny: Vec<_> = deny.iter().map(|s| (*s).to_owned()).collect();
    let text = |s: &&str| (*s).to_owned();
    let require: Vec<_> = require
        .iter()
        .map(|(op, field, values)| Required { op: *op, field: text(field), values: values.iter().map(text).collect() })
        .collect();
    Policy::new(&deny, &require)
}

fn canonical(body: &str) -> Bytes {
    Query::read(&query::parse(body.as_bytes()).expect(body)).expect(body).canonical()
}

fn apply(policy: &Policy, body: &str) -> Result<String, Denied> {
    let value = query::parse(body.as_bytes()).expect(body);
    let effective = Query::read(&value).expect(body).restrict(policy, &catalog(), 1 << 20)?;
    Ok(String::from_utf8(effective.to_vec()).unwrap())
}

fn dimension(name: &str) -> String {
    format!(r#"{{"query":{{"dimensions":[{}]}}}}"#, serde_json::Value::from(name))
}

#[test]
fn denied_members_are_refused_in_every_place() {
    let policy = policy(&["Conversation.ParticipantId", "Conversation.Profile*", "Secret.*"], &[]);
    let refused = [
        (r#"{"query":{"measures":["Secret.Count"]}}"#, "Secret.Count"),
        (r#"{"query":{"dimensions":["Conversation.ParticipantId"]}}"#, "Conversation.ParticipantId"),
        (r#"{"query":{"dimensions":["Conversation.Participant\u0049d"]}}"#, "Conversation.ParticipantId"),
        (r#"{"query":{"dimensions":["conversation.participantid"]}}"#, "conversation.participantid"),
        (r#"{"query":{"dimensions":["Conversation.ProfileName"]}}"#, "Conversation.ProfileName"),
        (r#"{"query":{"dimensions":["ParticipantId"]}}"#, "ParticipantId"),
        (r#"{"query":{"orderBy":[{"field":"Conversation.ParticipantId"}]}}"#, "Conversation.ParticipantId"),
        (
            r#"{"query":{"filters":[{"expressions":[{"op":"EQ","field":"Conversation.ParticipantId.x","values":["1"]}]}]}}"#,
            "Conversation.ParticipantId.x",
        ),
    ];
    for (body, field) in refused {
        assert_eq!(apply(&policy, body), Err(Denied::Field(field.to_owned())), "{body}");
    }
    let allowed = r#"{"query":{"dimensions":["Conversation.ParticipantIdentity"]}}"#;
    assert_eq!(apply(&policy, allowed).unwrap().as_bytes(), canonical(allowed));
}

#[test]
fn unknown_members_are_refused_like_denied_ones() {
    let policy = policy(&["Conversation.ParticipantId"], &[]);
    for name in [
        "Conversation.Nothing",
        "Conversation.count",
        "Status",
        "Conversation",
        "Conversation.Count",
        "Conversation.Status.day",
        "Conversation.CreatedDate.day.hour",
        "Conversation.ParticipantId",
        "Conversation.ParticipantId.day",
    ] {
        let body = dimension(name);
        assert_eq!(apply(&policy, &body).unwrap_err().to_string(), format!("this team may not query {name}"));
    }
    let measure = r#"{"query":{"measures":["Conversation.Status"]}}"#;
    assert!(matches!(apply(&policy, measure), Err(Denied::Field(_))));
    for name in ["Conversation.CreatedDate", "Conversation.CreatedDate.hour", "Conversation.Status"] {
        assert!(apply(&policy, &dimension(name)).is_ok(), "{name}");
    }
    let long = "x".repeat(5000);
    assert_eq!(apply(&policy, &dimension(&long)), Err(Denied::Field("x".repeat(128))));
    let denied_grain = self::policy(&["Conversation.createddate.HOUR"], &[]);
    assert!(apply(&denied_grain, &dimension("Conversation.CreatedDate.hour")).is_err());
    assert!(apply(&denied_grain, &dimension("Conversation.CreatedDate.day")).is_ok());
}

#[test]
fn names_that_metadata_leaves_unqualified_are_denied_under_their_cubes_name() {
    let metadata = r#"{"cubes":[{"name":"Conversation","measures":[],"dimensions":[{"name":"Id","type":"string"},
        {"name":"Created","type":"time"},{"name":"Kind","type":"string"}]}]}"#;
    let catalog = Catalog::read(&json::parse(metadata.as_bytes()).unwrap()).unwrap();
    let policy = policy(&["Conversation.Id", "Conversation.Created.hour", "Conversation.K*"], &[]);
    let permits = |name| policy.permits(&catalog, Place::Dimension, name);
    assert_eq!(
        ["Id", "Created", "Created.day", "Created.hour", "Kind"].map(permits),
        [false, true, true, false, false]
    );
    assert!(!self::policy(&["Conv*"], &[]).permits(&catalog, Place::Dimension, "Created"));
}

const CLOSED: (Comparison, &str, &[&str]) = (Comparison::Eq, "Conversation.Status", &["CLOSED"]);

#[test]
fn required_filters_hold_in_every_group() {
    let policy = policy(&[], &[CLOSED]);
    let closed = r#"{"field":"Conversation.Status","op":"EQ","values":["CLOSED"]}"#;
    assert_eq!(
        apply(&policy, r#"{"query":{"measures":["Conversation.Count"]}}"#).unwrap(),
        format!(
            r#"{{"query":{{"filters":[{{"expressions":[{closed}],"op":"AND"}}],"measures":["Conversation.Count"]}}}}"#
        )
    );
    let group = |op: &str, compare: &str| {
        format!(r#"{{{op}"expressions":[{{"op":"{compare}","field":"Conversation.Status","values":["1"]}}]}}"#)
    };
    let two = format!(r#"{{"query":{{"filters":[{},{}]}}}}"#, group(r#""op":"AND","#, "GT"), group("", "LT"));
    let two = apply(&policy, &two).unwrap();
    assert_eq!(two.matches(closed).count(), 2);
    assert_eq!(two.matches(r#""op":"AND""#).count(), 2);
    assert_eq!(apply(&policy, &two).unwrap(), two, "a permitted query passes again unchanged");
    let odd = self::policy(&[], &[(Comparison::In, "Conversation.Status", &["b\"\\\n", "a"])]);
    let effective = apply(&odd, r#"{"query":{}}"#).unwrap();
    assert!(effective.contains(r#""values":["a","b\"\\\u000a"]"#), "{effective}");
}

#[test]
fn equal_effective_queries_share_their_bytes() {
    let effective = apply(&policy(&[], &[CLOSED]), r#"{"query":{"measures":["Conversation.Count"]}}"#).unwrap();
    let asked = r#"{"query":{"measures":["Conversation.Count"],"filters":[{"op":"AND","expressions":[{"values":["CLOSED"],"op":"EQ","field":"Conversation.Status"}]}]}}"#;
    assert_eq!(effective.as_bytes(), canonical(asked));
    assert_eq!(apply(&policy(&[], &[CLOSED]), asked).unwrap(), effective);
}

#[test]
fn queries_that_cannot_be_proven_safe_are_refused() {
    let policies = [policy(&["X.y"], &[CLOSED]), policy(&["X.y"], &[]), policy(&[], &[CLOSED])];
    let group = |group: &str| format!(r#"{{"query":{{"measures":["Conversation.Count"],"filters":[{group}]}}}}"#);
    let and = |leaf: &str| group(&format!(r#"{{"op":"AND","expressions":[{leaf}]}}"#));
    let order = |order: &str| format!(r#"{{"query":{{"measures":["Conversation.Count"],"orderBy":{order}}}}}"#);
    let body = |member: &str| format!(r#"{{"query":{{"measures":["Conversation.Count"]}},{member}}}"#);
    let leaf = r#"{"op":"EQ","field":"Conversation.Status","values":["1"]}"#;
    let mut refused = vec![
        group(&format!(r#"{{"op":"OR","expressions":[{leaf}]}}"#)),
        group(&format!(r#"{{"expressions":[{leaf},{leaf}]}}"#)),
        group(r#"{"expressions":[]}"#),
        group(&format!(r#"{{"op":"AND","not":true,"expressions":[{leaf}]}}"#)),
        group("null"),
        and(r#"{"op":"OR","expressions":[]}"#),
        and(r#"{"op":"EQ","field":7}"#),
        and(r#"{"op":"eq","field":"Conversation.Status","values":["1"]}"#),
        and(r#"{"op":"EQ","field":"Conversation.Status","values":"1"}"#),
        and(r#"{"op":"EQ","field":"Conversation.Status","values":[1]}"#),
        and(r#"{"op":"EQ","field":"Conversation.Status","values":[null]}"#),
        and(r#"{"op":"EQ","field":"Conversation.Status","values":[{"sql":"X.y"}]}"#),
        and(r#"{"op":"EQ","field":"Conversation.Status","values":["1"],"pageToken":"T"}"#),
        r#"{"query":{"measures":[7]}}"#.to_owned(),
        r#"{"query":{"measures":[null]}}"#.to_owned(),
        r#"{"query":{"measures":"Conversation.Count"}}"#.to_owned(),
        r#"{"query":{"measures":{"a":"Conversation.Count"}}}"#.to_owned(),
        r#"{"query":{"segments":["X.y"]}}"#.to_owned(),
        r#"{"query":{"segments":null}}"#.to_owned(),
        r#"{"query":{"pageToken":"T"}}"#.to_owned(),
        order(r#"[{"fields":["X.y"]}]"#),
        order(r#"[{"direction":"ASC"}]"#),
        order(r#"[{"field":null}]"#),
        order(r#"["Conversation.Count"]"#),
        order(r#"{"field":"Conversation.Count"}"#),
    ];
    for direction in [r#""asc""#, r#""ASC, X.y""#, "1", "true", "[]", r#"{"a":1}"#] {
        refused.push(order(&format!(r#"[{{"field":"Conversation.Count","direction":{direction}}}]"#)));
    }
    for domain in [r#""conversations""#, r#""Insights""#, r#""""#, "1", "false", "[]", r#"{"x":1}"#] {
        refused.push(body(&format!(r#""domain":{domain}"#)));
    }
    for size in ["0", "-1", "1.0", "1e3", "100001", r#""20""#, "true", "[1]", "{}"] {
        refused.push(body(&format!(r#""pageSize":{size}"#)));
    }
    for properties in ["7", r#""UTC""#, "[]", r#"{"pageToken":"T"}"#, r#"{"page\u0054oken":"T"}"#, r#"{"x":null}"#] {
        refused.push(body(&format!(r#""properties":{properties}"#)));
    }
    for zone in [
        r#""Mars/Olympus""#,
        r#""UTC OR 1""#,
        r#""""#,
        "7",
        "[]",
        r#"{"a":1}"#,
        r#""../../etc/passwd""#,
        r#""posixrules""#,
        r#""europe/berlin""#,
        r#""EUROPE/BERLIN""#,
        r#""utc""#,
        r#""localtime""#,
        r#""posix/UTC""#,
        r#""Etc/Unknown""#,
    ] {
        refused.push(body(&format!(r#""properties":{{"timezone":{zone}}}"#)));
    }
    for name in [r#""sql""#, r#""pageToken""#, r#""PageToken""#, r#""page\u0054oken""#, r#""pagesize""#, r#""""#] {
        refused.push(body(&format!(r#"{name}:"T""#)));
        refused.push(body(&format!("{name}:null")));
    }
    for name in [
        "",
        ".",
        "Conversation.",
        ".Count",
        "Conversation..Count",
        "Conversation.Count ",
        " Conversation.Count",
        "Conversation.Count\0",
        "Conversation.\u{a0}Count",
        "Conversation.Count\"",
        "Conversation.Count AS x",
        "Conversation.CreatedDate:x",
        "Conversation.\u{ff23}ount",
        "\u{ff23}onversation.Count",
        "Conversation.Count\n",
        "Conversation.Count;",
        "Conversation-Count",
        "Conversation.Co\u{200b}unt",
        "count(*)",
    ] {
        refused.push(dimension(name));
    }
    for policy in &policies {
        for body in &refused {
            assert!(matches!(apply(policy, body), Err(Denied::Shape(_))), "{body}: {:?}", apply(policy, body));
        }
    }
}

#[test]
fn documented_queries_pass() {
    let policy = policy(&["Conversation.ParticipantId"], &[]);
    for body in [
        r#"{"query":{}}"#,
        r#"{"domain":"Conversations","pageSize":20,"properties":{"timezone":"Europe/Berlin"},"query":{}}"#,
        r#"{"domain":null,"pageSize":null,"properties":null,"query":{"measures":null,"filters":null,"orderBy":null}}"#,
        r#"{"properties":{"timezone":null},"query":{"measures":[],"filters":[],"orderBy":[]}}"#,
        r#"{"properties":{"timezone":"Etc/GMT+3"},"query":{"orderBy":[{"field":"Conversation.Count","direction":null}]}}"#,
        r#"{"properties":{"timezone":"UTC"},"query":{"measures":[]}}"#,
        r#"{"properties":{"timezone":"US/Pacific"},"query":{"measures":[]}}"#,
        r#"{"properties":{"timezone":"America/Argentina/Buenos_Aires"},"query":{"measures":[]}}"#,
        r#"{"query":{"orderBy":[{"field":"Conversation.CreatedDate.day","direction":"DESC"}]}}"#,
        r#"{"query":{"filters":[{"op":"AND","expressions":[]}]}}"#,
        r#"{"query":{"filters":[{"expressions":[{"op":"IN","field":"Conversation.Count","values":["1","2"]}]}]}}"#,
    ] {
        assert_eq!(apply(&policy, body).unwrap().as_bytes(), canonical(body), "{body}");
    }
}

fn visible(policy: &Policy, metadata: &str) -> Option<Visible> {
    policy.metadata(metadata.as_bytes()).map(|(_, visible)| visible)
}

#[test]
fn metadata_names_nothing_that_is_denied() {
    let policy = policy(&["Conversation.ParticipantId", "secret.*"], &[]);
    let Some(Visible::Part(seen)) = visible(&policy, METADATA) else { panic!("nothing is left out") };
    assert_eq!(
        std::str::from_utf8(&seen).unwrap(),
        r#"{"domain":"Conversations","cubes":[{"name":"Conversation","measures":[{"name":"Conversation.Count","type":"number","aggregation":"count"}],"dimensions":[{"name":"Conversation.ParticipantIdentity","type":"string"},{"name":"Conversation.ProfileName","type":"string"},{"name":"Conversation.Status","type":"string","description":"a \u0073tatus"},{"name":"Conversation.CreatedDate","type":"time"}]}]}"#
    );
    assert_eq!(visible(&self::policy(&[], &[CLOSED]), METADATA), Some(Visible::All));
    let everything = visible(&self::policy(&["Conversation.*", "Secret*"], &[]), METADATA);
    assert_eq!(everything, Some(Visible::Part(r#"{"domain":"Conversations","cubes":[]}"#.into())));
    assert_eq!(visible(&policy, r#"{"data":[]}"#), None);
    assert_eq!(visible(&policy, "no metadata"), None);
}

#[test]
fn metadata_mentions_no_denied_member_by_what_it_is_called_in_its_cube() {
    let shown = |kind: &str, aggregation: &str, description: &str| {
        let metadata = serde_json::json!({"domain": description, "cubes": [{"name": "C", "description": description,
            "measures": [{"name": "C.Count", "type": kind, "aggregation": aggregation, "description": description}],
            "dimensions": [{"name": "C.ParticipantId", "type": "string"}, {"name": "C.Sub.Id", "type": "string"}]}]});
        let policy = policy(&["C.ParticipantId", "C.Sub.*"], &[]);
        match visible(&policy, &metadata.to_string()) {
            Some(Visible::Part(seen)) => String::from_utf8(seen.to_vec()).unwrap(),
            other => panic!("{other:?}"),
        }
    };
    let hidden = [
        "see ParticipantId",
        "see participantid.",
        "`PARTICIPANTID`",
        "(X.ParticipantId)",
        "[ParticipantId,Count]",
        "like ParticipantId.day",
        "of sub.id",
    ];
    for text in hidden {
        let seen = shown("number", "count", text).to_ascii_lowercase();
        assert!(!seen.contains("participantid") && !seen.contains("sub.id"), "{text}: {seen}");
    }
    for text in ["participants and their ids", "how many: Count", "ParticipantIdentity of c"] {
        assert_eq!(shown("number", "count", text).matches(text).count(), 3, "{text}");
    }
    for kind in ["ParticipantId", "enum(ParticipantId)", "secret-type"] {
        assert!(!shown(kind, kind, "").contains(kind), "{kind}");
    }
    let seen = shown("Number", "SUM", "");
    assert!(seen.contains(r#""type":"Number""#) && seen.contains(r#""aggregation":"SUM""#), "{seen}");
}

#[test]
fn a_denied_cube_denies_no_unqualified_name_of_another() {
    let metadata = r#"{"cubes":[{"name":"Conversation","measures":[],"dimensions":[{"name":"Queue","type":"string"}]},
        {"name":"Hidden","measures":[],"dimensions":[{"name":"Inner","type":"string"},{"name":"Hidden.Id","type":"string"}]}]}"#;
    let catalog = Catalog::read(&json::parse(metadata.as_bytes()).unwrap()).unwrap();
    let policy = policy(&["Hidden.*"], &[]);
    let permits = |name| policy.permits(&catalog, Place::Dimension, name);
    assert_eq!(["Queue", "Inner", "Hidden.Id"].map(permits), [true, false, false]);
}

#[test]
fn a_group_with_the_required_filter_equals_one_without() {
    let policy = policy(&[], &[CLOSED]);
    let closed = r#"{"op":"EQ","field":"Conversation.Status","values":["CLOSED"]}"#;
    let one = r#"{"op":"EQ","field":"Conversation.ProfileName","values":["a"]}"#;
    let query = |groups: &[String]| format!(r#"{{"query":{{"filters":[{}]}}}}"#, groups.join(","));
    let and = |expressions: &[&str]| format!(r#"{{"op":"AND","expressions":[{}]}}"#, expressions.join(","));
    let without = apply(&policy, &query(&[and(&[one])])).unwrap();
    for groups in [vec![and(&[one, closed])], vec![and(&[one]), and(&[closed, one])]] {
        assert_eq!(apply(&policy, &query(&groups)).unwrap(), without, "{groups:?}");
    }
    // A permitted query passes again unchanged.
    assert_eq!(apply(&policy, &without).unwrap(), without);
}

#[test]
fn different_policies_have_different_fingerprints() {
    let prints = [
        policy(&[], &[]),
        policy(&["a"], &[]),
        policy(&["a", "b"], &[]),
        policy(&["ab"], &[]),
        policy(&[], &[CLOSED]),
        policy(&[], &[(Comparison::Ne, CLOSED.1, CLOSED.2)]),
        policy(&[], &[(Comparison::In, CLOSED.1, &["CLOSED", "x"])]),
        policy(&["EQ", "Conversation.Status", "CLOSED"], &[]),
    ];
    for (i, one) in prints.iter().enumerate() {
        for other in &prints[i + 1..] {
            assert_ne!(one.fingerprint(), other.fingerprint());
        }
    }
}

proptest! {
    /// A query that passes names nothing denied, and has the required filter in every group.
    #[test]
    fn queries_that_pass_obey_the_policy(body in r#"\{"query":\{("measures":\["(Conversation|Secret)\.(Count|x)"\],)?"filters":\[(\{("op":"(AND|OR)",)?"expressions":\[\{"op":"EQ","field":"Conversation\.(Status|ParticipantId)","values":\["1"\]\}\]\})?\]\}\}"#) {
        let policy = policy(&["Conversation.ParticipantId", "Secret.*"], &[CLOSED]);
        if let Ok(effective) = apply(&policy, &body) {
            prop_assert!(!effective.contains("ParticipantId") && !effective.contains("Secret"));
            prop_assert!(effective.contains("CLOSED") && !effective.contains("\"OR\""));
        }
    }
}
