//! Texts that are and are not JSON, case by case, in particular where readers are known to differ. Every case is read
//! here, by serde_json, and as the body of a query.

mod accepted;
mod refused;
#[path = "../../fuzz/src/strict.rs"]
mod strict;

use insights_gateway::core::json::Fault::{RepeatedName, TooDeep};
use insights_gateway::core::json::{MAX_DEPTH, parse, parse_within};
use insights_gateway::twilio::query::{self, Query, QueryError};
use serde_json::Value as Theirs;

use self::accepted::{ACCEPTED, UNBOUNDED};
use self::refused::{REFUSED, STRICTER};

fn cases<T: Copy>(table: &[&[T]]) -> Vec<T> {
    table.iter().flat_map(|group| group.iter().copied()).collect()
}

fn shown(text: &[u8]) -> String {
    text.escape_ascii().to_string()
}

/// `text` as an undocumented part of a query, which is sent unchanged.
fn in_a_query(text: &[u8]) -> Vec<u8> {
    [b"{\"query\":{\"x\":", text, b"}}"].concat()
}

#[test]
fn valid_json_is_read_like_serde_json() {
    for text in cases(ACCEPTED) {
        assert!(serde_json::from_slice::<Theirs>(text).is_ok(), "{}", shown(text));
        assert!(strict::read(text).is_some(), "{}", shown(text));
    }
}

#[test]
fn invalid_json_is_refused_by_both() {
    for (text, fault) in cases(REFUSED) {
        assert_eq!(parse(text).map_err(|error| error.fault), Err(fault), "{}", shown(text));
        assert!(serde_json::from_slice::<Theirs>(text).is_err(), "{}", shown(text));
        assert!(matches!(query::parse(text), Err(QueryError::Json(..))), "{}", shown(text));
    }
}

#[test]
fn ambiguous_json_is_refused() {
    for text in STRICTER {
        assert_eq!(parse(text).map_err(|error| error.fault), Err(RepeatedName), "{}", shown(text));
        assert!(serde_json::from_slice::<Theirs>(text).is_ok(), "{}", shown(text));
        assert!(matches!(query::parse(&in_a_query(text)), Err(QueryError::Json(..))), "{}", shown(text));
    }
}

#[test]
fn numbers_keep_their_digits_whatever_their_size() {
    for text in UNBOUNDED {
        let mut written = Vec::new();
        parse(text).unwrap_or_else(|error| panic!("{}: {error}", shown(text))).write(&mut written);
        assert_eq!(written, *text, "{}", shown(text));
        let error = serde_json::from_slice::<Theirs>(text).expect_err("no f64 holds it");
        assert!(error.to_string().contains("out of range"), "{}: {error}", shown(text));
    }
}

#[test]
fn accepted_json_survives_in_a_query() {
    for text in cases(ACCEPTED).iter().chain(UNBOUNDED) {
        let canonical = |body: &[u8]| Query::read(&query::parse(body)?).map(|query| query.canonical());
        let query = canonical(&in_a_query(text)).unwrap_or_else(|error| panic!("{}: {error}", shown(text)));
        let mut plain = Vec::new();
        parse(text).expect("it is accepted").write(&mut plain);
        assert_eq!(query, in_a_query(&plain), "{}", shown(text));
        assert_eq!(canonical(&query).as_ref(), Ok(&query), "{}", shown(text));
    }
}

/// A complete text is never the beginning of another one, so a body that was cut short cannot be accepted as a shorter
/// one.
#[test]
fn no_part_of_a_structure_is_a_structure() {
    for text in cases(ACCEPTED).iter().map(|text| text.trim_ascii()) {
        if !matches!(text.first(), Some(b'[' | b'{' | b'"')) {
            continue;
        }
        for end in 0..text.len() {
            assert!(parse(&text[..end]).is_err(), "{}, cut at {end}", shown(text));
        }
        for more in [&b"x"[..], b",", b"]", b"}", b"0", b"\"", b"\0", b"\xef\xbb\xbf"] {
            assert!(parse(&[text, more].concat()).is_err(), "{} and {}", shown(text), shown(more));
        }
    }
}

/// Nesting is limited in every structure, so no body can use up the stack.
#[test]
fn depth_is_bounded_in_every_shape() {
    let shapes: [(&str, &str); 5] =
        [("[", "]"), ("{\"a\":", "}"), ("[{\"a\":", "}]"), ("[1,", "]"), ("{\"a\":1,\"b\":", "}")];
    for (open, close) in shapes {
        let levels = open.matches(['[', '{']).count();
        let nested = |depth: usize| format!("{}1{}", open.repeat(depth / levels), close.repeat(depth / levels));
        assert!(parse(nested(MAX_DEPTH).as_bytes()).is_ok(), "{open}");
        for depth in [MAX_DEPTH + levels, 1_000, 100_000] {
            assert_eq!(parse(nested(depth).as_bytes()).map_err(|error| error.fault), Err(TooDeep), "{open}");
            assert_eq!(parse(open.repeat(depth).as_bytes()).map_err(|error| error.fault), Err(TooDeep), "{open}");
        }
    }
}

/// The largest body that is let in, in the shapes that cost a reader most: it has to be done in a time that does not
/// grow with its square. Squared, any of them would take hours.
#[test]
fn large_bodies_take_no_longer_than_they_are_long() {
    const SIZE: usize = 1 << 20;
    let names = (0..SIZE / 12).map(|i| format!("\"{i:06}\":0")).collect::<Vec<_>>().join(",");
    let texts = [
        format!("[{}1]", "1,".repeat(SIZE / 2)),
        format!("[{}[]]", "[],".repeat(SIZE / 3)),
        format!("\"{}\"", "a".repeat(SIZE)),
        format!("\"{}\"", "\\u0041".repeat(SIZE / 6)),
        format!("\"{}\"", "\\\\".repeat(SIZE / 2)),
        "9".repeat(SIZE),
        format!("0.{}", "0".repeat(SIZE)),
        " ".repeat(SIZE) + "1",
        format!("{{{names}}}"),
    ];
    for text in texts {
        let mut written = Vec::new();
        parse_within(text.as_bytes(), usize::MAX).expect("JSON").write(&mut written);
        assert_eq!(written, text.trim_start().as_bytes());
    }
    assert_eq!(parse(format!("{{{names},\"000007\":1}}").as_bytes()).map_err(|error| error.fault), Err(RepeatedName));
    for unfinished in ["[".repeat(SIZE), "\"".to_owned() + &"\\".repeat(SIZE + 1), "{\"a\":".repeat(SIZE / 5)] {
        assert!(parse(unfinished.as_bytes()).is_err());
    }
}
