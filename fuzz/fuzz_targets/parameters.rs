//! The first line of a request: `METHOD path?query`. Only Twilio's own paths lead anywhere; a query string has one
//! spelling, which says the same; a token of an answer is the token of the request for its page.

#![no_main]

use http::Method;
use http::uri::PathAndQuery;
use insights_gateway::model::host::is_address_or_loopback;
use insights_gateway::model::operation::{Operation, Route, route};
use insights_gateway::model::parameters::Parameters;
use insights_gateway_fuzz::choices;
use libfuzzer_sys::fuzz_target;

type Pair = (Vec<u8>, Option<Vec<u8>>);

/// The pairs of a query string, decoded, those of one name in their order.
fn pairs(query: &str) -> Option<Vec<Pair>> {
    let mut pairs = Vec::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.find('=').map_or((pair, None), |at| (&pair[..at], Some(&pair[at + 1..])));
        pairs.push((
            decode(name)?,
            match value {
                Some(value) => Some(decode(value)?),
                None => None,
            },
        ));
    }
    pairs.sort_by(|a, b| a.0.cmp(&b.0));
    Some(pairs)
}

fn decode(text: &str) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((first, behind)) = rest.split_first() {
        if *first == b'%' {
            let digits = behind.get(..2).filter(|digits| digits.iter().all(u8::is_ascii_hexdigit))?;
            out.push(u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?);
            rest = &behind[2..];
        } else {
            out.push(*first);
            rest = behind;
        }
    }
    Some(out)
}

/// Other names in another order, other spellings, and empty pairs between them.
fn respell(pairs: &[Pair], rng: &mut fastrand::Rng) -> String {
    let mut groups: Vec<&[Pair]> = pairs.chunk_by(|a, b| a.0 == b.0).collect();
    rng.shuffle(&mut groups);
    let mut out = String::new();
    for (name, value) in groups.into_iter().flatten() {
        out.push_str(["&", "&&"][rng.usize(..2)]);
        encode(name, rng, &mut out);
        if let Some(value) = value {
            out.push('=');
            encode(value, rng, &mut out);
        }
    }
    out
}

fn encode(bytes: &[u8], rng: &mut fastrand::Rng, out: &mut String) {
    for byte in bytes {
        let may_be_plain = byte.is_ascii_alphanumeric() || b"-._~+/".contains(byte);
        match (may_be_plain && rng.u8(..4) > 0, rng.bool()) {
            (true, _) => out.push(char::from(*byte)),
            (false, true) => out.push_str(&format!("%{byte:02X}")),
            (false, false) => out.push_str(&format!("%{byte:02x}")),
        }
    }
}

fn check_route(method: &[u8], path: &str) {
    let Ok(method) = Method::from_bytes(method) else { return };
    let reads = method == Method::GET || method == Method::HEAD;
    let expected = match (path, &method) {
        ("/v3/InsightsDomains/Conversations/Metadata", _) if reads => Some(Operation::Metadata),
        ("/v3/InsightsDomains/Conversations/Query", _) if reads => Some(Operation::Page),
        ("/v3/InsightsDomains/Conversations/Query", &Method::POST) => Some(Operation::Query),
        _ => None,
    };
    let found = match route(&method, path) {
        Route::Found(operation) => Some(operation),
        Route::MethodNotAllowed(allow) => {
            assert!(!allow.split(", ").any(|allowed| allowed == method.as_str()), "{method} is allowed");
            None
        }
        Route::NotServed | Route::NotFound => None,
    };
    assert_eq!(found, expected, "{method} {path}");
}

fn check_query(query: &str, rng: &mut fastrand::Rng) {
    let (parameters, pairs) = match (Parameters::parse(query), pairs(query)) {
        (Ok(parameters), Some(pairs)) => (parameters, pairs),
        (Err(_), None) => return,
        (parsed, _) => panic!("half an encoding: {parsed:?}"),
    };
    let canonical = parameters.as_str();
    assert_eq!(Parameters::parse(canonical).as_ref(), Ok(&parameters), "not a fixed point");
    assert_eq!(self::pairs(canonical).as_ref(), Some(&pairs), "other parameters");
    assert!(canonical.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._~%&=".contains(&b)), "{canonical}");
    if canonical.len() < 60_000 {
        assert!(PathAndQuery::try_from(format!("/v3?{canonical}")).is_ok(), "{canonical}");
    }
    let spelled = respell(&pairs, rng);
    assert_eq!(Parameters::parse(&spelled).as_ref(), Ok(&parameters), "another spelling: {spelled}");

    let tokens = || pairs.iter().filter(|(name, _)| matches!(name.as_slice(), b"pageToken" | b"PageToken"));
    let values: Vec<_> = tokens().filter_map(|(_, value)| value.as_deref()).filter(|value| !value.is_empty()).collect();
    assert_eq!(parameters.has_page_token(), !values.is_empty());
    if let ([(name, Some(value))], Ok(token)) =
        (pairs.as_slice(), std::str::from_utf8(values.first().unwrap_or(&&b""[..])))
        && name == b"pageToken"
        && !value.is_empty()
    {
        assert_eq!(Parameters::of_page(token), parameters, "the token of an answer");
    }
}

fuzz_target!(|line: &[u8]| {
    let at = line.iter().position(|byte| *byte == b' ').unwrap_or(0);
    let Ok(target) = std::str::from_utf8(line.get(at + 1..).unwrap_or_default()) else { return };
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    check_route(&line[..at], path);
    check_query(query, &mut choices(line, 0));
    if is_address_or_loopback(path) {
        let plain = path.trim_matches(['[', ']']).to_ascii_lowercase();
        assert!(plain.ends_with("localhost") || plain.parse::<std::net::IpAddr>().is_ok(), "{path}");
    }
});
