use proptest::prelude::*;

use super::*;

fn fault(text: &str) -> Fault {
    parse(text.as_bytes()).expect_err(text).fault
}

#[test]
fn keeps_digits_and_spelling() {
    let Ok(Value::Array(values)) = parse(br#"[9007199254740993, 1.0, 1e400, -0, "\u0041\n", "plain"]"#) else {
        panic!("not an array")
    };
    assert_eq!(values[0], Value::Number("9007199254740993"));
    assert_eq!(values[1], Value::Number("1.0"));
    assert_eq!(values[2], Value::Number("1e400"));
    assert_eq!(values[3], Value::Number("-0"));
    let Value::String(text) = &values[4] else { panic!("not a string") };
    assert_eq!((text.as_str(), text.raw()), ("A\n", "\\u0041\\n"));
}

#[test]
fn refuses_what_readers_disagree_about() {
    assert_eq!(fault(r#"{"a":1,"a":2}"#), Fault::RepeatedName);
    assert_eq!(fault(r#"{"a":1,"\u0061":2}"#), Fault::RepeatedName);
    assert_eq!(fault(r#""\ud800""#), Fault::BadEscape);
    assert_eq!(fault(r#""\udc00""#), Fault::BadEscape);
    assert_eq!(fault(r#""\ud800\u0041""#), Fault::BadEscape);
    assert_eq!(parse(b"\"\xff\"").unwrap_err().fault, Fault::NotUtf8);
    assert_eq!(fault("[1] [2]"), Fault::Trailing);
    assert_eq!(fault("\u{feff}{}"), Fault::Unexpected);
}

#[test]
fn refuses_what_is_not_json() {
    for text in ["", " ", "{", "[", "\"", "[1", "{\"a\"", "{\"a\":", "tru", "-", "1e", "1."] {
        assert_eq!(fault(text), Fault::Truncated, "{text:?}");
    }
    for text in [
        "[1,]",
        "{,}",
        "{\"a\":1,}",
        "{1:2}",
        "[,1]",
        "nul1",
        "'a'",
        "NaN",
        "\"\n\"",
        "\"\\x\"",
        "01",
        "-01",
        "+1",
        ".5",
        "1.e1",
        "[\u{a0}1]",
    ] {
        assert!(parse(text.as_bytes()).is_err(), "{text:?}");
    }
}

#[test]
fn bounds_nesting() {
    let nested = |n: usize| format!("{}{}", "[".repeat(n), "]".repeat(n));
    assert!(parse(nested(MAX_DEPTH).as_bytes()).is_ok());
    assert_eq!(fault(&nested(MAX_DEPTH + 1)), Fault::TooDeep);
    assert_eq!(fault(&"[".repeat(1_000_000)), Fault::TooDeep);
}

#[test]
fn bounds_the_number_of_values() {
    let zeros = |n: usize| format!("[{}]", vec!["0"; n].join(","));
    assert!(parse(zeros(MAX_VALUES - 1).as_bytes()).is_ok());
    assert_eq!(fault(&zeros(MAX_VALUES)), Fault::TooManyValues);
    assert_eq!(fault(&format!("[{}]", vec![r#"{"":0}"#; MAX_VALUES / 2].join(","))), Fault::TooManyValues);
    assert_eq!(parse_within(b"[0,0]", 2).unwrap_err(), JsonError { at: 3, fault: Fault::TooManyValues });
}

#[test]
fn a_value_takes_little_more_memory_than_needed() {
    assert!(size_of::<Value<'_>>() <= 40 && size_of::<Member<'_>>() <= 72);
    let members = |value: &Value<'_>| value.as_array().unwrap().iter().map(|v| v.as_object().unwrap().len()).sum();
    let text = format!("[{}]", vec![r#"{"":0}"#; 1000].join(","));
    let value = parse(text.as_bytes()).unwrap();
    let (values, members): (usize, usize) = (1001, members(&value));
    let built = values * size_of::<Value<'_>>() + members * size_of::<Member<'_>>();
    assert!((built..5 * built).contains(&built_size(text.as_bytes())));
}

#[test]
fn finds_a_repeated_name_among_many() {
    let names: Vec<_> = (0..1000).map(|i| format!("\"n{i}\":0")).collect();
    assert!(parse(format!("{{{}}}", names.join(",")).as_bytes()).is_ok());
    assert_eq!(fault(&format!("{{{},\"n17\":0}}", names.join(","))), Fault::RepeatedName);
}

proptest! {
    /// Whatever this reader accepts, serde_json accepts too. It refuses nothing that serde_json accepts, except
    /// what it promises to refuse.
    #[test]
    fn agrees_with_serde_json(text in r#"[ \[\]{}:,"a\\u0-9.eE+n-]{0,40}"#) {
        let ours = parse(text.as_bytes());
        let theirs = serde_json::from_str::<serde_json::Value>(&text);
        match (ours, theirs) {
            (Ok(_), Err(error)) => prop_assert!(error.to_string().contains("out of range"), "{error}"),
            (Err(error), Ok(_)) => prop_assert_eq!(error.fault, Fault::RepeatedName),
            _ => {}
        }
    }

    #[test]
    fn what_is_plain_is_found_eight_bytes_at_a_time(
        text in proptest::collection::vec(
            prop_oneof![8 => any::<u8>(), 1 => prop::sample::select(b"\"\\\x1f !#[]\x80".to_vec())],
            0..40,
        ),
    ) {
        let one_by_one = text.iter().position(|byte| matches!(byte, b'"' | b'\\' | 0..=0x1f));
        prop_assert_eq!(plain_prefix(&text), one_by_one.unwrap_or(text.len()));
    }

    #[test]
    fn never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = parse(&bytes);
    }
}
