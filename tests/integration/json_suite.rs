//! Texts that are and are not JSON, case by case, in particular where readers are known to differ. Every case is read
//! here, by serde_json, and as the body of a query.

#[path = "../../fuzz/src/strict.rs"]
mod strict;

use insights_gateway::core::json::Fault::{self, *};
use insights_gateway::core::json::{MAX_DEPTH, parse, parse_within};
use insights_gateway::twilio::query::{self, Query, QueryError};
use serde_json::Value as Theirs;

/// Accepted, and read like serde_json.
const TAKEN: &[&[&[u8]]] = &[
    // structures
    &[
        b"[]",
        b"{}",
        b"[[]]",
        b"[{}]",
        b"{\"a\":[]}",
        b"{\"a\":{}}",
        b"[[[[]]]]",
        b"[1]",
        b"[1,2]",
        b"[null]",
        b"[null,null]",
        b"[true,false,null]",
        b"{\"a\":null}",
        b"{\"a\":1,\"b\":2}",
        b"{\"a\":{\"a\":{\"a\":1}}}",
        b"[{\"a\":1},{\"a\":1}]",
        b"{\"\":0}",
        b"{\"a\":\"a\"}",
        b"{\"a\":1,\"A\":2}",
        b"{\"a\":1,\"a \":2}",
        b"{\"a\":1,\"\\u0000\":2}",
        b"{\"\\\"\":1,\"\\\\\":2}",
        b"[[],[],{}]",
        b"[\"\",\"\"]",
    ],
    // scalars at the top level
    &[b"0", b"-0", b"1", b"\"a\"", b"\"\"", b"null", b"true", b"false", b"1.5", b"\"\\u0000\""],
    // white space
    &[
        b" 1 ",
        b"\t1\t",
        b"\n1\n",
        b"\r1\r",
        b"\r\n[\r\n1\r\n]\r\n",
        b" { \"a\" : 1 , \"b\" : [ 1 , 2 ] } ",
        b"[ ]",
        b"{ }",
        b"[\t\n\r ]",
        b"1\n",
    ],
    // numbers
    &[
        b"-1",
        b"10",
        b"-10",
        b"1234567890",
        b"9007199254740991",
        b"9007199254740992",
        b"9007199254740993",
        b"18446744073709551615",
        b"18446744073709551616",
        b"-9223372036854775808",
        b"-9223372036854775809",
        b"100000000000000000000000000000000",
        b"0.0",
        b"-0.0",
        b"0.1",
        b"0.10",
        b"1.0",
        b"1.50",
        b"-1.5",
        b"123.456",
        b"0.000000000000000000000000000000001",
        b"1e0",
        b"1E0",
        b"1e1",
        b"1e+1",
        b"1e-1",
        b"1E+1",
        b"1E-1",
        b"0e0",
        b"0e1",
        b"0e+1",
        b"-0e-0",
        b"1.5e10",
        b"1.5E-10",
        b"1e00",
        b"1e01",
        b"1e-01",
        b"1e308",
        b"1e-400",
        b"1e-999999",
        b"0e999999",
        b"[1e5,1E5,100000]",
        b"123e-10000000",
        b"1.7976931348623157e308",
        b"0.1e1",
        b"20e1",
        b"[123.456e78]",
    ],
    // strings
    &[
        b"\"a b\"",
        b"\" \"",
        b"\"\\\"\"",
        b"\"\\\\\"",
        b"\"\\/\"",
        b"\"/\"",
        b"\"\\b\\f\\n\\r\\t\"",
        b"\"\\u0041\"",
        b"\"\\u004a\\u004A\"",
        b"\"\\u00e9\"",
        b"\"\\u0000\"",
        b"\"a\\u0000b\"",
        b"\"\\u001f\"",
        b"\"\\u007f\"",
        b"\"\\u2028\\u2029\"",
        b"\"\\ufeff\"",
        b"\"\\ufffe\\uffff\"",
        b"\"\\ufdd0\"",
        b"\"\\ud83d\\ude00\"",
        b"\"\\uD83D\\uDE00\"",
        b"\"\\ud800\\udc00\"",
        b"\"\\udbff\\udfff\"",
        b"\"\\ud7ff\\ue000\"",
        b"\"\\\\u0041\"",
        b"\"\\\\\\\\\"",
        b"\"\\\"\\\\\\\"\"",
        b"\"[1,{}]\"",
        b"\"//\"",
        b"\"/* */\"",
        b"\"'\"",
        b"\"true\"",
        b"\"\\u0022\"",
        b"\"\\u005c\"",
        b"\"\x7f\"",
        b"\"\xc2\x80\"",
        b"\"\xc3\xa9\"",
        b"\"\xe2\x80\xa8\"",
        b"\"\xe2\x80\xa9\"",
        b"\"\xef\xbb\xbf\"",
        b"\"\xef\xbf\xbd\"",
        b"\"\xef\xbf\xbf\"",
        b"\"\xf0\x9f\x98\x80\"",
        b"\"\xf4\x8f\xbf\xbf\"",
        b"\"\xe6\x97\xa5\xe6\x9c\xac\xe8\xaa\x9e\"",
        b"\"e\xcc\x81\"",
        b"\"\xe2\x80\xae\"",
        b"{\"\xc3\xa9\":\"\xc3\xa9\"}",
        b"\"\\u0061\\u30af\\u30EA\\u30b9\"",
    ],
];

/// Refused, like serde_json, and why.
const REFUSED: &[&[(&[u8], Fault)]] = &[
    // nothing
    &[(b"", Truncated), (b" ", Truncated), (b"\n\t", Truncated), (b"\0", Unexpected)],
    // unclosed
    &[
        (b"[", Truncated),
        (b"{", Truncated),
        (b"\"", Truncated),
        (b"[1", Truncated),
        (b"[1,", Truncated),
        (b"[[", Truncated),
        (b"[[]", Truncated),
        (b"{\"a\"", Truncated),
        (b"{\"a\":", Truncated),
        (b"{\"a\":1", Truncated),
        (b"{\"a\":1,", Truncated),
        (b"{\"a\":{", Truncated),
        (b"{\"a\":[", Truncated),
        (b"\"a", Truncated),
        (b"[\"a", Truncated),
        (b"\"\\", Truncated),
        (b"\"\\\"", Truncated),
        (b"\"\\u", Truncated),
        (b"\"\\u00", Truncated),
        (b"\"\\u0041", Truncated),
        (b"{\"", Truncated),
        (b"[\" ", Truncated),
        (b"[{\"\":", Truncated),
        (b"[tru", Truncated),
        (b"nul", Truncated),
        (b"fals", Truncated),
    ],
    // closed twice or with the wrong bracket
    &[
        (b"]", Unexpected),
        (b"}", Unexpected),
        (b"[]]", Trailing),
        (b"{}}", Trailing),
        (b"[1}", Unexpected),
        (b"{\"a\":1]", Unexpected),
        (b"[}", Unexpected),
        (b"{]", Unexpected),
        (b"[{]}", Unexpected),
        (b"[1]]", Trailing),
        (b"\"\"\"\"", Trailing),
    ],
    // commas and colons
    &[
        (b"[1,]", Unexpected),
        (b"[,]", Unexpected),
        (b"[,1]", Unexpected),
        (b"[1,,2]", Unexpected),
        (b"[1,,]", Unexpected),
        (b"[1 2]", Unexpected),
        (b"[1:2]", Unexpected),
        (b"[;]", Unexpected),
        (b",", Unexpected),
        (b":", Unexpected),
        (b"1,", Trailing),
        (b"{,}", Unexpected),
        (b"{\"a\":1,}", Unexpected),
        (b"{\"a\":1,,\"b\":2}", Unexpected),
        (b"{,\"a\":1}", Unexpected),
        (b"{\"a\" 1}", Unexpected),
        (b"{\"a\",1}", Unexpected),
        (b"{\"a\"::1}", Unexpected),
        (b"{\"a\":}", Unexpected),
        (b"{:1}", Unexpected),
        (b"{\"a\":1:2}", Unexpected),
        (b"{\"a\":1 \"b\":2}", Unexpected),
        (b"{\"a\"}", Unexpected),
        (b"{\"a\":,}", Unexpected),
        (b"[\"a\",\n4\n,1,", Truncated),
        (b"[\"\":1]", Unexpected),
    ],
    // names
    &[
        (b"{a:1}", Unexpected),
        (b"{'a':1}", Unexpected),
        (b"{1:1}", Unexpected),
        (b"{null:1}", Unexpected),
        (b"{[]:1}", Unexpected),
        (b"{{}:1}", Unexpected),
        (b"{\"a\":1,b:2}", Unexpected),
        (b"{\"\\x\":1}", BadEscape),
        (b"{\"a\n\":1}", Unexpected),
        (b"{true:false}", Unexpected),
        (b"{9999E9999:1}", Unexpected),
    ],
    // more than one value
    &[
        (b"1 2", Trailing),
        (b"{}{}", Trailing),
        (b"[][]", Trailing),
        (b"{} []", Trailing),
        (b"null null", Trailing),
        (b"\"a\" \"b\"", Trailing),
        (b"1\0", Trailing),
        (b"{}\0", Trailing),
        (b"{} x", Trailing),
        (b"{};", Trailing),
        (b"{}#", Trailing),
        (b"[1]x", Trailing),
        (b"{\"a\":1}//", Trailing),
        (b"1\x0c", Trailing),
        (b"{}\\u0020", Trailing),
    ],
    // comments and other dialects
    &[
        (b"//\n1", Unexpected),
        (b"/* */1", Unexpected),
        (b"1/**/", Trailing),
        (b"[1/**/]", Unexpected),
        (b"#\n1", Unexpected),
        (b"{\"a\":1/*\n*/}", Unexpected),
        (b"'a'", Unexpected),
        (b"`a`", Unexpected),
        (b"a", Unexpected),
        (b"undefined", Unexpected),
        (b"None", Unexpected),
        (b"(1)", Unexpected),
        (b"<a/>", Unexpected),
        (b"query=1", Unexpected),
        (b"---\na: 1", BadNumber),
        (b"&a [1]", Unexpected),
        (b"{\"a\":b}", Unexpected),
        (b"*", Unexpected),
        (b"$", Unexpected),
        (b"@", Unexpected),
    ],
    // words
    &[
        (b"True", Unexpected),
        (b"TRUE", Unexpected),
        (b"NULL", Unexpected),
        (b"nil", Unexpected),
        (b"truee", Trailing),
        (b"nullx", Trailing),
        (b"t", Truncated),
        (b"tRue", Unexpected),
        (b"[truth]", Unexpected),
        (b"[nul]", Unexpected),
        (b"[fals ]", Unexpected),
        (b"t rue", Unexpected),
    ],
    // numbers
    &[
        (b"+1", Unexpected),
        (b"-", Truncated),
        (b"--1", BadNumber),
        (b"+", Unexpected),
        (b"-+1", BadNumber),
        (b"-a", BadNumber),
        (b"[-]", BadNumber),
        (b"[- 1]", BadNumber),
        (b"01", BadNumber),
        (b"00", BadNumber),
        (b"-01", BadNumber),
        (b"-00", BadNumber),
        (b"012", BadNumber),
        (b"[01]", BadNumber),
        (b"01.5", BadNumber),
        (b".5", Unexpected),
        (b"-.5", BadNumber),
        (b"[.5]", Unexpected),
        (b"1.", Truncated),
        (b"[1.]", BadNumber),
        (b"1.e1", BadNumber),
        (b"1..2", BadNumber),
        (b"1.2.3", Trailing),
        (b"1e", Truncated),
        (b"1E", Truncated),
        (b"[1e]", BadNumber),
        (b"1e+", Truncated),
        (b"[1e+]", BadNumber),
        (b"1e-", Truncated),
        (b"1e+-1", BadNumber),
        (b"1ee1", BadNumber),
        (b"1e1.5", Trailing),
        (b"1e1e1", Trailing),
        (b"0x1F", Trailing),
        (b"0X1", Trailing),
        (b"0b1", Trailing),
        (b"0o7", Trailing),
        (b"1_000", Trailing),
        (b"1,000", Trailing),
        (b"1 000", Trailing),
        (b"1f", Trailing),
        (b"1n", Trailing),
        (b"1L", Trailing),
        (b"NaN", Unexpected),
        (b"-NaN", BadNumber),
        (b"Infinity", Unexpected),
        (b"-Infinity", BadNumber),
        (b"inf", Unexpected),
        (b"-inf", BadNumber),
        (b"1.#INF", BadNumber),
        (b"1a", Trailing),
        (b"[1a]", Unexpected),
        (b"1.5.", Trailing),
        (b"\xef\xbc\x91", Unexpected),
        (b"\xd9\xa1", Unexpected),
        (b"[\xc2\xbd]", Unexpected),
        (b"1\xc2\xa0", Trailing),
        (b"-\xd9\xa1", BadNumber),
        (b"2.e+3", BadNumber),
        (b"0e", Truncated),
        (b"0.e1", BadNumber),
        (b"9.e+", BadNumber),
        (b"\xe2\x88\x921", Unexpected),
        (b"0.1.2", Trailing),
        (b"0e+-1", BadNumber),
    ],
    // escapes
    &[
        (b"\"\\a\"", BadEscape),
        (b"\"\\0\"", BadEscape),
        (b"\"\\v\"", BadEscape),
        (b"\"\\x41\"", BadEscape),
        (b"\"\\'\"", BadEscape),
        (b"\"\\U0041\"", BadEscape),
        (b"\"\\ \"", BadEscape),
        (b"\"\\\n\"", BadEscape),
        (b"\"\\N\"", BadEscape),
        (b"\"\\B\"", BadEscape),
        (b"\"\\e\"", BadEscape),
        (b"\"\\u\"", BadEscape),
        (b"\"\\u0\"", BadEscape),
        (b"\"\\u004\"", BadEscape),
        (b"\"\\u 041\"", BadEscape),
        (b"\"\\u+041\"", BadEscape),
        (b"\"\\u-041\"", BadEscape),
        (b"\"\\u00g1\"", BadEscape),
        (b"\"\\u{41}\"", BadEscape),
        (b"\"\\uu0041\"", BadEscape),
        (b"\"\\u\xef\xbc\x90041\"", BadEscape),
        (b"\"\\\xc3\xa9\"", BadEscape),
        (b"\"\\\0\"", BadEscape),
        (b"\\u0022a\"", Unexpected),
        (b"[\\n]", Unexpected),
        (b"\"\\%41\"", BadEscape),
        (b"\"\\1\"", BadEscape),
        (b"\"\\\xf0\x9f\x98\x80\"", BadEscape),
    ],
    // half pairs
    &[
        (b"\"\\ud800\"", BadEscape),
        (b"\"\\udbff\"", BadEscape),
        (b"\"\\udc00\"", BadEscape),
        (b"\"\\udfff\"", BadEscape),
        (b"\"\\ud800a\"", BadEscape),
        (b"\"\\ud800\\n\"", BadEscape),
        (b"\"\\ud800\\u0041\"", BadEscape),
        (b"\"\\ud800\\ud800\"", BadEscape),
        (b"\"\\ud800\\ud800\\udc00\"", BadEscape),
        (b"\"\\udc00\\ud800\"", BadEscape),
        (b"\"\\ud83d\\u\"", BadEscape),
        (b"\"\\ud83d\\ude0\"", BadEscape),
        (b"\"\\ud83d\\\\ude00\"", BadEscape),
        (b"\"\\ud83d ude00\"", BadEscape),
        (b"\"\\ud83d\\ue000\"", BadEscape),
        (b"{\"\\ud800\":1}", BadEscape),
        (b"\"\\uD888\\u1234\"", BadEscape),
        (b"\"\\uDd1e\\uD834\"", BadEscape),
    ],
    // control characters in strings
    &[
        (b"\"\0\"", Unexpected),
        (b"\"\x01\"", Unexpected),
        (b"\"\x08\"", Unexpected),
        (b"\"\t\"", Unexpected),
        (b"\"\n\"", Unexpected),
        (b"\"\x0b\"", Unexpected),
        (b"\"\x0c\"", Unexpected),
        (b"\"\r\"", Unexpected),
        (b"\"\x1b\"", Unexpected),
        (b"\"\x1f\"", Unexpected),
        (b"\"a\0b\"", Unexpected),
        (b"{\"a\tb\":1}", Unexpected),
    ],
    // other kinds of white space
    &[
        (b"\x0b1", Unexpected),
        (b"\x0c1", Unexpected),
        (b"[\x0c]", Unexpected),
        (b"\xc2\xa01", Unexpected),
        (b"\xc2\x851", Unexpected),
        (b"\xe2\x80\xa81", Unexpected),
        (b"\xe3\x80\x801", Unexpected),
        (b"[1\xc2\xa0]", Unexpected),
        (b"\xe2\x81\xa01", Unexpected),
        (b"\xe2\x80\x8b1", Unexpected),
        (b"\x1e{}", Unexpected),
        (b"\x1f1", Unexpected),
    ],
    // byte order marks and other encodings
    &[
        (b"\xef\xbb\xbf{}", Unexpected),
        (b"\xef\xbb\xbf", Unexpected),
        (b"{}\xef\xbb\xbf", Trailing),
        (b"\xff\xfe{\0}\0", NotUtf8),
        (b"\xfe\xff\0{\0}", NotUtf8),
        (b"{\0}\0", Unexpected),
        (b"\0{\0}", Unexpected),
        (b"\0\0\0{", Unexpected),
        (b"\xff\xfe\0\0{\0\0\0", NotUtf8),
        (b"\"\xe9\"", NotUtf8),
        (b"\"\x93a\x94\"", NotUtf8),
        (b"\x1f\x8b\x08\0", NotUtf8),
        (b"+ADw-", Unexpected),
        (b"\xef\xbb{}", NotUtf8),
    ],
    // broken UTF-8
    &[
        (b"\"\xff\"", NotUtf8),
        (b"\"\xfe\"", NotUtf8),
        (b"\"\x80\"", NotUtf8),
        (b"\"\xbf\"", NotUtf8),
        (b"\"\xc3\"", NotUtf8),
        (b"\"\xc3(\"", NotUtf8),
        (b"\"\xe2\x82\"", NotUtf8),
        (b"\"\xe2(\xa1\"", NotUtf8),
        (b"\"\xf0\x9f\x98\"", NotUtf8),
        (b"\"\xc0\xaf\"", NotUtf8),
        (b"\"\xc0\x80\"", NotUtf8),
        (b"\"\xc1\xbf\"", NotUtf8),
        (b"\"\xe0\x80\xaf\"", NotUtf8),
        (b"\"\xf0\x80\x80\xaf\"", NotUtf8),
        (b"\"\xfc\x83\xbf\xbf\xbf\xbf\"", NotUtf8),
        (b"\"\xed\xa0\x80\"", NotUtf8),
        (b"\"\xed\xbf\xbf\"", NotUtf8),
        (b"\"\xed\xa0\x81\xed\xb0\x80\"", NotUtf8),
        (b"\"\xf4\x90\x80\x80\"", NotUtf8),
        (b"\"\xf8\x88\x80\x80\x80\"", NotUtf8),
        (b"\xff", NotUtf8),
        (b"[\xff]", NotUtf8),
        (b"{\"\xff\":1}", NotUtf8),
        (b"[1]\xff", NotUtf8),
        (b"[1\xff]", NotUtf8),
        (b"\"a\xff", NotUtf8),
        (b"\xe5", NotUtf8),
        (b"\"\xc0\xa2", NotUtf8),
    ],
];

/// Refused, although serde_json accepts it. Readers take the first, the last or both of two members with one name, so a
/// server after the cache could answer another query than the one whose page is stored.
const STRICTER: &[&[u8]] = &[
    b"{\"a\":1,\"a\":2}",
    b"{\"a\":1,\"a\":1}",
    b"{\"a\":1,\"b\":2,\"a\":3}",
    b"{\"\":1,\"\":2}",
    b"{\"a\":1,\"\\u0061\":2}",
    b"{\"\\/\":1,\"/\":2}",
    b"{\"\\ud83d\\ude00\":1,\"\xf0\x9f\x98\x80\":2}",
    b"{\"a\":null,\"a\":null}",
    b"[{\"x\":{\"a\":1,\"a\":2}}]",
    b"{\"a\":{},\"a\":[]}",
    b"{\"\\n\":1,\"\\u000a\":2}",
    b"{\"a\":1,\"a\":2,\"a\":3}",
];

/// Accepted, although serde_json refuses it: numbers that do not fit into an `f64`. Their digits are kept, so nothing
/// is lost; the upstream decides what they mean.
const UNBOUNDED: &[&[u8]] = &[
    b"1e309",
    b"-1e309",
    b"1e400",
    b"[1E999999999999999999999]",
    b"1e+1000",
    b"123123e100000",
    b"-1e99999",
    b"[0.4e006699999999999991900093]",
    b"1e9223372036854775808",
];
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
    for text in cases(TAKEN) {
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
    for text in cases(TAKEN).iter().chain(UNBOUNDED) {
        let canonical = |body: &[u8]| Query::read(&query::parse(body)?).map(|query| query.canonical());
        let query = canonical(&in_a_query(text)).unwrap_or_else(|error| panic!("{}: {error}", shown(text)));
        let mut plain = Vec::new();
        parse(text).expect("it is taken").write(&mut plain);
        assert_eq!(query, in_a_query(&plain), "{}", shown(text));
        assert_eq!(canonical(&query).as_ref(), Ok(&query), "{}", shown(text));
    }
}

/// A complete text is never the beginning of another one, so a body that was cut short cannot be accepted as a shorter
/// one.
#[test]
fn no_part_of_a_structure_is_a_structure() {
    for text in cases(TAKEN).iter().map(|text| text.trim_ascii()) {
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
